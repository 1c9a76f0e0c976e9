//! Rows one after the other as bytes: in backups, and in commits that are too large for one transaction of etcd.
//!
//! `kind u8, what u8 (0 removed, 1 there), key length u16, value length u32, key, value`, numbers in little-endian order.

use aquifer_proto::store::{Kind, Row};

/// Bytes of a row before its key.
const HEAD: usize = 8;

/// Appends a row.
pub fn push(row: &Row, bytes: &mut Vec<u8>) {
    let kind = Kind::ALL.iter().position(|kind| *kind == row.kind).expect("all kinds are listed");
    let value = row.value.as_deref().unwrap_or_default();
    let key_bytes = u16::try_from(row.key.len()).expect("identities are numbers and names");
    let value_bytes = u32::try_from(value.len()).expect("records are far below 4 GiB");
    bytes.extend([kind as u8, row.value.is_some().into()]);
    bytes.extend(key_bytes.to_le_bytes());
    bytes.extend(value_bytes.to_le_bytes());
    bytes.extend(&row.key);
    bytes.extend(value);
}

/// Takes the first row off; `None`: there is no whole row, or none of a kind that is known.
pub fn pop(bytes: &mut &[u8]) -> Option<Row> {
    let head: &[u8; HEAD] = bytes.first_chunk()?;
    let kind = *Kind::ALL.get(usize::from(head[0]))?;
    let key_end = HEAD + usize::from(u16::from_le_bytes([head[2], head[3]]));
    let end = key_end + u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let value = bytes.get(key_end..end)?;
    let value = match head[1] {
        0 if value.is_empty() => None,
        1 => Some(value.into()),
        _ => return None,
    };
    let row = Row { kind, key: bytes[HEAD..key_end].into(), value };
    *bytes = &bytes[end..];
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_as_they_were_written_and_a_torn_one_is_none() {
        let values = [Some(vec![7; 300]), None, Some(vec![])];
        let rows: Vec<Row> = Kind::ALL
            .into_iter()
            .zip(values.into_iter().cycle())
            .map(|(kind, value)| Row { kind, key: kind.table().into(), value })
            .collect();
        let mut bytes = Vec::new();
        rows.iter().for_each(|row| push(row, &mut bytes));
        let mut rest = &bytes[..];
        let read: Vec<Row> = std::iter::from_fn(|| pop(&mut rest)).collect();
        assert_eq!((read, rest.len()), (rows, 0));
        assert_eq!(pop(&mut &bytes[..HEAD + 5]), None);
        assert_eq!(pop(&mut &[99, 1, 0, 0, 0, 0, 0, 0][..]), None, "a kind that is not known");
    }
}
