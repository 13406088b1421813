//! The map of which client had which endpoint. Packets fill it; what leads to endpoints that have gone is taken out here.

use std::collections::HashSet;

use nix::errno::Errno;

use super::encode::{DEL_ELEMENT, GET_ELEMENT, bytes};
use super::set::{Element, Entry, Family, SetId};
use super::table::Table;
use super::wire::{Batch, INET, NF_TABLES, message};
use crate::error::{Error, Result};
use crate::sys::netlink::{self, DUMP, attribute, attributes};

const TABLE: u16 = 1;
const SET: u16 = 2;
const ELEMENTS: u16 = 3;
const KEY: u16 = 1;
const DATA: u16 = 2;
const VALUE: u16 = 1;

/// Forgets the endpoints that are no members any more, going by all elements of the table.
pub(crate) fn forget(table: &mut Table, elements: &[Element]) -> Result<()> {
    let members: HashSet<Vec<u8>> = elements
        .iter()
        .filter(|element| matches!(element.set, SetId::Members(..)))
        .map(|element| bytes(&element.key))
        .collect();
    for family in Family::ALL {
        for key in stale(table, family, &members)? {
            remove(table, family, &key)?;
        }
    }
    Ok(())
}

fn stale(table: &mut Table, family: Family, members: &HashSet<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    let (name, set) = (table.name().to_owned(), SetId::Clients(family).name());
    let request = message(NF_TABLES, GET_ELEMENT, DUMP, INET, |a| {
        a.text(TABLE, &name).text(SET, set);
    });
    let mut stale = Vec::new();
    table.dump("list clients in nft table", &request, |_, body| {
        for (_, element) in attribute(body, ELEMENTS).into_iter().flat_map(attributes) {
            let value = |kind| attribute(element, kind).and_then(|part| attribute(part, VALUE));
            if let (Some(key), Some(endpoint)) = (value(KEY), value(DATA))
                && !is_member(family, key, endpoint, members)
            {
                stale.push(key.to_vec());
            }
        }
    })?;
    Ok(stale)
}

/// Whether what a client asked for, by address or by node port, still leads to the endpoint.
fn is_member(family: Family, key: &[u8], endpoint: &[u8], members: &HashSet<Vec<u8>>) -> bool {
    let width = family.size() as usize;
    Entry::ALL.into_iter().any(|entry| {
        let asked = match entry {
            Entry::Address => key.get(width..),
            Entry::NodePort => key.get(2 * width..),
        };
        asked.is_some_and(|asked| members.contains(&[asked, endpoint].concat()))
    })
}

/// Takes out one, unless its time ended meanwhile.
fn remove(table: &mut Table, family: Family, key: &[u8]) -> Result<()> {
    let mut batch = Batch::new();
    let name = table.name().to_owned();
    batch.add(DEL_ELEMENT, 0, |a| {
        a.text(TABLE, &name).text(SET, SetId::Clients(family).name()).nest(ELEMENTS, |a| {
            a.nest(1, |a| {
                a.nest(KEY, |a| {
                    a.put(VALUE, key);
                });
            });
        });
    });
    match table.execute("forget a client in nft table", &batch.finish()) {
        Err(Error::Netlink { source, .. }) if netlink::is(&source, Errno::ENOENT) => Ok(()),
        other => other,
    }
}
