//! Texts that nobody should write: nothing panics, nothing takes long.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use berth_reconciler::manifest::{Context, check, parse};
use proptest::prelude::*;

fn timed(text: &str) -> usize {
    let begin = Instant::now();
    let parsed = parse(text, None, &Context::default());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?} for {} bytes", begin.elapsed(), text.len());
    parsed.errors.len()
}

#[test]
fn bombs_are_bounded() {
    let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let previous = format!("*a{}", i - 1);
        laughs += &format!("a{i}: &a{i} [{}]\n", vec![previous; 10].join(","));
    }
    assert_eq!(timed(&laughs), 1);
    let long = "x".repeat(1 << 20);
    let wide = format!("a: &a {long}\nb: [{}]\n", vec!["*a"; 1000].join(","));
    assert_eq!(timed(&wide), 1);
    assert_eq!(timed("a: &a [*a]\n"), 1);
    for open in ["[", "{a: ", "- ", "? ", "{\"a\":", "[\n"] {
        assert!(timed(&open.repeat(100_000)) >= 1, "{open}");
    }
    timed(&"---\n".repeat(100_000));
    timed(&"a: b\n---\n".repeat(20_000));
    timed(&(0..100_000).map(|i| format!("k{i}: v\n")).collect::<String>());
    timed(&format!("{}\n", "a".repeat(1 << 20)));
    timed(&"#\n".repeat(1 << 19));
}

/// Pieces that meet where parsers have their corners.
fn snippet() -> impl Strategy<Value = String> {
    let words = [
        "apiVersion: v1\n",
        "kind: Pod\n",
        "kind: List\nitems:\n",
        "kind: Secret\n",
        "metadata:\n",
        "  name: a\n",
        "spec:\n",
        "  containers:\n",
        "  - name: b\n",
        "    image: x\n",
        "---\n",
        "...\n",
        "<<: *a\n",
        "&a ",
        "*a ",
        "!!binary ",
        "!x ",
        "{",
        "}",
        "[",
        "]",
        ",",
        ": ",
        "\"",
        "'",
        "|\n",
        ">-\n",
        "\t",
        "\r\n",
        "0644",
        "yes",
        "~",
        "%YAML 1.1\n",
        "é",
        "\u{feff}",
        "  resources: {limits: {cpu: 1e999}}\n",
        "  volumes: [null, {}]\n",
        "null",
        "-1",
        "? ",
        "- ",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..40).prop_map(|words| words.concat())
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let names = [
        "apiVersion",
        "kind",
        "metadata",
        "name",
        "spec",
        "containers",
        "image",
        "ports",
        "env",
        "volumes",
        "emptyDir",
        "resources",
        "limits",
        "cpu",
        "securityContext",
        "livenessProbe",
        "httpGet",
        "port",
        "data",
        "items",
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        prop::sample::select(vec!["v1", "Pod", "Secret", "ConfigMap", "x", "", "../..", "1Gi"])
            .prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::vec((prop::sample::select(names.to_vec()), inner), 0..6)
                .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*|(?s).{0,200}") {
        parse(&text, None, &Context::default());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        parse(&String::from_utf8_lossy(&bytes), None, &Context::default());
    }

    #[test]
    fn pieces_of_yaml_never_panic(text in snippet()) {
        let parsed = parse(&text, None, &Context::default());
        let lines = text.split('\n').count();
        for error in &parsed.errors {
            prop_assert!(error.line.is_none_or(|line| line <= lines + 1), "{error} of {lines}");
        }
    }

    #[test]
    fn arbitrary_json_never_panics(mut value in json(), pod in any::<bool>()) {
        if let (true, Some(map)) = (pod, value.as_object_mut()) {
            map.insert("apiVersion".into(), "v1".into());
            map.insert("kind".into(), "Pod".into());
        }
        let api = check(&value, &Context::default());
        let file = parse(&value.to_string(), None, &Context::default());
        prop_assert!(api.is_ok() || !file.errors.is_empty() || file.objects.len() != 1 || value.get("metadata").is_some());
    }

    #[test]
    fn a_mistake_is_found_on_its_line(before in 0usize..30) {
        let text = format!("{}apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers:\n  - name: c\n    image: i\n    foo: 1\n", "# line\n".repeat(before));
        let parsed = parse(&text, None, &Context::default());
        prop_assert_eq!(parsed.errors[0].line, Some(before + 9));
    }
}
