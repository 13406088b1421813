//! `berth describe`.

mod node;
mod pod;
mod policy;
mod service;
mod text;
mod volume;

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::Value;

use super::failure::{self, Reported, Usage};
use super::{client, output, resource};
use crate::store::Kind;
use text::Text;

/// Words of `berth describe`.
#[derive(Args, Debug)]
pub struct DescribeArgs {
    /// pod, node, pvc or pv, and [NAME...]
    #[arg(required = true, value_name = "KIND [NAME...]")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: resource::Namespace,
    /// Only objects with these labels, as in app=web,tier!=db
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
}

const JSON: &str = "application/json";

/// Prints everything about pods, nodes, Services, NetworkPolicies, claims or volumes.
pub async fn run(client: &kube::Client, args: &DescribeArgs) -> anyhow::Result<ExitCode> {
    let (mut failed, mut first) = (false, true);
    for (kind, name) in objects(client, args).await? {
        let text = match kind {
            Kind::Pod => pod_text(client, args.namespace.name(), &name).await,
            Kind::Node => node_text(client, &name).await,
            Kind::PersistentVolumeClaim => claim_text(client, args.namespace.name(), &name).await,
            Kind::PersistentVolume => volume_text(client, &name).await,
            Kind::NetworkPolicy => policy_text(client, args.namespace.name(), &name).await,
            Kind::Service => service_text(client, args.namespace.name(), &name).await,
            other => bail!(Usage(format!(
                "only pods, nodes, services, network policies, claims and volumes can be described; see \"berth get {} -o yaml\"",
                other.plural()
            ))),
        };
        match text {
            Ok(text) => {
                output::print(&format!("{}{text}", if first { "" } else { "\n\n" }))?;
                first = false;
            }
            Err(error) if matches!(error.downcast_ref(), Some(kube::Error::Api(_))) => {
                failure::report(&error);
                failed = true;
            }
            Err(error) => return Err(error),
        }
    }
    if failed { Err(Reported.into()) } else { Ok(ExitCode::SUCCESS) }
}

async fn objects(client: &kube::Client, args: &DescribeArgs) -> anyhow::Result<Vec<(Kind, String)>> {
    let mut objects = Vec::new();
    for target in resource::targets(&args.what)? {
        if let Some(name) = target.name {
            objects.push((target.kind, name));
            continue;
        }
        let query: Vec<(&str, &str)> = args.selector.iter().map(|s| ("labelSelector", s.as_str())).collect();
        let path = resource::path(target.kind, Some(args.namespace.name()), None);
        let list: Value = client::get(client, &resource::with_query(&path, &query), JSON).await?;
        let names =
            list["items"].as_array().into_iter().flatten().filter_map(|o| o["metadata"]["name"].as_str());
        objects.extend(names.map(|name| (target.kind, name.to_owned())));
    }
    if objects.is_empty() {
        eprintln!("No resources found in {} namespace.", args.namespace.name());
    }
    Ok(objects)
}

async fn pod_text(client: &kube::Client, namespace: &str, name: &str) -> anyhow::Result<String> {
    let pod: Pod = client::get(client, &resource::path(Kind::Pod, Some(namespace), Some(name)), JSON).await?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let selector = format!("involvedObject.name={name},involvedObject.kind=Pod,involvedObject.uid={uid}");
    let events = events(client, Some(namespace), &selector).await?;
    let mut text = Text::new();
    pod::describe(&mut text, &pod);
    text::events(&mut text, events);
    Ok(text.finish())
}

async fn node_text(client: &kube::Client, name: &str) -> anyhow::Result<String> {
    let node: Node = client::get(client, &resource::path(Kind::Node, None, Some(name)), JSON).await?;
    let query = [("fieldSelector", format!("spec.nodeName={name}"))];
    let query: Vec<(&str, &str)> = query.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let pods: List<Pod> = client::get(client, &resource::with_query("/api/v1/pods", &query), JSON).await?;
    let events =
        events(client, None, &format!("involvedObject.name={name},involvedObject.kind=Node")).await?;
    let mut text = Text::new();
    node::describe(&mut text, &node, &pods.items);
    text::events(&mut text, events);
    Ok(text.finish())
}

async fn claim_text(client: &kube::Client, namespace: &str, name: &str) -> anyhow::Result<String> {
    let kind = Kind::PersistentVolumeClaim;
    let claim: PersistentVolumeClaim =
        client::get(client, &resource::path(kind, Some(namespace), Some(name)), JSON).await?;
    let pods: List<Pod> =
        client::get(client, &resource::path(Kind::Pod, Some(namespace), None), JSON).await?;
    let selector = format!("involvedObject.name={name},involvedObject.kind={kind}");
    let events = events(client, Some(namespace), &selector).await?;
    let mut text = Text::new();
    volume::describe_claim(&mut text, &claim, &pods.items);
    text::events(&mut text, events);
    Ok(text.finish())
}

async fn service_text(client: &kube::Client, namespace: &str, name: &str) -> anyhow::Result<String> {
    let service: Service =
        client::get(client, &resource::path(Kind::Service, Some(namespace), Some(name)), JSON).await?;
    let path = resource::path(Kind::EndpointSlice, Some(namespace), None);
    let query = [("labelSelector", format!("kubernetes.io/service-name={name}"))];
    let query: Vec<(&str, &str)> = query.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let slices: List<EndpointSlice> = client::get(client, &resource::with_query(&path, &query), JSON).await?;
    let selector = format!("involvedObject.name={name},involvedObject.kind=Service");
    let events = events(client, Some(namespace), &selector).await?;
    let mut text = Text::new();
    service::describe(&mut text, &service, &slices.items);
    text::events(&mut text, events);
    Ok(text.finish())
}

async fn policy_text(client: &kube::Client, namespace: &str, name: &str) -> anyhow::Result<String> {
    let path = resource::path(Kind::NetworkPolicy, Some(namespace), Some(name));
    let found: NetworkPolicy = client::get(client, &path, JSON).await?;
    let selector = format!("involvedObject.name={name},involvedObject.kind=NetworkPolicy");
    let events = events(client, Some(namespace), &selector).await?;
    let mut text = Text::new();
    policy::describe(&mut text, &found);
    if !events.is_empty() {
        text::events(&mut text, events);
    }
    Ok(text.finish())
}

async fn volume_text(client: &kube::Client, name: &str) -> anyhow::Result<String> {
    let path = resource::path(Kind::PersistentVolume, None, Some(name));
    let volume: PersistentVolume = client::get(client, &path, JSON).await?;
    let mut text = Text::new();
    volume::describe_volume(&mut text, &volume);
    Ok(text.finish())
}

async fn events(
    client: &kube::Client,
    namespace: Option<&str>,
    selector: &str,
) -> anyhow::Result<Vec<Event>> {
    let path = resource::path(Kind::Event, namespace, None);
    let list: List<Event> =
        client::get(client, &resource::with_query(&path, &[("fieldSelector", selector)]), JSON).await?;
    Ok(list.items)
}
