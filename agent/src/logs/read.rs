//! Reads the log files that monitors write: JSON lines `{"t":RFC 3339,"s":"stdout|stderr","l":text}` in `CONTAINER.log`, older ones in
//! `CONTAINER.log.1`; of a long line there are pieces, all but the last with `"p":true`. The lines of a pod's containers come out in the order of their times.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rcluster_api::wire::v1::LogEntry;
use serde::Deserialize;

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection {
    /// The last so many of each container; 0: all.
    pub tail: usize,
    /// Unix time; 0: from the start.
    pub since_ms: u64,
}

/// A position in the logs of one task.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    selection: Selection,
    sources: BTreeMap<String, Source>,
    looked: bool,
    unreadable: u64,
    overtaken: bool,
}

/// One container's log.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    file: BufReader<File>,
    /// The rest of a line whose end is not written yet.
    partial: Vec<u8>,
    /// Lines that came in pieces and have not ended, by stream.
    pieces: BTreeMap<String, LogEntry>,
    next: Option<LogEntry>,
    /// The file being read is gone: others may have come and gone after it.
    overtaken: bool,
}

#[derive(Deserialize)]
struct Line {
    t: jiff::Timestamp,
    s: String,
    l: String,
    #[serde(default)]
    p: bool,
}

/// How a piece ends that is not a line's last. In a text quotes are escaped.
const PIECE_END: &[u8] = b",\"p\":true}";

const ENTRIES_MAX: usize = 500;
const ENTRIES_BYTES_MAX: usize = 256 << 10;
const LINE_BYTES_MAX: usize = 4 << 20;
const BLOCK_BYTES: u64 = 64 << 10;

impl Reader {
    /// Of the task whose logs are in `dir`.
    pub fn new(dir: PathBuf, selection: Selection) -> Self {
        Self { dir, selection, sources: BTreeMap::new(), looked: false, unreadable: 0, overtaken: false }
    }

    /// The next lines, up to a limit; empty when there are none yet.
    pub fn read(&mut self) -> io::Result<Vec<LogEntry>> {
        self.look()?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < ENTRIES_MAX && bytes < ENTRIES_BYTES_MAX {
            let mut first: Option<(&str, u64)> = None;
            for (name, source) in &mut self.sources {
                while source.next.is_none() {
                    let Some(line) = source.line()? else { break };
                    let Some((piece, goes_on)) = parse(name, &line) else {
                        self.unreadable += 1;
                        continue;
                    };
                    let entry = source.join(piece, goes_on);
                    source.next = entry.filter(|entry| entry.at_ns / 1_000_000 >= self.selection.since_ms);
                }
                self.overtaken |= source.overtaken;
                if let Some(entry) = &source.next
                    && first.is_none_or(|(_, at)| entry.at_ns < at)
                {
                    first = Some((name, entry.at_ns));
                }
            }
            let Some(name) = first.map(|(name, _)| name.to_owned()) else { break };
            if let Some(entry) = self.sources.get_mut(&name).and_then(|source| source.next.take()) {
                bytes += entry.text.len();
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// What there is of lines that will never end.
    pub fn rest(&mut self) -> Vec<LogEntry> {
        self.sources.values_mut().flat_map(|source| std::mem::take(&mut source.pieces).into_values()).collect()
    }

    /// What could not be given, in words.
    pub fn complaint(&self) -> Option<String> {
        let damaged = (self.unreadable > 0).then(|| format!("{} lines of the log are damaged and left out", self.unreadable));
        let overtaken = self.overtaken.then(|| "the log is written faster than it is read: lines may be missing".to_owned());
        let said: Vec<String> = damaged.into_iter().chain(overtaken).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }

    /// Opens the logs that have come into being. Those that were there at the first look are read as selected, later ones whole.
    fn look(&mut self) -> io::Result<()> {
        let tail = if self.looked { 0 } else { self.selection.tail };
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".log")) else { continue };
            if !self.sources.contains_key(name) {
                self.sources.insert(name.to_owned(), Source::open(&path, tail)?);
            }
        }
        self.looked = true;
        Ok(())
    }
}

impl Source {
    fn open(path: &Path, tail: usize) -> io::Result<Self> {
        let mut current = File::open(path)?;
        let (found, start) = if tail == 0 { (0, 0) } else { last_lines(&mut current, tail)? };
        // Lines that were moved away come first, as far as they are wanted.
        let file = match File::open(older(path)) {
            Ok(mut old) if tail == 0 || found < tail => {
                let start = if tail == 0 { 0 } else { last_lines(&mut old, tail - found)?.1 };
                old.seek(SeekFrom::Start(start))?;
                old
            }
            Ok(_) => at(current, start)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => at(current, start)?,
            Err(error) => return Err(error),
        };
        let (partial, pieces) = (Vec::new(), BTreeMap::new());
        Ok(Self { path: path.to_path_buf(), file: BufReader::new(file), partial, pieces, next: None, overtaken: false })
    }

    /// The whole line, once its last piece is there; it has the time of its first.
    fn join(&mut self, piece: LogEntry, goes_on: bool) -> Option<LogEntry> {
        let whole = match self.pieces.remove(&piece.stream) {
            Some(mut begun) => {
                begun.text.push_str(&piece.text);
                begun
            }
            None => piece,
        };
        if goes_on && whole.text.len() < LINE_BYTES_MAX {
            self.pieces.insert(whole.stream.clone(), whole);
            return None;
        }
        Some(whole)
    }

    /// The next whole line, without its end; goes on in the next file when the one being read was moved away.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            self.file.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut self.partial)?;
            if self.partial.last() == Some(&b'\n') || self.partial.len() >= LINE_BYTES_MAX {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
            let Some(next) = self.next_file()? else { return Ok(None) };
            // What was written to the old file after the last look and before it was moved.
            let rest = self.file.read_until(b'\n', &mut self.partial)?;
            if rest == 0 {
                self.overtaken |= self.file.get_ref().metadata()?.nlink() == 0;
                self.file = BufReader::new(next);
                if !self.partial.is_empty() {
                    return Ok(Some(std::mem::take(&mut self.partial)));
                }
            } else if self.partial.last() == Some(&b'\n') {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
        }
    }
}

impl Source {
    /// The file after the one being read, if there is one yet. One that is not the older of the two any more was followed by that one.
    fn next_file(&self) -> io::Result<Option<File>> {
        let reading = self.file.get_ref().metadata()?.ino();
        // Missing between the two halves of a rotation.
        let Some((current, inode)) = existing(&self.path)? else { return Ok(None) };
        if inode == reading {
            return Ok(None);
        }
        let older = existing(&older(&self.path))?.filter(|(_, inode)| *inode != reading);
        Ok(Some(older.map_or(current, |(file, _)| file)))
    }
}

fn existing(path: &Path) -> io::Result<Option<(File, u64)>> {
    match File::open(path) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some((file, inode)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How many lines, at most `wanted`, the end of the file holds, and where the first of them begins.
fn last_lines(file: &mut File, wanted: usize) -> io::Result<(usize, u64)> {
    let length = file.metadata()?.len();
    let (mut found, mut end) = (0, length);
    let mut block = Vec::new();
    while end > 0 {
        let begin = end.saturating_sub(BLOCK_BYTES);
        // With what may be the end of a piece before it.
        let from = begin.saturating_sub(PIECE_END.len() as u64);
        file.seek(SeekFrom::Start(from))?;
        block.clear();
        file.by_ref().take(end - from).read_to_end(&mut block)?;
        for (at, byte) in block.iter().enumerate().rev().take_while(|(at, _)| from + *at as u64 >= begin) {
            // The newline that ends the last line begins none.
            let ends_line = || !block[..at].ends_with(PIECE_END);
            if *byte == b'\n' && from + at as u64 + 1 < length && ends_line() {
                found += 1;
                if found == wanted {
                    return Ok((found, from + at as u64 + 1));
                }
            }
        }
        end = begin;
    }
    Ok((if length > 0 { found + 1 } else { 0 }, 0))
}

fn at(mut file: File, start: u64) -> io::Result<File> {
    file.seek(SeekFrom::Start(start))?;
    Ok(file)
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// A line or a piece of one, and whether more of it comes.
fn parse(container: &str, line: &[u8]) -> Option<(LogEntry, bool)> {
    let Line { t, s, l, p } = serde_json::from_slice(line).ok()?;
    Some((LogEntry { container: container.to_owned(), stream: s, at_ns: u64::try_from(t.as_nanosecond()).ok()?, text: l }, p))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn line(second: u64, text: &str) -> String {
        format!("{{\"t\":\"2026-11-21T05:00:{second:02}.000000001Z\",\"s\":\"stdout\",\"l\":\"{text}\"}}\n")
    }

    fn texts(reader: &mut Reader) -> String {
        reader.read().expect("read").iter().map(|entry| format!("{}={}", entry.container, entry.text)).collect::<Vec<_>>().join(" ")
    }

    fn append(dir: &Path, name: &str, text: &str) {
        let mut file = File::options().create(true).append(true).open(dir.join(name)).expect("open");
        file.write_all(text.as_bytes()).expect("write");
    }

    #[test]
    fn the_lines_of_all_containers_come_in_the_order_of_their_times_the_older_file_first() {
        let dir = tempfile::tempdir().expect("a directory");
        append(dir.path(), "web.log.1", &(line(1, "a") + &line(3, "c")));
        append(dir.path(), "web.log", &line(5, "e"));
        append(dir.path(), "side.log", &(line(2, "b") + &line(4, "d")));
        let mut reader = Reader::new(dir.path().into(), Selection::default());
        assert_eq!(texts(&mut reader), "web=a side=b web=c side=d web=e");
        let mut tail = Reader::new(dir.path().into(), Selection { tail: 2, since_ms: 0 });
        assert_eq!(texts(&mut tail), "side=b web=c side=d web=e");
        let mut tail = Reader::new(dir.path().into(), Selection { tail: 1, since_ms: 0 });
        assert_eq!(texts(&mut tail), "side=d web=e");
    }

    #[test]
    fn since_leaves_out_what_is_older() {
        let dir = tempfile::tempdir().expect("a directory");
        append(dir.path(), "web.log", &(line(1, "a") + &line(3, "c")));
        let since_ms =
            u64::try_from("2026-11-21T05:00:02Z".parse::<jiff::Timestamp>().expect("a time").as_millisecond()).expect("positive");
        assert_eq!(texts(&mut Reader::new(dir.path().into(), Selection { tail: 0, since_ms })), "web=c");
    }

    #[test]
    fn a_follower_waits_for_whole_lines_and_goes_through_a_rotation() {
        let dir = tempfile::tempdir().expect("a directory");
        append(dir.path(), "web.log", &line(1, "a"));
        let mut reader = Reader::new(dir.path().into(), Selection::default());
        assert_eq!(texts(&mut reader), "web=a");
        let next = line(2, "b");
        append(dir.path(), "web.log", &next[..10]);
        assert_eq!(texts(&mut reader), "");
        append(dir.path(), "web.log", &next[10..]);
        append(dir.path(), "web.log", &line(3, "c"));
        fs::rename(dir.path().join("web.log"), dir.path().join("web.log.1")).expect("rotate");
        append(dir.path(), "web.log", &line(4, "d"));
        assert_eq!(texts(&mut reader), "web=b web=c web=d");
    }

    #[test]
    fn a_long_line_is_one_line_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let piece = |second, stream: &str, text: &str| {
            format!("{{\"t\":\"2026-11-21T05:00:{second:02}Z\",\"s\":\"{stream}\",\"l\":\"{text}\",\"p\":true}}\n")
        };
        let err = line(4, "e").replace("stdout", "stderr");
        append(dir.path(), "web.log", &(line(1, "a") + &piece(2, "stdout", "b") + &piece(3, "stdout", "c") + &err + &line(5, "d")));
        append(dir.path(), "web.log", &piece(6, "stdout", "f"));
        let mut reader = Reader::new(dir.path().into(), Selection::default());
        assert_eq!(texts(&mut reader), "web=a web=e web=bcd");
        append(dir.path(), "web.log", &line(7, "g"));
        assert_eq!(texts(&mut reader), "web=fg");
        assert_eq!(texts(&mut Reader::new(dir.path().into(), Selection { tail: 1, since_ms: 0 })), "web=fg");
        append(dir.path(), "web.log", &piece(8, "stdout", "h"));
        assert_eq!((texts(&mut reader).as_str(), reader.rest()[0].text.as_str(), reader.rest().len()), ("", "h", 0));
    }

    #[test]
    fn a_slow_follower_misses_no_file_that_is_there_and_says_what_may_be_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        let rotate = || fs::rename(dir.path().join("web.log"), dir.path().join("web.log.1")).expect("rotate");
        append(dir.path(), "web.log", &line(1, "a"));
        let mut reader = Reader::new(dir.path().into(), Selection::default());
        assert_eq!(texts(&mut reader), "web=a");
        append(dir.path(), "web.log", &line(2, "b"));
        rotate();
        append(dir.path(), "web.log", &line(3, "c"));
        assert_eq!((texts(&mut reader).as_str(), reader.complaint()), ("web=b web=c", None));
        append(dir.path(), "web.log", &line(4, "d"));
        rotate();
        append(dir.path(), "web.log", &line(5, "e"));
        rotate();
        append(dir.path(), "web.log", &line(6, "f"));
        assert_eq!(texts(&mut reader), "web=d web=e web=f");
        assert_eq!(reader.complaint().as_deref(), Some("the log is written faster than it is read: lines may be missing"));
    }

    #[test]
    fn damaged_lines_are_left_out_and_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        append(dir.path(), "web.log", &format!("{}{}{}", line(1, "a"), "{torn\n", line(2, "b")));
        let mut reader = Reader::new(dir.path().into(), Selection::default());
        assert_eq!(texts(&mut reader), "web=a web=b");
        assert_eq!(reader.complaint().as_deref(), Some("1 lines of the log are damaged and left out"));
    }
}
