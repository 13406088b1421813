//! A command that gets no input: its output is all that has to be passed on, which a socket that blocks does best. Scripts call
//! `berth exec` in loops, and an async runtime with an HTTP client takes longer to set up than such a command runs.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

use super::session::{self, Passed};
use super::{ExecArgs, exit_code, request_path};

/// 16 bytes in base64. It keeps caches on the way from answering, of which a unix socket has none.
const KEY: &str = "YmVydGgtZXhlYy1xdWljaw==";
/// The longest head of an answer.
const HEAD_MAX: usize = 16 << 10;
/// What is read at once; as much is set to zero for each connection.
const READ_BUFFER: usize = 16 << 10;

/// Runs the command, if it is one without input and the agent takes it. Otherwise nothing has happened, and the long way
/// will say what is the matter.
pub fn run(socket: &Path, args: &ExecArgs) -> Option<anyhow::Result<ExitCode>> {
    if args.stdin || args.tty {
        return None;
    }
    let path = request_path(args, args.container.as_deref(), false).ok()?;
    let mut stream = UnixStream::connect(socket).ok()?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: berth\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let rest = upgraded(&mut stream)?;
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER);
    let socket = WebSocket::from_partially_read(stream, rest, Role::Client, Some(config));
    Some(pass_on(socket))
}

/// Reads the head of the answer. Gives what came behind it, or nothing when the agent does not take the request.
fn upgraded(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(HEAD_MAX);
    loop {
        let mut chunk = [0; 1024];
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(chunk.get(..count)?);
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return bytes.starts_with(b"HTTP/1.1 101 ").then_some(rest);
        }
        if bytes.len() > HEAD_MAX {
            return None;
        }
    }
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
