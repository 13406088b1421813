//! Address ranges in CIDR notation.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// An IPv4 network such as `10.85.0.0/16`. Bits below the prefix are always zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Cidr {
    network: u32,
    prefix: u8,
}

impl Ipv4Cidr {
    /// Makes a network from any address in it.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if `prefix` is above 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self> {
        if prefix > 32 {
            return Err(Error::InvalidConfig(format!("prefix length {prefix} of {address} is above 32")));
        }
        let cidr = Self { network: u32::from(address), prefix };
        Ok(Self { network: cidr.network & cidr.mask_bits(), prefix })
    }

    fn mask_bits(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// The network's own address (all host bits zero).
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network)
    }

    /// The prefix length in bits, 0 to 32.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The net mask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(self.mask_bits())
    }

    /// Number of addresses, network and broadcast included.
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The address `offset` places after the network address, if it is inside.
    pub fn nth(self, offset: u32) -> Option<Ipv4Addr> {
        (u64::from(offset) < self.size()).then(|| Ipv4Addr::from(self.network + offset))
    }

    /// How far `address` is from the network address, if it is inside.
    pub fn offset(self, address: Ipv4Addr) -> Option<u32> {
        let address = u32::from(address);
        (address & self.mask_bits() == self.network).then(|| address - self.network)
    }

    /// Whether `address` belongs to the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.offset(address).is_some()
    }

    /// Whether the networks have addresses in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl FromStr for Ipv4Cidr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, prefix) = split(text)?;
        Self::new(address, prefix)
    }
}

/// An IPv6 network such as `fd00:85::/112`. Bits below the prefix are always zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv6Cidr {
    network: u128,
    prefix: u8,
}

impl Ipv6Cidr {
    /// Makes a network from any address in it.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if `prefix` is above 128.
    pub fn new(address: Ipv6Addr, prefix: u8) -> Result<Self> {
        if prefix > 128 {
            return Err(Error::InvalidConfig(format!("prefix length {prefix} of {address} is above 128")));
        }
        let cidr = Self { network: u128::from(address), prefix };
        Ok(Self { network: cidr.network & cidr.mask_bits(), prefix })
    }

    fn mask_bits(self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// The network's own address (all host bits zero).
    pub fn network(self) -> Ipv6Addr {
        Ipv6Addr::from(self.network)
    }

    /// The prefix length in bits, 0 to 128.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The net mask.
    pub fn mask(self) -> Ipv6Addr {
        Ipv6Addr::from(self.mask_bits())
    }

    /// Whether the networks have addresses in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }

    /// The address `offset` places after the network address, if it is inside.
    pub fn nth(self, offset: u32) -> Option<Ipv6Addr> {
        let address = self.network.checked_add(u128::from(offset))?;
        (address & self.mask_bits() == self.network).then(|| Ipv6Addr::from(address))
    }

    /// Whether `address` belongs to the network.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        u128::from(address) & self.mask_bits() == self.network
    }

    /// How far `address` is from the network address, if it is inside and not farther than IPv4 addresses can be.
    pub fn offset(self, address: Ipv6Addr) -> Option<u32> {
        let address = u128::from(address);
        let inside = address & self.mask_bits() == self.network;
        inside.then(|| u32::try_from(address - self.network).ok()).flatten()
    }
}

impl fmt::Display for Ipv6Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl FromStr for Ipv6Cidr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, prefix) = split(text)?;
        Self::new(address, prefix)
    }
}

fn split<A: FromStr>(text: &str) -> Result<(A, u8)> {
    let bad = || Error::InvalidConfig(format!("{text:?} is not a network in CIDR notation"));
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    Ok((address.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?))
}

macro_rules! string_forms {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(cidr: $type) -> String {
                cidr.to_string()
            }
        }
    };
}
string_forms!(Ipv4Cidr);
string_forms!(Ipv6Cidr);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_cleared() {
        let cidr: Ipv4Cidr = "10.85.3.4/16".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.85.0.0/16");
        assert_eq!(cidr.mask(), Ipv4Addr::new(255, 255, 0, 0));
        let cidr: Ipv6Cidr = "fd00:85::7/112".parse().unwrap();
        assert_eq!(cidr.to_string(), "fd00:85::/112");
    }

    #[test]
    fn offsets_stay_inside() {
        let cidr: Ipv4Cidr = "10.0.0.0/30".parse().unwrap();
        assert_eq!(cidr.nth(3), Some(Ipv4Addr::new(10, 0, 0, 3)));
        assert_eq!(cidr.nth(4), None);
        assert_eq!(cidr.offset(Ipv4Addr::new(10, 0, 0, 4)), None);
        let all: Ipv4Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::new(1, 2, 3, 4)));
        let v6: Ipv6Cidr = "fd00::/126".parse().unwrap();
        assert_eq!(v6.nth(4), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "::/129", "a/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Ipv4Cidr>().is_err(), "{text}");
            assert!(text.parse::<Ipv6Cidr>().is_err(), "{text}");
        }
    }
}
