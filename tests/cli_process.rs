//! The binary without a scheduler: exit codes, what it says on which stream, and what can be done without one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, fs};

fn aquifer(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_aquifer"))
        .args(arguments)
        .env_remove("AQUIFER_SERVER")
        .env_remove("AQUIFER_TOKEN")
        .env("USER", "ada")
        .env("FROM_SHELL", "a b")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_missing_scheduler_is_exit_code_3_and_says_how_to_start_one() {
    for arguments in [&["jobs"][..], &["--json", "nodes"], &["explain", "job-7"], &["watch"]] {
        // Nothing listens on the port of the discard service, nor ever for a scheduler.
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--server", "127.0.0.1:9"]).collect();
        let (code, out, err) = told(&aquifer(&arguments, ""));
        assert_eq!((code, &out[..]), (Some(3), ""), "{arguments:?}: {err}");
        assert_eq!(
            err,
            "aquifer: no scheduler answers at http://127.0.0.1:9: Connection refused (os error 111)\n  \
             is it running? start one with `aquifer up`, or name another with --server or AQUIFER_SERVER\n"
        );
    }
}

#[test]
fn wrong_use_is_exit_code_2() {
    for arguments in [
        &["dance"][..],
        &[],
        &["run"],
        &["run", "true"],
        &["job", "job-0"],
        &["jobs", "--state", "happy"],
        &["run", "--cpus", "many", "--", "true"],
        &["run", "--memory", "20", "--", "true"],
        &["run", "--devices", "0", "--class", "h200", "--", "true"],
        &["run", "--env-from-shell", "NO_SUCH_VARIABLE", "--", "true"],
        &["jobs", "--server", "ftp://head:7700"],
        &["jobs", "--token-file", "/no/such/file"],
        &["queues", "set", "a", "--weight", "0"],
        &["prices", "set", "h100", "0"],
        &["prices", "set", "h100", "10000.001"],
        &["submit", "a.yaml", "b.yaml", "--key", "k"],
    ] {
        let (code, out, err) = told(&aquifer(arguments, ""));
        assert_eq!((code, &out[..]), (Some(2), ""), "{arguments:?}: {err}");
        assert!(!err.is_empty() && !err.contains("panicked"), "{arguments:?}: {err}");
    }
}

#[test]
fn flags_say_what_their_values_look_like() {
    let (_, _, err) = told(&aquifer(&["run", "--time-limit", "90", "--", "true"], ""));
    assert!(err.contains("expected a duration with its unit, like 500ms, 90s, 30m"), "{err}");
}

#[test]
fn a_directory_that_is_not_there_is_no_machine_without_devices() {
    for (flag, command) in [("--sysfs", "devices"), ("--library-path", "devices"), ("--sysfs", "doctor")] {
        let (code, out, err) = told(&aquifer(&[command, flag, "/no/such"], ""));
        assert_eq!((code, &out[..]), (Some(2), ""), "{command} {flag}");
        assert_eq!(
            err,
            format!("aquifer: {flag}: /no/such is no directory\n  see `aquifer devices --help`\n")
        );
    }
    let (_, _, err) = told(&aquifer(&["devices", "--devices", "gpu"], ""));
    assert!(
        err.contains("a vendor (nvidia, amd, ascend, cambricon, hygon, ") && err.contains("t-head)"),
        "{err}"
    );
}

#[test]
fn a_bad_file_is_exit_code_1_and_names_file_line_and_key() {
    let (code, out, err) = told(&aquifer(&["submit", "-"], "command: a\nranks: many\n"));
    assert_eq!((code, &out[..]), (Some(1), ""));
    assert_eq!(
        err,
        "aquifer: standard input, line 2: ranks is \"many\": expected a whole number from 1 to 65,536\n  \
         docs/job-file.md has every key with its limits; `aquifer submit --dry-run` checks without sending\n"
    );
    let (code, _, err) = told(&aquifer(&["submit", "/no/such/file"], ""));
    assert_eq!(code, Some(1));
    assert!(err.starts_with("aquifer: /no/such/file: No such file or directory"), "{err}");
}

#[test]
fn a_dry_run_needs_no_scheduler_and_prints_every_default() {
    let flags = [
        "submit",
        "--dry-run",
        "-",
        "--ranks=2",
        "--class=h200",
        "--env-from-shell=FROM_SHELL",
        "--label=zone=a",
    ];
    let (code, out, err) = told(&aquifer(&flags, "command: [a]\nworking_dir: x\nenv: {A: 1}\n"));
    assert_eq!(
        (code, &err[..], &out[..]),
        (
            Some(0),
            "",
            "\
kind: command
name: a
queue: default
priority: 0
ranks: 2
devices:
  count: 1
  class: h200
cpus: 1
memory: 0
labels:
  zone: a
retries: 0
restart: gang
on_partition: stop
grace: 30s
env:
  A: '1'
  FROM_SHELL: a b
working_dir: /x
command:
- a
"
        )
    );
    let (_, out, _) = told(&aquifer(&["submit", "--dry-run", "--json", "--key=k", "-"], "command: [a]"));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json[0]["user"], "ada");
    assert_eq!(json[0]["client_key"], "k");
    assert_eq!(json[0]["roles"][0]["command"][0], "a");
}

#[test]
fn a_device_that_is_not_well_says_once_how_bad_that_is() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let faults = r#"faults = { 0 = "fell off the bus", 1 = "suspect: xid 74" }"#;
    writeln!(file, "[[device]]\nvendor = \"nvidia\"\nmodel = \"h100\"\nmemory_gib = 80\ncount = 3\n{faults}")
        .expect("devices");
    let fake = format!("fake:{}", file.path().display());
    let (code, out, err) = told(&aquifer(&["devices", "--devices", &fake], ""));
    assert_eq!(code, Some(0), "{err}");
    let states = ["  faulty: fell off the bus  ", "  suspect: xid 74  ", "  well  "];
    assert!(states.iter().all(|state| out.contains(state)), "{out}");
    assert!(!out.contains("faulty: faulty") && !out.contains("faulty: suspect"), "{out}");
}

/// As in a service or a container, where nobody logged in.
#[test]
fn without_a_name_in_the_environment_a_user_is_called_as_the_account_is() {
    let account = Command::new("id").arg("-un").output().expect("id");
    let account = String::from_utf8(account.stdout).expect("a name");
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    writeln!(file, "command: [a]").expect("a job");
    let shown = Command::new(env!("CARGO_BIN_EXE_aquifer"))
        .args(["submit", "--dry-run", "--json"])
        .arg(file.path())
        .env_remove("USER")
        .env_remove("LOGNAME")
        .output()
        .expect("aquifer");
    let (code, out, err) = told(&shown);
    assert_eq!(code, Some(0), "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(json[0]["user"], account.trim());
}

#[test]
fn flags_of_one_role_do_not_go_with_a_file_of_several() {
    let (code, _, err) = told(&aquifer(&["submit", "--dry-run", "-", "--ranks=2"], "roles: [{command: a}]"));
    assert_eq!(code, Some(2));
    assert!(err.contains("--set roles.0.ranks=4"), "{err}");
    let set = &["submit", "--dry-run", "-", "--set", "roles.0.ranks=4"];
    assert!(told(&aquifer(set, "roles: [{command: a, name: b}]")).1.contains("ranks: 4"));
}

fn commands() -> Vec<Vec<String>> {
    let list = |path: &[String]| -> Vec<String> {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let (_, help, _) = told(&aquifer(&arguments, ""));
        let part = help
            .split("Commands:\n")
            .nth(1)
            .unwrap_or_default()
            .split("\n\n")
            .next()
            .unwrap_or_default()
            .to_string();
        let names = part
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next().map(String::from));
        names.filter(|name| name != "help").collect()
    };
    let mut all = Vec::new();
    for name in list(&[]) {
        let path = vec![name];
        let below = list(&path);
        all.extend(below.into_iter().map(|name| [path.clone(), vec![name]].concat()));
        all.push(path);
    }
    all
}

/// The long-running commands have tests of their own.
const CLIENT: [&str; 29] = [
    "run",
    "submit",
    "jobs",
    "job",
    "logs",
    "cancel",
    "exec",
    "explain",
    "plan",
    "nodes",
    "node",
    "cordon",
    "drain",
    "uncordon",
    "queues",
    "prices",
    "reserve",
    "reservations",
    "unreserve",
    "overview",
    "services",
    "usage",
    "watch",
    "store",
    "debug",
    "devices",
    "doctor",
    "completions",
    "man",
];

#[test]
fn every_command_has_an_example_and_a_place_in_the_reference() {
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md")).unwrap();
    let commands: Vec<Vec<String>> =
        commands().into_iter().filter(|path| CLIENT.contains(&&path[0][..])).collect();
    assert_eq!(commands.len(), CLIENT.len() + 11, "{commands:?}");
    let mut flags = 0;
    for path in commands {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        assert!(
            docs.contains(&format!("aquifer {}", path.join(" "))),
            "docs/cli.md has no {}",
            path.join(" ")
        );
        arguments.push("--help");
        let (_, help, _) = told(&aquifer(&arguments, ""));
        if path.last().is_none_or(|name| name != "list") {
            assert!(help.contains("Example:\n  aquifer "), "{}: {help}", path.join(" "));
        }
        for word in help.lines().map(str::trim_start).filter(|line| line.starts_with('-')) {
            let flag = word.split([' ', ',', '=']).find(|word| word.starts_with("--")).unwrap();
            assert!(docs.contains(&format!("`{flag}")), "docs/cli.md has no {flag} of {}", path.join(" "));
            flags += 1;
        }
    }
    assert!(100 < flags, "{flags} flags");
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, _) = told(&aquifer(&["completions", shell], ""));
        assert_eq!(code, Some(0));
        assert!(out.contains("uncordon"), "{shell}");
    }
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("man");
    let (code, _, err) = told(&aquifer(&["man", dir.to_str().unwrap()], ""));
    assert_eq!(code, Some(0), "{err}");
    for page in ["aquifer.1", "aquifer-run.1", "aquifer-queues-set.1"] {
        assert!(fs::metadata(dir.join(page)).unwrap().len() > 500, "{page}");
    }
}

/// A reader that has seen enough, like `head`, is no error.
#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    let script = format!(
        "{} completions bash | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_aquifer")
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"0\n"[..], &b""[..]));
}
