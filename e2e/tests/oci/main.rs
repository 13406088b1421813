//! What the runtime-spec, and the callers of runtimes, want of the command line: `berth-oci` against bundles of its own.
//!
//! Each check is a test of `berth-oci`, and, so that the check itself is tested, one of crun or runc: whichever passes. What
//! neither of them does is marked `alone`, with the words of the specification in the check.
#![allow(clippy::unwrap_used)]

mod cgroups;
mod checks;
mod config;
mod hooks;
mod life;
mod mounts;
mod namespaces;
mod rootless;
mod words;
