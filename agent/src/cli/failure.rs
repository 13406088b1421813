//! How a verb ends: errors that help, and exit codes.

use std::io;
use std::path::Path;
use std::process::ExitCode;

/// The words were wrong in a way that only shows once they are put together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The agent does not answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach the agent at {}: {reason}; is \"berth agent\" running? (--socket or $BERTH_SOCKET names another socket)", path.display())]
pub struct Unreachable {
    /// The socket.
    pub path: Box<Path>,
    /// Why.
    pub reason: String,
}

/// Everything that went wrong has been printed already.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
pub struct Reported;

/// Prints what went wrong and gives the exit code: 1 for a failure, 2 for wrong words, 0 when the reader of our
/// output has left, as it is meant to be with `| head`.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(is_broken_pipe)) {
        return ExitCode::SUCCESS;
    }
    if error.is::<Reported>() {
        return ExitCode::FAILURE;
    }
    eprintln!("berth: {}", super::output::visible(&text(error), true));
    if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// Whether no agent answers at the socket.
pub fn is_unreachable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Unreachable>())
}

fn is_broken_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// The error in one line, each cause once.
fn text(error: &anyhow::Error) -> String {
    for cause in error.chain() {
        if let Some(unreachable) = cause.downcast_ref::<Unreachable>() {
            return unreachable.to_string();
        }
    }
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let part = match cause.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => format!("{} ({})", status.message, status.reason),
            _ => cause.to_string(),
        };
        // Many errors print their cause themselves.
        if !parts.last().is_some_and(|last| last.contains(&part)) {
            parts.push(part);
        }
        if matches!(cause.downcast_ref(), Some(kube::Error::Api(_))) {
            break;
        }
    }
    parts.join(": ")
}
