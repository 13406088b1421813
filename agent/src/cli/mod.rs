//! The command line: verbs and flags are kubectl's where kubectl has them.
//!
//! The tour: one file per verb, with its arguments and what it does; [`client`] is the way to the agent,
//! [`resource`] reads what a person calls an object, [`output`] prints. `berth image` works on the store's folder
//! and needs no agent.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::config::AgentArgs;

mod apply;
mod attach;
mod check;
mod client;
mod completions;
mod cp;
mod debug;
mod delete;
mod describe;
mod events;
mod exec;
mod failure;
mod files;
mod get;
mod image;
mod kubeconfig;
mod logs;
mod man;
mod output;
mod pause;
mod port_forward;
mod resource;
mod top;
mod version;
mod wait;

/// Where the agent is looked for when nothing else is said.
const DEFAULT_SOCKET: &str = "/run/berth/berth.sock";

/// A Kubernetes node in one binary.
#[derive(Debug, Parser)]
#[command(name = "berth", version, propagate_version = false, disable_help_subcommand = true)]
pub struct Cli {
    /// Socket of the agent [default: /run/berth/berth.sock]
    #[arg(long, global = true, value_name = "PATH", env = "BERTH_SOCKET")]
    pub socket: Option<PathBuf>,
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
    /// List objects: pods, services, configmaps and the other kinds
    Get(get::GetArgs),
    /// Show one pod or node with all there is to know about it
    Describe(describe::DescribeArgs),
    /// List what happened, the newest last
    Events(events::EventsArgs),
    /// Print the log of a container
    Logs(logs::LogsArgs),
    /// Run a command in a container
    Exec(exec::ExecArgs),
    /// Look on, and type into, a running container
    Attach(attach::AttachArgs),
    /// Add a container with tools to a running pod, to look into it
    Debug(debug::DebugArgs),
    /// Copy files and folders into and out of containers
    Cp(cp::CpArgs),
    /// Forward local ports to a pod
    PortForward(port_forward::PortForwardArgs),
    /// Freeze all processes of pods
    Pause(pause::PauseArgs),
    /// Let the processes of paused pods go on
    Resume(pause::PauseArgs),
    /// Wait until objects are in a state, or gone
    Wait(wait::WaitArgs),
    /// Check manifest files without an agent
    Check(check::CheckArgs),
    /// Images in the store: pull, load, import ...
    Image(image::ImageArgs),
    /// What pods, or the machine, use at the moment
    Top(top::TopArgs),
    /// Print a kubeconfig with which kubectl talks to this node
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Print the versions of this program and of the agent
    Version(version::VersionArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual page
    Man(man::ManArgs),
}

/// `berth exec` alone, which scripts call in loops: its words are read without those of all other verbs.
#[derive(Debug, Parser)]
#[command(name = "berth", disable_help_subcommand = true)]
struct Quick {
    #[arg(long, global = true, env = "BERTH_SOCKET")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: QuickCommand,
}

#[derive(Debug, Subcommand)]
enum QuickCommand {
    Exec(exec::ExecArgs),
}

/// The program: parses the words of this process and does what they say.
pub fn main() -> ExitCode {
    // What is wrong with the words is said below, where all verbs are known.
    if std::env::args_os().nth(1).is_some_and(|word| word == "exec")
        && let Ok(Quick { socket, command: QuickCommand::Exec(args) }) = Quick::try_parse()
    {
        return run(Cli { socket, command: Command::Exec(args) });
    }
    match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(error) => {
            // A reader that has left does not want the help text any more.
            let _ = error.print();
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(2),
            }
        }
    }
}

/// Does what was asked and gives the exit code: 0 done, 1 failed, 2 wrong words; that of the command for `exec`.
pub fn run(cli: Cli) -> ExitCode {
    let socket = cli.socket.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    let result = match cli.command {
        Command::Agent(args) => {
            crate::serve::run(&AgentArgs { socket: cli.socket, ..*args }).map(|()| ExitCode::SUCCESS)
        }
        Command::Check(args) => check::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Image(args) => image::run(args, &socket, cli.socket.is_some()),
        other => client_verb(&socket, other),
    };
    result.unwrap_or_else(|error| failure::report(&error))
}

/// Runs a verb that talks to the agent.
fn client_verb(socket: &std::path::Path, command: Command) -> anyhow::Result<ExitCode> {
    if let Command::Exec(args) = &command
        && let Some(result) = exec::quick::run(socket, args)
    {
        return result;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let client = client::connect(socket);
        match command {
            Command::Apply(args) => apply::run(&client, &args).await,
            Command::Delete(args) => delete::run(&client, &args).await,
            Command::Get(args) => get::run(&client, &args).await,
            Command::Describe(args) => describe::run(&client, &args).await,
            Command::Logs(args) => logs::run(&client, &args).await,
            Command::Exec(args) => exec::run(&client, &args).await,
            Command::Attach(args) => attach::run(&client, &args).await,
            Command::Debug(args) => debug::run(&client, &args).await,
            Command::Cp(args) => cp::run(&client, &args).await,
            Command::PortForward(args) => port_forward::run(&client, &args).await,
            Command::Pause(args) => pause::run(&client, &args, true).await,
            Command::Resume(args) => pause::run(&client, &args, false).await,
            Command::Wait(args) => wait::run(&client, &args).await,
            Command::Events(args) => events::run(&client, &args).await,
            Command::Top(args) => top::run(&client, &args).await,
            Command::Kubeconfig(args) => kubeconfig::run(&client, &args).await,
            Command::Version(args) => version::run(&client, &args).await,
            Command::Agent(_)
            | Command::Check(_)
            | Command::Completions(_)
            | Command::Image(_)
            | Command::Man(_) => {
                unreachable!("done by run() without a client")
            }
        }
    });
    // A read of standard input that nobody waits for any more must not keep the process.
    runtime.shutdown_background();
    result
}
