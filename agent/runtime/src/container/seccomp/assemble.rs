//! Writing the filter's program, in classic BPF.

use super::arguments::Condition;
use super::{Range, Verdict};
use crate::sys::seccomp::Instruction;

/// Load a word of `struct seccomp_data`.
pub const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
/// And with a constant.
pub const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
/// Jump if equal.
pub const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
/// Jump if greater, unsigned.
pub const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
/// Jump if greater or equal, unsigned.
pub const JUMP_GREATER_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
/// Jump always.
pub const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
/// End with a verdict.
pub const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// Where a jump within a condition leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the next step.
    Next,
    /// The condition holds: behind its last step.
    Holds,
    /// It does not: behind the whole rule.
    Fail,
}

/// One step of a condition, an instruction whose jumps are not fixed yet.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    code: u16,
    k: u32,
    targets: Option<(Target, Target)>,
}

impl Step {
    /// A step that does not jump.
    pub fn plain(code: u16, k: u32) -> Step {
        Step { code, k, targets: None }
    }

    /// A comparison with where to go if it is true and if it is false.
    pub fn jump(code: u16, k: u32, yes: Target, no: Target) -> Step {
        Step { code, k, targets: Some((yes, no)) }
    }
}

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

/// The whole program: for each architecture its ranges; others are killed.
pub fn program(blocks: &[(u32, Vec<Range>)]) -> Vec<Instruction> {
    let mut program = vec![op(LOAD, ARCH)];
    for (audit, ranges) in blocks {
        let tree = tree(ranges);
        program.push(Instruction { code: JUMP_EQUAL, jt: 1, jf: 0, k: *audit });
        program.push(op(JUMP, tree.len() as u32 + 1));
        program.push(op(LOAD, NUMBER));
        program.extend(tree);
    }
    program.push(op(RETURN, libc::SECCOMP_RET_KILL_PROCESS));
    program
}

/// Halves the ranges until one is left.
fn tree(ranges: &[Range]) -> Vec<Instruction> {
    match ranges {
        [] => Vec::new(),
        [one] => leaf(&one.verdict),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let pivot = upper[0].start;
            let (left, right) = (tree(lower), tree(upper));
            let mut code = match u8::try_from(left.len()) {
                Ok(distance) => vec![Instruction { code: JUMP_GREATER_EQUAL, jt: distance, jf: 0, k: pivot }],
                // Conditional jumps reach 255 instructions, others reach all.
                Err(_) => vec![
                    Instruction { code: JUMP_GREATER_EQUAL, jt: 0, jf: 1, k: pivot },
                    op(JUMP, left.len() as u32),
                ],
            };
            code.extend(left);
            code.extend(right);
            code
        }
    }
}

fn leaf(verdict: &Verdict) -> Vec<Instruction> {
    let mut code = Vec::new();
    for (conditions, action) in &verdict.conditional {
        code.extend(rule(conditions, *action));
    }
    code.push(op(RETURN, verdict.otherwise));
    code
}

/// All conditions, then the verdict. A rule has at most six conditions of six steps, so its jumps are short.
fn rule(conditions: &[Condition], action: u32) -> Vec<Instruction> {
    let blocks: Vec<Vec<Step>> = conditions.iter().map(Condition::steps).collect();
    let end = blocks.iter().map(Vec::len).sum::<usize>() + 1;
    let mut code = Vec::with_capacity(end);
    let mut start = 0;
    for block in &blocks {
        let behind = start + block.len();
        for (at, step) in block.iter().enumerate() {
            let next = start + at + 1;
            let distance = |target| match target {
                Target::Next => 0,
                Target::Holds => (behind - next) as u8,
                Target::Fail => (end - next) as u8,
            };
            let (jt, jf) = step.targets.map_or((0, 0), |(yes, no)| (distance(yes), distance(no)));
            code.push(Instruction { code: step.code, jt, jf, k: step.k });
        }
        start = behind;
    }
    code.push(op(RETURN, action));
    code
}
