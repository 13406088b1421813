//! Measures create and start of a container, as root: medians of each step in milliseconds.
//!
//! `cargo run --release -p berth-runtime --example start_bench [rounds]`. Uses /bin/busybox.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use berth_runtime::cgroup::{Cgroups, Driver};
use berth_runtime::container::seccomp::default_profile;
use berth_runtime::container::{self, Create, Entrance, Exec, Stdio, Terms, Tie, Timings};
use berth_runtime::rootfs::Rootfs;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Process, Spec};

type Failure = Box<dyn std::error::Error>;

/// Times of one step, in milliseconds.
struct Step(&'static str, Vec<f64>);

impl Step {
    fn time<T>(&mut self, body: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let value = body();
        self.1.push(start.elapsed().as_secs_f64() * 1000.0);
        value
    }

    fn print(&mut self) {
        self.1.sort_by(f64::total_cmp);
        let at = |part: f64| self.1[((self.1.len() - 1) as f64 * part) as usize];
        println!(
            "{:<28} p10 {:7.3}  p50 {:7.3}  p90 {:7.3}  max {:7.3}",
            self.0,
            at(0.1),
            at(0.5),
            at(0.9),
            at(1.0)
        );
    }
}

fn main() -> Result<(), Failure> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(200), |a| a.parse())?;
    let dir = tempfile::Builder::new().prefix("berth-bench-").tempdir_in("/var/tmp")?;
    let cgroup = format!("/berth-bench-{}", std::process::id());
    let result = measure(rounds, dir.path(), &cgroup);
    Cgroups::detect()?.remove(&cgroup)?;
    result
}

fn measure(rounds: usize, dir: &Path, parent: &str) -> Result<(), Failure> {
    let lower = dir.join("lower");
    for sub in ["bin", "proc", "sys", "dev", "etc"] {
        fs::create_dir_all(lower.join(sub))?;
    }
    fs::copy("/bin/busybox", lower.join("bin/true"))?;
    fs::copy("/bin/busybox", lower.join("bin/sleep"))?;
    let cgroups = Cgroups::detect()?;
    let mut steps = [
        Step("create", Vec::new()),
        Step("start", Vec::new()),
        Step("create + start", Vec::new()),
        Step("exit and wait", Vec::new()),
        Step("remove cgroup", Vec::new()),
        Step("exec + wait, shared memory", Vec::new()),
        Step("exec + wait, own memory", Vec::new()),
        Step("  of create: namespaces", Vec::new()),
        Step("  of create: mounts", Vec::new()),
        Step("  of create: cgroups", Vec::new()),
        Step("  of create: process", Vec::new()),
    ];
    for round in 0..rounds {
        let cgroup = format!("{parent}/{round}");
        let spec = spec(&cgroup, &["true"])?;
        let (upper, work) = (dir.join(format!("u{round}")), dir.join(format!("w{round}")));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        let rootfs = Rootfs::Overlay { lowers: vec![lower.clone()], upper, work };
        let create = Create {
            id: "bench",
            spec: &spec,
            rules: None,
            rootfs: &rootfs,
            stdio: Stdio::default(),
            bundle: dir,
            tie: Tie::default(),
            driver: Driver::default(),
            everywhere: false,
            at_once: false,
            no_pivot: false,
            patience: None,
        };
        let whole = Instant::now();
        let mut container = steps[0].time(|| container::create(create))?;
        let Timings { namespaces, mounts, cgroups: cgroup_time, process } = container.timings;
        for (step, time) in [namespaces, mounts, cgroup_time, process].into_iter().enumerate() {
            steps[7 + step].1.push(time.as_secs_f64() * 1000.0);
        }
        steps[1].time(|| container.start())?;
        steps[2].1.push(whole.elapsed().as_secs_f64() * 1000.0);
        steps[3].time(|| waitid(Id::PIDFd(container.pidfd.as_fd()), WaitPidFlag::WEXITED))?;
        steps[4].time(|| cgroups.remove(&cgroup))?;
    }
    measure_exec(rounds, dir, parent, &lower, &mut steps[5..7])?;
    steps.iter_mut().for_each(Step::print);
    Ok(())
}

fn measure_exec(
    rounds: usize,
    dir: &Path,
    parent: &str,
    lower: &Path,
    steps: &mut [Step],
) -> Result<(), Failure> {
    let cgroup = format!("{parent}/exec");
    let spec = spec(&cgroup, &["sleep", "1000"])?;
    let (upper, work) = (dir.join("ue"), dir.join("we"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let rootfs = Rootfs::Overlay { lowers: vec![lower.to_owned()], upper, work };
    let create = Create {
        id: "bench",
        spec: &spec,
        rules: None,
        rootfs: &rootfs,
        stdio: Stdio::default(),
        bundle: dir,
        tie: Tie::default(),
        driver: Driver::default(),
        everywhere: false,
        at_once: false,
        no_pivot: false,
        patience: None,
    };
    let mut container = container::create(create)?;
    container.start()?;
    let process = process(&["true"])?;
    let (terms, entrance) = (Terms::of_spec(&spec, "bench", Path::new("/"))?, Entrance::open(&cgroup)?);
    for (step, untraced) in steps.iter_mut().zip([true, false]) {
        let before = cpu_time()?;
        for _ in 0..rounds {
            let exec = Exec {
                pid: container.pid,
                terms: &terms,
                process: process.clone(),
                stdio: Stdio::default(),
                entrance: &entrance,
                tie: Tie::default(),
                untraced,
                patience: container::EXEC_PATIENCE,
            };
            step.time(|| -> Result<(), Failure> {
                let started = container::exec(exec)?;
                waitid(Id::PIDFd(started.pidfd.as_fd()), WaitPidFlag::WEXITED)?;
                Ok(())
            })?;
        }
        println!("{:<28} CPU {:7.3}", step.0, (cpu_time()? - before) * 1000.0 / rounds as f64);
    }
    Cgroups::detect()?.kill(&cgroup)?;
    waitid(Id::PIDFd(container.pidfd.as_fd()), WaitPidFlag::WEXITED)?;
    Ok(())
}

/// Seconds of this process and its children that have ended.
fn cpu_time() -> Result<f64, Failure> {
    let mut sum = 0.0;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for part in [usage.user_time(), usage.system_time()] {
            sum += part.tv_sec() as f64 + part.tv_usec() as f64 / 1e6;
        }
    }
    Ok(sum)
}

fn process(args: &[&str]) -> Result<Process, Failure> {
    let capabilities = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETGID", "CAP_SETUID", "CAP_KILL", "CAP_MKNOD"];
    Ok(serde_json::from_value(serde_json::json!({
        "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/", "noNewPrivileges": true,
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
    }))?)
}

/// What a container of a pod has: network, IPC and UTS namespaces of the pod, limits, masks and the default filter.
fn spec(cgroup: &str, args: &[&str]) -> Result<Spec, Failure> {
    let mut spec = Spec::default();
    let process = process(args)?;
    let seccomp = process.capabilities().as_ref().map(default_profile);
    spec.set_process(Some(process)).set_hostname(None);
    if let Some(root) = spec.root_mut() {
        root.set_readonly(Some(false));
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(Some(cgroup.into()));
        linux.set_seccomp(seccomp);
        let new = |kind| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(kind);
            namespace
        };
        let kinds = [LinuxNamespaceType::Pid, LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup];
        linux.set_namespaces(Some(kinds.map(new).to_vec()));
        linux.set_resources(Some(serde_json::from_value(serde_json::json!({
            "cpu": {"shares": 512, "quota": 100_000, "period": 100_000},
            "memory": {"limit": 128 << 20}, "pids": {"limit": 100},
            "devices": [{"allow": false, "access": "rwm"}],
        }))?));
    }
    Ok(spec)
}
