//! Debian's containerd and its `ctr` with this runtime under the shim `io.containerd.runc.v2`: the same scripts under runc and under ours,
//! which must print the same.

mod common;

use common::engines::{Case, Containerd, Runtime, compare, image, installed, run_shell};

/// `$C` is ctr, `$R` `ctr run` with the runtime, `$I` the image, `$N` a name of the case's own, `$T` a directory of the host's.
fn shell(containerd: &Containerd, runtime: Runtime, name: &str, script: &str) -> (String, i32) {
    let (binary, short) = match runtime {
        Runtime::Runc => ("/usr/sbin/runc", "r"),
        Runtime::Ours => (env!("CARGO_BIN_EXE_rcluster-runtime"), "o"),
    };
    let name = format!("{}-{short}", name.replace(' ', "-"));
    let scratch = containerd.path("scratch").join(&name);
    std::fs::create_dir_all(&scratch).unwrap();
    let ctr = format!("ctr --address {}", containerd.path("containerd.sock").display());
    let mut command = containerd.command(300);
    command.arg("sh").env("I", "localhost/bb:latest").env("N", &name).env("T", &scratch);
    // Each container's cgroup lies below the test's own.
    let run = format!("{ctr} run --runtime io.containerd.runc.v2 --runc-binary {binary} --cgroup /{}/{name}", containerd.cgroup);
    command.env("R", run).env("C", ctr);
    run_shell(command, script, &[(name.as_str(), "NAME"), (scratch.to_str().unwrap(), "SCRATCH"), (binary, "RUNTIME")])
}

/// An image as `docker save` writes it (Docker's image specification 1.2), which `ctr image import` reads.
const IMPORT: &str = r#"
    tar -C $T/image -cf $T/layer.tar . && sum=$(sha256sum <$T/layer.tar | cut -d' ' -f1)
    echo '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:'$sum'"]}}' >$T/config.json
    echo '[{"Config":"config.json","RepoTags":["localhost/bb:latest"],"Layers":["layer.tar"]}]' >$T/manifest.json
    tar -C $T -cf $T/bb.tar manifest.json config.json layer.tar && $C image import $T/bb.tar && $C image ls -q"#;

const fn case(name: &'static str, script: &'static str) -> Case {
    Case { name, script }
}

#[test]
fn as_under_runc() {
    if !installed(&["containerd", "ctr", "runc"]) {
        return;
    }
    let containerd = Containerd::start();
    image(&containerd.path("scratch/import-o/image"));
    let (told, code) = shell(&containerd, Runtime::Ours, "import", IMPORT);
    assert!(code == 0 && told.contains("localhost/bb:latest"), "{told}");
    let cases = [
        case(
            "run",
            r#"$R --rm $I $N sh -c 'id; pwd; env | sort; grep -E "^(Cap|NoNew|Seccomp|Groups)" /proc/self/status; cat /proc/self/limits; ls -A /dev; exit 7'; echo $?
               $R --rm --env A=b --cwd /work --hostname h --read-only $I $N sh -c 'id; pwd; echo $A; hostname; touch /x'; echo $?
               $R --rm $I $N sh -c 'kill -9 $$'; $R --rm $I $N sh -c 'echo out; echo err >&2' 2>/dev/null
               $R --rm $I $N nosuch >/dev/null 2>&1; echo $?; $C c rm $N 2>/dev/null; $C c ls -q | grep $N"#,
        ),
        case(
            "options",
            r#"mkdir $T/dir; $R --rm --mount type=bind,src=$T/dir,dst=/b,options=rbind:ro --memory-limit 33554432 --cpus 0.5 --cap-drop CAP_CHOWN --cap-add CAP_NET_ADMIN --seccomp \
                 --device /dev/zero $I $N sh -c 'touch /b/x; grep -E "Cap|Seccomp" /proc/self/status; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us; ls -l /dev/zero | cut -c1-10'
               $R --rm --net-host $I $N readlink /proc/self/ns/net | sed "s/$(readlink /proc/self/ns/net)/HOST/"
               $R --rm --rootfs $T/../import-o/image $N /bin/cat /data/file; $R --rm --no-pivot $I $N echo no pivot
               $R --rm --with-ns ipc:/proc/self/ns/ipc $I $N readlink /proc/self/ns/ipc | sed "s/$(readlink /proc/self/ns/ipc)/HOST/""#,
        ),
        case(
            "tasks",
            r#"$R -d --memory-limit 33554432 $I $N sleep 1000; $C task ls | grep $N | awk '{print $1,$3}'; $C task ps $N | wc -l
               $C task exec --exec-id e1 $N sh -c 'id; pwd; exit 5'; echo $?; $C task exec --exec-id e2 --cwd /tmp --user 1000 $N sh -c 'id; pwd'; $C task exec --exec-id e3 $N nosuch 2>/dev/null; echo $?
               $C task pause $N; $C task ls | grep $N | awk '{print $3}'; $C task exec --exec-id e4 $N true 2>/dev/null; echo $?; $C task resume $N; $C task ls | grep $N | awk '{print $3}'
               $C task metrics $N | awk '{print $1}'; $C task metrics --format json $N | grep -oE '"(pids|cpu|memory|blkio|throttling)":|"limit": ?33554432' | sort -u
               $C task rm $N 2>/dev/null; echo $?; $C task kill -s TERM $N; $C task kill -s KILL $N; until $C task ls | grep $N | grep -q STOPPED; do sleep 0.05; done; $C task rm $N; echo $?; $C c info $N | grep -c runc; $C c rm $N"#,
        ),
        case(
            "life",
            r#"$C c create --runtime io.containerd.runc.v2 $I $N sh >/dev/null; $C c ls | grep $N | awk '{print $1,$3}'; $C c rm $N
               $R -d $I $N sh -c 'trap "exit 3" TERM; touch /ready; while :; do sleep 0.05; done'; until $C task exec --exec-id look $N test -e /ready; do sleep 0.05; done
               $C task kill -s TERM $N; until $C task ls | grep $N | grep -q STOPPED; do sleep 0.05; done; $C task rm $N; echo $?
               $C c rm $N; $R -d $I $N sleep 1000; $C task rm -f $N; echo $?; $C c rm $N"#,
        ),
        case(
            "a terminal",
            r#"in_terminal() { script -qec "$1" /dev/null </dev/null >$T/tty; code=$?; grep -av "resize pty" $T/tty | tr -d '\r' | sed 's/^^@//; /^$/d'; return $code; }
               in_terminal "stty rows 33 cols 99; $R --rm -t $I $N sh -c 'tty; test -t 0 -a -t 1 && echo terminals; stat -c %t:%T:%a /dev/console; sleep 0.3; exit 3'"; echo $?
               $R -d $I $N sleep 1000; in_terminal "$C task exec -t --exec-id e $N sh -c 'tty; sleep 0.3; exit 4'"; echo $?; $C task rm -f $N >/dev/null; $C c rm $N"#,
        ),
    ];
    compare(&cases, |runtime, case| shell(&containerd, runtime, case.name, case.script));
    containerd.assert_nothing_is_left();
}

/// Not compared: runc would need CRIU.
#[test]
fn a_checkpoint_is_refused_and_changes_nothing() {
    if !installed(&["containerd", "ctr"]) {
        return;
    }
    let containerd = Containerd::start();
    image(&containerd.path("scratch/import-o/image"));
    assert_eq!(shell(&containerd, Runtime::Ours, "import", IMPORT).1, 0);
    let script =
        "$R -d $I $N sleep 1000; $C task checkpoint $N; echo $?; $C task ls | grep $N | awk '{print $3}'; $C task rm -f $N; $C c rm $N";
    let (told, _) = shell(&containerd, Runtime::Ours, "checkpoint", script);
    assert!(told.starts_with("1\nRUNNING"), "{told}");
    assert!(told.contains("checkpoint"), "{told}");
    containerd.assert_nothing_is_left();
}
