//! What the agent and a container's monitor say to each other; the form is drawn in `runtime/src/core/request.rs`.
//!
//! In: a command, or the bytes of an answer. Out: the request's bytes, or the answer. A monitor may be of another release than this agent,
//! so nothing in an answer is believed: one that does not have the form is an error.

/// The largest answer.
pub const REPLY_BYTES_MAX: usize = HEADER + (8 << 10);

const VERSION: u8 = 1;
const HEADER: usize = 12;
const STARTED: u8 = 2;
const ENDED: u8 = 3;
const REFUSED: u8 = 4;
const TERMINAL: u8 = 5;
const OUTPUT: u8 = 6;
const MISSED: u8 = 7;
const EXEC: u8 = 9;
const EXEC_PROCESS: u8 = 10;
const TAKEN: u8 = 11;
const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// What a monitor answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// What was asked for may have an effect from here on; before, it has none.
    Taken,
    /// The command runs; a pidfd of it comes along.
    Started,
    /// It has ended with this code, or was killed by the signal that it is 128 more than.
    Ended { code: i32 },
    /// It was not started, or the terminal is not shown.
    Refused { why: String },
    /// The container's terminal; its master side comes along.
    Terminal,
    /// What the container wrote to it.
    Output { bytes: Vec<u8> },
    /// So much of that was left out, because this agent did not take it in time.
    Missed { bytes: u32 },
}

/// Asks for a command to be executed. The error says what cannot be asked for.
pub fn exec(args: &[String]) -> Result<Vec<u8>, String> {
    let mut payload = Vec::new();
    for arg in args {
        if arg.contains('\0') {
            return Err(format!("argument {arg:?} holds a NUL byte"));
        }
        payload.extend(arg.as_bytes());
        payload.push(0);
    }
    request(EXEC, &payload)
}

/// The same for a command that is described as a `process` of runtime-spec, in JSON.
pub fn exec_process(process: &[u8]) -> Result<Vec<u8>, String> {
    request(EXEC_PROCESS, process)
}

fn request(kind: u8, payload: &[u8]) -> Result<Vec<u8>, String> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(format!("the command has {} bytes, more than the limit of {PAYLOAD_BYTES_MAX}", payload.len()));
    }
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    Ok([&[VERSION, kind, 0, 0, 0, 0, 0, 0], &length[..], payload].concat())
}

/// Reads an answer.
pub fn reply(bytes: &[u8]) -> Result<Reply, String> {
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER>() else {
        return Err(format!("an answer of {} bytes is less than a header of {HEADER}", bytes.len()));
    };
    let [version, kind, _, _, a, b, c, d, length @ ..] = *header;
    if version != VERSION {
        return Err(format!("an answer of version {version}, not {VERSION}"));
    }
    if usize::try_from(u32::from_le_bytes(length)) != Ok(payload.len()) {
        return Err("an answer whose length is not what it says".to_owned());
    }
    match kind {
        TAKEN => Ok(Reply::Taken),
        STARTED => Ok(Reply::Started),
        ENDED => Ok(Reply::Ended { code: i32::from_le_bytes([a, b, c, d]) }),
        REFUSED => Ok(Reply::Refused { why: String::from_utf8_lossy(payload).into_owned() }),
        TERMINAL => Ok(Reply::Terminal),
        OUTPUT => Ok(Reply::Output { bytes: payload.to_vec() }),
        MISSED => Ok(Reply::Missed { bytes: u32::from_le_bytes([a, b, c, d]) }),
        other => Err(format!("an answer of unknown kind {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_monitors_form() {
        let bytes = exec(&["sh".to_owned(), String::new()]).expect("encode");
        assert_eq!(bytes, b"\x01\x09\0\0\0\0\0\0\x04\0\0\0sh\0\0");
        assert_eq!(exec_process(b"{}").expect("encode"), b"\x01\x0a\0\0\0\0\0\0\x02\0\0\0{}");
        assert!(exec(&["a\0b".to_owned()]).expect_err("it cannot be told apart").contains("NUL"));
        assert!(exec(&["x".repeat(PAYLOAD_BYTES_MAX)]).expect_err("it is too long").contains("limit of 65536"));
    }

    #[test]
    fn answers_are_read_or_refused() {
        assert_eq!(reply(b"\x01\x0b\0\0\0\0\0\0\0\0\0\0"), Ok(Reply::Taken));
        assert_eq!(reply(b"\x01\x02\0\0\x07\0\0\0\0\0\0\0"), Ok(Reply::Started));
        assert_eq!(reply(b"\x01\x03\0\0\x89\0\0\0\0\0\0\0"), Ok(Reply::Ended { code: 137 }));
        assert_eq!(reply(b"\x01\x04\0\0\0\0\0\0\x02\0\0\0no"), Ok(Reply::Refused { why: "no".to_owned() }));
        assert_eq!(reply(b"\x01\x05\0\0\0\0\0\0\0\0\0\0"), Ok(Reply::Terminal));
        assert_eq!(reply(b"\x01\x06\0\0\0\0\0\0\x02\0\0\0\xff\n"), Ok(Reply::Output { bytes: b"\xff\n".to_vec() }));
        assert_eq!(reply(b"\x01\x07\0\0\x00\x01\0\0\0\0\0\0"), Ok(Reply::Missed { bytes: 256 }));
        for (bytes, why) in [
            (&b""[..], "less than a header"),
            (b"\x01\x02\0\0\0\0\0\0\0\0\0", "less than a header"),
            (b"\x02\x02\0\0\0\0\0\0\0\0\0\0", "version 2"),
            (b"\x01\x09\0\0\0\0\0\0\0\0\0\0", "kind 9"),
            (b"\x01\x04\0\0\0\0\0\0\x03\0\0\0no", "length"),
            (b"\x01\x04\0\0\0\0\0\0\xff\xff\xff\xffno", "length"),
        ] {
            let error = reply(bytes).expect_err("it has not the form");
            assert!(error.contains(why), "{error}: not {why:?}");
        }
    }
}
