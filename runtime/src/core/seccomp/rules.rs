//! What every number of a system call means under a profile.
//!
//! In: a checked [`Profile`]. Out: for each architecture the kernel tells apart, [`Span`]s that cover all numbers. Where the
//! specification is silent:
//!
//! * A rule whose action is the default's says nothing, and gives way to any other rule (runc).
//! * Of rules for one call, one without conditions holds for all of it, wherever it stands in the list; of several such, the first
//!   (libseccomp). Else the first rule whose conditions all hold decides (libseccomp refuses or reorders such rules, by the shape of its
//!   tree), and with none the default does.
//! * All conditions of a rule must hold; but when two of them test one argument, any of them will do (runc and crun, for old profiles).
//! * A number without a rule above every one the profile names, on an architecture on which it names one, is answered ENOSYS and not by
//!   the default, so that programs fall back from calls that the profile's author could not know (runc; clone3 under an old profile). Not
//!   so where the default lets the call pass or leaves it to a tracer.
//! * On 32-bit x86 a call can also be made packed into `socketcall` or `ipc`, whose arguments a filter cannot follow. A rule without
//!   conditions holds there too. One with conditions does if it forbids; if it allows, what cannot be checked is left to the default.

use super::profile::{Action, Condition, Profile, Rule, Test};
use super::syscalls::{self, Packed};
use super::{Architecture, HandOver};

/// What is done about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    Always(Action),
    /// The first alternative of which all conditions hold, or the default.
    Tested {
        width: Width,
        alternatives: Vec<Alternative>,
    },
}

/// How much of an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// The lower half, with the lower half of what the profile says: the kernel's own view of the 32-bit architectures.
    Word,
    Long,
}

/// One way for a call to be answered other than by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternative {
    pub conditions: Vec<Condition>,
    pub action: Action,
}

/// Numbers from here up to the next span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub from: u32,
    pub meaning: Meaning,
}

/// One value of `seccomp_data.arch` and what its numbers mean, from 0 to the last there can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// `AUDIT_ARCH_*` (linux/audit.h).
    pub token: u32,
    pub spans: Vec<Span>,
}

/// What is done about calls of an architecture that the profile does not list (libseccomp's default).
pub const FOREIGN: Action = Action::KillThread;

/// The bit that marks the numbers of x32 (asm/unistd.h).
pub const X32_BIT: u32 = 0x4000_0000;

/// arm's own calls lie far above all others (asm/unistd.h); that a profile names one says nothing of those between.
const ARM_PRIVATE: u32 = 0xf_0000;

const ENOSYS: Action = Action::Errno(38);

/// The sections of a profile, the machine's own first.
pub fn sections(profile: &Profile) -> Vec<Section> {
    let names = names(profile);
    let spans = |architecture| spans(profile, &names, architecture);
    let section = |architecture: &Architecture| {
        let (token, spans) = match architecture {
            Architecture::X86_64 if profile.architectures.contains(&Architecture::X32) => {
                (0xc000_003e, beside(spans(Architecture::X86_64), spans(Architecture::X32)))
            }
            // A tracer that skips a call sets its number to -1, which is no call of x32.
            Architecture::X86_64 => (
                0xc000_003e,
                beside(spans(Architecture::X86_64), {
                    let minus_one = u32::MAX - X32_BIT;
                    vec![always(0, FOREIGN), always(minus_one, profile.default)]
                }),
            ),
            // The kernel reports x86_64.
            Architecture::X32 => return None,
            Architecture::X86 => (0x4000_0003, spans(Architecture::X86)),
            Architecture::Aarch64 => (0xc000_00b7, spans(Architecture::Aarch64)),
            Architecture::Arm => (0x4000_0028, spans(Architecture::Arm)),
        };
        Some(Section { token, spans: merged(spans) })
    };
    profile.architectures.iter().filter_map(section).collect()
}

/// The call by which the container's process can hand its notifications over: one that its filter lets pass, whatever its arguments.
pub fn hand_over(profile: &Profile) -> Option<HandOver> {
    let names = names(profile);
    let native = *profile.architectures.first()?;
    let spans = spans(profile, &names, native);
    let passes = |name: &str| {
        let number = syscalls::find(name).and_then(|row| row.number(native))?;
        let span = spans.iter().rev().find(|span| span.from <= number)?;
        matches!(span.meaning, Meaning::Always(Action::Allow | Action::Log)).then_some(())
    };
    passes("sendmsg").map(|()| HandOver::Message).or_else(|| passes("write").map(|()| HandOver::Number))
}

/// A rule for one name that some architecture knows.
struct Named<'a> {
    name: &'a str,
    row: &'static syscalls::Row,
    rule: &'a Rule,
}

/// Names that no architecture knows are skipped, as by runc: a profile is written for more kernels than one.
fn names(profile: &Profile) -> Vec<Named<'_>> {
    let all = profile.rules.iter().flat_map(|rule| rule.names.iter().map(move |name| (name, rule)));
    all.filter_map(|(name, rule)| Some(Named { name, row: syscalls::find(name)?, rule })).collect()
}

/// What a rule says of one number.
struct Claim {
    number: u32,
    /// The lower one goes first; of equal ones, the first in the list.
    rank: Rank,
    alternative: Alternative,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Of the whole call.
    Call,
    /// Of all of a call that is packed into it.
    Packed,
    Arguments,
}

/// One architecture's numbers; x32's without its bit.
fn spans(profile: &Profile, names: &[Named<'_>], architecture: Architecture) -> Vec<Span> {
    let mut claims = Vec::with_capacity(names.len());
    let mut last = None;
    for Named { name, row, rule } in names {
        let number = row.number(architecture);
        let packed = syscalls::packed(name, architecture);
        // One that can be packed got its number late: who names it need not know those before.
        last = last.max(number.filter(|number| *number < ARM_PRIVATE && packed.is_none()));
        if rule.action != profile.default {
            if let Some(number) = number {
                claim(number, rule, &mut claims);
            }
            claims.extend(packed.and_then(|packed| through(packed, rule)));
        }
    }
    claims.sort_by_key(|claim| (claim.number, claim.rank));
    let passes = matches!(profile.default, Action::Allow | Action::Log | Action::Trace(_));
    let unknown_from = last.filter(|_| !passes).map(|last| last + 1);
    let private_from = Some(ARM_PRIVATE).filter(|_| architecture == Architecture::Arm);
    let unclaimed = |from: u32| {
        let unknown = unknown_from.is_some_and(|unknown| from >= unknown) && private_from.is_none_or(|private| from < private);
        always(from, if unknown { ENOSYS } else { profile.default })
    };
    let groups = || claims.chunk_by(|one, other| one.number == other.number);
    let after = groups().map(|group| group[0].number + 1);
    let mut spans: Vec<Span> = [0].into_iter().chain(unknown_from).chain(private_from).chain(after).map(unclaimed).collect();
    spans.extend(groups().map(|group| Span { from: group[0].number, meaning: meaning(group, width(architecture)) }));
    // A stable sort: where one number begins both kinds, what is claimed comes last and is kept.
    spans.sort_by_key(|span| span.from);
    spans
}

fn width(architecture: Architecture) -> Width {
    match architecture {
        Architecture::X86_64 | Architecture::Aarch64 => Width::Long,
        Architecture::X86 | Architecture::X32 | Architecture::Arm => Width::Word,
    }
}

/// Adds what a rule says of a call of its own number.
fn claim(number: u32, rule: &Rule, claims: &mut Vec<Claim>) {
    let Rule { names: _, action, conditions } = rule;
    let rank = if conditions.is_empty() { Rank::Call } else { Rank::Arguments };
    let claim = |conditions| Claim { number, rank, alternative: Alternative { conditions, action: *action } };
    let twice = |(place, condition): (usize, &Condition)| conditions[..place].iter().any(|other| other.index == condition.index);
    if conditions.iter().enumerate().any(twice) {
        claims.extend(conditions.iter().map(|condition| claim(vec![*condition])));
    } else {
        claims.push(claim(conditions.clone()));
    }
}

/// What a rule says of a call that is packed into another.
fn through(packed: Packed, rule: &Rule) -> Option<Claim> {
    let Packed { number, mask, value } = packed;
    let forbids = !matches!(rule.action, Action::Allow | Action::Log);
    let rank = match (rule.conditions.is_empty(), forbids) {
        (true, _) => Rank::Packed,
        (false, true) => Rank::Arguments,
        (false, false) => return None,
    };
    let conditions = vec![Condition { index: 0, test: Test::MaskedEqual { mask, value } }];
    Some(Claim { number, rank, alternative: Alternative { conditions, action: rule.action } })
}

/// What the claims for one number come to, in their order.
fn meaning(claims: &[Claim], width: Width) -> Meaning {
    let first = &claims[0].alternative;
    if first.conditions.is_empty() {
        return Meaning::Always(first.action);
    }
    Meaning::Tested { width, alternatives: claims.iter().map(|claim| claim.alternative.clone()).collect() }
}

fn always(from: u32, action: Action) -> Span {
    Span { from, meaning: Meaning::Always(action) }
}

/// x86_64's numbers with x32's behind them.
fn beside(x86_64: Vec<Span>, x32: Vec<Span>) -> Vec<Span> {
    let shifted = x32.into_iter().map(|span| Span { from: span.from + X32_BIT, ..span });
    x86_64.into_iter().chain(shifted).collect()
}

/// Leaves out spans without numbers and those that mean what the one before means.
fn merged(spans: Vec<Span>) -> Vec<Span> {
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        if merged.last().is_some_and(|last| last.from == span.from) {
            merged.pop();
        }
        if merged.last().is_none_or(|last| last.meaning != span.meaning) {
            merged.push(span);
        }
    }
    merged
}
