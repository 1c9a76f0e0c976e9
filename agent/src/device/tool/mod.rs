//! Devices that a vendor's command-line tool lists, where its library cannot be loaded or does not answer.
//!
//! A tool tells which cards there are, and little of how they are: what is found by it is offered, and a finding says that
//! nobody watches its health. What a tool prints is read by a function of the vendor's file, with the readers of `report`.

pub mod report;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use aquifer_core::{DeviceClass, Fault, Vendor};

use super::roots::Roots;
use super::unread::unread;
use super::vendor::Maker;
use super::{Discovery, Finding, Found, model_of, visible};
use crate::said::said;

/// One run of a tool may take so long: with eight cards that sleep some need seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a tool said counts for so long. It starts a process, wakes cards, and tells what seldom changes.
const KEPT: Duration = Duration::from_secs(30);
/// Cards of one vendor in a machine, at most.
const MOST_CARDS: usize = 256;

/// A vendor's command-line tool.
#[derive(Debug)]
pub struct Tool {
    /// Its file name.
    pub name: &'static str,
    /// Where it may be outside of `PATH`.
    pub places: &'static [&'static str],
    /// Asks it for all cards.
    ///
    /// # Errors
    /// It fails, or says what nobody can read.
    pub read: fn(&Asked) -> Result<Vec<Told>, String>,
}

/// A card, as a tool tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Number by which the vendor's runtime selects it.
    pub logical: u32,
    /// Number of its device node, if that is known. A guess would give a worker somebody else's card.
    pub physical: Option<u32>,
    /// The name that the vendor's library gives it, if the tool says it.
    pub uuid: Option<String>,
    /// Name of the model.
    pub model: String,
    /// Memory in bytes; 0: not said.
    pub memory_bytes: u64,
    /// Bus address, like `0000:1b:00.0`.
    pub place: Option<String>,
    /// Why it cannot be used.
    pub fault: Option<String>,
}

/// A tool that was found, to be asked.
pub struct Asked<'a> {
    program: PathBuf,
    roots: &'a Roots,
    /// Where the vendor's library is looked for.
    libraries: &'static [&'static str],
}

impl Asked<'_> {
    /// What it prints when it is run with these arguments.
    ///
    /// # Errors
    /// Its last complaint, or that it did not end in time.
    pub fn say(&self, arguments: &[&str]) -> Result<String, String> {
        self.run(arguments, Path::new("/"))
    }

    /// What it writes into this file of its working directory.
    ///
    /// # Errors
    /// As [`Asked::say`]; it writes no such file.
    pub fn write(&self, arguments: &[&str], file: &str) -> Result<String, String> {
        let here = Private::new().map_err(|error| format!("it has no directory to write to: {error}"))?;
        self.run(arguments, &here.0)?;
        fs::read_to_string(here.0.join(file)).map_err(|error| format!("it wrote no {file}: {error}"))
    }

    /// Number of the node under `/dev/accel` of the card at a bus address.
    pub fn accel(&self, place: &str) -> Option<u32> {
        let nodes = fs::read_dir(self.roots.pci(place).join("accel")).ok()?;
        let number = |name: String| name.strip_prefix("accel")?.parse().ok();
        nodes.flatten().filter_map(|node| number(node.file_name().into_string().ok()?)).next()
    }

    fn run(&self, arguments: &[&str], here: &Path) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(here).env("LC_ALL", "C");
        let dirs = library_dirs(&self.program, self.roots, self.libraries);
        if !dirs.is_empty() {
            let given = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            let all = std::env::split_paths(&given).chain(dirs);
            command.env("LD_LIBRARY_PATH", std::env::join_paths(all).unwrap_or(given));
        }
        said(command, &[], PATIENCE)
    }
}

/// Where a tool finds its vendor's libraries beside the system's places, as far as they are there: where the agent was told to look, as `lib`
/// beside the `bin` that it is in, and where the vendor puts them. Some (ixsmi, ppu-smi) start with no others.
fn library_dirs(program: &Path, roots: &Roots, libraries: &[&str]) -> Vec<PathBuf> {
    let bin = program.parent().filter(|bin| bin.file_name().is_some_and(|name| name == "bin"));
    let root = bin.and_then(Path::parent).filter(|root| ![Path::new("/"), Path::new("/usr")].contains(root));
    let beside = root.into_iter().flat_map(|root| ["lib64", "lib"].map(|name| root.join(name)));
    let of_vendor = libraries.iter().filter_map(|path| Path::new(path).parent()).map(Path::to_path_buf);
    let all = roots.libraries.iter().cloned().chain(beside).chain(of_vendor);
    all.filter(|dir| dir.is_absolute() && dir.is_dir()).collect()
}

/// A directory that nobody else can write to, for as long as it is held.
struct Private(PathBuf);

impl Private {
    fn new() -> io::Result<Private> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("aquifer-tool-{}-{number}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Private(path))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// Asks a vendor's tool now and then. It runs on a thread of its own, so that nobody waits for a slow one for long.
pub struct ByTool {
    vendor: Vendor,
    tool: &'static Tool,
    libraries: &'static [&'static str],
    needs_physical: bool,
    running: Option<Receiver<Result<Vec<Told>, String>>>,
    last: Option<(Instant, Result<Vec<Told>, String>)>,
}

impl ByTool {
    /// `None` for a vendor without a tool that can be read.
    pub fn new(maker: &'static Maker) -> Option<ByTool> {
        let needs_physical = maker.apis.iter().any(|api| api.needs_physical);
        let tool = maker.tool.as_ref()?;
        let (vendor, libraries) = (maker.vendor, maker.libraries);
        Some(ByTool { vendor, tool, libraries, needs_physical, running: None, last: None })
    }

    /// The devices that the tool lists. `None` if the machine has no such tool.
    ///
    /// * `without`: why its library is not asked.
    ///
    /// # Errors
    /// Why the tool is of no use; it has not answered yet.
    pub fn look(&mut self, roots: &Roots, without: &str) -> Option<Result<Discovery, String>> {
        let name = self.tool.name;
        let cards = match self.cards(roots)? {
            Ok(cards) => cards,
            Err(why) => return Some(Err(format!("{name} cannot be used: {why}"))),
        };
        let what = format!("found by {name}, as {without}: nobody watches whether they are well");
        let devices = cards.iter().map(|card| self.found(card, roots)).collect();
        Some(Ok(Discovery { devices, findings: vec![Finding { vendor: self.vendor, what }] }))
    }

    fn cards(&mut self, roots: &Roots) -> Option<Result<Vec<Told>, String>> {
        let is_new = |(at, _): &(Instant, _)| at.elapsed() < KEPT.min(roots.pause * 6);
        if self.running.is_none() && !self.last.as_ref().is_some_and(is_new) {
            let program = find(self.tool, &roots.tools)?;
            let (tool, libraries, roots) = (self.tool, self.libraries, roots.clone());
            let (send, receive) = channel();
            let ask = move || {
                let cards = (tool.read)(&Asked { program, roots: &roots, libraries }).and_then(plausible);
                _ = send.send(cards); // Nobody waits for it any more.
            };
            let _ = thread::Builder::new().name(tool.name.into()).spawn(ask);
            self.running = Some(receive);
        }
        if let Some(running) = &self.running {
            match running.recv_timeout(roots.patience / 2) {
                Ok(cards) => (self.running, self.last) = (None, Some((Instant::now(), cards))),
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => self.running = None,
            }
        }
        Some(self.last.as_ref().map_or(Err("it has not answered yet".into()), |(_, cards)| cards.clone()))
    }

    fn found(&self, card: &Told, roots: &Roots) -> Found {
        let place = card.place.clone().unwrap_or_else(|| format!("index-{:05}", card.logical));
        let unknown = || "the number of its device node is not known".to_string();
        let fault = card.fault.clone().or((self.needs_physical && card.physical.is_none()).then(unknown));
        let class = DeviceClass {
            vendor: self.vendor,
            model: model_of(self.vendor, &card.model).as_str().into(),
            memory_bytes: card.memory_bytes,
        };
        let nameless = unread(self.vendor, &place.clone(), place);
        Found {
            class: Arc::new(class),
            uuid: card.uuid.as_deref().map_or(nameless.uuid.clone(), Into::into),
            fault: fault.map(Fault::faulty),
            logical: card.logical,
            physical: card.physical.unwrap_or(u32::MAX),
            nodes: card.physical.map_or_else(Vec::new, |number| {
                visible::nodes(self.vendor, number, &nameless.place, &roots.sysfs)
            }),
            ..nameless
        }
    }
}

/// What a machine can have: at least one card, none twice.
fn plausible(mut cards: Vec<Told>) -> Result<Vec<Told>, String> {
    cards.sort_by_key(|card| card.logical);
    match cards.len() {
        0 => Err("it lists no device".into()),
        count if MOST_CARDS < count => Err(format!("it lists {count} devices, of at most {MOST_CARDS}")),
        _ if cards.windows(2).any(|two| two[0].logical == two[1].logical) => {
            Err("it lists two devices with the same number".into())
        }
        _ => Ok(cards),
    }
}

/// Where a tool is: in one of these directories, or where its vendor puts it.
fn find(tool: &Tool, dirs: &[PathBuf]) -> Option<PathBuf> {
    let named = dirs.iter().map(|dir| dir.join(tool.name));
    named.chain(tool.places.iter().map(PathBuf::from)).find(|file| file.is_absolute() && file.is_file())
}
