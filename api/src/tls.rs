//! Connections between the parts: mutual TLS 1.3 with the cluster's own authority, or plain text where a flag asks for it.
//!
//! A process holds one [`Security`]; its credentials are replaced when they are renewed, and every connection made from then on has the
//! new ones. Managers know by certificate who speaks; a caller without one may connect, and gets no further than joining.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::{TlsConnector, client};
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::data::Payload;
use crate::greeting::{Greeted, greet};
use crate::identity::{self, Certificate, IdentityError, JoinToken, LOCKED_NAME, MANAGER_NAME};
use crate::wire::v1;

/// What is said of a manager that is not of the cluster that a join token is for.
pub const OTHER_CLUSTER: &str = "the join token is for another cluster";
/// What is said of a manager that is locked, to all but those who unlock it.
pub const LOCKED: &str = "this manager is locked; run `rclusterctl cluster unlock`";
/// What is said to who wants to unlock a manager that is not locked.
pub const NOT_LOCKED: &str = "its certificate has another name than was asked for: it is not locked, or is no manager";
/// Longest wait for a TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 and, for people's tools, HTTP/1.1.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What a process is, how it proves that, and whom it trusts. All in DER form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The certificate itself, then what leads from it to its authority and older ones.
    pub chain: Vec<Payload>,
    /// PKCS #8.
    pub key: Payload,
    /// The first issues.
    pub authorities: Vec<Payload>,
}

/// Credentials that cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("the credentials hold no certificate")]
    Empty,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the credentials do not fit together")]
    Tls(#[from] rustls::Error),
    #[error("an authority among the credentials cannot be used: {0}")]
    Authority(String),
    #[error("make a key")]
    Key(#[from] rcgen::Error),
}

impl Credentials {
    /// What an answer to a signing request and the key of the request make.
    pub fn new(wire: v1::Credentials, key: Payload) -> Self {
        let v1::Credentials { chain, authorities } = wire;
        let payloads = |list: Vec<Vec<u8>>| list.into_iter().map(Payload).collect();
        Self { chain: payloads(chain), key, authorities: payloads(authorities) }
    }

    /// Whose they are, and for how long.
    pub fn certificate(&self) -> Result<Certificate, TlsError> {
        Ok(identity::read(&self.chain.first().ok_or(TlsError::Empty)?.0)?)
    }

    /// Whether the authority that issues now has issued them.
    pub fn is_current(&self) -> bool {
        match (self.chain.first(), self.authorities.first()) {
            (Some(own), Some(authority)) => identity::is_issued_by(&own.0, &authority.0),
            _ => false,
        }
    }

    /// How long until they are to be renewed, at `now_s` in Unix seconds; nothing is left when another authority issues, or when half of the
    /// certificate's life has passed (see [`Certificate::renew_at`]).
    pub fn until_renewal(&self, now_s: i64) -> Duration {
        let at = self.certificate().map_or(now_s, |certificate| certificate.renew_at());
        let left = if self.is_current() { at.saturating_sub(now_s) } else { 0 };
        Duration::from_secs(u64::try_from(left).unwrap_or_default())
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().map(|der| CertificateDer::from(der.0.clone())).collect()
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.0.clone()).into()
    }
}

/// These authorities, as what certificates are verified by.
fn trusted(authorities: &[Payload]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for der in authorities {
        roots.add(CertificateDer::from(der.0.clone())).map_err(|error| TlsError::Authority(error.to_string()))?;
    }
    Ok(Arc::new(roots))
}

/// Believes certificates of these authorities, and lets who shows none in too.
fn verifier(roots: Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).allow_unauthenticated().build();
    verifier.map_err(|error| TlsError::Authority(error.to_string()))
}

/// A key, and the request for a certificate of it.
#[derive(Debug)]
pub struct SigningRequest {
    /// PKCS #8, DER.
    pub key: Payload,
    /// PKCS #10, DER.
    pub request: Vec<u8>,
}

impl SigningRequest {
    /// A new key (ECDSA, P-256).
    pub fn new() -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let request = CertificateParams::default().serialize_request(&key)?;
        Ok(Self { key: Payload(key.serialize_der()), request: request.der().to_vec() })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[derive(Debug)]
struct Configs {
    credentials: Credentials,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// Of each authority alone, by the digest of its certificate.
    verifiers: Vec<(Arc<str>, Arc<dyn ClientCertVerifier>)>,
}

impl Configs {
    fn new(credentials: Credentials) -> Result<Self, TlsError> {
        let roots = trusted(&credentials.authorities)?;
        let client = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
        let mut client = client.with_root_certificates(roots.clone()).with_client_auth_cert(credentials.chain(), credentials.key())?;
        client.alpn_protocols = vec![PROTOCOLS[0].to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        let server = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
        let mut server = server.with_client_cert_verifier(verifier(roots)?).with_single_cert(credentials.chain(), credentials.key())?;
        server.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        // Connections are few and long: a session is not worth keeping, and each handshake shows the certificate anew.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let alone = |der: &Payload| Ok::<_, TlsError>((Arc::<str>::from(der.digest()), verifier(trusted(std::slice::from_ref(der))?)?));
        let verifiers = credentials.authorities.iter().map(alone).collect::<Result<_, TlsError>>()?;
        Ok(Self { credentials, client: Arc::new(client), server: Arc::new(server), verifiers })
    }

    fn trusts(&self, authority: &str) -> bool {
        self.verifiers.iter().any(|(known, _)| **known == *authority)
    }
}

/// How this process connects, and lets others connect.
#[derive(Clone)]
pub struct Security(Kind);

#[derive(Clone)]
enum Kind {
    Plain,
    Tls(Arc<watch::Sender<Arc<Configs>>>),
    /// Without a certificate: what answers must be a manager of the authority that a join token names.
    Joining(Arc<ClientConfig>),
}

impl fmt::Debug for Security {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.0 {
            Kind::Plain => "Security(plain text)",
            Kind::Tls(_) => "Security(TLS)",
            Kind::Joining(_) => "Security(joining)",
        })
    }
}

impl Security {
    /// Plain text: for a network that nobody else is on.
    pub fn plain() -> Self {
        Self(Kind::Plain)
    }

    /// TLS with these credentials.
    pub fn new(credentials: Credentials) -> Result<Self, TlsError> {
        Ok(Self(Kind::Tls(Arc::new(watch::Sender::new(Arc::new(Configs::new(credentials)?))))))
    }

    /// TLS towards managers of the cluster that `token` is for.
    pub fn joining(token: &JoinToken) -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
        let verifier = Arc::new(ByDigest { digest: token.authority, provider: provider() });
        let mut config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        config.alpn_protocols = vec![PROTOCOLS[0].to_vec()];
        Ok(Self(Kind::Joining(Arc::new(config))))
    }

    /// Replaces the credentials for all connections to come; those that stand hear of it by their [`Trust`]. Has no effect on plain text.
    pub fn replace(&self, credentials: Credentials) -> Result<(), TlsError> {
        if let Kind::Tls(configs) = &self.0 {
            configs.send_replace(Arc::new(Configs::new(credentials)?));
        }
        Ok(())
    }

    /// The credentials now; none in plain text.
    pub fn credentials(&self) -> Option<Credentials> {
        match &self.0 {
            Kind::Tls(configs) => Some(configs.borrow().credentials.clone()),
            Kind::Plain | Kind::Joining(_) => None,
        }
    }

    /// Whether there is none.
    pub fn is_plain(&self) -> bool {
        matches!(self.0, Kind::Plain)
    }

    /// What a listener needs for its next connection; `None` in plain text.
    pub fn server(&self) -> Option<Arc<ServerConfig>> {
        match &self.0 {
            Kind::Tls(configs) => Some(configs.borrow().server.clone()),
            Kind::Plain | Kind::Joining(_) => None,
        }
    }

    /// By which authority that is trusted now a peer is believed that has shown `chain`, its own certificate first; the newest, if there are
    /// several. `None`: by none, as it may have been dropped during the handshake, or nothing was shown.
    pub fn trust(&self, chain: &[CertificateDer<'_>]) -> Option<Trust> {
        let Kind::Tls(configs) = &self.0 else { return None };
        let (own, others) = chain.split_first()?;
        let now = configs.borrow().clone();
        // By signatures and not by names: whoever has the key of an authority that is dropped can put any name into what it signs.
        let believes =
            |(_, verifier): &&(Arc<str>, Arc<dyn ClientCertVerifier>)| verifier.verify_client_cert(own, others, UnixTime::now()).is_ok();
        let (authority, _) = now.verifiers.iter().find(believes)?;
        Some(Trust { security: self.clone(), authority: authority.clone() })
    }

    fn client(&self) -> Option<Arc<ClientConfig>> {
        match &self.0 {
            Kind::Plain => None,
            Kind::Tls(configs) => Some(configs.borrow().client.clone()),
            Kind::Joining(config) => Some(config.clone()),
        }
    }

    /// Opens a channel to a manager.
    pub async fn connect(&self, endpoint: Endpoint) -> Result<Channel, tonic::transport::Error> {
        self.connect_as(endpoint, MANAGER_NAME).await
    }

    /// Opens a channel to a manager that is locked, and to no other.
    pub async fn connect_locked(&self, endpoint: Endpoint) -> Result<Channel, tonic::transport::Error> {
        self.connect_as(endpoint, LOCKED_NAME).await
    }

    async fn connect_as(&self, endpoint: Endpoint, name: &'static str) -> Result<Channel, tonic::transport::Error> {
        // A channel that connects again shows the credentials of then.
        let security = self.clone();
        let connector = service_fn(move |uri: http::Uri| {
            let config = security.client();
            async move { dial(&uri, config, name).await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(connector).await
    }
}

/// By which authority the peer of a connection is believed.
#[derive(Debug, Clone)]
pub struct Trust {
    security: Security,
    authority: Arc<str>,
}

impl Trust {
    /// Digest of the authority's certificate.
    pub fn authority(&self) -> &Arc<str> {
        &self.authority
    }

    /// Returns when the authority is not trusted any more.
    pub async fn lost(&self) {
        let Kind::Tls(configs) = &self.security.0 else { return std::future::pending().await };
        let mut changes = configs.subscribe();
        // Its sender is here, so that it is never closed.
        drop(changes.wait_for(|now| !now.trusts(&self.authority)).await);
    }
}

/// What a listener of a locked manager needs; its callers show no certificate.
pub fn locked_server(credentials: &Credentials) -> Result<Arc<ServerConfig>, TlsError> {
    let server = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let mut server = server.with_no_client_auth().with_single_cert(credentials.chain(), credentials.key())?;
    server.alpn_protocols = vec![PROTOCOLS[0].to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Arc::new(server))
}

type Connection = Either<TcpStream, Greeted<client::TlsStream<TcpStream>>>;

async fn dial(uri: &http::Uri, config: Option<Arc<ClientConfig>>, name: &'static str) -> io::Result<Connection> {
    let nowhere = || io::Error::new(io::ErrorKind::InvalidInput, format!("{uri} names no host and port"));
    let (host, port) = (uri.host().ok_or_else(nowhere)?, uri.port_u16().ok_or_else(nowhere)?);
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    stream.set_nodelay(true)?;
    let Some(config) = config else { return Ok(Either::Left(stream)) };
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let handshake = async { greet(TlsConnector::from(config).connect(name, stream).await?).await };
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| io::ErrorKind::TimedOut)?;
    stream.map(Either::Right).map_err(explain)
}

/// A certificate of ours that the other end does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this certificate is refused: {why} (received fatal alert: {alert:?})")]
pub struct Refused {
    why: &'static str,
    alert: AlertDescription,
}

impl Refused {
    /// Of an alert (RFC 8446 §6.2), if that is about a certificate.
    fn by(alert: AlertDescription) -> Option<Self> {
        let why = match alert {
            AlertDescription::CertificateExpired => "it has expired, or is not valid yet, by the clock there",
            AlertDescription::UnknownCA => "the authority that has issued it is not trusted there, or not any more",
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => "it cannot be verified there",
            _ => return None,
        };
        Some(Self { why, alert })
    }

    /// Whether it is this that has ended a connection before it began.
    pub fn of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if let Some(refused) = inner.and_then(|inner| inner.downcast_ref::<Self>()) {
                return Some(refused);
            }
            cause = error.source();
        }
        None
    }

    /// What mends it.
    pub fn hint(&self) -> &'static str {
        match self.alert {
            AlertDescription::CertificateExpired => {
                "is the clock of one of the two hosts wrong? else a user is given another certificate by an administrator, \
                 rclusterctl user create NAME --role ROLE --access FILE; a host joins again with a token"
            }
            _ => {
                "a user is given another certificate by an administrator, rclusterctl user create NAME --role ROLE --access FILE; \
                 a host joins again with a token"
            }
        }
    }
}

/// What a person can do about a handshake that failed.
fn explain(error: io::Error) -> io::Error {
    let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else { return error };
    let why = match cause {
        rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
            return io::Error::new(error.kind(), if presented.iter().any(|name| name.contains(LOCKED_NAME)) { LOCKED } else { NOT_LOCKED });
        }
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => "its certificate is of another cluster",
        rustls::Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "its certificate is not valid yet: is the clock of one of the two hosts wrong?"
        }
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired: is the clock of one of the two hosts wrong?"
        }
        rustls::Error::AlertReceived(alert) => {
            return match Refused::by(*alert) {
                Some(refused) => io::Error::new(error.kind(), refused),
                None => error,
            };
        }
        rustls::Error::InvalidMessage(_) => "it does not speak TLS: was it started with --insecure?",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{why} ({cause})"))
}

/// Trusts the certificate with the digest of a join token, if the other shows it, as its authority.
#[derive(Debug)]
struct ByDigest {
    digest: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ByDigest {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = intermediates.iter().find(|der| identity::digest(der) == self.digest);
        let authority = shown.ok_or_else(|| rustls::Error::General(OTHER_CLUSTER.to_owned()))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
