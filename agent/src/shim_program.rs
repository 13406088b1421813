//! The small static program that is part of this one, see `build.rs`: shims, and `berth-oci` when it makes a process.

/// The program.
pub static BYTES: &[u8] = include_bytes!(env!("BERTH_SHIM_PROGRAM"));

/// The name of the file in which `berth-oci` keeps it. Other builds of it have another.
pub const FILE: &str = concat!("program~", env!("BERTH_SHIM_DIGEST"));
