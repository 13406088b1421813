//! Tar archives, honest and hostile.

use std::io::Write;

use tar::{Builder, EntryType, Header};

/// How a layer is packed.
pub type Pack = fn(&[u8]) -> Vec<u8>;

/// Builds a tar member by member; names go in as they are, however bad.
pub struct Tar(Builder<Vec<u8>>);

fn put(field: &mut [u8], bytes: &[u8]) {
    assert!(bytes.len() <= field.len(), "name too long for this helper");
    field[..bytes.len()].copy_from_slice(bytes);
}

impl Tar {
    pub fn new() -> Tar {
        Tar(Builder::new(Vec::new()))
    }

    pub fn entry(mut self, kind: EntryType, name: &str, link: &str, mode: u32, data: &[u8]) -> Tar {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        put(&mut header.as_gnu_mut().unwrap().name, name.as_bytes());
        put(&mut header.as_gnu_mut().unwrap().linkname, link.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub fn header(mut self, change: impl FnOnce(&mut Header), name: &str) -> Tar {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        put(&mut header.as_gnu_mut().unwrap().name, name.as_bytes());
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, std::io::empty()).unwrap();
        self
    }

    pub fn dir(self, name: &str) -> Tar {
        self.entry(EntryType::Directory, name, "", 0o755, b"")
    }

    pub fn file(self, name: &str, data: &[u8]) -> Tar {
        self.entry(EntryType::Regular, name, "", 0o644, data)
    }

    pub fn symlink(self, name: &str, target: &str) -> Tar {
        self.entry(EntryType::Symlink, name, target, 0o777, b"")
    }

    pub fn hardlink(self, name: &str, target: &str) -> Tar {
        self.entry(EntryType::Link, name, target, 0o644, b"")
    }

    pub fn pax(mut self, extensions: &[(&str, &[u8])]) -> Tar {
        self.0.append_pax_extensions(extensions.iter().copied()).unwrap();
        self
    }

    pub fn build(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(data).unwrap();
    e.finish().unwrap()
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 3).unwrap()
}

/// Bytes that do not compress, always the same for a seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
