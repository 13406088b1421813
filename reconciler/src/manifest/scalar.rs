//! Plain scalars as Kubernetes' YAML library (`sigs.k8s.io/yaml`, go-yaml 2) reads them: YAML 1.1, but without base 60.

use super::node::Value;

/// What a plain (unquoted, untagged) scalar means. An error for the numbers that JSON does not have.
pub(crate) fn resolve(text: &str) -> Result<Value, String> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Value::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf"
        | "-.Inf" | "-.INF" => return Err(format!("the number {text} does not exist in JSON")),
        _ => match text.as_bytes()[0] {
            b'.' => text.parse().map_or_else(|_| Value::String(text.to_owned()), Value::Float),
            b'+' | b'-' | b'0'..=b'9' => number(text)?,
            _ => Value::String(text.to_owned()),
        },
    })
}

fn number(text: &str) -> Result<Value, String> {
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    if let Some(value) = integer(&plain) {
        return Ok(value);
    }
    if !looks_like_float(&plain) {
        return Ok(Value::String(text.to_owned()));
    }
    match plain.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Value::Float(value)),
        _ => Err(format!("the number {text} is out of range")),
    }
}

/// Go's `strconv.ParseInt(text, 0, 64)`: `0x`, `0o`, `0b`, and a leading 0 for octal.
fn integer(plain: &str) -> Option<Value> {
    let (negative, digits) = match plain.as_bytes().first()? {
        b'-' => (true, &plain[1..]),
        b'+' => (false, &plain[1..]),
        _ => (false, plain),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    // from_str_radix would take a second sign.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, radix).ok()?;
    Some(Value::Int(if negative { -magnitude } else { magnitude }))
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn looks_like_float(plain: &str) -> bool {
    let unsigned = plain.strip_prefix(['-', '+']).unwrap_or(plain);
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let whole = digits(unsigned);
    let mut rest = &unsigned[whole..];
    let mut fraction = 0;
    if let Some(after) = rest.strip_prefix('.') {
        fraction = digits(after);
        rest = &after[fraction..];
    }
    if whole + fraction == 0 {
        return false;
    }
    match rest.strip_prefix(['e', 'E']) {
        Some(exponent) => {
            let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            !exponent.is_empty() && digits(exponent) == exponent.len()
        }
        None => rest.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    #[test]
    fn scalars_mean_what_go_yaml_says() {
        let table = [
            ("0644", Value::Int(420)),
            ("0o644", Value::Int(420)),
            ("0x1F", Value::Int(31)),
            ("0b101", Value::Int(5)),
            ("-0x10", Value::Int(-16)),
            ("1_000", Value::Int(1000)),
            ("+5", Value::Int(5)),
            ("0", Value::Int(0)),
            ("08", Value::Float(8.0)),
            ("1e3", Value::Float(1000.0)),
            ("1.", Value::Float(1.0)),
            (".5", Value::Float(0.5)),
            ("-1.5", Value::Float(-1.5)),
            ("1:30", string("1:30")),
            ("190:20:30", string("190:20:30")),
            ("2001-12-14", string("2001-12-14")),
            ("1.2.3", string("1.2.3")),
            ("100m", string("100m")),
            ("+-5", string("+-5")),
            ("0x", string("0x")),
            ("-", string("-")),
            (".", string(".")),
            ("e3", string("e3")),
            ("yes", Value::Bool(true)),
            ("On", Value::Bool(true)),
            ("n", Value::Bool(false)),
            ("yEs", string("yEs")),
            ("~", Value::Null),
            ("NULL", Value::Null),
            ("nil", string("nil")),
        ];
        for (text, value) in table {
            assert_eq!(resolve(text), Ok(value), "{text}");
        }
        assert!(resolve(".inf").is_err());
        assert!(resolve("1e999").is_err());
    }
}
