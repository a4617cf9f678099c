//! Questions to the resolver, from inside a pod.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use super::Host;

pub const RESOLVER: &str = "169.254.53.53:53";

/// A question; `edns` is the size offered, if any.
pub fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// The answer's bytes over UDP.
pub fn exchange(host: &Host, task: &str, request: Vec<u8>) -> Vec<u8> {
    let socket = host.udp(task, "0.0.0.0:0");
    socket.connect(RESOLVER.parse::<SocketAddr>().unwrap()).unwrap();
    socket.send(&request).unwrap();
    let mut answer = vec![0; 65535];
    let len = socket.recv(&mut answer).expect("an answer");
    answer.truncate(len);
    answer
}

/// The answer over UDP.
pub fn ask(host: &Host, task: &str, name: &str, kind: RecordType) -> Message {
    Message::from_vec(&exchange(host, task, question(name, kind, None))).unwrap()
}

/// The answer over TCP.
pub fn ask_tcp(host: &Host, task: &str, name: &str, kind: RecordType) -> Message {
    let mut stream = host.connect(task, RESOLVER).unwrap();
    let request = question(name, kind, None);
    stream.write_all(&u16::try_from(request.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&request).unwrap();
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut answer).unwrap();
    Message::from_vec(&answer).unwrap()
}

/// The addresses in an answer, in its order.
pub fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let address = |data: &RData| if let RData::A(ip) = data { Some(ip.0) } else { None };
    message.answers.iter().filter_map(|record| address(&record.data)).collect()
}

/// The addresses that `name` has now, sorted.
pub fn resolve(host: &Host, task: &str, name: &str) -> Vec<Ipv4Addr> {
    let mut found = addresses(&ask(host, task, name, RecordType::A));
    found.sort();
    found
}
