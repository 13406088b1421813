//! The eBPF program that guards the devices of a v2 cgroup.
//!
//! The rules are first brought into the form that v1 keeps in the kernel: a default and exceptions from it. The
//! program then compares a request (type, access, major, minor) with one exception after the other.

use crate::sys::bpf::Instruction;

/// Access bits as the kernel passes them (`BPF_DEVCG_ACC_*`).
pub const MKNOD: u32 = 1;
/// See [`MKNOD`].
pub const READ: u32 = 2;
/// See [`MKNOD`].
pub const WRITE: u32 = 4;

/// A kind of device file, numbered as the kernel passes it (`BPF_DEVCG_DEV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Block device.
    Block = 1,
    /// Character device.
    Char = 2,
}

/// One exception from a policy's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Which kind of device file.
    pub kind: Kind,
    /// The major number; `None` is every number.
    pub major: Option<u32>,
    /// The minor number; `None` is every number.
    pub minor: Option<u32>,
    /// Bits of access.
    pub access: u32,
}

/// What is allowed: all but the exceptions, or nothing but the exceptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    allow_by_default: bool,
    exceptions: Vec<Exception>,
}

impl Policy {
    /// What is allowed beyond nothing; `None` when everything is that is not denied.
    pub fn allowed(&self) -> Option<&[Exception]> {
        (!self.allow_by_default).then_some(&self.exceptions)
    }

    /// Adds a rule that wins over those before it. Without a kind it is about every device and sets the default.
    pub fn add(
        &mut self,
        allow: bool,
        kind: Option<Kind>,
        major: Option<u32>,
        minor: Option<u32>,
        access: u32,
    ) {
        let Some(kind) = kind else {
            *self = Policy { allow_by_default: allow, exceptions: Vec::new() };
            return;
        };
        let same =
            self.exceptions.iter_mut().find(|e| e.kind == kind && e.major == major && e.minor == minor);
        match same {
            Some(e) if allow != self.allow_by_default => e.access |= access,
            Some(e) => e.access &= !access,
            None if allow != self.allow_by_default => {
                self.exceptions.push(Exception { kind, major, minor, access });
            }
            None => {}
        }
        self.exceptions.retain(|e| e.access != 0);
    }
}

const R0: u8 = 0;
const R1: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const MOVE_VALUE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const AND_32: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x77; // BPF_ALU64 | BPF_RSH | BPF_K
const JUMP_NOT_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const JUMP_EQUAL: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const EXIT: u8 = 0x95;

fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: dst | src << 4, offset, immediate }
}

/// The program: the context holds `access << 16 | type`, major and minor in three words.
pub fn assemble(policy: &Policy) -> Vec<Instruction> {
    let mut program = vec![
        op(LOAD_WORD, TYPE, R1, 0, 0),
        op(MOVE, ACCESS, TYPE, 0, 0),
        op(AND_32, TYPE, 0, 0, 0xffff),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(LOAD_WORD, MAJOR, R1, 4, 0),
        op(LOAD_WORD, MINOR, R1, 8, 0),
    ];
    for exception in &policy.exceptions {
        program.extend(exception_block(exception, policy.allow_by_default));
    }
    program.extend([op(MOVE_VALUE, R0, 0, 0, i32::from(policy.allow_by_default)), op(EXIT, 0, 0, 0, 0)]);
    program
}

/// Returns the opposite of the default when the exception covers the request, else falls through. An exception that
/// allows must cover all of the access asked for; one that denies needs to cover only some of it.
fn exception_block(e: &Exception, allow_by_default: bool) -> Vec<Instruction> {
    let mut tests: Vec<(u8, i32)> = vec![(TYPE, e.kind as i32)];
    tests.extend(e.major.map(|n| (MAJOR, n as i32)));
    tests.extend(e.minor.map(|n| (MINOR, n as i32)));
    let result = [op(MOVE_VALUE, R0, 0, 0, i32::from(!allow_by_default)), op(EXIT, 0, 0, 0, 0)];
    let covered = if allow_by_default { e.access } else { !e.access & (MKNOD | READ | WRITE) };
    let skip = if allow_by_default { JUMP_EQUAL } else { JUMP_NOT_EQUAL };
    let mut tail = vec![
        op(MOVE, SCRATCH, ACCESS, 0, 0),
        op(AND_32, SCRATCH, 0, 0, covered as i32),
        op(skip, SCRATCH, 0, 2, 0),
    ];
    tail.extend(result);
    let count = tests.len();
    let mut block: Vec<Instruction> = tests
        .iter()
        .enumerate()
        .map(|(i, (register, value))| {
            let rest = count - i - 1 + tail.len();
            op(JUMP_NOT_EQUAL, *register, 0, rest as i16, *value)
        })
        .collect();
    block.extend(tail);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would; only the operations above exist.
    fn run(program: &[Instruction], kind: Kind, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind as u32, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0;
        loop {
            let i = program[at];
            let (dst, src) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            // The kernel extends immediates by their sign before it compares 64 bits.
            let immediate = i64::from(i.immediate) as u64;
            at += 1;
            match i.code {
                LOAD_WORD => registers[dst] = u64::from(context[i.offset as usize / 4]),
                MOVE => registers[dst] = registers[src],
                MOVE_VALUE => registers[dst] = immediate,
                AND_32 => registers[dst] = u64::from(registers[dst] as u32 & i.immediate as u32),
                SHIFT_RIGHT => registers[dst] >>= i.immediate,
                JUMP_NOT_EQUAL if registers[dst] != immediate => at += i.offset as usize,
                JUMP_EQUAL if registers[dst] == immediate => at += i.offset as usize,
                JUMP_NOT_EQUAL | JUMP_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("unknown operation {other:#x}"),
            }
        }
    }

    #[test]
    fn a_list_of_allowed_devices() {
        let mut policy = Policy::default();
        policy.add(false, None, None, None, 7);
        policy.add(true, Some(Kind::Char), Some(1), Some(3), READ | WRITE);
        policy.add(true, Some(Kind::Char), Some(1), Some(3), MKNOD);
        policy.add(true, Some(Kind::Char), Some(136), None, READ | WRITE);
        policy.add(true, Some(Kind::Block), None, None, MKNOD);
        policy.add(false, Some(Kind::Char), Some(1), Some(3), WRITE);
        let program = assemble(&policy);
        for (kind, access, major, minor, allowed) in [
            (Kind::Char, READ, 1, 3, true),
            (Kind::Char, READ | MKNOD, 1, 3, true),
            (Kind::Char, READ | WRITE, 1, 3, false),
            (Kind::Char, READ, 1, 5, false),
            (Kind::Char, READ | WRITE, 136, 9, true),
            (Kind::Char, MKNOD, 136, 9, false),
            (Kind::Block, MKNOD, 8, 0, true),
            (Kind::Block, READ, 8, 0, false),
        ] {
            assert_eq!(
                run(&program, kind, access, major, minor),
                allowed,
                "{kind:?} {access} {major}:{minor}"
            );
        }
    }

    #[test]
    fn a_list_of_denied_devices() {
        let mut policy = Policy::default();
        policy.add(true, None, None, None, 7);
        policy.add(false, Some(Kind::Block), Some(8), None, WRITE);
        let program = assemble(&policy);
        assert!(run(&program, Kind::Block, READ, 8, 1));
        assert!(!run(&program, Kind::Block, READ | WRITE, 8, 1));
        assert!(run(&program, Kind::Char, WRITE, 8, 1));
    }
}
