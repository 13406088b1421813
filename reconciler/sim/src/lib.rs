//! The reconciler's deciding half, compiled by itself, and a simulator for it.
//!
//! The planner, the status and what they stand on come from `reconciler/src` as they are. Here they are optimised,
//! which a hundred thousand histories need and the rest of a debug build does not; and nothing that acts is within their
//! reach, neither a clock nor files nor a runtime. [`sim`] runs pods through random lives on a scripted machine.

#[path = "../../src/backoff.rs"]
pub mod backoff;
#[path = "../../src/node.rs"]
pub mod node;
#[path = "../../src/planner/mod.rs"]
pub mod planner;
#[path = "../../src/pod.rs"]
pub mod pod;
#[path = "../../src/quantity.rs"]
pub mod quantity;
#[path = "../../src/resources.rs"]
pub mod resources;
#[path = "../../src/shutdown.rs"]
pub mod shutdown;
#[path = "../../src/status/mod.rs"]
pub mod status;
#[path = "../../src/storage.rs"]
pub mod storage;

#[allow(clippy::unwrap_used, reason = "a simulator that cannot go on has found something")]
pub mod sim;
