//! How an endpoint is picked, in expressions of nf_tables. A key lies in registers one after the other, from the first.

use std::time::Duration;

use super::encode::{
    LAYER4, REGISTER, TRANSPORT, VERDICT, address, expression, family, lookup, meta, payload, port_asked,
    redirect_to,
};
use super::set::{Entry, Family, SetId};
use super::wire::Attributes;

/// Registers of an address.
fn width(family: Family) -> u32 {
    family.size() / 4
}

/// Loads what a packet asks for; returns the register after it.
fn target(a: &mut Attributes<'_>, of: Family, entry: Entry) -> u32 {
    let mut register = REGISTER;
    family(a, of);
    if entry == Entry::Address {
        address(a, of, true, register);
        register += width(of);
    }
    port_asked(a, register);
    register + 2
}

pub(super) fn serve(a: &mut Attributes<'_>, of: Family, entry: Entry) {
    target(a, of, entry);
    lookup(a, SetId::Services(of, entry), REGISTER, VERDICT);
}

pub(super) fn pick(a: &mut Attributes<'_>, of: Family, entry: Entry, count: u32) {
    const RANDOM: u32 = 1;
    let number = target(a, of, entry);
    expression(a, "numgen", |a| {
        a.number(1, number).number(2, count).number(3, RANDOM);
    });
    lookup(a, SetId::Endpoints(of, entry), REGISTER, REGISTER);
    redirect_to(a, of, REGISTER);
}

pub(super) fn again(a: &mut Attributes<'_>, of: Family) {
    family(a, of);
    address(a, of, false, REGISTER);
    address(a, of, true, REGISTER + width(of));
    port_asked(a, REGISTER + 2 * width(of));
    lookup(a, SetId::Clients(of), REGISTER, REGISTER);
    redirect_to(a, of, REGISTER);
}

/// Loads a fact about the first packet of the connection as it was before anything was rewritten.
fn original(a: &mut Attributes<'_>, key: u32, register: u32) {
    const ORIGINAL: u8 = 0;
    expression(a, "ct", |a| {
        a.number(1, register).number(2, key).put(3, &[ORIGINAL]);
    });
}

fn original_address(a: &mut Attributes<'_>, of: Family, register: u32) {
    const DESTINATION_IPV4: u32 = 20;
    const DESTINATION_IPV6: u32 = 22;
    original(a, if of == Family::V4 { DESTINATION_IPV4 } else { DESTINATION_IPV6 }, register);
}

/// Loads the transport protocol and the port that was asked for.
fn original_port(a: &mut Attributes<'_>, register: u32) {
    const DESTINATION_PORT: u32 = 12;
    meta(a, LAYER4, register);
    original(a, DESTINATION_PORT, register + 1);
}

/// Loads where the packet goes now.
fn endpoint(a: &mut Attributes<'_>, of: Family, register: u32) {
    address(a, of, true, register);
    payload(a, TRANSPORT, 2, 2, register + width(of));
}

pub(super) fn member(a: &mut Attributes<'_>, of: Family, entry: Entry) {
    let mut register = REGISTER;
    family(a, of);
    if entry == Entry::Address {
        original_address(a, of, register);
        register += width(of);
    }
    original_port(a, register);
    endpoint(a, of, register + 2);
    lookup(a, SetId::Members(of, entry), REGISTER, VERDICT);
}

/// Puts the client with its endpoint into the map, or begins its time anew.
pub(super) fn remember(a: &mut Attributes<'_>, of: Family, time: Duration) {
    const UPDATE: u32 = 1;
    let asked = REGISTER + width(of);
    let port = asked + width(of);
    let data = port + 2;
    family(a, of);
    address(a, of, false, REGISTER);
    original_address(a, of, asked);
    original_port(a, port);
    endpoint(a, of, data);
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    expression(a, "dynset", |a| {
        a.text(1, SetId::Clients(of).name()).number(3, UPDATE).number(4, REGISTER).number(5, data);
        a.put(6, &milliseconds.to_be_bytes());
    });
}
