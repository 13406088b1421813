//! A real registry (`docker-registry`) on loopback.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
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

impl Registry {
    pub fn start() -> Registry {
        Registry::start_with(false)
    }

    /// User `user` with the password `s3cret`.
    pub fn start_with_password() -> Registry {
        Registry::start_with(true)
    }

    fn start_with(credentials: bool) -> Registry {
        let dir = tempfile::Builder::new().prefix("berth-registry-").tempdir().unwrap();
        // Another process may take the port between the two binds; then the next one serves.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            let mut config = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
                dir.path().join("data").display()
            );
            if credentials {
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
                return Registry { child, dir, address, credentials };
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
