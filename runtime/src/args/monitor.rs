//! The options of `monitor`.

use std::time::Duration;

use super::{Args, Known, MonitorOptions, Verb};

const LOG_BYTES_MAX_DEFAULT: u64 = 10 << 20;
const LOG_BYTES_MAX_LEAST: u64 = 64 << 10;
const TTY_PATIENCE_MS_MOST: u64 = 3_600_000;
const TTY_PATIENCE_DEFAULT: Duration = Duration::from_secs(1);

/// Reads them.
pub(super) fn monitor(args: &mut Args) -> Result<Verb, String> {
    const KNOWN: [Known; 13] = [
        ("--log-sink", "", true),
        ("--stdin", "", true),
        ("--tty", "", true),
        ("--tty-patience-ms", "", true),
        ("--id", "", true),
        ("--socket", "", true),
        ("--bundle", "-b", true),
        ("--log", "", true),
        ("--exit-file", "", true),
        ("--pid-file", "", true),
        ("--runtime", "", true),
        ("--runtime-root", "", true),
        ("--log-max-bytes", "", true),
    ];
    let options = args.collect("monitor", &KNOWN)?;
    options.no_words("monitor")?;
    let needed = |name: &str| options.path(name).ok_or_else(|| format!("monitor: {name} is missing"));
    let runtime_root = options.path("--runtime-root");
    let runtime = options.path("--runtime");
    if runtime.is_none() && runtime_root.is_some() {
        return Err("monitor --runtime-root: belongs to --runtime; this runtime's own root is --root, before the verb".into());
    }
    let socket = options.path("--socket");
    if runtime.is_some() && socket.is_some() {
        return Err("monitor --socket: a monitor executes nothing in a container of another --runtime: leave one out".into());
    }
    let (stdin, tty) = (options.path("--stdin"), options.path("--tty"));
    if stdin.is_some() && tty.is_some() {
        return Err("monitor --stdin: with --tty the input goes by the terminal: leave one out".into());
    }
    let tty_patience = match options.text("--tty-patience-ms")? {
        None => TTY_PATIENCE_DEFAULT,
        Some(_) if tty.is_none() => return Err("monitor --tty-patience-ms: belongs to --tty".into()),
        Some(text) => match text.parse() {
            Ok(millis @ 0..=TTY_PATIENCE_MS_MOST) => Duration::from_millis(millis),
            _ => return Err(format!("monitor --tty-patience-ms {text:?}: give a number of at most {TTY_PATIENCE_MS_MOST}")),
        },
    };
    let log_bytes_max = match options.text("--log-max-bytes")? {
        None => LOG_BYTES_MAX_DEFAULT,
        Some(text) => match text.parse() {
            Ok(bytes) if bytes >= LOG_BYTES_MAX_LEAST => bytes,
            _ => return Err(format!("monitor --log-max-bytes {text:?}: give a number of at least {LOG_BYTES_MAX_LEAST}")),
        },
    };
    Ok(Verb::Monitor(MonitorOptions {
        id: options.filled("--id")?.ok_or("monitor: --id is missing")?,
        bundle: needed("--bundle")?,
        log: needed("--log")?,
        exit_file: needed("--exit-file")?,
        pid_file: options.path("--pid-file"),
        runtime: runtime.map(|path| (path, runtime_root)),
        socket,
        log_bytes_max,
        log_sink: options.filled("--log-sink")?,
        stdin,
        tty,
        tty_patience,
    }))
}
