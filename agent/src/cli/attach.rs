//! `berth attach`.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use http::Request;
use k8s_openapi::api::core::v1::Pod;

use super::exec::session::{self, Streams};
use super::exec::terminal::Raw;
use super::{client, exec, logs, resource};
use crate::store::Kind;

/// Words of `berth attach`.
#[derive(Args, Debug)]
pub struct AttachArgs {
    /// The pod
    pod: String,
    /// The container; the pod's first if not given
    #[arg(short, long)]
    container: Option<String>,
    #[command(flatten)]
    namespace: resource::Namespace,
    /// Pass standard input on to the container
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Standard input is a terminal, as the container's is
    #[arg(short = 't', long)]
    tty: bool,
}

impl AttachArgs {
    /// With standard input, to that container.
    pub fn to(pod: &str, container: &str, namespace: &str, tty: bool) -> Self {
        Self {
            pod: pod.to_owned(),
            container: Some(container.to_owned()),
            namespace: resource::Namespace { namespace: Some(namespace.to_owned()) },
            stdin: true,
            tty,
        }
    }
}

/// Shows what a running container writes, and gives it our input, until it ends.
pub async fn run(client: &kube::Client, args: &AttachArgs) -> anyhow::Result<ExitCode> {
    let name = resource::pod_name(&args.pod)?;
    let path = resource::path(Kind::Pod, Some(args.namespace.name()), Some(name));
    let pod: Pod = client::get(client, &path, "application/json").await?;
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        bail!("cannot attach a container in a completed pod; current phase is {phase}");
    }
    let container = args.container.clone().unwrap_or_else(|| logs::default_container(&pod));
    let Some((has_stdin, has_tty)) = streams_of(&pod, &container) else {
        bail!("container {container} not found in pod {name}")
    };
    if args.stdin && !has_stdin {
        bail!("container {container} has no open stdin (stdin: true is not set in the pod)");
    }
    if args.tty && !has_tty {
        eprintln!("Unable to use a TTY - container {container} did not allocate one");
    }
    let tty = args.tty && has_tty && io::stdin().is_terminal();
    let mut query = vec![("container", container.as_str()), ("stdout", "true")];
    let flags = [("stdin", args.stdin), ("tty", has_tty), ("stderr", !has_tty)];
    query.extend(flags.iter().filter(|(_, set)| *set).map(|(name, _)| (*name, "true")));
    let request = Request::get(resource::with_query(&format!("{path}/attach"), &query)).body(Vec::new())?;
    let connection = client.connect(request).await?;
    if tty {
        eprintln!("If you don't see a command prompt, try pressing enter.");
    }
    let raw = if tty && args.stdin {
        Some(Raw::enter().context("cannot set the terminal to raw mode")?)
    } else {
        None
    };
    let result = session::run(connection, Streams::own(args.stdin, tty)).await;
    // Before anything is printed.
    drop(raw);
    exec::exit_code(result?)
}

/// Whether a container has an open standard input, and a terminal.
fn streams_of(pod: &Pod, name: &str) -> Option<(bool, bool)> {
    let spec = pod.spec.as_ref()?;
    let plain = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let plain = plain.map(|c| (&c.name, c.stdin, c.tty));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (&c.name, c.stdin, c.tty));
    let (_, stdin, tty) = plain.chain(ephemeral).find(|(known, _, _)| *known == name)?;
    Some((stdin == Some(true), tty == Some(true)))
}
