//! Commands beside workers.

use super::{Checked, Invalid};
use crate::v1;

/// Arguments of a command, at most, its program among them.
const MAX_WORDS: usize = 1024;
/// Bytes of all of them.
const MAX_BYTES: usize = 64 << 10;
/// Bytes of one piece of what goes into a command or comes out of it.
pub const MAX_PIECE: usize = 64 << 10;
/// Bytes of input that an agent is sent before it tells that they were taken.
pub const MAX_UNTAKEN: usize = 256 << 10;
/// What a piece of input counts at least: it takes memory, however short it is.
pub const LEAST_PIECE: usize = 256;
/// Characters of what a terminal is called.
const MAX_KIND: usize = 64;

/// A command that somebody wants to run beside a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Program and arguments; empty: a shell.
    pub command: Vec<String>,
    /// `None`: it has no terminal.
    pub terminal: Option<Terminal>,
}

/// The terminal of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// For the variable `TERM`.
    pub kind: String,
    /// Rows and columns, if they are known.
    pub size: Option<(u16, u16)>,
}

/// Checks what is to run beside a worker.
///
/// # Errors
/// Names the field.
pub fn wanted(wire: &v1::ExecBegin) -> Checked<Wanted> {
    let bytes: usize = wire.command.iter().map(|word| word.len() + 1).sum();
    if MAX_WORDS < wire.command.len() || MAX_BYTES < bytes {
        let value = format!("{} words of {bytes} bytes", wire.command.len());
        let allowed = format!("expected at most {MAX_WORDS} words of {MAX_BYTES} bytes");
        return Err(Invalid::new("command", value, allowed));
    }
    if wire.command.first().is_some_and(String::is_empty) || wire.command.iter().any(|it| it.contains('\0')) {
        return Err(Invalid::new("command", "malformed", "expected a program, and no zero bytes"));
    }
    let terminal = wire.terminal.as_ref().map(terminal).transpose()?;
    Ok(Wanted { command: wire.command.clone(), terminal })
}

fn terminal(wire: &v1::Terminal) -> Checked<Terminal> {
    if !is_terminal_kind(&wire.kind) {
        let allowed = format!("expected at most {MAX_KIND} letters, digits, '.', '_', '-', '+'");
        return Err(Invalid::new("terminal.kind", format!("{:?}", wire.kind), allowed));
    }
    Ok(Terminal { kind: wire.kind.clone(), size: wire.size.as_ref().map(window_size).transpose()? })
}

/// Whether a terminal may be called so.
pub fn is_terminal_kind(kind: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_+".contains(c);
    kind.len() <= MAX_KIND && kind.chars().all(allowed)
}

/// Checks the size of a terminal, and returns its rows and columns.
///
/// # Errors
/// It has too many of either.
pub fn window_size(wire: &v1::WindowSize) -> Checked<(u16, u16)> {
    let short = |field: &str, count: u32| {
        u16::try_from(count)
            .map_err(|_| Invalid::new(format!("size.{field}"), count, "expected at most 65,535"))
    };
    Ok((short("rows", wire.rows)?, short("columns", wire.columns)?))
}

/// As how many bytes a piece of input counts among those that were not taken.
pub fn weight(data: &[u8]) -> u32 {
    data.len().clamp(LEAST_PIECE, MAX_PIECE) as u32
}

/// Checks the length of a piece.
///
/// # Errors
/// It is too long.
pub fn piece(data: &[u8]) -> Checked<()> {
    match data.len() {
        0..=MAX_PIECE => Ok(()),
        bytes => Err(Invalid::new("data", format!("{bytes} bytes"), format!("expected at most {MAX_PIECE}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_malformed_is_refused_with_its_field() {
        let of = |command: &[&str], kind: &str, rows: u32| {
            let size = Some(v1::WindowSize { rows, columns: 80 });
            let terminal = Some(v1::Terminal { kind: kind.into(), size });
            let command = command.iter().map(ToString::to_string).collect();
            wanted(&v1::ExecBegin { job: 1, rank: None, command, terminal })
        };
        let field = |wanted: Checked<Wanted>| wanted.unwrap_err().field;
        assert!(of(&["ls", ""], "xterm-256color", 65_535).is_ok() && of(&[], "", 0).is_ok());
        let long = "x".repeat(MAX_BYTES - 1);
        assert!(of(&[&long], "", 0).is_ok());
        assert_eq!(field(of(&[&long, ""], "", 0)), "command");
        assert_eq!(field(of(&["x"; 1025], "", 0)), "command");
        assert_eq!(field(of(&[""], "", 0)), "command");
        assert_eq!(field(of(&["ls", "a\0b"], "", 0)), "command");
        assert_eq!(field(of(&["ls"], "a\nb", 0)), "terminal.kind");
        assert_eq!(field(of(&["ls"], &"x".repeat(65), 0)), "terminal.kind");
        assert_eq!(field(of(&["ls"], "vt100", 65_536)), "size.rows");
        assert!(piece(&[0; MAX_PIECE]).is_ok() && piece(&[0; MAX_PIECE + 1]).is_err());
    }
}
