//! HTTP over a unix socket: enough to ask the agent's API and to follow a watch.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// An answer whose body has not been read yet.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    body: Body,
}

#[derive(Debug)]
struct Body {
    stream: BufReader<UnixStream>,
    chunked: bool,
    /// Bytes left of the body, or of the current chunk; `None`: until the connection ends.
    left: Option<u64>,
}

/// Sends a request; the body, if any, is JSON.
pub fn request(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: berth\r\nConnection: close\r\nAccept: application/json\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body.as_bytes()))
        .context("send the request")?;
    read_head(stream).with_context(|| format!("{method} {path}"))
}

/// Sends a request and reads the JSON that answers it.
pub fn json(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
    let mut answer = request(socket, method, path, body)?;
    let mut text = String::new();
    answer.body.read_to_string(&mut text).with_context(|| format!("read the answer to {method} {path}"))?;
    let value =
        serde_json::from_str(&text).with_context(|| format!("{method} {path}: not JSON: {text:?}"))?;
    Ok((answer.status, value))
}

/// GET, and a failure unless the answer is 200.
pub fn get(socket: &Path, path: &str) -> Result<Value> {
    match json(socket, "GET", path, None)? {
        (200, value) => Ok(value),
        (status, value) => bail!("GET {path}: {status}: {value}"),
    }
}

/// A watch: one JSON value a line.
#[derive(Debug)]
pub struct Lines(BufReader<Body>);

/// Starts a watch.
pub fn watch(socket: &Path, path: &str) -> Result<Lines> {
    let answer = request(socket, "GET", path, None)?;
    if answer.status != 200 {
        bail!("GET {path}: {}", answer.status);
    }
    Ok(Lines(BufReader::new(answer.body)))
}

/// Runs a command by one WebSocket request (`v5.channel.k8s.io`), drops its output, and gives the `Status` that says how it
/// ended.
pub fn exec(socket: &Path, path: &str) -> Result<Value> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: berth\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).context("send the request")?;
    let answer = read_head(stream)?;
    if answer.status != 101 {
        bail!("GET {path}: {}", answer.status);
    }
    let mut stream = answer.body.stream;
    loop {
        let bytes = read_frame(&mut stream).with_context(|| format!("GET {path}: read a frame"))?;
        // 3 is the channel of the result.
        if let Some(text) = bytes.strip_prefix(&[3]) {
            return serde_json::from_slice(text).context("the result of an exec");
        }
    }
}

/// The payload of a frame from the server, which does not mask (RFC 6455 section 5.2).
fn read_frame(stream: &mut impl Read) -> Result<Vec<u8>> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let length = match head[1] {
        126 => {
            let mut long = [0; 2];
            stream.read_exact(&mut long)?;
            usize::from(u16::from_be_bytes(long))
        }
        127 => bail!("a frame of more than 64 KB"),
        short => usize::from(short),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    Ok(payload)
}

impl Lines {
    /// The next value, or none when the watch has ended; fails when none came in `limit`.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Value>> {
        let limit = limit.max(Duration::from_millis(1));
        self.0.get_ref().stream.get_ref().set_read_timeout(Some(limit)).context("set the read timeout")?;
        let mut line = String::new();
        let read = self.0.read_line(&mut line).context("read the watch")?;
        if read == 0 {
            return Ok(None);
        }
        serde_json::from_str(&line).with_context(|| format!("watch: not JSON: {line:?}")).map(Some)
    }
}

fn read_head(stream: UnixStream) -> Result<Answer> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status =
        line.split(' ').nth(1).and_then(|s| s.parse().ok()).with_context(|| format!("not HTTP: {line:?}"))?;
    let (mut chunked, mut left) = (false, None);
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let header = line.trim_end().to_ascii_lowercase();
        match header.split_once(':') {
            Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
            Some(("content-length", value)) => left = value.trim().parse().ok(),
            Some(_) => {}
            None => break,
        }
    }
    Ok(Answer { status, body: Body { stream, chunked, left: if chunked { Some(0) } else { left } } })
}

impl Body {
    /// Reads the size line of the next chunk; 0 is the last one.
    fn next_chunk(&mut self) -> std::io::Result<u64> {
        let mut line = String::new();
        while line.trim().is_empty() {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Ok(0);
            }
        }
        u64::from_str_radix(line.trim(), 16)
            .map_err(|_| std::io::Error::other(format!("bad chunk size {line:?}")))
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.chunked && self.left == Some(0) {
            self.left = Some(self.next_chunk()?);
        }
        let most = self
            .left
            .map_or(buffer.len(), |left| buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        if most == 0 {
            return Ok(0);
        }
        let read = self.stream.read(&mut buffer[..most])?;
        if let Some(left) = &mut self.left {
            *left -= read as u64;
        }
        Ok(read)
    }
}
