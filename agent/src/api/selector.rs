//! Label and field selectors.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::ApiError;
use super::params::Params;
use crate::store::{Kind, Object};

/// One term of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    path: String,
    value: String,
    equal: bool,
}

/// Which objects a request means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    namespace: Option<String>,
    labels: Vec<Term>,
    fields: Vec<Field>,
}

#[derive(Deserialize)]
struct Labelled {
    #[serde(default)]
    metadata: Labels,
}

#[derive(Default, Deserialize)]
struct Labels {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl Filter {
    /// Reads `labelSelector` and `fieldSelector`.
    pub fn of(kind: Kind, namespace: Option<String>, params: &Params) -> Result<Filter, ApiError> {
        let labels = params.get("labelSelector").map(parse_labels).transpose()?.unwrap_or_default();
        let fields =
            params.get("fieldSelector").map(|s| parse_fields(kind, s)).transpose()?.unwrap_or_default();
        Ok(Filter { namespace, labels, fields })
    }

    /// The namespace, if only one is asked for.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whether an object is meant.
    pub fn matches(&self, object: &Object) -> bool {
        self.namespace.as_ref().is_none_or(|ns| *ns == object.namespace)
            && self.labels_match(object)
            && self.fields_match(object)
    }

    fn labels_match(&self, object: &Object) -> bool {
        if self.labels.is_empty() {
            return true;
        }
        let labelled: Option<Labelled> = serde_json::from_slice(&object.json).ok();
        let labels = labelled.and_then(|l| l.metadata.labels).unwrap_or_default();
        self.labels.iter().all(|term| match term {
            Term::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Term::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Term::Exists(key) => labels.contains_key(key),
            Term::Missing(key) => !labels.contains_key(key),
        })
    }

    fn fields_match(&self, object: &Object) -> bool {
        let mut tree: Option<Value> = None;
        self.fields.iter().all(|field| {
            let equal = match field.path.as_str() {
                "metadata.name" => object.name == field.value,
                "metadata.namespace" => object.namespace == field.value,
                path => lookup(tree.get_or_insert_with(|| object.value()), path) == field.value,
            };
            equal == field.equal
        })
    }
}

/// The value at a dotted path as text; empty if there is none.
fn lookup(object: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(object, |value, part| value.get(part));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(_) | Value::Number(_)) => found.map(Value::to_string).unwrap_or_default(),
        _ => String::new(),
    }
}

fn selectable(kind: Kind, path: &str) -> bool {
    let own: &[&str] = match kind {
        Kind::Pod => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        Kind::Event => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source.component",
            "type",
        ],
        Kind::Node => &["spec.unschedulable"],
        Kind::Secret => &["type"],
        Kind::Namespace => &["status.phase"],
        Kind::Service => &["spec.clusterIP", "spec.type"],
        Kind::ConfigMap
        | Kind::PersistentVolume
        | Kind::PersistentVolumeClaim
        | Kind::Endpoints
        | Kind::EndpointSlice
        | Kind::NetworkPolicy
        | Kind::Lease
        | Kind::ServiceAccount
        | Kind::RuntimeClass
        | Kind::PriorityClass => &[],
        Kind::CertificateSigningRequest => &["spec.signerName"],
    };
    path == "metadata.name" || (path == "metadata.namespace" && kind.namespaced()) || own.contains(&path)
}

fn parse_fields(kind: Kind, text: &str) -> Result<Vec<Field>, ApiError> {
    let invalid =
        |why: String| ApiError::bad_request(format!("unable to parse field selector {text:?}: {why}"));
    let mut fields = Vec::new();
    for term in text.split(',').map(str::trim).filter(|term| !term.is_empty()) {
        let (path, value, equal) = if let Some((path, value)) = term.split_once("!=") {
            (path, value, false)
        } else if let Some((path, value)) = term.split_once("==") {
            (path, value, true)
        } else if let Some((path, value)) = term.split_once('=') {
            (path, value, true)
        } else {
            return Err(invalid(format!("no = in {term:?}")));
        };
        if !selectable(kind, path) {
            return Err(invalid(format!("field label not supported: {path}")));
        }
        fields.push(Field { path: path.to_owned(), value: value.to_owned(), equal });
    }
    Ok(fields)
}

/// Splits at the commas that are not inside parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn parse_labels(text: &str) -> Result<Vec<Term>, ApiError> {
    split_terms(text).into_iter().map(str::trim).filter(|t| !t.is_empty()).map(|t| label(text, t)).collect()
}

fn label(text: &str, term: &str) -> Result<Term, ApiError> {
    let invalid = || ApiError::bad_request(format!("unable to parse label selector {text:?}: at {term:?}"));
    let key = |key: &str| {
        let key = key.trim();
        let good = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
        if key.is_empty() || !key.chars().all(good) { Err(invalid()) } else { Ok(key.to_owned()) }
    };
    let set = |list: &str| -> Result<Vec<String>, ApiError> {
        let inner = list.trim().strip_prefix('(').and_then(|l| l.strip_suffix(')')).ok_or_else(invalid)?;
        Ok(inner.split(',').map(|value| value.trim().to_owned()).collect())
    };
    if let Some(rest) = term.strip_prefix('!') {
        return Ok(Term::Missing(key(rest)?));
    }
    if let Some((name, value)) = term.split_once("!=") {
        return Ok(Term::NotIn(key(name)?, vec![value.trim().to_owned()]));
    }
    if let Some((name, value)) = term.split_once('=') {
        return Ok(Term::In(key(name)?, vec![value.trim_start_matches('=').trim().to_owned()]));
    }
    if let Some((name, list)) = term.split_once(" notin") {
        return Ok(Term::NotIn(key(name)?, set(list)?));
    }
    if let Some((name, list)) = term.split_once(" in") {
        return Ok(Term::In(key(name)?, set(list)?));
    }
    Ok(Term::Exists(key(term)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn pod() -> Object {
        let json = json!({
            "metadata": {"name": "web", "labels": {"app": "web", "tier": "front"}},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
        });
        Object {
            kind: Kind::Pod,
            namespace: "default".into(),
            name: "web".into(),
            version: 1,
            json: json.to_string().into(),
        }
    }

    #[test]
    fn label_selectors() {
        let matches = |text: &str| {
            let filter = Filter { labels: parse_labels(text).unwrap(), ..Filter::default() };
            filter.matches(&pod())
        };
        for good in [
            "app=web",
            "app==web",
            "app",
            "!x",
            "app in (a, web)",
            "x notin (a)",
            "app=web,tier!=back",
            "x!=y",
            "",
        ] {
            assert!(matches(good), "{good}");
        }
        for bad in ["app=db", "x", "!app", "app in (a,b)", "app notin (web)", "app=web,tier=back", "x=y"] {
            assert!(!matches(bad), "{bad}");
        }
        for broken in ["app in web", "a b", "=x", "app in (a"] {
            assert!(parse_labels(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn field_selectors() {
        let matches = |text: &str| {
            let filter = Filter { fields: parse_fields(Kind::Pod, text).unwrap(), ..Filter::default() };
            filter.matches(&pod())
        };
        for good in [
            "metadata.name=web",
            "spec.nodeName=n1,status.phase!=Failed",
            "metadata.namespace==default",
            "status.podIP=",
        ] {
            assert!(matches(good), "{good}");
        }
        assert!(!matches("status.phase=Pending"));
        assert!(parse_fields(Kind::Pod, "spec.x=1").is_err());
        assert!(parse_fields(Kind::Pod, "status.phase").is_err());
    }
}
