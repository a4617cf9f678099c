use super::*;
use crate::core::fixtures::{encrypted, endpoint, numbered, published, service, t1_attached, view};

#[test]
fn what_does_not_fit_is_left_out_and_named() {
    let mut wire = view(1);
    wire.networks[0].endpoints.push(endpoint("t9", "n9", "10.128.0.9"));
    wire.networks[0].endpoints.push(endpoint("t8", "n2", "10.200.0.1"));
    wire.networks[0].endpoints.push(endpoint("t7", "n2", "10.128.0.3"));
    wire.networks.push(v1::NetworkView {
        id: "x".into(),
        name: "x".into(),
        vni: 4097,
        subnet: "10.128.9.0/24".into(),
        ..Default::default()
    });
    wire.networks.push(v1::NetworkView {
        id: "y".into(),
        name: "y".into(),
        vni: 9,
        subnet: "10.128.0.128/25".into(),
        ..Default::default()
    });
    let (picture, problems) = Picture::parse(&wire);
    assert_eq!(
        problems,
        [
            "endpoint t9 on network front is left out: its node n9 is not in the picture",
            "endpoint t8 on network front is left out: its address 10.200.0.1 is not in 10.128.0.0/24",
            "endpoint t7 on network front is left out: its address 10.128.0.3 is held by t2",
            "network x (x) is left out: its VNI 4097 is also that of front",
            "network y (y) is left out: its subnet 10.128.0.128/25 overlaps 10.128.0.0/24 of front",
        ]
    );
    assert_eq!(picture.networks.len(), 2);
}

#[test]
fn an_address_of_ipv6_that_is_none_is_named() {
    let mut wire = numbered(1, vec![published(v1::IngressPolicy::Mesh)]);
    wire.nodes[1].addresses6 = vec!["2001:db8::2".into(), "here".into()];
    wire.published[0].backends[0].ip6 = "there".into();
    wire.published[0].backends[1].ip6 = "fd00::1".into();
    let (picture, problems) = Picture::parse(&wire);
    assert_eq!(
        problems,
        [
            "the address \"here\" of node n2 is not IPv6; pods may reach the node by it",
            "task t3 is left out behind tcp port 8080: its address \"there\" is not IPv6",
        ]
    );
    assert_eq!((picture.nodes6.len(), picture.published[0].backends.len()), (1, 2));
}

#[test]
fn a_service_has_an_address_that_nobody_else_has() {
    let mut wire = view(1);
    wire.services = vec![
        service("web", "net-a", "10.128.0.9"),
        service("db", "net-a", "10.128.0.3"),
        service("log", "net-a", "10.128.0.9"),
        service("far", "net-b", "10.128.0.10"),
        service("bad", "net-b", "fd00::1"),
        service("gone", "net-z", "10.128.9.9"),
        v1::ServiceView { mode: v1::EndpointMode::Dnsrr.into(), ..service("many", "net-b", "10.128.1.9") },
    ];
    let (picture, problems) = Picture::parse(&wire);
    assert_eq!(
        problems,
        [
            "service db has no address on network front: 10.128.0.3 is held by task t2",
            "service log has no address on network front: 10.128.0.9 is held by service web",
            "service far has no address on network back: 10.128.0.10 is not in 10.128.1.0/24",
            "service bad has no address on network back: \"fd00::1\" is not IPv4",
        ]
    );
    let vips: Vec<(&Ipv4Addr, &str)> =
        picture.networks.values().flat_map(|network| &network.vips).map(|(ip, vip)| (ip, vip.service.as_str())).collect();
    assert_eq!(vips, [(&Ipv4Addr::new(10, 128, 0, 9), "web")]);
}

#[test]
fn a_picture_of_before_there_were_virtual_addresses_is_read() {
    let remembered = r#"{"term": 1, "revision": 2, "node_id": "n1", "networks": {"net-a": {"name": "front", "vni": 4097,
        "subnet": "10.128.0.0/24", "internal": false, "names": ["web"], "endpoints": {"10.128.0.3": {"task_id": "t2",
        "task": "web.2", "place": {"Node": "10.90.0.102"}, "serving": true, "names": ["web"]}}}}}"#;
    let picture: Picture = serde_json::from_str(remembered).unwrap();
    let network = &picture.networks["net-a"];
    assert_eq!((network.vips.len(), network.endpoints[&Ipv4Addr::new(10, 128, 0, 3)].dead), (0, false));
}

#[test]
fn a_network_with_a_pod_outlives_the_picture_until_the_pod_goes() {
    let (old, _) = Picture::parse(&view(1));
    let mut attachments = t1_attached();
    let (mut new, _) = Picture::parse(&v1::NetView { term: 1, revision: 2, node_id: "n1".into(), ..Default::default() });
    new.retain_attached(&old, &attachments);
    assert_eq!(new.networks.keys().collect::<Vec<_>>(), ["net-a"]);
    new.release_detached(&attachments);
    assert_eq!(new.networks.len(), 1);
    attachments.clear();
    new.release_detached(&attachments);
    assert!(new.networks.is_empty());
}

#[test]
fn an_encrypted_network_that_leaves_keeps_the_keys_that_are_not_told_any_more() {
    let mut wire = encrypted("net-a");
    let (old, _) = Picture::parse(&wire);
    wire.networks.clear();
    wire.nodes.iter_mut().skip(1).for_each(|node| node.wireguard_keys.clear());
    let (mut new, _) = Picture::parse(&wire);
    new.retain_attached(&old, &t1_attached());
    let keys = [101, 102, 103].map(|last| new.members[&Ipv4Addr::new(10, 90, 0, last)].keys.len());
    assert_eq!(keys, [1, 1, 0], "n3 is on no network that stays");
}
