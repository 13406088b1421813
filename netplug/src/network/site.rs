//! What networks beside each other share: the table, the Services, and the host's ports.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::{Config, PodNetwork};
use crate::error::Result;
use crate::ipam::{Claim, Guard, Shared};
use crate::nft::ruleset::{Ruleset, ruleset};
use crate::nft::table::Table;
use crate::service::{self, Service};

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
    services: Mutex<Vec<Service>>,
    /// Held while they are stored.
    pub keeping: Mutex<()>,
}

impl Site {
    /// Loads what is on disk; changes nothing. `visiting` says that other processes change the leases, too.
    pub fn open(config: Config, visiting: bool) -> Result<Self> {
        let leases = |one| if visiting { Shared::among_others(one) } else { Shared::alone(one) };
        Ok(Self {
            ports: Mutex::default(),
            table: Mutex::new(Table::open(&config.table)?),
            leases: config.all().map(leases).collect::<Result<_>>()?,
            services: Mutex::new(service::load(&config.state_dir)?),
            keeping: Mutex::default(),
            config,
        })
    }

    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn services(&self) -> MutexGuard<'_, Vec<Service>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
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
        table.rebuild(&self.ruleset()?)
    }

    fn ruleset(&self) -> Result<Ruleset> {
        let guards = self.leases.iter().map(Shared::lock).collect::<Result<Vec<_>>>()?;
        let leases =
            self.config.all().zip(&guards).flat_map(|(of, some)| some.leases().map(move |one| (of, one)));
        Ok(ruleset(&self.config, leases, &self.services()))
    }
}
