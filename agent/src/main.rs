//! `berth`: one binary for the agent, with the shim of each pod in it, the command line, as `berth-oci` an OCI runtime,
//! and as `berth-cni` a CNI plugin.

use std::path::Path;
use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
#[path = "sys/start.rs"]
mod start;

/// For the processes that `exec` of `berth-oci` starts in this one's memory.
#[global_allocator]
static HEAP: berth_runtime::Heap = berth_runtime::Heap;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    let name = Path::new(&called).file_name().unwrap_or_default();
    let mut args = args.peekable();
    if name == "berth-oci" {
        return berth::oci_cli::main(args);
    }
    if name == "berth-cni" {
        return berth_netplug::cni::main();
    }
    if args.peek().is_some_and(|word| word == "oci-runtime") {
        return berth::oci_cli::main(args.skip(1));
    }
    if args.peek().is_some_and(|word| word == berth::HOLD_SCOPE) {
        return berth::hold_scope(args.skip(1));
    }
    if args.peek().is_some_and(|word| word == berth::volumes::MOUNT_IMAGE) {
        return berth::mount_image(args.skip(1));
    }
    berth_runtime::look_up_by_files_and_dns();
    berth::cli::main()
}
