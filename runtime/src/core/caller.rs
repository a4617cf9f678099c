//! Decides what the caller of `create`, `run` or `exec` changes of a plan: what only the command line can say.
//!
//! In: a [`Plan`] and [`Caller`]. Out: the plan with steps changed or added. Never changes what the configuration asks for.

use super::plan::{Plan, Step};
use super::spec::ConsoleSize;

/// What the command line says beyond the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whether the caller stays and relays the terminal.
    pub foreground: bool,
    /// How large the caller's own terminal is, if it relays to one: from the start, not only once it relays.
    pub size: Option<ConsoleSize>,
    /// Descriptors after the standard ones that are passed on.
    pub preserved_fds: u32,
    /// Whether the old root is left behind by pivot_root(2), which a root on a ramfs does not allow.
    pub pivot: bool,
    /// The session keyring to begin or to join, so that the caller's keys are not the container's (keyrings(7)).
    pub keyring: Option<String>,
}

/// The plan as the caller wants it.
pub fn adapt(mut plan: Plan, caller: &Caller) -> Plan {
    for step in &mut plan.steps {
        match step {
            Step::CloseDescriptorsOnExec { preserved } => *preserved = caller.preserved_fds,
            Step::Terminal { relayed, size, .. } => {
                *relayed = caller.foreground;
                *size = caller.size.or(*size);
            }
            Step::PivotRoot if !caller.pivot => *step = Step::MoveRoot,
            _ => {}
        }
    }
    let session = plan.steps.iter().position(|step| *step == Step::NewSession);
    if let (Some(session), Some(name)) = (session, &caller.keyring) {
        plan.steps.insert(session + 1, Step::SessionKeyring(name.clone()));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_changed_in_their_places() {
        let steps = vec![Step::NewSession, Step::PivotRoot, Step::NoNewPrivileges, Step::CloseDescriptorsOnExec { preserved: 0 }];
        let plan = Plan { clone_namespaces: Vec::new(), trees: Vec::new(), steps: steps.clone(), notes: Vec::new() };
        let plain = Caller { foreground: false, size: None, preserved_fds: 0, pivot: true, keyring: None };
        assert_eq!(adapt(plan.clone(), &plain), plan);
        let asked = Caller { foreground: true, size: None, preserved_fds: 2, pivot: false, keyring: Some("_ses.web".into()) };
        let text: Vec<String> = adapt(plan, &asked).steps.iter().map(ToString::to_string).collect();
        let expected = [
            "begin a session",
            "begin or join the session keyring \"_ses.web\"",
            "root.path: move it over the root",
            "process.noNewPrivileges: set it",
            "close all but the standard descriptors and 2 more at exec",
        ];
        assert_eq!(text, expected);
    }
}
