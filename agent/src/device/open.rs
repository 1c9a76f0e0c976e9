//! Loads a vendor's library, starts it, and addresses its cards.

use std::path::Path;

use super::api::{CallError, Context, Opened, Value};
use super::library::{Library, LoadError, STARTING};
use super::roots::Roots;
use super::vendor::Maker;

/// Loads a vendor's library and starts the first of its generations that can be.
///
/// * `library`: the one to use, instead of those of the vendor's table.
///
/// # Errors
/// It is not there, or does not start.
pub fn open(maker: &Maker, library: Option<&Path>, roots: &Roots) -> Result<Opened, LoadError> {
    let patience = roots.patience * STARTING;
    let given = library.map(|path| path.to_string_lossy());
    let (names, dirs) = match &given {
        Some(path) => (&[&**path][..], &[][..]),
        None => (maker.libraries, &roots.libraries[..]),
    };
    let library = Library::load(&roots.helper, maker.needs, names, dirs, patience)?;
    let mut opened = Opened { api: &maker.apis[0], library, handle: 0, events: 0 };
    let mut failed = None;
    for api in maker.apis {
        opened.api = api;
        match opened.first(api.init, &Context::default()) {
            Ok(handle) => {
                opened.handle = handle.number() as usize;
                return Ok(opened);
            }
            Err(CallError::Gone(why)) => return Err(LoadError::Gone(why)),
            // That a generation is not there says less than how the other failed.
            Err(error) => {
                failed = Some(failed.filter(|_| matches!(error, CallError::Missing(_))).unwrap_or(error))
            }
        }
    }
    let why = failed.map_or("no way to initialise it".to_string(), |error| error.to_string());
    Err(LoadError::Refused(why))
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
