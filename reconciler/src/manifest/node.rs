//! A parsed document: JSON's values, each with the place where it was written.

use std::fmt;
use std::rc::Rc;

/// A place in a text: line and column from 1; 0 when there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub line: usize,
    pub column: usize,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub value: Value,
    pub at: Position,
}

/// JSON's values. Children are shared, so that an alias costs nothing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    String(String),
    Seq(Vec<Rc<Node>>),
    Map(Vec<Entry>),
}

/// A key and its value. Keys of one map differ.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub key: String,
    pub key_at: Position,
    pub value: Rc<Node>,
}

impl Node {
    pub fn new(value: Value, at: Position) -> Rc<Node> {
        Rc::new(Node { value, at })
    }

    /// The value of a key of a map.
    pub fn get(&self, key: &str) -> Option<&Rc<Node>> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.value),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it says nothing: null, an empty map, list or string, false, zero.
    pub fn is_empty(&self) -> bool {
        match &self.value {
            Value::Null | Value::Bool(false) | Value::Int(0) => true,
            Value::String(text) => text.is_empty(),
            Value::Seq(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
            _ => false,
        }
    }

    /// The value for a message: `the number 80`, `a list`.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Int(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::String(text) if text.chars().count() > 40 => "a string".to_owned(),
            Value::String(text) => format!("the string {text:?}"),
            Value::Seq(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }

    /// The place of a field: where its key is written, or the value if that is on the same line. For a path that leads
    /// nowhere, the nearest ancestor's.
    pub fn locate(&self, path: &FieldPath) -> Position {
        let mut node = self;
        let mut at = self.at;
        for step in &path.0 {
            let next = match (step, &node.value) {
                (Step::Index(index), Value::Seq(items)) => items.get(*index).map(|item| (item, item.at)),
                (Step::Field(key) | Step::Key(key), Value::Map(entries)) => {
                    entries.iter().find(|e| e.key == *key).map(|e| {
                        (&e.value, if e.value.at.line == e.key_at.line { e.value.at } else { e.key_at })
                    })
                }
                _ => None,
            };
            match next {
                Some((child, place)) => (node, at) = (child, place),
                None => break,
            }
        }
        at
    }

    /// From a JSON value; it has no places.
    pub fn from_json(json: &serde_json::Value) -> Rc<Node> {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(value), _, _) => Value::Int(value.into()),
                (None, Some(value), _) => Value::Int(value.into()),
                (None, None, value) => Value::Float(value.unwrap_or(f64::MAX)),
            },
            serde_json::Value::String(text) => Value::String(text.clone()),
            serde_json::Value::Array(items) => Value::Seq(items.iter().map(Node::from_json).collect()),
            serde_json::Value::Object(map) => Value::Map(
                map.iter()
                    .map(|(key, value)| Entry {
                        key: key.clone(),
                        key_at: Position::default(),
                        value: Node::from_json(value),
                    })
                    .collect(),
            ),
        };
        Node::new(value, Position::default())
    }
}

/// One step of a field path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A field of an object: `.image`.
    Field(String),
    /// A key of a map: `[cpu]`.
    Key(String),
    /// An item of a list: `[0]`.
    Index(usize),
}

/// A field path, shown in Kubernetes' notation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldPath(pub Vec<Step>);

impl FieldPath {
    /// A path of fields: `FieldPath::of("spec.containers")`.
    pub fn of(fields: &str) -> FieldPath {
        FieldPath(fields.split('.').map(|f| Step::Field(f.to_owned())).collect())
    }

    #[must_use]
    pub fn field(&self, name: &str) -> FieldPath {
        self.with(Step::Field(name.to_owned()))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> FieldPath {
        self.with(Step::Key(key.to_owned()))
    }

    #[must_use]
    pub fn index(&self, index: usize) -> FieldPath {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> FieldPath {
        let mut steps = self.0.clone();
        steps.push(step);
        FieldPath(steps)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is `other` or lies within it.
    pub fn is_within(&self, other: &FieldPath) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name) if i == 0 => write!(f, "{name}")?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Key(key) => write!(f, "[{key}]")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
