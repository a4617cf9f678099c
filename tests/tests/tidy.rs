//! The tree itself: floors, purity, what is generated, what is written where.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rcluster_tests::codegen::{GENERATED, generate};
use rcluster_tests::lab::root;

/// Which of our crates each of them may use; an arrow that is not here points up or sideways.
fn floors() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    BTreeMap::from([
        ("rcluster-base", BTreeSet::new()),
        ("rcluster-runtime", BTreeSet::new()),
        ("rcluster-probe", BTreeSet::new()),
        ("rcluster-history", BTreeSet::new()),
        ("rcluster-api", BTreeSet::from(["rcluster-base"])),
        ("rcluster-manager", BTreeSet::from(["rcluster-api", "rcluster-base"])),
        ("rcluster-sim", BTreeSet::from(["rcluster-api", "rcluster-agent", "rcluster-manager"])),
        ("rcluster-agent", BTreeSet::from(["rcluster-api", "rcluster-base"])),
        ("rcluster-netd", BTreeSet::from(["rcluster-api", "rcluster-base"])),
        ("rcluster-deploy", BTreeSet::from(["rcluster-api", "rcluster-base"])),
        ("rcluster-lab", BTreeSet::from(["rcluster-api", "rcluster-base"])),
        ("rclusterctl", BTreeSet::from(["rcluster-api", "rcluster-base", "rcluster-deploy", "rcluster-lab"])),
    ])
}

#[test]
fn no_crate_uses_one_that_stands_above_or_beside_it() {
    let metadata = cargo_metadata::MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap();
    let floors = floors();
    for package in metadata.packages.iter().filter(|package| package.name.as_str() != "rcluster-tests") {
        let allowed = floors.get(package.name.as_str()).unwrap_or_else(|| panic!("{} has no floor: give it one here", package.name));
        for dependency in package.dependencies.iter().filter(|dependency| dependency.name.starts_with("rcluster")) {
            assert!(allowed.contains(dependency.name.as_str()), "{} must not use {}", package.name, dependency.name);
        }
    }
}

#[test]
fn versions_stand_in_the_root_only() {
    let metadata = cargo_metadata::MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap();
    for package in &metadata.packages {
        let manifest = fs::read_to_string(&package.manifest_path).unwrap();
        for line in manifest.lines().skip_while(|line| !line.contains("dependencies]")) {
            let names_a_version = line.contains(" = \"") || line.contains("version = ");
            assert!(!names_a_version, "{}: {line}", package.manifest_path);
        }
    }
}

/// Every Rust file of the workspace, with its path from the root.
fn rust_files() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut dirs = vec![root()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(root()).unwrap().to_path_buf(), text));
            }
        }
    }
    files
}

/// A file of a `core/` module, wherever it stands, that is not its unit tests.
fn is_core(path: &Path) -> bool {
    if path.file_stem().is_some_and(|name| name == "tests" || name.to_string_lossy().ends_with("_tests")) {
        return false;
    }
    let mut parts = path.components().map(|part| part.as_os_str());
    parts.any(|part| part == "src") && parts.any(|part| part == "core")
}

/// The part of a file before its unit tests.
fn product_code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

#[test]
fn core_is_pure() {
    let impure = [
        "async fn",
        ".await",
        "Instant::now",
        "SystemTime::now",
        "rand::rng(",
        "thread_rng",
        "HashMap",
        "HashSet",
        "std::fs",
        "std::net::Tcp",
        "tokio::",
        "Mutex",
        "RwLock",
        "std::env",
        "std::process",
        "unix_ms()",
        "thread::sleep",
        "rustix::",
        "nix::",
    ];
    let mut seen = 0;
    for (path, text) in rust_files().iter().filter(|(path, _)| is_core(path)) {
        seen += 1;
        for line in product_code(text).lines().filter(|line| !line.trim_start().starts_with("//")) {
            for word in impure {
                assert!(!line.contains(word), "{}: core must not know {word}: {line}", path.display());
            }
        }
    }
    assert!(seen > 20, "only {seen} core files were found");
}

#[test]
fn unsafe_code_stands_in_runtime_sys_only() {
    for (path, text) in rust_files() {
        if path.starts_with("runtime/src/sys") || path.ends_with("tidy.rs") {
            continue;
        }
        let offender = text.lines().find(|line| !line.trim_start().starts_with("//") && line.contains("unsafe {"));
        assert_eq!(offender, None, "{}", path.display());
    }
}

#[test]
fn only_the_output_module_prints() {
    let metadata_crates = ["manager", "agent", "netd", "deploy", "lab", "api", "base"];
    for (path, text) in rust_files() {
        let in_product = metadata_crates.iter().any(|name| path.starts_with(Path::new(name).join("src")));
        let may_print = path.ends_with("main.rs") || path.starts_with("rclusterctl/src/output");
        if !in_product || may_print {
            continue;
        }
        let offender = product_code(&text).lines().find(|line| line.contains("println!(") && !line.trim_start().starts_with("//"));
        assert_eq!(offender, None, "{}", path.display());
    }
}

#[test]
fn the_generated_code_is_what_the_proto_files_say() {
    let committed = fs::read_to_string(root().join(GENERATED)).unwrap();
    assert!(committed == generate(&root()).unwrap(), "run `make codegen` and commit {GENERATED}");
}

#[test]
fn every_example_parses() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            seen += 1;
            let text = fs::read_to_string(&path).unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let parsed = rcluster_deploy::native::parse(&[rcluster_deploy::native::Source { name: &name, text: &text }], None, &|_, _| {
                Ok(Vec::new())
            });
            parsed.unwrap_or_else(|errors| panic!("{errors:?}"));
        }
    }
    assert!(seen >= 4, "only {seen} examples were found");
}
