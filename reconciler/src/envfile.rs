//! Environment files (`valueFrom.fileKeyRef`): the part of the shell's syntax that Kubernetes reads.
//!
//! `NAME='value'`, the value in single quotes and taken as it is, over several lines if it has some; a comment may follow.
//! Blank lines and comments are passed over. `NAME=` alone, or with a blank after it, is empty, as in a shell.

/// What is wrong with a file, and on which line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadFile {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: &'static str,
}

/// The value of a variable in an environment file; of several, the first.
///
/// # Errors
/// When a line up to it is no assignment. What follows it is not looked at.
pub fn value(text: &str, key: &str) -> Result<Option<String>, BadFile> {
    let mut rest = text;
    let mut line = 1;
    while !rest.is_empty() {
        let (first, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let assignment = first.trim_start();
        if assignment.trim().is_empty() || assignment.starts_with('#') {
            (rest, line) = (after, line + 1);
            continue;
        }
        let bad = |reason| BadFile { line, reason };
        let Some((name, _)) = assignment.split_once('=') else { return Err(bad("there is no '='")) };
        if name.is_empty() || name.chars().any(char::is_whitespace) {
            return Err(bad("a name stands right before the '='"));
        }
        // From behind the '=' to the end of the text: a value may have more lines.
        let start = first.len() - assignment.len() + name.len() + 1;
        let (found, taken) = quoted(&rest[start..]).map_err(bad)?;
        if name == key {
            return Ok(Some(found.to_owned()));
        }
        line += rest[..start + taken].matches('\n').count();
        rest = &rest[start + taken..];
    }
    Ok(None)
}

/// The value at the start of a text, and how much of the text it takes up with the rest of its last line.
fn quoted(text: &str) -> Result<(&str, usize), &'static str> {
    let (value, end) = match text.strip_prefix('\'') {
        Some(body) => {
            let length = body.find('\'').ok_or("the closing quote is missing")?;
            (&body[..length], length + 2)
        }
        None if text.is_empty() || text.starts_with(char::is_whitespace) => ("", 0),
        None => return Err("a value must be in single quotes"),
    };
    let line = text[end..].split('\n').next().unwrap_or_default();
    let comment = line.trim();
    // A blank before the value ends the assignment: what follows would be a command.
    let tolerated = comment.is_empty() || comment.starts_with('#') || end == 0 && comment.starts_with('\'');
    if !tolerated || comment.starts_with('#') && line.starts_with('#') {
        return Err("only a comment may follow a value");
    }
    Ok((value, (end + line.len() + 1).min(text.len())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "# a comment\n\n   \n  A='one'\nB='two words' # why\nC=''\nD='first\nsecond # no comment\n'\nE= 'x'\nF=\nG='$HOME \\n \"'\nA='later'\n";

    #[test]
    fn values_are_what_stands_between_single_quotes() {
        for (key, wanted) in [
            ("A", Some("one")),
            ("B", Some("two words")),
            ("C", Some("")),
            ("D", Some("first\nsecond # no comment\n")),
            ("E", Some("")),
            ("F", Some("")),
            ("G", Some("$HOME \\n \"")),
            ("H", None),
            ("second", None),
        ] {
            assert_eq!(value(TEXT, key).unwrap().as_deref(), wanted, "{key}");
        }
        assert_eq!(value("", "A").unwrap(), None);
        assert_eq!(value("A='x'", "A").unwrap().as_deref(), Some("x"), "without a line break at the end");
    }

    #[test]
    fn what_is_no_assignment_is_named_with_its_line() {
        for (text, line, reason) in [
            ("A='x'\nB=bare\n", 2, "single quotes"),
            ("A=\"x\"\n", 1, "single quotes"),
            ("A='x\ny'\nB\n", 3, "no '='"),
            ("A = 'x'\n", 1, "right before"),
            ("='x'\n", 1, "right before"),
            ("A='x\n", 1, "closing quote"),
            ("A='x'y\n", 1, "only a comment"),
            ("A='x'#y\n", 1, "only a comment"),
        ] {
            let error = value(text, "Z").unwrap_err();
            assert!(error.line == line && error.reason.contains(reason), "{text:?}: {error}");
        }
        assert_eq!(value("A='x'\nB=bare\n", "A").unwrap().as_deref(), Some("x"), "not looked at");
    }
}
