//! A real registry (`docker-registry`) on loopback.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::layout::Layout;
use super::run;

/// `htpasswd -nbB user s3cret`
const HTPASSWD: &str = "user:$2y$04$0DGPmcVQGMlNUH17GIvb3e.myddyoPlLu2ANToe61VrpCbLJLfBta\n";

pub struct Registry {
    child: Child,
    pub dir: TempDir,
    pub address: String,
    credentials: bool,
}

/// What a registry asks of its clients.
#[derive(Clone, Copy, Default)]
struct Asks {
    credentials: bool,
    tls: bool,
}

impl Registry {
    pub fn start() -> Registry {
        Registry::start_with(Asks::default())
    }

    /// Over https, with a certificate of an authority of its own, and with user `user` and the password `s3cret`.
    /// The authority's certificate is [`Registry::authority`].
    pub fn start_with_tls_and_password() -> Registry {
        Registry::start_with(Asks { credentials: true, tls: true })
    }

    /// The certificate of the authority, in PEM form.
    pub fn authority(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("ca.crt")).unwrap()
    }

    /// User `user` with the password `s3cret`.
    pub fn start_with_password() -> Registry {
        Registry::start_with(Asks { credentials: true, tls: false })
    }

    fn start_with(asks: Asks) -> Registry {
        let dir = tempfile::Builder::new().prefix("berth-registry-").tempdir().unwrap();
        // Another process may take the port between the two binds; then the next one serves.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            let mut config = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
                dir.path().join("data").display()
            );
            if asks.tls {
                config += &tls(dir.path());
            }
            if asks.credentials {
                let htpasswd = dir.path().join("htpasswd");
                std::fs::write(&htpasswd, HTPASSWD).unwrap();
                config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", htpasswd.display());
            }
            let file = dir.path().join("config.yml");
            std::fs::write(&file, config).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&file)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("docker-registry is needed");
            if answers(&mut child, &address) {
                return Registry { child, dir, address, credentials: asks.credentials };
            }
        }
        panic!("docker-registry does not start");
    }

    /// Pushes an image of a layout with skopeo.
    pub fn push(&self, layout: &Layout, name: &str, to: &str, args: &[&str]) -> String {
        let from = format!("oci:{}:{name}", layout.path().display());
        let target = format!("docker://{}/{to}", self.address);
        let mut all = vec!["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
        if self.credentials {
            all.extend(["--dest-creds", "user:s3cret"]);
        }
        all.extend(args);
        all.extend([from.as_str(), target.as_str()]);
        run("skopeo", &all);
        format!("{}/{to}", self.address)
    }

    /// The file that holds a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = &digest[7..];
        self.dir.path().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

/// Makes an authority and a certificate for 127.0.0.1 in a folder; gives what the registry's configuration says of them.
fn tls(dir: &Path) -> String {
    let file = |name: &str| dir.join(name).display().to_string();
    let (ca_key, ca, key, cert) = (file("ca.key"), file("ca.crt"), file("server.key"), file("server.crt"));
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-x509", "-days", "2"];
    let make = |more: &[&str]| run("openssl", &[&["req"], &new_key[..], more].concat());
    make(&["-keyout", &ca_key, "-out", &ca, "-subj", "/CN=authority of a test"]);
    let server = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
    let signed = ["-keyout", &key, "-out", &cert, "-subj", "/CN=registry", "-CA", &ca, "-CAkey", &ca_key];
    make(&[&signed[..], &server].concat());
    format!("  tls:\n    certificate: {cert}\n    key: {key}\n")
}

#[expect(clippy::disallowed_methods, reason = "a listening port gives no event; polled with a deadline")]
fn answers(child: &mut Child, address: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if TcpStream::connect(address).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
