use super::*;
use crate::core::exec;
use crate::parent::ProcessSource;

fn read(line: &str) -> Result<Call, Refusal> {
    parse(line.split_whitespace().map(OsString::from))
}

#[test]
fn options_stand_on_either_side_of_the_id() {
    let expected = Verb::Create {
        id: "web".into(),
        options: CreateOptions { bundle: "/b".into(), pid_file: Some("/p".into()), ..CreateOptions::default() },
    };
    for line in ["create --bundle /b --pid-file /p web", "create web -b /b --pid-file=/p", "create --bundle=/b web --pid-file /p"] {
        assert_eq!(read(line).unwrap().verb, expected, "{line}");
    }
    assert_eq!(read("delete web --force").unwrap().verb, Verb::Delete { id: "web".into(), force: true });
    assert_eq!(read("delete --force=false -- -x").unwrap().verb, Verb::Delete { id: "-x".into(), force: false });
}

#[test]
fn behind_the_id_of_exec_everything_is_the_command() {
    let Verb::Exec { id, options } = read("exec -e A=1 --env=B=x=y -u 1:2 -d web sh -c -e --root").unwrap().verb else { panic!() };
    let ProcessSource::Options(asked) = options.process else { panic!("{:?}", options.process) };
    assert_eq!((id.as_str(), options.detach, asked.args.join(" ")), ("web", true, "sh -c -e --root".into()));
    assert_eq!((asked.env, asked.user), (vec!["A=1".into(), "B=x=y".into()], Some(exec::User { uid: 1, gid: Some(2) })));
    let Verb::Exec { options, .. } = read("exec web -- id").unwrap().verb else { panic!() };
    let ProcessSource::Options(asked) = options.process else { panic!("{:?}", options.process) };
    assert_eq!(asked.args, ["id"]);
    let Verb::Exec { options, .. } = read("exec -process /p web").unwrap().verb else { panic!() };
    assert_eq!(options.process, ProcessSource::File { path: "/p".into(), terminal: false });
}

#[test]
fn global_options_stand_anywhere() {
    let call = read("state --root /r web --log /l").unwrap();
    assert_eq!((call.root, call.log.file), ("/r".into(), Some("/l".into())));
    for line in ["--systemd-cgroup --rootless=auto create web", "--rootless false create web --systemd-cgroup"] {
        let Verb::Create { options, .. } = read(line).unwrap().verb else { panic!("{line}") };
        assert!(options.systemd_cgroup, "{line}");
    }
    let call = read("--root /r --log=/l --log-format json --debug state web").unwrap();
    assert_eq!(call.root, PathBuf::from("/r"));
    assert_eq!(call.log, Log { file: Some("/l".into()), format: LogFormat::Json, debug: true });
    assert_eq!(read("state web").unwrap().root, PathBuf::from(ROOT_DEFAULT));
}

#[test]
fn kill_takes_a_signal_by_name_or_number() {
    let signal = |line: &str| match read(line).unwrap().verb {
        Verb::Kill { signal, all, .. } => (signal, all),
        other => panic!("{other:?}"),
    };
    assert_eq!(signal("kill web"), (15, false));
    assert_eq!(signal("kill --all web SIGHUP"), (1, true));
    assert_eq!(signal("kill web 9 -a"), (9, true));
}

#[test]
fn the_monitor_has_a_log_of_its_own() {
    let call = read("--root /r monitor --id a --bundle /b --log /l --exit-file /e --runtime /runc --runtime-root /q").unwrap();
    let Verb::Monitor(options) = call.verb else { panic!("{:?}", call.verb) };
    assert_eq!((call.log.file, options.log, options.log_bytes_max), (None, "/l".into(), 10 << 20));
    assert_eq!(options.runtime, Some(("/runc".into(), Some("/q".into()))));
}

#[test]
fn refusals_name_what_they_refuse() {
    let cases = [
        ("fly", "unknown verb \"fly\""),
        ("exec web", "exec: give a program"),
        ("exec --user root web id", "exec --user \"root\": give UID or UID:GID as numbers"),
        ("exec --cwd / --process /p web", "exec --cwd: belongs into the file of --process"),
        ("exec --cgroup ../x web id", "exec --cgroup \"../x\""),
        ("ps -f x web", "ps --format \"x\": use table or json"),
        ("events --interval 0s web", "events --interval \"0s\": give a duration"),
        ("update --memory x web", "update --memory \"x\": give a size"),
        ("update --cpu-share -1 web", "update --cpu-share \"-1\": give a number"),
        ("update -r - --memory 1m web", "update --memory: belongs into the file of --resources"),
        ("update --mem-bw-schema L3:0=1 web", "update --mem-bw-schema \"L3:0=1\": give a single line"),
        ("create --preserve-fds x web", "create --preserve-fds \"x\": give a number"),
        ("create --keep web", "create --keep: only run deletes"),
        ("create --detach web", "create --detach: create always returns"),
        ("create --fly web", "create: unknown option --fly"),
        ("create", "create: give exactly one container id"),
        ("create a b", "create: give exactly one container id"),
        ("start", "start: give exactly one container id"),
        ("kill web NOPE", "kill: \"NOPE\" is no signal"),
        ("delete --force=perhaps web", "--force takes no value"),
        ("--rootless perhaps pause web", "--rootless \"perhaps\": use true, false or auto"),
        ("--root", "--root needs a value"),
        ("--root= list", "--root needs a value"),
        ("monitor --id a", "monitor: --bundle is missing"),
        ("monitor --id a --bundle b --log l --exit-file e --socket s --runtime r", "monitor --socket: "),
        ("monitor --id a --bundle b --log l --exit-file e --log-max-bytes 1", "monitor --log-max-bytes \"1\""),
        ("monitor --id a --bundle b --log l --exit-file e --tty-patience-ms 1", "monitor --tty-patience-ms: belongs to --tty"),
        ("monitor --id a --bundle b --log l --exit-file e --tty t --tty-patience-ms x", "monitor --tty-patience-ms \"x\""),
        ("monitor --id a --bundle b --log l --exit-file e --tty t --tty-patience-ms 3600001", "monitor --tty-patience-ms \"3600001\""),
    ];
    for (line, expected) in cases {
        let error = read(line).expect_err(line).why;
        assert!(error.starts_with(expected), "{line}: {error}");
    }
}

#[test]
fn help_is_given_wherever_it_is_asked_for() {
    for line in
        ["", "--debug", "help", "h", "help state", "--help fly", "--version --help", "state --help", "exec -h web true", "kill web -h"]
    {
        assert_eq!(read(line).unwrap().verb, Verb::Help, "{line}");
    }
    assert_eq!(read("--version fly").unwrap().verb, Verb::Version);
    for (line, code) in [("fly --help", 3), ("help fly", 3), ("state --help --fly", 1), ("--version --fly", 1)] {
        assert_eq!(read(line).unwrap_err().code, code, "{line}");
    }
}

#[test]
fn an_empty_value_is_none() {
    let read = |args: &[&str]| parse(args.iter().map(OsString::from)).unwrap();
    assert_eq!(read(&["--log", "", "--log-format=", "create", "--bundle", "", "web"]), read(&["create", "web"]));
    assert_eq!(read(&["exec", "--cwd=", "--user", "", "--process=", "web", "id"]), read(&["exec", "web", "id"]));
    assert_eq!(read(&["update", "--memory", "", "web"]), read(&["update", "web"]));
    assert_eq!(read(&["kill", "web", ""]), read(&["kill", "web", "TERM"]));
}
