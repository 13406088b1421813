//! A file's text, split into documents.
//!
//! The text is cut at `---` lines first and each piece is parsed alone, so that a mistake in one document does not hide
//! the others.

use super::json;
use super::node::Position;
use super::yaml::{self, Fault, Piece};

/// Reads all documents of a text.
pub(crate) fn read(text: &str) -> Piece {
    let mut all = Piece::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some(fault) = control_character(text) {
        all.faults.push(fault);
        return all;
    }
    for (first_line, text) in pieces(text) {
        let piece = read_piece(text, first_line);
        all.documents.extend(piece.documents);
        all.faults.extend(piece.faults);
    }
    all
}

fn read_piece(text: &str, first_line: usize) -> Piece {
    let Some(after_brace) = text.trim_start().strip_prefix('{') else { return yaml::read(text, first_line) };
    match json::read(text, first_line) {
        Ok(documents) => Piece { documents, faults: Vec::new() },
        // What starts with a brace may still be YAML in flow style.
        Err(fault) => match yaml::read(text, first_line) {
            piece if piece.faults.is_empty() || !after_brace.trim_start().starts_with('"') => piece,
            _ => Piece { documents: Vec::new(), faults: vec![fault] },
        },
    }
}

/// The pieces between document markers with the number of their first line. Directives stay with the document
/// that follows them.
fn pieces(text: &str) -> Vec<(usize, &str)> {
    let mut pieces = Vec::new();
    let (mut start, mut first_line, mut at) = (0, 1, 0);
    let mut only_directives = true;
    let mut directives = false;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && at > start && !(only_directives && directives) {
            pieces.push((first_line, &text[start..at]));
            (start, first_line) = (at, index + 1);
            directives = false;
        }
        directives |= line.starts_with('%');
        only_directives = !marker && (at == start || only_directives) && is_prologue(line);
        at += line.len();
    }
    pieces.push((first_line, &text[start..]));
    pieces.retain(|(_, piece)| {
        !piece.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    });
    pieces
}

fn is_prologue(line: &str) -> bool {
    let line = line.trim_end();
    line.is_empty() || line.starts_with('%') || line.starts_with('#')
}

/// The first character that YAML does not allow. (A NUL would silently end the text.)
fn control_character(text: &str) -> Option<Fault> {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..);
    let at = text.find(|c| !allowed(c))?;
    let line_start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let position = Position {
        line: text[..at].matches('\n').count() + 1,
        column: text[line_start..at].chars().count() + 1,
    };
    let c = text[at..].chars().next().unwrap_or_default();
    Some(Fault::new(position, format!("control characters are not allowed (U+{:04X})", u32::from(c))))
}
