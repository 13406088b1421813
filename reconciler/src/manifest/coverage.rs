//! Every field that Kubernetes knows of a Pod is either supported, and then some test names it, or refused with its path.
//!
//! k8s-openapi's types say themselves which fields they have, while they are deserialized: a deserializer that offers
//! them one value of everything sees the whole tree.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1;
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Value, json};

use super::supported::{self, Support};
use super::{Context, check_pod};

/// A field of a type.
#[derive(Clone, Debug)]
struct Field {
    kind: &'static str,
    name: &'static str,
    /// Where it is in a Pod, of all such places the first: names of fields, and `0` for an item.
    path: Vec<String>,
    /// Some value of it that is not empty.
    example: Value,
}

/// Hands every type one value of each of its fields and notes them.
struct Walker<'a> {
    fields: &'a RefCell<Vec<Field>>,
    path: Vec<String>,
    /// What has been handed out.
    example: &'a RefCell<Value>,
}

/// A date, for the types that want one, and a string like any other.
const TEXT: &str = "2026-01-02T03:04:05Z";

impl<'a> Walker<'a> {
    fn child(&self, step: &str, example: &'a RefCell<Value>) -> Walker<'a> {
        let path = self.path.iter().cloned().chain([step.to_owned()]).collect();
        Walker { fields: self.fields, path, example }
    }

    fn hand(&self, value: Value) {
        *self.example.borrow_mut() = value;
    }
}

impl<'de> Deserializer<'de> for Walker<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.hand(json!(7));
        visitor.visit_i64(7)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.hand(json!(true));
        visitor.visit_bool(true)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = match self.path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["apiVersion"] => "v1",
            ["kind"] => "Pod",
            _ => TEXT,
        };
        self.hand(json!(text));
        visitor.visit_str(text)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_string(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let example = RefCell::new(Value::Null);
        let value = visitor.visit_seq(Once { walker: Some(self.child("0", &example)) })?;
        self.hand(json!([example.into_inner()]));
        Ok(value)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let example = RefCell::new(Value::Null);
        let value = visitor.visit_map(Fields {
            walker: &self,
            kind: "",
            left: vec!["key"],
            example: &example,
            at: "",
        })?;
        self.hand(example.into_inner());
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        kind: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let example = RefCell::new(Value::Null);
        // From the end, as they are popped.
        let left = fields.iter().rev().copied().collect();
        let value = visitor.visit_map(Fields { walker: &self, kind, left, example: &example, at: "" })?;
        self.hand(example.into_inner());
        Ok(value)
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum
        identifier ignored_any
    }
}

/// A list with one item.
struct Once<'a> {
    walker: Option<Walker<'a>>,
}

impl<'de> SeqAccess<'de> for Once<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.walker.take().map(|walker| seed.deserialize(walker)).transpose()
    }
}

/// A struct with all of its fields, or a map with one entry.
struct Fields<'a> {
    walker: &'a Walker<'a>,
    kind: &'static str,
    left: Vec<&'static str>,
    example: &'a RefCell<Value>,
    at: &'static str,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(name) = self.left.pop() else { return Ok(None) };
        self.at = name;
        let key: StrDeserializer<'_, Error> = name.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let example = RefCell::new(Value::Null);
        let child = Walker {
            fields: self.walker.fields,
            path: self.walker.path.iter().cloned().chain([self.at.to_owned()]).collect(),
            example: &example,
        };
        let path = child.path.clone();
        let value = seed.deserialize(child)?;
        let example = example.into_inner();
        let mut whole = self.example.borrow_mut();
        if whole.is_null() {
            *whole = json!({});
        }
        whole[self.at] = example.clone();
        if !self.kind.is_empty() {
            self.walker.fields.borrow_mut().push(Field { kind: self.kind, name: self.at, path, example });
        }
        Ok(value)
    }
}

/// Every field of every type in a Pod, but for what only servers write.
fn all_fields() -> Vec<Field> {
    let (fields, example) = (RefCell::new(Vec::new()), RefCell::new(Value::Null));
    v1::Pod::deserialize(Walker { fields: &fields, path: Vec::new(), example: &example }).unwrap();
    let mut seen = BTreeSet::new();
    let mut all = fields.into_inner();
    all.sort_by_key(|field| field.path.len());
    // Nor what is below a field that is dropped.
    let server = |path: &[String]| {
        let above = &path[..path.len() - 1];
        path[0] == "status" || above.iter().any(|step| step == "managedFields" || step == "ownerReferences")
    };
    all.retain(|field| !server(&field.path));
    all.retain(|field| seen.insert((field.kind, field.name)));
    all
}

/// A good pod, with this field beside.
fn pod_with(field: &Field) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let mut at = &mut pod;
    for step in &field.path[..field.path.len() - 1] {
        if step == "0" {
            if !at.is_array() {
                *at = json!([{}]);
            }
            at = &mut at[0];
        } else {
            at = &mut at[step.as_str()];
        }
    }
    at[field.name] = field.example.clone();
    pod
}

/// `spec.containers[0].image`
fn shown(path: &[String]) -> String {
    path.iter().fold(String::new(), |text, step| match step.as_str() {
        "0" => format!("{text}[0]"),
        step if text.is_empty() => step.to_owned(),
        step => format!("{text}.{step}"),
    })
}

#[test]
fn the_whole_tree_is_walked() {
    let all = all_fields();
    let has = |kind: &str, name: &str| all.iter().any(|f| f.kind == kind && f.name == name);
    assert!(all.len() > 450, "only {}", all.len());
    for (kind, name) in [
        ("PodSpec", "hostnameOverride"),
        ("Container", "restartPolicyRules"),
        ("EphemeralContainerCommon", "targetContainerName"),
        ("EphemeralContainer", "targetContainerName"),
        ("AppArmorProfile", "localhostProfile"),
        ("LabelSelectorRequirement", "operator"),
        ("VolumeProjection", "podCertificate"),
    ] {
        // The types of ephemeral containers are one or two, by the version of the definitions.
        assert!(has(kind, name) || kind == "EphemeralContainerCommon", "{kind}.{name}");
    }
}

#[test]
fn no_field_is_ignored_in_silence() {
    let mut wrong = Vec::new();
    for field in all_fields() {
        // What is below a refused field is never read.
        let Support::Refused(_) = supported::field(field.kind, field.name) else { continue };
        let path = shown(&field.path);
        let errors = match check_pod(&pod_with(&field), &Context::default()) {
            Ok(_) => vec!["nothing".to_owned()],
            Err(errors) => errors.iter().filter_map(|e| e.field.clone()).collect(),
        };
        if !errors.iter().any(|said| {
            path == *said || path.starts_with(&format!("{said}.")) || path.starts_with(&format!("{said}["))
        }) {
            wrong.push(format!("{}.{}: {path} is not refused, but {errors:?}", field.kind, field.name));
        }
    }
    assert_eq!(wrong, [""; 0], "set these fields, or refuse them in supported.rs");
}

/// The text of all tests of the workspace, and the examples that a test reads.
fn tests() -> String {
    fn collect(dir: &Path, all: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = entry.file_name().into_string().unwrap();
            if path.is_dir() {
                collect(&path, all);
            } else if [".rs", ".yaml", ".json"].iter().any(|end| name.ends_with(end)) && name != "coverage.rs"
            {
                let text = std::fs::read_to_string(&path).unwrap();
                let whole = path
                    .components()
                    .any(|c| ["tests", "examples", "demo"].iter().any(|folder| c.as_os_str() == *folder));
                all.push_str(if whole {
                    &text
                } else {
                    text.split_once("#[cfg(test)]").map_or("", |(_, t)| t)
                });
            }
        }
    }
    let top: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into();
    let mut all = String::new();
    for folder in [
        "reconciler/src",
        "reconciler/tests",
        "agent/src",
        "agent/tests",
        "e2e/tests",
        "manifests/examples",
        "manifests/demo",
    ] {
        collect(&top.join(folder), &mut all);
    }
    all
}

#[test]
fn every_supported_field_is_named_by_a_test() {
    let text = tests();
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for field in all_fields() {
        let refused_above = field.path.len() > 2 && {
            let pod = pod_with(&field);
            check_pod(&pod, &Context::default()).is_err_and(|errors| {
                errors.iter().any(|e| {
                    e.reason.starts_with("Forbidden")
                        && e.field.as_deref().is_some_and(|at| shown(&field.path).starts_with(at))
                })
            })
        };
        if matches!(supported::field(field.kind, field.name), Support::Yes)
            && !refused_above
            && !words.contains(field.name)
        {
            missing.entry(field.kind).or_default().push(field.name);
        }
    }
    assert_eq!(missing, BTreeMap::new(), "a supported field needs a test that uses it");
}
