//! Why a registry did not give what it was asked for, in words that say what to do.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use http::StatusCode;
use thiserror::Error;

/// A failure of a registry, or of the way there.
#[derive(Debug, Error)]
pub enum RegistryError {
    #[error("registry {registry} cannot be reached")]
    Unreachable { registry: String, source: hyper_util::client::legacy::Error },
    #[error("registry {registry}: the TLS handshake failed: {why}")]
    Tls { registry: String, why: String },
    #[error("registry {registry}: the connection broke while {what}")]
    Broken { registry: String, what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("registry {registry} stalled for {after:?} while {what}")]
    Stalled { registry: String, what: &'static str, after: Duration },
    #[error("registry {registry} does not let this node pull {repository} ({status}): {hint}", status = status.as_u16())]
    Denied { registry: String, repository: String, status: StatusCode, hint: &'static str },
    #[error("registry {registry} has no {what} in {repository}: check the name and the tag")]
    NotFound { registry: String, repository: String, what: String },
    #[error("registry {registry} answered {status} while {what}{detail}")]
    Status { registry: String, status: StatusCode, what: &'static str, detail: String, retry_after: Option<Duration> },
    #[error("{image} at registry {registry} is not for this node's platform, linux/{arch}; it is for: {offered}")]
    Platform { registry: String, image: String, arch: String, offered: String },
    /// What came is not what was asked for, or nothing that is known here.
    #[error("registry {registry}: {what}: {why}")]
    Wrong { registry: String, what: String, why: String },
    #[error("registry {registry}: {why}")]
    Credentials { registry: String, why: String },
    #[error("registry {registry} sends on to {to}, in plain text: allow it with --registry-plain-http {host}")]
    PlainHttp { registry: String, to: String, host: String },
    #[error("certificates of registries in {file}: {why}")]
    Roots { file: String, why: String },
}

/// Told when credentials were sent and did not help.
pub const HINT_OTHER_CREDENTIALS: &str = "the credentials in --registry-auth are not accepted, or do not allow it";
/// Told when none were sent.
pub const HINT_NO_CREDENTIALS: &str = "it is private or does not exist; give credentials for it with --registry-auth FILE";

impl RegistryError {
    /// Whether another try may go better.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Stalled { .. } => true,
            // RFC 9110 sections 15.5.9 and 15.6; RFC 6585 section 4.
            Self::Status { status, .. } => {
                status.is_server_error() || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            Self::Tls { .. }
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::Platform { .. }
            | Self::Wrong { .. }
            | Self::Credentials { .. }
            | Self::PlainHttp { .. }
            | Self::Roots { .. } => false,
        }
    }

    /// Whether the same pull can never go well here, whatever the registry's or the network's state.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Denied { .. } | Self::NotFound { .. } | Self::Platform { .. } | Self::Credentials { .. } | Self::Roots { .. } => true,
            Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::Broken { .. }
            | Self::Stalled { .. }
            | Self::Status { .. }
            | Self::Wrong { .. }
            | Self::PlainHttp { .. } => false,
        }
    }

    /// How long the registry asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Of a connection that could not be made or did not answer.
    pub(super) fn connecting(registry: &str, error: hyper_util::client::legacy::Error) -> Self {
        match tls_trouble(&error) {
            Some(trouble) => Self::Tls { registry: registry.into(), why: tls_words(trouble, registry) },
            None => Self::Unreachable { registry: registry.into(), source: error },
        }
    }
}

fn tls_trouble(error: &hyper_util::client::legacy::Error) -> Option<&rustls::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(trouble) = error.downcast_ref::<rustls::Error>() {
            return Some(trouble);
        }
        // An io::Error hides what it wraps from `source`.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(trouble) = wrapped.and_then(|wrapped| wrapped.downcast_ref::<rustls::Error>()) {
            return Some(trouble);
        }
        cause = wrapped.map_or_else(|| error.source(), |wrapped| Some(wrapped));
    }
    None
}

fn tls_words(trouble: &rustls::Error, registry: &str) -> String {
    match trouble {
        rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => {
            format!("{trouble}: its authority is not trusted here; give the authority's certificate with --registry-ca FILE")
        }
        rustls::Error::InvalidMessage(_) => {
            format!(
                "it does not speak TLS ({trouble}); if it is meant to speak plain HTTP, allow that with --registry-plain-http {registry}"
            )
        }
        other => other.to_string(),
    }
}
