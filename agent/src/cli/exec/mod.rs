//! `berth exec`.

pub mod quick;
pub mod session;
pub mod terminal;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::client::Connection;

use super::{client, logs, resource};
use crate::store::Kind;
use terminal::Raw;

/// Words of `berth exec`.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// The pod
    pod: String,
    /// The container; the pod's first if not given
    #[arg(short, long)]
    container: Option<String>,
    #[command(flatten)]
    namespace: resource::Namespace,
    /// Pass standard input on to the command
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Run the command on a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// Program and arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs a command in a container; its exit code becomes ours.
///
/// The agent is asked once. Only when it refuses, the pod is looked at: which of its containers is meant, or what to say.
pub async fn run(client: &kube::Client, args: &ExecArgs) -> anyhow::Result<ExitCode> {
    let mut tty = args.tty;
    if tty && !io::stdin().is_terminal() {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
        tty = false;
    }
    let connection = match connect(client, args, args.container.as_deref(), tty).await? {
        Err(kube::Error::Api(status)) if status.code == 400 => {
            let container = choose(client, args).await?;
            let container = container.ok_or(kube::Error::Api(status))?;
            connect(client, args, Some(&container), tty).await??
        }
        other => other?,
    };
    let raw = if tty && args.stdin {
        Some(Raw::enter().context("cannot set the terminal to raw mode")?)
    } else {
        None
    };
    let result = session::run(connection, session::Streams::own(args.stdin, tty)).await;
    // Before anything is printed.
    drop(raw);
    exit_code(result?)
}

fn pod_path(args: &ExecArgs) -> anyhow::Result<String> {
    let name = resource::pod_name(&args.pod)?;
    Ok(resource::path(Kind::Pod, Some(args.namespace.name()), Some(name)))
}

/// What is asked of the agent.
fn request_path(args: &ExecArgs, container: Option<&str>, tty: bool) -> anyhow::Result<String> {
    let mut query: Vec<(&str, &str)> = args.command.iter().map(|word| ("command", word.as_str())).collect();
    query.extend(container.map(|name| ("container", name)));
    let flags = [("stdout", true), ("stdin", args.stdin), ("tty", tty), ("stderr", !tty)];
    query.extend(flags.iter().filter(|(_, set)| *set).map(|(name, _)| (*name, "true")));
    Ok(resource::with_query(&format!("{}/exec", pod_path(args)?), &query))
}

async fn connect(
    client: &kube::Client,
    args: &ExecArgs,
    container: Option<&str>,
    tty: bool,
) -> anyhow::Result<kube::Result<Connection>> {
    let request = Request::get(request_path(args, container, tty)?).body(Vec::new())?;
    Ok(client.connect(request).await)
}

/// The container that is meant by who has named none; none for who has.
async fn choose(client: &kube::Client, args: &ExecArgs) -> anyhow::Result<Option<String>> {
    let pod: Pod = client::get(client, &pod_path(args)?, "application/json").await?;
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        bail!("cannot exec into a container in a completed pod; current phase is {phase}");
    }
    Ok(args.container.is_none().then(|| logs::default_container(&pod)))
}

/// Runs a command that is not the person's own, such as `tar`, with these streams.
///
/// # Errors
/// When it cannot be run, or ends with another code than 0.
pub async fn helper(
    client: &kube::Client,
    path: &str,
    container: &str,
    command: &[&str],
    streams: session::Streams,
) -> anyhow::Result<()> {
    let mut query: Vec<(&str, &str)> = command.iter().map(|word| ("command", *word)).collect();
    query.extend([("container", container), ("stdout", "true"), ("stderr", "true")]);
    query.extend(streams.stdin.is_some().then_some(("stdin", "true")));
    let request = Request::get(resource::with_query(&format!("{path}/exec"), &query)).body(Vec::new())?;
    let status = session::run(client.connect(request).await?, streams).await?;
    if status.status.as_deref() == Some("Success") {
        return Ok(());
    }
    bail!("{}: {}", command.first().unwrap_or(&""), status.message.unwrap_or_else(|| "failed".to_owned()))
}

/// The exit code that a result means.
///
/// # Errors
/// When the command could not be run.
pub fn exit_code(status: Status) -> anyhow::Result<ExitCode> {
    if status.status.as_deref() == Some("Success") {
        return Ok(ExitCode::SUCCESS);
    }
    let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
    let code =
        causes.iter().find(|c| c.reason.as_deref() == Some("ExitCode")).and_then(|c| c.message.as_deref());
    match code.and_then(|code| code.parse::<u8>().ok()) {
        Some(code) => {
            eprintln!("command terminated with exit code {code}");
            Ok(ExitCode::from(code))
        }
        None => {
            bail!(status.message.unwrap_or_else(|| "the command failed for an unknown reason".to_owned()))
        }
    }
}
