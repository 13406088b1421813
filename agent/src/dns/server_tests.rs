//! A server on loopback, with a name server of others behind it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::Query;

use super::*;
use crate::dns::zone::{PodNames, ServiceNames};

/// A name server of others: answers with 192.0.2.9, with forty records for `big.example.org`, and says of `no.example.org` that
/// there is none.
struct Others {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

fn reply(question: &[u8], is_datagram: bool) -> Vec<u8> {
    let asked = Message::from_vec(question).unwrap();
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    answer.queries.clone_from(&asked.queries);
    let name = asked.queries[0].name.clone();
    let text = name.to_ascii();
    let count = if text.starts_with("big.") { 100 } else { 1 };
    if text.starts_with("no.") {
        answer.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 60);
        answer.add_authority(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
    } else if asked.queries[0].query_type == RecordType::A {
        for n in 0..count {
            answer.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, 9 + n))));
        }
    }
    if is_datagram && count > 1 { answer.truncate().to_vec().unwrap() } else { answer.to_vec().unwrap() }
}

/// Sockets at a free port: one that is free for datagrams may be taken for streams.
async fn anywhere() -> Sockets {
    for _ in 0..100 {
        if let Ok(sockets) = Sockets::bind("127.0.0.1:0".parse().unwrap()).await {
            return sockets;
        }
    }
    panic!("no port is free for both");
}

impl Others {
    async fn start() -> Self {
        let sockets = anywhere().await;
        let (address, asked) = (sockets.address().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = asked.clone();
        tokio::spawn(async move {
            let mut room = [0; 4096];
            loop {
                let (size, from) = sockets.datagrams.recv_from(&mut room).await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                // An answer to another question first, which must not be believed.
                let mut forged = reply(&room[..size], true);
                forged[0] ^= 1;
                sockets.datagrams.send_to(&forged, from).await.unwrap();
                sockets.datagrams.send_to(&reply(&room[..size], true), from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = sockets.streams.accept().await.unwrap();
                let size = stream.read_u16().await.unwrap();
                let mut question = vec![0; size.into()];
                stream.read_exact(&mut question).await.unwrap();
                write_framed(&mut stream, &reply(&question, false)).await.unwrap();
            }
        });
        Self { address, asked }
    }
}

struct Bench {
    at: SocketAddr,
    others: Others,
    _conf: tempfile::NamedTempFile,
    admitted: Arc<Mutex<bool>>,
}

impl Bench {
    async fn new() -> Self {
        let others = Others::start().await;
        let conf = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(conf.path(), "nameserver 127.0.0.1\n").unwrap();
        let forwarder =
            Forwarder::new(conf.path().into(), vec!["127.0.0.9".parse().unwrap()], others.address.port());
        let names = |_| Zone {
            domain: "cluster.local".into(),
            pods: vec![PodNames {
                names: vec!["web".into()],
                namespace: "shop".into(),
                hostname: "web".into(),
                ips: vec!["10.85.0.2".parse().unwrap()],
                ..PodNames::default()
            }],
            services: [("near", "far.shop.svc.cluster.local"), ("far", "web.shop.svc.cluster.local")]
                .into_iter()
                .chain([("away", "www.example.org"), ("round", "round.shop.svc.cluster.local")])
                .map(|(name, external)| ServiceNames {
                    name: name.into(),
                    namespace: "shop".into(),
                    external: Some(external.into()),
                    ..ServiceNames::default()
                })
                .collect(),
        };
        let admitted = Arc::new(Mutex::new(true));
        let seen = admitted.clone();
        let server = Server::new(
            "cluster.local".into(),
            Box::new(names),
            Box::new(move |_| *seen.lock().unwrap()),
            forwarder,
        );
        let sockets = anywhere().await;
        let at = sockets.address().unwrap();
        tokio::spawn(server.serve(sockets));
        Self { at, others, _conf: conf, admitted }
    }

    async fn send(&self, question: &[u8]) -> Option<Message> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(question, self.at).await.unwrap();
        let mut room = [0; 4096];
        // What is not answered is followed by a question that is, so nothing is waited for in vain.
        let size =
            tokio::time::timeout(Duration::from_secs(30), socket.recv(&mut room)).await.unwrap().unwrap();
        Some(Message::from_vec(&room[..size]).unwrap())
    }

    async fn ask(&self, name: &str, query_type: RecordType) -> Message {
        self.send(&question(name, query_type).to_vec().unwrap()).await.unwrap()
    }
}

fn question(name: &str, query_type: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), query_type));
    message
}

fn ips(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn own_names_are_answered_with_authority() {
    let bench = Bench::new().await;
    let answer = bench.ask("WEB.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(ips(&answer), ["10.85.0.2"]);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(answer.answers[0].name.to_ascii(), "WEB.shop.svc.cluster.local.", "as it was written");
    // There, but without such an address: no error, or resolvers would give up on the name.
    let none = bench.ask("web.shop.svc.cluster.local.", RecordType::AAAA).await;
    assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));
    assert!(matches!(none.authorities[0].data, RData::SOA(_)));
    let unknown = bench.ask("no.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    let name = bench.ask("2.0.85.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(ips(&name), ["web.shop.pod.cluster.local."]);
    assert_eq!(bench.others.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn other_names_for_a_name_are_followed() {
    let bench = Bench::new().await;
    let near = bench.ask("near.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(ips(&near), ["far.shop.svc.cluster.local.", "web.shop.svc.cluster.local.", "10.85.0.2"]);
    let only = bench.ask("near.shop.svc.cluster.local.", RecordType::CNAME).await;
    assert_eq!(ips(&only), ["far.shop.svc.cluster.local."]);
    let away = bench.ask("away.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(ips(&away), ["www.example.org.", "192.0.2.9"]);
    // A ring ends somewhere.
    let round = bench.ask("round.shop.svc.cluster.local.", RecordType::A).await;
    assert!(ips(&round).iter().all(|name| name == "round.shop.svc.cluster.local."));
}

#[tokio::test]
async fn other_names_are_asked_for_once() {
    let bench = Bench::new().await;
    for _ in 0..3 {
        let answer = bench.ask("www.example.org.", RecordType::A).await;
        assert_eq!(ips(&answer), ["192.0.2.9"]);
        let none = bench.ask("no.example.org.", RecordType::A).await;
        assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(bench.others.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_does_not_fit_into_a_datagram_is_told_by_stream() {
    let bench = Bench::new().await;
    let cut = bench.ask("big.example.org.", RecordType::A).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let mut stream = TcpStream::connect(bench.at).await.unwrap();
    for _ in 0..2 {
        write_framed(&mut stream, &question("big.example.org.", RecordType::A).to_vec().unwrap())
            .await
            .unwrap();
        let mut whole = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut whole).await.unwrap();
        assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 100);
    }
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused() {
    let bench = Bench::new().await;
    let broken = bench.send(&[0x12, 0x34, 0, 0, 0xff]).await.unwrap();
    assert_eq!((broken.metadata.id, broken.metadata.response_code), (0x1234, ResponseCode::FormErr));
    let mut update = question("web.shop.svc.cluster.local.", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    let refused = bench.send(&update.to_vec().unwrap()).await.unwrap();
    assert_eq!(refused.metadata.response_code, ResponseCode::NotImp);
    std::fs::write(bench._conf.path(), "nameserver 127.0.0.9\n").unwrap();
    let alone = bench.ask("www.example.org.", RecordType::A).await;
    assert_eq!(alone.metadata.response_code, ResponseCode::ServFail, "we do not ask ourselves");
}

#[tokio::test]
async fn only_who_is_admitted_is_answered() {
    let bench = Bench::new().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(bench.at).await.unwrap();
    *bench.admitted.lock().unwrap() = false;
    socket.send(&question("first.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap()).await.unwrap();
    let mut stream = TcpStream::connect(bench.at).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed at once");
    // The stream was judged after the datagram had come; from here on all may ask.
    *bench.admitted.lock().unwrap() = true;
    let second = question("web.shop.svc.cluster.local.", RecordType::A);
    socket.send(&second.to_vec().unwrap()).await.unwrap();
    let mut room = [0; 512];
    let size = tokio::time::timeout(Duration::from_secs(30), socket.recv(&mut room)).await.unwrap().unwrap();
    let answer = Message::from_vec(&room[..size]).unwrap();
    assert_eq!(answer.metadata.id, second.metadata.id, "the first one was not answered");
}
