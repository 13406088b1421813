//! Tokens of service accounts for pods: asked of the server by TokenRequest, and anew before they expire.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_reconciler::pod::Pod;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{Cluster, Pause, chance, code};
use crate::durable;

/// How long a token is good for where the pod does not say.
const DEFAULT_SECONDS: i64 = 3600;
/// A token is asked for anew once this part of its life is over, or a day after it was made.
const USED_UP: f64 = 0.8;
const A_DAY: i64 = 24 * 3600;
/// Requests that may be under way at once.
const AT_ONCE: usize = 4;

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Purpose {
    /// The pod's uid.
    uid: String,
    /// Who is to believe it; empty: the API server.
    audience: String,
    seconds: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Token {
    text: String,
    /// Seconds since 1970.
    made: i64,
    expires: i64,
}

impl Token {
    /// When the next one is asked for, in seconds since 1970.
    fn renew(&self) -> i64 {
        let life = (self.expires - self.made).max(0);
        // No two nodes ask at the same time.
        let part = life as f64 * (USED_UP - 0.05 * chance());
        self.made + (part as i64).min(A_DAY)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Wanted {
    namespace: String,
    pod: String,
    account: String,
    token: Option<Token>,
    /// When it is asked for next, in seconds since 1970; 0: at once.
    #[serde(skip)]
    next: i64,
    /// Whether the server has refused it, and why.
    #[serde(skip)]
    refused: Option<String>,
}

#[derive(Default)]
struct State {
    wanted: HashMap<Purpose, Wanted>,
    dir: Option<PathBuf>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// Told when something is wanted.
    changed: Notify,
    /// Told when something has come.
    arrived: Notify,
}

/// The tokens of this node's pods. Clones share.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Inner>);

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token for a source of a volume.
    ///
    /// # Errors
    /// There is none yet, or the server has refused to give one.
    pub fn get(&self, pod: &Pod, source: &v1::ServiceAccountTokenProjection) -> Result<String, String> {
        let purpose = purpose(pod, source);
        let account = pod.spec().service_account_name.as_deref().unwrap_or("default");
        let state = self.lock();
        let Some(wanted) = state.wanted.get(&purpose) else {
            return Err("there are no service accounts without a cluster".to_owned());
        };
        match (&wanted.token, &wanted.refused) {
            (Some(token), _) => Ok(token.text.clone()),
            (None, Some(why)) => Err(format!("failed to fetch token of service account {account:?}: {why}")),
            (None, None) => Err(format!("the token of service account {account:?} has not come yet")),
        }
    }

    /// Resolves when a token has come, or was refused.
    pub(super) async fn arrived(&self) {
        self.0.arrived.notified().await;
    }

    /// A pod wants exactly the tokens that its volumes name.
    pub(super) fn want(&self, pod: &Pod) {
        let mut state = self.lock();
        let before = state.wanted.len();
        for source in sources(pod) {
            state.wanted.entry(purpose(pod, source)).or_insert_with(|| Wanted {
                namespace: pod.namespace().to_owned(),
                pod: pod.name().to_owned(),
                account: pod.spec().service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
                token: None,
                next: 0,
                refused: None,
            });
        }
        if state.wanted.len() != before {
            self.0.changed.notify_one();
        }
    }

    /// Whether the server has answered for every token of the pod.
    pub(super) fn are_known(&self, uid: &str) -> bool {
        let state = self.lock();
        let mut of_pod = state.wanted.iter().filter(|(purpose, _)| purpose.uid == uid);
        of_pod.all(|(_, wanted)| wanted.token.is_some() || wanted.refused.is_some())
    }

    /// A pod wants none any more.
    pub(super) fn release(&self, uid: &str) {
        let mut state = self.lock();
        state.wanted.retain(|purpose, _| purpose.uid != uid);
        if let Some(dir) = &state.dir {
            let _ = std::fs::remove_file(dir.join(format!("{uid}.json")));
        }
    }

    /// Reads what an earlier agent has got.
    pub(super) fn recall(&self, root: &Path) {
        let dir = root.join("cluster").join("tokens");
        let mut state = self.lock();
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(text) = std::fs::read(entry.path()) else { continue };
            let Ok(list) = serde_json::from_slice::<Vec<(Purpose, Wanted)>>(&text) else { continue };
            for (purpose, mut wanted) in list {
                wanted.next = wanted.token.as_ref().map_or(0, Token::renew);
                state.wanted.insert(purpose, wanted);
            }
        }
        state.dir = Some(dir);
    }

    fn save(&self, uid: &str) {
        let state = self.lock();
        let Some(dir) = &state.dir else { return };
        let of_pod: Vec<_> = state.wanted.iter().filter(|(purpose, _)| purpose.uid == uid).collect();
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(dir)?;
            let text = serde_json::to_vec(&of_pod)?;
            durable::write(&dir.join(format!("{uid}.json")), &text, 0o600)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "cannot store tokens; after a reboot pods wait for the API server to begin");
        }
    }

    fn due(&self, now: i64) -> Vec<(Purpose, Wanted)> {
        let state = self.lock();
        let due = state.wanted.iter().filter(|(_, wanted)| wanted.next <= now);
        due.map(|(purpose, wanted)| (purpose.clone(), wanted.clone())).collect()
    }

    fn next(&self) -> Option<i64> {
        self.lock().wanted.values().map(|wanted| wanted.next).min()
    }

    /// Takes the server's answer; true if the token is another.
    fn answered(&self, purpose: &Purpose, answer: Result<Token, (String, i64)>) {
        let mut state = self.lock();
        let Some(wanted) = state.wanted.get_mut(purpose) else { return };
        match answer {
            Ok(token) => {
                wanted.next = token.renew();
                wanted.token = Some(token);
                wanted.refused = None;
            }
            Err((why, next)) => {
                wanted.refused = Some(why);
                wanted.next = next;
            }
        }
        drop(state);
        self.0.arrived.notify_one();
    }
}

fn sources(pod: &Pod) -> impl Iterator<Item = &v1::ServiceAccountTokenProjection> {
    let volumes = pod.spec().volumes.iter().flatten();
    let projected = volumes.filter_map(|volume| volume.projected.as_ref()?.sources.as_ref());
    projected.flatten().filter_map(|source| source.service_account_token.as_ref())
}

fn purpose(pod: &Pod, source: &v1::ServiceAccountTokenProjection) -> Purpose {
    Purpose {
        uid: pod.uid().to_owned(),
        audience: source.audience.clone().unwrap_or_default(),
        seconds: source.expiration_seconds.unwrap_or(DEFAULT_SECONDS),
    }
}

impl Cluster {
    /// Gets the tokens that pods want, and new ones in time, for ever.
    pub(super) async fn keep_tokens(self: Arc<Self>, client: Client) {
        let tokens = &self.node.configs.tokens;
        let mut pause = Pause::new();
        loop {
            let now = Timestamp::now().as_second();
            let due = tokens.due(now);
            let asked = futures::stream::iter(due.into_iter().map(|(purpose, wanted)| {
                let client = client.clone();
                async move {
                    let answer = request(client, &purpose, &wanted).await;
                    (purpose, answer)
                }
            }));
            let mut answers = asked.buffer_unordered(AT_ONCE);
            let (mut failed, mut uids) = (None, Vec::new());
            while let Some((purpose, answer)) = answers.next().await {
                let answer = answer.map_err(|error| {
                    let wait = *failed.get_or_insert_with(|| pause.take());
                    // The server's own word is not going to be another in a moment.
                    let wait = if code(&error).is_some() { wait.max(Duration::from_secs(5)) } else { wait };
                    let next = Timestamp::now().as_second() + i64::try_from(wait.as_secs()).unwrap_or(0) + 1;
                    (error.to_string(), next)
                });
                if answer.is_ok() {
                    uids.push(purpose.uid.clone());
                }
                tokens.answered(&purpose, answer);
            }
            drop(answers);
            if failed.is_none() {
                pause.reset();
            }
            uids.sort_unstable();
            uids.dedup();
            for uid in uids {
                tokens.save(&uid);
                if let Some(view) = self.reconciler.get(&uid) {
                    self.node.refresh_volumes(&view.pod);
                    self.reconciler.config_changed(&uid);
                }
            }
            let until = tokens.next().map(|next| (next - Timestamp::now().as_second()).max(0).unsigned_abs());
            tokio::select! {
                () = tokens.0.changed.notified() => {}
                () = sleep_for(until) => {}
            }
        }
    }
}

async fn sleep_for(seconds: Option<u64>) {
    match seconds {
        Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds.max(1))).await,
        None => std::future::pending().await,
    }
}

async fn request(client: Client, purpose: &Purpose, wanted: &Wanted) -> Result<Token, kube::Error> {
    let api: Api<v1::ServiceAccount> = Api::namespaced(client, &wanted.namespace);
    let audiences = Some(purpose.audience.clone()).filter(|audience| !audience.is_empty());
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: audiences.map(|audience| vec![audience]),
            expiration_seconds: Some(purpose.seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(wanted.pod.clone()),
                uid: Some(purpose.uid.clone()),
            }),
        }),
        ..TokenRequest::default()
    };
    let made = Timestamp::now().as_second();
    let answer = api.create_token_request(&wanted.account, &PostParams::default(), &request).await?;
    let status = answer.status.unwrap_or_default();
    let expires = status.expiration_timestamp.map_or(made + purpose.seconds, |time| time.0.as_second());
    Ok(Token { text: status.token.unwrap_or_default(), made, expires })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_in_its_last_fifth_or_after_a_day() {
        for _ in 0..100 {
            let hour = Token { text: String::new(), made: 1000, expires: 4600 }.renew();
            assert!((1000 + 2700..=1000 + 2880).contains(&hour), "{hour}");
            let year = Token { text: String::new(), made: 0, expires: 365 * A_DAY }.renew();
            assert_eq!(year, A_DAY);
        }
    }
}
