//! What a monitor and its clients say to each other (`monitor/serve` and `monitor/terminal` draw it).
//!
//! In: the bytes of one message, from whoever may connect. Out: the message, or that it is none. Never trusts a length: a message has a
//! header of a fixed size, a bounded payload, and ends where it says.
//!
//! ```text
//! 0        1       2          4        8                   12       12 + length
//! │ version │ kind │ reserved │ number │ length of payload │ payload │      little-endian
//! ```

/// The form of the messages; a monitor outlives the agent that started it, so both sides may be of another release.
const VERSION: u8 = 1;
const HEADER: usize = 12;
// Kinds 1 and 8 were requests whose answer began with `Started`: a client that waited in vain could not tell whether they had any effect.
const STARTED: u8 = 2;
const ENDED: u8 = 3;
const REFUSED: u8 = 4;
const TERMINAL: u8 = 5;
const OUTPUT: u8 = 6;
const MISSED: u8 = 7;
const EXEC: u8 = 9;
const EXEC_PROCESS: u8 = 10;
const TAKEN: u8 = 11;

/// The largest payload of a request.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// The largest request.
pub const REQUEST_BYTES_MAX: usize = HEADER + PAYLOAD_BYTES_MAX;
/// The longest reason of a refusal; a longer one is cut.
const WHY_BYTES_MAX: usize = 4 << 10;
/// The largest piece of a terminal's output in one message.
pub const OUTPUT_BYTES_MAX: usize = 8 << 10;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// To run a program in the container; its standard input, output and error come along as descriptors.
    Exec { args: Vec<String> },
    /// The same, described as a `process` of runtime-spec.
    ExecProcess { process: Vec<u8> },
}

/// What the monitor answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The request has effect from here on. Before this it has none, and never gets any once the client has hung up.
    Taken,
    /// The program runs; a pidfd of it comes along.
    Started { pid: i32 },
    /// It has ended: its exit code, or 128 and the signal that killed it.
    Ended { code: i32 },
    /// It was not started.
    Refused { why: String },
    /// The container's terminal, of which the master side comes along.
    Terminal,
    /// What the container wrote to it.
    Output { bytes: Vec<u8> },
    /// So much of that was left out, because the client did not take it in time.
    Missed { bytes: i32 },
}

impl Request {
    /// Reads a request. The error says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (kind, payload) = frame(bytes)?;
        match kind {
            EXEC => Ok(Self::Exec { args: strings(payload)? }),
            EXEC_PROCESS => Ok(Self::ExecProcess { process: payload.to_vec() }),
            other => Err(format!("request: this monitor knows none of kind {other}")),
        }
    }
}

impl Reply {
    /// The reply as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, number, payload) = match self {
            Self::Taken => (TAKEN, 0, &b""[..]),
            Self::Started { pid } => (STARTED, *pid, &b""[..]),
            Self::Ended { code } => (ENDED, *code, &b""[..]),
            Self::Refused { why } => (REFUSED, 0, &why.as_bytes()[..why.floor_char_boundary(WHY_BYTES_MAX)]),
            Self::Terminal => (TERMINAL, 0, &b""[..]),
            Self::Output { bytes } => (OUTPUT, 0, &bytes[..bytes.len().min(OUTPUT_BYTES_MAX)]),
            Self::Missed { bytes } => (MISSED, *bytes, &b""[..]),
        };
        let mut bytes = vec![VERSION, kind, 0, 0];
        bytes.extend(number.to_le_bytes());
        bytes.extend(u32::try_from(payload.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(payload);
        bytes
    }
}

/// The kind and the payload of a message that is whole.
fn frame(bytes: &[u8]) -> Result<(u8, &[u8]), String> {
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER>() else {
        return Err(format!("request: {} bytes are less than a header of {HEADER}", bytes.len()));
    };
    let [version, kind, 0, 0, 0, 0, 0, 0, length @ ..] = *header else {
        return Err("request: a reserved field is not zero".to_owned());
    };
    if version != VERSION {
        return Err(format!("request: version {version} is not this monitor's {VERSION}"));
    }
    let length = u32::from_le_bytes(length);
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(format!("request: a payload of more than the limit of {PAYLOAD_BYTES_MAX} bytes"));
    }
    if usize::try_from(length) != Ok(payload.len()) {
        return Err(format!("request: it says {length} bytes of payload and has {}", payload.len()));
    }
    Ok((kind, payload))
}

/// Texts that end with a NUL byte each; at least one, and the first is not empty.
fn strings(payload: &[u8]) -> Result<Vec<String>, String> {
    let Some(text) = payload.strip_suffix(b"\0") else { return Err("exec: the arguments do not end with a NUL byte".to_owned()) };
    let text = std::str::from_utf8(text).map_err(|_| "exec: an argument is no UTF-8")?;
    let args: Vec<String> = text.split('\0').map(str::to_owned).collect();
    if args.first().is_none_or(String::is_empty) { Err("exec: the first argument, the program, is empty".to_owned()) } else { Ok(args) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(head: [u8; 8], length: u32, payload: &[u8]) -> Vec<u8> {
        [&head[..], &length.to_le_bytes(), payload].concat()
    }

    const EXEC_HEAD: [u8; 8] = [1, EXEC, 0, 0, 0, 0, 0, 0];

    #[test]
    fn arguments_are_read_as_they_were_written() {
        let args = |payload: &[u8]| Request::decode(&request(EXEC_HEAD, payload.len().try_into().unwrap(), payload));
        assert_eq!(args(b"true\0"), Ok(Request::Exec { args: vec!["true".into()] }));
        assert_eq!(args("sh\0-c\0\0ä\0".as_bytes()), Ok(Request::Exec { args: vec!["sh".into(), "-c".into(), String::new(), "ä".into()] }));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let large = vec![b'x'; PAYLOAD_BYTES_MAX + 1];
        for (bytes, why) in [
            (vec![], "less than a header"),
            (EXEC_HEAD.to_vec(), "less than a header"),
            (request([2, EXEC, 0, 0, 0, 0, 0, 0], 0, b""), "version 2"),
            (request([1, EXEC, 0, 1, 0, 0, 0, 0], 0, b""), "reserved"),
            (request([1, EXEC, 0, 0, 0, 0, 0, 1], 0, b""), "reserved"),
            (request([1, 1, 0, 0, 0, 0, 0, 0], 0, b""), "kind 1"),
            (request(EXEC_HEAD, 0, b""), "NUL"),
            (request(EXEC_HEAD, 4, b"true"), "NUL"),
            (request(EXEC_HEAD, 1, b"\0"), "empty"),
            (request(EXEC_HEAD, 3, b"\0a\0"), "empty"),
            (request(EXEC_HEAD, 2, b"\xff\0"), "UTF-8"),
            (request(EXEC_HEAD, 4, b"true\0"), "says 4 bytes of payload and has 5"),
            (request(EXEC_HEAD, u32::MAX, b"true\0"), "says 4294967295"),
            (request(EXEC_HEAD, 5, &large), "limit"),
        ] {
            let error = Request::decode(&bytes).unwrap_err();
            assert!(error.contains(why), "{error}: not {why:?}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let bytes = Reply::Refused { why: format!("x{}", "ä".repeat(WHY_BYTES_MAX)) }.encode();
        assert_eq!(bytes.len(), HEADER + WHY_BYTES_MAX - 1);
        assert!(std::str::from_utf8(&bytes[HEADER..]).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), known in any::<bool>()) {
            let bytes = if known { request(EXEC_HEAD, bytes.len().try_into().unwrap(), &bytes) } else { bytes };
            if let Ok(Request::Exec { args }) = Request::decode(&bytes) {
                prop_assert!(!args[0].is_empty() && args.iter().all(|arg| !arg.contains('\0')));
            }
        }
    }
}
