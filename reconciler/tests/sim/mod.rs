//! A deterministic simulator: virtual time, a scripted node built on the planner's pure functions, and seeds.

pub mod history;
pub mod pods;
pub mod rng;
pub mod rules;
pub mod world;
