//! The names of a node's own pods and Services: a pure function from them to answers.
//!
//! Below the cluster's domain, as Kubernetes' DNS specification has them: `<service>.<namespace>.svc`, `<hostname>.<subdomain>
//! .<namespace>.svc` and `<address-with-dashes>.<namespace>.pod`, and beyond it, since there may be no Service: a pod's own
//! name in the place of a Service's (so that `web` is found from its namespace by the search path, and `web.shop` from others),
//! and the pods of a subdomain under its name.

use std::net::IpAddr;

/// A pod that has addresses.
#[derive(Clone, Debug, Default)]
pub struct PodNames {
    /// Its name, and that of its manifest if this differs.
    pub names: Vec<String>,
    /// Its namespace.
    pub namespace: String,
    /// Its host name.
    pub hostname: String,
    /// `spec.subdomain`.
    pub subdomain: Option<String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Whether the addresses are the node's.
    pub host_network: bool,
}

/// A Service.
#[derive(Clone, Debug, Default)]
pub struct ServiceNames {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its own addresses, or those of its pods if it is headless.
    pub ips: Vec<IpAddr>,
    /// Pods of a headless one that have a host name in its domain.
    pub hosts: Vec<(String, IpAddr)>,
    /// Name, protocol (`tcp`) and number of its ports.
    pub ports: Vec<(String, String, u16)>,
    /// Another name that it stands for (`externalName`).
    pub external: Option<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Ports.
    Srv,
    /// The name of an address.
    Ptr,
    /// Something that no name here has.
    Other,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Addresses of the family that was asked for; none if the name has only others.
    Addresses(Vec<IpAddr>),
    /// Ports with the name to find their addresses by.
    Ports(Vec<(u16, String)>),
    /// A name.
    Name(String),
    /// Another name is to be asked for in its place.
    Alias(String),
    /// Nothing has this name.
    Nothing,
}

/// Whether a name can be one of a [`Zone`] with this domain: all others are for others to say.
pub fn is_ours(name: &str, domain: &str) -> bool {
    address_of_arpa(name).is_some() || below(name, domain).is_some()
}

/// The labels of a name below the domain.
fn below<'a>(name: &'a str, domain: &str) -> Option<Vec<&'a str>> {
    let rest = name.strip_suffix(domain)?;
    match rest.strip_suffix('.') {
        Some(rest) => Some(rest.split('.').collect()),
        None if rest.is_empty() => Some(Vec::new()),
        None => None,
    }
}

/// All names of a node.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    /// The cluster's domain, without a dot at its end.
    pub domain: String,
    /// The pods.
    pub pods: Vec<PodNames>,
    /// The Services.
    pub services: Vec<ServiceNames>,
}

impl Zone {
    /// What a name stands for; none if that is for others to say. `name` has small letters and no dot at its end.
    pub fn find(&self, name: &str, kind: Kind) -> Option<Found> {
        if let Some(ip) = address_of_arpa(name) {
            return self.name_of(ip).map(|name| match kind {
                Kind::Ptr => Found::Name(name),
                _ => Found::Addresses(Vec::new()),
            });
        }
        Some(match below(name, &self.domain)?.split_last() {
            None => Found::Addresses(Vec::new()),
            Some((&"svc", below)) => self.below_svc(below, kind),
            Some((&"pod", below)) => self.below_pod(below, kind),
            _ => Found::Nothing,
        })
    }

    fn below_svc(&self, labels: &[&str], kind: Kind) -> Found {
        match labels {
            [] => Found::Addresses(Vec::new()),
            [namespace] => self.namespace(namespace),
            [name, namespace] => {
                if let Some(service) = self.service(name, namespace) {
                    return match &service.external {
                        Some(other) => Found::Alias(other.clone()),
                        None if kind == Kind::Srv => ports(service, &self.domain, |_| true),
                        None => addresses(service.ips.iter().copied(), kind),
                    };
                }
                let in_domain = self.pods_in(namespace).filter(|pod| pod.subdomain.as_deref() == Some(name));
                let found: Vec<IpAddr> = in_domain.flat_map(|pod| pod.ips.iter().copied()).collect();
                if found.is_empty() {
                    self.pod(name, namespace, kind)
                } else {
                    addresses(found.into_iter(), kind)
                }
            }
            [host, domain, namespace] => {
                if let Some(service) = self.service(domain, namespace) {
                    let found: Vec<IpAddr> =
                        service.hosts.iter().filter(|(name, _)| name == host).map(|(_, ip)| *ip).collect();
                    if !found.is_empty() {
                        return addresses(found.into_iter(), kind);
                    }
                }
                let is_it =
                    |pod: &&PodNames| pod.hostname == *host && pod.subdomain.as_deref() == Some(domain);
                let found: Vec<IpAddr> =
                    self.pods_in(namespace).filter(is_it).flat_map(|pod| pod.ips.iter().copied()).collect();
                if found.is_empty() { Found::Nothing } else { addresses(found.into_iter(), kind) }
            }
            [port, protocol, name, namespace] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                (Some(port), Some(protocol)) => match self.service(name, namespace) {
                    Some(service) => {
                        ports(service, &self.domain, |(known, by, _)| known == port && by == protocol)
                    }
                    None => Found::Nothing,
                },
                _ => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }

    fn below_pod(&self, labels: &[&str], kind: Kind) -> Found {
        match labels {
            [] => Found::Addresses(Vec::new()),
            [namespace] => self.namespace(namespace),
            [name, namespace] => {
                let has = |pod: &&PodNames| pod.ips.iter().any(|ip| dashed(*ip) == *name);
                match self.pods_in(namespace).find(has) {
                    Some(pod) => addresses(pod.ips.iter().copied().filter(|ip| dashed(*ip) == *name), kind),
                    None => self.pod(name, namespace, kind),
                }
            }
            _ => Found::Nothing,
        }
    }

    /// A namespace has no addresses, but names below it.
    fn namespace(&self, namespace: &str) -> Found {
        let known = self.pods_in(namespace).next().is_some()
            || self.services.iter().any(|service| service.namespace == namespace);
        if known { Found::Addresses(Vec::new()) } else { Found::Nothing }
    }

    fn pod(&self, name: &str, namespace: &str, kind: Kind) -> Found {
        match self.pods_in(namespace).find(|pod| pod.names.iter().any(|known| known == name)) {
            Some(pod) => addresses(pod.ips.iter().copied(), kind),
            None => Found::Nothing,
        }
    }

    fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &PodNames> {
        self.pods.iter().filter(move |pod| pod.namespace == namespace)
    }

    fn service(&self, name: &str, namespace: &str) -> Option<&ServiceNames> {
        self.services.iter().find(|service| service.name == name && service.namespace == namespace)
    }

    /// The name of a pod's or a Service's own address; none for addresses of others.
    fn name_of(&self, ip: IpAddr) -> Option<String> {
        let domain = &self.domain;
        let of_pod = self.pods.iter().find(|pod| !pod.host_network && pod.ips.contains(&ip)).map(|pod| {
            let namespace = &pod.namespace;
            match (&pod.subdomain, pod.names.first()) {
                (Some(subdomain), _) => format!("{}.{subdomain}.{namespace}.svc.{domain}", pod.hostname),
                (None, Some(name)) => format!("{name}.{namespace}.pod.{domain}"),
                (None, None) => format!("{}.{namespace}.pod.{domain}", dashed(ip)),
            }
        });
        of_pod.or_else(|| {
            let service = self.services.iter().find(|service| service.ips.contains(&ip))?;
            Some(format!("{}.{}.svc.{domain}", service.name, service.namespace))
        })
    }
}

fn addresses(ips: impl Iterator<Item = IpAddr>, kind: Kind) -> Found {
    Found::Addresses(match kind {
        Kind::A => ips.filter(IpAddr::is_ipv4).collect(),
        Kind::Aaaa => ips.filter(IpAddr::is_ipv6).collect(),
        _ => Vec::new(),
    })
}

fn ports(service: &ServiceNames, domain: &str, wanted: impl Fn(&(String, String, u16)) -> bool) -> Found {
    let target = format!("{}.{}.svc.{domain}", service.name, service.namespace);
    let found: Vec<(u16, String)> =
        service.ports.iter().filter(|port| wanted(port)).map(|port| (port.2, target.clone())).collect();
    if found.is_empty() { Found::Nothing } else { Found::Ports(found) }
}

/// An address as a label: `10-85-0-2`.
fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn address_of_arpa(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = rest.split('.').rev().map(|part| part.parse().ok()).collect::<Option<_>>()?;
        return Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?));
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let digit = |part: &str| (part.len() == 1).then(|| u8::from_str_radix(part, 16).ok()).flatten();
    let digits: Vec<u8> = rest.split('.').rev().map(digit).collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    (digits.len() == 32).then(|| <[u8; 16]>::try_from(bytes).ok()).flatten().map(IpAddr::from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn zone() -> Zone {
        let pod = |names: &[&str], subdomain: Option<&str>, ips: &[&str]| PodNames {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            namespace: "shop".into(),
            hostname: names[0].into(),
            subdomain: subdomain.map(str::to_owned),
            ips: ips.iter().map(|text| ip(text)).collect(),
            host_network: false,
        };
        let web = ServiceNames {
            name: "web".into(),
            namespace: "shop".into(),
            ips: vec![ip("10.96.0.5")],
            ports: vec![("http".into(), "tcp".into(), 80), ("dns".into(), "udp".into(), 53)],
            ..ServiceNames::default()
        };
        let db = ServiceNames {
            name: "db".into(),
            namespace: "shop".into(),
            ips: vec![ip("10.85.0.7")],
            hosts: vec![("db-0".into(), ip("10.85.0.7"))],
            ..ServiceNames::default()
        };
        let other = ServiceNames {
            name: "other".into(),
            namespace: "shop".into(),
            external: Some("example.org".into()),
            ..ServiceNames::default()
        };
        Zone {
            domain: "cluster.local".into(),
            pods: vec![
                pod(&["front-n1", "front"], None, &["10.85.0.2", "fd00::2"]),
                pod(&["a"], Some("ring"), &["10.85.0.3"]),
                pod(&["b"], Some("ring"), &["10.85.0.4"]),
                pod(&["web"], None, &["10.85.0.5"]),
                PodNames { host_network: true, ..pod(&["probe"], None, &["192.0.2.1"]) },
            ],
            services: vec![web, db, other],
        }
    }

    fn found(name: &str, kind: Kind) -> Option<Found> {
        zone().find(name, kind)
    }

    fn some(ips: &[&str]) -> Option<Found> {
        Some(Found::Addresses(ips.iter().map(|text| ip(text)).collect()))
    }

    #[test]
    fn names_of_pods() {
        for name in [
            "front.shop.svc.cluster.local",
            "front-n1.shop.svc.cluster.local",
            "front.shop.pod.cluster.local",
        ] {
            assert_eq!(found(name, Kind::A), some(&["10.85.0.2"]), "{name}");
            assert_eq!(found(name, Kind::Aaaa), some(&["fd00::2"]), "{name}");
            assert_eq!(
                found(name, Kind::Other),
                some(&[]),
                "{name}: it is there, but has nothing of that kind"
            );
        }
        assert_eq!(found("10-85-0-2.shop.pod.cluster.local", Kind::A), some(&["10.85.0.2"]));
        assert_eq!(found("fd00--2.shop.pod.cluster.local", Kind::Aaaa), some(&["fd00::2"]));
        assert_eq!(found("10-85-0-2.other.pod.cluster.local", Kind::A), Some(Found::Nothing));
        assert_eq!(found("a.ring.shop.svc.cluster.local", Kind::A), some(&["10.85.0.3"]));
        assert_eq!(found("ring.shop.svc.cluster.local", Kind::A), some(&["10.85.0.3", "10.85.0.4"]));
        assert_eq!(found("probe.shop.svc.cluster.local", Kind::A), some(&["192.0.2.1"]));
    }

    #[test]
    fn names_of_services() {
        assert_eq!(
            found("web.shop.svc.cluster.local", Kind::A),
            some(&["10.96.0.5"]),
            "before the pod of that name"
        );
        assert_eq!(found("web.shop.svc.cluster.local", Kind::Aaaa), some(&[]));
        assert_eq!(found("db.shop.svc.cluster.local", Kind::A), some(&["10.85.0.7"]));
        assert_eq!(found("db-0.db.shop.svc.cluster.local", Kind::A), some(&["10.85.0.7"]));
        assert_eq!(found("db-1.db.shop.svc.cluster.local", Kind::A), Some(Found::Nothing));
        let port = |number| Some(Found::Ports(vec![(number, "web.shop.svc.cluster.local".to_owned())]));
        assert_eq!(found("_http._tcp.web.shop.svc.cluster.local", Kind::Srv), port(80));
        assert_eq!(found("_dns._udp.web.shop.svc.cluster.local", Kind::Srv), port(53));
        assert_eq!(found("_dns._tcp.web.shop.svc.cluster.local", Kind::Srv), Some(Found::Nothing));
        assert_eq!(found("other.shop.svc.cluster.local", Kind::A), Some(Found::Alias("example.org".into())));
    }

    #[test]
    fn what_is_below_the_domain_is_ours_to_deny() {
        for name in [
            "no.shop.svc.cluster.local",
            "web.no.svc.cluster.local",
            "x.cluster.local",
            "a.b.c.d.e.svc.cluster.local",
        ] {
            assert_eq!(found(name, Kind::A), Some(Found::Nothing), "{name}");
        }
        for name in ["cluster.local", "svc.cluster.local", "shop.svc.cluster.local", "pod.cluster.local"] {
            assert_eq!(found(name, Kind::A), some(&[]), "{name}");
        }
        for name in ["example.org", "xcluster.local", "local", ""] {
            assert_eq!(found(name, Kind::A), None, "{name}");
        }
    }

    #[test]
    fn names_of_addresses() {
        let name = |text: &str| Some(Found::Name(text.to_owned()));
        assert_eq!(found("2.0.85.10.in-addr.arpa", Kind::Ptr), name("front-n1.shop.pod.cluster.local"));
        assert_eq!(found("3.0.85.10.in-addr.arpa", Kind::Ptr), name("a.ring.shop.svc.cluster.local"));
        assert_eq!(found("5.0.96.10.in-addr.arpa", Kind::Ptr), name("web.shop.svc.cluster.local"));
        let nibbles = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(found(nibbles, Kind::Ptr), name("front-n1.shop.pod.cluster.local"));
        assert_eq!(found("2.0.85.10.in-addr.arpa", Kind::A), some(&[]));
        for other in
            ["1.2.0.192.in-addr.arpa", "9.9.85.10.in-addr.arpa", "85.10.in-addr.arpa", "x.in-addr.arpa"]
        {
            assert_eq!(found(other, Kind::Ptr), None, "{other}");
        }
    }
}
