use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::*;
use crate::core::fixtures::{endpoint, view};
use crate::core::picture::Picture;

const NET: &str = "net-a";

fn ports(protocol: v1::Protocol, first: u32, last: u32) -> v1::PolicyPort {
    v1::PolicyPort { protocol: protocol.into(), first, last }
}

/// An allowance; `*` for all, what holds a slash is a range.
fn allow(from: &[&str], to: &[&str], ports: &[v1::PolicyPort]) -> v1::AllowView {
    let texts = |names: &[&str], wanted: fn(&str) -> bool| -> Vec<String> {
        names.iter().filter(|name| wanted(name)).map(|name| (*name).to_owned()).collect()
    };
    let services = |names: &[&str]| texts(names, |name| name != "*" && !name.contains('/'));
    v1::AllowView {
        from_service_ids: services(from),
        from_all: from.contains(&"*"),
        from_cidrs: texts(from, |name| name.contains('/')),
        to_service_ids: services(to),
        to_all: to.contains(&"*"),
        ports: ports.to_vec(),
    }
}

/// The network `front` with `web` at .2 and .3 and `db` at .4, under this policy.
fn network(allow: Vec<v1::AllowView>) -> (Network, Vec<String>) {
    let mut wire = view(1);
    for (endpoint, service) in wire.networks[0].endpoints.iter_mut().zip(["web", "web", "db"]) {
        endpoint.service_id = service.into();
    }
    wire.networks[0].policy = Some(v1::NetworkPolicyView { allow });
    let (mut picture, problems) = Picture::parse(&wire);
    (picture.networks.remove(NET).unwrap(), problems)
}

fn shown(passages: &[Passage]) -> String {
    let range = |first: String, last: String| if first == last { first } else { format!("{first}-{last}") };
    let line = |Passage { from, to, protocols, ports }: &Passage| {
        let addresses = |(first, last): (Ipv4Addr, Ipv4Addr)| range(first.to_string(), last.to_string());
        let (protocols, ports) = (range(protocols.0.to_string(), protocols.1.to_string()), range(ports.0.to_string(), ports.1.to_string()));
        format!("{} to {} {protocols}:{ports}", addresses(*from), addresses(*to))
    };
    passages.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn check(allow: Vec<v1::AllowView>, expected: &str) {
    let (network, problems) = network(allow);
    assert_eq!((shown(&passages(&network).unwrap()).as_str(), problems.len()), (expected, 0));
}

#[test]
fn what_is_allowed_is_what_may_pass() {
    let (tcp, udp) = (v1::Protocol::Tcp, v1::Protocol::Udp);
    check(Vec::new(), "");
    check(
        vec![allow(&["web"], &["db"], &[ports(tcp, 80, 80), ports(tcp, 81, 90), ports(udp, 53, 53)])],
        "10.128.0.2 to 10.128.0.4 1:0-65535
10.128.0.2 to 10.128.0.4 6:80-90
10.128.0.2 to 10.128.0.4 17:53
10.128.0.3 to 10.128.0.4 1:0-65535
10.128.0.3 to 10.128.0.4 6:80-90
10.128.0.3 to 10.128.0.4 17:53",
    );
    check(vec![allow(&["*"], &["db"], &[])], "10.128.0.0-10.128.0.255 to 10.128.0.4 0-255:0-65535");
    check(
        vec![allow(&["*"], &["db"], &[ports(tcp, 80, 80)]), allow(&["db"], &["db", "gone"], &[ports(tcp, 79, 81)])],
        "10.128.0.0-10.128.0.255 to 10.128.0.4 1:0-65535
10.128.0.0-10.128.0.255 to 10.128.0.4 6:80
10.128.0.4 to 10.128.0.4 6:79
10.128.0.4 to 10.128.0.4 6:81",
    );
    check(
        vec![allow(&["db"], &["db"], &[]), allow(&["*"], &["*"], &[ports(tcp, 80, 80)])],
        "10.128.0.0-10.128.0.255 to 10.128.0.0-10.128.0.255 1:0-65535
10.128.0.0-10.128.0.255 to 10.128.0.0-10.128.0.255 6:80
10.128.0.4 to 10.128.0.4 0:0-65535
10.128.0.4 to 10.128.0.4 2-5:0-65535
10.128.0.4 to 10.128.0.4 6:0-79
10.128.0.4 to 10.128.0.4 6:81-65535
10.128.0.4 to 10.128.0.4 7-255:0-65535",
    );
    // Who comes from outside is none of the network's.
    check(vec![allow(&["192.0.2.0/24"], &["db"], &[])], "");
}

#[test]
fn who_comes_by_published_ports_may_come_from_ranges_that_are_told_apart_where_they_overlap() {
    let tcp = v1::Protocol::Tcp;
    let (network, _) = network(vec![
        allow(&["web", "10.0.0.0/8", "fd00::/8"], &["db"], &[ports(tcp, 80, 80)]),
        allow(&["10.1.0.0/16"], &["db"], &[ports(tcp, 81, 81)]),
        allow(&["11.0.0.0/8"], &["*"], &[ports(tcp, 80, 80)]),
        allow(&["0.0.0.0/0"], &["web"], &[]),
    ]);
    let db = Ipv4Addr::new(10, 128, 0, 4);
    assert_eq!(
        shown(&admissions(&network, db)),
        "10.0.0.0-10.0.255.255 to 10.128.0.4 6:80
10.1.0.0-10.1.255.255 to 10.128.0.4 6:80-81
10.2.0.0-11.255.255.255 to 10.128.0.4 6:80"
    );
    let web = Ipv4Addr::new(10, 128, 0, 2);
    assert_eq!(shown(&admissions(&network, web)), "0.0.0.0-255.255.255.255 to 10.128.0.2 0-255:0-65535");
    let unknown = Ipv4Addr::new(10, 128, 0, 77);
    assert_eq!(shown(&admissions(&network, unknown)), "11.0.0.0-11.255.255.255 to 10.128.0.77 6:80");
}

#[test]
fn what_cannot_be_read_allows_nothing() {
    let ports = ports(v1::Protocol::Tcp, 80, 80);
    let (network, problems) = network(vec![
        allow(&["web", "10.0.0/8"], &["db"], &[]),
        allow(&["web"], &["db"], &[ports, v1::PolicyPort { protocol: 0, ..ports }]),
        allow(&["web"], &["db"], &[v1::PolicyPort { first: 90, ..ports }]),
        allow(&["web"], &["db"], &[v1::PolicyPort { last: 65_536, ..ports }]),
    ]);
    assert_eq!(passages(&network), Ok(Vec::new()));
    assert_eq!(
        problems,
        [
            "what policy.allow[0] of network front allows is refused: \"10.0.0/8\" is no CIDR",
            "what policy.allow[1] of network front allows is refused: its ports have no protocol",
            "what policy.allow[2] of network front allows is refused: 90-80 are no ports",
            "what policy.allow[3] of network front allows is refused: 80-65536 are no ports",
        ]
    );
}

#[test]
fn of_a_policy_that_is_too_large_nothing_passes() {
    let mut wire = view(1);
    wire.networks[0].subnet = "10.128.0.0/16".into();
    wire.networks.truncate(1);
    for number in 0..200_u32 {
        let ip = Ipv4Addr::from(0x0a80_1000 + number).to_string();
        wire.networks[0].endpoints.push(v1::EndpointView { service_id: "many".into(), ..endpoint(&ip, "n2", &ip) });
    }
    wire.networks[0].policy = Some(v1::NetworkPolicyView { allow: vec![allow(&["many"], &["many"], &[])] });
    let picture = Picture::parse(&wire).0;
    assert_eq!(passages(&picture.networks[NET]), Err(40_000));
}

#[test]
fn a_policy_is_remembered_as_it_was() {
    let (network, _) = network(vec![allow(&["web", "10.0.0.0/8"], &["*"], &[])]);
    let text = serde_json::to_string(&network).unwrap();
    assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), network);
    let of_before = r#"{"name": "front", "vni": 4097, "subnet": "10.128.0.0/24", "internal": false, "names": [], "endpoints": {}}"#;
    assert_eq!(serde_json::from_str::<Network>(of_before).unwrap().policy, None);
}

fn any_side(ranges: bool) -> impl Strategy<Value = Vec<&'static str>> {
    let words: Vec<&str> =
        ["web", "db", "*", "gone"].into_iter().chain(if ranges { vec!["10.0.0.0/30", "10.0.0.2/31"] } else { vec![] }).collect();
    proptest::collection::vec(proptest::sample::select(words), 1..3)
}

fn any_allow() -> impl Strategy<Value = v1::AllowView> {
    let protocol = prop_oneof![Just(v1::Protocol::Tcp), Just(v1::Protocol::Udp)];
    let port = (protocol, 0_u32..8, 0_u32..8).prop_map(|(protocol, first, more)| ports(protocol, first, first + more));
    (any_side(true), any_side(false), proptest::collection::vec(port, 0..3)).prop_map(|(from, to, ports)| allow(&from, &to, &ports))
}

impl Passage {
    fn holds(&self, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, port: u16) -> bool {
        let Self { from: (from_first, from_last), to: (to_first, to_last), protocols, ports } = *self;
        (from_first..=from_last).contains(&from)
            && (to_first..=to_last).contains(&to)
            && (protocols.0..=protocols.1).contains(&protocol)
            && (ports.0..=ports.1).contains(&port)
    }

    /// Whether the kernel would refuse one of them beside the other.
    fn is_in_the_way_of(&self, other: &Self) -> bool {
        let Self { from, to, protocols, ports } = *other;
        self.holds(from.0, to.0, protocols.0, ports.0) || self.holds(from.1, to.1, protocols.1, ports.1)
    }
}

/// The same boxes as the kernel gets them for IPv6.
fn six(passages: &[Passage]) -> Vec<Passage> {
    let of_one = |passage: &Passage| {
        let passage = *passage;
        passage.protocols6().into_iter().map(move |protocols| Passage { protocols, ..passage })
    };
    passages.iter().flat_map(of_one).collect()
}

/// What the words say, connection by connection.
fn says(network: &Network, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, port: u16, outside: bool) -> bool {
    let is = |side: &Side, ip: Ipv4Addr| {
        side.all || network.endpoints.get(&ip).is_some_and(|endpoint| side.services.contains(endpoint.service_id.as_str()))
    };
    let number = Span::of(protocol, port, port).first;
    network.policy.iter().flat_map(|policy| &policy.allow).any(|allowance| {
        let at_port = allowance.spans.iter().any(|span| (span.first..=span.last).contains(&number));
        let comes = if outside { allowance.from_ranges.iter().any(|range| range.contains(&from)) } else { is(&allowance.from, from) };
        comes && is(&allowance.to, to) && (at_port || !outside && protocol == PROTOCOL_ICMP)
    })
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

    #[test]
    fn boxes_say_what_the_words_say_and_do_not_collide(
        allow in proptest::collection::vec(any_allow(), 0..5),
        protocol in prop_oneof![Just(1_u8), Just(6), Just(17), Just(58), any::<u8>()],
        port in 0_u16..20,
    ) {
        let (network, problems) = network(allow);
        prop_assert!(problems.is_empty());
        let inside = passages(&network).unwrap();
        for from in 1..6_u8 {
            for to in 1..6_u8 {
                let (from, to) = (Ipv4Addr::new(10, 128, 0, from), Ipv4Addr::new(10, 128, 0, to));
                let passes = inside.iter().any(|passage| passage.holds(from, to, protocol, port));
                prop_assert_eq!(passes, says(&network, from, to, protocol, port, false), "{} to {}", from, to);
                // Of IPv6 the same.
                let number = [(1, 58), (58, 1)].into_iter().find(|(of, _)| *of == protocol).map_or(protocol, |(_, number)| number);
                let passes6 = six(&inside).iter().any(|passage| passage.holds(from, to, number, port));
                prop_assert_eq!(passes6, passes, "{} to {} by {}", from, to, number);
            }
        }
        let target = Ipv4Addr::new(10, 128, 0, 4);
        let outside = admissions(&network, target);
        for last in 0..6_u8 {
            let from = Ipv4Addr::new(10, 0, 0, last);
            let passes = outside.iter().any(|passage| passage.holds(from, target, protocol, port));
            prop_assert_eq!(passes, says(&network, from, target, protocol, port, true), "from {}", from);
        }
        for passages in [six(&inside), inside, outside] {
            for (index, one) in passages.iter().enumerate() {
                let others = passages.iter().enumerate().filter(|(other, _)| *other != index);
                prop_assert!(others.map(|(_, other)| other).all(|other| !one.is_in_the_way_of(other)), "{:?}", one);
            }
        }
    }
}
