//! `pods/NAME/exec`: a command's input and output over a WebSocket or SPDY, see [`super::remote`] for the protocol.

use std::time::Duration;

use axum::extract::ws::Message;
use axum::response::Response;
use futures::StreamExt;
use http::request::Parts;

use super::params::Params;
use super::remote::{Input, Wanted};
use super::write::Target;
use super::{Api, ApiError, ExecRequest, log, remote};

/// How long a command on a terminal waits for the terminal's size. A caller with a terminal sends it at once.
const SIZE_WAIT: Duration = Duration::from_millis(250);
/// Other messages may come before it, such as what was typed ahead.
const EARLY_MESSAGES: usize = 16;

/// Upgrades the connection and runs the command.
pub async fn respond(
    api: &Api,
    target: &Target,
    params: &Params,
    parts: &mut Parts,
) -> Result<Response, ApiError> {
    let mut request = request(api, target, params)?;
    let (backend, target) = (api.backend.clone(), target.clone());
    let wanted =
        Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
    remote::upgrade(parts, "exec", wanted, async move |mut sink, mut stream| {
        let mut early = Vec::new();
        if request.tty {
            // A program that draws a screen asks for the size once, at its start.
            request.size = first_size(&mut stream, &mut early).await;
        }
        let stream = Box::pin(futures::stream::iter(early.into_iter().map(Ok)).chain(stream));
        match backend.exec(&target.namespace, &target.name, request).await {
            Ok(streams) => remote::run(&mut sink, stream, streams).await,
            Err(error) => remote::finish(&mut sink, &error.status()).await,
        }
    })
    .await
}

/// Waits for the size of the caller's terminal; what comes before it is kept.
async fn first_size(stream: &mut Input, early: &mut Vec<Message>) -> Option<(u16, u16)> {
    let search = async {
        while let Some(Ok(message)) = stream.next().await {
            let size = remote::size_of(&message);
            let over = size.is_some() || matches!(message, Message::Close(_));
            early.push(message);
            if over || early.len() >= EARLY_MESSAGES {
                return size;
            }
        }
        None
    };
    tokio::time::timeout(SIZE_WAIT, search).await.ok().flatten()
}

fn request(api: &Api, target: &Target, params: &Params) -> Result<ExecRequest, ApiError> {
    log::Brief::of(api, target)?.refuse_ended("exec into")?;
    let container = log::container_of(api, target, params)?;
    let command: Vec<String> = params.all("command").map(str::to_owned).collect();
    if command.is_empty() {
        return Err(ApiError::bad_request("you must specify at least 1 command"));
    }
    let tty = params.flag("tty");
    let request = ExecRequest {
        container,
        command,
        stdin: params.flag("stdin"),
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr") && !tty,
        tty,
        size: None,
    };
    if !(request.stdin || request.stdout || request.stderr) {
        return Err(ApiError::bad_request("you must specify at least one of stdin, stdout, stderr"));
    }
    Ok(request)
}
