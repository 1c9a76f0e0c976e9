//! The cache of keys and values on a card, and what reads and writes it.

use super::memory::{Buffer, Slice};
use super::{Cuda, DeviceError, Element, FEW, int};
use crate::kernels::{Attention, BLOCK, CacheShape, Seen};

/// Keys of a query that one block of threads looks at.
const PART: usize = 256;

/// Keys and values of all layers, `[blocks, KV, BLOCK, D]` each.
pub struct CardCache<E> {
    layers: Vec<(Buffer<E>, Buffer<E>)>,
    kv_heads: usize,
    head_dim: usize,
}

/// Where the rows of a pass stand.
pub struct CardRows<'a> {
    count: usize,
    /// Tokens, positions, slots of the cache, numbers of keys, and tables of `stride` blocks, one after the other.
    all: &'a Slice<i32>,
    stride: usize,
    /// Parts of the longest context, or more.
    parts: usize,
}

impl CardRows<'_> {
    /// `[rows]`.
    pub fn tokens(&self) -> &Slice<i32> {
        self.column(0)
    }

    /// `[rows]`.
    pub fn positions(&self) -> &Slice<i32> {
        self.column(1)
    }

    fn slots(&self) -> &Slice<i32> {
        self.column(2)
    }

    fn keys(&self) -> &Slice<i32> {
        self.column(3)
    }

    fn tables(&self) -> &Slice<i32> {
        &self.all[4 * self.count..self.all.len()]
    }

    fn column(&self, index: usize) -> &Slice<i32> {
        &self.all[index * self.count..(index + 1) * self.count]
    }
}

/// Rows of single tokens that so many are filled up to: few different numbers, and none for which weights are read once more.
pub fn filled(rows: usize) -> usize {
    if rows <= FEW { rows.next_power_of_two() } else { rows.next_multiple_of(FEW) }
}

impl<E: Element> Cuda<E> {
    pub(super) fn new_cache(&self, shape: CacheShape) -> Result<CardCache<E>, DeviceError> {
        let CacheShape { layers, blocks, kv_heads, head_dim } = shape;
        let len = blocks * BLOCK * kv_heads * head_dim;
        let layer = |_| Ok((Buffer::new(&self.card, len)?, Buffer::new(&self.card, len)?));
        let layers = (0..layers).map(layer).collect::<Result<_, DeviceError>>()?;
        Ok(CardCache { layers, kv_heads, head_dim })
    }

    /// Everything but the numbers in memory, which is all that kernels get as arguments, is a function of the number of tokens and of the
    /// power of two of parts that the longest context fits into.
    pub(super) fn place_rows<'a>(
        &self,
        room: &'a mut Buffer<i32>,
        tokens: &[u32],
        seen: &[Seen<'_>],
    ) -> CardRows<'a> {
        let most_keys = seen.iter().map(|row| row.keys).max().unwrap_or(0);
        let (count, parts) = (tokens.len(), most_keys.div_ceil(PART).next_power_of_two());
        let stride = parts * PART / BLOCK;
        let slot = |row: &Seen<'_>| {
            let position = row.keys - 1;
            (row.table[position / BLOCK] as usize * BLOCK + position % BLOCK) as i32
        };
        let mut all: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
        // Rows that only fill up stand at the first position, go nowhere and see nothing.
        let mut column = |of: &dyn Fn(&Seen<'_>) -> i32, none: i32| {
            all.extend(seen.iter().map(of));
            all.resize(all.len() + count - seen.len(), none);
        };
        column(&|row| row.keys as i32 - 1, 0);
        column(&slot, -1);
        column(&|row| row.keys as i32, 0);
        for (index, row) in seen.iter().enumerate() {
            all.extend(row.table[..row.keys.div_ceil(BLOCK)].iter().map(|block| *block as i32));
            all.resize(4 * count + (index + 1) * stride, 0);
        }
        room.resize(&self.card, (4 + stride) * count);
        // Nobody looks at the tables of those who see nothing.
        self.card.upload(&mut room[0..all.len()], &all);
        CardRows { count, all: room, stride, parts }
    }

    pub(super) fn write(
        &self,
        cache: &mut CardCache<E>,
        layer: usize,
        rows: &CardRows<'_>,
        k: &Slice<E>,
        v: &Slice<E>,
    ) {
        let (kv_heads, width) = (cache.kv_heads, cache.kv_heads * cache.head_dim);
        let (cached_k, cached_v) = &mut cache.layers[layer];
        let arguments = [
            (&mut **cached_k).into(),
            (&mut **cached_v).into(),
            k.into(),
            v.into(),
            rows.slots().into(),
            int(rows.count),
            int(kv_heads),
            int(width),
        ];
        self.launch("cache_write", [rows.count, 1, 1], 128, &arguments);
    }

    pub(super) fn read_cache(
        &self,
        cache: &CardCache<E>,
        layer: usize,
        seen: Seen<'_>,
        k: &mut Slice<E>,
        v: &mut Slice<E>,
    ) {
        let blocks = seen.table[..seen.keys.div_ceil(BLOCK)].iter().map(|block| *block as usize);
        let (table, (cached_k, cached_v)) = (self.integers(blocks), &cache.layers[layer]);
        let arguments = [
            k.into(),
            v.into(),
            (&**cached_k).into(),
            (&**cached_v).into(),
            (&*table).into(),
            int(seen.keys),
            int(cache.kv_heads),
        ];
        self.launch("cache_read", [seen.keys, 1, 1], 128, &arguments);
    }

    pub(super) fn attend_cached(
        &self,
        shape: Attention,
        out: &mut Slice<E>,
        q: &Slice<E>,
        rows: &CardRows<'_>,
        (cache, layer): (&CardCache<E>, usize),
    ) {
        let Attention { heads, kv_heads, head_dim, .. } = shape;
        let (parts, (cached_k, cached_v)) = (rows.parts, &cache.layers[layer]);
        let partial: Buffer<f32> = Buffer::room(&self.card, rows.count * heads * parts * (head_dim + 2));
        let arguments = [
            (&*partial).into(),
            q.into(),
            (&**cached_k).into(),
            (&**cached_v).into(),
            rows.tables().into(),
            rows.keys().into(),
            int(rows.stride),
            int(heads),
            int(kv_heads),
            int(shape.query_width()),
            int(parts),
            super::Argument::Float(shape.scale()),
        ];
        self.launch("attention_cached", [kv_heads, rows.count, parts], 128, &arguments);
        let arguments = [out.into(), (&*partial).into(), rows.keys().into(), int(heads), int(parts)];
        self.launch("attention_cached_combine", [heads, rows.count, 1], 128, &arguments);
    }
}
