//! Generates the Rust code for `api/proto` without a system protoc.
//!
//! In: the workspace's root. Out: the text of `api/src/wire/gen/rcluster.v1.rs`. Never writes into the tree itself: the `codegen`
//! program does that, and a test compares.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Where the generated code is committed, from the workspace's root.
pub const GENERATED: &str = "api/src/wire/gen/rcluster.v1.rs";

/// The generated code for every file under `api/proto`.
pub fn generate(root: &Path) -> Result<String> {
    let include = root.join("api/proto");
    let dir = include.join("rcluster/v1");
    let mut files: Vec<_> = fs::read_dir(&dir)
        .with_context(|| format!("list {}", dir.display()))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let descriptors = protox::compile(&files, [&include]).context("compile the proto files")?;
    let out = tempfile::tempdir().context("make a directory for the generated code")?;
    tonic_prost_build::configure()
        .btree_map(".")
        .build_transport(true)
        // Its bytes may be a secret: `api/src/data.rs` says what is printed of it.
        .skip_debug(["rcluster.v1.Payload"])
        .out_dir(out.path())
        .compile_fds(descriptors)
        .context("generate Rust")?;
    fs::read_to_string(out.path().join("rcluster.v1.rs")).context("read the generated code")
}
