//! Command lines that need no cluster: contexts, refusals, exit codes, and the words that go with them.

mod common;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::{Ended, User};

fn check(user: &User, line: &str, code: i32, stdout: &str, stderr: &str) {
    let expected = Ended { code, stdout: stdout.to_owned(), stderr: stderr.to_owned() };
    assert_eq!(user.run(line), expected, "{line}");
}

#[test]
fn contexts_are_created_chosen_and_forgotten() {
    let user = User::new();
    check(
        &user,
        "context ls",
        0,
        "",
        "no contexts: rclusterctl lab up makes one, and so does rclusterctl context create NAME --managers HOST:PORT\n",
    );
    check(&user, "context create a --managers 10.0.0.1:7443,10.0.0.2:7443", 0, "", "context a is written and current\n");
    check(&user, "context create b --managers 10.0.1.1:7443", 0, "", "context b is written; rclusterctl context use b makes it current\n");
    check(
        &user,
        "context ls",
        0,
        "CURRENT   NAME   MANAGERS                      LAB\n*         a      10.0.0.1:7443,10.0.0.2:7443\n          b      10.0.1.1:7443\n",
        "",
    );
    check(&user, "context use b", 0, "", "context b is current\n");
    check(&user, "context ls -o name", 0, "context/a\ncontext/b\n", "");
    check(&user, "context rm b", 0, "", "context b is forgotten\n");
    check(&user, "context use b", 1, "", "error: there is no context b\nhint: there are a\n");
    check(&user, "context create a --managers h:1", 1, "", "error: there is a context a already\nhint: rclusterctl context rm a\n");
    check(
        &user,
        "context create c",
        2,
        "",
        "error: a context needs the managers' addresses\nhint: give --managers HOST:PORT,… or --from FILE\n",
    );
    check(
        &user,
        "context create c --managers host",
        2,
        "",
        "error: \"host\" is not a manager's address\nhint: write HOST:PORT, such as 10.90.0.11:7443\n",
    );
}

#[test]
fn a_broken_context_file_is_named() {
    let user = User::new();
    user.file("config.yaml", "contexts: [1]\n");
    let ended = user.run("context ls");
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.starts_with(&format!("error: read contexts in {}: ", user.path("config.yaml").display())), "{}", ended.stderr);
}

#[test]
fn without_a_cluster_the_way_to_one_is_told() {
    check(
        &User::new(),
        "ps",
        2,
        "",
        "error: no cluster is chosen: there is no current context\nhint: make a lab with rclusterctl lab up, choose one with rclusterctl \
         context use NAME, or give --managers HOST:PORT\n",
    );
}

#[test]
fn managers_that_do_not_answer_are_named() {
    // Bound and not listening: nobody else gets the port, and connections are refused.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let user = User::new();
    user.run(&format!("context create a --managers 127.0.0.1:{port}"));
    let ended = user.run("get services");
    assert_eq!(ended.code, 3);
    assert!(ended.stderr.starts_with("error: no manager can be reached: 127.0.0.1:"), "{}", ended.stderr);
    assert!(ended.stderr.contains(" (context a)\n"), "{}", ended.stderr);
    assert!(ended.stderr.ends_with("rclusterctl context ls\n"), "{}", ended.stderr);
}

#[test]
fn what_is_not_built_yet_is_refused_by_name() {
    for (line, verb) in
        [("run web.1 -- sh", "run"), ("lab loss n1 20%", "lab loss"), ("get volumes", "get volumes"), ("image build .", "image build")]
    {
        check(&User::new(), line, 2, "", &format!("error: rclusterctl {verb} is not built yet\nhint: README's table says what works\n"));
    }
}

#[test]
fn a_wrong_word_is_a_usage_error() {
    let user = User::new();
    for line in ["deplyo x.yaml", "get serivces", "scale web", "node label n1 zone", "deploy", "ps --frobnicate", "deploy x.yaml --prune"] {
        let ended = user.run(line);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{line}: {}", ended.stderr);
        assert!(ended.stderr.starts_with("error: "), "{line}: {}", ended.stderr);
    }
    assert_eq!(user.run("--version").stdout, user.run("version").stdout);
    assert!(user.run("--help").stdout.contains("Exit codes:"));
    assert!(user.run("completion bash").stdout.contains("rclusterctl"));
}

#[test]
fn a_bad_manifest_is_refused_before_any_manager_is_asked() {
    let user = User::new();
    let file = user.file("web.yaml", "kind: Service\nname: web\nspec:\n  replcas: 3\n");
    let expected = format!(
        "error: {file}:4:3: unknown key \"replcas\" in spec of service web; did you mean \"replicas\"?\nhint: nothing was deployed\n"
    );
    check(&user, &format!("deploy {file} --managers 127.0.0.1:1"), 1, "", &expected);
    let missing = user.path("none.yaml").display().to_string();
    let ended = user.run(&format!("plan {missing} --managers 127.0.0.1:1"));
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (1, format!("error: read {missing}: No such file or directory (os error 2)\n").as_str())
    );
}

#[test]
fn what_works_on_this_host_takes_no_managers_and_prints_what_it_can() {
    let user = User::new();
    let refused = |line: &str, why: &str, hint: &str| check(&user, line, 2, "", &format!("error: {why}\nhint: {hint}\n"));
    let why = |verb: &str, flag: &str| format!("cluster {verb} takes no {flag}: it works on this host, and asks no managers for it");
    refused("--managers h:1 cluster init --name m1", &why("init", "--managers"), "leave --managers out");
    refused("--context a cluster recover --yes", &why("recover", "--context"), "leave --context out");
    refused("-o yaml cluster init --name m1", "cluster init prints text or JSON", "give -o json, or leave --output out");
    refused("-o json cluster restore --yes", "cluster restore prints text only", "leave --output out");
    // Where the program is, it is told what else was said.
    let program = PathBuf::from(user.file("rcluster-manager", "#!/bin/sh\necho \"$@\"\n"));
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let told = |line: &str| {
        let output = user.command(line).env("RCLUSTER_BIN_DIR", user.home.path()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(told("-o json cluster init --name m1"), "init --name m1 --json\n");
    assert_eq!(told("-o json cluster init --name m1 --json"), "init --name m1 --json\n");
    assert_eq!(told("-o table cluster join --join a:1"), "join --join a:1\n");
}
