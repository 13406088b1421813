//! Tests of the whole binary, each on a machine of its own. See the tour in `berth_e2e`.
#![allow(clippy::unwrap_used)]

mod machine;
