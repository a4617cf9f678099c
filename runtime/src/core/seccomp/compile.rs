//! A profile as a program.
//!
//! ```text
//! load arch ── is x86_64? ── yes ─► load number ─► binary search over spans ─┬─► return
//!                  no                                                        └─► tests of arguments ─► return
//!              is x86? ── …
//!                  no ─► kill: an architecture that is not listed
//! ```
//!
//! The search is over spans of numbers with one meaning, not over calls: the hundreds of calls that a usual profile allows are a few
//! dozen spans, which half a dozen comparisons tell apart.

use std::fmt;

use super::Instruction;
use super::assemble::{Assembler, Compare, Label, Target};
use super::profile::{Action, Condition, Profile, Test};
use super::rules::{self, Alternative, FOREIGN, Meaning, Section, Span, Width};

/// `BPF_MAXINSNS` (linux/bpf_common.h).
const INSTRUCTIONS_MAX: usize = 4096;

/// Offsets in `struct seccomp_data` (linux/seccomp.h); the halves of an argument lie as on the little-endian machines this is for.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;
const HALF_BYTES: u32 = 4;

/// The program is longer than the kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong {
    pub instructions: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instructions } = self;
        write!(f, "come to {instructions} instructions and the kernel takes {INSTRUCTIONS_MAX}: use fewer args or architectures")
    }
}

/// Builds the program.
pub fn compile(profile: &Profile) -> Result<Vec<Instruction>, TooLong> {
    let mut compiler = Compiler { assembler: Assembler::default(), default: Target::Return(profile.default.verdict()) };
    let mut next = Target::Return(FOREIGN.verdict());
    for section in rules::sections(profile).iter().rev() {
        next = Target::At(compiler.section(section, next));
    }
    let first = compiler.assembler.label(next);
    compiler.assembler.load(ARCHITECTURE, u32::MAX, first);
    let program = compiler.assembler.finish();
    if program.len() > INSTRUCTIONS_MAX { Err(TooLong { instructions: program.len() }) } else { Ok(program) }
}

/// Whether a program can answer with a notification.
pub fn notifies(program: &[Instruction]) -> bool {
    let notify = Action::Notify.verdict();
    program.iter().any(|instruction| instruction.code == super::assemble::code::RETURN && instruction.value == notify)
}

struct Compiler {
    assembler: Assembler,
    default: Target,
}

impl Compiler {
    /// The calls of one architecture; `next` is gone to for another one.
    fn section(&mut self, section: &Section, next: Target) -> Label {
        let found = self.search(&section.spans);
        let found = self.assembler.label(found);
        let found = self.assembler.load(NUMBER, u32::MAX, found);
        self.assembler.branch(Compare::Equal, section.token, Target::At(found), next)
    }

    fn search(&mut self, spans: &[Span]) -> Target {
        let (low, high) = spans.split_at(spans.len() / 2);
        let Some(middle) = high.first().filter(|_| !low.is_empty()) else {
            return spans.first().map_or(self.default, |span| self.meaning(&span.meaning));
        };
        let high = self.search(high);
        let low = self.search(low);
        Target::At(self.assembler.branch(Compare::GreaterOrEqual, middle.from, high, low))
    }

    fn meaning(&mut self, meaning: &Meaning) -> Target {
        match meaning {
            Meaning::Always(action) => Target::Return(action.verdict()),
            Meaning::Tested { width, alternatives } => {
                let default = self.default;
                alternatives.iter().rev().fold(default, |otherwise, each| self.alternative(*width, each, otherwise))
            }
        }
    }

    fn alternative(&mut self, width: Width, alternative: &Alternative, otherwise: Target) -> Target {
        let yes = Target::Return(alternative.action.verdict());
        alternative.conditions.iter().rev().fold(yes, |yes, condition| self.condition(width, *condition, yes, otherwise))
    }

    fn condition(&mut self, width: Width, condition: Condition, yes: Target, no: Target) -> Target {
        let Condition { index, test } = condition;
        let low = ARGUMENTS + u32::from(index) * ARGUMENT_BYTES;
        let words = |value: u64| Words { width, low, high: low + HALF_BYTES, value, mask: u64::MAX };
        match test {
            Test::Equal(value) => self.equal(words(value), yes, no),
            Test::NotEqual(value) => self.equal(words(value), no, yes),
            // As libseccomp does, bits of the value outside the mask are not looked at.
            Test::MaskedEqual { mask, value } => self.equal(Words { mask, value: value & mask, ..words(0) }, yes, no),
            Test::Greater(value) => self.above(Compare::Greater, words(value), yes, no),
            Test::GreaterOrEqual(value) => self.above(Compare::GreaterOrEqual, words(value), yes, no),
            Test::Less(value) => self.above(Compare::GreaterOrEqual, words(value), no, yes),
            Test::LessOrEqual(value) => self.above(Compare::Greater, words(value), no, yes),
        }
    }

    /// A half that the mask leaves nothing of is not looked at.
    fn equal(&mut self, words: Words, yes: Target, no: Target) -> Target {
        let mut target = yes;
        if words.low_mask() != 0 {
            let low = self.assembler.branch(Compare::Equal, words.low_value(), target, no);
            target = Target::At(self.assembler.load(words.low, words.low_mask(), low));
        }
        if words.high_mask() != 0 && words.width == Width::Long {
            let high = self.assembler.branch(Compare::Equal, words.high_value(), target, no);
            target = Target::At(self.assembler.load(words.high, words.high_mask(), high));
        }
        target
    }

    /// The lower halves decide when the upper ones are equal.
    fn above(&mut self, compare: Compare, words: Words, yes: Target, no: Target) -> Target {
        let low = self.assembler.branch(compare, words.low_value(), yes, no);
        let low = self.assembler.load(words.low, u32::MAX, low);
        match words.width {
            Width::Word => Target::At(low),
            Width::Long => {
                let equal = self.assembler.branch(Compare::Equal, words.high_value(), Target::At(low), no);
                let high = self.assembler.branch(Compare::Greater, words.high_value(), yes, Target::At(equal));
                Target::At(self.assembler.load(words.high, u32::MAX, high))
            }
        }
    }
}

/// An argument's offsets and what its halves are compared with.
#[derive(Clone, Copy)]
struct Words {
    width: Width,
    low: u32,
    high: u32,
    value: u64,
    mask: u64,
}

#[allow(clippy::cast_possible_truncation, reason = "taking halves is what these are for")]
impl Words {
    fn low_value(&self) -> u32 {
        self.value as u32
    }

    fn high_value(&self) -> u32 {
        (self.value >> 32) as u32
    }

    fn low_mask(&self) -> u32 {
        self.mask as u32
    }

    fn high_mask(&self) -> u32 {
        (self.mask >> 32) as u32
    }
}
