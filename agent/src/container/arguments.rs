//! How an engine's client is called.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aquifer_core::{Mount, Vendor};

use super::{Container, EngineKind};
use crate::account::Account;

/// What a worker in a container is made of, beside the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// Name of the container.
    pub name: String,
    /// Program and arguments; the program is looked up in the image.
    pub command: Vec<String>,
    /// Environment; nothing else is added to that of the image.
    pub env: BTreeMap<String, String>,
    /// The worker's run directory.
    pub run_dir: PathBuf,
    /// `None`: the image's.
    pub working_dir: Option<PathBuf>,
    /// Cores to run on; empty: any.
    pub cpu_affinity: Vec<usize>,
    /// Thousandths of a core; 0: no limit.
    pub cpus_milli: u32,
    /// In bytes; 0: no limit.
    pub memory_bytes: u64,
}

/// Variables that mean something to an engine's client, or to what starts it, by their beginnings.
const OF_CLIENT: [&str; 33] = [
    "BASH_",
    "BUILDAH_",
    "CONTAINER",
    "DBUS_",
    "DOCKER_",
    "ENV",
    "GLIBC_",
    "GO",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "IFS",
    "LANG",
    "LC_",
    "LD_",
    "LISTEN_",
    "LOGNAME",
    "MALLOC_",
    "NOTIFY_",
    "NO_PROXY",
    "OCI_",
    "PATH",
    "PODMAN_",
    "REGISTRY_",
    "SHELL",
    "SSH_",
    "SSL_",
    "STORAGE_",
    "TERM",
    "TMP",
    "TZ",
    "USER",
    "XDG_",
];

/// The whole command line of the client, and the environment that it needs for that.
///
/// Values of variables are not in the command line, where everybody could read them, but for those that mean something
/// to the client itself.
pub fn arguments(
    container: &Container,
    of: &Arguments,
    account: &Account,
) -> (Vec<String>, Vec<(String, String)>) {
    let engine = &container.engine;
    let mut line = vec![engine.program.to_string_lossy().into_owned(), "run".into()];
    let mut flag = |name: &str, value: &dyn std::fmt::Display| line.push(format!("--{name}={value}"));
    flag("name", &of.name);
    flag("label", &format_args!("aquifer.run-dir={}", of.run_dir.display()));
    for namespace in ["network", "ipc", "uts"] {
        flag(namespace, &"host");
    }
    // The log is the client's output: no second copy of it.
    flag("log-driver", &"none");
    flag("security-opt", &"label=disable");
    match (engine.kind, engine.rootless) {
        (EngineKind::Podman, true) => {
            flag("userns", &"keep-id");
            flag("user", &format_args!("{}:{}", account.uid, account.gid));
            flag("group-add", &"keep-groups");
        }
        // Its root is the agent's user.
        (EngineKind::Docker, true) => flag("user", &"0:0"),
        (_, false) => {
            // A program of the image that is root's to whoever starts it would be root of what is mounted.
            flag("security-opt", &"no-new-privileges");
            flag("user", &format_args!("{}:{}", account.uid, account.gid));
            account.groups.iter().for_each(|group| flag("group-add", group));
        }
    }
    if engine.init {
        line.push("--init".into());
    }
    limits(&mut line, container, of);
    devices(&mut line, container);
    let mut mount = |source: &Path, target: &Path, options: &str| {
        let quoted = |key: &str, path: &Path| {
            let field = format!("{key}={}", path.display());
            match field.contains([',', '"']) {
                true => format!("\"{}\"", field.replace('"', "\"\"")),
                false => field,
            }
        };
        let (source, target) = (quoted("source", source), quoted("target", target));
        line.push(format!("--mount=type=bind,{source},{target}{options}"));
    };
    let writable: BTreeSet<&PathBuf> = std::iter::once(&of.run_dir).chain(&container.mounts).collect();
    let free = |dir: &Path| container.asked.iter().all(|asked| !hides(asked, dir));
    writable.into_iter().filter(|dir| free(dir)).for_each(|dir| mount(dir, dir, ""));
    container.read_only.iter().filter(|dir| free(dir)).for_each(|dir| mount(dir, dir, ",readonly"));
    for asked in &container.asked {
        let options = if asked.read_only { ",readonly" } else { "" };
        mount(Path::new(&*asked.source), Path::new(&*asked.target), options);
    }
    if let Some(dir) = &of.working_dir {
        line.push(format!("--workdir={}", dir.display()));
    }
    let mut env = Vec::new();
    for (name, value) in &of.env {
        let upper = name.to_uppercase();
        match OF_CLIENT.iter().any(|own| upper.starts_with(own)) {
            true => line.push(format!("--env={name}={value}")),
            false => {
                line.push(format!("--env={name}"));
                env.push((name.clone(), value.clone()));
            }
        }
    }
    let (program, rest) = of.command.split_first().map_or(("", &[][..]), |(program, rest)| (program, rest));
    line.push(format!("--entrypoint={program}"));
    line.push(container.image.clone());
    line.extend(rest.iter().cloned());
    (line, env)
}

/// Whether a job asks for something else where the node's own directory would be seen.
fn hides(asked: &Mount, dir: &Path) -> bool {
    let target = Path::new(&*asked.target);
    dir == target || (asked.source != asked.target && dir.starts_with(target))
}

fn limits(line: &mut Vec<String>, container: &Container, of: &Arguments) {
    let engine = &container.engine;
    if engine.limits.cpu && 0 < of.cpus_milli {
        line.push(format!("--cpus={}.{:03}", of.cpus_milli / 1000, of.cpus_milli % 1000));
    }
    if engine.limits.memory && 0 < of.memory_bytes {
        line.push(format!("--memory={}b", of.memory_bytes));
    }
    if engine.cpuset && !of.cpu_affinity.is_empty() {
        let cores: Vec<String> = of.cpu_affinity.iter().map(ToString::to_string).collect();
        line.push(format!("--cpuset-cpus={}", cores.join(",")));
    }
}

/// NVIDIA's by their names in CDI, if all have one; by docker's own flag, if it has that; all others by their nodes.
fn devices(line: &mut Vec<String>, container: &Container) {
    let engine = &container.engine;
    let nvidia = || container.devices.iter().filter(|device| device.vendor == Vendor::Nvidia);
    let names: Option<Vec<String>> = nvidia().map(|device| engine.cdi.name_of(device)).collect();
    let by_name = match names {
        Some(names) if !names.is_empty() => {
            line.extend(names.iter().map(|name| format!("--device={name}")));
            true
        }
        _ if engine.kind == EngineKind::Docker && nvidia().next().is_some() => {
            let names: Vec<&str> = nvidia().map(|device| &device.uuid[..]).collect();
            // One field of a list with commas: the quotes are part of it.
            line.push(format!("--gpus=\"device={}\"", names.join(",")));
            true
        }
        _ => false,
    };
    let nodes: BTreeSet<&PathBuf> = container.device_nodes.iter().collect();
    let of_nvidia = |node: &Path| node.to_string_lossy().starts_with("/dev/nvidia");
    let nodes = nodes.into_iter().filter(|node| !(by_name && of_nvidia(node)));
    line.extend(nodes.map(|node| format!("--device={}", node.display())));
    let renamed = container.renamed_nodes.iter();
    line.extend(renamed.map(|(node, within)| format!("--device={}:{}", node.display(), within.display())));
}
