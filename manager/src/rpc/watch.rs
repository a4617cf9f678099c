//! Streams of changes, from the tables of whichever manager was asked.
//!
//! A stream begins with nothing older than what was committed before the call. After that it may lag as its manager does, never skip: it
//! ends with an error when its manager has no leader any more, when its reader does not read, and when its user may no longer.

use std::time::Duration;

use rcluster_api::cluster::UserRole;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::convert;
use rcluster_api::wire::v1;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::auth;
use super::holder::Holder;
use super::route::Router;
use crate::core::watch::{Piece, Watcher};
use crate::meter::There;

/// Pieces that wait for the reader.
const PIECES_MAX: usize = 4;
/// How long a reader may take for one piece: until then a copy of the tables is held for it.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a watch may be silent before its manager asks whether it still knows of all that is committed.
const SILENT: Duration = Duration::from_secs(3);

/// A stream of pieces.
pub type Pieces = ReceiverStream<Result<Piece, ApiError>>;

/// Begins a watch.
pub async fn open(router: &Router, request: Request<v1::WatchRequest>) -> Result<Pieces, Status> {
    auth::admit(&request)?;
    router.fresh().await?;
    let (metadata, extensions, v1::WatchRequest { kinds, from_revision }) = request.into_parts();
    let caller = Request::from_parts(metadata, extensions, ());
    router.permit(&caller, UserRole::ReadOnly, "watching")?;
    let kinds = kinds.into_iter().map(convert::kind).collect::<Result<_, _>>().map_err(ApiError::from)?;
    let state = router.store.state();
    let mut watcher = Watcher::new(&state, kinds, from_revision)?;
    // One that is too old is refused at once.
    let first = watcher.turn(&state)?;
    let holder = Holder::new(&router.store, &caller, UserRole::ReadOnly, "watching")?;
    let (sender, receiver) = mpsc::channel(PIECES_MAX + 1);
    // Room for the last word, however late it is read.
    let last = sender.clone().try_reserve_owned().map_err(|_| ApiError::new(ErrorCode::Internal, "a new watch is full"))?;
    let _there = router.figures.watches.there();
    let follower = Follower { router: router.clone(), caller, watcher, sender, _there };
    tokio::spawn(async move {
        let sender = follower.sender.clone();
        let error = tokio::select! {
            () = sender.closed() => return,
            error = holder.over() => error,
            Err(error) = follower.run(first) => error,
        };
        last.send(Err(error));
    });
    Ok(ReceiverStream::new(receiver))
}

struct Follower {
    router: Router,
    caller: Request<()>,
    watcher: Watcher,
    sender: mpsc::Sender<Result<Piece, ApiError>>,
    _there: There,
}

impl Follower {
    /// Tells of every change; returns why it cannot go on.
    async fn run(mut self, first: Option<crate::core::watch::Pieces>) -> Result<(), ApiError> {
        let mut revisions = self.router.store.revisions();
        let mut pieces = first;
        loop {
            for piece in pieces.into_iter().flatten() {
                let after = piece.after;
                self.sender.send_timeout(Ok(piece), READ_TIMEOUT).await.map_err(|_| {
                    let what = format!("the watch was not read for {} s", READ_TIMEOUT.as_secs());
                    ApiError::new(ErrorCode::Unavailable, what).hint(format!("go on from revision {after}"))
                })?;
            }
            tokio::select! {
                changed = revisions.changed() => changed.map_err(|_| stopping())?,
                // One that hears nothing because it is cut off would be silent for ever.
                () = sleep(SILENT) => drop(self.router.fresh().await?),
            }
            revisions.borrow_and_update();
            let state = self.router.store.state();
            self.router.permit(&self.caller, UserRole::ReadOnly, "watching")?;
            pieces = self.watcher.turn(&state)?;
        }
    }
}

fn stopping() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "this manager is stopping")
}

/// A piece on the wire.
pub fn response(piece: Piece) -> v1::WatchResponse {
    let Piece { after, revision, puts, deletes, synced, partial } = piece;
    let deletes = deletes.into_iter().map(|(kind, id)| v1::Ref { kind: v1::Kind::from(kind).into(), name: id });
    v1::WatchResponse { revision, puts: puts.into_iter().map(Into::into).collect(), deletes: deletes.collect(), synced, after, partial }
}
