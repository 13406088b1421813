//! The first instructions of `berth`.
#![allow(unsafe_code)]

use berth::shim_program;
use berth_entry::sys::{Kept, hand_on};

static KEPT: Kept = Kept { name: shim_program::FILE, size: shim_program::BYTES.len() };

/// Where the kernel lets the program begin, see build.rs: perhaps another program takes its place at once; otherwise the C
/// library starts this one as usual. It finds the stack and `rdx` (a function to call at the end, System V ABI) as they were.
///
/// # Safety
/// Not to be called: there is nobody to return to.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn berth_start() -> ! {
    core::arch::naked_asm!(
        "mov rdi, rsp",
        "lea rsi, [rip + {kept}]",
        "mov rbx, rsp",
        "mov r12, rdx",
        "and rsp, -16",
        "call {hand_on}",
        "mov rsp, rbx",
        "mov rdx, r12",
        "jmp _start",
        kept = sym KEPT,
        hand_on = sym hand_on,
    )
}
