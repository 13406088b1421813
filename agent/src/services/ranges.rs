//! The ranges of the Services' addresses.

use std::net::IpAddr;

use berth_netplug::{Ipv4Cidr, Ipv6Cidr};
use berth_reconciler::services::IpFamily;

/// Free places in an IPv6 range are looked for among so many: as many as an IPv4 range can have.
const WIDEST: u64 = u32::MAX as u64;

/// One range, or one of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// Of IPv4 addresses.
    pub v4: Option<Ipv4Cidr>,
    /// Of IPv6 addresses.
    pub v6: Option<Ipv6Cidr>,
    /// The family of Services that ask for none: that of the range which was named first.
    pub first: IpFamily,
}

impl Ranges {
    /// Reads `10.86.0.0/16`, `fd00:86::/112`, or both with a comma between.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut ranges = Self { v4: None, v6: None, first: IpFamily::V4 };
        for (i, part) in text.split(',').map(str::trim).enumerate() {
            let wrong = |e: &dyn std::fmt::Display| format!("{part:?}: {e}");
            let family = if part.contains(':') { IpFamily::V6 } else { IpFamily::V4 };
            if ranges.has(family) {
                return Err(format!("{text:?} is not one range, or one of each family with a comma between"));
            }
            match family {
                IpFamily::V4 => ranges.v4 = Some(part.parse().map_err(|e: berth_netplug::Error| wrong(&e))?),
                IpFamily::V6 => ranges.v6 = Some(part.parse().map_err(|e: berth_netplug::Error| wrong(&e))?),
            }
            if i == 0 {
                ranges.first = family;
            }
            if ranges.size(family) < 4 {
                return Err(format!("{part:?} has room for no address"));
            }
        }
        Ok(ranges)
    }

    /// Whether there is a range of that family.
    pub fn has(&self, family: IpFamily) -> bool {
        match family {
            IpFamily::V4 => self.v4.is_some(),
            IpFamily::V6 => self.v6.is_some(),
        }
    }

    /// Whether there is one of each.
    pub fn are_dual(&self) -> bool {
        self.v4.is_some() && self.v6.is_some()
    }

    /// The range of a family as text.
    pub(super) fn shown(&self, family: IpFamily) -> String {
        match family {
            IpFamily::V4 => self.v4.map(|range| range.to_string()),
            IpFamily::V6 => self.v6.map(|range| range.to_string()),
        }
        .unwrap_or_default()
    }

    /// How many addresses are looked through.
    pub(super) fn size(&self, family: IpFamily) -> u32 {
        let size = match family {
            IpFamily::V4 => self.v4.map_or(0, Ipv4Cidr::size),
            IpFamily::V6 => self.v6.map_or(0, |range| 1 << (128 - u32::from(range.prefix())).min(32)),
        };
        u32::try_from(size.min(WIDEST)).unwrap_or(u32::MAX)
    }

    /// An address by its place.
    pub(super) fn nth(&self, family: IpFamily, place: u32) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.v4?.nth(place).map(IpAddr::V4),
            IpFamily::V6 => self.v6?.nth(place).map(IpAddr::V6),
        }
    }

    /// Whether a Service may have it: it is in its family's range, and neither the first of it (the network itself, or any
    /// router of it) nor the last of an IPv4 range.
    pub(super) fn allow(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.v4.is_some_and(|range| {
                range.offset(ip).is_some_and(|place| place >= 1 && u64::from(place) + 1 < range.size())
            }),
            IpAddr::V6(ip) => self.v6.is_some_and(|range| range.contains(ip) && ip != range.network()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_range_that_is_named_first_is_the_usual_one() {
        let of = |text: &str| Ranges::parse(text).map(|all| (all.first, all.are_dual()));
        assert_eq!(of("10.86.0.0/16"), Ok((IpFamily::V4, false)));
        assert_eq!(of("10.86.0.0/16, fd00:86::/112"), Ok((IpFamily::V4, true)));
        assert_eq!(of("fd00:86::/112,10.86.0.0/16"), Ok((IpFamily::V6, true)));
        assert_eq!(of("fd00:86::/112"), Ok((IpFamily::V6, false)));
        for text in ["", "x", "10.86.0.0/16,10.87.0.0/16", "10.86.0.0/16,", "fd00::/129", "fd00::/127"] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn wide_ranges_have_places_too() {
        let wide = Ranges::parse("fd00:86::/64").unwrap();
        assert_eq!(wide.size(IpFamily::V6), u32::MAX);
        assert_eq!(wide.nth(IpFamily::V6, 0x1234_5678), Some("fd00:86::1234:5678".parse().unwrap()));
        assert!(wide.allow("fd00:86::1".parse().unwrap()) && !wide.allow("fd00:86::".parse().unwrap()));
        assert!(!wide.allow("10.86.0.1".parse().unwrap()));
    }
}
