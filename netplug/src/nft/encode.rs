//! The ruleset as nf_tables messages. Numbers are those of linux/netfilter/nf_tables.h.

use std::net::IpAddr;

use super::pick_encode;
use super::ruleset::{Chain, Net, Ruleset, Statement};
use super::set::{Data, Element, Family, Field, Kind, MapId, SetId};
use super::wire::{Attributes, Batch, INET};
use crate::config::LINK_NAME_MAX;
use crate::sys::netlink::{CREATE, EXCL};

pub(crate) const NEW_TABLE: u8 = 0;
pub(crate) const GET_TABLE: u8 = 1;
pub(crate) const DEL_TABLE: u8 = 2;
pub(crate) const NEW_CHAIN: u8 = 3;
pub(crate) const GET_CHAIN: u8 = 4;
pub(crate) const DEL_CHAIN: u8 = 5;
pub(crate) const NEW_RULE: u8 = 6;
pub(crate) const GET_RULE: u8 = 7;
pub(crate) const DEL_RULE: u8 = 8;
pub(super) const NEW_SET: u8 = 9;
pub(crate) const DEL_SET: u8 = 11;
pub(super) const NEW_ELEMENT: u8 = 12;
pub(super) const GET_ELEMENT: u8 = 13;
pub(crate) const DEL_ELEMENT: u8 = 14;

pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// The first of the 4-byte registers; the older 16-byte register 1 lies over the first four of them.
pub(super) const REGISTER: u32 = 8;
/// The register of verdicts.
pub(super) const VERDICT: u32 = 0;
pub(super) const JUMP: i32 = -3;
pub(super) const GOTO: i32 = -4;
/// The packet's transport protocol (NFT_META_L4PROTO).
pub(super) const LAYER4: u32 = 16;
/// The transport header as a payload's base.
pub(super) const TRANSPORT: u32 = 2;
pub(super) const APPEND: u16 = 0x800;
/// Elements in one message; an attribute is at most 64 KiB.
pub(super) const CHUNK: usize = 400;

// Types of keys and data, as `nft` numbers them (6 bits each when joined). The kernel only keeps them for listing.
pub(super) const TYPE_IPV4: u32 = 7;
pub(super) const TYPE_IPV6: u32 = 8;
pub(super) const TYPE_PROTOCOL: u32 = 12;
pub(super) const TYPE_PORT: u32 = 13;
/// Four bytes in the host's order.
const TYPE_MARK: u32 = 19;

/// What a change takes out of the table and puts into it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Chains that nothing leads to any more once `gone` has gone.
    pub old_chains: Vec<String>,
    pub gone: Vec<Element>,
    pub new_chains: Vec<Chain>,
    pub new: Vec<Element>,
}

impl Change {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Makes the table anew, whatever was there.
pub(crate) fn rebuild(ruleset: &Ruleset) -> Vec<u8> {
    let table = ruleset.table.as_str();
    let mut batch = Batch::new();
    // Deleting what is not there is an error, so it is made first.
    add_table(&mut batch, INET, table);
    delete_table(&mut batch, INET, table);
    add_table(&mut batch, INET, table);
    for (set, number) in SetId::all().zip(1..) {
        add_set(&mut batch, table, set, number);
    }
    chains(&mut batch, table, &ruleset.chains);
    elements(&mut batch, table, NEW_ELEMENT, CREATE, &ruleset.elements);
    batch.finish()
}

/// Removes the table.
pub(crate) fn remove(family: u8, table: &str) -> Vec<u8> {
    let mut batch = Batch::new();
    add_table(&mut batch, family, table);
    delete_table(&mut batch, family, table);
    batch.finish()
}

/// Takes some elements and chains out and puts others in.
pub(crate) fn change(table: &str, change: &Change) -> Vec<u8> {
    let mut batch = Batch::new();
    chains(&mut batch, table, &change.new_chains);
    elements(&mut batch, table, DEL_ELEMENT, 0, &change.gone);
    elements(&mut batch, table, NEW_ELEMENT, CREATE, &change.new);
    for chain in &change.old_chains {
        batch.add(DEL_CHAIN, 0, |a| {
            a.text(1, table).text(3, chain);
        });
    }
    batch.finish()
}

pub(super) fn add_table(batch: &mut Batch, family: u8, table: &str) {
    batch.add_to(family, NEW_TABLE, CREATE, |a| {
        a.text(1, table).number(2, 0);
    });
}

pub(super) fn delete_table(batch: &mut Batch, family: u8, table: &str) {
    batch.add_to(family, DEL_TABLE, 0, |a| {
        a.text(1, table);
    });
}

fn add_set(batch: &mut Batch, table: &str, set: SetId, number: u32) {
    const FLAG_MAP: u32 = 8;
    const FLAG_TIMEOUT: u32 = 0x10;
    const FLAG_FILLED_BY_PACKETS: u32 = 0x20;
    const TYPE_VERDICT: u32 = 0xffff_ff00;
    // Clients remembered at once; further ones get any endpoint.
    const CLIENTS: u32 = 65_536;
    let size = |kinds: &[Kind]| kinds.iter().map(|kind| length(*kind, set.family())).sum::<u32>();
    let joined = |kinds: &[Kind]| kinds.iter().fold(0, |all, kind| all << 6 | type_of(*kind, set.family()));
    let mut flags = FLAG_MAP;
    if set.is_filled_by_packets() {
        flags |= FLAG_TIMEOUT | FLAG_FILLED_BY_PACKETS;
    }
    batch.add(NEW_SET, CREATE | EXCL, |a| {
        a.text(1, table).text(2, set.name()).number(3, flags);
        a.number(4, joined(set.key())).number(5, size(set.key()));
        match set.value() {
            Some(kinds) => {
                a.number(6, joined(kinds)).number(7, size(kinds));
            }
            None => {
                a.number(6, TYPE_VERDICT);
            }
        }
        if set.is_filled_by_packets() {
            a.nest(9, |a| {
                a.number(1, CLIENTS);
            });
        }
        // The set's number within the batch; the kernel wants one even though rules refer to sets by name.
        a.number(10, number);
    });
}

/// Bytes of a part of a key; each begins in a register of its own.
fn length(kind: Kind, family: Family) -> u32 {
    if kind == Kind::Address { family.size() } else { 4 }
}

fn type_of(kind: Kind, family: Family) -> u32 {
    match (kind, family) {
        (Kind::Address, Family::V4) => TYPE_IPV4,
        (Kind::Address, Family::V6) => TYPE_IPV6,
        (Kind::Protocol, _) => TYPE_PROTOCOL,
        (Kind::Port, _) => TYPE_PORT,
        (Kind::Number, _) => TYPE_MARK,
    }
}

/// All chains before their rules, which may jump to any of them.
fn chains(batch: &mut Batch, table: &str, chains: &[Chain]) {
    for chain in chains {
        add_chain(batch, table, chain);
    }
    for chain in chains {
        for rule in &chain.rules {
            add_rule(batch, table, &chain.name, rule);
        }
    }
}

fn add_chain(batch: &mut Batch, table: &str, chain: &Chain) {
    batch.add(NEW_CHAIN, CREATE | EXCL, |a| {
        a.text(1, table).text(3, &chain.name);
        if let Some(hook) = chain.hook {
            let (kind, number, priority) = hook.place();
            a.nest(4, |a| {
                a.number(1, number).put(2, &priority.to_be_bytes());
            });
            a.text(7, kind);
        }
    });
}

fn add_rule(batch: &mut Batch, table: &str, chain: &str, rule: &[Statement]) {
    batch.add(NEW_RULE, CREATE | APPEND, |a| {
        a.text(1, table).text(2, chain).nest(4, |a| {
            for one in rule {
                statement(a, one);
            }
        });
    });
}

fn elements(batch: &mut Batch, table: &str, kind: u8, flags: u16, elements: &[Element]) {
    for set in SetId::all() {
        let mine: Vec<&Element> = elements.iter().filter(|element| element.set == set).collect();
        for chunk in mine.chunks(CHUNK) {
            batch.add(kind, flags, |a| {
                a.text(1, table).text(2, set.name()).nest(3, |a| {
                    for one in chunk {
                        element(a, one, kind == NEW_ELEMENT);
                    }
                });
            });
        }
    }
}

fn element(a: &mut Attributes<'_>, element: &Element, with_data: bool) {
    a.nest(LIST_ELEMENT, |a| {
        a.nest(1, |a| {
            a.put(DATA_VALUE, &bytes(&element.key));
        });
        if with_data {
            a.nest(2, |a| match &element.data {
                Data::Fields(fields) => {
                    a.put(DATA_VALUE, &bytes(fields));
                }
                Data::Goto(chain) => verdict_data(a, GOTO, Some(chain)),
            });
        }
    });
}

pub(super) fn bytes(fields: &[Field]) -> Vec<u8> {
    fields.iter().flat_map(|one| field(*one)).collect()
}

fn field(field: Field) -> Vec<u8> {
    match field {
        Field::Address(ip) => octets(ip),
        Field::Protocol(protocol) => vec![protocol.number(), 0, 0, 0],
        Field::Port(number) => port(number).to_vec(),
        Field::Number(number) => number.to_ne_bytes().to_vec(),
    }
}

pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A port in a register of its own.
pub(super) fn port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

pub(super) fn expression(a: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    a.nest(LIST_ELEMENT, |a| {
        a.text(1, name).nest(2, fill);
    });
}

/// The expressions of one statement.
pub(crate) fn statement(a: &mut Attributes<'_>, statement: &Statement) {
    const INPUT_NAME: u32 = 6;
    const OUTPUT_NAME: u32 = 7;
    use tracking::{DST_NAT, ESTABLISHED, INVALID, NEW, RELATED, STATE, STATUS};
    match statement {
        Statement::InputIs(link) => link_name(a, INPUT_NAME, link, true),
        Statement::InputIsNot(link) => link_name(a, INPUT_NAME, link, false),
        Statement::OutputIs(link) => link_name(a, OUTPUT_NAME, link, true),
        Statement::OutputIsNot(link) => link_name(a, OUTPUT_NAME, link, false),
        Statement::Source(net) => network(a, *net, false, true),
        Statement::Destination(net) => network(a, *net, true, true),
        Statement::DestinationNot(net) => network(a, *net, true, false),
        Statement::DestinationIsLocal => destination_is_local(a),
        Statement::Redirected => connection(a, STATUS, DST_NAT),
        Statement::Answers => connection(a, STATE, ESTABLISHED | RELATED),
        Statement::AnswersOrRedirectedXt => xt_conntrack(a),
        Statement::Accept => verdict(a, 1, None),
        Statement::Drop => verdict(a, 0, None),
        Statement::Jump(chain) => verdict(a, JUMP, Some(chain)),
        Statement::Masquerade => expression(a, "masq", |_| {}),
        Statement::RedirectBy(map) => redirect(a, *map),
        Statement::PortIs(port) => {
            payload(a, 2, 2, 2, REGISTER);
            compare(a, true, &port.to_be_bytes());
        }
        Statement::ProtocolIs(protocol) => {
            meta(a, LAYER4, REGISTER);
            compare(a, true, &[protocol.number()]);
        }
        Statement::Serve(of, entry) => pick_encode::serve(a, *of, *entry),
        Statement::Pick(of, entry, count) => pick_encode::pick(a, *of, *entry, *count),
        Statement::Again(of) => pick_encode::again(a, *of),
        Statement::IsNew => connection(a, STATE, NEW),
        Statement::IsStray => connection(a, STATE, INVALID),
        Statement::Member(of, entry) => pick_encode::member(a, *of, *entry),
        Statement::Remember(of, time) => pick_encode::remember(a, *of, *time),
        Statement::Reset => reject(a, 1),
        Statement::Reject => reject(a, 2),
    }
}

pub(super) fn reject(a: &mut Attributes<'_>, kind: u32) {
    const RESET: u32 = 1;
    const PORT_UNREACHABLE: u8 = 1;
    expression(a, "reject", |a| {
        let code = if kind == RESET { 0 } else { PORT_UNREACHABLE };
        a.number(1, kind).put(2, &[code]);
    });
}

/// Loads the transport protocol and the port that the packet goes to into `register` and the one after it.
pub(super) fn port_asked(a: &mut Attributes<'_>, register: u32) {
    meta(a, LAYER4, register);
    payload(a, TRANSPORT, 2, 2, register + 1);
}

/// Looks up what is in the registers from `key`; matches if it is there. What it leads to gets into the registers from
/// `value`, or is carried out, if that is [`VERDICT`].
pub(super) fn lookup(a: &mut Attributes<'_>, set: SetId, key: u32, value: u32) {
    expression(a, "lookup", |a| {
        a.text(1, set.name()).number(2, key).number(3, value);
    });
}

/// Rewrites the destination to what is in the registers: the address from `register` and the port after it.
pub(super) fn redirect_to(a: &mut Attributes<'_>, of: Family, register: u32) {
    expression(a, "nat", |a| {
        const DESTINATION: u32 = 1;
        let number = if of == Family::V4 { 2 } else { 10 };
        a.number(1, DESTINATION).number(2, number).number(3, register).number(5, register + of.size() / 4);
    });
}

fn compare(a: &mut Attributes<'_>, equal: bool, value: &[u8]) {
    expression(a, "cmp", |a| {
        a.number(1, REGISTER).number(2, u32::from(!equal)).nest(3, |a| {
            a.put(DATA_VALUE, value);
        });
    });
}

pub(super) fn meta(a: &mut Attributes<'_>, key: u32, register: u32) {
    expression(a, "meta", |a| {
        a.number(1, register).number(2, key);
    });
}

pub(super) fn link_name(a: &mut Attributes<'_>, key: u32, link: &str, equal: bool) {
    let mut name = [0; LINK_NAME_MAX + 1];
    name[..link.len()].copy_from_slice(link.as_bytes());
    meta(a, key, REGISTER);
    compare(a, equal, &name);
}

pub(super) fn family(a: &mut Attributes<'_>, family: Family) {
    const NFPROTO: u32 = 15;
    meta(a, NFPROTO, REGISTER);
    compare(a, true, &[if family == Family::V4 { 2 } else { 10 }]);
}

/// Loads bytes of the network header (base 1) or the transport header (base 2).
pub(super) fn payload(a: &mut Attributes<'_>, base: u32, offset: u32, length: u32, register: u32) {
    expression(a, "payload", |a| {
        a.number(1, register).number(2, base).number(3, offset).number(4, length);
    });
}

/// Loads the source or destination address.
pub(super) fn address(a: &mut Attributes<'_>, of: Family, destination: bool, register: u32) {
    let (offset, length) = if of == Family::V4 { (12, 4) } else { (8, 16) };
    payload(a, 1, if destination { offset + length } else { offset }, length, register);
}

fn network(a: &mut Attributes<'_>, net: Net, destination: bool, equal: bool) {
    let (of, mask, base) = match net {
        Net::V4(net) => (Family::V4, net.mask().octets().to_vec(), net.network().octets().to_vec()),
        Net::V6(net) => (Family::V6, net.mask().octets().to_vec(), net.network().octets().to_vec()),
    };
    family(a, of);
    address(a, of, destination, REGISTER);
    expression(a, "bitwise", |a| {
        let length = u32::try_from(mask.len()).expect("an address is 4 or 16 bytes");
        a.number(1, REGISTER).number(2, REGISTER).number(3, length);
        a.nest(4, |a| {
            a.put(DATA_VALUE, &mask);
        });
        a.nest(5, |a| {
            a.put(DATA_VALUE, &vec![0; mask.len()]);
        });
    });
    compare(a, equal, &base);
}

fn destination_is_local(a: &mut Attributes<'_>) {
    const ADDRESS_TYPE: u32 = 3;
    const OF_DESTINATION: u32 = 2;
    const RTN_LOCAL: u32 = 2;
    expression(a, "fib", |a| {
        a.number(1, REGISTER).number(2, ADDRESS_TYPE).number(3, OF_DESTINATION);
    });
    compare(a, true, &RTN_LOCAL.to_ne_bytes());
}

/// What connection tracking can be asked (enum nft_ct_keys), and bits of the answers (linux/netfilter/nf_conntrack_common.h).
pub(super) mod tracking {
    pub(crate) const STATE: u32 = 0;
    pub(crate) const INVALID: u32 = 0b1;
    pub(crate) const ESTABLISHED: u32 = 0b10;
    pub(crate) const RELATED: u32 = 0b100;
    pub(crate) const NEW: u32 = 0b1000;
    pub(crate) const DIRECTION: u32 = 1;
    pub(crate) const STATUS: u32 = 2;
    pub(crate) const DST_NAT: u32 = 0x20;
}

/// Loads what connection tracking says to `key`.
pub(super) fn tracked(a: &mut Attributes<'_>, key: u32) {
    expression(a, "ct", |a| {
        a.number(1, REGISTER).number(2, key);
    });
}

/// Matches if the connection has one of `bits` in what `key` names.
pub(super) fn connection(a: &mut Attributes<'_>, key: u32, bits: u32) {
    tracked(a, key);
    mask(a, &bits.to_ne_bytes());
    compare(a, false, &[0; 4]);
}

/// Leaves these bits of what was loaded.
pub(super) fn mask(a: &mut Attributes<'_>, bits: &[u8]) {
    expression(a, "bitwise", |a| {
        a.number(1, REGISTER).number(2, REGISTER).number(3, bits.len() as u32);
        a.nest(4, |a| {
            a.put(DATA_VALUE, bits);
        });
        a.nest(5, |a| {
            a.put(DATA_VALUE, &vec![0; bits.len()]);
        });
    });
}

/// `-m conntrack --ctstate RELATED,ESTABLISHED,DNAT` (struct xt_conntrack_mtinfo3 of linux/netfilter/xt_conntrack.h).
fn xt_conntrack(a: &mut Attributes<'_>) {
    const SIZE: usize = 168;
    const MATCH_FLAGS: usize = 146;
    const STATE_MASK: usize = 150;
    const BY_STATE: u16 = 1 << 0;
    const ESTABLISHED_RELATED_DNAT: u16 = 1 << 1 | 1 << 2 | 1 << 7;
    let mut info = [0; SIZE];
    info[MATCH_FLAGS..MATCH_FLAGS + 2].copy_from_slice(&BY_STATE.to_ne_bytes());
    info[STATE_MASK..STATE_MASK + 2].copy_from_slice(&ESTABLISHED_RELATED_DNAT.to_ne_bytes());
    expression(a, "match", |a| {
        a.text(1, "conntrack").number(2, 3).put(3, &info);
    });
}

pub(super) fn verdict(a: &mut Attributes<'_>, code: i32, chain: Option<&str>) {
    expression(a, "immediate", |a| {
        a.number(1, 0).nest(2, |a| verdict_data(a, code, chain));
    });
}

pub(super) fn verdict_data(a: &mut Attributes<'_>, code: i32, chain: Option<&str>) {
    a.nest(DATA_VERDICT, |a| {
        a.put(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            a.text(2, chain);
        }
    });
}

fn redirect(a: &mut Attributes<'_>, map: MapId) {
    family(a, map.family);
    let mut register = REGISTER;
    if map.by_address {
        address(a, map.family, true, register);
        register += map.family.size() / 4;
    }
    port_asked(a, register);
    lookup(a, SetId::HostPorts(map), REGISTER, REGISTER);
    redirect_to(a, map.family, REGISTER);
}
