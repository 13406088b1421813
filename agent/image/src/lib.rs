//! Images for Berth: references, the registry client, the content store, unpacked layers for overlayfs.
//!
//! [`Store`] is the whole interface.

mod config;
mod error;
mod image;
mod import;
mod load;
mod manifest;
mod options;
mod platform;
mod progress;
mod pull;
mod reference;
mod save;
mod store;
mod stream;
mod unpack;

pub use config::ImageConfig;
pub use error::{Error, Result};
pub use image::Image;
pub use options::{ImportOptions, LoadOptions, PullOptions, Removed};
pub use progress::{Progress, ProgressFn, Status};
pub use reference::{default_pull_policy_is_always, normalize};
pub use store::Store;
