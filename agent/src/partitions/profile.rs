//! What a card can be parted into, and which of that a rank gets.

use aquifer_core::Slice;

/// A kind of part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// By which it is asked for.
    pub id: u32,
    /// How much compute it has, as a number of the slices that a card has.
    pub slices: u32,
    /// In bytes.
    pub memory_bytes: u64,
}

impl Profile {
    /// Whether it is as large as a slice of a card with `whole` slices; as the card, without one.
    pub fn is_enough(&self, slice: Option<Slice>, whole: u32) -> bool {
        slice.map_or(self.slices == whole, |slice| {
            slice.compute_milli * whole <= self.slices * 1000 && slice.memory_bytes <= self.memory_bytes
        })
    }
}

/// The smallest profile that has room and is at least as large as a slice; without one, as the whole card, which has `whole`
/// slices. Of equal ones the first.
pub fn smallest(
    profiles: &[Profile],
    whole: u32,
    slice: Option<Slice>,
    has_room: impl Fn(&Profile) -> bool,
) -> Option<Profile> {
    let enough = profiles.iter().filter(|profile| profile.is_enough(slice, whole));
    let fit = enough.filter(|profile| has_room(profile));
    fit.min_by_key(|profile| (profile.slices, profile.memory_bytes)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an H100 with 80 GB.
    fn h100() -> Vec<Profile> {
        let profile = |(id, slices, gib): (u32, u32, u64)| Profile { id, slices, memory_bytes: gib << 30 };
        [(19, 1, 9), (15, 1, 19), (14, 2, 19), (9, 3, 39), (5, 4, 39), (0, 7, 79)].map(profile).into()
    }

    #[test]
    fn a_slice_gets_the_smallest_profile_that_has_room_and_is_large_enough() {
        let of = |compute_milli, gib: u64, full: &[u32]| {
            let slice = Some(Slice { compute_milli, memory_bytes: gib << 30 });
            smallest(&h100(), 7, slice, |profile| !full.contains(&profile.id)).map(|profile| profile.id)
        };
        assert_eq!(of(100, 8, &[]), Some(19));
        assert_eq!(of(142, 8, &[]), Some(19));
        assert_eq!(of(143, 8, &[]), Some(14), "143 thousandths are more than a seventh");
        assert_eq!(of(100, 10, &[]), Some(15));
        assert_eq!(of(100, 10, &[15]), Some(14));
        assert_eq!(of(500, 40, &[]), Some(0));
        assert_eq!(of(500, 80, &[]), None);
        assert_eq!(smallest(&h100(), 7, None, |_| true).map(|profile| profile.id), Some(0));
        assert_eq!(smallest(&h100(), 8, None, |_| true), None, "no part is the whole card");
    }
}
