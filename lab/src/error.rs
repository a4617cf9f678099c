//! Why something in a lab could not be done.

use thiserror::Error;

/// Why something in a lab could not be done; the text is for the user, causes are sources.
#[derive(Debug, Error)]
pub enum LabError {
    /// The lab, host, process or number that was named does not fit, or what was asked for cannot be done now.
    #[error("{0}")]
    Refused(String),
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
    #[error("{what}")]
    Kernel { what: String, source: nix::errno::Errno },
    #[error("netlink: {what}")]
    Netlink { what: String, source: std::io::Error },
    #[error("encode or decode {what}")]
    Json { what: String, source: serde_json::Error },
}

impl LabError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let what = what.into();
        move |source| Self::Kernel { what, source }
    }

    /// The error with its causes, in one line.
    pub fn with_causes(&self) -> String {
        let mut words = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(source) = cause {
            words = format!("{words}: {source}");
            cause = source.source();
        }
        words
    }
}
