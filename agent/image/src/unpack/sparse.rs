//! Writing file content: holes stay holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::member::PaxSparse;
use crate::stream::CHUNK;

/// What an expanded sparse file may be; the disk holds far less.
const MAX_SPARSE: u64 = 1 << 40;
/// A block of tar.
const BLOCK: u64 = 512;

/// What failed: the archive or the disk.
pub(super) enum Failure {
    Read(io::Error),
    Write(io::Error),
}

fn broken(reason: &str) -> Failure {
    Failure::Read(io::Error::new(io::ErrorKind::InvalidData, reason.to_owned()))
}

/// Copies everything; with `holes`, blocks of zeros are skipped over. Returns the bytes written.
pub(super) fn copy(from: &mut impl Read, to: &mut File, holes: bool) -> Result<u64, Failure> {
    let mut buf = vec![0_u8; CHUNK];
    let (mut at, mut written) = (0_u64, 0_u64);
    loop {
        let n = match from.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failure::Read(e)),
        };
        at += n as u64;
        if holes && at > MAX_SPARSE {
            return Err(broken("sparse file too large"));
        }
        if holes && buf[..n].iter().all(|b| *b == 0) {
            to.seek(SeekFrom::Start(at)).map_err(Failure::Write)?;
        } else {
            to.write_all(&buf[..n]).map_err(Failure::Write)?;
            written += n as u64;
        }
    }
    if holes {
        to.set_len(at).map_err(Failure::Write)?;
    }
    Ok(written)
}

/// Writes a pax sparse file (GNU tar manual, "PAX Format, Versions 0.1 and 1.0").
pub(super) fn expand(from: &mut impl Read, to: &mut File, sparse: &PaxSparse) -> Result<u64, Failure> {
    if sparse.real_size > MAX_SPARSE {
        return Err(broken("sparse file too large"));
    }
    let map = match &sparse.map {
        Some(text) => parse_map(text.split(',').filter(|s| !s.is_empty()))?,
        None => read_map(from)?,
    };
    let (mut end, mut written) = (0_u64, 0_u64);
    for (offset, length) in map {
        let stop = offset.checked_add(length).filter(|stop| *stop <= sparse.real_size);
        let (true, Some(stop)) = (offset >= end, stop) else { return Err(broken("sparse map out of order")) };
        end = stop;
        to.seek(SeekFrom::Start(offset)).map_err(Failure::Write)?;
        let n = copy(&mut from.by_ref().take(length), to, false)?;
        if n != length {
            return Err(broken("sparse file is cut short"));
        }
        written += n;
    }
    to.set_len(sparse.real_size).map_err(Failure::Write)?;
    Ok(written)
}

fn parse_map<'a>(numbers: impl Iterator<Item = &'a str>) -> Result<Vec<(u64, u64)>, Failure> {
    let numbers: Result<Vec<u64>, _> = numbers.map(str::parse).collect();
    let numbers = numbers.map_err(|_| broken("sparse map is not made of numbers"))?;
    let pairs = numbers.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(broken("sparse map has an odd length"));
    }
    Ok(pairs.map(|pair| (pair[0], pair[1])).collect())
}

/// The map of version 1.0: decimal numbers, one a line, first their count, filled up to a whole block.
fn read_map(from: &mut impl Read) -> Result<Vec<(u64, u64)>, Failure> {
    const MAX_SEGMENTS: u64 = 1 << 16;
    let mut consumed = 0_u64;
    let mut line = || -> Result<u64, Failure> {
        let mut number = 0_u64;
        for digits in 0..=20 {
            let mut byte = [0_u8];
            from.read_exact(&mut byte).map_err(Failure::Read)?;
            consumed += 1;
            match byte[0] {
                b'\n' if digits > 0 => return Ok(number),
                digit @ b'0'..=b'9' => {
                    number = number
                        .checked_mul(10)
                        .and_then(|n| n.checked_add(u64::from(digit - b'0')))
                        .ok_or_else(|| broken("sparse map number too large"))?;
                }
                _ => break,
            }
        }
        Err(broken("sparse map is not made of numbers"))
    };
    let segments = line()?;
    if segments > MAX_SEGMENTS {
        return Err(broken("sparse map too long"));
    }
    let map = (0..segments).map(|_| Ok((line()?, line()?))).collect::<Result<Vec<_>, Failure>>()?;
    let padding = consumed.next_multiple_of(BLOCK) - consumed;
    io::copy(&mut from.take(padding), &mut io::sink()).map_err(Failure::Read)?;
    Ok(map)
}
