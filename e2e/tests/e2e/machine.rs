//! The harness itself: a test stand that lies would make every other test worthless.

use std::time::Duration;

use berth_e2e::machine::{ADDRESS, Machine, OUTSIDE};
use berth_e2e::poll;

#[test]
fn a_machine_has_its_own_links_and_processes() {
    let machine = Machine::new().unwrap();
    assert_eq!(machine.links().unwrap(), ["lo", "up0"]);
    assert_eq!(machine.processes().unwrap(), []);
    machine.shell(&format!("busybox ping -c1 -W2 {OUTSIDE}")).unwrap();
    let mut ping = machine.outside("busybox");
    ping.args(["ping", "-c1", "-W2", ADDRESS]);
    berth_e2e::tools::run(ping).unwrap().ok().unwrap();
}

#[test]
fn an_orphan_is_seen_killed_and_reaped() {
    let machine = Machine::new().unwrap();
    machine.shell("setsid sleep 1000 >/dev/null 2>&1 </dev/null &").unwrap();
    let orphan = poll::until("the orphan sleeps", Duration::from_secs(5), || {
        Ok(machine.processes().unwrap().into_iter().find(|p| p.command == "sleep 1000"))
    })
    .unwrap();
    assert!(machine.alive(orphan.pid));
    machine.kill("KILL", &[orphan.pid]).unwrap();
    poll::until_true("the orphan is reaped", Duration::from_secs(5), || {
        machine.processes().unwrap().is_empty()
    })
    .unwrap();
}

#[test]
fn a_mount_on_a_machine_is_seen_there_and_not_outside() {
    let machine = Machine::new().unwrap();
    let before = machine.mounts().unwrap();
    machine.shell("mount -t tmpfs none /mnt").unwrap();
    let after = machine.mounts().unwrap();
    assert_eq!(after.iter().filter(|m| !before.contains(m)).collect::<Vec<_>>(), ["/mnt tmpfs"]);
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" /mnt "));
}

#[test]
fn the_harness_takes_a_killed_machine_with_it() {
    let machine = Machine::new().unwrap();
    machine.shell("setsid sleep 4321 >/dev/null 2>&1 </dev/null &").unwrap();
    let host_sees = || {
        let pids = std::fs::read_dir("/proc").unwrap().flatten().map(|e| e.path().join("cmdline"));
        pids.filter_map(|p| std::fs::read(p).ok()).any(|words| words == b"sleep\x004321\0")
    };
    poll::until_true("the host sees the process", Duration::from_secs(5), host_sees).unwrap();
    drop(machine);
    poll::until_true("it went with its machine", Duration::from_secs(5), || !host_sees()).unwrap();
}
