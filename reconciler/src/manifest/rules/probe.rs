//! Checks of probes and lifecycle hooks.

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::names;
use crate::manifest::issue::Issues;
use crate::manifest::node::FieldPath;

/// Which probe it is; the rules differ.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Liveness,
    Readiness,
    Startup,
}

impl Kind {
    pub fn field(self) -> &'static str {
        match self {
            Kind::Liveness => "livenessProbe",
            Kind::Readiness => "readinessProbe",
            Kind::Startup => "startupProbe",
        }
    }
}

/// Checks one probe.
pub(crate) fn check(probe: &v1::Probe, kind: Kind, path: &FieldPath, issues: &mut Issues) {
    let handlers = usize::from(probe.exec.is_some())
        + usize::from(probe.http_get.is_some())
        + usize::from(probe.tcp_socket.is_some())
        + usize::from(probe.grpc.is_some());
    count_handlers(handlers, path, issues);
    if let Some(exec) = &probe.exec {
        check_exec(exec, &path.field("exec"), issues);
    }
    if let Some(get) = &probe.http_get {
        check_http(get, &path.field("httpGet"), issues);
    }
    if let Some(tcp) = &probe.tcp_socket {
        check_port(&tcp.port, &path.field("tcpSocket").field("port"), issues);
    }
    if let Some(detail) = probe.grpc.as_ref().and_then(|grpc| names::port(grpc.port)) {
        let number = probe.grpc.as_ref().map_or(0, |grpc| grpc.port);
        issues.invalid(&path.field("grpc").field("port"), number, detail);
    }
    issues.at_least(&path.field("initialDelaySeconds"), probe.initial_delay_seconds, 0);
    issues.at_least(&path.field("timeoutSeconds"), probe.timeout_seconds, 0);
    issues.at_least(&path.field("periodSeconds"), probe.period_seconds, 0);
    issues.at_least(&path.field("successThreshold"), probe.success_threshold, 0);
    issues.at_least(&path.field("failureThreshold"), probe.failure_threshold, 0);
    let wrong = probe.success_threshold.filter(|threshold| kind != Kind::Readiness && *threshold != 1);
    if let Some(threshold) = wrong {
        issues.invalid(&path.field("successThreshold"), threshold, "must be 1");
    }
    if let Some(seconds) = probe.termination_grace_period_seconds {
        let path = path.field("terminationGracePeriodSeconds");
        if kind == Kind::Readiness {
            issues.invalid(&path, seconds, "must not be set for readinessProbes");
        } else {
            issues.at_least(&path, Some(seconds), 1);
        }
    }
}

/// Checks `lifecycle`.
pub(crate) fn check_lifecycle(lifecycle: &v1::Lifecycle, grace: i64, path: &FieldPath, issues: &mut Issues) {
    for (name, handler) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(handler) = handler {
            check_hook(handler, grace, &path.field(name), issues);
        }
    }
    issues.one_of(&path.field("stopSignal"), lifecycle.stop_signal.as_deref(), &SIGNALS);
}

fn check_hook(handler: &v1::LifecycleHandler, grace: i64, path: &FieldPath, issues: &mut Issues) {
    let handlers = usize::from(handler.exec.is_some())
        + usize::from(handler.http_get.is_some())
        + usize::from(handler.sleep.is_some());
    count_handlers(handlers, path, issues);
    if let Some(exec) = &handler.exec {
        check_exec(exec, &path.field("exec"), issues);
    }
    if let Some(get) = &handler.http_get {
        check_http(get, &path.field("httpGet"), issues);
    }
    if let Some(sleep) = handler.sleep.as_ref().filter(|sleep| !(0..=grace).contains(&sleep.seconds)) {
        let detail = format!("must be non-negative and at most terminationGracePeriodSeconds ({grace})");
        issues.invalid(&path.field("sleep").field("seconds"), sleep.seconds, &detail);
    }
}

fn count_handlers(count: usize, path: &FieldPath, issues: &mut Issues) {
    match count {
        0 => {
            issues.required(path, "must specify a handler type");
        }
        1 => {}
        _ => {
            issues.forbidden(path, "may not specify more than 1 handler type");
        }
    }
}

fn check_exec(exec: &v1::ExecAction, path: &FieldPath, issues: &mut Issues) {
    if exec.command.as_ref().is_none_or(Vec::is_empty) {
        issues.required(&path.field("command"), "");
    }
}

fn check_http(get: &v1::HTTPGetAction, path: &FieldPath, issues: &mut Issues) {
    check_port(&get.port, &path.field("port"), issues);
    issues.one_of(&path.field("scheme"), get.scheme.as_deref(), &["HTTP", "HTTPS"]);
    for (i, header) in get.http_headers.iter().flatten().enumerate() {
        let path = path.field("httpHeaders").index(i).field("name");
        issues.all(&path, &header.name, names::http_header(&header.name));
    }
}

fn check_port(port: &IntOrString, path: &FieldPath, issues: &mut Issues) {
    match port {
        IntOrString::Int(number) => {
            if let Some(detail) = names::port(*number) {
                issues.invalid(path, *number, detail);
            }
        }
        IntOrString::String(name) => issues.all(path, name, names::port_name(name)),
    }
}

#[rustfmt::skip]
const SIGNALS: [&str; 65] = [
    "SIGABRT", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCLD", "SIGCONT", "SIGFPE", "SIGHUP", "SIGILL", "SIGINT", "SIGIO", "SIGIOT",
    "SIGKILL", "SIGPIPE", "SIGPOLL", "SIGPROF", "SIGPWR", "SIGQUIT", "SIGSEGV", "SIGSTKFLT", "SIGSTOP", "SIGSYS", "SIGTERM",
    "SIGTRAP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH", "SIGXCPU",
    "SIGXFSZ", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMIN+2", "SIGRTMIN+3", "SIGRTMIN+4", "SIGRTMIN+5", "SIGRTMIN+6",
    "SIGRTMIN+7", "SIGRTMIN+8", "SIGRTMIN+9", "SIGRTMIN+10", "SIGRTMIN+11", "SIGRTMIN+12", "SIGRTMIN+13",
    "SIGRTMIN+14", "SIGRTMIN+15", "SIGRTMAX-14", "SIGRTMAX-13", "SIGRTMAX-12", "SIGRTMAX-11", "SIGRTMAX-10",
    "SIGRTMAX-9", "SIGRTMAX-8", "SIGRTMAX-7", "SIGRTMAX-6", "SIGRTMAX-5", "SIGRTMAX-4", "SIGRTMAX-3", "SIGRTMAX-2",
    "SIGRTMAX-1", "SIGRTMAX",
];
