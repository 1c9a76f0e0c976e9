//! Workers that run as the users of their jobs, through the whole pool. Needs root, without which it says so and passes.

mod pool;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use aquifer_proto::v1;
use pool::{Pool, program, shell, start, training, until};

/// A user whom every system knows.
const USER: &str = "nobody";

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        // Not captured, as what is printed would be.
        _ = writeln!(std::io::stderr(), "skipped: only root can run workers as other users");
    }
    is_root
}

#[test]
fn jobs_run_as_their_users_and_own_what_they_write() {
    if !is_root() {
        return;
    }
    let mut pool = Pool::prepare(1, &[], None);
    fs::set_permissions(pool.dir(), Permissions::from_mode(0o755)).expect("a directory of ours");
    let checkpoints = pool.file("checkpoints");
    pool.give_servers(&["--checkpoint-root", &checkpoints]);
    pool.start_server();
    pool.agent("a", &["--run-as", "job-user", "--devices", "cpu:0"]);
    let mut spec = shell("id -un; id -gn; touch $TMPDIR/file && ls $TMPDIR");
    spec.user = USER.into();
    let job = pool.submit(spec);
    pool.until_succeeded(job);
    assert_eq!(pool.log(job), format!("{USER}\nnogroup\nfile\n"));

    let mut spec = training(&pool, "", 3);
    (spec.user, spec.checkpoint_dir) = (USER.into(), None);
    let job = pool.submit(spec);
    pool.until_succeeded(job);
    let made = pool.dir().join("checkpoints").join(format!("job-{job}"));
    let (of, root) =
        (fs::metadata(&made).expect("checkpoints"), fs::metadata(&checkpoints).expect("their root"));
    assert_ne!(of.uid(), root.uid(), "they are their user's");

    // What runs beside a worker is its user's too, gains nothing, and can open its own ends by their names.
    let mut spec = shell("exec sleep 100000");
    spec.user = USER.into();
    let job = pool.submit(spec);
    pool.until_state(job, v1::JobState::Running);
    let script = "id -un; id -gn; grep -c 'NoNewPrivs:.1' /proc/self/status; echo hello > /dev/stdout; pwd";
    let said = pool.aquifer(&["exec", &format!("job-{job}"), "sh", "-c", script]).ok();
    let dir = pool.run_dir(job, 1, 0).expect("a run directory");
    assert_eq!(said, format!("{USER}\nnogroup\n1\nhello\n{}\n", dir.display()));

    for user in ["root", "no-such-user"] {
        let mut spec = shell("id -un");
        spec.user = user.into();
        let job = pool.submit(spec);
        let ended = pool.until_job(job, "ended", pool::has_ended);
        assert!(ended.last_failure.contains(&format!("user {user:?}")), "{}", ended.last_failure);
    }
}

#[test]
fn an_agent_whose_directory_users_cannot_enter_does_not_start() {
    if !is_root() {
        return;
    }
    let pool = Pool::start();
    fs::set_permissions(pool.dir(), Permissions::from_mode(0o700)).expect("a directory of ours");
    let (url, state) = (pool.url(), pool.file("a"));
    let words =
        ["agent", "--server", &url, "--run-as", "job-user", "--devices", "none", "--state-dir", &state];
    let agent = start(pool.dir(), "a", program(pool.dir(), &words));
    let why = format!("users cannot enter {}: give --state-dir", pool.dir().display());
    until("it says why", || agent.err().contains(&why).then_some(()));
}
