//! The same configuration through this engine, crun and runc: the process must see the same. So the tests of the single
//! fields are themselves tested.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Stdio};

use berth_runtime::rootfs::Rootfs;
use serde_json::{Value, json};

use crate::harness::Test;
use crate::sandbox::Sandbox;

pub const TESTS: &[Test] = &[
    ("a_container_with_all_defaults", plain),
    ("another_user_with_few_rights", restricted),
    ("a_container_in_a_user_namespace", user),
    ("mounts_of_all_kinds", mounts),
];

/// What a process is and sees, one fact per line.
const PROBE: &str = "
grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:|Umask|Sig(Blk|Ign|Cgt))' /proc/self/status
sed 's/  */ /g' /proc/self/limits
echo oom $(cat /proc/self/oom_score_adj); echo cwd $(pwd); echo personality $(cat /proc/self/personality)
env | sort | grep -v -E '^(SHLVL|_|container)='
echo session $(cut -d' ' -f1,4,5,6 /proc/1/stat)
for d in /dev/*; do echo device $(stat -c '%n %F %a %u:%g %t:%T' $d) $(readlink $d); done
for fd in /proc/$$/fd/*; do case ${fd##*/} in 0|1|2) ;; *) echo fd ${fd##*/}; readlink $fd;; esac; done
echo host $(hostname); echo maps $(cat /proc/self/uid_map /proc/self/gid_map)
echo forward $(cat /proc/sys/net/ipv4/ip_forward)
sed 's/ - / /' /proc/self/mountinfo | while read -r id parent device root place options rest; do
  set -- $rest; while case $1 in master:*|shared:*|propagate_from:*|unbindable) true;; *) false;; esac; do shift; done
  echo mount $place $options $1
done
for f in /proc/timer_list /proc/kcore /proc/keys; do echo masked $f $(head -c 10 $f 2>&1 | wc -c); done
for f in /proc/sys/kernel/shm_rmid_forced /proc/sysrq-trigger /proc/bus/x /sys/x; do
  echo $f $( (: >> $f) 2>&1 | sed 's/.*: //'); done
cat /proc/sys/kernel/shmmax
";

fn plain() {
    compare(Sandbox::script(PROBE));
}

fn restricted() {
    let mut sandbox = Sandbox::script(PROBE);
    sandbox.spec["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "umask": 0o027, "additionalGids": [5, 1001]});
    sandbox.spec["process"]["cwd"] = json!("/tmp");
    sandbox.spec["process"]["noNewPrivileges"] = json!(true);
    sandbox.spec["process"]["env"] = json!(["PATH=/bin", "HOME=/somewhere", "LANG=C"]);
    sandbox.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
        "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
    });
    sandbox.spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_MEMLOCK", "soft": 4096, "hard": 8192},
    ]);
    sandbox.spec["process"]["oomScoreAdj"] = json!(500);
    sandbox.spec["root"]["readonly"] = json!(true);
    sandbox.spec["hostname"] = json!("inside");
    sandbox.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shmmax": "12345678"});
    sandbox.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    });
    compare(sandbox);
}

fn user() {
    let mut sandbox = Sandbox::script(PROBE);
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
    sandbox.push("/linux/namespaces", json!({"type": "user"}));
    sandbox.spec["linux"]["uidMappings"] = map.clone();
    sandbox.spec["linux"]["gidMappings"] = map;
    for file in ["lower", "lower/dev", "lower/proc", "lower/sys", "lower/tmp", "lower/etc"] {
        chown(sandbox.host(file), Some(200_000), Some(200_000)).unwrap();
    }
    compare(sandbox);
}

fn mounts() {
    let mut sandbox = Sandbox::script(PROBE);
    fs::create_dir(sandbox.host("data")).unwrap();
    fs::write(sandbox.host("file"), "").unwrap();
    let (data, file) = (sandbox.host("data"), sandbox.host("file"));
    for (destination, kind, source, options) in [
        ("/a", "bind", &data, json!(["bind", "ro", "nosuid", "nodev", "noexec"])),
        ("/b/c", "bind", &data, json!(["rbind", "rprivate", "noatime"])),
        ("/etc/one", "bind", &file, json!(["bind", "ro"])),
        ("/t", "tmpfs", &data, json!(["nosuid", "noexec", "size=100k", "mode=700", "ro"])),
    ] {
        sandbox.push(
            "/mounts",
            json!({"destination": destination, "type": kind, "source": source, "options": options}),
        );
    }
    compare(sandbox);
}

/// Facts that differ for a reason, which is said here; what starts with one of these is not compared.
fn reasons(peer: &str) -> Vec<&'static str> {
    let mut reasons = vec![
        // Ours are all at their defaults; theirs are as their callers' were.
        "SigIgn:",
        // Masks are file systems of the runtime's own choice; what is in them is compared as "masked".
        "mount /proc/scsi",
        "mount /sys/firmware",
        "mount /proc/keys",
        "mount /proc/timer_list",
        "mount /proc/kcore",
        // On v1 the tmpfs and its folders are put together differently.
        "mount /sys/fs/cgroup",
    ];
    if peer == "crun" {
        // Not in the runtime-spec, and a way to the kernel's memory.
        reasons.push("device /dev/core");
        // These lose the options of the mount that they are a part of; ours keep them, as runc's do.
        reasons.extend(["mount /proc/bus", "mount /proc/fs", "mount /proc/irq", "mount /proc/sys"]);
        // Bound in a user namespace; runc's and ours have the options of the host's /dev.
        reasons.extend(["mount /dev/null", "mount /dev/zero", "mount /dev/full"]);
        reasons.extend(["mount /dev/tty", "mount /dev/random", "mount /dev/urandom"]);
    } else {
        // runc is not yet the new root's group when it makes the IPC namespace of a user namespace.
        reasons.push("device /dev/mqueue");
        // Go programs raise their own soft limit, and runc 1.1 hands that on.
        reasons.push("Max open files");
    }
    reasons
}

fn compare(mut sandbox: Sandbox) {
    fs::set_permissions(sandbox.image("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let rootfs = Rootfs::Path(sandbox.host("lower"));
    let mut container = sandbox.create_with(&rootfs, sandbox.stdio("out", "err")).unwrap();
    container.start().unwrap();
    let own = sandbox.finish(container);
    sandbox.spec["root"]["path"] = json!(sandbox.host("lower"));
    let mut wrong = String::new();
    for peer in ["crun", "runc"] {
        let theirs = run_peer(&sandbox, peer);
        let reasons = reasons(peer);
        let counts = |line: &&str| !reasons.iter().any(|start| line.starts_with(start));
        let lines = |text: &str| text.lines().filter(counts).map(str::to_owned).collect::<Vec<_>>();
        let (ours, theirs) = (lines(own.ok()), lines(&theirs));
        let only =
            |a: &[String], b: &[String]| a.iter().filter(|l| !b.contains(l)).cloned().collect::<Vec<_>>();
        let (here, there) = (only(&ours, &theirs), only(&theirs, &ours));
        if !here.is_empty() || !there.is_empty() {
            wrong += &format!("only with Berth:\n{here:#?}\nonly with {peer}:\n{there:#?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn run_peer(sandbox: &Sandbox, peer: &str) -> String {
    let mut spec: Value = sandbox.spec.clone();
    // Debian 12 has older versions of both.
    spec["ociVersion"] = json!("1.0.2");
    let id = format!("{}-{peer}", sandbox.cgroup.trim_start_matches('/').replace('/', "-"));
    spec["linux"]["cgroupsPath"] = json!(format!("{}-{peer}", sandbox.cgroup));
    fs::write(sandbox.host("config.json"), spec.to_string()).unwrap();
    // crun refuses a tree that is mostly v1, so the v2 part is taken off before its eyes.
    let script = format!(
        "umount /sys/fs/cgroup/unified 2>/dev/null; exec {peer} --root {} run --bundle {} {id}",
        sandbox.host(&format!("{peer}-state")).display(),
        sandbox.host("").display()
    );
    let command =
        Command::new("unshare").args(["--mount", "sh", "-c", &script]).stdin(Stdio::piped()).output();
    let output = command.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{peer}: {}\n{text}", String::from_utf8_lossy(&output.stderr));
    text
}
