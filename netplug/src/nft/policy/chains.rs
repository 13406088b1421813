//! What rules of policies are made of.

use std::fmt;

use crate::config::Protocol;
use crate::nft::set::Family;

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    Arp,
    Ip(Family),
}

/// Who sent a frame, by the port of the bridge and what the frame itself says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// Hardware address of the frame, address in the ARP message.
    Arp,
    /// Both addresses in the ARP message.
    InArp,
    /// Hardware address of the frame, source of the packet.
    Ip(Family),
    /// Hardware address of the frame, the address that a neighbour advertisement is about.
    Advertised,
}

/// A match or an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    InputIsNot(String),
    OutputIsNot(String),
    /// It comes and goes by this link.
    BothAre(String),
    /// The connection's destination was not rewritten.
    NotRedirected,
    /// The packet answers one that was let through.
    Reply,
    /// The packet is about a connection that was let through, an error as a rule.
    Related,
    /// A TCP packet that begins no connection, of one that is not known.
    Torn,
    /// Does what a map says of an address.
    Judge(Family, End, String),
    /// An address is in the set.
    Within(Family, End, String),
    /// Source and destination are in the set.
    PairWithin(Family, String),
    /// Protocol and port asked for are in the set.
    PortWithin(String),
    /// Destination, protocol and port asked for are in the set.
    TargetWithin(Family, String),
    PortFrom(Protocol, u16, u16),
    /// It is a packet of IPv6, not a frame.
    IsIp6,
    ProtocolIs(Protocol),
    Accept,
    Drop,
    Reset,
    Jump(String),
    Goto(String),
    /// Does what a map says of the link that a frame came by.
    JudgeLink(String),
    Carries(Payload),
    /// The sender, as the frame has it, is in the set.
    SenderWithin(Sender, String),
    /// An ICMPv6 message with a type from the first to the last.
    Icmp6(u8, u8),
    /// Addresses the frame to the bridge, whose hardware address this is.
    ToBridge([u8; 6]),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Source { "saddr" } else { "daddr" })
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InputIsNot(link) => write!(f, "iifname != \"{link}\""),
            Self::OutputIsNot(link) => write!(f, "oifname != \"{link}\""),
            Self::BothAre(link) => write!(f, "iifname \"{link}\" oifname \"{link}\""),
            Self::NotRedirected => f.write_str("ct status & dnat == 0"),
            Self::Reply => f.write_str("ct direction reply ct state established"),
            Self::Related => f.write_str("ct state related"),
            Self::Torn => f.write_str("meta l4proto tcp ct state new tcp flags & syn == 0"),
            Self::Judge(family, end, map) => write!(f, "{} {end} vmap @{map}", family.keyword()),
            Self::Within(family, end, set) => write!(f, "{} {end} @{set}", family.keyword()),
            Self::PairWithin(family, set) => {
                let word = family.keyword();
                write!(f, "{word} saddr . {word} daddr @{set}")
            }
            Self::PortWithin(set) => write!(f, "meta l4proto . th dport @{set}"),
            Self::TargetWithin(family, set) => {
                write!(f, "{} daddr . meta l4proto . th dport @{set}", family.keyword())
            }
            Self::PortFrom(protocol, first, last) => {
                write!(f, "meta l4proto {protocol} th dport {first}-{last}")
            }
            Self::IsIp6 => f.write_str("meta nfproto ipv6"),
            Self::ProtocolIs(protocol) => write!(f, "meta l4proto {protocol}"),
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Reset => f.write_str("reject with tcp reset"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::JudgeLink(map) => write!(f, "iifname vmap @{map}"),
            Self::Carries(Payload::Arp) => f.write_str("meta protocol arp"),
            Self::Carries(Payload::Ip(family)) => write!(f, "meta protocol {}", family.keyword()),
            Self::SenderWithin(sender, set) => {
                let said = match sender {
                    Sender::Arp => "ether saddr . arp saddr ip",
                    Sender::InArp => "arp saddr ether . arp saddr ip",
                    Sender::Ip(Family::V4) => "ether saddr . ip saddr",
                    Sender::Ip(Family::V6) => "ether saddr . ip6 saddr",
                    Sender::Advertised => "ether saddr . icmpv6 taddr",
                };
                write!(f, "iifname . {said} @{set}")
            }
            Self::Icmp6(first, last) if first == last => write!(f, "icmpv6 type {first}"),
            Self::Icmp6(first, last) => write!(f, "icmpv6 type {first}-{last}"),
            Self::ToBridge(_) => f.write_str("ether daddr set bridge meta pkttype set host"),
        }
    }
}
