//! The end of the faults, and whether all becomes well.

use rcluster_api::cluster::ManagerRole;
use rcluster_manager::core::members::next;
use rcluster_manager::drive::standing;

use crate::check::Violation;
use crate::host::Host;
use crate::world::{Event, World};

/// Who is so many entries behind while clients go on writing has caught up.
const BEHIND_MAX: u64 = 50;

impl World {
    /// The faults end: wires carry, disks write, clocks go right, and whoever is down is started.
    pub fn calm(&mut self) -> Result<(), Violation> {
        self.tell(|| String::from("the faults end"));
        self.is_calm = true;
        self.calm_since_us = self.now_us;
        self.network.calm();
        for host in 0..self.hosts.len() {
            let now_us = self.now_us;
            self.hosts[host].clock.set_rate(now_us, 1_000_000);
            self.hosts[host].frozen_until_us = now_us;
            if let Host { process: Some(process), life, .. } = &mut self.hosts[host] {
                process.go_on(now_us);
                if process.is_hanging {
                    self.queue.push(now_us, Event::Round { host, life: *life });
                }
            }
            if let Some(manager) = &self.hosts[host].manager {
                manager.disk.set_write_us(self.plan.write_us);
                manager.disk.set_full(false);
                manager.disk.mend();
            }
            self.start(host)?;
        }
        self.queue.push(self.now_us + 1_000_000, Event::Inspect);
        self.around(|cluster, here| {
            cluster.calm(here);
            Ok(())
        })
    }

    /// Whether all is well: someone leads, the managers are what their objects say, and all have what was ever committed.
    pub fn inspect(&self) -> Result<(), String> {
        let leader = self.leader().ok_or("nobody leads")?;
        let process = self.hosts[leader].process.as_ref().ok_or("nobody leads")?;
        let status = process.store.status();
        let state = self.checker.latest();
        let step = next(state.managers().values().map(AsRef::as_ref), &standing(&status));
        if status.configuration.joint || step.is_some() {
            return Err(format!("the members are not settled: {:?}, next {step:?}", status.configuration));
        }
        if let Some(host) = self.hosts.iter().find(|host| host.joining) {
            return Err(format!("{} has not joined yet", host.name));
        }
        for manager in state.managers().values() {
            let id = manager.raft_id;
            let configured = match manager.role {
                ManagerRole::Voter => &status.configuration.voters,
                ManagerRole::Standby => &status.configuration.learners,
                ManagerRole::Leaving => {
                    let roles: Vec<_> = state.managers().values().map(|manager| (manager.raft_id, manager.role)).collect();
                    return Err(format!("{id} has not left yet: {roles:?}, {:?}", standing(&status)));
                }
            };
            if !configured.contains(&id) {
                return Err(format!("{id} is to be {:?}, and is not in {:?}", manager.role, status.configuration));
            }
            let Some(process) = self.host_of(id).and_then(|host| self.hosts[host].process.as_ref()) else {
                // One that was never started: its joiner has not heard that it was taken in, and has become another.
                return Err(format!("{id} does not run"));
            };
            let applied = process.node.raft().store().applied();
            if applied + BEHIND_MAX < self.checker.last() {
                return Err(format!("{id} has applied {applied} of {}", self.checker.last()));
            }
        }
        Ok(())
    }

    /// Whether clients are served again: faults may have left behind what nobody sees who only looks.
    pub fn inspect_service(&self) -> Result<(), String> {
        let (writes, reads) = self.served;
        if self.plan.clients > 0 && (writes == 0 || reads == 0) {
            return Err(format!("{writes} writes were made and {reads} reads answered"));
        }
        Ok(())
    }
}
