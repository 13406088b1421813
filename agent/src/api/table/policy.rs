//! The columns of NetworkPolicies, as kubernetes/pkg/printers has them.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use super::{Column, age, or_none};

pub const COLUMNS: &[Column] =
    &[("Name", "string", "name", 0), ("Pod-Selector", "string", "", 0), ("Age", "string", "", 0)];

/// The cells of a NetworkPolicy's row.
pub fn cells(policy: &NetworkPolicy) -> Vec<Value> {
    let pods = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
    vec![
        json!(policy.metadata.name),
        or_none(pods.map(selector).as_deref()),
        json!(age(policy.metadata.creation_timestamp.as_ref())),
    ]
}

/// A selector in the words of `kubectl get -l`; empty if it selects everything.
pub fn selector(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let terms = selector.match_expressions.iter().flatten().map(|term| {
        let mut values = term.values.clone().unwrap_or_default();
        values.sort();
        let values = values.join(",");
        match term.operator.as_str() {
            "In" => format!("{} in ({values})", term.key),
            "NotIn" => format!("{} notin ({values})", term.key),
            "DoesNotExist" => format!("!{}", term.key),
            _ => term.key.clone(),
        }
    });
    labels.chain(terms).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn policies_as_kubectl_shows_them() {
        let of = |selector: Value| {
            let object = json!({"metadata": {"name": "p"}, "spec": {"podSelector": selector}});
            cells(&serde_json::from_value(object).unwrap())[1].clone()
        };
        assert_eq!(of(json!({})), "<none>");
        assert_eq!(of(json!({"matchLabels": {"app": "web", "b": "c"}})), "app=web,b=c");
        let terms = json!([
            {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "b", "operator": "NotIn", "values": ["z"]},
            {"key": "c", "operator": "Exists"}, {"key": "d", "operator": "DoesNotExist"},
        ]);
        let both = json!({"matchLabels": {"l": "1"}, "matchExpressions": terms});
        assert_eq!(of(both), "l=1,a in (x,y),b notin (z),c,!d");
    }
}
