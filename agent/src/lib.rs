//! The agent: turns the reconciler's actions into effects, serves the node's API, and is its command line.
//!
//! The tour: [`cli`] parses words and runs the client verbs; [`serve`] is `berth agent`: it puts together [`config`], the
//! [`node`] (the reconciler's actions, carried out with shims, images and the pod network), the [`backend`] of the
//! [`api`], manifest folders and [`metrics`]. [`oci`] turns a container of a pod into an OCI specification, [`oci_cli`] is the command line of an OCI runtime,
//! [`volumes`] and [`etcfiles`] make what it mounts. [`store`] holds the objects that the API serves, [`configs`] the ConfigMaps and
//! Secrets in use, [`hub`] what other nodes have here, [`events`] records what happened, [`facts`] is what there is to know of the machine,
//! [`pki`] the certificates with which the API is served over TLS, [`cluster`] makes the machine a node of a cluster.

pub mod api;
pub mod apparmor;
pub mod backend;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod configs;
pub mod dns;
mod durable;
pub mod etcfiles;
pub mod events;
pub mod facts;
pub mod hub;
pub mod metrics;
pub mod node;
pub mod oci;
pub mod oci_cli;
pub mod pki;
pub mod policies;
pub mod pressure;
pub mod selinux;
pub mod serve;
pub mod services;
mod shared;
pub mod shim_program;
pub mod store;
pub mod volumes;

pub use node::kubepods::HOLD as HOLD_SCOPE;

/// What `berth hold-scope PATH` does, which the agent calls itself: see [`node::kubepods::Hold`].
pub fn hold_scope(mut args: impl Iterator<Item = std::ffi::OsString>) -> std::process::ExitCode {
    let path = args.next().and_then(|path| path.into_string().ok()).unwrap_or_default();
    ended(node::kubepods::hold(&path))
}

/// What `berth mount-image` does, which the agent calls itself for image volumes of pods with users of their own.
pub fn mount_image(args: impl Iterator<Item = std::ffi::OsString>) -> std::process::ExitCode {
    ended(volumes::mount_image(args))
}

fn ended(outcome: anyhow::Result<()>) -> std::process::ExitCode {
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
