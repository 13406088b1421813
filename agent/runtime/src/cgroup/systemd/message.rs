//! Messages of the D-Bus wire protocol, as far as systemd's manager needs them. See the D-Bus specification, "Message
//! Protocol" and "Marshaling". Numbers are in the byte order of this machine: both ends are on it.

/// What is longer is not an answer to anything that is asked here.
pub const MAX_LENGTH: usize = 1 << 20;
/// The part of a message that has a fixed place, up to the length of the header fields.
pub const FIXED: usize = 16;

const ENDIAN: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };
const VERSION: u8 = 1;
/// Codes of header fields with their types.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A value in a variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    Numbers(Vec<u32>),
    /// `as`
    Texts(Vec<String>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::I32(_) => "i",
            Value::U32(_) => "u",
            Value::I64(_) => "x",
            Value::U64(_) => "t",
            Value::Text(_) => "s",
            Value::Bytes(_) => "ay",
            Value::Numbers(_) => "au",
            Value::Texts(_) => "as",
            Value::Pairs(_) => "a(ss)",
        }
    }
}

/// Marshals values one after the other, each at a multiple of its alignment.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    /// `u`
    pub fn u32(&mut self, n: u32) -> &mut Writer {
        self.align(4);
        self.0.extend(n.to_ne_bytes());
        self
    }

    fn u64(&mut self, n: u64) -> &mut Writer {
        self.align(8);
        self.0.extend(n.to_ne_bytes());
        self
    }

    /// `b`
    pub fn bool(&mut self, b: bool) -> &mut Writer {
        self.u32(u32::from(b))
    }

    /// `s` and `o`
    pub fn text(&mut self, text: &str) -> &mut Writer {
        self.u32(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
        self
    }

    fn signature(&mut self, text: &str) -> &mut Writer {
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self.0.push(0);
        self
    }

    /// An array whose elements have this alignment. Its length counts neither itself nor the padding after itself.
    pub fn array<T>(
        &mut self,
        alignment: usize,
        elements: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Writer, T),
    ) -> &mut Writer {
        self.u32(0);
        let at = self.0.len();
        self.align(alignment);
        let start = self.0.len();
        for element in elements {
            write(self, element);
        }
        let length = (self.0.len() - start) as u32;
        self.0[at - 4..at].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// The start of a struct.
    pub fn structure(&mut self) -> &mut Writer {
        self.align(8);
        self
    }

    /// `v`
    pub fn variant(&mut self, value: &Value) -> &mut Writer {
        self.signature(value.signature());
        match value {
            Value::Bool(b) => self.bool(*b),
            Value::I32(n) => self.u32(*n as u32),
            Value::U32(n) => self.u32(*n),
            Value::I64(n) => self.u64(*n as u64),
            Value::U64(n) => self.u64(*n),
            Value::Text(text) => self.text(text),
            Value::Bytes(bytes) => self.array(1, bytes, |w, byte| w.0.push(*byte)),
            Value::Numbers(list) => self.array(4, list, |w, n| {
                w.u32(*n);
            }),
            Value::Texts(list) => self.array(4, list, |w, text| {
                w.text(text);
            }),
            Value::Pairs(list) => self.array(8, list, |w, (a, b)| {
                w.structure().text(a).text(b);
            }),
        }
    }
}

/// A method to call.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The name on a bus; a direct connection has none.
    pub destination: &'a str,
    /// The object.
    pub path: &'a str,
    /// The interface.
    pub interface: &'a str,
    /// The method.
    pub member: &'a str,
    /// The types of its arguments.
    pub signature: &'a str,
    /// Its arguments.
    pub body: Writer,
}

impl Call<'_> {
    /// The bytes of the whole message. `serial` is how the answer names it.
    pub fn marshal(&self, serial: u32) -> Vec<u8> {
        const METHOD_CALL: u8 = 1;
        const NO_FLAGS: u8 = 0;
        let mut w = Writer(vec![ENDIAN, METHOD_CALL, NO_FLAGS, VERSION]);
        let fields = [
            (PATH, "o", self.path),
            (DESTINATION, "s", self.destination),
            (INTERFACE, "s", self.interface),
            (MEMBER, "s", self.member),
            (SIGNATURE, "g", self.signature),
        ];
        let given = fields.into_iter().filter(|(.., text)| !text.is_empty());
        w.u32(self.body.0.len() as u32).u32(serial).array(8, given, |w, (code, kind, text)| {
            w.structure().0.push(code);
            w.signature(kind);
            if kind == "g" {
                w.signature(text)
            } else {
                w.text(text)
            };
        });
        w.align(8);
        w.0.extend(&self.body.0);
        w.0
    }
}

/// Why bytes are no message that can be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bus sent something that is not understood: {0}")]
pub struct Malformed(&'static str);

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The answer to the call with this serial number.
    Reply(u32, Body),
    /// The call with this serial number failed: the error's name and what it says.
    Error(u32, String, String),
    /// A signal of this name.
    Signal(String, Body),
    /// Something else.
    Other,
}

/// How long the message is as a whole that begins with these bytes.
pub fn length(fixed: &[u8; FIXED]) -> Result<usize, Malformed> {
    if fixed[0] != ENDIAN || fixed[3] != VERSION {
        return Err(Malformed("byte order or version"));
    }
    let word = |at: usize| u32::from_ne_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let length = (word(12) as usize)
        .checked_next_multiple_of(8)
        .and_then(|fields| fields.checked_add(word(4) as usize))
        .and_then(|rest| rest.checked_add(FIXED));
    length.filter(|l| *l <= MAX_LENGTH).ok_or(Malformed("length"))
}

/// Takes a whole message apart.
pub fn parse(bytes: &[u8]) -> Result<Incoming, Malformed> {
    let fixed: &[u8; FIXED] = bytes.first_chunk().ok_or(Malformed("length"))?;
    if length(fixed)? != bytes.len() {
        return Err(Malformed("length"));
    }
    let mut reader = Reader { bytes, at: 12 };
    let fields_end = FIXED + reader.u32()? as usize;
    let (mut member, mut error, mut reply, mut signature) = (None, None, None, "");
    while reader.at < fields_end {
        reader.align(8)?;
        let code = reader.byte()?;
        match (code, reader.signature()?) {
            (MEMBER, "s") => member = Some(reader.text()?),
            (ERROR_NAME, "s") => error = Some(reader.text()?),
            (REPLY_SERIAL, "u") => reply = Some(reader.u32()?),
            (SIGNATURE, "g") => signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "u") => drop(reader.u32()?),
            (_, "g") => drop(reader.signature()?),
            _ => return Err(Malformed("a header field")),
        }
    }
    reader.align(8)?;
    let body = Body { signature: signature.to_owned(), bytes: bytes[reader.at..].to_vec() };
    match (bytes[1], reply, error, member) {
        (2, Some(serial), ..) => Ok(Incoming::Reply(serial, body)),
        (3, Some(serial), Some(name), _) => {
            let text = if body.signature.starts_with('s') { body.reader().text()? } else { String::new() };
            Ok(Incoming::Error(serial, name, text))
        }
        (4, _, _, Some(member)) => Ok(Incoming::Signal(member, body)),
        (1..=4, ..) => Err(Malformed("a header field is missing")),
        // "Unknown types must be ignored."
        _ => Ok(Incoming::Other),
    }
}

/// What a message brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// The types of its values.
    pub signature: String,
    bytes: Vec<u8>,
}

impl Body {
    /// Reads from the start.
    pub fn reader(&self) -> Reader<'_> {
        Reader { bytes: &self.bytes, at: 0 }
    }
}

/// Reads values one after the other.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(length).ok_or(Malformed("length"))?;
        let part = self.bytes.get(self.at..end).ok_or(Malformed("it ends too early"))?;
        self.at = end;
        Ok(part)
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        self.take(self.at.next_multiple_of(to) - self.at).map(drop)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    /// `u`
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let bytes = self.take(4)?;
        Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn string(&mut self, length: usize) -> Result<&'a str, Malformed> {
        let text = self.take(length)?;
        match (self.byte()?, std::str::from_utf8(text)) {
            (0, Ok(text)) => Ok(text),
            _ => Err(Malformed("a string")),
        }
    }

    /// `s` and `o`
    pub fn text(&mut self) -> Result<String, Malformed> {
        let length = self.u32()? as usize;
        self.string(length).map(str::to_owned)
    }

    /// `g`, also the one in front of a variant's value
    pub fn signature(&mut self) -> Result<&'a str, Malformed> {
        let length = usize::from(self.byte()?);
        self.string(length)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn call(body: Writer, signature: &str) -> Vec<u8> {
        let destination = "org.freedesktop.DBus";
        let path = "/org/freedesktop/DBus";
        Call { destination, path, interface: destination, member: "Hello", signature, body }.marshal(7)
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_call_as_other_implementations_write_it() {
        let bytes = call(Writer::default(), "");
        assert_eq!(bytes[..16], [b'l', 1, 0, 1, 0, 0, 0, 0, 7, 0, 0, 0, 110, 0, 0, 0]);
        assert_eq!(&bytes[16..24], [1, 1, b'o', 0, 21, 0, 0, 0]);
        assert_eq!(&bytes[24..46], b"/org/freedesktop/DBus\0");
        assert_eq!(&bytes[48..56], [6, 1, b's', 0, 20, 0, 0, 0]);
        assert_eq!(bytes.len(), 128);
        assert_eq!(length(bytes.first_chunk().unwrap()), Ok(128));
    }

    /// A message of another type, made from a call: both have the same form.
    fn incoming(kind: u8, fields: impl Fn(&mut Writer), body: &Writer) -> Vec<u8> {
        let mut w = Writer(vec![ENDIAN, kind, 0, VERSION]);
        w.u32(body.0.len() as u32).u32(1).array(8, [()], |w, ()| fields(w));
        w.align(8);
        w.0.extend(&body.0);
        w.0
    }

    fn field(w: &mut Writer, code: u8, kind: &str) {
        w.structure().0.push(code);
        w.signature(kind);
    }

    #[test]
    fn what_comes_in_is_taken_apart() {
        let mut body = Writer::default();
        body.u32(9).text("/job/9").text("a.scope").text("done");
        let signal = incoming(
            4,
            |w| {
                field(w, MEMBER, "s");
                w.text("JobRemoved");
                field(w, SIGNATURE, "g");
                w.signature("uoss");
            },
            &body,
        );
        let Incoming::Signal(name, body) = parse(&signal).unwrap() else { panic!("no signal") };
        let mut reader = body.reader();
        assert_eq!((name.as_str(), body.signature.as_str()), ("JobRemoved", "uoss"));
        assert_eq!(reader.u32().unwrap(), 9);
        assert_eq!([0; 3].map(|_| reader.text().unwrap()), ["/job/9", "a.scope", "done"]);
        assert_eq!(reader.u32(), Err(Malformed("it ends too early")));

        let mut body = Writer::default();
        body.text("no such unit");
        let error = incoming(
            3,
            |w| {
                field(w, ERROR_NAME, "s");
                w.text("a.b.C");
                field(w, REPLY_SERIAL, "u");
                w.u32(5);
                field(w, SIGNATURE, "g");
                w.signature("s");
            },
            &body,
        );
        assert_eq!(parse(&error).unwrap(), Incoming::Error(5, "a.b.C".to_owned(), "no such unit".to_owned()));
    }

    #[test]
    fn nothing_that_comes_in_makes_it_panic() {
        let mut body = Writer::default();
        let pair = Value::Pairs(vec![("x".into(), "y".into())]);
        body.array(8, [pair], |w, value| {
            w.structure().text("A").variant(&value);
        });
        let good = call(body, "a(sv)");
        assert!(parse(&good).is_err(), "a call needs no answer here");
        for cut in 0..good.len() {
            let _ = parse(&good[..cut]);
        }
        for at in 0..good.len() {
            for value in [0, 1, 3, 4, 127, 255] {
                let mut bad = good.clone();
                bad[at] = value;
                if let Ok(Incoming::Reply(_, body) | Incoming::Signal(_, body)) = parse(&bad) {
                    let _ = body.reader().text();
                }
            }
        }
    }

    #[test]
    fn values_stand_at_multiples_of_their_size() {
        let mut w = Writer::default();
        w.variant(&Value::Bytes(vec![1, 2]))
            .variant(&Value::U64(3))
            .variant(&Value::Texts(vec!["ab".into()]));
        let n = |n: u32| n.to_ne_bytes().to_vec();
        let expected = [
            vec![2, b'a', b'y', 0],
            n(2),
            vec![1, 2],
            vec![1, b't', 0, 0, 0, 0],
            3_u64.to_ne_bytes().to_vec(),
            vec![2, b'a', b's', 0],
            n(7),
            n(2),
            b"ab\0".to_vec(),
        ];
        assert_eq!(w.0, expected.concat());
    }
}
