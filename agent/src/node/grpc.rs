//! The gRPC health check of probes: one call of `grpc.health.v1.Health/Check` over HTTP/2 in cleartext.
//!
//! Two messages of one field each are all of protobuf that it takes, so they are written and read here
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>, `doc/PROTOCOL-HTTP2.md`).

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use tokio::net::TcpStream;

const METHOD: &str = "/grpc.health.v1.Health/Check";
/// Most of an answer that is read; a real one has 7 bytes.
const ANSWER_MAX: usize = 10 << 10;
/// `grpc-status` of a server without the health service.
const UNIMPLEMENTED: &str = "12";

/// Asks whether a service serves; `address` is `host:port`. Gives why not, in the words of kubelet's events.
pub(super) async fn check(
    connect: impl Future<Output = Result<TcpStream, String>>,
    address: &str,
    service: &str,
    timeout: Duration,
) -> Result<(), String> {
    let call = async {
        let stream =
            connect.await.map_err(|e| format!("error: failed to connect service at {address:?}: {e}"))?;
        call(stream, address, service).await
    };
    match tokio::time::timeout(timeout, call).await {
        Ok(result) => result,
        Err(_) => Err(format!("timeout: health rpc did not complete within {}s", timeout.as_secs())),
    }
}

async fn call(stream: TcpStream, address: &str, service: &str) -> Result<(), String> {
    let broken = |e: h2::Error| format!("error: health rpc probe failed: {e}");
    let (sender, connection) = h2::client::handshake(stream).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let result = async {
        let mut sender = sender.ready().await.map_err(broken)?;
        let request = request(address)?;
        let (response, mut body) = sender.send_request(request, false).map_err(broken)?;
        body.send_data(encode(service), true).map_err(broken)?;
        let (head, mut body) = response.await.map_err(broken)?.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(format!("error: health rpc probe failed: HTTP status {}", head.status));
        }
        let mut answer = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(broken)?;
            // An error means that the stream has ended: nobody waits for the window.
            let _ = body.flow_control().release_capacity(chunk.len());
            if answer.len() + chunk.len() > ANSWER_MAX {
                return Err("error: health rpc probe failed: the answer is too long".to_owned());
            }
            answer.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await.map_err(broken)?;
        // A call that fails at once has its status among the headers.
        verdict(trailers.as_ref().unwrap_or(&head.headers), &answer)
    }
    .await;
    driver.abort();
    result
}

fn request(address: &str) -> Result<Request<()>, String> {
    let agent = concat!("kube-probe/1.36 berth/", env!("CARGO_PKG_VERSION"));
    Request::post(format!("http://{address}{METHOD}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, agent)
        .body(())
        .map_err(|e| format!("error: failed to connect service at {address:?}: {e}"))
}

fn verdict(status: &HeaderMap, answer: &[u8]) -> Result<(), String> {
    let text = |name: &str| status.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => {}
        UNIMPLEMENTED => {
            return Err(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                    .into(),
            );
        }
        code => {
            let message = text("grpc-message");
            return Err(format!("error: health rpc probe failed: rpc error: code = {code} desc = {message}"));
        }
    }
    match decode(answer).ok_or("error: health rpc probe failed: the answer cannot be read")? {
        1 => Ok(()),
        other => {
            let name = match other {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "an unknown status",
            };
            Err(format!("service unhealthy (responded with {name:?})"))
        }
    }
}

/// `HealthCheckRequest { string service = 1; }` in gRPC's frame: no compression, length, message.
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(&message);
    frame.freeze()
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// The status in `HealthCheckResponse { ServingStatus status = 1; }`; the default, 0, if it is not there. None if the
/// bytes are no such message.
fn decode(frame: &[u8]) -> Option<u64> {
    let [0, length @ ..] = frame.get(..5)? else { return None };
    let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
    let mut message = frame.get(5..5usize.checked_add(length)?)?;
    let mut status = 0;
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = take_varint(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(take_varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn messages_are_those_of_the_protocol() {
        assert_eq!(encode("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(encode("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(&encode(&"x".repeat(200))[5..8], [0x0a, 0xc8, 1]);
        for (frame, status) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[0, 0, 0, 0, 5, 0x12, 1, 9, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 2, 8], None),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 2, 8, 0x80], None),
            (&[0, 255, 255, 255, 255], None),
            (&[], None),
        ] {
            assert_eq!(decode(frame), status, "{frame:?}");
        }
    }

    /// A server that answers one call with that body and `grpc-status`; gives what it was asked.
    async fn serve(listener: TcpListener, body: &'static [u8], code: &'static str) -> (String, Vec<u8>) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let driver = tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let path = request.uri().path().to_owned();
        let mut asked = Vec::new();
        let mut incoming = request.into_body();
        while let Some(chunk) = incoming.data().await {
            asked.extend_from_slice(&chunk.unwrap());
        }
        let head = http::Response::builder().header("content-type", "application/grpc");
        if body.is_empty() {
            respond.send_response(head.header("grpc-status", code).body(()).unwrap(), true).unwrap();
        } else {
            let mut out = respond.send_response(head.body(()).unwrap(), false).unwrap();
            out.send_data(Bytes::from_static(body), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", code.parse().unwrap());
            out.send_trailers(trailers).unwrap();
        }
        driver.await.unwrap();
        (path, asked)
    }

    async fn asked(body: &'static [u8], code: &'static str) -> (Result<(), String>, (String, Vec<u8>)) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connect = async { TcpStream::connect(address).await.map_err(|e| e.to_string()) };
        let name = address.to_string();
        let check = check(connect, &name, "web", Duration::from_secs(30));
        tokio::join!(check, serve(listener, body, code))
    }

    #[tokio::test]
    async fn a_serving_service_is_healthy_and_others_are_not() {
        let (result, (path, sent)) = asked(&[0, 0, 0, 0, 2, 8, 1], "0").await;
        assert_eq!(result, Ok(()));
        assert_eq!((path.as_str(), sent), (METHOD, encode("web").to_vec()));
        let (result, _) = asked(&[0, 0, 0, 0, 2, 8, 2], "0").await;
        assert_eq!(result, Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()));
        let (result, _) = asked(&[0, 0, 0, 0, 2, 8, 1], "5").await;
        assert!(result.unwrap_err().contains("code = 5"));
        let (result, _) = asked(&[], UNIMPLEMENTED).await;
        assert!(result.unwrap_err().contains("does not implement the grpc health protocol"));
    }

    #[tokio::test]
    async fn a_server_that_is_none_fails_the_check() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || async move { TcpStream::connect(address).await.map_err(|e| e.to_string()) };
        let silent = check(connect(), "a:1", "", Duration::from_millis(50)).await;
        assert_eq!(silent, Err("timeout: health rpc did not complete within 0s".to_owned()));
        drop(listener);
        let refused = check(connect(), "a:1", "", Duration::from_secs(30)).await;
        assert!(refused.unwrap_err().starts_with("error: failed to connect service at \"a:1\""));
    }
}
