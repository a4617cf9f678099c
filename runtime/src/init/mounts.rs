//! Mounts by descriptor (fsopen(2), open_tree(2), mount_setattr(2), move_mount(2)): a mount is complete, with its attributes, before it is
//! attached, and it is attached to a descriptor and not to a path that could change in between. Needs Linux 5.12.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::root::{Root, is_directory};
use super::{Doing, Failure, copy_up};
use crate::core::cgroup::Version;
use crate::core::mount_options::{Attributes, MountOptions, Propagation, attr};
use crate::core::plan::{CgroupLayout, CgroupView, MountSource, MountStep};
use crate::sys;

/// Cuts the new mount namespace off from the host's: what is mounted here is not seen there.
pub fn isolate(propagation: Propagation) -> Result<(), Failure> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok(sys::mount_setattr(root.as_fd(), true, 0, 0, propagation_bit(propagation))?)
}

/// Makes the root file system a mount of its own, which pivot_root(2) asks for. One that the parent copied is put over `/`, as a user
/// namespace may not reach the directory it comes from; nothing sees it there, as nothing goes from a root up to what covers it.
pub fn attach_root(path: &Path, tree: Option<OwnedFd>, below: Option<Propagation>) -> Result<Root, Failure> {
    if let Some(tree) = tree {
        prepare_root(tree.as_fd(), below)?;
        let target = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())?;
        attach(tree.as_fd(), target.as_fd())?;
        return Ok(Root::new(tree));
    }
    let target = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())?;
    let tree = clone_tree(target.as_fd(), true)?;
    prepare_root(tree.as_fd(), below)?;
    attach(tree.as_fd(), target.as_fd())?;
    Ok(Root::new(tree))
}

/// The root itself must be private until it is the root.
fn prepare_root(tree: BorrowedFd<'_>, below: Option<Propagation>) -> Result<(), Failure> {
    if let Some(propagation) = below {
        pass_on(tree, propagation, true)?;
        pass_on(tree, Propagation::Private, false)?;
    }
    Ok(())
}

/// Sets how a mount, and with `recursive` all below it, passes mounts on.
pub fn pass_on(mount: BorrowedFd<'_>, propagation: Propagation, recursive: bool) -> Result<(), Failure> {
    Ok(sys::mount_setattr(mount, recursive, 0, 0, propagation_bit(propagation))?)
}

/// A mount that was made or changed.
pub struct Mounted {
    pub mount: OwnedFd,
    /// What is weaker than asked for.
    pub note: Option<String>,
}

/// Leaves the host's file systems behind (pivot_root(2), "pivot_root(".", ".")").
pub fn pivot(root: &Root) -> Result<(), Failure> {
    rustix::process::fchdir(root).doing(|| "enter it".to_owned())?;
    rustix::process::pivot_root(".", ".").doing(|| "pivot_root".to_owned())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing(|| "detach the old root".to_owned())?;
    Ok(rustix::process::chdir("/")?)
}

/// Covers a file with another.
pub fn cover(target: BorrowedFd<'_>, with: BorrowedFd<'_>) -> Result<(), Failure> {
    attach(clone_tree(with, false)?.as_fd(), target)
}

/// Leaves the host's file systems behind where the root is a ramfs, which is nobody's to pivot from (pivot_root(2), "Notes"): what the
/// container has is put on top of everything, and below it nothing but the ramfs is left to be seen.
pub fn move_root(root: &Root) -> Result<(), Failure> {
    rustix::process::fchdir(root).doing(|| "enter it".to_owned())?;
    let slash = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    attach(root.as_fd(), slash.as_fd())?;
    rustix::process::chroot(".").doing(|| "chroot".to_owned())?;
    Ok(rustix::process::chdir("/")?)
}

/// Covers `/dev/console` with a terminal.
pub fn cover_console(root: &Root, terminal: BorrowedFd<'_>) -> Result<(), Failure> {
    let target = root.make_plain_file(Path::new("/dev/console"))?;
    attach(clone_tree(terminal, false)?.as_fd(), target.as_fd())
}

/// Makes one of `mounts[]`; `tree` is what it binds, if the parent copied it.
pub fn mount(root: &Root, step: &MountStep, tree: Option<OwnedFd>) -> Result<Mounted, Failure> {
    match &step.what {
        MountSource::Bind { source, recursive, .. } => bind(root, step, source, *recursive, tree).map(done),
        MountSource::FileSystem { kind, source } => file_system(root, step, kind, source),
        MountSource::Cgroups { views, layout } => cgroups(root, step, views, *layout).map(done),
        MountSource::Remount { bind } => remount(root, step, *bind).map(done),
    }
}

fn done(mount: OwnedFd) -> Mounted {
    Mounted { mount, note: None }
}

/// Binds a path of the container over itself, read-only; one that does not exist needs none.
pub fn read_only(root: &Root, path: &Path) -> Result<(), Failure> {
    let Some(target) = existing(root, path)? else { return Ok(()) };
    let tree = clone_tree(target.as_fd(), true)?;
    sys::mount_setattr(tree.as_fd(), true, attr::RDONLY, 0, sys::propagation::NONE)?;
    attach(tree.as_fd(), target.as_fd())
}

/// Covers a path of the container with nothing: a file with the host's `/dev/null`, which is still in sight here and is checked to be
/// it (CVE-2025-31133: the container's own could be anything), a directory with an empty read-only file system.
pub fn mask(root: &Root, path: &Path) -> Result<(), Failure> {
    let Some(target) = existing(root, path)? else { return Ok(()) };
    let cover = if is_directory(target.as_fd())? {
        let cover = new_mount("tmpfs", "tmpfs", &[("mode".into(), Some("555".into())), ("nr_inodes".into(), Some("2".into()))])?;
        sys::mount_setattr(cover.as_fd(), false, attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC, 0, sys::propagation::NONE)?;
        cover
    } else {
        let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
            .doing(|| "open the host's /dev/null".to_owned())?;
        let stat = rustix::fs::fstat(&null)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != rustix::fs::makedev(1, 3) {
            return Err(Failure::refused("the host's /dev/null is not the null device"));
        }
        clone_tree(null.as_fd(), false)?
    };
    attach(cover.as_fd(), target.as_fd())
}

/// A procfs of this process's pid namespace that is attached nowhere.
pub fn private_proc() -> Result<OwnedFd, Failure> {
    new_mount("proc", "proc", &[])
}

fn existing(root: &Root, path: &Path) -> Result<Option<OwnedFd>, Failure> {
    match root.find(path) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn bind(root: &Root, step: &MountStep, source: &Path, recursive: bool, tree: Option<OwnedFd>) -> Result<OwnedFd, Failure> {
    let copy = || {
        let source_fd = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .doing(|| format!("mounts[{}].source: open {}", step.index, source.display()))?;
        clone_tree(source_fd.as_fd(), recursive).doing(|| "clone the source".to_owned())
    };
    let tree = tree.map_or_else(copy, Ok)?;
    let directory = is_directory(tree.as_fd())?;
    let target = if directory { root.make_directory(&step.destination).map(|(found, _)| found) } else { root.make_file(&step.destination) };
    let target = target.doing(|| format!("mounts[{}].destination", step.index))?;
    finish(tree.as_fd(), target.as_fd(), &step.options)?;
    Ok(tree)
}

/// Changes what is mounted at a path: all its options, as mount(8) does, and not only those that are named.
fn remount(root: &Root, step: &MountStep, bind: bool) -> Result<OwnedFd, Failure> {
    let target = root.find(&step.destination).doing(|| format!("mounts[{}].destination", step.index))?;
    if !bind {
        let context = rustix::mount::fspick(&target, "", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
        configure(&context, &step.options.data)?;
        let read_only = step.options.attributes.set & attr::RDONLY != 0;
        rustix::mount::fsconfig_set_flag(&context, if read_only { "ro" } else { "rw" }).doing(|| said(&context, "ro"))?;
        rustix::mount::fsconfig_reconfigure(&context).doing(|| said(&context, "change it"))?;
    }
    let named = step.options.attributes;
    let all = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC | attr::NODIRATIME | attr::NOSYMFOLLOW;
    let attributes = Attributes { set: named.set, clear: named.clear | all & !named.set };
    finish_changed(target.as_fd(), &MountOptions { attributes, ..step.options.clone() })
        .doing(|| "is a mount there to be changed?".to_owned())?;
    Ok(target)
}

fn file_system(root: &Root, step: &MountStep, kind: &str, source: &str) -> Result<Mounted, Failure> {
    // A link at /proc or /sys would move the kernel's own files to where nobody expects them (CVE-2019-19921).
    let plain = matches!(kind, "proc" | "sysfs");
    let (target, covers) = if plain { root.make_plain_directory(&step.destination) } else { root.make_directory(&step.destination) }
        .doing(|| format!("mounts[{}].destination", step.index))?;
    let mut data = step.options.data.clone();
    if kind == "tmpfs" && covers && !data.iter().any(|(key, _)| key == "mode") {
        // It covers a directory of the image and so looks like it, as under runc.
        let mode = rustix::fs::fstat(&target)?.st_mode & 0o7777;
        data.push(("mode".to_owned(), Some(format!("{mode:o}"))));
    }
    let context = open_context(kind, source)?;
    configure(&context, &data)?;
    // Flags of mount(2) that a file system may know as an option, or decide alone.
    let unknown = |hint: &&String| rustix::mount::fsconfig_set_flag(&context, hint.as_str()).is_err();
    let ignored: Vec<&str> = step.options.hints.iter().filter(unknown).map(String::as_str).collect();
    let note = (!ignored.is_empty()).then(|| format!("{kind} knows no option {}: left as it is", ignored.join(", ")));
    let mount = create(&context, kind)?;
    if step.options.copy_up && covers {
        copy_up::copy(target.as_fd(), mount.as_fd()).doing(|| "tmpcopyup: copy what it covers".to_owned())?;
    }
    finish(mount.as_fd(), target.as_fd(), &step.options)?;
    Ok(Mounted { mount, note })
}

fn cgroups(root: &Root, step: &MountStep, views: &[CgroupView], layout: CgroupLayout) -> Result<OwnedFd, Failure> {
    let (target, _) = root.make_plain_directory(&step.destination).doing(|| format!("mounts[{}].destination", step.index))?;
    if layout == CgroupLayout::Unified {
        let [view] = views else { return Err(Failure::refused("no cgroup hierarchy to mount")) };
        let mount = cgroup_view(view)?;
        finish(mount.as_fd(), target.as_fd(), &step.options)?;
        return Ok(mount);
    }
    let list = new_mount("tmpfs", "tmpfs", &[("mode".into(), Some("755".into()))])?;
    attach(list.as_fd(), target.as_fd())?;
    for view in views {
        let mount = cgroup_view(view).doing(|| view.name.clone())?;
        rustix::fs::mkdirat(&list, &view.name, Mode::from_raw_mode(0o755))?;
        let place = rustix::fs::openat(&list, &view.name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        finish(mount.as_fd(), place.as_fd(), &step.options).doing(|| view.name.clone())?;
        // Controllers mounted together are also found one by one, as on the host.
        for controller in view.controllers.iter().filter(|name| **name != view.name && !name.contains('=')) {
            rustix::fs::symlinkat(&view.name, &list, controller)?;
        }
    }
    finish_changed(list.as_fd(), &step.options)?;
    Ok(list)
}

fn cgroup_view(view: &CgroupView) -> Result<OwnedFd, Failure> {
    if let Some(path) = &view.bind {
        let directory = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())?;
        return Ok(clone_tree(directory.as_fd(), false)?);
    }
    match view.version {
        Version::V2 => new_mount("cgroup2", "cgroup", &[]),
        Version::V1 => {
            let option = |name: &String| match name.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (name.clone(), None),
            };
            new_mount("cgroup", "cgroup", &view.controllers.iter().map(option).collect::<Vec<_>>())
        }
    }
}

/// A new mount of a file system, attached nowhere.
fn new_mount(kind: &str, source: &str, data: &[(String, Option<String>)]) -> Result<OwnedFd, Failure> {
    let context = open_context(kind, source)?;
    configure(&context, data)?;
    create(&context, kind)
}

fn open_context(kind: &str, source: &str) -> Result<OwnedFd, Failure> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(|| format!("open file system {kind}"))?;
    if !source.is_empty() {
        rustix::mount::fsconfig_set_string(&context, "source", source).doing(|| said(&context, "source"))?;
    }
    Ok(context)
}

fn configure(context: &OwnedFd, data: &[(String, Option<String>)]) -> Result<(), Failure> {
    for (key, value) in data {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(context, key.as_str(), value.as_str()),
            None => rustix::mount::fsconfig_set_flag(context, key.as_str()),
        }
        .doing(|| said(context, key))?;
    }
    Ok(())
}

fn create(context: &OwnedFd, kind: &str) -> Result<OwnedFd, Failure> {
    rustix::mount::fsconfig_create(context).doing(|| said(context, kind))?;
    Ok(rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// What the kernel has to say of a file system context (fsopen(2), "Message retrieval"), else what was being done.
fn said(context: &OwnedFd, what: &str) -> String {
    let mut text = [0; 256];
    let copy = context.try_clone().map(std::fs::File::from);
    match copy.and_then(|mut file| file.read(&mut text)) {
        Ok(count) if count > 2 => String::from_utf8_lossy(&text[2..count]).trim().to_owned(),
        _ => what.to_owned(),
    }
}

/// A copy of the mount at a descriptor, attached nowhere.
pub fn clone_tree(of: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(of, "", flags)
}

fn finish(mount: BorrowedFd<'_>, target: BorrowedFd<'_>, options: &MountOptions) -> Result<(), Failure> {
    change(mount, options)?;
    attach(mount, target)?;
    options.propagation.iter().try_for_each(|(propagation, recursive)| pass_on(mount, *propagation, *recursive))
}

/// For a mount that is attached already.
fn finish_changed(mount: BorrowedFd<'_>, options: &MountOptions) -> Result<(), Failure> {
    change(mount, options)?;
    options.propagation.iter().try_for_each(|(propagation, recursive)| pass_on(mount, *propagation, *recursive))
}

fn change(mount: BorrowedFd<'_>, options: &MountOptions) -> Result<(), Failure> {
    for (Attributes { set, clear }, recursive) in [(options.recursive, true), (options.attributes, false)] {
        if set != 0 || clear != 0 {
            sys::mount_setattr(mount, recursive, set, clear, sys::propagation::NONE).doing(|| "set its options".to_owned())?;
        }
    }
    Ok(())
}

fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Failure> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags).doing(|| "attach it".to_owned())
}

fn propagation_bit(propagation: Propagation) -> u64 {
    match propagation {
        Propagation::Private => sys::propagation::PRIVATE,
        Propagation::Slave => sys::propagation::SLAVE,
        Propagation::Shared => sys::propagation::SHARED,
        Propagation::Unbindable => sys::propagation::UNBINDABLE,
    }
}
