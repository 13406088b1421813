//! A shim and its containers on the real kernel. Needs root.
#![allow(clippy::unwrap_used)]

mod exec;
mod harness;
mod hostile;
mod life;
mod output;
mod process;
