//! Stores on logs in directories, with real connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::{Message, MessageType};
use rcluster_api::client::MESSAGE_BYTES_MAX;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::raft_client::RaftClient;
use rcluster_api::wire::v1::raft_server::RaftServer;
use rcluster_manager::config::Limits;
use rcluster_manager::rpc::limits::Limiter;
use rcluster_manager::rpc::listen::{self, Arrivals};
use rcluster_manager::rpc::raft::RaftService;
use rcluster_manager::store::{Member, ProposeError, RoleKind, Store, StoreConfig, identity, prepare, start};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::world::{founded, has, make, soon, until};

struct Manager {
    store: Store,
    server: AbortHandle,
    addr: SocketAddr,
}

impl Manager {
    /// Ends it without a word to the others.
    async fn stop(self) -> SocketAddr {
        self.server.abort();
        self.store.shutdown().await;
        self.addr
    }
}

/// An address of 127.0.0.0/8 that nobody else has: it is free again once who listened there has ended.
fn own_addr() -> SocketAddr {
    let [a, b, c] = rand::random::<[u8; 3]>();
    SocketAddr::from((Ipv4Addr::new(127, a.clamp(1, 250), b, c.clamp(1, 250)), 7443))
}

async fn listen(addr: SocketAddr) -> TcpListener {
    until("the address is free", || std::net::TcpListener::bind(addr).ok()).await.set_nonblocking(true).unwrap();
    TcpListener::bind(addr).await.unwrap()
}

async fn serve(listener: TcpListener, dir: &Path, id: u64, members: Vec<Member>) -> Manager {
    let addr = listener.local_addr().unwrap();
    let mut config = StoreConfig::new("cluster".to_owned(), format!("m{id}"), id, members.clone(), dir.join(format!("m{id}")));
    (config.snapshot_entries, config.trailing_entries) = (20, 5);
    if identity(&config.dir).unwrap().is_none() {
        prepare(&config, Some(&founded(&members))).unwrap();
    }
    let (store, inbound) = start(config, Security::plain()).unwrap();
    let service = RaftServer::new(RaftService::new(inbound)).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let app = tonic::service::Routes::new(service).into_axum_router();
    let arrivals = Arrivals { figures: Arc::default(), limiter: Limiter::new(Limits::default()) };
    Manager { store, server: tokio::spawn(listen::serve(listener, Security::plain(), app, arrivals)).abort_handle(), addr }
}

async fn cluster(dir: &Path) -> (Vec<Member>, Vec<Manager>) {
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind(own_addr()).await.unwrap());
    }
    let addrs = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string());
    let members: Vec<Member> = (1..).zip(addrs).map(|(id, addr)| Member { id, name: format!("m{id}"), addr }).collect();
    let mut managers = Vec::new();
    for (id, listener) in (1..).zip(listeners) {
        managers.push(serve(listener, dir, id, members.clone()).await);
    }
    (members, managers)
}

async fn leader(managers: &[Manager]) -> usize {
    let leads = |manager: &Manager| manager.store.role().borrow().kind == RoleKind::Leader;
    until("a leader", || managers.iter().position(leads)).await
}

/// Has whoever leads make the event, and asks again when nobody knows whether it was made.
async fn write(managers: &[Manager], id: &str) {
    let attempt = async {
        loop {
            let first = leader(managers).await;
            match managers[first].store.propose(make(id)).await {
                // The attempt before has made it.
                Ok(_) | Err(ProposeError::Conflict(_)) => return,
                Err(ProposeError::NotLeader { .. } | ProposeError::Unavailable) => tokio::time::sleep(Duration::from_millis(2)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    soon("a write", attempt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_stop_and_start_again_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (members, mut managers) = cluster(dir.path()).await;
    for round in 0..2 {
        for number in 0..30 {
            write(&managers, &format!("{round}-{number:02}")).await;
        }
        let mut addrs = Vec::new();
        for manager in managers.drain(..) {
            addrs.push(manager.stop().await);
        }
        for (id, addr) in (1..).zip(addrs) {
            managers.push(serve(listen(addr).await, dir.path(), id, members.clone()).await);
        }
        for manager in &managers {
            soon("a read", async { while manager.store.read_barrier().await.is_err() {} }).await;
            assert_eq!(manager.store.state().events().len(), 30 * (round + 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_was_away_is_sent_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let (members, mut managers) = cluster(dir.path()).await;
    let first = leader(&managers).await;
    let away = (first + 1) % 3;
    let id = away as u64 + 1;
    let addr = managers.remove(away).stop().await;
    for number in 0..60 {
        write(&managers, &format!("{number:02}")).await;
    }
    let back = serve(listen(addr).await, dir.path(), id, members).await;
    until("it has everything", || has(&back.store.state(), "59").then_some(())).await;
    assert_eq!(back.store.state().events().len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_, managers) = cluster(dir.path()).await;
    leader(&managers).await;
    let cluster_id = managers[0].store.state().cluster_id().to_owned();
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgPropose);
    (message.from, message.to) = (2, 1);
    let proposal = protobuf::Message::write_to_bytes(&message).unwrap();
    let batch = |from, to, cluster_id: &str, messages| v1::RaftBatch {
        from,
        to,
        cluster_id: cluster_id.to_owned(),
        messages,
        ..v1::RaftBatch::default()
    };
    let cases = [
        (batch(2, 1, "another", vec![]), "of cluster another"),
        (batch(9, 1, &cluster_id, vec![]), "manager 9 is not known here yet, and does not say where it is"),
        (batch(2, 3, &cluster_id, vec![]), "has come to 1"),
        (batch(2, 1, &cluster_id, vec![proposal]), "MsgPropose"),
        (batch(2, 1, &cluster_id, vec![vec![0xff; 9]]), "cannot be read"),
    ];
    let mut client = RaftClient::connect(format!("http://{}", managers[0].addr)).await.unwrap();
    for (batch, why) in cases {
        let refused = soon("an answer", client.send(tokio_stream::once(batch))).await.unwrap_err();
        assert!(refused.message().contains(why), "{refused:?} does not say {why}");
    }
}
