//! Files with holes as GNU tar writes them into pax archives (GNU tar manual, "PAX Format, Version 0.1" and "1.0").
//!
//! The older form, an entry type of its own, is known to the tar library; these are ordinary files to it, whose content is only
//! what lies between the holes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use tar::Entry;

use super::unpack::words;

/// What the extended header says of a file with holes.
#[derive(Debug)]
pub struct Sparse {
    /// The file's own name; that of the entry is made up.
    pub name: Option<Vec<u8>>,
    /// With the holes.
    pub size: u64,
    map: Map,
}

#[derive(Debug)]
enum Map {
    /// In the header: version 0.1.
    Known(Vec<Segment>),
    /// Before the content: version 1.0.
    Ahead,
}

/// A part of the file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    offset: u64,
    length: u64,
}

const SEGMENTS_MAX: usize = 1 << 20;
/// The map is padded to blocks of the archive.
const BLOCK_BYTES: u64 = 512;

impl Sparse {
    /// What the entry's extended header says; `None` for an ordinary file. Forms that are not known are refused by name.
    pub fn of<R: Read>(entry: &mut Entry<'_, R>) -> Result<Option<Self>, String> {
        const PREFIX: &str = "GNU.sparse.";
        let mut said = BTreeMap::new();
        if let Some(extensions) = entry.pax_extensions().map_err(words)? {
            for extension in extensions {
                let extension = extension.map_err(words)?;
                if let Some(key) = extension.key().ok().and_then(|key| key.strip_prefix(PREFIX)) {
                    said.insert(key.to_owned(), extension.value_bytes().to_vec());
                }
            }
        }
        if said.is_empty() {
            return Ok(None);
        }
        let text = |key: &str| said.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
        let number = |key: &str| text(key).map(|value| value.parse::<u64>().map_err(|_| format!("GNU.sparse.{key} {value:?}"))).transpose();
        let (major, minor) = (number("major")?.unwrap_or(0), number("minor")?.unwrap_or(0));
        let size = number("realsize")?.or(number("size")?).ok_or("a file with holes without its size")?;
        let map = match (major, minor, text("map")) {
            (1, 0, _) => Map::Ahead,
            (0, _, Some(map)) => Map::Known(segments(map.split(',').map(|number| number.parse().ok()), size)?),
            _ => return Err(format!("files with holes of GNU's version {major}.{minor} without a map are not known here")),
        };
        Ok(Some(Self { name: said.remove("name"), size, map }))
    }

    /// Writes the file's content, holes left as holes.
    pub fn write(&self, content: &mut impl Read, file: &mut File) -> Result<(), String> {
        let read;
        let segments = match &self.map {
            Map::Known(segments) => segments,
            Map::Ahead => {
                read = map_ahead(content, self.size)?;
                &read
            }
        };
        file.set_len(self.size).map_err(words)?;
        for segment in segments {
            file.seek(SeekFrom::Start(segment.offset)).map_err(words)?;
            let written = io::copy(&mut content.by_ref().take(segment.length), file).map_err(words)?;
            if written != segment.length {
                return Err("the content between its holes is cut short".into());
            }
        }
        Ok(())
    }
}

/// The count of segments, then an offset and a length for each, in decimal, a line each, padded to a block.
fn map_ahead(content: &mut impl Read, size: u64) -> Result<Vec<Segment>, String> {
    let mut taken = 0;
    let mut number = || -> Result<u64, String> {
        let mut value: Option<u64> = None;
        loop {
            let mut byte = [0];
            content.read_exact(&mut byte).map_err(words)?;
            taken += 1;
            match byte[0] {
                b'\n' => return value.ok_or_else(|| "the map of its holes has an empty line".into()),
                digit @ b'0'..=b'9' => {
                    let digit = u64::from(digit - b'0');
                    let next = value.unwrap_or(0).checked_mul(10).and_then(|value| value.checked_add(digit));
                    value = Some(next.ok_or("the map of its holes has a number out of range")?);
                }
                _ => return Err("the map of its holes has something else than digits".into()),
            }
        }
    };
    let count = number()?;
    let mut numbers = Vec::new();
    for _ in 0..count.saturating_mul(2) {
        numbers.push(Some(number()?));
        if numbers.len() > 2 * SEGMENTS_MAX {
            return Err(format!("more than {SEGMENTS_MAX} parts between holes"));
        }
    }
    let padding = (BLOCK_BYTES - taken % BLOCK_BYTES) % BLOCK_BYTES;
    let skipped = io::copy(&mut content.by_ref().take(padding), &mut io::sink()).map_err(words)?;
    if skipped < padding {
        return Err("the map of its holes is cut short".into());
    }
    segments(numbers.into_iter(), size)
}

/// Pairs of offset and length, in order, within the file.
fn segments(mut numbers: impl Iterator<Item = Option<u64>>, size: u64) -> Result<Vec<Segment>, String> {
    let mut found = Vec::new();
    let mut end = 0;
    while let Some(offset) = numbers.next() {
        let (Some(offset), Some(Some(length))) = (offset, numbers.next()) else {
            return Err("the map of its holes is not made of pairs of numbers".into());
        };
        if offset < end || offset.checked_add(length).is_none_or(|end| end > size) {
            return Err("the parts between its holes overlap or lie outside the file".into());
        }
        end = offset + length;
        found.push(Segment { offset, length });
        if found.len() > SEGMENTS_MAX {
            return Err(format!("more than {SEGMENTS_MAX} parts between holes"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str, size: u64) -> Result<usize, String> {
        segments(text.split(',').map(|number| number.parse().ok()), size).map(|segments| segments.len())
    }

    #[test]
    fn maps_that_lie_are_refused() {
        assert_eq!(known("0,5,10,5,20,0", 20), Ok(3));
        for (map, size) in [("0,5,4,1", 9), ("0,5,10,5", 14), ("5", 9), ("a,1", 9), ("18446744073709551615,1", 9)] {
            assert!(known(map, size).is_err(), "{map}");
        }
    }

    #[test]
    fn a_map_before_the_content_is_read_to_its_block() {
        let mut content = b"2\n0\n3\n10\n2\n".to_vec();
        content.resize(512, 0);
        content.extend_from_slice(b"abcde");
        let mut content = content.as_slice();
        let map = map_ahead(&mut content, 12).expect("a map");
        assert_eq!(map, [Segment { offset: 0, length: 3 }, Segment { offset: 10, length: 2 }]);
        assert_eq!(content, b"abcde");
        for map in ["", "2\n0\n", "x\n", "99999999999999999999\n", "\n"] {
            assert!(map_ahead(&mut map.as_bytes(), 12).is_err(), "{map:?}");
        }
    }
}
