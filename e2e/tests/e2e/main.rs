//! Tests of the whole binary, each on a machine of its own. See the tour in `berth_e2e`.
#![allow(clippy::unwrap_used)]

mod changes;
mod claims;
mod cni_node;
mod cni_plugin;
mod commands;
mod config_objects;
mod contexts;
mod demo;
mod downward;
mod dual_services;
mod escape;
mod exec;
mod files;
mod images;
mod isolation;
mod kills;
mod lifecycle;
mod logs;
mod machine;
mod main_job;
mod metrics;
mod names;
mod network;
mod networks;
mod oci_runtime;
mod pause;
mod probes;
mod runtimes;
mod scale;
mod services;
mod shutdown;
mod smoke;
mod streams;
mod users;
mod volumes;
