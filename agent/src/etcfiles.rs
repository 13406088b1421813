//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a pod.

use std::net::IpAddr;
use std::path::Path;

use berth_reconciler::pod::Pod;
use k8s_openapi::api::core::v1;

use crate::config::Config;

/// The pod's host name: `spec.hostname`, else its name cut to what the kernel takes; the node's with hostNetwork.
pub fn hostname(pod: &Pod, node_hostname: &str) -> String {
    if pod.spec().host_network == Some(true) {
        return node_hostname.to_owned();
    }
    let name = pod.spec().hostname.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| pod.name().to_owned());
    if pod.spec().set_hostname_as_fqdn == Some(true) {
        return name;
    }
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The pod's fully qualified name, when `spec.subdomain` gives it one.
pub fn fqdn(pod: &Pod, hostname: &str, config: &Config) -> Option<String> {
    let subdomain = pod.spec().subdomain.as_deref().filter(|s| !s.is_empty())?;
    Some(format!("{hostname}.{subdomain}.{}.svc.{}", pod.namespace(), config.cluster_domain))
}

/// Writes the three files into `dir`.
///
/// # Errors
/// The file that could not be written or, for the host's resolver configuration, read.
pub fn write(dir: &Path, pod: &Pod, hostname: &str, ips: &[IpAddr], config: &Config) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("make {}: {e}", dir.display()))?;
    let host_network = pod.spec().host_network == Some(true);
    put(&dir.join("hosts"), &hosts(pod, hostname, ips, host_network, config))?;
    put(&dir.join("hostname"), &format!("{hostname}\n"))?;
    put(&dir.join("resolv.conf"), &resolv_conf(pod, config)?)
}

fn put(path: &Path, text: &str) -> Result<(), String> {
    // Written in place: a running container has this inode mounted.
    std::fs::write(path, text).map_err(|e| format!("write {}: {e}", path.display()))
}

fn hosts(pod: &Pod, hostname: &str, ips: &[IpAddr], host_network: bool, config: &Config) -> String {
    let mut text = if host_network {
        let own = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        format!("# Kubernetes-managed hosts file (host network).\n{own}")
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        for ip in ips {
            match fqdn(pod, hostname, config) {
                Some(long) => text += &format!("{ip}\t{long}\t{hostname}\n"),
                None => text += &format!("{ip}\t{hostname}\n"),
            }
        }
        text
    };
    let aliases = pod.spec().host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text += "\n# Entries added by HostAliases.\n";
        for alias in aliases {
            text += &format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
        }
    }
    text
}

#[derive(Debug, Default, PartialEq)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut all = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => all.servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => all.searches = words.map(str::to_owned).collect(),
                Some("options") => all.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        all
    }

    fn render(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }

    /// `spec.dnsConfig`: servers and searches are appended, an option replaces one of the same name.
    fn merge(&mut self, extra: &v1::PodDNSConfig) {
        let add = |list: &mut Vec<String>, more: Option<&Vec<String>>| {
            for item in more.into_iter().flatten() {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        };
        add(&mut self.servers, extra.nameservers.as_ref());
        add(&mut self.searches, extra.searches.as_ref());
        for option in extra.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            self.options.retain(|o| o.split(':').next() != Some(name));
            self.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
}

/// A pod cannot reach a resolver on the host's loopback, such as systemd-resolved's stub.
fn host_resolver(config: &Config, own_network: bool) -> Result<Resolver, String> {
    let read = |path: &Path| std::fs::read_to_string(path).map(|t| Resolver::parse(&t));
    let found = match read(&config.resolv_conf) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Resolver::default(),
        Err(error) => return Err(format!("read {}: {error}", config.resolv_conf.display())),
    };
    let loopback = |s: &String| s.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if own_network && !found.servers.is_empty() && found.servers.iter().all(loopback) {
        return Ok(read(Path::new("/run/systemd/resolve/resolv.conf")).unwrap_or(found));
    }
    Ok(found)
}

fn resolv_conf(pod: &Pod, config: &Config) -> Result<String, String> {
    let spec = pod.spec();
    let host_network = spec.host_network == Some(true);
    let cluster = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirst" => !host_network && !config.cluster_dns.is_empty(),
        "ClusterFirstWithHostNet" => !config.cluster_dns.is_empty(),
        _ => false,
    };
    let mut resolver = if spec.dns_policy.as_deref() == Some("None") {
        Resolver::default()
    } else {
        host_resolver(config, !host_network)?
    };
    if cluster {
        let domain = &config.cluster_domain;
        let mut searches =
            vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
        searches.append(&mut resolver.searches);
        resolver.searches = searches;
        resolver.servers = config.cluster_dns.iter().map(ToString::to_string).collect();
        resolver.options = vec!["ndots:5".into()];
    }
    if let Some(extra) = &spec.dns_config {
        resolver.merge(extra);
    }
    Ok(resolver.render())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        let object =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}));
        Pod { object: object.unwrap(), source: berth_reconciler::pod::Source::Api }
    }

    fn config() -> Config {
        let args = crate::config::AgentArgs { node_name: Some("n".into()), ..Default::default() };
        Config::load(&args).unwrap()
    }

    #[test]
    fn dns_config_with_policy_none_is_all_there_is() {
        let pod = pod(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["192.0.2.1"], "searches": ["a.example"], "options": [{"name": "ndots", "value": "2"}]}}));
        let text = resolv_conf(&pod, &config()).unwrap();
        assert_eq!(text, "search a.example\nnameserver 192.0.2.1\noptions ndots:2\n");
    }

    #[test]
    fn cluster_first_puts_the_clusters_resolver_first() {
        let mut config = config();
        config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        config.resolv_conf = "/nonexistent".into();
        let text = resolv_conf(&pod(json!({"containers": []})), &config).unwrap();
        assert_eq!(
            text,
            "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
    }

    #[test]
    fn hosts_has_the_pods_name_and_aliases() {
        let pod = pod(json!({"containers": [], "subdomain": "s",
            "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a", "b"]}]}));
        let text = hosts(&pod, "web", &["10.85.0.2".parse().unwrap()], false, &config());
        assert!(text.contains("10.85.0.2\tweb.s.shop.svc.cluster.local\tweb\n"), "{text}");
        assert!(text.ends_with("10.0.0.1\ta\tb\n"), "{text}");
    }

    #[test]
    fn a_long_name_is_cut_to_what_the_kernel_takes() {
        let mut long = pod(json!({"containers": []}));
        long.object.metadata.name = Some(format!("{}-tail", "x".repeat(62)));
        assert_eq!(hostname(&long, "n"), "x".repeat(62));
    }
}
