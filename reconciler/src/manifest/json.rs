//! JSON with places. (YAML readers stumble over JSON's tabs and surrogate pairs, and serde_json forgets where things were.)

use std::rc::Rc;

use super::node::{Entry, Node, Position, Value};
use super::yaml::{Document, Fault, MAX_DEPTH};

/// Reads the JSON documents of a text, one after another.
pub(crate) fn read(text: &str, first_line: usize) -> Result<Vec<Document>, Fault> {
    let mut reader = Reader { text, at: 0, line: first_line, line_start: 0, depth: 0, faults: Vec::new() };
    let mut documents = Vec::new();
    reader.skip_space();
    while reader.at < text.len() {
        let node = reader.value()?;
        documents.push(Document { node, faults: std::mem::take(&mut reader.faults) });
        reader.skip_space();
    }
    Ok(documents)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    line_start: usize,
    depth: usize,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn here(&self) -> Position {
        Position { line: self.line, column: self.text[self.line_start..self.at].chars().count() + 1 }
    }

    fn fault<T>(&self, reason: impl Into<String>) -> Result<T, Fault> {
        Err(Fault::new(self.here(), reason))
    }

    fn skip_space(&mut self) {
        while let Some(byte) = self.peek().filter(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
            if byte == b'\n' {
                self.line += 1;
                self.line_start = self.at;
            }
        }
    }

    fn value(&mut self) -> Result<Rc<Node>, Fault> {
        let at = self.here();
        let value = match self.peek() {
            Some(b'{') => self.nested(Reader::map)?,
            Some(b'[') => self.nested(Reader::seq)?,
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => self.word()?,
        };
        Ok(Node::new(value, at))
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Value, Fault>) -> Result<Value, Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fault(format!("nested more than {MAX_DEPTH} levels deep"));
        }
        self.at += 1;
        self.skip_space();
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    /// After a member: true when another one follows.
    fn another(&mut self, close: u8) -> Result<bool, Fault> {
        self.skip_space();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                self.skip_space();
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ => self.fault(format!("expected ',' or '{}'", close as char)),
        }
    }

    fn map(&mut self) -> Result<Value, Fault> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut keys = std::collections::HashMap::new();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Map(entries));
        }
        loop {
            let key_at = self.here();
            if self.peek() != Some(b'"') {
                return self.fault("expected a key in double quotes");
            }
            let key = self.string()?;
            if let Some(first) = keys.insert(key.clone(), key_at.line) {
                self.faults.push(Fault::new(key_at, format!("key {key:?} is already set in line {first}")));
            }
            self.skip_space();
            if self.peek() != Some(b':') {
                return self.fault("expected ':'");
            }
            self.at += 1;
            self.skip_space();
            let value = self.value()?;
            entries.push(Entry { key, key_at, value });
            if !self.another(b'}')? {
                return Ok(Value::Map(entries));
            }
        }
    }

    fn seq(&mut self) -> Result<Value, Fault> {
        let mut items = Vec::new();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Seq(items));
        }
        loop {
            items.push(self.value()?);
            if !self.another(b']')? {
                return Ok(Value::Seq(items));
            }
        }
    }

    /// The token up to its closing quote is handed to serde_json, which knows the escapes.
    fn string(&mut self) -> Result<String, Fault> {
        let bytes = self.text.as_bytes();
        let mut end = self.at + 1;
        loop {
            match bytes.get(end) {
                None | Some(b'\n') => return self.fault("the string is not closed"),
                Some(b'\\') => end += 2,
                Some(b'"') => break,
                Some(_) => end += 1,
            }
        }
        match serde_json::from_str(&self.text[self.at..=end]) {
            Ok(text) => {
                self.at = end + 1;
                Ok(text)
            }
            Err(_) => self.fault("invalid escape or control character in a string"),
        }
    }

    fn number(&mut self) -> Result<Value, Fault> {
        let rest = &self.text[self.at..];
        let len =
            rest.bytes().take_while(|b| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')).count();
        let parsed: Option<serde_json::Number> = serde_json::from_str(&rest[..len]).ok();
        let Some(number) = parsed else { return self.fault(format!("{:?} is no number", &rest[..len])) };
        self.at += len;
        Ok(Node::from_json(&serde_json::Value::Number(number)).value.clone())
    }

    fn word(&mut self) -> Result<Value, Fault> {
        for (word, value) in
            [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))]
        {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        self.fault("expected a JSON value")
    }
}
