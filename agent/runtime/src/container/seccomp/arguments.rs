//! Conditions on the arguments of a system call.

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator};

use super::Error;
use super::assemble::{
    AND, JUMP_BIT, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, KEEP_CONSTANT, KEEP_STORED, LOAD, LOAD_KEPT,
    SHIFT, STORE, Step, Target,
};

/// A system call has this many arguments.
const ARGUMENTS: usize = 6;
/// Where the arguments start in `struct seccomp_data`; each takes eight bytes, the low half first on the
/// little-endian machines that there are tables for.
const FIRST: u32 = 16;

/// One comparison of a 64-bit argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    index: u32,
    op: LinuxSeccompOperator,
    value: u64,
    /// What the masked argument must be, for `MASKED_EQ` only.
    masked: u64,
}

impl Condition {
    /// Checks and takes a condition of a spec.
    pub fn of_spec(arg: &LinuxSeccompArg) -> Result<Condition, Error> {
        if arg.index() >= ARGUMENTS {
            let reason = format!("{} is not one of the arguments 0 to 5", arg.index());
            return Err(Error::spec("linux.seccomp.syscalls.args.index", reason));
        }
        Ok(Condition {
            index: arg.index() as u32,
            op: arg.op(),
            value: arg.value(),
            masked: arg.value_two().unwrap_or(0),
        })
    }

    /// Whether the condition holds: the plain words that the program is tested against.
    #[cfg(test)]
    pub fn holds(&self, args: &[u64; 6]) -> bool {
        let arg = args[self.index as usize];
        match self.op {
            LinuxSeccompOperator::ScmpCmpNe => arg != self.value,
            LinuxSeccompOperator::ScmpCmpLt => arg < self.value,
            LinuxSeccompOperator::ScmpCmpLe => arg <= self.value,
            LinuxSeccompOperator::ScmpCmpEq => arg == self.value,
            LinuxSeccompOperator::ScmpCmpGe => arg >= self.value,
            LinuxSeccompOperator::ScmpCmpGt => arg > self.value,
            LinuxSeccompOperator::ScmpCmpMaskedEq => arg & self.value == self.masked,
        }
    }

    /// Whether both ask if the same argument is a certain value, in the same way but for the value's lower half.
    pub fn asks_like(&self, other: &Condition) -> bool {
        let same = (self.index, self.op, self.value >> 32) == (other.index, other.op, other.value >> 32);
        same && self.op == LinuxSeccompOperator::ScmpCmpEq
    }

    /// The steps of a question with several right answers: this condition's, and those of others that ask like it. The argument is
    /// looked at once.
    pub fn steps_with(&self, others: &[&Condition]) -> Vec<Step> {
        let mut steps = self.steps();
        for other in others {
            let last = steps.len() - 1;
            let next = other.steps().pop();
            steps[last].lead_to(Target::Holds, Target::Next);
            steps.extend(next);
        }
        steps
    }

    /// The values for which it holds, as bits, if all are below 64.
    fn small_values(&self) -> Option<u64> {
        let below = |end: u64| u64::MAX.checked_shr(u64::BITS.checked_sub(u32::try_from(end).ok()?)?);
        match self.op {
            LinuxSeccompOperator::ScmpCmpEq if self.value < 64 => Some(1 << self.value),
            LinuxSeccompOperator::ScmpCmpLt => below(self.value),
            LinuxSeccompOperator::ScmpCmpLe => below(self.value.checked_add(1)?),
            _ => None,
        }
    }

    /// Whether both hold for small values of the same argument only.
    pub fn is_small_like(&self, other: &Condition) -> bool {
        self.index == other.index && self.small_values().is_some() && other.small_values().is_some()
    }

    /// The steps of a question whether this condition holds or one of others that are small like it: a table of bits.
    pub fn steps_with_small(&self, others: &[&Condition]) -> Vec<Step> {
        use Target::{Fail, Next, Over};
        let bits =
            others.iter().chain([&self]).filter_map(|one| one.small_values()).fold(0, |all, bits| all | bits);
        let load_low = Step::plain(LOAD, FIRST + self.index * 8);
        vec![
            Step::plain(LOAD, FIRST + self.index * 8 + 4),
            Step::jump(JUMP_EQUAL, 0, Next, Fail),
            load_low,
            Step::plain(AND, u32::BITS - 1),
            Step::plain(STORE, 0),
            load_low,
            Step::jump(JUMP_GREATER_EQUAL, u64::BITS, Fail, Next),
            Step::plain(KEEP_CONSTANT, bits as u32),
            Step::jump(JUMP_GREATER_EQUAL, u32::BITS, Next, Over),
            Step::plain(KEEP_CONSTANT, (bits >> 32) as u32),
            Step::plain(LOAD_KEPT, 0),
            Step::plain(KEEP_STORED, 0),
            Step::plain(SHIFT, 0),
            Step::jump(JUMP_BIT, 1, Next, Fail),
        ]
    }

    /// The steps of the comparison: both halves, since the machine compares 32 bits.
    pub fn steps(&self) -> Vec<Step> {
        use LinuxSeccompOperator as Op;
        use Target::{Fail, Holds, Next};
        let (high, low) = ((self.value >> 32) as u32, self.value as u32);
        let load_low = Step::plain(LOAD, FIRST + self.index * 8);
        let load_high = Step::plain(LOAD, FIRST + self.index * 8 + 4);
        let jump = Step::jump;
        match self.op {
            Op::ScmpCmpEq => vec![
                load_high,
                jump(JUMP_EQUAL, high, Next, Fail),
                load_low,
                jump(JUMP_EQUAL, low, Next, Fail),
            ],
            Op::ScmpCmpNe => vec![
                load_high,
                jump(JUMP_EQUAL, high, Next, Holds),
                load_low,
                jump(JUMP_EQUAL, low, Fail, Next),
            ],
            Op::ScmpCmpMaskedEq => vec![
                load_high,
                Step::plain(AND, high),
                jump(JUMP_EQUAL, (self.masked >> 32) as u32, Next, Fail),
                load_low,
                Step::plain(AND, low),
                jump(JUMP_EQUAL, self.masked as u32, Next, Fail),
            ],
            Op::ScmpCmpGt | Op::ScmpCmpGe => vec![
                load_high,
                jump(JUMP_GREATER, high, Holds, Next),
                jump(JUMP_EQUAL, high, Next, Fail),
                load_low,
                jump(
                    if self.op == Op::ScmpCmpGt { JUMP_GREATER } else { JUMP_GREATER_EQUAL },
                    low,
                    Next,
                    Fail,
                ),
            ],
            Op::ScmpCmpLt | Op::ScmpCmpLe => vec![
                load_high,
                jump(JUMP_GREATER, high, Fail, Next),
                jump(JUMP_EQUAL, high, Next, Holds),
                load_low,
                jump(
                    if self.op == Op::ScmpCmpLe { JUMP_GREATER } else { JUMP_GREATER_EQUAL },
                    low,
                    Fail,
                    Next,
                ),
            ],
        }
    }
}
