//! What is done for a worker before its supervisor is told to start it: parts of devices, the user that it runs as, its container.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::{fs, io};

use aquifer_core::{Mount, WorkerId};

use crate::account::{Account, Person};
use crate::container::{Arguments, Container, Left, arguments};
use crate::partitions::{Partition, Partitions};
use crate::run_dir::{RunDir, Spec};

/// What a worker is beside a process like any other.
#[derive(Default)]
pub struct More {
    /// User that it runs as.
    pub run_as: Option<String>,
    /// Directory that is made for it, and is that user's.
    pub made: Option<PathBuf>,
    pub container: Option<Container>,
    pub partition: Option<Partition>,
}

impl More {
    /// Whether there is nothing to prepare.
    pub fn is_nothing(&self) -> bool {
        self.run_as.is_none() && self.container.is_none() && self.partition.is_none()
    }
}

/// Sets a variable, unless the job has.
pub fn give(env: &mut Vec<(String, String)>, name: &str, value: String) {
    if env.iter().all(|(own, _)| own != name) {
        env.push((name.into(), value));
    }
}

/// Makes what the worker needs of devices, gives it to the user that it runs as, and puts it into its container.
pub fn prepared(
    mut spec: Spec,
    more: More,
    dir: &RunDir,
    id: WorkerId,
    partitions: &Partitions,
) -> Result<Spec, String> {
    let More { run_as, made, mut container, partition } = more;
    if let Some(partition) = partition {
        let made = partitions.prepare(id, &partition, container.is_some())?;
        spec.env.retain(|(name, _)| made.env.iter().all(|(own, _)| own != name));
        spec.env.extend(made.env);
        spec.hidden_nodes.retain(|node| !made.unhidden.contains(node));
        spec.own_nodes.extend(made.nodes.iter().map(|(node, _)| node.clone()));
        if let Some(container) = &mut container {
            if let Some((node, _)) = made.nodes.iter().find(|(node, _)| !node.exists()) {
                return Err(format!("{} is not there, although the driver has made it", node.display()));
            }
            container.mounts.extend(made.mounts);
            container.device_nodes.retain(|node| !made.instead_of.contains(node));
            let (same, renamed): (Vec<_>, Vec<_>) =
                made.nodes.into_iter().partition(|(node, within)| node == within);
            container.device_nodes.extend(same.into_iter().map(|(node, _)| node));
            container.renamed_nodes.extend(renamed);
            container.devices.iter_mut().zip(made.devices).for_each(|(device, name)| device.uuid = name);
        }
    }
    let person = run_as.as_deref().map(Person::of).transpose()?;
    if let Some(Person { account, .. }) = &person {
        dir.hand_over(account).map_err(|error| format!("{}: {error}", dir.own_path().display()))?;
        if let Some(made) = made {
            make_for(account, &made).map_err(|error| format!("{}: {error}", made.display()))?;
        }
    }
    match (container, person) {
        (Some(container), person) => {
            contained(spec, container, dir, &person.map_or_else(Account::own, |person| person.account))
        }
        (None, Some(person)) => {
            person.env().into_iter().for_each(|(name, value)| give(&mut spec.env, name, value));
            Ok(Spec { account: Some(person.account), ..spec })
        }
        (None, None) => Ok(spec),
    }
}

/// Makes a directory that is a user's. One that is there is whose it is.
fn make_for(account: &Account, dir: &Path) -> io::Result<()> {
    dir.parent().map_or(Ok(()), fs::create_dir_all)?;
    match fs::create_dir(dir) {
        Ok(()) => lchown(dir, Some(account.uid), Some(account.gid)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Has the command run in a container. Its limits are the engine's then: the client is not what they are for.
fn contained(spec: Spec, mut container: Container, dir: &RunDir, account: &Account) -> Result<Spec, String> {
    container.asked.iter().try_for_each(is_there)?;
    let name = container_name(&spec.id, &dir.path);
    let Spec { command, env, working_dir, cpu_affinity, cpus_milli, memory_bytes, .. } = spec;
    container.device_nodes.retain(|node| node.exists());
    for dir in &container.mounts {
        let _ = fs::create_dir_all(dir); // The program, which cannot make it from within, says what it misses.
    }
    container.mounts.extend(working_dir.clone());
    container.mounts.retain(|dir| dir.is_dir());
    container.read_only.retain(|dir| dir.exists());
    let of = Arguments {
        name: name.clone(),
        command,
        env: env.into_iter().collect(),
        run_dir: dir.shown(),
        working_dir,
        cpu_affinity,
        cpus_milli,
        memory_bytes,
    };
    let (command, env) = arguments(&container, &of, account);
    let left = Left { program: container.engine.program.clone(), name, memory_bytes };
    Ok(Spec {
        command,
        env,
        working_dir: None,
        cpu_affinity: Vec::new(),
        cpus_milli: 0,
        memory_bytes: 0,
        container: Some(left),
        hidden_nodes: Vec::new(),
        own_nodes: Vec::new(),
        ..spec
    })
}

/// An engine would make a directory that is not there, as root, or say it in its own words.
fn is_there(mount: &Mount) -> Result<(), String> {
    let Err(error) = fs::metadata(&*mount.source) else { return Ok(()) };
    let why = match error.kind() {
        io::ErrorKind::NotFound => "the node has no such file or directory".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    };
    Err(format!("mount {}: {why}", mount.source))
}

/// `aquifer-job-7.1-0-1f0c5a9e`: the worker, and which of the machine's agents it belongs to.
fn container_name(id: &str, run_dir: &Path) -> String {
    // FNV-1a: the name must be the same for every agent of this directory.
    let hash = run_dir
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("aquifer-{}-{hash:08x}", id.replace('/', "-"))
}
