//! `hooks` (config.md "POSIX-platform Hooks").

use super::Refusals;
use crate::core::hooks::{Hook, HookKind, Hooks};
use crate::core::spec;

/// The longest time a hook may be given, in seconds: a year.
const TIMEOUT_S_MAX: i64 = 365 * 24 * 3600;

impl Refusals {
    pub(super) fn hooks(&mut self, given: &spec::Hooks) -> Hooks {
        Hooks {
            prestart: self.hooks_of(HookKind::Prestart, &given.prestart),
            create_runtime: self.hooks_of(HookKind::CreateRuntime, &given.create_runtime),
            create_container: self.hooks_of(HookKind::CreateContainer, &given.create_container),
            start_container: self.hooks_of(HookKind::StartContainer, &given.start_container),
            poststart: self.hooks_of(HookKind::Poststart, &given.poststart),
            poststop: self.hooks_of(HookKind::Poststop, &given.poststop),
        }
    }

    fn hooks_of(&mut self, kind: HookKind, given: &[spec::Hook]) -> Vec<Hook> {
        given.iter().enumerate().map(|(index, hook)| self.hook(&format!("hooks.{kind}[{index}]"), hook)).collect()
    }

    fn hook(&mut self, field: &str, given: &spec::Hook) -> Hook {
        if !given.path.is_absolute() {
            self.refuse(format!("{field}.path"), format!("{:?} is not an absolute path", given.path));
        }
        for (name, list) in [("args", &given.args), ("env", &given.env)] {
            if let Some(index) = list.iter().position(|text| text.contains('\0')) {
                self.refuse(format!("{field}.{name}[{index}]"), "holds a NUL byte");
            }
        }
        if let Some(index) = given.env.iter().position(|pair| !pair.contains('=') || pair.starts_with('=')) {
            self.refuse(format!("{field}.env[{index}]"), format!("{:?} is not of the form NAME=value", given.env[index]));
        }
        if let Some(timeout) = given.timeout.filter(|timeout| !(1..=TIMEOUT_S_MAX).contains(timeout)) {
            self.refuse(format!("{field}.timeout"), format!("{timeout} s is not between 1 and {TIMEOUT_S_MAX}"));
        }
        let timeout_s = given.timeout.and_then(|timeout| u64::try_from(timeout).ok());
        Hook { path: given.path.clone(), args: given.args.clone(), env: given.env.clone(), timeout_s }
    }
}
