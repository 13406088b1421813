//! Tokens: those of service accounts, which this node signs, and those with which a machine asks for its first certificate.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Hub, Key, now};
use crate::api::{ApiError, Cause};
use crate::store::Kind;

/// Who signs; also who a token is for where nothing else is said. As kubeadm sets it.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The group of the service accounts.
const ACCOUNTS: &str = "system:serviceaccounts";
/// The group of machines that join.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// The shortest life that may be asked for, and the one that a token has where nothing is asked, in seconds.
const SHORTEST: i64 = 600;
const USUAL: i64 = 3600;
/// The longest life, as in Kubernetes.
const LONGEST: i64 = 1 << 32;
/// A token of a pod that is being deleted is good for so long after the pod's end, in seconds.
const LINGER: i64 = 60;

/// Who a token belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The user's name.
    pub name: String,
    /// Its uid; empty if it has none.
    pub uid: String,
    /// The groups, but for those that everybody is in.
    pub groups: Vec<String>,
    /// What else is known, by keys.
    pub extra: Vec<(String, String)>,
    /// Who the token is meant for.
    pub audiences: Vec<String>,
}

impl Hub {
    /// Answers a TokenRequest for a service account.
    ///
    /// # Errors
    /// 404 and 409 when the account, or what the token is bound to, is not there or another one; 422 for a wrong life.
    pub fn request_token(&self, key: &Key, request: &Value) -> Result<Value, ApiError> {
        let account = self.store.get(key.kind, &key.namespace, &key.name);
        let account = account.ok_or_else(|| ApiError::not_found(key.kind, &key.name))?.value();
        let spec = &request["spec"];
        let seconds = life(key, spec)?;
        let audiences: Vec<String> = texts(&spec["audiences"]);
        let audiences = if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences };
        let mut about = json!({"namespace": key.namespace,
            "serviceaccount": {"name": key.name, "uid": account["metadata"]["uid"]}});
        if let Some(bound) = spec.get("boundObjectRef").filter(|bound| bound.is_object()) {
            self.bound(key, bound, &mut about)?;
        }
        let issued = now();
        let end = issued.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
        let claims = json!({
            "aud": audiences, "exp": end.as_second(), "iat": issued.as_second(), "nbf": issued.as_second(),
            "iss": ISSUER, "jti": uuid::Uuid::new_v4().to_string(), "kubernetes.io": about,
            "sub": format!("system:serviceaccount:{}:{}", key.namespace, key.name),
        });
        let token = self.signer()?.sign(&claims).map_err(ApiError::internal)?;
        let mut spec = spec.clone();
        if !spec.is_object() {
            spec = json!({});
        }
        spec["audiences"] = json!(audiences);
        spec["expirationSeconds"] = json!(seconds);
        Ok(json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": key.name, "namespace": key.namespace, "creationTimestamp": issued},
            "spec": spec, "status": {"token": token, "expirationTimestamp": end}}))
    }

    /// Checks what a token is to be bound to, and says it in the claims.
    fn bound(&self, account: &Key, bound: &Value, about: &mut Value) -> Result<(), ApiError> {
        let (kind, word) = match bound["kind"].as_str() {
            Some("Pod") => (Kind::Pod, "pod"),
            Some("Secret") => (Kind::Secret, "secret"),
            Some("Node") => (Kind::Node, "node"),
            other => {
                let other = other.unwrap_or_default();
                return Err(ApiError::bad_request(format!("cannot bind token to a {other:?} object")));
            }
        };
        let name = bound["name"].as_str().unwrap_or_default();
        let namespace = if kind.namespaced() { account.namespace.as_str() } else { "" };
        let object = self.store.get(kind, namespace, name);
        let object = object.ok_or_else(|| ApiError::not_found(kind, name))?.value();
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let asked = bound["uid"].as_str().unwrap_or_default();
        if !asked.is_empty() && asked != uid {
            let why = format!(
                "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been \
                 deleted and then recreated"
            );
            return Err(ApiError::conflict(kind, name, &why));
        }
        about[word] = json!({"name": name, "uid": uid});
        if kind == Kind::Pod {
            if account_of(&object) != account.name {
                let why = "cannot bind token for serviceaccount {} to pod running with different serviceaccount name.";
                return Err(ApiError::bad_request(why.replace("{}", &format!("{:?}", account.name))));
            }
            let node = super::node_of(&object);
            if let Some(node) = self.store.get(Kind::Node, "", node) {
                about["node"] = json!({"name": node.name, "uid": node.value()["metadata"]["uid"]});
            }
        }
        Ok(())
    }

    /// Whose a token is, if it is good for one of these audiences; for this API, if none is named.
    ///
    /// # Errors
    /// Why it is not good.
    pub fn user_of(&self, token: &str, audiences: &[String]) -> Result<User, String> {
        if let Some(user) = self.bootstrapper(token) {
            return Ok(user);
        }
        let signer = self.signer().map_err(|error| error.message)?;
        let claims = signer.verify(token).ok_or("invalid bearer token")?;
        let number = |field: &str| claims[field].as_i64().unwrap_or_default();
        let now = Timestamp::now().as_second();
        if claims["iss"] != ISSUER || now >= number("exp") {
            return Err("invalid bearer token: it has expired".to_owned());
        }
        let own = [ISSUER.to_owned()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let has = texts(&claims["aud"]);
        let shared: Vec<String> = wanted.iter().filter(|one| has.contains(one)).cloned().collect();
        if shared.is_empty() {
            return Err(format!("token audiences {has:?} is invalid for the target audiences {wanted:?}"));
        }
        self.alive(&claims["kubernetes.io"])?;
        Ok(user_in(&claims, shared))
    }

    /// Whether the account and what the token is bound to are there still.
    fn alive(&self, about: &Value) -> Result<(), String> {
        let namespace = about["namespace"].as_str().unwrap_or_default();
        let bound = [
            (Kind::ServiceAccount, "serviceaccount"),
            (Kind::Pod, "pod"),
            (Kind::Secret, "secret"),
            (Kind::Node, "node"),
        ];
        // The node of a pod is told, but it is the pod that the token is bound to.
        let of_pod = about.get("pod").is_some();
        for (kind, word) in bound.into_iter().filter(|(kind, _)| *kind != Kind::Node || !of_pod) {
            let Some(named) = about.get(word) else { continue };
            let namespace = if kind.namespaced() { namespace } else { "" };
            let name = named["name"].as_str().unwrap_or_default();
            let object = self.store.get(kind, namespace, name).map(|object| object.value());
            let metadata = object.map(|object| object["metadata"].clone()).unwrap_or_default();
            if metadata["uid"] != named["uid"] {
                return Err(format!(
                    "service account token has been invalidated: {word} {namespace}/{name} is gone"
                ));
            }
            let end = metadata["deletionTimestamp"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
            if end.is_some_and(|end| end.as_second() + LINGER < Timestamp::now().as_second()) {
                return Err(format!(
                    "service account token has been invalidated: {word} {namespace}/{name} is deleted"
                ));
            }
        }
        Ok(())
    }

    /// The machine whose bootstrap token this is: `id.secret`, as a Secret of `kube-system` has it (Kubernetes documentation,
    /// "Authenticating with Bootstrap Tokens").
    fn bootstrapper(&self, token: &str) -> Option<User> {
        let (id, secret) = token.split_once('.')?;
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if id.len() != 6 || secret.len() != 16 || !plain(id) || !plain(secret) {
            return None;
        }
        let object = self.store.get(Kind::Secret, "kube-system", &format!("bootstrap-token-{id}"))?.value();
        if object["type"] != "bootstrap.kubernetes.io/token"
            || object["metadata"].get("deletionTimestamp").is_some()
        {
            return None;
        }
        let field = |name: &str| {
            use base64::Engine as _;
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(object["data"][name].as_str()?).ok()?;
            String::from_utf8(bytes).ok()
        };
        let expired = field("expiration")
            .is_some_and(|end| end.parse::<Timestamp>().map_or(true, |end| end <= Timestamp::now()));
        let good = field("token-id")? == id
            && same(&field("token-secret")?, secret)
            && field("usage-bootstrap-authentication").as_deref() == Some("true")
            && !expired;
        let mut groups = vec![BOOTSTRAPPERS.to_owned()];
        let more = field("auth-extra-groups").unwrap_or_default();
        let more = more.split(',').map(str::trim).filter(|group| group.starts_with("system:bootstrappers:"));
        groups.extend(more.map(str::to_owned));
        good.then(|| User { name: format!("system:bootstrap:{id}"), groups, ..User::default() })
    }
}

/// Compares in a time that does not tell where two texts differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// The service account of a pod.
pub fn account_of(pod: &Value) -> &str {
    pod["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty()).unwrap_or("default")
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn life(key: &Key, spec: &Value) -> Result<i64, ApiError> {
    let invalid = |message: String| {
        let field = "spec.expirationSeconds".to_owned();
        Err(ApiError::invalid(
            key.kind,
            &key.name,
            vec![Cause { reason: "FieldValueInvalid", field, message }],
        ))
    };
    match spec["expirationSeconds"].as_i64() {
        None => Ok(USUAL),
        Some(short) if short < SHORTEST => {
            invalid(format!("Invalid value: {short}: may not specify a duration less than 10 minutes"))
        }
        Some(long) if long > LONGEST => {
            invalid(format!("Invalid value: {long}: may not specify a duration larger than 2^32 seconds"))
        }
        Some(seconds) => Ok(seconds),
    }
}

fn user_in(claims: &Value, audiences: Vec<String>) -> User {
    let about = &claims["kubernetes.io"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut extra = vec![(
        "authentication.kubernetes.io/credential-id".to_owned(),
        format!("JTI={}", text(&claims["jti"])),
    )];
    for word in ["node", "pod"] {
        if let Some(named) = about.get(word) {
            extra.push((format!("authentication.kubernetes.io/{word}-name"), text(&named["name"])));
            extra.push((format!("authentication.kubernetes.io/{word}-uid"), text(&named["uid"])));
        }
    }
    User {
        name: text(&claims["sub"]),
        uid: text(&about["serviceaccount"]["uid"]),
        groups: vec![ACCOUNTS.to_owned(), format!("{ACCOUNTS}:{}", text(&about["namespace"]))],
        extra,
        audiences,
    }
}
