//! The command line, with the grammar callers of runc rely on.
//!
//! In: the arguments. Out: [`Call`], or why they are refused. Options stand on either side of the container's id, those of all verbs also
//! before the verb; values follow `=` or a space; one dash is as good as two. Only behind the id of `exec` everything is the command.
//! Never drops an option: those of runc that are not built are refused by name.

mod exec;
mod monitor;
mod update;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::core::{signal, time};
use crate::output::{Log, LogFormat};
use crate::parent::{CreateOptions, ExecOptions, Schemas, UpdateSource};

/// One call of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub root: PathBuf,
    pub log: Log,
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    Create {
        id: String,
        options: CreateOptions,
    },
    Start {
        id: String,
    },
    State {
        id: String,
    },
    Kill {
        id: String,
        signal: i32,
        all: bool,
    },
    Delete {
        id: String,
        force: bool,
    },
    Run {
        id: String,
        options: CreateOptions,
        keep: bool,
    },
    Exec {
        id: String,
        options: ExecOptions,
    },
    Pause {
        id: String,
    },
    Resume {
        id: String,
    },
    Ps {
        id: String,
        output: PsOutput,
    },
    /// Without an interval: once.
    Events {
        id: String,
        interval: Option<Duration>,
    },
    Update {
        id: String,
        source: UpdateSource,
        schemas: Schemas,
    },
    List {
        format: ListFormat,
    },
    Spec {
        bundle: PathBuf,
        /// For the user who calls, without any privilege.
        rootless: bool,
    },
    Features,
    Monitor(MonitorOptions),
    Version,
    Help,
}

/// How `list` answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ListFormat {
    #[default]
    Table,
    Json,
    Ids,
}

/// How `ps` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PsOutput {
    /// With options of ps(1).
    Table(Vec<String>),
    Json,
}

/// What `monitor` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorOptions {
    pub id: String,
    pub bundle: PathBuf,
    pub log: PathBuf,
    pub exit_file: PathBuf,
    pub pid_file: Option<PathBuf>,
    /// Another OCI runtime, and where it keeps its state.
    pub runtime: Option<(PathBuf, Option<PathBuf>)>,
    /// Where it listens for requests.
    pub socket: Option<PathBuf>,
    pub log_bytes_max: u64,
    /// See `core/log_sink`.
    pub log_sink: Option<String>,
    /// A FIFO to make, which is the container's standard input; it is empty otherwise.
    pub stdin: Option<PathBuf>,
    /// The container has a terminal; where to listen for those who look at it.
    pub tty: Option<PathBuf>,
    /// How long one who looks and takes nothing holds the container up.
    pub tty_patience: Duration,
}

/// Why a call is none, and the code it ends with, which is runc's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: u8,
    pub why: String,
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self { code: FAILED, why }
    }
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

/// What most failures end with.
pub const FAILED: u8 = 1;
const UNKNOWN_VERB: u8 = 3;
/// What a failed `exec` ends with: a program executed in a container can end with 1 by itself.
pub const EXEC_FAILED: u8 = 255;

/// Where state is kept unless `--root` says otherwise.
pub const ROOT_DEFAULT: &str = "/run/rcluster/runtime";

const EVENTS_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);

/// What `--help` prints.
pub const HELP: &str = "\
rcluster-runtime: an OCI runtime (runtime-spec 1.2)

usage: rcluster-runtime [--root DIR] [--log FILE] [--log-format text|json] [--debug] [--systemd-cgroup] [--rootless BOOL] VERB

  create  [--bundle DIR] [--pid-file FILE] [--console-socket FILE] [--preserve-fds N] [--no-pivot] [--no-new-keyring] ID
                                                make a container from a bundle; its process waits
  start   ID                                    let it run
  run     [options of create] [--detach] [--keep] ID
                                                create, start, wait, delete
  exec    [--process FILE] [--cwd DIR] [--env NAME=VALUE] [--user UID[:GID]] [--additional-gids GID] [--cap NAME]
          [--no-new-privs] [--tty] [--console-socket FILE] [--apparmor PROFILE] [--process-label LABEL] [--detach]
          [--pid-file FILE] [--preserve-fds N] [--ignore-paused] [--cgroup [CONTROLLER:]PATH] ID [PROGRAM ARGUMENT…]
                                                run one more process in a container
  pause   ID                                    stop all processes of a container
  resume  ID                                    let them go on
  update  [--resources FILE|-] [--memory SIZE] [--memory-reservation SIZE] [--memory-swap SIZE] [--cpu-share N] [--cpu-quota US]
          [--cpu-period US] [--cpu-burst US] [--cpu-idle N] [--cpu-rt-period US] [--cpu-rt-runtime US] [--cpuset-cpus LIST]
          [--cpuset-mems LIST] [--pids-limit N] [--blkio-weight N] [--l3-cache-schema LINES] [--mem-bw-schema LINE] ID
                                                change its limits
  ps      [--format table|json] ID [OPTION OF PS…]
                                                show its processes
  events  [--stats] [--interval DURATION] ID    print what it uses, and when its memory runs out
  state   ID                                    print its state as JSON
  kill    [--all] ID [SIGNAL]                   send a signal, TERM if none is named
  delete  [--force] ID                          remove a stopped container, or any
  list    [--format table|json] [--quiet]       print all containers
  spec    [--bundle DIR] [--rootless]           write a config.json to begin with
  features                                      print what this runtime honours
  monitor --id ID --bundle DIR --log FILE --exit-file FILE [--pid-file FILE]
          [--runtime FILE [--runtime-root DIR]] [--log-max-bytes N] [--log-sink JSON] [--socket FILE]
          [--stdin FIFO | --tty SOCKET [--tty-patience-ms N]]
                                                create a container and stay with it: keep its output and its exit,
                                                and execute in it what is asked for over the socket
";

/// Reads the arguments after the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Call, Refusal> {
    let mut args = Args {
        rest: args.into_iter().collect::<Vec<_>>().into_iter(),
        root: ROOT_DEFAULT.into(),
        log: Log::default(),
        systemd_cgroup: false,
        rootless: None,
        help: false,
    };
    // They take the place of the verb, once the options of all verbs are read.
    let mut told = None;
    let mut verb = loop {
        let Some(argument) = args.rest.next() else { break told.unwrap_or(Verb::Help) };
        let Some(option) = Given::parse(&argument)? else {
            let name = text(argument)?;
            match told {
                Some(told) => break told,
                None => break verb(&name, &mut args).or_else(|refusal| if args.help { Ok(Verb::Help) } else { Err(refusal) })?,
            }
        };
        match option.name.as_str() {
            "--version" | "-v" => told = told.or(Some(Verb::Version)),
            "--help" | "-h" => told = Some(Verb::Help),
            _ => {
                let name = option.name.clone();
                if !args.global(option)? {
                    return Err(format!("unknown option {name}: see --help").into());
                }
            }
        }
    };
    // As under runc, other verbs do not look at it.
    let asks = matches!(verb, Verb::Create { .. } | Verb::Run { .. } | Verb::Ps { .. } | Verb::Pause { .. } | Verb::Resume { .. });
    if let Some(other) = args.rootless.filter(|given| asks && given != "auto" && switch("--rootless", Some(given)).is_err()) {
        return Err(format!("--rootless {other:?}: use true, false or auto").into());
    }
    // It may stand behind the verb.
    if let Verb::Create { options, .. } | Verb::Run { options, .. } = &mut verb {
        options.systemd_cgroup = args.systemd_cgroup;
    }
    Ok(Call { root: args.root, log: args.log, verb })
}

/// Those `help` is asked about.
const VERBS: [&str; 20] = [
    "checkpoint",
    "create",
    "delete",
    "events",
    "exec",
    "features",
    "h",
    "help",
    "kill",
    "list",
    "monitor",
    "pause",
    "ps",
    "restore",
    "resume",
    "run",
    "spec",
    "start",
    "state",
    "update",
];

fn verb(name: &str, args: &mut Args) -> Result<Verb, Refusal> {
    let verb = match name {
        "create" | "run" => create_or_run(name, args)?,
        "exec" => return exec::exec(args),
        "start" => Verb::Start { id: args.only_id(name, &[])?.0 },
        "pause" => Verb::Pause { id: args.only_id(name, &[])?.0 },
        "resume" => Verb::Resume { id: args.only_id(name, &[])?.0 },
        "update" => update::update(args)?,
        "ps" => ps(args)?,
        "events" => events(args)?,
        "state" => Verb::State { id: args.only_id(name, &[])?.0 },
        "delete" => {
            let (id, options) = args.only_id(name, &[("--force", "-f", false)])?;
            Verb::Delete { id, force: options.has("--force")? }
        }
        "kill" => kill(args)?,
        "list" => list(args)?,
        "spec" => {
            let options = args.collect(name, &[("--bundle", "-b", true), ("--rootless", "", false)])?;
            options.no_words(name)?;
            let rootless = options.has("--rootless")?;
            Verb::Spec { bundle: options.path("--bundle").unwrap_or_else(|| ".".into()), rootless }
        }
        "features" => args.collect(name, &[])?.no_words(name).map(|()| Verb::Features)?,
        "monitor" => monitor::monitor(args)?,
        "help" | "h" => match args.collect(name, &[])?.words.first() {
            Some(other) if !VERBS.contains(&other.as_str()) => return Err(unknown_verb(other)),
            _ => Verb::Help,
        },
        "checkpoint" | "restore" => {
            return Err(format!("{name}: not built yet in this runtime: use another OCI runtime for a container that needs it").into());
        }
        other => return Err(unknown_verb(other)),
    };
    Ok(verb)
}

fn unknown_verb(name: &str) -> Refusal {
    Refusal { code: UNKNOWN_VERB, why: format!("unknown verb {name:?}: see --help") }
}

fn list(args: &mut Args) -> Result<Verb, String> {
    let options = args.collect("list", &[("--format", "-f", true), ("--quiet", "-q", false)])?;
    options.no_words("list")?;
    let format = match options.text("--format")?.as_deref() {
        _ if options.has("--quiet")? => ListFormat::Ids,
        None | Some("table") => ListFormat::Table,
        Some("json") => ListFormat::Json,
        Some(other) => return Err(format!("list --format {other:?}: use table or json")),
    };
    Ok(Verb::List { format })
}

fn create_or_run(name: &str, args: &mut Args) -> Result<Verb, String> {
    const KNOWN: [Known; 9] = [
        ("--bundle", "-b", true),
        ("--pid-file", "", true),
        ("--detach", "-d", false),
        // Without effect in runc as well; old callers give it.
        ("--no-subreaper", "", false),
        ("--console-socket", "", true),
        ("--no-pivot", "", false),
        ("--no-new-keyring", "", false),
        ("--preserve-fds", "", true),
        ("--keep", "", false),
    ];
    let (id, options) = args.only_id(name, &KNOWN)?;
    let detach = options.has("--detach")?;
    let create = CreateOptions {
        bundle: options.path("--bundle").unwrap_or_else(|| ".".into()),
        pid_file: options.path("--pid-file"),
        console_socket: options.path("--console-socket"),
        foreground: name == "run" && !detach,
        preserve_fds: options.number(name, "--preserve-fds")?.unwrap_or(0),
        no_pivot: options.has("--no-pivot")?,
        no_new_keyring: options.has("--no-new-keyring")?,
        systemd_cgroup: false,
    };
    match name {
        "create" if detach => Err("create --detach: create always returns at once; the option belongs to run".into()),
        "create" if options.has("--keep")? => Err("create --keep: only run deletes; the option belongs to it".into()),
        "create" => Ok(Verb::Create { id, options: create }),
        _ => Ok(Verb::Run { id, options: create, keep: options.has("--keep")? }),
    }
}

fn ps(args: &mut Args) -> Result<Verb, String> {
    let mut options = args.collect_before_word("ps", &[("--format", "-f", true)])?;
    let mut words = std::mem::take(&mut options.words).into_iter();
    let id = words.next().ok_or("ps: give a container id")?;
    let output = match options.text("--format")?.as_deref() {
        None | Some("table") => PsOutput::Table(words.collect()),
        Some("json") => PsOutput::Json,
        Some(other) => return Err(format!("ps --format {other:?}: use table or json")),
    };
    Ok(Verb::Ps { id, output })
}

fn events(args: &mut Args) -> Result<Verb, String> {
    let (id, options) = args.only_id("events", &[("--stats", "", false), ("--interval", "", true)])?;
    let interval = match options.text("--interval")? {
        None => EVENTS_INTERVAL_DEFAULT,
        Some(text) => time::parse_duration(&text)
            .filter(|interval| !interval.is_zero())
            .ok_or_else(|| format!("events --interval {text:?}: give a duration above zero such as 5s or 100ms"))?,
    };
    Ok(Verb::Events { id, interval: if options.has("--stats")? { None } else { Some(interval) } })
}

fn kill(args: &mut Args) -> Result<Verb, String> {
    let options = args.collect("kill", &[("--all", "-a", false)])?;
    let (id, signal) = match options.words.as_slice() {
        [id] => (id, signal::TERM),
        [id, none] if none.is_empty() => (id, signal::TERM),
        [id, name] => (id, signal::parse(name).ok_or_else(|| format!("kill: {name:?} is no signal"))?),
        _ => return Err("kill: give a container id and, if it is not TERM, a signal".into()),
    };
    Ok(Verb::Kill { id: id.clone(), signal, all: options.has("--all")? })
}

/// An option's long name, its short one or none, and whether a value follows.
type Known = (&'static str, &'static str, bool);

/// What is still to be read, and what was read of the options of all verbs.
struct Args {
    rest: std::vec::IntoIter<OsString>,
    root: PathBuf,
    log: Log,
    systemd_cgroup: bool,
    /// Of no effect: whether this is so is seen from the user this program runs as.
    rootless: Option<OsString>,
    /// A verb was asked for help.
    help: bool,
}

/// An option as written.
struct Given {
    name: String,
    value: Option<OsString>,
}

/// A verb's arguments.
struct Collected {
    options: Vec<(&'static str, Option<OsString>)>,
    words: Vec<String>,
}

impl Given {
    /// `None` for a word that is no option.
    fn parse(argument: &OsString) -> Result<Option<Self>, String> {
        let bytes = argument.as_encoded_bytes();
        if !bytes.starts_with(b"-") || bytes == b"-" {
            return Ok(None);
        }
        let whole = argument.to_str().ok_or_else(|| format!("option {argument:?} is not UTF-8"))?;
        let (name, value) = match whole.split_once('=') {
            Some((name, value)) => (name, Some(value.into())),
            None => (whole, None),
        };
        // Go's `flag`, which runc reads its options with, makes no difference between one dash and two.
        let bare = name.trim_start_matches('-');
        let dashes = if bare.chars().count() == 1 { "-" } else { "--" };
        Ok(Some(Self { name: format!("{dashes}{bare}"), value }))
    }

    /// A switch, also written `--switch=false`.
    fn flag(&self) -> Result<bool, String> {
        switch(&self.name, self.value.as_ref())
    }
}

fn switch(name: &str, value: Option<&OsString>) -> Result<bool, String> {
    match value.map(|value| value.to_str()) {
        None | Some(Some("true" | "TRUE" | "True" | "t" | "T" | "1")) => Ok(true),
        Some(Some("false" | "FALSE" | "False" | "f" | "F" | "0")) => Ok(false),
        Some(other) => Err(format!("{name} takes no value {:?}", other.unwrap_or("?"))),
    }
}

impl Args {
    fn value(&mut self, option: Given) -> Result<OsString, String> {
        let value = option.value.or_else(|| self.rest.next());
        value.ok_or_else(|| format!("{} needs a value", option.name))
    }

    fn collect(&mut self, verb: &str, known: &[Known]) -> Result<Collected, String> {
        self.collect_until(verb, known, false)
    }

    /// Everything from the first word on is words.
    fn collect_before_word(&mut self, verb: &str, known: &[Known]) -> Result<Collected, String> {
        self.collect_until(verb, known, true)
    }

    fn collect_until(&mut self, verb: &str, known: &[Known], first_word_ends: bool) -> Result<Collected, String> {
        let mut collected = Collected { options: Vec::new(), words: Vec::new() };
        let (mut only_words, mut help) = (false, false);
        while let Some(argument) = self.rest.next() {
            if argument == "--" && !only_words {
                only_words = true;
                continue;
            }
            let given = if only_words { None } else { Given::parse(&argument)? };
            let Some(given) = given else {
                collected.words.push(text(argument)?);
                if first_word_ends && !only_words {
                    // `exec ID -- PROGRAM` is as good as `exec ID PROGRAM`.
                    only_words = self.rest.as_slice().first().is_none_or(|next| next != "--");
                }
                continue;
            };
            let known = known.iter().find(|(long, short, _)| given.name == *long || !short.is_empty() && given.name == *short);
            let Some((long, _, takes_value)) = known else {
                let name = given.name.clone();
                if ["--help", "-h"].contains(&name.as_str()) {
                    help = true;
                } else if !self.global(given)? {
                    return Err(format!("{verb}: unknown option {name}: see --help"));
                }
                continue;
            };
            let value = if *takes_value { Some(self.value(given)?) } else { given.value };
            collected.options.push((long, value));
        }
        if help {
            self.help = true;
            return Err(format!("{verb}: help is asked for"));
        }
        Ok(collected)
    }

    /// Reads an option of all verbs; whether it is one.
    fn global(&mut self, option: Given) -> Result<bool, String> {
        match option.name.as_str() {
            "--root" => match self.value(option)? {
                root if root.is_empty() => return Err("--root needs a value".into()),
                root => self.root = root.into(),
            },
            "--log" => self.log.file = Some(self.value(option)?).filter(|path| !path.is_empty()).map(PathBuf::from),
            "--log-format" => {
                self.log.format = match text(self.value(option)?)?.as_str() {
                    "text" | "" => LogFormat::Text,
                    "json" => LogFormat::Json,
                    other => return Err(format!("--log-format {other:?}: use text or json")),
                }
            }
            "--debug" => self.log.debug = option.flag()?,
            "--systemd-cgroup" => self.systemd_cgroup = option.flag()?,
            "--rootless" => self.rootless = Some(self.value(option)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn only_id(&mut self, verb: &str, known: &[Known]) -> Result<(String, Collected), String> {
        let mut collected = self.collect(verb, known)?;
        match (collected.words.pop(), collected.words.is_empty()) {
            (Some(id), true) => Ok((id, collected)),
            _ => Err(format!("{verb}: give exactly one container id")),
        }
    }
}

impl Collected {
    fn last(&self, name: &str) -> Option<&Option<OsString>> {
        self.options.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    fn given(&self, name: &str) -> bool {
        self.last(name).is_some()
    }

    fn has(&self, name: &str) -> Result<bool, String> {
        self.last(name).map_or(Ok(false), |value| switch(name, value.as_ref()))
    }

    /// An empty one is none, as under runc.
    fn path(&self, name: &str) -> Option<PathBuf> {
        self.last(name).cloned().flatten().filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// An empty one is none, as under runc.
    fn filled(&self, name: &str) -> Result<Option<String>, String> {
        Ok(self.text(name)?.filter(|text| !text.is_empty()))
    }

    fn text(&self, name: &str) -> Result<Option<String>, String> {
        self.last(name).cloned().flatten().map(text).transpose()
    }

    /// Every value of an option, in order.
    fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        self.options.iter().filter(|(known, _)| *known == name).filter_map(|(_, value)| value.clone()).map(text).collect()
    }

    fn number<T: FromStr>(&self, verb: &str, name: &str) -> Result<Option<T>, String> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("{verb} {name} {text:?}: give a number"))
    }

    fn no_words(&self, verb: &str) -> Result<(), String> {
        self.words.first().map_or(Ok(()), |word| Err(format!("{verb}: unexpected argument {word:?}")))
    }
}

fn text(argument: OsString) -> Result<String, String> {
    argument.into_string().map_err(|argument| format!("argument {argument:?} is not UTF-8"))
}

#[cfg(test)]
mod tests;
