//! Container logs in the CRI format: `<RFC 3339 time> stdout|stderr F|P <text>`.
//!
//! [`Writer`] is the shim's end: it splits what a container writes into lines, stamps them, and rotates the file by
//! size. [`Reader`] is the agent's: from the last N lines or a point in time to the end, then onwards as the log grows,
//! across rotations. [`Follow`] drives a reader by inotify.

#[cfg(feature = "agent")]
mod follow;
mod reader;
mod record;
mod rotate;
mod tail;
mod writer;

#[cfg(feature = "agent")]
pub use follow::Follow;
pub use reader::{Query, Reader, read_to};
pub use record::{Record, Stream, parse};
pub use writer::{Loss, MAX_LINE, Writer};
