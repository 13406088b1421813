//! The ruleset as nf_tables messages. Numbers are those of linux/netfilter/nf_tables.h.

use std::net::IpAddr;

use super::ruleset::{Chain, Element, Family, MapId, Net, Ruleset, Statement};
use super::wire::{Attributes, Batch};
use crate::config::LINK_NAME_MAX;
use crate::sys::netlink::{CREATE, EXCL};

pub(crate) const NEW_TABLE: u8 = 0;
pub(crate) const GET_TABLE: u8 = 1;
pub(crate) const DEL_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
pub(crate) const GET_CHAIN: u8 = 4;
pub(crate) const DEL_CHAIN: u8 = 5;
pub(crate) const NEW_RULE: u8 = 6;
pub(crate) const GET_RULE: u8 = 7;
pub(crate) const DEL_RULE: u8 = 8;
const NEW_SET: u8 = 9;
pub(crate) const DEL_SET: u8 = 11;
const NEW_ELEMENT: u8 = 12;
pub(crate) const DEL_ELEMENT: u8 = 14;

const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// The first of the 4-byte registers; the older 16-byte register 1 lies over the first four of them.
const REGISTER: u32 = 8;
const APPEND: u16 = 0x800;
/// Elements in one message; an attribute is at most 64 KiB.
const CHUNK: usize = 400;

// Types of keys and data, as `nft` numbers them (6 bits each when joined). The kernel only keeps them for listing.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;

/// Makes the table anew, whatever was there.
pub(crate) fn rebuild(ruleset: &Ruleset) -> Vec<u8> {
    let table = ruleset.table.as_str();
    let mut batch = Batch::new();
    // Deleting what is not there is an error, so it is made first.
    add_table(&mut batch, table);
    delete_table(&mut batch, table);
    add_table(&mut batch, table);
    for map in MapId::ALL {
        add_map(&mut batch, table, map);
    }
    for chain in &ruleset.chains {
        add_chain(&mut batch, table, chain);
    }
    for chain in &ruleset.chains {
        for rule in &chain.rules {
            add_rule(&mut batch, table, chain.name, rule);
        }
    }
    elements(&mut batch, table, NEW_ELEMENT, CREATE, &ruleset.elements);
    batch.finish()
}

/// Removes the table.
pub(crate) fn remove(table: &str) -> Vec<u8> {
    let mut batch = Batch::new();
    add_table(&mut batch, table);
    delete_table(&mut batch, table);
    batch.finish()
}

/// Takes some elements out and puts others in.
pub(crate) fn change(table: &str, gone: &[Element], new: &[Element]) -> Vec<u8> {
    let mut batch = Batch::new();
    elements(&mut batch, table, DEL_ELEMENT, 0, gone);
    elements(&mut batch, table, NEW_ELEMENT, CREATE, new);
    batch.finish()
}

fn add_table(batch: &mut Batch, table: &str) {
    batch.add(NEW_TABLE, CREATE, |a| {
        a.text(1, table).number(2, 0);
    });
}

fn delete_table(batch: &mut Batch, table: &str) {
    batch.add(DEL_TABLE, 0, |a| {
        a.text(1, table);
    });
}

fn add_map(batch: &mut Batch, table: &str, map: MapId) {
    const FLAG_MAP: u32 = 8;
    let (address, size) = if map.family == Family::V4 { (TYPE_IPV4, 4) } else { (TYPE_IPV6, 16) };
    let key = TYPE_PROTOCOL << 6 | TYPE_PORT;
    let (key, key_size) = if map.by_address { (address << 12 | key, size + 8) } else { (key, 8) };
    batch.add(NEW_SET, CREATE | EXCL, |a| {
        a.text(1, table).text(2, map.name()).number(3, FLAG_MAP).number(4, key).number(5, key_size);
        a.number(6, address << 6 | TYPE_PORT).number(7, size + 4);
        // The set's number within the batch; the kernel wants one even though rules refer to sets by name.
        a.number(10, u32::from(map.by_address) << 1 | u32::from(map.family == Family::V6));
    });
}

fn add_chain(batch: &mut Batch, table: &str, chain: &Chain) {
    batch.add(NEW_CHAIN, CREATE | EXCL, |a| {
        a.text(1, table).text(3, chain.name);
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
    for map in MapId::ALL {
        let mine: Vec<&Element> = elements.iter().filter(|element| element.map == map).collect();
        for chunk in mine.chunks(CHUNK) {
            batch.add(kind, flags, |a| {
                a.text(1, table).text(2, map.name()).nest(3, |a| {
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
        let mut key = Vec::with_capacity(24);
        key.extend(element.host_ip.map(octets).unwrap_or_default());
        key.extend([element.protocol.number(), 0, 0, 0]);
        key.extend(port(element.host_port));
        a.nest(1, |a| {
            a.put(DATA_VALUE, &key);
        });
        if with_data {
            let mut data = octets(element.pod_ip);
            data.extend(port(element.container_port));
            a.nest(2, |a| {
                a.put(DATA_VALUE, &data);
            });
        }
    });
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A port in a register of its own.
fn port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn expression(a: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    a.nest(LIST_ELEMENT, |a| {
        a.text(1, name).nest(2, fill);
    });
}

/// The expressions of one statement.
pub(crate) fn statement(a: &mut Attributes<'_>, statement: &Statement) {
    const INPUT_NAME: u32 = 6;
    const OUTPUT_NAME: u32 = 7;
    const STATE: u32 = 0;
    const ESTABLISHED_OR_RELATED: u32 = 0b110;
    const STATUS: u32 = 2;
    const DST_NAT: u32 = 0x20;
    match statement {
        Statement::InputIs(link) => link_name(a, INPUT_NAME, link, true),
        Statement::OutputIs(link) => link_name(a, OUTPUT_NAME, link, true),
        Statement::OutputIsNot(link) => link_name(a, OUTPUT_NAME, link, false),
        Statement::Source(net) => network(a, *net, false, true),
        Statement::Destination(net) => network(a, *net, true, true),
        Statement::DestinationNot(net) => network(a, *net, true, false),
        Statement::DestinationIsLocal => destination_is_local(a),
        Statement::Redirected => connection(a, STATUS, DST_NAT),
        Statement::Answers => connection(a, STATE, ESTABLISHED_OR_RELATED),
        Statement::AnswersOrRedirectedXt => xt_conntrack(a),
        Statement::Accept => verdict(a, 1, None),
        Statement::Drop => verdict(a, 0, None),
        Statement::Jump(chain) => verdict(a, -3, Some(chain)),
        Statement::Masquerade => expression(a, "masq", |_| {}),
        Statement::RedirectBy(map) => redirect(a, *map),
    }
}

fn compare(a: &mut Attributes<'_>, equal: bool, value: &[u8]) {
    expression(a, "cmp", |a| {
        a.number(1, REGISTER).number(2, u32::from(!equal)).nest(3, |a| {
            a.put(DATA_VALUE, value);
        });
    });
}

fn meta(a: &mut Attributes<'_>, key: u32, register: u32) {
    expression(a, "meta", |a| {
        a.number(1, register).number(2, key);
    });
}

fn link_name(a: &mut Attributes<'_>, key: u32, link: &str, equal: bool) {
    let mut name = [0; LINK_NAME_MAX + 1];
    name[..link.len()].copy_from_slice(link.as_bytes());
    meta(a, key, REGISTER);
    compare(a, equal, &name);
}

fn family(a: &mut Attributes<'_>, family: Family) {
    const NFPROTO: u32 = 15;
    meta(a, NFPROTO, REGISTER);
    compare(a, true, &[if family == Family::V4 { 2 } else { 10 }]);
}

/// Loads bytes of the network header (base 1) or the transport header (base 2).
fn payload(a: &mut Attributes<'_>, base: u32, offset: u32, length: u32, register: u32) {
    expression(a, "payload", |a| {
        a.number(1, register).number(2, base).number(3, offset).number(4, length);
    });
}

/// Loads the source or destination address.
fn address(a: &mut Attributes<'_>, of: Family, destination: bool, register: u32) {
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

/// Matches if the connection has one of the bits of `mask` in what `key` names.
fn connection(a: &mut Attributes<'_>, key: u32, mask: u32) {
    expression(a, "ct", |a| {
        a.number(1, REGISTER).number(2, key);
    });
    expression(a, "bitwise", |a| {
        a.number(1, REGISTER).number(2, REGISTER).number(3, 4);
        a.nest(4, |a| {
            a.put(DATA_VALUE, &mask.to_ne_bytes());
        });
        a.nest(5, |a| {
            a.put(DATA_VALUE, &[0; 4]);
        });
    });
    compare(a, false, &[0; 4]);
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

fn verdict(a: &mut Attributes<'_>, code: i32, chain: Option<&str>) {
    expression(a, "immediate", |a| {
        a.number(1, 0).nest(2, |a| {
            a.nest(DATA_VERDICT, |a| {
                a.put(1, &code.to_be_bytes());
                if let Some(chain) = chain {
                    a.text(2, chain);
                }
            });
        });
    });
}

fn redirect(a: &mut Attributes<'_>, map: MapId) {
    const LAYER4: u32 = 16;
    const TRANSPORT: u32 = 2;
    let address_registers = if map.family == Family::V4 { 1 } else { 4 };
    family(a, map.family);
    let mut register = REGISTER;
    if map.by_address {
        address(a, map.family, true, register);
        register += address_registers;
    }
    meta(a, LAYER4, register);
    payload(a, TRANSPORT, 2, 2, register + 1);
    expression(a, "lookup", |a| {
        a.text(1, map.name()).number(2, REGISTER).number(3, REGISTER);
    });
    expression(a, "nat", |a| {
        const DESTINATION: u32 = 1;
        let family = if map.family == Family::V4 { 2 } else { 10 };
        a.number(1, DESTINATION)
            .number(2, family)
            .number(3, REGISTER)
            .number(5, REGISTER + address_registers);
    });
}
