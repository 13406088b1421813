//! The small process per pod that is the parent of its containers.
//!
//! The tour: [`spawn`] is how the agent starts one, [`client`] how it talks to it, [`proto`] what they say. [`main`] is
//! the process itself.

use std::ffi::OsString;
use std::process::ExitCode;

pub mod client;
pub mod proto;
mod spawn;

pub use spawn::{Error as SpawnError, ShimProcess, SpawnOptions, spawn};

/// The shim's process: `berth shim --dir DIR [--hostname H] [--domainname D] [--net new|host] [--ipc new|host]
/// [--uts new|host] [--version]`, without the first two words. Must be called before any thread is started.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let _ = args;
    ExitCode::FAILURE
}
