//! `make bench`, the runtime's part: what one container costs under ours, crun and runc, measured in turns in one run.
//!
//! Every tool gets the same bundle and does one of each work per round, so that what else the machine does meets all alike: read the
//! ratios. crun does not know hosts with both versions of cgroups; the whole run is made in a mount namespace of its own without cgroup2.

use std::fs;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg, socket};
use rcluster_tests::progress;
use serde_json::{Value, json};

#[derive(Debug, Parser)]
struct Flags {
    /// How often each work is measured under each runtime.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Ours.
    #[arg(long, default_value = "rcluster-runtime")]
    runtime: PathBuf,
}

/// One runtime; its containers end with the value.
struct Tool {
    name: &'static str,
    program: PathBuf,
    root: PathBuf,
    bundle: PathBuf,
}

/// Works, and the times each took, in the order of the tools.
struct Figures {
    works: Vec<(&'static str, Vec<Vec<Duration>>)>,
    /// `exec` through our monitor, which the others have no like of.
    monitored: Vec<Duration>,
    /// Peak memory of `run`, in KiB.
    peaks: Vec<Vec<u64>>,
}

/// One of our containers with its monitor.
struct Monitored<'a> {
    tool: &'a Tool,
    socket: PathBuf,
}

impl<'a> Monitored<'a> {
    fn start(tool: &'a Tool, dir: &Path) -> Result<Self> {
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let (log, exit, socket) = (path("log"), path("exit"), path("socket"));
        let files = ["--log", &log, "--exit-file", &exit, "--socket", &socket];
        tool.call(&[&["monitor", "--id", "bench-monitor", "--bundle", tool.bundle()][..], &files].concat())?;
        tool.call(&["start", "bench-monitor"])?;
        Ok(Self { tool, socket: dir.join("socket") })
    }

    /// Runs `true` and waits for its end; `runtime/src/core/request.rs` draws the messages.
    fn exec(&self) -> Result<Duration> {
        let started = Instant::now();
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(&self.socket)?)?;
        let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let streams = [null.as_raw_fd(); 3];
        let request = b"\x01\x01\0\0\0\0\0\0\x05\0\0\0true\0";
        let rights = [ControlMessage::ScmRights(&streams)];
        sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(request)], &rights, MsgFlags::empty(), None)?;
        let mut answer = [0; 4096];
        let mut kinds = Vec::new();
        loop {
            let count = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            if count == 0 {
                break;
            }
            kinds.push((answer[1], answer[4]));
        }
        ensure!(kinds.last() == Some(&(3, 0)), "the monitor answered {kinds:?}");
        Ok(started.elapsed())
    }
}

impl Drop for Monitored<'_> {
    fn drop(&mut self) {
        drop(self.tool.command(&["delete", "--force", "bench-monitor"]).status());
    }
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    hide_cgroup2().context("make a mount namespace without cgroup2")?;
    let dir = tempfile::tempdir()?;
    let tools = tools(dir.path(), &flags.runtime)?;
    let figures = measure(&tools, flags.rounds as usize)?;
    print(&tools, &figures);
    Ok(())
}

/// Where cgroup2 is mounted beside version 1, this process and its children see version 1 alone.
fn hide_cgroup2() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let of = |kind: &str| {
        let of_kind = move |line: &&str| line.rsplit_once(" - ").is_some_and(|(_, rest)| rest.split(' ').next() == Some(kind));
        mounts.lines().filter(of_kind).filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect::<Vec<_>>()
    };
    if of("cgroup").is_empty() {
        return Ok(());
    }
    of("cgroup2").iter().try_for_each(|at| umount2(at.as_str(), MntFlags::MNT_DETACH).with_context(|| format!("unmount {at}")))
}

fn tools(dir: &Path, ours: &Path) -> Result<Vec<Tool>> {
    let busybox = find("busybox").context("busybox is not installed: `make tools` installs it")?;
    let mut tools = Vec::new();
    for (name, program) in [("ours", find(&ours.to_string_lossy())), ("crun", find("crun")), ("runc", find("runc"))] {
        let Some(program) = program else {
            ensure!(name != "ours", "{}: no such program: `make build PROFILE=release` makes it", ours.display());
            progress(&format!("{name} is not installed and is left out: `make tools` installs it"));
            continue;
        };
        let bundle = dir.join(format!("bundle-{name}"));
        for part in ["bin", "proc", "sys", "dev"] {
            fs::create_dir_all(bundle.join("rootfs").join(part))?;
        }
        fs::copy(&busybox, bundle.join("rootfs/bin/busybox"))?;
        for applet in ["true", "sleep"] {
            std::os::unix::fs::symlink("busybox", bundle.join("rootfs/bin").join(applet))?;
        }
        tools.push(Tool { name, program, root: dir.join(format!("root-{name}")), bundle });
    }
    // What runc's `spec` writes, for all.
    for tool in &tools {
        let made = Command::new(&tools[tools.len() - 1].program).args(["spec", "--bundle"]).arg(&tool.bundle).status()?;
        ensure!(made.success(), "spec: {made}");
        tool.config(&["true"])?;
    }
    Ok(tools)
}

fn find(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return std::path::absolute(name).ok().filter(|path| path.exists());
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.exists())
}

impl Tool {
    fn config(&self, args: &[&str]) -> Result<()> {
        let path = self.bundle.join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        config["process"]["args"] = json!(args);
        config["process"]["terminal"] = json!(false);
        Ok(fs::write(&path, config.to_string())?)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn call(&self, args: &[&str]) -> Result<Duration> {
        let mut command = self.command(args);
        let started = Instant::now();
        let status = command.status()?;
        let took = started.elapsed();
        ensure!(status.success(), "{} {}: {status}", self.name, args.join(" "));
        Ok(took)
    }

    fn bundle(&self) -> &str {
        self.bundle.to_str().unwrap_or_default()
    }

    /// Peak resident memory of `run`, in the units of [`peak`].
    fn peak(&self) -> Result<u64> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        peak(&[&text(&self.program), "--root", &text(&self.root), "run", "-b", self.bundle(), "bench-peak"])
    }
}

/// What busybox's `time` says of a program's peak memory: the measuring program itself is too large to be the parent, whose memory
/// counts until the child executes.
fn peak(program: &[&str]) -> Result<u64> {
    let output = Command::new("busybox").args(["time", "-f", "%M"]).args(program).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines().last().and_then(|line| line.trim().parse().ok()).with_context(|| format!("time {}: said {said}", program.join(" ")))
}

/// What `time` says for a KiB: some versions take the kernel's KiB for pages.
fn peak_units() -> Result<u64> {
    let known = peak(&["busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=32M", "count=1"])?;
    Ok((known / (32 << 10)).max(1))
}

impl Drop for Tool {
    fn drop(&mut self) {
        // Not there, when all went well.
        for id in ["bench-run", "bench-steps", "bench-exec", "bench-peak"] {
            drop(self.command(&["delete", "--force", id]).status());
        }
    }
}

fn measure(tools: &[Tool], rounds: usize) -> Result<Figures> {
    let none = || vec![Vec::with_capacity(rounds); tools.len()];
    let names = [
        "`run true`: create, start, wait, delete",
        "create + start + delete",
        "of it: create",
        "of it: start",
        "of it: delete",
        "exec `true`",
    ];
    let mut figures =
        Figures { works: names.iter().map(|name| (*name, none())).collect(), peaks: vec![Vec::new(); tools.len()], monitored: Vec::new() };
    for tool in tools {
        tool.config(&["sleep", "100000"])?;
        tool.call(&["run", "--detach", "-b", tool.bundle(), "bench-exec"])?;
        tool.config(&["true"])?;
    }
    tools[0].config(&["sleep", "100000"])?;
    let dir = tempfile::tempdir()?;
    let monitored = Monitored::start(&tools[0], dir.path())?;
    tools[0].config(&["true"])?;
    let units = peak_units()?;
    for round in 0..rounds {
        if round % 25 == 0 {
            progress(&format!("round {round} of {rounds}"));
        }
        for turn in 0..tools.len() {
            // Nobody is always the first or always after the same.
            let index = if round % 2 == 0 { (turn + round / 2) % tools.len() } else { (round / 2 + tools.len() - turn) % tools.len() };
            let tool = &tools[index];
            let run = tool.call(&["run", "-b", tool.bundle(), "bench-run"])?;
            let create = tool.call(&["create", "-b", tool.bundle(), "bench-steps"])?;
            let start = tool.call(&["start", "bench-steps"])?;
            let delete = tool.call(&["delete", "--force", "bench-steps"])?;
            let exec = tool.call(&["exec", "bench-exec", "true"])?;
            for ((_, times), took) in figures.works.iter_mut().zip([run, create + start + delete, create, start, delete, exec]) {
                times[index].push(took);
            }
            if index == 0 {
                figures.monitored.push(monitored.exec()?);
            }
            if round % 10 == 0 {
                figures.peaks[index].push(tool.peak()? / units);
            }
        }
    }
    for tool in tools {
        tool.call(&["delete", "--force", "bench-exec"])?;
    }
    Ok(figures)
}

/// Of a hundred parts, by rank.
fn rank<T: Ord + Copy>(values: &[T], hundredths: usize) -> T {
    let mut values = values.to_vec();
    values.sort_unstable();
    values[(values.len() * hundredths / 100).min(values.len() - 1)]
}

#[allow(clippy::print_stdout, reason = "the table is the product")]
fn print(tools: &[Tool], figures: &Figures) {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let names: Vec<&str> = tools.iter().map(|tool| tool.name).collect();
    let others: String = names.iter().skip(1).map(|name| format!(" ours / {name} |")).collect();
    println!("| median ms (p10 to p90) | {} |{others}", names.join(" | "));
    println!("|---|{}", "---|".repeat(2 * names.len() - 1));
    for (name, times) in &figures.works {
        let cells: String =
            times.iter().map(|of| format!(" {:.2} ({:.1} to {:.1}) |", ms(rank(of, 50)), ms(rank(of, 10)), ms(rank(of, 90)))).collect();
        let ratios: String = times[1..].iter().map(|of| format!(" {:.2} |", ms(rank(&times[0], 50)) / ms(rank(of, 50)))).collect();
        println!("| {name} |{cells}{ratios}");
    }
    let of = &figures.monitored;
    let cell = format!("{:.2} ({:.1} to {:.1})", ms(rank(of, 50)), ms(rank(of, 10)), ms(rank(of, 90)));
    println!("| the same through the monitor | {cell} |{}", " |".repeat(2 * names.len() - 2));
    let peak = |of: &Vec<u64>| rank(of, 50) as f64 / 1024.0;
    let cells: String = figures.peaks.iter().map(|of| format!(" {:.1} |", peak(of))).collect();
    let ratios: String = figures.peaks[1..].iter().map(|of| format!(" {:.2} |", peak(&figures.peaks[0]) / peak(of))).collect();
    println!("| peak memory of `run`, MiB |{cells}{ratios}");
}
