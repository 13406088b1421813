//! `make run`'s script, on a machine of its own.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use berth_e2e::machine::Machine;
use berth_e2e::{leftovers, tools};

#[test]
fn make_run_shows_its_pods_and_removes_everything_on_interrupt() {
    let machine = Machine::new().unwrap();
    let mounts = machine.mounts().unwrap();
    let base = std::env::var("BERTH_TEST_DIR").unwrap_or_else(|_| "/var/tmp".into());
    let dir = tempfile::Builder::new().prefix("berth-demo-").tempdir_in(base).unwrap();
    let cgroup = format!("/{}{}-demo", leftovers::CGROUP_PREFIX, std::process::id());
    let mut demo = machine.command(tools::checkout().join("scripts/demo"));
    demo.arg(tools::berth())
        .env("DEMO_DIR", dir.path().join("demo"))
        .env("DEMO_CGROUP", &cgroup)
        .env("DEMO_PORT", "8090");
    let mut demo = demo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut shown = String::new();
    for line in BufReader::new(demo.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        shown += &format!("{line}\n");
        if line.contains("watch the pods follow") {
            let script = machine
                .processes()
                .unwrap()
                .into_iter()
                .find(|p| p.command.contains("scripts/demo"))
                .unwrap();
            machine.kill("INT", &[script.pid]).unwrap();
        }
    }
    let mut errors = String::new();
    std::io::Read::read_to_string(&mut demo.stderr.take().unwrap(), &mut errors).unwrap();
    let status = demo.wait().unwrap();
    leftovers::remove_cgroups(&cgroup);
    assert!(status.success(), "{status}\n{shown}\n{errors}");
    for part in
        ["web-demo", "Berth runs this page", "the sum of 1 to 1000 is 500500", "of team harbour on node demo"]
    {
        assert!(shown.contains(part), "{part:?} was not shown:\n{shown}\n{errors}");
    }
    assert!(errors.contains("everything is removed"), "{errors}");
    assert!(!dir.path().join("demo").exists());
    assert_eq!(machine.processes().unwrap(), []);
    assert_eq!(machine.links().unwrap(), ["lo", "up0"]);
    assert_eq!(machine.mounts().unwrap(), mounts);
}
