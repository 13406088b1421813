//! The shim's own program: `berth-shim shim --dir DIR ...`. It also makes the containers of `berth-oci`, see
//! `berth_runtime::oci::serve_request`: what is asked for is handed over by a variable of the environment then.
//!
//! One runs per pod, so that what it takes in memory counts as often. It is linked statically, at a fixed address and
//! without an async runtime, and lies inside of `berth` (agent/build.rs), which executes it from a sealed memory file.
//!
//! It starts without what the standard library does before `main`: a stack for the handler of an overflow, which takes reading
//! `/proc/self/maps`, memory and a dozen system calls, to say a little more than the kernel does.
#![no_main]

#[path = "../sys/start.rs"]
mod start;

/// For the processes that run in this one's memory until they have executed their program.
#[global_allocator]
static HEAP: berth_runtime::Heap = berth_runtime::Heap;

fn main() -> u8 {
    if let Some(code) = berth_runtime::oci::serve_request() {
        return code;
    }
    // The first word is there for people who look at a list of processes.
    berth_runtime::shim::main(std::env::args_os().skip(2))
}
