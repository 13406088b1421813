//! Connections over TLS: who shows a certificate of the node's authority is the user that it names.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::extract::connect_info::Connected;
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::caller::Caller;

/// How long a client may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Clients that may be doing so at once: who cannot finish holds up nobody else.
const AT_ONCE: usize = 64;
/// Connections of clients without a certificate: what comes beyond is closed, so that strangers cannot take all descriptors.
const STRANGERS: usize = 64;
/// How long to wait when the machine has no descriptors left.
const PAUSE: Duration = Duration::from_secs(1);

/// A listener whose connections are encrypted already.
pub struct Secure {
    connections: mpsc::Receiver<(TlsStream<TcpStream>, Peer)>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    caller: Caller,
    /// A stranger's place, given back with the connection, or once it is no stranger any more.
    place: Option<Arc<Mutex<Option<OwnedSemaphorePermit>>>>,
}

impl Peer {
    /// Whoever it is has shown a token.
    pub fn is_known(&self) {
        if let Some(place) = &self.place {
            drop(place.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

impl Secure {
    /// Listens with these settings of TLS.
    ///
    /// # Errors
    /// When the socket is broken already.
    pub fn new(listener: TcpListener, config: ServerConfig) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (ready, connections) = mpsc::channel(1);
        let accepting = tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), ready));
        Ok(Self { connections, address, accepting })
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, ready: mpsc::Sender<(TlsStream<TcpStream>, Peer)>) {
    let (slots, strangers) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(STRANGERS)));
    loop {
        // It is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the API");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (tls, ready, strangers) = (tls.clone(), ready.clone(), strangers.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let outcome = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
            drop(slot);
            match outcome {
                Ok(Ok(stream)) => {
                    let caller = caller(stream.get_ref().1.peer_certificates());
                    let place = match caller {
                        Caller::Anonymous => match strangers.try_acquire_owned() {
                            Ok(place) => Some(Arc::new(Mutex::new(Some(place)))),
                            Err(_) => return tracing::debug!("too many clients without a certificate"),
                        },
                        _ => None,
                    };
                    let _ = ready.send((stream, Peer { caller, place })).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "a client of the API failed at TLS"),
                Err(_) => tracing::debug!("a client of the API took too long for TLS"),
            }
        });
    }
}

/// The user that a certificate names. TLS has checked who signed it and that the client has its key.
fn caller(chain: Option<&[CertificateDer<'_>]>) -> Caller {
    let Some(certificate) = chain.and_then(<[_]>::first) else { return Caller::Anonymous };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else {
        return Caller::Anonymous;
    };
    let subject = certificate.subject();
    let text =
        |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
    match subject.iter_common_name().next().and_then(text) {
        Some(name) if !name.is_empty() => {
            Caller::User { name, groups: subject.iter_organization().filter_map(text).collect() }
        }
        _ => Caller::Anonymous,
    }
}

impl Listener for Secure {
    type Io = TlsStream<TcpStream>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.connections.recv().await {
            Some(connection) => connection,
            // The task that accepts has ended, which it does only with this.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(Peer { caller: Caller::Anonymous, place: None })
    }
}

impl Secure {
    /// The address it listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Connected<IncomingStream<'_, Secure>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Secure>) -> Self {
        stream.remote_addr().clone()
    }
}

/// Tells handlers who the connection belongs to.
pub async fn identify(mut request: Request, next: Next) -> Response {
    let caller =
        request.extensions().get::<axum::extract::ConnectInfo<Peer>>().map(|info| info.0.caller.clone());
    request.extensions_mut().insert(caller.unwrap_or(Caller::Anonymous));
    next.run(request).await
}
