//! A systemd that says how the machine is.
//!
//! It answers what is asked over a bus: who the caller is, and one property. See the D-Bus specification, "Message Protocol".

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result};

const ENDIAN: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };
/// Bytes of a message up to its header fields.
const FIXED: usize = 16;
const METHOD_RETURN: u8 = 2;
const NO_REPLY_EXPECTED: u8 = 1;
/// Header fields.
const REPLY_SERIAL: u8 = 5;
const SIGNATURE: u8 = 8;

/// Listens on a socket for as long as the test runs, and says that `SystemState` is this.
pub fn serve(socket: &Path, state: &'static str) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who breaks the connection has what it wants.
            let _ = answer(stream, state);
        }
    });
    Ok(())
}

fn answer(mut stream: UnixStream, state: &str) -> Result<()> {
    let mut said = Vec::new();
    stream.write_all(b"DATA\r\nOK 0123456789abcdef\r\n")?;
    while !said.ends_with(b"BEGIN\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        said.push(byte[0]);
    }
    loop {
        let mut fixed = [0; FIXED];
        stream.read_exact(&mut fixed)?;
        let word = |at: usize| u32::from_ne_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let rest = usize::try_from(word(12))?.next_multiple_of(8) + usize::try_from(word(4))?;
        let mut message = vec![0; rest];
        stream.read_exact(&mut message)?;
        let asks = |name: &[u8]| message.windows(name.len()).any(|part| part == name);
        let (signature, body) = if asks(b"SystemState") {
            ("v", [&[1, b's', 0, 0][..], &text(state)].concat())
        } else {
            ("s", text(":1.1"))
        };
        stream.write_all(&reply(word(8), signature, &body))?;
    }
}

fn text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap_or(0).to_ne_bytes();
    [&length[..], text.as_bytes(), &[0]].concat()
}

fn reply(serial: u32, signature: &str, body: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(0).to_ne_bytes();
    let mut fields = [&[REPLY_SERIAL, 1, b'u', 0][..], &serial.to_ne_bytes()].concat();
    let kind = u8::try_from(signature.len()).unwrap_or(0);
    fields.extend([&[SIGNATURE, 1, b'g', 0, kind][..], signature.as_bytes(), &[0]].concat());
    let mut message = vec![ENDIAN, METHOD_RETURN, NO_REPLY_EXPECTED, 1];
    message.extend([length(body), 1_u32.to_ne_bytes(), length(&fields)].concat());
    message.extend(fields);
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend(body);
    message
}
