//! Requests to the resolver that were damaged on their way: each is refused, answered or passed over, the next good one is answered, and
//! nothing grows.

use std::io::{Read, Write};
use std::iter;

use hickory_proto::rr::RecordType;
use rand::Rng;
use rand::rngs::StdRng;

use crate::support::dns::{RESOLVER, question, resolve};
use crate::support::{Host, Lab, chance, network, resident_kib, rounds};

/// Datagrams.
const ROUNDS: u64 = 4000;

/// After so many of them somebody else asks.
const LOOK_EVERY: u64 = 100;

/// The largest answer over UDP.
const ANSWER_BYTES_MAX: usize = 1232;

/// More than what is remembered of other resolvers takes; there are none here.
const GROWTH_KIB_MAX: u64 = 8 << 10;

fn requests() -> Vec<Vec<u8>> {
    let asked = [
        ("web.", RecordType::A),
        ("2.web.front.internal.", RecordType::AAAA),
        ("2.0.128.10.in-addr.arpa.", RecordType::PTR),
        ("www.example.com.", RecordType::ANY),
    ];
    asked.into_iter().flat_map(|(name, kind)| [question(name, kind, None), question(name, kind, Some(4096))]).collect()
}

fn damaged(mut bytes: Vec<u8>, rng: &mut StdRng) -> Vec<u8> {
    for _ in 0..rng.random_range(1..6) {
        if bytes.len() < 2 {
            break;
        }
        let place = rng.random_range(0..bytes.len() - 1);
        let numbers: [u16; 5] = [0, 1, 0xc00c, 0xffff, 0xc000 | u16::try_from(place % 0x4000).unwrap()];
        match rng.random_range(0..5) {
            0 => bytes[place] ^= 1 << rng.random_range(0..8_u8),
            1 => bytes[place] = rng.random(),
            2 => bytes.truncate(place),
            // A count, a length, or a pointer: to the question, or to itself.
            3 => bytes[place..place + 2].copy_from_slice(&numbers[rng.random_range(0..numbers.len())].to_be_bytes()),
            _ => bytes.extend(iter::repeat_n(rng.random::<u8>(), rng.random_range(1..1000))),
        }
    }
    bytes
}

/// Two pods of one service.
fn lab() -> Lab {
    let lab = Lab::start(1);
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 0, 3)])]);
    lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    lab.hosts[0].attach("t2", &[("front", "10.128.0.3")]).unwrap();
    lab
}

fn answers_others(host: &Host, what: &str) {
    assert_eq!(resolve(host, "t2", "web.").len(), 2, "{what}");
}

#[test]
fn whatever_datagrams_come_in_the_next_question_is_answered() {
    let lab = lab();
    let host = &lab.hosts[0];
    let (seed, mut rng) = chance();
    let requests = requests();
    let socket = host.udp("t1", "10.128.0.2:0");
    socket.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let before = resident_kib(host.pid());
    for round in 0..rounds(ROUNDS) {
        let request = damaged(requests[rng.random_range(0..requests.len())].clone(), &mut rng);
        let what = format!("round {round} of RCLUSTER_SEED={seed}: {request:?}");
        socket.send_to(&request, RESOLVER).unwrap();
        while let Ok(len) = socket.recv(&mut buffer) {
            assert!((12..=ANSWER_BYTES_MAX).contains(&len) && buffer[2] & 0x80 != 0, "{what}: {:?}", &buffer[..len]);
        }
        if round % LOOK_EVERY == 0 {
            answers_others(host, &what);
        }
    }
    answers_others(host, &format!("at the end, RCLUSTER_SEED={seed}"));
    let grown = resident_kib(host.pid()).saturating_sub(before);
    assert!(grown < GROWTH_KIB_MAX, "RCLUSTER_SEED={seed}: {grown} KiB");
}

#[test]
fn whatever_streams_come_in_the_next_question_is_answered() {
    let lab = lab();
    let host = &lab.hosts[0];
    let (seed, mut rng) = chance();
    let requests = requests();
    for round in 0..rounds(ROUNDS).min(ROUNDS) / LOOK_EVERY {
        let mut request = damaged(requests[rng.random_range(0..requests.len())].clone(), &mut rng);
        request.truncate(usize::from(u16::MAX));
        let whole = u16::try_from(request.len()).unwrap();
        // As long as it is, or as it is not.
        let len = [whole, 0, 1, u16::MAX][rng.random_range(0..4)];
        let what = format!("round {round} of RCLUSTER_SEED={seed}: {len} bytes said of {request:?}");
        let mut stream = host.connect("t1", RESOLVER).unwrap();
        stream.write_all(&[&len.to_be_bytes(), request.as_slice()].concat()).unwrap();
        // Refused where it has ended already.
        drop(stream.shutdown(std::net::Shutdown::Write));
        // It ends by itself: with an answer, without one, or with a word that what was said was not sent.
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        assert!(answer.is_empty() || answer.len() >= 2 + 12, "{what}: {answer:?}");
        answers_others(host, &what);
    }
    answers_others(host, &format!("at the end, RCLUSTER_SEED={seed}"));
}
