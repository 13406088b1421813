//! Required node affinity: its form, and whether this node meets it (`component-helpers/scheduling/corev1/nodeaffinity`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

use super::names;
use crate::manifest::Context;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;

const OPERATORS: [&str; 6] = ["DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn"];

/// Checks `spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution`.
pub(crate) fn check(spec: &v1::PodSpec, context: &Context, issues: &mut Issues) {
    let node = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let Some(required) =
        node.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref())
    else {
        return;
    };
    let path = FieldPath::of("spec")
        .field("affinity")
        .field("nodeAffinity")
        .field("requiredDuringSchedulingIgnoredDuringExecution")
        .field("nodeSelectorTerms");
    if required.node_selector_terms.is_empty() {
        issues.required(&path, "must have at least one node selector term");
    }
    let before = issues.0.len();
    for (i, term) in required.node_selector_terms.iter().enumerate() {
        let path = path.index(i);
        for (j, one) in term.match_expressions.iter().flatten().enumerate() {
            let path = path.field("matchExpressions").index(j);
            issues.all(&path.field("key"), &one.key, names::qualified(&one.key));
            check_values(one, &path, issues);
        }
        for (j, one) in term.match_fields.iter().flatten().enumerate() {
            check_field(one, &path.field("matchFields").index(j), issues);
        }
    }
    let Some(labels) = context.node_labels.as_ref().filter(|_| issues.0.len() == before) else { return };
    if !required.node_selector_terms.is_empty() && !matches(required, labels, &context.node_name) {
        issues
            .invalid(
                &path,
                "",
                "no term matches this node: node(s) didn't match Pod's node affinity/selector",
            )
            .node_affinity()
            .hint("`berth describe node` shows its labels");
    }
}

fn check_values(one: &v1::NodeSelectorRequirement, path: &FieldPath, issues: &mut Issues) {
    let values = one.values.as_deref().unwrap_or_default();
    let at = path.field("values");
    match one.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            issues.required(&at, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            issues.forbidden(&at, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Gt" | "Lt" if values.len() != 1 => {
            issues.required(&at, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "Gt" | "Lt" if values[0].parse::<i64>().is_err() => {
            issues.invalid(&at, values[0].as_str(), "must be a whole number");
        }
        other => issues.one_of(&path.field("operator"), Some(other), &OPERATORS),
    }
}

fn check_field(one: &v1::NodeSelectorRequirement, path: &FieldPath, issues: &mut Issues) {
    issues.one_of(&path.field("key"), Some(&one.key), &["metadata.name"]);
    issues.one_of(&path.field("operator"), Some(&one.operator), &["In", "NotIn"]);
    if one.values.as_ref().map_or(0, Vec::len) != 1 {
        issues.required(&path.field("values"), "must be only one value when `operator` is 'In' or 'NotIn'");
    }
}

/// Whether one of the terms holds. An empty term matches no node.
fn matches(selector: &v1::NodeSelector, labels: &BTreeMap<String, String>, name: &str) -> bool {
    selector.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|one| holds(one, labels.get(&one.key).map(String::as_str)))
            && fields.iter().all(|one| holds(one, Some(name)))
    })
}

fn holds(one: &v1::NodeSelectorRequirement, label: Option<&str>) -> bool {
    let values = one.values.as_deref().unwrap_or_default();
    let listed = label.is_some_and(|label| values.iter().any(|value| value == label));
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = || Some((number(label?)?, number(values.first()?)?));
    match one.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        "Gt" => compared().is_some_and(|(label, value)| label > value),
        "Lt" => compared().is_some_and(|(label, value)| label < value),
        _ => false,
    }
}
