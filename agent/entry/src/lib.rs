//! The words with which callers of an OCI runtime make, start, ask for, kill and delete containers, understood before
//! anything else of the program has run.
//!
//! `berth` is a big program, and a C library that has to find out what processor it runs on takes longer to start than many
//! of these verbs take to be done. All of them are done by the small program that `berth` carries (see
//! `berth_runtime::shim::Program`). So the first instructions of `berth` are [`sys::hand_on`]: when the words are [of this
//! kind](words) and the small program is at hand, it takes the place of `berth` at once, and reads the same words by the
//! same rules. In every other case `berth` starts as programs do.
//!
//! What runs that early may not call the C library, not even for `memcpy`, whose address is not known before the library has
//! started. Hence the attribute below, by which the compiler makes no such calls of loops, and the plain style: loops instead
//! of comparisons of slices, no array that would have to be filled or copied. (The workspace's Cargo.toml has this crate
//! optimized in debug builds as well, so that both are the same code.)
#![cfg_attr(not(test), no_std)]
#![no_builtins]

pub mod sys;
pub mod words;
