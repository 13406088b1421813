//! Published container escapes, replayed against the engine, as root.
//!
//! Each test is named after what was published and attacks in the same way: hostile images, hostile specs, volumes that
//! another process changes while they are mounted, and hostile processes in the container that is visited. Its comment
//! says which defence it tests; without that defence it fails.
//!
//! The program is the attacker's, too (see `attacker`), because shells are too slow to win races. The harness is that of
//! the engine's tests.

#![allow(clippy::unwrap_used)]

mod attacker;
mod descriptors;
#[path = "../engine/harness.rs"]
mod harness;
mod kernel;
mod passwd;
mod privileges;
mod procfs;
mod races;
#[path = "../engine/sandbox.rs"]
#[allow(dead_code)]
mod sandbox;
mod targets;

#[global_allocator]
static HEAP: berth_runtime::Heap = berth_runtime::Heap;

fn main() -> std::process::ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(attacker::WORD) {
        return attacker::main(&args.collect::<Vec<_>>());
    }
    let groups: [(&str, &[harness::Test]); 7] = [
        ("targets", targets::TESTS),
        ("procfs", procfs::TESTS),
        ("races", races::TESTS),
        ("descriptors", descriptors::TESTS),
        ("kernel", kernel::TESTS),
        ("passwd", passwd::TESTS),
        ("privileges", privileges::TESTS),
    ];
    harness::run(&groups, sandbox::prepare)
}
