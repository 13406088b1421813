//! Names of signals.

use std::str::FromStr;

use nix::sys::signal::Signal;

use super::Error;

/// The first and the last real-time signal that programs may use (signal(7), with glibc's own two left out).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of a signal that is named as in `TERM`, `SIGTERM`, `rtmin+3` or `15`; 0 is none and asks only whether there is
/// somebody to get one.
pub fn number(name: &str) -> Result<i32, Error> {
    let unknown = || Error::invalid("kill", format!("unknown signal {name:?}"));
    if let Ok(number) = name.parse::<i32>() {
        if !(0..=RTMAX).contains(&number) {
            return Err(unknown());
        }
        return Ok(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |base: i32, rest: &str| -> Result<i32, Error> {
        let offset: i32 = if rest.is_empty() { 0 } else { rest.parse().map_err(|_| unknown())? };
        let number = base.checked_add(offset).ok_or_else(unknown)?;
        if (RTMIN..=RTMAX).contains(&number) { Ok(number) } else { Err(unknown()) }
    };
    if let Some(rest) = short.strip_prefix("RTMIN") {
        return real_time(RTMIN, rest);
    }
    if let Some(rest) = short.strip_prefix("RTMAX") {
        return real_time(RTMAX, rest);
    }
    let known = match short {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        other => other,
    };
    Ok(Signal::from_str(&format!("SIG{known}")).map_err(|_| unknown())? as i32)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::number;

    #[test]
    fn names_and_numbers() {
        for (name, wanted) in [
            ("TERM", 15),
            ("SIGKILL", 9),
            ("term", 15),
            ("1", 1),
            ("0", 0),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("RTMIN", 34),
        ] {
            assert_eq!(number(name).unwrap(), wanted, "{name}");
        }
        for bad in ["", "65", "-1", "SIG", "NOPE", "RTMIN+31", "RTMAX+1", "RTMINx"] {
            assert!(number(bad).is_err(), "{bad:?} passed");
        }
    }
}
