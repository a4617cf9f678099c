//! HTTP to registries: TLS with the system's and the given authorities, plain text only where it is allowed, redirects without
//! leaking credentials, deadlines on every wait.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, LOCATION, USER_AGENT};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use super::error::RegistryError;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// How long to wait, and how often to try.
#[derive(Debug, Clone)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the headers of an answer.
    pub answer: Duration,
    /// For at least [`STALL_BYTES_MIN`] of a body, time spent on our own side not counted.
    pub stall: Duration,
    /// Tries of one request that bring nothing, after which the next server or the failure is next.
    pub tries_max: u32,
    pub backoff_first: Duration,
    pub backoff_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            tries_max: 5,
            backoff_first: Duration::from_millis(300),
            backoff_max: Duration::from_secs(10),
        }
    }
}

/// What has to come within [`Patience::stall`], so that a server that drips does not hold a pull for ever.
pub const STALL_BYTES_MIN: u64 = 16 << 10;
const REDIRECTS_MAX: usize = 5;
/// Of one connection; bodies that nobody takes wait in the kernel.
const READ_BUFFER_BYTES: usize = 256 << 10;
const IDLE: Duration = Duration::from_secs(30);

/// A request without its address.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    pub headers: HeaderMap,
    pub authorization: Option<HeaderValue>,
    /// Sent as a form when there is one.
    pub form: Option<String>,
}

/// One pool of connections for all registries.
#[derive(Debug)]
pub struct Transport {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    plain_http: BTreeSet<String>,
    pub patience: Patience,
}

impl Transport {
    /// Trusts the system's authorities and those in the files.
    pub fn new(authorities: &[PathBuf], plain_http: BTreeSet<String>, patience: Patience) -> Result<Self, RegistryError> {
        let mut roots = RootCertStore::empty();
        // What the system has; unreadable parts of it are not a reason to refuse the rest.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for file in authorities {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| roots_error(file, &error))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| RegistryError::Roots { file: "the TLS library".into(), why: error.to_string() })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(patience.connect));
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(READ_BUFFER_BYTES)
            .build(connector);
        Ok(Self { client, plain_http, patience })
    }

    /// Whether plain text is allowed with this host, listed with its port or for all ports.
    pub fn is_plain(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        self.plain_http.contains(host) || self.plain_http.contains(name)
    }

    /// Where requests to a host begin.
    pub fn base(&self, host: &str) -> String {
        format!("{}://{host}", if self.is_plain(host) { "http" } else { "https" })
    }

    /// Asks, following redirects; the authorization goes to the first server only. Waits at most for the answer's headers.
    pub async fn ask(&self, registry: &str, address: &str, ask: &Ask) -> Result<Response<Body>, RegistryError> {
        let first = self.checked(registry, address)?;
        let mut uri = first.clone();
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.ask_once(registry, &uri, &first, ask).await?;
            let to = match answer.headers().get(LOCATION) {
                Some(to) if answer.status().is_redirection() => to,
                _ => return Ok(answer),
            };
            let wrong = |why: String| RegistryError::Wrong { registry: registry.into(), what: "its redirect".into(), why };
            let to = to.to_str().map_err(|error| wrong(error.to_string()))?;
            uri = self.checked(registry, &absolute(&uri, to).map_err(wrong)?)?;
        }
        let why = format!("more than {REDIRECTS_MAX}, the last to {uri}");
        Err(RegistryError::Wrong { registry: registry.into(), what: "its redirects".into(), why })
    }

    async fn ask_once(&self, registry: &str, uri: &Uri, first: &Uri, ask: &Ask) -> Result<Response<Body>, RegistryError> {
        let wrong =
            |error: http::Error| RegistryError::Wrong { registry: registry.into(), what: "its address".into(), why: error.to_string() };
        let method = if ask.form.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::builder().method(method).uri(uri.clone());
        if let Some(headers) = request.headers_mut() {
            headers.extend(ask.headers.clone());
            headers.insert(USER_AGENT, HeaderValue::from_static(concat!("rcluster-agent/", env!("CARGO_PKG_VERSION"))));
            if let Some(authorization) = ask.authorization.clone().filter(|_| origin(uri) == origin(first)) {
                headers.insert(AUTHORIZATION, authorization);
            }
            if ask.form.is_some() {
                headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            }
        }
        let body = Full::new(Bytes::from(ask.form.clone().unwrap_or_default()));
        let request = request.body(body).map_err(wrong)?;
        let server = uri.authority().map_or(registry, Authority::as_str);
        match timeout(self.patience.answer, self.client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync())),
            Ok(Err(error)) => Err(RegistryError::connecting(server, error)),
            Err(_) => Err(RegistryError::Stalled { registry: server.into(), what: "waiting for an answer", after: self.patience.answer }),
        }
    }

    /// An address that may be asked: of a registry's host in TLS, in plain text only where that is allowed.
    fn checked(&self, registry: &str, address: &str) -> Result<Uri, RegistryError> {
        let wrong = |why: String| RegistryError::Wrong { registry: registry.into(), what: format!("the address {address:?}"), why };
        let uri: Uri = address.parse().map_err(|error: http::uri::InvalidUri| wrong(error.to_string()))?;
        let authority = uri.authority().ok_or_else(|| wrong("it names no host".into()))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it holds credentials".into()));
        }
        let scheme = uri.scheme().cloned();
        if scheme == Some(Scheme::HTTPS) {
            Ok(uri)
        } else if scheme != Some(Scheme::HTTP) {
            Err(wrong("neither https nor http".into()))
        } else if self.is_plain(authority.as_str()) {
            Ok(uri)
        } else {
            Err(RegistryError::PlainHttp { registry: registry.into(), to: address.into(), host: authority.to_string() })
        }
    }
}

/// Who answers: credentials for one origin are not for another (RFC 6454).
fn origin(uri: &Uri) -> (Option<&str>, Option<String>) {
    (uri.scheme_str(), uri.authority().map(|authority| authority.as_str().to_ascii_lowercase()))
}

/// The address a redirect leads to, which may be given without scheme or without host (RFC 9110 section 10.2.2).
fn absolute(from: &Uri, to: &str) -> Result<String, String> {
    let scheme = from.scheme_str().unwrap_or("https");
    let host = from.authority().map(Authority::as_str).unwrap_or_default();
    if let Some(rest) = to.strip_prefix("//") {
        Ok(format!("{scheme}://{rest}"))
    } else if to.starts_with('/') {
        Ok(format!("{scheme}://{host}{to}"))
    } else if to.contains("://") {
        Ok(to.to_owned())
    } else {
        Err(format!("{to:?} is neither an address nor a path"))
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let bytes = fs::read(file).map_err(|error| roots_error(file, &error))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|error| roots_error(file, &error))?;
    if found.is_empty() { Err(roots_error(file, &"it holds no certificate in PEM form")) } else { Ok(found) }
}

fn roots_error(file: &Path, why: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::Roots { file: file.display().to_string(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transport(plain: &[&str]) -> Transport {
        let plain = plain.iter().map(|host| (*host).to_owned()).collect();
        Transport::new(&[], plain, Patience::default()).expect("a transport")
    }

    #[test]
    fn plain_text_is_for_listed_hosts_only() {
        let transport = transport(&["a:5000", "b"]);
        for (host, expected) in [("a:5000", "http"), ("a:5001", "https"), ("a", "https"), ("b:1", "http"), ("b", "http"), ("c", "https")] {
            assert_eq!(transport.base(host), format!("{expected}://{host}"));
        }
        let refused = transport.checked("r", "http://a:5001/x").expect_err("plain text").to_string();
        assert!(refused.contains("--registry-plain-http a:5001"), "{refused}");
        for address in ["ftp://a:5000/x", "/x", "https://u:p@h/x", ""] {
            assert!(transport.checked("r", address).is_err(), "{address}");
        }
    }

    #[test]
    fn redirects_may_leave_out_what_stays_the_same() {
        let from: Uri = "https://h:1/v2/x?q".parse().expect("an address");
        for (to, expected) in [("//c/d", "https://c/d"), ("/e?f", "https://h:1/e?f"), ("http://g", "http://g")] {
            assert_eq!(absolute(&from, to).expect("an address"), expected);
        }
        assert!(absolute(&from, "blob").is_err());
    }
}
