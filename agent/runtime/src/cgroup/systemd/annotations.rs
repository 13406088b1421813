//! Properties of the scope that annotations of a container ask for, as runc and crun know them:
//! `org.systemd.property.TimeoutStopUSec: uint64 10000000`. podman sets some.

use std::collections::HashMap;

use super::manager::Property;
use super::message::Value;

const PREFIX: &str = "org.systemd.property.";
/// systemd's D-Bus interface has only microseconds; what ends in `Sec` is given in seconds.
const SECONDS: &str = "Sec";
const MICROSECONDS_PER_SECOND: u64 = 1_000_000;

/// The properties, by name.
///
/// # Errors
/// The name and the text of an annotation that cannot be read.
pub fn properties(annotations: Option<&HashMap<String, String>>) -> Result<Vec<Property>, (String, String)> {
    let mut list = Vec::new();
    for (key, text) in annotations.into_iter().flatten() {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let wrong = || (key.clone(), text.clone());
        // What is shorter, or has other characters, is the name of no property.
        if name.len() < 3 || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(wrong());
        }
        let value = value(text.trim()).ok_or_else(wrong)?;
        list.push(in_microseconds(name, value).ok_or_else(wrong)?);
    }
    list.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(list)
}

/// `TimeoutStopSec` is `TimeoutStopUSec` times a million.
fn in_microseconds(name: &str, value: Value) -> Option<Property> {
    match name.strip_suffix(SECONDS) {
        Some(stem) if !name.ends_with("USec") => {
            let seconds = match value {
                Value::U64(n) => n,
                Value::U32(n) => u64::from(n),
                Value::I32(n) => u64::try_from(n).ok()?,
                Value::I64(n) => u64::try_from(n).ok()?,
                _ => return None,
            };
            Some((format!("{stem}USec"), Value::U64(seconds.checked_mul(MICROSECONDS_PER_SECOND)?)))
        }
        _ => Some((name.to_owned(), value)),
    }
}

/// A value in GVariant's text format, of a type that properties of scopes have: booleans, numbers, strings and lists of
/// strings. A number without a type is an int32.
fn value(text: &str) -> Option<Value> {
    if let Some((kind, number)) = text.split_once(' ')
        && !text.starts_with(['\'', '"', '['])
    {
        let number = number.trim();
        return match kind {
            "int32" => number.parse().ok().map(Value::I32),
            "uint32" => number.parse().ok().map(Value::U32),
            "int64" => number.parse().ok().map(Value::I64),
            "uint64" => number.parse().ok().map(Value::U64),
            _ => None,
        };
    }
    match text {
        "true" => return Some(Value::Bool(true)),
        "false" => return Some(Value::Bool(false)),
        _ => {}
    }
    if let Some(list) = text.strip_prefix('[') {
        return strings(list).map(Value::Texts);
    }
    if text.starts_with(['\'', '"']) {
        return string(text).filter(|(_, rest)| rest.is_empty()).map(|(text, _)| Value::Text(text));
    }
    text.parse().ok().map(Value::I32)
}

/// The strings of a list up to its bracket, which ends the text.
fn strings(mut rest: &str) -> Option<Vec<String>> {
    let mut list = Vec::new();
    loop {
        rest = rest.trim_start();
        if list.is_empty() && rest == "]" {
            return Some(list);
        }
        let (text, after) = string(rest)?;
        list.push(text);
        let after = after.trim_start();
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => return (after == "]").then_some(list),
        }
    }
}

/// A quoted string, and what comes after it.
fn string(text: &str) -> Option<(String, &str)> {
    let mut characters = text.char_indices();
    let (_, quote) = characters.next().filter(|(_, c)| matches!(c, '\'' | '"'))?;
    let mut plain = String::new();
    while let Some((at, c)) = characters.next() {
        match c {
            c if c == quote => return Some((plain, &text[at + c.len_utf8()..])),
            '\\' => plain.push(match characters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                c @ ('\\' | '\'' | '"') => c,
                _ => return None,
            }),
            c => plain.push(c),
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let texts = |list: &[&str]| Value::Texts(list.iter().map(|t| (*t).to_owned()).collect());
        for (text, expected) in [
            ("true", Value::Bool(true)),
            ("10", Value::I32(10)),
            ("-3", Value::I32(-3)),
            ("uint64 18446744073709551615", Value::U64(u64::MAX)),
            ("int64 -5", Value::I64(-5)),
            ("'inactive-or-failed'", Value::Text("inactive-or-failed".to_owned())),
            ("\"it's \\\"x\\\"\"", Value::Text("it's \"x\"".to_owned())),
            ("['a b', \"c\"]", texts(&["a b", "c"])),
            ("[]", texts(&[])),
        ] {
            assert_eq!(value(text).as_ref(), Some(&expected), "{text}");
        }
        for bad in ["", "yes", "'x", "'x' y", "['a'", "['a',]", "[1]", "uint64 -1", "byte 1", "1.5", "'\\q'"]
        {
            assert_eq!(value(bad), None, "{bad}");
        }
    }

    #[test]
    fn annotations_become_properties() {
        let of =
            |key: &str, text: &str| properties(Some(&HashMap::from([(key.to_owned(), text.to_owned())])));
        let microseconds = vec![("TimeoutStopUSec".to_owned(), Value::U64(2_000_000))];
        assert_eq!(of("org.systemd.property.TimeoutStopSec", "2").unwrap(), microseconds);
        assert_eq!(of("org.systemd.property.TimeoutStopUSec", "uint64 2000000").unwrap(), microseconds);
        assert_eq!(of("org.other", "x").unwrap(), []);
        for (key, text) in [("TimeoutStopSec", "'2'"), ("Bad-Name", "1"), ("After", "a.target"), ("", "1")] {
            let key = format!("{PREFIX}{key}");
            assert_eq!(of(&key, text), Err((key.clone(), text.to_owned())));
        }
    }
}
