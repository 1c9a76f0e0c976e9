//! The rules of the house that a compiler does not check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Files that are longer than the guideline; none may be added. One that was split leaves the list.
const LONG: [&str; 1] = ["agent/src/launcher.rs"];

/// Lines of a file, at most.
const MOST_LINES: usize = 600;

/// Source files below a directory of the project, with their paths from its root.
fn sources(below: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut directories = vec![Path::new(ROOT).join(below)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                directories.push(path);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).expect("text");
                let path = path.strip_prefix(ROOT).expect("below the root").to_string_lossy().into_owned();
                found.push((path, text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no sources below {below:?}");
    found
}

fn read(path: impl Into<PathBuf>) -> String {
    let path = Path::new(ROOT).join(path.into());
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Crates of the project that a manifest names under one kind of dependencies.
fn dependencies(manifest: &str, kind: &str) -> BTreeSet<String> {
    let manifest: toml::Table = toml::from_str(&read(format!("{manifest}/Cargo.toml"))).expect("TOML");
    let table = manifest.get(kind).and_then(toml::Value::as_table);
    table.into_iter().flat_map(toml::Table::keys).cloned().collect()
}

fn ours(manifest: &str, kind: &str) -> BTreeSet<String> {
    dependencies(manifest, kind).into_iter().filter(|name| name.starts_with("aquifer-")).collect()
}

#[test]
fn crates_depend_on_each_other_as_the_design_has_it() {
    let allowed: BTreeMap<&str, &[&str]> = [
        ("scheduler/core", &[][..]),
        ("scheduler/sim", &["aquifer-core"]),
        ("gateway", &[]),
        ("worker", &[]),
        ("proto", &["aquifer-core"]),
        ("agent", &["aquifer-core", "aquifer-proto"]),
        ("scheduler", &["aquifer-core", "aquifer-proto"]),
        (
            ".",
            &[
                "aquifer-agent",
                "aquifer-core",
                "aquifer-gateway",
                "aquifer-proto",
                "aquifer-scheduler",
                "aquifer-sim",
                "aquifer-worker",
            ],
        ),
    ]
    .into();
    let workspace: toml::Table = toml::from_str(&read("Cargo.toml")).expect("TOML");
    let members = workspace["workspace"]["members"].as_array().expect("members");
    let members = members.iter().map(|member| member.as_str().expect("a path")).chain(["."]);
    let members: BTreeSet<&str> = members.collect();
    assert_eq!(members, allowed.keys().copied().collect(), "every crate has its arrows");
    for (manifest, allowed) in allowed {
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for name in ours(manifest, kind) {
                assert!(allowed.contains(&&name[..]), "{manifest} must not depend on {name} ({kind})");
            }
        }
    }
    assert_eq!(dependencies("scheduler/core", "dependencies").len(), 0, "the core needs std alone");
    assert_eq!(ours(".", "dependencies").len(), 7, "the binary wires all parts together");
}

#[test]
fn generated_types_stay_at_the_border() {
    let at_the_border = |path: &str| {
        ["proto/", "cli/", "scheduler/src/grpc/", "tests/"].iter().any(|start| path.starts_with(start))
            || ["conversation.rs", "daemon.rs", "exec.rs", "session.rs"]
                .iter()
                .any(|it| path == format!("agent/src/{it}"))
            || ["runtime.rs", "runtime/session.rs"].iter().any(|it| path == format!("scheduler/src/{it}"))
    };
    let mut inside = 0;
    for (path, text) in sources("") {
        let uses = text.contains("v1::") || text.contains("aquifer_proto::v1");
        inside += usize::from(uses);
        assert!(!uses || at_the_border(&path), "{path} uses generated types");
    }
    assert!(10 < inside, "the border was looked at");
}

#[test]
fn the_core_reads_no_clock_no_file_and_no_chance() {
    let banned = [
        "SystemTime::now",
        "Instant::now",
        "std::fs",
        "std::net",
        "std::env",
        "std::thread",
        "HashMap",
        "HashSet",
        "println!",
        "unsafe ",
    ];
    for (path, text) in sources("scheduler/core/src") {
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let found = banned.iter().find(|word| line.contains(**word));
            assert_eq!(found, None, "{path}: {line}");
        }
    }
}

#[test]
fn nothing_is_left_for_later() {
    // In pieces, so that this file does not hold them.
    let unfinished = [("todo", "!("), ("unimplemented", "!("), ("dbg", "!("), ("FIX", "ME"), ("XX", "X:")];
    let homes = [("/ho", "me/"), ("/Use", "rs/"), ("/ro", "ot/")];
    for (path, text) in sources("") {
        // A test may give an example of a home.
        let homes = homes.iter().filter(|_| !path.contains("tests/"));
        for (start, end) in unfinished.iter().chain(homes) {
            let word = format!("{start}{end}");
            assert!(!text.contains(&word), "{path} holds {word:?}");
        }
    }
}

/// What documents name as `the_beginning_of_a_name_…` is a test.
#[test]
fn tests_that_documents_name_are_there() {
    let all: Vec<String> = sources("").into_iter().map(|(_, text)| text).collect();
    let is_there = |start: &str| all.iter().any(|text| text.contains(&format!("fn {start}")));
    let decisions = fs::read_dir(Path::new(ROOT).join("docs/decisions")).expect("decisions").flatten();
    let mut documents: Vec<String> =
        decisions.map(|entry| format!("docs/decisions/{}", entry.file_name().display())).collect();
    documents.extend(
        ["docs/failures.md", "docs/operations.md", "docs/devices.md", "tests/README.md"].map(Into::into),
    );
    let mut named = 0;
    for document in documents {
        for word in read(&document).split('`') {
            let Some(start) = word.strip_suffix("_…").filter(|it| 1 < it.matches('_').count()) else {
                continue;
            };
            named += 1;
            assert!(is_there(&format!("{start}_")), "{document} names {word}, and there is no such test");
        }
    }
    assert!(200 < named, "{named}");
}

#[test]
fn files_are_short_enough_to_be_read() {
    let long: BTreeSet<String> = sources("")
        .into_iter()
        .filter(|(path, text)| MOST_LINES < text.lines().count() && !path.contains("/tests/"))
        .map(|(path, _)| path)
        .collect();
    let known: BTreeSet<String> = LONG.iter().map(ToString::to_string).collect();
    let new: Vec<_> = long.difference(&known).collect();
    assert!(
        new.is_empty(),
        "longer than {MOST_LINES} lines: {new:?}; a folder with names would explain the parts"
    );
    let split: Vec<_> = known.difference(&long).collect();
    assert!(split.is_empty(), "no longer too long, and may leave the list: {split:?}");
}

#[test]
fn tests_wait_for_what_happens_and_are_all_run() {
    // In a harness, between two looks.
    let harnesses = ["tests/pool/process.rs", "agent/tests/fixture/mod.rs", "agent/tests/devices.rs"];
    // Faults that last.
    let harnesses = [&harnesses[..], &["tests/partition/net.rs", "tests/partition/slow.rs"]].concat();
    for (path, text) in sources("tests").into_iter().chain(sources("agent/tests")) {
        if path == "tests/tidy.rs" {
            continue;
        }
        assert!(!text.contains("#[ignore"), "{path} ignores a test");
        let sleeps = text.contains("thread::sleep") || text.contains("time::sleep");
        assert!(!sleeps || harnesses.contains(&&path[..]), "{path} sleeps");
    }
}
