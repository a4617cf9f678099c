//! System calls that neither the standard library nor rustix offers as safe functions: the only unsafe code of the project.
//!
//! In: borrowed descriptors and plain values. Out: owned descriptors and `io::Result`. Decides nothing and keeps no state. Each function
//! is safe to call from this program because it has one thread.
#![allow(unsafe_code, reason = "the one room for it: clone3, execve, mount_setattr, signals and bpf have no safe form")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::core::check::Scheduler;
use crate::core::device_filter::Instruction;
use crate::core::seccomp;

mod seal;

/// The two sides of a clone.
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the calling process.
    Parent { pid: i32, pidfd: OwnedFd },
}

/// `CLONE_NEW*` of clone(2).
pub mod namespace {
    use crate::core::check::NamespaceKind;

    pub const CGROUP: u64 = 0x0200_0000;
    pub const UTS: u64 = 0x0400_0000;
    pub const IPC: u64 = 0x0800_0000;
    pub const PID: u64 = 0x2000_0000;
    pub const NETWORK: u64 = 0x4000_0000;
    pub const MOUNT: u64 = 0x0002_0000;
    pub const USER: u64 = 0x1000_0000;
    pub const TIME: u64 = 0x80;

    /// The flag of a kind.
    pub fn flag(kind: NamespaceKind) -> u64 {
        match kind {
            NamespaceKind::Network => NETWORK,
            NamespaceKind::Ipc => IPC,
            NamespaceKind::Uts => UTS,
            NamespaceKind::Pid => PID,
            NamespaceKind::Cgroup => CGROUP,
            NamespaceKind::Mount => MOUNT,
            NamespaceKind::User => USER,
            NamespaceKind::Time => TIME,
        }
    }
}

/// `CLONE_PARENT` of clone(2): the new process is a child of the caller's parent, and not of the caller.
pub const SIBLING: u64 = 0x8000;

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of clone3(2), as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a process like fork(2) does, in new namespaces, with [`SIBLING`] as a sibling, and, if given, in a cgroup of version 2. Where clone3(2) is filtered away
/// (`ENOSYS` from an old seccomp profile) clone(2) makes it, and the process is in its parent's cgroup: the second value says whether
/// the cgroup was taken.
pub fn clone_process(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<(Cloned, bool)> {
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: namespaces | CLONE_PIDFD,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        // A sibling ends as its maker does, and the kernel lets nothing else be said.
        exit_signal: if namespaces & SIBLING == 0 { libc::SIGCHLD as u64 } else { 0 },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has a copy of this single-threaded process, so no lock is held and no memory is shared; `args`
    // and `pidfd` live across the call.
    let mut pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    let mut took_cgroup = cgroup.is_some();
    if pid < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
        let flags = namespaces | CLONE_PIDFD | libc::SIGCHLD as u64;
        // SAFETY: as above; a null stack makes the child use its copy of this one, and the third argument takes the pidfd.
        pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, &raw mut pidfd, 0usize, 0usize) };
        took_cgroup = false;
    }
    match pid {
        ..0 => Err(io::Error::last_os_error()),
        0 => Ok((Cloned::Child, took_cgroup)),
        pid => {
            // SAFETY: the kernel has just made this descriptor for us, and nothing else knows of it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((Cloned::Parent { pid: i32::try_from(pid).unwrap_or(i32::MAX), pidfd }, took_cgroup))
        }
    }
}

/// Leaves at once, without running anything registered for exit.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(code) }
}

/// Replaces this process's program; returns only on failure.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer, and they and their strings live until the call returns or the process is replaced.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces this process's program by an open file; returns only on failure.
pub fn execute_file(file: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: as in `execve`; the empty path with AT_EMPTY_PATH names the descriptor itself.
    unsafe {
        libc::syscall(libc::SYS_execveat, file.as_raw_fd(), c"".as_ptr(), args.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH);
    }
    io::Error::last_os_error()
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// `MS_PRIVATE` and the like, for [`mount_setattr`].
pub mod propagation {
    pub const NONE: u64 = 0;
    pub const UNBINDABLE: u64 = 1 << 17;
    pub const PRIVATE: u64 = 1 << 18;
    pub const SLAVE: u64 = 1 << 19;
    pub const SHARED: u64 = 1 << 20;
}

/// Has the files of the mount at a descriptor, and with `recursive` of all below it, owned as a user namespace maps them
/// (mount_setattr(2), "ID-mapped mounts").
pub fn mount_idmap(mount: BorrowedFd<'_>, recursive: bool, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    const IDMAP: u64 = 0x10_0000;
    change_mount(mount, recursive, &MountAttr { set: IDMAP, clear: 0, propagation: 0, user_namespace: user_namespace.as_raw_fd() as u64 })
}

/// Changes the mount at a descriptor, and with `recursive` all below it (Linux 5.12).
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, set: u64, clear: u64, propagation: u64) -> io::Result<()> {
    change_mount(mount, recursive, &MountAttr { set, clear, propagation, user_namespace: 0 })
}

fn change_mount(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    const AT_RECURSIVE: libc::c_int = 0x8000;
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and `attr` is as large as is said; both live across the call.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, ptr::from_ref(attr), size_of::<MountAttr>())
    };
    zero(done)
}

/// Makes new namespaces, of [`namespace`]; that of processes and of time is the next child's.
pub fn unshare(namespaces: u64) -> io::Result<()> {
    // SAFETY: namespaces change what this process sees and may do, and nothing its memory depends on; descriptors stay.
    zero(i64::from(unsafe { libc::unshare(libc::c_int::try_from(namespaces).unwrap_or(-1)) }))
}

/// Begins or joins the session keyring of a name (keyctl(2), KEYCTL_JOIN_SESSION_KEYRING).
pub fn join_session_keyring(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a C string that lives across the call.
    let keyring = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if keyring < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks every descriptor from `first` on as closed at exec (Linux 5.11).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: no descriptor is closed now, so none that is owned here loses its meaning.
    zero(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) })
}

/// Closes every descriptor from `first` on: what a caller left open is none of this program's. To be called before anything is opened.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: nothing here owns a descriptor yet, as the caller promises, so none that is owned loses its meaning.
    zero(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })
}

/// Sets a resource limit by its number.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives across the call; the old value is not asked for.
    zero(i64::from(unsafe { libc::prlimit64(0, resource, &raw const limit, ptr::null_mut()) }))
}

/// The soft and the hard limit of a resource by its number.
pub fn limits(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` takes the old value and lives across the call; no new one is set.
    zero(i64::from(unsafe { libc::prlimit64(0, resource, ptr::null(), &raw mut limit) }))?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// `struct sched_attr` of sched_setattr(2), in its first form.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets this process's scheduling.
pub fn set_scheduler(scheduler: &Scheduler) -> io::Result<()> {
    let attr = SchedAttr {
        size: u32::try_from(size_of::<SchedAttr>()).unwrap_or(0),
        policy: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime_ns,
        deadline: scheduler.deadline_ns,
        period: scheduler.period_ns,
    };
    // SAFETY: `attr` says its own size and lives across the call.
    zero(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
}

/// Sets the class and priority of this process's input and output.
pub fn set_io_priority(value: u16) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: no memory is passed.
    zero(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, libc::c_int::from(value)) })
}

/// Sets this process's execution domain.
pub fn set_personality(value: u32) -> io::Result<()> {
    // SAFETY: no memory is passed, and what changes is how later programs are loaded and what uname(2) says.
    if unsafe { libc::personality(libc::c_ulong::from(value)) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets where this process's memory comes from (set_mempolicy(2)).
pub fn set_memory_policy(mode: i32, nodes: &[u32]) -> io::Result<()> {
    const BITS: usize = libc::c_ulong::BITS as usize;
    let count = nodes.iter().max().map_or(0, |last| *last as usize + 1);
    let mut mask: Vec<libc::c_ulong> = vec![0; count.div_ceil(BITS)];
    for node in nodes {
        mask[*node as usize / BITS] |= 1 << (*node as usize % BITS);
    }
    // The kernel reads one bit less than it is told of.
    let (pointer, bits) = if mask.is_empty() { (ptr::null(), 0) } else { (mask.as_ptr(), mask.len() * BITS + 1) };
    // SAFETY: the mask holds as many bits as the kernel reads and lives across the call.
    zero(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) })
}

/// Sends any signal, real-time ones included, to a process by descriptor.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    zero(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, ptr::null::<libc::siginfo_t>(), 0) })
}

/// Sends a signal, real-time ones included, to a child of this process that has not been waited for.
pub fn send_signal_to(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    zero(i64::from(unsafe { libc::kill(pid, signal) }))
}

/// Has the signal that ends a program sent to this one after so many seconds, unless it is called again; with 0, never.
pub fn alarm(seconds: u32) {
    // SAFETY: no memory is passed.
    unsafe { libc::alarm(seconds) };
}

/// `struct sigaction` as the kernel has it, with a handler and nothing else.
#[repr(C)]
#[derive(Default)]
struct KernelSigaction {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

/// Gives every signal its default action and blocks none, as a new program expects. The call is the kernel's own: the C library's leaves
/// out 32 and 33, which it keeps for itself, and a caller that ignores them would pass that on.
pub fn reset_signals() {
    let default = KernelSigaction { handler: libc::SIG_DFL, ..KernelSigaction::default() };
    for signal in 1..=crate::core::signal::LAST {
        // SAFETY: SIG_DFL runs no code of ours; the mask is as large as is said; signals that cannot be changed answer an error, which
        // means nothing here.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, ptr::null_mut::<KernelSigaction>(), size_of::<u64>()) };
    }
    let mut set = empty_set();
    // SAFETY: `set` is initialised and lives across the call; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw mut set, ptr::null_mut()) };
}

/// Blocks signals, so that a descriptor of [`signal_descriptor`] takes them one by one.
pub fn block_signals(signals: &[i32]) -> io::Result<()> {
    let set = set_of(signals);
    // SAFETY: as in `reset_signals`.
    zero(i64::from(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) }))
}

/// A non-blocking descriptor that is readable while one of blocked signals is pending.
pub fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = set_of(signals);
    // SAFETY: `set` lives across the call.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn empty_set() -> libc::sigset_t {
    // SAFETY: a signal set is plain bits, and sigemptyset then gives them meaning.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        set
    }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = empty_set();
    for signal in signals {
        // SAFETY: `set` is initialised; a number that is no signal changes nothing.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    set
}

/// Brings the interface `lo` of this network namespace up (netdevice(7)).
pub fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an all-zero `ifreq` is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is an `ifreq` and lives across the call.
    zero(i64::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) }))
}

/// Gives back what a process does not need while it waits: freed memory, and the pages of its program, which are read again when they are
/// used again.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: getauxval(3) has no precondition; the kernel set both values for this program (elf(5)), whose headers stay mapped.
    let headers = unsafe {
        let start = libc::getauxval(libc::AT_PHDR) as *const libc::Elf64_Phdr;
        let count = usize::try_from(libc::getauxval(libc::AT_PHNUM)).unwrap_or(0);
        if start.is_null() { &[] } else { std::slice::from_raw_parts(start, count) }
    };
    let Some(own) = headers.iter().find(|header| header.p_type == libc::PT_PHDR) else { return };
    let loaded_at = (headers.as_ptr() as u64).wrapping_sub(own.p_vaddr);
    let page = rustix::param::page_size() as u64;
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0) {
        let from = loaded_at.wrapping_add(header.p_vaddr) / page * page;
        let to = loaded_at.wrapping_add(header.p_vaddr + header.p_memsz).next_multiple_of(page);
        // SAFETY: a segment without the right to write is a private mapping of the program's file that nothing ever changed, not even
        // the loader, so every page of it can be had again from the file; the file cannot be written while it is executed. Pages that
        // stay cost memory and nothing else.
        unsafe { libc::madvise(from as *mut libc::c_void, usize::try_from(to - from).unwrap_or(0), libc::MADV_DONTNEED) };
    }
}

/// The head of `union bpf_attr` for BPF_PROG_LOAD (bpf(2)).
#[repr(C)]
#[derive(Default)]
struct BpfLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct BpfAttach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a device filter and attaches it to a cgroup of version 2, beside any that is there.
pub fn attach_device_filter(cgroup: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    const PROG_LOAD: libc::c_int = 5;
    const PROG_ATTACH: libc::c_int = 8;
    const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let load = BpfLoad {
        kind: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..BpfLoad::default()
    };
    // SAFETY: `Instruction` is laid out as `struct bpf_insn`, the count is the slice's, and all that is pointed at lives across the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<BpfLoad>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let loaded = unsafe { OwnedFd::from_raw_fd(libc::c_int::try_from(fd).unwrap_or(-1)) };
    let descriptor = |fd: libc::c_int| fd.cast_unsigned();
    let (target, program) = (descriptor(cgroup.as_raw_fd()), descriptor(loaded.as_raw_fd()));
    let attach = BpfAttach { target, program, kind: CGROUP_DEVICE, flags: ALLOW_MULTI };
    // SAFETY: `attach` lives across the call.
    zero(unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<BpfAttach>()) })
}

/// `struct sock_fprog` (linux/filter.h).
#[repr(C)]
struct SocketFilter {
    length: u16,
    instructions: *const seccomp::Instruction,
}

/// Installs a seccomp filter for this process and its children (seccomp(2)); the descriptor of its notifications, if they were asked for.
pub fn install_seccomp(program: &[seccomp::Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = SocketFilter { length, instructions: program.as_ptr() };
    // SAFETY: `seccomp::Instruction` is laid out as `struct sock_filter`, the length is the slice's, and both live across the call. The
    // filter changes what later calls answer, which they report as errors.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & seccomp::flag::NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with this flag the kernel answers a descriptor it has just made for us.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(libc::c_int::try_from(result).unwrap_or(-1)) }))
}

/// Whether this kernel knows flags of seccomp(2): it looks at them before it looks for a filter, and there is none.
pub fn knows_seccomp_flags(flags: u32) -> bool {
    // SAFETY: a null pointer is refused with EFAULT and nothing is installed.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, ptr::null::<SocketFilter>()) };
    result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

fn zero(result: i64) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
