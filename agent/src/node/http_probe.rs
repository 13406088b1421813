//! Probes and hooks by HTTP (kubelet's `pkg/probe/http`).

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{HOST, LOCATION};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1;
use url::Url;

use super::probe::{BODY_MAX, connect};

/// More redirects are not followed, as by Go's client.
const REDIRECTS: usize = 10;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is well.
    Well,
    /// It leads to another host, where nobody asks: well, with a warning.
    Redirected(String),
}

struct Answer {
    status: u16,
    location: Option<String>,
    body: Vec<u8>,
}

/// Asks, and follows redirects within the host. A server's certificate is not looked at.
///
/// # Errors
/// The text of kubelet's `Unhealthy` events.
pub(super) async fn get(
    host: &str,
    port: u16,
    action: &v1::HTTPGetAction,
    timeout: Duration,
) -> Result<Found, String> {
    let path = match action.path.as_deref().unwrap_or("/") {
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let scheme = if action.scheme.as_deref() == Some("HTTPS") { "https" } else { "http" };
    let text = format!("{scheme}://{shown}:{port}{path}");
    let url = Url::parse(&text).map_err(|e| format!("parse \"{text}\": {e}"))?;
    let asking = ask(url, host, action);
    let answer = match tokio::time::timeout(timeout, asking).await {
        Ok(result) => result.map_err(|e| format!("Get \"{text}\": {e}"))?,
        Err(_) => {
            return Err(format!(
                "Get \"{text}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            ));
        }
    };
    match answer.status {
        200..300 => Ok(Found::Well),
        300..400 => {
            let body = String::from_utf8_lossy(&answer.body);
            Ok(Found::Redirected(format!("Probe terminated redirects, Response body: {body}")))
        }
        status => Err(format!("HTTP probe failed with statuscode: {status}")),
    }
}

/// The answer after all redirects that are followed.
async fn ask(first: Url, host: &str, action: &v1::HTTPGetAction) -> Result<Answer, String> {
    let (mut url, mut elsewhere) = (first.clone(), false);
    for _ in 0..=REDIRECTS {
        let answer = ask_once(&url, host, action, elsewhere).await?;
        let next = match (answer.status, &answer.location) {
            (301 | 302 | 303 | 307 | 308, Some(location)) => url
                .join(location)
                .map_err(|e| format!("failed to parse Location header \"{location}\": {e}"))?,
            _ => return Ok(answer),
        };
        if next.host_str() != first.host_str() || !matches!(next.scheme(), "http" | "https") {
            return Ok(answer);
        }
        // A place that names its host is asked for by that name, whatever the probe's header says.
        elsewhere |= answer.location.is_some_and(|location| location.contains("//"));
        url = next;
    }
    Err(format!("stopped after {REDIRECTS} redirects"))
}

async fn ask_once(
    url: &Url,
    host: &str,
    action: &v1::HTTPGetAction,
    elsewhere: bool,
) -> Result<Answer, String> {
    let port = url.port_or_known_default().ok_or("the place has no port")?;
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let request = request(action, target, authority, elsewhere)?;
    let stream = connect(host, port).await?;
    match url.scheme() {
        "https" => send(TokioIo::new(super::tls::connect(stream, host).await?), request).await,
        _ => send(TokioIo::new(stream), request).await,
    }
}

fn request(
    action: &v1::HTTPGetAction,
    target: &str,
    authority: &str,
    elsewhere: bool,
) -> Result<hyper::Request<Empty<Bytes>>, String> {
    let mut request = hyper::Request::get(target);
    let is = |header: &v1::HTTPHeader, name: &str| header.name.eq_ignore_ascii_case(name);
    let mut given: Vec<&v1::HTTPHeader> = action.http_headers.iter().flatten().collect();
    given.retain(|header| !elsewhere || !is(header, HOST.as_str()));
    for (name, value) in [
        ("Host", authority),
        ("User-Agent", concat!("kube-probe/1.36 berth/", env!("CARGO_PKG_VERSION"))),
        ("Accept", "*/*"),
        ("Connection", "close"),
    ] {
        if !given.iter().any(|header| is(header, name)) {
            request = request.header(name, value);
        }
    }
    for header in given {
        request = request.header(&header.name, &header.value);
    }
    request.body(Empty::new()).map_err(|e| e.to_string())
}

async fn send<S>(stream: S, request: hyper::Request<Empty<Bytes>>) -> Result<Answer, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let result = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let location =
            response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        // The body is read as far as a kubelet reads it, so that the server does not see a reset.
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
        let body = body.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
        Ok(Answer { status, location, body })
    }
    .await;
    driver.abort();
    result
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that gives each path its answer, and the heads of the requests that it has seen.
    async fn server(answers: &'static [(&'static str, &'static str)]) -> (u16, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let heads = seen.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let path = head.split(' ').nth(1).unwrap().to_owned();
                heads.lock().unwrap().push(head);
                let found =
                    answers.iter().find(|(known, _)| *known == path).map_or("404 Not Found\r\n", |(_, a)| a);
                let text = format!(
                    "HTTP/1.1 {}\r\nContent-Length: 4\r\n\r\nbody",
                    found.replace("PORT", &port.to_string())
                );
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        (port, seen)
    }

    async fn probe(port: u16, action: Value) -> Result<Found, String> {
        let mut action = action;
        action["port"] = json!(port);
        let action = serde_json::from_value(action).unwrap();
        get("127.0.0.1", port, &action, Duration::from_secs(30)).await
    }

    #[tokio::test]
    async fn redirects_within_the_host_are_followed_and_the_last_answer_counts() {
        let (port, seen) = server(&[
            ("/well", "302 Found\r\nLocation: /sub/there?a=b#c"),
            ("/sub/there?a=b", "307 Temporary Redirect\r\nLocation: last"),
            ("/sub/last", "301 Moved Permanently\r\nLocation: http://127.0.0.1:PORT/end"),
            ("/end", "204 No Content"),
            ("/ill", "303 See Other\r\nLocation: /broken"),
            ("/broken", "500 Internal Server Error"),
            ("/round", "302 Found\r\nLocation: /round"),
            ("/nowhere", "302 Found\r\nX: y"),
        ])
        .await;
        let headers = json!([{"name": "Host", "value": "app.example"}, {"name": "X-Key", "value": "1"}]);
        assert_eq!(probe(port, json!({"path": "/well", "httpHeaders": headers})).await, Ok(Found::Well));
        let heads = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(heads.len(), 4);
        assert!(heads.iter().all(|head| head.to_lowercase().contains("x-key: 1\r\n")), "{heads:?}");
        let hosts: Vec<bool> = heads.iter().map(|head| head.contains("app.example")).collect();
        assert_eq!(hosts, [true, true, true, false], "the last place named its host");
        assert_eq!(
            probe(port, json!({"path": "ill"})).await,
            Err("HTTP probe failed with statuscode: 500".into())
        );
        let round = probe(port, json!({"path": "/round"})).await.unwrap_err();
        assert_eq!(round, format!("Get \"http://127.0.0.1:{port}/round\": stopped after 10 redirects"));
        // There is no place to go to.
        assert!(matches!(probe(port, json!({"path": "/nowhere"})).await, Ok(Found::Redirected(_))));
    }

    #[tokio::test]
    async fn a_redirect_to_another_host_is_well_and_worth_a_warning() {
        let (port, seen) = server(&[("/", "302 Found\r\nLocation: http://192.0.2.1/")]).await;
        let warning = "Probe terminated redirects, Response body: body".to_owned();
        assert_eq!(probe(port, json!({})).await, Ok(Found::Redirected(warning)));
        assert_eq!(seen.lock().unwrap().len(), 1, "nobody asks there");
    }
}
