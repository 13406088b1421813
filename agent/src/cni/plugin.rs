//! Calling a plugin.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long a plugin may take. A kubelet gives the whole sandbox two minutes.
const PATIENCE: Duration = Duration::from_secs(110);

/// The environment of a call, beside the command.
#[derive(Clone, Debug)]
pub struct Call {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`; empty when it is gone.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
}

/// The folders in which plugins are looked for.
#[derive(Clone, Debug)]
pub struct Folders(pub Vec<PathBuf>);

impl Folders {
    /// Whether every plugin of a list is there.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn have_all(&self, name: &str, plugins: &[Value]) -> Result<(), String> {
        plugins.iter().try_for_each(|plugin| {
            let program = plugin["type"].as_str().unwrap_or_default();
            let found = self.find(program).map(drop);
            found.map_err(|why| format!("plugin type={program:?} name={name:?} cannot be called: {why}"))
        })
    }

    fn find(&self, program: &str) -> Result<PathBuf, String> {
        self.0.iter().map(|dir| dir.join(program)).find(|path| path.is_file()).ok_or_else(|| {
            let dirs: Vec<String> = self.0.iter().map(|dir| dir.display().to_string()).collect();
            format!("there is no such program in {}", dirs.join(", "))
        })
    }

    /// `CNI_PATH`, for plugins that call others.
    fn path(&self) -> std::ffi::OsString {
        std::env::join_paths(&self.0).unwrap_or_default()
    }

    /// Calls a plugin with `conf` on its standard input. Its answer, if it gave one.
    ///
    /// # Errors
    /// It cannot be started, does not end, or failed: with what it said of it.
    pub async fn call(
        &self,
        command: &str,
        call: Option<&Call>,
        conf: &Value,
    ) -> Result<Option<Value>, String> {
        let program = conf["type"].as_str().unwrap_or_default();
        let name = conf["name"].as_str().unwrap_or_default();
        let fail = |why: String| format!("plugin type={program:?} name={name:?} failed ({command}): {why}");
        let path = self.find(program).map_err(fail)?;
        let outcome = tokio::time::timeout(PATIENCE, self.run(&path, command, call, conf)).await;
        outcome
            .unwrap_or_else(|_| Err(format!("it did not end within {} s", PATIENCE.as_secs())))
            .map_err(fail)
    }

    async fn run(
        &self,
        path: &Path,
        command: &str,
        call: Option<&Call>,
        conf: &Value,
    ) -> Result<Option<Value>, String> {
        let mut process = Command::new(path);
        process.env("CNI_COMMAND", command).env("CNI_PATH", self.path());
        if let Some(call) = call {
            process.env("CNI_CONTAINERID", &call.container).env("CNI_NETNS", &call.netns);
            process.env("CNI_IFNAME", &call.interface).env("CNI_ARGS", &call.args);
        }
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = process.spawn().map_err(|e| format!("start {}: {e}", path.display()))?;
        let mut stdin = child.stdin.take().ok_or("it has no standard input")?;
        let text = conf.to_string();
        // A plugin that fails early does not read; what it says then is what counts.
        let told = async move {
            let _ = stdin.write_all(text.as_bytes()).await;
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), told);
        let output = output.map_err(|e| format!("wait for {}: {e}", path.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            let said = said.trim();
            return match said.is_empty() {
                true => Ok(None),
                false => {
                    serde_json::from_str(said).map(Some).map_err(|e| format!("its answer is not JSON: {e}"))
                }
            };
        }
        Err(complaint(&said, &String::from_utf8_lossy(&output.stderr), &output.status.to_string()))
    }
}

/// Why a plugin failed: its error object, else what it wrote to standard error, else how it ended.
fn complaint(stdout: &str, stderr: &str, status: &str) -> String {
    let error: Value = serde_json::from_str(stdout.trim()).unwrap_or_default();
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    match (text("msg"), text("details")) {
        (message, details) if !message.is_empty() && !details.is_empty() => format!("{message}; {details}"),
        (message, _) if !message.is_empty() => message,
        _ if !stderr.trim().is_empty() => format!("{status}: {}", stderr.trim()),
        _ => status.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn folder(script: &str) -> (tempfile::TempDir, Folders) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let folders = Folders(vec!["/nowhere".into(), dir.path().into()]);
        (dir, folders)
    }

    async fn said(script: &str) -> Result<Option<Value>, String> {
        let (_dir, folders) = folder(script);
        let call =
            Call { container: "c".into(), netns: "/n".into(), interface: "eth0".into(), args: "A=1".into() };
        folders.call("ADD", Some(&call), &json!({"type": "it", "name": "net"})).await
    }

    #[tokio::test]
    async fn a_plugin_is_called_and_answers() {
        let script = r#"read -r conf; echo "{\"conf\": $conf,
            \"env\": \"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS\"}""#;
        let answer = said(script).await.unwrap().unwrap();
        assert_eq!(answer["env"], "ADD c /n eth0 A=1");
        assert_eq!(answer["conf"], json!({"type": "it", "name": "net"}));
        assert_eq!(said("exit 0").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_plugin_that_fails_says_why() {
        let head = "plugin type=\"it\" name=\"net\" failed (ADD): ";
        for (script, why) in [
            (r#"echo '{"code": 7, "msg": "no", "details": "way"}'; exit 1"#, "no; way"),
            (r#"echo '{"code": 7, "msg": "no"}'; exit 1"#, "no"),
            ("echo bad >&2; exit 2", "exit status: 2: bad"),
            ("kill -9 $$", "signal: 9 (SIGKILL)"),
            ("echo {", "its answer is not JSON"),
        ] {
            let error = said(script).await.unwrap_err();
            assert!(error.starts_with(&format!("{head}{why}")), "{error}");
        }
        let (_dir, folders) = folder("exit 0");
        let error = folders.call("DEL", None, &json!({"type": "other", "name": "net"})).await.unwrap_err();
        assert!(error.contains("there is no such program in /nowhere, /"), "{error}");
    }
}
