//! A client of registries (OCI distribution-spec 1.1, "Pull"; Docker's registry API V2 and its token specification).
//!
//! ```text
//! Client ── repository(reference) ──► Repository: mirrors first, the registry itself last
//!                                        │ find()     the manifest for this host, its digest checked
//!                                        │ document() a small blob, checked
//!                                        └ stream()   a large one: goes on where a broken connection ended, on the next server too;
//!                                                     who takes the bytes checks the digest
//! ```
//!
//! Never stores anything. Every wait has a deadline, every answer a size limit, every failure says what to do.

pub mod error;
pub mod transport;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use oci_spec::image::{Arch, Descriptor, Digest, ImageIndex, ImageManifest};
use rcluster_base::backoff::Backoff;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::DOCUMENT_BYTES_MAX;
use super::unpack::hex;
use crate::core::challenge::{Challenge, Credentials, basic, challenges, credentials, query_encode};
use crate::core::platform::{choose, offered};
use crate::core::reference::Reference;
use error::{HINT_NO_CREDENTIALS, HINT_OTHER_CREDENTIALS, RegistryError};
use transport::{Ask, Body, Patience, STALL_BYTES_MIN, Transport};

/// How registries are reached from this node.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// As `docker login` writes it; read anew whenever a registry asks, so a change needs no restart.
    pub auth_file: Option<PathBuf>,
    /// Certificates of authorities, in PEM form, trusted beside the system's.
    pub authorities: Vec<PathBuf>,
    /// `HOST` or `HOST:PORT` with which plain text is spoken.
    pub plain_http: BTreeSet<String>,
    /// For a registry's host: `HOST[/PATH]` of servers that are asked before it, in their order.
    pub mirrors: BTreeMap<String, Vec<String>>,
    pub patience: Patience,
}

/// Asks registries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    transport: Transport,
    auth_file: Option<PathBuf>,
    mirrors: BTreeMap<String, Vec<String>>,
}

/// One repository, for the time of a pull.
#[derive(Debug)]
pub struct Repository {
    client: Client,
    reference: Reference,
    /// Never empty; the last is the registry itself.
    sources: Vec<Source>,
}

/// A server that has the repository.
#[derive(Debug)]
struct Source {
    /// Where it is.
    host: String,
    /// What names and credentials files call it.
    named: String,
    repository: String,
    grant: Mutex<Option<HeaderValue>>,
}

/// An image that a registry has for this host.
#[derive(Debug)]
pub struct Found {
    pub digest: String,
    pub bytes: Vec<u8>,
    pub manifest: ImageManifest,
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Of a registry's own words about a failure.
const DETAIL_BYTES_MAX: u64 = 4 << 10;
const DETAIL_SHOWN_MAX: usize = 300;
const TOKEN_BYTES_MAX: u64 = 256 << 10;
/// An index may name an index; nobody nests deeper.
const NESTING_MAX: u32 = 3;
/// A registry's wish to be left alone is granted up to here.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

impl Client {
    /// Reads the authorities' certificates; speaks with nobody yet.
    pub fn new(access: Access) -> Result<Self, RegistryError> {
        let Access { auth_file, authorities, plain_http, mirrors, patience } = access;
        let transport = Transport::new(&authorities, plain_http, patience)?;
        Ok(Self(Arc::new(Inner { transport, auth_file, mirrors })))
    }

    /// The repository of a reference.
    pub fn repository(&self, reference: &Reference) -> Repository {
        let source = |host: &str, named: &str, repository: String| Source {
            host: host.to_owned(),
            named: named.to_owned(),
            repository,
            grant: Mutex::new(None),
        };
        let mirrors = self.0.mirrors.get(reference.host()).into_iter().flatten().map(|mirror| match mirror.split_once('/') {
            Some((host, path)) => source(host, host, format!("{path}/{}", reference.repository())),
            None => source(mirror, mirror, reference.repository().to_owned()),
        });
        let own = source(reference.api_host(), reference.host(), reference.repository().to_owned());
        Repository { client: self.clone(), reference: reference.clone(), sources: mirrors.chain([own]).collect() }
    }
}

impl Repository {
    /// The manifest that the reference names, or the one for this host if it names an index.
    pub async fn find(&self) -> Result<Found, RegistryError> {
        let mut failure = None;
        for source in &self.sources {
            match self.find_at(source).await {
                Ok(found) => return Ok(found),
                Err(error) => {
                    if source.host != self.reference.api_host() {
                        warn!(mirror = source.host, image = %self.reference, error = %words(&error), "a mirror does not give the image");
                    }
                    failure = Some(error);
                }
            }
        }
        Err(failure.expect("there is at least one source"))
    }

    /// A small blob, whose digest and length are checked.
    pub async fn document(&self, blob: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let wrong = |why| self.wrong(&format!("blob {}", blob.digest()), why);
        if blob.size() > DOCUMENT_BYTES_MAX {
            return Err(wrong(format!("{} bytes are more than a document of an image may have", blob.size())));
        }
        let (sender, mut receiver) = mpsc::channel(4);
        let collect = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = receiver.recv().await {
                let chunk: Bytes = chunk;
                bytes.extend_from_slice(&chunk);
            }
            bytes
        };
        let stream = async move { self.stream(blob.digest(), blob.size(), 0, &sender, 0).await };
        let (streamed, bytes) = tokio::join!(stream, collect);
        streamed?;
        let got = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        if got != blob.digest().to_string() { Err(wrong(format!("its content has digest {got}"))) } else { Ok(bytes) }
    }

    /// What to say of a blob whose bytes are wrong wherever they come from.
    pub fn mismatch(&self, blob: &Digest) -> RegistryError {
        self.wrong(&format!("blob {blob}"), "its content has another digest; the registry or something on the way is damaged".into())
    }

    /// Sends a blob of `bytes` bytes from byte `from` on, and no byte twice. The first `mistrusted` servers are not asked, but the
    /// last always is. Ends early, without an error, when nobody takes the bytes any more.
    pub async fn stream(
        &self,
        blob: &Digest,
        bytes: u64,
        from: u64,
        out: &mpsc::Sender<Bytes>,
        mistrusted: usize,
    ) -> Result<(), RegistryError> {
        let patience = &self.client.0.transport.patience;
        let mut offset = from;
        let mut failure = None;
        for source in &self.sources[mistrusted.min(self.sources.len() - 1)..] {
            let mut backoff = Backoff::new(patience.backoff_first, patience.backoff_max);
            let mut tries = 0;
            while offset < bytes {
                let before = offset;
                let Err(error) = self.stream_once(source, (blob, bytes), &mut offset, out).await else { return Ok(()) };
                // One byte a try would be a way to try for ever.
                if offset >= before + STALL_BYTES_MIN {
                    tries = 0;
                    backoff.reset();
                }
                tries += 1;
                let again = error.is_passing() && tries < patience.tries_max;
                debug!(%blob, offset, tries, again, error = %words(&error), "a download broke off");
                let pause = error.retry_after();
                failure = Some(error);
                if !again {
                    break;
                }
                sleep(pause.unwrap_or_else(|| backoff.delay())).await;
            }
        }
        match failure {
            Some(failure) if offset < bytes => Err(failure),
            _ => Ok(()),
        }
    }

    async fn find_at(&self, source: &Source) -> Result<Found, RegistryError> {
        let mut pick = self.reference.manifest().to_owned();
        for _ in 0..NESTING_MAX {
            let (bytes, digest, kind) = self.tried(|| self.manifest_at(source, &pick)).await?;
            if kind != INDEX && kind != DOCKER_INDEX {
                let manifest = decode(&bytes).map_err(|why| self.wrong_at(source, &format!("manifest {digest}"), why))?;
                return Ok(Found { digest, bytes, manifest });
            }
            let index: ImageIndex = decode(&bytes).map_err(|why| self.wrong_at(source, &format!("index {digest}"), why))?;
            let arch = Arch::default();
            let chosen = choose(index.manifests(), &arch).ok_or_else(|| RegistryError::Platform {
                registry: source.host.clone(),
                image: self.reference.to_string(),
                arch: arch.to_string(),
                offered: offered(index.manifests()),
            })?;
            pick = chosen.digest().to_string();
            // What an index names is asked for by digest, and only known digests can be checked.
            if !is_sha256(&pick) {
                return Err(self.wrong_at(source, &format!("index {digest}"), format!("it names {pick}; only sha256 is known here")));
            }
        }
        Err(self.wrong_at(source, &format!("index {}", self.reference), format!("indexes are nested deeper than {NESTING_MAX}")))
    }

    /// One manifest or index: its bytes, digest and media type.
    async fn manifest_at(&self, source: &Source, pick: &str) -> Result<(Vec<u8>, String, String), RegistryError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(MANIFESTS));
        let answer = self.ask(source, &format!("manifests/{pick}"), &headers, "asking for the manifest").await?;
        let sent_kind = text_of(&answer, &CONTENT_TYPE).map(|kind| kind.split(';').next().unwrap_or_default().trim().to_owned());
        let bytes = self.collected(source, answer.into_body(), DOCUMENT_BYTES_MAX, "reading the manifest").await?;
        let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        if is_sha256(pick) && pick != digest {
            return Err(self.wrong_at(source, &format!("manifest {pick}"), format!("its content has digest {digest}")));
        }
        let wrong = |why| self.wrong_at(source, &format!("manifest {pick} of {}", source.repository), why);
        let head: Head = decode(&bytes).map_err(wrong)?;
        let kind = match (head.kind.or(sent_kind), head.version, head.manifests, head.layers) {
            (_, 1, _, _) => return Err(wrong("schema 1, which is withdrawn; push the image anew with a newer tool".into())),
            (Some(kind), ..) if [INDEX, MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].contains(&kind.as_str()) => kind,
            // Older tools name no type, and some servers send a general one.
            (_, _, true, false) => INDEX.to_owned(),
            (_, _, false, true) => MANIFEST.to_owned(),
            (kind, ..) => return Err(wrong(format!("media type {:?} is not known here", kind.unwrap_or_default()))),
        };
        Ok((bytes, digest, kind))
    }

    async fn stream_once(
        &self,
        source: &Source,
        (blob, bytes): (&Digest, u64),
        offset: &mut u64,
        out: &mpsc::Sender<Bytes>,
    ) -> Result<(), RegistryError> {
        const WHAT: &str = "reading a layer";
        let mut headers = HeaderMap::new();
        if *offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.insert(RANGE, range.expect("digits and signs are a header's value"));
        }
        let answer = self.ask(source, &format!("blobs/{}", blob), &headers, "asking for a layer").await?;
        let wrong = |why| self.wrong_at(source, &format!("blob {}", blob), why);
        // A server that knows no ranges sends all of it again.
        let mut skip = *offset;
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            let start = text_of(&answer, &CONTENT_RANGE).and_then(range_start);
            if start != Some(*offset) {
                return Err(wrong(format!("bytes from {offset} on were asked for, and come from {start:?} on")));
            }
            skip = 0;
        }
        let announced = text_of(&answer, &CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        let expected = bytes - (*offset - skip);
        if announced.is_some_and(|length| length != expected) {
            return Err(wrong(format!("it has {} bytes and its manifest says {}", announced.unwrap_or_default(), bytes)));
        }
        let mut body = Paced::new(source, &self.client.0.transport.patience, answer.into_body(), WHAT);
        while let Some(mut chunk) = body.next().await? {
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.split_off(usize::try_from(skipped).expect("no more than the chunk has"));
            if *offset + chunk.len() as u64 > bytes {
                return Err(wrong(format!("it has more than the {} bytes that its manifest says", bytes)));
            }
            *offset += chunk.len() as u64;
            if !chunk.is_empty() && out.send(chunk).await.is_err() {
                return Ok(());
            }
        }
        if *offset == bytes {
            return Ok(());
        }
        let why = format!("it ends after {offset} of {} bytes", bytes);
        Err(RegistryError::Broken { registry: source.host.clone(), what: WHAT, source: why.into() })
    }

    /// Asks the source for something of the repository; identifies itself if it has to.
    async fn ask(&self, source: &Source, path: &str, headers: &HeaderMap, what: &'static str) -> Result<Response<Body>, RegistryError> {
        let transport = &self.client.0.transport;
        let address = format!("{}/v2/{}/{path}", transport.base(&source.host), source.repository);
        let mut identified = None;
        loop {
            let authorization = source.grant.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let ask = Ask { headers: headers.clone(), authorization, form: None };
            let answer = transport.ask(&source.host, &address, &ask).await?;
            if answer.status() != StatusCode::UNAUTHORIZED || identified.is_some() {
                return self.checked(source, answer, path, identified.unwrap_or_default(), what).await;
            }
            // What was granted before has run out, or nothing was.
            identified = Some(self.identify(source, wanted(&answer)).await?);
        }
    }

    async fn checked(
        &self,
        source: &Source,
        answer: Response<Body>,
        path: &str,
        with_credentials: bool,
        what: &'static str,
    ) -> Result<Response<Body>, RegistryError> {
        let status = answer.status();
        let registry = source.named.clone();
        if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(answer);
        }
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let hint = if with_credentials { HINT_OTHER_CREDENTIALS } else { HINT_NO_CREDENTIALS };
                RegistryError::Denied { registry, repository: source.repository.clone(), status, hint }
            }
            StatusCode::NOT_FOUND => {
                let what = match path.split_once('/') {
                    Some(("manifests", pick)) => format!("image {pick:?}"),
                    _ => format!("content {}", path.trim_start_matches("blobs/")),
                };
                RegistryError::NotFound { registry, repository: source.repository.clone(), what }
            }
            _ => {
                let retry_after = text_of(&answer, &RETRY_AFTER).and_then(|seconds| seconds.parse().ok());
                let retry_after = retry_after.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
                // The registry's words are a help, not a need.
                let words = self.collected(source, answer.into_body(), DETAIL_BYTES_MAX, what).await.unwrap_or_default();
                RegistryError::Status { registry, status, what, detail: detail(&words), retry_after }
            }
        })
    }

    /// Gets what the source wants to see; says whether credentials of ours went into it.
    async fn identify(&self, source: &Source, wanted: Vec<Challenge>) -> Result<bool, RegistryError> {
        let known = self.credentials(source)?;
        let mut with_credentials = known.is_some();
        let grant = match (wanted.first(), known) {
            (Some(Challenge::Bearer { realm, service, scope }), known) => {
                Some(self.token(source, realm, service.as_deref(), scope.as_deref(), known.as_ref()).await?)
            }
            (Some(Challenge::Basic), Some(Credentials::Password { user, password })) => Some(basic(&user, &password)),
            (Some(Challenge::Basic), _) | (None, _) => {
                with_credentials = false;
                None
            }
        };
        let grant = grant.map(|grant| HeaderValue::from_str(&grant)).transpose();
        let mut grant = grant.map_err(|_| self.credentials_error(source, "the token or password cannot stand in a header".into()))?;
        if let Some(grant) = &mut grant {
            grant.set_sensitive(true);
        }
        *source.grant.lock().unwrap_or_else(PoisonError::into_inner) = grant;
        Ok(with_credentials)
    }

    /// The value of the header for a token of the realm.
    async fn token(
        &self,
        source: &Source,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        known: Option<&Credentials>,
    ) -> Result<String, RegistryError> {
        const WHAT: &str = "asking for a token";
        let default_scope = format!("repository:{}:pull", source.repository);
        let scope = scope.unwrap_or(&default_scope);
        let mut query = format!("scope={}", query_encode(scope));
        if let Some(service) = service {
            query += &format!("&service={}", query_encode(service));
        }
        let mut ask = Ask::default();
        let mut address = realm.to_owned();
        match known {
            // OAuth2 (RFC 6749 section 6, distribution's "oauth2" page).
            Some(Credentials::IdentityToken(token)) => {
                let token = query_encode(token);
                ask.form = Some(format!("grant_type=refresh_token&client_id=rcluster-agent&refresh_token={token}&{query}"));
            }
            Some(Credentials::Password { user, password }) => {
                let value = HeaderValue::from_str(&basic(user, password));
                let mut value = value.map_err(|_| self.credentials_error(source, "the password cannot stand in a header".into()))?;
                value.set_sensitive(true);
                ask.authorization = Some(value);
                address = with_query(realm, &query);
            }
            None => address = with_query(realm, &query),
        }
        let answer = self.tried(|| async { self.client.0.transport.ask(&source.host, &address, &ask).await }).await?;
        let answer = self.checked(source, answer, "token", known.is_some(), WHAT).await.map_err(|error| match error {
            RegistryError::NotFound { .. } => self.wrong_at(source, &format!("its token service {realm}"), "404: it is not there".into()),
            other => other,
        })?;
        let bytes = self.collected(source, answer.into_body(), TOKEN_BYTES_MAX, WHAT).await?;
        let wrong = |why| self.wrong_at(source, &format!("the answer of its token service {realm}"), why);
        let token: Token = decode(&bytes).map_err(wrong)?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        Ok(format!("Bearer {}", token.ok_or_else(|| wrong("it holds no token".into()))?))
    }

    fn credentials(&self, source: &Source) -> Result<Option<Credentials>, RegistryError> {
        let Some(file) = &self.client.0.auth_file else { return Ok(None) };
        let found = fs::read_to_string(file)
            .map_err(|error| error.to_string())
            .and_then(|text| credentials(&text, &source.named, &source.repository));
        found.map_err(|why| self.credentials_error(source, format!("credentials file {}: {why}", file.display())))
    }

    /// Repeats what may go better; each try is bounded by the transport's deadlines.
    async fn tried<T, F: Future<Output = Result<T, RegistryError>>>(&self, ask: impl Fn() -> F) -> Result<T, RegistryError> {
        let patience = &self.client.0.transport.patience;
        let mut backoff = Backoff::new(patience.backoff_first, patience.backoff_max);
        let mut tries = 0;
        loop {
            match ask().await {
                Err(error) if error.is_passing() && tries + 1 < patience.tries_max => {
                    tries += 1;
                    debug!(image = %self.reference, tries, error = %words(&error), "a request to a registry failed");
                    sleep(error.retry_after().unwrap_or_else(|| backoff.delay())).await;
                }
                done => return done,
            }
        }
    }

    /// The whole of a short body.
    async fn collected(&self, source: &Source, body: Body, bytes_max: u64, what: &'static str) -> Result<Vec<u8>, RegistryError> {
        let patience = &self.client.0.transport.patience;
        let mut body = Paced::new(source, patience, body, what);
        let collect = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = body.next().await? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > bytes_max {
                    return Err(self.wrong_at(source, "its answer", format!("more than {bytes_max} bytes while {what}")));
                }
            }
            Ok(bytes)
        };
        let stalled = || RegistryError::Stalled { registry: source.host.clone(), what, after: patience.answer };
        timeout(patience.answer, collect).await.unwrap_or_else(|_| Err(stalled()))
    }

    fn wrong(&self, what: &str, why: String) -> RegistryError {
        RegistryError::Wrong { registry: self.reference.host().to_owned(), what: what.to_owned(), why }
    }

    fn wrong_at(&self, source: &Source, what: &str, why: String) -> RegistryError {
        RegistryError::Wrong { registry: source.host.clone(), what: what.to_owned(), why }
    }

    fn credentials_error(&self, source: &Source, why: String) -> RegistryError {
        RegistryError::Credentials { registry: source.named.clone(), why }
    }
}

/// A body whose bytes have to come in time.
struct Paced<'a> {
    source: &'a Source,
    stall: Duration,
    body: Body,
    what: &'static str,
    /// Since when something has to come, without the time in which nobody waited for it.
    waited: Duration,
    brought: u64,
}

impl<'a> Paced<'a> {
    fn new(source: &'a Source, patience: &Patience, body: Body, what: &'static str) -> Self {
        Self { source, stall: patience.stall, body, what, waited: Duration::ZERO, brought: 0 }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let started = Instant::now();
            let registry = || self.source.host.clone();
            match timeout(self.stall.saturating_sub(self.waited), self.body.frame()).await {
                Err(_) if self.brought < STALL_BYTES_MIN => {
                    return Err(RegistryError::Stalled { registry: registry(), what: self.what, after: self.stall });
                }
                Err(_) => (self.waited, self.brought) = (Duration::ZERO, 0),
                Ok(None) => return Ok(None),
                Ok(Some(Err(source))) => return Err(RegistryError::Broken { registry: registry(), what: self.what, source }),
                Ok(Some(Ok(frame))) => {
                    self.waited += started.elapsed();
                    // Trailers are of no interest.
                    if let Ok(chunk) = frame.into_data() {
                        self.brought += chunk.len() as u64;
                        return Ok(Some(chunk));
                    }
                }
            }
        }
    }
}

/// What tells one kind of document from another.
#[derive(Debug, Deserialize)]
struct Head {
    #[serde(rename = "mediaType")]
    kind: Option<String>,
    #[serde(rename = "schemaVersion")]
    version: u32,
    #[serde(default, deserialize_with = "present")]
    manifests: bool,
    #[serde(default, deserialize_with = "present")]
    layers: bool,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Problems {
    errors: Vec<Problem>,
}

#[derive(Debug, Deserialize)]
struct Problem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The registry's own words (distribution-spec, "Error Codes"), shortened, without control characters.
fn detail(bytes: &[u8]) -> String {
    let Ok(problems) = serde_json::from_slice::<Problems>(bytes) else { return String::new() };
    let told: Vec<String> = problems.errors.iter().map(|problem| format!("{} {}", problem.code, problem.message)).collect();
    let told: String = told.join("; ").chars().filter(|c| !c.is_control()).take(DETAIL_SHOWN_MAX).collect();
    if told.trim().is_empty() { String::new() } else { format!(" ({})", told.trim()) }
}

fn with_query(address: &str, query: &str) -> String {
    format!("{address}{}{query}", if address.contains('?') { '&' } else { '?' })
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// What the source wants to see.
fn wanted(answer: &Response<Body>) -> Vec<Challenge> {
    answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).flat_map(challenges).collect()
}

fn text_of<'a>(answer: &'a Response<Body>, name: &http::HeaderName) -> Option<&'a str> {
    answer.headers().get(name).and_then(|value| value.to_str().ok())
}

/// The first byte of `bytes 5-9/10` (RFC 9110 section 14.4).
fn range_start(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

fn is_sha256(pick: &str) -> bool {
    pick.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// An error with its causes.
fn words(error: &RegistryError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
