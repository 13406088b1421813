//! Names of others: asked for at the host's name servers, and remembered for as long as they say.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// What fits into a datagram on nearly every way (<https://www.dnsflagday.net/2020/>).
pub(super) const DATAGRAM: u16 = 1232;
/// How long one name server may take, and how often all are asked.
const PATIENCE: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 2;
/// The longest that an answer is remembered, and how many are.
const LONGEST: u32 = 3600;
const CAPACITY: usize = 4096;

/// An answer that is remembered.
#[derive(Clone, Debug)]
struct Known {
    answer: Message,
    since: Instant,
    until: Instant,
}

/// Asks other name servers.
#[derive(Debug)]
pub struct Forwarder {
    /// The host's resolver configuration, read for every question that is not remembered, so that it may change.
    resolv_conf: PathBuf,
    /// Our own addresses, which must not be asked.
    own: Vec<IpAddr>,
    port: u16,
    cache: Mutex<HashMap<(String, RecordType), Known>>,
}

impl Forwarder {
    /// For name servers of this file, but those at `own`.
    pub fn new(resolv_conf: PathBuf, own: Vec<IpAddr>, port: u16) -> Self {
        Self { resolv_conf, own, port, cache: Mutex::default() }
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<(String, RecordType), Known>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to `asked`, a message with one question. None if nobody gave one.
    pub async fn answer(&self, asked: &Message) -> Option<Message> {
        let question = asked.queries.first()?;
        let key = (question.name.to_ascii().to_ascii_lowercase(), question.query_type);
        // Who checks signatures gets what the name server says to that.
        let signed = asked.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
            || asked.metadata.checking_disabled;
        if !signed && let Some(known) = self.known(&key, Instant::now()) {
            return Some(known);
        }
        let answer = self.ask_all(asked, question, signed).await?;
        if !signed {
            self.remember(key, &answer, Instant::now());
        }
        Some(answer)
    }

    fn known(&self, key: &(String, RecordType), now: Instant) -> Option<Message> {
        let known = self.cache().get(key).filter(|known| now < known.until)?.clone();
        let age = u32::try_from(now.duration_since(known.since).as_secs()).unwrap_or(u32::MAX);
        let mut answer = known.answer;
        for record in answer.answers.iter_mut().chain(&mut answer.authorities).chain(&mut answer.additionals)
        {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(answer)
    }

    fn remember(&self, key: (String, RecordType), answer: &Message, now: Instant) {
        let Some(seconds) = lifetime(answer).filter(|seconds| *seconds > 0) else { return };
        let until = now + Duration::from_secs(seconds.into());
        let mut cache = self.cache();
        if cache.len() >= CAPACITY {
            cache.retain(|_, known| now < known.until);
        }
        if cache.len() >= CAPACITY {
            cache.clear();
        }
        cache.insert(key, Known { answer: answer.clone(), since: now, until });
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let text = std::fs::read_to_string(&self.resolv_conf).unwrap_or_default();
        let mut servers = crate::etcfiles::nameservers(&text);
        servers.retain(|ip| !self.own.contains(ip));
        servers.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect()
    }

    async fn ask_all(&self, asked: &Message, question: &Query, signed: bool) -> Option<Message> {
        let servers = self.servers();
        let mut last = None;
        for server in (0..ROUNDS).flat_map(|_| &servers) {
            let mut query = Message::query();
            query.metadata.recursion_desired = true;
            query.metadata.checking_disabled = asked.metadata.checking_disabled;
            query.add_query(question.clone());
            let mut edns = Edns::new();
            edns.set_max_payload(DATAGRAM);
            edns.set_dnssec_ok(signed && asked.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
            query.set_edns(edns);
            match ask(*server, &query).await {
                Ok(answer) if is_final(answer.metadata.response_code) => return Some(answer),
                Ok(answer) => last = Some(answer),
                Err(error) => tracing::debug!(%server, %error, "a name server did not answer"),
            }
        }
        last
    }
}

/// Whether another name server could know better.
fn is_final(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// How many seconds an answer holds; for one that says that there is nothing, what RFC 2308 makes of the zone's SOA.
fn lifetime(answer: &Message) -> Option<u32> {
    if !is_final(answer.metadata.response_code) || answer.metadata.truncation {
        return None;
    }
    let has = answer.answers.iter().map(|record| record.ttl).min();
    let seconds = match has.filter(|_| answer.metadata.response_code == ResponseCode::NoError) {
        Some(seconds) => seconds,
        None => answer.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        })?,
    };
    Some(seconds.min(LONGEST))
}

/// Asks one server; by TCP if the answer does not fit into a datagram.
async fn ask(server: SocketAddr, query: &Message) -> io::Result<Message> {
    let bytes = query.to_vec().map_err(io::Error::other)?;
    let answer = tokio::time::timeout(PATIENCE, by_datagram(server, query, &bytes)).await??;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    tokio::time::timeout(2 * PATIENCE, by_stream(server, query, &bytes)).await?
}

async fn by_datagram(server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket of its own has a port that nobody can guess, and connected it hears nobody else.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut room = vec![0; 65535];
    loop {
        let size = socket.recv(&mut room).await?;
        if let Ok(answer) = Message::from_vec(&room[..size])
            && answers(&answer, query)
        {
            return Ok(answer);
        }
    }
}

async fn by_stream(server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    super::server::write_framed(&mut stream, bytes).await?;
    stream.flush().await?;
    let size = stream.read_u16().await?;
    let mut room = vec![0; size.into()];
    stream.read_exact(&mut room).await?;
    let answer = Message::from_vec(&room).map_err(io::Error::other)?;
    if answers(&answer, query) { Ok(answer) } else { Err(io::Error::other("an answer to something else")) }
}

fn answers(answer: &Message, query: &Message) -> bool {
    answer.metadata.id == query.metadata.id && answer.queries == query.queries
}

/// The records of `answer` for somebody who asked `asked`.
pub(super) fn retold(asked: &Message, answer: Message) -> Message {
    let mut told = Message::response(asked.metadata.id, asked.metadata.op_code);
    told.metadata.response_code = answer.metadata.response_code;
    told.metadata.authentic_data = answer.metadata.authentic_data;
    told.queries.clone_from(&asked.queries);
    let plain =
        |records: Vec<Record>| records.into_iter().filter(|r| r.record_type() != RecordType::OPT).collect();
    told.answers = plain(answer.answers);
    told.authorities = plain(answer.authorities);
    told.additionals = plain(answer.additionals);
    told
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::Name;
    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn answer(ttls: &[u32]) -> Message {
        let mut answer = Message::response(1, OpCode::Query);
        let name = Name::from_ascii("example.org.").unwrap();
        for ttl in ttls {
            answer.add_answer(Record::from_rdata(name.clone(), *ttl, RData::A(A::new(192, 0, 2, 1))));
        }
        answer
    }

    fn nothing(ttl: u32, minimum: u32) -> Message {
        let mut answer = Message::response(1, OpCode::Query);
        answer.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, minimum);
        answer.add_authority(Record::from_rdata(Name::root(), ttl, RData::SOA(soa)));
        answer
    }

    #[test]
    fn answers_are_remembered_for_as_long_as_they_say() {
        assert_eq!(lifetime(&answer(&[300, 60])), Some(60));
        assert_eq!(lifetime(&answer(&[1_000_000])), Some(3600));
        assert_eq!(lifetime(&answer(&[])), None, "there is nothing, and nobody says for how long");
        assert_eq!(lifetime(&nothing(900, 30)), Some(30));
        assert_eq!(lifetime(&nothing(20, 30)), Some(20));
        let mut failed = answer(&[60]);
        failed.metadata.response_code = ResponseCode::ServFail;
        assert_eq!(lifetime(&failed), None);

        let forwarder = Forwarder::new("/nonexistent".into(), Vec::new(), 53);
        let key = ("example.org.".to_owned(), RecordType::A);
        let start = Instant::now();
        forwarder.remember(key.clone(), &answer(&[60]), start);
        let later = start + Duration::from_secs(59);
        assert_eq!(forwarder.known(&key, later).unwrap().answers[0].ttl, 1);
        assert!(forwarder.known(&key, start + Duration::from_secs(60)).is_none());
        assert!(forwarder.known(&("example.org.".to_owned(), RecordType::AAAA), start).is_none());
        for n in 0..2 * CAPACITY {
            forwarder.remember((format!("{n}."), RecordType::A), &answer(&[60]), start);
        }
        assert!(forwarder.cache().len() <= CAPACITY);
    }
}
