//! Volumes that outlive pods or come from elsewhere.

use berth_e2e::manifest::{self, Builder};
use berth_e2e::node::Node;
use berth_e2e::pods::PodExt;

use super::{CONFIG, file, inside, level, of_file, process};

#[test]
fn a_claim_has_the_label_of_the_pod_that_uses_it_and_links_lead_nowhere() {
    let node = Node::with(CONFIG, &[]).unwrap();
    let outside = node.path("outside");
    std::fs::write(&outside, "").unwrap();
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: { name: data }\nspec:\n  accessModes: [ReadWriteOnce]\n  \
                 resources: { requests: { storage: 1Gi } }\n";
    node.apply("data.yaml", claim).unwrap();
    let user = |name: &str, shell: &str| {
        Builder::new(name)
            .shell(shell)
            .with("volumeMounts: [{ name: v, mountPath: /v }]")
            .with_pod("volumes: [{ name: v, persistentVolumeClaim: { claimName: data } }]")
            .yaml()
    };
    let fill = format!(
        "mkdir -p /v/d; echo x > /v/d/file; ln -s {} /v/d/link; exec sleep 1000000",
        outside.display()
    );
    node.apply("a.yaml", &user("a", &fill)).unwrap();
    let first = node.wait_running(&["a"]).unwrap().remove("a").unwrap();
    let volume = node.path("root/pv/default/data").display().to_string();
    let of_first = of_file(&level(&process(&node, node.pids(first.uid()).unwrap()[0])));
    assert_eq!(file(&node, &volume), of_first);
    node.remove("a.yaml").unwrap();
    node.wait_gone("a").unwrap();

    node.apply("b.yaml", &user("b", "cat /v/d/file && echo y >> /v/d/file && echo up; exec sleep 1000000"))
        .unwrap();
    let second = node.wait_running(&["b"]).unwrap().remove("b").unwrap();
    node.wait_log(&second, "up").unwrap();
    let of_second = of_file(&level(&process(&node, node.pids(second.uid()).unwrap()[0])));
    assert_ne!(of_first, of_second);
    for path in ["", "/d", "/d/file", "/d/link"] {
        assert_eq!(file(&node, &format!("{volume}{path}")), of_second, "{path:?}");
    }
    assert_eq!(file(&node, &outside.display().to_string()), "system_u:object_r:tmpfs_t:s0");
}

#[test]
fn an_image_as_a_volume_is_labelled_as_a_whole() {
    let node = Node::with(CONFIG, &[]).unwrap();
    let pod = Builder::new("a")
        .shell("ls -l /i/bin/sh && echo up; exec sleep 1000000")
        .with("volumeMounts: [{ name: i, mountPath: /i }]")
        .with_pod(&format!(
            "volumes: [{{ name: i, image: {{ reference: {:?}, pullPolicy: Never }} }}]",
            manifest::IMAGE
        ));
    for (name, pod) in [("a", pod.clone()), ("b", pod.with_pod("hostUsers: false"))] {
        let text = pod.yaml().replace("name: a\n", &format!("name: {name}\n"));
        node.apply(&format!("{name}.yaml"), &text).unwrap();
    }
    for (name, found) in node.wait_running(&["a", "b"]).unwrap() {
        node.wait_log(&found, "up").unwrap();
        let pid = node.pids(found.uid()).unwrap()[0];
        let level = level(&process(&node, pid));
        for path in ["/i", "/i/bin/sh"] {
            assert_eq!(inside(&node, pid, path), of_file(&level), "{name}: {path}");
        }
    }
}
