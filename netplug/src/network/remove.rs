//! Removing what the network has made: links that belong to nobody, and all of it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::{Inner, stale};
use crate::config::beside;
use crate::error::{Error, Result};
use crate::nft::admission;
use crate::sys::netns::{Traveller, on_thread};
use crate::{bridge, policy, service, veth};

impl Inner {
    /// Removes links on the bridge that look like ours and belong to nobody.
    pub(super) async fn sweep(self: &Arc<Self>) -> Result<()> {
        if self.config.parent.is_some() {
            return Ok(());
        }
        let links = bridge::pod_links(&self.handle, self.bridge.load(Ordering::Relaxed)).await?;
        let orphans: Vec<String> = {
            let ipam = self.ipam()?;
            links.into_iter().filter(|link| !ipam.leases().any(|lease| lease.host_if == *link)).collect()
        };
        if orphans.is_empty() {
            return Ok(());
        }
        tracing::info!(links = ?orphans, "removing links that belong to no pod");
        let inner = self.clone();
        on_thread(move |thread| {
            veth::delete_all(&mut inner.host_socket(thread)?, orphans.iter().map(String::as_str))
        })
        .await
    }

    pub(super) fn remove_all(&self, thread: &Traveller) -> Result<()> {
        let mut links: Vec<String> = self.ipam()?.leases().map(|lease| lease.host_if.clone()).collect();
        if self.config.parent.is_none() && stale::is_ours(&self.config) {
            links.push(self.config.bridge.clone());
        }
        let unlinked = self
            .host_socket(thread)
            .and_then(|mut socket| veth::delete_all(&mut socket, links.iter().map(String::as_str)));
        let beside = self.config.name.as_ref().map(|_| self.config.bridge.as_str());
        let dismissed = admission::dismiss(&mut self.table(), beside);
        let shared = if self.place == 0 { self.remove_shared() } else { Ok(()) };
        let forgotten = stale::forget(&self.config.state_dir);
        let cleared = self.ipam()?.clear();
        unlinked.and(dismissed).and(shared).and(forgotten).and(cleared)
    }

    /// Removes what the first network has for all of them.
    fn remove_shared(&self) -> Result<()> {
        let removed = self.table().remove();
        let _turn = self.site.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = self.config.state_dir.join(beside::FOLDER);
        let emptied = match std::fs::remove_dir(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", folder, e)),
            _ => Ok(()),
        };
        let forgotten = service::forget(&self.config.state_dir).and(policy::forget(&self.config.state_dir));
        removed.and(forgotten).and(emptied)
    }
}
