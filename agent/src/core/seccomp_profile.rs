//! Decides which system calls a container may make when its spec does not say (runtime-spec, config-linux.md "Seccomp").
//!
//! In: the capabilities in the container's bounding set and the machine's architecture. Out: the profile for `linux.seccomp`. What is not
//! allowed by name is answered EPERM, and what this profile does not know of ENOSYS, by the runtime.
//!
//! Equivalent to Docker's default (moby/profiles, `seccomp/default_linux.go`) on kernels this project runs on: a program that runs under
//! the one runs under the other. Left out are calls that act on the whole machine (modules, clocks, swap, kexec), that open a way into
//! much kernel code few programs need (bpf, io_uring, userfaultfd, perf events), that have no namespaces (the key rings), that make
//! namespaces or mounts, and that no kernel has any more. A capability gives back the calls that it guards in the kernel anyway.
//!
//! ptrace and reading another process's memory are allowed to all: since Linux 4.8 a filter cannot be escaped through a tracer.

use oci_spec::runtime::{Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall};

/// The machines whose profile is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    /// That of this program; on any other a container runs without a profile.
    pub const fn own() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }
}

/// Allowed to every container, by what they are about.
const ALLOWED: [&str; 15] = [
    PATHS,
    FILES,
    ATTRIBUTES,
    EVENTS,
    ASYNCHRONOUS,
    MEMORY,
    PROCESSES,
    IDENTITY,
    LIMITS,
    SCHEDULING,
    SIGNALS,
    TIME,
    SOCKETS,
    SYSTEM_V,
    SANDBOXES,
];

const PATHS: &str = "\
    access chdir chmod chown chown32 creat faccessat faccessat2 fchdir fchmodat fchmodat2 fchownat fstatat64 futimesat getcwd lchown \
    lchown32 link linkat listmount lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 readlink \
    readlinkat rename renameat renameat2 rmdir stat stat64 statfs statfs64 statmount statx symlink symlinkat truncate truncate64 umask \
    unlink unlinkat utime utimensat utimensat_time64 utimes";
const FILES: &str = "\
    _llseek cachestat close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 fallocate fchmod fchown fchown32 fcntl \
    fcntl64 fdatasync flock fstat fstat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 getdents getdents64 ioctl lseek pipe pipe2 \
    pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile sendfile64 splice sync sync_file_range syncfs tee \
    vmsplice write writev";
const ATTRIBUTES: &str = "\
    fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr lremovexattr lsetxattr \
    removexattr removexattrat setxattr setxattrat";
const EVENTS: &str = "\
    _newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 \
    fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch poll ppoll ppoll_time64 pselect6 pselect6_time64 select \
    signalfd signalfd4";
const ASYNCHRONOUS: &str = "\
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit";
const MEMORY: &str = "\
    brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal \
    msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease process_vm_readv process_vm_writev \
    remap_file_pages";
const PROCESSES: &str = "\
    execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list \
    get_thread_area getcpu getpgid getpgrp getpid getppid getsid gettid pause pidfd_open prctl ptrace restart_syscall rseq \
    set_robust_list set_thread_area set_tid_address setpgid setsid uretprobe vfork wait4 waitid waitpid";
const IDENTITY: &str = "\
    capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid getresuid32 \
    getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid \
    setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32";
const LIMITS: &str = "\
    getrandom getrlimit getrusage prlimit64 setrlimit sysinfo ugetrlimit uname";
const SCHEDULING: &str = "\
    getpriority ioprio_get ioprio_set sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield setpriority";
const SIGNALS: &str = "\
    kill pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn tgkill tkill";
const TIME: &str = "\
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 \
    times";
/// `socket` is not among them: see [`SOCKET_DOMAINS`]. What 32-bit x86 packs into `socketcall` cannot be told apart, and its C library makes
/// all its sockets so.
const SOCKETS: &str = "\
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg send sendmmsg \
    sendmsg sendto setsockopt shutdown socketcall socketpair";
const SYSTEM_V: &str = "\
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget \
    msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget";
const SANDBOXES: &str = "\
    landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp";

const X86_ONLY: &str = "\
    arch_prctl modify_ldt";
const ARM_ONLY: &str = "\
    arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2";

/// What a capability gives back.
const BY_CAPABILITY: [(Capability, &str); 14] = [
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
        lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname \
        setns syslog umount umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module finit_module init_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "ioperm iopl"),
    (Capability::SysTime, "clock_settime clock_settime64 settimeofday stime"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::SysNice, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];

/// The first domains of socket(2) are all allowed; of the rest these are (linux/socket.h). Not AF_ALG, the kernel's cryptography, and not
/// AF_VSOCK, which reaches the machine's host past every network namespace; nor what kernels no longer have.
const SOCKET_DOMAINS_BELOW: u64 = 12;
const SOCKET_DOMAINS: [u64; 25] = [13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45];

/// personality(2): 64 and 32-bit Linux, each also showing an old version (UNAME26), and the question for it. Not ADDR_NO_RANDOMIZE.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `CLONE_NEW*` of clone(2), but for CLONE_NEWTIME, which it does not take.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The profile of a container with these capabilities in its bounding set.
pub fn profile(capabilities: &[Capability], machine: Machine) -> LinuxSeccomp {
    let (architectures, of_machine) = match machine {
        Machine::X86_64 => (vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32], X86_ONLY),
        Machine::Aarch64 => (vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm], ARM_ONLY),
    };
    let held = BY_CAPABILITY.iter().filter(|(capability, _)| capabilities.contains(capability)).map(|(_, names)| *names);
    let texts = ALLOWED.into_iter().chain([of_machine]).chain(held);
    let mut names: Vec<String> = texts.flat_map(str::split_whitespace).map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    let mut rules = vec![rule(names, None)];
    rules.push(rule(vec!["socket".to_owned()], Some((LinuxSeccompOperator::ScmpCmpLt, SOCKET_DOMAINS_BELOW))));
    rules.extend(SOCKET_DOMAINS.map(|domain| rule(vec!["socket".to_owned()], Some((LinuxSeccompOperator::ScmpCmpEq, domain)))));
    rules.extend(PERSONALITIES.map(|kind| rule(vec!["personality".to_owned()], Some((LinuxSeccompOperator::ScmpCmpEq, kind)))));
    if !capabilities.contains(&Capability::SysAdmin) {
        rules.push(rule(vec!["clone".to_owned()], Some((LinuxSeccompOperator::ScmpCmpMaskedEq, NEW_NAMESPACES))));
        // Its flags are behind a pointer, where a filter cannot see them: programs fall back to clone.
        let mut clone3 = LinuxSyscall::default();
        clone3.set_names(vec!["clone3".to_owned()]).set_action(LinuxSeccompAction::ScmpActErrno).set_errno_ret(Some(ENOSYS));
        rules.push(clone3);
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(architectures))
        .set_syscalls(Some(rules));
    profile
}

/// Allows calls, or those whose first argument compares as said; a mask must leave nothing of it.
fn rule(names: Vec<String>, first_argument: Option<(LinuxSeccompOperator, u64)>) -> LinuxSyscall {
    let args = first_argument.map(|(op, value)| {
        let arg = LinuxSeccompArgBuilder::default().index(0usize).value(value).op(op);
        let arg = if op == LinuxSeccompOperator::ScmpCmpMaskedEq { arg.value_two(0u64) } else { arg };
        vec![arg.build().expect("every field has a default")]
    });
    let mut rule = LinuxSyscall::default();
    rule.set_names(names).set_action(LinuxSeccompAction::ScmpActAllow).set_args(args);
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(capabilities: &[Capability], name: &str) -> bool {
        let profile = profile(capabilities, Machine::X86_64);
        let rules = profile.syscalls().as_ref().expect("rules").iter();
        rules
            .filter(|rule| rule.args().is_none() && rule.action() == LinuxSeccompAction::ScmpActAllow)
            .any(|rule| rule.names().iter().any(|other| other == name))
    }

    #[test]
    fn what_acts_on_the_whole_machine_is_not_allowed() {
        for name in [
            "add_key",
            "bpf",
            "clone3",
            "create_module",
            "delete_module",
            "init_module",
            "io_uring_setup",
            "kcmp",
            "kexec_load",
            "keyctl",
            "mount",
            "move_pages",
            "nfsservctl",
            "open_by_handle_at",
            "perf_event_open",
            "pivot_root",
            "reboot",
            "request_key",
            "setns",
            "settimeofday",
            "swapon",
            "sysfs",
            "umount2",
            "unshare",
            "userfaultfd",
            "vm86",
        ] {
            assert!(!allowed(&[], name), "{name}");
        }
    }

    #[test]
    fn a_capability_gives_back_the_calls_it_guards() {
        for (capability, names) in BY_CAPABILITY {
            for name in names.split_whitespace() {
                assert!(!allowed(&[], name) && allowed(&[capability], name), "{capability:?} {name}");
            }
        }
    }

    #[test]
    fn each_call_has_one_subject() {
        let all = || ALLOWED.into_iter().chain([X86_ONLY]).flat_map(str::split_whitespace);
        let mut names: Vec<_> = all().collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count());
        assert!(ALLOWED.iter().all(|names| names.split_whitespace().is_sorted()));
    }
}
