//! `berth`: one binary for the agent, with the shim of each pod in it, the command line, and as `berth-oci` an OCI runtime.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let oci = args.next().is_some_and(|name| Path::new(&name).file_name().is_some_and(|n| n == "berth-oci"));
    let mut args = args.peekable();
    if oci {
        return berth::oci_cli::main(args);
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
    berth::cli::main()
}
