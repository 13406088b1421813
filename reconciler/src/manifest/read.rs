//! From a parsed document to a Kubernetes type, with every mistake collected in one pass.
//!
//! A serde deserializer over [`Node`]s that goes on after a mistake: it notes the field and hands the type an empty value in
//! its place. As k8s-openapi names every type and its fields while it deserializes, unknown fields, and fields that
//! Kubernetes knows but Berth does not support ([`super::supported`]), are found here too.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::error::Cause;
use super::issue::Issue;
use super::node::{Entry, FieldPath, Node, Step, Value};
use super::supported::{self, Support};

/// Reads a value of type `T`. There may be issues beside the value; then it is only good for finding more of them.
pub(crate) fn read<T: de::DeserializeOwned>(node: &Node) -> (Option<T>, Vec<Issue>) {
    read_with(node, false)
}

/// [`read`] with the fields that Berth does not support.
pub(crate) fn read_all<T: de::DeserializeOwned>(node: &Node) -> (Option<T>, Vec<Issue>) {
    read_with(node, true)
}

fn read_with<T: de::DeserializeOwned>(node: &Node, all: bool) -> (Option<T>, Vec<Issue>) {
    let issues = RefCell::new(Vec::new());
    let reader = Reader { node, trail: &Trail::Root, issues: &issues, all };
    let value = match T::deserialize(reader) {
        Ok(value) => Some(value),
        Err(Abort { reason: Some(reason) }) => {
            issues.borrow_mut().push(Issue::new(FieldPath::default(), Cause::FieldValueInvalid, reason));
            None
        }
        Err(Abort { reason: None }) => None,
    };
    (value, issues.into_inner())
}

/// Where the reader is; a list on the stack.
enum Trail<'t> {
    Root,
    Field(&'t Trail<'t>, &'t str),
    Key(&'t Trail<'t>, &'t str),
    Index(&'t Trail<'t>, usize),
}

impl Trail<'_> {
    fn path(&self) -> FieldPath {
        let mut steps = Vec::new();
        let mut trail = self;
        loop {
            let (parent, step) = match trail {
                Trail::Root => break,
                Trail::Field(parent, name) => (parent, Step::Field((*name).to_owned())),
                Trail::Key(parent, key) => (parent, Step::Key((*key).to_owned())),
                Trail::Index(parent, index) => (parent, Step::Index(*index)),
            };
            steps.push(step);
            trail = parent;
        }
        steps.reverse();
        FieldPath(steps)
    }
}

/// Reading stops: a type refused a value in its own code. Once the reason is noted as an issue, it is none.
#[derive(Debug)]
struct Abort {
    reason: Option<String>,
}

impl fmt::Display for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.as_deref().unwrap_or("invalid value"))
    }
}

impl std::error::Error for Abort {}

impl de::Error for Abort {
    fn custom<T: fmt::Display>(message: T) -> Abort {
        Abort { reason: Some(message.to_string()) }
    }
}

#[derive(Clone, Copy)]
struct Reader<'a, 't> {
    node: &'a Node,
    trail: &'t Trail<'t>,
    issues: &'t RefCell<Vec<Issue>>,
    /// Fields are read that are not supported.
    all: bool,
}

impl<'a, 't> Reader<'a, 't> {
    fn wrong(&self, expected: &str) {
        if self.node.value == Value::Null {
            return;
        }
        let reason = format!("must be {expected}, is {}", self.node.describe());
        let mut issue = Issue::new(self.trail.path(), Cause::FieldValueTypeInvalid, reason);
        if expected == "a string"
            && matches!(self.node.value, Value::Bool(_) | Value::Int(_) | Value::Float(_))
        {
            issue.hint = Some("put it in quotes".to_owned());
        }
        self.note(issue);
    }

    fn note(&self, issue: Issue) {
        self.issues.borrow_mut().push(issue);
    }

    fn integer(&self, min: i64, max: i64) -> i64 {
        let value = match self.node.value {
            Value::Int(value) => value,
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => value as i128,
            _ => {
                self.wrong("a whole number");
                return 0;
            }
        };
        if value < i128::from(min) || value > i128::from(max) {
            let reason = format!("the number {value} is out of range, it must be {min} to {max}");
            self.note(Issue::new(self.trail.path(), Cause::FieldValueTypeInvalid, reason));
            return 0;
        }
        value as i64
    }

    fn entries(&self) -> &'a [Entry] {
        match &self.node.value {
            Value::Map(entries) => entries,
            _ => {
                self.wrong("a map");
                &[]
            }
        }
    }

    /// Notes a field that does not exist or is not supported; gives whether to read it.
    fn admits(&self, kind: &str, fields: &[&str], entry: &Entry) -> bool {
        if kind.is_empty() {
            return true;
        }
        let path = || self.trail.path().field(&entry.key);
        if !fields.contains(&entry.key.as_str()) {
            let mut issue = Issue::new(path(), Cause::FieldUnknown, "unknown field".to_owned());
            issue.hint = suggest(&entry.key, fields).map(|name| format!("did you mean {name:?}?"));
            self.note(issue);
            return false;
        }
        match supported::field(kind, &entry.key) {
            Support::Yes => true,
            Support::Dropped => false,
            Support::Refused(_) if self.all => true,
            Support::Refused(refusal) => {
                if !refusal.harmless(&entry.value) {
                    let mut issue = Issue::new(
                        path(),
                        Cause::FieldValueForbidden,
                        format!("Forbidden: {}", refusal.reason),
                    );
                    issue.hint = refusal.hint.map(str::to_owned);
                    self.note(issue);
                }
                false
            }
        }
    }
}

impl<'de, 'a, 't> Deserializer<'de> for Reader<'a, 't> {
    type Error = Abort;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        kind: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Abort> {
        visitor.visit_map(Fields {
            reader: self,
            entries: self.entries().iter(),
            kind,
            fields,
            current: None,
        })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        visitor.visit_map(Fields {
            reader: self,
            entries: self.entries().iter(),
            kind: "",
            fields: &[],
            current: None,
        })
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        let items: &[_] = match &self.node.value {
            Value::Seq(items) => items,
            _ => {
                self.wrong("a list");
                &[]
            }
        };
        visitor.visit_seq(Items { reader: self, items: items.iter().enumerate() })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        match &self.node.value {
            Value::String(text) => visitor.visit_str(text),
            _ => {
                self.wrong("a string");
                visitor.visit_str("")
            }
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        match self.node.value {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => {
                self.wrong("true or false");
                visitor.visit_bool(false)
            }
        }
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        visitor.visit_i32(self.integer(i32::MIN.into(), i32::MAX.into()) as i32)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        visitor.visit_i64(self.integer(i64::MIN, i64::MAX))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Abort> {
        if name != "Quantity" {
            return visitor.visit_newtype_struct(self);
        }
        let text = match &self.node.value {
            Value::String(text) => text.clone(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            _ => {
                self.wrong("a quantity");
                "0".to_owned()
            }
        };
        visitor.visit_newtype_struct(text.into_deserializer())
    }

    /// Only `IntOrString` asks without saying what it wants.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        match &self.node.value {
            Value::String(text) => visitor.visit_str(text),
            Value::Int(_) | Value::Float(_) => self.deserialize_i32(visitor),
            _ => {
                self.wrong("a number or a name");
                visitor.visit_i32(0)
            }
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Abort> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
    }
}

/// The fields of a struct (`kind` is its name) or the entries of a map (`kind` is empty).
struct Fields<'a, 't> {
    reader: Reader<'a, 't>,
    entries: std::slice::Iter<'a, Entry>,
    kind: &'static str,
    fields: &'static [&'static str],
    current: Option<&'a Entry>,
}

impl<'de> MapAccess<'de> for Fields<'_, '_> {
    type Error = Abort;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Abort> {
        for entry in self.entries.by_ref() {
            // Null stands for absence, but a field must exist all the same.
            if self.reader.admits(self.kind, self.fields, entry) && entry.value.value != Value::Null {
                self.current = Some(entry);
                return seed.deserialize(entry.key.as_str().into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Abort> {
        let entry = self.current.take().ok_or(Abort { reason: None })?;
        let trail = match self.kind {
            "" => Trail::Key(self.reader.trail, &entry.key),
            _ => Trail::Field(self.reader.trail, &entry.key),
        };
        let reader = Reader { node: &entry.value, trail: &trail, ..self.reader };
        seed.deserialize(reader).map_err(|abort| note_abort(abort, &reader))
    }
}

struct Items<'a, 't> {
    reader: Reader<'a, 't>,
    items: std::iter::Enumerate<std::slice::Iter<'a, std::rc::Rc<Node>>>,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Abort;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Abort> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let trail = Trail::Index(self.reader.trail, index);
        let reader = Reader { node, trail: &trail, ..self.reader };
        if node.value == Value::Null {
            reader.note(Issue::new(
                trail.path(),
                Cause::FieldValueTypeInvalid,
                "must not be null".to_owned(),
            ));
        }
        seed.deserialize(reader).map(Some).map_err(|abort| note_abort(abort, &reader))
    }
}

/// Notes why reading stopped, at the innermost place.
fn note_abort(abort: Abort, reader: &Reader<'_, '_>) -> Abort {
    if let Some(reason) = abort.reason {
        reader.note(Issue::new(reader.trail.path(), Cause::FieldValueInvalid, reason));
    }
    Abort { reason: None }
}

/// The known name that an unknown one was probably meant to be.
pub(crate) fn suggest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let best = known.iter().min_by_key(|candidate| distance(&plain(name), &plain(candidate)))?;
    let allowed = (name.len() / 3).clamp(1, 4);
    (distance(&plain(name), &plain(best)) <= allowed).then_some(*best)
}

/// Levenshtein's distance. Long names are not compared.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
