//! Throwaway network namespaces, and programs in them that talk.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub mod capture;

use berth_netplug::{Config, HostPort, Network, PodNetwork, Protocol, Wishes};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const PATIENCE: Duration = Duration::from_secs(2);

/// Runs a test as if on a machine of its own: a thread in new network and mount namespaces with a tokio runtime.
pub fn on_a_machine<F>(test: F)
where
    F: FnOnce(&Machine, &Runtime) + Send + 'static,
{
    let body = move || {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
        ip("link set lo up");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let machine = Machine { dir: TempDir::new().unwrap(), host: Ns::current() };
        test(&machine, &runtime);
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

pub struct Machine {
    pub dir: TempDir,
    pub host: Ns,
}

impl Machine {
    pub fn config(&self) -> Config {
        let mut config = Config::new(self.dir.path().join("net"));
        config.quarantine = Duration::ZERO;
        config
    }

    /// A namespace beyond the host: 192.0.2.1 there, 192.0.2.2 here, and a default route. It does not know of pods.
    pub fn outside(&self) -> Ns {
        let outside = Ns::new();
        ip(&format!("link add up0 type veth peer name out0 netns {}", outside.path().display()));
        ip("addr add 192.0.2.2/24 dev up0");
        ip("addr add 2001:db8::2/64 dev up0 nodad");
        ip("link set up0 up");
        outside.run(|| {
            ip("link set lo up");
            ip("addr add 192.0.2.1/24 dev out0");
            ip("addr add 2001:db8::1/64 dev out0 nodad");
            ip("link set out0 up");
        });
        ip("route add default via 192.0.2.1");
        ip("route add default via 2001:db8::1");
        outside
    }

    pub fn open(&self, runtime: &Runtime) -> Network {
        runtime.block_on(Network::open(self.config())).unwrap()
    }
}

/// A network namespace.
pub struct Ns {
    fd: Arc<OwnedFd>,
}

impl Ns {
    pub fn current() -> Self {
        Self { fd: Arc::new(std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()) }
    }

    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self::current()
        };
        std::thread::spawn(make).join().unwrap()
    }

    /// Opening this file gives the namespace.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()).into()
    }

    /// Runs `work` inside, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                setns(&*self.fd, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            match scope.spawn(inside).join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A server that answers each connection with the address it came from.
    pub fn serve_tcp(&self, address: &str) -> Server {
        self.serve_tcp_with(address, |peer| peer.to_string())
    }

    /// A server that answers each connection with what `say` makes of the address it came from.
    pub fn serve_tcp_with(
        &self,
        address: &str,
        mut say: impl FnMut(IpAddr) -> String + Send + 'static,
    ) -> Server {
        let listener = self.run(|| TcpListener::bind(address).unwrap());
        listener.set_nonblocking(true).unwrap();
        Server::start(move || {
            readable(&listener);
            if let Ok((mut stream, peer)) = listener.accept() {
                let _ = stream.write_all(say(peer.ip()).as_bytes());
            }
        })
    }

    /// A server that answers each datagram with the address it came from.
    pub fn serve_udp(&self, address: &str) -> Server {
        let socket = self.run(|| UdpSocket::bind(address).unwrap());
        socket.set_nonblocking(true).unwrap();
        Server::start(move || {
            readable(&socket);
            if let Ok((_, peer)) = socket.recv_from(&mut [0; 64]) {
                let _ = socket.send_to(peer.ip().to_string().as_bytes(), peer);
            }
        })
    }

    /// Connects from here; what the server said, which is the address it saw.
    pub fn tcp(&self, to: &str) -> std::io::Result<String> {
        self.tcp_within(to, PATIENCE)
    }

    pub fn tcp_within(&self, to: &str, patience: Duration) -> std::io::Result<String> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&to, patience)?;
            stream.set_read_timeout(Some(patience))?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            Ok(said)
        })
    }

    /// Sends a datagram from here; what the server said.
    pub fn udp(&self, to: &str) -> std::io::Result<String> {
        self.udp_within(to, PATIENCE)
    }

    pub fn udp_within(&self, to: &str, patience: Duration) -> std::io::Result<String> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(patience))?;
            socket.send(b"hello")?;
            let mut said = [0; 64];
            let size = socket.recv(&mut said)?;
            Ok(String::from_utf8_lossy(&said[..size]).into_owned())
        })
    }
}

/// Waits until there is something to read, or a little while.
fn readable(socket: &impl AsFd) {
    let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut wanted, PollTimeout::from(20u8)).unwrap();
}

/// Answers until it is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(mut answer_one: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                answer_one();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// A pod with a namespace of its own.
pub struct Pod {
    pub ns: Ns,
    pub network: PodNetwork,
    pub ip: String,
    pub host_if: String,
}

/// A pod that is not attached yet.
pub fn pod(id: &str, ns: &Ns, ports: &[(Option<&str>, u16, u16, Protocol)]) -> PodNetwork {
    let host_ports = ports.iter().map(|(ip, host_port, container_port, protocol)| HostPort {
        host_ip: ip.map(|ip| ip.parse().unwrap()),
        host_port: *host_port,
        container_port: *container_port,
        protocol: *protocol,
    });
    PodNetwork {
        id: id.into(),
        name: format!("pod-{id}"),
        namespace: "default".into(),
        netns: ns.path(),
        host_ports: host_ports.collect(),
        wishes: Wishes::default(),
    }
}

/// Makes a pod and attaches it.
pub fn attach(
    runtime: &Runtime,
    network: &Network,
    id: &str,
    ports: &[(Option<&str>, u16, u16, Protocol)],
) -> Pod {
    let ns = Ns::new();
    let wanted = pod(id, &ns, ports);
    let attachment = runtime.block_on(network.attach(&wanted)).unwrap();
    Pod { ns, network: wanted, ip: attachment.ips[0].to_string(), host_if: attachment.host_if }
}

/// Runs a program of the system in the namespace of this thread; what it printed.
pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {arguments}: {}", text(&output.stderr));
    text(&output.stdout)
}

pub fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

pub fn nft(arguments: &str) -> String {
    run("nft", arguments)
}

/// Waits for a condition; fails the test when it does not come true. The one place that looks again and again, for what
/// is waited for happens in the kernel or another program and tells nobody.
#[allow(clippy::disallowed_methods)]
pub fn eventually_within<T: Debug>(time: Duration, what: &str, mut look: impl FnMut() -> Result<(), T>) {
    let deadline = Instant::now() + time;
    loop {
        match look() {
            Ok(()) => return,
            Err(last) if Instant::now() > deadline => panic!("{what}: {last:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The same, with a time that is long enough for what the kernel and other programs do at once.
pub fn eventually<T: Debug>(what: &str, look: impl FnMut() -> Result<(), T>) {
    eventually_within(Duration::from_secs(30), what, look);
}

/// The machine has nothing of ours.
pub fn assert_clean(dir: &Path) {
    let links = ip("-o link");
    assert!(!links.contains("berth0") && !links.contains("veth"), "links left: {links}");
    assert!(!ip("-4 -o addr").contains("10.85."), "addresses left");
    assert!(!ip("route").contains("10.85."), "routes left");
    assert_eq!(nft("list tables"), "");
    assert!(!dir.join("net").exists(), "leases left");
}

pub fn addr(ip: &str) -> IpAddr {
    ip.parse().unwrap()
}
