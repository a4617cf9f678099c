//! `cargo run -p rcluster-tests --bin rcluster-codegen`: writes the generated wire code after a change of a proto file.

use std::path::Path;

use anyhow::{Context, Result};
use rcluster_tests::codegen::{GENERATED, generate};

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = generate(&root)?;
    std::fs::write(root.join(GENERATED), text).with_context(|| format!("write {GENERATED}"))
}
