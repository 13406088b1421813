//! YAML with places, read as Kubernetes reads it: YAML 1.1 scalars, merge keys, and a limit on what aliases may unfold to.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use base64::Engine as _;
use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::node::{Entry, FieldPath, Node, Position, Step, Value};
use super::scalar;

/// Deepest nesting that is read. Pods need about a dozen levels.
pub(crate) const MAX_DEPTH: usize = 100;
/// How many bytes all aliases of a document may unfold to (each value counts [`NODE_WEIGHT`] besides its text).
const MAX_UNFOLDED: usize = 8 << 20;
const NODE_WEIGHT: usize = 32;
/// How many scalars of a text may have escapes that YAML does not know; each is one more reading.
const MAX_LENIENT_SCALARS: usize = 100;

/// Something that makes a document unreadable.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    pub at: Position,
    pub field: FieldPath,
    pub reason: String,
}

impl Fault {
    pub fn new(at: Position, reason: impl Into<String>) -> Fault {
        Fault { at, field: FieldPath::default(), reason: reason.into() }
    }
}

/// A document and what is wrong with its text, though it could be read (duplicate keys).
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub node: Rc<Node>,
    pub faults: Vec<Fault>,
}

/// The documents of one piece of text, up to the fault that ended the reading, if any.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub documents: Vec<Document>,
    pub faults: Vec<Fault>,
}

/// Reads the documents of one piece of text. `first_line` is the number of its first line in the file.
///
/// A `\'` in double quotes is read as `'`, as Kubernetes' own reader does against the letter of YAML.
pub(crate) fn read(text: &str, first_line: usize) -> Piece {
    let mut text = Cow::Borrowed(text);
    let mut mended = 0;
    loop {
        let (piece, unknown_escape) = attempt(&text, first_line);
        let start = unknown_escape.filter(|_| mended < MAX_LENIENT_SCALARS);
        let Some(lenient) = start.and_then(|start| without_escaped_apostrophes(&text, start)) else {
            return piece;
        };
        text = Cow::Owned(lenient);
        mended += 1;
    }
}

/// The text without the backslash of each `\'` in the double-quoted scalar that begins at character `start`; nothing if it has none.
fn without_escaped_apostrophes(text: &str, start: usize) -> Option<String> {
    let (start, _) = text.char_indices().nth(start)?;
    let (before, scalar) = text.split_at(start);
    let inner = scalar.strip_prefix('"')?;
    let mut out = format!("{before}\"");
    let mut rest = inner.chars();
    while let Some(c) = rest.next() {
        match c {
            '"' => {
                out.push('"');
                break;
            }
            '\\' => match rest.next() {
                Some('\'') => out.push('\''),
                Some(escaped) => out.extend(['\\', escaped]),
                None => out.push('\\'),
            },
            c => out.push(c),
        }
    }
    out.push_str(rest.as_str());
    (out.len() < text.len()).then_some(out)
}

/// Reads once. Beside the result: at which character the double-quoted scalar begins whose escape was not understood.
fn attempt(text: &str, first_line: usize) -> (Piece, Option<usize>) {
    let mut builder = Builder::default();
    let mut piece = Piece::default();
    let mut unknown_escape = None;
    let line_offset = first_line - 1;
    for event in Parser::new_from_str(text) {
        let step = match event {
            Ok((event, span)) => builder.event(event, span, line_offset),
            Err(error) => {
                let marker = error.marker();
                unknown_escape = error.info().contains("unknown escape").then_some(marker.index());
                let at = Position { line: marker.line() + line_offset, column: marker.col() + 1 };
                Err(Fault::new(at, explain(error.info(), text, marker.line())))
            }
        };
        match step {
            Ok(Some(node)) => {
                piece.documents.push(Document { node, faults: std::mem::take(&mut builder.faults) });
            }
            Ok(None) => {}
            Err(fault) => {
                piece.faults = std::mem::take(&mut builder.faults);
                piece.faults.push(fault);
                break;
            }
        }
    }
    (piece, unknown_escape)
}

/// The scanner's own words, and for a tab in the indentation what to do about it.
fn explain(info: &str, text: &str, line: usize) -> String {
    let source = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let indent = &source[..source.len() - source.trim_start().len()];
    if indent.contains('\t') {
        return "a tab in the indentation; YAML takes only spaces there".to_owned();
    }
    info.to_owned()
}

/// A collection that is being read.
enum Frame {
    Seq {
        items: Vec<Rc<Node>>,
        at: Position,
        anchor: usize,
    },
    Map {
        entries: Vec<Entry>,
        known: HashMap<String, usize>,
        merges: Vec<Rc<Node>>,
        pending: Option<Key>,
        at: Position,
        anchor: usize,
    },
}

/// A key whose value has not come yet.
enum Key {
    Named(String, Position),
    Merge(Position),
}

#[derive(Default)]
struct Builder<'input> {
    frames: Vec<Frame>,
    anchors: HashMap<usize, (Rc<Node>, usize)>,
    /// Weight of what was read so far in this document, aliases unfolded.
    weight: usize,
    /// Weight at which each open collection began.
    starts: Vec<usize>,
    unfolded: usize,
    document: Option<Rc<Node>>,
    faults: Vec<Fault>,
    input: std::marker::PhantomData<&'input str>,
}

impl<'input> Builder<'input> {
    /// Takes one event in; gives a document when it is complete. A document without content gives nothing.
    fn event(
        &mut self,
        event: Event<'input>,
        span: Span,
        line_offset: usize,
    ) -> Result<Option<Rc<Node>>, Fault> {
        let at = Position { line: span.start.line() + line_offset, column: span.start.col() + 1 };
        match event {
            Event::DocumentStart(_) => {
                *self = Builder::default();
            }
            Event::DocumentEnd => return Ok(self.document.take().filter(|d| d.value != Value::Null)),
            Event::Scalar(text, style, anchor, tag) => self.scalar(&text, style, anchor, tag, at)?,
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref(), "seq", at)?;
                self.open(Frame::Seq { items: Vec::new(), at, anchor }, at)?;
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), "map", at)?;
                let frame = Frame::Map {
                    entries: Vec::new(),
                    known: HashMap::new(),
                    merges: Vec::new(),
                    pending: None,
                    at,
                    anchor,
                };
                self.open(frame, at)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close()?,
            Event::Alias(anchor) => self.alias(anchor, at)?,
            Event::Nothing | Event::StreamStart | Event::StreamEnd => {}
        }
        Ok(None)
    }

    fn open(&mut self, frame: Frame, at: Position) -> Result<(), Fault> {
        if self.frames.len() >= MAX_DEPTH {
            return Err(Fault::new(at, format!("nested more than {MAX_DEPTH} levels deep")));
        }
        if let Some(Frame::Map { pending: None, .. }) = self.frames.last() {
            return Err(Fault::new(at, "a map or a list cannot be a key"));
        }
        self.starts.push(self.weight);
        self.frames.push(frame);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Fault> {
        let start = self.starts.pop().unwrap_or_default();
        self.weight += NODE_WEIGHT;
        let (node, anchor) = match self.frames.pop() {
            Some(Frame::Seq { items, at, anchor }) => (Node::new(Value::Seq(items), at), anchor),
            Some(Frame::Map { mut entries, mut known, merges, at, anchor, .. }) => {
                for merge in &merges {
                    merge_into(&mut entries, &mut known, merge)?;
                }
                (Node::new(Value::Map(entries), at), anchor)
            }
            None => return Ok(()),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.weight - start));
        }
        self.put(node)
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Result<(), Fault> {
        let Some((node, weight)) = self.anchors.get(&anchor).cloned() else {
            return Err(Fault::new(at, "the alias stands within its own anchor"));
        };
        self.weight += weight;
        self.unfolded += weight;
        if self.unfolded > MAX_UNFOLDED {
            return Err(Fault::new(at, "the aliases of this document unfold to too much data"));
        }
        if let (Some(Frame::Map { pending: None, .. }), Value::Seq(_) | Value::Map(_)) =
            (self.frames.last(), &node.value)
        {
            return Err(Fault::new(at, "a map or a list cannot be a key"));
        }
        // The place of use is what a person looks for, so that is where errors within the alias point.
        self.put(Rc::new(Node { value: node.value.clone(), at }))
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<Cow<'input, Tag>>,
        at: Position,
    ) -> Result<(), Fault> {
        self.weight += NODE_WEIGHT + text.len();
        let plain = style == ScalarStyle::Plain;
        let merge = plain && tag.is_none() && text == "<<" && anchor == 0;
        if let (true, Some(Frame::Map { pending: pending @ None, .. })) = (merge, self.frames.last_mut()) {
            *pending = Some(Key::Merge(at));
            return Ok(());
        }
        let value = match tag {
            Some(tag) => tagged(&tag, text).map_err(|reason| Fault::new(at, reason))?,
            None if plain => scalar::resolve(text).map_err(|reason| Fault::new(at, reason))?,
            None => Value::String(text.to_owned()),
        };
        let node = Node::new(value, at);
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), NODE_WEIGHT + text.len()));
        }
        self.put(node)
    }

    /// Puts a complete value where it belongs.
    fn put(&mut self, node: Rc<Node>) -> Result<(), Fault> {
        let mut duplicate = None;
        match self.frames.last_mut() {
            None => self.document = Some(node),
            Some(Frame::Seq { items, .. }) => items.push(node),
            Some(Frame::Map { pending, entries, known, merges, .. }) => match pending.take() {
                None => *pending = Some(Key::Named(key_text(&node)?, node.at)),
                Some(Key::Merge(at)) => merges.extend(merge_sources(node, at)?),
                Some(Key::Named(key, key_at)) => match known.get(&key) {
                    Some(first) => duplicate = Some((key, key_at, *first)),
                    None => {
                        known.insert(key.clone(), key_at.line);
                        entries.push(Entry { key, key_at, value: node });
                    }
                },
            },
        }
        if let Some((key, at, first)) = duplicate {
            let reason = format!("key {key:?} is already set in line {first}");
            self.faults.push(Fault { at, field: self.path().field(&key), reason });
        }
        Ok(())
    }

    /// Where the next value will stand.
    fn path(&self) -> FieldPath {
        let step = |frame: &Frame| match frame {
            Frame::Seq { items, .. } => Some(Step::Index(items.len())),
            Frame::Map { pending: Some(Key::Named(key, _)), .. } => Some(Step::Field(key.clone())),
            Frame::Map { .. } => None,
        };
        FieldPath(self.frames.iter().filter_map(step).collect())
    }
}

/// A key as JSON has it: always a string.
fn key_text(node: &Node) -> Result<String, Fault> {
    Ok(match &node.value {
        Value::String(text) => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Null => return Err(Fault::new(node.at, "a key must not be empty")),
        Value::Seq(_) | Value::Map(_) => return Err(Fault::new(node.at, "a map or a list cannot be a key")),
    })
}

fn merge_sources(node: Rc<Node>, at: Position) -> Result<Vec<Rc<Node>>, Fault> {
    match &node.value {
        Value::Map(_) => Ok(vec![node]),
        Value::Seq(items) if items.iter().all(|item| matches!(item.value, Value::Map(_))) => {
            Ok(items.clone())
        }
        _ => Err(Fault::new(at, "`<<` takes a map or a list of maps")),
    }
}

/// Adds the entries of a merged map whose keys are not there yet.
fn merge_into(
    entries: &mut Vec<Entry>,
    known: &mut HashMap<String, usize>,
    merge: &Node,
) -> Result<(), Fault> {
    let Value::Map(merged) = &merge.value else { return Ok(()) };
    for entry in merged {
        if !known.contains_key(&entry.key) {
            known.insert(entry.key.clone(), entry.key_at.line);
            entries.push(entry.clone());
        }
    }
    Ok(())
}

/// The name of a tag of YAML's own (`!!str` -> `str`).
fn core_tag(tag: &Tag) -> Option<&str> {
    match (tag.handle.as_str(), tag.suffix.as_str()) {
        ("tag:yaml.org,2002:" | "!!", suffix) => Some(suffix),
        ("", suffix) => suffix.strip_prefix("tag:yaml.org,2002:"),
        _ => None,
    }
}

fn check_tag(tag: Option<&Tag>, expected: &str, at: Position) -> Result<(), Fault> {
    match tag {
        Some(tag) if core_tag(tag) != Some(expected) => Err(Fault::new(at, format!("unknown tag {tag}"))),
        _ => Ok(()),
    }
}

fn tagged(tag: &Tag, text: &str) -> Result<Value, String> {
    let wrong = || format!("cannot read {text:?} as {tag}");
    match core_tag(tag) {
        _ if tag.handle == "!" && tag.suffix.is_empty() => Ok(Value::String(text.to_owned())),
        _ if tag.handle.is_empty() && tag.suffix == "!" => Ok(Value::String(text.to_owned())),
        Some("str" | "timestamp") => Ok(Value::String(text.to_owned())),
        Some("binary") => {
            let packed: String = text.split_ascii_whitespace().collect();
            let bytes = base64::engine::general_purpose::STANDARD.decode(packed).map_err(|_| wrong())?;
            String::from_utf8(bytes).map(Value::String).map_err(|_| wrong())
        }
        Some(kind) => match (kind, scalar::resolve(text)?) {
            ("null", value @ Value::Null)
            | ("bool", value @ Value::Bool(_))
            | ("int", value @ Value::Int(_)) => Ok(value),
            ("float", value @ Value::Float(_)) => Ok(value),
            ("float", Value::Int(value)) => Ok(Value::Float(value as f64)),
            ("null" | "bool" | "int" | "float", _) => Err(wrong()),
            _ => Err(format!("unknown tag {tag}")),
        },
        None => Err(format!("unknown tag {tag}")),
    }
}
