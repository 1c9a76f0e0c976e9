//! Tables in files: comma-separated, plain or compressed by gzip, with errors that name the place.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use serde_json::Value;

/// What is wrong with an input, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputError {
    /// The file.
    pub file: String,
    /// Its line, from 1; 0 where it is about the whole file.
    pub line: usize,
    /// The column's name; empty where it is about the whole line.
    pub column: String,
    /// What stands there; empty where there is nothing to show.
    pub value: String,
    /// What may stand there, or what went wrong.
    pub expected: String,
}

impl InputError {
    /// An error about a whole file.
    pub fn file(path: &Path, what: impl Into<String>) -> InputError {
        InputError {
            file: path.display().to_string(),
            line: 0,
            column: String::new(),
            value: String::new(),
            expected: what.into(),
        }
    }
}

impl std::error::Error for InputError {}
impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if 0 < self.line {
            write!(f, ", line {}", self.line)?;
        }
        if !self.column.is_empty() {
            write!(f, ", column {}", self.column)?;
        }
        if !self.value.is_empty() || !self.column.is_empty() {
            write!(f, ": {:?}", self.value)?;
        }
        write!(f, ": {}", self.expected)
    }
}

/// Text of a file, unpacked if its first bytes are those of gzip.
///
/// # Errors
/// When it cannot be read, or is no text.
pub fn read_text(path: &Path) -> Result<String, InputError> {
    let bytes = std::fs::read(path).map_err(|error| InputError::file(path, error.to_string()))?;
    let bytes = match bytes.starts_with(&[0x1f, 0x8b]) {
        true => {
            let mut plain = Vec::new();
            let read = flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut plain);
            read.map_err(|error| InputError::file(path, format!("cannot be unpacked: {error}")))?;
            plain
        }
        false => bytes,
    };
    String::from_utf8(bytes).map_err(|_| InputError::file(path, "is no UTF-8 text"))
}

/// A table with named columns.
#[derive(Clone, Debug)]
pub struct Table {
    file: String,
    columns: BTreeMap<String, usize>,
    rows: Vec<(usize, Vec<String>)>,
}

/// One row of a table.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    table: &'a Table,
    line: usize,
    cells: &'a [String],
}

impl Table {
    /// Reads comma-separated text whose first line names the columns. Lines that are empty or begin with `#` are
    /// skipped; a cell may stand in double quotes, on one line.
    ///
    /// # Errors
    /// When a required column lacks, a column has no meaning, or a row has too many or too few cells.
    pub fn parse(file: &Path, text: &str, required: &[&str], known: &[&str]) -> Result<Table, InputError> {
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim_end_matches('\r')));
        let mut lines = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let file = file.display().to_string();
        let error = |line, column: &str, value: &str, expected: String| InputError {
            file: file.clone(),
            line,
            column: column.into(),
            value: value.into(),
            expected,
        };
        let (line, header) =
            lines.next().ok_or_else(|| error(0, "", "", "is empty: expected a line of names".into()))?;
        let mut columns = BTreeMap::new();
        for (at, name) in split(header).into_iter().enumerate() {
            if !known.is_empty() && !known.contains(&&name[..]) && !required.contains(&&name[..]) {
                let names: Vec<&str> = required.iter().chain(known).copied().collect();
                return Err(error(
                    line,
                    &name,
                    &name,
                    format!("no such column; known are {}", names.join(", ")),
                ));
            }
            if columns.insert(name.clone(), at).is_some() {
                return Err(error(line, &name, &name, "a second column of this name".into()));
            }
        }
        if let Some(lacks) = required.iter().find(|name| !columns.contains_key(**name)) {
            return Err(error(
                line,
                lacks,
                header,
                format!("this column lacks; required are {}", required.join(", ")),
            ));
        }
        let mut rows = Vec::new();
        for (line, text) in lines {
            let cells = split(text);
            if cells.len() != columns.len() {
                return Err(error(
                    line,
                    "",
                    text,
                    format!("{} cells where the first line has {}", cells.len(), columns.len()),
                ));
            }
            rows.push((line, cells));
        }
        Ok(Table { file, columns, rows })
    }

    /// The same table from a list of JSON objects; a row's number counts as its line.
    ///
    /// # Errors
    /// As of [`Table::parse`]; a value must be a text, a number, or a list of texts, which is joined by `|`.
    pub fn from_objects(
        file: &Path,
        objects: &[&serde_json::Map<String, Value>],
        required: &[&str],
        known: &[&str],
    ) -> Result<Table, InputError> {
        let file = file.display().to_string();
        let names: Vec<&str> = required.iter().chain(known).copied().collect();
        let columns = names.iter().enumerate().map(|(at, name)| (name.to_string(), at)).collect();
        let mut rows = Vec::new();
        for (line, object) in (1..).zip(objects) {
            let error = |column: &str, value: String, expected: String| InputError {
                file: file.clone(),
                line,
                column: column.into(),
                value,
                expected,
            };
            let mut cells = vec![String::new(); names.len()];
            for (key, value) in *object {
                let known = format!("no such key; known are {}", names.join(", "));
                let at = names.iter().position(|name| name == key);
                let at = at.ok_or_else(|| error(key, value.to_string(), known))?;
                let cell = cell(value);
                cells[at] = cell.ok_or_else(|| {
                    error(key, value.to_string(), "expected a text, a number, or a list of texts".into())
                })?;
            }
            if let Some(lacks) = required.iter().find(|name| !object.contains_key(**name)) {
                return Err(error(lacks, String::new(), "this key lacks".into()));
            }
            rows.push((line, cells));
        }
        Ok(Table { file, columns, rows })
    }

    /// The rows.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|(line, cells)| Row { table: self, line: *line, cells })
    }
}

fn cell(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(list) => {
            let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            Some(texts?.join("|"))
        }
        Value::Null => Some(String::new()),
        Value::Bool(_) | Value::Object(_) => None,
    }
}

fn split(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let cell = cells.last_mut().expect("at least one cell");
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            character => cell.push(character),
        }
    }
    cells.into_iter().map(|cell| cell.trim().to_string()).collect()
}

impl Row<'_> {
    /// The cell of a column; empty where there is no such column.
    pub fn text(&self, column: &str) -> &str {
        self.table.columns.get(column).map_or("", |at| &self.cells[*at])
    }

    /// The line of the row, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// A number of a column.
    ///
    /// # Errors
    /// When it is none, or not within `least..=most`.
    pub fn number<N>(&self, column: &str, least: N, most: N) -> Result<N, InputError>
    where
        N: FromStr + PartialOrd + fmt::Display + Copy,
    {
        let number = self.text(column).parse().ok();
        let number = number.filter(|number| least <= *number && *number <= most);
        number.ok_or_else(|| self.error(column, format!("expected a number from {least} to {most}")))
    }

    /// What a reader makes of a cell.
    ///
    /// # Errors
    /// What the reader says.
    pub fn read<T>(
        &self,
        column: &str,
        reader: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, InputError> {
        reader(self.text(column)).map_err(|expected| self.error(column, expected))
    }

    /// An error about a cell.
    pub fn error(&self, column: &str, expected: impl Into<String>) -> InputError {
        InputError {
            file: self.table.file.clone(),
            line: self.line,
            column: column.into(),
            value: self.text(column).into(),
            expected: expected.into(),
        }
    }
}
