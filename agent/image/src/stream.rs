//! Byte streams: compression found by its magic bytes, hashing on the fly, and bounds on what is read.

use std::cell::Cell;
use std::io::{self, BufReader, Cursor, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

/// Bytes moved at a time; a stream in flight holds a few of these.
pub(crate) const CHUNK: usize = 64 * 1024;

/// How a blob is compressed. Media types lie often enough that only the content counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// Reads the first bytes and returns the decompressed stream.
pub(crate) fn decompress<'a, R: Read + 'a>(mut input: R) -> io::Result<(Compression, Box<dyn Read + 'a>)> {
    let mut magic = [0_u8; 4];
    let mut have = 0;
    while have < magic.len() {
        match input.read(&mut magic[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let whole = BufReader::with_capacity(CHUNK, Cursor::new(magic).take(have as u64).chain(input));
    Ok(match magic {
        // Several members in one file are legal (RFC 1952) and what parallel compressors write.
        [0x1f, 0x8b, ..] => (Compression::Gzip, Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
        // A zstd frame, or a skippable frame before it (as zstd:chunked and pzstd write).
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            (Compression::Zstd, Box::new(zstd::stream::read::Decoder::with_buffer(whole)?))
        }
        _ => (Compression::Plain, Box::new(whole)),
    })
}

/// `sha256:<hex>` of a finished hash.
pub(crate) fn digest_text(hasher: Sha256) -> String {
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in hasher.finalize() {
        use std::fmt::Write as _;
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// `sha256:<hex>` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    digest_text(Sha256::new_with_prefix(bytes))
}

/// Hashes what passes through.
pub(crate) struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Hashing { inner, hasher: Sha256::new() }
    }

    /// Digest of everything read so far.
    pub(crate) fn digest(&self) -> String {
        digest_text(self.hasher.clone())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}

/// How much may still be read. Shared with the code that knows what the next bytes are for.
#[derive(Clone)]
pub(crate) struct Allowance {
    /// Bytes until the end of the current step.
    step: Rc<Cell<u64>>,
}

impl Allowance {
    /// Grants `bytes` from here on, whatever was left before.
    pub(crate) fn grant(&self, bytes: u64) {
        self.step.set(bytes);
    }
}

/// Fails once more is read than was granted: a header that claims gigabytes must not be read into memory, and a
/// small blob must not become an endless stream.
pub(crate) struct Bounded<R> {
    inner: R,
    total: u64,
    allowance: Allowance,
}

impl<R: Read> Bounded<R> {
    /// At most `total` bytes in all.
    pub(crate) fn new(inner: R, total: u64) -> (Self, Allowance) {
        let allowance = Allowance { step: Rc::new(Cell::new(u64::MAX)) };
        (Bounded { inner, total, allowance: allowance.clone() }, allowance)
    }

    pub(crate) fn get_ref(&self) -> &R {
        &self.inner
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let step = self.allowance.step.get();
        let n = self.inner.read(buf)? as u64;
        if n > self.total {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "unpacks to more than is allowed"));
        }
        if n > step {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a header is larger than is allowed"));
        }
        self.total -= n;
        self.allowance.step.set(step - n);
        Ok(n as usize)
    }
}

/// Counts what passes, tells it, and stops when asked to.
pub(crate) struct Watched<R> {
    inner: R,
    read: u64,
    tell: Box<dyn FnMut(u64) + Send>,
    cancelled: Arc<AtomicBool>,
}

impl<R: Read> Watched<R> {
    pub(crate) fn new(inner: R, cancelled: Arc<AtomicBool>, tell: Box<dyn FnMut(u64) + Send>) -> Self {
        Watched { inner, read: 0, tell, cancelled }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled"));
        }
        let n = self.inner.read(buf)?;
        self.read += n as u64;
        (self.tell)(self.read);
        Ok(n)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    fn unpacked(bytes: &[u8]) -> (Compression, Vec<u8>) {
        let (kind, mut stream) = decompress(bytes).unwrap();
        let mut out = Vec::new();
        stream.read_to_end(&mut out).unwrap();
        (kind, out)
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    }

    #[test]
    fn compression_is_found_by_content() {
        let text = b"some words to pack";
        assert_eq!(unpacked(text), (Compression::Plain, text.to_vec()));
        assert_eq!(unpacked(&gzip(text)), (Compression::Gzip, text.to_vec()));
        assert_eq!(unpacked(&zstd::encode_all(&text[..], 3).unwrap()), (Compression::Zstd, text.to_vec()));
        assert_eq!(unpacked(b""), (Compression::Plain, Vec::new()));
        assert_eq!(unpacked(b"ab"), (Compression::Plain, b"ab".to_vec()));
    }

    #[test]
    fn several_members_are_one_stream() {
        let gz = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(unpacked(&gz).1, b"one two");
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 9, 9, 9, 9];
        let zst = [
            &skippable[..],
            &zstd::encode_all(&b"one "[..], 3).unwrap(),
            &zstd::encode_all(&b"two"[..], 3).unwrap(),
        ];
        assert_eq!(unpacked(&zst.concat()), (Compression::Zstd, b"one two".to_vec()));
    }

    #[test]
    fn bounds_hold() {
        let (mut bounded, allowance) = Bounded::new(&[0_u8; 100][..], 60);
        let mut buf = [0_u8; 30];
        allowance.grant(40);
        assert_eq!(bounded.read(&mut buf).unwrap(), 30);
        assert_eq!(bounded.read(&mut buf).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let (mut bounded, _) = Bounded::new(&[0_u8; 100][..], 60);
        assert_eq!(io::copy(&mut bounded, &mut io::sink()).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn digests_are_written_as_oci_does() {
        assert_eq!(digest_of(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
