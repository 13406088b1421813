//! Making the bridge, the table and the pods' links again when somebody deleted them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Inner;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::nft::admission;
use crate::nft::table::Table;
use crate::sys::netns::{Traveller, on_thread};
use crate::{bridge, sysctl, veth};

/// How much to set right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repair {
    /// The bridge, if it has gone.
    Bridge,
    /// The table, whatever it holds.
    Table,
    /// What lets pods past the firewalls of others.
    Firewall,
    /// All of this, and the kernel settings.
    All,
}

impl Inner {
    /// The table anew from all leases and Services.
    pub(super) fn rebuild(&self, table: &mut Table) -> Result<()> {
        self.site.rebuild_policies(table)?;
        self.site.rebuild(table)
    }

    pub(super) async fn repair(self: &Arc<Self>, what: Repair) -> Result<()> {
        let _alone = self.repair.lock().await;
        self.check_open()?;
        if self.config.parent.is_some() {
            return Ok(());
        }
        if matches!(what, Repair::Bridge | Repair::All) {
            let index = bridge::ensure(&self.handle, &self.config, self.mtu).await?;
            let anew = self.bridge.swap(index, Ordering::Relaxed) != index;
            if anew || what == Repair::All {
                let inner = self.clone();
                on_thread(move |thread| inner.reattach(thread, index)).await?;
            }
        }
        if what != Repair::Bridge {
            let inner = self.clone();
            on_thread(move |_| {
                let mut table = inner.table();
                // The first network makes it for all.
                if inner.place == 0 && what != Repair::Firewall {
                    inner.rebuild(&mut table)?;
                }
                admission::admit(&mut table, &inner.config)
            })
            .await?;
        }
        Ok(())
    }

    fn reattach(&self, thread: &Traveller, bridge: u32) -> Result<()> {
        let mut socket = self.host_socket(thread)?;
        sysctl::host(thread, &self.config)?;
        let links: Vec<(String, String, [u8; 6])> =
            self.ipam()?.leases().map(|lease| (lease.host_if.clone(), lease.pod(), lease.mac())).collect();
        veth::reattach(
            &mut socket,
            bridge,
            self.port(),
            links.iter().map(|(link, pod, mac)| (link.as_str(), pod.as_str(), *mac)),
        )
    }

    /// Repairs what the monitor sees deleted, until the network is closed or dropped.
    pub(super) async fn watch(self: Arc<Self>, mut monitor: Monitor) {
        loop {
            let news = match monitor.next().await {
                Ok(news) => news,
                Err(error) => {
                    tracing::error!(%error, "no longer watching bridge and nft table");
                    return;
                }
            };
            if news.link {
                self.link_gone.notify_waiters();
            }
            // The first network looks after the table for all.
            let table = news.table && self.place == 0;
            let firewall = news.firewall && !table;
            let all = [(news.bridge, Repair::Bridge), (table, Repair::Table), (firewall, Repair::Firewall)];
            for (hurt, what) in all {
                if !hurt {
                    continue;
                }
                match self.repair(what).await {
                    Ok(()) if news.lost => {
                        tracing::debug!(?what, "looked after notices of changes were lost")
                    }
                    // Which says itself whether there was anything to do.
                    Ok(()) if what == Repair::Firewall => {}
                    Ok(()) => {
                        tracing::warn!(bridge = self.config.bridge, ?what, "repaired what somebody deleted")
                    }
                    Err(Error::Closed) => return,
                    Err(error) => tracing::error!(%error, ?what, "could not repair what somebody deleted"),
                }
            }
        }
    }
}
