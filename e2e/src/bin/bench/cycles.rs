//! `run /bin/true` of OCI runtimes, side by side: `berth-oci` and, where they are installed, crun and runc.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_e2e::leftovers::remove_cgroups;
use berth_e2e::machine::Machine;
use berth_e2e::{poll, tools};
use serde_json::json;

use crate::table::{Row, Target, head};

/// The word by which this program measures on the machine, where no `nsenter` adds to every start.
pub const WORD: &str = "--cycles";

/// Runs per runtime and gap.
const RUNS: usize = 40;

/// Measures all runtimes, by turns.
pub fn compare() -> Result<()> {
    let dir =
        tempfile::Builder::new().prefix("berth-bench-").tempdir_in("/var/tmp").context("make a folder")?;
    let cgroup = format!("/berth-test-bench-{}", std::process::id());
    let machine = Machine::new()?;
    // crun refuses a hybrid tree whose v2 part has no controllers.
    machine.shell(
        "mount -t tmpfs run /run; if [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi",
    )?;
    bundle(dir.path(), &cgroup)?;
    symlink(tools::berth(), dir.path().join("berth-oci")).context("link berth-oci")?;
    let ours = dir.path().join("berth-oci").display().to_string();
    head("run /bin/true, whole cycle");
    for (gap, what, share) in [(0, "back to back", 0.6), (100, "100 ms apart", 0.3)] {
        let measure = |runtime: &str| {
            let mut command = machine.command(std::env::current_exe().context("this program")?);
            command.args([WORD, runtime, &RUNS.to_string(), &gap.to_string()]).arg(dir.path());
            let text = tools::run(command)?.ok()?;
            let times = text.lines().map(|l| l.parse().map(Duration::from_micros).context("a time"));
            times.collect::<Result<Vec<Duration>>>()
        };
        let own = measure(&ours)?;
        match measure("crun") {
            Ok(crun) => {
                Row::times(format!("berth-oci, {what}"), &own)
                    .beside("crun", &crun)
                    .target(Target::Share(share))
                    .print();
            }
            Err(why) => {
                Row::times(format!("berth-oci, {what}"), &own).target(Target::Share(share)).print();
                println!("crun cannot be measured: {why:#}");
            }
        }
        if let Ok(runc) = measure("runc") {
            Row::times("  the same", &own).beside("runc", &runc).target(Target::Share(1.0)).print();
        }
    }
    remove_cgroups(&cgroup);
    Ok(())
}

/// On the machine: runs a container `runs` times and prints what each took, in microseconds.
pub fn measure(words: &[String]) -> Result<()> {
    let [runtime, runs, gap, dir] = words else { anyhow::bail!("{WORD} RUNTIME RUNS GAP DIR") };
    let (runs, gap): (usize, u64) = (runs.parse()?, gap.parse()?);
    for number in 0..=runs {
        let mut command = Command::new(runtime);
        command.args(["run", "--bundle"]).arg(Path::new(dir).join("bundle")).arg(format!("cycle{number}"));
        let began = Instant::now();
        let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {runtime}"))?;
        let took = began.elapsed();
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // The first one warms up.
        if number > 0 {
            println!("{}", took.as_micros());
        }
        poll::pause(Duration::from_millis(gap));
    }
    Ok(())
}

fn bundle(dir: &Path, cgroup: &str) -> Result<()> {
    let bundle = dir.join("bundle");
    let root = bundle.join("rootfs");
    std::fs::create_dir_all(&root).context("make the bundle")?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(tools::demo_rootfs()?).arg("-C").arg(&root);
    tools::run(tar)?.ok()?;
    let capabilities = ["CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/true"], "env": ["PATH=/bin"],
            "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {
            "cgroupsPath": format!("{cgroup}/cycle"),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}],
            "resources": {"memory": {"limit": 64 << 20}, "cpu": {"shares": 512}, "pids": {"limit": 64}},
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys", "/proc/irq"],
        },
    });
    std::fs::write(bundle.join("config.json"), spec.to_string()).context("write the bundle's config.json")
}
