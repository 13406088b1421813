//! Tables of policies as nf_tables messages. Numbers are those of linux/netfilter/nf_tables.h.

use super::chains::{End, Payload, Sender, Statement};
use super::{Chain, Contents, Datum, Element, Form, Part, Set, Verdict, ranges};
use crate::config::LINK_NAME_MAX;
use crate::nft::encode::{
    APPEND, CHUNK, DATA_VALUE, DEL_CHAIN, DEL_ELEMENT, DEL_RULE, DEL_SET, GOTO, JUMP, LAYER4, LIST_ELEMENT,
    NEW_CHAIN, NEW_ELEMENT, NEW_RULE, NEW_SET, REGISTER, TRANSPORT, TYPE_IPV4, TYPE_IPV6, TYPE_PORT,
    TYPE_PROTOCOL, VERDICT, add_table, address, connection, delete_table, expression, family, link_name,
    mask, meta, octets, payload, port, port_asked, reject, tracked, tracking, verdict, verdict_data,
};
use crate::nft::set::Family;
use crate::nft::wire::{Attributes, BRIDGE, Batch, INET};
use crate::sys::netlink::{CREATE, EXCL};

const TABLE: u16 = 1;
/// The link-layer and the network header as a payload's base.
const LINK: u32 = 0;
const NETWORK: u32 = 1;
const INPUT_NAME: u32 = 6;
const OUTPUT_NAME: u32 = 7;

fn family_of(contents: &Contents) -> u8 {
    if contents.bridge { BRIDGE } else { INET }
}

/// Makes the table anew, whatever was there.
pub(crate) fn rebuild(contents: &Contents) -> Vec<u8> {
    let (mut batch, of) = (Batch::new(), family_of(contents));
    // Deleting what is not there is an error, so it is made first.
    add_table(&mut batch, of, &contents.name);
    delete_table(&mut batch, of, &contents.name);
    add_table(&mut batch, of, &contents.name);
    let nothing = Contents {
        sets: Default::default(),
        chains: Default::default(),
        elements: Default::default(),
        ..contents.clone()
    };
    lead(&mut batch, &nothing, contents);
    batch.finish()
}

/// Makes of one state of a table another one in one step; `None` if they do not differ.
pub(crate) fn change(old: &Contents, new: &Contents) -> Option<Vec<u8>> {
    if old == new {
        return None;
    }
    let mut batch = Batch::new();
    lead(&mut batch, old, new);
    Some(batch.finish())
}

/// First all that others refer to, then who refers to it, then what nobody refers to any more goes.
fn lead(batch: &mut Batch, old: &Contents, new: &Contents) {
    let (of, table) = (family_of(new), new.name.as_str());
    let (mut number, mut old_sets) = (0, Vec::new());
    for (name, set) in new.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name)) {
        number += 1;
        add_set(batch, of, table, (name, set, number));
    }
    for (name, chain) in new.chains.iter().filter(|(name, _)| !old.chains.contains_key(*name)) {
        add_chain(batch, of, table, name, chain);
    }
    let dropped =
        old.elements.difference(&new.elements).filter(|element| new.sets.contains_key(&element.set));
    elements(batch, (of, table, DEL_ELEMENT), dropped, new);
    let names = |batch: &mut Batch, kind, name: &str, place| {
        batch.add_to(of, kind, 0, |a| {
            a.text(TABLE, table).text(place, name);
        });
    };
    for (name, _) in old.chains.iter().filter(|(name, chain)| new.chains.get(*name) != Some(chain)) {
        names(batch, DEL_RULE, name, 2);
    }
    for (name, chain) in new.chains.iter().filter(|(name, chain)| old.chains.get(*name) != Some(chain)) {
        chain.rules.iter().for_each(|rule| add_rule(batch, of, table, name, rule));
    }
    elements(batch, (of, table, NEW_ELEMENT), new.elements.difference(&old.elements), new);
    for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
        names(batch, DEL_CHAIN, name, 3);
    }
    old_sets.extend(old.sets.keys().filter(|name| !new.sets.contains_key(*name)));
    for name in old_sets {
        names(batch, DEL_SET, name, 2);
    }
}

fn add_set(batch: &mut Batch, of: u8, table: &str, (name, set, number): (&str, &Set, u32)) {
    const RANGES: u32 = 4;
    const MAP: u32 = 8;
    const TYPE_VERDICT: u32 = 0xffff_ff00;
    let flags = match set.form {
        Form::Plain => 0,
        Form::Ranges => RANGES,
        Form::Verdicts => MAP,
    };
    batch.add_to(of, NEW_SET, CREATE | EXCL, |a| {
        a.text(TABLE, table).text(2, name).number(3, flags);
        a.number(4, set.key.iter().fold(0, |all, part| all << 6 | type_of(*part)));
        a.number(5, set.key.iter().map(|part| length(*part)).sum());
        if set.form == Form::Verdicts {
            a.number(6, TYPE_VERDICT);
        }
        a.number(10, number);
    });
}

/// As `nft` numbers them; the kernel only keeps them for listing.
fn type_of(part: Part) -> u32 {
    match part {
        Part::Link => 41,
        Part::Hardware => 9,
        Part::Address(Family::V4) => TYPE_IPV4,
        Part::Address(Family::V6) => TYPE_IPV6,
        Part::Protocol => TYPE_PROTOCOL,
        Part::Port => TYPE_PORT,
    }
}

/// Bytes of a part of a key; each begins in a register of its own.
fn length(part: Part) -> u32 {
    match part {
        Part::Link => 16,
        Part::Hardware => 8,
        Part::Address(family) => family.size(),
        Part::Protocol | Part::Port => 4,
    }
}

fn bytes(datum: &Datum) -> Vec<u8> {
    match datum {
        Datum::Link(name) => {
            let mut bytes = vec![0; LINK_NAME_MAX + 1];
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            bytes
        }
        Datum::Hardware(address) => [&address[..], &[0, 0]].concat(),
        Datum::Address(ip) => octets(*ip),
        Datum::Protocol(protocol) => vec![protocol.number(), 0, 0, 0],
        Datum::Port(number) => port(*number).to_vec(),
    }
}

fn elements<'a>(
    batch: &mut Batch,
    (of, table, kind): (u8, &str, u8),
    elements: impl Iterator<Item = &'a Element>,
    contents: &Contents,
) {
    let elements: Vec<&Element> = elements.collect();
    let flags = if kind == NEW_ELEMENT { CREATE } else { 0 };
    // They are in the order of their sets.
    for of_set in elements.chunk_by(|a, b| a.set == b.set) {
        let name = &of_set[0].set;
        let is_map = contents.sets.get(name).is_some_and(|set| set.form == Form::Verdicts);
        for chunk in of_set.chunks(CHUNK / 2) {
            batch.add_to(of, kind, flags, |a| {
                a.text(TABLE, table).text(2, name).nest(3, |a| {
                    for one in chunk {
                        element(a, one, is_map && kind == NEW_ELEMENT);
                    }
                });
            });
        }
    }
}

fn element(a: &mut Attributes<'_>, element: &Element, with_verdict: bool) {
    const END_OF_RANGE: u32 = 1;
    let key: Vec<u8> = element.key.iter().flat_map(bytes).collect();
    let put_key = |a: &mut Attributes<'_>, key: &[u8]| {
        a.nest(1, |a| {
            a.put(DATA_VALUE, key);
        });
    };
    a.nest(LIST_ELEMENT, |a| {
        put_key(a, &key);
        if with_verdict {
            a.nest(2, |a| match &element.verdict {
                Some(Verdict::Goto(chain)) => verdict_data(a, GOTO, Some(chain)),
                _ => verdict_data(a, 1, None),
            });
        }
    });
    // What comes after the range; a range up to the last address has no end.
    if let Some(end) = element.last.and_then(ranges::next) {
        a.nest(LIST_ELEMENT, |a| {
            put_key(a, &octets(end));
            a.number(3, END_OF_RANGE);
        });
    }
}

fn add_chain(batch: &mut Batch, of: u8, table: &str, name: &str, chain: &Chain) {
    batch.add_to(of, NEW_CHAIN, CREATE | EXCL, |a| {
        a.text(TABLE, table).text(3, name);
        if let Some(hook) = chain.hook {
            let (number, priority) = hook.place();
            a.nest(4, |a| {
                a.number(1, number).put(2, &priority.to_be_bytes());
            });
            a.text(7, "filter");
        }
    });
}

fn add_rule(batch: &mut Batch, of: u8, table: &str, chain: &str, rule: &[Statement]) {
    batch.add_to(of, NEW_RULE, CREATE | APPEND, |a| {
        a.text(TABLE, table).text(2, chain).nest(4, |a| {
            for one in rule {
                statement(a, one);
            }
        });
    });
}

fn statement(a: &mut Attributes<'_>, statement: &Statement) {
    match statement {
        Statement::InputIsNot(link) => link_name(a, INPUT_NAME, link, false),
        Statement::OutputIsNot(link) => link_name(a, OUTPUT_NAME, link, false),
        Statement::BothAre(link) => {
            link_name(a, INPUT_NAME, link, true);
            link_name(a, OUTPUT_NAME, link, true);
        }
        Statement::NotRedirected | Statement::Reply | Statement::Related | Statement::Torn => {
            of_connection(a, statement)
        }
        Statement::Judge(of, end, map) => {
            family(a, *of);
            address(a, *of, *end == End::Destination, REGISTER);
            ask(a, map, Some(VERDICT));
        }
        Statement::Within(of, end, set) => {
            family(a, *of);
            address(a, *of, *end == End::Destination, REGISTER);
            ask(a, set, None);
        }
        Statement::PairWithin(of, set) => {
            family(a, *of);
            address(a, *of, false, REGISTER);
            address(a, *of, true, REGISTER + of.size() / 4);
            ask(a, set, None);
        }
        Statement::PortWithin(set) => {
            port_asked(a, REGISTER);
            ask(a, set, None);
        }
        Statement::TargetWithin(of, set) => {
            family(a, *of);
            address(a, *of, true, REGISTER);
            port_asked(a, REGISTER + of.size() / 4);
            ask(a, set, None);
        }
        Statement::PortFrom(protocol, first, last) => {
            is_protocol(a, protocol.number());
            payload(a, TRANSPORT, 2, 2, REGISTER);
            compare(a, AT_LEAST, &first.to_be_bytes());
            compare(a, AT_MOST, &last.to_be_bytes());
        }
        Statement::IsIp6 => family(a, Family::V6),
        Statement::ProtocolIs(protocol) => is_protocol(a, protocol.number()),
        Statement::Accept => verdict(a, 1, None),
        Statement::Drop => verdict(a, 0, None),
        Statement::Reset => reject(a, 1),
        Statement::Jump(chain) => verdict(a, JUMP, Some(chain)),
        Statement::Goto(chain) => verdict(a, GOTO, Some(chain)),
        Statement::JudgeLink(_)
        | Statement::Carries(_)
        | Statement::SenderWithin(..)
        | Statement::Icmp6(..)
        | Statement::ToBridge(_) => frame(a, statement),
    }
}

/// What connection tracking knows of a packet.
fn of_connection(a: &mut Attributes<'_>, statement: &Statement) {
    use tracking::{DIRECTION, DST_NAT, ESTABLISHED, NEW, RELATED, STATE, STATUS};
    const TCP: u8 = 6;
    const SYN: u8 = 2;
    match statement {
        Statement::Reply => {
            const REPLY: u8 = 1;
            tracked(a, DIRECTION);
            compare(a, EQUAL, &[REPLY]);
            connection(a, STATE, ESTABLISHED);
        }
        Statement::Related => connection(a, STATE, RELATED),
        Statement::NotRedirected => {
            tracked(a, STATUS);
            mask(a, &DST_NAT.to_ne_bytes());
            compare(a, EQUAL, &[0; 4]);
        }
        _ => {
            is_protocol(a, TCP);
            connection(a, STATE, NEW);
            payload(a, TRANSPORT, 13, 1, REGISTER);
            mask(a, &[SYN]);
            compare(a, EQUAL, &[0]);
        }
    }
}

/// What a frame is, as the bridge sees it.
fn frame(a: &mut Attributes<'_>, statement: &Statement) {
    const ETHERTYPE: u32 = 1;
    const ICMPV6: u8 = 58;
    match statement {
        Statement::JudgeLink(map) => {
            meta(a, INPUT_NAME, REGISTER);
            ask(a, map, Some(VERDICT));
        }
        Statement::Carries(carried) => {
            let number: u16 = match carried {
                Payload::Arp => 0x0806,
                Payload::Ip(Family::V4) => 0x0800,
                Payload::Ip(Family::V6) => 0x86dd,
            };
            meta(a, ETHERTYPE, REGISTER);
            compare(a, EQUAL, &number.to_be_bytes());
        }
        Statement::SenderWithin(sender, set) => said_sender(a, *sender, set),
        Statement::Icmp6(first, last) => {
            is_protocol(a, ICMPV6);
            payload(a, TRANSPORT, 0, 1, REGISTER);
            compare(a, AT_LEAST, &[*first]);
            compare(a, AT_MOST, &[*last]);
        }
        Statement::ToBridge(hardware) => to_bridge(a, hardware),
        _ => {}
    }
}

fn said_sender(a: &mut Attributes<'_>, sender: Sender, set: &str) {
    const NAME: u32 = 4;
    const HARDWARE: u32 = 2;
    let (hardware, ip) = (REGISTER + NAME, REGISTER + NAME + HARDWARE);
    meta(a, INPUT_NAME, REGISTER);
    match sender {
        // RFC 826: after types, lengths and operation, 8 bytes, come the sender's two addresses.
        Sender::InArp => payload(a, NETWORK, 8, 6, hardware),
        _ => payload(a, LINK, 6, 6, hardware),
    }
    match sender {
        Sender::Arp | Sender::InArp => payload(a, NETWORK, 14, 4, ip),
        Sender::Ip(of) => address(a, of, false, ip),
        // RFC 4861, 4.4: the target comes after type, code, checksum and flags.
        Sender::Advertised => payload(a, TRANSPORT, 8, 16, ip),
    }
    ask(a, set, None);
}

fn to_bridge(a: &mut Attributes<'_>, hardware: &[u8; 6]) {
    const PACKET_TYPE: u32 = 19;
    const HOST: u8 = 0;
    let load = |a: &mut Attributes<'_>, value: &[u8]| {
        expression(a, "immediate", |a| {
            a.number(1, REGISTER).nest(2, |a| {
                a.put(DATA_VALUE, value);
            });
        });
    };
    load(a, hardware);
    expression(a, "payload", |a| {
        // Base, offset, length, register to take it from; no checksum.
        a.number(2, LINK).number(3, 0).number(4, 6).number(5, REGISTER).number(6, 0).number(7, 0);
    });
    load(a, &[HOST]);
    expression(a, "meta", |a| {
        a.number(2, PACKET_TYPE).number(3, REGISTER);
    });
}

const EQUAL: u32 = 0;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;

fn compare(a: &mut Attributes<'_>, how: u32, value: &[u8]) {
    expression(a, "cmp", |a| {
        a.number(1, REGISTER).number(2, how).nest(3, |a| {
            a.put(DATA_VALUE, value);
        });
    });
}

fn is_protocol(a: &mut Attributes<'_>, number: u8) {
    meta(a, LAYER4, REGISTER);
    compare(a, EQUAL, &[number]);
}

/// Looks up what is in the registers; with `to`, what it leads to gets there.
fn ask(a: &mut Attributes<'_>, set: &str, to: Option<u32>) {
    expression(a, "lookup", |a| {
        a.text(1, set).number(2, REGISTER);
        if let Some(register) = to {
            a.number(3, register);
        }
    });
}
