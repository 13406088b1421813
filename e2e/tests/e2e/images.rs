//! Images: from a real registry, from files, and what is said when there is none.

use std::time::Duration;

use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::registry::{self, Registry};
use berth_e2e::tools;

const SOON: Duration = Duration::from_secs(30);

/// A registry on the node's machine with the demo image as `team/app:1.0`.
fn registry(node: &Node) -> (Registry, String) {
    let archive = node.path("demo-oci.tar");
    node.berth(&["image", "save", "-o", &archive.to_string_lossy(), manifest::IMAGE]).unwrap().ok().unwrap();
    let registry = Registry::start(node.machine()).unwrap();
    let reference = registry.push(&archive, "team/app:1.0").unwrap();
    (registry, reference)
}

#[test]
fn the_agent_says_where_its_images_are() {
    let node = Node::start().unwrap();
    let mut list = node.berth_command(&["image", "list"]);
    list.env_remove("BERTH_ROOT");
    let list = tools::run(list).unwrap().ok().unwrap();
    assert!(list.contains("docker.io/library/demo"), "{list}");
    let mut other = node.berth_command(&["image", "list"]);
    other.env("BERTH_ROOT", node.path("elsewhere"));
    let other = tools::run(other).unwrap().code(1).unwrap();
    assert!(other.stderr.contains("has its images below"), "{other}");
}

#[test]
fn a_pod_pulls_its_image_from_a_registry() {
    let node = Node::start().unwrap();
    let (registry, reference) = registry(&node);
    node.apply(
        "a.yaml",
        &Builder::new("a").image(&reference, "IfNotPresent").shell("exec sleep 1000000").yaml(),
    )
    .unwrap();
    let pods = node.wait_running(&["a"]).unwrap();
    let status = pods["a"].container("main").unwrap();
    assert!(status.image_id.contains("sha256:"), "{status:?}");
    for reason in ["Pulling: ", "Pulled: ", "Created: ", "Started: "] {
        node.wait_event("a", reason).unwrap();
    }
    let list = node.berth(&["image", "list"]).unwrap().ok().unwrap();
    assert!(list.contains("127.0.0.1:5000/team/app"), "{list}");

    // It is there now: the registry is not needed any more, unless the policy is Always.
    drop(registry);
    node.apply(
        "b.yaml",
        &Builder::new("b").image(&reference, "IfNotPresent").shell("exec sleep 1000000").yaml(),
    )
    .unwrap();
    node.wait_running(&["b"]).unwrap();
    node.apply("c.yaml", &Builder::new("c").image(&reference, "Always").shell("exec sleep 1000000").yaml())
        .unwrap();
    node.wait("c cannot pull", SOON, |pods| {
        pods.get("c").is_some_and(|p| ["ErrImagePull", "ImagePullBackOff"].contains(&p.reason()))
    })
    .unwrap();
}

#[test]
fn a_missing_image_shows_why_backs_off_and_recovers() {
    let node = Node::start().unwrap();
    let registry = Registry::start(node.machine()).unwrap();
    let reference = format!("{}/team/late:1.0", registry::ADDRESS);
    node.apply(
        "a.yaml",
        &Builder::new("a").image(&reference, "IfNotPresent").shell("exec sleep 1000000").yaml(),
    )
    .unwrap();
    node.wait("it backs off", SOON, |pods| pods.get("a").is_some_and(|p| p.reason() == "ImagePullBackOff"))
        .unwrap();
    let event = node.wait_event("a", "Failed: ").unwrap();
    assert!(event.contains("team/late:1.0"), "{event}");
    let archive = node.path("demo-oci.tar");
    node.berth(&["image", "save", "-o", &archive.to_string_lossy(), manifest::IMAGE]).unwrap().ok().unwrap();
    registry.push(&archive, "team/late:1.0").unwrap();
    node.wait_running(&["a"]).unwrap();
}

#[test]
fn bad_references_and_never_are_told_apart() {
    let node = Node::start().unwrap();
    node.apply(
        "never.yaml",
        &Builder::new("never").image("docker.io/library/nowhere:1", "Never").shell("true").yaml(),
    )
    .unwrap();
    node.apply("bad.yaml", &Builder::new("bad").image("Not//AnImage:", "IfNotPresent").shell("true").yaml())
        .unwrap();
    node.wait("never says so", SOON, |pods| {
        pods.get("never").is_some_and(|p| p.reason() == "ErrImageNeverPull")
    })
    .unwrap();
    // Refused when the manifest is read, or by the status: the reference is named either way.
    let said = || {
        let reason = node.pods().unwrap().get("bad").map(|p| p.reason().to_owned());
        reason.as_deref() == Some("InvalidImageName") || node.agent_log().contains("Not//AnImage:")
    };
    berth_e2e::poll::until_true("the bad reference is named", SOON, said).unwrap();
}

/// The program is linked statically: what nsswitch.conf(5) may name lies in shared libraries, which must not be looked for.
#[test]
fn a_registry_is_found_in_the_hosts_file_whatever_the_name_service_switch_says() {
    let node = Node::start().unwrap();
    let files = node.path("etc");
    let script = format!(
        "mkdir {0}; cp /etc/hosts /etc/nsswitch.conf {0}; echo 127.0.0.1 registry.in-hosts >>{0}/hosts;
         sed -i '/^hosts:/d' {0}/nsswitch.conf; echo 'hosts: nowhere [!UNAVAIL=return] mdns4' >>{0}/nsswitch.conf;
         for name in hosts nsswitch.conf; do mount --bind {0}/$name /etc/$name; done",
        files.display()
    );
    node.machine().shell(&script).unwrap();
    let absent = node.berth(&["image", "pull", "registry.in-hosts:1/team/app:1"]).unwrap().code(1).unwrap();
    node.machine().shell("umount /etc/hosts /etc/nsswitch.conf").unwrap();
    assert!(absent.stderr.to_lowercase().contains("connection refused"), "{absent}");
}

#[test]
fn images_can_be_pulled_listed_saved_loaded_and_removed() {
    let node = Node::start().unwrap();
    let (_registry, reference) = registry(&node);
    let image = |words: &[&str]| node.berth(&[&["image"], words].concat()).unwrap();
    image(&["pull", &reference]).ok().unwrap();
    assert!(image(&["list"]).ok().unwrap().contains("team/app"));
    let file = node.path("saved.tar");
    image(&["save", "-o", &file.to_string_lossy(), &reference]).ok().unwrap();
    image(&["rm", &reference]).ok().unwrap();
    assert!(!image(&["list"]).ok().unwrap().contains("team/app"));
    image(&["load", "-i", &file.to_string_lossy()]).ok().unwrap();
    assert!(image(&["list"]).ok().unwrap().contains("team/app"));
    let absent = image(&["pull", "127.0.0.1:5000/team/absent:1"]).code(1).unwrap();
    assert!(absent.stderr.contains("team/absent"), "{absent}");
    let gone = image(&["rm", "docker.io/library/nowhere:1"]).code(1).unwrap();
    assert!(gone.stderr.contains("nowhere"), "{gone}");
}

#[test]
fn a_registry_with_tls_and_a_password_is_used_with_what_pod_and_node_know() {
    let files = tempfile::tempdir().unwrap();
    let auth = files.path().join("auth.json");
    let config = format!(
        "registryCertsDirs: [{}]\nregistryAuthFile: {}\n",
        files.path().join("certs.d").display(),
        auth.display()
    );
    let node = Node::with(&config, &[]).unwrap();
    let archive = node.path("demo-oci.tar");
    node.berth(&["image", "save", "-o", &archive.to_string_lossy(), manifest::IMAGE]).unwrap().ok().unwrap();
    let registry = Registry::start_secure(node.machine()).unwrap();
    let reference = registry.push(&archive, "team/app:1.0").unwrap();
    let certs = files.path().join("certs.d").join(registry::ADDRESS);
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::copy(registry.authority(), certs.join("ca.crt")).unwrap();
    let pod = |name: &str| Builder::new(name).image(&reference, "Always").shell("exec sleep 1000000");

    // Nobody knows the password.
    node.apply("none.yaml", &pod("none").yaml()).unwrap();
    let failed = node.wait_event("none", "Failed to pull image").unwrap();
    assert!(failed.contains("authentication required") || failed.contains("unauthorized"), "{failed}");

    // A secret of the pod does.
    let known =
        format!(r#"{{"auths": {{"{}": {{"username": "user", "password": "s3cret"}}}}}}"#, registry::ADDRESS);
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{ name: login }}\ntype: kubernetes.io/dockerconfigjson\nstringData:\n  .dockerconfigjson: '{known}'\n---\n"
    );
    let with_secret = pod("with-secret").with_pod("imagePullSecrets: [{ name: login }]").yaml();
    node.apply("with-secret.yaml", &(secret + &with_secret)).unwrap();
    node.wait_running(&["with-secret"]).unwrap();

    // So does the node, from now on: the first pod gets its image when its back-off is over.
    std::fs::write(&auth, &known).unwrap();
    node.apply("by-node.yaml", &pod("by-node").yaml()).unwrap();
    node.wait_running(&["by-node", "none"]).unwrap();

    // The command line has the same.
    let words = ["image", "pull", "--authfile", &auth.to_string_lossy(), "--certs-dir"];
    let certs_d = files.path().join("certs.d");
    let pulled =
        node.berth(&[&words[..], &[&certs_d.to_string_lossy(), &reference]].concat()).unwrap().ok().unwrap();
    assert!(pulled.contains("Pulled 127.0.0.1:5000/team/app:1.0"), "{pulled}");
    let wrong = node.berth(&[
        "image",
        "pull",
        "--creds",
        "user:wrong",
        "--certs-dir",
        &certs_d.to_string_lossy(),
        &reference,
    ]);
    assert!(wrong.unwrap().ok().is_err());
}
