//! A shim that is nothing but a shim: what the tests start in the place of `berth shim`.
//!
//! Without arguments it starts idle shims of one container each and prints what one of them costs, in memory and time:
//! `shim [COUNT]`, as root.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use berth_runtime::cgroup::Cgroups;
use berth_runtime::rootfs::Rootfs;
use berth_runtime::shim::client::Client;
use berth_runtime::shim::proto::{CreateRequest, ExecRequest, SOCKET};
use berth_runtime::shim::{self, Program, SpawnOptions};
use serde_json::json;

/// As the real one: its children may begin in its memory.
#[global_allocator]
static HEAP: berth_runtime::Heap = berth_runtime::Heap;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    if first.as_ref().is_some_and(|word| word == "shim") {
        return std::process::ExitCode::from(shim::main(args));
    }
    let count =
        first.and_then(|word| word.into_string().ok()).and_then(|word| word.parse().ok()).unwrap_or(10);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(measure(count))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What each step took, in the order of the shims.
#[derive(Default)]
struct Times {
    spawn: Vec<Duration>,
    create: Vec<Duration>,
    start: Vec<Duration>,
    exec: Vec<Duration>,
    delete: Vec<Duration>,
}

async fn measure(count: usize) -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("berth-shim-bench-{}", std::process::id()));
    let cgroup = format!("/berth-test-bench-{}", std::process::id());
    let mut clients = Vec::new();
    let mut times = Times::default();
    let result = run(&dir, &cgroup, count, &mut clients, &mut times).await;
    if result.is_ok() {
        println!("{count} idle shims of one container each");
        for (what, field) in [("PSS per shim", "Pss:"), ("of it not file-backed", "Pss_Anon:")] {
            let sizes: Result<Vec<u64>, _> =
                clients.iter().map(|client: &Client| size(client.welcome().pid, field)).collect();
            let sizes = sizes?;
            println!("{what:<23} {:>8} KiB", sizes.iter().sum::<u64>() / sizes.len().max(1) as u64);
        }
        for client in &clients {
            let before = Instant::now();
            client.delete("one").await?;
            times.delete.push(before.elapsed());
        }
        for (what, mut list) in [
            ("spawn", times.spawn),
            ("create", times.create),
            ("start", times.start),
            ("exec true, to its exit", times.exec),
            ("delete", times.delete),
        ] {
            list.sort();
            println!("{what:<23} {:>8.2} ms", list[list.len() / 2].as_secs_f64() * 1e3);
        }
    }
    for client in &clients {
        client.shutdown().await?;
    }
    Cgroups::detect()?.remove(&cgroup)?;
    std::fs::remove_dir_all(&dir)?;
    result
}

async fn run(
    dir: &Path,
    cgroup: &str,
    count: usize,
    clients: &mut Vec<Client>,
    times: &mut Times,
) -> Result<(), Box<dyn Error>> {
    let rootfs = dir.join("rootfs");
    for folder in ["bin", "proc", "dev", "sys"] {
        std::fs::create_dir_all(rootfs.join(folder))?;
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox"))?;
    // `SHIM=PATH` measures another program, such as the one that `berth` embeds.
    let program = std::env::var_os("SHIM").unwrap_or_else(|| "/proc/self/exe".into());
    let program = Program::from_file(Path::new(&program))?;
    for number in 0..count {
        let pod = dir.join(format!("pod{number}"));
        let bundle = pod.join("containers/one");
        std::fs::create_dir_all(&bundle)?;
        let spec = spec(&format!("{cgroup}/pod{number}/one"));
        std::fs::write(bundle.join("config.json"), spec.to_string())?;
        let options = SpawnOptions {
            dir: pod.clone(),
            net_new: true,
            ipc_new: true,
            uts_new: true,
            ..Default::default()
        };
        let before = Instant::now();
        shim::spawn(&program, &options)?;
        times.spawn.push(before.elapsed());
        let (client, _) = Client::connect(&pod.join(SOCKET)).await?;
        clients.push(client.clone());
        let before = Instant::now();
        client
            .create(CreateRequest {
                id: "one".to_owned(),
                rootfs: Rootfs::Path(rootfs.clone()),
                log_path: Some(pod.join("0.log")),
                bundle,
                log_max_size: 10 << 20,
                log_max_files: 5,
                stdin: false,
                stdin_once: false,
                tty: false,
                pod_pids: false,
                pids_of: None,
                runtime: None,
                start: false,
            })
            .await?;
        times.create.push(before.elapsed());
        let before = Instant::now();
        client.start("one").await?;
        times.start.push(before.elapsed());
        let process =
            json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/busybox", "true"], "env": []});
        let process = serde_json::from_value(process)?;
        let before = Instant::now();
        let exec = ExecRequest { container_id: "one".to_owned(), process, tty: false, stdin: false };
        let session = client.exec(exec).await?;
        client.wait_exec(session.exec_id).await?;
        times.exec.push(before.elapsed());
    }
    Ok(())
}

fn spec(cgroup: &str) -> serde_json::Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
            "args": ["/bin/busybox", "sleep", "1000"],
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
            "resources": {"memory": {"limit": 64 << 20}, "cpu": {"shares": 100}},
        },
    })
}

/// A figure of a process in KiB.
fn size(pid: i32, field: &str) -> Result<u64, Box<dyn Error>> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find(|line| line.starts_with(field)).ok_or("no such field")?;
    Ok(line.split_whitespace().nth(1).ok_or("no figure")?.parse()?)
}
