//! The device allow list as a BPF program (kernel `admin-guide/cgroup-v2.rst`, "Device controller": version 2 has no files for it).
//!
//! In: the rules in the order of the configuration. Out: instructions for `BPF_PROG_TYPE_CGROUP_DEVICE` that answer 1, allow, or 0.
//! The last rule that matches decides; with none, access is allowed, as version 1 begins. A rule that allows must cover all of what is
//! asked for; a rule that denies need only touch it. Never loads the program.

use super::check::{DeviceKind, DeviceRule};

/// One instruction as the kernel lays it out (`struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u8,
    /// Destination in the low half, source in the high half.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const MOVE_32: u8 = 0xbc;
const MOVE_IMMEDIATE: u8 = 0xb7;
const JUMP_UNLESS_EQUAL_32: u8 = 0x56;
const JUMP_IF_ANY_BIT_32: u8 = 0x46;
const JUMP: u8 = 0x05;
const EXIT: u8 = 0x95;

/// `struct bpf_cgroup_dev_ctx` arrives in register 1: the type in the low and the access in the high half of the first word.
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const RESULT: u8 = 0;

/// Builds the program.
pub fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND | CONTEXT << 4, 0, 0),
        instruction(MOVE_32, ACCESS | KIND << 4, 0, 0),
        instruction(AND_32, KIND, 0, 0xffff),
        instruction(SHIFT_RIGHT_32, ACCESS, 0, 16),
        instruction(LOAD_WORD, MAJOR | CONTEXT << 4, 4, 0),
        instruction(LOAD_WORD, MINOR | CONTEXT << 4, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let tests = tests(rule);
        let skip = |place: usize| i16::try_from(tests.len() - place + 1).expect("a rule has at most five tests");
        for (place, test) in tests.iter().enumerate() {
            program.push(match test.if_false {
                // Past this jump's partner: the rest of the tests and the answer's two instructions.
                Otherwise::NextRule => Instruction { offset: skip(place), ..test.jump },
                Otherwise::Continue => test.jump,
            });
        }
        program.extend(answer(rule.allow));
        if tests.is_empty() {
            return program;
        }
    }
    program.extend(answer(true));
    program
}

#[derive(Clone, Copy)]
enum Otherwise {
    /// The jump leaves the rule.
    NextRule,
    /// The jump's own offset stays within the rule.
    Continue,
}

struct Test {
    jump: Instruction,
    if_false: Otherwise,
}

/// What must hold for a rule to decide; empty when it always does.
fn tests(rule: &DeviceRule) -> Vec<Test> {
    let leave = |code, register, immediate| Test { jump: instruction(code, register, 0, immediate), if_false: Otherwise::NextRule };
    let mut tests = Vec::new();
    if let Some(kind) = rule.kind {
        let number = if kind == DeviceKind::Block { 1 } else { 2 };
        tests.push(leave(JUMP_UNLESS_EQUAL_32, KIND, number));
    }
    let mask = access_mask(&rule.access);
    if mask != ALL_ACCESS {
        if rule.allow {
            tests.push(leave(JUMP_IF_ANY_BIT_32, ACCESS, ALL_ACCESS & !mask));
        } else {
            tests.push(Test { jump: instruction(JUMP_IF_ANY_BIT_32, ACCESS, 1, mask), if_false: Otherwise::Continue });
            tests.push(leave(JUMP, 0, 0));
        }
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number {
            tests.push(leave(JUMP_UNLESS_EQUAL_32, register, number.cast_signed()));
        }
    }
    tests
}

const ALL_ACCESS: i32 = 7;

/// `BPF_DEVCG_ACC_*`: make 1, read 2, write 4.
fn access_mask(access: &str) -> i32 {
    [('m', 1), ('r', 2), ('w', 4)].iter().filter(|(letter, _)| access.contains(*letter)).map(|(_, bit)| bit).sum()
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE_IMMEDIATE, RESULT, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0)]
}

fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would, on the few instructions it uses.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 11];
        let mut at = 0;
        loop {
            let Instruction { code, registers: names, offset, immediate } = program[at];
            let (to, from) = (usize::from(names & 15), usize::from(names >> 4));
            let mut jump = false;
            match code {
                LOAD_WORD => registers[to] = context[usize::try_from(offset).unwrap() / 4],
                AND_32 => registers[to] &= immediate.cast_unsigned(),
                SHIFT_RIGHT_32 => registers[to] >>= immediate,
                MOVE_32 => registers[to] = registers[from],
                MOVE_IMMEDIATE => registers[to] = immediate.cast_unsigned(),
                JUMP_UNLESS_EQUAL_32 => jump = registers[to] != immediate.cast_unsigned(),
                JUMP_IF_ANY_BIT_32 => jump = registers[to] & immediate.cast_unsigned() != 0,
                JUMP => jump = true,
                EXIT => return registers[0],
                other => panic!("instruction {other:#x}"),
            }
            at += 1 + if jump { usize::try_from(offset).unwrap() } else { 0 };
        }
    }

    fn rule(allow: bool, kind: Option<DeviceKind>, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
        DeviceRule { allow, kind, major, minor, access: access.into() }
    }

    #[test]
    fn the_last_matching_rule_decides() {
        const CHARACTER: u32 = 2;
        const BLOCK: u32 = 1;
        const MAKE: u32 = 1;
        const READ: u32 = 2;
        const WRITE: u32 = 4;
        let program = program(&[
            rule(false, None, None, None, "rwm"),
            rule(true, Some(DeviceKind::Character), Some(1), None, "rw"),
            rule(false, Some(DeviceKind::Character), Some(1), Some(9), "w"),
        ]);
        let cases = [
            ((CHARACTER, READ, 1, 3), 1),
            ((CHARACTER, READ | WRITE, 1, 3), 1),
            ((CHARACTER, READ | MAKE, 1, 3), 0),
            ((CHARACTER, READ, 1, 9), 1),
            ((CHARACTER, READ | WRITE, 1, 9), 0),
            ((BLOCK, READ, 1, 3), 0),
            ((CHARACTER, READ, 2, 3), 0),
        ];
        for ((kind, access, major, minor), expected) in cases {
            assert_eq!(run(&program, kind, access, major, minor), expected, "{kind} {access} {major}:{minor}");
        }
    }

    #[test]
    fn without_rules_all_is_allowed() {
        assert_eq!(run(&program(&[]), 1, 7, 8, 0), 1);
    }
}
