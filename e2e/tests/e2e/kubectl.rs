//! The real kubectl against the API over TLS.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_e2e::manifest::{Builder, IMAGE};
use berth_e2e::node::Node;
use berth_e2e::poll;
use berth_e2e::tools::{self, Ran};

pub const CONFIG: &str = "apiAddress: 127.0.0.1:6443\ncrashLoopBackOff:\n  maxContainerRestartPeriod: 1s\n";

/// Both protocols of streams that kubectl has: WebSockets, and SPDY without them.
const PROTOCOLS: [&str; 2] = ["true", "false"];

/// kubectl with a kubeconfig of `berth kubeconfig`.
pub struct Kubectl {
    pub node: Node,
}

impl Kubectl {
    pub fn new() -> Self {
        let node = Node::with(CONFIG, &[]).unwrap();
        let kubeconfig = node.berth(&["kubeconfig"]).unwrap().ok().unwrap();
        std::fs::write(node.path("kubeconfig"), kubeconfig).unwrap();
        Self { node }
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.node.machine().command(tools::unpacked("kubectl").unwrap());
        // A cache of its own; nothing of whoever runs the tests.
        command.env("HOME", self.node.path("")).env("KUBECONFIG", self.node.path("kubeconfig"));
        command.args(words);
        command
    }

    pub fn run(&self, words: &[&str]) -> Ran {
        tools::run(self.command(words)).unwrap()
    }

    pub fn ok(&self, words: &[&str]) -> String {
        self.run(words).ok().unwrap()
    }

    /// Applies a pod and waits until it is ready.
    pub fn pod(&self, name: &str, yaml: &str) {
        let file = self.node.path(&format!("{name}.yaml"));
        std::fs::write(&file, yaml).unwrap();
        self.ok(&["apply", "-f", file.to_str().unwrap()]);
        self.ok(&["wait", "--for=condition=Ready", "--timeout=30s", &format!("pod/{name}")]);
    }
}

#[test]
fn kubectl_makes_shows_changes_and_deletes_objects() {
    let k = Kubectl::new();
    assert!(k.ok(&["get", "nodes"]).contains(" Ready "));
    k.pod("web", &Builder::new("web").labels("{app: web}").shell("echo up; exec sleep 1000").grace(1).yaml());
    assert!(k.ok(&["apply", "-f", k.node.path("web.yaml").to_str().unwrap()]).contains("pod/web unchanged"));
    assert!(k.ok(&["get", "pods", "-l", "app=web", "-o", "wide"]).contains("1/1     Running"));
    let described = k.ok(&["describe", "pod", "web"]);
    assert!(described.contains("QoS Class:") && described.contains("Started"), "{described}");
    assert_eq!(k.ok(&["logs", "web"]), "up\n");

    k.ok(&["label", "pod", "web", "tier=front"]);
    k.ok(&["patch", "pod", "web", "--type=json", "-p", r#"[{"op":"remove","path":"/metadata/labels/app"}]"#]);
    let mut edit = k.command(&["edit", "pod", "web"]);
    edit.env("EDITOR", "sed -i s/front/back/");
    tools::run(edit).unwrap().ok().unwrap();
    assert_eq!(k.ok(&["get", "pod", "web", "-o", "jsonpath={.metadata.labels}"]), r#"{"tier":"back"}"#);

    // Typed clients send these in protobuf.
    k.ok(&["create", "configmap", "settings", "--from-literal=a=1"]);
    k.ok(&["create", "secret", "generic", "token", "--from-literal=t=x"]);
    assert_eq!(k.ok(&["get", "cm", "settings", "-o", "jsonpath={.data.a}"]), "1");
    assert_eq!(k.ok(&["get", "secret", "token", "-o", "jsonpath={.data.t}"]), "eA==");
    assert_eq!(k.ok(&["auth", "can-i", "delete", "pods"]), "yes\n");
    assert!(k.ok(&["auth", "whoami"]).contains("berth-admin"));

    k.pod("busy", &Builder::new("busy").shell("while :; do :; done").grace(0).yaml());
    let top = k.ok(&["top", "pods", "--no-headers"]);
    let milli = |name: &str| {
        let line = top.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().trim_end_matches('m').parse::<u32>().unwrap()
    };
    assert!(milli("busy") > milli("web") && milli("busy") > 10, "{top}");
    assert!(k.ok(&["top", "node"]).contains("n1 "));
    assert!(k.ok(&["events", "--for", "pod/web"]).contains("Started"));
    k.ok(&["delete", "pod", "busy"]);

    let wrong = k.run(&[
        "run",
        "bad",
        "--image=x",
        "--restart=Never",
        "--overrides",
        r#"{"spec":{"nodeSelector":3}}"#,
    ]);
    assert!(wrong.code == 1 && wrong.stderr.contains("nodeSelector"), "{wrong}");
    k.ok(&["delete", "pod", "web"]);
    assert!(k.run(&["get", "pod", "web"]).code(1).unwrap().stderr.contains("NotFound"));
    k.ok(&["delete", "cm,secret", "--all"]);
}

#[test]
fn kubectl_runs_commands_and_copies_files_over_both_protocols() {
    let k = Kubectl::new();
    k.pod(
        "a",
        &Builder::new("a")
            .shell("read line; echo got $line; exec sleep 1000")
            .with("stdin: true")
            .grace(0)
            .yaml(),
    );
    std::fs::write(k.node.path("file"), "content").unwrap();
    for (n, websockets) in PROTOCOLS.iter().enumerate() {
        let run = |words: &[&str], input: &[u8]| {
            let mut command = k.command(words);
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
            tools::run_with(command, input).unwrap()
        };
        let ran = run(&["exec", "a", "--", "sh", "-c", "echo out; echo err >&2; exit 5"], b"");
        assert_eq!((ran.code, ran.stdout.as_str()), (5, "out\n"), "{ran}");
        assert!(ran.stderr.contains("err\n"), "{ran}");
        let much = vec![b'x'; 3 << 20];
        let ran = run(&["exec", "-i", "a", "--", "wc", "-c"], &much);
        assert_eq!((ran.code, ran.stdout.trim()), (0, "3145728"), "{ran}");
        let ran = run(&["exec", "a", "--", "head", "-c", "3000000", "/dev/zero"], b"");
        assert_eq!((ran.code, ran.stdout.len()), (0, 3_000_000));
        let place = format!("a:/tmp/f{n}");
        run(&["cp", k.node.path("file").to_str().unwrap(), &place], b"").ok().unwrap();
        let back = k.node.path(&format!("back{n}"));
        run(&["cp", &place, back.to_str().unwrap()], b"").ok().unwrap();
        assert_eq!(std::fs::read_to_string(back).unwrap(), "content");
        assert_eq!(run(&["exec", "a", "--", "no-such-program"], b"").code, 1);
    }
    // Attached, its input ends with ours.
    let ran = tools::run_with(
        k.command(&[
            "run",
            "b",
            "-i",
            "--rm",
            "--restart=Never",
            "--image",
            IMAGE,
            "--image-pull-policy=Never",
            "--",
            "cat",
        ]),
        b"through\n",
    );
    let ran = ran.unwrap();
    assert!(ran.code == 0 && ran.stdout.contains("through\n"), "{ran}");
}

#[test]
fn kubectl_attaches_over_both_protocols() {
    let k = Kubectl::new();
    for (name, websockets) in ["a", "b"].into_iter().zip(PROTOCOLS) {
        let shell = "read line; echo got $line; exit 0";
        k.pod(
            name,
            &Builder::new(name)
                .shell(shell)
                .with("stdin: true")
                .with("stdinOnce: true")
                .restart("Never")
                .yaml(),
        );
        let mut command = k.command(&["attach", "-i", name]);
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
        let ran = tools::run_with(command, b"hello\n").unwrap();
        assert!(ran.code == 0 && ran.stdout.contains("got hello\n"), "{ran}");
    }
}

/// A `kubectl port-forward` and the local port that it listens on.
struct Forward {
    child: Child,
    port: u16,
}

impl Forward {
    fn start(k: &Kubectl, words: &[&str], websockets: &str) -> Forward {
        let mut command = k.command(&["port-forward"]);
        command.args(words).env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        // "Forwarding from 127.0.0.1:40001 -> 80"; what it says of each connection must find a reader.
        let port = line.split([':', ' ']).filter_map(|word| word.parse().ok()).next().unwrap();
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Forward { child, port }
    }

    fn get(&self, k: &Kubectl, path: &str) -> Ran {
        let mut curl = k.node.machine().command("curl");
        curl.args(["-s", "--max-time", "20", &format!("http://127.0.0.1:{}/{path}", self.port)]);
        tools::run(curl).unwrap()
    }
}

impl Forward {
    fn end(mut self, k: &Kubectl) {
        // The child is what entered the machine; the program is below it.
        let ours = |words: &str| words.contains("port-forward");
        let processes = k.node.machine().processes().unwrap().into_iter();
        let pids: Vec<i32> = processes.filter(|p| ours(&p.command)).map(|p| p.pid).collect();
        k.node.machine().kill("TERM", &pids).unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn kubectl_forwards_ports_over_both_protocols() {
    let k = Kubectl::new();
    let shell =
        "mkdir /w; echo hello >/w/index.html; head -c 2000000 /dev/zero >/w/much; exec httpd -f -p 80 -h /w";
    k.pod(
        "web",
        &Builder::new("web")
            .labels("{app: web}")
            .shell(shell)
            .with("ports: [{containerPort: 80}]")
            .grace(0)
            .yaml(),
    );
    k.ok(&["expose", "pod", "web", "--port=8080", "--target-port=80"]);
    for websockets in PROTOCOLS {
        let forward = Forward::start(&k, &["pod/web", ":80"], websockets);
        for _ in 0..20 {
            assert_eq!(forward.get(&k, "").ok().unwrap(), "hello\n");
        }
        let many: Vec<String> = std::thread::scope(|scope| {
            let gets: Vec<_> =
                (0..8).map(|_| scope.spawn(|| forward.get(&k, "much").ok().unwrap())).collect();
            gets.into_iter().map(|get| get.join().unwrap()).collect()
        });
        assert!(many.iter().all(|body| body.len() == 2_000_000));
        forward.end(&k);
        let service = Forward::start(&k, &["svc/web", ":8080"], websockets);
        assert_eq!(service.get(&k, "").ok().unwrap(), "hello\n");
        service.end(&k);
        // Nobody listens there; kubectl gives up with the reason.
        let mut nobody = k.command(&["port-forward", "pod/web", "18099:81"]);
        nobody
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = nobody.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let refused = Forward { child, port: 18099 };
        assert_ne!(refused.get(&k, "").code, 0);
        let output = refused.child.wait_with_output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(complaint.contains("error forwarding port 81 to pod web"), "{complaint}");
    }
}

#[test]
fn only_whom_the_authority_has_signed_for_gets_in() {
    let mut k = Kubectl::new();
    let curl = |k: &Kubectl, flags: &[&str], path: &str| {
        let mut curl = k.node.machine().command("curl");
        curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}"]).args(flags);
        curl.arg(format!("https://127.0.0.1:6443{path}"));
        tools::run(curl).unwrap().stdout
    };
    assert_eq!(curl(&k, &[], "/healthz"), "200");
    assert_eq!(curl(&k, &[], "/api/v1/pods"), "401");

    // A user of another group gets a certificate, and is told what it may: nothing.
    let dir = k.node.path("");
    let make = "openssl ecparam -name prime256v1 -genkey -noout -out u.key && \
         openssl req -new -key u.key -subj /O=dev/CN=bob -out u.csr && base64 -w0 u.csr";
    let request = k.node.machine().shell(&format!("cd {} && ({make}) 2>/dev/null", dir.display())).unwrap();
    let csr = format!(
        "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: bob}}\nspec:\n  \
         request: {}\n  signerName: kubernetes.io/kube-apiserver-client\n  usages: [client auth]\n",
        request.trim()
    );
    std::fs::write(k.node.path("csr.yaml"), csr).unwrap();
    k.ok(&["apply", "-f", k.node.path("csr.yaml").to_str().unwrap()]);
    assert!(k.ok(&["get", "csr"]).contains("berth-admin   <none>              Pending"));
    k.ok(&["certificate", "approve", "bob"]);
    assert!(k.ok(&["get", "csr"]).contains("Approved,Issued"));
    let certificate =
        k.ok(&["get", "csr", "bob", "-o", "go-template={{.status.certificate | base64decode}}"]);
    std::fs::write(k.node.path("u.crt"), certificate).unwrap();
    let (key, certificate) = (k.node.path("u.key"), k.node.path("u.crt"));
    let bob = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    assert_eq!(curl(&k, &bob, "/api/v1/pods"), "403");
    assert_eq!(curl(&k, &bob, "/version"), "200");

    // Another node's authority means nothing here, the node's own outlives the agent.
    let other = Node::with(CONFIG, &[]).unwrap();
    let strange = other.berth(&["kubeconfig"]).unwrap().ok().unwrap();
    let known = std::fs::read_to_string(k.node.path("kubeconfig")).unwrap();
    std::fs::write(k.node.path("kubeconfig"), strange).unwrap();
    let refused = k.run(&["--insecure-skip-tls-verify", "get", "pods"]);
    assert_ne!(refused.code, 0, "{refused}");
    std::fs::write(k.node.path("kubeconfig"), known).unwrap();
    k.node.kill9_agent().unwrap();
    k.node.start_agent().unwrap();
    k.ok(&["get", "pods"]);
    other.finish().unwrap();
}

#[test]
fn a_node_without_that_address_says_what_to_do() {
    let node = Node::start().unwrap();
    let ran = node.berth(&["kubeconfig"]).unwrap().code(1).unwrap();
    assert!(ran.stderr.contains("--api-address"), "{ran}");
}

#[test]
fn strangers_cannot_take_all_connections() {
    let k = Kubectl::new();
    let health = || {
        let mut curl = k.node.machine().command("curl");
        curl.args(["-sk", "--max-time", "20", "https://127.0.0.1:6443/healthz"]);
        tools::run(curl).unwrap()
    };
    assert_eq!(health().stdout, "ok");
    // Each says that it is connected, and stays for as long as its input does.
    let mut strangers: Vec<Child> = (0..64)
        .map(|_| {
            let mut client = k.node.machine().command("openssl");
            client.args(["s_client", "-connect", "127.0.0.1:6443"]);
            let mut child =
                client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert!(line.starts_with("CONNECTED"), "{line}");
            child
        })
        .collect();
    poll::until_true("a further stranger is turned away", Duration::from_secs(30), || health().code != 0)
        .unwrap();
    k.ok(&["get", "pods"]);
    for stranger in &mut strangers {
        drop(stranger.stdin.take());
        let mut rest = Vec::new();
        stranger.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
        stranger.wait().unwrap();
    }
    poll::until_true("there is room again", Duration::from_secs(30), || health().stdout == "ok").unwrap();
}
