//! Errors and warnings, in the form that callers of OCI runtimes read.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// `time="..." level=... msg="..."`
    Text,
    /// An object per line.
    Json,
}

/// Where messages go. The file is opened only when there is one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Log {
    path: Option<PathBuf>,
    format: LogFormat,
    debug: bool,
}

impl Log {
    /// `path` is the file to append to, relative to the folder of now.
    pub fn new(path: Option<PathBuf>, format: LogFormat, debug: bool) -> Log {
        let path = path.map(|p| std::path::absolute(&p).unwrap_or(p));
        Log { path, format, debug }
    }

    /// To the file and to standard error: conmon reads this one, containerd's shim that one.
    pub fn error(&self, message: &str) {
        self.append("error", message);
        self.tell("error", message);
    }

    /// To the file. Standard error is the container's, too, when it is run; there it is shown only when asked for.
    pub fn warning(&self, message: &str) {
        self.append("warning", message);
        if self.debug {
            self.tell("warning", message);
        }
    }

    fn tell(&self, level: &str, message: &str) {
        // Nobody is left to tell when this fails.
        let _ = std::io::stderr().write_all(format!("berth-oci: {level}: {message}\n").as_bytes());
    }

    fn append(&self, level: &str, message: &str) {
        let Some(path) = &self.path else { return };
        let line = line(self.format, level, message, Timestamp::now());
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            self.tell("warning", &format!("cannot write to {}: {error}", path.display()));
        }
    }
}

/// The error in one line, each cause once: most print their own.
pub fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string) {
        if !parts.last().is_some_and(|last| last.contains(&part)) {
            parts.push(part);
        }
    }
    parts.join(": ")
}

fn line(format: LogFormat, level: &str, message: &str, now: Timestamp) -> String {
    match format {
        LogFormat::Text => format!("time=\"{now:.0}\" level={level} msg={message:?}\n"),
        LogFormat::Json => {
            format!("{}\n", json!({"level": level, "msg": message, "time": format!("{now:.0}")}))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let now: Timestamp = "2026-01-02T03:04:05.6Z".parse().unwrap();
        assert_eq!(
            line(LogFormat::Text, "error", "no \"x\"", now),
            "time=\"2026-01-02T03:04:05Z\" level=error msg=\"no \\\"x\\\"\"\n"
        );
        assert_eq!(
            line(LogFormat::Json, "error", "no \"x\"", now),
            "{\"level\":\"error\",\"msg\":\"no \\\"x\\\"\",\"time\":\"2026-01-02T03:04:05Z\"}\n"
        );
    }
}
