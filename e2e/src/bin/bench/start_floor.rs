//! What the kernel takes for the start of a container, asked in the shortest way there is: no spec, no paths that somebody else
//! may have made, no report, no record. It does what every container of a pod is given: namespaces, an overlay, its own
//! `/proc`, `/dev`, `/sys` and cgroups, the pod's files, covered paths, limits, capabilities and a filter.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_e2e::node::Node;
use berth_e2e::tools;
use nix::fcntl::OFlag;
use nix::libc::sock_filter;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{chdir, execv, pipe2, pivot_root, sethostname};

use crate::sys;

/// The word that makes the bench do this, see [`measure`].
pub const WORD: &str = "start-in";

/// What a container of the default kind may keep (`docker run` without options).
const CAPABILITIES: u64 = 0xa804_25fb;
/// The files of a pod that a container finds at fixed places.
const FILES: [&str; 4] = ["etc/hosts", "etc/hostname", "etc/resolv.conf", "dev/termination-log"];
/// Limits of memory and processes and a share of the CPU, on v1 and v2.
const LIMITS: [(&str, &str); 6] = [
    ("memory.limit_in_bytes", "268435456"),
    ("cpu.shares", "102"),
    ("pids.max", "1024"),
    ("memory.max", "268435456"),
    ("cpu.weight", "4"),
    ("memory.oom.group", "1"),
];
/// As many ranges of system calls as make a filter of about 230 instructions, the length of the default profile's.
const RANGES: u32 = 115;

/// Measures `runs` starts in the network namespace of the container whose first process is `pid` on the node's machine, from its
/// image and beside its cgroups.
pub fn times(node: &Node, pid: i32, runs: usize) -> Result<Vec<Duration>> {
    let own = std::env::current_exe().context("find the bench's own program")?;
    let dir = node.path("root").join("floor");
    fs::create_dir_all(&dir).context("make a folder")?;
    let mut command = node.machine().command(own);
    command.arg(WORD).arg(pid.to_string()).arg(&dir).arg(runs.to_string());
    let text = tools::run(command)?.ok()?;
    fs::remove_dir_all(&dir).context("remove a folder")?;
    text.split_whitespace().map(|word| Ok(Duration::from_micros(word.parse().context("a time")?))).collect()
}

/// `bench start-in PID FOLDER RUNS`: prints the time of each start in microseconds.
pub fn measure(words: &[String]) -> Result<()> {
    let [pid, dir, runs] = words else { anyhow::bail!("usage: bench {WORD} PID FOLDER RUNS") };
    let runs: usize = runs.parse().context("a number of runs")?;
    let example = Path::new("/proc").join(pid);
    let network = File::open(example.join("ns/net")).context("open the network namespace")?;
    setns(network, CloneFlags::CLONE_NEWNET).context("join the network namespace")?;
    let floor = Floor::like(&example, Path::new(dir))?;
    // The first finds nothing in the kernel's caches.
    for round in 0..=runs {
        let time = floor.once(round)?;
        if round > 0 {
            println!("{}", time.as_micros());
        }
    }
    Ok(())
}

/// What is there before a start.
struct Floor {
    dir: PathBuf,
    /// The image, as overlay wants it named.
    lower: String,
    /// Devices and links in `/dev`.
    nodes: Vec<(PathBuf, u64)>,
    links: Vec<(PathBuf, PathBuf)>,
    /// What is covered, folders and files, and what is read-only besides.
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
    read_only: Vec<PathBuf>,
    cgroups: Vec<Cgroup>,
    filter: Vec<sock_filter>,
}

/// A folder in a hierarchy.
struct Cgroup {
    folder: PathBuf,
    /// The name below `/sys/fs/cgroup`; none on v2.
    hierarchy: Option<String>,
    /// Files and what to write into them.
    limits: Vec<(PathBuf, &'static str)>,
}

impl Floor {
    fn like(example: &Path, dir: &Path) -> Result<Floor> {
        let mounts = fs::read_to_string(example.join("mountinfo")).context("read mountinfo")?;
        let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("no root")?;
        let lowers =
            root.split([' ', ',']).filter_map(|o| o.strip_prefix("lowerdir").and_then(|o| o.split_once('=')));
        let lower = lowers.map(|(_, path)| path).collect::<Vec<_>>().join(":");
        ensure!(!lower.is_empty(), "the container's root is no overlay: {root}");
        for file in FILES {
            fs::write(dir.join(file.replace('/', "-")), "").context("write a file")?;
        }
        let text = fs::read_to_string(example.join("cgroup")).context("read cgroup")?;
        let mut floor = Floor {
            dir: dir.to_owned(),
            lower,
            nodes: Vec::new(),
            links: Vec::new(),
            folders: Vec::new(),
            files: Vec::new(),
            read_only: Vec::new(),
            cgroups: text.lines().filter_map(Cgroup::beside).collect(),
            filter: filter(),
        };
        floor.take_devices(&example.join("root/dev")).context("read /dev")?;
        floor.take_covered(&example.join("root"), &mounts).context("look at what is covered")?;
        Ok(floor)
    }

    fn take_devices(&mut self, dev: &Path) -> Result<()> {
        for entry in fs::read_dir(dev)? {
            let entry = entry?;
            let (here, kind) = (Path::new("dev").join(entry.file_name()), entry.file_type()?);
            if kind.is_symlink() {
                self.links.push((fs::read_link(entry.path())?, here));
            } else if kind.is_char_device() {
                self.nodes.push((here, entry.metadata()?.rdev()));
            }
        }
        Ok(())
    }

    /// What is mounted below `/proc` and `/sys`: a part of `/proc` itself only to be read, something else to cover what is there.
    fn take_covered(&mut self, root: &Path, mounts: &str) -> Result<()> {
        for line in mounts.lines() {
            let Some((mount, kind)) = line.split_once(" - ") else { continue };
            let path = mount.split(' ').nth(4).context("a mount without a place")?;
            let below = |top: &str| path.strip_prefix(top).is_some_and(|rest| !rest.starts_with("fs/cgroup"));
            if !below("/proc/") && !below("/sys/") {
                continue;
            }
            let list = if kind.starts_with("proc ") {
                &mut self.read_only
            } else if fs::metadata(root.join(&path[1..]))?.is_dir() {
                &mut self.folders
            } else {
                &mut self.files
            };
            list.push(path.into());
        }
        ensure!(!self.read_only.is_empty(), "nothing is read-only");
        Ok(())
    }

    fn once(&self, round: usize) -> Result<Duration> {
        let dir = self.dir.join(round.to_string());
        let (read, write) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        let began = Instant::now();
        fs::create_dir(&dir).context("make a folder")?;
        for sub in ["upper", "work", "root"] {
            fs::create_dir(dir.join(sub)).context("make a folder")?;
        }
        for cgroup in &self.cgroups {
            cgroup.make()?;
        }
        let v2 = self.cgroups.iter().find(|cgroup| cgroup.hierarchy.is_none());
        let v2 = v2.map(|cgroup| File::open(&cgroup.folder)).transpose().context("open the cgroup")?;
        let namespaces = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS;
        let child = sys::spawn(namespaces.bits(), v2.as_ref().map(AsFd::as_fd), || {
            let why = self.become_container(&dir).err().map(|e| format!("{e:#}")).unwrap_or_default();
            // Who is to read it may be gone.
            let _ = File::from(write.try_clone().unwrap_or_else(|e| panic!("{why}: {e}")))
                .write_all(why.as_bytes());
        });
        let child = child.context("clone")?;
        drop(write);
        let mut said = String::new();
        File::from(read).read_to_string(&mut said).context("listen")?;
        let time = began.elapsed();
        let status = waitpid(child, None).context("wait")?;
        ensure!(said.is_empty() && status == WaitStatus::Exited(child, 0), "{said} ({status:?})");
        for cgroup in &self.cgroups {
            fs::remove_dir(&cgroup.folder).context("remove a cgroup")?;
        }
        fs::remove_dir_all(&dir).context("remove a folder")?;
        Ok(time)
    }

    /// The child's part; comes back with what failed only.
    fn become_container(&self, dir: &Path) -> Result<()> {
        let none = None::<&str>;
        let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
        let root = dir.join("root");
        let parts = [dir.join("upper"), dir.join("work")].map(|path| path.display().to_string());
        let options = format!("lowerdir={},upperdir={},workdir={}", self.lower, parts[0], parts[1]);
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .context("overlay")?;
        chdir(&root).context("chdir")?;
        make("proc", "proc", quiet, None)?;
        make("tmpfs", "dev", MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME, Some("mode=755,size=65536k"))?;
        for sub in ["dev/pts", "dev/shm", "dev/mqueue"] {
            fs::create_dir(sub).context("mkdir")?;
        }
        make(
            "devpts",
            "dev/pts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            Some("newinstance,ptmxmode=0666,mode=0620"),
        )?;
        make("mqueue", "dev/mqueue", quiet, None)?;
        make("tmpfs", "dev/shm", quiet, Some("mode=1777,size=65536k"))?;
        make("sysfs", "sys", quiet | MsFlags::MS_RDONLY, None)?;
        for (path, device) in &self.nodes {
            mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), *device).context("mknod")?;
        }
        for (to, at) in &self.links {
            symlink(to, at).context("symlink")?;
        }
        self.enter_cgroups()?;
        for file in FILES {
            if !Path::new(file).exists() {
                File::create(file).context("create")?;
            }
            bind(&self.dir.join(file.replace('/', "-")), Path::new(file))?;
        }
        pivot_root(".", ".").context("pivot_root")?;
        umount2(".", MntFlags::MNT_DETACH).context("umount")?;
        chdir("/").context("chdir")?;
        for path in &self.folders {
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, none).context("cover a folder")?;
        }
        for path in &self.files {
            bind(Path::new("/dev/null"), path)?;
        }
        let only_read = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | quiet;
        for path in &self.read_only {
            bind(path, path)?;
            mount(none, path, none, only_read, none).context("read-only")?;
        }
        sethostname("floor").context("hostname")?;
        sys::bound(CAPABILITIES).context("capabilities")?;
        sys::filter(&mut self.filter.clone()).context("seccomp")?;
        let program = CString::new("/bin/true")?;
        execv(&program, &[&program]).context("exec").map(drop)
    }

    fn enter_cgroups(&self) -> Result<()> {
        let top = Path::new("sys/fs/cgroup");
        if self.cgroups.iter().any(|cgroup| cgroup.hierarchy.is_some()) {
            make("tmpfs", "sys/fs/cgroup", MsFlags::MS_NOSUID, Some("mode=755"))?;
        }
        for cgroup in &self.cgroups {
            match &cgroup.hierarchy {
                Some(name) => {
                    fs::write(cgroup.folder.join("tasks"), "0").context("enter a cgroup")?;
                    fs::create_dir(top.join(name)).context("mkdir")?;
                    bind(&cgroup.folder, &top.join(name))?;
                }
                None => make("cgroup2", "sys/fs/cgroup", MsFlags::MS_RDONLY, None)?,
            }
        }
        unshare(CloneFlags::CLONE_NEWCGROUP).context("cgroup namespace")
    }
}

/// A file system of its own.
fn make(kind: &str, at: &str, flags: MsFlags, options: Option<&str>) -> Result<()> {
    mount(Some(kind), at, Some(kind), flags, options).with_context(|| format!("mount {at}"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(Some(from), to, none, MsFlags::MS_BIND, none).with_context(|| format!("bind {}", to.display()))
}

impl Cgroup {
    /// From a line of `/proc/PID/cgroup`; none for hierarchies that the container is not limited in.
    fn beside(line: &str) -> Option<Cgroup> {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, Path::new(parts.next()?));
        let hierarchy = (!controllers.is_empty()).then(|| controllers.trim_start_matches("name=").to_owned());
        let top = Path::new("/sys/fs/cgroup").join(hierarchy.as_deref().unwrap_or_default());
        let folder = top.join(path.parent()?.strip_prefix("/").ok()?).join("floor");
        // In the others it is in the root, or in the pod's.
        let there = path.components().count() > 3 && top.join("cgroup.procs").exists();
        let known = LIMITS
            .iter()
            .filter(|(file, _)| top.join(path.strip_prefix("/").unwrap_or(path)).join(file).exists());
        let limits = known.map(|(file, value)| (folder.join(file), *value)).collect();
        there.then_some(Cgroup { folder, hierarchy, limits })
    }

    fn make(&self) -> Result<()> {
        fs::create_dir(&self.folder).with_context(|| format!("make {}", self.folder.display()))?;
        self.limits.iter().try_for_each(|(path, value)| fs::write(path, value)).context("set a limit")
    }
}

/// A binary tree of ranges of numbers that allows all.
fn filter() -> Vec<sock_filter> {
    // Opcodes of linux/bpf_common.h.
    const LOAD: u16 = 0x20;
    const JUMP_GREATER_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    fn tree(from: u32, to: u32) -> Vec<sock_filter> {
        if to - from == 1 {
            return vec![sock_filter { code: RETURN, jt: 0, jf: 0, k: ALLOW }];
        }
        let middle = from.midpoint(to);
        let (low, high) = (tree(from, middle), tree(middle, to));
        let skip = u8::try_from(low.len()).unwrap_or(u8::MAX);
        let mut all = vec![sock_filter { code: JUMP_GREATER_EQUAL, jt: skip, jf: 0, k: middle * 4 }];
        all.extend(low);
        all.extend(high);
        all
    }
    let mut program = vec![sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 }];
    program.extend(tree(0, RANGES));
    program
}
