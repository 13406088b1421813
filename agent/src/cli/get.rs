//! `berth get`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde_json::Value;

use super::client::{self, Events};
use super::failure::{self, Reported, Usage};
use super::output::{self, Columns, Format};
use super::resource::{self, Target};
use crate::store::Kind;

/// Objects as a table that the agent makes.
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const JSON: &str = "application/json";

/// Words of `berth get`.
#[derive(Args, Debug, Default)]
pub struct GetArgs {
    /// KIND [NAME...], KIND,KIND or KIND/NAME...
    #[arg(required = true, value_name = "KIND [NAME...]")]
    pub(super) what: Vec<String>,
    #[command(flatten)]
    pub(super) namespace: resource::Namespace,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    pub(super) all_namespaces: bool,
    /// Only objects with these labels, as in app=web,tier!=db
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(super) selector: Option<String>,
    /// Only objects with these fields, as in status.phase=Running
    #[arg(long, value_name = "FIELDS")]
    pub(super) field_selector: Option<String>,
    /// Format
    #[arg(short, long, value_name = "FORMAT")]
    pub(super) output: Option<Format>,
    /// Print the objects, then every change of them
    #[arg(short, long)]
    pub(super) watch: bool,
    /// Print only changes, not the objects as they are
    #[arg(long)]
    pub(super) watch_only: bool,
    /// Print no heading
    #[arg(long)]
    pub(super) no_headers: bool,
    /// Print the labels as a last column
    #[arg(long)]
    pub(super) show_labels: bool,
}

impl GetArgs {
    fn namespace(&self) -> Option<&str> {
        if self.all_namespaces { None } else { Some(self.namespace.name()) }
    }

    fn table(&self) -> bool {
        matches!(self.output, None | Some(Format::Wide))
    }

    fn watching(&self) -> bool {
        self.watch || self.watch_only
    }
}

/// One kind, all of its objects or some by name.
struct Group {
    kind: Kind,
    names: Vec<String>,
}

/// Prints objects.
pub async fn run(client: &kube::Client, args: &GetArgs) -> anyhow::Result<ExitCode> {
    let groups = groups(resource::targets(&args.what)?);
    let named = groups.iter().any(|group| !group.names.is_empty());
    if named && (args.selector.is_some() || args.field_selector.is_some()) {
        bail!(Usage("names and selectors cannot be combined".into()));
    }
    if named && args.all_namespaces {
        bail!(Usage("objects cannot be named across all namespaces; leave out -A or the names".into()));
    }
    if args.watching() {
        return match groups.as_slice() {
            [group] if group.names.len() <= 1 => watch(client, args, group).await,
            _ => bail!(Usage("only one kind, or one object, can be watched at a time".into())),
        };
    }
    let mut failed = false;
    if args.table() {
        failed = print_tables(client, args, &groups).await?;
    } else {
        let mut objects = Vec::new();
        for group in &groups {
            let (found, bad) = fetch(client, args, group).await?;
            objects.extend(found);
            failed |= bad;
        }
        let single = groups.len() == 1 && groups[0].names.len() == 1;
        print_objects(args, objects, single)?;
    }
    if failed { Err(Reported.into()) } else { Ok(ExitCode::SUCCESS) }
}

fn groups(targets: Vec<Target>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for Target { kind, name } in targets {
        match groups.iter_mut().find(|group| group.kind == kind) {
            Some(group) => group.names.extend(name),
            None => groups.push(Group { kind, names: name.into_iter().collect() }),
        }
    }
    groups
}

fn list_path(args: &GetArgs, kind: Kind, more: &[(&str, &str)]) -> String {
    let mut query: Vec<(&str, &str)> = Vec::new();
    query.extend(args.selector.as_deref().map(|s| ("labelSelector", s)));
    query.extend(args.field_selector.as_deref().map(|s| ("fieldSelector", s)));
    query.extend(more);
    resource::with_query(&resource::path(kind, args.namespace(), None), &query)
}

/// The objects of a group, and whether one of them could not be had, which has been reported then.
async fn fetch(client: &kube::Client, args: &GetArgs, group: &Group) -> anyhow::Result<(Vec<Value>, bool)> {
    if group.names.is_empty() {
        let mut list: Value = client::get(client, &list_path(args, group.kind, &[]), JSON).await?;
        let items = match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        };
        return Ok((items, false));
    }
    let (mut objects, mut failed) = (Vec::new(), false);
    for name in &group.names {
        let path = resource::path(group.kind, args.namespace(), Some(name));
        match client::get(client, &path, JSON).await {
            Ok(object) => objects.push(object),
            Err(error) => failed |= report(error)?,
        }
    }
    Ok((objects, failed))
}

/// Reports an object that could not be had and goes on; an agent that does not answer ends the command.
fn report(error: anyhow::Error) -> anyhow::Result<bool> {
    if !matches!(error.downcast_ref(), Some(kube::Error::Api(_))) {
        return Err(error);
    }
    failure::report(&error);
    Ok(true)
}

fn print_objects(args: &GetArgs, objects: Vec<Value>, single: bool) -> anyhow::Result<()> {
    match args.output {
        Some(Format::Name) => {
            let name = |object: &Value| {
                let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
                let version = object["apiVersion"].as_str().unwrap_or_default();
                let group = version.split_once('/').map(|(group, _)| format!(".{group}")).unwrap_or_default();
                format!("{kind}{group}/{}\n", object["metadata"]["name"].as_str().unwrap_or_default())
            };
            output::print(&objects.iter().map(name).collect::<String>())?;
        }
        Some(format) if !(single && objects.is_empty()) => {
            output::print(&output::document(format, objects, single)?)?;
        }
        _ => {}
    }
    Ok(())
}

/// What is wrong with the manifests of the pods of a table: the running ones look healthy otherwise.
fn manifest_errors(table: &Value) -> Vec<String> {
    let rows = table["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter()
        .filter_map(|row| row["object"]["metadata"]["annotations"][crate::node::ERROR_ANNOTATION].as_str())
        .flat_map(str::lines)
        .map(|error| format!("warning: invalid manifest: {error}"))
        .collect()
}

/// Prints a table per kind; tells whether one of the objects could not be had.
async fn print_tables(client: &kube::Client, args: &GetArgs, groups: &[Group]) -> anyhow::Result<bool> {
    let (mut failed, mut printed) = (false, false);
    let mut complaints: Vec<String> = Vec::new();
    for group in groups {
        let mut rows: Vec<Vec<String>> = Vec::new();
        let prefix = (groups.len() > 1).then_some(group.kind);
        if group.names.is_empty() {
            let table: Value = client::get(client, &list_path(args, group.kind, &[]), TABLE).await?;
            rows.extend(Layout::of(&table, args, prefix).rows(&table, !args.no_headers));
            complaints.extend(manifest_errors(&table));
        }
        for name in &group.names {
            let path = resource::path(group.kind, args.namespace(), Some(name));
            match client::get::<Value>(client, &path, TABLE).await {
                Ok(table) => {
                    let heading = rows.is_empty() && !args.no_headers;
                    rows.extend(Layout::of(&table, args, prefix).rows(&table, heading));
                    complaints.extend(manifest_errors(&table));
                }
                Err(error) => failed |= report(error)?,
            }
        }
        let empty = rows.len() <= usize::from(!args.no_headers);
        if !empty {
            let gap = if printed { "\n" } else { "" };
            output::print(&format!("{gap}{}", Columns::new().format(&rows)))?;
            printed = true;
        }
    }
    complaints.dedup();
    for complaint in complaints {
        eprintln!("{complaint}");
    }
    if !printed && !failed {
        match args.namespace() {
            Some(namespace) if groups.iter().any(|g| g.kind.namespaced()) => {
                eprintln!("No resources found in {namespace} namespace.");
            }
            _ => eprintln!("No resources found"),
        }
    }
    Ok(failed)
}

/// Which columns of the agent's tables are shown.
struct Layout {
    headings: Vec<String>,
    shown: Vec<usize>,
    namespace: bool,
    labels: bool,
    prefix: Option<Kind>,
}

impl Layout {
    fn of(table: &Value, args: &GetArgs, prefix: Option<Kind>) -> Layout {
        let wide = args.output == Some(Format::Wide);
        let columns = table["columnDefinitions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let shown: Vec<usize> = (0..columns.len())
            .filter(|n| wide || columns[*n]["priority"].as_i64().unwrap_or(0) == 0)
            .collect();
        let heading = |n: &usize| columns[*n]["name"].as_str().unwrap_or_default().to_uppercase();
        let headings = shown.iter().map(heading).collect();
        Layout { headings, shown, namespace: args.all_namespaces, labels: args.show_labels, prefix }
    }

    fn rows(&self, table: &Value, heading: bool) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        if heading {
            let mut row = self.headings.clone();
            if self.namespace {
                row.insert(0, "NAMESPACE".into());
            }
            if self.labels {
                row.push("LABELS".into());
            }
            rows.push(row);
        }
        rows.extend(table["rows"].as_array().into_iter().flatten().map(|row| self.row(row)));
        rows
    }

    fn row(&self, row: &Value) -> Vec<String> {
        let metadata = &row["object"]["metadata"];
        let mut cells: Vec<String> = Vec::new();
        if self.namespace {
            cells.push(metadata["namespace"].as_str().unwrap_or_default().to_owned());
        }
        for n in &self.shown {
            let mut text = match &row["cells"][n] {
                Value::String(text) => text.replace('\n', " "),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            if let (0, Some(kind)) = (*n, self.prefix)
                && kind != Kind::Event
            {
                text = format!("{}/{text}", resource::typed(kind));
            }
            cells.push(text);
        }
        if self.labels {
            let labels = metadata["labels"].as_object();
            let pairs: Vec<String> = labels
                .iter()
                .flat_map(|labels| labels.iter())
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect();
            cells.push(if pairs.is_empty() { "<none>".into() } else { pairs.join(",") });
        }
        cells
    }
}

/// Prints the objects and then their changes until interrupted. A watch that ends is begun where it ended.
async fn watch(client: &kube::Client, args: &GetArgs, group: &Group) -> anyhow::Result<ExitCode> {
    let by_name = group.names.first().map(|name| format!("metadata.name={name}"));
    let mut printer = Printer { args, columns: Columns::new(), layout: None };
    let accept = if args.table() { TABLE } else { JSON };
    let selector: Vec<(&str, &str)> = by_name.iter().map(|s| ("fieldSelector", s.as_str())).collect();
    let first = list_path(args, group.kind, &selector);
    let list: Value = client::get(client, &first, accept).await?;
    let mut version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    if !args.watch_only {
        printer.list(list)?;
    } else if args.table() {
        printer.layout = Some(Layout::of(&list, args, None));
    }
    loop {
        let mut query = selector.clone();
        query.extend([("watch", "1"), ("allowWatchBookmarks", "true"), ("resourceVersion", &version)]);
        let mut events = Events::open(client, &list_path(args, group.kind, &query), accept).await?;
        loop {
            match events.next().await {
                Ok(Some((kind, object))) => {
                    version = object["metadata"]["resourceVersion"].as_str().unwrap_or(&version).to_owned();
                    if kind != "BOOKMARK" {
                        printer.change(object)?;
                    }
                }
                Ok(None) => break,
                Err(error) if client::is_gone(&error) => {
                    let list: Value = client::get(client, &first, accept).await?;
                    version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                    printer.list(list)?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

struct Printer<'a> {
    args: &'a GetArgs,
    columns: Columns,
    layout: Option<Layout>,
}

impl Printer<'_> {
    fn list(&mut self, mut list: Value) -> anyhow::Result<()> {
        if self.args.table() {
            return self.table(&list);
        }
        let Value::Array(items) = list["items"].take() else { return Ok(()) };
        items.into_iter().try_for_each(|item| print_objects(self.args, vec![item], true))
    }

    fn change(&mut self, object: Value) -> anyhow::Result<()> {
        if self.args.table() { self.table(&object) } else { print_objects(self.args, vec![object], true) }
    }

    fn table(&mut self, table: &Value) -> anyhow::Result<()> {
        let heading = self.layout.is_none() && !self.args.no_headers;
        let layout = self.layout.get_or_insert_with(|| Layout::of(table, self.args, None));
        let rows = layout.rows(table, heading);
        output::print(&self.columns.format(&rows))?;
        Ok(())
    }
}
