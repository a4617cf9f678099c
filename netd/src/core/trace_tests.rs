use rcluster_api::wire::v1;

use super::*;
use crate::core::dataplane::compile;
use crate::core::fixtures::{attached, balanced, key, numbered, published, underlay, view};
use crate::core::uplink::{Forwarding, inside};

/// The service `web` is on `front` alone.
fn two_networks() -> v1::NetView {
    let mut view = balanced(1);
    view.networks[1].names.clear();
    view.networks[1].endpoints[0].names.clear();
    view
}

fn way(view: &v1::NetView, networks: &[(&str, [u8; 4])], target: &str) -> String {
    let attachments = attached("t1", networks);
    let (picture, problems) = Picture::parse(view);
    assert_eq!(problems, Vec::<String>::new());
    let dataplane = compile(&picture, &attachments, &underlay(Forwarding::Host));
    let sights = names::sights(&names::networks(&picture, &attachments), &attachments, inside(&picture));
    let ground = Ground { picture: &picture, dataplane: &dataplane, sight: &sights["t1"] };
    let (text, transport) = target.strip_suffix("/udp").map_or((target, None), |text| (text, Some(Transport::Udp)));
    let target = Target::parse(text, transport).unwrap();
    assert_eq!(trace(ground, "t9", target), None, "a pod that is not here");
    let Trace { steps, verdict } = trace(ground, "t1", target).unwrap();
    steps.into_iter().chain([format!("=> {verdict}")]).collect::<Vec<_>>().join("\n")
}

const BOTH: [(&str, [u8; 4]); 2] = [("net-a", [10, 128, 0, 2]), ("net-b", [10, 128, 1, 9])];

#[test]
fn a_services_name_leads_to_its_address_and_that_to_each_of_its_endpoints() {
    let expected = "web is 10.128.0.8, by front.internal, back.internal
10.128.0.8 is sent from 10.128.0.2 by eth0, on network front
10.128.0.8 is the address of service web: goto r3 chooses one of 10.128.0.2 10.128.0.3 10.128.0.4
10.128.0.2 is task web.t1 here: route 10.128.0.2/32 on LINK
10.128.0.3 is task web.t2 behind 10.90.0.102: route 10.128.0.3/32 via 10.90.0.102 on v4097
10.128.0.4 is task web.t3 behind 10.90.0.102: route 10.128.0.4/32 via 10.90.0.102 on v4097
=> delivered to task web.t1 here at 10.128.0.2; or delivered to task web.t2 behind 10.90.0.102 at 10.128.0.3; or delivered to task web.t3 \
                    behind 10.90.0.102 at 10.128.0.4";
    let expected = expected.replace("LINK", &crate::core::links::veth_name("t1", "net-a"));
    assert_eq!(way(&two_networks(), &BOTH, "Web:80"), expected);
}

#[test]
fn an_address_is_reached_by_the_interface_that_leads_to_it() {
    assert_eq!(
        way(&two_networks(), &BOTH, "10.128.1.2"),
        "10.128.1.2 is sent from 10.128.1.9 by eth1, on network back
10.128.1.2 is task web.t4 behind 10.90.0.103: route 10.128.1.2/32 via 10.90.0.103 on v4098
=> delivered to task web.t4 behind 10.90.0.103 at 10.128.1.2"
    );
    assert_eq!(
        way(&two_networks(), &BOTH[..1], "10.128.1.2"),
        "10.128.1.2 is sent from 10.128.0.2 by eth0, on network front
10.128.1.2 is task web.t4 behind 10.90.0.103: route 10.128.1.2/32 via 10.90.0.103 on v4098
=> refused: 10.128.1.2 is task web.t4 behind 10.90.0.103, to which network front does not lead"
    );
    assert_eq!(way(&two_networks(), &BOTH, "10.128.1.9"), "=> stays in the pod: 10.128.1.9 is its own, on eth1");
    assert_eq!(way(&two_networks(), &BOTH, "169.254.53.53:53"), "=> delivered to the resolver by eth0: it answers at port 53, and pings");
}

#[test]
fn what_is_encrypted_goes_by_a_tunnel_or_nowhere() {
    let mut view = two_networks();
    (view.key_epoch, view.networks[1].encrypted) = (1, true);
    (1..).zip(&mut view.nodes).for_each(|(number, node)| node.number = number);
    let sent = "10.128.1.2 is sent from 10.128.1.9 by eth1, on network back
10.128.1.2 is task web.t4 behind 10.90.0.103: route 10.128.1.2/32 via 10.90.0.103 on v4098";
    assert_eq!(
        way(&view, &BOTH, "10.128.1.2"),
        format!("{sent}\n=> dropped: network back is encrypted, and there is no tunnel to 10.90.0.103")
    );
    view.nodes.iter_mut().for_each(|node| node.wireguard_keys = vec![key(node.number, 1)]);
    assert_eq!(
        way(&view, &BOTH, "10.128.1.2"),
        format!(
            "{sent}\nnetwork back is encrypted: by the tunnel to 169.254.96.3\n=> delivered to task web.t4 behind 10.90.0.103 at 10.128.1.2"
        )
    );
}

#[test]
fn what_is_nobodys_and_what_is_outside() {
    let sent = |ip: &str| format!("{ip} is sent from 10.128.0.2 by eth0, on network front");
    let last = |view: &v1::NetView, target: &str| {
        let way = way(view, &BOTH[..1], target);
        let (steps, verdict) = way.rsplit_once('\n').unwrap_or(("", &way));
        assert!(target.parse::<Ipv4Addr>().is_err() || steps.starts_with(&sent(target)), "{steps}");
        verdict.to_owned()
    };
    let mut view = two_networks();
    assert_eq!(last(&view, "10.128.0.77"), "=> refused: 10.128.0.77 is nobody's on network front");
    assert_eq!(last(&view, "192.0.2.1"), "=> sent out of the cluster, to 192.0.2.1, under the host's address");
    let kept = "of no network of this node, and of what networks' addresses are chosen from, or of a link";
    for ip in ["10.200.0.1", "169.254.169.254"] {
        assert_eq!(last(&view, ip), format!("=> refused: {ip} is {kept}"));
    }
    assert_eq!(last(&view, "10.90.0.103"), "=> refused: 10.90.0.103 is a node, and pods reach nothing of nodes but published ports");
    assert_eq!(last(&view, "example.com"), "=> example.com is no name of ours: the pod's own resolvers are asked for it, or the host's");
    assert_eq!(last(&view, "fd00::1"), "=> sent nowhere: the pod has no route to fd00::1");
    assert_eq!(last(&view, "wep"), "=> sent nowhere: there is no name wep in front.internal");
    view.networks[0].internal = true;
    assert_eq!(last(&view, "192.0.2.1"), "=> refused: network front is internal, and 192.0.2.1 is outside");
    for endpoint in &mut view.networks[0].endpoints {
        endpoint.serving = false;
    }
    assert_eq!(last(&view, "10.128.0.8"), "=> refused: nobody takes connections to the address of service web from network front");
    assert_eq!(last(&view, "web.t3"), "=> sent nowhere: web.t3 is a name of front.internal, and nobody serves under it");
}

#[test]
fn a_nodes_published_port_leads_to_its_backends_wherever_they_are() {
    let mut view = numbered(1, vec![published(v1::IngressPolicy::Spread)]);
    let expected = "10.90.0.103 is sent from 10.128.0.2 by eth0, on network front
10.90.0.103 is a node with a published tcp port 8080: goto p3 chooses one of 10.128.0.2 10.128.0.3 10.128.0.4
10.128.0.2 is task web.t1 here: route 10.128.0.2/32 on LINK
10.128.0.3 is task web.t2 behind 10.90.0.102: route of table 100002 via 10.90.0.102 on ing
10.128.0.4 is task web.t3 behind 10.90.0.102: route of table 100002 via 10.90.0.102 on ing
=> delivered to task web.t1 here at 10.128.0.2, tcp port 80; or delivered to task web.t2 behind 10.90.0.102 at 10.128.0.3, tcp port 80; or \
                    delivered to task web.t3 behind 10.90.0.102 at 10.128.0.4, tcp port 80";
    let expected = expected.replace("LINK", &crate::core::links::veth_name("t1", "net-a"));
    assert_eq!(way(&view, &BOTH[..1], "10.90.0.103:8080"), expected);
    let last = |view: &v1::NetView, target: &str| way(view, &BOTH[..1], target).lines().next_back().unwrap_or_default().to_owned();
    assert_eq!(last(&view, "10.90.0.103:8081"), "=> refused: 10.90.0.103 is a node, and pods reach nothing of nodes but published ports");
    view.networks[0].policy = Some(v1::NetworkPolicyView::default());
    let refused =
        "=> refused: by its network's policy 10.128.0.2 does not come to tcp port 80 of task web.t1 here by a published port; or ";
    assert!(last(&view, "10.90.0.103:8080").starts_with(refused));
    view.networks[0].internal = true;
    assert_eq!(last(&view, "10.90.0.103:8080"), "=> refused: network front is internal, and 10.90.0.103 is outside");
    view.published[0].ports[0].allow_from = vec!["192.0.2.0/24".into()];
    let refused = "=> refused: 10.128.0.2 is not among the clients that tcp port 8080 is published for";
    assert_eq!(last(&view, "10.90.0.103:8080"), refused);
}

#[test]
fn over_udp_a_published_port_is_another_one_than_over_tcp_and_refusals_are_icmp() {
    let mut view = numbered(1, vec![published(v1::IngressPolicy::Local)]);
    view.published[0].ports[0].protocol = v1::Protocol::Udp.into();
    let last = |view: &v1::NetView, target: &str| way(view, &BOTH[..1], target).lines().next_back().unwrap_or_default().to_owned();
    assert_eq!(last(&view, "10.90.0.103:8080/udp"), "=> delivered to task web.t1 here at 10.128.0.2, udp port 80");
    let node = "10.90.0.103 is a node, and pods reach nothing of nodes but published ports";
    assert_eq!(last(&view, "10.90.0.103:8080"), format!("=> refused: {node}"));
    assert_eq!(last(&view, "10.90.0.103:8081/udp"), format!("=> refused, as ICMP port unreachable: {node}"));
    let foreign = "10.128.1.2 is task web.t4 behind 10.90.0.103, to which network front does not lead";
    assert_eq!(last(&view, "10.128.1.2:53/udp"), format!("=> refused, as ICMP administratively prohibited: {foreign}"));
    view.networks[0].policy = Some(v1::NetworkPolicyView::default());
    let judged = "by the policy of network front 10.128.0.2 does not speak with task web.t2 behind 10.90.0.102 by udp port 53";
    assert_eq!(last(&view, "10.128.0.3:53/udp"), format!("=> refused, as ICMP administratively prohibited: {judged}"));
    view.published[0].ports[0].allow_from = vec!["192.0.2.0/24".into()];
    let guarded = "10.128.0.2 is not among the clients that udp port 8080 is published for";
    assert_eq!(last(&view, "10.90.0.103:8080/udp"), format!("=> refused, as ICMP port unreachable: {guarded}"));

    let mut view = two_networks();
    assert!(last(&view, "web:53/udp").starts_with("=> delivered to task web.t1 here at 10.128.0.2; or "));
    view.networks[0].endpoints.iter_mut().for_each(|endpoint| endpoint.serving = false);
    let unserved = "nobody takes connections to the address of service web from network front";
    assert_eq!(last(&view, "web:53/udp"), format!("=> refused, as ICMP port unreachable: {unserved}"));
}

#[test]
fn what_is_outside_is_followed_by_ipv6_where_the_host_has_a_way() {
    let mut wire = two_networks();
    wire.networks[0].subnet6 = "fd00:1::/64".into();
    let verdict = |ways: &[&str], target: &str| {
        let attachments = attached("t1", &BOTH[..1]);
        let mut picture = Picture::parse(&wire).0;
        picture.beyond6 = ways.iter().map(|way| way.parse().unwrap()).collect();
        picture.nodes6 = ["2001:db8:f::102".parse().unwrap()].into();
        let dataplane = compile(&picture, &attachments, &underlay(Forwarding::Host));
        let sight = Sight::default();
        let ground = Ground { picture: &picture, dataplane: &dataplane, sight: &sight };
        trace(ground, "t1", Target::parse(target, None).unwrap()).unwrap().verdict
    };
    assert_eq!(verdict(&["::/0"], "[2001:db8::1]:80"), "sent out of the cluster, to 2001:db8::1, under the host's address");
    assert_eq!(verdict(&[], "[2001:db8::1]:80"), "sent nowhere: the pod has no route to 2001:db8::1");
    assert_eq!(verdict(&["2001:db8::/32"], "2001:dead::1"), "refused: this node has no way to 2001:dead::1");
    assert_eq!(verdict(&["::/0"], "fd00:ec2::254"), "refused: this node has no way to fd00:ec2::254");
    assert_eq!(verdict(&["::/0"], "2001:db8:f::102"), "refused: 2001:db8:f::102 is a node, of which pods reach nothing by IPv6");
}

#[test]
fn a_target_over_a_transport_has_a_port() {
    let aim = |text, transport| Target::parse(text, transport).map(|Target { host, aim }| format!("{host} by {aim}"));
    assert_eq!(aim("web", None).unwrap(), "web by pings");
    assert_eq!(aim("web:80", None).unwrap(), "web by tcp port 80");
    assert_eq!(aim("web:53", Some(Transport::Udp)).unwrap(), "web by udp port 53");
    assert_eq!(aim("[fd00::2]:53", Some(Transport::Udp)).unwrap(), "[fd00::2] by udp port 53");
    for text in ["web", "web:x", "fd00::2", "web:70000"] {
        let why = aim(text, Some(Transport::Udp)).unwrap_err();
        assert_eq!(why, format!("a trace over udp needs a port, and {text:?} has none: write NAME:PORT"));
    }
}

#[test]
fn a_policy_is_asked_for_pings_and_for_ports() {
    let mut view = view(1);
    for (endpoint, service) in view.networks[0].endpoints.iter_mut().zip(["web", "db", "web"]) {
        endpoint.service_id = service.into();
    }
    let allow = v1::AllowView {
        from_service_ids: vec!["web".into()],
        to_service_ids: vec!["db".into()],
        ports: vec![v1::PolicyPort { protocol: v1::Protocol::Tcp.into(), first: 80, last: 80 }],
        ..v1::AllowView::default()
    };
    view.networks[0].policy = Some(v1::NetworkPolicyView { allow: vec![allow] });
    let db = "task web.t2 behind 10.90.0.102";
    for (target, expected) in [
        ("10.128.0.3", format!("delivered to {db} at 10.128.0.3")),
        ("10.128.0.3:80", format!("delivered to {db} at 10.128.0.3")),
        ("10.128.0.3:81", format!("refused: by the policy of network front 10.128.0.2 does not speak with {db} by tcp port 81")),
        (
            "10.128.0.4",
            "refused: by the policy of network front 10.128.0.2 does not speak with task web.t3 behind 10.90.0.102 by pings".to_owned(),
        ),
        ("192.0.2.1:80", "sent out of the cluster, to 192.0.2.1, under the host's address".to_owned()),
    ] {
        let way = way(&view, &BOTH[..1], target);
        assert!(way.ends_with(&format!("\n=> {expected}")), "{target}: {way}");
    }
}
