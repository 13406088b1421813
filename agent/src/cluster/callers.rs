//! Who calls the node's own API, and what they may do there: the API server's answers, kept for a while.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::rotation::{renewal, sleep_until};
use super::{Access, Cluster, Pause, chance};
use crate::api::{ADMINS, Caller};
use crate::config::cluster::ServerConfig;
use crate::pki::{certified, validity};

/// How long answers are believed, as by a kubelet.
const TOKEN: Duration = Duration::from_secs(120);
const ALLOWED: Duration = Duration::from_secs(300);
const REFUSED: Duration = Duration::from_secs(30);
/// Answers that are kept of each sort.
const KEPT: usize = 1000;

/// Answers with the time up to which they are believed.
struct Cache<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn get(&self, key: &K, now: Instant) -> Option<V> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).filter(|(until, _)| *until > now).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V, until: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT {
            let now = Instant::now();
            all.retain(|_, (until, _)| *until > now);
            if all.len() >= KEPT {
                all.clear();
            }
        }
        all.insert(key, (until, value));
    }
}

/// What the API server has said.
pub(super) struct Answers {
    /// By a token's hash: the token itself is nobody's to find here.
    tokens: Cache<[u8; 32], Caller>,
    /// By user, groups, verb and part of the node.
    access: Cache<(String, Vec<String>, &'static str, &'static str), bool>,
}

impl Answers {
    pub fn new() -> Self {
        Self { tokens: Cache::new(), access: Cache::new() }
    }
}

impl Cluster {
    /// The settings of the node's own API.
    pub fn server_config(&self) -> &ServerConfig {
        &self.config.server
    }

    /// The name of the node.
    pub fn node_name(&self) -> &str {
        &self.node.facts.name
    }

    /// Whose certificates of clients are believed: what the settings name, else the authority of the API server itself, which
    /// is the clients' in most clusters.
    ///
    /// # Errors
    /// A file cannot be read or holds no certificate.
    pub async fn client_authorities(
        &self,
        config: &ServerConfig,
    ) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let Some(path) = &config.client_ca else {
            let own = Access::authorities(&self.config.kubeconfig).await;
            // What the agent writes itself may not be there yet, or be broken; joining mends it.
            return match (own, &self.config.bootstrap) {
                (Err(_), Some(bootstrap)) => Access::authorities(bootstrap).await,
                (own, _) => own,
            };
        };
        let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let all = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        all.with_context(|| format!("authentication.x509.clientCAFile {}", path.display()))
    }

    fn asked(&self) -> anyhow::Result<Client> {
        self.client().context("the node has not reached its API server yet")
    }

    /// Whose token that is; nobody's if the server does not know it.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub async fn who_has(&self, token: &str) -> anyhow::Result<Caller> {
        if !self.config.server.token_review {
            return Ok(Caller::Anonymous);
        }
        let (key, now) = (Sha256::digest(token).into(), Instant::now());
        if let Some(known) = self.answers.tokens.get(&key, now) {
            return Ok(known);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.asked()?);
        let answer = api.create(&PostParams::default(), &review).await.context("ask who has the token")?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        let caller = match user.and_then(|user| Some((user.username?, user.groups))) {
            Some((name, groups)) => Caller::User { name, groups: groups.unwrap_or_default() },
            None => Caller::Anonymous,
        };
        let life = if caller == Caller::Anonymous { REFUSED } else { TOKEN };
        self.answers.tokens.put(key, caller.clone(), now + life);
        Ok(caller)
    }

    /// Whether a caller may do something with a part of this node.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub async fn may(&self, caller: &Caller, verb: &'static str, part: &'static str) -> anyhow::Result<bool> {
        if !self.config.server.access_review {
            return Ok(*caller != Caller::Anonymous);
        }
        let groups = caller.groups();
        // They may do everything in every cluster, also while its server is away.
        if groups.iter().any(|group| group == ADMINS) {
            return Ok(true);
        }
        if self.may_with(caller, &groups, verb, part).await? {
            return Ok(true);
        }
        // The finer parts are newer than `nodes/proxy`, which lets everything through.
        let finer = matches!(part, "pods" | "healthz" | "configz");
        Ok(finer && self.may_with(caller, &groups, verb, "proxy").await?)
    }

    async fn may_with(
        &self,
        caller: &Caller,
        groups: &[String],
        verb: &'static str,
        part: &'static str,
    ) -> anyhow::Result<bool> {
        let key = (caller.name().to_owned(), groups.to_vec(), verb, part);
        let now = Instant::now();
        if let Some(known) = self.answers.access.get(&key, now) {
            return Ok(known);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(caller.name().to_owned()),
                groups: Some(groups.to_vec()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(part.to_owned()),
                    name: Some(self.node.facts.name.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.asked()?);
        let answer =
            api.create(&PostParams::default(), &review).await.context("ask what the caller may do")?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        self.answers.access.put(key, allowed, now + if allowed { ALLOWED } else { REFUSED });
        Ok(allowed)
    }

    /// Gets the certificate with which the node serves its own API, and the next ones in time; `show` takes each.
    pub async fn keep_serving_certificate(&self, mut show: impl FnMut(CertifiedKey)) {
        let mut pause = Pause::new();
        loop {
            // Whoever decides looks at the addresses of the Node, so that must be there.
            let issued = match self.asked() {
                Ok(_) if self.registered().is_none() => {
                    Err(anyhow::anyhow!("the node is not registered yet"))
                }
                Ok(client) => self.request_serving(client).await,
                Err(error) => Err(error),
            };
            let key =
                issued.and_then(|issued| certified(issued.certificate.as_bytes(), issued.key.as_bytes()));
            let key = match key {
                Ok(key) => key,
                Err(error) => {
                    tracing::warn!(
                        "cannot get a certificate for the node's own API: {error:#}; trying again"
                    );
                    tokio::time::sleep(pause.take()).await;
                    continue;
                }
            };
            pause.reset();
            let validity = validity(&key);
            show(key);
            tracing::info!("the node's own API has a certificate of the cluster");
            match validity {
                Some(validity) => sleep_until(renewal(validity, chance())).await,
                None => return,
            }
        }
    }
}
