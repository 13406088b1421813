//! A registry that misbehaves as told: every answer comes from a function of the test.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

#[derive(Clone, Debug, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body after which the connection is cut.
    pub cut: Option<usize>,
}

impl Response {
    pub fn new(status: u16, body: &[u8]) -> Response {
        Response { status, body: body.to_vec(), ..Response::default() }
    }

    pub fn with(mut self, name: &str, value: &str) -> Response {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Response + Send + Sync;

pub struct Server {
    pub address: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers until the test's process ends.
    pub fn start(handler: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (handler, seen): (Arc<Handler>, Arc<Mutex<Vec<Request>>>) = (Arc::new(handler), Arc::default());
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, log) = (Arc::clone(&handler), Arc::clone(&log));
                std::thread::spawn(move || serve(stream, &*handler, &log));
            }
        });
        Server { address, seen }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// How often a path that ends so was asked for.
    pub fn count(&self, suffix: &str) -> usize {
        self.requests().iter().filter(|r| r.path.ends_with(suffix)).count()
    }
}

fn serve(stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Request>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let request = read(&mut reader)?;
        log.lock().unwrap().push(request.clone());
        let response = handler(&request);
        let mut head =
            format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", response.status, response.body.len());
        for (name, value) in &response.headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        if request.method == "HEAD" {
            continue;
        }
        let end = response.cut.unwrap_or(response.body.len());
        stream.write_all(&response.body[..end]).ok()?;
        if response.cut.is_some() {
            return None;
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        match line.trim().split_once(": ") {
            Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
            None => return Some(Request { method, path, headers }),
        }
    }
}

/// Serves a layout as the registry's repository `app` with the tag `v1`.
pub fn repository(
    layout: PathBuf,
    manifest: String,
) -> impl Fn(&Request) -> Response + Send + Sync + 'static {
    move |request| {
        let path = request.path.split('?').next().unwrap();
        if path == "/v2/" {
            return Response::new(200, b"{}");
        }
        let Some((kind, reference)) = path.strip_prefix("/v2/app/").and_then(|rest| rest.split_once('/'))
        else {
            return Response::new(404, b"{}");
        };
        let digest = if reference == "v1" { manifest.as_str() } else { reference };
        let file = layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        let Ok(bytes) = std::fs::read(file) else {
            return Response::new(
                404,
                br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
            );
        };
        let media_type = serde_json::from_slice::<serde_json::Value>(&bytes)
            .ok()
            .filter(|_| kind == "manifests")
            .and_then(|v| v["mediaType"].as_str().map(str::to_owned));
        let response = match request
            .header("range")
            .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        {
            Some(from) => Response::new(206, &bytes[from..]),
            None => Response::new(200, &bytes),
        };
        response.with("content-type", media_type.as_deref().unwrap_or("application/octet-stream"))
    }
}
