//! As much of libtest's command line as its callers use.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test: its name and its body, which panics on failure.
pub type Test = (&'static str, fn());

/// Lists or runs the tests that the command line selects. `prepare` comes before the first one.
pub fn run(groups: &[(&str, &[Test])], prepare: fn()) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let given = |flag: &str| args.iter().any(|a| a == flag);
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-') && *a != "terse").collect();
    let exact = given("--exact");
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|f| if exact { name == *f } else { name.contains(f.as_str()) })
    };
    let mut selected = Vec::new();
    for (group, tests) in groups {
        for (name, body) in *tests {
            let full = format!("{group}::{name}");
            // There are no ignored tests.
            if wanted(&full) && !given("--ignored") {
                selected.push((full, *body));
            }
        }
    }
    if given("--list") {
        selected.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !selected.is_empty() {
        prepare();
    }
    let failed: Vec<&str> =
        selected.iter().filter(|(name, body)| !passes(name, *body)).map(|(n, _)| &**n).collect();
    println!("test result: {} passed, {} failed", selected.len() - failed.len(), failed.len());
    failed.iter().for_each(|name| println!("    {name}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes(name: &str, body: fn()) -> bool {
    let passed = catch_unwind(AssertUnwindSafe(body)).is_ok();
    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    passed
}
