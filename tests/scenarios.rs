//! Golden scenarios: a script, a line of dashes, and all that must be said.
//!
//! `UPDATE=1 cargo test --test scenarios` rewrites what is expected: read the difference before you commit it.

use std::fs;

use aquifer_sim::script::play;

#[test]
fn every_scenario_says_what_it_said() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut different = Vec::new();
    for path in &paths {
        let text = fs::read_to_string(path).unwrap();
        let (script, expected) = text.split_once("----\n").unwrap_or((&text, ""));
        let actual = play(script).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if std::env::var("UPDATE").is_ok() {
            fs::write(path, format!("{script}----\n{actual}")).unwrap();
        } else if expected != actual {
            println!("{}", path.display());
            difference(expected, &actual);
            different.push(path);
        }
    }
    println!("{} scenarios", paths.len());
    assert!(!paths.is_empty() && different.is_empty(), "{different:?}");
}

/// Prints the lines from the first one that differs.
fn difference(expected: &str, actual: &str) {
    let same = expected.lines().zip(actual.lines()).take_while(|(a, b)| a == b).count();
    expected.lines().take(same).skip(same.saturating_sub(3)).for_each(|line| println!("  {line}"));
    expected.lines().skip(same).take(8).for_each(|line| println!("- {line}"));
    actual.lines().skip(same).take(8).for_each(|line| println!("+ {line}"));
}
