//! The node's own API: the Kubernetes API's paths and objects, for the pods of this node.
//!
//! The tour: [`routes`] maps paths to handlers; [`read`] serves objects and lists, [`watch`] their changes, both as JSON
//! or as the tables that [`table`] makes; [`write`] creates, replaces, patches ([`patch`]) and deletes through the
//! [`Backend`]; [`log`], [`exec`], [`attach`] ([`remote`] is their protocol) and [`portforward`] stream, also in [`spdy`], for pods of other nodes by way of those ([`proxy`]);
//! [`caller`] says who calls, [`authorize`] whether they may, [`secure`] finds out who it is over TLS, [`certificates`] signs who shall, [`review`] answers what
//! somebody may, [`metrics`] what pods use; [`discovery`] and [`openapi`] tell clients what there is. Errors are
//! [`ApiError`]s.

mod attach;
mod authorize;
mod backend;
mod caller;
mod certificates;
mod discovery;
mod error;
mod exec;
mod kubelet;
mod log;
mod metrics;
mod openapi;
mod params;
mod patch;
mod portforward;
mod protobuf;
mod proxy;
mod read;
mod remote;
mod review;
mod routes;
mod secure;
mod selector;
mod spdy;
mod status;
mod stdio;
mod strategic;
pub mod table;
mod watch;
mod write;

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::serve::Listener;

pub use backend::{AttachRequest, Backend, ExecRequest, ExecStreams, LogSource, Part};
pub use caller::{ADMINS, Caller};
pub use error::{ApiError, Cause};
pub use kubelet::kubelet_router;
pub use secure::Secure;

use crate::hub::Hub;
use crate::pki::Authority;
use crate::store::ObjectStore;

/// What every handler gets.
#[derive(Clone)]
struct Api {
    store: ObjectStore,
    backend: Arc<dyn Backend>,
    /// The objects of other nodes.
    hub: Arc<Hub>,
    /// Held from reading an object to writing its successor, so that two patches do not undo each other.
    writes: Arc<tokio::sync::Mutex<()>>,
    /// Who signs certificates, if anybody does.
    authority: Option<Arc<Authority>>,
}

/// The API over the objects of `store`, changed through `backend`, those of other nodes in `hub`; `authority` signs the
/// certificates of its users.
pub fn router(
    store: ObjectStore,
    backend: Arc<dyn Backend>,
    hub: Arc<Hub>,
    authority: Option<Arc<Authority>>,
) -> Router {
    let api = Api { store, backend, hub, writes: Arc::default(), authority };
    Router::new().fallback(routes::handle).with_state(api)
}

/// Serves a [`router`] on a listener whose callers may do everything, such as the owner's unix socket, until `shutdown`
/// resolves; requests that are under way, such as watches, are cut off.
///
/// # Errors
/// When the listener fails.
pub async fn serve<L>(listener: L, router: Router, shutdown: impl Future<Output = ()>) -> io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let router = router.layer(axum::Extension(Caller::Owner));
    tokio::select! {
        result = async { axum::serve(listener, router).await } => result,
        () = shutdown => Ok(()),
    }
}

/// Serves a [`router`] over TLS, to whom their certificates let in, until `shutdown` resolves.
///
/// # Errors
/// When the listener fails.
pub async fn serve_secure(
    listener: Secure,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let router = router.layer(axum::middleware::from_fn(secure::identify));
    let service = router.into_make_service_with_connect_info::<secure::Peer>();
    tokio::select! {
        result = async { axum::serve(listener, service).await } => result,
        () = shutdown => Ok(()),
    }
}
