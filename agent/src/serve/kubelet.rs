//! The node's own API, as a kubelet has it: what API servers, metrics collectors and people with a token ask the node.
//!
//! Every request is somebody's: of the owner of a client certificate, or of a bearer token that the API server knows. What
//! they may do the API server says, too.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{Method, StatusCode, header};
use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig as Tls};
use serde_json::json;
use tokio::net::TcpListener;

use crate::api::{Caller, Secure};
use crate::cluster::Cluster;
use crate::config::cluster::ServerConfig;
use crate::facts::NodeFacts;
use crate::node::AgentNode;
use crate::pki::certified;

/// How long a certificate lasts that the node has signed itself: as a kubelet's.
const SELF_SIGNED: Duration = Duration::from_secs(365 * 86_400);
/// How long certificate files are believed before they are looked at again.
const LOOK: Duration = Duration::from_secs(60);

/// The server's certificate, which may be exchanged while connections are open. Where it comes from files, a connection looks
/// whether they have changed: no timer is needed for that.
#[derive(Debug)]
struct Serving {
    key: RwLock<Arc<CertifiedKey>>,
    files: Option<Mutex<Files>>,
}

/// The files of a certificate and its key.
#[derive(Debug)]
struct Files {
    paths: (PathBuf, PathBuf),
    /// The certificate that was read last.
    read: Vec<u8>,
    looked: Instant,
}

impl Files {
    /// The key as it is in the files.
    fn key(&mut self) -> anyhow::Result<CertifiedKey> {
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
        let (certificate, key) = (read(&self.paths.0)?, read(&self.paths.1)?);
        let key = certified(&certificate, &key)
            .with_context(|| format!("tlsCertFile {}", self.paths.0.display()))?;
        self.read = certificate;
        Ok(key)
    }

    /// The key, if it is another by now.
    fn changed(&mut self) -> Option<CertifiedKey> {
        if self.looked.elapsed() < LOOK {
            return None;
        }
        self.looked = Instant::now();
        if std::fs::read(&self.paths.0).is_ok_and(|now| now == self.read) {
            return None;
        }
        // Perhaps only one of the two is written yet.
        self.key().inspect_err(|error| tracing::warn!("{error:#}; the old one goes on")).ok()
    }
}

impl Serving {
    /// The certificate of the settings, or one that the node has signed itself.
    fn new(config: &ServerConfig, facts: &NodeFacts) -> anyhow::Result<Self> {
        let Some(paths) = config.certificate.clone() else {
            return Ok(Self { key: RwLock::new(Arc::new(self_signed(facts)?)), files: None });
        };
        let mut files = Files { paths, read: Vec::new(), looked: Instant::now() };
        let key = RwLock::new(Arc::new(files.key()?));
        Ok(Self { key, files: Some(Mutex::new(files)) })
    }

    fn set(&self, key: CertifiedKey) {
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(files) = &self.files
            && let Some(key) = files.lock().unwrap_or_else(PoisonError::into_inner).changed()
        {
            self.set(key);
        }
        Some(self.key.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Serves until the agent ends; `pages` is what there is to read without a pod's name, `streams` the rest.
///
/// # Errors
/// A certificate of the settings cannot be used.
pub(super) async fn listen(
    listener: TcpListener,
    cluster: Arc<Cluster>,
    node: &Arc<AgentNode>,
    pages: Router,
    streams: Router,
) -> anyhow::Result<()> {
    let config = cluster.server_config().clone();
    let serving = Arc::new(Serving::new(&config, &node.facts)?);
    let listener = Secure::new(listener, tls(&cluster, &config, serving.clone()).await?)?;
    tracing::info!(address = %listener.address(), "the node's own API is served");
    if config.bootstrap && config.certificate.is_none() {
        let cluster = cluster.clone();
        tokio::spawn(async move { cluster.keep_serving_certificate(|key| serving.set(key)).await });
    }
    let settings = node.config.clone();
    let router = pages
        .route("/configz", get(async move || axum::Json(configz(&settings))))
        .fallback_service(streams)
        .layer(axum::middleware::from_fn_with_state(cluster, admit));
    tokio::spawn(async move {
        if let Err(error) = crate::api::serve_secure(listener, router, std::future::pending()).await {
            tracing::error!(%error, "the node's own API ended");
        }
    });
    Ok(())
}

async fn tls(cluster: &Cluster, config: &ServerConfig, serving: Arc<Serving>) -> anyhow::Result<Tls> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = Tls::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .context("set up TLS")?;
    let mut roots = RootCertStore::empty();
    for certificate in cluster.client_authorities(config).await? {
        roots.add(certificate).context("the authority of clients")?;
    }
    let mut tls = match roots.is_empty() {
        true => builder.with_no_client_auth(),
        false => {
            let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .context("the authority of clients")?;
            builder.with_client_cert_verifier(clients)
        }
    }
    .with_cert_resolver(serving);
    // WebSockets and SPDY begin with an upgrade, which HTTP/2 does not have.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

/// What a kubelet serves with that nobody has given a certificate: callers can only believe it.
fn self_signed(facts: &NodeFacts) -> anyhow::Result<CertifiedKey> {
    let key = KeyPair::generate().context("make a key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{}@{}", facts.name, Timestamp::now().as_second()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names.push(SanType::DnsName(facts.name.clone().try_into()?));
    params.subject_alt_names.extend(facts.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    params.not_before = time::OffsetDateTime::now_utc() - Duration::from_secs(300);
    params.not_after = time::OffsetDateTime::now_utc() + SELF_SIGNED;
    let certificate = params.self_signed(&key).context("make the server's certificate")?;
    certified(certificate.pem().as_bytes(), key.serialize_pem().as_bytes())
}

/// Lets a request through that its caller may make.
async fn admit(State(cluster): State<Arc<Cluster>>, mut request: Request, next: Next) -> Response {
    let of_certificate = request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Anonymous);
    let caller = match (of_certificate, bearer(&request)) {
        (Caller::Anonymous, Some(token)) => match cluster.who_has(&token).await {
            Ok(caller) => caller,
            Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
        (caller, _) => caller,
    };
    if caller == Caller::Anonymous {
        return refuse(StatusCode::UNAUTHORIZED, "Unauthorized");
    }
    let verb = verb(request.method(), request.uri().path());
    let subresource = subresource(request.uri().path());
    match cluster.may(&caller, verb, subresource).await {
        Ok(true) => {}
        Ok(false) => {
            let (user, node) = (caller.name(), cluster.node_name());
            let why = format!(
                "Forbidden (user={user}, verb={verb}, resource=nodes, subresource={subresource}) on node {node}"
            );
            return refuse(StatusCode::FORBIDDEN, &why);
        }
        Err(error) => {
            let why = format!("Authorization error (user={}, verb={verb}): {error}", caller.name());
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, &why);
        }
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn refuse(code: StatusCode, why: &str) -> Response {
    (code, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], why.to_owned()).into_response()
}

fn bearer(request: &Request) -> Option<String> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

/// What a request does, in the words of RBAC. A command is created, however its connection begins: who may only read must not
/// run one by a WebSocket's GET.
fn verb(method: &Method, path: &str) -> &'static str {
    let runs = ["/exec/", "/attach/", "/portForward/"].iter().any(|start| path.starts_with(start));
    match *method {
        _ if runs => "create",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The part of `nodes` that a path belongs to (Kubernetes documentation, "Kubelet authentication/authorization").
fn subresource(path: &str) -> &'static str {
    let within =
        |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    match () {
        () if within("/stats") => "stats",
        () if within("/metrics") => "metrics",
        () if within("/logs") => "log",
        () if within("/configz") => "configz",
        () if within("/healthz") => "healthz",
        () if matches!(path, "/pods" | "/runningpods" | "/runningpods/") => "pods",
        () => "proxy",
    }
}

/// `/configz`: the settings of the node in the form of a KubeletConfiguration, as far as tools ask for them.
fn configz(config: &crate::config::Config) -> serde_json::Value {
    json!({"kubeletconfig": {
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "maxPods": config.max_pods,
        "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
        "clusterDomain": config.cluster_domain,
        "clusterDNS": config.cluster_dns,
        "resolvConf": config.resolv_conf,
        "containerLogMaxSize": config.log_max_size.to_string(),
        "containerLogMaxFiles": config.log_max_files,
        "seccompDefault": config.seccomp_default,
        "allowedUnsafeSysctls": config.unsafe_sysctls,
        "cpuCFSQuota": config.cfs.quota,
        "cpuManagerPolicy": "none", "memoryManagerPolicy": "None", "topologyManagerPolicy": "none",
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_belong_to_the_parts_that_kubelets_have() {
        for (path, part) in [
            ("/stats/summary", "stats"),
            ("/metrics/cadvisor", "metrics"),
            ("/metricsx", "proxy"),
            ("/pods", "pods"),
            ("/runningpods/", "pods"),
            ("/podsx", "proxy"),
            ("/healthz", "healthz"),
            ("/exec/a/b/c", "proxy"),
            ("/containerLogs/a/b/c", "proxy"),
        ] {
            assert_eq!(subresource(path), part, "{path}");
        }
    }

    /// Reading rights must not be enough for a command, whose WebSocket begins with GET.
    #[test]
    fn a_command_is_created_however_it_begins() {
        assert_eq!(verb(&Method::GET, "/exec/a/b/c"), "create");
        assert_eq!(verb(&Method::GET, "/containerLogs/a/b/c"), "get");
        assert_eq!(verb(&Method::POST, "/attach/a/b/c"), "create");
    }
}
