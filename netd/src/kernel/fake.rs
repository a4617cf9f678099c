//! A kernel that holds a `Dataplane` and obeys, except where it is told to refuse, and until it is told to have netd die.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::panic::resume_unwind;

use ipnet::Ipv4Net;
use nix::errno::Errno;

use super::{Failure, HostSix, Kernel, KernelError, Pods};
use crate::core::dataplane::Dataplane;
use crate::core::encryption::PublicKey;
use crate::core::flows::Flow;
use crate::core::ingress::Target;
use crate::core::plan::Op;
use crate::core::published::Opening;

/// Simulates the kernel; `refuses` names, by a part of their text, operations that fail.
#[derive(Debug, Default)]
pub struct Fake {
    pub held: Dataplane,
    /// The connections that it tracks.
    pub flows: Vec<Flow>,
    /// Those of the host from elsewhere to itself.
    pub host_flows: Vec<Flow>,
    /// It forgets none of them.
    pub clings: bool,
    /// Nodes that answer when they are asked.
    pub answering: BTreeSet<Ipv4Addr>,
    /// Devices without carrier until they are asked for.
    pub quiet: BTreeSet<String>,
    pub refuses: Option<&'static str>,
    /// Why it cannot encrypt.
    pub no_encryption: Option<&'static str>,
    /// Operations until netd is killed: the next one unwinds the stack, with what is held as its payload.
    pub lives: Option<usize>,
    /// Ports of the host that other programs have, and which.
    pub taken: BTreeMap<Opening, String>,
    /// Where the host's own connections go.
    pub targets: BTreeMap<Opening, Vec<Target>>,
    /// How often that was said.
    pub led: usize,
    /// Where the host itself has ways to.
    pub routes: Vec<Ipv4Net>,
    pub host_six: HostSix,
    /// Everything that was asked of it.
    pub obeyed: Vec<String>,
}

impl Kernel for Fake {
    fn observe(&mut self, _: Pods<'_>) -> Result<Dataplane, KernelError> {
        Ok(self.held.clone())
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Failure> {
        let mut failures = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            let text = op.to_string();
            match &mut self.lives {
                Some(0) => resume_unwind(Box::new(self.held.clone())),
                Some(left) => *left -= 1,
                None => {}
            }
            if self.refuses.is_some_and(|part| text.contains(part)) {
                failures.push(Failure { index, error: KernelError::Refused { what: text, errno: Errno::EPERM } });
            } else {
                self.held.absorb(op);
                self.obeyed.push(text);
            }
        }
        failures
    }

    fn flows(&mut self, which: &dyn Fn(&Flow) -> bool) -> Result<Vec<Flow>, KernelError> {
        Ok(self.flows.iter().filter(|flow| which(flow)).cloned().collect())
    }

    fn forget(&mut self, flow: &Flow) -> Result<(), KernelError> {
        if self.clings {
            return Err(KernelError::Refused { what: format!("forget {flow}"), errno: Errno::EPERM });
        }
        self.flows.retain(|known| known != flow);
        Ok(())
    }

    fn host_flows(&mut self, which: &dyn Fn(&Flow) -> bool) -> Result<Vec<Flow>, KernelError> {
        Ok(self.host_flows.iter().filter(|flow| which(flow)).cloned().collect())
    }

    fn forget_on_host(&mut self, flow: &Flow) -> Result<(), KernelError> {
        self.host_flows.retain(|known| known != flow);
        Ok(())
    }

    fn silent(&mut self, nodes: &BTreeSet<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
        nodes.difference(&self.answering).copied().collect()
    }

    fn without_carrier(&mut self, links: &[String]) -> Vec<String> {
        links.iter().filter(|link| self.quiet.remove(*link)).cloned().collect()
    }

    fn indexes(&self) -> BTreeMap<u32, String> {
        (10..).zip(self.held.links.keys().cloned()).collect()
    }

    fn overlay_mtu(&mut self) -> Result<u32, KernelError> {
        Ok(1450)
    }

    fn no_encryption(&mut self) -> Option<String> {
        self.no_encryption.map(str::to_owned)
    }

    fn public_keys(&mut self) -> Result<BTreeMap<u64, PublicKey>, KernelError> {
        let epochs = self.held.host.tunnels.values().map(|tunnel| tunnel.epoch);
        Ok(epochs.map(|epoch| (epoch, PublicKey([u8::try_from(epoch).expect("a small number"); 32]))).collect())
    }

    fn tracked(&mut self) -> Result<(u64, u64), KernelError> {
        Ok((self.flows.len().try_into().unwrap_or(u64::MAX), 100))
    }

    fn keep_ports(&mut self, ports: &BTreeSet<Opening>, _: &BTreeSet<Opening>) -> BTreeMap<Opening, String> {
        self.taken.iter().filter(|(opening, _)| ports.contains(opening)).map(|(opening, by)| (*opening, by.clone())).collect()
    }

    fn lead(&mut self, targets: BTreeMap<Opening, Vec<Target>>) {
        self.targets = targets;
        self.led += 1;
    }

    fn has_six(&self) -> bool {
        true
    }

    fn host_routes(&mut self) -> Result<Vec<Ipv4Net>, KernelError> {
        Ok(self.routes.clone())
    }

    fn host_six(&mut self) -> Result<HostSix, KernelError> {
        Ok(self.host_six.clone())
    }
}
