//! From rules to a program of classic BPF.

use super::rules::{Rule, When};
use crate::sys::seccomp::Instruction;

const LOAD: u16 = 0x20; // ld word at a fixed offset
const AND: u16 = 0x54; // and a constant
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const ALLOW: u32 = 0x7fff_0000;

const ARCHITECTURE_X86_64: u32 = 0xc000_003e;
const X32_BIT: u32 = 0x4000_0000;

const AT_NUMBER: u32 = 0;
const AT_ARCHITECTURE: u32 = 4;
/// Where the low half of argument `index` lies in struct seccomp_data; the high half follows.
const fn at_argument(index: u8) -> u32 {
    16 + 8 * index as u32
}

/// What happens to the calls from one number up to the next entry's.
struct Range {
    first: u32,
    code: Vec<Instruction>,
}

/// The program that lets through what `rules` say, with `setup_key` opening the calls of a spawner.
///
/// Calls between the rules' numbers fail with EPERM; those above all of them, which this list's
/// author did not know, with ENOSYS, so that libraries fall back to what they did before.
#[must_use]
pub fn compile(rules: &[Rule], setup_key: u64) -> Vec<Instruction> {
    let mut sorted: Vec<(u32, When)> = rules
        .iter()
        .flat_map(|rule| rule.calls.iter().map(|&(_, number)| (number, rule.when)))
        .collect();
    sorted.sort_by_key(|&(number, _)| number);
    let end = sorted.last().map_or(0, |&(number, _)| number + 1);
    let mut ranges = vec![Range { first: 0, code: fail(libc::EPERM) }];
    let mut push = |first: u32, code: Vec<Instruction>| match ranges.last_mut() {
        Some(last) if last.first == first => last.code = code,
        Some(last) if last.code == code => {}
        _ => ranges.push(Range { first, code }),
    };
    for (number, when) in sorted {
        push(number, test(when, setup_key));
        push(number + 1, fail(libc::EPERM));
    }
    push(end, fail(libc::ENOSYS));
    push(X32_BIT, vec![give(KILL_PROCESS)]);

    let mut program = vec![
        step(LOAD, AT_ARCHITECTURE),
        jump(JUMP_EQUAL, ARCHITECTURE_X86_64, 1, 0),
        give(KILL_PROCESS),
        step(LOAD, AT_NUMBER),
    ];
    program.extend(search(&merge(ranges)));
    program
}

/// Joins neighbours that do the same (a push over an existing start can leave some).
fn merge(ranges: Vec<Range>) -> Vec<Range> {
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        if merged.last().is_none_or(|last| last.code != range.code) {
            merged.push(range);
        }
    }
    merged
}

/// A binary search for the range that the number in the accumulator lies in.
fn search(ranges: &[Range]) -> Vec<Instruction> {
    let [_, _, ..] = ranges else {
        return ranges.first().map(|range| range.code.clone()).unwrap_or_default();
    };
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let Some(middle) = high.first().map(|range| range.first) else { return Vec::new() };
    let (low, high) = (search(low), search(high));
    let mut code = match u8::try_from(low.len()) {
        Ok(distance) => vec![jump(JUMP_AT_LEAST, middle, distance, 0)],
        Err(_) => vec![
            jump(JUMP_AT_LEAST, middle, 0, 1),
            step(JUMP, u32::try_from(low.len()).unwrap_or(u32::MAX)),
        ],
    };
    code.extend(low);
    code.extend(high);
    code
}

/// The code for one rule. It ends in a return on every path.
fn test(when: When, setup_key: u64) -> Vec<Instruction> {
    match when {
        When::Always => vec![give(ALLOW)],
        When::Masked { argument, mask, value, errno } => {
            let mut code = vec![step(LOAD, at_argument(argument)), step(AND, mask)];
            code.push(jump(JUMP_EQUAL, value, 0, 1));
            code.push(give(ALLOW));
            code.extend(fail(errno));
            code
        }
        When::OneOf { argument, values, errno } => {
            let mut code = vec![step(LOAD, at_argument(argument))];
            for &value in values {
                code.push(jump(JUMP_EQUAL, value, 0, 1));
                code.push(give(ALLOW));
            }
            code.extend(fail(errno));
            code
        }
        When::SetupKey { errno } => {
            let (low, high) = (half(setup_key), half(setup_key >> 32));
            let mut code = vec![
                step(LOAD, at_argument(5)),
                jump(JUMP_EQUAL, low, 0, 3),
                step(LOAD, at_argument(5) + 4),
                jump(JUMP_EQUAL, high, 0, 1),
                give(ALLOW),
            ];
            code.extend(fail(errno));
            code
        }
    }
}

/// The low half of an argument.
fn half(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0)
}

fn fail(errno: i32) -> Vec<Instruction> {
    vec![give(ERRNO | errno.unsigned_abs())]
}

const fn give(action: u32) -> Instruction {
    step(RETURN, action)
}

const fn step(code: u16, constant: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, constant }
}

const fn jump(code: u16, constant: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, constant }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::RULES;
    use super::*;

    const KEY: u64 = 0x0123_4567_89ab_cdef;

    /// Runs a program as the kernel would, on a call with these arguments.
    fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = vec![number, architecture, 0, 0];
        data.extend(arguments.iter().flat_map(|&value| [half(value), half(value >> 32)]));
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let now = program[at];
            at += 1;
            match now.code {
                LOAD => accumulator = data[now.constant as usize / 4],
                AND => accumulator &= now.constant,
                JUMP => at += now.constant as usize,
                JUMP_EQUAL | JUMP_AT_LEAST => {
                    let equal = now.code == JUMP_EQUAL;
                    let yes = if equal {
                        accumulator == now.constant
                    } else {
                        accumulator >= now.constant
                    };
                    at += usize::from(if yes { now.jump_true } else { now.jump_false });
                }
                RETURN => return now.constant,
                other => panic!("unknown operation {other}"),
            }
        }
    }

    /// What the rules say, read one by one.
    fn oracle(number: u32, arguments: [u64; 6]) -> u32 {
        if number >= X32_BIT {
            return KILL_PROCESS;
        }
        let numbers = || RULES.iter().flat_map(|rule| rule.calls.iter().map(|call| call.1));
        let end = numbers().max().unwrap() + 1;
        let has = |rule: &&Rule| rule.calls.iter().any(|call| call.1 == number);
        let Some(rule) = RULES.iter().find(has) else {
            return ERRNO | if number >= end { libc::ENOSYS } else { libc::EPERM } as u32;
        };
        let (allowed, errno) = match rule.when {
            When::Always => (true, 0),
            When::Masked { argument, mask, value, errno } => {
                (half(arguments[argument as usize]) & mask == value, errno)
            }
            When::OneOf { argument, values, errno } => {
                (values.contains(&half(arguments[argument as usize])), errno)
            }
            When::SetupKey { errno } => (arguments[5] == KEY, errno),
        };
        if allowed { ALLOW } else { ERRNO | errno as u32 }
    }

    #[test]
    fn every_number_does_what_its_rule_says() {
        let program = compile(RULES, KEY);
        assert!(program.len() < 4096, "the kernel takes no more");
        for number in (0..600).chain([X32_BIT - 1, X32_BIT, X32_BIT + 1, u32::MAX]) {
            for arguments in [[0; 6], [1; 6], [KEY; 6], [u64::MAX; 6]] {
                let got = run(&program, ARCHITECTURE_X86_64, number, arguments);
                assert_eq!(got, oracle(number, arguments), "call {number} {arguments:?}");
            }
        }
    }

    #[test]
    fn no_call_has_two_rules() {
        let mut seen = std::collections::BTreeSet::new();
        for &(name, number) in RULES.iter().flat_map(|rule| rule.calls) {
            assert!(seen.insert(number), "{name} is there twice");
        }
    }

    #[test]
    fn another_architecture_is_killed() {
        let program = compile(RULES, KEY);
        assert_eq!(run(&program, 0x4000_0003, 4, [0; 6]), KILL_PROCESS);
    }

    proptest! {
        #[test]
        fn arguments_are_tested_as_the_rules_say(
            number in 0u32..600, arguments in any::<[u64; 6]>(), small in 0u64..64, low in any::<bool>(),
        ) {
            let arguments = if low { arguments.map(|value| value % (small + 1)) } else { arguments };
            let program = compile(RULES, KEY);
            let got = run(&program, ARCHITECTURE_X86_64, number, arguments);
            prop_assert_eq!(got, oracle(number, arguments));
        }

        #[test]
        fn half_a_key_opens_nothing(bit in 0u32..64) {
            let program = compile(RULES, KEY);
            let mut arguments = [0; 6];
            arguments[5] = KEY ^ (1 << bit);
            let mount = u32::try_from(libc::SYS_mount).unwrap();
            let got = run(&program, ARCHITECTURE_X86_64, mount, arguments);
            prop_assert_eq!(got, ERRNO | libc::EPERM as u32);
        }
    }
}
