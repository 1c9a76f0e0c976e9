//! What people see: tables that fit the terminal, colour where there is one, errors with what to do next.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::{env, fmt, io};

use serde::Serialize;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// How a command writes to standard output.
#[derive(Clone, Copy, Debug, Default)]
pub struct Output {
    /// Machines read it: JSON instead of text.
    pub json: bool,
    /// The reader sees colours.
    pub color: bool,
    /// Columns of the terminal; `None` where lines may be as long as they like.
    pub width: Option<usize>,
    /// Somebody sits there: hints on what to do next are welcome.
    pub hints: bool,
}

impl Output {
    /// Finds out what standard output is.
    pub fn new(json: bool, no_color: bool) -> Output {
        let terminal = io::stdout().is_terminal();
        let asked_not_to = no_color || env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout());
        let columns = size.ok().map(|size| usize::from(size.ws_col)).filter(|columns| 0 < *columns);
        Output {
            json,
            color: terminal && !asked_not_to && !dumb,
            width: if terminal { columns } else { None },
            hints: terminal && !json,
        }
    }

    /// Writes text, with a line feed at its end. A reader that has gone away ends the program quietly.
    pub fn text(&self, text: impl fmt::Display) {
        write_out(format!("{text}\n").as_bytes());
    }

    /// Writes a hint on what to do next, if somebody sits there.
    pub fn hint(&self, text: impl fmt::Display) {
        if self.hints {
            self.text(self.paint(Color::Dim, &text.to_string()));
        }
    }

    /// Writes a JSON document.
    pub fn document(&self, value: &impl Serialize) {
        self.text(serde_json::to_string_pretty(value).expect("views are JSON"));
    }

    /// Writes a JSON document on one line, for streams.
    pub fn line(&self, value: &impl Serialize) {
        self.text(serde_json::to_string(value).expect("views are JSON"));
    }

    /// Text in a colour, if the reader sees colours.
    pub fn paint(&self, color: Color, text: &str) -> String {
        match self.color {
            true => format!("\x1b[{}m{text}\x1b[0m", color as u8),
            false => text.into(),
        }
    }

    /// A job's or node's state, in the colour of how good it is.
    pub fn state(&self, state: &str) -> String {
        let color = match state {
            "running" | "succeeded" | "up" => Color::Green,
            "pending" | "starting" | "stopping" | "cordoned" | "draining" => Color::Yellow,
            "failed" | "timed-out" | "lost" => Color::Red,
            _ => Color::Dim,
        };
        self.paint(color, state)
    }
}

/// Writes bytes to standard output, and ends the program if nobody reads them any more.
pub fn write_out(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Colours of a terminal, as their codes.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Color {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Blue = 34,
    Magenta = 35,
    Cyan = 36,
}

/// On which side a column is flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Side {
    Left,
    Right,
}

/// Rows under a heading, two spaces between columns, numbers flush right.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
    elastic: Vec<usize>,
    indent: usize,
}

impl Table {
    /// A table with these columns.
    pub fn new(columns: &[(&'static str, Side)]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new(), elastic: Vec::new(), indent: 0 }
    }

    /// Columns that are shortened where the terminal is too narrow, the first one first.
    pub fn elastic(mut self, columns: &[usize]) -> Table {
        self.elastic = columns.to_vec();
        self
    }

    /// Moves the table to the right.
    pub fn indent(mut self, columns: usize) -> Table {
        self.indent = columns;
        self
    }

    /// Adds a row: one cell a column.
    pub fn row<Cell: Into<String>>(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell.into())).collect();
        assert_eq!(cells.len(), self.columns.len(), "cells of a row");
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines of the table. `paint` gives a cell, by its column, its colour.
    pub fn render(&self, output: &Output, paint: impl Fn(usize, &str) -> String) -> String {
        let mut widths: Vec<usize> = self.columns.iter().map(|(name, _)| name.width()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        if let Some(most) = output.width {
            let all = self.indent + widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
            let mut over = all.saturating_sub(most);
            for column in &self.elastic {
                let least = self.columns[*column].0.width().max(8);
                let cut = over.min(widths[*column].saturating_sub(least));
                widths[*column] -= cut;
                over -= cut;
            }
        }
        let mut lines = Vec::new();
        let heading: Vec<String> = self.columns.iter().map(|(name, _)| name.to_string()).collect();
        lines.push(self.line(&widths, &heading, |_, cell| output.paint(Color::Bold, cell)));
        lines.extend(self.rows.iter().map(|row| self.line(&widths, row, &paint)));
        lines.join("\n")
    }

    /// The lines of the table without colours in its cells.
    pub fn plain(&self, output: &Output) -> String {
        self.render(output, |_, cell| cell.into())
    }

    fn line(&self, widths: &[usize], cells: &[String], paint: impl Fn(usize, &str) -> String) -> String {
        let mut line = " ".repeat(self.indent);
        for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let cell = shorten(cell, *width);
            let pad = " ".repeat(width.saturating_sub(cell.width()));
            let painted = if cell.is_empty() { String::new() } else { paint(at, &cell) };
            line += &match self.columns[at].1 {
                Side::Left => painted + &pad,
                Side::Right => pad + &painted,
            };
            line += "  ";
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// Text without control characters, which could move a terminal's cursor or change its colours.
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => printable.extend(character.escape_debug()),
            false => printable.push(character),
        }
    }
    printable
}

/// The text, or its beginning and `…`, in so many columns.
pub fn shorten(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.into();
    }
    let (mut short, mut used) = (String::new(), 1);
    for character in text.chars() {
        used += character.width().unwrap_or(0);
        if columns < used {
            break;
        }
        short.push(character);
    }
    short.truncate(short.trim_end().len());
    short + "…"
}

/// Lines of names and values, the values under each other.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let pairs: Vec<_> = pairs.iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = pairs.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
    let line = |(name, value): &&(&str, String)| format!("{name:width$}  {}", printable(value));
    pairs.iter().map(line).collect::<Vec<String>>().join("\n")
}

/// Why a command did not do what it should, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit code: 1 refused, 2 usage, 3 unreachable, 4 another scheduler leads.
    pub exit: u8,
    /// What did not happen, and why.
    pub sentence: String,
    /// What to do next; empty if there is nothing to say.
    pub next: String,
}

impl Failure {
    /// A refusal: exit code 1.
    pub fn refused(sentence: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure { exit: 1, sentence: sentence.into(), next: next.into() }
    }

    /// Wrong use: exit code 2.
    pub fn usage(sentence: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure { exit: 2, sentence: sentence.into(), next: next.into() }
    }
}

impl std::error::Error for Failure {}
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// Tells an error on standard error, and returns the exit code that it stands for.
pub fn tell(error: &anyhow::Error) -> ExitCode {
    let mut lines = format!("aquifer: {}\n", printable(&format!("{error:#}")));
    let failure = error.downcast_ref::<Failure>();
    if let Some(next) = failure.map(|failure| &failure.next).filter(|next| !next.is_empty()) {
        lines += &format!("  {}\n", printable(next));
    }
    // Nothing is left to do if even that cannot be told.
    let _ = io::stderr().write_all(lines.as_bytes());
    ExitCode::from(failure.map_or(1, |failure| failure.exit))
}

/// Tells something on standard error that is no result.
pub fn aside(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{}", printable(&text.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[("ID", Side::Left), ("RANKS", Side::Right), ("WHY", Side::Left)]);
        table.row(["job-1", "2", "waits: room for 1 of 2 ranks"]);
        table.row(["job-10", "1024", "水 is wide"]);
        table.row(["job-11", "1", ""]);
        table.elastic(&[2])
    }

    #[test]
    fn columns_stand_under_each_other_and_lines_end_with_their_text() {
        let text = table().plain(&Output::default());
        assert_eq!(
            text,
            "\
ID      RANKS  WHY
job-1       2  waits: room for 1 of 2 ranks
job-10   1024  水 is wide
job-11      1"
        );
    }

    #[test]
    fn a_narrow_terminal_shortens_the_elastic_column() {
        let text = table().plain(&Output { width: Some(25), ..Output::default() });
        assert_eq!(
            text,
            "\
ID      RANKS  WHY
job-1       2  waits: ro…
job-10   1024  水 is wide
job-11      1"
        );
        assert!(text.lines().all(|line| line.width() <= 25));
    }

    #[test]
    fn wide_characters_are_never_cut_in_half() {
        assert_eq!(shorten("水水水水", 6), "水水…");
        assert_eq!(shorten("水水水水", 8), "水水水水");
        assert_eq!(shorten("one two", 5), "one…");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\nc"), "a\\u{1b}[31mb\\nc");
    }

    #[test]
    fn colours_do_not_move_columns() {
        let output = Output { color: true, ..Output::default() };
        let text = table().render(&output, |_, cell| output.paint(Color::Red, cell));
        assert!(text.contains("\x1b[31mjob-1\x1b[0m       \x1b[31m2\x1b[0m  "), "{text}");
    }
}
