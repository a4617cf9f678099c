//! Decides when two names of an image are the same name.
//!
//! In: a name as a user or an archive writes it. Out: its one short form: `latest` where there is no tag, Docker Hub's host and
//! `library/` left out, as Docker shows it. Other hosts stay. Never asks a registry.

/// The short form of an image's name.
pub fn normalise(name: &str) -> String {
    let name = name.strip_prefix("docker.io/").or_else(|| name.strip_prefix("index.docker.io/")).unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || last.contains('@') { name.to_owned() } else { format!("{name}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_short_form() {
        for (name, expected) in [
            ("web", "web:latest"),
            ("web:1", "web:1"),
            ("docker.io/library/web:1", "web:1"),
            ("docker.io/me/web", "me/web:latest"),
            ("localhost:5000/web", "localhost:5000/web:latest"),
            ("localhost:5000/web:2", "localhost:5000/web:2"),
            ("web@sha256:00", "web@sha256:00"),
        ] {
            assert_eq!(normalise(name), expected, "{name}");
        }
    }
}
