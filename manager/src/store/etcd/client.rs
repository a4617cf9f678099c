//! Everything that a manager asks of etcd: each call with a deadline, each write with what must still be true for it.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, GetOptions, GetResponse, Identity, KeyValue, KvClient,
    LeaseGrantResponse, PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, TxnResponse, WatchOptions, WatchStream,
};
use prost::Message;
use rcluster_api::wire::v1;
use rcluster_base::backoff::Backoff;
use thiserror::Error as ThisError;
use tokio::time::{Instant, timeout};
use tonic::Code;
use tracing::{debug, warn};

use super::address::Access;
use super::keys::{self, Keys, LeaderRecord, PART_BYTES, SnapshotRecord, Unreadable};
use crate::core::state::{State, Transaction, decode_snapshot, encode_snapshot};

/// How long etcd may take for one answer.
const CALL_TIMEOUT: Duration = Duration::from_millis(1500);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// Pings of idle connections, to notice a host that lost its power. etcd ends connections that ping more often than every 5 s.
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));
/// Pause before a call that etcd did not answer is made again.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(300));
/// A call that etcd has not answered after so many attempts is told of.
const ATTEMPTS_SILENT: u32 = 5;
/// Values asked for at once: each may have 1 MiB, and the link may be slow.
const PAGE: (i64, i64) = (4, 64);
/// A page that came within this is followed by a larger one.
const PAGE_FAST: Duration = Duration::from_millis(300);
const ANSWER_BYTES_MAX: usize = 128 << 20;

/// Why a call has no result.
#[derive(Debug, ThisError)]
pub enum CallError {
    #[error("{what}: etcd did not answer within {} ms", waited.as_millis())]
    Timeout { what: &'static str, waited: Duration },
    #[error("{what}: etcd ended the connection")]
    Ended { what: &'static str },
    #[error("{what}: {}", told(source))]
    Etcd { what: &'static str, source: Box<Error> },
    #[error("the history of etcd does not reach back to where this manager was: it was compacted meanwhile")]
    Compacted,
    #[error("etcd has gone back, to revision {found} of the tables")]
    WentBack { found: u64 },
    #[error("another manager leads, or this one's lease has ended")]
    Deposed,
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("{path} for etcd cannot be read")]
    File { path: PathBuf, source: std::io::Error },
}

/// What etcd says, without the layers around it.
fn told(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

impl CallError {
    /// Whether the same call may well succeed later: etcd cannot be reached, or has no leader just now.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Ended { .. } => true,
            Self::Etcd { source, .. } => match source.as_ref() {
                Error::GRpcStatus(status) => matches!(
                    status.code(),
                    Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted
                ),
                Error::TransportError(_) | Error::IoError(_) => true,
                _ => false,
            },
            Self::Compacted | Self::WentBack { .. } | Self::Deposed | Self::Unreadable(_) | Self::File { .. } => false,
        }
    }
}

/// The result of one call.
pub async fn call<T>(what: &'static str, asked: impl Future<Output = Result<T, Error>>) -> Result<T, CallError> {
    match timeout(CALL_TIMEOUT, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Error::GRpcStatus(status))) if status.code() == Code::OutOfRange => Err(CallError::Compacted),
        Ok(Err(source)) => Err(CallError::Etcd { what, source: Box::new(source) }),
        Err(_) => Err(CallError::Timeout { what, waited: CALL_TIMEOUT }),
    }
}

/// Makes a call again and again until etcd has answered; only calls that may be made twice. It ends when its caller gives up.
async fn insist<T, F: Future<Output = Result<T, CallError>>>(mut attempt: impl FnMut() -> F) -> Result<T, CallError> {
    let mut patience = Patience::new();
    loop {
        match attempt().await {
            Err(error) if error.is_passing() => patience.wait(&error).await,
            other => return other,
        }
    }
}

/// Between two attempts.
struct Patience {
    backoff: Backoff,
    attempts: u32,
}

impl Patience {
    fn new() -> Self {
        Self { backoff: Backoff::new(RETRY.0, RETRY.1), attempts: 0 }
    }

    async fn wait(&mut self, error: &CallError) {
        self.attempts += 1;
        if self.attempts == ATTEMPTS_SILENT {
            warn!(%error, attempts = self.attempts, "etcd does not answer, or the link to it is too slow; asking on");
        } else {
            debug!(%error, "asking etcd again");
        }
        tokio::time::sleep(self.backoff.delay()).await;
    }
}

/// All that a manager needs to begin.
#[derive(Debug)]
pub struct Loaded {
    pub state: State,
    /// etcd's revision of all this.
    pub at: i64,
    pub live: Standing,
    /// Bytes of the log's transactions.
    pub log_bytes: usize,
}

/// Who leads and who runs.
#[derive(Debug, Default)]
pub struct Standing {
    pub leader: Option<LeaderRecord>,
    /// The run of each manager that runs, by id.
    pub alive: BTreeMap<u64, u64>,
    /// Revision of the snapshot that the log begins after.
    pub snapshot: u64,
}

/// How an election went.
#[derive(Debug)]
pub enum Campaigned {
    /// `fence`: etcd's revision at which the leader's key was made.
    Won { fence: i64, term: u64, head: u64 },
    /// At etcd's revision `at` this one led.
    Lost { leader: Option<LeaderRecord>, at: i64 },
}

/// A transaction to be written.
#[derive(Debug)]
pub struct Entry {
    pub revision: u64,
    pub transaction: v1::Transaction,
}

/// One cluster's keys in an etcd; clones share the connections.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
    pub keys: Keys,
    /// Answers may be large here.
    kv: KvClient,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Etcd").field("keys", &self.keys).finish_non_exhaustive()
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, CallError> {
    std::fs::read(path).map_err(|source| CallError::File { path: path.to_owned(), source })
}

fn options(access: &Access) -> Result<ConnectOptions, CallError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(PING.0, PING.1)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(ca) = &access.ca {
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read_file(ca)?));
        if let Some((certificate, key)) = &access.certificate {
            tls = tls.identity(Identity::from_pem(read_file(certificate)?, read_file(key)?));
        }
        options = options.with_tls(tls);
    }
    if let Some((name, file)) = &access.user {
        let password = String::from_utf8_lossy(&read_file(file)?).trim_end_matches(['\r', '\n']).to_owned();
        options = options.with_user(name, password);
    }
    Ok(options)
}

/// The values of a transaction's gets, in their order.
fn got(answer: &TxnResponse) -> Vec<Vec<KeyValue>> {
    let gets = answer.op_responses().into_iter().filter_map(|one| match one {
        TxnOpResponse::Get(mut got) => Some(got.take_kvs()),
        _ => None,
    });
    gets.collect()
}

/// Deletes the keys from `from` up to `to`, without that.
fn delete(from: String, to: String) -> TxnOp {
    TxnOp::delete(from, Some(DeleteOptions::new().with_range(to)))
}

fn first<T>(found: &[KeyValue], read: impl Fn(&str, &[u8]) -> Result<T, Unreadable>) -> Result<Option<T>, Unreadable> {
    found.first().map(|kv| read(&String::from_utf8_lossy(kv.key()), kv.value())).transpose()
}

impl Etcd {
    /// Connections to the etcd of `access`, for the keys of `cluster_id`. Only a user's name and password are shown to etcd now; where
    /// nobody is there, the error is a passing one.
    pub async fn connect(access: &Access, cluster_id: &str) -> Result<Self, CallError> {
        let options = options(access)?;
        let client = call("connect", Client::connect(&access.address.endpoints, Some(options))).await?;
        let kv = client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self { client, kv, keys: Keys::new(&access.address, cluster_id) })
    }

    async fn txn(&self, what: &'static str, txn: Txn) -> Result<TxnResponse, CallError> {
        call(what, self.kv.clone().txn(txn)).await
    }

    /// Makes a transaction until etcd has answered it: `ops`, or what `look` gets where something of `when` is not so. An error when the
    /// format is not this version's; `when` has to compare it.
    pub async fn write(
        &self,
        what: &'static str,
        when: Vec<Compare>,
        ops: Vec<TxnOp>,
        mut look: Vec<TxnOp>,
    ) -> Result<TxnResponse, CallError> {
        // The last one: answers are read in the order of the gets.
        look.push(TxnOp::get(self.keys.format(), None));
        let txn = Txn::new().when(when).and_then(ops).or_else(look);
        let answer = insist(|| self.txn(what, txn.clone())).await?;
        if !answer.succeeded() {
            self.check_format(got(&answer).last().map(Vec::as_slice).unwrap_or_default())?;
        }
        Ok(answer)
    }

    fn check_format(&self, found: &[KeyValue]) -> Result<(), Unreadable> {
        let key = self.keys.format();
        match found.first() {
            Some(kv) => keys::check_format(&key, kv.value()),
            None => Err(Unreadable::Missing { key }),
        }
    }

    /// That no later version has raised the format: managers of this one write nothing then.
    pub fn is_of_this_format(&self) -> Compare {
        Compare::value(self.keys.format(), CompareOp::Equal, keys::format())
    }

    async fn get(&self, key: impl Into<Vec<u8>>, options: Option<GetOptions>) -> Result<GetResponse, CallError> {
        call("read", self.kv.clone().get(key, options)).await
    }

    /// Whether etcd answers.
    pub async fn probe(&self) -> Result<(), CallError> {
        call("reach etcd", self.kv.clone().get(self.keys.format(), None)).await.map(drop)
    }

    /// Every key from `from` to `to`, as of etcd's revision `at`; 0: now. In pages as large as the link carries in time.
    async fn range(&self, from: String, to: String, at: i64) -> Result<Vec<KeyValue>, CallError> {
        let (mut from, mut all) = (from.into_bytes(), Vec::new());
        let (mut limit, mut patience) = (PAGE.0, Patience::new());
        loop {
            let asked = Instant::now();
            let options = GetOptions::new().with_range(to.clone()).with_limit(limit).with_revision(at);
            let mut page = match self.get(from.clone(), Some(options)).await {
                Ok(mut answer) => answer.take_kvs(),
                Err(error) if error.is_passing() => {
                    limit = (limit / 2).max(1);
                    patience.wait(&error).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            patience = Patience::new();
            let whole = i64::try_from(page.len()).is_ok_and(|length| length < limit);
            if asked.elapsed() < PAGE_FAST {
                limit = (limit * 2).min(PAGE.1);
            }
            if let Some(last) = page.last() {
                // The next key there can be.
                from = [last.key(), &[0]].concat();
            }
            all.append(&mut page);
            if whole {
                return Ok(all);
            }
        }
    }

    /// The pieces below `parts`.
    async fn parts(&self, parts: &str, count: usize, at: i64) -> Result<Vec<Vec<u8>>, CallError> {
        let found = self.range(Keys::part(parts, 0), Keys::part(parts, count), at).await?;
        Ok(found.into_iter().map(|kv| kv.value().to_vec()).collect())
    }

    /// The transaction of an entry, and its bytes; its pieces are those of etcd's revision `at`, 0: now.
    pub async fn gather(&self, revision: u64, entry: v1::EtcdEntry, at: i64) -> Result<(Transaction, usize), CallError> {
        let parts =
            if entry.parts == 0 { Vec::new() } else { self.parts(&self.keys.entry_parts(revision), entry.parts as usize, at).await? };
        let bytes = entry.encoded_len() + parts.iter().map(Vec::len).sum::<usize>();
        Ok((keys::transaction(&self.keys.entry(revision), entry, &parts)?, bytes))
    }

    /// The tables as of now, and who leads and runs: all of one revision of etcd.
    pub async fn load(&self, cluster_id: &str) -> Result<Loaded, CallError> {
        let keys = &self.keys;
        let get = |key: String| TxnOp::get(key, None);
        let alive = TxnOp::get(keys.all_alive(), Some(GetOptions::new().with_prefix()));
        let ops = vec![get(keys.format()), get(keys.head()), get(keys.leader()), get(keys.snapshot()), alive];
        let answer = insist(|| self.txn("read the cluster's keys", Txn::new().and_then(ops.clone()))).await?;
        let at = answer.header().map(|header| header.revision()).unwrap_or_default();
        let found = got(&answer);
        let [format, head, leader, snapshot, alive] = found.as_slice() else {
            return Err(Unreadable::Missing { key: keys.format() }.into());
        };
        let missing = |key: String| Unreadable::Missing { key };
        self.check_format(format)?;
        let head = first(head, keys::number)?.ok_or_else(|| missing(keys.head()))?;
        let snapshot = first(snapshot, keys::json::<SnapshotRecord>)?.ok_or_else(|| missing(keys.snapshot()))?;
        let mut live = Standing { leader: first(leader, keys::json)?, snapshot: snapshot.revision, ..Standing::default() };
        for kv in alive {
            if let Some(keys::Live::Alive(id)) = keys.read(kv.key()) {
                live.alive.insert(id, keys::number(&String::from_utf8_lossy(kv.key()), kv.value())?);
            }
        }
        let mut state = self.load_snapshot(cluster_id, &snapshot, at).await?;
        let log_bytes = self.load_log(&mut state, head, at).await?;
        Ok(Loaded { state, at, live, log_bytes })
    }

    async fn load_snapshot(&self, cluster_id: &str, record: &SnapshotRecord, at: i64) -> Result<State, CallError> {
        let key = self.keys.snapshot();
        let bytes = self.parts(&self.keys.snapshot_parts(record.revision), record.parts, at).await?.concat();
        if bytes.len() != record.bytes || crc32c::crc32c(&bytes) != record.checksum {
            return Err(Unreadable::Checksum { key }.into());
        }
        let state = decode_snapshot(&bytes).map_err(|source| Unreadable::Entry { key: key.clone(), source })?;
        if state.cluster_id() != cluster_id || state.revision() != record.revision {
            let why = format!("they are of cluster {:?} at revision {}", state.cluster_id(), state.revision());
            return Err(Unreadable::Conflict { key, why }.into());
        }
        Ok(state)
    }

    async fn load_log(&self, state: &mut State, head: u64, at: i64) -> Result<usize, CallError> {
        let entries = self.range(self.keys.entry(state.revision() + 1), self.keys.entry(head + 1), at).await?;
        let mut bytes = 0;
        for kv in entries {
            let next = state.revision() + 1;
            let key = self.keys.entry(next);
            if kv.key() != key.as_bytes() {
                return Err(Unreadable::Missing { key }.into());
            }
            let (transaction, length) = self.gather(next, keys::open(&key, kv.value())?, at).await?;
            bytes += length;
            state.apply(next, &transaction).map_err(|conflict| Unreadable::Conflict { key, why: conflict.to_string() })?;
        }
        if state.revision() != head {
            return Err(Unreadable::Missing { key: self.keys.entry(state.revision() + 1) }.into());
        }
        Ok(bytes)
    }

    /// Says that this manager runs, until its lease ends. Answers etcd's revision, and the cluster's.
    pub async fn say_alive(&self, id: u64, run: u64, lease: i64) -> Result<(i64, u64), CallError> {
        let put = TxnOp::put(self.keys.alive(id), run.to_string(), Some(PutOptions::new().with_lease(lease)));
        let ops = vec![put, TxnOp::get(self.keys.head(), None)];
        let answer = self.write("say that this manager runs", vec![self.is_of_this_format()], ops, Vec::new()).await?;
        let head = got(&answer).first().map(|found| first(found, keys::number)).transpose()?.flatten();
        let head = head.ok_or_else(|| Unreadable::Missing { key: self.keys.head() })?;
        Ok((answer.header().map(|header| header.revision()).unwrap_or_default(), head))
    }

    /// Asks for a lease of so many seconds.
    pub async fn grant(&self, seconds: i64) -> Result<LeaseGrantResponse, CallError> {
        call("ask for a lease", self.client.clone().lease_grant(seconds, None)).await
    }

    /// Ends a lease and deletes the keys on it.
    pub async fn revoke(&self, lease: i64) -> Result<(), CallError> {
        call("end the lease", self.client.clone().lease_revoke(lease)).await.map(drop)
    }

    pub fn leases(&self) -> etcd_client::LeaseClient {
        self.client.lease_client()
    }

    /// Watches what changes, from etcd's revision `from` on.
    pub async fn watch(&self, from: i64) -> Result<WatchStream, CallError> {
        let options = WatchOptions::new().with_prefix().with_fragment().with_start_revision(from);
        let mut client = self.client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        call("watch", client.watch(self.keys.live(), Some(options))).await
    }

    /// etcd's revision, and the last of the tables there is, as a quorum of etcd knows them.
    pub async fn head(&self) -> Result<(i64, u64), CallError> {
        let answer = insist(|| self.get(self.keys.head(), None)).await?;
        let head = first(answer.kvs(), keys::number)?.ok_or_else(|| Unreadable::Missing { key: self.keys.head() })?;
        Ok((answer.header().map(|header| header.revision()).unwrap_or_default(), head))
    }

    /// The term of the last who led.
    pub async fn last_term(&self) -> Result<u64, CallError> {
        let found = insist(|| self.get(self.keys.term(), None)).await?;
        Ok(first(found.kvs(), keys::number)?.ok_or_else(|| Unreadable::Missing { key: self.keys.term() })?)
    }

    /// Stands for election: whoever makes the leader's key leads, as long as its lease lasts. The term rises with it.
    pub async fn campaign(&self, id: u64, run: u64, lease: i64) -> Result<Campaigned, CallError> {
        let keys = &self.keys;
        let before = self.last_term().await?;
        let term = before + 1;
        let record = keys::to_json(&LeaderRecord { id, run, term });
        let get = || vec![TxnOp::get(keys.head(), None), TxnOp::get(keys.leader(), None)];
        let mut made = vec![
            TxnOp::put(keys.leader(), record, Some(PutOptions::new().with_lease(lease))),
            TxnOp::put(keys.term(), term.to_string(), None),
        ];
        made.extend(get());
        let when = vec![
            Compare::create_revision(keys.leader(), CompareOp::Equal, 0),
            Compare::value(keys.term(), CompareOp::Equal, before.to_string()),
            self.is_of_this_format(),
        ];
        let answer = self.write("stand for election", when, made, get()).await?;
        let at = answer.header().map(|header| header.revision()).unwrap_or_default();
        let found = got(&answer);
        let [head, leader, ..] = found.as_slice() else { return Err(Unreadable::Missing { key: keys.head() }.into()) };
        let head = first(head, keys::number)?.ok_or_else(|| Unreadable::Missing { key: keys.head() })?;
        let record: Option<LeaderRecord> = first(leader, keys::json)?;
        // It may have been made by an attempt whose answer was lost.
        match (leader.first(), record) {
            (Some(kv), Some(record)) if kv.lease() == lease => Ok(Campaigned::Won { fence: kv.create_revision(), term: record.term, head }),
            (_, leader) => Ok(Campaigned::Lost { leader, at }),
        }
    }

    /// Gives leadership up.
    pub async fn resign(&self, fence: i64) -> Result<(), CallError> {
        let ops = vec![TxnOp::delete(self.keys.leader(), None)];
        self.write("give leadership up", self.leads(fence), ops, Vec::new()).await.map(drop)
    }

    /// What must be so for all that a leader writes.
    fn leads(&self, fence: i64) -> Vec<Compare> {
        vec![Compare::create_revision(self.keys.leader(), CompareOp::Equal, fence), self.is_of_this_format()]
    }

    async fn put_parts(&self, when: &[Compare], below: &str, parts: impl Iterator<Item = &[u8]>) -> Result<usize, CallError> {
        let mut count = 0;
        for part in parts {
            let ops = vec![TxnOp::put(Keys::part(below, count), part, None)];
            let answer = self.write("write a part", when.to_vec(), ops, Vec::new()).await?;
            if !answer.succeeded() {
                return Err(CallError::Deposed);
            }
            count += 1;
        }
        Ok(count)
    }

    /// Writes transactions after revision `previous`, all or none, if this manager still leads and nothing was written since. With none, it
    /// only makes sure of that.
    ///
    /// Asked again, it is not done twice: the comparison with `previous` fails then, and the head shows that it was done.
    pub async fn commit(&self, fence: i64, previous: u64, entries: Vec<Entry>) -> Result<(), CallError> {
        let (keys, leads) = (&self.keys, self.leads(fence));
        let last = entries.last().map_or(previous, |entry| entry.revision);
        let mut ops = Vec::new();
        for Entry { revision, transaction } in entries {
            let (entry, parts) = keys::entry(transaction);
            self.put_parts(&leads, &keys.entry_parts(revision), parts.iter().map(Vec::as_slice)).await?;
            ops.push(TxnOp::put(keys.entry(revision), entry.encode_to_vec(), None));
        }
        if last > previous {
            ops.push(TxnOp::put(keys.head(), last.to_string(), None));
        }
        let mut when = leads;
        when.push(Compare::value(keys.head(), CompareOp::Equal, previous.to_string()));
        let look = vec![TxnOp::get(keys.leader(), None), TxnOp::get(keys.head(), None)];
        let answer = self.write("commit", when, ops, look).await?;
        if answer.succeeded() {
            return Ok(());
        }
        let found = got(&answer);
        let [leader, head, ..] = found.as_slice() else { return Err(CallError::Deposed) };
        let leads = leader.first().is_some_and(|kv| kv.create_revision() == fence);
        // Nobody else writes while this manager leads.
        if leads && first(head, keys::number)? == Some(last) { Ok(()) } else { Err(CallError::Deposed) }
    }

    /// Writes the tables, after which the log begins anew, as long as `when` is so.
    pub async fn write_snapshot(&self, when: &[Compare], state: State) -> Result<(SnapshotRecord, Vec<TxnOp>), CallError> {
        let revision = state.revision();
        let bytes = tokio::task::spawn_blocking(move || encode_snapshot(&state)).await.expect("encoding does not panic");
        let parts = self.put_parts(when, &self.keys.snapshot_parts(revision), bytes.chunks(PART_BYTES)).await?;
        let record = SnapshotRecord { revision, parts, bytes: bytes.len(), checksum: crc32c::crc32c(&bytes) };
        let ops = vec![TxnOp::put(self.keys.snapshot(), keys::to_json(&record), None)];
        Ok((record, ops))
    }

    /// Deletes the log through `revision`, and what snapshots there were before.
    pub fn forget_before(&self, revision: u64) -> [TxnOp; 3] {
        let (keys, next) = (&self.keys, revision + 1);
        [
            delete(keys.entry(0), keys.entry(next)),
            delete(keys.entry_parts(0), keys.entry_parts(next)),
            delete(keys.snapshot_parts(0), keys.snapshot_parts(revision)),
        ]
    }

    /// Deletes what [`Etcd::write_snapshot`] wrote of the tables at `revision`.
    pub fn forget_snapshot(&self, revision: u64) -> TxnOp {
        delete(self.keys.snapshot_parts(revision), self.keys.snapshot_parts(revision + 1))
    }

    /// Replaces the snapshot and the log up to it, as the leader; answers the snapshot's revision.
    pub async fn replace_snapshot(&self, fence: i64, state: State) -> Result<u64, CallError> {
        let leads = self.leads(fence);
        let (record, mut ops) = self.write_snapshot(&leads, state).await?;
        ops.extend(self.forget_before(record.revision));
        let answer = self.write("replace the snapshot", leads, ops, Vec::new()).await?;
        if answer.succeeded() { Ok(record.revision) } else { Err(CallError::Deposed) }
    }

    /// Makes the keys of a new cluster; false: they are there.
    pub async fn found(&self, state: State) -> Result<bool, CallError> {
        let (keys, revision) = (&self.keys, state.revision());
        let is_new = vec![Compare::create_revision(keys.format(), CompareOp::Equal, 0)];
        let mut ops = match self.write_snapshot(&is_new, state).await {
            Ok((_, ops)) => ops,
            // They are there, of whatever format.
            Err(CallError::Deposed | CallError::Unreadable(Unreadable::Format { .. })) => return Ok(false),
            Err(error) => return Err(error),
        };
        ops.extend([
            TxnOp::put(keys.format(), keys::format(), None),
            TxnOp::put(keys.head(), revision.to_string(), None),
            TxnOp::put(keys.term(), "0", None),
        ]);
        let txn = Txn::new().when(is_new).and_then(ops);
        Ok(self.txn("make the cluster's keys", txn).await?.succeeded())
    }
}
