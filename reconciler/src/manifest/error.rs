//! What is wrong with a manifest, told so that a person can go to the place and mend it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The object that an error is about, as far as the manifest names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// `Pod`, `ConfigMap`, `Secret`.
    pub kind: String,
    /// Namespace; `default` where the manifest gives none.
    pub namespace: String,
    /// `metadata.name` as written (a file pod's suffix `-<node>` is not added); empty when there is none.
    pub name: String,
}

/// Which kind of mistake an error is; the names are those of Kubernetes' `StatusCause.reason`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// A required value is missing.
    FieldValueRequired,
    /// A value is malformed or out of range.
    #[default]
    FieldValueInvalid,
    /// A value of a fixed set is none of them.
    FieldValueNotSupported,
    /// A value that must be unique occurs twice.
    FieldValueDuplicate,
    /// The value is not allowed here; Berth's unsupported features are reported with it.
    FieldValueForbidden,
    /// The value refers to something that does not exist.
    FieldValueNotFound,
    /// The value has the wrong JSON type.
    FieldValueTypeInvalid,
    /// The pod is for nodes with other labels than this one's: what makes a kubelet refuse it as `NodeAffinity`.
    NodeAffinity,
    /// The field does not exist in Kubernetes.
    FieldUnknown,
    /// The text could not be read at all (file, encoding, YAML syntax, kind).
    Unreadable,
}

impl Cause {
    /// The name as `StatusCause.reason` wants it.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::FieldValueRequired => "FieldValueRequired",
            Cause::FieldValueInvalid | Cause::NodeAffinity => "FieldValueInvalid",
            Cause::FieldValueNotSupported => "FieldValueNotSupported",
            Cause::FieldValueDuplicate => "FieldValueDuplicate",
            Cause::FieldValueForbidden => "FieldValueForbidden",
            Cause::FieldValueNotFound => "FieldValueNotFound",
            Cause::FieldValueTypeInvalid => "FieldValueTypeInvalid",
            Cause::FieldUnknown => "FieldUnknown",
            Cause::Unreadable => "Unreadable",
        }
    }
}

/// One mistake in one manifest.
///
/// Shown as `web.yaml:12: spec.containers[0].image: Required value (name the image to run)`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub struct ManifestError {
    /// The file, if the manifest came from one.
    pub file: Option<PathBuf>,
    /// Line, from 1; none for JSON that came over the API.
    pub line: Option<usize>,
    /// Column, from 1.
    pub column: Option<usize>,
    /// Field path in Kubernetes' notation: `spec.containers[0].image`.
    pub field: Option<String>,
    /// What is wrong, in the API server's words where it has some.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The object it is about.
    pub object: Option<ObjectRef>,
    /// The kind of mistake.
    pub cause: Cause,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, Some(line)) => write!(f, "line {line}: ")?,
            (None, None) => {}
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.reason)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}
