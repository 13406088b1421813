//! The ranges of the Services' addresses.

use anyhow::bail;
use berth_netplug::{Ipv4Cidr, Ipv6Cidr};

use crate::services::Ranges;

/// For the addresses of Services, when nothing is said.
const USUAL: [&str; 3] = ["10.86.0.0/16", "10.87.0.0/16", "172.30.0.0/16"];
/// The same for IPv6, if pods have such addresses.
const USUAL6: [&str; 2] = ["fd00:86::/112", "fd00:87::/112"];

/// What the first says that says something, else the first of a few ranges that has no address in common with the pods'.
pub(super) fn range(
    said: [&Option<String>; 2],
    pods: &str,
    pods6: &Option<String>,
) -> anyhow::Result<String> {
    let pods6 = pods6.as_deref();
    if let Some(text) = said.into_iter().flatten().next() {
        match Ranges::parse(text) {
            Err(why) => bail!("serviceCIDR: {why}"),
            Ok(ranges) if ranges.v6.is_some() && pods6.is_none() => {
                bail!(
                    "serviceCIDR: {text:?}: pods have no IPv6 addresses; name an IPv6 range in podCIDR, too"
                )
            }
            Ok(_) => return Ok(text.clone()),
        }
    }
    let pods: Option<Ipv4Cidr> = pods.parse().ok();
    let free = |range: &&&str| {
        !range.parse().is_ok_and(|range: Ipv4Cidr| pods.is_some_and(|pods| pods.overlaps(range)))
    };
    let usual = USUAL.iter().find(free).unwrap_or(&USUAL[0]);
    let Some(pods6) = pods6 else { return Ok((*usual).to_owned()) };
    let pods6: Option<Ipv6Cidr> = pods6.parse().ok();
    let free = |range: &&&str| {
        !range.parse().is_ok_and(|range: Ipv6Cidr| pods6.is_some_and(|pods| pods.overlaps(range)))
    };
    Ok(format!("{usual},{}", USUAL6.iter().find(free).unwrap_or(&USUAL6[0])))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn services_have_other_addresses_than_pods() {
        for (pods, pods6, services) in [
            ("10.85.0.0/16", None, "10.86.0.0/16"),
            ("10.86.3.0/24", None, "10.87.0.0/16"),
            ("10.0.0.0/8", None, "172.30.0.0/16"),
            ("what", None, "10.86.0.0/16"),
            ("10.85.0.0/16", Some("fd00:85::/64"), "10.86.0.0/16,fd00:86::/112"),
            ("10.85.0.0/16", Some("fd00:86::/64"), "10.86.0.0/16,fd00:87::/112"),
        ] {
            assert_eq!(range([&None, &None], pods, &pods6.map(str::to_owned)).unwrap(), services, "{pods}");
        }
    }

    #[test]
    fn a_range_that_cannot_be_is_refused_with_its_name() {
        let of = |text: &str, pods6: Option<&str>| {
            range([&None, &Some(text.to_owned())], "10.85.0.0/16", &pods6.map(str::to_owned))
        };
        assert_eq!(of("fd00:9::/112", Some("fd00:85::/64")).unwrap(), "fd00:9::/112");
        let error = of("10.86.0.0/16,fd00:9::/112", None).unwrap_err().to_string();
        assert!(error.starts_with("serviceCIDR:") && error.contains("podCIDR"), "{error}");
        let error = of("10.86.0.0/33", None).unwrap_err().to_string();
        assert!(error.starts_with("serviceCIDR: \"10.86.0.0/33\":"), "{error}");
    }
}
