//! A mistake at a field path, in the API server's words; it becomes a [`super::ManifestError`] once its place is known.

use super::error::Cause;
use super::node::FieldPath;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Issue {
    pub path: FieldPath,
    pub cause: Cause,
    pub reason: String,
    pub hint: Option<String>,
}

impl Issue {
    pub fn new(path: FieldPath, cause: Cause, reason: String) -> Issue {
        Issue { path, cause, reason, hint: None }
    }
}

/// Collects issues. The verbs are those of `k8s.io/apimachinery/pkg/util/validation/field`.
#[derive(Debug, Default)]
pub(crate) struct Issues(pub Vec<Issue>);

impl Issues {
    fn add(&mut self, path: &FieldPath, cause: Cause, reason: String) -> &mut Self {
        self.0.push(Issue::new(path.clone(), cause, reason));
        self
    }

    /// Says what to do about the latest issue.
    pub fn hint(&mut self, hint: impl Into<String>) {
        if let Some(issue) = self.0.last_mut() {
            issue.hint = Some(hint.into());
        }
    }

    /// Says that the latest issue is about this node, not about the pod.
    pub fn node_affinity(&mut self) -> &mut Self {
        if let Some(issue) = self.0.last_mut() {
            issue.cause = Cause::NodeAffinity;
        }
        self
    }

    pub fn required(&mut self, path: &FieldPath, detail: &str) -> &mut Self {
        let reason =
            if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        self.add(path, Cause::FieldValueRequired, reason)
    }

    pub fn invalid(&mut self, path: &FieldPath, value: impl Shown, detail: &str) -> &mut Self {
        self.add(path, Cause::FieldValueInvalid, format!("Invalid value: {}: {detail}", value.shown()))
    }

    pub fn not_supported(&mut self, path: &FieldPath, value: &str, supported: &[&str]) -> &mut Self {
        let list: Vec<_> = supported.iter().map(|name| format!("{name:?}")).collect();
        let reason = format!("Unsupported value: {value:?}: supported values: {}", list.join(", "));
        self.add(path, Cause::FieldValueNotSupported, reason)
    }

    pub fn duplicate(&mut self, path: &FieldPath, value: impl Shown) -> &mut Self {
        self.add(path, Cause::FieldValueDuplicate, format!("Duplicate value: {}", value.shown()))
    }

    pub fn forbidden(&mut self, path: &FieldPath, detail: &str) -> &mut Self {
        self.add(path, Cause::FieldValueForbidden, format!("Forbidden: {detail}"))
    }

    pub fn not_found(&mut self, path: &FieldPath, value: &str) -> &mut Self {
        self.add(path, Cause::FieldValueNotFound, format!("Not found: {value:?}"))
    }

    /// A value of a fixed set.
    pub fn one_of(&mut self, path: &FieldPath, value: Option<&str>, supported: &[&str]) {
        if let Some(value) = value.filter(|value| !supported.contains(value)) {
            self.not_supported(path, value, supported);
        }
    }

    pub fn at_least(&mut self, path: &FieldPath, value: Option<impl Into<i64>>, least: i64) {
        if let Some(value) = value.map(Into::into).filter(|value| *value < least) {
            let detail = match least {
                1 => "must be greater than 0".to_owned(),
                _ => format!("must be greater than or equal to {least}"),
            };
            self.invalid(path, value, &detail);
        }
    }

    /// The messages of a check of `value`, one issue each.
    pub fn all(&mut self, path: &FieldPath, value: &str, details: Vec<String>) {
        for detail in details {
            self.invalid(path, value, &detail);
        }
    }
}

/// A value as a message shows it: strings in quotes, numbers bare.
pub(crate) trait Shown {
    fn shown(&self) -> String;
}

impl Shown for &str {
    fn shown(&self) -> String {
        format!("{self:?}")
    }
}

impl Shown for i64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for i32 {
    fn shown(&self) -> String {
        self.to_string()
    }
}
