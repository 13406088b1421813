//! `berth`: one binary for the agent, the shim of each pod, and the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    // Before any thread is started: the shim forks, and must stay small.
    if args.peek().is_some_and(|word| word == "shim") {
        return berth_runtime::shim::main(args.skip(1));
    }
    berth::cli::main()
}
