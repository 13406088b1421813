//! A shim and its containers on the real kernel. Needs root.
#![allow(clippy::unwrap_used)]

mod attached;
mod exec;
mod harness;
mod hostile;
mod life;
mod memory;
mod output;
mod paused;
mod process;
mod run;
mod shared_pids;
mod users;
