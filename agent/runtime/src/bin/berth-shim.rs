//! The shim's own program: `berth-shim shim --dir DIR ...`. It also makes the containers of `berth-oci`, see
//! `berth_runtime::oci::serve_request`: what is asked for is handed over by a variable of the environment then.
//!
//! One runs per pod, so that what it takes in memory counts as often. It is linked statically, at a fixed address and
//! without an async runtime, and lies inside of `berth` (agent/build.rs), which executes it from a sealed memory file.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = berth_runtime::oci::serve_request() {
        return code;
    }
    // The first word is there for people who look at a list of processes.
    berth_runtime::shim::main(std::env::args_os().skip(2))
}
