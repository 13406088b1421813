//! Logs and exec through the kube client, over a real unix socket.
#![allow(clippy::unwrap_used)]

mod api_support;

use std::fs::OpenOptions;
use std::io::Write as _;

use api_support::{Server, running};
use futures::{AsyncBufReadExt as _, SinkExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, LogParams, TerminalSize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The kube client over the server's socket.
fn pods(server: &Server) -> Api<Pod> {
    let socket = server.socket();
    let send = move |mut request: http::Request<kube::client::Body>| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            let io = hyper_util::rt::TokioIo::new(stream);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tokio::spawn(connection.with_upgrades());
            request.headers_mut().insert("host", "x".parse()?);
            Ok::<_, tower::BoxError>(sender.send_request(request).await?)
        }
    };
    Api::namespaced(kube::Client::new(tower::service_fn(send), "default"), "default")
}

fn server() -> Server {
    let server = Server::start();
    server.put_pod("web", running("web"));
    server
}

fn append(server: &Server, lines: &[&str]) {
    let mut file =
        OpenOptions::new().create(true).append(true).open(server.dir.path().join("0.log")).unwrap();
    for (n, line) in lines.iter().enumerate() {
        writeln!(file, "2026-01-01T00:00:0{n}.000000000Z stdout F {line}").unwrap();
    }
}

#[test]
fn logs() {
    let server = server();
    append(&server, &["one", "two", "three"]);
    server.block_on(async {
        let pods = pods(&server);
        let read = async |params: LogParams| pods.logs("web", &params).await.unwrap();
        assert_eq!(read(LogParams::default()).await, "one\ntwo\nthree\n");
        assert_eq!(read(LogParams { tail_lines: Some(1), ..Default::default() }).await, "three\n");
        let stamped = read(LogParams { tail_lines: Some(1), timestamps: true, ..Default::default() }).await;
        assert_eq!(stamped, "2026-01-01T00:00:02.000000000Z three\n");
        assert_eq!(read(LogParams { limit_bytes: Some(5), ..Default::default() }).await, "one\nt");
        let since =
            LogParams { since_time: Some("2026-01-01T00:00:01Z".parse().unwrap()), ..Default::default() };
        assert_eq!(read(since).await, "two\nthree\n");
        let previous = pods.logs("web", &LogParams { previous: true, ..Default::default() }).await;
        assert!(matches!(previous, Err(kube::Error::Api(status)) if status.code == 400));
    });
}

#[test]
fn a_followed_log_ends_with_its_container() {
    let server = server();
    append(&server, &["one"]);
    server.block_on(async {
        let params = LogParams { follow: true, ..Default::default() };
        let mut lines = pods(&server).log_stream("web", &params).await.unwrap().lines();
        assert_eq!(lines.next().await.unwrap().unwrap(), "one");
        append(&server, &["two"]);
        assert_eq!(lines.next().await.unwrap().unwrap(), "two");
        append(&server, &["three"]);
        server.fake.running.send_replace(false);
        assert_eq!(lines.next().await.unwrap().unwrap(), "three");
        assert!(lines.next().await.is_none());
    });
}

/// Output, errors and result of a command.
async fn exec(server: &Server, command: &[&str], input: Option<&[u8]>) -> (String, String, Option<i32>) {
    let params = AttachParams { stdin: input.is_some(), ..AttachParams::default() };
    let mut process = pods(server).exec("web", command.to_vec(), &params).await.unwrap();
    let status = process.take_status().unwrap();
    if let Some(input) = input {
        let mut stdin = process.stdin().unwrap();
        let input = input.to_vec();
        tokio::spawn(async move {
            // The command may end before it has read everything.
            if stdin.write_all(&input).await.is_ok() {
                let _ = stdin.shutdown().await;
            }
        });
    }
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (process.stdout().unwrap(), process.stderr().unwrap());
    let (a, b) = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
    a.unwrap();
    b.unwrap();
    let status = status.await.unwrap();
    let code = match status.status.as_deref() {
        Some("Success") => Some(0),
        _ => {
            let causes = status.details.and_then(|d| d.causes).unwrap_or_default();
            causes.first().and_then(|c| c.message.as_deref()).and_then(|m| m.parse().ok())
        }
    };
    (out, err, code)
}

#[test]
fn commands_have_output_and_exit_codes() {
    let server = server();
    server.block_on(async {
        let out = exec(&server, &["sh", "-c", "echo out; echo err >&2; exit 3"], None).await;
        assert_eq!(out, ("out\n".into(), "err\n".into(), Some(3)));
        assert_eq!(exec(&server, &["true"], None).await, (String::new(), String::new(), Some(0)));
        assert_eq!(exec(&server, &["/nonexistent"], None).await.2, None);
    });
}

#[test]
fn input_flows_through_and_ends() {
    let server = server();
    server.block_on(async {
        let (out, _, code) = exec(&server, &["cat"], Some(b"hello")).await;
        assert_eq!((out.as_str(), code), ("hello", Some(0)));
        // A command that reads nothing and ends is not kept by its input, nor is the result lost.
        let input = vec![b'x'; 4 << 20];
        assert_eq!(exec(&server, &["sleep", "0.1"], Some(&input)).await.2, Some(0));
    });
}

#[test]
fn a_child_that_stays_does_not_keep_the_session() {
    let server = server();
    server.block_on(async {
        let (out, _, code) = exec(&server, &["sh", "-c", "echo x; sleep 20 & exit 0"], None).await;
        assert_eq!((out.as_str(), code), ("x\n", Some(0)));
    });
}

#[test]
fn terminals_have_a_size() {
    let server = server();
    server.block_on(async {
        let params = AttachParams { stdin: true, tty: true, stderr: false, ..AttachParams::default() };
        // No waiting for it: the size is there when the command starts.
        let command = ["stty", "size"];
        let mut process = pods(&server).exec("web", command, &params).await.unwrap();
        process.terminal_size().unwrap().send(TerminalSize { width: 91, height: 37 }).await.unwrap();
        let mut out = String::new();
        process.stdout().unwrap().read_to_string(&mut out).await.unwrap();
        assert!(out.contains("37 91"), "{out:?}");
    });
}

#[test]
fn attach_shows_output_and_passes_input() {
    let server = server();
    server.block_on(async {
        let params = AttachParams { stdin: true, ..AttachParams::default() };
        let mut process = pods(&server).attach("web", &params).await.unwrap();
        let mut stdin = process.stdin().unwrap();
        stdin.write_all(b"hello\n").await.unwrap();
        stdin.shutdown().await.unwrap();
        let mut out = String::new();
        process.stdout().unwrap().read_to_string(&mut out).await.unwrap();
        assert_eq!(out, "attached\nhello\n");
        assert_eq!(process.take_status().unwrap().await.unwrap().status.as_deref(), Some("Success"));
    });
}

/// A server that answers in capitals until the caller has said everything.
async fn shouting() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut said = vec![0; 5];
            while socket.read_exact(&mut said).await.is_ok() {
                socket.write_all(&said.to_ascii_uppercase()).await.unwrap();
            }
        }
    });
    port
}

#[test]
fn ports_are_forwarded_each_on_its_channels() {
    let server = server();
    server.block_on(async {
        let ports = [shouting().await, shouting().await];
        let mut forward = pods(&server).portforward("web", &ports).await.unwrap();
        for port in ports {
            let mut stream = forward.take_stream(port).unwrap();
            stream.write_all(b"hello").await.unwrap();
            let mut back = [0; 5];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"HELLO");
        }
    });
}

#[test]
fn a_port_where_nobody_listens_is_an_error_of_that_port() {
    let server = server();
    server.block_on(async {
        // Bound and closed again: nobody listens there.
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let mut forward = pods(&server).portforward("web", &[free]).await.unwrap();
        let error = forward.take_error(free).unwrap().await.unwrap();
        assert!(error.contains(&format!("port {free}")) && error.contains("refused"), "{error}");
    });
}
