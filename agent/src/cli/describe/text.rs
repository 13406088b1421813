//! Indented `Name:  value` lines whose values line up, as `kubectl describe` prints them.

use std::fmt::Display;

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::table::human;
use crate::cli::output::{Columns, visible};

/// One line: label and value, or a text of its own.
enum Line {
    Field(usize, String, String),
    Plain(String),
}

/// A description being written.
#[derive(Default)]
pub struct Text {
    lines: Vec<Line>,
    depth: usize,
}

impl Text {
    /// Nothing yet.
    pub fn new() -> Text {
        Text::default()
    }

    /// A label and its value.
    pub fn field(&mut self, name: &str, value: impl Display) {
        self.lines.push(Line::Field(self.depth, format!("{name}:"), value.to_string()));
    }

    /// A label and its value, if there is one.
    pub fn optional(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value.map(|v| v.to_string()).filter(|v| !v.is_empty()) {
            self.field(name, value);
        }
    }

    /// A label with a value per line; `<none>` if there are no values.
    pub fn list(&mut self, name: &str, values: impl IntoIterator<Item = String>) {
        let mut values = values.into_iter();
        self.field(name, values.next().unwrap_or_else(|| "<none>".to_owned()));
        for value in values {
            self.lines.push(Line::Field(self.depth, String::new(), value));
        }
    }

    /// A label over lines that are indented under it.
    pub fn block(&mut self, name: &str, write: impl FnOnce(&mut Text)) {
        self.lines.push(Line::Plain(format!("{}{name}:", "  ".repeat(self.depth))));
        self.depth += 1;
        write(self);
        self.depth -= 1;
    }

    /// A table, indented.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        let indent = "  ".repeat(self.depth);
        for line in Columns::plain().format(rows).lines() {
            self.lines.push(Line::Plain(format!("{indent}{line}")));
        }
    }

    /// A line of its own.
    pub fn line(&mut self, text: impl Display) {
        self.lines.push(Line::Plain(format!("{}{text}", "  ".repeat(self.depth))));
    }

    /// The text; the values of neighbouring fields of one depth line up.
    pub fn finish(self) -> String {
        let mut out = String::new();
        let mut rest = self.lines.as_slice();
        while let Some((line, after)) = rest.split_first() {
            let Line::Field(depth, ..) = line else {
                if let Line::Plain(text) = line {
                    out.push_str(visible(text, true).trim_end());
                }
                out.push('\n');
                rest = after;
                continue;
            };
            let same = |l: &Line| matches!(l, Line::Field(other, ..) if other == depth);
            let group = rest.iter().take_while(|l| same(l)).count();
            let (fields, after) = rest.split_at(group);
            let name_length =
                |l: &Line| if let Line::Field(_, name, _) = l { name.chars().count() } else { 0 };
            let width = fields.iter().map(name_length).max().unwrap_or(0) + 2;
            for field in fields {
                if let Line::Field(depth, name, value) = field {
                    let line = format!("{}{name:width$}{}", "  ".repeat(*depth), visible(value, true));
                    out.push_str(line.trim_end());
                    out.push('\n');
                }
            }
            rest = after;
        }
        out
    }
}

/// The events at the end of a description, oldest first.
pub fn events(text: &mut Text, mut events: Vec<Event>) {
    if events.is_empty() {
        text.field("Events", "<none>");
        return;
    }
    let last = |event: &Event| {
        event
            .last_timestamp
            .as_ref()
            .or(event.first_timestamp.as_ref())
            .map(|t| t.0)
            .or(event.event_time.as_ref().map(|t| t.0))
    };
    events.sort_by_key(last);
    let heading = |words: [&str; 5]| words.map(str::to_owned).to_vec();
    let mut rows = vec![
        heading(["Type", "Reason", "Age", "From", "Message"]),
        heading(["----", "------", "----", "----", "-------"]),
    ];
    for event in &events {
        let seconds = |time: &Time| jiff::Timestamp::now().as_second() - time.0.as_second();
        let last = last(event)
            .map(|t| human(jiff::Timestamp::now().as_second() - t.as_second()))
            .unwrap_or_default();
        let count = event.count.unwrap_or(1);
        let age = match event.first_timestamp.as_ref().filter(|_| count > 1) {
            Some(first) => format!("{last} (x{count} over {})", human(seconds(first))),
            None => last,
        };
        rows.push(vec![
            event.type_.clone().unwrap_or_default(),
            event.reason.clone().unwrap_or_default(),
            age,
            event.source.as_ref().and_then(|s| s.component.clone()).unwrap_or_default(),
            event.message.clone().unwrap_or_default().trim().replace('\n', " "),
        ]);
    }
    text.block("Events", |text| text.table(&rows));
}
