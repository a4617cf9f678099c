//! Compiled programs against the profiles they come from: an interpreter of classic BPF as the kernel runs it for seccomp, and the
//! profile evaluated rule by rule without any table, search or order of emission. Both must agree for every profile and every call.

use proptest::prelude::*;

use super::assemble::code;
use super::compile::{compile, notifies};
use super::profile::{Action, Condition, Profile, Rule, Test};
use super::rules::X32_BIT;
use super::{Architecture, Instruction, syscalls};

/// `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    token: u32,
    args: [u64; 6],
}

const TOKEN_X86_64: u32 = 0xc000_003e;
const TOKEN_X86: u32 = 0x4000_0003;
const TOKEN_AARCH64: u32 = 0xc000_00b7;
const TOKEN_ARM: u32 = 0x4000_0028;
const TOKENS: [u32; 5] = [TOKEN_X86_64, TOKEN_X86, TOKEN_AARCH64, TOKEN_ARM, 0x8000_0016];

/// Runs a program as the kernel does; panics where the kernel would refuse to load it.
fn run(program: &[Instruction], call: Call) -> u32 {
    let word = |offset: u32| match offset {
        0 => call.number,
        4 => call.token,
        16..=60 if offset.is_multiple_of(4) => {
            let arg = call.args[((offset - 16) / 8) as usize];
            if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
        }
        other => panic!("a load from offset {other}"),
    };
    let (mut place, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, if_true, if_false, value } = program[place];
        let jump = |taken: bool| usize::from(if taken { if_true } else { if_false });
        place += 1;
        match code {
            code::LOAD_WORD => accumulator = word(value),
            code::AND => accumulator &= value,
            code::JUMP => place += value as usize,
            code::JUMP_EQUAL => place += jump(accumulator == value),
            code::JUMP_GREATER => place += jump(accumulator > value),
            code::JUMP_GREATER_OR_EQUAL => place += jump(accumulator >= value),
            code::RETURN => return value,
            other => panic!("the code {other:#x}"),
        }
    }
}

/// What the kernel checks before it takes a program (`bpf_check_classic`): every jump lands inside, and the last instruction returns.
fn assert_loadable(program: &[Instruction]) {
    assert!(program.len() <= 4096 && program.last().unwrap().code == code::RETURN);
    for (place, instruction) in program.iter().enumerate() {
        let furthest = match instruction.code {
            code::JUMP => instruction.value as usize,
            _ => usize::from(instruction.if_true.max(instruction.if_false)),
        };
        assert!(place + 1 + furthest <= program.len() - usize::from(instruction.code != code::RETURN), "{place}: {instruction:?}");
    }
}

/// The answer by the words of the profile.
fn meant(profile: &Profile, call: Call) -> Action {
    let x32 = call.token == TOKEN_X86_64 && call.number & X32_BIT != 0;
    let (architecture, number) = match call.token {
        TOKEN_X86_64 if x32 && profile.architectures.contains(&Architecture::X32) => (Architecture::X32, call.number - X32_BIT),
        TOKEN_X86_64 if x32 && call.number == u32::MAX && profile.architectures.contains(&Architecture::X86_64) => return profile.default,
        TOKEN_X86_64 if x32 => return Action::KillThread,
        TOKEN_X86_64 => (Architecture::X86_64, call.number),
        TOKEN_X86 => (Architecture::X86, call.number),
        TOKEN_AARCH64 => (Architecture::Aarch64, call.number),
        TOKEN_ARM => (Architecture::Arm, call.number),
        _ => return Action::KillThread,
    };
    if !profile.architectures.contains(&architecture) {
        return Action::KillThread;
    }
    let numbered = |name: &str| syscalls::find(name).and_then(|row| row.number(architecture));
    let named = || profile.rules.iter().flat_map(|rule| rule.names.iter().map(move |name| (name.as_str(), rule)));
    let telling = || named().filter(|(_, rule)| rule.action != profile.default);
    let mine = || telling().filter(|(name, _)| numbered(name) == Some(number)).map(|(_, rule)| rule);
    let packed_here = |name: &str| {
        syscalls::packed(name, architecture)
            .is_some_and(|packed| packed.number == number && call.args[0] as u32 & packed.mask as u32 == packed.value as u32)
    };
    let packed = || telling().filter(|(name, _)| packed_here(name)).map(|(_, rule)| rule);
    let whole = mine().find(|rule| rule.conditions.is_empty());
    let whole = whole.or_else(|| packed().find(|rule| rule.conditions.is_empty()));
    if let Some(rule) = whole {
        return rule.action;
    }
    // Both kinds in the order of the profile.
    let mut answers = telling().filter(|(name, rule)| {
        let direct = numbered(name) == Some(number) && holds(rule, architecture, call);
        direct || packed_here(name) && !matches!(rule.action, Action::Allow | Action::Log)
    });
    if let Some((_, rule)) = answers.next() {
        return rule.action;
    }
    // A call that is told of is known, whatever its arguments.
    let told = telling().any(|(name, rule)| {
        let packable = syscalls::packed(name, architecture).is_some_and(|packed| packed.number == number);
        numbered(name) == Some(number) || packable && (rule.conditions.is_empty() || !matches!(rule.action, Action::Allow | Action::Log))
    });
    let unpacked = named().filter(|(name, _)| syscalls::packed(name, architecture).is_none());
    let last = unpacked.filter_map(|(name, _)| numbered(name)).filter(|number| *number < 0xf_0000).max();
    let new = last.is_some_and(|last| number > last) && !(architecture == Architecture::Arm && number >= 0xf_0000);
    if new && !told && !matches!(profile.default, Action::Allow | Action::Log | Action::Trace(_)) {
        return Action::Errno(38);
    }
    profile.default
}

fn holds(rule: &Rule, architecture: Architecture, call: Call) -> bool {
    let narrow = !matches!(architecture, Architecture::X86_64 | Architecture::Aarch64);
    let cut = |value: u64| if narrow { value & 0xffff_ffff } else { value };
    let test = |condition: &Condition| {
        let arg = cut(call.args[usize::from(condition.index)]);
        match condition.test {
            Test::NotEqual(value) => arg != cut(value),
            Test::Less(value) => arg < cut(value),
            Test::LessOrEqual(value) => arg <= cut(value),
            Test::Equal(value) => arg == cut(value),
            Test::GreaterOrEqual(value) => arg >= cut(value),
            Test::Greater(value) => arg > cut(value),
            Test::MaskedEqual { mask, value } => arg & cut(mask) == cut(value & mask),
        }
    };
    let mut seen: Vec<u8> = rule.conditions.iter().map(|condition| condition.index).collect();
    seen.sort_unstable();
    if seen.windows(2).any(|pair| pair[0] == pair[1]) { rule.conditions.iter().any(test) } else { rule.conditions.iter().all(test) }
}

const NAMES: [&str; 24] = [
    "read",
    "write",
    "open",
    "close",
    "stat",
    "socket",
    "socketcall",
    "ipc",
    "shmget",
    "semop",
    "accept",
    "clone",
    "clone3",
    "personality",
    "execve",
    "set_tls",
    "cacheflush",
    "openat2",
    "mmap2",
    "restart_syscall",
    "exit",
    "rt_sigaction",
    "not_a_call",
    "sendmsg",
];

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => Just(Action::Allow),
        3 => (0u16..40).prop_map(Action::Errno),
        1 => Just(Action::KillProcess),
        1 => Just(Action::KillThread),
        1 => Just(Action::Trap),
        1 => Just(Action::Notify),
        1 => (0u16..3).prop_map(Action::Trace),
        1 => Just(Action::Log),
    ]
}

/// Values that meet often, and differ in either half.
fn values() -> impl Strategy<Value = u64> {
    let half = || prop_oneof![4 => 0u32..4, 1 => Just(u32::MAX), 1 => any::<u32>()];
    (half(), half()).prop_map(|(high, low)| u64::from(high) << 32 | u64::from(low))
}

fn conditions() -> impl Strategy<Value = Condition> {
    let test = (0..7, values(), values()).prop_map(|(kind, value, mask)| match kind {
        0 => Test::NotEqual(value),
        1 => Test::Less(value),
        2 => Test::LessOrEqual(value),
        3 => Test::Equal(value),
        4 => Test::GreaterOrEqual(value),
        5 => Test::Greater(value),
        _ => Test::MaskedEqual { mask, value },
    });
    (0u8..3, test).prop_map(|(index, test)| Condition { index, test })
}

fn profiles() -> impl Strategy<Value = Profile> {
    let names = prop::collection::vec(prop::sample::select(&NAMES[..]).prop_map(str::to_owned), 1..6);
    let conditions = prop_oneof![1 => Just(Vec::new()), 2 => prop::collection::vec(conditions(), 1..4)];
    let rule = (names, actions(), conditions).prop_map(|(names, action, conditions)| Rule { names, action, conditions });
    let architectures = prop_oneof![
        Just(vec![Architecture::X86_64]),
        Just(vec![Architecture::X86_64, Architecture::X86]),
        Just(vec![Architecture::X86_64, Architecture::X86, Architecture::X32]),
        Just(vec![Architecture::Aarch64, Architecture::Arm]),
    ];
    (actions(), architectures, prop::collection::vec(rule, 0..12)).prop_map(|(default, architectures, rules)| Profile {
        default,
        architectures,
        rules,
        flags: 0,
    })
}

fn calls() -> impl Strategy<Value = Call> {
    let number = prop_oneof![
        4 => (prop::sample::select(&NAMES[..]), 0usize..5, -1i64..2).prop_map(|(name, which, near)| {
            let all = [Architecture::X86_64, Architecture::X86, Architecture::X32, Architecture::Aarch64, Architecture::Arm];
            let number = syscalls::find(name).and_then(|row| row.number(all[which])).unwrap_or(0);
            (i64::from(number) + near) as u32
        }),
        2 => 0u32..600,
        1 => prop::sample::select(&[0xf_0000, 0xe_ffff, 0xf_0006, X32_BIT - 1, u32::MAX, u32::MAX - 1, i32::MAX as u32][..]),
    ];
    let x32 = prop_oneof![3 => Just(0), 1 => Just(X32_BIT)];
    (number, x32, prop::sample::select(&TOKENS[..]), prop::array::uniform6(values())).prop_map(|(number, x32, token, args)| Call {
        number: number | x32,
        token,
        args,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_program_does_what_its_profile_says(profile in profiles(), calls in prop::collection::vec(calls(), 40)) {
        let program = compile(&profile).unwrap();
        assert_loadable(&program);
        for call in calls {
            prop_assert_eq!(run(&program, call), meant(&profile, call).verdict(), "{:x?}", call);
        }
    }
}

fn profile(default: Action, architectures: &[Architecture], rules: &[(&[&str], Action, &[Condition])]) -> Profile {
    let rule = |(names, action, conditions): &(&[&str], Action, &[Condition])| Rule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action: *action,
        conditions: conditions.to_vec(),
    };
    Profile { default, architectures: architectures.to_vec(), rules: rules.iter().map(rule).collect(), flags: 0 }
}

fn answer(profile: &Profile, number: u32, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    run(&compile(profile).unwrap(), Call { number, token: TOKEN_X86_64, args: all })
}

const X86_64: &[Architecture] = &[Architecture::X86_64];
const EPERM: Action = Action::Errno(1);

#[test]
fn a_call_newer_than_the_profile_is_unknown_and_not_forbidden() {
    let old = profile(EPERM, X86_64, &[(&["read", "statx", "pidfd_open"], Action::Allow, &[])]);
    let [pidfd_open, clone3, mount] = [434, 435, 165];
    assert_eq!(answer(&old, pidfd_open, &[]), Action::Allow.verdict());
    assert_eq!(answer(&old, clone3, &[]), Action::Errno(38).verdict());
    assert_eq!(answer(&old, mount, &[]), EPERM.verdict());
    let open = profile(Action::Allow, X86_64, &[(&["mount"], EPERM, &[])]);
    assert_eq!(answer(&open, clone3, &[]), Action::Allow.verdict());
}

#[test]
fn a_rule_for_the_whole_call_beats_those_for_arguments() {
    let vsock = [Condition { index: 0, test: Test::Equal(40) }];
    let socket = 41;
    for order in [[0, 1], [1, 0]] {
        let rules: [(&[&str], Action, &[Condition]); 2] = [(&["socket"], EPERM, &vsock), (&["socket"], Action::Log, &[])];
        let both = profile(Action::Allow, X86_64, &order.map(|place| rules[place]));
        assert_eq!(answer(&both, socket, &[40]), Action::Log.verdict());
    }
}

#[test]
fn the_search_is_short() {
    let few = profile(EPERM, X86_64, &[(&["read", "write", "open", "close", "stat", "execve", "exit"], Action::Allow, &[])]);
    assert!(compile(&few).unwrap().len() < 20, "{:?}", compile(&few).unwrap());
}

#[test]
fn a_program_too_long_is_refused_in_words() {
    let conditions: Vec<Condition> = (0..6).map(|index| Condition { index, test: Test::Greater(7 << 32) }).collect();
    let rule: (&[&str], Action, &[Condition]) = (&["read"], Action::Allow, &conditions);
    let error = compile(&profile(EPERM, X86_64, &[rule; 200])).unwrap_err();
    assert!(error.instructions > 4096, "{error}");
    assert!(error.to_string().contains("the kernel takes 4096"), "{error}");
    // And one that needs jumps longer than a conditional one's still does what it says.
    let far = profile(EPERM, X86_64, &[rule; 90]);
    assert_eq!(answer(&far, 0, &[8 << 32; 6]), Action::Allow.verdict());
    assert_eq!(answer(&far, 0, &[7 << 32; 6]), EPERM.verdict());
}

#[test]
fn notifications_are_seen_in_the_program() {
    assert!(notifies(&compile(&profile(Action::Allow, X86_64, &[(&["mkdir"], Action::Notify, &[])])).unwrap()));
    assert!(!notifies(&compile(&profile(Action::Allow, X86_64, &[(&["not_a_call"], Action::Notify, &[])])).unwrap()));
}
