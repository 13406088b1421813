//! Builds the shim's program and gives its path to the code that embeds it, and links `berth` at a fixed address: a
//! position-independent executable of this size dirties about 900 KB of relocated pages in every process.
//!
//! A program inside of another needs a second run of cargo, because it wants other features and flags than the rest:
//! static, without the agent's half of the runtime, as small as can be.

use std::env::{self, VarError};
use std::hash::{DefaultHasher, Hasher};
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for path in ["entry/src", "runtime/src", "runtime/Cargo.toml", "../Cargo.lock", "../Cargo.toml"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rustc-link-arg-bins=-no-pie");
    println!("cargo::rustc-link-arg-bins=-static");
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        // See src/sys/start.rs.
        println!("cargo::rustc-link-arg-bins=-Wl,--entry=berth_start");
    }
    match static_libraries() {
        Ok(folder) => println!("cargo::rustc-link-arg-bins=-L{}", folder.display()),
        Err(error) => println!("cargo::error=cannot write a linker script: {error}"),
    }
    match shim() {
        Ok((path, digest)) => {
            println!("cargo::rustc-env=BERTH_SHIM_PROGRAM={}", path.display());
            println!("cargo::rustc-env=BERTH_SHIM_DIGEST={digest:016x}");
        }
        Err(error) => println!("cargo::error=cannot build the shim's program: {error}"),
    }
}

/// A folder in which the linker finds the C library in parts to link in where rustc asks for the shared ones: those are
/// found, read, mapped, relocated and initialised at every start of a program, which for `berth-oci` is time that somebody
/// waits. (`crt-static` for the whole build would also apply to what is loaded into the compiler.)
fn static_libraries() -> std::io::Result<PathBuf> {
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("lib");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("libgcc_s.so"), "GROUP ( -lgcc_eh -lgcc )\n")?;
    for name in ["c", "m"] {
        std::fs::write(folder.join(format!("lib{name}.so")), format!("INPUT ( -l:lib{name}.a )\n"))?;
    }
    Ok(folder)
}

/// Builds the program; gives its path and a number that other builds of it do not have.
fn shim() -> Result<(PathBuf, u64), Box<dyn std::error::Error>> {
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
    let path = into.join(target).join(profile).join("berth-shim");
    let mut hasher = DefaultHasher::new();
    hasher.write(&std::fs::read(&path)?);
    Ok((path, hasher.finish()))
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
