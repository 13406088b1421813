//! What keeps networks apart: internal ones from everything, isolated ones from each other.
//!
//! Rules by links hold for both families, and for what a pod sends with an address that is not its own.

use super::ruleset::{Chain, Hook, Statement};
use crate::config::Config;

const APART: &str = "apart";
const FROM_ISOLATED: &str = "from-isolated";
const FROM_OPEN: &str = "from-open";

/// The chains; none if nothing is to be kept apart.
pub(super) fn chains(config: &Config) -> Vec<Chain> {
    let internal: Vec<&Config> = config.bridged().filter(|net| net.internal).collect();
    let others: Vec<&Config> = config.bridged().filter(|net| !net.internal).collect();
    let isolates = others.len() > 1 && others.iter().any(|net| net.isolated);
    if internal.is_empty() && !isolates {
        return Vec::new();
    }
    let mut rules: Vec<Vec<Statement>> = internal.into_iter().flat_map(sealed).collect();
    let chain = |name: &str, hook, rules| Chain { name: name.into(), hook, rules };
    if !isolates {
        return vec![chain(APART, Some(Hook::Forward), rules)];
    }
    // What a host port or a Service leads to is for everybody, as are the answers.
    rules.push(vec![Statement::Answers, Statement::Accept]);
    rules.push(vec![Statement::Redirected, Statement::Accept]);
    for net in &others {
        let input = || Statement::InputIs(net.bridge.clone());
        rules.push(vec![input(), Statement::OutputIs(net.bridge.clone()), Statement::Accept]);
        rules.push(vec![input(), Statement::Jump(if net.isolated { FROM_ISOLATED } else { FROM_OPEN })]);
    }
    let to = |net: &&Config| vec![Statement::OutputIs(net.bridge.clone()), Statement::Drop];
    vec![
        chain(FROM_ISOLATED, None, others.iter().map(to).collect()),
        chain(FROM_OPEN, None, others.iter().filter(|net| net.isolated).map(to).collect()),
        chain(APART, Some(Hook::Forward), rules),
    ]
}

/// Nothing leaves an internal network and nothing comes in, not even by a host port.
fn sealed(net: &Config) -> [Vec<Statement>; 2] {
    let bridge = || net.bridge.clone();
    [
        vec![Statement::InputIs(bridge()), Statement::OutputIsNot(bridge()), Statement::Drop],
        vec![Statement::OutputIs(bridge()), Statement::InputIsNot(bridge()), Statement::Drop],
    ]
}
