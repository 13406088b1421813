//! A command that gets no input: its output is all that has to be passed on, which a socket that blocks does best. Scripts call
//! `berth exec` in loops, and an async runtime with an HTTP client takes longer to set up than such a command runs.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::{ClientRequestBuilder, client_with_config};
use tokio_tungstenite::tungstenite::protocol::{WebSocket, WebSocketConfig};

use super::session::{self, Passed};
use super::{ExecArgs, exit_code, request_path};

/// What is read at once; as much is set to zero for each connection.
const READ_BUFFER: usize = 16 << 10;

/// Runs the command, if it is one without input and the agent takes it. Otherwise nothing has happened, and the long way
/// will say what is the matter.
pub fn run(socket: &Path, args: &ExecArgs) -> Option<anyhow::Result<ExitCode>> {
    if args.stdin || args.tty {
        return None;
    }
    let path = request_path(args, args.container.as_deref(), false).ok()?;
    let request = ClientRequestBuilder::new(format!("ws://berth{path}").parse().ok()?)
        .with_sub_protocol("v5.channel.k8s.io");
    let stream = UnixStream::connect(socket).ok()?;
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER);
    let (socket, _) = client_with_config(request, stream, Some(config)).ok()?;
    Some(pass_on(socket))
}

fn pass_on(mut socket: WebSocket<UnixStream>) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    loop {
        let message = socket.read().context("the connection to the agent broke")?;
        let Message::Binary(bytes) = message else { continue };
        if let Passed::Ended(status) = session::pass(&bytes, &mut out)? {
            return exit_code(*status);
        }
    }
}
