//! Root file system, mounts and devices.

use std::fs;
use std::os::unix::fs::symlink;

use berth_runtime::rootfs::Rootfs;
use serde_json::json;

use crate::harness::Test;
use crate::sandbox::{Sandbox, stop};

pub const TESTS: &[Test] = &[
    ("the_overlay_takes_writes_in_its_upper_layer", overlay),
    ("the_top_layer_wins", layers),
    ("two_hundred_layers_with_long_paths", many_layers),
    ("a_folder_can_be_the_root", plain_root),
    ("a_readonly_root_refuses_writes", readonly_root),
    ("binds_of_folders_and_files", binds),
    ("a_readonly_bind_is_readonly_at_every_depth", readonly_binds),
    ("mount_flags_are_set", flags),
    ("a_slave_mount_sees_what_the_host_mounts_later", propagation),
    ("a_tmpfs_can_start_with_the_images_files", copy_up),
    ("a_readonly_tmpfs_still_gets_mounts_inside", readonly_tmpfs),
    ("the_default_devices_are_there_and_work", devices),
    ("further_devices_by_the_spec", own_devices),
    ("devices_that_are_not_listed_cannot_be_used", denied_devices),
    ("masked_paths_are_empty", masked),
    ("readonly_paths_are_readonly", readonly_paths),
    ("kernel_parameters_of_own_namespaces", sysctls),
    ("a_missing_working_folder_is_made", working_folder),
    ("standard_mounts_are_of_the_right_type", standard_mounts),
];

fn overlay() {
    let sandbox = Sandbox::script("echo new > /etc/new; rm /etc/group; mount | grep -c ' / '");
    assert_eq!(sandbox.run().ok(), "1");
    assert_eq!(fs::read_to_string(sandbox.host("upper/etc/new")).unwrap(), "new\n");
    assert!(sandbox.image("etc/group").exists(), "the image is untouched");
}

fn layers() {
    let sandbox = Sandbox::script("cat /which /below");
    for (layer, text) in [("one", "top"), ("two", "middle")] {
        fs::create_dir(sandbox.host(layer)).unwrap();
        fs::write(sandbox.host(layer).join("which"), text).unwrap();
    }
    fs::write(sandbox.host("two/below"), " below").unwrap();
    let rootfs = Rootfs::Overlay {
        lowers: vec![sandbox.host("one"), sandbox.host("two"), sandbox.host("lower")],
        upper: sandbox.host("upper"),
        work: sandbox.host("work"),
    };
    let mut container = sandbox.create_with(&rootfs, sandbox.stdio("out", "err")).unwrap();
    container.start().unwrap();
    assert_eq!(sandbox.finish(container).ok(), "top below");
}

fn many_layers() {
    let sandbox = Sandbox::script("ls / | grep -c layer-");
    let mut lowers = vec![sandbox.host("lower")];
    for n in 0..200 {
        // With a colon, at which the classic mount options would be split, and some longer than one option may be.
        let long = "x".repeat(if n % 50 == 0 { 200 } else { 60 });
        let layer = sandbox.host(&format!("sha256:{n}-{long}/{long}"));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(format!("layer-{n}")), "").unwrap();
        lowers.push(layer);
    }
    let rootfs = Rootfs::Overlay { lowers, upper: sandbox.host("upper"), work: sandbox.host("work") };
    let mut container = sandbox.create_with(&rootfs, sandbox.stdio("out", "err")).unwrap();
    container.start().unwrap();
    assert_eq!(sandbox.finish(container).ok(), "200");
}

fn plain_root() {
    let sandbox = Sandbox::script("echo here > /tmp/mark");
    let rootfs = Rootfs::Path(sandbox.host("lower"));
    let mut container = sandbox.create_with(&rootfs, sandbox.stdio("out", "err")).unwrap();
    container.start().unwrap();
    sandbox.finish(container).ok();
    assert!(sandbox.image("tmp/mark").exists());
}

fn readonly_root() {
    let mut sandbox = Sandbox::script("touch /x 2>/dev/null && exit 1; touch /dev/shm/x && echo fine");
    sandbox.spec["root"]["readonly"] = json!(true);
    assert_eq!(sandbox.run().ok(), "fine");
}

fn binds() {
    let mut sandbox =
        Sandbox::script("cat /a/b/data/file /etc/hosts; echo back > /a/b/data/back; touch /etc/hosts");
    fs::create_dir(sandbox.host("data")).unwrap();
    fs::write(sandbox.host("data/file"), "folder ").unwrap();
    fs::write(sandbox.host("hosts"), "file").unwrap();
    // One source is absolute, the other starts at the bundle.
    let data = sandbox.host("data");
    sandbox.push("/mounts", json!({"destination": "/a/b/data", "source": data, "options": ["rbind"]}));
    sandbox.push("/mounts", json!({"destination": "/etc/hosts", "type": "bind", "source": "hosts"}));
    assert_eq!(sandbox.run().ok(), "folder file");
    assert_eq!(fs::read_to_string(sandbox.host("data/back")).unwrap(), "back\n");
}

fn readonly_binds() {
    let mut sandbox = Sandbox::script(
        "for d in /ro /ro/sub /rro /rro/sub; do touch $d/x 2>/dev/null && echo $d; done; cat /ro/sub/seen",
    );
    fs::create_dir_all(sandbox.host("data/sub")).unwrap();
    let sub = sandbox.host("data/sub");
    nix::mount::mount(Some("t"), &sub, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    fs::write(sub.join("seen"), "seen").unwrap();
    for (destination, option) in [("/ro", "ro"), ("/rro", "rro")] {
        let source = sandbox.host("data");
        sandbox.push(
            "/mounts",
            json!({"destination": destination, "source": source, "options": ["rbind", option]}),
        );
    }
    let output = sandbox.run();
    nix::mount::umount2(&sub, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(output.ok(), "/ro/sub\nseen", "only the mount below a plain ro stays writable");
}

fn flags() {
    let mut sandbox = Sandbox::script("grep -E ' /(b|t) ' /proc/self/mountinfo | cut -d' ' -f5,6");
    fs::create_dir(sandbox.host("b")).unwrap();
    let options = ["bind", "ro", "nosuid", "nodev", "noexec", "noatime"];
    sandbox.push("/mounts", json!({"destination": "/b", "source": "b", "options": options}));
    let options = ["nosuid", "nodiratime", "size=1m", "mode=700"];
    sandbox.push("/mounts", json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": options}));
    let output = sandbox.run();
    let lines: Vec<&str> = output.ok().lines().collect();
    assert_eq!(lines[0], "/b ro,nosuid,nodev,noexec,noatime");
    assert!(lines[1].starts_with("/t rw,nosuid") && lines[1].contains("nodiratime"), "{lines:?}");
}

fn propagation() {
    let sandbox = Sandbox::script("sleep 100");
    let shared = sandbox.host("shared");
    fs::create_dir(&shared).unwrap();
    let none = None::<&str>;
    let mount = nix::mount::mount::<str, std::path::Path, str, str>;
    use nix::mount::MsFlags;
    mount(Some("t"), &shared, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    mount(none, &shared, none, MsFlags::MS_SHARED, none).unwrap();
    fs::create_dir(shared.join("later")).unwrap();
    let mut sandbox = sandbox;
    for (destination, option) in [("/slave", "rslave"), ("/private", "rprivate")] {
        sandbox.push(
            "/mounts",
            json!({"destination": destination, "source": shared, "options": ["rbind", option]}),
        );
    }
    let container = sandbox.start().unwrap();
    mount(Some("t"), &shared.join("later"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
    fs::write(shared.join("later/mark"), "").unwrap();
    let output = sandbox.exec(&container, "ls /slave/later /private/later");
    stop(&container);
    nix::mount::umount2(&shared, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(output.ok().matches("mark").count(), 1, "{}", output.stdout);
}

fn copy_up() {
    let mut sandbox = Sandbox::script("cat /data/sub/file; readlink /data/link; stat -c %a:%u /data/sub");
    fs::create_dir_all(sandbox.image("data/sub")).unwrap();
    fs::write(sandbox.image("data/sub/file"), "copied\n").unwrap();
    symlink("/nowhere", sandbox.image("data/link")).unwrap();
    fs::set_permissions(sandbox.image("data/sub"), std::os::unix::fs::PermissionsExt::from_mode(0o750))
        .unwrap();
    std::os::unix::fs::chown(sandbox.image("data/sub"), Some(33), None).unwrap();
    let options = ["tmpcopyup", "mode=755"];
    sandbox
        .push("/mounts", json!({"destination": "/data", "type": "tmpfs", "source": "t", "options": options}));
    assert_eq!(sandbox.run().ok(), "copied\n/nowhere\n750:33");
}

fn readonly_tmpfs() {
    let mut sandbox = Sandbox::script("touch /t/x 2>/dev/null && exit 1; touch /t/inner/x && echo inner");
    let tmpfs = |destination: &str, options: &[&str]| json!({"destination": destination, "type": "tmpfs", "source": "t", "options": options});
    sandbox.push("/mounts", tmpfs("/t", &["ro"]));
    sandbox.push("/mounts", tmpfs("/t/inner", &[]));
    assert_eq!(sandbox.run().ok(), "inner");
}

fn devices() {
    let script = "cd /dev; for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' $d; done
        readlink fd; readlink stdout; readlink ptmx; echo x > null && head -c 2 zero | wc -c
        echo x > full 2>/dev/null || echo full; test -c pts/ptmx && echo pts";
    let output = Sandbox::script(script).run();
    let expected = "null 1:3 666\nzero 1:5 666\nfull 1:7 666\nrandom 1:8 666\nurandom 1:9 666\ntty 5:0 666\n\
        /proc/self/fd\n/proc/self/fd/1\npts/ptmx\n2\nfull\npts";
    assert_eq!(output.ok(), expected);
}

fn own_devices() {
    let mut sandbox =
        Sandbox::script("stat -c '%t:%T %a %u:%g' /dev/mine /dev/sub/pipe; test -p /dev/sub/pipe");
    let device = json!({"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 33, "gid": 34});
    sandbox.spec["linux"]["devices"] =
        json!([device, {"path": "/dev/sub/pipe", "type": "p", "fileMode": 0o600}]);
    assert_eq!(sandbox.run().ok(), "1:3 640 33:34\n0:0 600 0:0");
}

fn denied_devices() {
    // /dev/fuse may be made, since making gives nothing, but not be opened.
    let script =
        "mknod /tmp/fuse c 10 229 && cat /tmp/fuse; mknod /tmp/null c 1 3 && echo x > /tmp/null && echo null";
    let output = Sandbox::script(script).run();
    assert!(output.stderr.contains("/tmp/fuse") && output.stderr.contains("not permitted"), "{output:?}");
    assert_eq!(output.ok(), "null");
    // Whether the kernel has the device does not matter, only that it gets so far.
    let mut allowed = Sandbox::script("mknod /tmp/fuse c 10 229; : < /tmp/fuse; :");
    let rule = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"});
    allowed.push("/linux/resources/devices", rule);
    let output = allowed.run();
    assert!(!output.stderr.contains("not permitted"), "{output:?}");
}

fn masked() {
    let output = Sandbox::script("wc -c < /proc/timer_list; wc -c < /proc/keys; ls /sys/firmware /proc/scsi 2>/dev/null | grep -v :; touch /sys/firmware/x 2>/dev/null || echo ro").run();
    assert_eq!(output.ok().split_ascii_whitespace().collect::<Vec<_>>(), ["0", "0", "ro"], "{output:?}");
}

fn readonly_paths() {
    let output = Sandbox::script(
        "echo 1 > /proc/sys/kernel/shm_rmid_forced || echo sys; echo h > /proc/sysrq-trigger || echo rq",
    )
    .run();
    assert_eq!(output.ok(), "sys\nrq");
}

fn sysctls() {
    let mut sandbox = Sandbox::script("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced");
    sandbox.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"});
    assert_eq!(sandbox.run().ok(), "1\n1");
    let mut shared = Sandbox::script("true");
    shared.spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    shared.spec["linux"]["sysctl"] = json!({"kernel.core_pattern": "|/bin/evil"});
    assert!(shared.error().contains("linux.sysctl[kernel.core_pattern]"));
}

fn working_folder() {
    let mut sandbox = Sandbox::script("pwd");
    sandbox.spec["process"]["cwd"] = json!("/not/there/yet");
    assert_eq!(sandbox.run().ok(), "/not/there/yet");
}

fn standard_mounts() {
    let script = "for p in / /proc /dev /dev/pts /dev/shm /dev/mqueue /sys; do stat -f -c %T $p; done";
    let output = Sandbox::script(script).run();
    let found: Vec<&str> = output.ok().lines().collect();
    // busybox does not know the magic number of mqueue.
    assert_eq!(found[1..], ["proc", "tmpfs", "devpts", "tmpfs", "UNKNOWN", "sysfs"], "{found:?}");
}
