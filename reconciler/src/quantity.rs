//! Kubernetes quantities (`250m`, `1.5Gi`, `1e3`), exactly.
//!
//! The grammar and the canonical form are those of `k8s.io/apimachinery/pkg/api/resource`: amounts are kept to a
//! billionth, finer ones are rounded away from zero, and what exceeds 2^63-1 is capped there.

use std::cmp::Ordering;
use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

const NANOS_PER_UNIT: i128 = 1_000_000_000;
const MAX_NANOS: i128 = i64::MAX as i128 * NANOS_PER_UNIT;
const BINARY_SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// Decimal suffixes from 10^-9 to 10^18 in steps of a thousand.
const DECIMAL_SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

/// How a quantity was written, which decides how it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// An amount, exact to a billionth. Two quantities are equal when they are the same amount, however written.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The text is no quantity. The message is the API server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseError;

/// Bytes as Kubernetes writes them: in the largest binary unit that leaves a whole number.
pub fn binary(bytes: u64) -> String {
    let units = [(1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    let fits = units.into_iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    let (unit, suffix) = fits.unwrap_or((1, ""));
    format!("{}{suffix}", bytes / unit)
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// Reads one as Kubernetes writes them.
    pub fn parse(text: &str) -> Result<Quantity, ParseError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let number_len = unsigned.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, suffix) = unsigned.split_at(number_len);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(ParseError);
        }
        let (exponent10, power1024, format) = parse_suffix(suffix)?;
        let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
        let magnitude = nanos_of(digits, whole.len() as i64 + exponent10, power1024);
        Ok(Quantity { nanos: if negative { -magnitude } else { magnitude }, format })
    }

    /// The quantity of an API object.
    pub fn of(quantity: &ApiQuantity) -> Result<Quantity, ParseError> {
        Quantity::parse(&quantity.0)
    }

    /// That many whole units.
    pub fn from_value(value: i64) -> Quantity {
        Quantity { nanos: i128::from(value) * NANOS_PER_UNIT, format: Format::DecimalSi }
    }

    /// That many thousandths.
    pub fn from_milli(milli: i64) -> Quantity {
        Quantity { nanos: i128::from(milli) * (NANOS_PER_UNIT / 1000), format: Format::DecimalSi }
    }

    /// Whole units (bytes), rounded up.
    pub fn value(&self) -> i64 {
        saturate(ceil_div(self.nanos, NANOS_PER_UNIT))
    }

    /// Thousandths (of a core), rounded up.
    pub fn milli(&self) -> i64 {
        saturate(ceil_div(self.nanos, NANOS_PER_UNIT / 1000))
    }

    /// How many times `divisor` is needed to hold this, rounded up; none for a divisor of zero.
    pub fn div_ceil(&self, divisor: &Quantity) -> Option<i128> {
        (divisor.nanos != 0).then(|| ceil_div(self.nanos, divisor.nanos))
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is less than nothing.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it has no fraction.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANOS_PER_UNIT == 0
    }

    /// The sum, capped like every quantity. It is shown in the format of `self`, or of `other` when `self` is zero.
    #[must_use]
    pub fn plus(&self, other: &Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: (self.nanos + other.nanos).clamp(-MAX_NANOS, MAX_NANOS), format }
    }

    /// As an API object, in canonical form.
    pub fn to_api(&self) -> ApiQuantity {
        ApiQuantity(self.to_string())
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, and the largest suffix that needs none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let binary = self.format == Format::BinarySi && self.is_whole();
        if binary && self.nanos.abs() >= 1024 * NANOS_PER_UNIT {
            let mut value = self.nanos / NANOS_PER_UNIT;
            let mut power = 0;
            while value % 1024 == 0 && power + 1 < BINARY_SUFFIXES.len() {
                value /= 1024;
                power += 1;
            }
            return write!(f, "{value}{}", BINARY_SUFFIXES[power]);
        }
        let mut value = self.nanos;
        let mut step = 0;
        while value % 1000 == 0 && step + 1 < DECIMAL_SUFFIXES.len() {
            value /= 1000;
            step += 1;
        }
        match self.format {
            Format::DecimalExponent if step != 3 => write!(f, "{value}e{}", 3 * step as i64 - 9),
            _ => write!(f, "{value}{}", DECIMAL_SUFFIXES[step]),
        }
    }
}

/// Power of ten, power of 1024 and format of a suffix.
fn parse_suffix(suffix: &str) -> Result<(i64, u32, Format), ParseError> {
    if let Some(step) = DECIMAL_SUFFIXES.iter().position(|s| *s == suffix) {
        return Ok((3 * step as i64 - 9, 0, Format::DecimalSi));
    }
    if let Some(power) = BINARY_SUFFIXES.iter().position(|s| *s == suffix) {
        return Ok((0, power as u32, Format::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError)?;
    let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if unsigned.is_empty() || !unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ParseError);
    }
    // An exponent that does not fit is far beyond the cap (or below a billionth) anyway.
    let size = unsigned.parse::<i64>().unwrap_or(i64::MAX).min(1_000_000);
    Ok((if exponent.starts_with('-') { -size } else { size }, 0, Format::DecimalExponent))
}

/// Billionths in `0.d1d2d3... * 10^point * 1024^power`, rounded up and capped. Works on decimal digits, so nothing
/// is lost however many there are.
fn nanos_of(mut digits: Vec<u8>, mut point: i64, power1024: u32) -> i128 {
    for _ in 0..power1024 {
        let mut carry = 0u32;
        for digit in digits.iter_mut().rev() {
            let product = u32::from(*digit) * 1024 + carry;
            *digit = (product % 10) as u8;
            carry = product / 10;
        }
        let overflow = carry.to_string();
        point += overflow.len() as i64;
        digits.splice(0..0, overflow.bytes().map(|b| b - b'0'));
    }
    let zeros = digits.iter().take_while(|d| **d == 0).count();
    if zeros == digits.len() {
        return 0;
    }
    let digits = &digits[zeros..];
    let whole_len = point - zeros as i64 + 9;
    if whole_len > 30 {
        return MAX_NANOS;
    }
    let whole_len = whole_len.max(0) as usize;
    let mut nanos =
        (0..whole_len).fold(0i128, |sum, i| sum * 10 + digits.get(i).map_or(0, |d| i128::from(*d)));
    if digits.iter().skip(whole_len).any(|d| *d != 0) {
        nanos += 1;
    }
    nanos.min(MAX_NANOS)
}

fn ceil_div(dividend: i128, divisor: i128) -> i128 {
    let quotient = dividend / divisor;
    let exact = dividend % divisor == 0;
    if !exact && (dividend > 0) == (divisor > 0) { quotient + 1 } else { quotient }
}

fn saturate(value: i128) -> i64 {
    value.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}
