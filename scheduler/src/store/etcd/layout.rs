//! Which keys there are, and what is in them.
//!
//! | key | value |
//! |---|---|
//! | `P/format`, `P/term` | numbers |
//! | `P/leader` | address of the scheduler that leads; goes with its lease |
//! | `P/commit` | `term number staged`: the last commit, and how many pieces of it still wait in `P/staged/` |
//! | `P/staged/…` | rows of a commit that was too large for one transaction, in pieces |
//! | `P/rows/TABLE/ID` | the number of pieces of a record (one byte), and the first of them |
//! | `P/more/TABLE/ID/N` | the further pieces |
//! | `P/restoring` | there while all is replaced |

use std::collections::BTreeMap;

use aquifer_proto::store::{Kind, Row};
use etcd_client::{DeleteOptions, TxnOp};

/// Operations of a transaction, at most (`--max-txn-ops`); one is the commit's own.
const MAX_OPERATIONS: usize = 128 - 1;
/// Bytes that a transaction carries, at most: below 1.5 MiB (`--max-request-bytes`) with room for what is around them.
const MAX_BYTES: usize = 1 << 20;
/// Bytes of a value, at most.
pub const PIECE: usize = 512 << 10;

/// The keys of one pool.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

/// What is written in one transaction.
pub type Batch = Vec<TxnOp>;

impl Keys {
    pub fn new(prefix: &str) -> Keys {
        Keys { prefix: prefix.into() }
    }

    /// A key right below the prefix.
    pub fn of(&self, name: &str) -> Vec<u8> {
        format!("{}/{name}", self.prefix).into_bytes()
    }

    /// The key of a piece of a large commit.
    pub fn staged(&self, number: usize) -> Vec<u8> {
        self.of(&format!("staged/{number:08}"))
    }

    /// Removes all keys that begin so.
    pub fn removal(&self, beginning: &str) -> TxnOp {
        TxnOp::delete(self.of(beginning), Some(DeleteOptions::new().with_prefix()))
    }

    fn row(&self, beginning: &str, row: &Row) -> Vec<u8> {
        let mut key = self.of(&format!("{beginning}/{}/", row.kind.table()));
        match is_numbered(row.kind) {
            true => key.extend(row.key.iter().flat_map(|byte| format!("{byte:02x}").into_bytes())),
            false => key.extend(&row.key),
        }
        key
    }

    /// Keys of the rows of a kind from an identity on, and where they end.
    pub fn rows_from(&self, kind: Kind, key: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let from = self.row("rows", &Row { kind, key: key.into(), value: None });
        let mut end = self.of(&format!("rows/{}/", kind.table()));
        *end.last_mut().expect("it ends with a slash") += 1;
        (from, end)
    }

    /// Where the further pieces are of those among rows that have some.
    ///
    /// # Errors
    /// Names the first key that makes no sense.
    pub fn further_pieces(&self, rows: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<Vec<u8>>, String> {
        let beginning = self.of("rows/");
        let of = |(key, _): &(Vec<u8>, Vec<u8>)| {
            let below = key.strip_prefix(&beginning[..]);
            let below =
                below.ok_or_else(|| format!("key {}: is none of a row", String::from_utf8_lossy(key)))?;
            Ok([&self.of("more/")[..], below, b"/"].concat())
        };
        rows.iter().filter(|(_, value)| value.first().is_some_and(|pieces| 1 < *pieces)).map(of).collect()
    }

    /// Rows as operations, the last of each identity, in as few transactions as there can be.
    pub fn batches(&self, rows: &[Row]) -> Vec<Batch> {
        let last: BTreeMap<(Kind, &[u8]), &Row> =
            rows.iter().map(|row| ((row.kind, &row.key[..]), row)).collect();
        let (mut batches, mut batch, mut bytes) = (Vec::new(), Batch::new(), 0);
        for row in last.into_values() {
            for (key, value) in self.operations(row) {
                let size = key.len() + value.as_ref().map_or(0, Vec::len);
                if batch.len() == MAX_OPERATIONS || (!batch.is_empty() && MAX_BYTES < bytes + size) {
                    batches.push(std::mem::take(&mut batch));
                    bytes = 0;
                }
                bytes += size;
                batch.push(match value {
                    Some(value) => TxnOp::put(key, value, None),
                    None => TxnOp::delete(key, None),
                });
            }
        }
        batches.push(batch);
        batches
    }

    /// The keys of a row, with their values; `None`: removed. Pieces that a longer record left are never looked at.
    fn operations(&self, row: &Row) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let key = self.row("rows", row);
        let Some(value) = &row.value else { return vec![(key, None)] };
        let pieces = value.len().div_ceil(PIECE).max(1);
        let count = u8::try_from(pieces).expect("records are below 127 MiB");
        let (first, further) = value.split_at(value.len().min(PIECE));
        let mut operations = Vec::with_capacity(pieces);
        for (number, piece) in further.chunks(PIECE).enumerate() {
            let mut key = self.row("more", row);
            key.extend(format!("/{number:04}").into_bytes());
            operations.push((key, Some(piece.into())));
        }
        operations.push((key, Some([&[count], first].concat())));
        operations
    }

    /// Rows from keys below `rows/` with their values, and below `more/`.
    ///
    /// # Errors
    /// Names the first key that makes no sense.
    pub fn rows(
        &self,
        rows: Vec<(Vec<u8>, Vec<u8>)>,
        more: &BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<Vec<Row>, String> {
        let beginning = self.of("rows/");
        let wrong = |key: &[u8], why: &str| format!("key {}: {why}", String::from_utf8_lossy(key));
        let read = |(key, value): (Vec<u8>, Vec<u8>)| {
            let below = key.strip_prefix(&beginning[..]).ok_or_else(|| wrong(&key, "is none of a row"))?;
            let slash = below.iter().position(|byte| *byte == b'/');
            let (table, id) = below.split_at(slash.ok_or_else(|| wrong(&key, "names no record"))?);
            let kind = Kind::ALL.into_iter().find(|kind| kind.table().as_bytes() == table);
            let kind = kind.ok_or_else(|| wrong(&key, "is of no table that is known"))?;
            let id = match is_numbered(kind) {
                true => unhex(&id[1..]).ok_or_else(|| wrong(&key, "is no number"))?,
                false => id[1..].to_vec(),
            };
            let (count, first) = value.split_first().ok_or_else(|| wrong(&key, "is empty"))?;
            let mut row = Row { kind, key: id, value: None };
            let mut value = first.to_vec();
            for number in 1..*count {
                let mut piece = self.row("more", &row);
                piece.extend(format!("/{:04}", number - 1).into_bytes());
                let piece = more.get(&piece).ok_or_else(|| wrong(&key, "lacks a piece"))?;
                value.extend(piece);
            }
            row.value = Some(value);
            Ok(row)
        };
        rows.into_iter().map(read).collect()
    }
}

fn is_numbered(kind: Kind) -> bool {
    matches!(kind, Kind::Spec | Kind::Job | Kind::Node | Kind::Ended)
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let bytes = text.chunks(2).map(|pair| match pair {
        [high, low] => Some((digit(high)? * 16 + digit(low)?) as u8),
        _ => None,
    });
    bytes.collect()
}
