//! Which registries are spoken to over plain http.

use std::net::IpAddr;

/// Host and port of a registry name.
fn host(registry: &str) -> &str {
    if let Some(bracketed) = registry.strip_prefix('[') {
        return bracketed.split_once(']').map_or(bracketed, |(host, _)| host);
    }
    match registry.rsplit_once(':') {
        Some((host, _)) if !host.contains(':') => host,
        _ => registry,
    }
}

/// Whether the registry is this machine, which needs no TLS.
pub(super) fn is_loopback(registry: &str) -> bool {
    let host = host(registry);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether one of the user's entries (`host`, `host:port`, a CIDR) means the registry.
pub(super) fn is_listed(registry: &str, list: &[String]) -> bool {
    let host = host(registry);
    list.iter().any(|entry| entry == registry || entry == host || in_cidr(host, entry))
}

fn in_cidr(host: &str, cidr: &str) -> bool {
    let parsed =
        cidr.split_once('/').and_then(|(net, bits)| Some((net.parse().ok()?, bits.parse::<u32>().ok()?)));
    match (host.parse::<IpAddr>(), parsed) {
        (Ok(IpAddr::V4(ip)), Some((IpAddr::V4(net), bits))) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            ip.to_bits() & mask == net.to_bits() & mask
        }
        (Ok(IpAddr::V6(ip)), Some((IpAddr::V6(net), bits))) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            ip.to_bits() & mask == net.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_needs_no_tls() {
        for registry in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in ["docker.io", "localhost.example.com", "10.0.0.1:5000", "128.0.0.1", "[::2]:5000"] {
            assert!(!is_loopback(registry), "{registry}");
        }
    }

    #[test]
    fn lists_hold_hosts_ports_and_networks() {
        let list = ["reg.lan:5000", "old.lan", "10.1.0.0/16", "fd00::/8"].map(str::to_owned);
        for registry in
            ["reg.lan:5000", "old.lan", "old.lan:81", "10.1.2.3:5000", "10.1.2.3", "[fd00::7]:5000"]
        {
            assert!(is_listed(registry, &list), "{registry}");
        }
        for registry in ["reg.lan", "reg.lan:5001", "10.2.0.1", "docker.io", "[fe80::1]"] {
            assert!(!is_listed(registry, &list), "{registry}");
        }
        assert!(is_listed("8.8.8.8", &["0.0.0.0/0".to_owned()]));
    }
}
