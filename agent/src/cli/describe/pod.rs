//! A pod, as `kubectl describe pod` shows it.

use std::collections::BTreeMap;

use berth_reconciler::pod::as_container;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStatus, EnvVar, Pod, PodSpec, PodStatus, Probe, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::text::Text;
use crate::api::table::human;

/// A time stamp for people, as Go's RFC 1123 with a numeric zone.
pub fn time(time: Option<&Time>) -> String {
    time.map(|t| t.0.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()).unwrap_or_default()
}

/// Labels or annotations, one per line; a value of several lines goes on below, indented.
pub fn labels(text: &mut Text, name: &str, between: &str, all: Option<&BTreeMap<String, String>>) {
    let lines = |(key, value): (&String, &String)| {
        let mut lines = value.lines();
        let first = format!("{key}{between}{}", lines.next().unwrap_or_default());
        std::iter::once(first).chain(lines.map(|line| format!("  {line}"))).collect::<Vec<_>>()
    };
    text.list(name, all.into_iter().flatten().flat_map(lines));
}

/// Writes a pod without its events.
pub fn describe(text: &mut Text, pod: &Pod) {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    heading(text, pod, &spec, &status);
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    if !inits.is_empty() {
        let states = status.init_container_statuses.as_deref().unwrap_or_default();
        text.block("Init Containers", |text| {
            inits.iter().for_each(|c| container(text, c, state_of(states, &c.name)))
        });
    }
    let states = status.container_statuses.as_deref().unwrap_or_default();
    text.block("Containers", |text| {
        spec.containers.iter().for_each(|c| container(text, c, state_of(states, &c.name)));
    });
    let ephemeral = spec.ephemeral_containers.as_deref().unwrap_or_default();
    if !ephemeral.is_empty() {
        let states = status.ephemeral_container_statuses.as_deref().unwrap_or_default();
        text.block("Ephemeral Containers", |text| {
            ephemeral.iter().for_each(|c| container(text, &as_container(c), state_of(states, &c.name)));
        });
    }
    conditions(text, &status);
    volumes(text, &spec);
    text.field("QoS Class", status.qos_class.as_deref().unwrap_or("<none>"));
    labels(text, "Node-Selectors", "=", spec.node_selector.as_ref());
    let toleration = |t: &k8s_openapi::api::core::v1::Toleration| {
        let key = t.key.clone().unwrap_or_default();
        let value = t.value.as_ref().map(|v| format!("={v}")).unwrap_or_default();
        let effect = t.effect.as_ref().map(|e| format!(":{e}")).unwrap_or_default();
        let op = t.operator.as_deref().filter(|op| *op == "Exists").map(|_| " op=Exists").unwrap_or_default();
        let seconds = t.toleration_seconds.map(|s| format!(" for {s}s")).unwrap_or_default();
        format!("{key}{value}{effect}{op}{seconds}")
    };
    text.list("Tolerations", spec.tolerations.iter().flatten().map(toleration));
}

fn heading(text: &mut Text, pod: &Pod, spec: &PodSpec, status: &PodStatus) {
    text.field("Name", pod.metadata.name.as_deref().unwrap_or_default());
    text.field("Namespace", pod.metadata.namespace.as_deref().unwrap_or_default());
    if let Some(priority) = spec.priority {
        text.field("Priority", priority);
    }
    text.optional("Priority Class Name", spec.priority_class_name.as_deref());
    text.optional("Runtime Class Name", spec.runtime_class_name.as_deref());
    text.optional("Service Account", spec.service_account_name.as_deref());
    let node = spec.node_name.as_deref().unwrap_or("<none>");
    let host = status.host_ip.as_ref().map(|ip| format!("/{ip}")).unwrap_or_default();
    text.field("Node", format!("{node}{host}"));
    text.optional("Start Time", Some(time(status.start_time.as_ref())));
    labels(text, "Labels", "=", pod.metadata.labels.as_ref());
    labels(text, "Annotations", ": ", pod.metadata.annotations.as_ref());
    let phase = status.phase.as_deref().unwrap_or_default();
    match &pod.metadata.deletion_timestamp {
        Some(deleted) => {
            let lasts = human((jiff::Timestamp::now().as_second() - deleted.0.as_second()).max(0));
            text.field("Status", format!("Terminating (lasts {lasts})"));
            text.optional(
                "Termination Grace Period",
                pod.metadata.deletion_grace_period_seconds.map(|s| format!("{s}s")),
            );
        }
        None => text.field("Status", phase),
    }
    text.optional("Reason", status.reason.as_deref());
    text.optional("Message", status.message.as_deref());
    text.field("IP", status.pod_ip.as_deref().unwrap_or_default());
    let ips: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if ips.is_empty() {
        text.field("IPs", "<none>");
    } else {
        text.block("IPs", |text| ips.iter().for_each(|ip| text.field("IP", ip)));
    }
}

fn state_of<'a>(states: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    states.iter().find(|s| s.name == name)
}

fn container(text: &mut Text, container: &Container, status: Option<&ContainerStatus>) {
    text.block(&container.name, |text| {
        if let Some(status) = status {
            text.field("Container ID", status.container_id.as_deref().unwrap_or_default());
        }
        text.field("Image", container.image.as_deref().unwrap_or_default());
        if let Some(status) = status {
            text.field("Image ID", &status.image_id);
        }
        ports(text, container);
        words(text, "Command", container.command.as_deref());
        words(text, "Args", container.args.as_deref());
        if let Some(status) = status {
            states(text, status);
        }
        resources(text, container.resources.as_ref());
        for (name, one) in [
            ("Liveness", &container.liveness_probe),
            ("Readiness", &container.readiness_probe),
            ("Startup", &container.startup_probe),
        ] {
            text.optional(name, one.as_ref().map(probe));
        }
        environment(text, container);
        let mounts = container.volume_mounts.iter().flatten().map(|m| {
            let mode = if m.read_only == Some(true) { "ro" } else { "rw" };
            let path = m.sub_path.as_ref().map(|p| format!(",path=\"{p}\"")).unwrap_or_default();
            format!("{} from {} ({mode}{path})", m.mount_path, m.name)
        });
        lines(text, "Mounts", mounts.collect());
    });
}

fn lines(text: &mut Text, name: &str, all: Vec<String>) {
    if all.is_empty() {
        text.field(name, "<none>");
    } else {
        text.block(name, |text| all.iter().for_each(|line| text.line(line)));
    }
}

fn words(text: &mut Text, name: &str, all: Option<&[String]>) {
    if let Some(all) = all.filter(|all| !all.is_empty()) {
        text.block(name, |text| all.iter().for_each(|word| text.line(word.replace('\n', "\\n"))));
    }
}

fn ports(text: &mut Text, container: &Container) {
    let all = container.ports.as_deref().unwrap_or_default();
    let protocol =
        |p: &k8s_openapi::api::core::v1::ContainerPort| p.protocol.clone().unwrap_or_else(|| "TCP".into());
    let join = |parts: Vec<String>| if parts.is_empty() { "<none>".to_owned() } else { parts.join(", ") };
    text.field("Ports", join(all.iter().map(|p| format!("{}/{}", p.container_port, protocol(p))).collect()));
    let host = all.iter().map(|p| format!("{}/{}", p.host_port.unwrap_or(0), protocol(p)));
    text.field("Host Ports", join(host.collect()));
}

fn states(text: &mut Text, status: &ContainerStatus) {
    state(text, "State", status.state.as_ref());
    if status.last_state.as_ref().is_some_and(|s| s.terminated.is_some()) {
        state(text, "Last State", status.last_state.as_ref());
    }
    text.field("Ready", if status.ready { "True" } else { "False" });
    text.field("Restart Count", status.restart_count);
}

fn state(text: &mut Text, name: &str, state: Option<&ContainerState>) {
    let state = state.cloned().unwrap_or_default();
    if let Some(running) = state.running {
        text.field(name, "Running");
        text.field("  Started", time(running.started_at.as_ref()));
    } else if let Some(end) = state.terminated {
        text.field(name, "Terminated");
        text.optional("  Reason", end.reason);
        text.optional("  Message", end.message.map(|m| m.trim().replace('\n', "\\n")));
        text.field("  Exit Code", end.exit_code);
        text.optional("  Signal", end.signal.filter(|s| *s != 0));
        text.field("  Started", time(end.started_at.as_ref()));
        text.field("  Finished", time(end.finished_at.as_ref()));
    } else {
        text.field(name, "Waiting");
        let waiting = state.waiting.unwrap_or_default();
        text.optional("  Reason", waiting.reason);
        text.optional("  Message", waiting.message);
    }
}

fn resources(text: &mut Text, resources: Option<&ResourceRequirements>) {
    let Some(resources) = resources else { return };
    for (name, all) in [("Limits", &resources.limits), ("Requests", &resources.requests)] {
        let Some(all) = all.as_ref().filter(|all| !all.is_empty()) else { continue };
        text.block(name, |text| {
            all.iter().for_each(|(resource, quantity)| text.field(resource, &quantity.0))
        });
    }
}

fn probe(probe: &Probe) -> String {
    let port = |port: &IntOrString| match port {
        IntOrString::Int(n) => n.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    let how = if let Some(exec) = &probe.exec {
        format!("exec [{}]", exec.command.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" "))
    } else if let Some(http) = &probe.http_get {
        let scheme = http.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
        let host = http.host.as_deref().unwrap_or_default();
        format!("http-get {scheme}://{host}:{}{}", port(&http.port), http.path.as_deref().unwrap_or("/"))
    } else if let Some(tcp) = &probe.tcp_socket {
        format!("tcp-socket {}:{}", tcp.host.as_deref().unwrap_or_default(), port(&tcp.port))
    } else if let Some(grpc) = &probe.grpc {
        format!("grpc <pod>:{} {}", grpc.port, grpc.service.as_deref().unwrap_or_default())
    } else {
        "unknown".to_owned()
    };
    format!(
        "{how} delay={}s timeout={}s period={}s #success={} #failure={}",
        probe.initial_delay_seconds.unwrap_or(0),
        probe.timeout_seconds.unwrap_or(1),
        probe.period_seconds.unwrap_or(10),
        probe.success_threshold.unwrap_or(1),
        probe.failure_threshold.unwrap_or(3)
    )
}

fn environment(text: &mut Text, container: &Container) {
    let from: Vec<String> = container
        .env_from
        .iter()
        .flatten()
        .map(|source| {
            let prefix = source.prefix.as_ref().map(|p| format!(" with prefix '{p}'")).unwrap_or_default();
            let (name, kind, optional) = match (&source.config_map_ref, &source.secret_ref) {
                (Some(map), _) => (&map.name, "ConfigMap", map.optional),
                (None, Some(secret)) => (&secret.name, "Secret", secret.optional),
                (None, None) => return String::new(),
            };
            format!("{name}  {kind}{prefix}  Optional: {}", optional.unwrap_or(false))
        })
        .collect();
    if !from.is_empty() {
        lines(text, "Environment Variables from", from);
    }
    let all = container.env.as_deref().unwrap_or_default();
    if all.is_empty() {
        text.field("Environment", "<none>");
    } else {
        text.block("Environment", |text| all.iter().for_each(|var| text.field(&var.name, value_of(var))));
    }
}

fn value_of(var: &EnvVar) -> String {
    let Some(source) = &var.value_from else {
        return var.value.clone().unwrap_or_default().replace('\n', "\\n");
    };
    if let Some(field) = &source.field_ref {
        return format!(" ({}:{})", field.api_version.as_deref().unwrap_or("v1"), field.field_path);
    }
    if let Some(resource) = &source.resource_field_ref {
        let divisor = resource.divisor.as_ref().map_or("0", |d| d.0.as_str());
        return format!(" ({}, divisor {divisor})", resource.resource);
    }
    let (key, kind, name, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(map), _) => (&map.key, "config map", &map.name, map.optional),
        (None, Some(secret)) => (&secret.key, "secret", &secret.name, secret.optional),
        (None, None) => return String::new(),
    };
    format!("<set to the key '{key}' of {kind} '{name}'>  Optional: {}", optional.unwrap_or(false))
}

fn conditions(text: &mut Text, status: &PodStatus) {
    let mut rows = vec![["Type", "Status", "Reason", "Message"].map(str::to_owned).to_vec()];
    for c in status.conditions.iter().flatten() {
        let line = [
            c.type_.clone(),
            c.status.clone(),
            c.reason.clone().unwrap_or_default(),
            c.message.clone().unwrap_or_default(),
        ];
        rows.push(line.to_vec());
    }
    if rows.len() == 1 {
        text.field("Conditions", "<none>");
    } else {
        text.block("Conditions", |text| text.table(&rows));
    }
}

/// Each volume with the fields of its source as they are written in a manifest.
fn volumes(text: &mut Text, spec: &PodSpec) {
    let all = spec.volumes.as_deref().unwrap_or_default();
    if all.is_empty() {
        text.field("Volumes", "<none>");
        return;
    }
    text.block("Volumes", |text| {
        for volume in all {
            text.block(&volume.name, |text| {
                let Ok(Value::Object(fields)) = serde_json::to_value(volume) else { return };
                for (kind, source) in fields.iter().filter(|(key, _)| *key != "name") {
                    text.field("Type", kind);
                    for (key, value) in source.as_object().into_iter().flatten() {
                        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                        text.field(key, value);
                    }
                }
            });
        }
    });
}
