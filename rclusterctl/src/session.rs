//! Calls to the managers: any that answers will do, the next one is tried when one falls silent, within a deadline.
//!
//! Everything that is repeated here may be: reads change nothing, and a change is sent under a key of its own, so that it has effect once.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use rcluster_api::client;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::object::{Kind, Object};
use rcluster_api::tls::Security;
use rcluster_api::wire::convert;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use rcluster_base::backoff::Backoff;
use rcluster_base::clock::{unix_ms, unix_s};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::config::{self, Target};
use crate::error::CliError;

/// How long a call is repeated while the managers answer but have no leader.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long one manager may take for one answer.
const ATTEMPT: Duration = Duration::from_secs(5);

pub type Client = ControlClient<Channel>;

/// A user's conversation with the managers.
pub struct Session {
    target: Target,
    addrs: VecDeque<String>,
    client: Option<Client>,
}

impl Session {
    /// For a cluster; connects at the first call.
    pub fn new(target: Target) -> Self {
        let addrs = target.managers.iter().cloned().collect();
        Self { target, addrs, client: None }
    }

    /// The cluster that is talked to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Calls a method of the managers; repeats it with other managers while the cluster has no leader.
    pub async fn call<T, F>(&mut self, call: impl Fn(Client) -> F) -> Result<T, CliError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.repeat(|client| {
            let answer = call(client);
            async move { Ok(answer.await?.into_inner()) }
        })
        .await
    }

    /// Does something with a client; repeats it with other managers while the cluster has no leader.
    pub async fn repeat<T, F>(&mut self, call: impl Fn(Client) -> F) -> Result<T, CliError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(Duration::from_millis(40), Duration::from_millis(400));
        loop {
            match self.attempt(&call).await {
                Ok(answer) => return Ok(answer),
                Err(Attempt::Answer(error)) if may_pass(&error) && Instant::now() < deadline => self.next_manager(),
                Err(Attempt::NoConnection(error) | Attempt::Answer(error)) => return Err(self.explain(error)),
            }
            sleep(backoff.delay()).await;
        }
    }

    /// Does something with a client that must not be done twice.
    pub async fn once<T, F>(&mut self, call: impl Fn(Client) -> F) -> Result<T, CliError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        match self.attempt(&call).await {
            Ok(answer) => Ok(answer),
            Err(Attempt::NoConnection(error) | Attempt::Answer(error)) => Err(self.explain(error)),
        }
    }

    /// One try with one manager.
    async fn attempt<T, F>(&mut self, call: &impl Fn(Client) -> F) -> Result<T, Attempt>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let client = self.connect().await.map_err(Attempt::NoConnection)?;
        match timeout(ATTEMPT, call(client)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Attempt::Answer(error)),
            Err(_) => Err(Attempt::Answer(ApiError::new(
                ErrorCode::Unavailable,
                format!("manager {} has not answered for {} s", self.addrs.front().map_or("", String::as_str), ATTEMPT.as_secs()),
            ))),
        }
    }

    async fn connect(&mut self) -> Result<Client, ApiError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let security = self.security()?;
        let client = client::control(self.addrs.make_contiguous(), &security).await?;
        self.client = Some(client.clone());
        self.renew().await;
        Ok(client)
    }

    /// How the managers are spoken with.
    pub fn security(&self) -> Result<Security, ApiError> {
        let Some(credentials) = self.target.credentials.clone() else { return Ok(Security::plain()) };
        Security::new(credentials).map_err(|error| {
            ApiError::new(ErrorCode::Invalid, format!("the credentials of {}: {error}", self.target.describe()))
                .hint("write the context anew: rclusterctl context create NAME --from FILE")
        })
    }

    /// Has the certificate renewed at half of its life. When that fails it is tried at the next command: there is time.
    async fn renew(&mut self) {
        let due = self.target.credentials.as_ref().is_some_and(|credentials| credentials.until_renewal(unix_s()).is_zero());
        if due && self.target.context.is_some() {
            drop(self.renew_now().await);
        }
    }

    /// Has the certificate renewed by the authority that issues now; in plain text there is none.
    pub async fn renew_now(&mut self) -> Result<(), CliError> {
        let security = self.security()?;
        if security.is_plain() {
            return Ok(());
        }
        let Some(context) = self.target.context.clone() else {
            return Err(CliError::refused(
                "the certificate cannot be renewed: no context is named in which it would be kept",
                "name the one that it is from with --context; rclusterctl context ls lists them",
            ));
        };
        let asked = async { client::renew(client::connect(self.addrs.make_contiguous(), &security).await?).await };
        let late = || ApiError::new(ErrorCode::Unavailable, format!("no manager has renewed the certificate for {} s", ATTEMPT.as_secs()));
        let renewed = timeout(ATTEMPT, asked).await.unwrap_or_else(|_| Err(late())).map_err(|error| self.explain(error))?;
        config::keep(&context, &renewed)?;
        self.target.credentials = Some(renewed);
        Ok(())
    }

    /// Leaves the manager that failed for the next one.
    pub fn next_manager(&mut self) {
        self.client = None;
        self.addrs.rotate_left(usize::from(!self.addrs.is_empty()));
    }

    /// An error with the cluster that it is about and the way out.
    fn explain(&self, error: ApiError) -> CliError {
        match CliError::from(error) {
            CliError::Unreachable { message, .. } => CliError::Unreachable {
                message: if self.target.managers.iter().any(|addr| message.contains(addr)) {
                    format!("{message} ({})", self.target.describe())
                } else {
                    format!("{message} ({}: {})", self.target.describe(), self.target.managers.join(", "))
                },
                hint: match &self.target.lab {
                    Some(lab) => format!("look at the hosts with rclusterctl lab status --lab {lab}"),
                    None => "check that managers run there, or choose another cluster: rclusterctl context ls".to_owned(),
                },
            },
            other => other,
        }
    }

    /// The objects of a kind; `name`: a name or an id.
    pub async fn list(&mut self, kind: Kind, name: &str, service: &str) -> Result<Vec<Object>, CliError> {
        Ok(self.list_at(kind, name, service).await?.0)
    }

    /// The same, with the time by the clock of the manager that answers, Unix time; by this host's if it does not tell.
    pub async fn list_at(&mut self, kind: Kind, name: &str, service: &str) -> Result<(Vec<Object>, u64), CliError> {
        let request =
            v1::ListRequest { kind: v1::Kind::from(kind).into(), name: name.to_owned(), service: service.to_owned(), stack: String::new() };
        let response = self
            .call(|mut client| {
                let request = request.clone();
                async move { client.list(request).await }
            })
            .await?;
        let now_ms = if response.now_ms == 0 { unix_ms() } else { response.now_ms };
        let objects = response.objects.into_iter().map(|object| Object::try_from(object).map_err(CliError::from));
        Ok((objects.collect::<Result<_, _>>()?, now_ms))
    }

    /// The managers' own standing.
    pub async fn cluster(&mut self) -> Result<v1::ClusterResponse, CliError> {
        self.call(|mut client| async move { client.cluster(v1::ClusterRequest {}).await }).await
    }

    /// Follows objects of some kinds.
    pub fn watch(self, kinds: &[Kind]) -> Watch {
        let kinds = kinds.iter().map(|kind| v1::Kind::from(*kind).into()).collect();
        Watch { session: self, kinds, stream: None, revision: 0, fresh: true, synced: false }
    }
}

enum Attempt {
    /// No manager takes a connection.
    NoConnection(ApiError),
    Answer(ApiError),
}

/// Whether another manager, or the same one in a moment, may say something else.
fn may_pass(error: &ApiError) -> bool {
    matches!(error.code, ErrorCode::Unavailable | ErrorCode::NotLeader)
}

/// One message of a watch.
#[derive(Debug)]
pub struct Change {
    /// The picture begins anew: forget everything known so far.
    pub fresh: bool,
    /// The first picture is complete, with this message or an earlier one.
    pub synced: bool,
    pub revision: u64,
    pub puts: Vec<Object>,
    /// By id.
    pub deletes: Vec<(Kind, String)>,
}

/// A watch that goes on with another manager when its own falls silent.
pub struct Watch {
    session: Session,
    kinds: Vec<i32>,
    stream: Option<Streaming<v1::WatchResponse>>,
    /// The last that was seen whole; 0: the picture begins anew.
    revision: u64,
    /// The next message is the first of a picture.
    fresh: bool,
    synced: bool,
}

impl Watch {
    /// The next message. Returns an error only when no manager can be reached for a while, or one refuses.
    pub async fn next(&mut self) -> Result<Change, CliError> {
        let mut deadline = None;
        let mut backoff = Backoff::new(Duration::from_millis(40), Duration::from_millis(400));
        loop {
            let error = match self.attempt().await {
                Ok(Some(message)) => return self.change(message),
                Ok(None) => ApiError::new(ErrorCode::Unavailable, "the manager has ended the watch"),
                Err(error) => error,
            };
            self.stream = None;
            let goes_on = is_lost(&error) && self.revision > 0;
            if goes_on || self.revision == 0 {
                (self.revision, self.fresh, self.synced) = (0, true, false);
            }
            if goes_on {
                continue;
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
            if !may_pass(&error) && error.code != ErrorCode::Internal || Instant::now() >= deadline {
                return Err(self.session.explain(error));
            }
            self.session.next_manager();
            sleep(backoff.delay()).await;
        }
    }

    /// The next message of this manager's.
    async fn attempt(&mut self) -> Result<Option<v1::WatchResponse>, ApiError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = v1::WatchRequest { kinds: self.kinds.clone(), from_revision: self.revision };
                let open = async {
                    let mut client = self.session.connect().await?;
                    timeout(ATTEMPT, client.watch(request))
                        .await
                        .map_err(|_| ApiError::new(ErrorCode::Unavailable, "the manager has not answered"))?
                        .map_err(ApiError::from)
                };
                self.stream.insert(open.await?.into_inner())
            }
        };
        Ok(stream.message().await?)
    }

    fn change(&mut self, message: v1::WatchResponse) -> Result<Change, CliError> {
        let v1::WatchResponse { revision, puts, deletes, synced, after: _, partial } = message;
        self.synced |= synced;
        if !partial {
            self.revision = revision;
        }
        let fresh = std::mem::take(&mut self.fresh);
        let puts = puts.into_iter().map(Object::try_from).collect::<Result<_, _>>()?;
        let deletes =
            deletes.into_iter().map(|v1::Ref { kind, name }| Ok((convert::kind(kind)?, name))).collect::<Result<_, CliError>>()?;
        Ok(Change { fresh, synced: self.synced && !partial, revision, puts, deletes })
    }
}

/// Whether a watch cannot go on from the revision that it has: it was away for too long, or the cluster was restored meanwhile.
fn is_lost(error: &ApiError) -> bool {
    error.code == ErrorCode::Compacted || (error.code == ErrorCode::Invalid && error.field == "from_revision")
}
