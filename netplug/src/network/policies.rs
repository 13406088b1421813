//! Policies of the network.

use super::{Inner, Network};
use crate::conntrack;
use crate::error::Result;
use crate::ipam::Lease;
use crate::nft::policy::{gate, rules};
use crate::policy::{self, Guard, Policies, Rule};
use crate::sys::netns::{Traveller, on_thread};

impl Network {
    /// Makes these the policies of the network, in one step and for good: they are stored first, stay in force when the agent
    /// ends, and are there again from the start when the network is opened. Connections that they do not allow any more are cut.
    ///
    /// Nothing happens if the network was opened without [`Config::policies`](crate::Config::policies).
    ///
    /// # Errors
    /// What the kernel or the file system refused; call it again then.
    pub async fn set_policies(&self, policies: Policies) -> Result<()> {
        self.inner.check_open()?;
        if !self.inner.site.config.policies {
            return Ok(());
        }
        let inner = self.inner.clone();
        on_thread(move |thread| inner.set_policies(thread, policies)).await
    }
}

impl Inner {
    fn set_policies(&self, thread: &Traveller, new: Policies) -> Result<()> {
        let mut table = self.table();
        if self.site.policies().as_ref() == Some(&new) {
            return Ok(());
        }
        policy::keep(&self.site.config.state_dir, &new)?;
        let old = self.site.policies().replace(new.clone());
        let contents = rules(&self.site.config, &new);
        let changed = match &old {
            Some(old) => table.change_policies(&rules(&self.site.config, old), &contents),
            None => table.rebuild_policies(&contents),
        };
        // A table that was deleted or changed by somebody refuses the change, and is made anew.
        if changed.is_err()
            && let Err(error) = self.rebuild(&mut table)
        {
            *self.site.policies() = old;
            return Err(error);
        }
        drop(table);
        if !forbids_more(old.as_ref(), &new) {
            return Ok(());
        }
        self.enter_host(thread)?;
        conntrack::cut(&new, &conntrack::own_addresses()?)
    }

    /// Begins or ends to watch what comes from a pod.
    pub(super) fn watch_port(&self, before: Option<&Lease>, after: Option<&Lease>) -> Result<()> {
        if !self.site.config.policies || self.config.parent.is_some() {
            return Ok(());
        }
        let mut table = self.table();
        let of =
            |lease: Option<&Lease>| gate(&self.site.config, lease.map(|one| (&self.config, one)).into_iter());
        let (old, new) = (of(before), of(after));
        if table.change_policies(&old, &new).is_err() {
            self.rebuild(&mut table)?;
        }
        Ok(())
    }
}

/// Whether a connection may be forbidden that was allowed. Of pods that are new none has any.
fn forbids_more(old: Option<&Policies>, new: &Policies) -> bool {
    let Some(old) = old else { return new.pods.values().any(Guard::isolates) };
    let same_rules = |names: &Guard| {
        let all = names.ingress.iter().chain(&names.egress).flatten();
        all.into_iter().all(|name| match (old.rules.get(name), new.rules.get(name)) {
            (Some(old), Some(rule)) => includes(rule, old, new),
            (old, _) => old.is_none(),
        })
    };
    new.pods.iter().filter_map(|(ip, guard)| Some((old.pods.get(ip)?, guard))).any(|(before, after)| {
        let kept = |old: &Option<_>, new: &Option<_>| new.is_none() || old == new;
        let same = kept(&before.ingress, &after.ingress) && kept(&before.egress, &after.egress);
        !same || !same_rules(after)
    })
}

/// Whether a rule allows all that it allowed before, to pods that there still are.
fn includes(rule: &Rule, before: &Rule, now: &Policies) -> bool {
    let peers = match (&rule.peers, &before.peers) {
        (None, _) => true,
        (Some(rule), Some(before)) => {
            let pods = match (&rule.pods, &before.pods) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(rule), Some(before)) => before.difference(rule).all(|ip| !now.pods.contains_key(ip)),
            };
            pods && rule.blocks == before.blocks
        }
        (Some(_), None) => false,
    };
    let ports = match (&rule.ports, &before.ports) {
        (None, _) => true,
        (Some(rule), Some(before)) => {
            let named = match (&rule.named, &before.named) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(rule), Some(before)) => {
                    before.difference(rule).all(|(ip, ..)| !now.pods.contains_key(ip))
                }
            };
            named && before.ranges.is_subset(&rule.ranges)
        }
        (Some(_), None) => false,
    };
    peers && ports
}
