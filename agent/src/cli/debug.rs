//! `berth debug`: a container with tools beside those of a running pod.

use std::process::ExitCode;

use anyhow::{anyhow, bail};
use clap::Args;
use http::{Request, header};
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use serde_json::{Value, json};

use super::attach::{self, AttachArgs};
use super::{client, output, resource, wait};
use crate::store::Kind;

/// Words of `berth debug`.
#[derive(Args, Debug)]
pub struct DebugArgs {
    /// The pod
    pod: String,
    /// Image with the tools
    #[arg(long)]
    image: String,
    /// Container whose processes the new one sees
    #[arg(long, value_name = "CONTAINER")]
    target: Option<String>,
    /// Name of the new container [default: debugger-XXXXX]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    #[command(flatten)]
    namespace: resource::Namespace,
    /// Keep standard input open and pass ours on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give it a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// Add this capability, such as SYS_PTRACE; may be repeated
    #[arg(long = "cap-add", value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Program and arguments instead of the image's, after --
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Adds an ephemeral container to a pod and, with `-i`, attaches to it.
pub async fn run(client: &kube::Client, args: &DebugArgs) -> anyhow::Result<ExitCode> {
    let pod = resource::pod_name(&args.pod)?;
    let name = args.container.clone().unwrap_or_else(random_name);
    let path = resource::path(Kind::Pod, Some(args.namespace.name()), Some(pod));
    let known: Pod = client::get(client, &path, "application/json").await?;
    let mut taken = known.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    if taken.any(|container| container.name == name) {
        bail!("pod {pod} has an ephemeral container {name} already; choose another name with --container");
    }
    let patch = json!({ "spec": { "ephemeralContainers": [container(args, &name)] } });
    let request = Request::patch(format!("{path}/ephemeralcontainers"))
        .header(header::CONTENT_TYPE, "application/strategic-merge-patch+json")
        .body(serde_json::to_vec(&patch)?)?;
    client.request::<Value>(request).await?;
    if !args.stdin {
        output::print(&format!("ephemeral container {name} added to pod/{pod}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("Defaulting debug container name to {name}.");
    let ended = begun(client, args, pod, &name).await?;
    if let Some(code) = ended {
        bail!(
            "container {name} has ended with exit code {code} before it could be attached to; see `berth logs {pod} -c {name}`"
        );
    }
    let namespace = args.namespace.name();
    attach::run(client, &AttachArgs::to(pod, &name, namespace, args.tty)).await
}

fn container(args: &DebugArgs, name: &str) -> Value {
    // Without a terminal the end of our input is the end of its: `berth debug -i ... -- cat` comes to an end.
    let once = args.stdin && !args.tty;
    let mut container = json!({
        "name": name, "image": args.image, "stdin": args.stdin, "stdinOnce": once, "tty": args.tty,
    });
    if let Some(target) = &args.target {
        container["targetContainerName"] = json!(target);
    }
    if !args.command.is_empty() {
        container["command"] = json!(args.command);
    }
    if !args.cap_add.is_empty() {
        container["securityContext"] = json!({ "capabilities": { "add": args.cap_add } });
    }
    container
}

/// A name as kubectl makes it: five letters none of which could spell a word.
fn random_name() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4();
    let letters =
        random.as_bytes()[..5].iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]));
    letters.fold("debugger-".to_owned(), |mut name, letter| {
        name.push(letter);
        name
    })
}

/// Waits until the container has been started; gives its exit code if it has ended already.
async fn begun(
    client: &kube::Client,
    args: &DebugArgs,
    pod: &str,
    name: &str,
) -> anyhow::Result<Option<i32>> {
    let ended = std::cell::Cell::new(None);
    let told = std::cell::RefCell::new(String::new());
    wait::until(client, Kind::Pod, args.namespace.name(), pod, |object| {
        let object = object.ok_or_else(|| anyhow!("pods {pod:?} not found"))?;
        let Some(state) = state_of(object, name) else { return Ok(false) };
        if let Some(terminated) = &state.terminated {
            ended.set(Some(terminated.exit_code));
        }
        if let Some(waiting) = &state.waiting {
            // What keeps it from starting is told once each, such as an image that cannot be pulled.
            let message = waiting.message.clone().unwrap_or_default();
            if !message.is_empty() && *told.borrow() != message {
                eprintln!("{}: {message}", waiting.reason.as_deref().unwrap_or("waiting"));
                told.replace(message);
            }
        }
        Ok(state.running.is_some() || state.terminated.is_some())
    })
    .await?;
    Ok(ended.get())
}

fn state_of(pod: &Value, name: &str) -> Option<ContainerState> {
    let statuses = pod["status"]["ephemeralContainerStatuses"].as_array()?;
    let status = statuses.iter().find(|status| status["name"] == name)?;
    serde_json::from_value(status["state"].clone()).ok()
}
