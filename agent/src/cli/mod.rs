//! The command line: verbs and flags are kubectl's where kubectl has them.
//!
//! The tour: one file per verb, with its arguments and what it does; [`client`] is the way to the agent,
//! [`resource`] reads what a person calls an object, [`output`] prints. `berth image` works on the store's folder
//! and needs no agent.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::AgentArgs;

mod apply;
mod check;
mod client;
mod completions;
mod delete;
mod describe;
mod exec;
mod failure;
mod files;
mod get;
mod image;
mod logs;
mod output;
mod resource;
mod version;
mod wait;

/// A Kubernetes node in one binary.
#[derive(Debug, Parser)]
#[command(name = "berth", version, propagate_version = false, disable_help_subcommand = true)]
pub struct Cli {
    /// Socket of the agent
    #[arg(long, global = true, value_name = "PATH", env = "BERTH_SOCKET", default_value = "/run/berth/berth.sock")]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node: keep the pods of the manifest folders running and serve the API
    Agent(Box<AgentArgs>),
    /// Create or update the objects of manifest files
    Apply(apply::ApplyArgs),
    /// Delete objects, by name or as manifest files list them
    Delete(delete::DeleteArgs),
    /// List objects: pods, nodes, events, configmaps, secrets, namespaces
    Get(get::GetArgs),
    /// Show one pod or node with all there is to know about it
    Describe(describe::DescribeArgs),
    /// Print the log of a container
    Logs(logs::LogsArgs),
    /// Run a command in a container
    Exec(exec::ExecArgs),
    /// Wait until objects are in a state, or gone
    Wait(wait::WaitArgs),
    /// Check manifest files without an agent
    Check(check::CheckArgs),
    /// Images in the store: pull, load, import ...
    Image(image::ImageArgs),
    /// Print the versions of this program and of the agent
    Version(version::VersionArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}
