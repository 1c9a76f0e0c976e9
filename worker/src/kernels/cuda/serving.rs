//! The cache of keys and values on a card, and what reads and writes it.

use super::memory::{Buffer, Slice};
use super::{Cuda, DeviceError, Element, int};
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
pub struct CardRows {
    count: usize,
    /// Positions, slots of the cache, numbers of keys, and tables of `stride` blocks, one after the other.
    all: Buffer<i32>,
    stride: usize,
    most_keys: usize,
}

impl CardRows {
    /// `[rows]`.
    pub fn positions(&self) -> &Slice<i32> {
        &self.all[0..self.count]
    }

    fn slots(&self) -> &Slice<i32> {
        &self.all[self.count..2 * self.count]
    }

    fn keys(&self) -> &Slice<i32> {
        &self.all[2 * self.count..3 * self.count]
    }

    fn tables(&self) -> &Slice<i32> {
        &self.all[3 * self.count..self.all.len()]
    }
}

impl<E: Element> Cuda<E> {
    pub(super) fn new_cache(&self, shape: CacheShape) -> Result<CardCache<E>, DeviceError> {
        let CacheShape { layers, blocks, kv_heads, head_dim } = shape;
        let len = blocks * BLOCK * kv_heads * head_dim;
        let layer = |_| Ok((Buffer::new(&self.card, len)?, Buffer::new(&self.card, len)?));
        let layers = (0..layers).map(layer).collect::<Result<_, DeviceError>>()?;
        Ok(CardCache { layers, kv_heads, head_dim })
    }

    pub(super) fn place_rows(&self, rows: &[Seen<'_>]) -> CardRows {
        let stride = rows.iter().map(|row| row.keys.div_ceil(BLOCK)).max().unwrap_or(0);
        let slot = |row: &Seen<'_>| {
            let position = row.keys - 1;
            row.table[position / BLOCK] as usize * BLOCK + position % BLOCK
        };
        let table = |row: &Seen<'_>| {
            let known: Vec<usize> =
                row.table[..row.keys.div_ceil(BLOCK)].iter().map(|block| *block as usize).collect();
            known.into_iter().chain(std::iter::repeat(0)).take(stride)
        };
        let all = rows
            .iter()
            .map(|row| row.keys - 1)
            .chain(rows.iter().map(slot))
            .chain(rows.iter().map(|row| row.keys))
            .chain(rows.iter().flat_map(table));
        let most_keys = rows.iter().map(|row| row.keys).max().unwrap_or(0);
        CardRows { count: rows.len(), all: self.integers(all), stride, most_keys }
    }

    pub(super) fn write(
        &self,
        cache: &mut CardCache<E>,
        layer: usize,
        rows: &CardRows,
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
        rows: &CardRows,
        (cache, layer): (&CardCache<E>, usize),
    ) {
        let Attention { heads, kv_heads, head_dim, .. } = shape;
        let (parts, (cached_k, cached_v)) = (rows.most_keys.div_ceil(PART), &cache.layers[layer]);
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
