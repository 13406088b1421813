//! The small process per pod that is the parent of its containers.
//!
//! The tour: [`spawn`] is how the agent starts one, [`client`] how it talks to it, [`proto`] what they say. [`main`] is
//! the process itself: `setup` makes it a shim, `server` is its loop (with `calls`, what is asked of it, and `exits`,
//! what its children do), `slot` one container, `pump` its output, `attach` who looks on, `oom` and `pause` what happens to
//! it, `pod_init` the PID 1 of a shared PID namespace, `pod_users` the pod's user namespace, `foreign` a runtime in place of the engine, `execs` what is run in containers besides
//! (with `capture`, the output of a probe), `dial` the rest of what it holds. It
//! blocks in one `poll` and has no timers, so an idle pod costs no CPU.

use std::ffi::OsString;

mod args;
mod attach;
#[cfg(feature = "agent")]
mod binary;
mod calls;
mod capture;
#[cfg(feature = "agent")]
pub mod client;
mod connection;
mod dial;
mod execs;
mod exits;
mod foreign;
mod frame;
#[cfg(feature = "agent")]
mod link;
mod oom;
mod orders;
mod pause;
mod pod_init;
mod pod_users;
pub mod proto;
mod pump;
#[cfg(feature = "agent")]
mod reaper;
mod record;
mod rehearsal;
mod repeats;
mod server;
mod setup;
mod slot;
#[cfg(feature = "agent")]
mod spawn;

#[cfg(feature = "agent")]
pub use binary::Program;
#[cfg(feature = "agent")]
pub use pod_users::IdRange;
#[cfg(feature = "agent")]
pub use spawn::{Error as SpawnError, ShimProcess, Spare, SpawnOptions, spawn};

use proto::{Failure, FailureKind};

/// The shim's process: `berth shim --dir DIR [--hostname H] [--domainname D] [--net new|host|PATH] [--ipc new|host]
/// [--uts new|host] [--users FIRST:COUNT] [--version]`, without the first two words; or `berth shim --await-orders`, which
/// reads the rest from its standard input. Must be called before any thread is started.
pub fn main(args: impl Iterator<Item = OsString>) -> u8 {
    let mut server = match begin(args) {
        Ok(server) => server,
        Err(code) => return code,
    };
    match server.run() {
        Ok(()) => 0,
        Err(error) => {
            record::note!("cannot go on: {error}");
            1
        }
    }
}

/// Makes this process the shim that the words ask for; otherwise the code to end with. By itself, because its frame takes two
/// pages of stack, which would be there for as long as the shim.
#[inline(never)]
fn begin(args: impl Iterator<Item = OsString>) -> Result<server::Server, u8> {
    let mut args = args.peekable();
    let parsed = if args.peek().is_some_and(|first| first == orders::AWAIT) {
        match setup::await_orders() {
            Ok(Some(words)) => args::Args::parse(words.into_iter()),
            Ok(None) => return Err(0),
            Err(reason) => Err(reason),
        }
    } else {
        args::Args::parse(args)
    };
    let args = match parsed {
        Ok(args) if args.version => {
            println!("berth-shim {} protocol {}", env!("CARGO_PKG_VERSION"), proto::PROTOCOL_VERSION);
            return Err(0);
        }
        Ok(args) => args,
        Err(reason) => {
            eprintln!("berth shim: {reason}");
            setup::report(Err(&reason));
            return Err(2);
        }
    };
    let ready = match setup::set_up(&args) {
        Ok(ready) => ready,
        Err(reason) => {
            eprintln!("berth shim: {reason}");
            setup::report(Err(&reason));
            return Err(1);
        }
    };
    match server::Server::new(ready) {
        Ok(server) => {
            setup::report(Ok(()));
            Ok(server)
        }
        Err(reason) => {
            setup::report(Err(&reason));
            Err(1)
        }
    }
}

fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into() }
}
