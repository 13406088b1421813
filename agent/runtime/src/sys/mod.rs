//! System calls that need `unsafe`: the only place of this crate where it is allowed.
#![allow(unsafe_code)]

#[cfg(feature = "agent")]
pub mod agent_io;
pub mod bpf;
pub mod credentials;
#[cfg(feature = "agent")]
pub mod heap;
pub mod mount;
#[cfg(feature = "agent")]
pub mod names;
pub mod process;
pub mod scheduling;
pub mod scratch;
pub mod seccomp;
pub mod sharing;
pub mod shim_io;
pub mod shim_process;
pub mod terminal;

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;

/// Turns the result of a system call into a value or the error that it left behind.
fn check(result: libc::c_long) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A string as the kernel wants it.
pub fn cstring(value: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(value.as_ref().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
