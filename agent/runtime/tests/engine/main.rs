//! The engine against the kernel, as root.
//!
//! The engine must be called from a process with one thread, and libtest runs tests in threads of their own. So this
//! is its own harness: it understands what `cargo nextest` and `cargo test` ask of one, and runs the tests one after
//! the other in the first thread. Run it directly to use it in a VM.

#![allow(clippy::unwrap_used)]

mod cgroup;
mod differential;
mod errors;
mod exec;
mod files;
mod harness;
mod hostile;
mod identity;
mod isolation;
mod limits;
mod mount_options;
mod notify;
mod process;
mod sandbox;
mod terminal;
mod user_namespace;

#[global_allocator]
static HEAP: berth_runtime::Heap = berth_runtime::Heap;

fn main() -> std::process::ExitCode {
    let groups: [(&str, &[harness::Test]); 15] = [
        ("isolation", isolation::TESTS),
        ("files", files::TESTS),
        ("identity", identity::TESTS),
        ("mount_options", mount_options::TESTS),
        ("notify", notify::TESTS),
        ("process", process::TESTS),
        ("user_namespace", user_namespace::TESTS),
        ("terminal", terminal::TESTS),
        ("exec", exec::TESTS),
        ("exec_traced", exec::TRACED),
        ("errors", errors::TESTS),
        ("differential", differential::TESTS),
        ("hostile", hostile::TESTS),
        ("cgroup", cgroup::TESTS),
        ("limits", limits::TESTS),
    ];
    harness::run(&groups, sandbox::prepare)
}
