//! Decides which of an index's images is for this host.
//!
//! In: the platforms that an index names (image-spec, image-index.md), the host's own. Out: which one fits best. An entry without a
//! platform fits when no other does; a variant counts where the processor has several (image-index.md, "Platform Variants").

use oci_spec::image::{Arch, Descriptor, Os, Platform};

/// Where an entry of an index fits, the better the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Unnamed,
    Older(u32),
    Exact,
}

/// The entry that fits a Linux host of this architecture best; the first of several that fit equally.
pub fn choose<'a>(entries: &'a [Descriptor], arch: &Arch) -> Option<&'a Descriptor> {
    let fitting = entries.iter().filter_map(|entry| Some((fit(entry.platform().as_ref(), arch)?, entry)));
    // `max_by_key` gives the last of equals.
    fitting.rev().max_by_key(|(fit, _)| *fit).map(|(_, entry)| entry)
}

/// The platforms that the entries name, for a message.
pub fn offered(entries: &[Descriptor]) -> String {
    let mut names: Vec<String> = entries.iter().filter_map(|entry| entry.platform().as_ref().map(name)).collect();
    names.retain(|name| !name.starts_with("unknown/"));
    names.dedup();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn fit(platform: Option<&Platform>, arch: &Arch) -> Option<Fit> {
    let Some(platform) = platform else { return Some(Fit::Unnamed) };
    if *platform.os() != Os::Linux || platform.architecture() != arch {
        return None;
    }
    let variant = platform.variant().as_deref().unwrap_or_default();
    match (arch, variant) {
        (_, "") | (Arch::Amd64, "v1") | (Arch::ARM64, "v8") => Some(Fit::Exact),
        // What later processors add is not known to be there.
        (Arch::Amd64 | Arch::ARM64, _) => None,
        // Every Linux of today runs on v7 and what came before it.
        (Arch::ARM, variant) => {
            variant.strip_prefix('v').and_then(|number| number.parse().ok()).filter(|number| *number <= 7).map(Fit::Older)
        }
        (_, _) => Some(Fit::Older(0)),
    }
}

fn name(platform: &Platform) -> String {
    let variant = platform.variant().as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os(), platform.architecture())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Entries of a size each, so that they can be told apart.
    fn entries(platforms: &[&str]) -> Vec<Descriptor> {
        let entry = |(size, platform): (usize, &&str)| {
            let mut value = json!({"mediaType": "m", "digest": format!("sha256:{}", "0".repeat(64)), "size": size});
            let mut parts = platform.split('/');
            if let (Some(os), Some(arch)) = (parts.next(), parts.next()) {
                value["platform"] = json!({"os": os, "architecture": arch});
                if let Some(variant) = parts.next() {
                    value["platform"]["variant"] = json!(variant);
                }
            }
            serde_json::from_value(value).expect("a descriptor")
        };
        platforms.iter().enumerate().map(entry).collect()
    }

    fn check(platforms: &[&str], arch: &Arch, expected: Option<u64>) {
        assert_eq!(choose(&entries(platforms), arch).map(Descriptor::size), expected, "{platforms:?} {arch}");
    }

    #[test]
    fn the_host_gets_what_it_can_run() {
        check(&["linux/arm64", "linux/amd64", "windows/amd64"], &Arch::Amd64, Some(1));
        check(&["windows/amd64", "unknown/unknown"], &Arch::Amd64, None);
        check(&["", "linux/amd64"], &Arch::Amd64, Some(1));
        check(&["linux/arm64", ""], &Arch::Amd64, Some(1));
        check(&["linux/amd64", "linux/amd64"], &Arch::Amd64, Some(0));
        check(&["linux/amd64/v3", "linux/amd64/v1"], &Arch::Amd64, Some(1));
        check(&["linux/amd64/v3"], &Arch::Amd64, None);
        check(&["linux/arm64/v8"], &Arch::ARM64, Some(0));
        check(&["linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm/v8"], &Arch::ARM, Some(1));
    }

    #[test]
    fn the_offer_is_told_in_words() {
        assert_eq!(offered(&entries(&["linux/arm/v7", "unknown/unknown", "windows/amd64", ""])), "linux/arm/v7, windows/amd64");
        assert_eq!(offered(&[]), "none");
    }
}
