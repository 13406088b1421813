//! Which families of addresses a Service has (`initIPFamilyFields` of Kubernetes): from what it says itself, what it had,
//! and the ranges of the node.

use std::net::IpAddr;

use berth_reconciler::services::{IpFamily, families, is_headless};
use k8s_openapi::api::core::v1;

use super::Refusal;
use super::ranges::Ranges;

const SINGLE: &str = "SingleStack";
const REQUIRED: &str = "RequireDualStack";

fn refuse(field: impl Into<String>, value: &str, why: &str) -> Refusal {
    Refusal::Field { field: field.into(), why: format!("Invalid value: {value:?}: {why}") }
}

/// Sets `ipFamilyPolicy` and `ipFamilies`. `old` is what the caller changes, if it says only what is to be different.
///
/// # Errors
/// What it asks for does not fit together, or is not to be had on this node.
pub(super) fn fill_in(
    spec: &mut v1::ServiceSpec,
    old: Option<&v1::ServiceSpec>,
    ranges: &Ranges,
) -> Result<(), Refusal> {
    let old = old.filter(|old| old.ip_family_policy.is_some());
    if old.is_some_and(|old| leaves_all(spec, old)) {
        return Ok(());
    }
    let inherited = old.and_then(|old| old.ip_family_policy.clone());
    let policy =
        spec.ip_family_policy.get_or_insert_with(|| inherited.unwrap_or_else(|| SINGLE.into())).clone();
    if let Some(old) = old {
        change(spec, old, &policy)?;
    }
    let at = "spec.ipFamilyPolicy";
    let ips: Vec<IpAddr> = spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    let mut chosen = families(spec);
    for (several, of) in [(ips.len() > 1, "cluster IPs"), (chosen.len() > 1, "IP families")] {
        if policy == SINGLE && several {
            let why =
                format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {of} are specified");
            return Err(refuse(at, &policy, &why));
        }
    }
    for (i, ip) in ips.iter().enumerate().skip(chosen.len()) {
        let family = IpFamily::of(*ip);
        if !ranges.has(family) {
            let why = format!("{} is not configured on this cluster{}", family.as_str(), hint(ranges));
            return Err(refuse(format!("spec.clusterIPs[{i}]"), &ip.to_string(), &why));
        }
        chosen.push(family);
    }
    if policy == REQUIRED && !ranges.are_dual() {
        let why = format!("this cluster is not configured for dual-stack services{}", hint(ranges));
        return Err(refuse(at, &policy, &why));
    }
    if let Some((i, missing)) = chosen.iter().enumerate().find(|(_, family)| !ranges.has(**family)) {
        let why = format!("not configured on this cluster{}", hint(ranges));
        return Err(refuse(format!("spec.ipFamilies[{i}]"), missing.as_str(), &why));
    }
    if chosen.is_empty() {
        chosen.push(ranges.first);
    }
    if policy != SINGLE && chosen.len() == 1 && ranges.are_dual() {
        chosen.push(chosen[0].other());
    }
    spec.ip_families = Some(chosen.iter().map(|family| family.as_str().to_owned()).collect());
    Ok(())
}

/// What to do about a missing family.
fn hint(ranges: &Ranges) -> String {
    let missing = match (ranges.v4, ranges.v6) {
        (Some(_), Some(_)) => return String::new(),
        (None, _) => "IPv4",
        (_, None) => "IPv6",
    };
    format!(" (serviceCIDR names no {missing} range)")
}

/// Whether a `PreferDualStack` Service stays as it is: it gets or loses no address only because ranges changed.
fn leaves_all(spec: &v1::ServiceSpec, old: &v1::ServiceSpec) -> bool {
    spec.ip_family_policy.as_deref() == Some("PreferDualStack")
        && old.ip_family_policy == spec.ip_family_policy
        && old.ip_families == spec.ip_families
        && old.cluster_ips == spec.cluster_ips
}

/// What an update may do to the families of a Service.
fn change(spec: &mut v1::ServiceSpec, old: &v1::ServiceSpec, policy: &str) -> Result<(), Refusal> {
    if policy == SINGLE {
        // The first address stays; giving up the second one needs no more than saying so.
        if old.cluster_ips == spec.cluster_ips
            && let Some(ips) = &mut spec.cluster_ips
        {
            ips.truncate(1);
        }
        if old.ip_families == spec.ip_families
            && let Some(names) = &mut spec.ip_families
        {
            names.truncate(1);
        }
    } else {
        let reduced = |before: &Option<Vec<String>>, after: &Option<Vec<String>>| {
            let after = after.as_deref().unwrap_or_default();
            !after.is_empty() && after.len() < before.as_ref().map_or(0, Vec::len)
        };
        for (less, what) in [
            (reduced(&old.cluster_ips, &spec.cluster_ips), "cluster IP"),
            (reduced(&old.ip_families, &spec.ip_families), "IP family"),
        ] {
            if less {
                let why = format!("must be 'SingleStack' to release the secondary {what}");
                return Err(refuse("spec.ipFamilyPolicy", policy, &why));
            }
        }
    }
    if !is_headless(spec)
        && let (Some(before), Some(after)) = (families(old).first(), families(spec).first())
        && before != after
    {
        return Err(refuse("spec.ipFamilies[0]", after.as_str(), "field is immutable"));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DUAL: &str = "10.86.0.0/16,fd00:86::/112";

    fn spec(value: Value) -> v1::ServiceSpec {
        serde_json::from_value(value).unwrap()
    }

    /// Policy and families, or the error.
    fn filled(value: Value, old: Option<Value>, ranges: &str) -> String {
        let (mut spec, old) = (spec(value), old.map(spec));
        match fill_in(&mut spec, old.as_ref(), &Ranges::parse(ranges).unwrap()) {
            Ok(()) => format!("{} {}", spec.ip_family_policy.unwrap(), spec.ip_families.unwrap().join(",")),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn a_new_service_gets_what_kubernetes_gives_it() {
        for (value, ranges, expected) in [
            (json!({}), "10.86.0.0/16", "SingleStack IPv4"),
            (json!({}), DUAL, "SingleStack IPv4"),
            (json!({}), "fd00:86::/112,10.86.0.0/16", "SingleStack IPv6"),
            (json!({"ipFamilies": ["IPv6"]}), DUAL, "SingleStack IPv6"),
            (json!({"clusterIPs": ["fd00:86::9"]}), DUAL, "SingleStack IPv6"),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), DUAL, "PreferDualStack IPv4,IPv6"),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), "10.86.0.0/16", "PreferDualStack IPv4"),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
                DUAL,
                "RequireDualStack IPv6,IPv4",
            ),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "clusterIPs": ["fd00:86::9", "10.86.0.9"]}),
                DUAL,
                "RequireDualStack IPv6,IPv4",
            ),
            (
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "10.86.0.0/16",
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services (serviceCIDR names no IPv6 range)",
            ),
            (
                json!({"ipFamilies": ["IPv6"]}),
                "10.86.0.0/16",
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster (serviceCIDR names no IPv6 range)",
            ),
            (
                json!({"clusterIPs": ["10.86.0.9"]}),
                "fd00:86::/112",
                "spec.clusterIPs[0]: Invalid value: \"10.86.0.9\": IPv4 is not configured on this cluster (serviceCIDR names no IPv4 range)",
            ),
            (
                json!({"ipFamilies": ["IPv4", "IPv6"]}),
                DUAL,
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
            ),
        ] {
            assert_eq!(filled(value.clone(), None, ranges), expected, "{value} of {ranges}");
        }
    }

    #[test]
    fn an_update_says_what_is_to_be_different() {
        let both = |policy: &str| {
            json!({"ipFamilyPolicy": policy, "ipFamilies": ["IPv4", "IPv6"], "clusterIP": "10.86.0.9",
                "clusterIPs": ["10.86.0.9", "fd00:86::9"]})
        };
        let one = |policy: &str| json!({"ipFamilyPolicy": policy, "ipFamilies": ["IPv4"], "clusterIP": "10.86.0.9", "clusterIPs": ["10.86.0.9"]});
        for (value, old, ranges, expected) in [
            (one("PreferDualStack"), one("SingleStack"), DUAL, "PreferDualStack IPv4,IPv6"),
            // The node has got a second range since, which nobody asked to use.
            (one("PreferDualStack"), one("PreferDualStack"), DUAL, "PreferDualStack IPv4"),
            (both("SingleStack"), both("RequireDualStack"), DUAL, "SingleStack IPv4"),
            (json!({}), both("RequireDualStack"), DUAL, "RequireDualStack IPv4,IPv6"),
            (
                one("RequireDualStack"),
                both("RequireDualStack"),
                DUAL,
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary cluster IP",
            ),
            (
                json!({"ipFamilies": ["IPv6"]}),
                one("SingleStack"),
                DUAL,
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": field is immutable",
            ),
        ] {
            assert_eq!(filled(value.clone(), Some(old.clone()), ranges), expected, "{value} after {old}");
        }
    }
}
