//! What each vendor's way of parting cards is to the rest.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use aquifer_core::{Slice, Vendor};

use super::{Mig, Profile, Smlu, Vnpu, Xcp};
use crate::device::Roots;
use crate::device::library::{Library, STARTING};

/// Vendors whose cards can be parted on demand, with the setting that switches it on.
pub const ON_DEMAND: [(Vendor, &str); 4] =
    [(Vendor::Nvidia, "mig"), (Vendor::Ascend, "vnpu"), (Vendor::Cambricon, "smlu"), (Vendor::Amd, "xcp")];

/// Tries to remove a part whose last program is just ending.
const TRIES: usize = 10;

/// Makes and removes parts of a vendor's cards. Cards go by their unique names, parts of a card by numbers.
///
/// A driver has no transactions: whoever calls this has written down before what it is about to make, and the number of what
/// was made right after. What nobody has written down is removed.
pub trait Divider: fmt::Debug + Send + Sync {
    /// Whose cards these are.
    fn vendor(&self) -> Vendor;

    /// Whether a rank that holds a whole card needs a part of it, too.
    fn parts_whole(&self) -> bool;

    /// Why a rank cannot reach parts of so many cards; `contained`: from within a container.
    ///
    /// # Errors
    /// It cannot.
    fn check(&self, cards: usize, contained: bool) -> Result<(), String>;

    /// What is to be made for a slice of a card, or for all of it. `taken`: its parts that others have.
    ///
    /// # Errors
    /// There is no such card, or nothing that has room is large enough.
    fn choose(&self, card: &str, slice: Option<Slice>, taken: &BTreeSet<u32>) -> Result<Profile, String>;

    /// Makes a part; returns its number. Nothing else may happen between that and its return.
    ///
    /// # Errors
    /// What the driver says.
    fn create(&self, card: &str, profile: &Profile, taken: &BTreeSet<u32>) -> Result<u32, String>;

    /// Makes a part that was created fit for use.
    ///
    /// # Errors
    /// What the driver says.
    fn finish(&self, card: &str, profile: &Profile, number: u32) -> Result<Part, String>;

    /// What tells a worker's runtime, and the vendor's container runtime, of its parts.
    fn env(&self, parts: &[Part]) -> Vec<(String, String)>;

    /// Removes all parts but these, given by their card and number. Returns what failed.
    fn remove_others(&self, kept: &BTreeSet<(&str, u32)>) -> Vec<String>;

    /// The library that it asks, if any.
    fn library(&self) -> Option<&Library> {
        None
    }
}

/// A part of a card that was made, by all that workers and engines may call it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Its name; the engine of a container may know it, too.
    pub name: String,
    /// What the vendor's container runtime calls it.
    pub runtime: String,
    /// Device nodes that it is reached through, and what they are called within a container.
    pub nodes: Vec<(PathBuf, PathBuf)>,
    /// Device nodes of the whole card that whoever has the part is not to have.
    pub instead_of: Vec<PathBuf>,
    /// The directory of nodes that it is reached through, if which of them is not known.
    pub unhidden: Option<PathBuf>,
}

/// Loads what parts the cards of a vendor of [`ON_DEMAND`].
///
/// # Errors
/// It is not there, or does not start.
pub fn open(vendor: Vendor, roots: &Roots) -> Result<Box<dyn Divider>, String> {
    let divider = open_now(vendor, roots)?;
    Ok(Box::new(Reopened { roots: roots.clone(), now: Mutex::new(divider) }))
}

fn open_now(vendor: Vendor, roots: &Roots) -> Result<Arc<dyn Divider>, String> {
    Ok(match vendor {
        Vendor::Nvidia => Arc::new(Mig::open(roots)?),
        Vendor::Ascend => Arc::new(Vnpu::open(roots)?),
        Vendor::Cambricon => Arc::new(Smlu::open(roots)?),
        Vendor::Amd => Arc::new(Xcp::open(roots)?),
        _ => return Err(format!("{vendor}'s cards cannot be parted on demand")),
    })
}

/// A divider whose library is loaded anew when it has crashed. What it knows of cards, it asks for each time.
#[derive(Debug)]
struct Reopened {
    roots: Roots,
    now: Mutex<Arc<dyn Divider>>,
}

impl Reopened {
    fn as_it_is(&self) -> Arc<dyn Divider> {
        self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// One that can be asked, and has as long for what comes as for its start.
    fn ready(&self) -> Result<Arc<dyn Divider>, String> {
        let mut now = self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if now.library().is_some_and(|library| library.gone().or_else(|| library.ended()).is_some()) {
            *now = open_now(now.vendor(), &self.roots)?;
        }
        if let Some(library) = now.library() {
            library.allow(self.roots.patience * STARTING);
        }
        Ok(now.clone())
    }
}

impl Divider for Reopened {
    fn vendor(&self) -> Vendor {
        self.as_it_is().vendor()
    }

    fn parts_whole(&self) -> bool {
        self.as_it_is().parts_whole()
    }

    fn check(&self, cards: usize, contained: bool) -> Result<(), String> {
        self.as_it_is().check(cards, contained)
    }

    fn choose(&self, card: &str, slice: Option<Slice>, taken: &BTreeSet<u32>) -> Result<Profile, String> {
        self.ready()?.choose(card, slice, taken)
    }

    fn create(&self, card: &str, profile: &Profile, taken: &BTreeSet<u32>) -> Result<u32, String> {
        self.ready()?.create(card, profile, taken)
    }

    fn finish(&self, card: &str, profile: &Profile, number: u32) -> Result<Part, String> {
        self.ready()?.finish(card, profile, number)
    }

    fn env(&self, parts: &[Part]) -> Vec<(String, String)> {
        self.as_it_is().env(parts)
    }

    fn remove_others(&self, kept: &BTreeSet<(&str, u32)>) -> Vec<String> {
        let remove = || match self.ready() {
            Ok(divider) => divider.remove_others(kept),
            Err(why) => vec![why],
        };
        let failures = remove();
        // A crash leaves what would have been removed after it, and nobody else comes for that soon.
        let is_gone = self.as_it_is().library().is_some_and(|library| library.gone().is_some());
        if is_gone { remove() } else { failures }
    }
}

/// A node that has the same name everywhere.
pub(super) fn same(node: impl Into<PathBuf>) -> (PathBuf, PathBuf) {
    let node = node.into();
    (node.clone(), node)
}

/// Tries until it succeeds, as long as a program may take to end.
pub(super) fn persist(mut attempt: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    for _ in 1..TRIES {
        if attempt().is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
    attempt()
}

/// Removes a part of a card in the same way, and says what failed, if anything did.
pub(super) fn remove(card: &str, number: u32, attempt: impl FnMut() -> Result<(), String>) -> Option<String> {
    persist(attempt).err().map(|why| format!("{card}, {number}: {why}"))
}

/// What the vendor's container runtime calls all of these parts.
pub(super) fn runtime_names(parts: &[Part], separator: &str) -> String {
    parts.iter().map(|part| &part.runtime[..]).collect::<Vec<&str>>().join(separator)
}

/// Refuses workers without a container, which is where the vendor documents that parts are reached.
pub(super) fn only_contained(contained: bool, what: &str) -> Result<(), String> {
    match contained {
        true => Ok(()),
        false => Err(format!("{what} can be reached from within a container alone: give the job an image")),
    }
}
