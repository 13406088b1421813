//! Objects in Kubernetes' protobuf encoding, as typed Go clients send them (`kubectl create configmap`, `kubectl auth can-i`),
//! turned into what the same client would have sent as JSON. Answers are JSON always: clients take what they are given.
//!
//! [`schema`] reads the table of fields, [`wire`] what is between the bytes.

mod schema;
#[cfg(test)]
mod tests;
mod wire;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use schema::{Field, Schema, Shape, Type};
use wire::{Bytes, Reader};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every object begins with (k8s.io/apimachinery/pkg/runtime/serializer/protobuf).
const MAGIC: [u8; 4] = *b"k8s\0";
/// Messages inside of messages: more than any object has.
const DEPTH: usize = 32;

/// Why bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They do not begin as objects do.
    #[error("does not begin with k8s and a zero byte")]
    Magic,
    /// They end early or are not protobuf.
    #[error("is no protobuf: {0}")]
    Wire(&'static str),
    /// A kind that is only served as JSON.
    #[error("{0} is not taken in this encoding: send JSON")]
    Kind(String),
    /// A field that the table does not have: a newer client's.
    #[error("{message} has a field number {number} that is not known: send JSON to learn which")]
    Field {
        /// The message.
        message: String,
        /// The number.
        number: u32,
    },
    /// A field whose bytes do not fit its type.
    #[error("{message}.{field} is no {wanted}")]
    Value {
        /// The message.
        message: String,
        /// The field.
        field: String,
        /// What it should be.
        wanted: &'static str,
    },
}

/// The JSON form of an object.
///
/// # Errors
/// [`Malformed`].
pub fn decode(bytes: &[u8]) -> Result<Value, Malformed> {
    let unknown = bytes.strip_prefix(&MAGIC).ok_or(Malformed::Magic)?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader::new(unknown);
    while let Some((number, value)) = reader.next()? {
        match (number, value) {
            (1, Bytes::Long(of_type)) => {
                let mut reader = Reader::new(of_type);
                while let Some((number, value)) = reader.next()? {
                    match (number, value) {
                        (1, Bytes::Long(text)) => version = utf8(text)?,
                        (2, Bytes::Long(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Bytes::Long(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let schema = Schema::new();
    // DeleteOptions belong to every group.
    let group = if kind == "DeleteOptions" {
        "meta"
    } else {
        version.split_once('/').map_or("core", |(group, _)| group)
    };
    let message = format!("{}.v1.{kind}", group.split('.').next().unwrap_or_default());
    let known = matches!(version.rsplit('/').next(), Some("v1")) && schema.has(&message);
    if !known {
        return Err(Malformed::Kind(format!("{version} {kind}")));
    }
    let mut object = Map::new();
    read(&schema, &message, raw, &mut object, DEPTH)?;
    object.insert("apiVersion".to_owned(), json!(version));
    object.insert("kind".to_owned(), json!(kind));
    Ok(Value::Object(object))
}

fn utf8(bytes: &[u8]) -> Result<String, Malformed> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::Wire("text that is not UTF-8"))
}

/// Adds the fields of a message to an object.
fn read(
    schema: &Schema,
    message: &str,
    bytes: &[u8],
    into: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Malformed> {
    let depth = depth.checked_sub(1).ok_or(Malformed::Wire("messages are nested too deeply"))?;
    let mut reader = Reader::new(bytes);
    while let Some((number, bytes)) = reader.next()? {
        let Some(field) = schema.field(message, number) else {
            return Err(Malformed::Field { message: message.to_owned(), number });
        };
        if field.is_inline() {
            let (Bytes::Long(bytes), Type::Message(inner)) = (bytes, field.kind) else {
                return Err(wrong(message, &field, "message"));
            };
            read(schema, inner, bytes, into, depth)?;
            continue;
        }
        match field.shape {
            Shape::One => {
                let value = value(schema, message, &field, bytes, depth)?;
                if field.keeps || !is_empty(&value) {
                    into.insert(field.name.to_owned(), value);
                }
            }
            Shape::List => {
                let list = into.entry(field.name).or_insert_with(|| json!([]));
                let values = match (bytes, field.kind) {
                    // Numbers may be packed together.
                    (Bytes::Long(packed), Type::Int) => numbers(packed)?,
                    (bytes, _) => vec![value(schema, message, &field, bytes, depth)?],
                };
                list.as_array_mut().into_iter().for_each(|list| list.extend(values.iter().cloned()));
            }
            Shape::Map => {
                let (key, value) = entry(schema, message, &field, bytes, depth)?;
                let map = into.entry(field.name).or_insert_with(|| json!({}));
                map.as_object_mut().into_iter().for_each(|map| drop(map.insert(key.clone(), value.clone())));
            }
        }
    }
    Ok(())
}

fn wrong(message: &str, field: &Field<'_>, wanted: &'static str) -> Malformed {
    Malformed::Value { message: message.to_owned(), field: field.name.to_owned(), wanted }
}

/// What Go leaves out of JSON: zero values, and times that are not set.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    }
}

fn numbers(packed: &[u8]) -> Result<Vec<Value>, Malformed> {
    let mut reader = Reader::new(packed);
    let mut values = Vec::new();
    while let Some(number) = reader.varint()? {
        values.push(json!(number.cast_signed()));
    }
    Ok(values)
}

/// A map's entry: a message of key and value.
fn entry(
    schema: &Schema,
    message: &str,
    field: &Field<'_>,
    bytes: Bytes<'_>,
    depth: usize,
) -> Result<(String, Value), Malformed> {
    let Bytes::Long(bytes) = bytes else { return Err(wrong(message, field, "map")) };
    let (mut key, mut found) = (String::new(), None);
    let mut reader = Reader::new(bytes);
    while let Some((number, bytes)) = reader.next()? {
        match (number, bytes) {
            (1, Bytes::Long(text)) => key = utf8(text)?,
            (2, bytes) => found = Some(value(schema, message, field, bytes, depth)?),
            _ => return Err(wrong(message, field, "map")),
        }
    }
    // An empty value may be left out.
    let nothing = Bytes::Long(&[]);
    let found = found.map_or_else(|| value(schema, message, field, nothing, depth), Ok)?;
    Ok((key, found))
}

fn value(
    schema: &Schema,
    message: &str,
    field: &Field<'_>,
    bytes: Bytes<'_>,
    depth: usize,
) -> Result<Value, Malformed> {
    let wrong = |wanted| wrong(message, field, wanted);
    match (field.kind, bytes) {
        (Type::Int, Bytes::Number(number)) => Ok(json!(number.cast_signed())),
        (Type::Bool, Bytes::Number(number)) => Ok(json!(number != 0)),
        (Type::Text, Bytes::Long(text)) => Ok(json!(utf8(text)?)),
        (Type::Bytes, Bytes::Long(bytes)) => Ok(json!(STANDARD.encode(bytes))),
        (Type::Quantity, Bytes::Long(bytes)) => Ok(json!(first_text(bytes)?)),
        (Type::IntOrString, Bytes::Long(bytes)) => int_or_string(bytes),
        (Type::Time, Bytes::Long(bytes)) => time(bytes).ok_or_else(|| wrong("time")),
        (Type::Raw, Bytes::Long(bytes)) => {
            let text = first_text(bytes)?;
            if text.is_empty() {
                return Ok(Value::Null);
            }
            serde_json::from_str(&text).map_err(|_| wrong("JSON"))
        }
        (Type::Items, Bytes::Long(bytes)) => {
            let mut reader = Reader::new(bytes);
            let mut items = Vec::new();
            while let Some((_, bytes)) = reader.next()? {
                let Bytes::Long(text) = bytes else { return Err(wrong("list of texts")) };
                items.push(json!(utf8(text)?));
            }
            Ok(Value::Array(items))
        }
        (Type::Message(inner), Bytes::Long(bytes)) => {
            let mut object = Map::new();
            read(schema, inner, bytes, &mut object, depth)?;
            Ok(Value::Object(object))
        }
        (Type::Int | Type::Bool, Bytes::Long(_)) => Err(wrong("number")),
        (_, Bytes::Number(_)) => Err(wrong("message or text")),
    }
}

/// The text in field 1.
fn first_text(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut text = String::new();
    while let Some((number, value)) = reader.next()? {
        if let (1, Bytes::Long(bytes)) = (number, value) {
            text = utf8(bytes)?;
        }
    }
    Ok(text)
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Malformed> {
    let mut reader = Reader::new(bytes);
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    while let Some((field, value)) = reader.next()? {
        match (field, value) {
            (1, Bytes::Number(kind)) => is_text = kind == 1,
            (2, Bytes::Number(value)) => number = value.cast_signed(),
            (3, Bytes::Long(bytes)) => text = utf8(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { json!(number) })
}

/// Seconds and nanoseconds; one that is not set is nothing.
fn time(bytes: &[u8]) -> Option<Value> {
    let mut reader = Reader::new(bytes);
    let (mut seconds, mut nanos, mut set) = (0, 0, false);
    while let Some((field, value)) = reader.next().ok()? {
        match (field, value) {
            (1, Bytes::Number(value)) => (seconds, set) = (value.cast_signed(), true),
            (2, Bytes::Number(value)) => nanos = i32::try_from(value.cast_signed()).ok()?,
            _ => return None,
        }
    }
    // Go's zero time is in the year one.
    if !set || seconds == -62_135_596_800 {
        return Some(Value::Null);
    }
    Some(json!(Timestamp::new(seconds, nanos).ok()?.to_string()))
}
