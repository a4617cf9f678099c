//! What a refused call says: a code to branch on, a message, a hint that mends it, the field to blame.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tonic::{Code, Status};

use crate::wire::v1;
use prost::Message;

/// The meaning of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request can never be granted as it is.
    Invalid,
    NotFound,
    /// The object has changed since it was read, or is not in a state in which this can be done.
    Conflict,
    /// Another manager leads.
    NotLeader,
    /// No leader, or no quorum, for now: try again.
    Unavailable,
    TooLarge,
    /// The caller asks for too much at once, or too fast: wait, then try again.
    TooMany,
    /// What was to be gone on from is no longer kept: list again.
    Compacted,
    /// Nobody knows who calls.
    Unauthenticated,
    /// The caller may not do this.
    Forbidden,
    Internal,
}

impl ErrorCode {
    /// The code as it stands on the wire and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::NotLeader => "not_leader",
            Self::Unavailable => "unavailable",
            Self::TooLarge => "too_large",
            Self::TooMany => "too_many",
            Self::Compacted => "compacted",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::Internal => "internal",
        }
    }

    /// The code that stands so on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        let known = [Self::Invalid, Self::NotFound, Self::Conflict, Self::NotLeader, Self::Unavailable, Self::TooLarge];
        known
            .into_iter()
            .chain([Self::TooMany, Self::Compacted, Self::Unauthenticated, Self::Forbidden, Self::Internal])
            .find(|code| code.as_str() == name)
    }

    fn grpc(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::Conflict => Code::Aborted,
            Self::NotLeader => Code::FailedPrecondition,
            Self::Unavailable => Code::Unavailable,
            Self::TooLarge | Self::TooMany => Code::ResourceExhausted,
            Self::Compacted => Code::OutOfRange,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::Forbidden => Code::PermissionDenied,
            Self::Internal => Code::Internal,
        }
    }

    /// The HTTP status of the REST interface.
    pub fn http(self) -> u16 {
        match self {
            Self::Invalid => 422,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::NotLeader | Self::Unavailable => 503,
            Self::TooLarge => 413,
            Self::TooMany => 429,
            Self::Compacted => 410,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::Internal => 500,
        }
    }
}

/// A refusal as a user reads it.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{}{message}{}", field_prefix(field), hint_suffix(hint))]
pub struct ApiError {
    pub code: ErrorCode,
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn field_prefix(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("{field}: ") }
}

fn hint_suffix(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!(" ({hint})") }
}

impl ApiError {
    /// A refusal with a code and a message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: String::new(), field: String::new() }
    }

    /// The same with the field to blame, as a path such as `containers[0].image`.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = field.into();
        self
    }

    /// The same with what mends it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let detail = v1::ErrorDetail {
            code: error.code.as_str().to_owned(),
            message: error.message.clone(),
            hint: error.hint.clone(),
            field: error.field.clone(),
        };
        Self::with_details(error.code.grpc(), error.to_string(), detail.encode_to_vec().into())
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        if let Ok(detail) = v1::ErrorDetail::decode(status.details())
            && let Some(code) = ErrorCode::from_name(&detail.code)
        {
            return Self { code, message: detail.message, hint: detail.hint, field: detail.field };
        }
        let code = match status.code() {
            Code::InvalidArgument => ErrorCode::Invalid,
            Code::NotFound => ErrorCode::NotFound,
            Code::Aborted => ErrorCode::Conflict,
            // Nothing of ours answers `Unknown`: the connection broke.
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => ErrorCode::Unavailable,
            Code::FailedPrecondition => ErrorCode::NotLeader,
            Code::ResourceExhausted => ErrorCode::TooLarge,
            // Nothing of ours answers this without a detail either: a message is over a limit.
            Code::OutOfRange => return too_large(status.message()),
            Code::Unauthenticated => ErrorCode::Unauthenticated,
            Code::PermissionDenied => ErrorCode::Forbidden,
            _ => ErrorCode::Internal,
        };
        Self::new(code, status.message().to_owned())
    }
}

/// What tonic says of a message that is too large, as ours.
fn too_large(said: &str) -> ApiError {
    let sizes = said.split_once("found ").map_or(said, |(_, sizes)| sizes);
    ApiError::new(ErrorCode::TooLarge, format!("the message is too large: {sizes}")).hint("send, or ask for, less at once")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_back_from_the_wire_as_it_went() {
        let error = ApiError::new(ErrorCode::Conflict, "service web has changed").field("version").hint("get it again");
        assert_eq!(ApiError::from(Status::from(error.clone())), error);
        assert_eq!(error.to_string(), "version: service web has changed (get it again)");
    }

    #[test]
    fn a_message_over_the_limit_is_told_of_in_words_of_ours() {
        let said = Status::out_of_range("Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes");
        let error = ApiError::from(said);
        assert_eq!(error.code, ErrorCode::TooLarge);
        assert_eq!(error.to_string(), "the message is too large: 9 bytes, the limit is: 8 bytes (send, or ask for, less at once)");
    }
}
