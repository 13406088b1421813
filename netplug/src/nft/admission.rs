//! Getting pods past other firewalls.
//!
//! Docker, ufw and many hand-made firewalls give the FORWARD chain of iptables (`ip filter` in nft) the policy drop,
//! and no rule in a table of our own can undo that: each base chain of a hook has its say. So rules that accept the
//! bridge's traffic go to the head of such chains, marked by a comment, as the CNI plugins and podman do it. When their
//! owner makes the chains anew, the rules are put back (see `monitor`). Chains of firewalld have the policy accept and refuse by
//! their last rule; they are known by the name of their table. Any other firewall that does it that way is not recognised and
//! must be told by its owner.

use super::encode::{self, DEL_RULE, GET_CHAIN, GET_RULE, NEW_RULE};
use super::ruleset::Statement;
use super::table::Table;
use super::wire::{Attributes, Batch, INET, NF_TABLES, message};
use crate::config::{Config, Protocol};
use crate::error::Result;
use crate::sys::netlink::{CREATE, DUMP, attribute, text};

/// The table of firewalld, whose chains end with a rule that refuses the rest.
const REFUSES_AT_END: &str = "firewalld";
/// The port of name servers.
const NAMES: u16 = 53;

const TABLE: u16 = 1;
const CHAIN_OF_RULE: u16 = 2;
const CHAIN_NAME: u16 = 3;
const HANDLE: u16 = 3;
const EXPRESSIONS: u16 = 4;
const USERDATA: u16 = 7;

/// A chain of another table that drops forwarded packets, or those for the host, unless a rule accepts them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dropping {
    /// Whether it judges what is for the host itself, not what passes.
    input: bool,
    family: u8,
    table: String,
    chain: String,
}

impl std::fmt::Display for Dropping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match self.family {
            2 => "ip",
            10 => "ip6",
            _ => "inet",
        };
        write!(f, "{family} {} {}", self.table, self.chain)
    }
}

impl Dropping {
    /// Whether `iptables` made the chain. It refuses to list chains that hold expressions it does not know, `ct` among
    /// them, so there the same must be said in its way.
    fn of_iptables(&self) -> bool {
        self.family != INET && self.table == "filter" && ["FORWARD", "INPUT"].contains(&self.chain.as_str())
    }

    /// The rules: what comes from pods, what answers them, and what a host port leads to them; of what is for the host, the
    /// questions to its name server for pods.
    fn rules(&self, bridge: &str) -> Vec<Vec<Statement>> {
        use Statement::{
            Accept, Answers, AnswersOrRedirectedXt, InputIs, OutputIs, PortIs, ProtocolIs, Redirected,
        };
        if self.input {
            let question = |by| vec![InputIs(bridge.into()), ProtocolIs(by), PortIs(NAMES), Accept];
            return vec![question(Protocol::Udp), question(Protocol::Tcp)];
        }
        let to_pods = || OutputIs(bridge.into());
        let from_pods = vec![InputIs(bridge.into()), Accept];
        if self.of_iptables() {
            return vec![from_pods, vec![to_pods(), AnswersOrRedirectedXt, Accept]];
        }
        vec![from_pods, vec![to_pods(), Answers, Accept], vec![to_pods(), Redirected, Accept]]
    }
}

/// The comment that marks our rules, in nft's form: type 0, length, text with a closing zero. Those for a network beside the
/// first one say its bridge.
fn mark(table: &str, beside: Option<&str>) -> Vec<u8> {
    let bridge = beside.map(|bridge| format!(", bridge {bridge}")).unwrap_or_default();
    let text = format!("pod network {table}{bridge}\0");
    let length = u8::try_from(text.len()).expect("names of tables and links are short");
    [&[0, length], text.as_bytes()].concat()
}

/// Sees to it that pods' traffic passes every chain that would drop it. Chains that cannot be changed are reported.
pub(crate) fn admit(table: &mut Table, config: &Config) -> Result<()> {
    let bridge = config.bridge.as_str();
    let mark = mark(table.name(), config.name.as_ref().map(|_| bridge));
    for chain in dropping(table)?.into_iter().filter(|chain| config.name_server || !chain.input) {
        if holds_mark(table, &chain, &mark)? {
            continue;
        }
        let mut batch = Batch::new();
        for rule in chain.rules(bridge) {
            batch.add_to(chain.family, NEW_RULE, CREATE, |a| {
                a.text(TABLE, &chain.table).text(CHAIN_OF_RULE, &chain.chain);
                a.nest(EXPRESSIONS, |a| rule.iter().for_each(|one| encode::statement(a, one)));
                a.put(USERDATA, &mark);
            });
        }
        match table.execute("let pods pass beside nft table", &batch.finish()) {
            Ok(()) => {
                tracing::info!(%chain, bridge, "this chain drops packets; let those of pods pass")
            }
            Err(error) => tracing::warn!(%chain, bridge, %error, "this chain drops the packets of pods"),
        }
    }
    Ok(())
}

/// Takes our rules out of all chains: those for the first network, or for the one beside it with this bridge.
pub(crate) fn dismiss(table: &mut Table, beside: Option<&str>) -> Result<()> {
    let mark = mark(table.name(), beside);
    let mut ours = Vec::new();
    table.dump(
        "list rules beside nft table",
        &message(NF_TABLES, GET_RULE, DUMP, 0, |_| {}),
        |family, body| {
            if attribute(body, USERDATA) == Some(&mark) {
                let copied = |kind| attribute(body, kind).map(<[u8]>::to_vec).unwrap_or_default();
                ours.push((family, copied(TABLE), copied(CHAIN_OF_RULE), copied(HANDLE)));
            }
        },
    )?;
    for (family, of_table, chain, handle) in ours {
        let mut batch = Batch::new();
        batch.add_to(family, DEL_RULE, 0, |a| {
            a.put(TABLE, &of_table).put(CHAIN_OF_RULE, &chain).put(HANDLE, &handle);
        });
        table.execute("remove our rules beside nft table", &batch.finish())?;
    }
    Ok(())
}

fn dropping(table: &mut Table) -> Result<Vec<Dropping>> {
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const INPUT: [u8; 4] = [0, 0, 0, 1];
    const FORWARD: [u8; 4] = [0, 0, 0, 2];
    const DROP: [u8; 4] = [0; 4];
    let mut found = Vec::new();
    table.dump(
        "list chains beside nft table",
        &message(NF_TABLES, GET_CHAIN, DUMP, 0, |_| {}),
        |family, body| {
            let hook = attribute(body, HOOK).and_then(|hook| attribute(hook, 1));
            let name = |kind| attribute(body, kind).map(text).unwrap_or_default().to_owned();
            if [1, 2, 10].contains(&family)
                && (hook == Some(&FORWARD) || hook == Some(&INPUT))
                && (attribute(body, POLICY) == Some(&DROP) || name(TABLE) == REFUSES_AT_END)
            {
                let input = hook == Some(&INPUT);
                found.push(Dropping { input, family, table: name(TABLE), chain: name(CHAIN_NAME) });
            }
        },
    )?;
    Ok(found)
}

fn holds_mark(table: &mut Table, chain: &Dropping, mark: &[u8]) -> Result<bool> {
    let names = |a: &mut Attributes<'_>| {
        a.text(TABLE, &chain.table).text(CHAIN_OF_RULE, &chain.chain);
    };
    let mut marked = 0;
    table.dump(
        "list rules beside nft table",
        &message(NF_TABLES, GET_RULE, DUMP, chain.family, names),
        |_, body| {
            // Kernels before 4.7 do not filter.
            let here = attribute(body, CHAIN_OF_RULE).map(text) == Some(chain.chain.as_str());
            marked += usize::from(here && attribute(body, USERDATA) == Some(mark));
        },
    )?;
    Ok(marked >= chain.rules("").len())
}
