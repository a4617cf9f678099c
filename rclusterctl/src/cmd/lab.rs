//! `lab`: refused by name until the lab crate can be called.

use crate::args::{Global, LabCommand};
use crate::error::CliError;
use crate::output::Out;

/// `lab …`.
pub fn run(_: LabCommand, _: &Global, _: Out) -> Result<(), CliError> {
    Err(CliError::usage("rclusterctl lab is not built yet", "README's table says what works"))
}

/// Enters the wire on which a lab's managers stand.
pub fn enter(lab: &str) -> Result<(), CliError> {
    Err(CliError::usage(format!("lab {lab} cannot be entered: labs are not built yet"), "give --managers HOST:PORT"))
}
