//! What the scheduler says over gRPC: refusals, tokens, limits, and how tools find their way.

mod pool;

use std::fs;
use std::time::Duration;

use aquifer_proto::v1;
use aquifer_proto::v1::agents_client::AgentsClient;
use pool::{Client, Connection, Pool, Stub, command, free_ports, program, shell, start, until};
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use v1::JobState::Pending;

/// A change that makes a good specification a bad one, and the field that is complained about.
type Spoil = (&'static str, fn(&mut v1::JobSpec));

fn request(spec: &mut v1::JobSpec) -> &mut v1::Request {
    spec.roles[0].request.get_or_insert_default()
}

fn device(spec: &mut v1::JobSpec) -> &mut v1::DeviceRequest {
    let devices = &mut request(spec).devices;
    devices.push(v1::DeviceRequest { count: 1, ..Default::default() });
    devices.last_mut().expect("it was added")
}

fn train(spec: &mut v1::JobSpec, change: fn(&mut v1::Train)) {
    let mut train = v1::Train { data: "/data".into(), ..Default::default() };
    change(&mut train);
    spec.roles[0].program = Some(v1::role::Program::Train(train));
}

fn arguments(spec: &mut v1::JobSpec, arguments: &[&str]) {
    spec.roles[0].program = command(arguments).roles[0].program.clone();
}

const SPOILS: [Spoil; 34] = [
    ("roles", |spec| spec.roles.clear()),
    ("roles", |spec| spec.roles = vec![spec.roles[0].clone(); 17]),
    ("roles[0]", |spec| spec.roles[0].program = None),
    ("roles[0].name", |spec| spec.roles[0].name = "a b".into()),
    ("roles[0].ranks", |spec| spec.roles[0].ranks = 0),
    ("roles[0].ranks", |spec| spec.roles[0].ranks = u32::MAX),
    ("roles[0].request.cpus_milli", |spec| request(spec).cpus_milli = 10_000_001),
    ("roles[0].request.memory_bytes", |spec| request(spec).memory_bytes = u64::MAX),
    ("roles[0].request.labels", |spec| _ = request(spec).labels.insert("".into(), "a".into())),
    ("roles[0].request.devices", |spec| request(spec).devices = vec![Default::default(); 17]),
    ("roles[0].request.devices[0].count", |spec| device(spec).count = 0),
    ("roles[0].request.devices[0].count", |spec| device(spec).count = 4097),
    ("roles[0].request.devices[0].vendor", |spec| device(spec).vendor = "nobody".into()),
    ("roles[0].request.devices[0].model", |spec| device(spec).model = "a\nb".into()),
    ("roles[0].request.devices[0].memory_bytes", |spec| device(spec).memory_bytes = u64::MAX),
    ("roles[0].command.arguments", |spec| arguments(spec, &[])),
    ("roles[0].command.arguments", |spec| arguments(spec, &["", "a"])),
    ("roles[0].command.arguments[1]", |spec| arguments(spec, &["a", "b\0"])),
    ("roles[0].train.data", |spec| train(spec, |train| train.data = "here".into())),
    ("roles[0].train.learning_rate", |spec| train(spec, |train| train.learning_rate = f32::NAN)),
    ("roles[0].train.steps", |spec| train(spec, |train| train.steps = u64::MAX)),
    ("roles[0].serve.model", |spec| {
        spec.roles[0].program = Some(v1::role::Program::Serve(Default::default()));
    }),
    ("name", |spec| spec.name = "n".repeat(129)),
    ("user", |spec| spec.user = "a\u{7}".into()),
    ("queue", |spec| spec.queue = "a/b".into()),
    ("client_key", |spec| spec.client_key = "k".repeat(129)),
    ("priority", |spec| spec.priority = -1001),
    ("retries", |spec| spec.retries = 1001),
    ("time_limit_ms", |spec| spec.time_limit_ms = Some(0)),
    ("grace_ms", |spec| spec.grace_ms = Some(u64::MAX)),
    ("env", |spec| _ = spec.env.insert("A=B".into(), "c".into())),
    ("working_dir", |spec| spec.working_dir = Some("here".into())),
    ("after[1]", |spec| spec.after = vec![1, 0]),
    ("array", |spec| spec.array = Some(v1::ArrayRange { first: 2, last: 1, step: 1 })),
];

#[track_caller]
fn assert_malformed<A>(answer: Result<A, Status>, field: &str) {
    let Err(status) = answer else { panic!("{field} was accepted") };
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
    let details = status.get_details_bad_request();
    let fields: Vec<String> =
        details.iter().flat_map(|details| &details.field_violations).map(|one| one.field.clone()).collect();
    assert_eq!(fields, [field], "{}", status.message());
    assert!(status.message().len() < 1000, "{}", status.message());
}

#[track_caller]
fn calls<A>(client: &Client, field: &str, call: impl AsyncFnOnce(Stub) -> Result<Response<A>, Status>) {
    assert_malformed(client.once(call), field);
}

#[test]
fn malformed_jobs_are_refused_with_the_field_and_change_nothing() {
    let pool = Pool::start();
    for (field, spoil) in SPOILS {
        let mut spec = shell("true");
        spoil(&mut spec);
        let spec = Some(spec);
        let same = spec.clone();
        calls(&pool, field, async |mut stub| stub.submit(v1::SubmitRequest { spec }).await);
        calls(&pool, field, async |mut stub| stub.plan(v1::PlanRequest { spec: same }).await);
    }
    calls(&pool, "spec", async |mut stub| stub.submit(v1::SubmitRequest { spec: None }).await);
    calls(&pool, "spec", async |mut stub| stub.plan(v1::PlanRequest { spec: None }).await);
    assert_eq!(pool.jobs(), []);
}

#[test]
fn malformed_questions_are_refused_with_the_field() {
    let pool = Pool::start();
    calls(&pool, "job", async |mut stub| stub.get(v1::GetRequest { job: 0 }).await);
    calls(&pool, "job", async |mut stub| stub.explain(v1::ExplainRequest { job: 0 }).await);
    calls(&pool, "job", async |mut stub| stub.cancel(v1::CancelRequest { job: 0, whole_array: true }).await);
    calls(&pool, "job", async |mut stub| stub.logs(v1::LogsRequest::default()).await);
    let logs = v1::LogsRequest { job: 1, attempt: Some(0), ..Default::default() };
    calls(&pool, "attempt", async |mut stub| stub.logs(logs).await);
    let watch = v1::WatchRequest { job: Some(0), ..Default::default() };
    calls(&pool, "job", async |mut stub| stub.watch(watch).await);
    let watch = v1::WatchRequest { node: "a b".into(), ..Default::default() };
    calls(&pool, "node", async |mut stub| stub.watch(watch).await);
    for (field, list) in [
        ("page_size", v1::ListRequest { page_size: 1001, ..Default::default() }),
        ("page_token", v1::ListRequest { page_token: "last".into(), ..Default::default() }),
        ("states[1]", v1::ListRequest { states: vec![1, 77], ..Default::default() }),
        ("queue", v1::ListRequest { queue: "a b".into(), ..Default::default() }),
    ] {
        calls(&pool, field, async |mut stub| stub.list(list).await);
    }
    let name = || v1::NodeRequest { name: "a b".into(), device: None };
    calls(&pool, "name", async |mut stub| stub.cordon(name()).await);
    calls(&pool, "name", async |mut stub| stub.drain(name()).await);
    calls(&pool, "name", async |mut stub| stub.uncordon(v1::NodeRequest::default()).await);
    let list = v1::ListNodesRequest { name: "a b".into(), ..Default::default() };
    calls(&pool, "name", async |mut stub| stub.list_nodes(list).await);
    for (field, queue) in [
        ("queue", None),
        ("queue.name", Some(v1::Queue::default())),
        ("queue.weight", Some(v1::Queue { name: "red".into(), weight: 1_000_001, ..Default::default() })),
        (
            "queue.users",
            Some(v1::Queue { name: "red".into(), users: vec!["ada".into(); 1001], ..Default::default() }),
        ),
        (
            "queue.users[1]",
            Some(v1::Queue {
                name: "red".into(),
                users: vec!["ada".into(), String::new()],
                ..Default::default()
            }),
        ),
        (
            "queue.parent",
            Some(v1::Queue { name: "red".into(), parent: "nobody".into(), ..Default::default() }),
        ),
        ("queue.parent", Some(v1::Queue { name: "red".into(), parent: "red".into(), ..Default::default() })),
        (
            "queue.guaranteed",
            Some(v1::Queue {
                name: "red".into(),
                guaranteed_milli: 1,
                parent: "default".into(),
                ..Default::default()
            }),
        ),
    ] {
        calls(&pool, field, async |mut stub| stub.set_queue(v1::SetQueueRequest { queue }).await);
    }
    let price = |class: &str, price_milli| v1::SetPriceRequest { class: class.into(), price_milli };
    for (field, price) in [
        ("class", price("", Some(1))),
        ("class", price("h100|t4", Some(1))),
        ("price_milli", price("h100", Some(0))),
        ("price_milli", price("h100", Some(10_000_001))),
    ] {
        calls(&pool, field, async |mut stub| stub.set_price(price).await);
    }
    let queues = pool.call(async |mut stub| stub.list_queues(v1::ListQueuesRequest {}).await);
    assert_eq!(queues.expect("queues").queues.len(), 1);
}

#[test]
fn what_is_not_there_is_not_found() {
    let pool = Pool::start();
    let not_found = |answer: Result<(), Status>| {
        assert_eq!(answer.expect_err("an answer").code(), Code::NotFound);
    };
    let one = async |mut stub: Stub| stub.get(v1::GetRequest { job: 7 }).await;
    not_found(pool.once(one).map(|_| ()));
    not_found(pool.once(async |mut stub| stub.explain(v1::ExplainRequest { job: 7 }).await).map(|_| ()));
    let cancel = v1::CancelRequest { job: 7, whole_array: false };
    not_found(pool.once(async |mut stub| stub.cancel(cancel).await).map(|_| ()));
    let node = || v1::NodeRequest { name: "nobody".into(), device: None };
    not_found(pool.once(async |mut stub| stub.drain(node()).await).map(|_| ()));
    let spec = Some(v1::JobSpec { after: vec![7], ..shell("true") });
    not_found(pool.once(async |mut stub| stub.submit(v1::SubmitRequest { spec }).await).map(|_| ()));
    let read = async {
        let request = v1::LogsRequest { job: 7, follow: true, ..Default::default() };
        pool.stub().logs(request).await?.into_inner().message().await.map(|_| ())
    };
    not_found(pool.block_on(read));
    assert_eq!(pool.jobs(), []);
}

/// Says something in an agent's session, and returns how the scheduler ends it.
fn session(
    connection: Connection,
    messages: Vec<v1::agent_message::Message>,
) -> impl Future<Output = Status> {
    let messages = messages.into_iter().map(|message| v1::AgentMessage { message: Some(message) });
    let messages: Vec<_> = messages.collect();
    async move {
        // The agent says nothing more, but stays.
        let open = futures::stream::pending();
        let messages = futures::StreamExt::chain(futures::stream::iter(messages), open);
        let mut inbox = match AgentsClient::new(connection).session(messages).await {
            Ok(inbox) => inbox.into_inner(),
            Err(status) => return status,
        };
        let end = async {
            loop {
                match inbox.message().await {
                    Ok(Some(_)) => (),
                    Ok(None) => return Status::ok("the end"),
                    Err(status) => return status,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), end).await.expect("an end")
    }
}

#[test]
fn malformed_words_of_agents_are_refused_with_the_field_and_change_nothing() {
    use v1::agent_message::Message::{Heartbeat, Hello, Progress, Report};
    let pool = Pool::start();
    let hello = |node: &str| Hello(v1::Hello { node: node.into(), boot: 1, ..Default::default() });
    let inventory = || v1::Inventory { first_port: 1, last_port: 9, ..Default::default() };
    let report = |change: fn(&mut v1::NodeReport)| {
        let mut report = v1::NodeReport { seq: 1, inventory: Some(inventory()), ..Default::default() };
        change(&mut report);
        Report(report)
    };
    let device = |vendor: &str| v1::Device { vendor: vendor.into(), ..Default::default() };
    assert_eq!(device("cpu").model, "");
    for (field, messages) in [
        ("message", vec![Heartbeat(v1::Heartbeat { seq: 1, same_as: 0 })]),
        ("hello.node", vec![hello("")]),
        ("hello.node", vec![hello("a/b")]),
        ("message", vec![hello("bad"), hello("bad")]),
        ("report.inventory", vec![hello("bad"), report(|report| report.inventory = None)]),
        (
            "inventory.devices[0].vendor",
            vec![
                hello("bad"),
                report(|report| {
                    let device = v1::Device { vendor: "nobody".into(), ..Default::default() };
                    report.inventory.get_or_insert_default().devices.push(device);
                }),
            ],
        ),
        (
            "inventory.first_port",
            vec![hello("bad"), report(|report| report.inventory.get_or_insert_default().first_port = 70_000)],
        ),
        (
            "report.workers",
            vec![hello("bad"), report(|report| report.workers.push(v1::WorkerReport::default()))],
        ),
        (
            "report.workers.state",
            vec![
                hello("bad"),
                report(|report| {
                    let worker = Some(v1::Worker { job: 1, attempt: 1, rank: 0 });
                    report.workers.push(v1::WorkerReport { worker, ..Default::default() });
                }),
            ],
        ),
        ("progress.worker", vec![hello("bad"), Progress(v1::Progress::default())]),
    ] {
        let status = pool.block_on(session(pool.connection(), messages));
        assert_malformed::<()>(Err(status), field);
    }
    assert!(pool.node("bad").is_none());
}

#[test]
fn an_agent_of_a_later_term_is_not_served() {
    use v1::agent_message::Message::Hello;
    let pool = Pool::start();
    let hello = v1::Hello { node: "a".into(), boot: 1, term: 9, ..Default::default() };
    let status = pool.block_on(session(pool.connection(), vec![Hello(hello)]));
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "term 1 is over: the pool is at term 9");
}

#[test]
fn a_message_over_the_limit_is_refused_and_one_below_it_is_not() {
    let pool = Pool::start();
    let env = |bytes: usize| [("DATA".to_string(), "x".repeat(bytes))].into();
    let spec = Some(v1::JobSpec { env: env((1 << 20) - 4), ..shell("true") });
    let job = pool.once(async |mut stub| stub.submit(v1::SubmitRequest { spec }).await).expect("it fits").job;
    let spec = Some(v1::JobSpec { env: env(1 << 20), ..shell("true") });
    calls(&pool, "env", async |mut stub| stub.submit(v1::SubmitRequest { spec }).await);
    let spec = Some(v1::JobSpec { env: env(5 << 20), ..shell("true") });
    let refused = pool.once(async |mut stub| stub.submit(v1::SubmitRequest { spec }).await);
    let code = refused.expect_err("too large").code();
    assert!([Code::OutOfRange, Code::ResourceExhausted].contains(&code), "{code:?}");
    assert_eq!(pool.jobs().len(), 1);
    assert_eq!(pool.job(job).spec.expect("a specification").env["DATA"].len(), (1 << 20) - 4);
}

#[test]
fn a_key_makes_one_job_and_never_another() {
    let pool = Pool::start();
    let submit = |spec: v1::JobSpec| {
        let request = v1::SubmitRequest { spec: Some(spec) };
        pool.once(async |mut stub| stub.submit(request).await)
    };
    let keyed = || v1::JobSpec { client_key: "k".into(), ..shell("true") };
    let first = submit(keyed()).expect("a job");
    let again = submit(keyed()).expect("the same job");
    assert_eq!((first.job, first.repeated_request), (1, false));
    assert_eq!((again.job, again.repeated_request), (1, true));
    let other = submit(v1::JobSpec { retries: 1, ..keyed() }).expect_err("another job");
    assert_eq!(other.code(), Code::AlreadyExists);
    let done = pool.aquifer(&["run", "--detach", "--key", "k", "--", "false"]);
    assert_eq!(done.code, Some(1), "{}", done.err);
    assert!(done.err.contains("--key"), "{}", done.err);
    assert_eq!(pool.jobs().len(), 1);
}

#[test]
fn pages_of_jobs_fit_together() {
    let pool = Pool::start();
    let array = Some(v1::ArrayRange { first: 0, last: 24, step: 1 });
    pool.submit(v1::JobSpec { array, ..shell("true") });
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListRequest { page_size: 10, page_token, ..Default::default() };
        let page = pool.once(async |mut stub| stub.list(request).await).expect("a page");
        assert_eq!(page.counts, [v1::StateCount { state: Pending.into(), jobs: 25 }]);
        seen.extend(page.jobs.iter().map(|job| job.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, (1..=25).rev().collect::<Vec<u64>>());
}

#[test]
fn a_watcher_that_comes_back_after_a_restart_is_told_all_that_happened_since() {
    let mut pool = Pool::start();
    for _ in 0..3 {
        pool.submit(shell("true"));
    }
    let last = pool.until_note("job-3 queued").seq;
    pool.kill_server();
    pool.start_server();
    // As many as before, so that their numbers could be taken for those that were seen.
    for _ in 0..5 {
        pool.submit(shell("true"));
    }
    let texts = pool.block_on(async {
        let request = v1::WatchRequest { after_seq: Some(last), ..Default::default() };
        let mut stream = pool.stub().watch(request).await.expect("a stream").into_inner();
        let mut texts = Vec::new();
        while texts.len() < 5 {
            let note = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
            texts.push(note.expect("a note in time").expect("a note").expect("a note").text);
        }
        texts
    });
    let expected: Vec<String> = (4..9).map(|job| format!("job-{job} queued")).collect();
    assert_eq!(texts, expected);
}

#[test]
fn a_pool_with_a_token_serves_those_who_have_it() {
    let mut pool = Pool::with_token("s3cret");
    pool.agent("a", &[]);
    let job = pool.submit(shell("true"));
    pool.until_succeeded(job);
    for token in [None, Some("wrong1"), Some("s3cre"), Some("s3crets")] {
        let other = Client::new(&pool.url(), token);
        let code = |answer: Result<(), Status>| answer.expect_err("a refusal").code();
        let get = other.once(async |mut stub| stub.get(v1::GetRequest { job }).await);
        assert_eq!(code(get.map(|_| ())), Code::Unauthenticated);
        let spec = Some(shell("true"));
        let submit = other.once(async |mut stub| stub.submit(v1::SubmitRequest { spec }).await);
        assert_eq!(code(submit.map(|_| ())), Code::Unauthenticated);
        let hello = v1::Hello { node: "b".into(), boot: 1, ..Default::default() };
        let words = vec![v1::agent_message::Message::Hello(hello)];
        let ended = other.block_on(session(other.connection(), words));
        assert_eq!(ended.code(), Code::Unauthenticated);
        assert_eq!(other.block_on(services_v1(other.connection())).expect_err("no"), Code::Unauthenticated);
    }
    assert_eq!(pool.jobs().len(), 1);
    let done = pool.aquifer(&["jobs"]);
    assert_eq!(done.code, Some(1), "{}", done.err);
    assert!(done.err.contains("AQUIFER_TOKEN"), "{}", done.err);
    assert!(pool.aquifer(&["jobs", "--all", "--token-file", &pool.file("token")]).ok().contains("job-1"));
}

#[test]
fn an_agent_without_the_token_gets_no_work_and_says_why() {
    let pool = Pool::with_token("s3cret");
    let (url, state, ports) = (pool.url(), pool.file("b"), free_ports(2));
    let ports = format!("{ports}-{}", ports + 1);
    let words = ["agent", "--server", &url, "--node", "b", "--state-dir", &state, "--ports", &ports];
    let agent = start(pool.dir(), "b", program(pool.dir(), &words));
    until("it says why", || agent.err().contains("token").then_some(()));
    assert!(pool.node("b").is_none());
}

#[test]
fn a_scheduler_that_everyone_could_reach_wants_a_token() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("server").to_string_lossy().into_owned();
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let words = ["server", "--listen", listen, "--data-dir", &data];
        let done = start(dir.path(), "server", program(dir.path(), &words)).finish();
        assert_eq!((done.code, &done.out[..]), (Some(1), ""), "{}", done.err);
        assert!(done.err.contains("needs a token") && done.err.contains("--token-file"), "{}", done.err);
    }
    let empty = dir.path().join("empty");
    fs::write(&empty, "\n").expect("a file");
    let empty = empty.to_string_lossy();
    let words = ["server", "--listen", "0.0.0.0:0", "--data-dir", &data, "--token-file", &empty];
    let done = start(dir.path(), "server", program(dir.path(), &words)).finish();
    assert_eq!((done.code, &done.out[..]), (Some(2), ""), "{}", done.err);
}

#[test]
fn the_first_line_is_the_address_also_when_the_system_chose_the_port() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("server").to_string_lossy().into_owned();
    let words = ["server", "--listen", "127.0.0.1:0", "--data-dir", &data];
    let mut server = start(dir.path(), "server", program(dir.path(), &words));
    server.until_out("\n");
    let out = server.out();
    let address = out.trim().strip_prefix("listening on ").expect("an address");
    let client = Client::new(&format!("http://{address}"), None);
    assert_eq!(client.jobs(), []);
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.finish().code, Some(0));
}

/// Names of the services, by reflection.
async fn services_v1(connection: Connection) -> Result<Vec<String>, Code> {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let question = tonic_reflection::pb::v1::ServerReflectionRequest { host: String::new(), message_request };
    let asked = ServerReflectionClient::new(connection)
        .server_reflection_info(futures::stream::iter([question]))
        .await;
    let answer = asked.map_err(|status| status.code())?.into_inner().message().await;
    match answer.map_err(|status| status.code())?.and_then(|answer| answer.message_response) {
        Some(MessageResponse::ListServicesResponse(list)) => {
            Ok(list.service.into_iter().map(|service| service.name).collect())
        }
        other => panic!("unexpected {other:?}"),
    }
}

/// Names of the services, by the earlier version of reflection.
async fn services_v1alpha(connection: Connection) -> Vec<String> {
    use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse;
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let question =
        tonic_reflection::pb::v1alpha::ServerReflectionRequest { host: String::new(), message_request };
    let asked = ServerReflectionClient::new(connection)
        .server_reflection_info(futures::stream::iter([question]))
        .await;
    let answer = asked.expect("a stream").into_inner().message().await;
    match answer.expect("an answer").and_then(|answer| answer.message_response) {
        Some(MessageResponse::ListServicesResponse(list)) => {
            list.service.into_iter().map(|service| service.name).collect()
        }
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn tools_find_the_services_and_their_health_without_preparation() {
    let pool = Pool::start();
    let by_v1 = pool.block_on(services_v1(pool.connection())).expect("services");
    let by_v1alpha = pool.block_on(services_v1alpha(pool.connection()));
    for name in ["aquifer.v1.Pool", "aquifer.v1.Agents", "grpc.health.v1.Health"] {
        assert!(by_v1.iter().any(|service| service == name), "{by_v1:?}");
        assert!(by_v1alpha.iter().any(|service| service == name), "{by_v1alpha:?}");
    }
    for service in ["", "aquifer.v1.Pool"] {
        let request = HealthCheckRequest { service: service.into() };
        let health = pool.block_on(HealthClient::new(pool.connection()).check(request));
        assert_eq!(health.expect("an answer").into_inner().status(), ServingStatus::Serving, "{service:?}");
    }
}
