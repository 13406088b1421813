//! Checks of `resources`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;
use crate::quantity::Quantity;

/// Checks requests and limits of a container.
pub(crate) fn check(resources: &v1::ResourceRequirements, path: &FieldPath, issues: &mut Issues) {
    let limits = check_list(resources.limits.as_ref(), &path.field("limits"), issues);
    let requests = check_list(resources.requests.as_ref(), &path.field("requests"), issues);
    for (name, request) in requests {
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
            _ if quantity.is_zero() => {}
            _ if name.starts_with("hugepages-") => {
                issues.forbidden(&path, "huge pages are not supported");
            }
            _ => issues
                .forbidden(&path, "there are no device plugins that could provide this resource")
                .hint("supported: cpu, memory, ephemeral-storage"),
        }
        good.insert(name.as_str(), quantity);
    }
    good
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
            issues.invalid(path, text.0.as_str(), &error.to_string());
            None
        }
    }
}
