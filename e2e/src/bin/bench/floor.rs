//! What a command costs in a container when it is started there by the shortest way there is: a process that has joined the
//! container's namespaces spawns it and waits. It says how much of an exec is the command's own.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_e2e::node::Node;
use berth_e2e::tools;
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{UsageWho, getrusage};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The word that makes the bench do this, see [`measure`].
pub const WORD: &str = "spawn-in";
/// So often the command is run.
const RUNS: u32 = 200;

/// Medians of one command.
#[derive(Clone, Copy, Debug)]
pub struct Floor {
    /// From before the spawn until the end is known, in milliseconds.
    pub wall: f64,
    /// CPU time of the command and of its start, in milliseconds.
    pub cpu: f64,
}

impl Floor {
    /// Measures `true` in the container whose first process is `pid` on the node's machine.
    pub fn of(node: &Node, pid: i32) -> Result<Floor> {
        let own = std::env::current_exe().context("find the bench's own program")?;
        let mut command = node.machine().command(own);
        command.args([WORD, &pid.to_string(), "true"]);
        let text = tools::run(command)?.ok()?;
        let mut numbers = text.split_whitespace().map(str::parse::<f64>);
        let mut next = || numbers.next().context("a number is missing")?.context("no number");
        Ok(Floor { wall: next()?, cpu: next()? })
    }
}

/// `bench spawn-in PID PROGRAM`: joins the namespaces of a process and prints the figures of a [`Floor`].
pub fn measure(words: &[String]) -> Result<()> {
    let [pid, program] = words else { anyhow::bail!("usage: bench {WORD} PID PROGRAM") };
    let pid = pid.parse().ok().and_then(Pid::from_raw).context("a process id")?;
    let process = pidfd_open(pid, PidfdFlags::empty()).context("open the container's process")?;
    let all = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET;
    setns(&process, all).context("join the container's namespaces")?;
    let mut times = Vec::new();
    let before = used()?;
    for _ in 0..RUNS {
        let began = Instant::now();
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/bin:/usr/bin");
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        ensure!(status.success(), "{program} ended with {status}");
    }
    let cpu = used()?.saturating_sub(before).as_secs_f64() * 1000.0 / f64::from(RUNS);
    times.sort_by(f64::total_cmp);
    println!("{} {cpu}", times[times.len() / 2]);
    Ok(())
}

/// CPU time of this process and of its children that have ended.
fn used() -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who).context("read the CPU time")?;
        for part in [usage.user_time(), usage.system_time()] {
            sum += Duration::new(u64::try_from(part.tv_sec())?, u32::try_from(part.tv_usec() * 1000)?);
        }
    }
    Ok(sum)
}
