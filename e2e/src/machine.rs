//! A machine of its own, made of namespaces.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::tools;

/// Address of the machine on its link `up0`.
pub const ADDRESS: &str = "192.0.2.1";
/// Address of the outside, the machine's default gateway.
pub const OUTSIDE: &str = "192.0.2.2";

/// A task that is on its way out: `include/linux/sched.h`.
const PF_EXITING: u32 = 4;

/// PID 1 of a namespace: it reads its stdin until the test is gone, and reaps what is orphaned meanwhile. It tells its PID as
/// the test sees it, which it must read before it has a /proc of its own.
const INIT: &str = "read -r pid rest </proc/self/stat; mount -t proc proc /proc; ip link set lo up; echo $pid; cat >/dev/null; exit";

/// New network, mount and PID namespaces and their PID 1. Dropped, it takes every process inside with it.
#[derive(Debug)]
struct Namespaces {
    unshare: Child,
    pid: i32,
}

impl Namespaces {
    fn new() -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INIT]);
        let mut unshare =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start unshare")?;
        let mut line = String::new();
        BufReader::new(unshare.stdout.take().context("unshare has no stdout")?).read_line(&mut line)?;
        match line.trim().parse() {
            Ok(pid) => Ok(Self { unshare, pid }),
            Err(_) => bail!("unshare made no namespaces: these tests need root (CAP_SYS_ADMIN)"),
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        drop(self.unshare.stdin.take());
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// A process on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// PID as the machine sees it.
    pub pid: i32,
    /// One letter of `/proc/<pid>/stat`: `S`, `R`, `Z` ...
    pub state: char,
    /// Its words, separated by spaces.
    pub command: String,
}

/// CPU time by thread. Threads come and go, so two of these are compared thread by thread.
#[derive(Clone, Debug)]
pub struct Cpu(BTreeMap<PathBuf, u64>);

impl Cpu {
    /// What was used since `before`, but for threads that have ended since.
    pub fn since(&self, before: &Cpu) -> Duration {
        let spent = self.0.iter().map(|(task, ns)| ns.saturating_sub(*before.0.get(task).unwrap_or(&0)));
        Duration::from_nanos(spent.sum())
    }
}

/// See the crate's tour.
#[derive(Debug)]
pub struct Machine {
    inside: Namespaces,
    outside: Namespaces,
    /// Links that the kernel puts into every new network namespace (`tunl0`, `sit0` ..., as it was built).
    born_with: Vec<String>,
}

impl Machine {
    /// Makes one, linked to an outside of its own.
    pub fn new() -> Result<Self> {
        let mut machine =
            Self { inside: Namespaces::new()?, outside: Namespaces::new()?, born_with: Vec::new() };
        machine.born_with = machine.links()?.into_iter().filter(|l| l != "lo").collect();
        let peer = machine.outside.pid.to_string();
        // Named by PIDs as the host sees them, so only the network namespace is entered.
        let mut link = Command::new("nsenter");
        link.args(["-t", &machine.inside.pid.to_string(), "-n", "ip", "link", "add", "up0", "type", "veth"]);
        link.args(["peer", "name", "out0", "netns", &peer]);
        tools::run(link)?.ok()?;
        let setup = format!(
            "ip address add {ADDRESS}/24 dev up0 && ip link set up0 up && ip route add default via {OUTSIDE}"
        );
        machine.shell(&setup)?;
        let mut outside = machine.outside("sh");
        outside.args(["-c", &format!("ip address add {OUTSIDE}/24 dev out0 && ip link set out0 up")]);
        tools::run(outside)?.ok()?;
        Ok(machine)
    }

    /// A command that shares only the machine's network: whom it talks to outside knows its PIDs.
    pub fn network_command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.inside.pid.to_string(), "-n", "--"]).arg(program.as_ref());
        command
    }

    /// A command on the machine.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        enter(self.inside.pid, program.as_ref())
    }

    /// A command on the other end of the machine's link.
    pub fn outside(&self, program: impl AsRef<Path>) -> Command {
        enter(self.outside.pid, program.as_ref())
    }

    /// Runs a line of shell on the machine and gives its output.
    pub fn shell(&self, line: &str) -> Result<String> {
        let mut command = self.command("sh");
        command.args(["-c", line]);
        tools::run(command)?.ok()
    }

    /// The machine's root folder as the test sees it; `proc` in it is the machine's own.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.inside.pid))
    }

    /// Every process on the machine but its PID 1 and that one's helper. A process that is ending already is not one of
    /// them, unless its parent is another than PID 1 and has not waited for it yet.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let proc = self.root().join("proc");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&proc).context("list the machine's processes")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            // A process may end between the listing and the look.
            let Ok(stat) = std::fs::read_to_string(proc.join(format!("{pid}/stat"))) else { continue };
            let words = std::fs::read(proc.join(format!("{pid}/cmdline"))).unwrap_or_default();
            let command = String::from_utf8_lossy(&words).replace('\0', " ").trim().to_owned();
            let mut rest = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
            let state = rest.next().and_then(|s| s.chars().next()).unwrap_or('?');
            let parent = rest.next().unwrap_or_default();
            // Group, session, terminal, the terminal's group, flags: proc_pid_stat(5).
            let flags: u32 = rest.nth(4).and_then(|f| f.parse().ok()).unwrap_or(0);
            let ending = flags & PF_EXITING != 0 && (state != 'Z' || parent == "1");
            if pid != 1 && !ending && !(parent == "1" && command == "cat") {
                found.push(Process { pid, state, command });
            }
        }
        found.sort_by_key(|p| p.pid);
        Ok(found)
    }

    /// Sends a signal to processes, by PIDs as the machine sees them. Those that are gone already do not matter.
    pub fn kill(&self, signal: &str, pids: &[i32]) -> Result<()> {
        ensure!(pids.iter().all(|p| *p > 1), "PIDs to kill must be above 1: {pids:?}");
        if pids.is_empty() {
            return Ok(());
        }
        let mut command = self.command("kill");
        command.arg(format!("-{signal}")).args(pids.iter().map(i32::to_string));
        tools::run(command)?;
        Ok(())
    }

    /// Whether a process (a zombie is none) has this PID.
    pub fn alive(&self, pid: i32) -> bool {
        let stat = std::fs::read_to_string(self.root().join(format!("proc/{pid}/stat"))).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
    }

    /// CPU time that each thread of these processes has used so far.
    pub fn cpu(&self, pids: &[i32]) -> Result<Cpu> {
        let mut used = BTreeMap::new();
        for pid in pids {
            let tasks = self.root().join(format!("proc/{pid}/task"));
            for task in std::fs::read_dir(&tasks).with_context(|| format!("list {}", tasks.display()))? {
                let path = task?.path();
                // A thread may end between the listing and the look.
                let Ok(text) = std::fs::read_to_string(path.join("schedstat")) else { continue };
                let ns = text.split(' ').next().and_then(|n| n.parse().ok());
                used.insert(path, ns.with_context(|| format!("schedstat: {text:?}"))?);
            }
        }
        Ok(Cpu(used))
    }

    /// The mounts that the machine's PID 1 sees: mount point and type.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let path = format!("/proc/{}/mountinfo", self.inside.pid);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let mut mounts: Vec<String> = text
            .lines()
            .filter_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                Some(format!("{} {}", left.split(' ').nth(4)?, right.split(' ').next()?))
            })
            .collect();
        mounts.sort();
        Ok(mounts)
    }

    /// Names of the machine's network links, sorted, without those that it was born with.
    pub fn links(&self) -> Result<Vec<String>> {
        let text = self.shell("ip -o link show")?;
        let mut names: Vec<String> = text
            .lines()
            .filter_map(|l| l.split(": ").nth(1))
            .map(|n| n.split('@').next().unwrap_or(n).to_owned())
            .filter(|n| !self.born_with.contains(n))
            .collect();
        names.sort();
        Ok(names)
    }
}

fn enter(pid: i32, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-n", "-m", "-p", "--"]).arg(program);
    command
}
