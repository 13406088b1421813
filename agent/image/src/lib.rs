//! Images for Berth: references, the registry client, the content store, unpacked layers for overlayfs.
//!
//! [`Store`] is the whole interface.

mod config;
mod error;
mod image;
mod options;
mod progress;
mod reference;
mod store;

pub use config::ImageConfig;
pub use error::{Error, Result};
pub use image::Image;
pub use options::{ImportOptions, LoadOptions, PullOptions, Removed};
pub use progress::{Progress, ProgressFn, Status};
pub use reference::{default_pull_policy_is_always, normalize};
pub use store::Store;
