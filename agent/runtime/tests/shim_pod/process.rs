//! The shim as a process.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use berth_runtime::cgroup::Cgroups;
use berth_runtime::shim::client::{Client, Error};
use berth_runtime::shim::{SpawnError, SpawnOptions, spawn};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{PATIENCE, Pod, exe, exists, until};

#[tokio::test]
async fn is_detached_and_protected() {
    let pod = Pod::new().await;
    let pid = pod.shim.pid;
    assert_eq!(pod.client.welcome().pid, pid);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!(fields[3], pid.to_string(), "its own session");
    assert!(stat.contains("(berth-shim)"));
    assert_eq!(std::fs::read_to_string(pod.dir.join("shim.pid")).unwrap(), format!("{pid}\n"));
    let mode = std::fs::metadata(pod.dir.join("shim.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for kind in ["net", "ipc", "uts"] {
        let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(theirs, std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap());
    }
    // Nothing of ours is open there, and its environment has nothing but how to allocate.
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(fds < 12, "{fds} descriptors");
    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert_eq!(environment, "GLIBC_TUNABLES=glibc.malloc.tcache_count=0\0");
    let writing = std::fs::File::options().write(true).open(format!("/proc/{pid}/exe"));
    // The kernel looks for who executes it first, then for how it is mounted.
    assert!(matches!(writing.unwrap_err().raw_os_error(), Some(libc::EROFS | libc::ETXTBSY)));
    // It does not end because somebody says so to a whole group.
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGPIPE] {
        kill(Pid::from_raw(pid), signal).unwrap();
    }
    pod.client.list().await.unwrap();
}

#[tokio::test]
async fn shutdown_leaves_nothing() {
    let mut pod = Pod::new().await;
    pod.start(&pod.container("one", "sleep 1000")).await;
    pod.create(&pod.container("two", "sleep 1000")).await;
    pod.client.shutdown().await.unwrap();
    assert_eq!(pod.exit_json("one").code, 137);
    let pid = pod.shim.pid;
    until("the shim's end", || !exists(pid)).await;
    assert!(!pod.dir.join("shim.sock").exists());
    assert!(Cgroups::detect().unwrap().list(&pod.cgroup).is_empty());
    // Two exits, then the end.
    for _ in 0..2 {
        pod.events.recv().await.unwrap();
    }
    assert!(tokio::time::timeout(PATIENCE, pod.events.recv()).await.unwrap().is_none());
    assert!(matches!(pod.client.list().await, Err(Error::Lost { .. })));
    let gone = Client::connect(&pod.dir.join("shim.sock")).await.unwrap_err();
    assert!(matches!(gone, Error::Connect { .. }));
}

#[tokio::test]
async fn killed_it_takes_its_containers_along_and_leaves_no_zombie() {
    let mut pod = Pod::new().await;
    pod.start(&pod.container("one", "echo up; sleep 1000 & sleep 1000")).await;
    pod.logged("one", "up").await;
    let pids = Cgroups::detect().unwrap().pids(&format!("{}/one", pod.cgroup)).unwrap();
    assert!(!pids.is_empty());
    let client = pod.client.clone();
    let waiting = tokio::spawn(async move { client.wait_exec(1).await });
    kill(Pid::from_raw(pod.shim.pid), Signal::SIGKILL).unwrap();
    assert!(tokio::time::timeout(PATIENCE, pod.events.recv()).await.unwrap().is_none());
    assert!(waiting.await.unwrap().is_err());
    let pid = pod.shim.pid;
    until("all to be gone", || !exists(pid) && pids.iter().all(|pid| !runs(*pid))).await;
    // Its place can be taken: the stale socket is removed.
    let options = SpawnOptions { dir: pod.dir.clone(), ..SpawnOptions::default() };
    let next = spawn(&exe(), &options).unwrap();
    let (client, _events) = pod.connect().await;
    assert_eq!(client.welcome().pid, next.pid);
    assert!(client.list().await.unwrap().is_empty());
    client.shutdown().await.unwrap();
}

/// Exists and is not a zombie: those that were handed to a process 1 that does not reap are not ours.
fn runs(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn one_folder_one_shim() {
    let pod = Pod::new().await;
    let options = SpawnOptions { dir: pod.dir.clone(), ..SpawnOptions::default() };
    let error = spawn(&exe(), &options).unwrap_err();
    assert!(
        matches!(&error, SpawnError::Refused { reason, .. } if reason.contains("another shim")),
        "{error}"
    );
    pod.client.list().await.unwrap();
    let none = SpawnOptions { dir: pod.dir.join("none"), ..SpawnOptions::default() };
    let error = spawn(&exe(), &none).unwrap_err().to_string();
    assert!(error.contains("shim.log"), "{error}");
}

#[tokio::test]
async fn a_very_long_path() {
    let pod =
        Pod::with(|options| options.dir = options.dir.join("x".repeat(120)).join("y".repeat(120))).await;
    pod.client.list().await.unwrap();
}

#[tokio::test]
async fn does_not_linger_when_its_folder_is_gone() {
    let pod = Pod::new().await;
    pod.start(&pod.container("one", "true")).await;
    pod.client.delete("one").await.unwrap();
    std::fs::remove_dir_all(&pod.dir).unwrap();
    let pid = pod.shim.pid;
    assert!(exists(pid));
    let Pod { client, events, .. } = pod;
    drop((client, events));
    until("the shim's end", || !exists(pid)).await;
}

#[tokio::test]
async fn port_forward_reaches_the_pods_loopback() {
    let pod = Pod::new().await;
    pod.start(&pod.container("one", "echo hello | nc -l -p 8080")).await;
    let socket = loop {
        match pod.client.connect_tcp(8080).await {
            Ok(socket) => break socket,
            Err(error) => assert!(error.to_string().contains("refused"), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut said = [0; 6];
    (&stream).read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello\n");
    let refused = pod.client.connect_tcp(81).await.unwrap_err();
    assert!(refused.to_string().contains("refused"), "{refused}");
}

#[tokio::test]
async fn idle_it_uses_no_cpu_and_little_memory() {
    let pod = Pod::new().await;
    pod.start(&pod.container("one", "sleep 1000")).await;
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/schedstat", pod.shim.pid)).unwrap();
        stat.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()
    };
    pod.client.list().await.unwrap();
    // Let the answer's own time slice end.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = ticks();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(ticks(), before, "it was scheduled while nothing happened");
    let status = std::fs::read_to_string(format!("/proc/{}/status", pod.shim.pid)).unwrap();
    let anon = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    let anon: u64 = anon.split_whitespace().nth(1).unwrap().parse().unwrap();
    // A debug build that is position-independent has its relocations here too.
    assert!(anon < 4096, "{anon} KiB of memory of its own");
}
