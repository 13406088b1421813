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

    /// Changes where a comparison leads.
    pub fn lead_to(&mut self, yes: Target, no: Target) {
        self.targets = Some((yes, no));
    }
}

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

/// The farthest that a conditional jump leads; others lead everywhere.
const REACH: usize = u8::MAX as usize;

/// The whole program: for each architecture its ranges; others are killed.
pub fn program(blocks: &[(u32, Vec<Range>)]) -> Vec<Instruction> {
    let mut program = Backwards::default();
    let mut next = program.push(op(RETURN, libc::SECCOMP_RET_KILL_PROCESS));
    for (audit, ranges) in blocks.iter().rev() {
        if let Some(entry) = program.tree(ranges) {
            program.fall_into(entry);
            program.push(op(LOAD, NUMBER));
            program.jump(next);
            next = program.push(Instruction { code: JUMP_EQUAL, jt: 1, jf: 0, k: *audit });
        }
    }
    program.push(op(LOAD, ARCH));
    program.0.reverse();
    program.0
}

/// A program that is written from its end to its beginning. Jumps lead forward only, so that what they lead to is there
/// already, and most verdicts, which are few and the same again and again, need not be written once more: the kernel
/// translates the whole program each time that it is installed. Places are counted from the end.
#[derive(Default)]
struct Backwards(Vec<Instruction>);

impl Backwards {
    /// Puts an instruction in front of all others; gives its place.
    fn push(&mut self, instruction: Instruction) -> usize {
        self.0.push(instruction);
        self.0.len() - 1
    }

    /// How many instructions the next one would have to skip.
    fn distance(&self, place: usize) -> usize {
        self.0.len() - place - 1
    }

    fn jump(&mut self, place: usize) -> usize {
        let distance = self.distance(place) as u32;
        self.push(op(JUMP, distance))
    }

    /// Makes the next instruction lead to that place when it does not jump.
    fn fall_into(&mut self, place: usize) {
        if self.distance(place) > 0 {
            self.jump(place);
        }
    }

    /// Halves the ranges until one is left. Gives the place to begin at; none without ranges.
    fn tree(&mut self, ranges: &[Range]) -> Option<usize> {
        let (lower, upper) = match ranges {
            [] => return None,
            [one] => return Some(self.leaf(&one.verdict)),
            _ => ranges.split_at(ranges.len() / 2),
        };
        let (mut yes, mut no) = (self.tree(upper)?, self.tree(lower)?);
        // Each of these two takes one place more. Behind them both are near.
        if self.distance(no) >= REACH {
            no = self.jump(no);
        }
        if self.distance(yes) > REACH {
            yes = self.jump(yes);
        }
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        Some(self.push(Instruction { code: JUMP_GREATER_EQUAL, jt, jf, k: upper[0].start }))
    }

    fn leaf(&mut self, verdict: &Verdict) -> usize {
        let otherwise = op(RETURN, verdict.otherwise);
        if verdict.conditional.is_empty() {
            let near = self.0.len().saturating_sub(REACH / 2);
            let known = self.0[near..].iter().rposition(|other| *other == otherwise);
            return known.map_or_else(|| self.push(otherwise), |at| near + at);
        }
        let mut code = vec![otherwise];
        for (blocks, action) in blocks(&verdict.conditional).iter().rev() {
            code.extend(rule(blocks, *action).into_iter().rev());
        }
        // All its jumps lead to itself, so that it does the same wherever it is: architectures have some in common.
        if let Some(at) = self.0.windows(code.len()).rposition(|other| *other == code) {
            return at + code.len() - 1;
        }
        self.0.extend(code);
        self.0.len() - 1
    }
}

/// At most so many right answers to one question, so that jumps are short.
const ANSWERS: usize = 100;

/// For each rule the steps of its conditions. Rules that follow each other and differ in the right answer only become one: the
/// default profile has one for each kind of socket.
fn blocks(rules: &[(Vec<Condition>, u32)]) -> Vec<(Vec<Vec<Step>>, u32)> {
    let mut blocks = Vec::new();
    let mut left = rules;
    while let [(conditions, action), rest @ ..] = left {
        let alike = |(other, value): &&(Vec<Condition>, u32)| match (conditions.as_slice(), other.as_slice())
        {
            ([one], [other]) => one.asks_like(other) && value == action,
            _ => false,
        };
        let count = rest.iter().take(ANSWERS).take_while(alike).count();
        let (others, rest) = rest.split_at(count);
        blocks.push(match conditions.as_slice() {
            [one] => (vec![one.steps_with(others.iter().flat_map(|(other, _)| other))], *action),
            all => (all.iter().map(Condition::steps).collect(), *action),
        });
        left = rest;
    }
    blocks
}

/// All conditions, then the verdict. A rule has at most six conditions of six steps or one with some answers, so that its jumps
/// are short.
fn rule(blocks: &[Vec<Step>], action: u32) -> Vec<Instruction> {
    let end = blocks.iter().map(Vec::len).sum::<usize>() + 1;
    let mut code = Vec::with_capacity(end);
    let mut start = 0;
    for block in blocks {
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
