//! Users with tokens of their own: whose jobs are whose, and who may change what.

mod pool;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use aquifer_proto::v1;
use pool::{Client, Pool, Stub, command, shell, start, until};
use tonic::{Code, Response, Status};

/// A pool of which ada is an administrator, and bob is not; their clients.
fn pool_of_users() -> (Pool, Client, Client) {
    let mut pool = Pool::prepare(1, &[], Some("pearl"));
    let file = pool.file("users");
    let ada = pool.aquifer(&["token", "ada", "--admin", "--users", &file]).ok();
    let bob = pool.aquifer(&["token", "bob", "--users", &file]).ok();
    let mode = fs::metadata(&file).expect("a file of users").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = pool.read("users");
    assert!(!text.contains(ada.trim()) && text.lines().count() == 2, "digests alone: {text}");
    pool.set_server_flags(&["--users", &file]);
    pool.start_server();
    pool.agent("a", &[]);
    let [ada, bob] = [ada, bob].map(|token| Client::new(&pool.url(), Some(token.trim())));
    (pool, ada, bob)
}

fn refused<A: std::fmt::Debug>(
    client: &Client,
    call: impl AsyncFnOnce(Stub) -> Result<Response<A>, Status>,
) -> String {
    let status = client.once(call).expect_err("it is refused");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    status.message().to_string()
}

#[test]
fn jobs_are_in_the_name_of_the_token_whatever_they_say() {
    let (pool, ada, bob) = pool_of_users();
    let spec = |user: &str| v1::JobSpec { user: user.into(), ..shell("echo $SECRET; exec sleep 1000") };
    let mut secret = spec("ada");
    secret.env.insert("SECRET".into(), "pearls".into());
    let of_bob = bob.submit(secret);
    let user = |job: u64| pool.job(job).spec.expect("a specification").user;
    assert_eq!(user(of_bob), "bob");
    assert_eq!(user(ada.submit(spec("bob"))), "ada");
    assert_eq!(user(pool.submit(spec("eve"))), "eve", "the pool's token speaks for anybody");
    // The values of an environment are for who owns it, and for administrators.
    let other = bob.submit(spec(""));
    let carol = pool.aquifer(&["token", "carol", "--users", &pool.file("users")]).ok();
    let carol = Client::new(&pool.url(), Some(carol.trim()));
    until("carol is known", || {
        carol.once(async |mut stub| stub.get(v1::GetRequest { job: other }).await).ok()
    });
    let seen = |client: &Client| client.job(of_bob).spec.expect("a specification").env["SECRET"].clone();
    assert_eq!([seen(&bob), seen(&ada), seen(&pool), seen(&carol)], ["pearls", "pearls", "pearls", ""]);
    let listed = carol.jobs().into_iter().find(|job| job.id == of_bob).expect("others see that it is there");
    assert!(listed.spec.is_none_or(|spec| spec.env.values().all(String::is_empty)));
    // So is what its workers say.
    pool.until_state(of_bob, v1::JobState::Running);
    until("it has said something", || (pool.log(of_bob) == "pearls\n").then_some(()));
    assert_eq!(bob.log(of_bob), "pearls\n");
    let logs = v1::LogsRequest { job: of_bob, ..Default::default() };
    let said = refused(&carol, async |mut stub| stub.logs(logs).await);
    assert_eq!(said, format!("job-{of_bob} is of bob, and this token of carol"));
    let cancel = v1::CancelRequest { job: of_bob, whole_array: false };
    refused(&carol, async |mut stub| stub.cancel(cancel).await);
    refused(&carol, async |mut stub| stub.scale(v1::ScaleRequest { job: of_bob, ranks: None }).await);
    bob.cancel(of_bob);
    pool.until_state(of_bob, v1::JobState::Cancelled);
    ada.cancel(other);
    pool.until_state(other, v1::JobState::Cancelled);
}

#[test]
fn administrators_alone_change_the_pool() {
    let (pool, ada, bob) = pool_of_users();
    let node = || v1::NodeRequest { name: "a".into(), device: None };
    let queue = || v1::SetQueueRequest { queue: Some(v1::Queue { name: "q".into(), ..Default::default() }) };
    let reserve = || v1::ReserveRequest {
        name: "r".into(),
        nodes: vec!["a".into()],
        end_ms: u64::MAX >> 20,
        ..Default::default()
    };
    let said = refused(&bob, async |mut stub| stub.cordon(node()).await);
    assert_eq!(said, "bob is no administrator, who alone may cordon and drain nodes");
    refused(&bob, async |mut stub| stub.drain(node()).await);
    refused(&bob, async |mut stub| stub.uncordon(node()).await);
    refused(&bob, async |mut stub| stub.set_queue(queue()).await);
    let price = || v1::SetPriceRequest { class: "h100".into(), price_milli: Some(1) };
    refused(&bob, async |mut stub| stub.set_price(price()).await);
    refused(&bob, async |mut stub| stub.reserve(reserve()).await);
    refused(&bob, async |mut stub| stub.unreserve(v1::UnreserveRequest { name: "r".into() }).await);
    refused(&bob, async |mut stub| stub.backup(v1::BackupRequest {}).await);
    for client in [&ada, &*pool] {
        client.once(async |mut stub| stub.cordon(node()).await).expect("an administrator");
        client.once(async |mut stub| stub.uncordon(node()).await).expect("an administrator");
    }
    ada.once(async |mut stub| stub.set_queue(queue()).await).expect("an administrator");
    ada.once(async |mut stub| stub.set_price(price()).await).expect("an administrator");
    ada.once(async |mut stub| stub.backup(v1::BackupRequest {}).await).expect("an administrator");
    // Nobody but agents speaks as one.
    let token = pool.file("bob");
    fs::write(&token, pool.aquifer(&["token", "bob", "--users", &pool.file("users")]).ok()).expect("a file");
    let (url, state) = (pool.url(), pool.file("c"));
    let words = [
        "agent",
        "--server",
        &url,
        "--node",
        "c",
        "--state-dir",
        &state,
        "--token-file",
        &token,
        "--measure",
        "never",
    ];
    let agent = start(pool.dir(), "c", pool::program(pool.dir(), &words));
    until("it is told so", || {
        agent.err().contains("this token is of bob: an agent needs the pool's").then_some(())
    });
    assert!(pool.node("c").is_none());
}

#[test]
fn a_queue_of_some_users_takes_no_jobs_of_others_whatever_they_say() {
    let (mut pool, ada, bob) = pool_of_users();
    let token = pool.file("token");
    let queues = |pool: &Pool, words: &[&str]| {
        pool.aquifer(&[&["--token-file", &token, "queues", "set"], words].concat())
    };
    let line = queues(&pool, &["red", "--user", "ada", "--user", "carol"]).ok();
    assert!(line.contains("and takes jobs of ada, carol alone"), "{line}");
    _ = queues(&pool, &["dark-red", "--parent", "red", "--weight", "2"]).ok();
    // What is not given stays.
    _ = queues(&pool, &["red", "--weight", "3"]).ok();
    let spec = |queue: &str| v1::JobSpec { queue: queue.into(), user: "ada".into(), ..command(&["true"]) };
    let submit = |queue: &str| v1::SubmitRequest { spec: Some(spec(queue)) };
    for queue in ["red", "dark-red"] {
        let said = refused(&bob, async |mut stub| stub.submit(submit(queue)).await);
        assert_eq!(said, format!("queue {queue:?} takes no jobs of \"bob\", but of ada, carol"));
        let plan = v1::PlanRequest { spec: Some(spec(queue)) };
        refused(&bob, async |mut stub| stub.plan(plan).await);
        pool.until_succeeded(ada.submit(spec(queue)));
    }
    // So it is after a restart.
    pool.kill_server();
    pool.start_server();
    let url = pool.url();
    let bob_again = {
        let token = pool.aquifer(&["token", "bob2", "--users", &pool.file("users")]).ok();
        Client::new(&url, Some(token.trim()))
    };
    until("bob2 is known and refused", || {
        let said = bob_again.once(async |mut stub| stub.submit(submit("red")).await).err()?;
        said.message().contains("takes no jobs of \"bob2\"").then_some(())
    });
    let mixed = queues(&pool, &["red", "--user", "all", "--user", "ada"]);
    assert_eq!(mixed.code, Some(2), "{mixed:?}");
    _ = queues(&pool, &["red", "--user", "all"]).ok();
    pool.until_succeeded(bob_again.submit(spec("red")));
}

#[test]
fn a_file_is_read_again_and_one_that_cannot_be_used_changes_nothing() {
    let (pool, ada, bob) = pool_of_users();
    let is_known =
        |client: &Client| client.once(async |mut stub| stub.list(v1::ListRequest::default()).await).is_ok();
    assert!(is_known(&ada) && is_known(&bob));
    let text = pool.read("users");
    fs::write(pool.file("users"), text.lines().next().expect("ada's line")).expect("a file");
    until("bob is unknown", || (!is_known(&bob)).then_some(()));
    let status = bob.once(async |mut stub| stub.list(v1::ListRequest::default()).await).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    fs::write(pool.file("users"), "bob pearl").expect("a file");
    until("the log says why", || {
        _ = is_known(&bob); // It is looked at when somebody asks.
        pool.server_at(0).err().contains("is no SHA-256: expected 64 digits").then_some(())
    });
    assert!(is_known(&ada) && !is_known(&bob));
}

#[test]
fn users_without_a_token_of_the_pool_are_refused() {
    let mut pool = Pool::prepare(1, &[], None);
    let file = pool.file("users");
    pool.aquifer(&["token", "ada", "--users", &file]).ok();
    let data = pool.file("data");
    let words = ["server", "--listen", "127.0.0.1:0", "--data-dir", &data, "--users", &file];
    let done = start(pool.dir(), "open", pool::program(pool.dir(), &words)).finish();
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.err.contains("--users needs a token of the pool"), "{done:?}");
    fs::write(&file, "ada").expect("a file");
    let done = pool.aquifer(&["token", "bob", "--users", &file]);
    assert_eq!((done.code, done.err.contains("line 1: expected a name")), (Some(1), true), "{done:?}");
    let done = pool.aquifer(&["token", "b/b", "--users", &file]);
    assert_eq!(done.code, Some(2), "{done:?}");
    pool.set_server_flags(&[]);
    pool.start_server();
    pool.submit(command(&["true"]));
}
