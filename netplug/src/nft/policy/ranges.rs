//! Ranges with holes as the plain ranges that are left.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::nft::set::Family;
use crate::policy::{Block, Net};

/// First and last address as numbers.
type Range = (u128, u128);

fn range(net: Net) -> Range {
    match net {
        Net::V4(net) => {
            let first = u128::from(u32::from(net.network()));
            (first, first + u128::from(net.size() - 1))
        }
        Net::V6(net) => {
            let first = u128::from(net.network());
            (first, first | u128::MAX.checked_shr(net.prefix().into()).unwrap_or(0))
        }
    }
}

fn is_of(net: &Net, family: Family) -> bool {
    matches!((net, family), (Net::V4(_), Family::V4) | (Net::V6(_), Family::V6))
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        // Only ever numbers of an IPv4 network.
        Family::V4 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

/// What is left of one range without another.
fn without((first, last): Range, (from, to): Range) -> impl Iterator<Item = Range> {
    let before = (first < from).then(|| (first, last.min(from.wrapping_sub(1))));
    let after = (last > to).then(|| (first.max(to.wrapping_add(1)), last));
    [before, after].into_iter().flatten()
}

/// The addresses of all blocks of a family: first and last of each range, which neither touch nor overlap, in order.
pub(super) fn ranges(family: Family, blocks: &[Block]) -> Vec<(IpAddr, IpAddr)> {
    let mut all: Vec<Range> = Vec::new();
    for block in blocks.iter().filter(|block| is_of(&block.net, family)) {
        let mut left = vec![range(block.net)];
        for hole in block.except.iter().filter(|hole| is_of(hole, family)) {
            left = left.into_iter().flat_map(|one| without(one, range(*hole))).collect();
        }
        all.append(&mut left);
    }
    all.sort_unstable();
    let mut merged: Vec<Range> = Vec::new();
    for (first, last) in all {
        match merged.last_mut() {
            Some(before) if before.1 == u128::MAX || first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into_iter().map(|(first, last)| (address(family, first), address(family, last))).collect()
}

/// The address after this one, if there is one.
pub(super) fn next(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|next| Ipv6Addr::from(next).into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(family: Family, blocks: &[(&str, &[&str])]) -> Vec<String> {
        let blocks: Vec<Block> = blocks
            .iter()
            .map(|(net, except)| Block {
                net: net.parse().unwrap(),
                except: except.iter().map(|hole| hole.parse().unwrap()).collect(),
            })
            .collect();
        ranges(family, &blocks).into_iter().map(|(first, last)| format!("{first}-{last}")).collect()
    }

    #[test]
    fn holes_are_cut_out() {
        assert_eq!(
            of(Family::V4, &[("10.0.0.0/8", &["10.1.0.0/16", "10.0.0.0/24"])]),
            ["10.0.1.0-10.0.255.255", "10.2.0.0-10.255.255.255"]
        );
        assert_eq!(of(Family::V4, &[("10.0.0.0/24", &["10.0.0.0/24"])]), [""; 0]);
        assert_eq!(
            of(Family::V6, &[("fd00::/16", &["fd00:8000::/17"])]),
            ["fd00::-fd00:7fff:ffff:ffff:ffff:ffff:ffff:ffff"]
        );
    }

    #[test]
    fn neighbours_become_one() {
        assert_eq!(of(Family::V4, &[("10.0.1.0/24", &[]), ("10.0.0.0/24", &[])]), ["10.0.0.0-10.0.1.255"]);
        assert_eq!(of(Family::V4, &[("10.0.0.0/16", &[]), ("10.0.7.0/24", &[])]), ["10.0.0.0-10.0.255.255"]);
    }

    #[test]
    fn a_hole_of_one_block_is_filled_by_another() {
        let blocks: [(&str, &[&str]); 2] = [("0.0.0.0/0", &["10.0.0.0/8"]), ("10.0.0.7/32", &[])];
        assert_eq!(
            of(Family::V4, &blocks),
            ["0.0.0.0-9.255.255.255", "10.0.0.7-10.0.0.7", "11.0.0.0-255.255.255.255"]
        );
    }

    #[test]
    fn everything_reaches_to_the_end() {
        assert_eq!(
            of(Family::V6, &[("::/0", &[]), ("ff00::/8", &[])]),
            ["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        );
        assert_eq!(of(Family::V4, &[("::/0", &[])]), [""; 0]);
        assert_eq!(next("255.255.255.255".parse().unwrap()), None);
    }
}
