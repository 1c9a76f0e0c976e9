//! Job files: what they mean, what they refuse, and that both can be read back.

use std::path::{Path, PathBuf};
use std::{env, fs};

use aquifer_cli::job_file::{self, Context, FileError, JobFile};
use aquifer_proto::core::{JobId, JobSpec, Program, Vendor};
use aquifer_proto::v1;

fn context() -> Context {
    Context { base: "/home/ada/work".into(), user: "ada".into(), client_key: "k".into() }
}

fn wire(text: &str, sets: &[&str]) -> Result<v1::JobSpec, FileError> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    JobFile::parse(text, &sets)?.spec(&context())
}

fn spec(text: &str) -> Result<JobSpec, FileError> {
    job_file::check(&wire(text, &[])?)
}

fn examples() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples");
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|ext| ext == "yaml")).collect();
    files.sort();
    files
}

/// Every sentence that a user can be told, as `tests/cli/job_file_errors.txt` has it. `UPDATE=1` rewrites it.
#[test]
fn every_refusal_is_a_sentence_that_names_line_and_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/job_file_errors.txt");
    let golden = fs::read_to_string(&path).unwrap();
    let mut written = Vec::new();
    for block in golden.trim_end().split("\n====\n") {
        let (text, _) = block.split_once("\n----\n").unwrap_or((block, ""));
        let error = spec(text).expect_err(text);
        written.push(format!("{text}\n----\n{error}"));
    }
    let written = written.join("\n====\n") + "\n";
    assert!(30 < written.matches("----").count(), "the golden file has lost its cases");
    if env::var_os("UPDATE").is_some() {
        fs::write(path, written).unwrap();
        return;
    }
    assert_eq!(written, golden);
}

#[test]
fn the_smallest_file_takes_every_default() {
    let spec = spec("command: [true]").unwrap();
    let role = &spec.roles[0];
    assert_eq!((&*spec.name, &*spec.user, &*spec.queue, &*spec.client_key), ("true", "ada", "default", "k"));
    assert_eq!((spec.priority, spec.retries, spec.grace_ms, spec.time_limit_ms), (0, 0, 30_000, None));
    assert_eq!((role.ranks, role.request.cpus_milli, role.request.memory_bytes), (1, 1000, 0));
    assert!(role.request.devices.is_empty() && spec.env.is_empty() && spec.working_dir.is_none());
}

#[test]
fn training_and_serving_ask_for_a_device_and_are_tried_again() {
    let train = spec("train: {data: docs}\nranks: 16").unwrap();
    assert_eq!((train.roles[0].request.devices[0].count, train.retries), (1, 3));
    let Program::Train(options) = &train.roles[0].program else { panic!("{train:?}") };
    assert_eq!((&*options.data, &*options.model), ("/home/ada/work/docs", "tiny"));
    assert_eq!(options.batch, 16, "every rank has a sequence");
    let serve = spec("serve: {model: ./m}").unwrap();
    assert_eq!((serve.roles[0].request.devices[0].count, serve.retries), (1, 10));
    let Program::Serve(options) = &serve.roles[0].program else { panic!("{serve:?}") };
    assert_eq!((&*options.model, options.max_queue), ("/home/ada/work/m", 64));
    assert_eq!(options.kv_memory_bytes, None);
    let serve = spec("serve: {model: ./m, kv_memory: 1.5GiB}").unwrap();
    let Program::Serve(options) = &serve.roles[0].program else { panic!("{serve:?}") };
    assert_eq!(options.kv_memory_bytes, Some(3 << 29));
    let error = spec("serve: {model: ./m, kv_memory: 512KiB}").unwrap_err();
    assert!(error.to_string().contains("serve.kv_memory is 524288: expected 1 MiB to 16 TiB"), "{error}");
    assert!(spec("train: {data: /d}\ndevices: 0").unwrap().roles[0].request.devices.is_empty());
}

#[test]
fn rounds_have_a_replica_for_each_rank_and_a_batch_that_these_share() {
    let rounds = spec("train: {data: /d, inner_steps: 50}\nranks: 3").unwrap();
    let Program::Train(options) = &rounds.roles[0].program else { panic!("{rounds:?}") };
    assert_eq!((options.inner_steps, options.replicas, options.batch), (50, 3, 9));
    let error = spec("train: {data: /d, replicas: 4}").unwrap_err().to_string();
    assert!(error.contains("replicas is 4: expected 0 where inner_steps is"), "{error}");
}

#[test]
fn devices_are_a_number_a_mapping_or_alternatives() {
    let devices =
        |text: &str| spec(&format!("command: a\ndevices: {text}")).unwrap().roles[0].request.devices.clone();
    assert_eq!(devices("3")[0].count, 3);
    assert_eq!(devices("{class: H200}")[0].model.as_deref(), Some("h200"));
    let one = &devices("{count: 2, vendor: nvidia, memory: 80GiB}")[0];
    assert_eq!((one.count, one.vendor, one.memory_bytes), (2, Some(Vendor::Nvidia), 80 << 30));
    let slice = |text: &str| {
        let device = devices(&format!("{{slice: {{{text}}}}}")).remove(0);
        (
            device.slice.unwrap().compute_milli,
            device.slice.unwrap().memory_bytes,
            device.isolation.to_string(),
        )
    };
    assert_eq!(slice("compute: 40%, memory: 20GiB"), (400, 20 << 30, "advisory".into()));
    assert_eq!(slice("profile: 1g.10gb, isolation: hard"), (142, 8960 << 20, "hard".into()));
    let wrong =
        |text: &str| spec(&format!("command: a\ndevices:\n  slice: {{{text}}}")).unwrap_err().to_string();
    assert!(
        wrong("profile: vir02")
            .contains("devices.slice.profile is \"vir02\": expected a profile of NVIDIA (1g.10gb), ")
    );
    assert!(
        wrong("profile: cpx, memory: 1GiB").contains("devices has slice.profile beside compute or memory")
    );
    assert!(wrong("profil: cpx").contains("profil"), "{}", wrong("profil: cpx"));
    let any = devices("{any_of: [{class: h200}, {vendor: ascend, count: 2}]}");
    assert_eq!((any.len(), any[0].count, any[1].count), (2, 1, 2));
}

#[test]
fn values_of_texts_are_taken_as_they_are_written() {
    let spec =
        spec("command: [sleep, 5, 1e3, 010, no, ~]\nenv: {A: 010, B: yes, C: 3.10, D: , E: null}").unwrap();
    let Program::Command(arguments) = &spec.roles[0].program else { panic!("{spec:?}") };
    assert_eq!(arguments.iter().map(|a| &**a).collect::<Vec<_>>(), ["sleep", "5", "1e3", "010", "no", "~"]);
    let env: Vec<(&str, &str)> = spec.env.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(env, [("A", "010"), ("B", "yes"), ("C", "3.10"), ("D", ""), ("E", "null")]);
}

#[test]
fn a_line_of_text_is_run_by_the_shell() {
    let spec = spec("command: echo one; exit 3").unwrap();
    let Program::Command(arguments) = &spec.roles[0].program else { panic!("{spec:?}") };
    assert_eq!(arguments.iter().map(|a| &**a).collect::<Vec<_>>(), ["sh", "-c", "echo one; exit 3"]);
}

#[test]
fn relative_paths_are_meant_against_the_directory_of_the_file() {
    let text = "command: a\nworking_dir: .\ncheckpoint_dir: ../ckpt";
    let spec = spec(text).unwrap();
    assert_eq!(spec.working_dir.as_deref(), Some("/home/ada/work"));
    assert_eq!(spec.checkpoint_dir.as_deref(), Some("/home/ada/work/../ckpt"));
}

#[test]
fn checkpoints_may_be_in_an_object_store() {
    for url in ["s3://bucket/run/7", "gs://bucket", "az://container/a", "file:///data/ckpt"] {
        let train = spec(&format!("train: {{data: /d}}\ncheckpoint_dir: {url}")).unwrap();
        assert_eq!(train.checkpoint_dir.as_deref(), Some(url));
        let serve = spec(&format!("serve: {{model: {url}}}")).unwrap();
        let Program::Serve(options) = &serve.roles[0].program else { panic!("{serve:?}") };
        assert_eq!(&*options.model, url);
    }
    for (url, shown) in [
        ("ftp://a/b", "ftp://a/b"),
        ("s3://", "s3://"),
        ("s3:///b", "s3:///b"),
        ("file://host/a", "file://host/a"),
        ("s3://key:hidden@bucket/a", "s3://…@bucket/a"),
        ("s3://bucket/a?sig=hidden", "s3://bucket/a"),
    ] {
        let error = spec(&format!("train: {{data: /d}}\ncheckpoint_dir: {url}")).unwrap_err().to_string();
        let start =
            format!("checkpoint_dir is {shown:?}: expected an absolute path, or s3://BUCKET/PREFIX, ");
        assert!(error.contains(&start) && !error.contains("hidden"), "{error}");
    }
}

#[test]
fn settings_win_over_the_file() {
    let text = "# training\ntrain: {data: /d, steps: 10}\nranks: 1";
    let set = wire(text, &["train.steps=400", "ranks=2", "env.SEED=7", "train.batch=4", "name=x"]).unwrap();
    let spec = job_file::check(&set).unwrap();
    let Program::Train(options) = &spec.roles[0].program else { panic!("{spec:?}") };
    assert_eq!((options.steps, options.batch, spec.roles[0].ranks, &*spec.name), (400, 4, 2, "x"));
    assert_eq!(&*spec.env[0].1, "7");
    let more =
        wire("command: a\nenv: {A: x}", &["env.B=010: [", "devices.class=h200", "devices.count=2"]).unwrap();
    assert_eq!((&more.env["A"][..], &more.env["B"][..]), ("x", "010: ["));
    let device = &more.roles[0].request.as_ref().unwrap().devices[0];
    assert_eq!((device.count, &device.model[..]), (2, "h200"));
    let roles = "roles: [{command: a}, {command: b}]";
    assert_eq!(wire(roles, &["roles.1.ranks=3"]).unwrap().roles[1].ranks, 3);
    assert_eq!(wire("", &["command=[true]"]).unwrap().roles.len(), 1);
    assert_eq!(
        wire("command: a", &["devices={count: 2}"]).unwrap().roles[0].request.as_ref().unwrap().devices[0]
            .count,
        2
    );
}

#[test]
fn a_setting_that_cannot_be_is_named() {
    let error = |sets: &[&str]| wire("command: a\nlabels: {a: b}", sets).unwrap_err().to_string();
    assert_eq!(error(&["ranks"]), "--set ranks: expected KEY=VALUE, like train.steps=400");
    assert_eq!(
        error(&["ranks=many"]),
        "--set ranks=many: ranks is \"many\": expected a whole number from 1 to 65,536"
    );
    assert!(
        error(&["rank=1"])
            .starts_with("--set rank=1: rank is no key: did you mean ranks? known are kind, name")
    );
    assert_eq!(error(&["roles.0.ranks=1"]), "--set roles.0.ranks=1: the file has no roles");
    assert_eq!(error(&["a..b=1"]), "--set a..b=1: a part of the key is empty");
    assert_eq!(
        error(&["command.x=1"]),
        "--set command.x=1: command is a mapping: expected a program with its arguments, like [python, train.py], or a line for the shell"
    );
    let roles = wire("roles: [{command: a}]", &["roles.1.ranks=2"]).unwrap_err().to_string();
    assert_eq!(roles, "--set roles.1.ranks=2: expected the position of a role, from 0 to 0");
    assert_eq!(error(&["name=[a"]), "--set name=[a: the value is not YAML");
}

#[test]
fn a_served_job_stands_for_its_checkpoints() {
    let mut wire = wire("serve: {model: job-7}", &[]).unwrap();
    assert_eq!(job_file::unresolved(&wire), [JobId(7)]);
    job_file::resolve(&mut wire, JobId(7), "/data/ckpt/7");
    assert!(job_file::unresolved(&wire).is_empty());
    let spec = job_file::check(&wire).unwrap();
    let Program::Serve(options) = &spec.roles[0].program else { panic!("{spec:?}") };
    assert_eq!(&*options.model, "/data/ckpt/7");
}

#[test]
fn anchors_and_merges_work_and_bombs_do_not() {
    let text = "roles:\n  - &a {name: a, ranks: 2, command: x}\n  - *a\n";
    assert_eq!(spec(text).unwrap().ranks(), 4);
    let mut bomb = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_string();
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        bomb += &format!("b{level}: &a{level} [{before}]\n");
    }
    assert!(spec(&bomb).is_err());
    assert!(wire(&bomb, &["name=x"]).is_err());
    assert!(spec(&format!("env: {}", "[".repeat(10_000))).is_err());
    assert!(spec(&format!("command: {}{}", "[".repeat(1000), "]".repeat(1000))).is_err());
}

#[test]
fn the_examples_are_accepted_by_the_border() {
    let files = examples();
    let names: Vec<String> =
        files.iter().map(|file| file.file_stem().unwrap().to_string_lossy().into()).collect();
    for expected in ["array", "command", "roles", "serve", "train"] {
        assert!(names.iter().any(|name| name == expected), "{expected}: {names:?}");
    }
    for file in files {
        let file_text = fs::read_to_string(&file).unwrap();
        let parsed =
            JobFile::parse(&file_text, &[]).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let wire = parsed.spec(&context()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        aquifer_proto::border::job_spec(&wire).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

/// What `submit --dry-run` prints can be submitted, and asks for the same.
#[test]
fn what_is_printed_with_all_defaults_asks_for_the_same() {
    let more = [
        "command: [a, 'b c', \"\\n\", '', '5', 'null', '~']\nenv: {A: '1', B: 'a: b', C: \"x\\ty\"}\narray: 5-9:2",
        "train: {data: /d, inner_steps: 7, batch: 12, micro_batch: 3, replicas: 4}\nranks: 2",
        "train: {data: /d, learning_rate: 0.1, seed: 18446744073709551615}\ntime_limit: 1h30m500ms\nmemory: 1025MiB",
        "roles: [{name: a, command: x, cpus: 0.001}, {name: b, serve: {model: /m}, devices: {any_of: [{}, {count: 3}]}}]",
        "name: '7'\nqueue: '1e3'\ncommand: [true]\ndevices: {vendor: moore-threads}\nafter: [3, job-4]\npriority: -7",
        "command: a\ntopology: {require: zone, prefer: [node, '7']}\nspread: rack\nranks: 2\ndevices: {count: 2, island: require}",
        "command: a\nimage: app\nmounts: [/data, '/srv/my sets, \"x\":/sets:ro', '/a/b:ro']",
        "topology: {prefer: rack}\nroles: [{command: a, apart: node, ranks: 3}, {command: b, spread: x}]",
    ];
    let mut texts: Vec<String> = examples().iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    texts.extend(more.map(String::from));
    for text in texts {
        let asked = spec(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let printed = job_file::file_of(&asked).text();
        let again = spec(&printed).unwrap_or_else(|error| panic!("{printed}\n{error}"));
        assert_eq!(asked, again, "{printed}");
    }
}

/// Every key that the parser knows has a row in the reference, and the other way round.
#[test]
fn the_reference_has_every_key() {
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/job-file.md")).unwrap();
    let known = |text: &str| -> Vec<String> {
        let error = JobFile::parse(text, &[]).unwrap_err().text;
        error.split_once("known are ").unwrap().1.split(", ").map(String::from).collect()
    };
    let mut keys = Vec::new();
    for (prefix, text) in [
        ("", "zzz: 1"),
        ("roles[].", "roles: [{zzz: 1}]"),
        ("train.", "train: {zzz: 1}"),
        ("serve.", "serve: {zzz: 1}"),
        ("devices.", "devices: {zzz: 1}"),
        ("topology.", "topology: {zzz: 1}"),
    ] {
        keys.extend(known(text).into_iter().map(|key| format!("{prefix}{key}")));
    }
    assert!(45 < keys.len(), "{keys:?}");
    for key in &keys {
        assert!(docs.contains(&format!("| `{key}` |")), "docs/job-file.md has no row for {key}");
    }
    for line in docs.lines().filter_map(|line| line.strip_prefix("| `")) {
        let key = line.split('`').next().unwrap();
        assert!(
            keys.iter().any(|known| known == key),
            "docs/job-file.md has a row for {key}, which is no key"
        );
    }
}
