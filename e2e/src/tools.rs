//! The programs that tests run: where they are, and how a run is reported.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// What a program did.
#[derive(Clone, Debug)]
pub struct Ran {
    words: String,
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Its output.
    pub stdout: String,
    /// Its complaints.
    pub stderr: String,
}

impl Ran {
    /// Its output, if it ended with 0.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "{self}");
        Ok(self.stdout)
    }

    /// Itself, if it ended with this code.
    pub fn code(self, code: i32) -> Result<Ran> {
        ensure!(self.code == code, "expected exit code {code}: {self}");
        Ok(self)
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ended with {}; stdout: {:?}; stderr: {:?}",
            self.words, self.code, self.stdout, self.stderr
        )
    }
}

/// Runs a command to its end with `input` on its stdin.
pub fn run_with(mut command: Command, input: &[u8]) -> Result<Ran> {
    use std::os::unix::process::ExitStatusExt;
    let words = format!("{command:?}").replace('"', "");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {words}"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A program that does not read its input closes it; that is its business.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().with_context(|| format!("wait for {words}"))?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer of {words} panicked"))?;
    let status = output.status;
    Ok(Ran {
        words,
        code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// [`run_with`] and an empty stdin.
pub fn run(command: Command) -> Result<Ran> {
    run_with(command, b"")
}

/// The `berth` binary under test: `$BERTH_BIN`, else the debug build beside this test, brought up to date.
pub fn berth() -> &'static Path {
    static BERTH: OnceLock<PathBuf> = OnceLock::new();
    BERTH.get_or_init(|| {
        if let Some(path) = std::env::var_os("BERTH_BIN") {
            return PathBuf::from(path);
        }
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "-p", "berth"]).current_dir(checkout());
        run(cargo).and_then(Ran::ok).expect("cargo build -p berth");
        target_dir().join("debug/berth")
    })
}

/// The top of the checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e/ lies in the checkout")
}

/// cargo's target folder: the one that this program was built into.
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("/proc/self/exe can be read");
    // <target>/<profile>/bench, or <target>/<profile>/deps/<test>
    let profile = exe.ancestors().find(|p| p.ends_with("debug") || p.ends_with("release"));
    profile.and_then(Path::parent).expect("the test lies in cargo's target folder").to_path_buf()
}

/// A program from PATH or from `<target>/tools/bin`, where `scripts/install` unpacks what must not be installed.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin".into(), "/sbin".into(), target_dir().join("tools/bin")]);
    match folders.iter().map(|f| f.join(name)).find(|p| p.is_file()) {
        Some(found) => Ok(found),
        None => bail!("{name} is not there: run `make install-deps-test`"),
    }
}

/// A program that `scripts/install` has unpacked, whatever the machine has under that name.
pub fn unpacked(name: &str) -> Result<PathBuf> {
    let path = target_dir().join("tools/bin").join(name);
    ensure!(path.is_file(), "{} is not there: run `make install-deps-test`", path.display());
    Ok(path)
}

/// The tar of the demo image's root file system, made once per target folder.
pub fn demo_rootfs() -> Result<PathBuf> {
    let dir = target_dir().join("tmp");
    let tar = dir.join("demo-image.tar");
    if !tar.exists() {
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let made = tempfile::NamedTempFile::new_in(&dir).context("make a temporary file")?;
        let status = Command::new(checkout().join("scripts/demo-image")).stdout(made.reopen()?).status();
        ensure!(status.context("start scripts/demo-image")?.success(), "scripts/demo-image failed");
        made.persist(&tar).context("keep the demo image")?;
    }
    Ok(tar)
}
