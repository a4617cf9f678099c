//! How a command ends when it does not succeed: a message, a hint, an exit code.

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::convert::WireError;
use thiserror::Error;

/// The end of a command that did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CliError {
    /// Refused or failed; nothing to be gained by repeating it.
    #[error("{message}")]
    Refused { message: String, hint: String },
    /// The command line does not mean anything.
    #[error("{message}")]
    Usage { message: String, hint: String },
    /// No manager answers, or they have no leader.
    #[error("{message}")]
    Unreachable { message: String, hint: String },
    /// What was waited for did not come in time.
    #[error("{message}")]
    TimedOut { message: String, hint: String },
    /// Ctrl-C.
    #[error("{message}")]
    Interrupted { message: String, hint: String },
    /// A command that was run in a lab ended so; it has said why itself.
    #[error("the command ended with code {code}")]
    Ended { code: u8 },
    /// The reader of the output has gone: not worth a word.
    #[error("the reader of the output has gone")]
    ReaderGone,
}

/// Exit codes, as `--help` and the documentation list them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    refused, or failed
  2    the command line is wrong, or asks for what is not built yet
  3    no manager can be reached, or they have no leader
  4    not done within the timeout; it goes on in the cluster
  130  interrupted; it goes on in the cluster";

impl CliError {
    /// A refusal with a hint.
    pub fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { message: message.into(), hint: hint.into() }
    }

    /// A wrong command line with a hint.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: hint.into() }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { .. } => 1,
            Self::Usage { .. } => 2,
            Self::Unreachable { .. } => 3,
            Self::TimedOut { .. } => 4,
            Self::Interrupted { .. } => 130,
            Self::Ended { code } => *code,
            Self::ReaderGone => 141,
        }
    }

    /// What mends it; may be empty.
    pub fn hint(&self) -> &str {
        match self {
            Self::Refused { hint, .. }
            | Self::Usage { hint, .. }
            | Self::Unreachable { hint, .. }
            | Self::TimedOut { hint, .. }
            | Self::Interrupted { hint, .. } => hint,
            Self::Ended { .. } | Self::ReaderGone => "",
        }
    }
}

impl From<rcluster_lab::LabError> for CliError {
    fn from(error: rcluster_lab::LabError) -> Self {
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            message = format!("{message}: {source}");
            cause = source.source();
        }
        Self::refused(message, "")
    }
}

impl From<ApiError> for CliError {
    fn from(error: ApiError) -> Self {
        let ApiError { code, message, hint, field } = error;
        let message = if field.is_empty() { message } else { format!("{field}: {message}") };
        match code {
            ErrorCode::Unavailable | ErrorCode::NotLeader => Self::Unreachable { message, hint },
            ErrorCode::Invalid
            | ErrorCode::NotFound
            | ErrorCode::Conflict
            | ErrorCode::TooLarge
            | ErrorCode::TooMany
            | ErrorCode::Compacted
            | ErrorCode::Unauthenticated
            | ErrorCode::Forbidden
            | ErrorCode::Internal => Self::Refused { message, hint },
        }
    }
}

impl From<WireError> for CliError {
    fn from(error: WireError) -> Self {
        ApiError::from(error).into()
    }
}
