//! The table of messages and fields, `schema.txt`.

use std::collections::HashMap;

const TABLE: &str = include_str!("schema.txt");

/// The messages. Made for each request, since few come in this encoding and memory is dear.
pub struct Schema(HashMap<&'static str, &'static str>);

/// A field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name in JSON.
    pub name: &'a str,
    /// How many values it has.
    pub shape: Shape,
    /// What they are.
    pub kind: Type<'a>,
    /// It is written also if it is empty.
    pub keeps: bool,
}

/// How many values a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One.
    One,
    /// Any number.
    List,
    /// Any number, by names.
    Map,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type<'a> {
    /// A number.
    Int,
    /// True or false.
    Bool,
    /// A text.
    Text,
    /// Bytes, in base64 in JSON.
    Bytes,
    /// An amount such as `250m`.
    Quantity,
    /// A number or a text.
    IntOrString,
    /// A time.
    Time,
    /// JSON.
    Raw,
    /// A message that is nothing but a list of texts.
    Items,
    /// Another message.
    Message(&'a str),
}

impl Schema {
    /// Finds where each message's fields are.
    pub fn new() -> Self {
        let mut messages = HashMap::new();
        let mut rest = TABLE;
        // A message begins with its name at the beginning of a line; fields are indented.
        while let Some((line, after)) = rest.split_once('\n') {
            rest = after;
            if line.starts_with('#') {
                continue;
            }
            let mut end = 0;
            for field in after.split_inclusive('\n').take_while(|line| line.starts_with(' ')) {
                end += field.len();
            }
            let (fields, others) = after.split_at(end);
            messages.insert(line, fields);
            rest = others;
        }
        Self(messages)
    }

    /// Whether there is such a message.
    pub fn has(&self, message: &str) -> bool {
        self.0.contains_key(message)
    }

    /// A field of a message.
    pub fn field(&self, message: &str, number: u32) -> Option<Field<'static>> {
        self.0.get(message)?.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()?.parse() == Ok(number))
                .then(|| Field::parse(words.next()?, words.next()?))
                .flatten()
        })
    }
}

impl<'a> Field<'a> {
    fn parse(name: &'a str, kind: &'a str) -> Option<Self> {
        let (kind, keeps) = kind.strip_suffix('!').map_or((kind, false), |kind| (kind, true));
        let (shape, kind) = match (kind.strip_prefix("[]"), kind.strip_prefix("{}")) {
            (Some(kind), _) => (Shape::List, kind),
            (_, Some(kind)) => (Shape::Map, kind),
            _ => (Shape::One, kind),
        };
        let kind = match kind {
            "int" => Type::Int,
            "bool" => Type::Bool,
            "string" => Type::Text,
            "bytes" => Type::Bytes,
            "quantity" => Type::Quantity,
            "intorstring" => Type::IntOrString,
            "time" => Type::Time,
            "raw" => Type::Raw,
            "items" => Type::Items,
            message => Type::Message(message),
        };
        Some(Self { name, shape, kind, keeps })
    }

    /// Its own fields are those of the message that it is in.
    pub fn is_inline(&self) -> bool {
        self.name == "-"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_means_something() {
        let schema = Schema::new();
        let mut message = "";
        let mut fields = 0;
        for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
            let Some(field) = line.strip_prefix(' ') else {
                message = line;
                continue;
            };
            let number = field.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
            let field = schema.field(message, number);
            assert!(field.is_some(), "{message}: {line}");
            if let Some(Field { kind: Type::Message(inner), .. }) = field {
                assert!(schema.has(inner), "{message}: {line}");
            }
            fields += 1;
        }
        assert!(fields > 1000, "{fields}");
        assert_eq!(schema.field("core.v1.ConfigMap", 99), None);
    }
}
