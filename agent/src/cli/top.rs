//! `berth top`.

use std::process::ExitCode;

use anyhow::bail;
use berth_reconciler::quantity::Quantity;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::failure::Usage;
use super::output::{self, Columns};
use super::{client, resource};
use crate::store::Kind;

const JSON: &str = "application/json";
const PATH: &str = "/apis/metrics.k8s.io/v1beta1";

/// Words of `berth top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What pods use
    #[command(visible_aliases = ["pod", "po"])]
    Pods(PodArgs),
    /// What the machine uses
    #[command(visible_aliases = ["nodes", "no"])]
    Node(NodeArgs),
}

#[derive(Args, Debug)]
struct PodArgs {
    /// Only this pod
    name: Option<String>,
    #[command(flatten)]
    namespace: resource::Namespace,
    /// Pods of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only pods with these labels, as in app=web,tier!=db
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// A line for each container
    #[arg(long)]
    containers: bool,
    /// By what the lines are ordered, the highest first
    #[arg(long, value_name = "cpu|memory")]
    sort_by: Option<Order>,
    /// Print no heading
    #[arg(long)]
    no_headers: bool,
}

#[derive(Args, Debug)]
struct NodeArgs {
    /// Print no heading
    #[arg(long)]
    no_headers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    /// Processor time
    Cpu,
    /// Memory
    Memory,
}

/// Prints what pods or the machine use at the moment.
pub async fn run(client: &kube::Client, args: &TopArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Pods(args) => pods(client, args).await,
        What::Node(args) => node(client, args).await,
    }
}

/// Cores and bytes.
#[derive(Clone)]
struct Amounts {
    cpu: Quantity,
    memory: Quantity,
}

impl Amounts {
    fn of(usage: &Value) -> Self {
        let read = |name: &str| {
            let text = usage[name].as_str().unwrap_or_default();
            Quantity::parse(text).unwrap_or_else(|_| Quantity::from_value(0))
        };
        Self { cpu: read("cpu"), memory: read("memory") }
    }

    fn plus(&self, other: &Self) -> Self {
        Self { cpu: self.cpu.plus(&other.cpu), memory: self.memory.plus(&other.memory) }
    }

    fn cells(&self) -> [String; 2] {
        [format!("{}m", self.cpu.milli()), format!("{}Mi", self.memory.value() >> 20)]
    }
}

async fn pods(client: &kube::Client, args: &PodArgs) -> anyhow::Result<ExitCode> {
    if args.name.is_some() && (args.selector.is_some() || args.all_namespaces) {
        bail!(Usage("a name cannot be combined with -l or -A".into()));
    }
    let encode = resource::percent::encode;
    let mut path = PATH.to_owned();
    if !args.all_namespaces {
        path = format!("{path}/namespaces/{}", encode(args.namespace.name()));
    }
    path.push_str("/pods");
    let items = if let Some(word) = &args.name {
        let name = resource::pod_name(word)?;
        vec![client::get(client, &format!("{path}/{}", encode(name)), JSON).await?]
    } else {
        let query: Vec<(&str, &str)> = args.selector.iter().map(|s| ("labelSelector", s.as_str())).collect();
        let mut list: Value = client::get(client, &resource::with_query(&path, &query), JSON).await?;
        match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        }
    };
    if items.is_empty() {
        match args.all_namespaces {
            true => eprintln!("No resources found"),
            false => eprintln!("No resources found in {} namespace.", args.namespace.name()),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines: Vec<(Vec<String>, Amounts)> = items.iter().flat_map(|pod| lines(pod, args)).collect();
    match args.sort_by {
        Some(Order::Cpu) => lines.sort_by_key(|(_, amounts)| -amounts.cpu.milli()),
        Some(Order::Memory) => lines.sort_by_key(|(_, amounts)| -amounts.memory.value()),
        None => {}
    }
    let mut heading = vec!["NAMESPACE"; usize::from(args.all_namespaces)];
    heading.extend(if args.containers { &["POD", "NAME"][..] } else { &["NAME"] });
    heading.extend(["CPU(cores)", "MEMORY(bytes)"]);
    let rows = lines.into_iter().map(|(mut row, amounts)| {
        row.extend(amounts.cells());
        row
    });
    table(&heading, rows.collect(), args.no_headers)
}

/// The lines of one pod, without its amounts.
fn lines(pod: &Value, args: &PodArgs) -> Vec<(Vec<String>, Amounts)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut row = Vec::new();
    if args.all_namespaces {
        row.push(text(&pod["metadata"]["namespace"]));
    }
    row.push(text(&pod["metadata"]["name"]));
    let containers = pod["containers"].as_array().into_iter().flatten();
    let each = containers.map(|container| (text(&container["name"]), Amounts::of(&container["usage"])));
    if args.containers {
        return each.map(|(name, amounts)| ([row.clone(), vec![name]].concat(), amounts)).collect();
    }
    let sum = each.fold(Amounts::of(&Value::Null), |sum, (_, one)| sum.plus(&one));
    vec![(row, sum)]
}

async fn node(client: &kube::Client, args: &NodeArgs) -> anyhow::Result<ExitCode> {
    let list: Value = client::get(client, &format!("{PATH}/nodes"), JSON).await?;
    let nodes: Value = client::get(client, &resource::path(Kind::Node, None, None), JSON).await?;
    let share =
        |used: i64, of: i64| if of > 0 { format!("{}%", used * 100 / of) } else { "<unknown>".into() };
    let rows = list["items"].as_array().into_iter().flatten().map(|node| {
        let used = Amounts::of(&node["usage"]);
        let [cpu, memory] = used.cells();
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut all = nodes["items"].as_array().into_iter().flatten();
        let this = all.find(|one| one["metadata"]["name"] == name.as_str()).unwrap_or(&Value::Null);
        let has = Amounts::of(&this["status"]["allocatable"]);
        vec![
            name,
            cpu,
            share(used.cpu.milli(), has.cpu.milli()),
            memory,
            share(used.memory.value(), has.memory.value()),
        ]
    });
    let heading = ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"];
    table(&heading, rows.collect(), args.no_headers)
}

fn table(heading: &[&str], mut rows: Vec<Vec<String>>, bare: bool) -> anyhow::Result<ExitCode> {
    if !bare {
        rows.insert(0, heading.iter().map(ToString::to_string).collect());
    }
    output::print(&Columns::new().format(&rows))?;
    Ok(ExitCode::SUCCESS)
}
