//! Where a copy lands: docker's rules for `cp`, the same for both directions.
//!
//! In: what is copied and what is at the destination. Out: the directory that takes it, and the name of its outermost entry there.

use thiserror::Error;

/// What is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'a> {
    /// The last part of its path.
    pub name: &'a str,
    pub is_dir: bool,
    /// The directory's contents without the directory: its path ends with `/.`.
    pub contents_only: bool,
}

/// What is at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    Absent,
    Directory,
    /// A file or something else that is no directory.
    File,
}

/// Where a copy goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landing {
    /// The directory that takes it.
    pub directory: String,
    /// The outermost name in the archive; `.` when the directory itself is filled.
    pub root_name: String,
}

/// Why a copy goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CopyError {
    #[error("{path} is a file, and a directory cannot be copied onto it")]
    OntoFile { path: String },
    #[error("{path} is no directory")]
    NotDirectory { path: String },
    #[error("there is no directory {path}")]
    NoDirectory { path: String },
}

/// Where `source` goes when it is copied to `path`.
pub fn land(source: Source<'_>, path: &str, there: Destination) -> Result<Landing, CopyError> {
    let names_directory = path.ends_with('/') || path.ends_with("/.") || path == ".";
    match there {
        Destination::Directory => {
            let root_name = if source.contents_only || source.name.is_empty() { "." } else { source.name };
            Ok(Landing { directory: path.to_owned(), root_name: root_name.to_owned() })
        }
        Destination::File if source.is_dir => Err(CopyError::OntoFile { path: path.to_owned() }),
        Destination::File if names_directory => Err(CopyError::NotDirectory { path: path.to_owned() }),
        Destination::Absent if names_directory && !source.is_dir => Err(CopyError::NoDirectory { path: path.to_owned() }),
        Destination::File | Destination::Absent => {
            let (directory, root_name) = split(path);
            Ok(Landing { directory: directory.to_owned(), root_name: root_name.to_owned() })
        }
    }
}

/// The directory and the last name of a path; blanks of it such as `//` and `/.` at the end do not count.
pub fn split(path: &str) -> (&str, &str) {
    let mut path = path;
    while let Some(rest) = path.strip_suffix("/.").or_else(|| path.strip_suffix('/')) {
        path = rest;
    }
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((directory, name)) => (directory, name),
        None => (".", path),
    }
}

/// Whether the path asks for a directory's contents without the directory.
pub fn contents_only(path: &str) -> bool {
    path.ends_with("/.") || matches!(path, "." | "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: (&str, bool, bool), path: &str, there: Destination, expected: &str) {
        let (name, is_dir, contents_only) = source;
        let text = match land(Source { name, is_dir, contents_only }, path, there) {
            Ok(landing) => format!("{} < {}", landing.directory, landing.root_name),
            Err(error) => error.to_string(),
        };
        assert_eq!(text, expected, "{source:?} to {path}");
    }

    #[test]
    fn a_copy_lands_as_with_docker() {
        use Destination::{Absent, Directory, File};
        let (file, dir, contents) = (("f", false, false), ("d", true, false), ("d", true, true));
        check(file, "/a/b", Absent, "/a < b");
        check(file, "/a/b", File, "/a < b");
        check(file, "/a/b", Directory, "/a/b < f");
        check(file, "/a/b/", Absent, "there is no directory /a/b/");
        check(file, "/a/b/", File, "/a/b/ is no directory");
        check(dir, "/a/b", Absent, "/a < b");
        check(dir, "/a/b/", Absent, "/a < b");
        check(dir, "/a/b", File, "/a/b is a file, and a directory cannot be copied onto it");
        check(dir, "/a/b", Directory, "/a/b < d");
        check(contents, "/a/b", Absent, "/a < b");
        check(contents, "/a/b", Directory, "/a/b < .");
        check(file, "b", Absent, ". < b");
        check(file, "/b", Absent, "/ < b");
        check(file, ".", Directory, ". < f");
    }

    #[test]
    fn paths_are_split_at_their_last_name() {
        for (path, expected) in
            [("/a/b", ("/a", "b")), ("/a", ("/", "a")), ("a", (".", "a")), ("/a/b//", ("/a", "b")), ("/a/.", ("/", "a")), ("/", (".", ""))]
        {
            assert_eq!(split(path), expected, "{path}");
        }
    }
}
