//! `rcluster-probe`: one small static program that is both the demo's service and its measuring client.
//!
//! In: a subcommand and its flags; `RCLUSTER_TASK` and `RCLUSTER_NODE` from the environment; `/etc/resolv.conf` for names.
//! Out: lines on stdout (text, or JSON where a program reads them); exit code 0, 1 when what was tried failed, 2 for wrong usage.
//! Never: anything but the standard library and nix's safe calls for signals and processors, a search list, a cached name, a connection
//! used twice.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool whose output is its purpose")]

mod args;
mod dns;
mod dnsload;
mod ends;
mod http;
mod json;
mod names;
mod outage;
mod output;
mod serve;
mod stop;
mod stream;
mod watch;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use args::{Args, Usage};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use output::say;
use stop::Stop;

const USAGE: &str = "usage: rcluster-probe COMMAND
  serve   [--port 8080]                                            answer HTTP: / /health /crash /eat?mib=N /stream
  resolve NAME [--count 1]                                         ask the first name server for addresses
  get     URL [--count 1] [--interval-ms 0] [--timeout-ms 2000]    fetch, resolving each time
  watch   URL [--interval-ms 20] [--timeout-ms 500] [--seconds N]  fetch until stdin ends; count outages
  stream  HOST:PORT [--interval-ms 50]                             one TCP stream of echoed lines until stdin ends
  names   [--interval-ms 5]                                        'ask NAME', 'watch NAME', 'rest' on stdin; answers as JSON
  sink    [--port 9000] [--cpu N]                                  the other side of load, rr and conns
  load    HOST:PORT [--millis 2000] [--cpu N]                      throughput of one TCP stream
  rr      HOST:PORT [--millis 2000] [--cpu N]                      a byte there and back on one connection: how long it takes
  conns   HOST:PORT [--millis 2000] [--cpu N]                      connect, a byte, close: how many a second
  dnsload NAME [--millis 2000] [--window 16] [--cpu N]             questions to the first name server: how many a second
  idle                                                             wait for SIGTERM";

/// How long `resolve` goes on asking one name: three tries of a second.
const RESOLVE_FOR: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(code) => code,
        Err(Failure::Usage(Usage(why))) => {
            eprintln!("rcluster-probe: {why}\n{USAGE}");
            ExitCode::from(2)
        }
        Err(Failure::Io(what, error)) => {
            eprintln!("rcluster-probe: {what}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why a command could not do its work at all.
#[derive(Debug)]
enum Failure {
    Usage(Usage),
    Io(&'static str, std::io::Error),
}

impl From<Usage> for Failure {
    fn from(usage: Usage) -> Self {
        Self::Usage(usage)
    }
}

fn run(words: &[String]) -> Result<ExitCode, Failure> {
    let (command, rest) = words.split_first().ok_or_else(|| Usage("no command given".to_owned()))?;
    match command.as_str() {
        "serve" => {
            let args = Args::parse(rest, 0, &["port"])?;
            let port = args.number("port", 8080)?;
            let port = u16::try_from(port).map_err(|_| Usage(format!("--port {port} is not a port (0-65535)")))?;
            stop::exit_on_signal().map_err(|error| Failure::Io("wait for signals", error))?;
            let error = serve::serve(port);
            Err(Failure::Io("serve", error))
        }
        "resolve" => {
            let args = Args::parse(rest, 1, &["count"])?;
            let count = args.number("count", 1)?;
            stop::exit_on_signal().map_err(|error| Failure::Io("wait for signals", error))?;
            resolve(args.positional(0), count).map_err(|error| Failure::Io("write output", error))
        }
        "get" => {
            let args = Args::parse(rest, 1, &["count", "interval-ms", "timeout-ms"])?;
            let url = http::Url::parse(args.positional(0)).map_err(Usage)?;
            let (count, interval, timeout) = (args.number("count", 1)?, args.millis("interval-ms", 0)?, args.millis("timeout-ms", 2000)?);
            stop::exit_on_signal().map_err(|error| Failure::Io("wait for signals", error))?;
            get(&url, count, interval, timeout).map_err(|error| Failure::Io("write output", error))
        }
        "watch" => {
            let args = Args::parse(rest, 1, &["interval-ms", "timeout-ms", "seconds"])?;
            let url = http::Url::parse(args.positional(0)).map_err(Usage)?;
            let (interval, timeout) = (args.millis("interval-ms", 20)?, args.millis("timeout-ms", 500)?);
            let limit = args.optional("seconds")?.map(Duration::from_secs);
            let stop = Stop::on_signal_or_stdin_end().map_err(|error| Failure::Io("wait for signals", error))?;
            watch::watch(&url, interval, timeout, limit, &stop).map_err(|error| Failure::Io("write output", error))?;
            Ok(ExitCode::SUCCESS)
        }
        "stream" => {
            let args = Args::parse(rest, 1, &["interval-ms"])?;
            let url = http::Url::parse(&format!("http://{}/stream", args.positional(0))).map_err(Usage)?;
            let interval = args.millis("interval-ms", 50)?;
            let stop = Stop::on_signal_or_stdin_end().map_err(|error| Failure::Io("wait for signals", error))?;
            let whole = stream::stream(&url, interval, &stop).map_err(|error| Failure::Io("stream", error))?;
            Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        "names" => {
            let args = Args::parse(rest, 0, &["interval-ms"])?;
            let interval = args.millis("interval-ms", 5)?;
            stop::exit_on_signal().map_err(|error| Failure::Io("wait for signals", error))?;
            names::names(interval).map_err(|error| Failure::Io("ask for names", error))?;
            Ok(ExitCode::SUCCESS)
        }
        "sink" => {
            let args = Args::parse(rest, 0, &["port", "cpu"])?;
            let port = args.number("port", 9000)?;
            let port = u16::try_from(port).map_err(|_| Usage(format!("--port {port} is not a port (0-65535)")))?;
            pin(&args)?;
            stop::exit_on_signal().map_err(|error| Failure::Io("wait for signals", error))?;
            Err(Failure::Io("sink", ends::sink(port)))
        }
        "load" => towards_sink(rest, "load", ends::load),
        "rr" => towards_sink(rest, "rr", ends::rr),
        "conns" => towards_sink(rest, "conns", ends::conns),
        "dnsload" => {
            let args = Args::parse(rest, 1, &["millis", "window", "cpu"])?;
            let (time, window) = (args.millis("millis", 2000)?, args.number("window", 16)?);
            let window = u8::try_from(window).map_err(|_| Usage(format!("--window {window} is too large (at most 255)")))?;
            pin(&args)?;
            dnsload::load(args.positional(0), time, window).map_err(|error| Failure::Io("ask", error))?;
            Ok(ExitCode::SUCCESS)
        }
        "idle" => {
            Args::parse(rest, 0, &[])?;
            stop::wait_for_signal().map_err(|error| Failure::Io("wait for signals", error))?;
            Ok(ExitCode::SUCCESS)
        }
        "help" | "--help" | "-h" => {
            say(USAGE).map_err(|error| Failure::Io("write output", error))?;
            Ok(ExitCode::SUCCESS)
        }
        unknown => Err(Usage(format!("unknown command {unknown:?}")).into()),
    }
}

/// Does something with a sink at `HOST:PORT` for a time.
fn towards_sink(
    words: &[String],
    what: &'static str,
    work: fn(std::net::SocketAddr, Duration) -> std::io::Result<()>,
) -> Result<ExitCode, Failure> {
    let args = Args::parse(words, 1, &["millis", "cpu"])?;
    let time = args.millis("millis", 2000)?;
    pin(&args)?;
    let sink = ends::resolve(args.positional(0)).map_err(|why| Failure::Io("find the sink", std::io::Error::other(why)))?;
    work(sink, time).map_err(|error| Failure::Io(what, error))?;
    Ok(ExitCode::SUCCESS)
}

/// Keeps this process on one processor, if that is asked for.
fn pin(args: &Args) -> Result<(), Failure> {
    let Some(cpu) = args.optional("cpu")? else { return Ok(()) };
    let number = usize::try_from(cpu).map_err(|_| Usage(format!("--cpu {cpu} is no processor")))?;
    let mut set = CpuSet::new();
    let pinned = set.set(number).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    pinned.map_err(|errno| Failure::Io("stay on one processor", errno.into()))
}

fn resolve(name: &str, count: u64) -> std::io::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for _ in 0..count {
        match dns::lookup(name, Instant::now() + RESOLVE_FOR) {
            Ok(addresses) => {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                say(&addresses.join(" "))?;
            }
            Err(error) => {
                say(&error.to_string())?;
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn get(url: &http::Url, count: u64, interval: Duration, timeout: Duration) -> std::io::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for turn in 0..count {
        if turn > 0 {
            std::thread::sleep(interval);
        }
        let fetched = http::fetch(url, Instant::now() + timeout);
        // A name that did not resolve stands where its address would.
        let whom = fetched.address.map_or_else(|| url.host.clone(), |address| address.to_string());
        match fetched.body {
            Ok(body) => say(&format!("{whom} {}", body.lines().next().unwrap_or_default()))?,
            Err(why) => {
                say(&format!("{whom} error: {why}"))?;
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
