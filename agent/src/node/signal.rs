//! Signal names as images and `lifecycle.stopSignal` write them.

use std::str::FromStr;

use nix::sys::signal::Signal;

/// The number behind `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`; none if it is no signal.
pub(crate) fn number(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    // The C library keeps the first two real-time signals for itself.
    let real_time = |base: i32, sign: i32, rest: &str| -> Option<i32> {
        let offset = if rest.is_empty() { 0 } else { rest[1..].parse::<i32>().ok()? };
        let number = base + sign * offset;
        (34..=64).contains(&number).then_some(number)
    };
    if let Some(rest) = name.strip_prefix("RTMIN").filter(|r| r.is_empty() || r.starts_with('+')) {
        return real_time(34, 1, rest);
    }
    if let Some(rest) = name.strip_prefix("RTMAX").filter(|r| r.is_empty() || r.starts_with('-')) {
        return real_time(64, -1, rest);
    }
    Signal::from_str(&format!("SIG{name}")).ok().map(|s| s as i32)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn every_way_to_write_a_signal() {
        assert_eq!(number("SIGTERM"), Some(15));
        assert_eq!(number("quit"), Some(3));
        assert_eq!(number("9"), Some(9));
        assert_eq!(number("SIGRTMIN+3"), Some(37));
        assert_eq!(number("RTMAX-1"), Some(63));
        assert_eq!(number("SIGNONE"), None);
        assert_eq!(number("0"), None);
        assert_eq!(number("RTMIN+40"), None);
    }
}
