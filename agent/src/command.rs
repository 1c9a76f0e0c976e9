//! How a worker is called: the contract between the pool and any program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquifer_core::{
    Launch as Order, Mount, OnPartition, Program, ServeOptions, TrainOptions, Vendor, WorkerId,
};
use aquifer_proto::wire::checkpoint_dir;

use crate::account::RunAs;
use crate::container::{Container, Engine, ShownDevice};
use crate::device::{Visibility, driver_files};
use crate::frameworks;
use crate::launcher::{Launch, Ready};

/// What the agent adds to every worker it starts.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The binary that has the bundled worker: `PROGRAM worker train …`.
    pub program: PathBuf,
    /// Directory for the checkpoints of jobs that name none; may be empty.
    pub checkpoint_root: String,
    /// Address under which this node's workers are reached.
    pub address: String,
    /// As whom they run.
    pub run_as: RunAs,
}

/// The process to start for a rank.
///
/// Environment, later ones win: what makes it see its devices, what frameworks look for, what the user asked for,
/// `AQUIFER_…`.
pub fn launch(id: WorkerId, order: &Order, seen: Visibility, surroundings: &Surroundings) -> Launch {
    let (spec, rank) = (&order.spec, &order.allocation);
    let role = &spec.roles[order.role];
    let checkpoints = checkpoint_dir(&surroundings.checkpoint_root, id.job, spec);
    let (command, ready) = match &role.program {
        Program::Command(arguments) => (arguments.iter().map(ToString::to_string).collect(), Ready::AtSpawn),
        Program::Train(options) => (bundled(&surroundings.program, "train", train(options)), Ready::ByStatus),
        Program::Serve(options) => {
            let arguments = serve(options, &surroundings.address, rank.port);
            (bundled(&surroundings.program, "serve", arguments), Ready::ByStatus)
        }
    };
    // Near its devices, if that leaves it the cores that it asked for.
    let suffices = rank.cpus_milli.div_ceil(1000) as usize <= seen.near.len();
    let cpu_affinity = match seen.cpu_affinity.is_empty() && suffices {
        true => seen.near,
        false => seen.cpu_affinity,
    };
    let in_hidden = |node: &PathBuf| seen.hidden_nodes.iter().any(|dir| node.parent() == Some(dir));
    let own_nodes = seen.device_nodes.into_iter().filter(in_hidden).collect();
    let mut env = seen.env;
    env.extend(frameworks::variables(id, order));
    env.extend(spec.env.iter().map(|(key, value)| (key.to_string(), value.to_string())));
    let mut set = |key: &str, value: String| env.push((key.into(), value));
    set("AQUIFER_JOB", id.job.to_string());
    set("AQUIFER_ATTEMPT", id.attempt.to_string());
    set("AQUIFER_ROLE", role.name.to_string());
    set("AQUIFER_PORT", rank.port.to_string());
    set("AQUIFER_CPUS", aquifer_core::explain::milli(rank.cpus_milli.into()));
    if let Some(slice) = rank.slice {
        set("AQUIFER_DEVICE_COMPUTE_MILLI", slice.compute_milli.to_string());
        set("AQUIFER_DEVICE_MEMORY_BYTES", slice.memory_bytes.to_string());
    }
    if let Some(index) = order.array_index {
        set("AQUIFER_ARRAY_INDEX", index.to_string());
    }
    // One that the user names is made by the worker, if it may.
    let is_own = |dir: &&String| spec.checkpoint_dir.is_none() && !dir.contains("://");
    let made = checkpoints.as_ref().filter(is_own).map(PathBuf::from);
    if let Some(directory) = checkpoints {
        set("AQUIFER_CHECKPOINT_DIR", directory);
    }
    Launch {
        id,
        command,
        env,
        working_dir: spec.working_dir.as_deref().map(PathBuf::from),
        cpu_affinity,
        cpus_milli: rank.cpus_milli,
        memory_bytes: rank.memory_bytes,
        grace_ms: spec.grace_ms,
        exclusive: spec.on_partition == OnPartition::Stop,
        made,
        run_as: (surroundings.run_as == RunAs::JobUser).then(|| spec.user.to_string()),
        ready,
        files: frameworks::files(order),
        container: None,
        partition: None,
        own_nodes,
        hidden_nodes: seen.hidden_nodes,
    }
}

/// The image that a rank runs in.
pub fn image(order: &Order) -> Option<&str> {
    order.spec.roles[order.role].request.image.as_deref()
}

/// The container of a rank: it sees what it asks for, its checkpoints, and of drivers what its devices need.
pub fn container(
    image: &str,
    mounts: &[Mount],
    engine: &Arc<Engine>,
    launch: &Launch,
    device_nodes: Vec<PathBuf>,
    devices: Vec<ShownDevice>,
) -> Container {
    let checkpoints = launch.env.iter().filter(|(key, _)| key == "AQUIFER_CHECKPOINT_DIR");
    let vendors: BTreeSet<Vendor> = devices.iter().map(|device| device.vendor).collect();
    Container {
        engine: engine.clone(),
        image: image.into(),
        device_nodes,
        renamed_nodes: Vec::new(),
        mounts: checkpoints.map(|(_, dir)| dir.into()).collect(),
        asked: mounts.to_vec(),
        read_only: vendors.into_iter().flat_map(driver_files).collect(),
        devices,
    }
}

fn bundled(program: &Path, mode: &str, arguments: Vec<(&str, String)>) -> Vec<String> {
    let mut command = vec![program.to_string_lossy().into_owned(), "worker".into(), mode.into()];
    command.extend(arguments.into_iter().flat_map(|(flag, value)| [flag.into(), value]));
    command
}

fn train(options: &TrainOptions) -> Vec<(&'static str, String)> {
    let mut arguments = vec![
        ("--model", options.model.to_string()),
        ("--data", options.data.to_string()),
        ("--steps", options.steps.to_string()),
        ("--batch", options.batch.to_string()),
        ("--context", options.context.to_string()),
        ("--learning-rate", options.learning_rate.to_string()),
        ("--seed", options.seed.to_string()),
        ("--checkpoint-every", options.checkpoint_every.to_string()),
        ("--precision", options.precision.to_string()),
        ("--micro-batch", options.micro_batch.to_string()),
        ("--spares", options.spares.to_string()),
    ];
    if 0 < options.audit_every {
        arguments.push(("--audit-every", options.audit_every.to_string()));
    }
    if 0 < options.inner_steps {
        arguments.push(("--inner-steps", options.inner_steps.to_string()));
        arguments.push(("--replicas", options.replicas.to_string()));
    }
    arguments
}

fn serve(options: &ServeOptions, address: &str, port: u16) -> Vec<(&'static str, String)> {
    let mut arguments = vec![
        ("--model", options.model.to_string()),
        ("--name", options.name().to_string()),
        ("--host", address.into()),
        ("--port", port.to_string()),
        ("--max-queue", options.max_queue.to_string()),
        ("--precision", options.precision.to_string()),
    ];
    if let Some(bytes) = options.kv_memory_bytes {
        arguments.push(("--kv-memory", (bytes >> 20).to_string()));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_told_where_the_job_has_some() {
        let told = |inner_steps, replicas| {
            let options = TrainOptions {
                model: "tiny".into(),
                data: "/data".into(),
                steps: 20,
                batch: 8,
                context: 128,
                learning_rate: 3e-3,
                seed: 0,
                checkpoint_every: 50,
                precision: "f32".into(),
                micro_batch: 1,
                spares: 0,
                audit_every: 0,
                inner_steps,
                replicas,
            };
            let arguments = train(&options).into_iter();
            arguments.filter(|(flag, _)| ["--inner-steps", "--replicas"].contains(flag)).collect::<Vec<_>>()
        };
        assert_eq!(told(0, 0), []);
        assert_eq!(told(50, 4), [("--inner-steps", "50".into()), ("--replicas", "4".into())]);
    }

    #[test]
    fn memory_for_keys_and_values_is_told_in_whole_mebibytes_where_the_job_says_how_much() {
        let told = |kv_memory_bytes: Option<u64>| {
            let options = ServeOptions {
                model: "/m".into(),
                served_name: "".into(),
                max_queue: 64,
                precision: "f32".into(),
                kv_memory_bytes,
                autoscale: None,
            };
            let arguments = serve(&options, "127.0.0.1", 1);
            arguments.into_iter().find(|(name, _)| *name == "--kv-memory").map(|(_, value)| value)
        };
        assert_eq!(told(Some((512 << 20) + 99)), Some("512".into()));
        assert_eq!(told(None), None);
    }
}
