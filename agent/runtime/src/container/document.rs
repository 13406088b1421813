//! Reading a `config.json` that knows words which the types of the `oci-spec` crate do not have.

use oci_spec::runtime::{Capability, LinuxSchedulerFlag, Process, Spec};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, from_slice, from_str, from_value, json};

/// The sets of `process.capabilities`.
const SETS: [&str; 5] = ["bounding", "effective", "inheritable", "permitted", "ambient"];

/// A `config.json` that was read.
#[derive(Debug)]
pub struct Document {
    /// What it says.
    pub spec: Spec,
    /// The same as text.
    pub bytes: Vec<u8>,
    /// What of it was left out, such as capabilities that nobody knows: by the runtime-spec that is worth a warning.
    pub warnings: Vec<String>,
}

impl Document {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// It is not JSON, or not what the runtime-spec describes.
    pub fn parse(bytes: Vec<u8>) -> Result<Document, serde_json::Error> {
        let error = match from_slice(&bytes) {
            Ok(spec) => return Ok(Document { spec, bytes, warnings: Vec::new() }),
            Err(error) => error,
        };
        // Only now is it worth to look for such words; the first error names its line.
        let Ok(mut value) = from_slice::<Value>(&bytes) else { return Err(error) };
        let warnings = drop_unknown_capabilities(&mut value);
        let adapted = value.get_mut("process").is_some_and(adapt_process);
        if warnings.is_empty() && !adapted {
            return Err(error);
        }
        let bytes = value.to_string().into_bytes();
        Ok(Document { spec: from_value(value)?, bytes, warnings })
    }
}

/// Reads the text of a `config.json` but for the rules of its filter, `linux.seccomp`: they are most of it, and nobody needs them before
/// the container's process exists. Their text comes with it. Nothing if there are none, or if anything is wrong with the rest.
pub fn without_rules(text: &str) -> Option<(Spec, &str)> {
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        linux: Inner<'a>,
    }
    #[derive(Deserialize)]
    struct Inner<'a> {
        #[serde(borrow)]
        seccomp: &'a RawValue,
    }
    let rules = from_str::<Outer<'_>>(text).ok()?.linux.seccomp.get();
    if rules == "null" {
        return None;
    }
    // It is a part of the text.
    let begin = rules.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
    let rest = [text.get(..begin)?, "null", text.get(begin + rules.len()..)?].concat();
    from_str(&rest).ok().map(|spec| (spec, rules))
}

/// Reads the text of a process, as `exec --process` takes it.
///
/// # Errors
/// It is not JSON, or not what the runtime-spec describes.
pub fn parse_process(bytes: &[u8]) -> Result<Process, serde_json::Error> {
    from_slice(bytes).or_else(|error| {
        let Ok(mut value) = from_slice::<Value>(bytes) else { return Err(error) };
        if adapt_process(&mut value) { from_value(value) } else { Err(error) }
    })
}

/// Changes what the types of `oci-spec` would not take; true when there was such a thing.
fn adapt_process(process: &mut Value) -> bool {
    // Both, even if one is enough to say so.
    complete_user(process) | rename_flags(process)
}

/// A process without a user is root's: the schema of the runtime-spec does not require one, the types of `oci-spec` do. True
/// when something was missing.
fn complete_user(process: &mut Value) -> bool {
    let Some(process) = process.as_object_mut() else { return false };
    let Some(user) = process.entry("user").or_insert_with(|| json!({})).as_object_mut() else { return false };
    let given = user.len();
    for id in ["uid", "gid"] {
        user.entry(id).or_insert_with(|| json!(0));
    }
    user.len() > given
}

fn drop_unknown_capabilities(config: &mut Value) -> Vec<String> {
    let mut unknown: Vec<String> = Vec::new();
    for set in SETS {
        let Some(list) =
            config.pointer_mut(&format!("/process/capabilities/{set}")).and_then(Value::as_array_mut)
        else {
            continue;
        };
        list.retain(|name| {
            let known = name.as_str().is_none_or(|name| from_value::<Capability>(json!(name)).is_ok());
            if !known {
                unknown.extend(name.as_str().map(str::to_owned));
            }
            known
        });
    }
    unknown.sort_unstable();
    unknown.dedup();
    match unknown.as_slice() {
        [] => Vec::new(),
        names => vec![format!("unknown capabilities are left out: {}", names.join(", "))],
    }
}

/// Flags of a scheduler that `oci-spec` has misspelt: the name in the runtime-spec, and those that it may have there.
const MISSPELT: [(&str, &[&str]); 2] = [
    ("SCHED_FLAG_DL_OVERRUN", &["SCHED_FLAG_D_L_OVERRUN", "SCHED_FLAG_DLOVERRUN"]),
    ("SCHED_FLAG_RESET_ON_FORK", &["SCHED_RESET_ON_FORK"]),
];

fn rename_flags(process: &mut Value) -> bool {
    let known = |name: &&str| from_value::<LinuxSchedulerFlag>(json!(name)).is_ok();
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    let mut found = false;
    for flag in flags.into_iter().flatten() {
        let Some((right, others)) = MISSPELT.iter().find(|(right, _)| flag == right) else { continue };
        if let Some(theirs) = others.iter().find(|name| known(name)).filter(|_| !known(right)) {
            *flag = json!(theirs);
            found = true;
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(process: Value) -> Result<Document, serde_json::Error> {
        let mut full = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/"});
        full.as_object_mut().unwrap().extend(process.as_object().unwrap().clone());
        Document::parse(json!({"ociVersion": "1.2.0", "process": full}).to_string().into_bytes())
    }

    #[test]
    fn unknown_capabilities_are_a_warning() {
        let sets = json!({"bounding": ["CAP_KILL", "CAP_FUTURE"], "ambient": ["CAP_FUTURE", "CAP_OTHER"]});
        let document = parse(json!({"capabilities": sets})).unwrap();
        assert_eq!(document.warnings, ["unknown capabilities are left out: CAP_FUTURE, CAP_OTHER"]);
        let sets = document.spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert_eq!(from_slice::<Spec>(&document.bytes).unwrap(), document.spec, "the text is as clean");
        assert!(parse(json!({"capabilities": {"bounding": ["CAP_KILL"]}})).unwrap().warnings.is_empty());
    }

    #[test]
    fn flags_are_read_as_the_runtime_spec_writes_them() {
        let flags = ["SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_RESET_ON_FORK"];
        let scheduler = json!({"policy": "SCHED_DEADLINE", "flags": flags});
        let document = parse(json!({"scheduler": scheduler})).unwrap();
        let scheduler = document.spec.process().as_ref().unwrap().scheduler().clone().unwrap();
        let expected = [LinuxSchedulerFlag::SchedFlagDLOverrun, LinuxSchedulerFlag::SchedResetOnFork];
        assert_eq!(scheduler.flags().as_deref(), Some(&expected[..]));
    }

    #[test]
    fn a_process_without_a_user_is_roots() {
        for user in [json!({}), json!({"user": {}}), json!({"user": {"uid": 0}})] {
            let mut process = json!({"cwd": "/", "args": ["true"]});
            process.as_object_mut().unwrap().extend(user.as_object().unwrap().clone());
            let read = parse_process(process.to_string().as_bytes()).unwrap();
            assert_eq!((read.user().uid(), read.user().gid()), (0, 0), "{user}");
            let config = json!({"ociVersion": "1.2.0", "process": process});
            assert!(Document::parse(config.to_string().into_bytes()).is_ok(), "{user}");
        }
        assert!(parse_process(br#"{"cwd": "/", "user": 5}"#).is_err());
    }

    #[test]
    fn rules_can_be_left_for_later() {
        let rules = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["\"}]\u{e4}"], "action": "SCMP_ACT_ALLOW"}]});
        let config = |seccomp: &Value| {
            json!({"ociVersion": "1.2.0", "annotations": {"seccomp": "\u{e4}{"},
                "linux": {"cgroupsPath": "/a", "seccomp": seccomp, "maskedPaths": ["/proc/kcore"]}, "hostname": "x"})
        };
        for text in [config(&rules).to_string(), format!("{:#}", config(&rules))] {
            let (spec, later) = without_rules(&text).unwrap();
            assert_eq!(from_str::<Value>(later).unwrap(), rules);
            assert_eq!(spec, from_value(config(&Value::Null)).unwrap());
        }
        for bad in [
            r#"{"ociVersion": "1.2.0", "linux": {"seccomp": null}}"#,
            r#"{"ociVersion": "1.2.0", "linux": {}}"#,
            r#"{"ociVersion": "1.2.0", "hostname": "x"}"#,
            r#"{"ociVersion": 1, "linux": {"seccomp": {}}}"#,
            r#"{"ociVersion": "1.2.0", "linux": {"seccomp": {}, "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}}"#,
            r#"{"ociVersion": "1.2.0", "linux": {"seccomp": {}}"#,
        ] {
            assert!(without_rules(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn other_mistakes_stay_errors() {
        assert!(parse(json!({"cwd": 5})).is_err());
        assert!(
            parse(json!({"rlimits": [{"type": "RLIMIT_FUTURE"}]}))
                .unwrap_err()
                .to_string()
                .contains("line 1")
        );
        assert!(Document::parse(b"{".to_vec()).is_err());
    }
}
