//! See the crate tour.
