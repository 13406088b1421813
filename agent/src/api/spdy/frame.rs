//! Frames of SPDY/3.1: reading and writing their fixed parts.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes before the payload of every frame.
pub const HEAD: usize = 8;
/// Version in control frames.
const VERSION: u16 = 3;
/// The bit that tells control frames from data.
const CONTROL: u8 = 0x80;
/// Stream identifiers have 31 bits.
const ID: u32 = 0x7fff_ffff;
/// Flag: the sender says nothing more on the stream.
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// Status of RST_STREAM: the frame is for a stream that there is not.
pub const INVALID_STREAM: u32 = 2;
/// Status of RST_STREAM: the receiver wants no more of it.
pub const CANCEL: u32 = 5;

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the frame is.
    pub kind: Kind,
    /// Its flags.
    flags: u8,
    /// Bytes of its payload.
    pub length: usize,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data of a stream.
    Data(u32),
    /// A control frame of this type.
    Control(u16),
}

/// A frame that was read; header blocks are still compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The other side opens a stream.
    Open {
        /// Its identifier.
        id: u32,
        /// Nothing will be sent on it.
        last: bool,
        /// Its headers, compressed.
        block: Bytes,
    },
    /// Bytes on a stream.
    Data {
        /// Of which.
        id: u32,
        /// Nothing more will be sent on it.
        last: bool,
        /// The bytes.
        bytes: Bytes,
    },
    /// A stream ends at once, in both directions.
    Reset(u32),
    /// To be sent back.
    Ping(u32),
    /// The other side opens no more streams.
    GoAway,
    /// Headers for a stream that is open; compressed, and part of the compression's state.
    Headers(Bytes),
    /// Something without meaning here, such as settings and windows.
    Other,
}

/// The other side does not keep to the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A control frame of another version.
    #[error("SPDY version {0}, want 3")]
    Version(u16),
    /// A frame that ends early.
    #[error("a frame of type {0} is too short")]
    Short(u16),
    /// A frame that is longer than anybody needs.
    #[error("a frame of {0} bytes is too long")]
    Long(usize),
    /// Headers that cannot be read.
    #[error("headers: {0}")]
    Headers(&'static str),
    /// A stream's identifier that was used before, or is the server's.
    #[error("stream {0} was opened out of order")]
    Order(u32),
}

impl Head {
    /// Reads the first [`HEAD`] bytes of a frame.
    ///
    /// # Errors
    /// When the version is wrong.
    pub fn parse(mut bytes: &[u8]) -> Result<Head, Malformed> {
        let control = bytes.first().is_some_and(|first| first & CONTROL != 0);
        let kind = if control {
            let version = bytes.get_u16() & 0x7fff;
            if version != VERSION {
                return Err(Malformed::Version(version));
            }
            Kind::Control(bytes.get_u16())
        } else {
            Kind::Data(bytes.get_u32() & ID)
        };
        let word = bytes.get_u32();
        let [flags, ..] = word.to_be_bytes();
        Ok(Head { kind, flags, length: (word & 0x00ff_ffff) as usize })
    }
}

/// Gives the payload of a frame its meaning.
///
/// # Errors
/// When it is too short for its type.
pub fn parse(head: Head, mut payload: Bytes) -> Result<Frame, Malformed> {
    let last = head.flags & FIN != 0;
    let kind = match head.kind {
        Kind::Data(id) => return Ok(Frame::Data { id, last, bytes: payload }),
        Kind::Control(kind) => kind,
    };
    // What comes before the part of variable length.
    let fixed = match kind {
        SYN_STREAM => 10,
        RST_STREAM | GOAWAY => 8,
        SYN_REPLY | PING | 8 => 4,
        _ => return Ok(Frame::Other),
    };
    if payload.len() < fixed {
        return Err(Malformed::Short(kind));
    }
    let number = payload.get_u32();
    Ok(match kind {
        SYN_STREAM => {
            // The stream it belongs to, priority, slot.
            payload.advance(6);
            Frame::Open { id: number & ID, last, block: payload }
        }
        RST_STREAM => Frame::Reset(number & ID),
        PING => Frame::Ping(number),
        GOAWAY => Frame::GoAway,
        _ => Frame::Headers(payload),
    })
}

fn control(out: &mut BytesMut, kind: u16, payload: &[u8]) {
    out.put_u16(VERSION | u16::from(CONTROL) << 8);
    out.put_u16(kind);
    // No flags; the length has 24 bits.
    out.put_u32(payload.len() as u32 & 0x00ff_ffff);
    out.put_slice(payload);
}

/// Accepts a stream, with a compressed header block.
pub fn reply(out: &mut BytesMut, id: u32, block: &[u8]) {
    control(out, SYN_REPLY, &[&id.to_be_bytes(), block].concat());
}

/// Ends a stream at once.
pub fn reset(out: &mut BytesMut, id: u32, status: u32) {
    control(out, RST_STREAM, &[id.to_be_bytes(), status.to_be_bytes()].concat());
}

/// Sends a ping back.
pub fn pong(out: &mut BytesMut, id: u32) {
    control(out, PING, &id.to_be_bytes());
}

/// Announces the end of the connection, in which `last` was the last stream.
pub fn go_away(out: &mut BytesMut, last: u32) {
    control(out, GOAWAY, &[last.to_be_bytes(), [0; 4]].concat());
}

/// Bytes on a stream; fewer than 16 MiB.
pub fn data(out: &mut BytesMut, id: u32, last: bool, bytes: &[u8]) {
    out.put_u32(id & ID);
    out.put_u32(u32::from(if last { FIN } else { 0 }) << 24 | (bytes.len() as u32 & 0x00ff_ffff));
    out.put_slice(bytes);
}
