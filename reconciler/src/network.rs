//! What a pod asks of its network by annotations.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::quantity::Quantity;

mod selection;

pub use selection::{DEFAULT, FIRST, First, Limit, NETWORKS, NONE, STATUS, Selection};

/// Limits what the pod may receive: bits per second.
pub const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
/// Limits what the pod may send: bits per second.
pub const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";
/// The addresses that the pod wants, separated by commas: at most one per family.
pub const IPS: &str = "berth.dev/ips";
/// The hardware address that the pod wants.
pub const MAC: &str = "berth.dev/mac";

/// 1 kbit/s and 1 Pbit/s, as `pkg/util/bandwidth` of Kubernetes has them.
const BANDWIDTH: std::ops::RangeInclusive<i64> = 1_000..=1_000_000_000_000_000;

/// What the annotations say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Bits per second to the pod.
    pub ingress: Option<u64>,
    /// Bits per second from the pod.
    pub egress: Option<u64>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Hardware address.
    pub mac: Option<[u8; 6]>,
    /// The first network, to which all of these belong.
    pub first: First,
    /// Further networks.
    pub further: Vec<Selection>,
}

/// An annotation that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key}: {value:?}: {reason}")]
pub struct Refusal {
    /// Its name.
    pub key: &'static str,
    /// What it says.
    pub value: String,
    /// What is wrong with that.
    pub reason: String,
}

impl Wishes {
    /// Reads the annotations of a pod.
    ///
    /// # Errors
    /// The first one that cannot be.
    pub fn read(annotations: Option<&BTreeMap<String, String>>) -> Result<Self, Refusal> {
        fn one<T>(
            annotations: Option<&BTreeMap<String, String>>,
            key: &'static str,
            read: impl FnOnce(&str) -> Result<T, String>,
        ) -> Result<Option<T>, Refusal> {
            let Some(value) = annotations.and_then(|all| all.get(key)) else { return Ok(None) };
            read(value).map(Some).map_err(|reason| Refusal { key, value: value.clone(), reason })
        }
        let wishes = Self {
            ingress: one(annotations, INGRESS_BANDWIDTH, bandwidth)?,
            egress: one(annotations, EGRESS_BANDWIDTH, bandwidth)?,
            ips: one(annotations, IPS, addresses)?.unwrap_or_default(),
            mac: one(annotations, MAC, hardware_address)?,
            first: one(annotations, FIRST, selection::first)?.unwrap_or_default(),
            further: one(annotations, NETWORKS, selection::networks)?.unwrap_or_default(),
        };
        one(annotations, NETWORKS, |_| wishes.agree())?;
        Ok(wishes)
    }

    /// Checks the further networks against the first.
    fn agree(&self) -> Result<(), String> {
        match &self.first {
            First::None if !self.further.is_empty() => {
                Err(format!("{FIRST}: {NONE} leaves the pod without networks"))
            }
            first if self.further.iter().any(|one| one.network == first.name()) => {
                Err(format!("network {} is the pod's first one already", first.name()))
            }
            _ => Ok(()),
        }
    }

    /// The networks named, with the annotation that names each.
    pub fn networks(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let first = match &self.first {
            First::Named(name) => Some((FIRST, name.as_str())),
            _ => None,
        };
        first.into_iter().chain(self.further.iter().map(|one| (NETWORKS, one.network.as_str())))
    }
}

/// The annotations that say which networks a pod is on.
pub(crate) const OF_NETWORKS: [&str; 2] = [FIRST, NETWORKS];
/// Those that say what it has in the first.
pub(crate) const OF_FIRST: [&str; 4] = [INGRESS_BANDWIDTH, EGRESS_BANDWIDTH, IPS, MAC];

/// Which of these annotations is there.
pub(crate) fn first_of(
    annotations: Option<&BTreeMap<String, String>>,
    keys: impl IntoIterator<Item = &'static str>,
) -> Option<&'static str> {
    keys.into_iter().find(|key| annotations.is_some_and(|all| all.contains_key(*key)))
}

fn bandwidth(text: &str) -> Result<u64, String> {
    let bits = Quantity::parse(text).map_err(|e| e.to_string())?.value();
    if bits < *BANDWIDTH.start() {
        return Err("resource is unreasonably small (< 1kbit)".into());
    }
    if bits > *BANDWIDTH.end() {
        return Err("resource is unreasonably large (> 1Pbit)".into());
    }
    u64::try_from(bits).map_err(|e| e.to_string())
}

fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    let ips: Vec<IpAddr> = text.split(',').map(|part| address(part.trim())).collect::<Result<_, _>>()?;
    for family in [true, false] {
        if ips.iter().filter(|ip| ip.is_ipv4() == family).count() > 1 {
            return Err("more than one address of a family".into());
        }
    }
    Ok(ips)
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IP address"))
}

fn hardware_address(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
        .collect();
    let bytes: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    match bytes {
        Some(bytes) if bytes[0] & 1 == 0 && bytes != [0; 6] => Ok(bytes),
        _ => Err("is not the hardware address of one interface, such as 02:00:00:00:00:05".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(key: &str, value: &str) -> Result<Wishes, String> {
        let annotations = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        Wishes::read(Some(&annotations)).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn bandwidth_is_from_1k_to_1p() {
        for (text, bits) in
            [("1k", 1_000), ("10M", 10_000_000), ("1Mi", 1 << 20), ("1P", 1_000_000_000_000_000)]
        {
            assert_eq!(read(INGRESS_BANDWIDTH, text).unwrap().ingress, Some(bits), "{text}");
            assert_eq!(read(EGRESS_BANDWIDTH, text).unwrap().egress, Some(bits), "{text}");
        }
        let small = read(EGRESS_BANDWIDTH, "999").unwrap_err();
        assert_eq!(
            small,
            "annotation kubernetes.io/egress-bandwidth: \"999\": resource is unreasonably small (< 1kbit)"
        );
        assert!(read(INGRESS_BANDWIDTH, "-1M").unwrap_err().contains("unreasonably small"));
        assert!(read(INGRESS_BANDWIDTH, "1.1P").unwrap_err().contains("unreasonably large"));
        assert!(read(INGRESS_BANDWIDTH, "10Mbit").unwrap_err().contains("quantities must match"));
    }

    #[test]
    fn further_networks_are_others_than_the_first() {
        let both = |first: &str, networks: &str| {
            let of = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
            Wishes::read(Some(&[(FIRST, first), (NETWORKS, networks)].map(of).into()))
                .map_err(|refusal| refusal.to_string())
        };
        let wishes = both("front", "back,default").unwrap();
        let named: Vec<_> = wishes.networks().collect();
        assert_eq!(named, [(FIRST, "front"), (NETWORKS, "back"), (NETWORKS, "default")]);
        let error = both("front", "back,front").unwrap_err();
        assert_eq!(
            error,
            "annotation k8s.v1.cni.cncf.io/networks: \"back,front\": network front is the pod's first one already"
        );
        assert!(both("none", "back").unwrap_err().contains("leaves the pod without networks"));
        assert!(
            read(NETWORKS, "default").unwrap_err().contains("network default is the pod's first one already")
        );
    }

    #[test]
    fn addresses_are_one_per_family() {
        let ips = read(IPS, "10.85.0.9, fd00::9").unwrap().ips;
        assert_eq!(ips, ["10.85.0.9".parse::<IpAddr>().unwrap(), "fd00::9".parse().unwrap()]);
        assert!(read(IPS, "10.85.0.9,10.85.0.10").unwrap_err().contains("more than one address"));
        assert!(read(IPS, "10.85.0.9/16").unwrap_err().contains("\"10.85.0.9/16\" is not an IP address"));
        assert_eq!(read(MAC, "02:00:00:00:00:aB").unwrap().mac, Some([2, 0, 0, 0, 0, 0xab]));
        for text in ["", "2:0:0:0:0:5", "01:00:5e:00:00:01", "00:00:00:00:00:00", "02-00-00-00-00-05"] {
            assert!(read(MAC, text).is_err(), "{text}");
        }
    }
}
