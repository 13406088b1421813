//! The attacker's programs.

use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::json;

use crate::sandbox::Sandbox;

/// The first argument that makes this program an attacker.
pub const WORD: &str = "--attack";

/// Where [`bring_into`] puts this program.
pub const PATH: &str = "/attacker";

pub fn main(args: &[String]) -> ExitCode {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["swap", one, other] => swap(Path::new(one), Path::new(other)),
        ["peek", mark] => peek(mark),
        ["inherit"] => {
            crate::sandbox::prepare();
            crate::privileges::with_inheritable();
            ExitCode::SUCCESS
        }
        _ => ExitCode::from(64),
    }
}

/// Exchanges two names as fast as the kernel lets it, until killed.
fn swap(one: &Path, other: &Path) -> ExitCode {
    let c = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let (one, other) = (c(one), c(other));
    println!("swapping");
    loop {
        // The container may remove what it likes meanwhile.
        let _ = renameat2(AT_FDCWD, one.as_c_str(), AT_FDCWD, other.as_c_str(), RenameFlags::RENAME_EXCHANGE);
    }
}

/// Looks for a file below the root and the working folder of every process in sight, and through their descriptors,
/// until it is found or the standard input ends. Prints what it saw.
fn peek(mark: &str) -> ExitCode {
    println!("peeking");
    let parent = std::os::unix::process::parent_id();
    let mut others = 0_u64;
    for round in 0_u64.. {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in
            processes.filter(|p| p.file_name().to_string_lossy().parse::<u32>().is_ok_and(|p| p > 1))
        {
            let path = process.path();
            if process.file_name().to_string_lossy() != std::process::id().to_string() {
                others += 1;
            }
            for way in ["root", "cwd"] {
                if path.join(way).join(mark).exists() {
                    println!("found through {}/{way}", path.display());
                    return ExitCode::FAILURE;
                }
            }
            for fd in fs::read_dir(path.join("fd")).into_iter().flatten().flatten() {
                if fd.path().join(mark).exists() {
                    println!("found through {}", fd.path().display());
                    return ExitCode::FAILURE;
                }
            }
        }
        if round % 64 == 0
            && (Path::new("/tmp/enough").exists() || std::os::unix::process::parent_id() != parent)
        {
            break;
        }
    }
    println!("nothing, in {} looks at others", others);
    ExitCode::SUCCESS
}

/// Makes this program available in the container, with its libraries.
pub fn bring_into(sandbox: &mut Sandbox) {
    for folder in ["/usr", "/lib", "/lib64"].into_iter().filter(|f| Path::new(f).exists()) {
        sandbox.push("/mounts", json!({"destination": folder, "source": folder, "options": ["rbind", "ro"]}));
    }
    let program = std::env::current_exe().unwrap();
    sandbox.push("/mounts", json!({"destination": PATH, "source": program, "options": ["bind", "ro"]}));
}

/// Exchanges two names in a process of its own while this lives.
pub struct Swapper(Child);

impl Swapper {
    pub fn start(one: &Path, other: &Path) -> Swapper {
        let mut child = Command::new("/proc/self/exe")
            .args([WORD, "swap"])
            .args([one, other])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "swapping\n");
        Swapper(child)
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes to a file at once, without following a link.
pub fn put(path: &Path, text: &str) {
    fs::File::create_new(path).unwrap().write_all(text.as_bytes()).unwrap();
}
