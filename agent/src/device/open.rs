//! Loads a vendor's library, starts it, and addresses its cards.

use std::path::{Path, PathBuf};

use super::api::{CallError, Context, Opened, Value};
use super::library::Library;
use super::vendor::Maker;

/// Loads a vendor's library and starts the first of its generations that can be.
///
/// * `library`: the one to use, instead of those of the vendor's table.
/// * `dirs`: where to look first.
/// * `before`: told of every call before it is made.
///
/// # Errors
/// It is not there, or does not start.
pub fn open(
    maker: &Maker,
    library: Option<&Path>,
    dirs: &[PathBuf],
    before: impl Fn(&'static str) + Send + Sync + Clone + 'static,
) -> Result<Opened, String> {
    let load = || match library {
        Some(path) => Library::load(&[&path.to_string_lossy()], &[]),
        None => Library::load(maker.libraries, dirs),
    };
    // What is missing shows when the library itself is loaded.
    maker.needs.iter().for_each(|name| _ = Library::load(&[name], dirs));
    let mut failed = None;
    for api in maker.apis {
        let before = Box::new(before.clone());
        let mut opened = Opened { api, library: load()?, handle: 0, events: 0, before };
        match opened.first(api.init, &Context::default()) {
            Ok(handle) => opened.handle = handle.number() as usize,
            Err(error) => {
                // That a generation is not there says less than how the other failed.
                failed = Some(failed.filter(|_| matches!(error, CallError::Missing(_))).unwrap_or(error));
                continue;
            }
        }
        return Ok(opened);
    }
    Err(failed.map_or("no way to initialise it".to_string(), |error| error.to_string()))
}

/// The addresses of all cards.
///
/// # Errors
/// The library does not say how many there are.
pub fn addresses(opened: &Opened) -> Result<Vec<[usize; 2]>, CallError> {
    match opened.api.list {
        Some(list) => list(opened),
        None => {
            let count = opened.first(opened.api.count, &Context::default())?.number().min(4096);
            Ok((0..count as usize).map(|card| [card, 0]).collect())
        }
    }
}

/// All cards that say their unique names, with what calls about them need.
pub fn named(opened: &Opened) -> Vec<(String, Context)> {
    let named = |(index, card): (usize, [usize; 2])| {
        let mut about = Context { index, card, ..Context::default() };
        if !opened.api.handle.is_empty() {
            about.card[0] = opened.first(opened.api.handle, &about).ok()?.number() as usize;
        }
        let uuid = opened.first(opened.api.uuid, &about).map(Value::text).ok()?;
        Some((format!("{}{uuid}", opened.api.uuid_prefix), about))
    };
    addresses(opened).unwrap_or_default().into_iter().enumerate().filter_map(named).collect()
}
