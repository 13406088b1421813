//! The node's own API: the Kubernetes API's paths and objects, for the pods of this node.
//!
//! The tour: [`routes`] maps paths to handlers; [`read`] serves objects and lists, [`watch`] their changes, both as JSON
//! or as the tables that [`table`] makes; [`write`] creates, replaces, patches ([`patch`]) and deletes through the
//! [`Backend`]; [`log`], [`exec`], [`attach`] ([`remote`] is their protocol) and [`portforward`] stream, also in [`spdy`]; [`discovery`] and [`openapi`] tell clients what there is. Errors are
//! [`ApiError`]s.

mod attach;
mod backend;
mod discovery;
mod error;
mod exec;
mod log;
mod openapi;
mod params;
mod patch;
mod portforward;
mod read;
mod remote;
mod routes;
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
pub use error::{ApiError, Cause};

use crate::store::ObjectStore;

/// What every handler gets.
#[derive(Clone)]
struct Api {
    store: ObjectStore,
    backend: Arc<dyn Backend>,
    /// Held from reading an object to writing its successor, so that two patches do not undo each other.
    writes: Arc<tokio::sync::Mutex<()>>,
}

/// The API over the objects of `store`, changed through `backend`.
pub fn router(store: ObjectStore, backend: Arc<dyn Backend>) -> Router {
    let api = Api { store, backend, writes: Arc::default() };
    Router::new().fallback(routes::handle).with_state(api)
}

/// Serves a [`router`] on a listener (unix or TCP) until `shutdown` resolves; requests that are under way, such as watches, are cut off.
///
/// # Errors
/// When the listener fails.
pub async fn serve<L>(listener: L, router: Router, shutdown: impl Future<Output = ()>) -> io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    tokio::select! {
        result = async { axum::serve(listener, router).await } => result,
        () = shutdown => Ok(()),
    }
}
