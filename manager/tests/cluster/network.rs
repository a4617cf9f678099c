//! What the managers say of the network: what they want of a node, and from where subnets are chosen.

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1::manager_message::Kind;
use rcluster_api::wire::v1::{self, relay_open};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::agents::{Agent, asked};
use crate::support::{Cluster, user};

fn pool(cidr: &str, prefix: u32) -> v1::UpdatePoolsRequest {
    v1::UpdatePoolsRequest { add: vec![v1::AddressPool { cidr: cidr.to_owned(), prefix, cursor: 0 }] }
}

#[tokio::test]
async fn pools_are_shown_to_all_users_and_added_by_administrators() {
    let cluster = Cluster::found().await;
    let reader = user(&cluster, "eve", v1::UserRole::ReadOnly).await;
    let mut looker = cluster.control(&reader).await.unwrap();
    let status = |cidr: &str, prefix, subnets, free| v1::PoolStatus { cidr: cidr.to_owned(), prefix, subnets, free };
    let first = status("10.128.0.0/9", 24, 1 << 15, 1 << 15);
    assert_eq!(looker.update_pools(v1::UpdatePoolsRequest::default()).await.unwrap().into_inner().pools, [first]);
    let refused = ApiError::from(looker.update_pools(pool("10.64.0.0/16", 24)).await.unwrap_err());
    assert_eq!(refused.code, ErrorCode::Forbidden);
    assert_eq!(refused.message, "user eve has the role read-only; adding an address pool needs admin");

    cluster.write("lab").await;
    let mut admin = cluster.control(&cluster.admin).await.unwrap();
    let pools = admin.update_pools(pool("10.64.0.0/22", 24)).await.unwrap().into_inner().pools;
    assert_eq!(pools, [status("10.128.0.0/9", 24, 1 << 15, (1 << 15) - 1), status("10.64.0.0/22", 24, 4, 4)]);
    for (cidr, expected) in [
        ("10.64.1.0/24", "pool 10.64.1.0/24 overlaps pool 10.64.0.0/22"),
        ("10.64.1.0", "\"10.64.1.0\" is not an IPv4 range such as 10.200.0.0/16"),
        ("fd00::/48", "\"fd00::/48\" is not an IPv4 range such as 10.200.0.0/16"),
    ] {
        let refused = ApiError::from(admin.update_pools(pool(cidr, 24)).await.unwrap_err());
        assert_eq!((refused.code, refused.field.as_str(), refused.message.as_str()), (ErrorCode::Invalid, "add[0].cidr", expected));
    }
    assert_eq!(looker.update_pools(v1::UpdatePoolsRequest::default()).await.unwrap().into_inner().pools, pools);
}

#[tokio::test]
async fn what_is_wanted_of_a_node_is_shown_and_goes_with_a_users_look_at_it() {
    let cluster = Cluster::found().await;
    let leader = cluster.addrs().remove(0);
    let agent = Agent::join(&cluster, &leader, "n1").await;
    let (_outbox, mut told) = agent.session(Vec::new()).await.unwrap();
    let reader = user(&cluster, "eve", v1::UserRole::ReadOnly).await;
    let mut looker = cluster.control(&reader).await.unwrap();
    let view = looker.view(v1::ViewRequest { node: "n1".to_owned() }).await.unwrap().into_inner();
    assert_eq!((view.node_id.as_str(), view.pools.as_slice()), (agent.id.as_str(), &["10.128.0.0/9".to_owned()][..]));
    assert_eq!(view.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["n1"]);
    let absent = ApiError::from(looker.view(v1::ViewRequest { node: "n9".to_owned() }).await.unwrap_err());
    assert_eq!((absent.code, absent.message.as_str()), (ErrorCode::NotFound, "there is no node n9"));

    let kind = Some(relay_open::Kind::NetDump(v1::RelayNetDump { conntrack: true }));
    let open = v1::RelayOpen { target: "n1".to_owned(), kind, ..v1::RelayOpen::default() };
    let (inputs, messages) = mpsc::channel(1);
    inputs.send(v1::RelayInput { kind: Some(v1::relay_input::Kind::Open(open)) }).await.unwrap();
    let _outputs = looker.relay(ReceiverStream::new(messages)).await.unwrap();
    let command = asked(&mut told, |kind| if let Kind::Relay(command) = kind { Some(command) } else { None }).await;
    let sent = command.expect("a relay is asked for").view.expect("the leader's view goes with it");
    assert_eq!((sent.node_id, sent.pools), (view.node_id, view.pools));
}
