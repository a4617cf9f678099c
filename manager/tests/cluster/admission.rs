//! Joining, and who is kept out.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcluster_api::client;
use rcluster_api::cluster::Authority;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::identity::{Identity, JoinToken, Part};
use rcluster_api::tls::{Credentials, Security, SigningRequest};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::admission_client::AdmissionClient;
use rcluster_api::wire::v1::dispatcher_client::DispatcherClient;
use rcluster_api::wire::v1::raft_client::RaftClient;
use rcluster_manager::ca;
use rcluster_manager::config::Limits;
use rcluster_manager::rpc::limits::Limiter;
use rcluster_manager::rpc::listen::Arrivals;
use rcluster_manager::seal::{Opened, read_credentials};
use tokio::sync::watch;

use crate::support::{self, Cluster, addr, copy, run_program, start, until};

/// Credentials by an authority of the test's own.
fn foreign(authority: &Authority, part: Part, ttl: Duration) -> Security {
    let request = SigningRequest::new().unwrap();
    let identity = Identity { part, id: "x".to_owned(), cluster_id: "other".to_owned() };
    let issued = ca::issue(std::slice::from_ref(authority), &identity, &[], &request.request, ttl).unwrap();
    Security::new(Credentials::new(issued, request.key)).unwrap()
}

async fn refused(cluster: &Cluster, token: &str, name: &str, addr: &str) -> String {
    let token: JoinToken = token.parse().unwrap();
    support::join(&cluster.addrs(), &token, name, addr).await.unwrap_err().to_string()
}

/// The certificate that an agent has after joining.
async fn agent(cluster: &Cluster, name: &str) -> (String, Security) {
    let token: JoinToken = cluster.founded.agent_token.parse().unwrap();
    let joined = support::join(&cluster.addrs(), &token, name, "").await.unwrap();
    (joined.id, Security::new(joined.credentials.unwrap()).unwrap())
}

/// What a manager keeps, opened with the keys beside it.
fn credentials_of(dir: &Path) -> Credentials {
    let identity = rcluster_manager::store::identity(dir).unwrap().unwrap();
    match rcluster_manager::found::open_seal(dir, &identity).unwrap() {
        Opened::Open(disk) => read_credentials(dir, &disk.keys).unwrap().unwrap(),
        Opened::Locked(_) => panic!("{} is locked", dir.display()),
    }
}

#[tokio::test]
async fn strangers_and_those_of_other_clusters_are_kept_out() {
    let cluster = Cluster::found().await;
    let plain = cluster.control(&Security::plain()).await;
    let plain = match plain {
        Ok(mut control) => control.cluster(v1::ClusterRequest {}).await.unwrap_err().message().to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(!plain.is_empty());
    let other = ca::found().unwrap();
    let error = cluster.connect(&foreign(&other, Part::User, Duration::from_secs(60))).await.unwrap_err().to_string();
    assert!(error.contains("its certificate is of another cluster"), "{error}");
    // One who only joins shows no certificate, and is let in no further.
    let token: JoinToken = cluster.founded.agent_token.parse().unwrap();
    let joining = Security::joining(&token).unwrap();
    let error = cluster.list(&joining, v1::Kind::Service).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert!(error.message.contains("neither a certificate nor a token"), "{error}");
}

#[tokio::test]
async fn join_tokens_let_in_whom_they_are_for() {
    let cluster = Cluster::found().await;
    let manager: JoinToken = cluster.founded.manager_token.parse().unwrap();
    let agent: JoinToken = cluster.founded.agent_token.parse().unwrap();
    // A manager's secret does not make an agent, nor the other way round.
    let swapped = JoinToken { secret: manager.secret.clone(), ..agent.clone() }.to_string();
    assert!(refused(&cluster, &swapped, "n1", "").await.contains("the join token is not taken"));
    let wrong = JoinToken { secret: vec![0; 16], ..manager.clone() }.to_string();
    assert!(refused(&cluster, &wrong, "m2", &addr()).await.contains("rclusterctl cluster token manager"));
    // The host that joins sees that it speaks with another cluster before it says its secret.
    let elsewhere = JoinToken { authority: [7; 32], ..agent.clone() }.to_string();
    assert!(refused(&cluster, &elsewhere, "n1", "").await.contains("the join token is for another cluster"));
    // Nobody waits for that to change.
    let error = support::join(&cluster.addrs(), &elsewhere.parse().unwrap(), "n1", "").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    let mut control = cluster.control(&cluster.admin).await.unwrap();
    let rotated = control.join_token(v1::JoinTokenRequest { manager: false, rotate: true }).await.unwrap().into_inner().token;
    assert!(refused(&cluster, &cluster.founded.agent_token, "n1", "").await.contains("was rotated"));
    let joined = support::join(&cluster.addrs(), &rotated.parse().unwrap(), "n1", "").await.unwrap();
    assert_eq!(joined.cluster_id, cluster.founded.cluster_id);
    let taken = refused(&cluster, &cluster.founded.manager_token, "m1", &addr()).await;
    assert!(taken.contains("manager m1 at") && taken.contains("has the name m1"), "{taken}");
}

/// Asks again and again to be let in under a name that no manager may have, until told to end; what else was answered.
async fn knock(addr: String, token: JoinToken, knocks: Arc<AtomicU64>, ended: watch::Receiver<bool>) -> Vec<ApiError> {
    let security = Security::joining(&token).unwrap();
    let request = v1::JoinRequest {
        token: token.to_string(),
        name: "no name".to_owned(),
        addr: "127.0.0.1:1".to_owned(),
        signing_request: SigningRequest::new().unwrap().request,
        ..v1::JoinRequest::default()
    };
    let mut others = Vec::new();
    while !*ended.borrow() {
        let Ok(channel) = client::connect(std::slice::from_ref(&addr), &security).await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let mut admission = AdmissionClient::new(channel);
        while !*ended.borrow() {
            let refusal = ApiError::from(admission.join(request.clone()).await.unwrap_err());
            knocks.fetch_add(1, Ordering::Relaxed);
            match refusal.code {
                ErrorCode::Invalid => {}
                ErrorCode::Unavailable => break,
                _ => others.push(refusal),
            }
        }
    }
    others
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_while_the_leader_ends_is_told_to_try_on_at_most() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    let token: JoinToken = cluster.founded.manager_token.parse().unwrap();
    for _ in 0..3 {
        let leader = cluster.settled(&["m1", "m2", "m3"]).await.leader;
        let (dir, addr) = (cluster.manager(&leader).dir.clone(), cluster.manager(&leader).addr.clone());
        let (end, ended) = watch::channel(false);
        let knocks = Arc::new(AtomicU64::new(0));
        let addrs = (0..4).flat_map(|_| cluster.addrs());
        let joiners: Vec<_> = addrs.map(|addr| tokio::spawn(knock(addr, token.clone(), knocks.clone(), ended.clone()))).collect();
        until("they knock", || async { (knocks.load(Ordering::Relaxed) > 1000).then_some(()) }).await;
        kill(Pid::from_raw(i32::try_from(cluster.manager(&leader).process.id()).unwrap()), Signal::SIGTERM).unwrap();
        cluster.manager(&leader).process.wait().unwrap();
        let other = |status: &v1::ClusterResponse| !status.leader.is_empty() && status.leader != leader;
        until("another leads", || async { cluster.status().await.ok().filter(other) }).await;
        end.send_replace(true);
        for joiner in joiners {
            let others = joiner.await.unwrap();
            assert!(others.is_empty(), "{others:?}");
        }
        cluster.managers.retain(|manager| manager.name != leader);
        cluster.managers.push(start(&leader, &dir, &addr, &[]));
    }
}

#[tokio::test]
async fn an_agent_speaks_for_itself_alone() {
    let cluster = Cluster::found().await;
    let (id, security) = agent(&cluster, "n1").await;
    let error = cluster.list(&security, v1::Kind::Service).await.unwrap_err();
    assert_eq!((error.code, error.message), (ErrorCode::Forbidden, format!("listing is for users; the caller is agent {id}")));
    let register = |node_id: &str| v1::AgentMessage {
        kind: Some(v1::agent_message::Kind::Register(v1::Register { node_id: node_id.to_owned(), ..v1::Register::default() })),
    };
    let channel = cluster.connect(&security).await.unwrap();
    let mut dispatcher = DispatcherClient::new(channel.clone());
    let error = dispatcher.session(tokio_stream::once(register("0123456789abcdef"))).await.unwrap_err();
    assert!(error.message().contains(&format!("the agent of node {id} says that it is 0123456789abcdef")), "{error}");
    // Its own id is believed; what is missing then is another matter.
    let error = dispatcher.session(tokio_stream::once(register(&id))).await.unwrap_err();
    assert!(error.message().contains("did not describe its host"), "{error}");
    let batch = v1::RaftBatch { from: 1, to: 1, cluster_id: cluster.founded.cluster_id.clone(), ..v1::RaftBatch::default() };
    let error = RaftClient::new(channel).send(tokio_stream::once(batch)).await.unwrap_err();
    assert!(error.message().contains("only managers may do this"), "{error}");
}

#[tokio::test]
async fn certificates_are_renewed_before_they_expire_and_when_the_authority_changes() {
    let cluster = Cluster::found().await;
    let (_, security) = agent(&cluster, "n1").await;
    let before = security.credentials().unwrap();
    let credentials = || credentials_of(&cluster.managers[0].dir);
    let first = credentials();
    let mut control = cluster.control(&cluster.admin).await.unwrap();
    let digest = control.rotate_authority(v1::RotateAuthorityRequest {}).await.unwrap().into_inner().digest;
    let by_both = |found: &Credentials| found.authorities.len() == 2 && found.is_current();
    let renewed = until("the manager has a new certificate", || async { Some(credentials()).filter(by_both) }).await;
    assert_eq!(renewed.authorities[0].digest(), digest);
    assert_eq!(renewed.authorities[1], first.authorities[0]);
    // Those who know only the authority before are served as before, and renew.
    assert_eq!(cluster.networks().await, 0);
    let channel = cluster.connect(&security).await.unwrap();
    let after = client::renew(channel).await.unwrap();
    assert!(after.is_current() && after.chain[0] != before.chain[0]);
    assert_eq!(after.certificate().unwrap().identity, before.certificate().unwrap().identity);
    security.replace(after).unwrap();
    cluster.connect(&security).await.unwrap();
    // A token that was printed before still leads to this cluster.
    agent(&cluster, "n2").await;
}

async fn rotate(cluster: &Cluster) -> Result<v1::RotateAuthorityResponse, ApiError> {
    Ok(cluster.control(&cluster.admin).await?.rotate_authority(v1::RotateAuthorityRequest {}).await?.into_inner())
}

/// Their disks do not say yet that the rotation was committed: until one leads again, their tables are those of before.
#[tokio::test]
async fn managers_that_were_killed_do_not_go_back_to_the_authority_before() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.settled(&["m1", "m2"]).await;
    support::led(async || rotate(&cluster).await).await.unwrap();
    let places = ["m1", "m2"].map(|name| (name, cluster.dir.path().join(name), cluster.manager(name).addr.clone()));
    let credentials = || places.each_ref().map(|(_, dir, _)| credentials_of(dir));
    let by_both = |found: &Credentials| found.authorities.len() == 2 && found.is_current();
    let before = until("both have new certificates", || async { Some(credentials()).filter(|all| all.iter().all(by_both)) }).await;
    for (name, ..) in &places {
        cluster.manager(name).kill();
    }
    for (name, dir, addr) in &places {
        *cluster.manager(name) = start(name, dir, addr, &[]);
    }
    cluster.write("after").await;
    let chains = |all: [Credentials; 2]| all.map(|own| own.chain);
    assert!(chains(credentials()) == chains(before), "they have the certificates that they had");
}

#[tokio::test]
async fn an_authority_that_was_dropped_lets_nobody_in() {
    let cluster = Cluster::found().await;
    let (_, renewing) = agent(&cluster, "n1").await;
    let (_, away) = agent(&cluster, "n2").await;
    let mut control = cluster.control(&cluster.admin).await.unwrap();
    let nothing = control.drop_authorities(v1::DropAuthoritiesRequest {}).await.unwrap_err();
    assert!(nothing.message().contains("there is no old authority to drop"), "{nothing}");
    control.rotate_authority(v1::RotateAuthorityRequest {}).await.unwrap();
    for security in [&renewing, &cluster.admin] {
        let channel = cluster.connect(security).await.unwrap();
        security.replace(client::renew(channel).await.unwrap()).unwrap();
    }
    control.drop_authorities(v1::DropAuthoritiesRequest {}).await.unwrap();
    let trusted = || credentials_of(&cluster.managers[0].dir);
    until("the manager trusts the new authority alone", || async { (trusted().authorities.len() == 1).then_some(()) }).await;
    // Who has renewed goes on; who has not cannot even connect, and neither can a key of the old authority that someone has kept.
    client::renew(cluster.connect(&renewing).await.unwrap()).await.unwrap();
    assert_eq!(cluster.networks().await, 0);
    let too_late = cluster.connect(&away).await.unwrap_err();
    let says_why = too_late.message.contains("this certificate is refused: the authority that has issued it is not trusted there");
    assert!(too_late.code == ErrorCode::Unauthenticated && says_why && too_late.hint.contains("joins again with a token"), "{too_late}");
    // New hosts come in by a token with the new authority's digest.
    let mut control = cluster.control(&cluster.admin).await.unwrap();
    let token = control.join_token(v1::JoinTokenRequest { manager: false, rotate: false }).await.unwrap().into_inner().token;
    let token: JoinToken = token.parse().unwrap();
    support::join(&cluster.addrs(), &token, "n3", "").await.unwrap();
    assert!(refused(&cluster, &cluster.founded.agent_token, "n4", "").await.contains("the join token is for another cluster"));
}

#[tokio::test]
async fn an_expired_certificate_is_refused_and_the_clock_is_named() {
    let authority = ca::found().unwrap();
    // The manager's side of a connection, whose certificate has expired, as seen by a client that trusts its authority.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let expired = foreign(&authority, Part::Manager, Duration::ZERO);
    let arrivals = Arrivals { figures: Arc::default(), limiter: Limiter::new(Limits::default()) };
    let server = tokio::spawn(rcluster_manager::rpc::listen::serve(listener, expired, axum::Router::new(), arrivals));
    let client_side = foreign(&authority, Part::User, Duration::from_secs(600));
    // It is valid to the end of the second in which it was issued.
    until("it has expired", || async {
        let error = client::connect(std::slice::from_ref(&at), &client_side).await.err()?.to_string();
        error.contains("its certificate has expired: is the clock of one of the two hosts wrong?").then_some(())
    })
    .await;
    server.abort();
}

#[tokio::test]
async fn a_cluster_without_tls_says_so_and_is_never_half_of_one() {
    let mut cluster = Cluster::found_with(&["--insecure"]).await;
    assert!(cluster.admin.is_plain() && cluster.founded.manager_token.is_empty());
    cluster.join("m2");
    cluster.join("m3");
    cluster.settled(&["m1", "m2", "m3"]).await;
    cluster.write("a").await;
    let error = cluster.control(&cluster.admin).await.unwrap().join_token(v1::JoinTokenRequest::default()).await.unwrap_err();
    assert!(error.message().contains("it was made without TLS"), "{error}");
    let (dir, addr) = (cluster.manager("m1").dir.clone(), cluster.manager("m1").addr.clone());
    cluster.manager("m1").kill();
    let mut with_tls = start("m1", &dir, &addr, &[]);
    assert_eq!(with_tls.end().await, 1);
    assert!(with_tls.log().contains("if the cluster was made without TLS, start with --insecure"), "{}", with_tls.log());
    let secure = Cluster::found().await;
    // Nor does one that has lost its credentials become one that lets everyone in.
    let (lost, at) = (secure.managers[0].dir.with_extension("lost"), crate::support::addr());
    copy(&secure.managers[0].dir, &lost);
    std::fs::remove_file(lost.join("credentials.json")).unwrap();
    let mut open = start("m1", &lost, &at, &["--insecure"]);
    assert_eq!(open.end().await, 1);
    assert!(open.log().contains("this cluster was made with TLS: start without --insecure"), "{}", open.log());
    let mut without = start("m1", &secure.managers[0].dir.clone(), &crate::support::addr(), &["--insecure"]);
    assert_eq!(without.end().await, 1);
    assert!(without.log().contains("this cluster was made with TLS: start without --insecure"), "{}", without.log());
}

#[tokio::test]
async fn what_a_manager_keeps_is_for_its_owner_alone() {
    let cluster = Cluster::found().await;
    cluster.write("a").await;
    let dir = &cluster.managers[0].dir;
    let entries = [dir.clone(), dir.join("raft")].into_iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
    let open: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .chain([dir.clone()])
        .filter(|path| path.file_name().is_none_or(|name| name != "identity.json"))
        .filter(|path| std::fs::metadata(path).unwrap().permissions().mode() & 0o077 != 0)
        .collect();
    assert!(open.is_empty(), "others may read {open:?}");
}

#[tokio::test]
async fn what_does_not_fit_together_is_refused_at_start() {
    let cluster = Cluster::found().await;
    let dir = cluster.dir.path();
    let again = run_program(&["init", "--name", "m1", "--state-dir", dir.join("m1").to_str().unwrap(), "--advertise", "127.0.0.1:1"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("holds a manager already"), "{again:?}");
    let said = |name: &str, arguments: &[&str]| {
        let mut manager = start(name, &dir.join(name), &addr(), arguments);
        async move {
            let code = manager.end().await;
            (code, manager.log())
        }
    };
    let (code, log) = said("nobody", &[]).await;
    assert!(code == 1 && log.contains("holds no manager: make a cluster"), "{log}");
}
