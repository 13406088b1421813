//! Networks beside each other: what each must have of its own.

use std::path::{Path, PathBuf};

use super::Config;
use crate::error::{Error, Result};

/// The folder below that of the first network which holds the folders of the others.
pub(crate) const FOLDER: &str = "networks";

/// Where the leases of another network lie.
pub(crate) fn folder(first: &Path, name: &str) -> PathBuf {
    first.join(FOLDER).join(name)
}

/// Words that say something else where a network is named.
const RESERVED: [&str; 3] = ["default", "none", "host"];

/// Checks the networks beside `first`, each by itself and against the others.
pub(super) fn check(first: &Config) -> Result<()> {
    if let Some(parent) = first.parent.as_ref().filter(|_| first.name.is_none()) {
        return Err(Error::InvalidConfig(format!("the first network has a bridge, not the parent {parent}")));
    }
    for (index, one) in first.beside.iter().enumerate() {
        let name = one.name.as_deref().unwrap_or_default();
        let refuse = |text: String| Err(Error::InvalidConfig(format!("network {name}: {text}")));
        check_name(name).or_else(|reason| refuse(reason.into()))?;
        match one.check() {
            Err(Error::InvalidConfig(text)) => return refuse(text),
            other => other?,
        }
        if first.beside[..index].iter().any(|other| other.name == one.name) {
            return refuse("the name is used twice".into());
        }
        for other in std::iter::once(first).chain(&first.beside[..index]) {
            let whose =
                other.name.as_deref().map_or_else(|| "the pod network".into(), |n| format!("network {n}"));
            if one.parent.is_none() && other.parent.is_none() && other.bridge == one.bridge {
                return refuse(format!("bridge {} is that of {whose}, too", one.bridge));
            }
            if one.ipv4.overlaps(other.ipv4) {
                return refuse(format!("{} overlaps {} of {whose}", one.ipv4, other.ipv4));
            }
            if let (Some(ours), Some(theirs)) = (one.ipv6, other.ipv6)
                && ours.overlaps(theirs)
            {
                return refuse(format!("{ours} overlaps {theirs} of {whose}"));
            }
        }
        if let Some(net) = first.service_ipv4.filter(|net| net.overlaps(one.ipv4)) {
            return refuse(format!("{} overlaps {net} of the Services", one.ipv4));
        }
        if let (Some(net), Some(services)) = (one.ipv6, first.service_ipv6)
            && net.overlaps(services)
        {
            return refuse(format!("{net} overlaps {services} of the Services"));
        }
    }
    Ok(())
}

/// The name is a folder's name and a word of an annotation.
fn check_name(name: &str) -> Result<(), &'static str> {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends = name.starts_with(letter) && name.ends_with(letter);
    if !ends || name.len() > 63 || !name.chars().all(|c| letter(c) || c == '-') {
        return Err(
            "the name is not 1 to 63 small letters, digits and -, with a letter or digit at both ends",
        );
    }
    if RESERVED.contains(&name) {
        return Err("the name is taken: default, none and host have a meaning of their own");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn with(changes: &[(&str, &str, &str)]) -> Config {
        let mut config = Config::new("/x");
        config.ipv6 = Some("fd00:85::/64".parse().unwrap());
        config.service_ipv4 = Some("10.86.0.0/16".parse().unwrap());
        config.service_ipv6 = Some("fd00:86::/112".parse().unwrap());
        config.beside = changes
            .iter()
            .map(|(name, bridge, net)| config.another(name, bridge, net.parse().unwrap()))
            .collect();
        config
    }

    fn refusal(config: &Config) -> String {
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn networks_beside_each_other_have_nothing_in_common() {
        let good = with(&[("front", "br-front", "10.90.0.0/24"), ("back", "br-back", "10.90.1.0/24")]);
        good.check().unwrap();
        assert_eq!(good.beside[1].state_dir, Path::new("/x/networks/back"));
        let cases = [
            (("front", "br-back", "10.90.1.0/24"), "the name is used twice"),
            (("back", "br-front", "10.90.1.0/24"), "bridge br-front is that of network front, too"),
            (("back", "berth0", "10.90.1.0/24"), "bridge berth0 is that of the pod network, too"),
            (("back", "br-back", "10.90.0.128/25"), "10.90.0.128/25 overlaps 10.90.0.0/24 of network front"),
            (("back", "br-back", "10.85.1.0/24"), "10.85.1.0/24 overlaps 10.85.0.0/16 of the pod network"),
            (("back", "br-back", "10.86.1.0/24"), "10.86.1.0/24 overlaps 10.86.0.0/16 of the Services"),
            (("back", "a-name-of-16-char", "10.90.1.0/24"), "bridge name"),
            (("Back", "br-back", "10.90.1.0/24"), "the name is not"),
            (("../x", "br-back", "10.90.1.0/24"), "the name is not"),
            (("none", "br-back", "10.90.1.0/24"), "the name is taken"),
            (("back", "br-back", "10.90.1.0/31"), "prefix length"),
        ];
        for ((name, bridge, net), said) in cases {
            let text = refusal(&with(&[("front", "br-front", "10.90.0.0/24"), (name, bridge, net)]));
            let begin = format!("network configuration: network {name}: ");
            assert!(text.starts_with(&begin) && text.contains(said), "{text}");
        }
    }

    #[test]
    fn both_families_are_looked_at() {
        let mut config = with(&[("front", "br-front", "10.90.0.0/24")]);
        for (net, said) in [
            ("fd00:85::/64", "overlaps fd00:85::/64 of the pod network"),
            ("fd00:86::/104", "overlaps fd00:86::/112 of the Services"),
        ] {
            config.beside[0].ipv6 = Some(net.parse().unwrap());
            assert!(refusal(&config).contains(said), "{}", refusal(&config));
        }
        config.beside[0].ipv6 = Some("fd00:90::/64".parse().unwrap());
        config.check().unwrap();
        config.parent = Some("up0".into());
        assert!(refusal(&config).contains("the first network has a bridge"));
        config.parent = None;
        config.beside[0].gateway = Some("10.91.0.1".parse().unwrap());
        assert!(refusal(&config).contains("network front: gateway 10.91.0.1 is no address"));
    }
}
