use std::sync::Arc;

use super::super::tests::{Bench, bench, request};
use super::*;
use crate::core::dataplane::Dataplane;
use crate::core::fixtures::{balanced, endpoint, flow, numbered, published, view};
use crate::core::links::veth_name;
use crate::core::published::Opening;
use crate::kernel::fake::Fake;

/// What the node has and is not to have, and what it lacks, as `+ kind text | value` and `- …`.
fn differences(owner: &mut Owner<Fake>, request: &v1::DumpRequest) -> Vec<String> {
    let v1::DumpResponse { wanted, held, .. } = owner.dump(request).unwrap();
    let line = |sign: char, v1::NetEntry { kind, text, value }: &v1::NetEntry| format!("{sign} {kind} {text} | {value}");
    let surplus = held.iter().filter(|entry| !wanted.contains(entry)).map(|entry| line('+', entry));
    surplus.chain(wanted.iter().filter(|entry| !held.contains(entry)).map(|entry| line('-', entry))).collect()
}

/// A pod here on a network that has a virtual address.
fn audited() -> Bench {
    let Bench { mut owner, _dir } = bench();
    owner.apply_view(&balanced(1)).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    Bench { owner, _dir }
}

/// What is done to what is held, and what differs then.
type Break<'a> = (&'a dyn Fn(&mut Dataplane), &'a [&'a str]);

#[test]
fn a_dump_of_what_is_in_order_differs_in_nothing_and_one_of_what_is_broken_in_that_alone() {
    let plain = v1::DumpRequest::default();
    let link = veth_name("t1", "net-a");
    let remote: ipnet::IpNet = "10.128.0.3/32".parse().unwrap();
    let breaks: [Break<'_>; 12] = [
        (&|held| held.resolver = false, &["- device lo | up with 169.254.53.53"]),
        (
            &|held| held.links.retain(|name, _| name != "v4098"),
            &["- device v4098 | vxlan vni 4098 from 10.90.0.101 port 4789 mac 02:76:0a:5a:00:65 mtu 1450 up"],
        ),
        (
            &|held| held.links.get_mut("up").unwrap().up = false,
            &["+ device up | uplink mac 02:72:00:00:00:02 mtu 1450 down", "- device up | uplink mac 02:72:00:00:00:02 mtu 1450 up"],
        ),
        (&|held| held.pods.get_mut("t1").unwrap().clear(), &["- pod t1/eth0 | "]),
        (&|held| drop(held.neighbours.pop_last()), &["- neighbour 10.90.0.103 on v4098 | 02:76:0a:5a:00:67"]),
        (&|held| drop(held.forwards.pop_last()), &["- forward 02:76:0a:5a:00:67 to 10.90.0.103 on v4098 | "]),
        (&|held| drop(held.routes.remove(&remote)), &["- route 10.128.0.3/32 | via 10.90.0.102 on v4097"]),
        (&|held| drop(held.elements.pop_first()), &["- element sources { "]),
        (
            &|held| held.rules.rules.retain(|rule| rule != "leave: oifname up masquerade random-fully"),
            &["- rule leave: oifname up masquerade random-fully | "],
        ),
        (
            &|held| held.rules.chains.retain(|chain| !chain.starts_with("answer ")),
            &["- rule chain answer filter hook 3 priority -300 policy 1 | "],
        ),
        (&|held| held.host.peers.retain(|peer| peer.octets()[3] != 103), &["- host peer 10.90.0.103 | "]),
        (&|held| held.host.forwarding = false, &["- host forwarding | "]),
    ];
    for (deed, expected) in breaks {
        let Bench { mut owner, _dir } = audited();
        assert_eq!(differences(&mut owner, &plain), Vec::<String>::new());
        deed(&mut owner.kernel.held);
        let found = differences(&mut owner, &plain);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        // The name of a device that is a hash is not told here.
        assert!(found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected)), "{found:#?}");
    }
    let Bench { mut owner, _dir } = audited();
    owner.kernel.held.routes.insert("10.128.0.99/32".parse().unwrap(), crate::core::neighbours::Route::Link { link });
    let found = differences(&mut owner, &plain);
    assert!(found.len() == 1 && found[0].starts_with("+ route 10.128.0.99/32 | on p"), "{found:?}");
}

#[test]
fn a_dump_tells_of_names_of_connections_and_of_a_view_that_is_not_obeyed() {
    let plain = v1::DumpRequest::default();
    let Bench { mut owner, _dir } = audited();
    let board = owner.shared.board.load_full();
    owner.shared.board.store(Arc::default());
    let found = differences(&mut owner, &plain);
    assert!(!found.is_empty() && found.iter().all(|line| line.starts_with("- name ")), "{found:#?}");
    owner.shared.board.store(board);
    owner.kernel.flows.push(flow(Transport::Udp, [10, 128, 0, 2], ([10, 128, 0, 8], 53), [10, 128, 0, 77]));
    assert_eq!(differences(&mut owner, &plain), Vec::<String>::new());
    let with_flows = v1::DumpRequest { conntrack: true, view: None };
    assert_eq!(differences(&mut owner, &with_flows), ["+ flow udp 10.128.0.2:4000 to 10.128.0.8:53 at 10.128.0.77 | "]);

    // The managers have moved t2 to n3 and made t9 here, which the node does not know.
    let mut newer = view(2);
    newer.networks[0].endpoints[1].node_id = "n3".into();
    newer.networks[0].endpoints.push(endpoint("t9", "n1", "10.128.0.9"));
    newer.services.clear();
    let found = differences(&mut owner, &v1::DumpRequest { conntrack: false, view: Some(newer.clone()) });
    for line in [
        "+ route 10.128.0.3/32 | via 10.90.0.102 on v4097",
        "- route 10.128.0.3/32 | via 10.90.0.103 on v4097",
        "+ name web.front.internal | 10.128.0.8",
        "- name web.front.internal | 10.128.0.2 10.128.0.3 10.128.0.4",
        "- endpoint 10.128.0.9 on front | t9",
    ] {
        assert!(found.contains(&line.to_owned()), "{line} is not among {found:#?}");
    }
    assert_eq!(owner.picture.version(), (1, 1), "it is not in force for having been looked at");
    newer.node_id = "n2".into();
    let refusal = owner.dump(&v1::DumpRequest { conntrack: false, view: Some(newer) }).unwrap_err();
    assert_eq!(refusal.to_string(), "the view is for node n2, and this is n1");
}

#[test]
fn a_dump_tells_what_published_ports_lack_and_not_of_those_that_others_have() {
    let Bench { mut owner, _dir } = bench();
    let view = numbered(1, vec![published(v1::IngressPolicy::Spread)]);
    owner.kernel.taken.insert(Opening { transport: Transport::Tcp, port: 8080 }, "nginx (pid 812)".into());
    owner.apply_view(&view).unwrap();
    owner.attach(&request("t1", "10.128.0.2")).unwrap();
    let by_view = v1::DumpRequest { conntrack: false, view: Some(view) };
    assert_eq!(differences(&mut owner, &by_view), Vec::<String>::new());
    owner.kernel.taken.clear();
    owner.tick();
    assert_eq!(differences(&mut owner, &by_view), Vec::<String>::new());
    let held = &mut owner.kernel.held;
    (held.ingress, held.detours) = (None, BTreeMap::new());
    held.selectors.pop_last();
    held.host.ports.clear();
    assert_eq!(
        differences(&mut owner, &by_view),
        [
            "- device ing, its address | 169.254.192.1, for any source",
            "- route of table 100002 | via 10.90.0.102 on ing",
            "- route of table 100003 | via 10.90.0.103 on ing",
            "- selector mark 0x1000003/0xffffffff to table 100003 at 1000 | ",
            "- host tcp port 8080 | ",
        ]
    );
}

#[test]
fn a_trace_is_of_a_pod_that_is_here() {
    let Bench { owner, _dir } = audited();
    let over = |protocol: i32, task_id: &str, target: &str| {
        owner.trace(&v1::TraceRequest { task_id: task_id.into(), target: target.into(), protocol })
    };
    let trace = |task_id: &str, target: &str| over(v1::Protocol::Unspecified.into(), task_id, target);
    let found = trace("t1", "10.128.0.3:80").unwrap();
    assert_eq!(found.verdict, "delivered to task web.t2 behind 10.90.0.102 at 10.128.0.3");
    assert_eq!(trace("t2", "web").unwrap_err().to_string(), "task t2 is not attached on this node");
    assert!(matches!(trace("t1", ""), Err(Refusal::Invalid(_))));
    let udp = i32::from(v1::Protocol::Udp);
    assert_eq!(over(udp, "t1", "10.128.0.3:80").unwrap(), v1::TraceResponse { protocol: udp, ..found });
    assert_eq!(
        over(udp, "t1", "10.128.0.3").unwrap_err().to_string(),
        "a trace over udp needs a port, and \"10.128.0.3\" has none: write NAME:PORT"
    );
    assert!(matches!(over(99, "t1", "10.128.0.3:80"), Err(Refusal::Invalid(why)) if why.contains("99")));
}
