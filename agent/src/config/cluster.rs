//! Being a node of a cluster: how the API server is reached, what the Node says, and how the node's own API is served.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;

use super::{AgentArgs, File, absolute, duration};

/// The settings of a node of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// How the API server is reached, and by whom. With `bootstrap` it is written by the agent.
    pub kubeconfig: PathBuf,
    /// How it is reached until the node has a certificate of its own.
    pub bootstrap: Option<PathBuf>,
    /// Whether the agent makes the Node object.
    pub register: bool,
    /// What the Node is to be labelled with.
    pub labels: BTreeMap<String, String>,
    /// What a new Node is tainted with.
    pub taints: Vec<Taint>,
    /// `spec.providerID`.
    pub provider_id: Option<String>,
    /// How often the Node's status is looked at.
    pub status_every: Duration,
    /// How often it is sent though it has not changed.
    pub report_every: Duration,
    /// How long a lease lasts; it is renewed in a quarter of that.
    pub lease: Duration,
    /// Whether the client's certificate is renewed before it expires.
    pub rotate: bool,
    /// The node's own API.
    pub server: ServerConfig,
}

/// The settings of the node's own API.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens; none: it is not served.
    pub address: Option<SocketAddr>,
    /// The certificate of the server, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Whether the API server signs its certificate.
    pub bootstrap: bool,
    /// Whose certificates of clients are believed.
    pub client_ca: Option<PathBuf>,
    /// Whether bearer tokens are shown to the API server.
    pub token_review: bool,
    /// Whether the API server is asked what a caller may do; else every caller that is known may do everything.
    pub access_review: bool,
}

/// `authentication` of a KubeletConfiguration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Authentication {
    x509: X509,
    webhook: Webhook,
    anonymous: Anonymous,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct X509 {
    #[serde(rename = "clientCAFile")]
    client_ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Webhook {
    enabled: Option<bool>,
    cache_ttl: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Anonymous {
    enabled: Option<bool>,
}

/// `authorization` of a KubeletConfiguration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Authorization {
    mode: Option<String>,
    webhook: AuthorizationWebhook,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AuthorizationWebhook {
    #[serde(rename = "cacheAuthorizedTTL")]
    cache_authorized_ttl: Option<String>,
    #[serde(rename = "cacheUnauthorizedTTL")]
    cache_unauthorized_ttl: Option<String>,
}

/// Where kubelets keep what they got by bootstrapping.
const DEFAULT_KUBECONFIG: &str = "kubeconfig";

pub(super) fn check(
    args: &AgentArgs,
    file: &File,
    root: &std::path::Path,
) -> anyhow::Result<Option<ClusterConfig>> {
    let kubeconfig = args.kubeconfig.clone().or_else(|| file.kubeconfig.clone());
    let bootstrap = args.bootstrap_kubeconfig.clone().or_else(|| file.bootstrap_kubeconfig.clone());
    let kubeconfig = match (kubeconfig, &bootstrap) {
        (Some(path), _) => absolute(path)?,
        (None, Some(_)) => root.join(DEFAULT_KUBECONFIG),
        (None, None) => {
            without_cluster(args)?;
            return Ok(None);
        }
    };
    if bootstrap.is_none() && !kubeconfig.exists() {
        bail!(
            "--kubeconfig: {} is not there; with --bootstrap-kubeconfig the agent asks the API server for one",
            kubeconfig.display()
        );
    }
    let labels = labels(args, file)?;
    let seconds = file.node_lease_duration_seconds.unwrap_or(40);
    if seconds == 0 {
        bail!("nodeLeaseDurationSeconds: must be greater than 0");
    }
    let status_every = duration(
        "nodeStatusUpdateFrequency",
        file.node_status_update_frequency.as_deref(),
        Duration::from_secs(10),
    )?;
    let report_every = duration(
        "nodeStatusReportFrequency",
        file.node_status_report_frequency.as_deref(),
        Duration::from_secs(300),
    )?;
    Ok(Some(ClusterConfig {
        kubeconfig,
        bootstrap: bootstrap.map(absolute).transpose()?,
        register: file.register_node.unwrap_or(true),
        labels,
        taints: taints(args, file)?,
        provider_id: args
            .provider_id
            .clone()
            .or_else(|| file.provider_id.clone())
            .filter(|id| !id.is_empty()),
        status_every,
        report_every,
        lease: Duration::from_secs(seconds.into()),
        rotate: file.rotate_certificates.unwrap_or(true),
        server: server(file)?,
    }))
}

/// Flags that only mean something in a cluster are refused without one. Fields are not: a KubeletConfiguration holds them
/// whether or not its kubelet has a kubeconfig.
fn without_cluster(args: &AgentArgs) -> anyhow::Result<()> {
    let flags = [
        ("--node-labels", !args.node_labels.is_empty()),
        ("--register-with-taints", !args.register_with_taints.is_empty()),
        ("--provider-id", args.provider_id.is_some()),
    ];
    if let Some((flag, _)) = flags.iter().find(|(_, given)| *given) {
        bail!("{flag}: is without effect while neither --kubeconfig nor --bootstrap-kubeconfig is given");
    }
    Ok(())
}

fn labels(args: &AgentArgs, file: &File) -> anyhow::Result<BTreeMap<String, String>> {
    let mut labels = file.node_labels.clone().unwrap_or_default();
    for pair in &args.node_labels {
        let Some((key, value)) = pair.split_once('=') else {
            bail!("--node-labels: {pair:?} is not KEY=VALUE");
        };
        labels.insert(key.to_owned(), value.to_owned());
    }
    // What NodeRestriction of the API server lets a node say of itself.
    for key in labels.keys() {
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        let of_kubernetes = |suffix: &str| domain == suffix || domain.ends_with(&format!(".{suffix}"));
        let reserved = of_kubernetes("kubernetes.io") || of_kubernetes("k8s.io");
        let own = of_kubernetes("kubelet.kubernetes.io") || of_kubernetes("node.kubernetes.io");
        const KNOWN: [&str; 8] = [
            "kubernetes.io/hostname",
            "kubernetes.io/arch",
            "kubernetes.io/os",
            "beta.kubernetes.io/arch",
            "beta.kubernetes.io/os",
            "topology.kubernetes.io/zone",
            "topology.kubernetes.io/region",
            "node.kubernetes.io/instance-type",
        ];
        if reserved && !own && !KNOWN.contains(&key.as_str()) {
            bail!(
                "--node-labels: {key:?}: a node may not give itself labels of kubernetes.io but those of \
                 kubelet.kubernetes.io and node.kubernetes.io; let an administrator do it with kubectl label"
            );
        }
    }
    Ok(labels)
}

/// `key=value:Effect`, with commas between, as a kubelet's flag has them.
fn taints(args: &AgentArgs, file: &File) -> anyhow::Result<Vec<Taint>> {
    let mut taints = file.register_with_taints.clone().unwrap_or_default();
    for text in &args.register_with_taints {
        let parsed = text.rsplit_once(':').map(|(left, effect)| {
            let (key, value) = left.split_once('=').unwrap_or((left, ""));
            (key, value, effect)
        });
        match parsed {
            Some((key, value, effect)) if !key.is_empty() => taints.push(Taint {
                key: key.to_owned(),
                value: Some(value.to_owned()).filter(|value| !value.is_empty()),
                effect: effect.to_owned(),
                time_added: None,
            }),
            _ => bail!("--register-with-taints: {text:?} is not KEY=VALUE:EFFECT"),
        }
    }
    const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    if let Some(bad) = taints.iter().find(|taint| !EFFECTS.contains(&taint.effect.as_str())) {
        bail!(
            "registerWithTaints: {}: effect {:?} is not one of {}",
            bad.key,
            bad.effect,
            EFFECTS.join(", ")
        );
    }
    Ok(taints)
}

fn server(file: &File) -> anyhow::Result<ServerConfig> {
    let authentication = file.authentication.clone().unwrap_or_default();
    let authorization = file.authorization.clone().unwrap_or_default();
    if authentication.anonymous.enabled == Some(true) {
        bail!("authentication.anonymous.enabled: callers that nobody knows are not let in");
    }
    for (field, ttl) in [
        ("authentication.webhook.cacheTTL", &authentication.webhook.cache_ttl),
        ("authorization.webhook.cacheAuthorizedTTL", &authorization.webhook.cache_authorized_ttl),
        ("authorization.webhook.cacheUnauthorizedTTL", &authorization.webhook.cache_unauthorized_ttl),
    ] {
        // Read so that a mistake is told; the times themselves are Kubernetes' defaults.
        duration(field, ttl.as_deref().filter(|t| *t != "0s"), Duration::ZERO)?;
    }
    let access_review = match authorization.mode.as_deref() {
        None | Some("" | "Webhook") => true,
        Some("AlwaysAllow") => false,
        Some(other) => bail!("authorization.mode: {other:?} is not Webhook or AlwaysAllow"),
    };
    let certificate = match (&file.tls_cert_file, &file.tls_private_key_file) {
        (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
        (None, None) => None,
        _ => bail!("tlsCertFile and tlsPrivateKeyFile: one needs the other"),
    };
    let port = file.port.unwrap_or(10250);
    let listen = file.address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let client_ca = authentication.x509.client_ca_file;
    if let Some(path) = &client_ca {
        std::fs::metadata(path)
            .with_context(|| format!("authentication.x509.clientCAFile: {}", path.display()))?;
    }
    Ok(ServerConfig {
        address: (port != 0).then(|| SocketAddr::new(listen, port)),
        certificate,
        bootstrap: file.server_tls_bootstrap.unwrap_or(false),
        client_ca,
        token_review: authentication.webhook.enabled.unwrap_or(true),
        access_review,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn args(labels: &[&str], taints: &[&str]) -> AgentArgs {
        let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        AgentArgs {
            bootstrap_kubeconfig: Some("/b".into()),
            node_labels: own(labels),
            register_with_taints: own(taints),
            ..AgentArgs::default()
        }
    }

    fn checked(args: &AgentArgs) -> anyhow::Result<ClusterConfig> {
        check(args, &File::default(), std::path::Path::new("/r")).map(Option::unwrap)
    }

    #[test]
    fn labels_and_taints_are_written_as_for_a_kubelet() {
        let config =
            checked(&args(&["a=b", "node.kubernetes.io/kind=edge"], &["gpu=yes:NoSchedule", "x:NoExecute"]));
        let config = config.unwrap();
        assert_eq!(config.kubeconfig, std::path::Path::new("/r/kubeconfig"));
        assert_eq!(config.labels["a"], "b");
        let taints: Vec<_> =
            config.taints.iter().map(|t| (t.key.as_str(), t.value.as_deref(), t.effect.as_str())).collect();
        assert_eq!(taints, [("gpu", Some("yes"), "NoSchedule"), ("x", None, "NoExecute")]);
    }

    #[test]
    fn what_the_api_server_would_not_take_is_refused_at_once() {
        let refused =
            |labels: &[&str], taints: &[&str]| checked(&args(labels, taints)).unwrap_err().to_string();
        assert!(refused(&["node-role.kubernetes.io/master="], &[]).contains("kubectl label"));
        assert!(refused(&["plain"], &[]).contains("KEY=VALUE"));
        assert!(refused(&[], &["a=b:Sometimes"]).contains("NoExecute"));
        assert!(refused(&[], &["a"]).contains("KEY=VALUE:EFFECT"));
    }

    #[test]
    fn without_a_cluster_its_flags_mean_nothing() {
        let args = AgentArgs { bootstrap_kubeconfig: None, ..args(&["a=b"], &[]) };
        let error = check(&args, &File::default(), std::path::Path::new("/r")).unwrap_err().to_string();
        assert!(error.contains("--node-labels"), "{error}");
    }
}
