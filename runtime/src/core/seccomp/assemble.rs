//! Assembles a classic BPF program from its end to its beginning.
//!
//! Jumps of classic BPF only go forward, and conditional ones by at most 255 instructions. Whoever assembles backward knows every target
//! when a jump to it is made, and a target too far away is repeated near by: a return as itself, anything else as an unconditional jump.
//!
//! Only instructions are used that the kernel's search for calls that are always allowed understands (`kernel/seccomp.c`,
//! `seccomp_is_const_allow`), so that it answers those without running the program at all.

use std::collections::BTreeMap;

use super::Instruction;

/// A place in the program, counted from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// Where to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Return(u32),
    At(Label),
}

/// How the loaded word is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Equal,
    Greater,
    GreaterOrEqual,
}

/// Codes of linux/bpf_common.h: class, size or operation, mode or source.
pub mod code {
    pub const LOAD_WORD: u16 = 0x20;
    pub const AND: u16 = 0x54;
    pub const JUMP: u16 = 0x05;
    pub const JUMP_EQUAL: u16 = 0x15;
    pub const JUMP_GREATER: u16 = 0x25;
    pub const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
    pub const RETURN: u16 = 0x06;
}

/// Less than a conditional jump's 255 by what making its other target near may put between.
const REACH: usize = 250;

/// A program as far as it goes, its last instruction first.
#[derive(Debug, Default)]
pub struct Assembler {
    reversed: Vec<Instruction>,
    returns: BTreeMap<u32, Label>,
}

impl Assembler {
    /// Goes one of two ways by comparing the loaded word.
    pub fn branch(&mut self, compare: Compare, value: u32, yes: Target, no: Target) -> Label {
        let (yes, no) = (self.near(yes), self.near(no));
        let code = match compare {
            Compare::Equal => code::JUMP_EQUAL,
            Compare::Greater => code::JUMP_GREATER,
            Compare::GreaterOrEqual => code::JUMP_GREATER_OR_EQUAL,
        };
        let distance = |label| u8::try_from(self.distance(label)).expect("a near target is within reach of a conditional jump");
        let (if_true, if_false) = (distance(yes), distance(no));
        self.push(Instruction { code, if_true, if_false, value })
    }

    /// Loads the word at an offset of `struct seccomp_data`, keeps the bits under the mask, and goes on.
    pub fn load(&mut self, offset: u32, mask: u32, then: Label) -> Label {
        if self.distance(then) != 0 {
            self.jump(then);
        }
        if mask != u32::MAX {
            self.push(plain(code::AND, mask));
        }
        self.push(plain(code::LOAD_WORD, offset))
    }

    /// The label of a target, made wherever it is none yet.
    pub fn label(&mut self, target: Target) -> Label {
        match target {
            Target::Return(verdict) => self.push_return(verdict),
            Target::At(label) => label,
        }
    }

    pub fn finish(self) -> Vec<Instruction> {
        self.reversed.into_iter().rev().collect()
    }

    fn near(&mut self, target: Target) -> Label {
        match target {
            Target::Return(verdict) => match self.returns.get(&verdict) {
                Some(label) if self.distance(*label) <= REACH => *label,
                _ => self.push_return(verdict),
            },
            Target::At(label) if self.distance(label) <= REACH => label,
            Target::At(label) => self.jump(label),
        }
    }

    /// How many instructions lie between the next one and the label.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label.0
    }

    fn jump(&mut self, to: Label) -> Label {
        let distance = u32::try_from(self.distance(to)).unwrap_or(u32::MAX);
        self.push(plain(code::JUMP, distance))
    }

    fn push_return(&mut self, verdict: u32) -> Label {
        let label = self.push(plain(code::RETURN, verdict));
        self.returns.insert(verdict, label);
        label
    }

    fn push(&mut self, instruction: Instruction) -> Label {
        self.reversed.push(instruction);
        Label(self.reversed.len())
    }
}

fn plain(code: u16, value: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, value }
}
