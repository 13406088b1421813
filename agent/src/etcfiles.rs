//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a pod.

use std::net::IpAddr;
use std::path::Path;

use berth_reconciler::pod::Pod;
use k8s_openapi::api::core::v1;

use crate::config::Config;

/// Linux' host names have at most so many bytes (`__NEW_UTS_LEN`).
const MAX_KERNEL_NAME: usize = 64;
/// And DNS labels so many.
const MAX_LABEL: usize = 63;
/// What resolvers take, as a kubelet counts (`pkg/apis/core/validation`, `pkg/kubelet/network/dns`).
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// What a pod is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Its host name.
    pub host: String,
    /// The domain that `spec.subdomain` puts it into.
    pub domain: Option<String>,
    /// What its processes see as host name: with `setHostnameAsFQDN` the long name.
    pub kernel: String,
}

/// The pod's names: `spec.hostnameOverride`, `spec.hostname`, else its own name cut to what a label takes; the node's with
/// hostNetwork.
///
/// # Errors
/// The long name is longer than the kernel takes.
pub fn names(pod: &Pod, node_hostname: &str, config: &Config) -> Result<Names, String> {
    let spec = pod.spec();
    let plain = |name: &str| Names { host: name.to_owned(), domain: None, kernel: name.to_owned() };
    if spec.host_network == Some(true) {
        return Ok(plain(node_hostname));
    }
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    if let Some(name) = given(&spec.hostname_override) {
        return Ok(plain(&name));
    }
    let name = given(&spec.hostname).unwrap_or_else(|| pod.name().to_owned());
    let cut: String = name.chars().take(MAX_LABEL).collect();
    let host = cut.trim_end_matches(['-', '.']).to_owned();
    let domain =
        given(&spec.subdomain).map(|sub| format!("{sub}.{}.svc.{}", pod.namespace(), config.cluster_domain));
    let kernel = match domain.as_ref().filter(|_| spec.set_hostname_as_fqdn == Some(true)) {
        None => host.clone(),
        Some(domain) => {
            let long = format!("{host}.{domain}");
            if long.len() > MAX_KERNEL_NAME {
                return Err(format!(
                    "failed to construct FQDN from pod hostname and cluster domain, FQDN {long} is too long \
                     ({MAX_KERNEL_NAME} characters is the max, {} characters requested)",
                    long.len()
                ));
            }
            long
        }
    };
    Ok(Names { host, domain, kernel })
}

/// Writes the three files into `dir`; `network` is the pod's first one, if that is not the node's own. Gives what of the resolver's configuration had to be left out, if anything.
///
/// # Errors
/// The file that could not be written or, for the host's resolver configuration, read.
pub fn write(
    dir: &Path,
    pod: &Pod,
    names: &Names,
    ips: &[IpAddr],
    config: &Config,
    network: Option<&str>,
) -> Result<Vec<String>, String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("make {}: {e}", dir.display()))?;
    let host_network = pod.spec().host_network == Some(true);
    put(&dir.join("hosts"), &hosts(pod, names, ips, host_network))?;
    put(&dir.join("hostname"), &format!("{}\n", names.kernel))?;
    let (text, omitted) = resolv_conf(pod, config, network)?;
    put(&dir.join("resolv.conf"), &text)?;
    Ok(omitted)
}

fn put(path: &Path, text: &str) -> Result<(), String> {
    // Written in place: a running container has this inode mounted.
    std::fs::write(path, text).map_err(|e| format!("write {}: {e}", path.display()))
}

fn hosts(pod: &Pod, names: &Names, ips: &[IpAddr], host_network: bool) -> String {
    let hostname = &names.host;
    let mut text = if host_network {
        let own = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        format!("# Kubernetes-managed hosts file (host network).\n{own}")
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        for ip in ips {
            match &names.domain {
                Some(domain) => text += &format!("{ip}\t{hostname}.{domain}\t{hostname}\n"),
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
                Some("search" | "domain") => all.searches = words.map(without_root).collect(),
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

    /// Leaves out what resolvers would not look at. Gives a warning for each list that was cut, in kubelet's words.
    fn fit(&mut self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.servers.len() > MAX_SERVERS {
            self.servers.truncate(MAX_SERVERS);
            warnings.push(format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                self.servers.join(" ")
            ));
        }
        let mut length = 0;
        let fitting = self.searches.iter().take(MAX_SEARCHES).take_while(|path| {
            length += path.len() + usize::from(length > 0);
            length <= MAX_SEARCH_CHARS
        });
        let count = fitting.count();
        if count < self.searches.len() {
            self.searches.truncate(count);
            warnings.push(format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                self.searches.join(" ")
            ));
        }
        warnings
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

/// A search path without the dot at its end; the root itself stays.
fn without_root(path: &str) -> String {
    path.strip_suffix('.').filter(|rest| !rest.is_empty()).unwrap_or(path).to_owned()
}

/// The name servers of a resolver configuration.
pub(crate) fn nameservers(text: &str) -> Vec<IpAddr> {
    Resolver::parse(text).servers.iter().filter_map(|server| server.parse().ok()).collect()
}

/// A pod cannot reach a resolver on the host's loopback, such as systemd-resolved's stub.
fn host_resolver(config: &Config, own_network: bool) -> Result<Resolver, String> {
    if config.resolv_conf.as_os_str().is_empty() {
        // No host's resolver, and not the C library's idea of one either.
        let (servers, searches) = (vec!["127.0.0.1".to_owned()], vec![".".to_owned()]);
        return Ok(Resolver { servers, searches, options: Vec::new() });
    }
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

/// The file and what was left out of it.
fn resolv_conf(pod: &Pod, config: &Config, network: Option<&str>) -> Result<(String, Vec<String>), String> {
    let spec = pod.spec();
    let host_network = spec.host_network == Some(true);
    // A network where the agent is no name server has only the host's.
    let servers = network.and_then(|name| config.network_dns.get(name)).unwrap_or(&config.cluster_dns);
    let cluster = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirst" => !host_network && !servers.is_empty(),
        "ClusterFirstWithHostNet" => !servers.is_empty(),
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
        resolver.servers = servers.iter().map(ToString::to_string).collect();
        resolver.options = vec!["ndots:5".into()];
    }
    if let Some(extra) = &spec.dns_config {
        resolver.merge(extra);
    }
    let omitted = resolver.fit();
    Ok((resolver.render(), omitted))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        let object =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}));
        Pod::new(object.unwrap(), berth_reconciler::pod::Source::Api)
    }

    fn config() -> Config {
        let args = crate::config::AgentArgs { node_name: Some("n".into()), ..Default::default() };
        Config::load(&args).unwrap()
    }

    #[test]
    fn dns_config_with_policy_none_is_all_there_is() {
        let pod = pod(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["192.0.2.1"], "searches": ["a.example"], "options": [{"name": "ndots", "value": "2"}]}}));
        let (text, _) = resolv_conf(&pod, &config(), None).unwrap();
        assert_eq!(text, "search a.example\nnameserver 192.0.2.1\noptions ndots:2\n");
    }

    #[test]
    fn cluster_first_puts_the_clusters_resolver_first() {
        let mut config = config();
        config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        config.resolv_conf = "/nonexistent".into();
        let (text, _) = resolv_conf(&pod(json!({"containers": []})), &config, None).unwrap();
        assert_eq!(
            text,
            "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
    }

    fn named(pod: &Pod) -> Names {
        names(pod, "n", &config()).unwrap()
    }

    #[test]
    fn hosts_has_the_pods_name_and_aliases() {
        let pod = pod(json!({"containers": [], "subdomain": "s",
            "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a", "b"]}]}));
        let text = hosts(&pod, &named(&pod), &["10.85.0.2".parse().unwrap()], false);
        assert!(text.contains("10.85.0.2\tweb.s.shop.svc.cluster.local\tweb\n"), "{text}");
        assert!(text.ends_with("10.0.0.1\ta\tb\n"), "{text}");
    }

    #[test]
    fn hosts_of_a_pod_in_the_hosts_network_is_the_hosts_with_aliases() {
        let pod = pod(
            json!({"containers": [], "hostNetwork": true, "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a"]}]}),
        );
        let text = hosts(&pod, &named(&pod), &["192.0.2.1".parse().unwrap()], true);
        assert!(text.starts_with("# Kubernetes-managed hosts file (host network).\n"), "{text}");
        assert!(
            text.contains(&std::fs::read_to_string("/etc/hosts").unwrap()) && text.ends_with("10.0.0.1\ta\n")
        );
        assert!(!text.contains("192.0.2.1\t"), "the pod has no address of its own: {text}");
    }

    #[test]
    fn a_pod_is_called_what_its_spec_says() {
        let cases = [
            (json!({}), "web", None, "web"),
            (json!({"hostname": "box"}), "box", None, "box"),
            (json!({"subdomain": "s"}), "web", Some("s.shop.svc.cluster.local"), "web"),
            (
                json!({"hostname": "box", "subdomain": "s", "setHostnameAsFQDN": true}),
                "box",
                Some("s.shop.svc.cluster.local"),
                "box.s.shop.svc.cluster.local",
            ),
            (json!({"setHostnameAsFQDN": true}), "web", None, "web"),
            (
                json!({"hostname": "box", "subdomain": "s", "hostnameOverride": "any.name.example"}),
                "any.name.example",
                None,
                "any.name.example",
            ),
            (json!({"hostNetwork": true, "hostname": "box", "subdomain": "s"}), "n", None, "n"),
        ];
        for (mut spec, host, domain, kernel) in cases {
            spec["containers"] = json!([]);
            let found = named(&pod(spec.clone()));
            let wanted = Names { host: host.into(), domain: domain.map(Into::into), kernel: kernel.into() };
            assert_eq!(found, wanted, "{spec}");
        }
    }

    #[test]
    fn a_long_name_is_cut_to_what_a_label_takes() {
        let mut long = pod(json!({"containers": []}));
        long.object.metadata.name = Some(format!("{}-tail", "x".repeat(62)));
        assert_eq!(named(&long).kernel, "x".repeat(62));
    }

    #[test]
    fn a_long_name_above_64_characters_is_an_error() {
        // The dot between and "s.shop.svc.cluster.local" are 25 characters.
        let of = |length: usize| {
            let spec = json!({"containers": [], "hostname": "h".repeat(length), "subdomain": "s", "setHostnameAsFQDN": true});
            names(&pod(spec), "n", &config()).map(|names| names.kernel.len())
        };
        assert_eq!(of(39), Ok(64));
        let error = of(40).unwrap_err();
        assert!(
            error.ends_with("is too long (64 characters is the max, 65 characters requested)"),
            "{error}"
        );
    }

    #[test]
    fn each_policy_has_its_resolver() {
        let mut config = config();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "nameserver 192.0.2.7\nsearch host.example. .\noptions rotate\n").unwrap();
        config.resolv_conf = file.path().into();
        let host = "search host.example .\nnameserver 192.0.2.7\noptions rotate\n";
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local host.example .\nnameserver 10.96.0.10\noptions ndots:5\n";
        let text =
            |spec: serde_json::Value, config: &Config| resolv_conf(&pod(spec), config, None).unwrap().0;
        let policy = |name: &str, host_network: bool| json!({"containers": [], "dnsPolicy": name, "hostNetwork": host_network});
        // Without a resolver of a cluster there is only the host's.
        for name in ["ClusterFirst", "ClusterFirstWithHostNet", "Default"] {
            assert_eq!(text(policy(name, false), &config), host, "{name}");
        }
        config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        for (name, host_network, wanted) in [
            ("ClusterFirst", false, cluster),
            ("ClusterFirst", true, host),
            ("ClusterFirstWithHostNet", true, cluster),
            ("ClusterFirstWithHostNet", false, cluster),
            ("Default", false, host),
            ("Default", true, host),
            ("None", false, ""),
        ] {
            assert_eq!(text(policy(name, host_network), &config), wanted, "{name}");
        }
        config.resolv_conf = "".into();
        assert_eq!(text(policy("Default", false), &config), "search .\nnameserver 127.0.0.1\n");
    }

    #[test]
    fn what_resolvers_would_not_look_at_is_left_out_and_told() {
        let mut config = config();
        config.resolv_conf = "/nonexistent".into();
        config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        let more: Vec<String> = (0..40).map(|n| format!("{n}.example")).collect();
        let extra = json!({"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3"], "searches": more});
        let (text, warnings) =
            resolv_conf(&pod(json!({"containers": [], "dnsConfig": extra})), &config, None).unwrap();
        assert_eq!(text.matches("nameserver").count(), 3, "{text}");
        assert!(!text.contains("192.0.2.3"), "{text}");
        assert_eq!(text.lines().next().unwrap().split(' ').count(), 1 + 32);
        assert!(
            warnings[0].starts_with("Nameserver limits were exceeded")
                && warnings[0].ends_with("10.96.0.10 192.0.2.1 192.0.2.2")
        );
        assert!(warnings[1].starts_with("Search Line limits were exceeded"));
        let long: Vec<String> = (0..20).map(|_| "x".repeat(150)).collect();
        let mut resolver = Resolver { searches: long, ..Resolver::default() };
        assert_eq!(resolver.fit().len(), 1);
        assert_eq!(resolver.searches.len(), 13, "2048 characters with the spaces between");
    }
}
