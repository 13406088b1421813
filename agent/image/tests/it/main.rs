//! Tests of the store as a whole: real registries, real archives, real file systems. They need root, `docker-registry`,
//! `skopeo` and `umoci`.
#![allow(clippy::unwrap_used, missing_docs)]

mod archives;
mod crash;
mod hostile;
mod layers;
mod model;
mod names;
mod pull;
mod pull_faults;
mod space;
mod support;
