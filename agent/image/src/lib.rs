//! Images for Berth: references, the registry client, the content store, unpacked layers for overlayfs.
//!
//! [`Store`] is the whole interface. Where to look inside:
//!
//! * `reference`, `platform`, `manifest`, `config`: what images are called, and the documents they are made of.
//! * `store`: the folder on disk. `layout` names its files, `index` says what counts, `session` makes the work of one
//!   pull, load or import count all at once, `keys` lets concurrent ones share work, `sweep` removes what no image
//!   needs.
//! * `unpack`: a layer's tar becomes a folder for overlayfs. `member` reads and checks, `entry` writes, `tree` keeps
//!   every path inside the layer, `settle` does what depends on the layers below.
//! * `pull`, `load`, `import`, `save`: how images come and go.
//!
//! Blobs are streamed through `stream` (compression, hashing, bounds); nothing of a layer's size is held in memory.

mod config;
mod credentials;
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
pub use credentials::Credentials;
pub use error::{Error, Result};
pub use image::Image;
pub use options::{ImportOptions, LoadOptions, PullOptions, Removed};
pub use progress::{Progress, ProgressFn, Status};
pub use reference::{default_pull_policy_is_always, normalize};
pub use store::Store;
