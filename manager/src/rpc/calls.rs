//! Every call: refused before its message is read, if nobody makes it, or who makes it asks for too much; counted when it is answered or
//! its caller has gone, and told of if who made it was refused.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tonic::Code;

use super::auth::{self, Claims};
use super::figures::Figures;
use super::limits::{Held, Limiter, Share, TooMany};
use super::methods::{Method, code_place, is_refusal, outcome};
use super::route::Router;
use crate::core::authorize::Claim;

/// What is needed for each call; clones share it.
#[derive(Debug, Clone)]
pub struct Calls {
    pub router: Router,
    pub limiter: Limiter,
}

/// Serves a call.
pub async fn serve(State(calls): State<Calls>, request: Request, next: Next) -> Response {
    let Calls { router, .. } = &calls;
    let method = Method::of(&request);
    let mut answering = Answering { figures: &router.figures, method, began: Instant::now(), outcome: code_place(Code::Cancelled) };
    // Each request of a connection has them; two strings at most.
    let claims = request.extensions().get::<Claims>().cloned().unwrap_or_else(Claims::nobody);
    let turned_away = auth::turn_away(&request);
    // Who serves it tells of it otherwise.
    let tells = turned_away.is_some() || !method.is_told_of();
    let response = match calls.begin(method, &claims, &request) {
        Err(too_many) => {
            router.figures.limited.count();
            too_many.refusal(&request)
        }
        Ok(held) => {
            let response = match turned_away {
                Some(refusal) => refusal,
                None => next.run(request).await,
            };
            match held {
                Some(held) if method.is_stream() => response.map(|body| Body::new(Holding { body, _held: held })),
                Some(_) | None => response,
            }
        }
    };
    let outcome = outcome(&response);
    answering.outcome = outcome;
    drop(answering);
    if tells && is_refusal(outcome) {
        router.audit.tell(&router.store.state(), &claims, method.name().into(), String::new(), outcome);
    }
    response
}

/// A call until it is answered, or its caller has gone.
struct Answering<'a> {
    figures: &'a Figures,
    method: Method,
    began: Instant,
    /// A place among the outcomes.
    outcome: usize,
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.figures.answered(self.method, self.outcome, self.began.elapsed());
    }
}

impl Calls {
    /// Counts a user's call, or says why it is not answered.
    fn begin(&self, method: Method, claims: &Claims, request: &Request) -> Result<Option<Held>, TooMany> {
        // Without TLS only by what it asks is an agent or a manager told from a user.
        if *claims.own() == Claim::Plain && !method.is_for_users() {
            return Ok(None);
        }
        let connection = request.extensions().get::<Arc<Share>>();
        let Some(share) = self.limiter.asking(claims, connection, || self.router.store.state()) else { return Ok(None) };
        self.limiter.begin(&share, method.is_stream()).map(Some)
    }
}

/// The answer of a stream, which counts until it has been taken or its reader has gone.
struct Holding {
    body: Body,
    _held: Held,
}

impl HttpBody for Holding {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
