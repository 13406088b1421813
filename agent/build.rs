//! Builds the shim's program and gives its path to the code that embeds it, and links `berth` at a fixed address: a
//! position-independent executable of this size dirties about 900 KB of relocated pages in every process.
//!
//! A program inside of another needs a second run of cargo, because it wants other features and flags than the rest:
//! static, without the agent's half of the runtime, as small as can be.

use std::env::{self, VarError};
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for path in ["runtime/src", "runtime/Cargo.toml", "../Cargo.lock", "../Cargo.toml"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rustc-link-arg-bins=-no-pie");
    match shim() {
        Ok(path) => println!("cargo::rustc-env=BERTH_SHIM_PROGRAM={}", path.display()),
        Err(error) => println!("cargo::error=cannot build the shim's program: {error}"),
    }
}

/// Builds the program; gives its path.
fn shim() -> Result<PathBuf, Box<dyn std::error::Error>> {
    let profile = if env::var("PROFILE")? == "release" { "shim" } else { "shim-dev" };
    let target = env::var("TARGET")?;
    let into = PathBuf::from(env::var("OUT_DIR")?).join("shim");
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo
        .args(["build", "--quiet", "--locked", "--package", "berth-runtime", "--bin", "berth-shim"])
        .args(["--no-default-features", "--features", "shim-program"])
        .args(["--profile", profile, "--target", &target, "--target-dir"])
        .arg(&into)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags());
    // What clippy and cross-checks set for the crate around this one.
    for name in ["RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR", "CLIPPY_ARGS"] {
        cargo.env_remove(name);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("cargo ended with {status}").into());
    }
    Ok(into.join(target).join(profile).join("berth-shim"))
}

/// The caller's flags, such as those of a coverage run, do not apply to what is embedded, but for a linker.
fn flags() -> String {
    let own = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static"];
    let given = match env::var("CARGO_ENCODED_RUSTFLAGS") {
        Err(VarError::NotPresent) | Err(VarError::NotUnicode(_)) => String::new(),
        Ok(flags) => flags,
    };
    let linker = given.split('\u{1f}').filter(|flag| flag.starts_with("-Clinker"));
    linker.chain(own).collect::<Vec<_>>().join("\u{1f}")
}
