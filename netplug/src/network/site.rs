//! What networks beside each other share: the tables, the Services, the policies, and the host's ports.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::{Config, PodNetwork};
use crate::error::Result;
use crate::ipam::{Claim, Guard, Lease, Shared};
use crate::network::services::Served;
use crate::nft::policy::{gate, rules};
use crate::nft::ruleset::{Ruleset, ruleset};
use crate::nft::table::Table;
use crate::policy::{self, Policies};
use crate::service;

/// Locks are taken in the order of the fields, and those of the leases in the order of the networks.
#[derive(Debug)]
pub(super) struct Site {
    /// The settings of the first network and of those beside it.
    pub config: Config,
    /// Held while a pod gets host ports, which no two pods of any network may have.
    ports: Mutex<()>,
    table: Mutex<Table>,
    /// The leases of each network.
    leases: Vec<Shared>,
    services: Mutex<Served>,
    /// None before they are known.
    policies: Mutex<Option<Policies>>,
    /// Held while they are stored.
    pub keeping: Mutex<()>,
}

impl Site {
    /// Loads what is on disk; changes nothing. `visiting` says that other processes change the leases, too.
    pub fn open(mut config: Config, visiting: bool) -> Result<Self> {
        // Who can reach a pod by another network would otherwise get past the policies.
        let policies = config.policies;
        config.beside.iter_mut().for_each(|one| one.policies = policies);
        let leases = |one| if visiting { Shared::among_others(one) } else { Shared::alone(one) };
        Ok(Self {
            ports: Mutex::default(),
            table: Mutex::new(Table::open(&config.table)?),
            leases: config.all().map(leases).collect::<Result<_>>()?,
            services: Mutex::new(Served::before(service::load(&config.state_dir)?)),
            policies: Mutex::new(if policies { policy::load(&config.state_dir)? } else { None }),
            keeping: Mutex::default(),
            config,
        })
    }

    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn services(&self) -> MutexGuard<'_, Served> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn policies(&self) -> MutexGuard<'_, Option<Policies>> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leases of the network with this number.
    pub fn leases(&self, place: usize) -> Result<Guard<'_>> {
        self.leases[place].lock()
    }

    /// The lease of a pod in the network with this number. Its host ports are those of no pod of any network.
    pub fn claim(&self, place: usize, pod: &PodNetwork, now: std::time::SystemTime) -> Result<Claim> {
        let wants_ports = !pod.host_ports.is_empty() && self.leases.len() > 1;
        let _turn = wants_ports.then(|| self.ports.lock().unwrap_or_else(PoisonError::into_inner));
        if wants_ports {
            for (_, others) in self.leases.iter().enumerate().filter(|(number, _)| *number != place) {
                others.lock()?.check_ports_free(pod)?;
            }
        }
        self.leases(place)?.claim(pod, now)
    }

    /// What the table is to hold, by the leases and Services of all networks, which nobody changes meanwhile.
    pub fn rebuild(&self, table: &mut Table) -> Result<()> {
        table.rebuild(&self.ruleset()?)?;
        self.services().made_anew();
        Ok(())
    }

    /// Makes the tables of policies anew; or, if there are to be no policies, sees to it that there are none.
    pub fn rebuild_policies(&self, table: &mut Table) -> Result<()> {
        if !self.config.policies {
            policy::forget(&self.config.state_dir)?;
            return table.remove_policies();
        }
        let guards = self.all_leases()?;
        table.rebuild_policies(&gate(&self.config, self.bridged(&guards)))?;
        match &*self.policies() {
            Some(policies) => table.rebuild_policies(&rules(&self.config, policies)),
            None => Ok(()),
        }
    }

    /// The leases of all networks, which nobody changes meanwhile.
    fn all_leases(&self) -> Result<Vec<Guard<'_>>> {
        self.leases.iter().map(Shared::lock).collect()
    }

    /// Those of networks with a bridge, each with the settings of its own.
    fn bridged<'a>(&'a self, leases: &'a [Guard<'_>]) -> impl Iterator<Item = (&'a Config, &'a Lease)> {
        let networks = self.config.all().zip(leases).filter(|(of, _)| of.parent.is_none());
        networks.flat_map(|(of, some)| some.leases().map(move |one| (of, one)))
    }

    fn ruleset(&self) -> Result<Ruleset> {
        let guards = self.all_leases()?;
        Ok(ruleset(&self.config, self.bridged(&guards), &self.services().services))
    }
}
