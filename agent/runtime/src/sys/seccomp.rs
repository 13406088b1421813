//! Loading a seccomp filter, see seccomp(2).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::check;

/// One instruction of a classic BPF program, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// A program as the kernel takes it, `struct sock_fprog`. Its instructions must outlive it.
#[repr(C)]
#[derive(Debug)]
pub struct Program {
    len: u16,
    filter: *const Instruction,
}

impl Program {
    /// # Errors
    /// `E2BIG` when it has more instructions than can be said.
    pub fn of(filter: &[Instruction]) -> io::Result<Program> {
        let len = u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
        Ok(Program { len, filter: filter.as_ptr() })
    }
}

/// Installs a filter on the calling thread with `SECCOMP_FILTER_FLAG_*` flags. Returns the listener if they ask for one.
pub fn install(filter: &[Instruction], flags: u64) -> io::Result<Option<OwnedFd>> {
    let program = Program::of(filter)?;
    // SAFETY: the program points to `len` instructions in the kernel's layout.
    let result = check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })?;
    // SAFETY: with this flag the result is a new descriptor.
    Ok((flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0)
        .then(|| unsafe { OwnedFd::from_raw_fd(result as RawFd) }))
}
