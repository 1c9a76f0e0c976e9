//! Settings of the daemons: flags over environment over one TOML file over defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use opentelemetry_sdk::trace::SdkTracer;
use serde::Deserialize;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::output::Failure;

/// The TOML file: a table for each daemon, with the names of its flags.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SettingsFile {
    /// Of `aquifer server`.
    pub server: BTreeMap<String, toml::Value>,
    /// Of `aquifer agent`.
    pub agent: BTreeMap<String, toml::Value>,
    /// Of `aquifer gateway`.
    pub gateway: BTreeMap<String, toml::Value>,
    /// Of `aquifer dashboard`.
    pub dashboard: BTreeMap<String, toml::Value>,
}

/// One daemon's table, from which settings are taken one by one.
#[derive(Debug)]
pub struct Settings {
    table: BTreeMap<String, toml::Value>,
    origin: String,
}

impl Settings {
    /// Reads the table of a daemon; without a file, there is nothing in it.
    ///
    /// # Errors
    /// When the file cannot be read or is no such TOML.
    pub fn read(
        file: Option<&Path>,
        table: impl FnOnce(SettingsFile) -> BTreeMap<String, toml::Value>,
    ) -> Result<Settings, Failure> {
        let Some(path) = file else { return Ok(Settings { table: BTreeMap::new(), origin: String::new() }) };
        let origin = path.display().to_string();
        let wrong =
            |why: String| Failure::usage(format!("{origin}: {why}"), "Mend the file, or leave out --config.");
        let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let file: SettingsFile = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        Ok(Settings { table: table(file), origin })
    }

    /// The setting: the flag's value if it was given, else the file's, else the default, read by `parse`.
    ///
    /// # Errors
    /// Names the setting, its value and what is allowed.
    pub fn take<T>(
        &mut self,
        name: &str,
        flag: Option<&String>,
        default: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Failure> {
        let in_file = self.table.remove(name);
        let (text, origin) = match (flag, in_file) {
            (Some(flag), _) => (flag.clone(), format!("--{name}")),
            (None, Some(value)) => (text_of(value), format!("{}: {name}", self.origin)),
            (None, None) => (default.into(), name.into()),
        };
        parse(&text).map_err(|why| {
            Failure::usage(format!("{origin} is {text:?}: {why}"), "See `--help` for what is allowed.")
        })
    }

    /// The setting, if it was given anywhere.
    ///
    /// # Errors
    /// As [`Settings::take`].
    pub fn take_optional<T>(
        &mut self,
        name: &str,
        flag: Option<&String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        if flag.is_none() && !self.table.contains_key(name) {
            return Ok(None);
        }
        self.take(name, flag, "", parse).map(Some)
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// Names a setting of the file that does not exist.
    pub fn finish(self) -> Result<(), Failure> {
        match self.table.keys().next() {
            None => Ok(()),
            Some(name) => Err(Failure::usage(
                format!("{}: there is no setting {name:?}", self.origin),
                "Settings have the names of the flags; see `--help`.",
            )),
        }
    }
}

fn text_of(value: toml::Value) -> String {
    match value {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        other => format!("a {}", other.type_str()),
    }
}

/// A setting that names a file.
///
/// # Errors
/// As [`Settings::take`].
pub fn file(settings: &mut Settings, name: &str, flag: &Option<PathBuf>) -> Result<Option<PathBuf>, Failure> {
    let flag = flag.as_ref().map(|file| file.display().to_string());
    settings.take_optional(name, flag.as_ref(), |text| Ok(PathBuf::from(text)))
}

/// The user's directory for data of `aquifer`.
pub fn data_dir() -> PathBuf {
    let of = |variable: &str| env::var_os(variable).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let share = of("XDG_DATA_HOME").or_else(|| of("HOME").map(|home| home.join(".local/share")));
    share.unwrap_or_else(|| "/var/lib".into()).join("aquifer")
}

/// The secret of the pool: from a file, or from `AQUIFER_TOKEN`.
///
/// # Errors
/// When the file cannot be read or is empty.
pub fn token(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let token = match file {
        None => env::var("AQUIFER_TOKEN").ok(),
        Some(path) => Some(fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("token file {}: {error}", path.display()), "Name a file that can be read.")
        })?),
    };
    let token = token.map(|token| token.trim().to_string());
    match token {
        Some(token) if token.is_empty() => {
            Err(Failure::usage("the token is empty", "Write a secret into it: `openssl rand -hex 32`."))
        }
        token => Ok(token),
    }
}

/// Starts logging to standard error: one line an event. Spans go to a collector, if there is a tracer for them.
///
/// # Errors
/// The level cannot be read.
pub fn start_logging(format: &str, level: &str, spans: Option<SdkTracer>) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(level).map_err(|error| {
        Failure::usage(format!("--log-level is {level:?}: {error}"), "Try `info`, `debug` or `warn`.")
    })?;
    // Spans are no lines.
    let filter = filter.add_directive("aquifer::span=off".parse().expect("a directive"));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        "json" => lines.json().boxed(),
        _ => lines.with_ansi(false).with_target(false).boxed(),
    };
    let spans = spans.map(|tracer| {
        let only = Targets::new().with_target("aquifer::span", LevelFilter::INFO);
        tracing_opentelemetry::layer().with_tracer(tracer).with_filter(only)
    });
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).init();
    Ok(())
}

/// Waits for SIGINT or SIGTERM.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
    }
}
