//! Debian's Docker with this runtime added: the same scripts under runc and under ours, which must print the same.
//!
//! Started by the tests on directories of its own, without a network bridge and without rules of a packet filter.

mod common;

use common::engines::{Case, Docker, Runtime, installed};

/// `$D` is docker, `$R` `docker run` and `$C` `docker create` with the runtime, `$N` a name of the case's own, `$T` a directory of the host's.
fn compare(cases: &[Case]) {
    if !installed(&["dockerd", "containerd", "runc"]) {
        return;
    }
    let docker = Docker::start();
    docker.compare(cases);
    docker.assert_nothing_is_left();
}

const fn case(name: &'static str, script: &'static str) -> Case {
    Case { name, script }
}

#[test]
fn what_a_container_sees() {
    compare(&[
        case(
            "plain",
            r#"$R --rm bb sh -c 'id; umask; pwd; hostname | wc -c; env | sort; cat /proc/self/limits /proc/self/oom_score_adj
               grep -E "^(Cap|NoNew|Seccomp|Uid|Gid|Groups|SigPnd|SigBlk|SigCgt|Shd)" /proc/self/status; ls /proc/self/fd; cat /proc/self/sessionid; echo
               cat /proc/self/cgroup; ls -A / /sys; cd /dev; ls -A; stat -c "%n %F %t:%T %a %u:%g" * pts/*; readlink fd; readlink ptmx'"#,
        ),
        // Of what is masked and of the tmpfs above the cgroups only that they are mounts: docs/runtime-fields.md, "Under engines".
        case(
            "mounts",
            r#"$R --rm bb sh -c 'cut -d" " -f4- /proc/self/mountinfo | sed -E "s/ - .*//" | grep -vE " /sys/fs/cgroup |/unified " |
               sed -E "s, (/proc/(acpi|keys|timer_list|scsi|asound|kcore)|/sys/firmware) .*, \1,; s,^.* (/proc/),\1,; s/master:[0-9]+//; s,^/[^ ]*/engine[^/]*,,"'
               $R --rm bb sh -c 'cat /proc/keys /proc/timer_list | wc -c; ls -A /proc/acpi /sys/firmware; echo 1 >/proc/sys/kernel/panic; ls /proc/sysrq-trigger && echo s >/proc/sysrq-trigger'"#,
        ),
        case(
            "identity",
            r#"$R --rm --user 1000:2000 --group-add 3000 -w /work -e A=b -e PATH=/bin:/x --hostname somewhere --domainname example.org bb \
                 sh -c 'id; pwd; hostname; hostname -f; cat /proc/sys/kernel/domainname; env | sort; cat /etc/hostname; grep -E "^(Cap|Groups)" /proc/self/status; echo to >/dev/stdout'
               $R --rm --user user -w /made/for/it bb sh -c 'id; pwd; stat -c %u:%g:%a .'
               $R --rm --user nobody bb id; echo $?"#,
        ),
        case(
            "files",
            r#"mkdir -p $T/dir; echo host >$T/dir/file; chmod 755 $T
               $R --rm --read-only --tmpfs /tmp --tmpfs /new:size=64k,mode=1770,uid=5 -v $T/dir:/ro:ro -v $T/dir:/rw -v $T/dir/file:/data/file bb sh -c '
                 touch /x /ro/x /new/x /rw/x; ls -l /new/x | cut -c1-10; cat /ro/file /data/file; stat -c "%a %u" /tmp /new; df -k /new | tail -1; dd if=/dev/zero of=/new/big bs=1k count=100'
               ls $T/dir
               $R --rm --mount type=tmpfs,destination=/m,tmpfs-size=1m,tmpfs-mode=700 --mount type=bind,source=$T/dir,destination=/b,readonly,bind-propagation=rslave bb \
                 sh -c 'grep -E " /(m|b) " /proc/self/mountinfo | cut -d" " -f5,6; touch /b/y'"#,
        ),
        case(
            "volumes",
            r#"$R --rm -v $N:/data bb sh -c 'cat /data/file; echo more >/data/more'; $R --rm -v $N:/other bb sh -c 'cat /other/*'
               $R --rm -v $N:/other:ro bb touch /other/x; $D volume rm $N
               $R --rm -v /data bb ls /data"#,
        ),
        case(
            "host namespaces",
            r#"same() { [ "$1" = "$2" ] && echo same || echo other; }
               for kind in pid ipc uts; do
                 host=$(readlink /proc/self/ns/$kind); inner=$($R --rm --$kind host bb readlink /proc/self/ns/$kind); echo $kind $(same "$host" "$inner")
                 inner=$($R --rm bb readlink /proc/self/ns/$kind); echo $kind $(same "$host" "$inner")
               done
               $R --rm --pid host bb sh -c 'test -d /proc/'$$' && echo sees the host'
               $R --rm --uts host bb sh -c 'hostname x; hostname' | sed "s/$(hostname)/HOST/"
               for mode in host private; do echo $mode $(same $(readlink /proc/self/ns/cgroup) $($R --rm --cgroupns $mode bb readlink /proc/self/ns/cgroup)); done
               $R --rm --cgroupns private bb sh -c 'cat /proc/self/cgroup'"#,
        ),
        case(
            "joined namespaces",
            r#"$R -d --name $N --ipc shareable --hostname theirs bb sleep 1000
               $D run --rm --runtime $RUNTIME --network container:$N --ipc container:$N --pid container:$N bb sh -c '
                 hostname; cat /proc/1/cmdline; for kind in net ipc pid; do [ $(readlink /proc/1/ns/$kind) = $(readlink /proc/self/ns/$kind) ] && echo $kind; done'
               $D kill $N; $D rm $N"#,
        ),
    ]);
}

#[test]
fn privileges() {
    compare(&[
        case(
            "capabilities",
            r#"$R --rm --cap-drop ALL bb grep Cap /proc/self/status
               $R --rm --cap-add NET_ADMIN --cap-add SYS_TIME --cap-drop CHOWN bb grep Cap /proc/self/status
               $R --rm --cap-drop ALL --cap-add CHOWN --user 1000 bb grep Cap /proc/self/status
               $R --rm --cap-drop NET_RAW --cap-drop CHOWN bb sh -c 'chown 5 /data/file; echo $?'"#,
        ),
        case(
            "seccomp",
            r#"echo '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}' >$T/profile
               $R --rm --security-opt seccomp=$T/profile bb sh -c 'mkdir /x; echo $?; grep Seccomp /proc/self/status'
               $R --rm --security-opt seccomp=unconfined bb sh -c 'mkdir /x; echo $?; unshare -U true; echo $?; grep Seccomp /proc/self/status'
               $R --rm bb sh -c 'unshare -U true; unshare -m true; mount -t tmpfs x /tmp; echo $?'
               $R --rm --security-opt no-new-privileges bb sh -c 'grep -E "NoNew|Cap" /proc/self/status'
               $R --rm --security-opt apparmor=unconfined --security-opt label=disable bb echo unconfined"#,
        ),
        case(
            "devices",
            r#"$R --rm --device /dev/zero:/dev/xzero:r bb sh -c 'stat -c "%n %t:%T %a" /dev/xzero; head -c 3 /dev/xzero | od -c; echo x >/dev/xzero; cat /sys/fs/cgroup/devices/devices.list | sort'
               $R --rm --device-cgroup-rule 'b 7:* rmw' bb sh -c 'grep "b 7" /sys/fs/cgroup/devices/devices.list; mknod /tmp/l b 7 0; mknod /tmp/k b 8 0; head -c1 /tmp/k | od -c'"#,
        ),
        case(
            "limits of processes",
            r#"$R --rm --ulimit nofile=100:200 --ulimit core=0 --ulimit nproc=50:60 --ulimit cpu=10 bb sh -c 'ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/limits'
               $R --rm --oom-score-adj 500 bb cat /proc/self/oom_score_adj
               $R --rm --sysctl net.ipv4.ip_unprivileged_port_start=7 --sysctl kernel.msgmax=1234 bb sh -c 'cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax'
               $R --rm --sysctl kernel.panic=7 bb true >/dev/null; echo $?"#,
        ),
        case(
            "shared memory",
            r#"$R --rm --shm-size 1m bb sh -c 'df -k /dev/shm | tail -1'; $R --rm --ipc none bb sh -c 'ls -A /dev; grep -c shm /proc/self/mounts'"#,
        ),
    ]);
}

/// Not compared: runc fails where it lacks a capability itself, which ours then leaves out.
#[test]
fn privileged() {
    if !installed(&["dockerd", "containerd"]) {
        return;
    }
    let docker = Docker::start();
    let script = r#"$R --rm --privileged bb sh -c 'mount -t tmpfs x /tmp && echo mounted; mknod /tmp/n b 254 0 && echo made; test -w /proc/sys/kernel/panic && echo writable
          cat /sys/fs/cgroup/devices/devices.list; grep -E "^(NoNewPrivs|Seccomp):" /proc/self/status; grep -cE " /proc/|/sys/firmware" /proc/self/mountinfo; test -e /dev/kmsg && echo devices'
        $R -d --name $N bb sleep 1000 >/dev/null; $D exec --privileged $N grep CapEff /proc/self/status >$T/exec
        $R --rm --privileged bb grep CapEff /proc/self/status | diff - $T/exec && echo the same capabilities; $D rm -f $N"#;
    let expected = "mounted\nmade\nwritable\na *:* rwm\nNoNewPrivs:\t0\nSeccomp:\t0\n0\ndevices\nthe same capabilities\nNAME";
    assert_eq!(docker.shell(Runtime::Ours, "privileged", script), (expected.to_owned(), 0));
    docker.assert_nothing_is_left();
}

/// The files of the container's cgroups, from inside.
const LIMITS: &str = r#"cd /sys/fs/cgroup; for file in memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes memory/memory.swappiness
    memory/memory.oom_control cpu/cpu.shares cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpuset/cpuset.cpus cpuset/cpuset.mems pids/pids.max
    blkio/blkio.throttle.read_bps_device blkio/blkio.throttle.write_iops_device; do echo $file $(cat $file); done"#;

#[test]
fn limits() {
    if !installed(&["dockerd", "containerd", "runc"]) {
        return;
    }
    let docker = Docker::start();
    std::fs::create_dir_all(docker.path("limits")).unwrap();
    let limits = docker.path("limits/limits.sh");
    std::fs::write(&limits, LIMITS.replace('\n', " ")).unwrap();
    docker.compare(&[
        case(
            "all",
            r#"$R --rm -v $T/../../limits:/l --memory 64m --memory-reservation 32m --memory-swappiness 10 --cpu-shares 512 --cpu-period 50000 --cpu-quota 25000 --cpuset-cpus 0 \
                 --cpuset-mems 0 --pids-limit 20 --device-read-bps /dev/zero:1mb bb sh /l/limits.sh 2>/dev/null || echo refused
               $R --rm -v $T/../../limits:/l --memory 64m --memory-reservation 32m --memory-swappiness 10 --cpu-shares 512 --cpu-period 50000 --cpu-quota 25000 --cpuset-cpus 0 \
                 --cpuset-mems 0 --pids-limit 20 bb sh /l/limits.sh
               $R --rm -v $T/../../limits:/l --cpus 0.5 --pids-limit -1 --oom-kill-disable --memory 32m bb sh /l/limits.sh"#,
        ),
        case(
            "update",
            r#"$R -d --name $N -v $T/../../limits:/l --memory 64m bb sleep 1000
               $D update --memory 48m --memory-swap 48m --cpus 0.25 --pids-limit 33 --cpu-shares 100 --cpuset-cpus 1 $N >/dev/null; echo $?; $D exec $N sh /l/limits.sh
               $D update --memory 4k $N >/dev/null 2>&1; echo $?; $D update --restart always $N >/dev/null; $D exec $N sh /l/limits.sh | head -2
               $D inspect -f '{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}' $N; $D rm -f $N"#,
        ),
        case(
            "stats and top",
            r#"$R -d --name $N --memory 64m bb sh -c 'sleep 1001 & exec sleep 1000'
               for wait in $(seq 100); do [ $($D top $N | grep -c sleep) = 2 ] && break; done
               $D stats --no-stream --format '{{.Name}} {{.PIDs}} {{.MemUsage}}' $N | sed -E 's/[0-9.]+[KM]iB \//USED \//'
               $D stats --no-stream --format '{{.CPUPerc}} {{.NetIO}}' $N | sed -E 's/[0-9.]+%/PERCENT/'
               $D top $N -o args; $D top $N -eo user,comm
               $D kill $N; $D rm $N"#,
        ),
        case(
            "out of memory",
            // Docker calls a container killed for memory if the event comes after it began to listen and before the container's end: the first
            // sees to both, of the second it is chance.
            r#"$R -d --name $N --memory 16m --memory-swap 16m bb sh -c 'while [ ! -e /go ]; do sleep 0.05; done; tail /dev/zero; echo ended $?; while [ ! -e /end ]; do sleep 0.05; done' >/dev/null; $D exec $N touch /go
               for wait in $(seq 200); do $D events --since 0 --until $(date +%s) --filter event=oom --filter container=$N | grep -q oom && break; sleep 0.1; done
               $D exec $N touch /end; $D wait $N; $D logs $N; $D inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' $N; $D rm $N
               $R --name $N --memory 16m --memory-swap 16m bb tail /dev/zero; $D inspect -f '{{.State.ExitCode}}' $N; $D rm $N"#,
        ),
        case(
            "too many processes",
            r#"$R --rm --pids-limit 5 bb sh -c 'for n in 1 2 3 4 5 6; do sleep 1000 & done; echo all' 2>&1 | sort | uniq | sed 's/line [0-9]*//'"#,
        ),
    ]);
    docker.assert_nothing_is_left();
}

#[test]
fn a_life() {
    compare(&[
        case(
            "exit codes",
            r#"$R --rm bb sh -c 'exit 7'; echo $?; $R --rm bb true; echo $?; $R --rm bb sh -c 'kill -9 $$'; echo $?; $R --rm --init bb sh -c 'kill -9 $$'; echo $?
               $R --rm bb nosuch >/dev/null 2>&1; echo $?; $R --rm bb /etc/passwd >/dev/null 2>&1; echo $?; $R --rm bb /etc >/dev/null 2>&1; echo $?
               $R --rm -w /etc/passwd bb true >/dev/null 2>&1; echo $?; $R --rm -v /nosuch/place:/x:ro bb ls -d /x; rmdir /nosuch/place /nosuch
               $R --rm --user 7777777777 bb true >/dev/null 2>&1; echo $?
               $R --name $N bb nosuch >/dev/null 2>&1; $D inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}' $N; $D rm $N"#,
        ),
        case(
            "stop",
            r#"state() { $D inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} {{.State.Error}} {{.RestartCount}}' $N; }
               $R -d --name $N bb sh -c 'trap "echo bye; exit 3" TERM; echo ready; while :; do sleep 0.05; done'; until $D logs $N | grep -q ready; do sleep 0.05; done
               $D stop -t 60 $N; state; $D logs $N; $D start $N; until $D logs $N | grep -c ready | grep -q 2; do sleep 0.05; done; state; $D stop -t 60 $N; $D logs $N; $D rm $N
               $R -d --name $N --stop-signal USR1 bb sh -c 'trap "exit 4" USR1; touch /ready; while :; do sleep 0.05; done'; until $D exec $N test -e /ready; do sleep 0.05; done
               $D stop -t 60 $N; state; $D rm $N
               $R -d --name $N bb sleep 1000; $D stop -t 0 $N; state; $D rm $N
               $R -d --name $N --init bb sleep 1000; until $D top $N 2>/dev/null | grep -v init | grep -q "sleep 1000"; do sleep 0.05; done; $D stop -t 60 $N; state; $D rm $N
               $R -d --name $N bb sleep 1000; $D rm $N; $D rm -f $N"#,
        ),
        case(
            "kill and wait",
            r#"$R -d --name $N bb sh -c 'trap "exit 5" HUP; touch /ready; while :; do sleep 0.05; done'; until $D exec $N test -e /ready; do sleep 0.05; done
               $D kill -s HUP $N; $D wait $N; $D kill $N; $D restart -t 0 $N; $D kill $N; $D wait $N; $D rm $N"#,
        ),
        case(
            "pause",
            r#"$R -d --name $N bb sleep 1000; until $D exec $N grep -q sleep /proc/1/comm; do sleep 0.05; done; $D pause $N; $D inspect -f '{{.State.Status}} {{.State.Paused}} {{.State.Running}}' $N; $D pause $N; $D exec $N true; echo $?
               $D top $N -o args; $D ps --filter name=$N --format '{{.Names}} {{.Status}}' | sed -E 's/Up .* (\(|second)/Up \1/; s/[0-9]+ seconds?//'
               $D unpause $N; $D unpause $N; $D inspect -f '{{.State.Status}}' $N; $D exec $N echo again; $D pause $N; $D kill $N; $D rm -f $N"#,
        ),
        case(
            "restart policy",
            r#"$R -d --name $N --restart on-failure:2 bb sh -c 'echo once; exit 6'; until [ "$($D inspect -f '{{.State.Status}}' $N)" = exited ]; do sleep 0.1; done
               $D inspect -f '{{.RestartCount}} {{.State.ExitCode}}' $N; $D logs $N; $D rm $N"#,
        ),
        case(
            "attach and start",
            r#"$C --name $N -i bb cat; echo typed | $D start -a -i $N; echo more | $D start -a -i $N; $D logs $N; $D rm $N
               echo piped | $R --rm -i bb sh -c 'cat; echo error >&2; exit 2'; echo $?
               $D inspect $N >/dev/null; echo $?"#,
        ),
        case(
            "logs",
            r#"$R -d --name $N bb sh -c 'echo one; echo two >&2; until [ -e /go ]; do sleep 0.02; done; echo three'
               : >$T/err; $D logs -f $N >$T/out 2>$T/err & until grep -q two $T/err; do sleep 0.05; done; $D exec $N touch /go; wait $!; cat $T/out $T/err; $D logs --tail 1 $N; $D rm $N
               $R --rm bb sh -c 'head -c 300000 /dev/zero | tr "\0" x' | wc -c"#,
        ),
        case(
            "copy",
            r#"$R -d --name $N bb sleep 1000; echo text >$T/file; $D cp $T/file $N:/tmp/in; $D exec $N cat /tmp/in; $D exec $N sh -c 'echo out >/tmp/out'; $D cp $N:/tmp/out $T/back; cat $T/back
               $D cp $N:/etc/passwd - | tar -xO; $D diff $N | sort; $D rm -f $N"#,
        ),
        case(
            "health",
            r#"$R -d --name $N --health-cmd 'echo checked; test -e /ok' --health-interval 100ms --health-retries 2 --health-timeout 60s bb sleep 1000
               until [ "$($D inspect -f '{{.State.Health.Status}}' $N)" = unhealthy ]; do sleep 0.05; done; echo unhealthy
               $D inspect -f '{{(index .State.Health.Log 0).Output}}{{(index .State.Health.Log 0).ExitCode}}' $N; $D exec $N touch /ok
               until [ "$($D inspect -f '{{.State.Health.Status}}' $N)" = healthy ]; do sleep 0.05; done; echo healthy
               $D inspect -f '{{range .State.Health.Log}}{{.Output}}{{println .ExitCode}}{{end}}' $N | grep . | tail -n 2; $D rm -f $N"#,
        ),
        case(
            "init",
            r#"$R --rm --init bb sh -c 'cat /proc/1/comm; (sleep 0 & echo $! >/tmp/pid); for wait in $(seq 600); do [ -d /proc/$(cat /tmp/pid) ] || break; sleep 0.1; done; grep -l "State:.Z" /proc/[0-9]*/status'; echo $?
               $R --rm --init bb sh -c 'exit 9'; echo $?"#,
        ),
        case(
            "events",
            r#"since=$(date +%s.%N); $R --name $N bb true; $D start -a $N; $D rm $N; $D events --since $since --until $(date +%s.%N) --filter container=$N --format '{{.Action}} {{.Actor.Attributes.exitCode}}'"#,
        ),
    ]);
}

#[test]
fn exec_and_terminals() {
    compare(&[
        case(
            "exec",
            r#"$R -d --name $N -e A=of-container --user 1000 -w /work bb sleep 1000; x="$D exec"
               $x $N sh -c 'id; pwd; env | sort; grep -E "^(Cap|NoNew|Seccomp|Groups)" /proc/self/status; cat /proc/self/limits /proc/self/cgroup /proc/self/oom_score_adj; readlink /proc/self/ns/pid | cut -c1-4'
               $x -u root -w /tmp -e A=of-exec -e B=c $N sh -c 'id; pwd; env | sort; grep Cap /proc/self/status'
               $x -u user:extra $N id; $x -u 5:6 $N id
               $x $N sh -c 'exit 8'; echo $?; $x $N sh -c 'kill -9 $$'; echo $?; $x $N nosuch >/dev/null 2>&1; echo $?; $x $N /etc/passwd >/dev/null 2>&1; echo $?; $x -w /nosuch $N pwd >/dev/null 2>&1; echo $?
               echo piped | $x -i $N cat; echo not passed | $x $N cat; $x -d $N sh -c 'sleep 0.1; touch /tmp/detached'; until $x $N test -e /tmp/detached; do sleep 0.05; done; echo detached
               $x $N sh -c 'head -c 200000 /dev/zero' | wc -c; $x $N sh -c 'echo out; echo err >&2' 2>/dev/null
               $D rm -f $N; $x $N true; echo $?"#,
        ),
        case(
            "exec at once",
            r#"$R -d --name $N bb sleep 1000; for n in 1 2 3 4 5 6 7 8 9 10; do $D exec $N sh -c "echo $n; exit $n" & done >$T/out; wait; sort -n $T/out; $D exec $N sh -c 'ls -d /proc/[0-9]*' | wc -l; $D rm -f $N"#,
        ),
        case(
            "a terminal",
            r#"in_terminal() { script -qec "stty rows 33 cols 99; $1" /dev/null </dev/null >$T/tty; code=$?; grep -av "failed to resize tty" $T/tty | tr -d '\r' | sed 's/^^@//; /^$/d'; return $code; }
               in_terminal "$R --rm -t bb sh -c 'tty; until stty size 2>/dev/null | grep 33; do sleep 0.05; done; test -t 0 -a -t 1 -a -t 2 && echo terminals; stat -c \"%t:%T %u:%g %a\" /dev/console /dev/pts/0; ls /dev | grep console; exit 3'"; echo $?
               in_terminal "$R --rm -it --user 1000 bb sh -c 'tty; stat -c %u:%a /dev/pts/0; echo to the terminal >/dev/tty'"
               $R -d --name $N bb sleep 1000
               in_terminal "$D exec -it $N sh -c 'tty; until stty size 2>/dev/null | grep 33; do sleep 0.05; done; test -t 0 && echo terminal; exit 4'"; echo $?; $D rm -f $N
               $R -d -t --name $N bb sh -c 'tty; read line; echo got $line'; until $D logs $N | grep -q pts; do sleep 0.05; done; $D inspect -f '{{.Config.Tty}}' $N; $D rm -f $N"#,
        ),
    ]);
}

#[test]
fn containers_outlive_a_killed_daemon() {
    if !installed(&["dockerd", "containerd", "runc"]) {
        return;
    }
    let mut docker = Docker::start();
    let (_, code) = docker.shell(Runtime::Ours, "life", r#"$R -d --name life bb sh -c 'trap "exit 3" TERM; touch /ready; while :; do sleep 0.05; done'; until $D exec life test -e /ready; do sleep 0.05; done"#);
    assert_eq!(code, 0);
    docker.kill_and_start();
    let script = r#"$D inspect -f '{{.State.Status}}' life; $D exec life echo inside; $D pause life >/dev/null; $D unpause life >/dev/null; $D stop -t 60 life >/dev/null
        $D inspect -f '{{.State.ExitCode}}' life; $D rm life >/dev/null"#;
    assert_eq!(docker.shell(Runtime::Ours, "life", script).0, "running\ninside\n3");
    docker.assert_nothing_is_left();
}
