//! Header blocks: names and values, compressed over the whole connection with a dictionary that the protocol fixes.

use bytes::Buf;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::Malformed;

/// The dictionary of SPDY/3 (draft 3.1, 2.6.10.1).
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");
/// Bytes of one block when decompressed. Clients send some ten short headers.
const MAX_BLOCK: usize = 64 * 1024;
/// Bytes decompressed in one step.
const STEP: usize = 4096;

/// What a stream was opened with, in the order of the wire; names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header; `name` in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(has, _)| has == name).map(|(_, value)| value.as_str())
    }
}

/// Reads the header blocks of one connection, each once and in order.
#[derive(Debug)]
pub struct Inflater(Decompress);

impl Inflater {
    /// For a new connection.
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Reads a block.
    ///
    /// # Errors
    /// When it is no zlib stream, is too large, or does not hold headers.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, Malformed> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::with_capacity(STEP);
        loop {
            if out.capacity() == out.len() {
                out.reserve(STEP);
            }
            let (read, had) = (self.0.total_in(), out.len());
            let result = self.0.decompress_vec(input, &mut out, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - read).unwrap_or(usize::MAX);
            input = input.get(read..).unwrap_or_default();
            match result {
                Ok(Status::Ok | Status::BufError) => {}
                Ok(Status::StreamEnd) => return Err(Malformed::Headers("the compressed stream ends")),
                // The first block of a connection names the dictionary.
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(DICTIONARY)
                        .map_err(|_| Malformed::Headers("not compressed with SPDY's dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Malformed::Headers("not compressed as they should be")),
            }
            if out.len() > MAX_BLOCK {
                return Err(Malformed::Headers("too large"));
            }
            if input.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
            if read == 0 && out.len() == had && out.len() < out.capacity() {
                return Err(Malformed::Headers("cut short"));
            }
        }
    }
}

fn parse(mut bytes: &[u8]) -> Result<Headers, Malformed> {
    const SHORT: Malformed = Malformed::Headers("cut short");
    let count = bytes.try_get_u32().map_err(|_| SHORT)?;
    let mut text = || -> Result<String, Malformed> {
        let length = bytes.try_get_u32().map_err(|_| SHORT)? as usize;
        let (text, rest) = bytes.split_at_checked(length).ok_or(SHORT)?;
        bytes = rest;
        String::from_utf8(text.to_vec()).map_err(|_| Malformed::Headers("not UTF-8"))
    };
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = text()?.to_ascii_lowercase();
        headers.push((name, text()?));
    }
    Ok(Headers(headers))
}

/// Writes the header blocks of one connection.
#[derive(Debug)]
pub struct Deflater(Compress);

impl Deflater {
    /// For a new connection.
    pub fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        // Before the first byte it cannot fail; without it the other side would read nothing wrong either.
        let _ = compress.set_dictionary(DICTIONARY);
        Self(compress)
    }

    /// A block with these headers.
    pub fn write(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        // A block that cannot be compressed is a little longer; flushing it adds some bytes.
        let mut out = Vec::with_capacity(plain.len() * 2 + 64);
        let mut input = plain.as_slice();
        loop {
            let before = self.0.total_in();
            let status = self.0.compress_vec(input, &mut out, FlushCompress::Sync);
            let read = usize::try_from(self.0.total_in() - before).unwrap_or(usize::MAX);
            input = input.get(read..).unwrap_or_default();
            if status.is_err() || out.len() < out.capacity() {
                return out;
            }
            out.reserve(STEP);
        }
    }
}
