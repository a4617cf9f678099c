//! Decides which manager to turn to next, and what a person is to hear when all is in vain.
//!
//! In: the managers' addresses, who was named as leader, who was lost and why. Out: an address, or that a whole round was in vain, and what
//! is news about that. Never waits: the pause between rounds is the caller's.

/// How often in a round a manager may send the agent on to another.
const REDIRECTS_MAX: u32 = 3;

/// The search for the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seek {
    configured: Vec<String>,
    known: Vec<String>,
    leader: Option<String>,
    cursor: usize,
    tried: usize,
    redirects: u32,
}

impl Seek {
    /// Starts with the managers of the configuration, in their order.
    pub fn new(configured: Vec<String>) -> Self {
        Self { known: configured.clone(), configured, leader: None, cursor: 0, tried: 0, redirects: 0 }
    }

    /// The next to try; `None` after a whole round, and then it begins anew.
    pub fn turn(&mut self) -> Option<String> {
        if let Some(leader) = self.leader.take() {
            self.redirects += 1;
            return Some(leader);
        }
        if self.tried >= self.known.len() {
            (self.tried, self.redirects) = (0, 0);
            return None;
        }
        let address = self.known[self.cursor % self.known.len()].clone();
        (self.cursor, self.tried) = ((self.cursor + 1) % self.known.len(), self.tried + 1);
        Some(address)
    }

    /// A manager named another as the leader: that one is next, unless they send the agent round in circles.
    pub fn redirected(&mut self, leader: String) {
        if self.redirects < REDIRECTS_MAX {
            self.leader = Some(leader);
        }
    }

    /// A session came about: these are all managers, and the next search is a new one.
    pub fn welcomed(&mut self, by: &str, managers: &[String]) {
        let mut known = managers.to_vec();
        known.extend(self.configured.iter().filter(|address| !managers.contains(address)).cloned());
        self.cursor = known.iter().position(|address| address == by).map_or(0, |at| (at + 1) % known.len());
        self.known = known;
        (self.tried, self.redirects, self.leader) = (0, 0, None);
    }
}

/// Why no manager took the node since the last that did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InVain {
    why: String,
    told: Option<bool>,
}

impl InVain {
    /// An attempt has failed. A refused certificate stays in mind: other managers may just not be there.
    pub fn note(&mut self, address: &str, why: &str) {
        if !is_of_certificate(&self.why) {
            self.why = format!("{address}: {why}");
        }
    }

    /// After a whole round: why, and whether a certificate was refused, unless as much was said before.
    pub fn news(&mut self) -> Option<(String, bool)> {
        let why = Some(std::mem::take(&mut self.why)).filter(|why| !why.is_empty())?;
        let is_certificate = is_of_certificate(&why);
        let is_news = self.told.is_none_or(|told| is_certificate && !told);
        self.told = Some(is_certificate || self.told == Some(true));
        is_news.then_some((why, is_certificate))
    }
}

/// Whether an error of TLS is about this node's certificate or the manager's, by the names that rustls and RFC 8446 (6.2) give those.
fn is_of_certificate(why: &str) -> bool {
    ["ertificate", "UnknownCA", "DecryptError"].iter().any(|name| why.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn round(seek: &mut Seek) -> String {
        std::iter::from_fn(|| seek.turn()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_was_in_vain_is_told_once_and_again_when_it_is_a_certificate() {
        let mut in_vain = InVain::default();
        in_vain.note("a:1", "Connection refused");
        assert_eq!(in_vain.news(), Some(("a:1: Connection refused".into(), false)));
        in_vain.note("a:1", "no connection within 2000 ms");
        assert_eq!(in_vain.news(), None);
        in_vain.note("a:1", "Unknown: transport error: received fatal alert: CertificateExpired");
        in_vain.note("b:1", "Connection refused");
        assert_eq!(in_vain.news(), Some(("a:1: Unknown: transport error: received fatal alert: CertificateExpired".into(), true)));
        for why in ["invalid peer certificate: UnknownIssuer", "Connection refused"] {
            in_vain.note("a:1", why);
            assert_eq!(in_vain.news(), None, "{why}");
        }
    }

    #[test]
    fn a_round_without_a_reason_is_no_news_and_the_reason_after_it_is() {
        let mut in_vain = InVain::default();
        assert_eq!(in_vain.news(), None);
        in_vain.note("a:1", "Connection refused");
        assert_eq!(in_vain.news(), Some(("a:1: Connection refused".into(), false)));
        assert_eq!(in_vain.news(), None);
        in_vain.note("a:1", "CertificateExpired");
        assert_eq!(in_vain.news(), Some(("a:1: CertificateExpired".into(), true)));
    }

    #[test]
    fn a_round_asks_everyone_once() {
        let mut seek = Seek::new(strings(&["a", "b", "c"]));
        assert_eq!((round(&mut seek), round(&mut seek)), ("a b c".into(), "a b c".into()));
    }

    #[test]
    fn the_named_leader_is_next_but_not_for_ever() {
        let mut seek = Seek::new(strings(&["a", "b"]));
        assert_eq!(seek.turn().as_deref(), Some("a"));
        for _ in 0..3 {
            seek.redirected("z".into());
            assert_eq!(seek.turn().as_deref(), Some("z"));
        }
        seek.redirected("z".into());
        assert_eq!(round(&mut seek), "b");
    }

    #[test]
    fn after_a_session_the_search_begins_behind_the_manager_that_was_lost() {
        let mut seek = Seek::new(strings(&["a", "b"]));
        seek.welcomed("b", &strings(&["b", "c"]));
        assert_eq!(round(&mut seek), "c a b");
    }
}
