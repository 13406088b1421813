//! User and time namespaces, and id-mapped mounts.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use berth_runtime::rootfs::Rootfs;
use serde_json::{Value, json};

use crate::harness::Test;
use crate::sandbox::{Output, Sandbox, stop, until};

pub const TESTS: &[Test] = &[
    ("the_maps_are_the_specs", maps),
    ("its_root_is_nobody_outside", root_outside),
    ("the_images_files_belong_to_its_users", image_files),
    ("a_plain_root_folder_is_taken_as_it_is", plain_root),
    ("all_standard_mounts_and_devices_work_in_it", mounts),
    ("sources_that_only_the_host_can_reach", unreachable_source),
    ("limits_and_scores_that_only_the_host_may_set", from_outside),
    ("another_user_of_it_writes_to_its_streams", streams),
    ("a_terminal_in_it", terminal),
    ("an_exec_is_the_same_user", exec),
    ("it_can_be_joined_with_new_namespaces_in_it", joined),
    ("a_host_namespace_can_be_joined_besides_a_new_one", host_network),
    ("a_pod_of_two_shares_all_but_files", pod),
    ("ones_own_user_namespace_by_path_is_inherited", own),
    ("maps_that_are_wrong_are_refused", wrong_maps),
    ("clocks_are_shifted", clocks),
    ("clocks_are_shifted_in_a_user_namespace_and_for_an_exec", clocks_of_user),
    ("a_time_namespace_can_be_joined", joined_time),
    ("wrong_offsets_are_refused", wrong_offsets),
    ("a_mount_with_maps_of_its_own", idmapped),
    ("a_mount_with_the_containers_maps", container_idmap),
    ("what_cannot_be_mapped_is_refused", not_mappable),
];

const OUTER: u32 = 200_000;

fn mapping() -> Value {
    json!([{"containerID": 0, "hostID": OUTER, "size": 65536}])
}

fn with_user(script: &str) -> Sandbox {
    let mut sandbox = Sandbox::script(script);
    sandbox.push("/linux/namespaces", json!({"type": "user"}));
    sandbox.spec["linux"]["uidMappings"] = mapping();
    sandbox.spec["linux"]["gidMappings"] = mapping();
    // Its new root must come through to its files.
    fs::set_permissions(sandbox.host("upper"), fs::Permissions::from_mode(0o755)).unwrap();
    sandbox
}

fn join(sandbox: &mut Sandbox, kind: &str, pid: i32, file: &str) {
    let list = sandbox.spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|n| n["type"] != kind);
    list.push(json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
}

fn words(output: &Output) -> Vec<String> {
    output.ok().split_whitespace().map(str::to_owned).collect()
}

fn maps() {
    let mut sandbox = with_user("cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; id -G");
    let gid = json!([{"containerID": 0, "hostID": 300_000, "size": 10}, {"containerID": 10, "hostID": 5, "size": 1}]);
    sandbox.spec["linux"]["gidMappings"] = gid;
    sandbox.spec["process"]["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [10]});
    let expected = ["0", "200000", "65536", "0", "300000", "10", "10", "5", "1", "7", "8", "8", "10"];
    assert_eq!(words(&sandbox.run()), expected);
}

fn root_outside() {
    let sandbox = with_user("sleep 100");
    let container = sandbox.start().unwrap();
    let owner = fs::metadata(format!("/proc/{}", container.pid)).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid)).unwrap();
    let kinds = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let shared: Vec<&str> = kinds
        .into_iter()
        .filter(|k| {
            let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{k}")).unwrap();
            link("self") == link(&container.pid.to_string())
        })
        .collect();
    stop(&container);
    assert_eq!((owner.uid(), owner.gid()), (OUTER, OUTER));
    assert!(status.contains("Uid:\t200000\t200000\t200000\t200000"), "{status}");
    assert!(shared.is_empty(), "{shared:?}");
}

fn image_files() {
    let sandbox = with_user("stat -c %u:%g /etc/passwd /web; echo x > /etc/passwd; echo new > /new");
    fs::write(sandbox.image("web"), "").unwrap();
    chown(sandbox.image("web"), Some(33), Some(34)).unwrap();
    assert_eq!(sandbox.run().ok(), "0:0\n33:34");
    // The writable layer holds the users of the image, so that it can be used with other maps, too.
    let made = fs::metadata(sandbox.host("upper/new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0));
    assert!(
        fs::read_to_string(sandbox.image("etc/passwd")).unwrap().starts_with("root"),
        "the image is untouched"
    );
}

fn plain_root() {
    let sandbox = with_user("stat -c %u / /bin; touch /tmp/mark");
    let rootfs = Rootfs::Path(sandbox.host("lower"));
    chown(sandbox.host("lower"), Some(OUTER), Some(OUTER)).unwrap();
    chown(sandbox.image("tmp"), Some(OUTER), Some(OUTER)).unwrap();
    // The way to it is closed for others, as in /var/lib/containers.
    fs::set_permissions(sandbox.host(""), fs::Permissions::from_mode(0o700)).unwrap();
    let mut container = sandbox.create_with(&rootfs, sandbox.stdio("out", "err")).unwrap();
    container.start().unwrap();
    assert_eq!(sandbox.finish(container).ok(), "0\n65534");
    assert_eq!(fs::metadata(sandbox.image("tmp/mark")).unwrap().uid(), OUTER);
}

fn mounts() {
    let script = "for p in / /proc /dev /dev/pts /dev/shm /sys; do stat -f -c %T $p; done
        cd /dev; for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' $d; done
        echo x > null && head -c 2 zero | wc -c; readlink stdout; touch /dev/shm/x /dev/x && echo writable
        wc -c < /proc/timer_list; touch /proc/sys/kernel/x 2>/dev/null || echo ro; cat /proc/sys/net/ipv4/ip_forward
        stat -c %u:%g /dev/mqueue; test -d /sys/fs/cgroup && ls /sys/fs/cgroup | grep -q . && echo cgroup; hostname";
    let mut sandbox = with_user(script);
    sandbox.spec["hostname"] = json!("inside");
    sandbox.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    let output = sandbox.run();
    let lines: Vec<&str> = output.ok().lines().collect();
    assert_eq!(lines[1..6], ["proc", "tmpfs", "devpts", "tmpfs", "sysfs"], "{output:?}");
    let devices =
        ["null 1:3 666", "zero 1:5 666", "full 1:7 666", "random 1:8 666", "urandom 1:9 666", "tty 5:0 666"];
    assert_eq!(lines[6..12], devices, "{output:?}");
    assert_eq!(
        lines[12..],
        ["2", "/proc/self/fd/1", "writable", "0", "ro", "1", "0:0", "cgroup", "inside"],
        "{output:?}"
    );
}

fn unreachable_source() {
    let mut sandbox = with_user("cat /data/file; touch /data/x 2>/dev/null || echo ro");
    fs::create_dir_all(sandbox.host("closed/data")).unwrap();
    fs::write(sandbox.host("closed/data/file"), "reached\n").unwrap();
    chown(sandbox.host("closed"), Some(1234), Some(1234)).unwrap();
    fs::set_permissions(sandbox.host("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    sandbox.push(
        "/mounts",
        json!({"destination": "/data", "source": "closed/data", "options": ["rbind", "ro"]}),
    );
    assert_eq!(sandbox.run().ok(), "reached\nro");
}

fn from_outside() {
    let mut sandbox = with_user("ulimit -n; cat /proc/self/oom_score_adj; cut -d' ' -f19 /proc/self/stat");
    sandbox.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 78}]);
    sandbox.spec["process"]["oomScoreAdj"] = json!(321);
    sandbox.spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": -5});
    assert_eq!(sandbox.run().ok(), "77\n321\n-5");
}

fn streams() {
    let mut sandbox = with_user("echo again > /dev/stdout");
    sandbox.spec["process"]["user"] = json!({"uid": 33, "gid": 34});
    assert_eq!(sandbox.run().ok(), "again");
    assert_eq!(fs::metadata(sandbox.host("out")).unwrap().uid(), OUTER + 33);
}

fn terminal() {
    let mut sandbox = with_user("tty; stat -c %u /dev/pts/0; sleep 100");
    sandbox.spec["process"]["terminal"] = json!(true);
    sandbox.spec["process"]["user"] = json!({"uid": 33, "gid": 34});
    let mut container = sandbox.create().unwrap();
    let console = container.console.take().unwrap();
    container.start().unwrap();
    let mut text = String::new();
    while text.lines().count() < 2 || !text.ends_with('\n') {
        let mut ready = [nix::poll::PollFd::new(console.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut ready, 10_000_u16).unwrap();
        let mut buffer = [0; 200];
        let read = nix::unistd::read(&console, &mut buffer).unwrap();
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    stop(&container);
    assert_eq!(text.lines().collect::<Vec<_>>(), ["/dev/pts/0", "33"]);
}

fn exec() {
    let sandbox = with_user("sleep 100");
    let container = sandbox.start().unwrap();
    let script = "readlink /proc/self/ns/user; cat /proc/self/uid_map; id -u; ulimit -n; touch /made; stat -c %u /made";
    let process =
        json!({"args": ["sh", "-c", script], "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 55, "hard": 60}]});
    let output = sandbox.exec_process(&container, process);
    let other =
        json!({"args": ["sh", "-c", "id -u; echo again > /dev/stdout"], "user": {"uid": 33, "gid": 34}});
    let other = sandbox.exec_process(&container, other);
    let namespace = fs::read_link(format!("/proc/{}/ns/user", container.pid)).unwrap();
    stop(&container);
    assert_eq!(words(&output), [namespace.to_str().unwrap(), "0", "200000", "65536", "0", "55", "0"]);
    assert_eq!(other.ok(), "again", "what was written before is overwritten");
}

fn joined() {
    let first = with_user("sleep 100");
    let running = first.start().unwrap();
    let mut second = Sandbox::script(
        "readlink /proc/self/ns/user; echo $$; hostname; cat /proc/self/uid_map; stat -c %u /etc",
    );
    join(&mut second, "user", running.pid, "user");
    second.spec["hostname"] = json!("second");
    let output = second.run();
    let namespace = fs::read_link(format!("/proc/{}/ns/user", running.pid)).unwrap();
    stop(&running);
    let expected = [namespace.to_str().unwrap(), "1", "second", "0", "200000", "65536", "0"];
    assert_eq!(words(&output), expected);
}

fn host_network() {
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    let mut sandbox = with_user("readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; echo $$; id -u");
    join(&mut sandbox, "network", std::process::id() as i32, "net");
    // Only who owns the network may see it by a sysfs of their own.
    sandbox.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|m| !m["destination"].as_str().unwrap().starts_with("/sys"));
    let output = sandbox.run();
    let lines = words(&output);
    assert_eq!(lines[0], host.to_str().unwrap());
    assert_ne!(lines[1], fs::read_link("/proc/self/ns/ipc").unwrap().to_str().unwrap());
    assert_eq!(lines[2..], ["1", "0"]);
}

fn pod() {
    let first = with_user("sleep 100");
    let running = first.start().unwrap();
    let mut second = Sandbox::script("cat /proc/1/cmdline | tr '\\0' ' '; id -u; exec sleep 101");
    for (kind, file) in [("user", "user"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")]
    {
        join(&mut second, kind, running.pid, file);
    }
    let container = second.start().unwrap();
    let text = || fs::read_to_string(second.host("out")).unwrap();
    until("the second container's words", || text().ends_with('\n'));
    let same = ["user", "net", "ipc", "uts", "pid", "mnt"].map(|k| {
        let link = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{k}")).unwrap();
        link(container.pid) == link(running.pid)
    });
    stop(&container);
    stop(&running);
    assert_eq!(text(), "sleep 100 0\n");
    assert_eq!(same, [true, true, true, true, true, false]);
}

fn own() {
    let mut sandbox = Sandbox::script("readlink /proc/self/ns/user");
    join(&mut sandbox, "user", std::process::id() as i32, "user");
    assert_eq!(sandbox.run().ok(), fs::read_link("/proc/self/ns/user").unwrap().to_str().unwrap());
}

fn wrong_maps() {
    let mut sandbox = with_user("true");
    sandbox.spec["linux"]["gidMappings"] = json!([]);
    assert!(sandbox.error().starts_with("linux.gidMappings"), "none");
    sandbox.spec["linux"]["gidMappings"] =
        json!([{"containerID": 0, "hostID": 1, "size": 5}, {"containerID": 2, "hostID": 100, "size": 5}]);
    let error = sandbox.error();
    assert!(error.contains("gid_map"), "overlapping: {error}");
    let mut sandbox = with_user("true");
    sandbox.spec["linux"]["uidMappings"] = json!([{"containerID": 5, "hostID": 1, "size": 5}]);
    let error = sandbox.error();
    assert!(error.contains("root of the user namespace"), "no root: {error}");
}

/// Seconds since boot as the container sees them.
const UPTIME: &str = "cut -d. -f1 /proc/uptime";

fn uptime() -> i64 {
    fs::read_to_string("/proc/uptime").unwrap().split('.').next().unwrap().parse().unwrap()
}

fn with_time(sandbox: &mut Sandbox) {
    sandbox.push("/linux/namespaces", json!({"type": "time"}));
    sandbox.spec["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 7, "nanosecs": 5}});
}

fn assert_shifted(text: &str) {
    let seen: i64 = text.trim().parse().unwrap();
    let distance = seen - uptime() - 1_000_000;
    assert!((-60..=0).contains(&distance), "{seen} is {distance} s off");
}

fn clocks() {
    let mut sandbox = Sandbox::script(&format!("{UPTIME}; cat /proc/self/timens_offsets"));
    with_time(&mut sandbox);
    let output = sandbox.run();
    let (uptime, offsets) = output.ok().split_once('\n').unwrap();
    assert_shifted(uptime);
    let offsets: Vec<&str> = offsets.split_whitespace().collect();
    assert_eq!(offsets, ["monotonic", "7", "5", "boottime", "1000000", "0"]);
}

fn clocks_of_user() {
    let mut sandbox = with_user("sleep 100");
    with_time(&mut sandbox);
    let container = sandbox.start().unwrap();
    let output = sandbox.exec(&container, UPTIME);
    stop(&container);
    assert_shifted(output.ok());
}

fn joined_time() {
    let mut first = Sandbox::script("sleep 100");
    with_time(&mut first);
    let running = first.start().unwrap();
    let mut second = Sandbox::script(UPTIME);
    join(&mut second, "time", running.pid, "time");
    let output = second.run();
    stop(&running);
    assert_shifted(output.ok());
}

fn wrong_offsets() {
    let mut sandbox = Sandbox::script("true");
    sandbox.spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1}});
    assert_eq!(sandbox.error(), "linux.timeOffsets: it needs a new time namespace");
    sandbox.push("/linux/namespaces", json!({"type": "time"}));
    sandbox.spec["linux"]["timeOffsets"] = json!({"realtime": {"secs": 1}});
    assert!(sandbox.error().starts_with("linux.timeOffsets[realtime]"));
    sandbox.spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": -4_000_000_000_i64}});
    assert!(sandbox.error().contains("linux.timeOffsets"), "before the machine's boot");
}

fn folder_of(sandbox: &Sandbox, name: &str, owner: u32) {
    fs::create_dir_all(sandbox.host(name).join("below")).unwrap();
    fs::write(sandbox.host(name).join("file"), "").unwrap();
    chown(sandbox.host(name).join("file"), Some(owner), Some(owner)).unwrap();
}

fn idmapped() {
    let mut sandbox = Sandbox::script("stat -c %u:%g /data/file; touch /data/new /data/below/new");
    folder_of(&sandbox, "data", 1000);
    for folder in ["data", "data/below"] {
        chown(sandbox.host(folder), Some(2000), Some(2000)).unwrap();
    }
    let map = |inner: u32, outer: u32| json!([{"containerID": inner, "hostID": outer, "size": 1}]);
    let maps = |outer: u32| json!([map(1000, outer)[0], map(2000, 0)[0]]);
    sandbox.push(
        "/mounts",
        json!({"destination": "/data", "source": "data", "options": ["bind"], "uidMappings": maps(41), "gidMappings": maps(42)}),
    );
    assert_eq!(sandbox.run().ok(), "41:42");
    // What the container's root makes is 2000's on the disk.
    assert_eq!(fs::metadata(sandbox.host("data/new")).unwrap().uid(), 2000);
}

fn container_idmap() {
    let mut sandbox =
        with_user("stat -c %u:%g /data/file /all/file /plain/file; stat -c %u /data/m/f /all/m/f");
    folder_of(&sandbox, "data", 33);
    fs::create_dir(sandbox.host("data/m")).unwrap();
    let none = None::<&str>;
    nix::mount::mount(Some("t"), &sandbox.host("data/m"), Some("tmpfs"), nix::mount::MsFlags::empty(), none)
        .unwrap();
    fs::write(sandbox.host("data/m/f"), "").unwrap();
    for (destination, options) in [
        ("/data", json!(["rbind", "idmap"])),
        ("/all", json!(["rbind", "ridmap"])),
        ("/plain", json!(["rbind"])),
    ] {
        sandbox.push("/mounts", json!({"destination": destination, "source": "data", "options": options}));
    }
    let output = sandbox.run();
    nix::mount::umount2(&sandbox.host("data/m"), nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(output.ok(), "33:33\n33:33\n65534:65534\n65534\n0");
}

fn not_mappable() {
    let mut sandbox = Sandbox::script("true");
    sandbox.push(
        "/mounts",
        json!({"destination": "/t", "type": "tmpfs", "uidMappings": mapping(), "gidMappings": mapping()}),
    );
    assert_eq!(sandbox.error(), "mounts[/t]: only a bind mount can be id-mapped");
    let mut sandbox = Sandbox::script("true");
    folder_of(&sandbox, "data", 0);
    sandbox.push("/mounts", json!({"destination": "/d", "source": "data", "options": ["bind", "idmap"]}));
    assert!(sandbox.error().starts_with("linux.uidMappings"), "no maps to take");
    let mut sandbox = Sandbox::script("true");
    sandbox.push("/mounts", json!({"destination": "/d", "source": "/proc", "options": ["bind"], "uidMappings": mapping(), "gidMappings": mapping()}));
    assert!(sandbox.error().starts_with("map the users of /proc"), "procfs cannot be mapped");
}
