//! `aquifer store`: backups of a pool, and moving it to another store.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::store::{Kind, decode_all};
use aquifer_proto::v1;
use aquifer_scheduler::grpc::ServerError;
use aquifer_scheduler::store::{Address, Contents, Embedded, EtcdAddress, Store, StoreError, backup};
use serde::Serialize;

use crate::client::{Client, Global, Patience, Pool};
use crate::etcd::EtcdArgs;
use crate::output::{Failure, Output};
use crate::{server, settings, units};

/// Back a pool up, restore it, or move it to another store
#[derive(Clone, Debug, clap::Subcommand)]
#[command(after_help = "\
Example:
  aquifer store backup pool.backup
  aquifer store restore pool.backup --to etcd://10.0.0.1:2379")]
pub enum Command {
    /// Write all that the pool keeps to a file
    ///
    /// The scheduler that runs is asked, and goes on meanwhile; with --from, the store itself is read. The file is
    /// complete or not there; it has a checksum for each record and one for the whole.
    #[command(after_help = "Example:\n  aquifer store backup pool.backup")]
    Backup(BackupArgs),
    /// Tell whether a backup is whole, and what is in it
    #[command(after_help = "Example:\n  aquifer store check pool.backup")]
    Check(CheckArgs),
    /// Put a backup in the place of what a store holds; no scheduler may run on it
    ///
    /// Workers that were started after the backup must have ended: see docs/operations.md.
    #[command(after_help = "Example:\n  aquifer store restore pool.backup --to etcd://10.0.0.1:2379")]
    Restore(RestoreArgs),
    /// Copy a pool from one store to another; no scheduler may run on either
    #[command(
        after_help = "Example:\n  aquifer store migrate /var/lib/aquifer/store.redb etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379"
    )]
    Migrate(MigrateArgs),
}

/// Arguments of `store backup`.
#[derive(Clone, Debug, clap::Args)]
pub struct BackupArgs {
    /// File to write; one that is there is replaced
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Read this store, a file or `etcd://…`, instead of asking the scheduler
    #[arg(long, value_name = "STORE")]
    pub from: Option<Address>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub etcd: EtcdArgs,
}

/// Arguments of `store check`.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Arguments of `store restore`.
#[derive(Clone, Debug, clap::Args)]
pub struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Store to restore into: a file or `etcd://…`. Default: that of `aquifer server`
    #[arg(long, env = "AQUIFER_STORE", value_name = "STORE")]
    pub to: Option<Address>,
    /// Also if the store holds jobs: they are lost
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub etcd: EtcdArgs,
}

/// Arguments of `store migrate`.
#[derive(Clone, Debug, clap::Args)]
pub struct MigrateArgs {
    /// Store to read; it stays as it is
    #[arg(value_name = "FROM")]
    pub from: Address,
    /// Store to write
    #[arg(value_name = "TO")]
    pub to: Address,
    /// Also if the store to write holds jobs: they are lost
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub etcd: EtcdArgs,
}

/// What a store or a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Number of records.
    pub records: usize,
    /// Number of jobs among them.
    pub jobs: usize,
    /// Of the last scheduler.
    pub term: u64,
    /// When the backup was made, in milliseconds since the Unix epoch; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_ms: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// The first thing that was not as it should be; then nothing was written.
pub fn run(command: &Command, global: &Global) -> Result<ExitCode> {
    let output = Output::new(global.json, global.no_color);
    let (summary, what) = match command {
        Command::Backup(args) => {
            let bytes = match &args.from {
                Some(address) => {
                    let address = args.etcd.enter(address.clone())?;
                    backup::write(&contents_of(&address)?, crate::time_now())
                }
                None => ask(global)?,
            };
            // What is kept for bad times is looked at before.
            let summary = checked(&args.file, &bytes)?.1;
            write_whole(&args.file, &bytes).map_err(|error| at(&args.file, error))?;
            (summary, format!("backed up to {}", args.file.display()))
        }
        Command::Check(args) => (read(&args.file)?.1, format!("{} is whole", args.file.display())),
        Command::Restore(args) => {
            let (mut contents, summary) = read(&args.file)?;
            contents.term += backup::TERMS_SINCE;
            let to = args.etcd.enter(args.to.clone().unwrap_or_else(default_store))?;
            replace(&to, &contents, args.overwrite)?;
            (summary, format!("restored into {to}"))
        }
        Command::Migrate(args) => {
            if args.from == args.to {
                return Err(Failure::usage("both are the same store", "name another one to write").into());
            }
            let contents = contents_of(&args.etcd.enter(args.from.clone())?)?;
            replace(&args.etcd.enter(args.to.clone())?, &contents, args.overwrite)?;
            (Summary::of(&contents, None), format!("copied to {}", args.to))
        }
    };
    match output.json {
        true => output.document(&summary),
        false => output.text(text(&summary, &what)),
    }
    Ok(ExitCode::SUCCESS)
}

/// For people.
pub fn text(summary: &Summary, what: &str) -> String {
    let Summary { records, jobs, term, made_ms } = summary;
    let (records, jobs) = (units::group(*records as u64), units::group(*jobs as u64));
    let made = made_ms.map(|ms| format!(", of {}", units::time(ms))).unwrap_or_default();
    format!("{what}: {records} records, {jobs} jobs, term {term}{made}")
}

impl Summary {
    fn of(contents: &Contents, made_ms: Option<u64>) -> Summary {
        let jobs = contents.rows.iter().filter(|row| row.kind == Kind::Job).count();
        Summary { records: contents.rows.len(), jobs, term: contents.term, made_ms }
    }
}

fn ask(global: &Global) -> Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let pool = Pool::new(global)?;
        let ask = async |mut client: Client| client.backup(v1::BackupRequest {}).await;
        let mut stream = pool.call(Patience::Short, ask).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.message().await.map_err(|status| pool.failure(&status))? {
            bytes.extend(piece.data);
        }
        Ok(bytes)
    })
}

fn read(file: &Path) -> Result<(Contents, Summary), Failure> {
    checked(file, &fs::read(file).map_err(|error| at(file, error))?)
}

/// Reads a backup to its end, and every record of it.
fn checked(file: &Path, bytes: &[u8]) -> Result<(Contents, Summary), Failure> {
    let refused =
        |why: String| Failure::refused(format!("{}: {why}", file.display()), "Take another backup.");
    let (contents, made_ms) = backup::read(bytes).map_err(|error| refused(error.to_string()))?;
    decode_all(contents.rows.iter().cloned()).map_err(|error| refused(error.to_string()))?;
    let summary = Summary::of(&contents, Some(made_ms));
    Ok((contents, summary))
}

/// Writes a file that is complete or not there, also if the power is cut.
fn write_whole(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let mut written = File::create(&partial)?;
    written.write_all(bytes)?;
    written.sync_all()?;
    fs::rename(&partial, file)?;
    let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn at(file: &Path, error: std::io::Error) -> Failure {
    Failure::refused(format!("{}: {error}", file.display()), "")
}

fn default_store() -> Address {
    let data_dir = std::env::var_os("AQUIFER_DATA_DIR").map(PathBuf::from);
    Address::File(data_dir.unwrap_or_else(|| settings::data_dir().join("server")).join("store.redb"))
}

fn failure(error: StoreError) -> Failure {
    let in_use = matches!(error, StoreError::InUse { .. });
    let failure = server::failure(ServerError::from(error));
    match in_use {
        true => {
            Failure { next: "Stop the scheduler first; `backup` without --from asks it.".into(), ..failure }
        }
        false => failure,
    }
}

/// All that a store holds that nobody writes meanwhile, or, of etcd, at one moment.
fn contents_of(address: &Address) -> Result<Contents, Failure> {
    match address {
        Address::File(path) if !path.exists() => {
            Err(Failure::refused(format!("there is no store {}", path.display()), ""))
        }
        Address::File(path) => Embedded::open(path).and_then(|mut store| store.contents()).map_err(failure),
        Address::Etcd(address) => look(address),
    }
}

fn replace(address: &Address, contents: &Contents, overwrite: bool) -> Result<(), Failure> {
    match address {
        Address::File(path) => {
            let mut store = Embedded::open(path).map_err(failure)?;
            replace_in(&mut store, address, contents, overwrite)
        }
        Address::Etcd(etcd) => with_lead(etcd, |store| replace_in(store, address, contents, overwrite)),
    }
}

fn replace_in(
    store: &mut dyn Store,
    address: &Address,
    contents: &Contents,
    overwrite: bool,
) -> Result<(), Failure> {
    let found = match store.contents() {
        Ok(found) => found,
        // There is nothing to lose.
        Err(StoreError::HalfRestored { .. }) => Contents::default(),
        Err(error) => return Err(failure(error)),
    };
    let jobs = Summary::of(&found, None).jobs;
    if 0 < jobs && !overwrite {
        let sentence = format!("{address} holds {} jobs", units::group(jobs as u64));
        return Err(Failure::refused(sentence, "Name another store, or give --overwrite to lose them."));
    }
    store.replace(contents).map_err(failure)
}

#[cfg(feature = "etcd")]
fn look(address: &EtcdAddress) -> Result<Contents, Failure> {
    aquifer_scheduler::store::etcd::Etcd::look(address).map_err(failure)
}

#[cfg(not(feature = "etcd"))]
fn look(address: &EtcdAddress) -> Result<Contents, Failure> {
    Err(server::no_etcd(address))
}

/// Does something with a store that no scheduler leads.
#[cfg(feature = "etcd")]
fn with_lead(
    address: &EtcdAddress,
    work: impl FnOnce(&mut dyn Store) -> Result<(), Failure>,
) -> Result<(), Failure> {
    use aquifer_scheduler::leader::Candidate;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::refused(error.to_string(), ""))?;
    let candidate =
        Candidate::new(address, "aquifer store", std::time::Duration::from_secs(10)).map_err(failure)?;
    if let Some(leader) = runtime.block_on(candidate.leader()).map_err(failure)? {
        let sentence = format!("{address} is in use: {leader} leads");
        return Err(Failure::refused(sentence, "Stop all schedulers first."));
    }
    let won = runtime.block_on(candidate.run()).map_err(failure)?;
    let won =
        won.ok_or_else(|| Failure::refused(format!("{address} is in use"), "Stop all schedulers first."))?;
    let (mut store, _, resignation) = won.split();
    let worked = work(&mut store);
    runtime.block_on(resignation.resign());
    worked
}

#[cfg(not(feature = "etcd"))]
fn with_lead(
    address: &EtcdAddress,
    _: impl FnOnce(&mut dyn Store) -> Result<(), Failure>,
) -> Result<(), Failure> {
    Err(server::no_etcd(address))
}
