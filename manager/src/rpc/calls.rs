//! Every call: refused before its message is read, if nobody makes it; counted when it is answered.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::auth;
use super::figures::Figures;
use super::methods::{Method, outcome};

/// What is needed for each call; clones share it.
#[derive(Debug, Clone)]
pub struct Calls {
    pub figures: Arc<Figures>,
}

/// Serves a call.
pub async fn serve(State(calls): State<Calls>, request: Request, next: Next) -> Response {
    let (began, method) = (Instant::now(), Method::of(&request));
    let response = match auth::turn_away(&request) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    calls.figures.answered(method, outcome(&response), began.elapsed());
    response
}
