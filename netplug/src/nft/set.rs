//! The maps of the table, and their elements.

use std::fmt;
use std::net::IpAddr;

use crate::config::Protocol;

/// The address families of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Bytes of an address.
    pub(crate) fn size(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// The word of `nft` for it.
    pub(crate) fn keyword(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// The maps from host ports to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MapId {
    /// Whose addresses it leads to.
    pub family: Family,
    /// Whether the host's address is part of the key.
    pub by_address: bool,
}

impl MapId {
    /// All of them, those with the narrower key first, for they win.
    pub(crate) const ALL: [Self; 4] = [
        Self { family: Family::V4, by_address: true },
        Self { family: Family::V4, by_address: false },
        Self { family: Family::V6, by_address: true },
        Self { family: Family::V6, by_address: false },
    ];
}

/// A map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SetId {
    /// Host port to pod.
    HostPorts(MapId),
    /// Address and port of a Service, or a node port, to the chain that picks an endpoint.
    Services(Family, Entry),
    /// The same with the number of an endpoint, to the endpoint.
    Endpoints(Family, Entry),
    /// The same with an endpoint, to the chain that remembers it for the client; of Services with affinity.
    Members(Family, Entry),
    /// Client, address and port asked for, to the endpoint that the client had; filled by packets.
    Clients(Family),
}

/// How packets come to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry {
    /// By an address of its own.
    Address,
    /// By a port of the node.
    NodePort,
}

impl Entry {
    pub(crate) const ALL: [Self; 2] = [Self::Address, Self::NodePort];
}

/// What a part of a key or value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Address,
    Protocol,
    Port,
    /// A number of the host's byte order.
    Number,
}

impl SetId {
    /// All of them, in the order in which they are made.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let of_entry = |family, entry| {
            [Self::Services(family, entry), Self::Endpoints(family, entry), Self::Members(family, entry)]
        };
        let of_family = move |family| {
            let entries = Entry::ALL.into_iter().flat_map(move |entry| of_entry(family, entry));
            entries.chain([Self::Clients(family)])
        };
        MapId::ALL.into_iter().map(Self::HostPorts).chain(Family::ALL.into_iter().flat_map(of_family))
    }

    pub(crate) fn name(self) -> &'static str {
        use Entry::{Address, NodePort};
        let (v4, v6) = match self {
            Self::HostPorts(MapId { by_address: true, .. }) => ("hostport-address4", "hostport-address6"),
            Self::HostPorts(MapId { by_address: false, .. }) => ("hostport4", "hostport6"),
            Self::Services(_, Address) => ("service4", "service6"),
            Self::Services(_, NodePort) => ("nodeport4", "nodeport6"),
            Self::Endpoints(_, Address) => ("service-endpoint4", "service-endpoint6"),
            Self::Endpoints(_, NodePort) => ("nodeport-endpoint4", "nodeport-endpoint6"),
            Self::Members(_, Address) => ("service-member4", "service-member6"),
            Self::Members(_, NodePort) => ("nodeport-member4", "nodeport-member6"),
            Self::Clients(_) => ("client4", "client6"),
        };
        if self.family() == Family::V4 { v4 } else { v6 }
    }

    /// The family of the addresses in it.
    pub(crate) fn family(self) -> Family {
        match self {
            Self::HostPorts(map) => map.family,
            Self::Services(family, _)
            | Self::Endpoints(family, _)
            | Self::Members(family, _)
            | Self::Clients(family) => family,
        }
    }

    pub(crate) fn key(self) -> &'static [Kind] {
        use Kind::{Address, Number, Port, Protocol};
        match self {
            Self::HostPorts(MapId { by_address: false, .. }) | Self::Services(_, Entry::NodePort) => {
                &[Protocol, Port]
            }
            Self::HostPorts(_) | Self::Services(..) => &[Address, Protocol, Port],
            Self::Endpoints(_, Entry::NodePort) => &[Protocol, Port, Number],
            Self::Endpoints(..) => &[Address, Protocol, Port, Number],
            Self::Members(_, Entry::NodePort) => &[Protocol, Port, Address, Port],
            Self::Members(..) => &[Address, Protocol, Port, Address, Port],
            Self::Clients(_) => &[Address, Address, Protocol, Port],
        }
    }

    /// What an element leads to; `None` is a chain.
    pub(crate) fn value(self) -> Option<&'static [Kind]> {
        match self {
            Self::HostPorts(_) | Self::Endpoints(..) | Self::Clients(_) => Some(&[Kind::Address, Kind::Port]),
            Self::Services(..) | Self::Members(..) => None,
        }
    }

    /// Whether packets put elements into it, which go after a time.
    pub(crate) fn is_filled_by_packets(self) -> bool {
        matches!(self, Self::Clients(_))
    }
}

/// A part of a key or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
    Number(u32),
}

/// What an element leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Data {
    Fields(Vec<Field>),
    Goto(String),
}

/// One element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub set: SetId,
    pub key: Vec<Field>,
    pub data: Data,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Protocol(protocol) => protocol.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::Number(number) => number.fmt(f),
        }
    }
}

fn joined(fields: &[Field]) -> String {
    fields.iter().map(Field::to_string).collect::<Vec<_>>().join(" . ")
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&joined(&self.key))?;
        match &self.data {
            Data::Fields(fields) => write!(f, " : {}", joined(fields)),
            Data::Goto(chain) => write!(f, " : goto {chain}"),
        }
    }
}
