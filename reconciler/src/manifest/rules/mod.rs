//! Checks of values, as `pkg/apis/core/validation` of Kubernetes makes them, in its words. They run on objects whose defaults
//! are filled in.

pub(crate) mod affinity;
pub(crate) mod apparmor;
pub(crate) mod claim;
pub(crate) mod container;
pub(crate) mod data;
pub(crate) mod env;
pub(crate) mod ephemeral;
pub(crate) mod meta;
pub(crate) mod names;
pub(crate) mod network;
pub(crate) mod policy;
pub(crate) mod probe;
pub(crate) mod resources;
pub(crate) mod security;
pub(crate) mod service;
pub(crate) mod spec;
pub(crate) mod sysctls;
pub(crate) mod volume;
