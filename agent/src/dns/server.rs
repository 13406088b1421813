//! Questions as they come in, by datagram and by stream.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::forward::{DATAGRAM, Forwarder, retold};
use super::zone::{Found, Kind, Zone, is_ours};

/// Seconds for which our own names may be remembered: as CoreDNS has it for a cluster's.
const TTL: u32 = 5;
/// Questions that are worked on at a time, and streams that are open.
const QUESTIONS: usize = 512;
const STREAMS: usize = 64;
/// So many names in a row may stand for another.
const ALIASES: usize = 8;
/// How long a stream may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// The sockets at one address.
#[derive(Debug)]
pub struct Sockets {
    datagrams: UdpSocket,
    streams: TcpListener,
}

impl Sockets {
    /// Listens at `address`.
    ///
    /// # Errors
    /// As a rule somebody else listens there.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let datagrams = UdpSocket::bind(address).await?;
        // The same port, where any was asked for.
        let streams = TcpListener::bind(datagrams.local_addr()?).await?;
        Ok(Self { datagrams, streams })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.datagrams.local_addr()
    }
}

/// Gives all names as they are now, for somebody at an address.
pub type Names = Box<dyn Fn(IpAddr) -> Zone + Send + Sync>;

/// Says whether somebody at an address may ask.
pub type Admits = Box<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// Answers questions.
pub struct Server {
    domain: String,
    names: Names,
    admits: Admits,
    forwarder: Forwarder,
}

impl Server {
    /// With our own names, below `domain` and of addresses, from `names`, and those of others from `forwarder`.
    pub fn new(domain: String, names: Names, admits: Admits, forwarder: Forwarder) -> Arc<Self> {
        Arc::new(Self { domain, names, admits, forwarder })
    }

    /// Serves until it is dropped.
    pub async fn serve(self: Arc<Self>, sockets: Sockets) {
        tokio::join!(self.clone().datagrams(Arc::new(sockets.datagrams)), self.streams(sockets.streams));
    }

    async fn datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let places = Arc::new(Semaphore::new(QUESTIONS));
        let mut room = [0; 4096];
        loop {
            let (size, from) = match socket.recv_from(&mut room).await {
                Ok(received) => received,
                Err(error) => {
                    // What an earlier answer met on its way (ICMP) is told here and concerns nobody.
                    tracing::debug!(%error, "cannot receive a question");
                    continue;
                }
            };
            if !(self.admits)(from.ip()) {
                continue;
            }
            // Whoever asks too much asks again.
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let (server, socket, question) = (self.clone(), socket.clone(), room[..size].to_vec());
            tokio::spawn(async move {
                if let Some(answer) = server.answer(from.ip(), &question, true).await
                    && let Err(error) = socket.send_to(&answer, from).await
                {
                    tracing::debug!(%from, %error, "cannot send an answer");
                }
                drop(place);
            });
        }
    }

    async fn streams(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(STREAMS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, from)) if (self.admits)(from.ip()) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = server.stream(from.ip(), stream).await {
                            tracing::debug!(%from, %error, "a stream of questions broke off");
                        }
                        drop(place);
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a stream of questions");
                    // Out of descriptors, as a rule: it would fail again at once.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn stream(&self, from: IpAddr, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let size = match tokio::time::timeout(SILENCE, stream.read_u16()).await {
                Ok(Ok(size)) => size,
                Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(e)) => return Err(e),
                Err(_) => return Ok(()),
            };
            let mut question = vec![0; size.into()];
            tokio::time::timeout(SILENCE, stream.read_exact(&mut question)).await??;
            let Some(answer) = self.answer(from, &question, false).await else { return Ok(()) };
            tokio::time::timeout(SILENCE, write_framed(&mut stream, &answer)).await??;
        }
    }

    /// The answer to a question, if it deserves one.
    async fn answer(&self, from: IpAddr, question: &[u8], is_datagram: bool) -> Option<Vec<u8>> {
        let asked = match Message::from_vec(question) {
            Ok(asked) => asked,
            Err(_) => {
                // Its number, if it was a question at all.
                let [high, low, flags, ..] = *question else { return None };
                let id = u16::from_be_bytes([high, low]);
                let error = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
                return (flags & 0x80 == 0).then(|| error.to_vec().ok()).flatten();
            }
        };
        if asked.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut answer = self.respond(from, &asked).await;
        answer.metadata.recursion_desired = asked.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        if asked.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(DATAGRAM);
            answer.set_edns(edns);
        }
        let bytes = answer.to_vec().ok()?;
        let room = if is_datagram { asked.max_payload().min(DATAGRAM) } else { u16::MAX };
        if bytes.len() <= usize::from(room) { Some(bytes) } else { answer.truncate().to_vec().ok() }
    }

    async fn respond(&self, from: IpAddr, asked: &Message) -> Message {
        let refuse = |code| {
            let mut answer = Message::error_msg(asked.metadata.id, asked.metadata.op_code, code);
            answer.queries.clone_from(&asked.queries);
            answer
        };
        if asked.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [question] = &asked.queries[..] else { return refuse(ResponseCode::FormErr) };
        if question.query_class != DNSClass::IN {
            return refuse(ResponseCode::NotImp);
        }
        let text = question.name.to_ascii().to_ascii_lowercase();
        let name = text.trim_end_matches('.');
        // Most questions are for others: what is here need not be gathered for those.
        let zone = is_ours(name, &self.domain).then(|| (self.names)(from));
        let kind = kind(question.query_type);
        let found = zone.and_then(|zone| zone.find(name, kind).map(|found| (zone, found)));
        let Some((zone, found)) = found else {
            let answer = self.forwarder.answer(asked).await;
            return answer.map_or_else(|| refuse(ResponseCode::ServFail), |answer| retold(asked, answer));
        };
        let mut alias = alias_of(&found);
        let mut answer = own(asked, &question.name, &self.domain, found);
        // What it stands for is told along, as the client would ask for that next.
        for _ in 0..ALIASES {
            let Some(other) = alias.take().filter(|_| question.query_type != RecordType::CNAME) else {
                break;
            };
            let Ok(whole) = Name::from_ascii(format!("{other}.")) else { break };
            if let Some(found) = zone.find(&other, kind) {
                alias = alias_of(&found);
                answer.answers.extend(own(asked, &whole, &self.domain, found).answers);
                continue;
            }
            let mut next = asked.clone();
            next.queries[0].name = whole;
            if let Some(more) = self.forwarder.answer(&next).await {
                answer.answers.extend(more.answers);
            }
        }
        answer
    }
}

/// The name in whose place this one is.
fn alias_of(found: &Found) -> Option<String> {
    match found {
        Found::Alias(other) => Some(other.clone()),
        _ => None,
    }
}

fn kind(query_type: RecordType) -> Kind {
    match query_type {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        RecordType::SRV => Kind::Srv,
        RecordType::PTR => Kind::Ptr,
        _ => Kind::Other,
    }
}

/// The answer to a question about one of our own names.
fn own(asked: &Message, name: &Name, domain: &str, found: Found) -> Message {
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    answer.metadata.authoritative = true;
    answer.queries.clone_from(&asked.queries);
    let named = |text: &str| Name::from_ascii(format!("{text}.")).ok();
    let data: Vec<RData> = match found {
        Found::Addresses(ips) => ips
            .into_iter()
            .map(|ip| match ip {
                IpAddr::V4(ip) => RData::A(A(ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
            })
            .collect(),
        Found::Ports(ports) => ports
            .into_iter()
            .filter_map(|(port, target)| Some(RData::SRV(SRV::new(0, 100, port, named(&target)?))))
            .collect(),
        Found::Name(text) => named(&text).map(|name| RData::PTR(PTR(name))).into_iter().collect(),
        Found::Alias(text) => named(&text).map(|name| RData::CNAME(CNAME(name))).into_iter().collect(),
        Found::Nothing => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            Vec::new()
        }
    };
    answer.answers = data.into_iter().map(|data| Record::from_rdata(name.clone(), TTL, data)).collect();
    if answer.answers.is_empty()
        && let Some((zone, host)) = named(domain).zip(named(&format!("ns.dns.{domain}")))
    {
        let soa = SOA::new(host.clone(), host, 1, 7200, 1800, 86400, TTL);
        answer.add_authority(Record::from_rdata(zone, TTL, RData::SOA(soa)));
    }
    answer
}

/// Writes a message as streams have it: its length first.
pub(super) async fn write_framed(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
