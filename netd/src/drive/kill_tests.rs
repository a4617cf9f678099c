//! netd is killed at its work, and goes on from there.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::tests::{Bench, bench, request, start};
use super::*;
use crate::core::fixtures::{balanced, endpoint, view};
use crate::kernel::fake::Fake;

/// What both hold.
fn in_both(one: &Dataplane, other: &Dataplane) -> Vec<String> {
    let mut other = things(other);
    other.sort();
    things(one).into_iter().filter(|text| other.binary_search(text).is_ok()).collect()
}

/// Everything that packets depend on, as text.
fn things(held: &Dataplane) -> Vec<String> {
    let links = held.links.keys().map(|name| format!("device {name}"));
    let routes = held.routes.iter().map(|(to, route)| format!("route {to} {route}"));
    let neighbours = held.neighbours.keys().map(|(link, ip)| format!("neighbour {ip} on {link}"));
    let forwards = held.forwards.iter().map(|forward| format!("forward {forward}"));
    let elements = held.elements.iter().map(|(key, data)| format!("element {key:?} {data:?}"));
    let pods = held.pods.keys().map(|task| format!("pod {task}"));
    links.chain(routes).chain(neighbours).chain(forwards).chain(elements).chain(pods).collect()
}

#[test]
fn killed_at_work_on_a_picture_it_goes_on_from_the_one_that_was_answered_and_takes_away_nothing_that_is_in_both() {
    let mut second = view(2);
    second.networks[0].endpoints.remove(2);
    second.networks[0].endpoints.push(endpoint("t5", "n3", "10.128.0.7"));
    second.networks[1].endpoints.clear();
    for lives in 0.. {
        let Bench { mut owner, _dir } = bench();
        owner.apply_view(&view(1)).unwrap();
        owner.attach(&request("t1", "10.128.0.2")).unwrap();
        let both = in_both(&owner.wanted(), &compile(&Picture::parse(&second).0, &owner.attachments, &owner.underlay));
        assert!(both.len() > 10 && both.len() < things(&owner.wanted()).len());
        owner.kernel.lives = Some(lives);
        let Err(killed) = survives(|| owner.apply_view(&second).unwrap()) else {
            assert!(lives > 5, "the second picture took {lives} operations");
            assert_eq!(start(_dir.path(), mem::take(&mut owner.kernel), true).picture.revision, 2);
            return;
        };
        let held = *killed;
        let gone = |held: &Dataplane| {
            let mut now = things(held);
            now.sort();
            both.iter().find(|thing| now.binary_search(thing).is_err()).cloned()
        };
        assert_eq!(gone(&held), None, "killed after {lives}");
        let restarted = start(_dir.path(), Fake { held, ..Fake::default() }, true);
        assert_eq!((gone(&restarted.kernel.held), restarted.picture.revision), (None, 1), "killed after {lives}, and started");
        assert_eq!(restarted.kernel.held, restarted.wanted(), "killed after {lives}, and started");
    }
}

#[test]
fn a_picture_that_was_answered_is_in_force_after_a_kill_whatever_the_disk_has() {
    let Bench { mut owner, _dir } = bench();
    for revision in 1..20 {
        owner.apply_view(&view(revision)).unwrap();
        // The old one is still there, and may be writing.
        let restarted = start(_dir.path(), Fake::default(), true);
        assert_eq!(restarted.picture.revision, revision);
    }
}

/// The service `web` has its endpoints at these last octets: even ones here, odd ones on n2.
fn balanced_over(revision: u64, lasts: &[u8]) -> v1::NetView {
    let mut balanced = balanced(revision);
    let endpoint = |last: &u8| {
        let node = if last.is_multiple_of(2) { "n1" } else { "n2" };
        let plain = endpoint(&format!("t{last}"), node, &format!("10.128.0.{last}"));
        v1::EndpointView { service_id: "web".into(), ..plain }
    };
    balanced.networks[0].endpoints = lasts.iter().map(endpoint).collect();
    balanced
}

/// Whether all is held that was held `before` and is `after`.
fn keeps(held: &Dataplane, before: &Dataplane, after: &Dataplane) -> bool {
    fn all<K: Ord, V: PartialEq>(held: &BTreeMap<K, V>, before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> bool {
        before.iter().all(|(key, value)| after.get(key) != Some(value) || held.get(key) == Some(value))
    }
    all(&held.links, &before.links, &after.links)
        && all(&held.neighbours, &before.neighbours, &after.neighbours)
        && all(&held.routes, &before.routes, &after.routes)
        && all(&held.elements, &before.elements, &after.elements)
        && all(&held.pods, &before.pods, &after.pods)
        && before.forwards.intersection(&after.forwards).all(|forward| held.forwards.contains(forward))
        && before.host.peers.intersection(&after.host.peers).all(|node| held.host.peers.contains(node))
}

/// What the work comes to, or what the kernel holds when netd is killed at it.
fn survives<T>(work: impl FnOnce() -> T) -> Result<T, Box<Dataplane>> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| match payload.downcast::<Dataplane>() {
        Ok(held) => held,
        Err(other) => resume_unwind(other),
    })
}

/// netd is killed after each number of operations that `deed` takes, started again and killed after as many, and started once more: what
/// stays is never touched, and the deed then comes to the same as undisturbed.
fn killed_after_every_operation(prepare: impl Fn(&mut Owner<Fake>), deed: impl Fn(&mut Owner<Fake>)) {
    let Bench { mut owner, _dir } = bench();
    prepare(&mut owner);
    let before = owner.kernel.held.clone();
    deed(&mut owner);
    let after = owner.kernel.held.clone();
    assert_ne!(before, after);
    for lives in 0.. {
        let Bench { mut owner, _dir } = bench();
        prepare(&mut owner);
        owner.kernel.lives = Some(lives);
        let Err(killed) = survives(|| deed(&mut owner)) else {
            assert!(lives > 0, "it took no operation");
            return;
        };
        assert!(keeps(&killed, &before, &after), "killed after {lives}: {:?}", owner.kernel.obeyed);
        let restart = |held: Dataplane, lives| survives(|| start(_dir.path(), Fake { held, lives, ..Fake::default() }, true));
        let mut owner = restart(*killed, Some(lives)).unwrap_or_else(|killed| {
            assert!(keeps(&killed, &before, &after), "killed after {lives}, and again");
            restart(*killed, None).unwrap_or_else(|_| panic!("nobody kills it"))
        });
        assert!(keeps(&owner.kernel.held, &before, &after), "killed after {lives}, and started");
        owner.kernel.lives = None;
        deed(&mut owner);
        assert_eq!(owner.kernel.held, after, "killed after {lives}");
        owner.kernel.obeyed.clear();
        owner.check();
        assert_eq!(owner.kernel.obeyed, Vec::<String>::new(), "killed after {lives}");
    }
}

#[test]
fn killed_after_any_operation_it_goes_on_and_what_stays_is_never_touched() {
    let applies = |view: v1::NetView| move |owner: &mut Owner<Fake>| drop(owner.apply_view(&view).unwrap());
    let attaches = |task: &'static str, ip: &'static str| move |owner: &mut Owner<Fake>| drop(owner.attach(&request(task, ip)).unwrap());
    let first = || applies(balanced_over(1, &[2, 3, 4]));
    let running = || {
        let (applies, one, two) = (first(), attaches("t2", "10.128.0.2"), attaches("t4", "10.128.0.4"));
        move |owner: &mut Owner<Fake>| {
            applies(owner);
            one(owner);
            two(owner);
        }
    };
    let mut other = balanced_over(2, &[2, 5, 6, 7]);
    other.networks[1].id = "net-c".into();
    (other.networks[1].vni, other.networks[1].subnet) = (4099, "10.128.2.0/24".into());
    other.networks[1].endpoints[0].ip = "10.128.2.2".into();
    killed_after_every_operation(|_| {}, first());
    killed_after_every_operation(running(), applies(other));
    killed_after_every_operation(running(), attaches("t9", "10.128.0.9"));
    killed_after_every_operation(running(), |owner: &mut Owner<Fake>| owner.leave("t4").unwrap());
    killed_after_every_operation(running(), |owner: &mut Owner<Fake>| owner.detach("t4", 0).unwrap());
}
