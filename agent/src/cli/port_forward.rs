//! `berth port-forward`.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use futures::{SinkExt as _, StreamExt as _};
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::failure::Usage;
use super::{client, resource};
use crate::store::Kind;

/// Channels of the first port, and the one that closes others (see `api::portforward`).
const DATA: u8 = 0;
const ERROR: u8 = 1;
const CLOSE: u8 = 255;
/// Bytes read at once.
const CHUNK: usize = 32 * 1024;

/// Words of `berth port-forward`.
#[derive(Args, Debug)]
pub struct PortForwardArgs {
    /// The pod
    pod: String,
    /// [LOCAL:]REMOTE; :REMOTE takes any free local port; REMOTE may be the name of a container's port
    #[arg(value_name = "PORT", required = true)]
    ports: Vec<String>,
    #[command(flatten)]
    namespace: resource::Namespace,
    /// Addresses to listen on: numbers, or localhost for 127.0.0.1 and ::1
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
}

/// Listens on local ports and connects who comes to ports of the pod, until it is interrupted.
pub async fn run(client: &kube::Client, args: &PortForwardArgs) -> anyhow::Result<ExitCode> {
    let name = resource::pod_name(&args.pod)?;
    let path = resource::path(Kind::Pod, Some(args.namespace.name()), Some(name));
    let pod: Pod = client::get(client, &path, "application/json").await?;
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if phase != "Running" {
        bail!("unable to forward port because pod is not running. Current status={phase}");
    }
    let ports = args.ports.iter().map(|word| pair(word, &pod)).collect::<Result<Vec<_>, _>>()?;
    let mut tasks = JoinSet::new();
    for (local, remote) in ports {
        for listener in listen(&args.address, local).await? {
            let address = listener.local_addr()?;
            say(&format!("Forwarding from {address} -> {remote}"));
            tasks.spawn(accept(client.clone(), path.clone(), listener, remote));
        }
    }
    // Only a listener that breaks ends one.
    match tasks.join_next().await {
        Some(ended) => ended?.map(|()| ExitCode::SUCCESS),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Prints a line; whoever does not read on wants the connections all the same.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// `8080:80`, `80`, `:80`, `8080:http`.
fn pair(word: &str, pod: &Pod) -> Result<(u16, u16), Usage> {
    let (local, remote) = match word.split_once(':') {
        Some((local, remote)) => (Some(local), remote),
        None => (None, word),
    };
    let remote = number(remote).or_else(|| named(remote, pod)).ok_or_else(|| {
        Usage(format!("{word:?}: {remote:?} is neither a port nor the name of one of the pod's"))
    })?;
    let local = match local {
        None => remote,
        Some("") => 0,
        Some(text) => number(text).ok_or_else(|| Usage(format!("{word:?}: {text:?} is not a port")))?,
    };
    Ok((local, remote))
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

fn named(name: &str, pod: &Pod) -> Option<u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let found = ports.find(|port| port.name.as_deref() == Some(name))?;
    u16::try_from(found.container_port).ok()
}

/// One listener per address. `localhost` is both families; a machine without one of them has the other.
async fn listen(addresses: &[String], port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    for address in addresses {
        let (hosts, optional): (Vec<IpAddr>, bool) = if address == "localhost" {
            (vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0u16, 0, 0, 0, 0, 0, 0, 1])], true)
        } else {
            (vec![address.parse().map_err(|_| Usage(format!("{address:?} is not an address")))?], false)
        };
        let before = listeners.len();
        let mut failure = None;
        for host in hosts {
            // A free port that was found for one family is asked for in the other.
            let port = match listeners.get(before) {
                Some(first) if port == 0 => first.local_addr()?.port(),
                _ => port,
            };
            match TcpListener::bind((host, port)).await {
                Ok(listener) => listeners.push(listener),
                Err(error) if optional => failure = Some((host, port, error)),
                Err(error) => return Err(error).with_context(|| format!("listen on {host} port {port}")),
            }
        }
        if let Some((host, port, error)) = failure.filter(|_| listeners.len() == before) {
            return Err(error).with_context(|| format!("listen on {host} port {port}"));
        }
    }
    Ok(listeners)
}

async fn accept(
    client: kube::Client,
    path: String,
    listener: TcpListener,
    remote: u16,
) -> anyhow::Result<()> {
    let local = listener.local_addr()?.port();
    loop {
        let (socket, _) = listener.accept().await.context("accept a connection")?;
        say(&format!("Handling connection for {local}"));
        let (client, path) = (client.clone(), path.clone());
        tokio::spawn(async move {
            if let Err(error) = carry(&client, &path, socket, remote).await {
                eprintln!("berth: port {remote}: {error:#}");
            }
        });
    }
}

/// One local connection over a WebSocket of its own.
async fn carry(client: &kube::Client, path: &str, socket: TcpStream, remote: u16) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let port = remote.to_string();
    let request = Request::get(resource::with_query(&format!("{path}/portforward"), &[("ports", &port)]));
    let connection = client.connect(request.body(Vec::new())?).await?;
    let can_close = connection.supports_stream_close();
    let (mut sink, mut stream) = connection.into_stream().split();
    let (mut reader, mut writer) = socket.into_split();
    let sending = tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            let mut bytes = vec![DATA];
            bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
            if sink.send(Message::Binary(bytes.into())).await.is_err() {
                return;
            }
        }
        if can_close {
            // The other direction goes on; when nobody takes this any more it has ended, too.
            let _ = sink.send(Message::Binary(vec![CLOSE, DATA].into())).await;
        }
        // Dropping the sink would end the connection.
        std::future::pending::<()>().await;
    });
    let mut greeted = [false; 2];
    let result = loop {
        let Some(message) = stream.next().await else { break Ok(()) };
        let Message::Binary(bytes) = message.context("the connection to the agent broke")? else { continue };
        let Some((channel @ (&DATA | &ERROR), data)) = bytes.split_first() else {
            if bytes.as_ref() == [CLOSE, DATA] {
                let _ = writer.shutdown().await;
            }
            continue;
        };
        // The first message of each channel is the port's number.
        if !std::mem::replace(&mut greeted[usize::from(*channel)], true) {
            continue;
        }
        if *channel == ERROR {
            break Err(anyhow!("{}", String::from_utf8_lossy(data)));
        }
        // A program that has left does not want the rest.
        if writer.write_all(data).await.is_err() {
            break Ok(());
        }
    };
    sending.abort();
    result
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn words_for_ports() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [
            {"name": "a", "ports": [{"name": "http", "containerPort": 8080}]}]}}))
        .unwrap();
        let read = |word| pair(word, &pod).map_err(|e| e.0);
        assert_eq!(read("80"), Ok((80, 80)));
        assert_eq!(read("8000:80"), Ok((8000, 80)));
        assert_eq!(read(":80"), Ok((0, 80)));
        assert_eq!(read("81:http"), Ok((81, 8080)));
        assert_eq!(read("http"), Ok((8080, 8080)));
        for bad in ["0", "x", "80:x", "70000", "", "a:80", "1:2:3"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
