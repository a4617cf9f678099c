//! Every call: refused before its message is read, if nobody makes it; counted when it is answered, and told of if who made it was refused.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::auth::{self, Claims};
use super::methods::{Method, is_refusal, outcome};
use super::route::Router;

/// Serves a call.
pub async fn serve(State(router): State<Router>, request: Request, next: Next) -> Response {
    let (began, method) = (Instant::now(), Method::of(&request));
    // Each request of a connection has them; two strings at most.
    let claims = request.extensions().get::<Claims>().cloned().unwrap_or_else(Claims::nobody);
    let turned_away = auth::turn_away(&request);
    // Who serves it tells of it otherwise.
    let tells = turned_away.is_some() || !method.is_told_of();
    let response = match turned_away {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    let outcome = outcome(&response);
    router.figures.answered(method, outcome, began.elapsed());
    if tells && is_refusal(outcome) {
        router.audit.tell(&router.store.state(), &claims, method.name().into(), String::new(), outcome);
    }
    response
}
