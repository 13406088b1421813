//! `berth exec`.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use futures::SinkExt as _;
use futures::channel::mpsc;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, AttachedProcess, TerminalSize};
use rustix::termios::{OptionalActions, Termios};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};

use super::{client, logs, resource};
use crate::store::Kind;

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

/// Bytes under way in each direction.
const BUFFER: usize = 64 * 1024;

/// Runs a command in a container; its exit code becomes ours.
pub async fn run(client: &kube::Client, args: &ExecArgs) -> anyhow::Result<ExitCode> {
    let name = resource::pod_name(&args.pod)?;
    let namespace = args.namespace.name();
    let pod: Pod = client::get(client, &resource::path(Kind::Pod, Some(namespace), Some(name)), "application/json").await?;
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        bail!("cannot exec into a container in a completed pod; current phase is {phase}");
    }
    let container = args.container.clone().unwrap_or_else(|| logs::default_container(&pod));
    let mut tty = args.tty;
    if tty && !io::stdin().is_terminal() {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
        tty = false;
    }
    let params = AttachParams {
        container: Some(container),
        stdin: args.stdin,
        stdout: true,
        stderr: !tty,
        tty,
        max_stdin_buf_size: Some(BUFFER),
        max_stdout_buf_size: Some(BUFFER),
        max_stderr_buf_size: Some(BUFFER),
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let process = pods.exec(name, &args.command, &params).await?;
    let raw = if tty && args.stdin { Some(Raw::enter().context("cannot set the terminal to raw mode")?) } else { None };
    let result = attach(process).await;
    drop(raw);
    result
}

/// Copies all streams until the command has ended.
async fn attach(mut process: AttachedProcess) -> anyhow::Result<ExitCode> {
    let status = process.take_status();
    if let Some(sizes) = process.terminal_size() {
        tokio::spawn(follow_size(sizes));
    }
    if let Some(stdin) = process.stdin() {
        tokio::spawn(copy_input(stdin));
    }
    let out = process.stdout().map(|from| tokio::spawn(copy_output(from, Output::Stdout)));
    let err = process.stderr().map(|from| tokio::spawn(copy_output(from, Output::Stderr)));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    for copy in [out, err].into_iter().flatten() {
        copy.await??;
    }
    exit_code(status.context("the connection to the agent broke before the command ended")?)
}

#[derive(Clone, Copy)]
enum Output {
    Stdout,
    Stderr,
}

async fn copy_output(mut from: impl AsyncRead + Unpin, to: Output) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        match to {
            Output::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()?;
            }
            Output::Stderr => io::stderr().lock().write_all(bytes)?,
        }
    }
}

/// Ends quietly when our input ends or the command is gone; closing `to` tells the command.
async fn copy_input(mut to: impl tokio::io::AsyncWrite + Unpin) {
    let (sender, mut chunks) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
    // Reading a terminal cannot be interrupted, so it has a thread that may be left behind.
    std::thread::spawn(move || {
        let mut buffer = vec![0; BUFFER];
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
            let chunk = buffer.get(..count).unwrap_or_default().to_vec();
            if sender.blocking_send(chunk).is_err() {
                return;
            }
        }
    });
    while let Some(chunk) = chunks.recv().await {
        if to.write_all(&chunk).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Tells the command our terminal's size, now and whenever it changes.
async fn follow_size(mut sizes: mpsc::Sender<TerminalSize>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Ok(size) = rustix::termios::tcgetwinsize(io::stdin()) {
            let size = TerminalSize { width: size.ws_col, height: size.ws_row };
            if sizes.send(size).await.is_err() {
                return;
            }
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

fn exit_code(status: Status) -> anyhow::Result<ExitCode> {
    if status.status.as_deref() == Some("Success") {
        return Ok(ExitCode::SUCCESS);
    }
    let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
    let code = causes.iter().find(|c| c.reason.as_deref() == Some("ExitCode")).and_then(|c| c.message.as_deref());
    match code.and_then(|code| code.parse::<u8>().ok()) {
        Some(code) => {
            eprintln!("command terminated with exit code {code}");
            Ok(ExitCode::from(code))
        }
        None => bail!(status.message.unwrap_or_else(|| "the command failed for an unknown reason".to_owned())),
    }
}

/// The terminal in raw mode, until dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> io::Result<Raw> {
        let before = rustix::termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}
