#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use berth_netplug::Protocol;
use berth_netplug::policy::Flow;
use berth_reconciler::claims::selector_matches;
use berth_reconciler::manifest::{self, Context};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::derive::{Member, derive};
use super::*;

/// A policy as it is after the checks.
fn policy(namespace: &str, name: &str, spec: Value) -> NetworkPolicy {
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec});
    match manifest::check(&object, &Context::default()).unwrap() {
        manifest::Object::NetworkPolicy(policy) => *policy,
        other => panic!("{other:?}"),
    }
}

fn pod(namespace: &str, name: &str, labels: Value) -> v1::Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": [
            {"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        ]}]},
    }))
    .unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Pods `web` (10.85.0.2), `db` (.3) of `default`, `web` (.4) of `shop`; each with an IPv6 address, too.
struct World {
    pods: Vec<(v1::Pod, Vec<IpAddr>)>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl World {
    fn new() -> Self {
        let pods = [("default", "web"), ("default", "db"), ("shop", "web")];
        let of = |(place, (namespace, app)): (usize, (&str, &str))| {
            let place = place + 2;
            (
                pod(namespace, app, json!({"app": app})),
                vec![ip(&format!("10.85.0.{place}")), ip(&format!("fd00::{place}"))],
            )
        };
        let shop = [(NAMESPACE_NAME, "shop"), ("team", "a")];
        Self {
            pods: pods.into_iter().enumerate().map(of).collect(),
            namespaces: [("shop".to_owned(), shop.map(|(k, v)| (k.to_owned(), v.to_owned())).into())].into(),
        }
    }

    fn members(&self) -> Vec<Member<'_>> {
        self.pods.iter().map(|(pod, ips)| Member { pod, ips: ips.clone() }).collect()
    }

    fn derive(&self, policies: &[NetworkPolicy]) -> berth_netplug::Policies {
        derive(policies.iter(), &self.namespaces, &self.members())
    }

    /// Who of all pods and of 192.0.2.1 gets to a pod at 8080/TCP, by the last numbers of their addresses.
    fn reach(&self, policies: &[NetworkPolicy], to: &str) -> Vec<String> {
        let derived = self.derive(policies);
        let askers = ["10.85.0.2", "10.85.0.3", "10.85.0.4", "192.0.2.1"];
        let allowed = |from: &&str| {
            derived.allow(&Flow { from: ip(from), to: ip(to), port: Some((Protocol::Tcp, 8080)) })
        };
        askers.iter().filter(|from| **from != to && allowed(from)).map(|from| (*from).to_owned()).collect()
    }
}

const WEB: &str = "10.85.0.2";
const DB: &str = "10.85.0.3";
const SHOP: &str = "10.85.0.4";
const OUTSIDE: &str = "192.0.2.1";

fn to_db(spec: Value) -> Vec<String> {
    World::new().reach(&[policy("default", "p", spec)], DB)
}

fn ingress(rule: Value) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [rule]})
}

#[test]
fn without_policies_everybody_may() {
    assert_eq!(World::new().reach(&[], DB), [WEB, SHOP, OUTSIDE]);
}

#[test]
fn a_policy_without_rules_lets_nothing_in() {
    assert_eq!(to_db(json!({"podSelector": {}})), [""; 0]);
    assert_eq!(
        to_db(json!({"podSelector": {"matchLabels": {"app": "other"}}})),
        [WEB, SHOP, OUTSIDE],
        "it is another's"
    );
}

#[test]
fn an_empty_rule_allows_everything() {
    assert_eq!(to_db(ingress(json!({}))), [WEB, SHOP, OUTSIDE]);
    assert_eq!(to_db(ingress(json!({"from": [], "ports": []}))), [WEB, SHOP, OUTSIDE]);
}

#[test]
fn a_policy_is_for_its_own_namespace() {
    let spec = json!({"podSelector": {}});
    assert_eq!(World::new().reach(&[policy("shop", "p", spec)], DB), [WEB, SHOP, OUTSIDE]);
}

#[test]
fn a_pod_selector_is_for_the_policys_namespace() {
    assert_eq!(to_db(ingress(json!({"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}))), [WEB]);
    assert_eq!(to_db(ingress(json!({"from": [{"podSelector": {}}]}))), [WEB]);
}

#[test]
fn a_namespace_selector_is_for_all_pods_of_those_namespaces() {
    let by = |labels: Value| to_db(ingress(json!({"from": [{"namespaceSelector": labels}]})));
    assert_eq!(by(json!({"matchLabels": {"team": "a"}})), [SHOP]);
    assert_eq!(by(json!({})), [WEB, SHOP]);
    assert_eq!(by(json!({"matchLabels": {NAMESPACE_NAME: "default"}})), [WEB], "also without an object");
    assert_eq!(by(json!({"matchLabels": {"team": "b"}})), [""; 0]);
}

#[test]
fn both_selectors_of_a_peer_have_to_hold() {
    let both = json!({"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {"matchLabels": {"app": "db"}}});
    assert_eq!(to_db(ingress(json!({"from": [both]}))), [""; 0]);
    let two = json!([{"namespaceSelector": {"matchLabels": {"team": "a"}}}, {"podSelector": {"matchLabels": {"app": "web"}}}]);
    assert_eq!(to_db(ingress(json!({"from": two}))), [WEB, SHOP], "of two peers one");
}

#[test]
fn blocks_have_holes() {
    let by = |block: Value| to_db(ingress(json!({"from": [{"ipBlock": block}]})));
    assert_eq!(by(json!({"cidr": "192.0.2.0/24"})), [OUTSIDE]);
    assert_eq!(by(json!({"cidr": "192.0.2.0/24", "except": ["192.0.2.1/32"]})), [""; 0]);
    assert_eq!(by(json!({"cidr": "0.0.0.0/0", "except": ["10.85.0.0/16"]})), [OUTSIDE]);
    assert_eq!(by(json!({"cidr": "::/0"})), [""; 0]);
}

#[test]
fn ports_by_number_range_and_name() {
    let by = |port: Value| !to_db(ingress(json!({"ports": [port]}))).is_empty();
    assert!(
        by(json!({"port": 8080}))
            && by(json!({"port": "http"}))
            && by(json!({"port": 8000, "endPort": 9000}))
    );
    assert!(by(json!({"protocol": "TCP"})), "all ports of a protocol");
    assert!(!by(json!({"port": 80})) && !by(json!({"port": "dns"})) && !by(json!({"protocol": "UDP"})));
    assert!(!by(json!({"port": 8080, "protocol": "UDP"})) && !by(json!({"port": "http", "protocol": "UDP"})));
}

/// Each pod's own port has the name.
#[test]
fn a_name_is_another_port_of_another_pod() {
    let mut world = World::new();
    let ports = &mut world.pods[1].0.spec.as_mut().unwrap().containers[0].ports.as_mut().unwrap()[0];
    ports.container_port = 9090;
    let spec =
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]});
    let derived = world.derive(&[policy("default", "p", spec)]);
    let at = |to: &str, port| {
        derived.allow(&Flow { from: ip(WEB), to: ip(to), port: Some((Protocol::Tcp, port)) })
    };
    assert!(at(DB, 9090) && !at(DB, 8080) && at(SHOP, 8080) && !at(OUTSIDE, 8080));
}

#[test]
fn policies_add_up() {
    let from = |app: &str| ingress(json!({"from": [{"podSelector": {"matchLabels": {"app": app}}}]}));
    let shop = ingress(json!({"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]}));
    let all = [
        policy("default", "deny", json!({"podSelector": {}})),
        policy("default", "web", from("web")),
        policy("default", "shop", shop),
    ];
    assert_eq!(World::new().reach(&all, DB), [WEB, SHOP]);
    assert_eq!(World::new().reach(&all, WEB), [""; 0]);
}

#[test]
fn egress_is_the_senders() {
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]}]});
    let policies = [policy("default", "p", spec)];
    assert_eq!(World::new().reach(&policies, DB), [SHOP, OUTSIDE]);
    assert_eq!(World::new().reach(&policies, SHOP), [WEB, DB, OUTSIDE]);
    let derived = World::new().derive(&policies);
    let guard = &derived.pods[&ip("fd00::2")];
    assert!(guard.ingress.is_none() && guard.egress.is_some(), "of both families, and only one way");
}

#[test]
fn policy_types_without_rules() {
    let both = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    let derived = World::new().derive(&[policy("default", "p", both)]);
    let guard = &derived.pods[&ip(WEB)];
    assert!(guard.ingress.as_ref().unwrap().is_empty() && guard.egress.as_ref().unwrap().is_empty());
}

#[test]
fn names_of_rules_fit_the_kernel() {
    let long = "a".repeat(200);
    let rules = |name: &str| {
        let derived = World::new().derive(&[policy("default", name, ingress(json!({})))]);
        derived.rules.into_keys().next().unwrap()
    };
    assert_eq!(rules("p"), "in/default/p/0");
    assert!(rules(&long).len() <= 100 && rules(&long) != rules(&format!("{long}b")));
}

// ---- Keeping them ----

fn kept(on: bool) -> (tempfile::TempDir, ObjectStore, Policies) {
    let (dir, store) = (tempfile::TempDir::new().unwrap(), ObjectStore::new());
    let policies = Policies::new(dir.path(), on, store.clone());
    (dir, store, policies)
}

fn namespace(name: &str, team: &str) -> Namespace {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": team}}});
    match manifest::check(&object, &Context::default()).unwrap() {
        manifest::Object::Namespace(namespace) => *namespace,
        other => panic!("{other:?}"),
    }
}

fn rules_of(policies: Vec<NetworkPolicy>, namespaces: Vec<Namespace>) -> NetworkRules {
    NetworkRules {
        policies: policies.into_iter().map(Arc::new).collect(),
        namespaces: namespaces.into_iter().map(Arc::new).collect(),
    }
}

#[test]
fn without_the_setting_policies_are_refused_and_namespaces_kept() {
    let (_dir, store, policies) = kept(false);
    let deny = policy("default", "deny", json!({"podSelector": {}}));
    let refused = policies.put_policy(deny.clone(), true, false).unwrap_err().to_string();
    assert!(refused.contains("networkPolicy: true"), "{refused}");
    let errors = policies.file_loaded(
        Path::new("/m/a.yaml"),
        rules_of(vec![deny], vec![namespace("shop", "a")]),
        false,
    );
    assert!(
        errors.len() == 1 && errors[0].starts_with("NetworkPolicy default/deny: this node does not enforce"),
        "{errors:?}"
    );
    assert!(store.get(Kind::NetworkPolicy, "default", "deny").is_none());
    assert!(store.get(Kind::Namespace, "", "shop").is_some());
}

/// What an agent that enforced them has stored is told of by the next one, which does not.
#[test]
fn policies_that_lost_their_setting_are_told_of() {
    let (dir, _, policies) = kept(true);
    policies.put_policy(policy("default", "deny", json!({"podSelector": {}})), true, false).unwrap();
    let store = ObjectStore::new();
    let events = Recorder::new(store.clone(), "n");
    Policies::new(dir.path(), false, store.clone()).load(&events);
    let shown = store.list(Kind::Event, None).0;
    let event = shown[0].value();
    assert_eq!((&event["reason"], &event["involvedObject"]["name"]), (&json!("NotEnforced"), &json!("deny")));
    assert_eq!(event["involvedObject"]["apiVersion"], "networking.k8s.io/v1");
    assert!(store.get(Kind::NetworkPolicy, "default", "deny").is_some(), "it can be seen and deleted");
}

#[test]
fn an_object_belongs_to_its_file_or_to_the_api() {
    let (dir, store, policies) = kept(true);
    let (deny, file) = (policy("default", "deny", json!({"podSelector": {}})), Path::new("/m/a.yaml"));
    assert_eq!(policies.file_loaded(file, rules_of(vec![deny.clone()], vec![]), false), [""; 0]);
    assert!(policies.put_policy(deny.clone(), false, false).unwrap_err().to_string().contains("/m/a.yaml"));
    assert!(policies.delete_policy("default", "deny").unwrap_err().to_string().contains("/m/a.yaml"));
    // A broken file takes nothing away; a good one that has it no more does.
    policies.file_loaded(file, NetworkRules::default(), true);
    assert!(store.get(Kind::NetworkPolicy, "default", "deny").is_some());
    // Another agent finds it, and it goes if no file wants it any more.
    let again = Policies::new(dir.path(), true, ObjectStore::new());
    again.load(&Recorder::new(ObjectStore::new(), "n"));
    assert_eq!(again.lock().policies.iter().count(), 1);
    again.synced();
    assert_eq!(again.lock().policies.iter().count(), 0);
    policies.file_loaded(file, NetworkRules::default(), false);
    assert!(store.get(Kind::NetworkPolicy, "default", "deny").is_none());
    policies.put_policy(deny.clone(), true, false).unwrap();
    let errors = policies.file_loaded(file, rules_of(vec![deny], vec![]), false);
    assert!(errors[0].contains("it was made by the API"), "{errors:?}");
}

/// A full disk must not leave pods without the policies that a manifest gives them.
#[test]
fn what_a_file_says_is_in_force_without_being_stored() {
    let (dir, store, policies) = kept(true);
    let (deny, file) = (policy("default", "deny", json!({"podSelector": {}})), Path::new("/m/a.yaml"));
    // In the place of the folder, so that nothing can be written there.
    std::fs::create_dir_all(dir.path().join("objects")).unwrap();
    std::fs::write(dir.path().join("objects/networkpolicies"), "").unwrap();
    let load = || policies.file_loaded(file, rules_of(vec![deny.clone()], vec![]), false);
    let errors = load();
    assert!(
        errors[0].contains("NetworkPolicy default/deny: it is in force, but cannot be stored"),
        "{errors:?}"
    );
    assert_eq!(policies.lock().policies.iter().count(), 1);
    assert!(store.get(Kind::NetworkPolicy, "default", "deny").is_some());
    let refused = policies.put_policy(policy("default", "other", json!({"podSelector": {}})), true, false);
    assert!(refused.unwrap_err().to_string().starts_with("store the object:"));
    assert_eq!(policies.lock().policies.iter().count(), 1, "what the API cannot store is not taken");
    // The next reading tries again.
    std::fs::remove_file(dir.path().join("objects/networkpolicies")).unwrap();
    assert_eq!(load(), [""; 0]);
    let again = Policies::new(dir.path(), true, ObjectStore::new());
    again.load(&Recorder::new(ObjectStore::new(), "n"));
    assert_eq!(again.lock().policies.iter().count(), 1);
}

#[test]
fn a_policy_keeps_its_uid_and_counts_its_changes() {
    let (_dir, _, policies) = kept(true);
    let first = policies.put_policy(policy("default", "p", json!({"podSelector": {}})), true, false).unwrap();
    let same = policies.put_policy(policy("default", "p", json!({"podSelector": {}})), false, false).unwrap();
    let spec = json!({"podSelector": {"matchLabels": {"a": "b"}}});
    let dry = policies.put_policy(policy("default", "p", spec.clone()), false, true).unwrap();
    let other = policies.put_policy(policy("default", "p", spec), false, false).unwrap();
    let generations = [&first, &same, &dry, &other].map(|one| one.metadata.generation);
    assert_eq!(generations, [Some(1), Some(1), Some(2), Some(2)]);
    assert_eq!(first.metadata.uid, other.metadata.uid);
    assert!(matches!(policies.put_policy(other, true, false), Err(Refusal::Exists)));
}

#[test]
fn namespaces_with_something_in_them_stay() {
    let (_dir, store, policies) = kept(true);
    policies.load(&Recorder::new(store.clone(), "n"));
    assert!(matches!(policies.put_namespace(namespace("default", "a"), true, false), Err(Refusal::Exists)));
    policies.put_namespace(namespace("default", "a"), false, false).unwrap();
    let shown = store.get(Kind::Namespace, "", "default").unwrap().value();
    assert_eq!(
        (&shown["metadata"]["labels"]["team"], &shown["status"]["phase"]),
        (&json!("a"), &json!("Active"))
    );
    policies.put_namespace(namespace("shop", "a"), true, false).unwrap();
    policies.put_policy(policy("shop", "p", json!({"podSelector": {}})), true, false).unwrap();
    let refused = policies.delete_namespace("shop").unwrap_err().to_string();
    assert!(refused.contains("it has networkpolicies in it"), "{refused}");
    policies.delete_policy("shop", "p").unwrap();
    policies.delete_namespace("shop").unwrap();
    assert!(matches!(policies.delete_namespace("shop"), Err(Refusal::NotFound)));
    assert!(policies.delete_namespace("default").is_err());
}

// ---- Against a reading of the objects themselves ----

/// Whether one pod may talk to another, or an address outside, by the words of the API's documentation and nothing else.
fn naive(world: &World, policies: &[NetworkPolicy], flow: &Flow) -> bool {
    if flow.from == flow.to {
        return true;
    }
    let find = |ip| world.pods.iter().find(|(_, ips)| ips.contains(&ip)).map(|(pod, _)| pod);
    let one_way = |subject: IpAddr, peer: IpAddr, way: &str| {
        let Some(pod) = find(subject) else { return true };
        let of = |policy: &&NetworkPolicy| {
            let spec = policy.spec.as_ref().unwrap();
            policy.metadata.namespace == pod.metadata.namespace
                && spec.policy_types.iter().flatten().any(|one| one == way)
                && selector_matches(spec.pod_selector.as_ref().unwrap(), &labels(pod))
        };
        let mut selecting = policies.iter().filter(of).peekable();
        if selecting.peek().is_none() {
            return true;
        }
        selecting.any(|policy| {
            let spec = policy.spec.as_ref().unwrap();
            let rules: Vec<_> = match way {
                "Ingress" => {
                    spec.ingress.iter().flatten().map(|r| (r.from.clone(), r.ports.clone())).collect()
                }
                _ => spec.egress.iter().flatten().map(|r| (r.to.clone(), r.ports.clone())).collect(),
            };
            rules.into_iter().any(|(peers, ports)| {
                let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
                (peers.is_empty() || peers.iter().any(|one| is_peer(world, policy, one, peer, find(peer))))
                    && (ports.is_empty() || ports.iter().any(|one| is_port(one, flow, find(flow.to))))
            })
        })
    };
    one_way(flow.from, flow.to, "Egress") && one_way(flow.to, flow.from, "Ingress")
}

fn labels(pod: &v1::Pod) -> BTreeMap<String, String> {
    pod.metadata.labels.clone().unwrap_or_default()
}

fn is_peer(
    world: &World,
    policy: &NetworkPolicy,
    peer: &k8s_openapi::api::networking::v1::NetworkPolicyPeer,
    ip: IpAddr,
    pod: Option<&v1::Pod>,
) -> bool {
    if let Some(block) = &peer.ip_block {
        let holds = |net: &String| net.parse::<berth_netplug::policy::Net>().unwrap().contains(ip);
        return holds(&block.cidr) && !block.except.iter().flatten().any(holds);
    }
    let Some(pod) = pod else { return false };
    let namespace = pod.metadata.namespace.clone().unwrap();
    let implied = BTreeMap::from([(NAMESPACE_NAME.to_owned(), namespace.clone())]);
    let of_namespace = world.namespaces.get(&namespace).unwrap_or(&implied);
    let in_namespace = match &peer.namespace_selector {
        Some(selector) => selector_matches(selector, of_namespace),
        None => pod.metadata.namespace == policy.metadata.namespace,
    };
    in_namespace && peer.pod_selector.as_ref().is_none_or(|selector| selector_matches(selector, &labels(pod)))
}

fn is_port(
    port: &k8s_openapi::api::networking::v1::NetworkPolicyPort,
    flow: &Flow,
    to: Option<&v1::Pod>,
) -> bool {
    let Some((protocol, number)) = flow.port else { return false };
    let number = i32::from(number);
    let word = port.protocol.as_deref().unwrap();
    let same = word.to_lowercase() == protocol.to_string();
    same && match &port.port {
        None => true,
        Some(IntOrString::Int(first)) => (*first..=port.end_port.unwrap_or(*first)).contains(&number),
        Some(IntOrString::String(name)) => {
            let ports = to.and_then(|pod| pod.spec.as_ref()?.containers[0].ports.clone()).unwrap_or_default();
            ports.iter().any(|one| {
                one.name.as_ref() == Some(name)
                    && one.protocol.as_deref().unwrap_or("TCP") == word
                    && one.container_port == number
            })
        }
    }
}

fn selectors() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({}),
        json!({"matchLabels": {"app": "web"}}),
        json!({"matchLabels": {"app": "db"}}),
        json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}),
    ])
}

fn peers() -> impl Strategy<Value = Value> {
    let namespaces = prop::sample::select(vec![
        json!({}),
        json!({"matchLabels": {"team": "a"}}),
        json!({"matchLabels": {NAMESPACE_NAME: "default"}}),
        json!({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}),
    ]);
    let blocks = prop::sample::select(vec![
        json!({"cidr": "10.85.0.0/16", "except": ["10.85.0.3/32"]}),
        json!({"cidr": "192.0.2.0/24"}),
        json!({"cidr": "fd00::/16", "except": ["fd00::2/127"]}),
        json!({"cidr": "0.0.0.0/0"}),
    ]);
    prop_oneof![
        selectors().prop_map(|pods| json!({"podSelector": pods})),
        namespaces.clone().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (namespaces, selectors()).prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        blocks.prop_map(|block| json!({"ipBlock": block})),
    ]
}

fn rules(word: &'static str) -> impl Strategy<Value = Value> {
    let port = prop::sample::select(vec![
        json!({"port": 8080}),
        json!({"port": 50, "endPort": 60, "protocol": "UDP"}),
        json!({"port": "http"}),
        json!({"port": "dns", "protocol": "UDP"}),
        json!({"protocol": "SCTP"}),
    ]);
    let rule = (prop::collection::vec(peers(), 0..3), prop::collection::vec(port, 0..3));
    let rule = rule.prop_map(move |(peers, ports)| json!({word: peers, "ports": ports}));
    prop::collection::vec(rule, 0..3).prop_map(|rules| json!(rules))
}

fn policies() -> impl Strategy<Value = Vec<NetworkPolicy>> {
    let types = prop::sample::select(vec![
        json!([]),
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
    ]);
    let spec = (selectors(), rules("from"), rules("to"), types).prop_map(|(pods, ingress, egress, types)| {
        json!({"podSelector": pods, "ingress": ingress, "egress": egress, "policyTypes": types})
    });
    let namespace = prop::sample::select(vec!["default", "shop"]);
    prop::collection::vec((namespace, spec), 0..4).prop_map(|all| {
        let named = all.into_iter().enumerate();
        named.map(|(n, (namespace, spec))| policy(namespace, &format!("p{n}"), spec)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// What the network is told allows exactly what the objects say.
    #[test]
    fn the_network_is_told_what_the_objects_say(policies in policies()) {
        let world = World::new();
        let derived = world.derive(&policies);
        let v4 = [WEB, DB, SHOP, OUTSIDE].map(ip);
        let v6 = ["fd00::2", "fd00::3", "fd00::4", "2001:db8::1"].map(ip);
        let tcp = [80, 8080].map(|port| Some((Protocol::Tcp, port)));
        let ports = tcp.into_iter().chain([Some((Protocol::Udp, 53)), Some((Protocol::Sctp, 9)), None]);
        for port in ports {
            for family in [v4, v6] {
                for (from, to) in family.iter().flat_map(|from| family.iter().map(move |to| (*from, *to))) {
                    let flow = Flow { from, to, port };
                    prop_assert_eq!(derived.allow(&flow), naive(&world, &policies, &flow), "{:?}", flow);
                }
            }
        }
    }
}
