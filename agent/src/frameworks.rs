//! What programs of other frameworks than the bundled one look for: variables, host files, rank tables.

use aquifer_core::{Host, Launch as Order, Seat, Vendor, WorkerId};
use serde::Serialize;

/// A file that a worker finds in its run directory from its first moment on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFile {
    /// Its name.
    pub name: &'static str,
    /// Variables that hold its path, unless the user has set them.
    pub variables: Vec<&'static str>,
    /// What is in it.
    pub content: String,
}

/// Variables by which frameworks find their ranks: torchrun's, JAX's, MindSpore's.
pub fn variables(id: WorkerId, order: &Order) -> Vec<(String, String)> {
    let (host, port) = (&order.master.0, order.master.1);
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let (rank, ranks) = (id.rank.to_string(), order.world_size.to_string());
    let pairs = [
        ("RANK", rank.clone()),
        ("WORLD_SIZE", ranks.clone()),
        ("LOCAL_RANK", order.local_rank.to_string()),
        ("LOCAL_WORLD_SIZE", order.local_world_size.to_string()),
        ("GROUP_RANK", order.node_rank.to_string()),
        ("MASTER_ADDR", host.to_string()),
        ("MASTER_PORT", port.to_string()),
        ("TORCHELASTIC_RUN_ID", id.job.to_string()),
        ("TORCHELASTIC_RESTART_COUNT", (id.attempt - 1).to_string()),
        ("JAX_COORDINATOR_ADDRESS", address),
        ("JAX_NUM_PROCESSES", ranks.clone()),
        ("JAX_PROCESS_ID", rank.clone()),
        // Without MS_ROLE, which only the program can choose, MindSpore does not look at these.
        ("MS_WORKER_NUM", ranks),
        ("MS_SCHED_HOST", host.to_string()),
        ("MS_SCHED_PORT", port.to_string()),
        ("MS_NODE_ID", rank),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// Files for the workers of gangs: where all of them stand.
pub fn files(order: &Order) -> Vec<RunFile> {
    let hosts = &order.hosts;
    if hosts.is_empty() {
        return Vec::new();
    }
    let mut files =
        vec![RunFile { name: "hostfile", variables: vec!["AQUIFER_HOSTFILE"], content: host_file(hosts) }];
    if let Some(content) = rank_table(hosts) {
        // A table without the addresses of the devices' own network ports will do within one machine only.
        let is_complete = hosts.len() == 1;
        let variables = [Some("AQUIFER_RANK_TABLE"), is_complete.then_some("RANK_TABLE_FILE")];
        files.push(RunFile {
            name: "hccl.json",
            variables: variables.into_iter().flatten().collect(),
            content,
        });
    }
    files
}

/// Open MPI's and DeepSpeed's: a line for each host. Slots are devices, or ranks that have none.
fn host_file(hosts: &[Host]) -> String {
    let slots = |host: &Host| host.seats.iter().map(|seat| seat.devices.len().max(1)).sum::<usize>();
    hosts.iter().map(|host| format!("{} slots={}\n", host.address, slots(host))).collect()
}

/// HCCL's table of ranks, version 1.0; all numbers are texts.
#[derive(Serialize)]
struct RankTable {
    version: &'static str,
    server_count: String,
    server_list: Vec<Server>,
    status: &'static str,
}

#[derive(Serialize)]
struct Server {
    server_id: String,
    host_ip: String,
    device: Vec<ServerDevice>,
}

#[derive(Serialize)]
struct ServerDevice {
    device_id: String,
    rank_id: String,
}

/// `None`: no rank has Ascend devices. Devices are numbered in the order of ranks, so that with one for each rank their
/// numbers are the ranks'.
fn rank_table(hosts: &[Host]) -> Option<String> {
    let is_ascend = |seat: &&Seat| seat.vendor == Some(Vendor::Ascend);
    let mut seats: Vec<&Seat> = hosts.iter().flat_map(|host| &host.seats).filter(is_ascend).collect();
    seats.sort_by_key(|seat| seat.rank);
    let mut next = 0;
    let firsts = seats.iter().map(|seat| {
        next += seat.devices.len();
        (seat.rank, next - seat.devices.len())
    });
    let firsts: std::collections::BTreeMap<u32, usize> = firsts.collect();
    let server = |host: &Host| {
        let devices = host.seats.iter().filter(is_ascend).flat_map(|seat| {
            let numbered = (firsts[&seat.rank]..).zip(&seat.devices);
            numbered
                .map(|(at, device)| ServerDevice { device_id: device.to_string(), rank_id: at.to_string() })
        });
        let address = host.address.to_string();
        Server { server_id: address.clone(), host_ip: address, device: devices.collect() }
    };
    let mut server_list: Vec<Server> = hosts.iter().map(server).collect();
    server_list.retain(|server| !server.device.is_empty());
    let server_count = server_list.len().to_string();
    let table = RankTable { version: "1.0", server_count, server_list, status: "completed" };
    (0 < next).then(|| serde_json::to_string(&table).expect("texts alone") + "\n")
}
