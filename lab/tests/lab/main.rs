//! Labs whose daemons are small stand-ins, so that what is tested is the lab: namespaces, wire, faults, and that nothing is left.
//!
//! This program is the test, the commands that make labs, the labs' parts (see [`rcluster_lab::run_part`]) and the daemons, so it has a
//! `main` of its own: arguments that are no option choose tests by a part of their name.

mod claims;
mod daemon;
mod support;

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(code) = rcluster_lab::run_part(&arguments).or_else(|| daemon::run(&arguments)) {
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    let wanted: Vec<&String> = arguments.iter().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let mut failed = 0;
    for (name, test) in claims::ALL {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())) {
            let started = Instant::now();
            let passed = catch_unwind(test).is_ok();
            failed += usize::from(!passed);
            say(&format!("test {name} ... {} ({:.2} s)", if passed { "ok" } else { "FAILED" }, started.elapsed().as_secs_f64()));
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[allow(clippy::print_stdout, reason = "a test harness tells how its tests went")]
fn say(line: &str) {
    println!("{line}");
}
