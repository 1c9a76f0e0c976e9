//! What differs between vendors' libraries, as data: one file a vendor.
//!
//! Names, arguments and layouts are those of the vendors' headers. `agent/tests/stubs` states the same layouts as C
//! structs and fills them by name, so that a wrong offset here is a test that fails.

pub(crate) mod ascend;
mod biren;
pub(crate) mod cambricon;
mod enflame;
mod gaudi;
mod hygon;
mod iluvatar;
mod kunlunxin;
mod metax;
mod moore_threads;
mod nvidia;
mod shaped;
mod t_head;

use aquifer_core::Vendor;

use super::api::Api;
use super::slowed::{LOW_ON_POWER, TOO_HOT};
use super::tool::Tool;

/// A vendor whose devices are found through a library.
#[derive(Debug)]
pub struct Maker {
    pub vendor: Vendor,
    /// What people call the library.
    pub name: &'static str,
    /// Where it may be; see `Library::load`.
    pub libraries: &'static [&'static str],
    /// Libraries that it does not find by itself.
    pub needs: &'static [&'static str],
    /// What lists its devices where no library can be used.
    pub tool: Option<Tool>,
    /// Its generations: the first that initialises counts.
    pub apis: &'static [Api],
}

/// All of them.
pub const ALL: [&Maker; 12] = [
    &nvidia::NVIDIA,
    &ascend::ASCEND,
    &cambricon::CAMBRICON,
    &hygon::HYGON,
    &moore_threads::MOORE_THREADS,
    &iluvatar::ILUVATAR,
    &enflame::ENFLAME,
    &metax::METAX,
    &kunlunxin::KUNLUNXIN,
    &biren::BIREN,
    &gaudi::GAUDI,
    &t_head::T_HEAD,
];

/// How a vendor's devices are found, if through a library.
pub fn maker(vendor: Vendor) -> Option<&'static Maker> {
    ALL.into_iter().find(|maker| maker.vendor == vendor)
}
