//! A card's memory, in types that cut as slices do.

use super::card::Card;
use super::{DeviceError, Stretch};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Index, IndexMut, Range};
use std::ptr;
use std::sync::Arc;

/// A stretch of a card's memory. A reference to it is an address of the card and a number of elements, of which none is on
/// the host: they have no size here, so nothing can be read through it, and references may overlap.
pub struct Slice<T>([PhantomData<T>]);

/// What a reference to nothing points to.
const NOWHERE: u64 = 256;

impl<T> Slice<T> {
    /// So many elements from an address of a card on.
    #[allow(unsafe_code)]
    fn at<'a>(address: u64, len: usize) -> &'a Slice<T> {
        let elements =
            ptr::slice_from_raw_parts(ptr::without_provenance::<PhantomData<T>>(address as usize), len);
        // SAFETY: elements without a size may be anywhere but at null, which no caller names; `Slice` has the layout of its
        // only field.
        unsafe { &*(elements as *const Slice<T>) }
    }

    /// As [`at`](Slice::at).
    #[allow(unsafe_code)]
    fn at_mut<'a>(address: u64, len: usize) -> &'a mut Slice<T> {
        let first = ptr::without_provenance_mut::<PhantomData<T>>(address as usize);
        // SAFETY: as in `at`; what has no size has no aliases.
        unsafe { &mut *(ptr::slice_from_raw_parts_mut(first, len) as *mut Slice<T>) }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.0.as_ptr().addr() as u64
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.len() * size_of::<T>()
    }

    /// The same bytes as elements of another type of the same size.
    pub fn reinterpret<U>(&self) -> &Slice<U> {
        assert_eq!(size_of::<T>(), size_of::<U>());
        Slice::at(self.address(), self.len())
    }

    fn part(&self, range: &Range<usize>) -> (u64, usize) {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {} elements", self.len());
        (self.address() + (range.start * size_of::<T>()) as u64, range.len())
    }
}

impl<T> Index<Range<usize>> for Slice<T> {
    type Output = Slice<T>;
    fn index(&self, range: Range<usize>) -> &Slice<T> {
        let (address, len) = self.part(&range);
        Slice::at(address, len)
    }
}

impl<T> IndexMut<Range<usize>> for Slice<T> {
    fn index_mut(&mut self, range: Range<usize>) -> &mut Slice<T> {
        let (address, len) = self.part(&range);
        Slice::at_mut(address, len)
    }
}

impl<T> Stretch for Slice<T> {}

/// A small piece of memory is used again for what needs a quarter of it, a large one for what needs nearly all.
const SMALL: usize = 1 << 20;

/// Memory that nobody uses, by its bytes; of equal pieces the last comes first.
#[derive(Default)]
pub struct Pool(BTreeMap<usize, Vec<u64>>);

impl Pool {
    /// Takes a piece in.
    pub fn give(&mut self, address: u64, bytes: usize) {
        self.0.entry(bytes).or_default().push(address);
    }

    /// A piece of so many bytes that is not much larger, and its bytes.
    pub fn take(&mut self, bytes: usize) -> Option<(u64, usize)> {
        self.take_up_to(bytes, if bytes < SMALL { 4 * bytes } else { bytes + bytes / 8 })
    }

    /// The smallest piece of so many bytes, and its bytes.
    pub fn take_any(&mut self, bytes: usize) -> Option<(u64, usize)> {
        self.take_up_to(bytes, usize::MAX)
    }

    fn take_up_to(&mut self, bytes: usize, most: usize) -> Option<(u64, usize)> {
        let (&bytes, addresses) = self.0.range_mut(bytes..=most).next()?;
        let address = addresses.pop()?;
        if addresses.is_empty() {
            self.0.remove(&bytes);
        }
        Some((address, bytes))
    }

    /// Takes in all of another one.
    pub fn extend(&mut self, other: Pool) {
        for (bytes, addresses) in other.0 {
            self.0.entry(bytes).or_default().extend(addresses);
        }
    }

    /// Where the pieces are.
    pub fn into_addresses(self) -> impl Iterator<Item = u64> {
        self.0.into_values().flatten()
    }
}

/// Memory of a card, given back when it is dropped.
pub struct Buffer<T> {
    /// Who gave it, from where on, and how many bytes.
    held: Option<(Arc<Card>, u64, usize)>,
    len: usize,
    elements: PhantomData<T>,
}

impl<T> Default for Buffer<T> {
    fn default() -> Buffer<T> {
        Buffer { held: None, len: 0, elements: PhantomData }
    }
}

impl<T> Buffer<T> {
    /// Room for so many elements of any value.
    ///
    /// # Errors
    /// There is none.
    pub fn new(card: &Arc<Card>, len: usize) -> Result<Buffer<T>, DeviceError> {
        let held = match len * size_of::<T>() {
            0 => None,
            bytes => {
                let (address, bytes) = card.allocate(bytes)?;
                Some((Arc::clone(card), address, bytes))
            }
        };
        Ok(Buffer { held, len, elements: PhantomData })
    }

    /// As [`new`](Buffer::new); a failure is remembered, and then nothing reads or writes what is nowhere.
    pub fn room(card: &Arc<Card>, len: usize) -> Buffer<T> {
        let mut buffer = Buffer::default();
        buffer.resize(card, len);
        buffer
    }

    /// Makes it hold so many elements of any value. A failure is remembered as by [`room`](Buffer::room).
    pub fn resize(&mut self, card: &Arc<Card>, len: usize) {
        let has = self.held.as_ref().map_or(0, |(_, _, bytes)| *bytes);
        if has < len * size_of::<T>() {
            *self = Buffer::default();
            match Buffer::new(card, len) {
                Ok(buffer) => *self = buffer,
                Err(error) => card.fail(error),
            }
        }
        self.len = len;
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some((card, address, bytes)) = self.held.take() {
            card.give_back(address, bytes);
        }
    }
}

impl<T> Deref for Buffer<T> {
    type Target = Slice<T>;
    fn deref(&self) -> &Slice<T> {
        Slice::at(self.held.as_ref().map_or(NOWHERE, |(_, address, _)| *address), self.len)
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut Slice<T> {
        Slice::at_mut(self.held.as_ref().map_or(NOWHERE, |(_, address, _)| *address), self.len)
    }
}
