//! What the kernel must show of volumes: images, limits, live updates, propagation, read-only trees.

use std::time::Duration;

use berth_e2e::manifest::{Builder, IMAGE};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;
use berth_e2e::poll;
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

/// Runs a command in a container of this pod again and again until it prints this.
fn until_prints(node: &Node, pod: &str, command: &[&str], wanted: &str) {
    poll::until(&format!("{command:?} prints {wanted:?}"), SOON, || {
        let words = [&["exec", pod, "--"], command].concat();
        let ran = node.berth(&words).map_err(|e| e.to_string())?;
        if ran.stdout == wanted { Ok(Some(())) } else { Err(format!("{ran}")) }
    })
    .unwrap();
}

#[test]
fn pods_that_take_more_of_the_disk_than_they_may_are_evicted() {
    let node = Node::start().unwrap();
    let writes = |name: &str, to: &str| {
        Builder::new(name)
            .shell(&format!("dd if=/dev/zero of={to} bs=1M count=4 2>/dev/null; exec sleep 1000000"))
            .with("volumeMounts: [{ name: v, mountPath: /v }]")
    };
    let limited = "resources: { limits: { ephemeral-storage: 2Mi } }";
    let pods = [
        // An evicted pod does not get its own grace period.
        (
            "volume",
            writes("volume", "/v/x")
                .grace(600)
                .with_pod("volumes: [{ name: v, emptyDir: { sizeLimit: 2Mi } }]"),
        ),
        (
            "container",
            writes("container", "/root/x").with(limited).with_pod("volumes: [{ name: v, emptyDir: {} }]"),
        ),
        ("total", writes("total", "/v/x").with(limited).with_pod("volumes: [{ name: v, emptyDir: {} }]")),
        (
            "small",
            writes("small", "/v/x")
                .with("resources: { limits: { ephemeral-storage: 200Mi } }")
                .with_pod("volumes: [{ name: v, emptyDir: { sizeLimit: 100Mi } }]"),
        ),
    ];
    for (name, pod) in &pods {
        node.apply(&format!("{name}.yaml"), &pod.yaml()).unwrap();
    }
    let found = node
        .wait("three are evicted", Duration::from_secs(90), |pods| {
            ["volume", "container", "total"]
                .iter()
                .all(|n| pods.get(*n).is_some_and(|p| p.phase() == "Failed"))
        })
        .unwrap();
    let expected = [
        ("volume", "Usage of EmptyDir volume \"v\" exceeds the limit \"2Mi\". "),
        // The limit of its only container is the pod's, too, and the pod comes first.
        ("container", "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "),
        ("total", "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "),
    ];
    for (name, message) in expected {
        let status = found[name].status.as_ref().unwrap();
        assert_eq!(
            (status.reason.as_deref(), status.message.as_deref()),
            (Some("Evicted"), Some(message)),
            "{name}"
        );
        node.wait_event(name, &format!("Evicted: {message}")).unwrap();
        let uid = found[name].uid();
        assert!(node.pids(uid).unwrap().is_empty(), "{name} still runs");
        poll::until_true("the disk is free again", SOON, || {
            ["volumes", "rootfs"].iter().all(|folder| !node.path("root").join(folder).join(uid).exists())
        })
        .unwrap();
    }
    assert!(node.pod("small").unwrap().is_running());
}

#[test]
fn an_evicted_pod_stays_so_for_the_next_agent() {
    let mut node = Node::start().unwrap();
    let pod = Builder::new("a")
        .shell("trap '' TERM; dd if=/dev/zero of=/x bs=1M count=4 2>/dev/null; while :; do sleep 1; done")
        .with("resources: { limits: { ephemeral-storage: 2Mi } }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait_event("a", "Evicted").unwrap();
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    let pods = node
        .wait("it has failed", SOON, |pods| pods.get("a").is_some_and(|p| p.phase() == "Failed"))
        .unwrap();
    assert_eq!(pods["a"].status.as_ref().unwrap().reason.as_deref(), Some("Evicted"));
    assert_eq!(pods["a"].restarts(), 0);
}

/// An image with a file `data/file` and a program.
fn data_image(node: &Node, reference: &str) {
    let dir = node.path("image");
    std::fs::create_dir_all(dir.join("data")).unwrap();
    std::fs::write(dir.join("data/file"), "from the image").unwrap();
    std::fs::write(dir.join("program"), "#!/bin/sh\necho ran\n").unwrap();
    node.machine()
        .shell(&format!("cd {0} && chmod 755 program && tar cf {0}.tar data program", dir.display()))
        .unwrap();
    let tar = node.path("image.tar");
    node.berth(&["image", "import", &tar.to_string_lossy(), reference]).unwrap().ok().unwrap();
}

#[test]
fn an_image_is_mounted_as_a_volume_that_nobody_can_write_or_execute() {
    let mut node = Node::start().unwrap();
    let shell =
        "cat /i/data/file; echo; cat /sub/file; echo; touch /i/x 2>&1; /i/program 2>&1; exec sleep 1000000";
    let pod = Builder::new("a")
        .shell(shell)
        .with("volumeMounts: [{ name: i, mountPath: /i }, { name: i, mountPath: /sub, subPath: data }]")
        .with_pod("volumes: [{ name: i, image: { reference: example.com/data:1, pullPolicy: Never } }]")
        .yaml();
    node.apply("a.yaml", &pod).unwrap();
    node.wait_event("a", "example.com/data:1\" is not present with pull policy of Never").unwrap();
    data_image(&node, "example.com/data:1");
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let lines = node.wait_log(&pod, "ermission denied").unwrap();
    assert_eq!(lines[..2], ["from the image", "from the image"]);
    assert!(lines[2].contains("Read-only file system"), "{lines:?}");
    // It is in use, also by a container that a new agent starts.
    let refused = node.berth(&["image", "rm", "example.com/data:1"]).unwrap().code(1).unwrap();
    assert!(format!("{refused}").contains("in use"), "{refused}");
    node.kill9_agent().unwrap();
    node.start_agent().unwrap();
    node.machine().kill("KILL", &node.pids(pod.uid()).unwrap()).unwrap();
    node.wait("it runs again", SOON, |pods| {
        pods.get("a").is_some_and(|p| p.restarts() == 1 && p.is_running())
    })
    .unwrap();
    assert_eq!(node.exec("a", &["cat", "/i/data/file"]).unwrap().ok().unwrap(), "from the image");
    node.finish().unwrap();
}

/// An archive, as `docker save` makes it, of an image of these layers, the lower one first.
fn two_layers(node: &Node, reference: &str, layers: [&std::path::Path; 2]) -> std::path::PathBuf {
    let dir = node.path("archive");
    std::fs::create_dir(&dir).unwrap();
    let ids = layers.map(|layer| {
        let sum = node.machine().shell(&format!("sha256sum {}", layer.display())).unwrap();
        format!("sha256:{}", sum.split_whitespace().next().unwrap())
    });
    for (name, layer) in ["below.tar", "above.tar"].iter().zip(layers) {
        std::fs::copy(layer, dir.join(name)).unwrap();
    }
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": ids}});
    let manifest =
        json!([{"Config": "config.json", "RepoTags": [reference], "Layers": ["below.tar", "above.tar"]}]);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = node.path("two.tar");
    node.machine()
        .shell(&format!(
            "cd {} && tar cf {} manifest.json config.json below.tar above.tar",
            dir.display(),
            archive.display()
        ))
        .unwrap();
    archive
}

/// A pod's own users own what the image's own, also where the image has several layers, and so does each pod.
#[test]
fn an_image_of_two_layers_is_a_volume_for_users_of_a_pod() {
    let node = Node::start().unwrap();
    data_image(&node, "example.com/data:1");
    let (below, above) = (node.path("image.tar"), node.path("above.tar"));
    let dir = node.path("above");
    std::fs::create_dir_all(dir.join("data")).unwrap();
    std::fs::write(dir.join("data/more"), "from above").unwrap();
    std::os::unix::fs::chown(dir.join("data/more"), Some(1234), Some(4321)).unwrap();
    node.machine().shell(&format!("cd {} && tar cf {} data", dir.display(), above.display())).unwrap();
    let archive = two_layers(&node, "example.com/two:1", [&below, &above]);
    node.berth(&["image", "load", &archive.to_string_lossy()]).unwrap().ok().unwrap();
    let pod = |name: &str, users: bool| {
        Builder::new(name)
            .shell("exec sleep 1000000")
            .with("volumeMounts: [{ name: i, mountPath: /i }, { name: i, mountPath: /sub, subPath: data }]")
            .with_pod(&format!("hostUsers: {}", !users))
            .with_pod("volumes: [{ name: i, image: { reference: example.com/two:1, pullPolicy: Never } }]")
            .yaml()
    };
    for (name, users) in [("a", true), ("b", true), ("c", false)] {
        node.apply(&format!("{name}.yaml"), &pod(name, users)).unwrap();
    }
    node.wait_running(&["a", "b", "c"]).unwrap();
    for name in ["a", "b", "c"] {
        let seen = node.exec(name, &["sh", "-c", "cat /i/data/file; echo; cat /sub/more; echo; stat -c %u:%g /i /i/program /sub/more; touch /i/x 2>&1"]);
        let seen = seen.unwrap().stdout;
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!(lines[..5], ["from the image", "from above", "0:0", "0:0", "1234:4321"], "{name}: {seen}");
        assert!(lines[5].contains("Read-only file system"), "{name}: {seen}");
    }
}

#[test]
fn changes_of_objects_reach_a_running_pod_all_at_once() {
    let node = Node::start().unwrap();
    let map = |name: &str, text: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: {name} }}\ndata: {{ a: {text}, b: other }}\n{more}"
        )
    };
    node.apply("map.yaml", &map("map", "one", "")).unwrap();
    node.apply("fixed.yaml", &map("fixed", "one", "immutable: true\n")).unwrap();
    let pod = Builder::new("a")
        .shell("exec sleep 1000000")
        .with("volumeMounts:")
        .with("  - { name: map, mountPath: /map }")
        .with("  - { name: map, mountPath: /sub, subPath: a }")
        .with("  - { name: items, mountPath: /items }")
        .with("  - { name: later, mountPath: /later }")
        .with("  - { name: fixed, mountPath: /fixed }")
        .with_pod("volumes:")
        .with_pod("  - { name: map, configMap: { name: map } }")
        .with_pod("  - { name: items, projected: { sources: [{ configMap: { name: map, items: [{ key: a, path: deep/er }] } }] } }")
        .with_pod("  - { name: later, secret: { secretName: later, optional: true } }")
        .with_pod("  - { name: fixed, configMap: { name: fixed } }");
    node.apply("a.yaml", &pod.yaml()).unwrap();
    node.wait_running(&["a"]).unwrap();
    let read = |file: &str| node.exec("a", &["cat", file]).unwrap().ok().unwrap();
    assert_eq!(
        (read("/map/a"), read("/sub"), read("/items/deep/er")),
        ("one".into(), "one".into(), "one".into())
    );
    assert_eq!(
        node.exec("a", &["ls", "/items", "/later"]).unwrap().ok().unwrap(),
        "/items:\ndeep\n\n/later:\n"
    );
    let link = |dir: &str| node.exec("a", &["readlink", &format!("{dir}/..data")]).unwrap().ok().unwrap();
    let (before, other) = (link("/map"), link("/later"));

    node.apply("fixed.yaml", &map("fixed", "two", "immutable: true\n")).unwrap();
    node.apply("map.yaml", &map("map", "two", "")).unwrap();
    until_prints(&node, "a-n1", &["cat", "/map/a", "/items/deep/er"], "twotwo");
    assert_ne!(link("/map"), before, "the files were not swapped by the link");
    assert_eq!(read("/sub"), "one", "a subPath shows what was there when the container started");
    assert_eq!(link("/later"), other, "what has not changed is left alone");
    node.wait_event("n1", "fixed: data is immutable when").unwrap();
    assert_eq!(read("/fixed/a"), "one");

    node.apply(
        "later.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: { name: later }\nstringData: { key: hush }\n",
    )
    .unwrap();
    until_prints(&node, "a-n1", &["cat", "/later/key"], "hush");
    node.remove("later.yaml").unwrap();
    until_prints(&node, "a-n1", &["ls", "/later"], "");
}

#[test]
fn labels_and_annotations_change_in_a_running_pods_files() {
    let node = Node::start().unwrap();
    let pod = |label: &str| {
        Builder::new("a")
            .shell("exec sleep 1000000")
            .labels(&format!("{{ app: {label} }}"))
            .with("volumeMounts: [{ name: v, mountPath: /v }]")
            .with_pod("volumes: [{ name: v, downwardAPI: { items: [{ path: all, fieldRef: { fieldPath: metadata.labels } }, { path: one, fieldRef: { fieldPath: \"metadata.labels['app']\" } }] } }]")
            .yaml()
    };
    let file = node.path("a.yaml");
    for label in ["one", "two"] {
        std::fs::write(&file, pod(label)).unwrap();
        node.berth(&["apply", "-f", &file.to_string_lossy()]).unwrap().ok().unwrap();
        node.wait_running(&["a"]).unwrap();
        let wanted = format!("app=\"{label}\"{label}");
        until_prints(&node, "a", &["cat", "/v/all", "/v/one"], &wanted);
    }
    assert_eq!(node.pod("a").unwrap().restarts(), 0);
}

#[test]
fn a_sub_path_is_made_expanded_and_may_be_a_file() {
    let node = Node::start().unwrap();
    let host = node.path("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("conf"), "a file\n").unwrap();
    let pod = Builder::new("a")
        .shell("touch /made/x /mine/y; cat /conf; exec sleep 1000000")
        .with("env: [{ name: NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }]")
        .with("volumeMounts:")
        .with("  - { name: v, mountPath: /made, subPath: some/deep }")
        .with("  - { name: v, mountPath: /mine, subPathExpr: of/$(NAME) }")
        .with("  - { name: h, mountPath: /conf, subPath: conf, readOnly: true }")
        .with("  - { name: v, mountPath: /all }")
        .with_pod(&format!(
            "volumes: [{{ name: v, emptyDir: {{}} }}, {{ name: h, hostPath: {{ path: {} }} }}]",
            host.display()
        ));
    node.apply("a.yaml", &pod.yaml()).unwrap();
    let pod = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    node.wait_log(&pod, "a file").unwrap();
    let found = node.exec("a", &["find", "/all", "-type", "f"]).unwrap().ok().unwrap();
    let mut found: Vec<&str> = found.lines().collect();
    found.sort_unstable();
    assert_eq!(found, ["/all/of/a-n1/y", "/all/some/deep/x"]);
}

/// CVE-2017-1002101, CVE-2021-25741: one container of a pod exchanges a folder for a link to the host all the time, while the
/// other is started again and again with a subPath below it.
#[test]
fn a_container_cannot_lead_anothers_sub_path_out_of_the_volume() {
    let node = Node::start().unwrap();
    let host = node.path("host");
    std::fs::create_dir_all(host.join("b")).unwrap();
    std::fs::write(host.join("b/host-file"), "").unwrap();
    let results = node.path("results");
    std::fs::create_dir(&results).unwrap();
    // Most of the time the folder is there, or the victim would hardly ever start.
    let attacker = format!(
        "cd /v; mkdir -p a/b; while :; do usleep 100000; mv a hidden; ln -s {} a; usleep 5000; rm -rf a; mv hidden a; done",
        host.display()
    );
    let pod = Builder::new("a")
        .shell("[ -e /s/host-file ] && touch /r/escaped; touch /r/ran")
        .with("volumeMounts: [{ name: v, mountPath: /s, subPath: a/b }, { name: r, mountPath: /r }]")
        .with_pod(&format!(
            "volumes: [{{ name: v, emptyDir: {{}} }}, {{ name: r, hostPath: {{ path: {} }} }}]",
            results.display()
        ))
        .yaml()
        + &format!(
            "    - name: attacker\n      image: {IMAGE}\n      imagePullPolicy: Never\n      command: {}\n      volumeMounts: [{{ name: v, mountPath: /v }}]\n",
            serde_json::json!(["sh", "-c", attacker])
        );
    node.apply("a.yaml", &pod).unwrap();
    node.wait("the victim has been started some times", Duration::from_secs(120), |pods| {
        let statuses = pods.get("a").map(PodExt::statuses).unwrap_or_default();
        statuses.iter().any(|status| status.name == "main" && status.restart_count >= 2)
    })
    .unwrap();
    assert!(results.join("ran").exists(), "the victim has never run");
    assert!(!results.join("escaped").exists(), "the victim has seen the host's file");
    assert_eq!(std::fs::read_dir(&host).unwrap().count(), 1, "something was made outside");
    assert_eq!(std::fs::read_dir(host.join("b")).unwrap().count(), 1, "something was made outside");
}

#[test]
fn mounts_of_the_host_and_of_a_privileged_container_reach_each_other_as_asked() {
    let node = Node::start().unwrap();
    let dir = node.path("shared");
    std::fs::create_dir(&dir).unwrap();
    let at = dir.display().to_string();
    node.machine().shell(&format!("mount --bind {at} {at} && mount --make-shared {at}")).unwrap();
    let mounts = |name: &str, propagation: &str, security: &str| {
        let yaml = Builder::new(name)
            .shell("exec sleep 1000000")
            .with(&format!("securityContext: {security}"))
            .with(&format!("volumeMounts: [{{ name: v, mountPath: /v{propagation} }}]"))
            .with_pod(&format!("volumes: [{{ name: v, hostPath: {{ path: {at} }} }}]"))
            .yaml();
        node.apply(&format!("{name}.yaml"), &yaml).unwrap();
    };
    mounts("both", ", mountPropagation: Bidirectional", "{ privileged: true }");
    mounts("from", ", mountPropagation: HostToContainer", "{}");
    mounts("none", "", "{}");
    node.wait_running(&["both", "from", "none"]).unwrap();
    let host = format!("mkdir {at}/h && mount -t tmpfs t {at}/h && touch {at}/h/file");
    node.machine().shell(&host).unwrap();
    node.exec("both", &["sh", "-c", "mkdir /v/c && mount -t tmpfs t /v/c && touch /v/c/file"])
        .unwrap()
        .ok()
        .unwrap();
    let sees = |pod: &str| {
        let ran = node.exec(pod, &["sh", "-c", "ls /v/h/file /v/c/file 2>/dev/null"]).unwrap();
        ran.stdout.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(sees("both"), ["/v/c/file", "/v/h/file"]);
    assert_eq!(sees("from"), ["/v/c/file", "/v/h/file"]);
    assert_eq!(sees("none"), [""; 0]);
    assert!(dir.join("c").is_dir());
    let table = node.machine().shell("cat /proc/self/mounts").unwrap();
    assert!(
        table.contains(&format!("{at}/c tmpfs")),
        "the host does not see the container's mount:\n{table}"
    );
    node.machine().shell(&format!("umount {at}/c {at}/h")).unwrap();
    for pod in ["both", "from", "none"] {
        node.remove(&format!("{pod}.yaml")).unwrap();
    }
    node.wait("they are gone", SOON, |pods| pods.is_empty()).unwrap();
    node.machine().shell(&format!("umount {at}")).unwrap();
}

#[test]
fn a_read_only_mount_is_read_only_to_its_depth_when_that_is_asked_for() {
    let node = Node::start().unwrap();
    let dir = node.path("tree");
    std::fs::create_dir_all(dir.join("below")).unwrap();
    let at = dir.display().to_string();
    node.machine().shell(&format!("mount -t tmpfs t {at}/below")).unwrap();
    for (name, recursive, below) in [
        ("plain", "Disabled", "written"),
        ("deep", "Enabled", "refused"),
        ("perhaps", "IfPossible", "refused"),
    ] {
        let yaml = Builder::new(name)
            .shell("touch /v/x 2>/dev/null && echo written || echo refused; touch /v/below/x 2>/dev/null && echo written || echo refused; exec sleep 1000000")
            .with(&format!("volumeMounts: [{{ name: v, mountPath: /v, readOnly: true, recursiveReadOnly: {recursive} }}]"))
            .with_pod(&format!("volumes: [{{ name: v, hostPath: {{ path: {at} }} }}]"))
            .yaml();
        node.apply(&format!("{name}.yaml"), &yaml).unwrap();
        let pod = node.wait_running(&[name]).unwrap().remove(name).unwrap();
        let lines = poll::until("it has tried twice", SOON, || {
            let lines = node.log(&pod, "main", 0).map_err(|e| e.to_string())?;
            if lines.len() == 2 { Ok(Some(lines)) } else { Err(format!("{lines:?}")) }
        })
        .unwrap();
        assert_eq!(lines, ["refused", below], "{name}");
    }
    for name in ["plain", "deep", "perhaps"] {
        node.remove(&format!("{name}.yaml")).unwrap();
    }
    node.wait("they are gone", SOON, |pods| pods.is_empty()).unwrap();
    node.machine().shell(&format!("umount {at}/below")).unwrap();
}

/// The machine need not have any huge pages to mount them; it has sizes, and one that no machine has is named.
#[test]
fn an_empty_dir_may_be_of_huge_pages() {
    let node = Node::start().unwrap();
    let pod = |name: &str, size: &str, medium: &str| {
        Builder::new(name)
            .shell("exec sleep 1000000")
            .with("volumeMounts: [{ name: v, mountPath: /huge }]")
            .with(&format!("resources: {{ limits: {{ hugepages-{size}: {size}, memory: 64Mi }} }}"))
            .with_pod("securityContext: { fsGroup: 2000 }")
            .with_pod(&format!("volumes: [{{ name: v, emptyDir: {{ medium: {medium}, sizeLimit: 4Mi }} }}]"))
            .yaml()
    };
    let sizes: Vec<String> = std::fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    if sizes.contains(&"hugepages-2048kB".to_owned()) {
        node.apply("a.yaml", &pod("a", "2Mi", "HugePages")).unwrap();
        node.apply("b.yaml", &pod("b", "2Mi", "HugePages-2Mi")).unwrap();
        node.wait_running(&["a", "b"]).unwrap();
        for name in ["a", "b"] {
            let line = node.exec(name, &["grep", " /huge ", "/proc/mounts"]).unwrap().ok().unwrap();
            assert!(line.contains(" hugetlbfs ") && line.contains("pagesize=2M,size=4194304"), "{line}");
            let owner = node.exec(name, &["stat", "-c", "%g %a", "/huge"]).unwrap().ok().unwrap();
            assert_eq!(owner.trim(), "2000 3777");
        }
        for name in ["a", "b"] {
            node.remove(&format!("{name}.yaml")).unwrap();
            node.wait_gone(name).unwrap();
        }
    }
    node.apply("c.yaml", &pod("c", "3Mi", "HugePages-3Mi")).unwrap();
    let event = node.wait_event("c", "huge pages of 3145728 bytes").unwrap();
    assert!(event.contains("volume \"v\""), "{event}");
}

/// What is there decides whether a pod starts; what may be made is made, as root's and for everybody to read.
#[test]
fn host_paths_of_every_type() {
    let node = Node::start().unwrap();
    let base = node.path("host");
    std::fs::create_dir_all(base.join("dir")).unwrap();
    std::fs::write(base.join("file"), "hello").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(base.join("socket")).unwrap();
    let block = base.join("block");
    // No disk need have these numbers: it is only looked at.
    node.machine().shell(&format!("mknod {} b 259 1000", block.display())).unwrap();
    let good = [
        ("any", base.join("dir"), ""),
        ("dir", base.join("dir"), "Directory"),
        ("newdir", base.join("made/deep"), "DirectoryOrCreate"),
        ("file", base.join("file"), "File"),
        ("newfile", base.join("made-file"), "FileOrCreate"),
        ("socket", base.join("socket"), "Socket"),
        ("char", "/dev/null".into(), "CharDevice"),
        ("block", block, "BlockDevice"),
    ];
    let bad = [
        ("none", base.join("none"), "Directory", "not a directory"),
        ("notdir", base.join("file"), "Directory", "not a directory"),
        ("notfile", base.join("dir"), "File", "not a file"),
        ("notsocket", base.join("file"), "Socket", "not a socket file"),
        ("notchar", base.join("file"), "CharDevice", "not a character device"),
        ("notblock", "/dev/null".into(), "BlockDevice", "not a block device"),
    ];
    let apply = |name: &str, path: &std::path::Path, kind: &str| {
        let kind = if kind.is_empty() { String::new() } else { format!(", type: {kind}") };
        let pod = Builder::new(name)
            .shell("exec sleep 1000000")
            .with("volumeMounts: [{ name: v, mountPath: /v }]")
            .with_pod(&format!("volumes: [{{ name: v, hostPath: {{ path: {}{kind} }} }}]", path.display()));
        node.apply(&format!("{name}.yaml"), &pod.yaml()).unwrap();
    };
    good.iter().for_each(|(name, path, kind)| apply(name, path, kind));
    bad.iter().for_each(|(name, path, kind, _)| apply(name, path, kind));
    node.wait_running(&good.each_ref().map(|(name, ..)| *name)).unwrap();
    for (name, test) in [
        ("dir", "-d"),
        ("newdir", "-d"),
        ("file", "-f"),
        ("newfile", "-f"),
        ("socket", "-S"),
        ("char", "-c"),
        ("block", "-b"),
    ] {
        assert_eq!(node.exec(name, &["test", test, "/v"]).unwrap().code, 0, "{name}");
    }
    let mode = |path: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(base.join(path)).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!((mode("made/deep"), mode("made-file")), (0o755, 0o644));
    for (name, path, _, why) in &bad {
        let event = node.wait_event(name, "FailedMount").unwrap();
        assert!(event.contains(why) && event.contains(path.to_str().unwrap()), "{name}: {event}");
        assert_eq!(node.pod(name).unwrap().phase(), "Pending");
    }
    node.finish().unwrap();
}
