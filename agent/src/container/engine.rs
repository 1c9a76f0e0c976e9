//! What runs containers on this node: found when the agent starts, by asking it what it can.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt};

use serde_json::Value;

use super::cdi::{CdiDevices, cdi_devices};
use crate::cgroup::Limits;
use crate::said::{PATIENCE, said};

/// Where files of the Container Device Interface are.
const CDI_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Where podman looks for the program that it puts before a container's.
const INITS: [&str; 5] = [
    "/usr/local/libexec/podman/catatonit",
    "/usr/libexec/podman/catatonit",
    "/usr/local/lib/podman/catatonit",
    "/usr/lib/podman/catatonit",
    "/usr/bin/catatonit",
];

/// Which engine to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The first of podman and docker that works.
    #[default]
    Auto,
    /// None.
    Never,
    /// This one: a name that is looked up in `PATH`, or a path.
    This(PathBuf),
}

/// How an engine is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EngineKind {
    Podman,
    Docker,
}

/// An engine that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// How to speak to it.
    pub kind: EngineKind,
    /// Its client.
    pub program: PathBuf,
    /// Its version.
    pub version: String,
    /// Whether its root is no root of the node.
    pub rootless: bool,
    /// What it can enforce.
    pub limits: Limits,
    /// Whether it can keep a container to some cores.
    pub cpuset: bool,
    /// Whether it has a program to put before the container's, which then gets signals as any program does: the first
    /// process of a container ignores those that it does not handle.
    pub init: bool,
    /// Devices that it knows by name.
    pub cdi: CdiDevices,
}

impl std::str::FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<EngineChoice, String> {
        match text {
            "auto" => Ok(EngineChoice::Auto),
            "none" => Ok(EngineChoice::Never),
            "" => Err("expected auto, none, podman, docker or a path".into()),
            this => Ok(EngineChoice::This(this.into())),
        }
    }
}

/// `podman 5.4.0`.
impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.kind, self.version, if self.rootless { ", rootless" } else { "" })
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::Podman => "podman",
            EngineKind::Docker => "docker",
        })
    }
}

/// Looks for an engine. Says of each that is there why it does not work. Blocks.
pub fn find(choice: &EngineChoice) -> (Option<Engine>, Vec<String>) {
    let names: Vec<&Path> = match choice {
        EngineChoice::Never => return (None, Vec::new()),
        EngineChoice::Auto => vec![Path::new("podman"), Path::new("docker")],
        EngineChoice::This(name) => vec![name],
    };
    let mut findings = Vec::new();
    for name in names {
        match look_up(name).map(|program| ask(&program)) {
            Some(Ok(engine)) => return (Some(engine), findings),
            Some(Err(why)) => findings.push(format!("container engine {}: {why}", name.display())),
            None if *choice == EngineChoice::Auto => (),
            None => findings.push(format!("container engine {}: no such program", name.display())),
        }
    }
    (None, findings)
}

fn look_up(name: &Path) -> Option<PathBuf> {
    let is_program =
        |path: &PathBuf| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
    if name.components().count() != 1 {
        return Some(name.to_path_buf()).filter(is_program);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join(name)).find(is_program)
}

fn ask(program: &Path) -> Result<Engine, String> {
    let told = run(program, &["info", "--format", "{{json .}}"])?;
    let mut engine = parse(program, &told)?;
    if engine.kind == EngineKind::Podman {
        engine.init = INITS.iter().any(|init| Path::new(init).exists());
    }
    if engine.cdi.count() != 0 {
        engine.cdi = cdi_devices(&CDI_DIRS.map(PathBuf::from));
    }
    Ok(engine)
}

/// Reads what `info` said. Where the engine takes names of CDI, one stands for those that are not read yet.
fn parse(program: &Path, told: &str) -> Result<Engine, String> {
    let told: Value = serde_json::from_str(told).map_err(|error| format!("its info is no JSON: {error}"))?;
    let text = |at: &str| told.pointer(at).and_then(Value::as_str).unwrap_or_default().to_string();
    let is = |at: &str| told.pointer(at).and_then(Value::as_bool).unwrap_or_default();
    let program = program.to_path_buf();
    let takes_cdi = || CdiDevices::from_iter([String::new()]);
    if told.get("host").is_some() {
        let rootless = is("/host/security/rootless");
        let controllers = told.pointer("/host/cgroupControllers").and_then(Value::as_array);
        let has = |name: &str| controllers.is_some_and(|all| all.iter().any(|one| one == name));
        // Without root it has those of version 2 that were given to its user, and none of version 1.
        let can = |name: &str| has(name) && (!rootless || text("/host/cgroupVersion") == "v2");
        let limits = Limits { cpu: can("cpu"), memory: can("memory") };
        let version = text("/version/Version");
        let (kind, cpuset, init) = (EngineKind::Podman, can("cpuset"), false);
        return Ok(Engine { kind, program, version, rootless, limits, cpuset, init, cdi: takes_cdi() });
    }
    let version = text("/ServerVersion");
    if version.is_empty() {
        let errors = told.pointer("/ServerErrors/0").and_then(Value::as_str);
        return Err(errors.unwrap_or("it is neither podman nor docker").to_string());
    }
    let security = told.get("SecurityOptions").and_then(Value::as_array);
    let rootless = security.is_some_and(|all| all.iter().any(|one| one == "name=rootless"));
    let limits = Limits { cpu: is("/CpuCfsQuota"), memory: is("/MemoryLimit") };
    let cdi_dirs = told.get("CDISpecDirs").and_then(Value::as_array).is_some_and(|dirs| !dirs.is_empty());
    let cdi = if cdi_dirs { takes_cdi() } else { CdiDevices::default() };
    let (kind, cpuset, init) = (EngineKind::Docker, is("/CPUSet"), !text("/InitBinary").is_empty());
    Ok(Engine { kind, program, version, rootless, limits, cpuset, init, cdi })
}

/// Runs the client to its end, and returns what it said; or the last line of its complaints.
pub(super) fn run(program: &Path, arguments: &[impl AsRef<OsStr>]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments);
    said(command, b"", PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_of(told: &str) -> Result<Engine, String> {
        parse(Path::new("/bin/engine"), told)
    }

    #[test]
    fn podman_says_what_it_can_enforce() {
        let told = |version: &str, rootless: bool| {
            format!(
                r#"{{"host":{{"cgroupControllers":["cpu","memory","pids"],"cgroupVersion":"{version}",
                "security":{{"rootless":{rootless}}}}},"version":{{"Version":"5.4.0"}}}}"#
            )
        };
        let engine = read_of(&told("v2", true)).unwrap();
        assert_eq!((engine.to_string(), engine.cpuset), ("podman 5.4.0, rootless".into(), false));
        assert_eq!(engine.limits, Limits { cpu: true, memory: true });
        let of_1 = read_of(&told("v1", true)).unwrap();
        assert_eq!(of_1.limits, Limits::default(), "nobody but root has those of version 1");
        assert_eq!(read_of(&told("v1", false)).unwrap().limits, Limits { cpu: true, memory: true });
    }

    #[test]
    fn docker_says_what_it_can_enforce_or_why_it_does_not_work() {
        let told = r#"{"ServerVersion":"28.3.2","MemoryLimit":true,"CpuCfsQuota":true,"CPUSet":true,
            "InitBinary":"docker-init","CDISpecDirs":["/etc/cdi"],"SecurityOptions":["name=seccomp"]}"#;
        let engine = read_of(told).unwrap();
        assert_eq!(engine.to_string(), "docker 28.3.2");
        assert!(engine.cpuset && engine.init && !engine.rootless && engine.cdi.count() == 1);
        let away = r#"{"ServerVersion":"","ServerErrors":["Cannot connect to the Docker daemon"]}"#;
        assert_eq!(read_of(away), Err("Cannot connect to the Docker daemon".into()));
        assert_eq!(read_of("{}"), Err("it is neither podman nor docker".into()));
    }

    #[test]
    fn a_program_that_is_not_there_or_no_engine_is_said() {
        let of = |name: &str| find(&EngineChoice::This(name.into()));
        assert_eq!(of("/no/such"), (None, vec!["container engine /no/such: no such program".into()]));
        let (engine, findings) = of("/bin/false");
        assert_eq!((engine, &findings[0][..]), (None, "container engine /bin/false: exit status: 1"));
        assert_eq!(find(&EngineChoice::Never), (None, Vec::new()));
    }
}
