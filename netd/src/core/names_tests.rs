use super::*;
use crate::core::picture::{Attachment, Choice, NamedPort, Vip};
use crate::core::uplink::inside;

fn network(name: &str, third: u8) -> Network {
    let endpoint = |slot: u8, serving: bool| {
        let names = ["web", "web.shop", "tasks.web"].map(CompactString::from).into_iter().chain([format!("{slot}.web").into()]).collect();
        let place = Place::Node(Ipv4Addr::new(10, 90, 0, 102));
        let (task_id, task, service_id) = (format!("id{slot}").into(), format!("web.{slot}").into(), "web".into());
        let endpoint = Endpoint { task_id, task, place, serving, dead: false, names, service_id };
        (Ipv4Addr::new(10, 128, third, slot), endpoint)
    };
    Network {
        name: name.to_owned(),
        vni: u32::from(third) + 1,
        subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 128, third, 0), 24),
        subnet6: None,
        internal: false,
        names: ["web", "empty"].map(str::to_owned).into(),
        endpoints: BTreeMap::from([endpoint(1, true), endpoint(2, true), endpoint(3, false)]),
        vips: BTreeMap::new(),
        policy: None,
        leaving: false,
        encrypted: false,
    }
}

fn check(name: &str, kind: Kind, expected: &str) {
    check_in(&network("front", 0), &Attachments::new(), name, kind, expected);
}

fn check_in(network: &Network, attachments: &Attachments, name: &str, kind: Kind, expected: &str) {
    assert_eq!(in_words(&lookup(&sight(std::slice::from_ref(network), attachments), name, kind)), expected, "{name} {kind:?}");
}

/// Of a pod that is on all of these.
fn sight(networks: &[Network], attachments: &Attachments) -> Sight {
    let picture = picture(networks);
    let networks = networks.iter().map(|network| Arc::new(NetworkNames::new(&picture, network, attachments)));
    Sight { networks: networks.collect(), inside: Arc::new(inside(&picture)) }
}

/// In which the service `web` of the stack `shop` has two ports with names, and nodes are called `n1` (this one) and `n2`.
fn picture(networks: &[Network]) -> Picture {
    let port = |name: &str, udp: bool, target: u16| NamedPort { name: name.to_owned(), udp, target };
    let ports = vec![port("http", false, 80), port("http", false, 8080), port("dns", true, 53)];
    let web = Service { name: "web".to_owned(), stack: "shop".to_owned(), ports };
    Picture {
        networks: networks.iter().map(|network| (network.name.clone(), network.clone())).collect(),
        services: BTreeMap::from([("web".to_owned(), web)]),
        node: "n1".to_owned(),
        node_names: BTreeMap::from([(Ipv4Addr::new(10, 90, 0, 102), "n2".to_owned())]),
        ..Picture::default()
    }
}

fn in_words(answer: &Answer<'_>) -> String {
    match answer {
        Answer::Addresses(addresses) => addresses.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(" "),
        Answer::Addresses6(addresses) => addresses.iter().map(Ipv6Addr::to_string).collect::<Vec<_>>().join(" "),
        Answer::Pointer(target) => (*target).to_owned(),
        Answer::Ports(targets) => {
            targets.iter().map(|Target { host, ip, port }| format!("{host}:{port}={ip}")).collect::<Vec<_>>().join(" ")
        }
        other @ (Answer::NoData | Answer::NoSuchName | Answer::Foreign | Answer::Refused) => format!("{other:?}"),
    }
}

#[test]
fn on_a_network_with_ipv6_names_have_those_addresses_too() {
    let six = Network { subnet6: "fd00:1:2:3::/64".parse().ok(), ..network("front", 0) };
    let reverse = |last: u8| {
        let digits = format!("{:032x}", six.ip6(Ipv4Addr::new(10, 128, 0, last)).unwrap().to_bits());
        digits.chars().rev().map(|digit| format!("{digit}.")).chain(["ip6.arpa".to_owned()]).collect::<String>()
    };
    let check = |name: &str, kind: Kind, expected: &str| check_in(&six, &Attachments::new(), name, kind, expected);
    check("web", Kind::Address6, "fd00:1:2:3::a80:1 fd00:1:2:3::a80:2");
    check("web.front.internal", Kind::Address6, "fd00:1:2:3::a80:1 fd00:1:2:3::a80:2");
    check("web", Kind::Address, "10.128.0.1 10.128.0.2");
    check("empty", Kind::Address6, "NoData");
    check("nobody", Kind::Address6, "NoSuchName");
    check(&reverse(1), Kind::Pointer, "web.1.front.internal");
    check(&reverse(1), Kind::Address6, "NoData");
    check(&reverse(9), Kind::Pointer, "NoSuchName");
    // Not of one address; of the range of the network's own cluster; of others.
    check("3.0.0.0.2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa", Kind::Pointer, "Refused");
    check("4.0.0.0.2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa", Kind::Pointer, "Refused");
    check("3.0.0.0.3.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa", Kind::Pointer, "Foreign");
    check("x.d.f.ip6.arpa", Kind::Pointer, "Foreign");
    check_in(&network("front", 0), &Attachments::new(), "web", Kind::Address6, "NoData");
}

#[test]
fn an_endpoint_has_names_by_its_id_and_its_node() {
    for (name, expected) in [
        ("web.n2.node", "10.128.0.1 10.128.0.2"),
        ("web.shop.n2.node", "10.128.0.1 10.128.0.2"),
        ("web.n2.node.front.internal", "10.128.0.1 10.128.0.2"),
        ("id2.web", "10.128.0.2"),
        ("id3.web", "NoData"),
        ("web.n1.node", "NoSuchName"),
        ("db.n2.node", "NoSuchName"),
        ("n2.node", "NoData"),
        ("shop.n2.node", "NoData"),
        ("node", "NoData"),
        ("n9.node", "NoSuchName"),
    ] {
        check(name, Kind::Address, expected);
    }
    let mut mixed = network("front", 0);
    mixed.endpoints.get_mut(&Ipv4Addr::new(10, 128, 0, 2)).unwrap().place = Place::Here;
    let membership = Membership { network_id: "front".to_owned(), ip: Ipv4Addr::new(10, 128, 0, 2) };
    let here = Attachments::from([("id2".to_owned(), Attachment { networks: vec![membership], ..Attachment::default() })]);
    check_in(&mixed, &here, "web.n1.node", Kind::Address, "10.128.0.2");
    check_in(&mixed, &here, "web.n2.node", Kind::Address, "10.128.0.1");
    check_in(&mixed, &Attachments::new(), "web.n1.node", Kind::Address, "NoData");
}

#[test]
fn ports_with_names_lead_to_the_endpoints_that_serve() {
    let dns = "web.1.front.internal:53=10.128.0.1 web.2.front.internal:53=10.128.0.2";
    for name in ["_dns._udp.web", "_dns._udp.web.shop", "_dns._udp.web.front.internal", "_dns._udp.web.shop.front.internal"] {
        check(name, Kind::Port, dns);
        check(name, Kind::Address, "NoData");
    }
    check(
        "_http._tcp.web",
        Kind::Port,
        "web.1.front.internal:80=10.128.0.1 web.2.front.internal:80=10.128.0.2 \
         web.1.front.internal:8080=10.128.0.1 web.2.front.internal:8080=10.128.0.2",
    );
    for zone in ["_tcp.web", "_udp.web.shop", "web"] {
        check(zone, Kind::Port, "NoData");
    }
    for name in ["_http._udp.web", "_x._tcp.web.shop", "_dns._udp.web.back.internal"] {
        check(name, Kind::Port, "NoSuchName");
    }
    for name in ["_http._tcp.example.com", "_http._tcp.wep", "_http.web.x"] {
        check(name, Kind::Port, "Foreign");
    }
    let mut idle = network("front", 0);
    idle.endpoints.values_mut().for_each(|endpoint| endpoint.serving = false);
    check_in(&idle, &Attachments::new(), "_dns._udp.web", Kind::Port, "NoData");
}

#[test]
fn the_router_has_a_name() {
    check("host.rcluster.internal", Kind::Address, "169.254.53.53");
    check("host.rcluster.internal", Kind::Other, "NoData");
    check("rcluster.internal", Kind::Address, "NoData");
    check("other.rcluster.internal", Kind::Address, "NoSuchName");
    check("cluster.internal", Kind::Address, "NoSuchName");
}

#[test]
fn what_is_inside_is_said_by_the_picture() {
    let network = network("front", 0);
    let refused = |pools: &[&str]| {
        let mut picture = picture(std::slice::from_ref(&network));
        picture.pools = pools.iter().map(|pool| pool.parse().unwrap()).collect();
        let names = Arc::new(NetworkNames::new(&picture, &network, &Attachments::new()));
        let sight = Sight { networks: vec![names], inside: Arc::new(inside(&picture)) };
        let asked = ["9.9.200.10.in-addr.arpa", "9.9.20.172.in-addr.arpa", "20.172.in-addr.arpa", "172.in-addr.arpa"];
        asked.map(|name| lookup(&sight, name, Kind::Pointer) == Answer::Refused)
    };
    assert_eq!(refused(&[]), [true, false, false, false]);
    assert_eq!(refused(&["172.20.0.0/16"]), [false, true, true, false]);
}

#[test]
fn names_of_the_network_answer_with_its_serving_endpoints() {
    for name in ["web", "web.shop", "tasks.web", "web.front.internal", "tasks.web.front.internal"] {
        check(name, Kind::Address, "10.128.0.1 10.128.0.2");
    }
    check("2.web", Kind::Address, "10.128.0.2");
    check("web.2", Kind::Address, "10.128.0.2");
}

#[test]
fn a_virtual_address_is_the_one_answer_to_its_names() {
    let mut network = network("front", 0);
    let vip = |service: &str, names: &[&str]| Vip {
        service_id: service.to_owned(),
        service: service.to_owned(),
        choice: Choice::Random,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    network.vips.insert(Ipv4Addr::new(10, 128, 0, 8), vip("web", &["web", "web.shop", "www"]));
    network.vips.insert(Ipv4Addr::new(10, 128, 0, 9), vip("idle", &["idle", "www"]));
    let check = |name: &str, kind: Kind, expected: &str| check_in(&network, &Attachments::new(), name, kind, expected);
    for name in ["web", "web.shop", "web.front.internal"] {
        check(name, Kind::Address, "10.128.0.8");
    }
    check("idle", Kind::Address, "10.128.0.9");
    check("www", Kind::Address, "10.128.0.8 10.128.0.9");
    check("tasks.web", Kind::Address, "10.128.0.1 10.128.0.2");
    check("2.web", Kind::Address, "10.128.0.2");
    check("web.2", Kind::Address, "10.128.0.2");
    check("8.0.128.10.in-addr.arpa", Kind::Pointer, "web.front.internal");
    check("9.0.128.10.in-addr.arpa", Kind::Pointer, "idle.front.internal");
}

#[test]
fn an_endpoint_here_is_named_while_its_pod_has_the_address() {
    let mut network = network("front", 0);
    network.endpoints.values_mut().for_each(|endpoint| endpoint.place = Place::Here);
    let attached = |slot: u8, last: u8| {
        let membership = Membership { network_id: "front".to_owned(), ip: Ipv4Addr::new(10, 128, 0, last) };
        Attachments::from([(format!("id{slot}"), Attachment { networks: vec![membership], ..Attachment::default() })])
    };
    check_in(&network, &attached(2, 2), "web", Kind::Address, "10.128.0.2");
    check_in(&network, &attached(2, 2), "2.0.128.10.in-addr.arpa", Kind::Pointer, "web.2.front.internal");
    for elsewhere in [attached(2, 9), attached(9, 2), attached(3, 3)] {
        check_in(&network, &elsewhere, "web", Kind::Address, "NoData");
        check_in(&network, &elsewhere, "2.0.128.10.in-addr.arpa", Kind::Pointer, "NoSuchName");
    }
}

#[test]
fn a_name_that_exists_is_never_denied() {
    check("web", Kind::Other, "NoData");
    check("empty", Kind::Address, "NoData");
    check("3.web", Kind::Address, "NoData");
    check("front.internal", Kind::Address, "NoData");
    check("shop", Kind::Address, "NoData");
}

#[test]
fn only_what_is_ours_is_denied_and_the_rest_is_foreign() {
    for name in ["wep", "wep.front.internal", "9.web.front.internal", "web.back.internal", "x.internal"] {
        check(name, Kind::Address, "NoSuchName");
    }
    for name in ["example.com", "com.example", "9.web", "wep.shop", "tasks.wep", "a.web.shop", "a.tasks.b"] {
        check(name, Kind::Address, "Foreign");
    }
    check("", Kind::Address, "Refused");
}

#[test]
fn pods_whose_networks_are_all_internal_ask_nobody_else() {
    let (front, back) = (network("front", 0), Network { internal: true, ..network("back", 1) });
    let of = |networks: &[Network]| sight(networks, &Attachments::new());
    for name in ["example.com", "8.8.8.8.in-addr.arpa"] {
        assert_eq!(lookup(&of(std::slice::from_ref(&back)), name, Kind::Pointer), Answer::Refused, "{name}");
        assert_eq!(lookup(&of(&[back.clone(), front.clone()]), name, Kind::Pointer), Answer::Foreign, "{name}");
        assert_eq!(lookup(&of(&[]), name, Kind::Pointer), Answer::Refused, "{name}");
    }
}

#[test]
fn a_service_that_is_called_like_a_domain_has_its_names_and_no_others() {
    let mut com = network("front", 0);
    let names = ["com", "tasks.com", "1.com"].map(CompactString::from);
    com.endpoints.values_mut().for_each(|endpoint| endpoint.names.extend(names.clone()));
    let sight = sight(&[com], &Attachments::new());
    for name in ["com", "tasks.com", "1.com"] {
        assert!(matches!(lookup(&sight, name, Kind::Address), Answer::Addresses(_)), "{name}");
        assert_eq!(lookup(&sight, name, Kind::Other), Answer::NoData, "{name}");
    }
    for name in ["example.com", "163.com", "www.example.com"] {
        assert_eq!(lookup(&sight, name, Kind::Address), Answer::Foreign, "{name}");
    }
}

#[test]
fn addresses_of_the_subnet_lead_to_names_and_back() {
    check("1.0.128.10.in-addr.arpa", Kind::Pointer, "web.1.front.internal");
    check("web.1.front.internal", Kind::Address, "10.128.0.1");
    check("3.0.128.10.in-addr.arpa", Kind::Pointer, "NoSuchName");
    check("1.0.128.10.in-addr.arpa", Kind::Address, "NoData");
    for name in ["8.8.8.8.in-addr.arpa", "1.2.3.in-addr.arpa", "10.in-addr.arpa", "in-addr.arpa", "lb._dns-sd._udp.0.2.0.192.in-addr.arpa"]
    {
        check(name, Kind::Pointer, "Foreign");
    }
}

#[test]
fn others_are_not_asked_about_our_addresses() {
    for name in
        ["2.9.200.10.in-addr.arpa", "9.200.10.in-addr.arpa", "0.128.10.in-addr.arpa", "53.53.254.169.in-addr.arpa", "254.169.in-addr.arpa"]
    {
        check(name, Kind::Pointer, "Refused");
    }
    check("lb._dns-sd._udp.0.0.128.10.in-addr.arpa", Kind::Pointer, "Refused");
}

#[test]
fn a_pod_on_two_networks_sees_both_and_nobody_sees_more() {
    let both = sight(&[network("front", 0), network("back", 1)], &Attachments::new());
    let Answer::Addresses(addresses) = lookup(&both, "web", Kind::Address) else { panic!("no addresses") };
    assert_eq!(addresses.len(), 4);
    assert_eq!(lookup(&both, "1.web.back.internal", Kind::Address), Answer::Addresses(Cow::Owned(vec![Ipv4Addr::new(10, 128, 1, 1)])));
    assert_eq!(lookup(&Sight::default(), "web", Kind::Address), Answer::NoSuchName);
}
