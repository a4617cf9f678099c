//! Foreign names: the host's own resolvers are asked, and their answers remembered.
//!
//! ```text
//!  pod ──► dns thread ──Job──► desk ──► the pod's own resolvers, or those of the host's resolv.conf, all at once (UDP; TCP for what was cut)
//!      ◄──────────────────────────  ◄── the first that settles it
//! ```
//!
//! - The desk is a thread of its own that stays in the host's network namespace, as do the sockets it makes: one for each question and resolver,
//!   on a port and with an id by chance. What is believed and remembered is said in `core::foreign` and `core::cache`.
//! - Who asked has an answer within `BUDGET`: at once when it is remembered or there is nobody to ask, and a server failure when nobody answers;
//!   the same question again is then answered so for two seconds without asking.
//! - A pod has at most `OF_ONE_POD_MAX` questions under way, all together `UNDER_WAY_MAX`; what is more fails at once.
//! - The host's file is looked at before others are asked, once in a second: resolvers change with it, and what was remembered goes.
//!
//! Never: is given names of ours (`core::names` tells them apart), waits in the thread that answers for ours, or asks our own address.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tracing::{debug, error, info, warn};

use super::Pod;
use crate::core::cache::Cache;
use crate::core::foreign::{Question, SERVER_FAILURE, is_cut, is_settled, lifetime, resolvers};
use crate::core::shares::Shares;

/// How long others have for an answer.
const BUDGET: Duration = Duration::from_secs(2);

/// Questions of one pod that others have not answered yet.
const OF_ONE_POD_MAX: usize = 64;

/// The same of all pods.
const UNDER_WAY_MAX: usize = 512;

/// Questions that may wait for the desk.
const JOBS_MAX: usize = 1024;

/// How old the picture of the host's resolv.conf may be.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// More than we say that we take over UDP.
const DATAGRAM_BYTES_MAX: usize = 4096;

/// A foreign question.
#[derive(Debug)]
struct Job {
    pod: Pod,
    question: Question,
    reply: Reply,
}

/// Where an answer goes.
#[derive(Debug)]
enum Reply {
    Datagram { socket: Arc<UdpSocket>, to: SocketAddr },
    Stream(oneshot::Sender<Vec<u8>>),
}

/// Where foreign questions are handed in.
#[derive(Debug, Clone)]
pub struct Forwarder {
    jobs: mpsc::Sender<Job>,
}

impl Forwarder {
    /// Opens the desk, in the network namespace of the thread that calls. `resolv_conf` need not be there.
    pub fn start(resolv_conf: PathBuf) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let desk = Desk::new(resolv_conf);
        thread::Builder::new().name("forward".to_owned()).spawn(move || runtime.block_on(desk.serve(queue)))?;
        Ok(Self { jobs })
    }

    /// Has a question answered to where it came from. Does not wait.
    pub fn answer_to(&self, pod: Pod, question: Question, socket: Arc<UdpSocket>, to: SocketAddr) {
        self.hand_in(Job { pod, question, reply: Reply::Datagram { socket, to } });
    }

    /// The answer to a question; `None` when the process is about to end.
    pub async fn answer(&self, pod: Pod, question: Question) -> Option<Vec<u8>> {
        let (reply, answer) = oneshot::channel();
        self.hand_in(Job { pod, question, reply: Reply::Stream(reply) });
        answer.await.ok()
    }

    fn hand_in(&self, job: Job) {
        if let Err(refused) = self.jobs.try_send(job) {
            refused.into_inner().fail();
        }
    }
}

impl Job {
    fn fail(self) {
        let failure = self.question.bare(SERVER_FAILURE, false);
        self.reply.send(failure);
    }
}

impl Reply {
    fn send(self, answer: Vec<u8>) {
        match self {
            Self::Datagram { socket, to } => {
                if let Err(error) = socket.send_to(&answer, to) {
                    debug!(asker = %to, %error, "answer not sent");
                }
            }
            // The asker may have gone; that is its business.
            Self::Stream(reply) => drop(reply.send(answer)),
        }
    }
}

/// The one owner of what is asked and remembered.
struct Desk {
    resolv_conf: PathBuf,
    /// When that was last looked at.
    looked: Option<Instant>,
    resolvers: Vec<SocketAddr>,
    cache: Cache,
    /// By pod.
    shares: Shares<Arc<str>>,
    under_way: JoinSet<(Job, Option<Vec<u8>>)>,
}

impl Desk {
    fn new(resolv_conf: PathBuf) -> Self {
        Self {
            resolv_conf,
            looked: None,
            resolvers: Vec::new(),
            cache: Cache::default(),
            shares: Shares::new(OF_ONE_POD_MAX, UNDER_WAY_MAX),
            under_way: JoinSet::new(),
        }
    }

    /// Until nobody can hand anything in any more.
    async fn serve(mut self, mut jobs: mpsc::Receiver<Job>) {
        loop {
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(job) => self.begin(job),
                    None => return,
                },
                Some(ended) = self.under_way.join_next() => match ended {
                    Ok((job, answer)) => self.end(job, answer),
                    Err(error) => error!(%error, "a foreign question was given up"),
                },
            }
        }
    }

    fn begin(&mut self, job: Job) {
        let now = Instant::now();
        self.look(now);
        if let Some((answer, age)) = self.cache.get(&job.question.key(&job.pod.resolvers), now) {
            let answer = job.question.answer(answer, age);
            return job.reply.send(answer);
        }
        let resolvers = if job.pod.resolvers.is_empty() { self.resolvers.clone() } else { job.pod.resolvers.to_vec() };
        if resolvers.is_empty() || !self.shares.take(&job.pod.id) {
            return job.fail();
        }
        self.under_way.spawn(async move {
            let answer = race(&resolvers, &job.question).await;
            (job, answer)
        });
    }

    fn end(&mut self, job: Job, answer: Option<Vec<u8>>) {
        self.shares.give_back(&job.pod.id);
        let answer = answer.unwrap_or_else(|| job.question.bare(SERVER_FAILURE, false));
        job.reply.send(job.question.answer(&answer, Duration::ZERO));
        if let Some(lifetime) = lifetime(&answer) {
            self.cache.put(job.question.key(&job.pod.resolvers), answer, lifetime, Instant::now());
        }
    }

    /// Follows the host's resolv.conf. Its text is read, not its times: what is beneath a link or a mount may be replaced as a whole.
    fn look(&mut self, now: Instant) {
        if self.looked.is_some_and(|looked| now < looked + LOOK_EVERY) {
            return;
        }
        self.looked = Some(now);
        let found = match std::fs::read_to_string(&self.resolv_conf) {
            Ok(text) => resolvers(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                warn!(file = %self.resolv_conf.display(), %error, "read which resolvers the host has; those of before are asked");
                return;
            }
        };
        if found != self.resolvers {
            info!(file = %self.resolv_conf.display(), resolvers = ?found, "foreign names are asked for here");
            self.resolvers = found;
            self.cache = Cache::default();
        }
    }
}

/// Asks all of them at once. The first answer that settles the question, else the first that came in time.
async fn race(resolvers: &[SocketAddr], question: &Question) -> Option<Vec<u8>> {
    let deadline = tokio::time::Instant::now() + BUDGET;
    let mut asked = JoinSet::new();
    for resolver in resolvers {
        let (resolver, question) = (*resolver, question.clone());
        asked.spawn(async move { (resolver, ask(resolver, &question).await) });
    }
    let mut unsettled = None;
    while let Ok(Some(ended)) = timeout_at(deadline, asked.join_next()).await {
        match ended {
            Ok((_, Ok(answer))) if is_settled(&answer) => return Some(answer),
            Ok((_, Ok(answer))) => unsettled = unsettled.or(Some(answer)),
            Ok((resolver, Err(error))) => debug!(%resolver, %error, "a resolver did not answer"),
            Err(error) => error!(%error, "asking a resolver was given up"),
        }
    }
    unsettled
}

/// One resolver's answer; waits for it without end.
async fn ask(resolver: SocketAddr, question: &Question) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match resolver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = tokio::net::UdpSocket::bind(any).await?;
    // The kernel then tells of a port where nobody listens.
    socket.connect(resolver).await?;
    let id = rand::random();
    socket.send(&question.query(id)).await?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).await?;
        let answer = &buffer[..len];
        if !question.is_answered_by(id, resolver, from, answer) {
            debug!(%resolver, %from, "what came is no answer to what was asked");
        } else if is_cut(answer) {
            return ask_for_the_whole(resolver, question).await;
        } else {
            return Ok(answer.to_vec());
        }
    }
}

/// The same over TCP.
async fn ask_for_the_whole(resolver: SocketAddr, question: &Question) -> io::Result<Vec<u8>> {
    let id = rand::random();
    let query = question.query(id);
    let mut framed = u16::try_from(query.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
    framed.extend(&query);
    let mut stream = TcpStream::connect(resolver).await?;
    stream.write_all(&framed).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    if question.is_answered_by(id, resolver, resolver, &answer) {
        Ok(answer)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "what came over TCP is no answer to what was asked"))
    }
}
