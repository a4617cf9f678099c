//! An agent whose certificate the managers do not take any more.

mod support;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use rcluster_api::data::Payload;
use rcluster_api::tls::{Credentials, Security};
use rcluster_base::ledger;
use support::agent::{Agent, eventually};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A certificate authority of a cluster.
struct Authority {
    certificate: Payload,
    issuer: Issuer<'static, KeyPair>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["manager.rcluster".to_owned()]).expect("a name");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate: Payload(certificate.der().to_vec()), issuer: Issuer::new(params, key) }
    }

    /// Of someone who trusts `trusted`.
    fn issue(&self, part: &str, trusted: &Self) -> Credentials {
        let key = KeyPair::generate().expect("a key");
        let mut params = params("0123456789abcdef");
        params.distinguished_name.push(DnType::OrganizationalUnitName, part);
        params.distinguished_name.push(DnType::OrganizationName, "c");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Credentials {
            chain: vec![Payload(certificate.der().to_vec()), self.certificate.clone()],
            key: Payload(key.serialize_der()),
            authorities: vec![trusted.certificate.clone()],
        }
    }
}

/// The agent's log, once it says why no manager takes it.
async fn told(managers: &Credentials, agents: &Credentials) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let acceptor = TlsAcceptor::from(Security::new(managers.clone()).expect("credentials").server().expect("it is not in plain text"));
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            assert!(acceptor.accept(stream).await.is_err(), "they trust each other");
        }
    });
    let mut agent = Agent::start(&[address]);
    agent.kill();
    ledger::write_secret(&agent.state().join("credentials.json"), agents).expect("write");
    agent.spawn();
    let hint = format!("remove {}", agent.state().join("credentials.json").display());
    let told = || agent.log().lines().find(|line| line.contains("WARN") && line.contains(&hint)).map(str::to_owned);
    let told = eventually("the agent says what to do", told).await;
    assert!(!server.is_finished());
    server.abort();
    told
}

#[tokio::test]
async fn an_agent_that_no_manager_knows_any_more_says_why_and_what_to_do() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let told = told(&new.issue("manager", &new), &old.issue("agent", &new)).await;
    let why = "this certificate is refused: the authority that has issued it is not trusted there";
    assert!(told.contains("no manager takes this node") && told.contains(why), "{told}");
}

#[tokio::test]
async fn an_agent_that_knows_no_manager_any_more_says_why_and_what_to_do() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let told = told(&new.issue("manager", &new), &old.issue("agent", &old)).await;
    assert!(told.contains("invalid peer certificate: UnknownIssuer"), "{told}");
}
