//! Which processes are a container's where it has no cgroup: those of its pid namespace and what they brought forth.
//!
//! In: what was seen of every process. Out: the ids, rising. A process in a namespace below the container's has an ancestor in the
//! container's own, whose first process takes the orphans of all below it over (pid_namespaces(7)).

use std::collections::{BTreeMap, BTreeSet};

/// What is seen of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// Whether it lives in the container's pid namespace itself.
    pub is_inside: bool,
}

/// The container's processes.
pub fn members(seen: &[Process]) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for process in seen {
        children.entry(process.parent).or_default().push(process.pid);
    }
    let mut found = BTreeSet::new();
    let mut left: Vec<i32> = seen.iter().filter(|process| process.is_inside).map(|process| process.pid).collect();
    while let Some(pid) = left.pop() {
        if found.insert(pid) {
            left.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_below_belong_and_those_beside_do_not() {
        let process = |(pid, parent, is_inside)| Process { pid, parent, is_inside };
        // 5 began 7 in a namespace of its own; 9 was executed from outside by 3.
        let seen = [(1, 0, false), (3, 1, false), (5, 1, true), (7, 5, false), (8, 7, false), (9, 3, true), (2, 1, false)].map(process);
        assert_eq!(members(&seen), [5, 7, 8, 9]);
        assert_eq!(members(&[]), [] as [i32; 0]);
        // Seen one after the other two can each seem the other's child.
        assert_eq!(members(&[(5, 7, true), (7, 5, false)].map(process)), [5, 7]);
    }
}
