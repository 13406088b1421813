//! Frames: a little-endian `u32` length and that many bytes of JSON.

use serde::Serialize;

use super::proto::MAX_FRAME;

const HEADER: usize = 4;

/// A value as a frame.
pub(super) fn encode(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, value)?;
    let length = bytes.len() - HEADER;
    // A length beyond u32 is beyond MAX_FRAME too, which the sender checks before it sends.
    bytes[..HEADER].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    Ok(bytes)
}

/// True for a frame that the other side would refuse.
pub(super) fn too_long(frame: &[u8]) -> bool {
    frame.len() - HEADER > MAX_FRAME
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    done: usize,
}

/// A frame is announced as longer than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong(pub u32);

impl Frames {
    /// Takes what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The content of the next complete frame.
    pub fn next(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let rest = &self.bytes[self.done..];
        let frame = match rest.first_chunk::<HEADER>() {
            None => None,
            Some(header) => {
                let length = u32::from_le_bytes(*header);
                if length as usize > MAX_FRAME {
                    return Err(TooLong(length));
                }
                Some(HEADER + length as usize).filter(|end| rest.len() >= *end)
            }
        };
        match frame {
            Some(length) => {
                let start = self.done + HEADER;
                self.done += length;
                Ok(Some(&self.bytes[start..self.done]))
            }
            None => {
                if self.done == self.bytes.len() {
                    // An idle connection holds no buffer.
                    self.bytes = Vec::new();
                } else {
                    self.bytes.drain(..self.done);
                }
                self.done = 0;
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let mut all = encode(&"one").unwrap();
        all.extend(encode(&vec![1, 2, 3]).unwrap());
        all.extend(encode(&"").unwrap());
        for size in 1..all.len() {
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for piece in all.chunks(size) {
                frames.push(piece);
                while let Some(frame) = frames.next().unwrap() {
                    seen.push(String::from_utf8(frame.to_vec()).unwrap());
                }
            }
            assert_eq!(seen, ["\"one\"", "[1,2,3]", "\"\""], "pieces of {size}");
            assert_eq!(frames.bytes.capacity(), 0);
        }
    }

    #[test]
    fn a_huge_frame_is_refused_before_it_is_read() {
        let mut frames = Frames::default();
        frames.push(&u32::MAX.to_le_bytes());
        assert_eq!(frames.next(), Err(TooLong(u32::MAX)));
    }
}
