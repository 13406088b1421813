//! A deterministic simulator: virtual time, a scripted machine, the planner's pure functions, and seeds.
//!
//! A [`History`] is one pod's life. `pods` makes the pod, `world` is the machine and `acts` what the agent's steps do to
//! it, `chaos` is what goes wrong, `rules` what must hold at every step, `settled` what must be in the end. [`Bug`]
//! plants faults between the planner and the machine, to see whether the rules catch them.

mod acts;
mod bugs;
mod chaos;
mod history;
mod pods;
mod rng;
mod rules;
mod settled;
mod world;

pub use self::bugs::Bug;
pub use self::history::{Broken, History};
