//! Signal names (signal(7), the generic Linux numbers shared by x86-64 and arm64).
//!
//! In: `TERM`, `SIGTERM` or `15`. Out: the number. Never sends one.

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT", "CHLD",
    "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The last signal number; 32 and 33 belong to the C library.
pub const LAST: i32 = 64;

/// Asks a process to end.
pub const TERM: i32 = 15;

/// Ends a process.
pub const KILL: i32 = 9;

/// Reads a signal's name, with or without `SIG`, in either case, or its number; 0 only asks whether there is anybody (kill(2)).
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=LAST).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest.trim_start_matches('+')).map(|n| 34 + n).filter(|n| (34..=LAST).contains(n));
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest.trim_start_matches('-')).map(|n| LAST - n).filter(|n| (34..=LAST).contains(n));
    }
    NAMES.iter().zip(1..).find(|(known, _)| **known == name).map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_real_time() {
        let given = ["TERM", "sigterm", "9", "SIGSYS", "RTMIN", "SIGRTMIN+3", "RTMAX-1", "0", "65", "SIGNOPE", "RTMIN+40", ""];
        let read: Vec<_> = given.iter().map(|text| parse(text).unwrap_or(-1)).collect();
        assert_eq!(read, [15, 15, 9, 31, 34, 37, 63, 0, -1, -1, -1, -1]);
    }
}
