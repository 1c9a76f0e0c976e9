//! An agent that launches one worker and then does nothing more, for tests to kill: `launch_one STATE_DIR LEASE_MS
//! PROGRAM ARGUMENTS…`. A lease of 0 makes the worker one that is not exclusive.

use std::time::Duration;

use aquifer_agent::{Launch, Launcher, LauncherConfig, Ready, Retention, SupervisorCommand};
use aquifer_core::{JobId, WorkerId};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let lease_ms: u64 = args[1].parse().expect("milliseconds");
    let config = LauncherConfig {
        state_dir: args[0].clone().into(),
        supervisor: SupervisorCommand {
            program: std::env::current_exe().expect("own path").with_file_name("supervise"),
            args: Vec::new(),
        },
        enforce_limits: false,
        workers_group: None,
        keep: Retention::default(),
        status_every: Duration::from_millis(250),
        partitions: Default::default(),
    };
    let (news, mut heard) = tokio::sync::mpsc::channel(16);
    let (mut launcher, _) = Launcher::open(config, news).await.expect("a launcher");
    launcher.extend_lease(Duration::from_millis(lease_ms)).expect("a lease");
    launcher.launch(Launch {
        id: WorkerId { job: JobId(1), attempt: 1, rank: 0 },
        command: args[2..].to_vec(),
        env: Vec::new(),
        working_dir: None,
        cpu_affinity: Vec::new(),
        cpus_milli: 0,
        memory_bytes: 0,
        grace_ms: 1000,
        exclusive: 0 < lease_ms,
        run_as: None,
        made: None,
        ready: Ready::AtSpawn,
        files: Vec::new(),
        container: None,
        partition: None,
        hidden_nodes: Vec::new(),
        own_nodes: Vec::new(),
    });
    while heard.recv().await.is_some() {}
}
