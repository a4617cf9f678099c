//! What raft-rs leaves to its host (`docs/store.md` has the list): each test shows that one of it is seen to.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use raft::eraftpb::{Entry, MessageType, SnapshotMetadata};
use rcluster_api::cluster::Manager;
use rcluster_api::object::{Kind, Object};
use rcluster_manager::core::state::{Change, Transaction};
use rcluster_manager::store::{
    Batch, Loaded, LogError, LogStore, MemberChange, ProposeError, Saved, Saver, StoreError, assemble, start_with,
};

use crate::by_hand::{ByHand, Sent};
use crate::disk::Disk;
use crate::world::{Network, config, has, make, make_large, manager, member, soon};

/// How long a read waits before it is asked again.
const READ_RETRY: Duration = Duration::from_millis(300);

fn names(hand: &ByHand, id: u64) -> (Vec<u64>, Vec<u64>) {
    let found = hand.machines[&id].configuration();
    assert!(found.voters_outgoing.is_empty(), "{id} is between two configurations");
    let sorted = |mut ids: Vec<u64>| {
        ids.sort_unstable();
        ids
    };
    (sorted(found.voters), sorted(found.learners))
}

/// Writes through the first store; all that is sent arrives.
fn write(hand: &mut ByHand, id: &str) {
    let mut asked = hand.propose(1, make(id));
    hand.deliver_all();
    asked.answer().unwrap().unwrap();
}

#[test]
fn a_read_is_not_asked_before_the_leader_has_committed_in_its_term() {
    let mut hand = ByHand::new(3);
    let held = hand.elect(1, |sent| !sent.is(MessageType::MsgAppend));
    assert!(!held.is_empty(), "what its term begins with is on its way");
    let mut read = hand.read(1);
    hand.deliver(|sent| !sent.is(MessageType::MsgAppend));
    assert_eq!(read.answer(), None);
    // raft-rs would have dropped it without a word, and it would be asked again only after a time: none goes by.
    held.into_iter().for_each(|sent| hand.bring(sent));
    hand.deliver_all();
    assert_eq!(read.answer(), Some(true));
}

#[test]
fn a_read_whose_answer_is_lost_is_asked_again() {
    let mut hand = ByHand::led(3);
    for lost in [MessageType::MsgReadIndex, MessageType::MsgReadIndexResp] {
        let mut read = hand.read(2);
        let held = hand.deliver(|sent| !sent.is(lost));
        assert_eq!((held.len(), read.answer()), (1, None));
        hand.wait(READ_RETRY);
        hand.run(2);
        hand.deliver_all();
        assert_eq!(read.answer(), Some(true), "{lost:?}");
    }
}

#[test]
fn one_that_joins_begins_with_a_snapshot_although_the_whole_log_is_there() {
    let mut hand = ByHand::led(1);
    write(&mut hand, "a");
    assert_eq!(hand.machines[&1].disk.entries_kept() as u64, hand.machines[&1].disk.last() - 1);
    hand.join(2);
    hand.change(&[MemberChange::Learner(2)]);
    let mut snapshots = 0;
    hand.beat(|sent| {
        snapshots += usize::from(sent.is(MessageType::MsgSnapshot));
        true
    });
    assert_eq!(snapshots, 1);
    // A log that is replayed from its first entry begins without voters, and the first change would leave it none.
    assert_eq!(names(&hand, 2), (vec![1], vec![2]));
    hand.change(&[MemberChange::Voter(2)]);
    hand.beat(|_| true);
    assert_eq!(names(&hand, 2), (vec![1, 2], vec![]));
    write(&mut hand, "b");
    hand.beat(|_| true);
    assert!(has(&hand.machines[&2].store.state(), "b"));
}

#[test]
fn a_joint_change_is_entered_once_and_left_once() {
    let mut hand = ByHand::led(3);
    hand.join(4);
    hand.change(&[MemberChange::Learner(4)]);
    (0..3).for_each(|_| drop(hand.beat(|_| true)));
    let before = hand.machines[&1].disk.changes();
    hand.change(&[MemberChange::Voter(4), MemberChange::Learner(2)]);
    (0..3).for_each(|_| drop(hand.beat(|_| true)));
    for id in 1..=4 {
        assert_eq!(names(&hand, id), (vec![1, 3, 4], vec![2]), "as {id} has it");
    }
    assert_eq!(hand.machines[&1].disk.changes() - before, 2);
}

#[test]
fn a_change_that_cannot_be_made_is_made_by_nobody_and_ends_nobody() {
    let mut hand = ByHand::led(3);
    hand.change(&[MemberChange::Remove(1), MemberChange::Remove(2), MemberChange::Remove(3)]);
    hand.beat(|_| true);
    hand.beat(|_| true);
    assert_eq!(hand.machines[&3].disk.changes(), 1, "it is in the log");
    for id in 1..=3 {
        assert_eq!(names(&hand, id), (vec![1, 2, 3], vec![]), "as {id} has it");
    }
    write(&mut hand, "after");
}

#[test]
fn a_leader_that_is_taken_out_of_the_configuration_ends_and_another_leads() {
    let mut hand = ByHand::led(3);
    hand.change(&[MemberChange::Remove(1)]);
    hand.deliver_all();
    assert!(hand.ended[&1].contains("removed from its cluster"), "{:?}", hand.ended);
    hand.elect(2, |_| true);
    assert_eq!(names(&hand, 2), (vec![2, 3], vec![]));
}

#[test]
fn leadership_is_not_handed_to_one_that_is_cut_off_or_far_behind() {
    let mut hand = ByHand::led(3);
    let writes_go_on = |hand: &mut ByHand, id: &str| {
        hand.machines[&1].store.transfer_leadership(3);
        hand.run(1);
        let mut asked = hand.propose(1, make(id));
        hand.deliver(|sent| !sent.concerns(3));
        assert!(matches!(asked.answer(), Some(Ok(_))), "{id}: raft-rs refuses proposals while it waits for the successor");
    };
    // Its connection stands, and what it is sent does not arrive.
    for number in 0..1500 {
        let mut asked = hand.propose(1, make(&format!("{number:04}")));
        hand.deliver(|sent| sent.message.to != 3 || !sent.is(MessageType::MsgAppend));
        asked.answer().unwrap().unwrap();
    }
    hand.beat(|sent| !sent.is(MessageType::MsgAppend));
    writes_go_on(&mut hand, "behind");
    (0..20).for_each(|_| drop(hand.beat(|_| true)));
    assert!(has(&hand.machines[&3].store.state(), "behind"));
    (0..12).for_each(|_| drop(hand.beat(|sent| !sent.concerns(3))));
    writes_go_on(&mut hand, "cut off");
    // One that has kept up takes over.
    hand.machines[&1].store.transfer_leadership(2);
    hand.run(1);
    hand.deliver_all();
    assert!(hand.leads(2) && !hand.leads(1));
}

/// As while its disk hangs.
#[tokio::test]
async fn who_hands_leadership_over_does_not_wait_for_a_leader_that_takes_nothing_in() {
    let hand = ByHand::led(3);
    soon("it gives up", hand.machines[&1].store.hand_over()).await;
    assert!(hand.leads(1));
}

#[test]
fn a_leader_that_nobody_answers_steps_down_in_two_election_times_and_confirms_nothing() {
    let mut hand = ByHand::led(3);
    let mut asked = hand.propose(1, make("a"));
    let mut read = hand.read(1);
    let stepped_down = (0..2 * config(1, 1).timing.election).any(|_| {
        hand.tick(&[1]);
        hand.take();
        !hand.leads(1)
    });
    assert!(stepped_down, "it leads on");
    assert!(matches!(asked.answer(), Some(Err(ProposeError::Unavailable))));
    assert_eq!(read.answer(), None);
}

#[test]
fn a_log_that_says_more_is_committed_than_it_has_is_refused() {
    let config = config(1, 1);
    let disk = Disk::new(&config);
    disk.claim_committed(9);
    let refused = assemble(config, disk, |inbox| Network::default().wire(1, inbox), Box::new(Nothing), 1).err().unwrap();
    let StoreError::Log(LogError::Damaged(why)) = &refused else { panic!("{refused}") };
    assert!(why.contains("says that 9 is committed"), "{why}");
}

/// The surroundings of a store that does not start.
struct Nothing;

impl rcluster_manager::store::Environment for Nothing {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn beside(&mut self, _job: rcluster_manager::store::Job) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_is_promised_or_shown_is_on_the_disk_before() {
    // Looked at with each message and each round, see `by_hand`; here it is seen that there was something to look at.
    let mut hand = ByHand::new(3);
    let mut kinds = Vec::new();
    let mut look = |sent: &Sent| {
        kinds.push(sent.message.get_msg_type());
        true
    };
    hand.elect(1, &mut look);
    let mut asked = hand.propose(1, make("a"));
    hand.deliver(&mut look);
    asked.answer().unwrap().unwrap();
    for promise in [MessageType::MsgRequestVoteResponse, MessageType::MsgAppendResponse] {
        assert!(kinds.contains(&promise), "{promise:?}");
    }
}

#[test]
fn where_managers_are_is_known_to_be_committed_after_a_crash() {
    let mut hand = ByHand::led(2);
    let expected = hand.machines[&1].store.state().version(Kind::Manager, "m2");
    let moved = Manager { addr: "127.0.0.1:20002".to_owned(), ..manager(&member(2)) };
    let changes = vec![Change::Put { expected, object: Object::Manager(moved) }];
    let mut asked = hand.propose(1, Transaction { at_ms: 1, changes });
    hand.deliver_all();
    let revision = asked.answer().unwrap().unwrap();
    // What is only held in memory goes with the process; the next batch may never come.
    assert!(hand.machines[&1].disk.hard_state().commit >= revision);
}

#[test]
fn a_snapshot_is_of_what_is_applied_and_not_of_what_is_committed() {
    let mut hand = ByHand::tuned(3, |config| (config.snapshot_entries, config.trailing_entries) = (20, 5));
    hand.elect(1, |_| true);
    hand.beat(|_| true);
    for number in 0..60 {
        let mut asked = hand.propose(1, make(&format!("{number:02}")));
        hand.deliver(|sent| !sent.concerns(3));
        asked.answer().unwrap().unwrap();
    }
    // That one is not reached, and the answer that commits a write, come in at once: what it needs is looked for before that is applied.
    let mut last = hand.propose(1, make("last"));
    let held = hand.deliver(|sent| sent.message.to == 2);
    hand.report_unreachable(1, 3);
    hand.bring_at_once(held.into_iter().filter(|sent| sent.message.to == 1).collect());
    assert!(matches!(last.answer(), Some(Ok(_))));
    let sent = hand.take();
    let snapshot = sent.iter().find(|sent| sent.state.is_some()).expect("the tables are sent");
    let (state, metadata) = (snapshot.state.as_ref().unwrap(), snapshot.message.get_snapshot().get_metadata());
    assert!(!has(state, "last"), "it was not applied when they were asked for");
    assert_eq!(metadata.index, state.revision(), "tables of one revision are sent as those of another");
    assert!(metadata.get_conf_state().voters.contains(&3));
    sent.into_iter().for_each(|sent| hand.bring(sent));
    (0..3).for_each(|_| drop(hand.beat(|_| true)));
    assert!(has(&hand.machines[&3].store.state(), "last"));
}

/// Also when nothing is written, and not all the time.
#[test]
fn a_snapshot_that_takes_old_keys_off_the_disk_is_tried_until_it_is_made() {
    let mut hand = ByHand::led(1);
    let disk = hand.machines[&1].disk.clone();
    write(&mut hand, "before");
    disk.refuse_snapshots(true);
    disk.rekey();
    hand.machines[&1].store.rekeyed();
    hand.run(1);
    assert_eq!((disk.snapshots_refused(), disk.has_older_keys()), (1, true));
    for number in 0..100 {
        write(&mut hand, &format!("{number:02}"));
    }
    assert_eq!(disk.snapshots_refused(), 1, "a disk without room is not tried with each write");
    disk.refuse_snapshots(false);
    let ticks = Duration::from_secs(30).as_millis() / config(1, 1).timing.tick.as_millis();
    (0..ticks).for_each(|_| hand.tick(&[1]));
    assert!(!disk.has_older_keys(), "the keys of before open the disk");
    assert_eq!(disk.entries_kept(), 0);
}

#[test]
fn a_snapshot_that_did_not_arrive_is_sent_again_once_that_is_known() {
    let mut hand = ByHand::led(1);
    hand.join(2);
    hand.change(&[MemberChange::Learner(2)]);
    let lost = hand.beat(|sent| sent.state.is_none());
    assert_eq!(lost.len(), 1);
    // Until then it is on its way, for all that raft-rs knows, and nothing else is sent.
    let waiting = hand.beat(|sent| sent.state.is_none());
    assert!(waiting.is_empty());
    hand.report_lost(1, 2);
    (0..2).for_each(|_| drop(hand.beat(|_| true)));
    assert_eq!(names(&hand, 2), (vec![1], vec![2]));
}

#[test]
fn when_a_store_stands_for_election_is_chosen_by_its_seed() {
    let mut both = [ByHand::new(5), ByHand::new(5)];
    for round in 0..6 {
        let [one, other] = &mut both;
        for hand in [&mut *one, &mut *other] {
            let leader = round % 5 + 1;
            hand.elect(leader, |_| true);
            hand.tick(&[1, 2, 3, 4, 5]);
            hand.deliver_all();
        }
        let chosen =
            |hand: &ByHand| hand.machines.values().map(|machine| machine.node.raft().randomized_election_timeout()).collect::<Vec<_>>();
        assert_eq!(chosen(one), chosen(other));
        // One after the other: no two of them at a time.
        assert!(chosen(one).windows(2).all(|pair| pair[0] < pair[1]), "{:?}", chosen(one));
    }
}

#[test]
fn nothing_that_matters_is_left_at_the_librarys_defaults() {
    let mut hand = ByHand::led(3);
    let raft = hand.machines[&1].node.raft();
    assert!(raft.pre_vote && raft.check_quorum);
    assert!(raft.max_msg_size > 0 && raft.max_msg_size < u64::MAX && raft.max_inflight < 256);
    let lagging = |sent: &Sent| !sent.concerns(3);
    for number in 0..100 {
        let mut asked = hand.propose(1, make(&format!("{number:02}")));
        hand.deliver(lagging);
        asked.answer().unwrap().unwrap();
    }
    hand.beat(lagging);
    let mut most = 0;
    for _ in 0..3 {
        hand.beat(|sent| {
            most = most.max(sent.message.entries.len());
            true
        });
    }
    assert!(has(&hand.machines[&3].store.state(), "99"));
    // The default is one entry in each message.
    assert!(most > 50, "{most} entries at once");
    let mut large: Vec<_> = (0..12).map(|number| hand.propose(1, make_large(&format!("large {number}"), 500 << 10))).collect();
    let uncommitted = hand.machines[&1].node.raft().uncommitted_size();
    assert!(uncommitted > 12 * (500 << 10), "{uncommitted} bytes: without a limit raft-rs counts none");
    let answers = hand.deliver(|sent| sent.message.to != 1);
    hand.bring_at_once(answers);
    for asked in &mut large {
        asked.answer().unwrap().unwrap();
    }
    // Committed at once, and longer than what is kept in memory.
    let most = hand.machines[&1].disk.read_at_once();
    assert!((1 << 20..=4 << 20).contains(&most), "{most} bytes were taken from the log to be applied at once");
}

/// Set in the process that is to end.
const TO_PANIC: &str = "RCLUSTER_TEST_STORE_PANICS";

#[test]
fn a_store_that_panics_takes_its_process_with_it() {
    if std::env::var_os(TO_PANIC).is_some() {
        return panic_in_a_store();
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "pitfalls::a_store_that_panics_takes_its_process_with_it", "--nocapture"]).env(TO_PANIC, "1");
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(Signal::SIGABRT as i32), "{said}");
    assert!(said.contains("this disk panics"), "{said}");
}

/// A disk with a defect of ours in it.
struct Panics(Disk);

impl LogStore for Panics {
    fn load(&mut self) -> Result<Loaded, LogError> {
        self.0.load()
    }

    fn write(&mut self, _batch: &Batch<'_>) -> Result<(), LogError> {
        panic!("this disk panics")
    }

    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        self.0.entries(low, high, bytes_max)
    }

    fn saver(&self) -> Saver {
        Box::new(|_: SnapshotMetadata, _: &[u8]| Ok(Saved::default()))
    }
}

fn panic_in_a_store() {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    let config = config(1, 1);
    let disk = Panics(Disk::new(&config));
    let (store, _inbound) = start_with(config, disk, |inbox| Network::default().wire(1, inbox), |_| {}).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The process ends before there is an answer. One whose store has gone would wait here, and look alive.
    let waited = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), store.read_barrier()).await });
    panic!("it goes on: {waited:?}");
}
