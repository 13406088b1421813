//! Memory of a long-lived process: little of it, and given back.

pub use crate::sys::heap::{forget_program, keep_small, trim};
