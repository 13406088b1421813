//! Kubernetes quantities (`250m`, `1.5Gi`, `1e3`), exactly.

/// An amount, exact to a billionth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    nanos: i128,
}

/// The text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseError;

impl Quantity {
    /// Reads one.
    pub fn parse(_text: &str) -> Result<Quantity, ParseError> {
        Err(ParseError)
    }
    /// Thousandths, rounded up.
    pub fn milli(&self) -> i64 {
        self.nanos as i64
    }
    /// Whole units (bytes), rounded up.
    pub fn value(&self) -> i64 {
        self.nanos as i64
    }
}
