//! Messages of nfnetlink: attributes, and batches that are carried out wholly or not at all.

use crate::sys::netlink::{ACK, REQUEST};

/// Family of tables for IPv4 and IPv6 (NFPROTO_INET).
pub(crate) const INET: u8 = 1;
/// Family of tables for what passes bridges (NFPROTO_BRIDGE).
pub(crate) const BRIDGE: u8 = 7;
/// Number of nf_tables among the subsystems of nfnetlink.
pub(crate) const NF_TABLES: u8 = 10;

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NESTED: u16 = 0x8000;

/// Attributes under construction.
pub(crate) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// Adds an attribute with these bytes.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.0.extend_from_slice(value);
        self.close(start)
    }

    /// Adds a string with its closing zero.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.open(kind);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.close(start)
    }

    /// Adds a number in network order, as nfnetlink has them all.
    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds attributes inside an attribute.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.open(kind | NESTED);
        fill(&mut Attributes(self.0));
        self.close(start)
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) -> &mut Self {
        let length = u16::try_from(self.0.len() - start).expect("callers keep attributes below 64 KiB");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// One message to `subsystem`, ready to send alone.
pub(crate) fn message(
    subsystem: u8,
    kind: u8,
    flags: u16,
    family: u8,
    fill: impl FnOnce(&mut Attributes<'_>),
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    append(&mut bytes, u16::from(subsystem) << 8 | u16::from(kind), flags, 1, [family, 0, 0, 0], fill);
    bytes
}

fn append(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    seq: u32,
    header: [u8; 4],
    fill: impl FnOnce(&mut Attributes<'_>),
) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
    bytes.extend_from_slice(&seq.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&header);
    fill(&mut Attributes(bytes));
    let length = u32::try_from(bytes.len() - start).expect("a message is far below 4 GiB");
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Messages to nf_tables that take effect together.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    seq: u32,
    last: usize,
}

impl Batch {
    pub(crate) fn new() -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(4096), seq: 0, last: 0 };
        batch.frame(BATCH_BEGIN);
        batch
    }

    fn frame(&mut self, kind: u16) {
        let [high, low] = u16::from(NF_TABLES).to_be_bytes();
        self.seq += 1;
        append(&mut self.bytes, kind, 0, self.seq, [0, 0, high, low], |_| {});
    }

    /// Adds a message about an `inet` table.
    pub(crate) fn add(&mut self, kind: u8, flags: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.add_to(INET, kind, flags, fill);
    }

    /// Adds a message about a table of `family`.
    pub(crate) fn add_to(
        &mut self,
        family: u8,
        kind: u8,
        flags: u16,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.seq += 1;
        self.last = self.bytes.len();
        append(
            &mut self.bytes,
            u16::from(NF_TABLES) << 8 | u16::from(kind),
            flags,
            self.seq,
            [family, 0, 0, 0],
            fill,
        );
    }

    /// The bytes to send. Only the last message asks for an acknowledgement: refusals come anyway, and thousands of
    /// acknowledgements would overflow the socket.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let flags = self.last + 6..self.last + 8;
        let old = u16::from_ne_bytes([self.bytes[flags.start], self.bytes[flags.start + 1]]);
        self.bytes[flags].copy_from_slice(&(old | ACK).to_ne_bytes());
        self.frame(BATCH_END);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut bytes = Vec::new();
        Attributes(&mut bytes).nest(3, |a| {
            a.text(1, "ab").number(2, 5);
        });
        let expected = [
            &20u16.to_ne_bytes()[..],
            &0x8003u16.to_ne_bytes(),
            &7u16.to_ne_bytes(),
            &1u16.to_ne_bytes(),
            b"ab\0\0",
            &8u16.to_ne_bytes(),
            &2u16.to_ne_bytes(),
            &[0, 0, 0, 5],
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn only_the_last_message_of_a_batch_is_acknowledged() {
        let mut batch = Batch::new();
        batch.add(0, 0, |_| {});
        batch.add(1, 0x400, |_| {});
        let bytes = batch.finish();
        let flags: Vec<u16> = bytes.chunks(20).map(|m| u16::from_ne_bytes([m[6], m[7]])).collect();
        assert_eq!(flags, [1, 1, 0x405, 1]);
    }
}
