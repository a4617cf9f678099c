//! What waits for a store that takes nothing in, as while a write to its log hangs: so much, and no more.

use prost::Message as _;
use raft::eraftpb::{Message, MessageType};
use rcluster_manager::store::{Input, ProposeError};

use crate::by_hand::{Asked, ByHand};
use crate::world::make_large;

const MIB: usize = 1 << 20;
/// Most proposals that are in, and most bytes of them.
const PROPOSALS: usize = 256;
const PROPOSALS_BYTES: usize = 16 * MIB;
/// Most bytes of peers' messages.
const STEPS_BYTES: usize = 32 * MIB;

/// Bytes of each proposal that waits for the first store.
fn proposals(hand: &mut ByHand) -> Vec<usize> {
    let bytes = |input: &Input| if let Input::Propose { entry, .. } = input { Some(entry.encoded_len()) } else { None };
    hand.machines.get_mut(&1).unwrap().waiting().iter().filter_map(bytes).collect()
}

/// Bytes of each message that waits for the first store.
fn steps(hand: &mut ByHand) -> Vec<usize> {
    let bytes = |input: &Input| if let Input::Step { bytes, .. } = input { Some(*bytes) } else { None };
    hand.machines.get_mut(&1).unwrap().waiting().iter().filter_map(bytes).collect()
}

/// Takes the answers that are there away, and has those ask who find room now.
fn answered(asked: &mut Vec<Asked<Result<u64, ProposeError>>>) -> usize {
    let before = asked.len();
    asked.retain_mut(|asked| asked.answer().map(Result::unwrap).is_none());
    before - asked.len()
}

#[test]
fn proposals_beyond_what_is_permitted_wait_outside_until_others_are_committed() {
    for (count, bytes) in [(1000, 0), (40, MIB)] {
        let mut hand = ByHand::led(3);
        let mut asked: Vec<_> = (0..count).map(|number| hand.propose_unheard(1, make_large(&format!("{number:04}"), bytes))).collect();
        let first = proposals(&mut hand);
        let in_all: usize = first.iter().sum();
        assert!(first.len() <= PROPOSALS && in_all <= PROPOSALS_BYTES, "{} of {in_all} bytes are in", first.len());
        assert!(first.len() < count, "all are in");
        assert!(first.len() == PROPOSALS || in_all + 2 * first[0] > PROPOSALS_BYTES, "only {in_all} bytes are in");
        // Taken in and not committed, they still have their places.
        hand.run(1);
        assert_eq!((answered(&mut asked), proposals(&mut hand).len()), (0, 0));
        hand.deliver_all();
        assert_eq!(answered(&mut asked), first.len());
        while !asked.is_empty() {
            let next = proposals(&mut hand).len();
            assert!(next > 0 && next <= first.len(), "{next} are in, and {} wait", asked.len());
            hand.run(1);
            hand.deliver_all();
            assert_eq!(answered(&mut asked), next);
        }
        assert_eq!(hand.machines[&1].store.state().events().len(), count);
    }
}

/// A late answer to a heartbeat, with so many bytes.
fn message(bytes: usize) -> Message {
    let mut message = Message { from: 2, to: 1, term: 1, context: vec![0_u8; bytes].into(), ..Message::default() };
    message.set_msg_type(MessageType::MsgHeartbeatResponse);
    message
}

#[test]
fn messages_beyond_what_may_wait_are_lost_and_what_is_taken_in_makes_room() {
    let mut hand = ByHand::led(3);
    let inbound = hand.machines[&1].inbound.clone();
    for _ in 0..2 {
        for _ in 0..40 {
            inbound.step(message(MIB)).unwrap();
        }
        let waiting = steps(&mut hand);
        // Each has some bytes more.
        assert_eq!(waiting.len(), 31);
        assert!(waiting.iter().all(|bytes| *bytes > MIB) && waiting.iter().sum::<usize>() <= STEPS_BYTES, "{waiting:?}");
        // What is smaller still fits.
        inbound.step(message(MIB / 2)).unwrap();
        assert_eq!(steps(&mut hand).len(), 32);
        hand.run(1);
        assert_eq!(steps(&mut hand).len(), 0);
    }
    // One that is larger than all the room there is passes alone: it would never arrive otherwise.
    for _ in 0..2 {
        inbound.step(message(STEPS_BYTES)).unwrap();
    }
    assert_eq!(steps(&mut hand).len(), 1);
    hand.run(1);
    inbound.step(message(MIB)).unwrap();
    assert_eq!(steps(&mut hand).len(), 1);
    hand.run(1);
    assert!(hand.leads(1));
}
