//! What a pod's sandbox needs and can be made before anybody asks for it: a network namespace, which takes the kernel as
//! long as all the rest of a network, and the process of a shim.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use berth_netplug::Network;
use berth_runtime::shim::{Program, Spare};

use super::sandbox::blocking;

/// How long after a sandbox was made the next one's parts are: its first containers run by then, and need not share the
/// processors with this.
const AFTER_A_START: Duration = Duration::from_millis(25);

/// Keeps one of each ready; the network keeps the namespace.
pub struct Ahead {
    network: Network,
    /// What every pod's shim is executed from; made for the first one.
    program: OnceLock<Program>,
    spare: Mutex<Option<Spare>>,
    /// [`Ahead::prepare_soon`] has been asked for.
    pending: AtomicBool,
}

impl Ahead {
    /// Has nothing ready.
    pub fn new(network: Network) -> Arc<Self> {
        let (program, spare) = (OnceLock::new(), Mutex::default());
        Arc::new(Self { network, program, spare, pending: AtomicBool::new(false) })
    }

    /// The shim's program, which is a part of this one.
    ///
    /// # Errors
    /// When memory files are not allowed.
    pub fn program(&self) -> io::Result<Program> {
        if let Some(program) = self.program.get() {
            return Ok(program.clone());
        }
        let made = Program::embedded(crate::shim_program::BYTES)?;
        Ok(self.program.get_or_init(|| made).clone())
    }

    /// Takes the shim that is ready, if there is one.
    pub fn shim(&self) -> Option<Spare> {
        self.spare().take().filter(Spare::is_alive)
    }

    fn spare(&self) -> MutexGuard<'_, Option<Spare>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what is missing. Should that fail, the next start of a pod tries again and says why.
    pub async fn prepare(&self) {
        self.network.prepare_namespace().await;
        if self.spare().as_ref().is_some_and(Spare::is_alive) {
            return;
        }
        let Ok(program) = self.program() else { return };
        if let Ok(spare) = blocking(move || Spare::start(&program)).await {
            *self.spare() = Some(spare);
        }
    }

    /// The same, a little later.
    pub fn prepare_soon(self: &Arc<Self>) {
        if self.pending.swap(true, Ordering::Relaxed) {
            return;
        }
        let ahead = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(AFTER_A_START).await;
            ahead.pending.store(false, Ordering::Relaxed);
            ahead.prepare().await;
        });
    }
}
