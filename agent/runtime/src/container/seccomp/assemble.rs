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
/// Keep what is loaded as the other operand.
pub const KEEP: u16 = 0x07; // BPF_MISC | BPF_TAX
/// Keep a constant as that.
pub const KEEP_CONSTANT: u16 = 0x01; // BPF_LDX | BPF_IMM
/// Load what was kept.
pub const LOAD_KEPT: u16 = 0x87; // BPF_MISC | BPF_TXA
/// Store what is loaded in a word of the program's own.
pub const STORE: u16 = 0x02; // BPF_ST
/// Keep such a word as the other operand.
pub const KEEP_STORED: u16 = 0x61; // BPF_LDX | BPF_MEM
/// Shift right by what was kept.
pub const SHIFT: u16 = 0x7c; // BPF_ALU | BPF_RSH | BPF_X
/// Jump if a bit is set.
pub const JUMP_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// Where a jump within a condition leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the next step.
    Next,
    /// To the one behind that.
    Over,
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

/// What a program is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Many system calls. It does nothing that the kernel cannot follow when it is installed: what is allowed whatever the arguments
    /// are is in a table of the kernel's then, and the program does not run for it at all (`seccomp_is_const_allow`).
    ManyCalls,
    /// Few of them, by a process whose start takes longer than they do: it is short. It has tables of bits where it can, and begins
    /// with what the kernel cannot follow, which then does not try to with each number of each architecture.
    FewCalls,
}

/// The whole program: for each architecture its ranges; others are killed.
pub fn program(blocks: &[(u32, Vec<Range>)], shape: Shape) -> Vec<Instruction> {
    let mut program = Backwards::default();
    let mut next = program.push(op(RETURN, libc::SECCOMP_RET_KILL_PROCESS));
    for (audit, ranges) in blocks.iter().rev() {
        let table = if shape == Shape::FewCalls { Table::of(ranges) } else { None };
        let entry = match &table {
            Some(table) => program.table(table),
            None => program.tree(ranges),
        };
        if let Some(entry) = entry {
            program.fall_into(entry);
            program.push(op(LOAD, NUMBER));
            program.jump(next);
            next = program.push(Instruction { code: JUMP_EQUAL, jt: 1, jf: 0, k: *audit });
        }
    }
    program.push(op(LOAD, ARCH));
    if shape == Shape::FewCalls {
        program.push(op(KEEP, 0));
    }
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
        let (yes, no) = (self.tree(upper)?, self.tree(lower)?);
        Some(self.fork(JUMP_GREATER_EQUAL, upper[0].start, yes, no))
    }

    /// The entry of a table, with the number loaded.
    fn table(&mut self, table: &Table<'_>) -> Option<usize> {
        let above = self.tree(table.above)?;
        let others: Vec<(u32, usize)> =
            table.others.iter().map(|(number, verdict)| (*number, self.leaf(verdict))).collect();
        let plain = |value| Verdict { conditional: Vec::new(), otherwise: value };
        let (clear, set) = (self.leaf(&plain(table.clear)), self.leaf(&plain(table.set)));
        self.fork(JUMP_BIT, 1, set, clear);
        self.push(op(SHIFT, 0));
        self.push(op(KEEP_STORED, 0));
        let found = self.push(op(LOAD_KEPT, 0));
        // One after the other: a tree would need a jump behind each word, and to run it takes less time than to translate that.
        let mut behind = None;
        for (at, word) in table.words.iter().enumerate().rev() {
            if behind == Some(word) {
                continue;
            }
            if behind.is_some() {
                let jf = self.distance(found) as u8;
                self.push(Instruction {
                    code: JUMP_GREATER_EQUAL,
                    jt: 0,
                    jf,
                    k: (at as u32 + 1) * u32::BITS,
                });
            }
            self.push(op(KEEP_CONSTANT, *word));
            behind = Some(word);
        }
        self.push(op(LOAD, NUMBER));
        self.push(op(STORE, 0));
        self.push(op(AND, u32::BITS - 1));
        for (number, place) in others.into_iter().rev() {
            self.branch(JUMP_EQUAL, number, place);
        }
        Some(self.branch(JUMP_GREATER_EQUAL, table.end, above))
    }

    /// A comparison that leads to that place, or else to the next instruction.
    fn branch(&mut self, code: u16, k: u32, place: usize) -> usize {
        let (jt, jf) = if self.distance(place) <= REACH {
            (self.distance(place) as u8, 0)
        } else {
            self.jump(place);
            (0, 1)
        };
        self.push(Instruction { code, jt, jf, k })
    }

    /// A comparison that leads to either of two places.
    fn fork(&mut self, code: u16, k: u32, mut yes: usize, mut no: usize) -> usize {
        // Each of these two takes one place more. Behind them both are near.
        if self.distance(no) >= REACH {
            no = self.jump(no);
        }
        if self.distance(yes) > REACH {
            yes = self.jump(yes);
        }
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(Instruction { code, jt, jf, k })
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

/// Two verdicts that hardly depend on anything but the number, as bits.
struct Table<'a> {
    /// What a bit stands for that is set, and one that is not.
    set: u32,
    clear: u32,
    /// From number 0 on.
    words: Vec<u32>,
    /// Numbers that have another verdict.
    others: Vec<(u32, &'a Verdict)>,
    /// The first number that is not in the table.
    end: u32,
    /// What is about that and those that follow.
    above: &'a [Range],
}

impl<'a> Table<'a> {
    /// Below this numbers are near each other.
    const DENSE: u32 = 1024;
    /// With more other verdicts a tree is shorter.
    const OTHERS: usize = 16;

    /// None where it would not be short.
    fn of(ranges: &'a [Range]) -> Option<Table<'a>> {
        let last = ranges.iter().rposition(|range| range.start < Self::DENSE)?;
        let (below, above) = ranges.split_at(last);
        let end = above.first()?.start;
        if below.first()?.start != 0 {
            return None;
        }
        let ends = below.iter().skip(1).map(|range| range.start).chain([end]);
        let numbers = || {
            below
                .iter()
                .zip(ends.clone())
                .flat_map(|(range, end)| (range.start..end).map(|number| (number, &range.verdict)))
        };
        let mut plain: Vec<(u32, usize)> = Vec::new();
        for (_, verdict) in numbers().filter(|(_, verdict)| verdict.conditional.is_empty()) {
            match plain.iter_mut().find(|(value, _)| *value == verdict.otherwise) {
                Some((_, count)) => *count += 1,
                None => plain.push((verdict.otherwise, 1)),
            }
        }
        plain.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let (set, _) = *plain.first()?;
        let (clear, _) = *plain.get(1).unwrap_or(&plain[0]);
        let mut words = vec![0; end.div_ceil(u32::BITS) as usize];
        let mut others = Vec::new();
        for (number, verdict) in numbers() {
            if !verdict.conditional.is_empty() || ![set, clear].contains(&verdict.otherwise) {
                others.push((number, verdict));
            } else if verdict.otherwise == set {
                words[(number / u32::BITS) as usize] |= 1 << (number % u32::BITS);
            }
        }
        (others.len() <= Self::OTHERS).then_some(Table { set, clear, words, others, end, above })
    }
}

/// At most so many right answers to one question, so that jumps are short.
const ANSWERS: usize = 100;
/// From so many rules on that allow small values a table of these is shorter than to ask for each.
const SMALL_VALUES: usize = 16;

/// For each rule the steps of its conditions. Rules that follow each other and differ in the right answer only become one: the
/// default profile has one for each kind of socket.
fn blocks<'a>(rules: &'a [(Vec<Condition>, u32)]) -> Vec<(Vec<Vec<Step>>, u32)> {
    let mut blocks = Vec::new();
    let mut left = rules;
    while let [(conditions, action), rest @ ..] = left {
        let [one] = conditions.as_slice() else {
            blocks.push((conditions.iter().map(Condition::steps).collect(), *action));
            left = rest;
            continue;
        };
        // The conditions of the rules that follow, for as long as they have only one that is like that, and lead to the same.
        let others = |like: &dyn Fn(&Condition) -> bool| -> Vec<&Condition> {
            let only = |(conditions, value): &'a (Vec<Condition>, u32)| match conditions.as_slice() {
                [other] if value == action && like(other) => Some(other),
                _ => None,
            };
            rest.iter().map_while(only).collect()
        };
        let small = others(&|other| one.is_small_like(other));
        let (steps, others) = if small.len() + 1 >= SMALL_VALUES {
            (one.steps_with_small(&small), small.len())
        } else {
            let mut answers = others(&|other| one.asks_like(other));
            answers.truncate(ANSWERS);
            (one.steps_with(&answers), answers.len())
        };
        blocks.push((vec![steps], *action));
        left = &rest[others..];
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
                Target::Over => 1,
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
