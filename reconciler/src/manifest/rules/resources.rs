//! Checks of `resources`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::manifest::Context;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::quantity::Quantity;
use crate::resources::{amount, is_pod_level, limits, page_limits, pod_huge_pages, pod_requests};

/// Checks requests and limits of a container.
pub(crate) fn check(resources: &v1::ResourceRequirements, path: &FieldPath, issues: &mut Issues) {
    let limits = check_list(resources.limits.as_ref(), &path.field("limits"), issues);
    let requests = check_list(resources.requests.as_ref(), &path.field("requests"), issues);
    let huge = |name: &&str| name.starts_with("hugepages-");
    let all: Vec<&&str> = limits.keys().chain(requests.keys()).collect();
    let other = all.iter().any(|name| ["cpu", "memory"].contains(*name));
    if all.iter().any(|name| huge(name)) && !other {
        issues.forbidden(path, "HugePages require cpu or memory");
    }
    for name in requests.keys().filter(|name| huge(name)) {
        let (asked, limit) = (&requests[*name], limits.get(*name));
        if limit != Some(asked) {
            let shown = limit.map_or("0".to_owned(), ToString::to_string);
            let detail = format!("must be equal to {name} limit of {shown}");
            issues.invalid(&path.field("requests").key(name), asked.to_string().as_str(), &detail);
        }
    }
    for (name, request) in requests.into_iter().filter(|(name, _)| !huge(name)) {
        if let Some(limit) = limits.get(name).filter(|limit| request > **limit) {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            issues.invalid(&path.field("requests"), request.to_string().as_str(), &detail);
            if let Some(issue) = issues.0.last_mut() {
                issue.path = path.field("requests").key(name);
            }
        }
    }
}

fn check_list<'a>(
    list: Option<&'a BTreeMap<String, ApiQuantity>>,
    path: &FieldPath,
    issues: &mut Issues,
) -> BTreeMap<&'a str, Quantity> {
    let mut good = BTreeMap::new();
    for (name, text) in list.into_iter().flatten() {
        let path = path.key(name);
        let Some(quantity) = quantity(text, &path, issues) else { continue };
        match name.as_str() {
            "cpu" => {}
            "memory" | "ephemeral-storage" if quantity.is_whole() => {}
            "memory" | "ephemeral-storage" => {
                let detail = "fractional byte value is invalid, must be an integer";
                issues
                    .invalid(&path, text.0.as_str(), detail)
                    .hint("the suffix m means thousandths; Mi means mebibytes");
            }
            _ if name.starts_with("hugepages-") => check_huge_pages(name, &quantity, text, &path, issues),
            _ if quantity.is_zero() => {}
            _ => issues
                .forbidden(&path, "there are no device plugins that could provide this resource")
                .hint("supported: cpu, memory, ephemeral-storage, hugepages-*"),
        }
        good.insert(name.as_str(), quantity);
    }
    good
}

/// What somebody may have meant who writes amounts of memory as people do: `64MB`, `1 GiB`, `512K`.
fn meant(text: &str) -> Option<String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(end);
    number.parse::<f64>().ok()?;
    let unit = unit.trim().to_ascii_lowercase();
    let unit =
        unit.strip_suffix("bytes").or(unit.strip_suffix("byte")).or(unit.strip_suffix('b')).unwrap_or(&unit);
    let letters = |decimal: &str, binary: &str| format!("{number}{binary} or {number}{decimal}");
    Some(match unit {
        "" => number.to_owned(),
        "k" => letters("k", "Ki"),
        "m" => letters("M", "Mi"),
        "g" => letters("G", "Gi"),
        "t" => letters("T", "Ti"),
        "ki" => format!("{number}Ki"),
        "mi" => format!("{number}Mi"),
        "gi" => format!("{number}Gi"),
        "ti" => format!("{number}Ti"),
        _ => return None,
    })
}

/// Checks that a quantity can be read and is not negative.
pub(crate) fn quantity(text: &ApiQuantity, path: &FieldPath, issues: &mut Issues) -> Option<Quantity> {
    match Quantity::of(text) {
        Ok(quantity) if quantity.is_negative() => {
            issues.invalid(path, text.0.as_str(), "must be greater than or equal to 0");
            None
        }
        Ok(quantity) => Some(quantity),
        Err(error) => {
            let issue = issues.invalid(path, text.0.as_str(), &error.to_string());
            if let Some(meant) = meant(&text.0) {
                issue.hint(format!("did you mean {meant}?"));
            }
            None
        }
    }
}

/// Huge pages cannot be had by halves.
fn check_huge_pages(
    name: &str,
    amount: &Quantity,
    text: &ApiQuantity,
    path: &FieldPath,
    issues: &mut Issues,
) {
    let size = name.strip_prefix("hugepages-").and_then(|size| Quantity::parse(size).ok());
    match size.map(|size| size.value()).filter(|size| *size > 0) {
        None => {
            issues.invalid(path, name, "hugepages- is followed by the size of a page, such as 2Mi");
        }
        Some(size) if !amount.is_whole() || amount.value() % size != 0 => {
            issues.invalid(path, text.0.as_str(), "must be a positive integer multiple of page size");
        }
        Some(_) => {}
    }
}

/// Checks `spec.overhead`, which follows from the pod's runtime.
pub(crate) fn check_overhead(spec: &v1::PodSpec, node: &Context, path: &FieldPath, issues: &mut Issues) {
    let Some(overhead) = spec.overhead.as_ref().filter(|list| !list.is_empty()) else { return };
    check_list(Some(overhead), path, issues);
    let runtime = spec.runtime_class_name.as_deref().unwrap_or_default();
    match node.overheads.get(runtime) {
        Some(defined) => {
            let amounts = |list: &BTreeMap<String, ApiQuantity>| -> Vec<(String, Option<Quantity>)> {
                list.iter().map(|(name, q)| (name.clone(), Quantity::of(q).ok())).collect()
            };
            if amounts(defined) != amounts(overhead) {
                issues.forbidden(path, "Pod's Overhead doesn't match RuntimeClass's defined Overhead");
            }
        }
        None if node.runtimes.is_some() || runtime.is_empty() => {
            issues
                .forbidden(path, "Pod Overhead set without corresponding RuntimeClass defined Overhead")
                .hint("remove the field: it is set from `runtimes` in the agent's configuration");
        }
        None => {}
    }
}

/// Checks that the pod's huge pages, whose limits and requests are equal, hold its containers'.
fn check_pod_pages(
    alone: &v1::PodSpec,
    resources: &v1::ResourceRequirements,
    path: &FieldPath,
    issues: &mut Issues,
) {
    let pods = page_limits(resources.limits.as_ref());
    for (size, sum) in pod_huge_pages(alone) {
        let Some((name, bytes)) = pods.get(&size).filter(|(_, bytes)| *bytes < sum) else { continue };
        let detail = format!("must be greater than or equal to aggregate container requests of {sum}");
        issues.invalid(&path.key(name), bytes.to_string().as_str(), &detail);
    }
}

/// Checks `spec.resources`, what the pod asks for as a whole: it must hold what its containers ask for.
pub(crate) fn check_pod(spec: &v1::PodSpec, path: &FieldPath, issues: &mut Issues) {
    let Some(resources) = &spec.resources else { return };
    let mut resources = resources.clone();
    for (field, list) in [("limits", &mut resources.limits), ("requests", &mut resources.requests)] {
        for name in list.iter().flat_map(BTreeMap::keys).filter(|name| !is_pod_level(name)) {
            let supported = ["cpu", "memory", "hugepages-*"];
            issues.not_supported(&path.field(field).key(name), name, &supported);
        }
        list.iter_mut().for_each(|list| list.retain(|name, _| is_pod_level(name)));
    }
    check(&resources, path, issues);
    let alone = v1::PodSpec { resources: None, overhead: None, ..spec.clone() };
    let sum = pod_requests(&alone);
    let given = |list: &Option<BTreeMap<String, ApiQuantity>>, name: &str| amount(list.as_ref(), name);
    check_pod_pages(&alone, &resources, &path.field("limits"), issues);
    for (name, sum) in sum.quantities() {
        if let Some(asked) = given(&resources.requests, name).filter(|asked| *asked < sum) {
            let detail = format!("must be greater than or equal to aggregate container requests of {sum}");
            issues.invalid(&path.field("requests").key(name), asked.to_string().as_str(), &detail);
        }
        let Some(limit) = given(&resources.limits, name) else { continue };
        for (field, list) in [
            ("initContainers", spec.init_containers.as_deref().unwrap_or_default()),
            ("containers", &spec.containers),
        ] {
            for (i, container) in list.iter().enumerate() {
                if let Some(own) = amount(limits(container), name).filter(|own| *own > limit) {
                    let at = FieldPath::of("spec")
                        .field(field)
                        .index(i)
                        .field("resources")
                        .field("limits")
                        .key(name);
                    let detail = format!("must be less than or equal to pod limits of {limit}");
                    issues.invalid(&at, own.to_string().as_str(), &detail);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::meant;

    #[test]
    fn amounts_as_people_write_them_get_a_hint() {
        for (text, wanted) in [
            ("64MB", Some("64Mi or 64M")),
            ("1.5 GB", Some("1.5Gi or 1.5G")),
            ("512K", Some("512Ki or 512k")),
            ("1 GiB", Some("1Gi")),
            ("10mib", Some("10Mi")),
            ("7 bytes", Some("7")),
            ("100 B", Some("100")),
            ("1.5.2", None),
            ("lots", None),
            ("5 apples", None),
            ("", None),
        ] {
            assert_eq!(meant(text).as_deref(), wanted, "{text}");
        }
    }
}
