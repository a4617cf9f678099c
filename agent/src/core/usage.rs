//! Reads what the kernel tells of a container's use of the host: the texts of cgroup and /proc files become numbers.
//!
//! In: texts. Out: numbers; `None` for what is not there or says nothing. Never looks at a file itself.
//! Sources: kernel documentation, admin-guide/cgroup-v1 and cgroup-v2; proc_pid_stat(5), proc_pid_status(5), proc_pid_net(5).

/// A v1 limit at or above this is none: the largest page-aligned number the kernel knows, less a page of 64 KiB.
const V1_UNLIMITED: u64 = (i64::MAX as u64) - (64 << 10);

/// A file that holds one number; "max" is none.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A limit: none for "max" and for v1's largest number.
pub fn limit(text: &str) -> Option<u64> {
    number(text).filter(|limit| *limit < V1_UNLIMITED)
}

/// The value of a key in a file of lines "KEY VALUE".
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Bytes read and written in v2's `io.stat`: lines "MAJ:MIN rbytes=N wbytes=N …".
pub fn io_v2(text: &str) -> (u64, u64) {
    let sum = |key: &str| text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum();
    (sum("rbytes="), sum("wbytes="))
}

/// Bytes read and written in v1's `blkio.throttle.io_service_bytes`: lines "MAJ:MIN Read N".
pub fn io_v1(text: &str) -> (u64, u64) {
    let sum = |kind: &str| {
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.filter(|words| words.get(1) == Some(&kind)).filter_map(|words| words.get(2)?.parse::<u64>().ok()).sum()
    };
    (sum("Read"), sum("Write"))
}

/// Name, bytes received and bytes sent of each interface in `/proc/PID/net/dev`, but loopback.
pub fn interfaces(text: &str) -> Vec<(String, u64, u64)> {
    let lines = text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
        Some((name.trim().to_owned(), *numbers.first()?, *numbers.get(8)?))
    });
    lines.filter(|(name, ..)| name != "lo").collect()
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub name: String,
    pub state: String,
    pub parent: u32,
    pub cpu_ticks: u64,
    pub resident_pages: u64,
}

/// Reads `/proc/PID/stat`; the name may hold blanks and parentheses.
pub fn stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = tail.split_whitespace().collect();
    // Field 3 of the manual page is the first here.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        name,
        state: (*fields.first()?).to_owned(),
        parent: fields.get(1)?.parse().ok()?,
        cpu_ticks: number(14)?.saturating_add(number(15)?),
        resident_pages: number(24)?,
    })
}

/// The effective user and the innermost number of a process, from `/proc/PID/status`.
pub fn status(text: &str) -> Option<(u32, u32)> {
    let words = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(|rest| rest.split_whitespace().collect::<Vec<_>>());
    let uid = words("Uid:")?.get(1)?.parse().ok()?;
    let pid = words("NSpid:")?.last()?.parse().ok()?;
    Some((uid, pid))
}

/// The words of `/proc/PID/cmdline` as one line; `[name]` for a process without any.
pub fn command_line(bytes: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<&str> = text.split('\0').filter(|word| !word.is_empty()).collect();
    if words.is_empty() { format!("[{name}]") } else { words.join(" ").replace(|c: char| c.is_control(), "?") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_limits_of_both_hierarchies_are_read() {
        assert_eq!((number("42\n"), number("max\n"), number("")), (Some(42), None, None));
        assert_eq!((limit("1048576\n"), limit("max\n"), limit("9223372036854771712\n")), (Some(1_048_576), None, None));
        let memory = "cache 1\ninactive_file 7\ntotal_inactive_file 9\n";
        assert_eq!((keyed(memory, "total_inactive_file"), keyed(memory, "inactive_file"), keyed(memory, "none")), (Some(9), Some(7), None));
        assert_eq!(io_v2("8:0 rbytes=10 wbytes=20 rios=1 wios=1\n8:16 rbytes=1 wbytes=2\n"), (11, 22));
        assert_eq!(io_v1("8:0 Read 10\n8:0 Write 20\n8:0 Sync 5\n8:16 Read 1\nTotal 36\n"), (11, 20));
    }

    #[test]
    fn interfaces_and_processes_are_read() {
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n  eth0:100 1 0 0 0 0 0 0 200 1 0 0 0 0 0 0\n";
        assert_eq!(interfaces(dev), [("eth0".to_owned(), 100, 200)]);
        let line = "7 (a b) c) S 3 7 7 0 -1 4194560 1 0 0 0 11 4 0 0 20 0 1 0 999 1000 25 184 0";
        let expected = Stat { name: "a b) c".into(), state: "S".into(), parent: 3, cpu_ticks: 15, resident_pages: 25 };
        assert_eq!(stat(line), Some(expected));
        assert_eq!(stat("7 (torn"), None);
        assert_eq!(status("Name:\tsh\nUid:\t0\t33\t0\t0\nNSpid:\t70\t2\n"), Some((33, 2)));
        assert_eq!((command_line(b"sh\0-c\0a\nb\0", "sh").as_str(), command_line(b"", "kthreadd").as_str()), ("sh -c a?b", "[kthreadd]"));
    }
}
