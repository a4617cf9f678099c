//! Managers whose disks are full, can only be read, were being written when the power went, have decayed, or are of a later version: the real
//! program on real file systems.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rcluster_api::wire::v1;

use crate::streams::SilentAgent;
use crate::support::{Cluster, DEADLINE, contents, start, until};

/// Runs `test` where what it mounts is seen by itself and its processes alone.
fn with_own_mounts(test: impl AsyncFnOnce() + Send) {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn tool(line: &[&str]) {
    let output = Command::new(line[0]).args(&line[1..]).output().unwrap();
    assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system of its own for a state directory; it goes with this.
struct Ext4 {
    image: PathBuf,
    at: PathBuf,
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        // It may not be mounted now; whoever has files open in it is killed after this.
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

impl Ext4 {
    fn make(cluster: &Cluster, name: &str, bytes: u64) -> Self {
        let (image, at) = (cluster.dir.path().join(format!("{name}.ext4")), cluster.dir.path().join(name));
        fs::create_dir(&at).unwrap();
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        tool(&["mkfs.ext4", "-q", "-F", image.to_str().unwrap()]);
        let disk = Self { image, at };
        disk.mount();
        disk
    }

    fn mount(&self) {
        tool(&["mount", "-o", "loop,errors=remount-ro", self.image.to_str().unwrap(), self.at.to_str().unwrap()]);
    }

    fn unmount(&self) {
        umount2(&self.at, MntFlags::empty()).unwrap();
    }

    /// The kernel finds an error in the file system, and lets nobody write to it any more.
    fn fail(&self) {
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == self.at.to_str()).unwrap();
        let device = line.split(' ').next().unwrap().strip_prefix("/dev/").unwrap();
        fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "of a test").unwrap();
    }

    /// Whoever writes to it waits, as for a disk that does not answer, until the value goes.
    fn hang(&self) -> Hanging<'_> {
        tool(&["fsfreeze", "--freeze", self.at.to_str().unwrap()]);
        Hanging(self)
    }

    /// Fills it up; what is written is in one file.
    fn fill(&self) -> PathBuf {
        let path = self.at.join("of-somebody-else");
        let mut file = fs::File::create(&path).unwrap();
        let piece = vec![1; 1 << 20];
        let error = (0..).find_map(|_| file.write_all(&piece).and_then(|()| file.sync_all()).err()).unwrap();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        path
    }
}

struct Hanging<'a>(&'a Ext4);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        tool(&["fsfreeze", "--unfreeze", self.0.at.to_str().unwrap()]);
    }
}

/// Three managers, the last of them on a disk of its own.
async fn three_with_a_disk() -> (Cluster, Ext4) {
    let mut cluster = Cluster::found().await;
    let disk = Ext4::make(&cluster, "m3", 96 << 20);
    cluster.join("m2");
    cluster.join("m3");
    cluster.settled(&["m1", "m2", "m3"]).await;
    (cluster, disk)
}

async fn three() -> Cluster {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    cluster.settled(&["m1", "m2", "m3"]).await;
    cluster
}

fn start_again(cluster: &mut Cluster, name: &str) {
    let manager = cluster.manager(name);
    *manager = start(name, &manager.dir.clone(), &manager.addr.clone(), &[]);
}

/// Writes 500 KiB, whoever leads.
async fn write_large(cluster: &Cluster, number: usize) {
    let payload = Some(v1::Payload { bytes: vec![7; 500 << 10] });
    let data = v1::DataSpec { kind: v1::DataKind::Config.into(), name: format!("c{number}"), payload, ..v1::DataSpec::default() };
    let request = v1::ApplyRequest { specs: vec![v1::Spec { kind: Some(v1::spec::Kind::Data(data)), expected_version: 0 }] };
    until("the others take a write", || async { cluster.control(&cluster.admin).await.ok()?.apply(request.clone()).await.ok() }).await;
}

/// Writes until this manager has ended, which takes its segment and the next: their room is there.
async fn write_until_the_end(cluster: &mut Cluster, name: &str, from: usize) -> usize {
    for number in from..from + 200 {
        write_large(cluster, number).await;
        if let Some(status) = cluster.manager(name).process.try_wait().unwrap() {
            assert_eq!(status.code(), Some(1), "{}", cluster.manager(name).log());
            return number + 1;
        }
    }
    panic!("{name} goes on: {}", cluster.manager(name).log());
}

async fn give_roles(cluster: &Cluster, names: &[&str], role: v1::ManagerRole) {
    for name in names {
        let request = v1::UpdateManagerRequest { manager: (*name).to_owned(), role: role.into(), addr: String::new() };
        until("the role is given", || async { cluster.control(&cluster.admin).await.ok()?.update_manager(request.clone()).await.ok() })
            .await;
    }
}

/// Has m3 lead, and all three vote.
async fn have_m3_lead(cluster: &Cluster) {
    until("m3 leads", || async {
        // Nobody else can, as long as the others do not vote.
        give_roles(cluster, &["m1", "m2"], v1::ManagerRole::Standby).await;
        until("m3 votes alone", || async {
            let status = cluster.status().await.ok().filter(|status| status.leader == "m3")?;
            status.managers.iter().all(|manager| manager.voter == (manager.name == "m3")).then_some(())
        })
        .await;
        give_roles(cluster, &["m1", "m2"], v1::ManagerRole::Voter).await;
        (cluster.whole().await.leader == "m3").then_some(())
    })
    .await;
}

/// Whether m3, which has ended, led until then: on a busy machine another may have taken over before.
fn m3_led_to_the_end(cluster: &mut Cluster) -> bool {
    let log = cluster.manager("m3").log();
    log.lines().rfind(|line| line.contains(" leading")).is_some_and(|line| !line.contains("no longer leading"))
}

/// Another leads in m3's place, which has said all of this as it ended.
async fn another_leads_and_m3_has_said(cluster: &mut Cluster, expected: &[&str]) {
    let log = cluster.manager("m3").log();
    let said = log.lines().rfind(|line| line.contains("this manager ends")).unwrap_or_else(|| panic!("{log}"));
    assert!(expected.iter().all(|text| said.contains(text)), "{said}");
    let leads = |status: &v1::ClusterResponse| ["m1", "m2"].contains(&status.leader.as_str());
    until("another leads", || async { cluster.status().await.ok().filter(leads) }).await;
}

fn last_words(cluster: &mut Cluster, name: &str) -> String {
    let log = cluster.manager(name).log();
    let lines: Vec<&str> = log.lines().rev().take(6).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn last_segment(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir.join("raft")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("segment-")).max().unwrap()
}

/// Where a segment's last batch ends: its last four bytes are never all zeros, and what follows is.
fn end_of(bytes: &[u8]) -> usize {
    (bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1).next_multiple_of(8)
}

#[test]
fn a_full_disk_ends_its_manager_with_what_to_do_and_the_others_go_on_until_there_is_room() {
    with_own_mounts(async || {
        let (mut cluster, disk) = three_with_a_disk().await;
        let filler = disk.fill();
        let mut written = write_until_the_end(&mut cluster, "m3", 0).await;
        let segments = cluster.manager("m3").dir.join("raft");
        for _ in 0..2 {
            let said = last_words(&mut cluster, "m3");
            let expected = ["the disk is full: make room on it, then start this manager again", "No space left on device"];
            assert!(expected.iter().all(|text| said.contains(text)) && said.contains(segments.to_str().unwrap()), "{said}");
            // As long as there is no room, it says so again.
            start_again(&mut cluster, "m3");
            written = write_until_the_end(&mut cluster, "m3", written).await;
        }
        fs::remove_file(filler).unwrap();
        start_again(&mut cluster, "m3");
        cluster.whole().await;
        let configs = cluster.list(&cluster.admin, v1::Kind::Config).await.unwrap().len();
        assert_eq!(configs, written);
        // What it has is good for a majority.
        cluster.manager("m2").kill();
        cluster.write("with-m3").await;
    });
}

#[test]
fn a_leader_whose_disk_is_full_ends_with_what_to_do_and_another_leads_with_all_that_was_confirmed() {
    with_own_mounts(async || {
        let (mut cluster, disk) = three_with_a_disk().await;
        let (mut written, mut tries) = (0, 0..10);
        let filler = loop {
            assert!(tries.next().is_some(), "m3 never ends while it leads");
            let filler = disk.fill();
            have_m3_lead(&cluster).await;
            written = write_until_the_end(&mut cluster, "m3", written).await;
            if m3_led_to_the_end(&mut cluster) {
                break filler;
            }
            fs::remove_file(filler).unwrap();
            start_again(&mut cluster, "m3");
            // Into the next segment, which has room for having it lead.
            for number in written..written + 4 {
                write_large(&cluster, number).await;
            }
            written += 4;
            cluster.whole().await;
        };
        let segments = cluster.manager("m3").dir.join("raft");
        let expected =
            ["the disk is full: make room on it, then start this manager again", "No space left on device", segments.to_str().unwrap()];
        another_leads_and_m3_has_said(&mut cluster, &expected).await;
        let configs = cluster.list(&cluster.admin, v1::Kind::Config).await.unwrap().len();
        assert_eq!(configs, written, "what m3 confirmed is with the others");
        cluster.write("without-m3").await;
        fs::remove_file(filler).unwrap();
        start_again(&mut cluster, "m3");
        cluster.whole().await;
        let configs = cluster.list(&cluster.admin, v1::Kind::Config).await.unwrap().len();
        assert_eq!((configs, cluster.networks().await), (written, 1));
    });
}

#[test]
fn a_disk_that_turns_read_only_ends_its_manager_with_what_to_do_and_it_starts_only_when_that_is_mended() {
    with_own_mounts(async || {
        let (mut cluster, disk) = three_with_a_disk().await;
        cluster.write("before").await;
        disk.fail();
        cluster.write("during").await;
        for _ in 0..2 {
            assert_eq!(cluster.manager("m3").end().await, 1);
            let said = last_words(&mut cluster, "m3");
            let expected = ["the disk is read-only", "dmesg", "then start this manager again", "Read-only file system"];
            assert!(expected.iter().all(|text| said.contains(text)) && said.contains(disk.at.to_str().unwrap()), "{said}");
            start_again(&mut cluster, "m3");
        }
        assert_eq!(cluster.manager("m3").end().await, 1);
        cluster.write("without").await;
        disk.unmount();
        disk.mount();
        start_again(&mut cluster, "m3");
        cluster.whole().await;
        assert_eq!(cluster.networks().await, 3);
    });
}

#[test]
fn a_leader_whose_disk_hangs_is_replaced_and_sends_its_agents_away() {
    with_own_mounts(async || {
        let (mut cluster, disk) = three_with_a_disk().await;
        let addr = cluster.manager("m3").addr.clone();
        for attempt in 1..=10 {
            have_m3_lead(&cluster).await;
            let agent = SilentAgent::start(&cluster, &addr, &format!("n{attempt}")).await;
            let hanging = disk.hang();
            cluster.write(&format!("during-{attempt}")).await;
            let other = |status: &v1::ClusterResponse| !status.leader.is_empty() && status.leader != "m3";
            until("another leads", || async { cluster.status().await.ok().filter(other) }).await;
            // It acknowledges beats no longer, of which no leader hears.
            tokio::time::timeout(DEADLINE, agent.session).await.expect("the session ends").unwrap();
            drop(hanging);
            cluster.whole().await;
            assert_eq!(cluster.networks().await, attempt);
            let said = cluster.manager("m3").log();
            // Unless the machine stood still, and another led before.
            if said.contains("the disk of this manager's log does not answer") {
                assert!(said.contains("the disk answers again"), "{said}");
                return;
            }
        }
        panic!("m3 never leads when its disk hangs");
    });
}

#[test]
fn a_leader_whose_disk_turns_read_only_ends_with_what_to_do_and_another_leads_with_all_that_was_confirmed() {
    with_own_mounts(async || {
        let (mut cluster, disk) = three_with_a_disk().await;
        let mut written = 0;
        loop {
            assert!(written < 20, "m3 never ends while it leads");
            have_m3_lead(&cluster).await;
            cluster.write(&format!("before-{written}")).await;
            disk.fail();
            // It is taken in by m3, which cannot write it down, and confirmed by who leads after it.
            cluster.write(&format!("during-{written}")).await;
            written += 2;
            assert_eq!(cluster.manager("m3").end().await, 1);
            if m3_led_to_the_end(&mut cluster) {
                break;
            }
            disk.unmount();
            disk.mount();
            start_again(&mut cluster, "m3");
            cluster.whole().await;
        }
        let at = disk.at.to_str().unwrap();
        let expected = ["the disk is read-only", "dmesg", "then start this manager again", "Read-only file system", at];
        another_leads_and_m3_has_said(&mut cluster, &expected).await;
        assert_eq!(cluster.networks().await, written, "what m3 confirmed is with the others");
        cluster.write("without-m3").await;
        disk.unmount();
        disk.mount();
        start_again(&mut cluster, "m3");
        cluster.whole().await;
        assert_eq!(cluster.networks().await, written + 1);
    });
}

#[tokio::test]
async fn a_write_that_the_power_cut_is_mended_and_told_with_its_place() {
    let mut cluster = three().await;
    cluster.write("before").await;
    cluster.manager("m3").kill();
    let segment = last_segment(&cluster.manager("m3").dir);
    let mut bytes = fs::read(&segment).unwrap();
    let end = end_of(&bytes);
    // The first sector of a batch and the last, but not those between.
    bytes[end..end + 40].fill(0x5a);
    bytes[end + 2000..end + 2040].fill(0x5a);
    fs::write(&segment, &bytes).unwrap();
    start_again(&mut cluster, "m3");
    let told = until("it is told", || async {
        let log = cluster.managers.last().unwrap().log();
        log.lines().find(|line| line.contains("WARN") && line.contains("the end of the log was being written")).map(str::to_owned)
    })
    .await;
    let place = [segment.to_str().unwrap(), &format!("offset={end}"), "bytes=2040"];
    assert!(place.iter().all(|text| told.contains(text)) && told.contains("is cut off"), "{told}");
    cluster.settled(&["m1", "m2", "m3"]).await;
    cluster.write("after").await;
    cluster.whole().await;
}

#[tokio::test]
async fn damage_before_whole_batches_is_refused_with_its_place_and_what_it_says_to_do_helps() {
    let mut cluster = three().await;
    cluster.write("before").await;
    cluster.manager("m3").kill();
    let dir = cluster.manager("m3").dir.clone();
    let segment = last_segment(&dir);
    let mut bytes = fs::read(&segment).unwrap();
    // In the first batch; a whole one stands at the end.
    bytes[200] ^= 0x10;
    fs::write(&segment, &bytes).unwrap();
    let before = contents(&dir);
    start_again(&mut cluster, "m3");
    assert_eq!(cluster.manager("m3").end().await, 1);
    let said = last_words(&mut cluster, "m3");
    let place = format!("{} is damaged at byte 64: ", segment.display());
    assert!(said.contains(&place) && said.contains("rclusterctl node rm") && said.contains("empty state directory"), "{said}");
    assert_eq!(contents(&dir), before);
    // The others do without, and what it says to do brings it back.
    cluster.write("without").await;
    let refs = vec![v1::Ref { kind: v1::Kind::Manager.into(), name: "m3".to_owned() }];
    until("m3 is removed", || async {
        cluster.control(&cluster.admin).await.ok()?.remove(v1::RemoveRequest { refs: refs.clone() }).await.ok()
    })
    .await;
    cluster.settled(&["m1", "m2"]).await;
    fs::remove_dir_all(&dir).unwrap();
    let addr = cluster.manager("m3").addr.clone();
    cluster.join_at("m3", &dir, &addr);
    cluster.whole().await;
    assert_eq!(cluster.networks().await, 2);
}

#[tokio::test]
async fn what_a_later_version_has_written_is_refused_by_name_and_nothing_is_changed() {
    let mut cluster = Cluster::found().await;
    cluster.write("before").await;
    cluster.manager("m1").kill();
    let dir = cluster.manager("m1").dir.clone();
    let refused = async |cluster: &mut Cluster, path: &Path, newer: &[u8], why: &str| {
        let good = fs::read(path).unwrap();
        fs::write(path, newer).unwrap();
        let before = contents(&dir);
        start_again(cluster, "m1");
        assert_eq!(cluster.manager("m1").end().await, 1);
        let said = last_words(cluster, "m1");
        let told = [path.to_str().unwrap(), why, "nothing was changed", "upgrade this manager"];
        assert!(told.iter().all(|text| said.contains(text)), "{said}");
        assert_eq!(contents(&dir), before);
        fs::write(path, good).unwrap();
    };
    let segment = last_segment(&dir);
    let mut newer = fs::read(&segment).unwrap();
    newer[8] = 3;
    refused(&mut cluster, &segment, &newer, "has format 3, newer than this version reads (2)").await;
    let seal = dir.join("seal.json");
    let newer = fs::read_to_string(&seal).unwrap().replace("\"format\": 1", "\"format\": 7, \"more\": 1");
    refused(&mut cluster, &seal, newer.as_bytes(), "format 7; this one reads 1").await;
    // With everything as it was, it goes on.
    start_again(&mut cluster, "m1");
    cluster.settled(&["m1"]).await;
    assert_eq!(cluster.networks().await, 1);
}
