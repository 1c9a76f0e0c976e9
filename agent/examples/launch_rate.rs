//! Launches `/bin/true` many times, 16 at a time, and prints launches a second and the time from launch to exit seen.
//!
//! `cargo build --release -p aquifer-agent --examples && cargo run --release -p aquifer-agent --example launch_rate`
//! with the number of launches as an argument, and then `limits` to have control groups.
//!
//! Run directories are made under `TMPDIR`. An ext4 without a journal is slow to make files for minutes after many
//! were removed (it does not use their inodes again so soon), so give it one in memory: `TMPDIR=/dev/shm`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aquifer_agent::{Launch, Launcher, LauncherConfig, News, Ready, Retention, SupervisorCommand};
use aquifer_core::{Exit, JobId, WorkerId, WorkerState};

const AT_ONCE: u64 = 16;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let count: u64 = args.get(1).map_or(2000, |count| count.parse().expect("a number of launches"));
    let state_dir = std::env::temp_dir().join(format!("launch-rate-{}", std::process::id()));
    let config = LauncherConfig {
        state_dir: state_dir.clone(),
        supervisor: SupervisorCommand {
            program: std::env::current_exe().expect("own path").with_file_name("supervise"),
            args: Vec::new(),
        },
        enforce_limits: args.iter().any(|arg| arg == "limits"),
        workers_group: None,
        keep: Retention::default(),
        status_every: Duration::from_millis(250),
        partitions: Default::default(),
    };
    let (news, mut heard) = tokio::sync::mpsc::channel(1024);
    let (mut launcher, _) = Launcher::open(config, news).await.expect("a launcher");
    println!("enforced: {:?}", launcher.limits());
    let (mut next, mut times, mut since) = (0, Vec::new(), BTreeMap::new());
    let begin = Instant::now();
    while (times.len() as u64) < count {
        while next < count && (since.len() as u64) < AT_ONCE {
            next += 1;
            let id = WorkerId { job: JobId(next), attempt: 1, rank: 0 };
            since.insert(id, Instant::now());
            launcher.launch(Launch {
                id,
                command: vec!["/bin/true".to_string()],
                env: Vec::new(),
                working_dir: None,
                cpu_affinity: Vec::new(),
                cpus_milli: 1000,
                memory_bytes: 256 << 20,
                grace_ms: 1000,
                exclusive: false,
                run_as: None,
                made: None,
                ready: Ready::AtSpawn,
                files: Vec::new(),
                container: None,
                partition: None,
                hidden_nodes: Vec::new(),
                own_nodes: Vec::new(),
            });
        }
        if let News::State { id, state: WorkerState::Exited(exit) } = heard.recv().await.expect("news") {
            assert_eq!(exit, Exit::Code(0), "{id}");
            times.push(since.remove(&id).expect("it was launched").elapsed());
            launcher.forget(id);
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    times.sort();
    let ms = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1000.0;
    println!(
        "{count} launches in {seconds:.2} s: {:.0}/s, {AT_ONCE} at a time; launch to exit seen p50 {:.1} ms, p99 {:.1} ms",
        count as f64 / seconds,
        ms(50),
        ms(99)
    );
    drop(launcher);
    std::fs::remove_dir_all(state_dir).expect("own directory");
}
