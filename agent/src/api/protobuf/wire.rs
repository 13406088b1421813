//! Protobuf's wire format: numbers of fields, and values that know only how long they are.

use super::Malformed;

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes<'a> {
    /// A number.
    Number(u64),
    /// A text, bytes or another message.
    Long(&'a [u8]),
}

/// Reads a message.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// From its beginning.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next field; none at the end.
    pub fn next(&mut self) -> Result<Option<(u32, Bytes<'a>)>, Malformed> {
        let Some(tag) = self.varint()? else { return Ok(None) };
        let number =
            u32::try_from(tag >> 3).map_err(|_| Malformed::Wire("a field number that is too large"))?;
        let value = match tag & 7 {
            0 => Bytes::Number(self.varint()?.ok_or(Malformed::Wire("cut short"))?),
            1 => Bytes::Number(u64::from_le_bytes(self.fixed()?)),
            2 => {
                let length = self.varint()?.ok_or(Malformed::Wire("cut short"))?;
                Bytes::Long(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => Bytes::Number(u32::from_le_bytes(self.fixed()?).into()),
            _ => return Err(Malformed::Wire("a type that there is not")),
        };
        Ok(Some((number, value)))
    }

    /// A number of up to ten bytes; none at the end.
    pub fn varint(&mut self) -> Result<Option<u64>, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some((byte, rest)) = self.0.split_first() else {
                return if shift == 0 { Ok(None) } else { Err(Malformed::Wire("cut short")) };
            };
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(Some(value));
            }
        }
        Err(Malformed::Wire("a number that is too long"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed::Wire("cut short"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed::Wire("cut short"))
    }
}
