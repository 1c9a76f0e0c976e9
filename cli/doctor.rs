//! `aquifer doctor`: what keeps this machine from being a good node, and what to do about it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use aquifer_agent::cgroup;
use aquifer_agent::container::{self, EngineChoice, EngineKind};
use aquifer_agent::device::may_be_absent;
use aquifer_core::Ports;
use rustix::fs::Access;
use serde::Serialize;

use crate::client::Global;
use crate::devices::{self, Machine};
use crate::output::{Color, Failure, Output, printable};
use crate::{agent, settings, units};

/// Room below which a disk is too full for logs and checkpoints, in bytes.
const LITTLE_ROOM: u64 = 1 << 30;
/// How long a scheduler may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Check this machine: drivers, permissions, limits, ports, clock, disk; say what to do about each finding
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Example:
  aquifer doctor --server http://head:7700

Run it as the user that the agent runs as. The exit code is 1 if anything keeps the machine from working.")]
pub struct Args {
    /// What to look for, and where.
    #[command(flatten)]
    pub devices: devices::Place,
    /// Directory that the agent keeps its runs in. Default: that of `aquifer agent`
    #[arg(long, env = "AQUIFER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What runs containers: `podman`, `docker` or a path, `none`, or `auto` (the first of the two that works)
    #[arg(long, env = "AQUIFER_ENGINE", value_name = "ENGINE", default_value = "auto")]
    pub engine: EngineChoice,
    /// Ports that workers may listen on
    #[arg(long, env = "AQUIFER_PORTS", value_name = "FIRST-LAST", default_value = "20000-28999")]
    pub ports: String,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked: devices, permissions, limits, containers, ports, scheduler, clock, disk.
    pub check: &'static str,
    /// `ok`, `warning` (it works, but worse than it could) or `problem`.
    pub state: &'static str,
    /// What there is.
    pub what: String,
    /// What to do about it; empty if nothing.
    pub next: String,
}

fn finding(
    check: &'static str,
    state: &'static str,
    what: impl Into<String>,
    next: impl Into<String>,
) -> Finding {
    Finding { check, state, what: what.into(), next: next.into() }
}

fn ok(check: &'static str, what: impl Into<String>) -> Finding {
    finding(check, "ok", what, "")
}

/// Runs `aquifer doctor`.
///
/// # Errors
/// A flag that makes no sense.
pub fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let output = Output::new(global.json, global.no_color);
    let ports = agent::ports(&args.ports).map_err(|why| {
        Failure::usage(format!("--ports is {:?}: {why}", args.ports), "see `aquifer doctor --help`")
    })?;
    let state_dir = args.state_dir.clone().unwrap_or_else(|| settings::data_dir().join("agent"));
    let machine = args.devices.look(&state_dir, None, false)?;
    let mut findings = of_devices(&machine);
    findings.extend(of_permissions(&machine));
    findings.push(of_limits());
    findings.extend(of_containers(&args.engine, &machine));
    findings.extend(of_ports(ports));
    findings.extend(global.server().split(',').map(of_scheduler));
    findings.push(of_clock());
    findings.push(of_disk(&state_dir));
    match output.json {
        true => output.document(&findings),
        false => output.text(text(&findings, &output)),
    }
    let works = findings.iter().all(|finding| finding.state != "problem");
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The findings for people: each with what to do about it.
pub fn text(findings: &[Finding], output: &Output) -> String {
    let line = |finding: &Finding| {
        let color = match finding.state {
            "ok" => Color::Green,
            "warning" => Color::Yellow,
            _ => Color::Red,
        };
        let state = output.paint(color, &format!("{:<7}", finding.state));
        let next =
            if finding.next.is_empty() { String::new() } else { format!("\n{:21}{}", "", finding.next) };
        format!("{state}  {:<11} {}{}", finding.check, printable(&finding.what), next)
    };
    findings.iter().map(line).collect::<Vec<String>>().join("\n")
}

/// What there is to say of a machine's devices.
pub fn of_devices(machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut well: BTreeMap<&str, usize> = BTreeMap::new();
    for device in machine.devices.iter().filter(|device| device.fault.is_none()) {
        *well.entry(&device.model).or_default() += 1;
    }
    let counts: Vec<String> = well.iter().map(|(model, count)| format!("{count} {model}")).collect();
    findings.push(match counts.is_empty() {
        true => finding("devices", "problem", "none that works", "give --devices cpu to work with the cores"),
        false => ok("devices", counts.join(", ")),
    });
    for said in &machine.findings {
        findings.push(finding(
            "devices",
            "warning",
            format!("{}: {}", said.vendor, said.what),
            advice(&said.what),
        ));
    }
    // What is said of all cards of a vendor is not said of each; what a device has before it is how bad that is.
    let explained = |fault: &str| {
        let why = fault.split_once(": ").map_or(fault, |(_, why)| why);
        machine.findings.iter().any(|said| said.what.ends_with(why))
    };
    for device in &machine.devices {
        if let Some(fault) = device.fault.as_ref().filter(|fault| !explained(fault)) {
            let what = format!("{} {} at {}: {fault}", device.vendor, device.index, device.place);
            findings.push(finding("devices", "warning", what, advice(fault)));
        }
    }
    let mut parted: BTreeMap<&str, usize> = BTreeMap::new();
    for setting in machine.devices.iter().filter_map(|device| device.parted_by.as_deref()) {
        *parted.entry(setting).or_default() += 1;
    }
    let told = |(setting, count): (&str, usize)| {
        let cards = if count == 1 { "1 device".into() } else { format!("{count} devices") };
        ok("devices", format!("parts of {cards} can be made on demand: aquifer agent --{setting} on-demand"))
    };
    findings.extend(parted.into_iter().map(told));
    let has_nvidia = machine.devices.iter().any(|device| device.vendor == "nvidia" && device.fault.is_none());
    let pipe = std::env::var_os("CUDA_MPS_PIPE_DIRECTORY").unwrap_or("/tmp/nvidia-mps".into());
    if has_nvidia && !Path::new(&pipe).exists() {
        let what =
            "jobs with a slice of an NVIDIA device are not kept to it: there is no multi-process service";
        findings.push(finding(
            "devices",
            "warning",
            what,
            "start it, if there will be such jobs: nvidia-cuda-mps-control -d",
        ));
    }
    findings
}

/// What to do about a fault or a finding, as far as its words tell. The first of these that it has in it counts.
pub fn advice(what: &str) -> &'static str {
    const LIBRARY: &str =
        "install the vendor's library, or name its directory with --library-path: its tool tells too little";
    const LOG: &str = "see the kernel's log (dmesg), and the vendor's own tool";
    const LOOK: &str =
        "see what the vendor's own tool says; if a reset does not help, have the card looked at";
    const COOL: &str = "look at its fans and at the air that it gets; it takes work again by itself";
    const SEAT: &str = "look at the card's seat, at cables and switches; the kernel's log (dmesg) says more";
    const RESET: &str = "drain the node, then reset the card with the vendor's tool";
    const REPLACE: &str = "drain the node and have the card replaced";
    const VERSIONS: &str = "see whether the driver and its library are of versions that belong together; the agent asks again by itself";
    let known = [
        ("crashed (SIG", VERSIONS),
        ("ended its process", VERSIONS),
        ("no sensible answer", VERSIONS),
        ("cannot be asked", "see whether the agent may start more processes; it tries again by itself"),
        (
            "has not started",
            "nothing, if it does so by itself; else see the kernel's log (dmesg) and what wakes its cards",
        ),
        ("only its library lists", LIBRARY),
        ("number of its device node is not known", LIBRARY),
        ("does not tell its logical number", LIBRARY),
        ("not found", "install the vendor's driver, or name the library's directory with --library-path"),
        ("not loaded", "load the driver: see the kernel's log (dmesg)"),
        (
            "cannot be used",
            "see whether the driver runs and fits the library; the vendor's own tool says more",
        ),
        (
            "did not answer",
            "see the kernel's log (dmesg); a card that hangs needs a reset or a restart of the machine",
        ),
        ("fell off the bus", "restart the machine; if it happens again, look at the card's seat and power"),
        ("nothing here can use", "nothing: their jobs have to run without the pool"),
        ("is being reset", "nothing, if it comes back by itself; else see the kernel's log (dmesg)"),
        ("at the next reset", RESET),
        ("replace it", REPLACE),
        (
            "have it looked at",
            "drain the node and have the card looked at; the agent started again takes it anew",
        ),
        ("reset", RESET),
        ("restart of the machine", "drain the node and restart the machine"),
        ("restart the machine", "drain the node and restart the machine"),
        (
            "does not list",
            "see the kernel's log (dmesg) for the card; in a container, it may belong to others",
        ),
        ("there are no slices", "make some (nvidia-smi mig), or let the agent: --mig on-demand"),
        ("compute part", "load the driver with kfd; a container needs /sys/class/kfd passed in"),
        ("neither of the drivers", "load the driver i915 or xe"),
        ("no permission", "add the agent's user to the groups video and render"),
        ("too hot", COOL),
        ("as hot as", COOL),
        ("by heat", COOL),
        ("power supply", "look at the power supply and its cables; it takes work again by itself"),
        ("links to be drained", "drain the node: its driver then says what it wants"),
        ("IMEX", "restart nvidia-imex on the nodes that are linked with it"),
        ("Link", SEAT),
        ("PCIe link", SEAT),
        ("between its dies", SEAT),
        (
            "memory error",
            "nothing, as long as there are no more; else drain the node and reset the card with the vendor's tool",
        ),
        (
            "corrected errors",
            "nothing, as long as there are no uncorrected ones; if it goes on, have the card looked at",
        ),
        ("super-pod", "name the one that it is in: aquifer agent --labels super-pod=NAME"),
        (
            "taken from the agent",
            "let the agent run on these cores: see its cpuset, and what it was started with",
        ),
        ("order of devices", "give the agent's user its directory, or another with --state-dir"),
        ("memory unknown", "see whether the driver fits the library"),
        ("log", LOG),
        ("error", LOG),
        ("incident", LOG),
        ("cndev and /dev", LOG),
        ("well", LOOK),
        ("has failed", LOOK),
        ("exception", LOOK),
        ("reports a", LOOK),
        ("warns of", LOOK),
        ("not started", LOOK),
        ("not available", LOOK),
    ];
    known.iter().find(|(words, _)| what.contains(words)).map_or("see the vendor's own tool", |(_, next)| next)
}

/// Whether the device nodes of a machine can be opened.
pub fn of_permissions(machine: &Machine) -> Vec<Finding> {
    let usable = machine.devices.iter().filter(|device| device.fault.is_none());
    let mut nodes: Vec<&String> = usable.flat_map(|device| &device.device_nodes).collect();
    nodes.sort();
    nodes.dedup();
    let closed = nodes.iter().filter_map(|node| {
        let refused = rustix::fs::access(node.as_str(), Access::READ_OK | Access::WRITE_OK).err()?;
        if refused == rustix::io::Errno::NOENT && may_be_absent(Path::new(node)) {
            return None;
        }
        let next = match refused {
            rustix::io::Errno::NOENT => "load the driver's modules; a container needs the node passed in",
            _ => "add the agent's user to the group that owns it, often video or render",
        };
        Some(finding("permissions", "warning", format!("{node}: {refused}"), next))
    });
    let mut findings: Vec<Finding> = closed.collect();
    if findings.is_empty() && !nodes.is_empty() {
        findings.push(ok("permissions", format!("all {} device nodes can be opened", nodes.len())));
    }
    findings
}

fn of_limits() -> Finding {
    let limits = cgroup::enforceable();
    let next = "run the agent as root, or as the service that deploy/systemd has";
    match (limits.cpu, limits.memory) {
        // A shell shares its group with others, so nothing can be limited below it; a service has its own.
        (false, false) if cgroup::is_unified() && rustix::process::geteuid().is_root() => ok(
            "limits",
            "processor time and memory of workers can be enforced by an agent with a control group of its own",
        ),
        (true, true) => ok("limits", "processor time and memory of workers can be enforced"),
        (true, false) => finding("limits", "warning", "memory of workers cannot be enforced", next),
        (false, true) => finding("limits", "warning", "processor time of workers cannot be enforced", next),
        (false, false) => {
            finding("limits", "warning", "neither processor time nor memory can be enforced", next)
        }
    }
}

/// Whether jobs with an image can run here, and as they should.
fn of_containers(choice: &EngineChoice, machine: &Machine) -> Vec<Finding> {
    let (engine, broken) = container::find(choice);
    let next = |what: &str| match engine {
        Some(_) => "nothing, as long as the other one does",
        None if what.contains("no such program") => "install it, or name another with --engine",
        None => "start its service, or let the agent's user use it; jobs with an image go to other nodes",
    };
    let broken = broken.into_iter().map(|what| finding("containers", "warning", what.as_str(), next(&what)));
    let mut findings: Vec<Finding> = broken.collect();
    let Some(engine) = engine else {
        if findings.is_empty() {
            findings.push(ok("containers", "no podman, no docker: jobs with an image go to other nodes"));
        }
        return findings;
    };
    let path = engine.program.display();
    findings.push(ok("containers", format!("{engine} at {path}")));
    if !engine.init {
        let what = "a program that does not handle SIGTERM is not stopped by it: nothing stands before it in a container";
        findings.push(finding("containers", "warning", what, "install catatonit"));
    }
    if !engine.limits.cpu || !engine.limits.memory {
        let what = "the engine cannot enforce processor time and memory";
        let next = "run it as root, or give its user the controllers cpu and memory (systemd: Delegate=yes)";
        findings.push(finding("containers", "warning", what, next));
    }
    let nvidia = machine.devices.iter().any(|device| device.vendor == "nvidia" && device.fault.is_none());
    if nvidia && engine.kind == EngineKind::Podman && engine.cdi.count() == 0 {
        let what = "containers get the nodes of NVIDIA's devices, but not the driver's libraries: podman knows no such device";
        let next = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml --device-name-strategy=uuid";
        findings.push(finding("containers", "warning", what, next));
    }
    findings
}

fn of_ports(ports: Ports) -> Vec<Finding> {
    let taken =
        (ports.first..=ports.last).filter(|port| TcpListener::bind(("0.0.0.0", *port)).is_err()).count();
    let all = usize::from(ports.last - ports.first) + 1;
    let range = format!("{}-{}", ports.first, ports.last);
    let next = "give others with --ports";
    let mut findings = vec![match taken {
        _ if taken == all => finding("ports", "problem", format!("all of {range} are taken"), next),
        0 => ok("ports", format!("{range} are free")),
        _ => finding("ports", "warning", format!("{taken} of {range} are taken"), next),
    }];
    let outgoing = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let outgoing: Vec<u16> = outgoing.split_whitespace().filter_map(|port| port.parse().ok()).collect();
    if let [first, last] = outgoing[..]
        && first <= ports.last
        && ports.first <= last
    {
        let what = format!("{range} overlap with the ports of outgoing connections, {first}-{last}");
        findings.push(finding(
            "ports",
            "warning",
            what,
            "give others with --ports, or set net.ipv4.ip_local_port_range",
        ));
    }
    findings
}

fn of_scheduler(server: &str) -> Finding {
    let authority = server.split("://").last().unwrap_or(server).split('/').next().unwrap_or_default();
    let reached = authority
        .to_socket_addrs()
        .and_then(|mut addresses| {
            let none = || std::io::Error::new(std::io::ErrorKind::NotFound, "no address");
            TcpStream::connect_timeout(&addresses.next().ok_or_else(none)?, PATIENCE)
        })
        .map_err(|error| error.to_string());
    match reached {
        Ok(_) => ok("scheduler", format!("{server} can be reached")),
        Err(why) => {
            let next = "start `aquifer server` there, or name it with --server; look at firewalls between";
            finding("scheduler", "warning", format!("{server} cannot be reached: {why}"), next)
        }
    }
}

/// Leases count by a clock that nobody sets; times in logs and of reservations are the machine's.
fn of_clock() -> Finding {
    let runs = |name: &str| {
        let names = fs::read_dir("/proc").into_iter().flatten().flatten();
        names
            .into_iter()
            .any(|entry| fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name))
    };
    let services = ["chronyd", "ntpd", "systemd-timesyn", "openntpd", "ptp4l"];
    match services.iter().find(|name| runs(name)) {
        Some(name) => ok("clock", format!("set by {name}")),
        None => finding(
            "clock",
            "warning",
            "no time service is seen here",
            "start chrony or systemd-timesyncd, unless the host of this container or machine sets the clock",
        ),
    }
}

fn of_disk(state_dir: &Path) -> Finding {
    // The directory is made by the agent: what counts is the first above it that is there.
    let there = state_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let place = state_dir.display();
    if let Err(refused) = rustix::fs::access(there, Access::WRITE_OK) {
        let next = "give another with --state-dir, or its directory to the agent's user";
        return finding("disk", "problem", format!("{place} cannot be written: {refused}"), next);
    }
    let free = rustix::fs::statvfs(there).map_or(0, |disk| disk.f_bavail * disk.f_frsize);
    let what = format!("{} free at {place}", units::size(free));
    match free < LITTLE_ROOM {
        true => finding("disk", "warning", what, "make room, or keep less with --keep-size"),
        false => ok("disk", what),
    }
}
