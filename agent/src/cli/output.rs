//! Printing: aligned tables, JSON and YAML.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use serde_json::{Value, json};

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// KIND/NAME, one per line
    Name,
}

/// Writes text to standard output and fails when its reader has left.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Whether standard output takes colours.
pub fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Text that may come from a container, such as a termination message, with its control characters made visible: they
/// could otherwise move the cursor, retitle or script the terminal of who looks at it. Ends of lines and tabs stay when
/// `lines` is set. Marks that reorder text (Unicode TR 9) are shown as well.
pub fn visible(text: &str, lines: bool) -> Cow<'_, str> {
    let harmful = |c: char| {
        !(lines && matches!(c, '\n' | '\t'))
            && (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !harmful(c) => out.push(c),
            // As terminals name them: ^[ is escape, ^? delete.
            c if c.is_ascii() => out.extend(['^', char::from(c as u8 ^ 0x40)]),
            c => out.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(out)
}

/// Rows of cells under a heading, in columns that are as wide as what has been printed so far.
#[derive(Debug, Default)]
pub struct Columns {
    widths: Vec<usize>,
    colours: bool,
}

/// Space between columns, as kubectl has it.
const GAP: usize = 3;

impl Columns {
    /// Columns for standard output.
    pub fn new() -> Columns {
        Columns { widths: Vec::new(), colours: colours() }
    }

    /// Columns without colours.
    pub fn plain() -> Columns {
        Columns::default()
    }

    /// The rows as text, one line each.
    pub fn format(&mut self, rows: &[Vec<String>]) -> String {
        let rows: Vec<Vec<Cow<'_, str>>> =
            rows.iter().map(|row| row.iter().map(|cell| visible(cell, false)).collect()).collect();
        for row in &rows {
            self.widths.resize(self.widths.len().max(row.len()), 0);
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut out = String::new();
        for row in &rows {
            for (n, cell) in row.iter().enumerate() {
                self.cell(&mut out, cell);
                if n + 1 < row.len() {
                    let width = self.widths.get(n).copied().unwrap_or_default();
                    out.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + GAP));
                }
            }
            out.push('\n');
        }
        out
    }

    fn cell(&self, out: &mut String, cell: &str) {
        match colour(cell).filter(|_| self.colours) {
            Some(code) => {
                out.push_str(code);
                out.push_str(cell);
                out.push_str("\x1b[0m");
            }
            None => out.push_str(cell),
        }
    }
}

/// Red for a state that a person must see to. Everything else stays as it is.
fn colour(cell: &str) -> Option<&'static str> {
    const BAD: [&str; 15] = [
        "CrashLoopBackOff",
        "Error",
        "OOMKilled",
        "Failed",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "StartError",
        "ContainerStatusUnknown",
        "NotReady",
        "Warning",
    ];
    BAD.contains(&cell.strip_prefix("Init:").unwrap_or(cell)).then_some("\x1b[31m")
}

/// Objects as JSON or YAML: one as it is, several as a `v1 List`.
///
/// # Errors
/// When they cannot be written as YAML.
pub fn document(format: Format, mut objects: Vec<Value>, single: bool) -> anyhow::Result<String> {
    let value = if single && objects.len() == 1 {
        objects.remove(0)
    } else {
        json!({"apiVersion": "v1", "kind": "List", "items": objects, "metadata": {"resourceVersion": ""}})
    };
    Ok(match format {
        Format::Yaml => serde_yaml::to_string(&value)?,
        _ => format!("{}\n", serde_json::to_string_pretty(&value)?),
    })
}

/// Bytes for people: `1.5MB`, powers of ten as docker and kubectl's peers show image sizes.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    match unit {
        0 => format!("{count}{name}"),
        _ if value < 9.995 => format!("{value:.2}{name}"),
        _ if value < 99.95 => format!("{value:.1}{name}"),
        _ => format!("{value:.0}{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_keep_their_width() {
        let mut columns = Columns { widths: Vec::new(), colours: false };
        let row = |cells: &[&str]| cells.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let first = columns.format(&[row(&["NAME", "AGE"]), row(&["webserver", "3s"])]);
        assert_eq!(first, "NAME        AGE\nwebserver   3s\n");
        assert_eq!(columns.format(&[row(&["a", "5s"])]), "a           5s\n");
    }

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(visible("plain \u{e4}\n\t", true), "plain \u{e4}\n\t");
        assert_eq!(visible("a\nb\tc", false), "a^Jb^Ic");
        assert_eq!(visible("\x1b[2J\x07\r\x7f", true), "^[[2J^G^M^?");
        assert_eq!(visible("\u{9b}2J\u{202e}x", true), "\\u{9b}2J\\u{202e}x");
        let mut columns = Columns { widths: Vec::new(), colours: false };
        assert_eq!(columns.format(&[vec!["\x1b]0;x\x07".to_owned(), "y".to_owned()]]), "^[]0;x^G   y\n");
    }

    #[test]
    fn bad_states_are_red() {
        let mut columns = Columns { widths: Vec::new(), colours: true };
        let text = columns.format(&[vec!["Init:Error".to_owned(), "Running".to_owned()]]);
        assert_eq!(text, "\x1b[31mInit:Error\x1b[0m   Running\n");
    }

    #[test]
    fn sizes() {
        let cases = [
            (0, "0B"),
            (999, "999B"),
            (1500, "1.50kB"),
            (12_340_000, "12.3MB"),
            (999_999, "1.00MB"),
            (456_000_000, "456MB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }
}
