//! What a person calls objects: `pods`, `po web`, `pod/web`, `pods,events`.

use std::fmt::Write as _;

use clap::Args;
use percent::encode;

use super::failure::Usage;
use crate::store::Kind;

/// Which namespace.
#[derive(Args, Clone, Debug, Default)]
pub struct Namespace {
    /// Namespace of the objects
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

impl Namespace {
    /// The namespace, `default` if none was named.
    pub fn name(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }
}

/// One thing that was named on the command line: a kind, or one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The kind.
    pub kind: Kind,
    /// The object; none for all of them.
    pub name: Option<String>,
}

/// Reads the words after a verb.
///
/// # Errors
/// [`Usage`] when a kind is not known or the words do not fit together.
pub fn targets(words: &[String]) -> Result<Vec<Target>, Usage> {
    let Some(first) = words.first() else {
        return Err(Usage(format!("say which kind of object: {}", known())));
    };
    if words.iter().any(|word| word.contains('/')) {
        return words.iter().map(|word| slashed(word)).collect();
    }
    let kinds = first.split(',').map(kind).collect::<Result<Vec<_>, _>>()?;
    let names = words.get(1..).unwrap_or_default();
    if names.is_empty() {
        return Ok(kinds.into_iter().map(|kind| Target { kind, name: None }).collect());
    }
    let all = kinds.iter().flat_map(|kind| names.iter().map(|name| (*kind, name)));
    Ok(all.map(|(kind, name)| Target { kind, name: Some(name.clone()) }).collect())
}

fn slashed(word: &str) -> Result<Target, Usage> {
    match word.split_once('/') {
        Some((word, name)) if !name.is_empty() => {
            Ok(Target { kind: kind(word)?, name: Some(name.to_owned()) })
        }
        _ => Err(Usage(format!("{word:?} is not of the form KIND/NAME, as the other words are"))),
    }
}

/// What a kind is called before a name, as kubectl writes it: `pod`, `networkpolicy.networking.k8s.io`.
pub fn typed(kind: Kind) -> String {
    kind.typed().to_lowercase()
}

/// The kind that a person means.
///
/// # Errors
/// [`Usage`] when there is no such kind.
pub fn kind(word: &str) -> Result<Kind, Usage> {
    let lower = word.to_lowercase();
    Kind::ALL
        .into_iter()
        .find(|kind| {
            kind.plural() == lower
                || kind.qualified() == lower
                || kind.as_str().to_lowercase() == lower
                || typed(*kind) == lower
                || kind.short_names().contains(&lower.as_str())
        })
        .ok_or_else(|| Usage(format!("unknown kind of object {word:?}; known are {}", known())))
}

fn known() -> String {
    let names: Vec<String> = Kind::ALL
        .iter()
        .map(|kind| match kind.short_names() {
            [short, ..] => format!("{} ({short})", kind.plural()),
            [] => kind.plural().to_owned(),
        })
        .collect();
    names.join(", ")
}

/// The name of a pod as a person writes it: `web` or `pod/web`.
///
/// # Errors
/// [`Usage`] when it names another kind.
pub fn pod_name(word: &str) -> Result<&str, Usage> {
    match word.split_once('/') {
        None => Ok(word),
        Some((before, name)) if kind(before)? == Kind::Pod && !name.is_empty() => Ok(name),
        Some(_) => Err(Usage(format!("{word:?} is not a pod"))),
    }
}

/// The path of a kind's objects, or of one. `None` as namespace means all namespaces.
pub fn path(kind: Kind, namespace: Option<&str>, name: Option<&str>) -> String {
    let mut path = kind.group().path();
    if let Some(namespace) = namespace.filter(|_| kind.namespaced()) {
        let _ = write!(path, "/namespaces/{}", encode(namespace));
    }
    let _ = write!(path, "/{}", kind.plural());
    if let Some(name) = name {
        let _ = write!(path, "/{}", encode(name));
    }
    path
}

/// Adds `name=value` pairs to a path.
pub fn with_query(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut out = path.to_owned();
    for (n, (name, value)) in pairs.iter().enumerate() {
        let _ = write!(out, "{}{name}={}", if n == 0 { '?' } else { '&' }, encode(value));
    }
    out
}

/// Percent-encoding (RFC 3986, everything but the unreserved characters).
pub mod percent {
    use std::fmt::Write as _;

    /// Encodes one part of a path or query.
    pub fn encode(text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for byte in text.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                out.push(char::from(byte));
            } else {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(words: &str) -> Result<Vec<String>, String> {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let show = |t: &Target| format!("{}/{}", t.kind.plural(), t.name.as_deref().unwrap_or("*"));
        targets(&words).map(|all| all.iter().map(show).collect()).map_err(|e| e.0)
    }

    #[test]
    fn words_become_targets() {
        assert_eq!(read("po").unwrap(), ["pods/*"]);
        assert_eq!(read("Pod web db").unwrap(), ["pods/web", "pods/db"]);
        assert_eq!(read("pods,ev").unwrap(), ["pods/*", "events/*"]);
        assert_eq!(read("pod/web no/n").unwrap(), ["pods/web", "nodes/n"]);
        assert_eq!(read("networkpolicy.networking.k8s.io/db").unwrap(), ["networkpolicies/db"]);
        assert!(read("deploy").unwrap_err().starts_with("unknown kind of object \"deploy\"; known are"));
        assert!(read("pod/web db").is_err());
        assert!(read("pod/").is_err());
        assert!(read("").is_err());
    }

    #[test]
    fn paths() {
        assert_eq!(path(Kind::Pod, Some("a b"), Some("x/y")), "/api/v1/namespaces/a%20b/pods/x%2Fy");
        assert_eq!(path(Kind::Node, Some("ignored"), Some("n")), "/api/v1/nodes/n");
        assert_eq!(path(Kind::Pod, None, None), "/api/v1/pods");
        assert_eq!(path(Kind::EndpointSlice, None, None), "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(with_query("/p", &[("a", "x=1"), ("b", "2")]), "/p?a=x%3D1&b=2");
    }
}
