//! What `deploy/` has for who installs Aquifer: a file of every setting, and units of systemd. `tests/vm` runs the units.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use aquifer_cli::client::Global;
use aquifer_cli::{agent, server};
use clap::{Args, FromArgMatches};

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

/// The settings of a table, those that are commented out as well.
fn settings(text: &str) -> toml::Table {
    let begins_setting = |line: &str| line.starts_with(|first: char| first.is_ascii_lowercase());
    let uncommented = |line: &str| match line.strip_prefix('#').filter(|rest| begins_setting(rest)) {
        Some(setting) if setting.split_once(" = \"").is_some() => setting.to_string(),
        _ => line.to_string(),
    };
    text.lines().map(uncommented).collect::<Vec<_>>().join("\n").parse().expect("TOML")
}

/// The flags of a daemon that may stand in its table.
fn flags<A: Args>() -> BTreeSet<String> {
    let command = A::augment_args(clap::Command::new("daemon"));
    let flags = command.get_arguments().filter_map(|flag| flag.get_long().map(String::from));
    let global = ["token-file", "tls-cert", "tls-key"].map(String::from);
    flags.filter(|flag| flag != "config").chain(global).collect()
}

fn parsed<A: Args + FromArgMatches>(arguments: &[&str]) -> A {
    let command = A::augment_args(clap::Command::new("daemon"));
    A::from_arg_matches(&command.get_matches_from(arguments)).expect("arguments")
}

#[test]
fn the_file_of_settings_has_every_setting_and_daemons_take_it() {
    let text = fs::read_to_string(deploy("aquifer.toml")).expect("the file");
    let tables = settings(&text);
    let names = |table: &str| -> BTreeSet<String> {
        tables[table].as_table().expect("a table").keys().cloned().collect()
    };
    assert_eq!(names("server"), flags::<server::Args>());
    let of_agent = flags::<agent::Args>().into_iter().chain(["server".into(), "tls-ca".into()]).collect();
    assert_eq!(names("agent"), of_agent);

    let dir = tempfile::tempdir().expect("a directory");
    let (config, token) = (dir.path().join("aquifer.toml"), dir.path().join("token"));
    fs::write(&token, "a-token-of-32-characters-or-more").expect("a token");
    // Of files only the token is here.
    let mut here = String::new();
    for (name, table) in &tables {
        here += &format!("[{name}]\n");
        for (name, value) in table.as_table().expect("a table") {
            let value = value.as_str().expect("text");
            match name.as_str() {
                "token-file" => here += &format!("token-file = {:?}\n", token.display().to_string()),
                _ if value.starts_with("/etc/") || name.starts_with("etcd-") => (),
                _ => here += &format!("{name} = {value:?}\n"),
            }
        }
    }
    fs::write(&config, here).expect("a file");
    let config = config.display().to_string();
    let global: Global = parsed(&["daemon"]);
    let resolved = parsed::<server::Args>(&["daemon", "--config", &config]).resolve(&global);
    resolved.unwrap_or_else(|error| panic!("server: {error:?}"));
    let resolved = parsed::<agent::Args>(&["daemon", "--config", &config]).resolve(&global);
    let resolved = resolved.unwrap_or_else(|error| panic!("agent: {error:?}"));
    assert_eq!(resolved.config.workers_group, Some("/system.slice/aquifer-workers.service".into()));
}

#[test]
fn systemd_and_the_daemons_take_the_units() {
    let aquifer = env!("CARGO_BIN_EXE_aquifer");
    let dir = tempfile::tempdir().expect("a directory");
    let mut units = Vec::new();
    for entry in fs::read_dir(deploy("systemd")).expect("units").map(|entry| entry.expect("a unit")) {
        let unit = fs::read_to_string(entry.path()).expect("a unit").replace("/usr/bin/aquifer", aquifer);
        if let Some(line) = unit.lines().find_map(|line| line.strip_prefix("ExecStart="))
            && line.starts_with(aquifer)
        {
            let help = Command::new(aquifer).args(line.split(' ').skip(1)).arg("--help").output();
            let help = help.expect("it starts");
            assert!(help.status.success(), "{line}: {}", String::from_utf8_lossy(&help.stderr));
        }
        let path = dir.path().join(entry.file_name());
        fs::write(&path, unit).expect("a unit");
        units.push(path);
    }
    assert_eq!(units.len(), 3);
    match Command::new("systemd-analyze").arg("verify").args(&units).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Not captured, as what is printed would be.
            _ = writeln!(io::stderr(), "skipped: systemd reads the units (there is no systemd-analyze)");
        }
        verified => {
            let verified = verified.expect("systemd-analyze");
            let said = String::from_utf8_lossy(&verified.stderr);
            assert!(verified.status.success() && said.is_empty(), "{said}");
        }
    }
}
