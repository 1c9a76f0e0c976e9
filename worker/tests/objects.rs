//! Checkpoints in object stores: whole or absent, whatever a store, a network or another leader does meanwhile.

#[path = "support/s3.rs"]
mod s3;
mod support;

use aquifer_worker::checkpoint::{Place, Record, Settings, Store, TrainingState, Writer};
use aquifer_worker::kernels::Precision;
use aquifer_worker::model::{Model, ModelConfig, Trained};
use object_store::aws::AmazonS3Builder;
use object_store::{BackoffConfig, RetryConfig};
use s3::{Fault, S3};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use support::{TempDir, Worker, train_args, train_group};

#[test]
fn worker_process() {
    support::become_worker_if_asked();
}

const SECRET: &str = "hidden-in-the-environment";

fn settings() -> Settings {
    Settings {
        seed: 1,
        batch: 8,
        micro_batch: 1,
        precision: Precision::F32,
        context: 16,
        steps: 100,
        learning_rate: 3e-3,
        warmup: 0,
        weight_decay: 0.1,
        clip: 1.0,
        inner_steps: 0,
        replicas: 0,
        keeps_moments: false,
    }
}

fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 16,
        intermediate_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        ..ModelConfig::preset("tiny").unwrap()
    }
}

fn state_of(config: ModelConfig, step: u64) -> TrainingState {
    let model = Model::new(config, step);
    let (first, second) = (model.weights.parameters.clone(), model.layout.initial(77));
    let record = Record {
        step,
        tokens_seen: 128 * step,
        loss: 2.5,
        settings: settings(),
        data_tokens: 1000,
        data_crc32: 7,
        files: Default::default(),
        spent: Default::default(),
        saved_at_ms: 0,
    };
    TrainingState { trained: Arc::new(Trained { model, first, second }), record }
}

fn state(step: u64) -> TrainingState {
    state_of(config(), step)
}

/// The checkpoints below `run` of the server's bucket, or of another one.
fn in_bucket(server: &S3, bucket: &str, scratch: &Path) -> Store {
    // Another test may have done so.
    _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(1), ..BackoffConfig::default() };
    let retry = RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(10) };
    let objects = AmazonS3Builder::new()
        .with_endpoint(&server.url)
        .with_allow_http(true)
        .with_bucket_name(bucket)
        .with_access_key_id("key")
        .with_secret_access_key(SECRET)
        .with_token(SECRET)
        .with_retry(retry)
        .build()
        .unwrap();
    Store::over(Arc::new(objects), "run".into(), format!("s3://{bucket}/run"), 2, scratch)
}

fn on_server(server: &S3, scratch: &TempDir) -> Store {
    in_bucket(server, "bucket", &scratch.join(""))
}

fn in_directory(directory: &Path, scratch: &TempDir) -> Store {
    let place = Place::parse("--checkpoint-dir", &format!("file://{}", directory.display())).unwrap();
    let Place::Store(url) = place else { panic!("{place} is a directory") };
    Store::open(&url, 2, Writer { attempt: 3, rank: 1 }, Vec::new(), &scratch.join("")).unwrap()
}

/// The step of the newest checkpoint, and what was passed over.
fn newest(store: &Store) -> (Option<u64>, Vec<String>) {
    let (state, skipped) = store.load_newest(&settings(), &config()).unwrap();
    (state.map(|state| state.record.step), skipped)
}

/// Keys of the server without the random names of folders.
fn short_keys(server: &S3) -> Vec<String> {
    let short = |key: String| {
        let parts: Vec<_> = key.split('/').filter(|part| !part.starts_with("0-0-")).collect();
        parts.join("/")
    };
    server.keys().into_iter().map(short).collect()
}

fn files_of(step: u64) -> Vec<String> {
    let names = ["config.json", "model.safetensors", "optimizer.safetensors", "train.json", "manifest.json"];
    names.iter().map(|name| format!("run/step-{step:06}/{name}")).collect()
}

#[test]
fn a_state_survives_its_checkpoint_and_only_the_newest_are_kept() {
    let (dir, server) = (TempDir::new(), S3::start());
    let directory = dir.join("of objects");
    for store in [on_server(&server, &dir), in_directory(&directory, &dir)] {
        store.probe().unwrap();
        assert_eq!(newest(&store), (None, vec![]));
        for step in [10, 20, 30] {
            store.save(&state(step)).unwrap();
        }
        let (loaded, skipped) = store.load_newest(&settings(), &config()).unwrap();
        let (loaded, saved) = (loaded.unwrap(), state(30));
        assert!(skipped.is_empty(), "{skipped:?}");
        assert!(loaded.trained.vectors() == saved.trained.vectors());
        assert_eq!((loaded.record.step, loaded.record.loss), (30, 2.5));
        let other = Settings { seed: 2, ..settings() };
        let error = store.load_newest(&other, &config()).err().unwrap().to_string();
        assert!(error.ends_with("/step-000030 was written with --seed 1, this training has 2"), "{error}");
    }
    assert_eq!(short_keys(&server), [files_of(20), files_of(30)].concat());
    let mut steps: Vec<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    steps.sort();
    assert_eq!(steps, ["step-000020", "step-000030"]);
    let manifest = fs::read(directory.join("step-000030/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(
        (&manifest["attempt"], &manifest["rank"], &manifest["step"]),
        (&3.into(), &1.into(), &30.into())
    );
    // Nothing is left of what was read.
    assert!(fs::read_dir(dir.join("")).unwrap().all(|entry| entry.unwrap().path() == directory));
}

#[test]
fn large_objects_are_sent_in_parts_and_come_back_as_they_were() {
    let (dir, server) = (TempDir::new(), S3::start());
    let store = on_server(&server, &dir);
    let tiny = || ModelConfig::preset("tiny").unwrap();
    store.save(&state_of(tiny(), 5)).unwrap();
    assert_eq!(server.uploads(), (0, 2), "6.4 MB in parts of 5 MiB");
    let loaded = store.load_newest(&settings(), &tiny()).unwrap().0.unwrap();
    assert!(loaded.trained.vectors() == state_of(tiny(), 5).trained.vectors());
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_taken() {
    let flip = |object: &[u8]| {
        let mut object = object.to_vec();
        let at = object.len() - 5;
        object[at] ^= 4;
        Some(object)
    };
    type Damage<'a> = &'a dyn Fn(&[u8]) -> Option<Vec<u8>>;
    let damages: [(&str, Damage, &str); 8] = [
        ("model.safetensors", &flip, "checksum of model.safetensors is "),
        ("optimizer.safetensors", &flip, "checksum of optimizer.safetensors is "),
        ("train.json", &flip, "checksum of train.json is "),
        (
            "model.safetensors",
            &|object| Some(object[..999].to_vec()),
            "model.safetensors has 999 bytes, it was ",
        ),
        ("config.json", &|_| None, "config.json is missing"),
        ("manifest.json", &|_| Some(Vec::new()), "manifest.json: EOF"),
        ("manifest.json", &|_| Some(vec![b' '; 2 << 20]), "manifest.json: EOF"),
        (
            "manifest.json",
            &|text| {
                let (text, start) = (String::from_utf8_lossy(text), "\"objects\": {");
                let more = format!("{start}\"../../stolen\": {{\"bytes\": 1, \"crc32\": 1}},");
                Some(text.replace(start, &more).into_bytes())
            },
            "manifest.json names \"../../stolen\", which is no file of a checkpoint",
        ),
    ];
    for (object, damage, sentence) in damages {
        let (dir, server) = (TempDir::new(), S3::start());
        let store = on_server(&server, &dir);
        store.save(&state(10)).unwrap();
        store.save(&state(20)).unwrap();
        let all = server.keys();
        let damaged = all.iter().find(|key| key.contains("step-000020") && key.ends_with(object)).unwrap();
        server.change(damaged, damage);
        let (step, skipped) = newest(&store);
        let start = format!("skipped a damaged checkpoint: s3://bucket/run/step-000020: {sentence}");
        assert_eq!(step, Some(10), "{object}");
        assert!(skipped.len() == 1 && skipped[0].starts_with(&start), "{skipped:?} is not {start}");
        // The step is reached again and takes the damaged one's place.
        store.save(&state(20)).unwrap();
        assert_eq!(newest(&store), (Some(20), vec![]), "{object}");
    }
}

#[test]
fn what_was_not_written_to_its_end_is_no_checkpoint_and_is_cleared_away() {
    type Make = fn() -> Fault;
    let lost: [(&str, Make); 3] =
        [("lost", || Fault::Lost), ("refused", || Fault::Status(500)), ("busy", || Fault::Status(503))];
    for (what, fault) in lost {
        for (method, object) in [("PUT", "optimizer"), ("POST", "optimizer"), ("PUT", "train.json")] {
            let (dir, server) = (TempDir::new(), S3::start());
            let tiny = || ModelConfig::preset("tiny").unwrap();
            let store = on_server(&server, &dir);
            store.save(&state_of(tiny(), 10)).unwrap();
            let met = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&met);
            server.set(move |request| match request.is(method, object) {
                true => {
                    counted.fetch_add(1, Ordering::Relaxed);
                    fault()
                }
                false => Fault::None,
            });
            let error = store.save(&state_of(tiny(), 20)).unwrap_err();
            assert!(error.is_passing(), "{what} {object}: {error}");
            assert!(0 < met.load(Ordering::Relaxed));
            assert_eq!(short_keys(&server), files_of(10), "{what} {object}");
            server.set(|_| Fault::None);
            let (loaded, skipped) = store.load_newest(&settings(), &tiny()).unwrap();
            assert_eq!((loaded.unwrap().record.step, skipped), (10, vec![]), "{what} {object}");
            store.save(&state_of(tiny(), 20)).unwrap();
            assert_eq!(short_keys(&server), [files_of(10), files_of(20)].concat(), "{what} {object}");
        }
    }
}

#[test]
fn faults_that_pass_are_not_even_noticed() {
    let (dir, server) = (TempDir::new(), S3::start());
    let store = on_server(&server, &dir);
    // Of every request the first try fails.
    let mut seen = std::collections::BTreeSet::new();
    server.set(move |request| {
        match seen.insert(format!("{} {} {:?}", request.method, request.path, request.headers.get("range"))) {
            true => Fault::Status(500),
            false => Fault::None,
        }
    });
    store.save(&state(10)).unwrap();
    assert_eq!(newest(&store), (Some(10), vec![]));
}

#[test]
fn a_manifest_whose_answer_was_lost_counts_and_keeps_its_objects() {
    // The client repeats the request by itself, and is told that there is one already: its own.
    let faults: [fn() -> Fault; 2] = [|| Fault::Denied, || Fault::Unanswered];
    for fault in faults {
        let (dir, server) = (TempDir::new(), S3::start());
        let store = on_server(&server, &dir);
        let mut is_first = true;
        server.set(move |request| match request.is("PUT", "manifest") && std::mem::take(&mut is_first) {
            true => fault(),
            false => Fault::None,
        });
        store.save(&state(10)).unwrap();
        assert_eq!(newest(&store), (Some(10), vec![]));
        assert_eq!(short_keys(&server), files_of(10));
    }
}

#[test]
fn two_that_lead_at_a_time_publish_one_checkpoint_and_both_go_on() {
    for round in 0..10 {
        let (dir, server) = (TempDir::new(), S3::start());
        // Both have looked, and seen none, before one of them writes.
        let barrier = Arc::new(std::sync::Barrier::new(2));
        let own = |_| {
            let (barrier, server) = (Arc::clone(&barrier), server.clone());
            let scratch = dir.join("");
            std::thread::spawn(move || {
                let store = in_bucket(&server, "bucket", &scratch);
                for step in [10, 20, 30] {
                    barrier.wait();
                    store.save(&state(step)).unwrap();
                }
            })
        };
        let threads: Vec<_> = (0..2).map(own).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(short_keys(&server), [files_of(20), files_of(30)].concat(), "round {round}");
        assert_eq!(newest(&on_server(&server, &dir)), (Some(30), vec![]));
    }
}

#[test]
fn nobody_removes_what_one_that_was_left_behind_still_writes() {
    let (dir, server) = (TempDir::new(), S3::start());
    let (late, scratch) = (on_server(&server, &dir), dir.join(""));
    let (go_on, held) = channel();
    let (reach, reached) = channel();
    let (mut held, own) = (Some(held), server.clone());
    let (tell, at_the_end) = channel();
    server.set(move |request| {
        if request.is("PUT", "step-000010/manifest") {
            _ = tell.send(own.keys());
        }
        match held.take_if(|_| request.is("PUT", "train.json")) {
            Some(held) => {
                reach.send(()).unwrap();
                Fault::Held(held)
            }
            None => Fault::None,
        }
    });
    let late = std::thread::spawn(move || late.save(&state(10)).unwrap());
    reached.recv().unwrap();
    // Another one writes the same step and more, until that one is removed.
    let other = in_bucket(&server, "bucket", &scratch);
    [10, 20, 30, 40].iter().for_each(|step| other.save(&state(*step)).unwrap());
    assert!(!server.keys().iter().any(|key| key.ends_with("step-000010/manifest.json")));
    go_on.send(()).unwrap();
    late.join().unwrap();
    let keys = at_the_end.iter().take(2).last().unwrap();
    assert_eq!(keys.iter().filter(|key| key.contains("step-000010/")).count(), 4, "{keys:?}");
    assert_eq!(newest(&other), (Some(40), vec![]));
    assert_eq!(short_keys(&server), [files_of(30), files_of(40)].concat());
}

#[test]
fn one_that_reads_while_another_removes_finds_what_that_one_wrote() {
    let (dir, server) = (TempDir::new(), S3::start());
    let (reader, writer) = (on_server(&server, &dir), on_server(&server, &dir));
    writer.save(&state(10)).unwrap();
    let (go_on, held) = channel();
    let (reach, reached) = channel();
    let mut held = Some(held);
    server.set(move |request| match held.take_if(|_| request.is("GET", "step-000010/manifest")) {
        Some(held) => {
            reach.send(()).unwrap();
            Fault::Held(held)
        }
        None => Fault::None,
    });
    let reader = std::thread::spawn(move || newest(&reader));
    reached.recv().unwrap();
    [20, 30].iter().for_each(|step| writer.save(&state(*step)).unwrap());
    go_on.send(()).unwrap();
    assert_eq!(reader.join().unwrap(), (Some(30), vec![]));
}

#[test]
fn what_a_store_will_never_do_names_the_option_and_no_secret() {
    let (dir, server) = (TempDir::new(), S3::start());
    let store = on_server(&server, &dir);
    let errors = || {
        [
            store.probe().unwrap_err(),
            store.save(&state(1)).unwrap_err(),
            store.load_newest(&settings(), &config()).err().unwrap(),
        ]
    };
    for status in [401, 403] {
        server.set(move |_| Fault::Status(status));
        for error in errors() {
            let text = error.to_string();
            let start = "--checkpoint-dir is s3://bucket/run; the store refuses the credentials";
            assert!(!error.is_passing() && text.starts_with(start), "{status}: {text}");
        }
    }
    for status in [400, 500] {
        server.set(move |_| Fault::Status(status));
        for error in errors() {
            let text = error.to_string();
            assert!(text.contains(&status.to_string()) && text.starts_with("s3://bucket/run: "), "{text}");
            assert!(!text.contains(SECRET) && !text.contains("Credential") && !text.contains('?'), "{text}");
        }
    }
    server.set(|_| Fault::None);
    let nowhere = in_bucket(&server, "nobucket", &dir.join(""));
    let expected = "--checkpoint-dir is s3://nobucket/run; there is no such bucket or container";
    assert_eq!(nowhere.probe().unwrap_err().to_string(), expected);
    assert_eq!(nowhere.load_newest(&settings(), &config()).err().unwrap().to_string(), expected);
}

/// A training of a few small steps.
fn options<'a>(data: &'a Path, checkpoints: &'a str) -> Vec<&'a str> {
    let data = data.to_str().unwrap();
    let mut line = vec!["--data", data, "--checkpoint-dir", checkpoints];
    line.extend(["--context", "32", "--steps", "8", "--checkpoint-every", "3"]);
    line
}

fn environment(server: &S3) -> Vec<(&str, &str)> {
    vec![
        ("AWS_ENDPOINT", &server.url),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "nowhere"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ]
}

fn train<'a>(line: &[&'a str]) -> Vec<&'a str> {
    ["train"].iter().chain(line).copied().collect()
}

/// Weights and moments at the end of the undisturbed training, written to a directory.
fn undisturbed(dir: &TempDir, data: &Path) -> [Vec<u8>; 2] {
    let whole = dir.join("whole");
    train_group(&train_args(&options(data, whole.to_str().unwrap())), 1, 1, None).remove(0).1.unwrap();
    ["model", "optimizer"]
        .map(|name| fs::read(whole.join(format!("step-000008/{name}.safetensors"))).unwrap())
}

/// The same of what a server has.
fn ended(server: &S3) -> [Vec<u8>; 2] {
    let keys = server.keys();
    ["model.safetensors", "optimizer.safetensors"].map(|name| {
        let is_it = |key: &&String| key.contains("step-000008/") && key.ends_with(name);
        server.object(keys.iter().find(is_it).unwrap_or_else(|| panic!("{keys:?}")))
    })
}

#[test]
fn a_stopped_training_continues_from_a_store_to_the_bits_of_an_uninterrupted_one() {
    let dir = TempDir::new();
    let data = dir.text();
    let expected = undisturbed(&dir, &data);

    let url = format!("file://{}", dir.join("objects").display());
    let args = train_args(&options(&data, &url));
    for (_, result) in train_group(&args, 2, 1, Some(4)) {
        assert_eq!(result.unwrap_err().to_string(), "stopped at step 5 of 8, checkpoint written");
    }
    train_group(&args, 1, 1, None).remove(0).1.unwrap();
    let step = dir.join("objects/step-000008");
    let folder = fs::read_dir(step).unwrap().flatten().map(|entry| entry.path()).find(|path| path.is_dir());
    let read = |name| fs::read(folder.as_ref().unwrap().join(format!("{name}.safetensors"))).unwrap();
    assert!(["model", "optimizer"].map(read) == expected);
}

#[test]
fn a_process_that_is_killed_while_it_uploads_goes_on_from_the_checkpoint_before() {
    let (dir, server) = (TempDir::new(), S3::start());
    let data = dir.text();
    let expected = undisturbed(&dir, &data);
    let run_dir = dir.join("");
    let mut environment = environment(&server);
    environment.push(("AQUIFER_RUN_DIR", run_dir.to_str().unwrap()));
    let every = ["--checkpoint-every", "1"];
    let line = train(&[&options(&data, "s3://bucket/run")[..8], &every].concat());

    let (mut first, (second_begins, second)) = (None, std::sync::mpsc::channel());
    server.set(move |request| {
        let step = request.path.split('/').find(|part| part.starts_with("step-")).map(String::from);
        match request.is("PUT", "optimizer") && *first.get_or_insert_with(|| step.clone()) != step {
            true => {
                _ = second_begins.send(());
                Fault::Silent
            }
            false => Fault::None,
        }
    });
    let mut worker = Worker::spawn(&line, &environment);
    // Steps do not wait for a store that does not answer; a request is given up after 30 s.
    let start = Instant::now();
    worker.wait_for("step 8/8");
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    second.recv_timeout(Duration::from_secs(25)).expect("a second checkpoint");
    worker.signal("KILL");
    assert_eq!(worker.end().code, None);
    let keys = server.keys();
    let manifests: Vec<_> = keys.iter().filter(|key| key.ends_with("manifest.json")).collect();
    assert_eq!(manifests, ["run/step-000001/manifest.json"]);
    let begun = |key: &&String| !key.contains("step-000001/") && key.ends_with("model.safetensors");
    assert!(keys.iter().any(|key| begun(&key)), "{keys:?}");

    server.set(|_| Fault::None);
    let ended_well = Worker::spawn(&line, &environment).end();
    assert_eq!(ended_well.code, Some(0), "{ended_well:?}");
    assert!(ended_well.stdout.contains("from step 1"), "{ended_well:?}");
    assert!(!ended_well.stdout.contains("skipped"), "{ended_well:?}");
    assert!(ended(&server) == expected);
}

#[test]
fn a_store_that_is_away_for_a_while_is_said_and_costs_no_steps() {
    let (dir, server) = (TempDir::new(), S3::start());
    let data = dir.text();
    let expected = undisturbed(&dir, &data);
    let mut faults = 10;
    server.set(move |request| match request.is("PUT", "model.safetensors") && 0 < faults {
        true => {
            faults -= 1;
            Fault::Status(503)
        }
        false => Fault::None,
    });
    let ended_well = Worker::spawn(&train(&options(&data, "s3://bucket/run")), &environment(&server)).end();
    assert_eq!(ended_well.code, Some(0), "{ended_well:?}");
    assert!(ended_well.stdout.contains(" is not written yet: s3://bucket/run: "), "{ended_well:?}");
    assert!(ended(&server) == expected);
}

#[test]
fn a_service_takes_the_newest_checkpoint_of_a_store() {
    let (dir, server) = (TempDir::new(), S3::start());
    let data = dir.text();
    let trained = Worker::spawn(&train(&options(&data, "s3://bucket/run")), &environment(&server)).end();
    assert_eq!(trained.code, Some(0), "{trained:?}");
    let run_dir = dir.join("");
    let mut environment = environment(&server);
    environment.push(("AQUIFER_RUN_DIR", run_dir.to_str().unwrap()));
    let mut service = Worker::spawn(&["serve", "--model", "s3://bucket/run", "--port", "0"], &environment);
    let line = service.wait_for("http://");
    assert!(line.contains("run"), "{line}");
    service.signal("TERM");
    let ended = service.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    server.set(|_| Fault::Status(403));
    let refused = Worker::spawn(&["serve", "--model", "s3://bucket/run", "--port", "0"], &environment).end();
    assert!(refused.stderr.starts_with("--model is s3://bucket/run; the store refuses"), "{refused:?}");
}

#[test]
fn a_training_without_a_right_to_its_store_ends_at_once_with_a_sentence() {
    let (dir, server) = (TempDir::new(), S3::start());
    let data = dir.text();
    server.set(|_| Fault::Status(403));
    let ended = Worker::spawn(&train(&options(&data, "s3://bucket/run")), &environment(&server)).end();
    let start = "--checkpoint-dir is s3://bucket/run; the store refuses the credentials";
    assert!(ended.code == Some(1) && ended.stderr.starts_with(start), "{ended:?}");
    assert!(!format!("{ended:?}").contains(SECRET));

    let line = train(&options(&data, "s3://key:hidden@bucket/run"));
    let ended = Worker::spawn(&line, &[]).end();
    let start = "--checkpoint-dir is s3://…@bucket/run; it is a directory, or s3://BUCKET/PREFIX, ";
    assert!(ended.code == Some(2) && ended.stderr.starts_with(start), "{ended:?}");
}

#[test]
fn who_is_asked_to_stop_does_not_wait_for_a_store_that_does_not_answer() {
    let (dir, server) = (TempDir::new(), S3::start());
    let data = dir.text();
    let training = train(&options(&data, "s3://bucket/run"));
    let service = vec!["serve", "--model", "s3://bucket/run", "--port", "0"];
    for (line, code) in [(training, 143), (service, 0)] {
        let (asked, asks) = std::sync::mpsc::channel();
        server.set(move |_| {
            _ = asked.send(());
            Fault::Silent
        });
        let worker = Worker::spawn(&line, &environment(&server));
        asks.recv_timeout(Duration::from_secs(60)).expect("a request");
        let start = Instant::now();
        worker.signal("TERM");
        let ended = worker.end();
        // A request is given up after 30 s, and tried again.
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}: {ended:?}", start.elapsed());
        assert_eq!(ended.code, Some(code), "{ended:?}");
    }
}
