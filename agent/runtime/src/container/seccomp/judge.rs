//! What a compiled filter says of a system call, without asking the kernel.

use super::assemble::{
    AND, JUMP, JUMP_BIT, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, KEEP, KEEP_CONSTANT, KEEP_STORED,
    LOAD, LOAD_KEPT, RETURN, SHIFT, STORE,
};
use super::{Filter, syscalls};
use crate::sys::seccomp::Instruction;

/// Where the arguments begin in what a filter sees (`struct seccomp_data` in linux/seccomp.h).
const ARGUMENTS: u32 = 16;

impl Filter {
    /// Whether this call of one of the machine's own programs is simply let pass: with these arguments, or whatever they are.
    pub(crate) fn lets(&self, number: libc::c_long, args: Option<&[u64; 6]>) -> bool {
        let number = u32::try_from(number).ok();
        let verdict = number.and_then(|number| run(&self.program, syscalls::native().audit, number, args));
        verdict == Some(libc::SECCOMP_RET_ALLOW)
    }
}

/// Runs a program as the kernel does. Nothing when it looks at arguments that are not given, or is none of this crate's.
pub(super) fn run(program: &[Instruction], arch: u32, number: u32, args: Option<&[u64; 6]>) -> Option<u32> {
    let (mut at, mut a, mut x, mut own) = (0_usize, 0_u32, 0_u32, 0_u32);
    let load = |place: u32| match (place, args) {
        (0, _) => Some(number),
        (4, _) => Some(arch),
        (ARGUMENTS.., Some(args)) => {
            let word = (place - ARGUMENTS) as usize / 4;
            args.get(word / 2).map(|value| (value >> (word % 2 * 32)) as u32)
        }
        _ => None,
    };
    loop {
        let i = program.get(at)?;
        let branch = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
        at += 1;
        match i.code {
            LOAD => a = load(i.k)?,
            KEEP => x = a,
            KEEP_CONSTANT => x = i.k,
            LOAD_KEPT => a = x,
            STORE => own = a,
            KEEP_STORED => x = own,
            SHIFT => a = a.checked_shr(x)?,
            AND => a &= i.k,
            JUMP_BIT => at += branch(a & i.k != 0),
            JUMP => at += i.k as usize,
            JUMP_EQUAL => at += branch(a == i.k),
            JUMP_GREATER => at += branch(a > i.k),
            JUMP_GREATER_EQUAL => at += branch(a >= i.k),
            RETURN => return Some(i.k),
            _ => return None,
        }
    }
}
