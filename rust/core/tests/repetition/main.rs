//! The repetition detector against a naive oracle that follows every period at every token.
//!
//! `K15_REPETITION_STREAMS` sets how many streams the long comparison takes (20000 by default).
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test may end by panicking")]
#![expect(clippy::cast_possible_truncation, reason = "counts here are small")]

mod near;
mod oracle;
mod streams;

use k15_core::noise::splitmix64;
use k15_core::repetition::{Detector, Kind, Loop, Settings};
use oracle::Oracle;
use streams::{Draws, stream};

/// Pushes a stream through both; panics on a miss, a false alarm or a wrong place. The loop found.
fn compare(tokens: &[i32], settings: &Settings, resumed_at: usize) -> Option<Loop> {
    let mut detector = Detector::new(1, settings.clone()).unwrap();
    let mut oracle = Oracle::new(settings.max_period);
    let mut check = |token: i32, found: Option<Loop>| {
        oracle.push(token);
        let Some(found) = found else {
            assert_eq!(oracle.overdue(settings), None, "missed: {settings:?} {tokens:?}");
            return;
        };
        assert_eq!(oracle.looping(settings), Some(found.period), "early: {settings:?} {tokens:?}");
        let length = oracle.tail(found.period);
        let start = oracle.tokens.len() - length;
        let right = Loop { start, period: found.period, covered: length, kind: Kind::Exact };
        assert_eq!(found, right, "{settings:?} {tokens:?}");
    };
    // What was generated before a break comes in by `extend`; whether it looped shows at its end.
    let resumed_at = resumed_at.min(tokens.len());
    let mut silent = Detector::new(1, settings.clone()).unwrap();
    let replayed = silent.extend(0, &tokens[..resumed_at]).unwrap();
    for (at, &token) in tokens.iter().enumerate() {
        let found = detector.push(0, token).unwrap();
        check(token, found);
        if at + 1 > resumed_at && replayed.is_none() {
            assert_eq!(silent.push(0, token).unwrap(), found, "resumed at {resumed_at}");
        }
        if found.is_some() {
            let replayed_it = replayed.is_some();
            assert_eq!(replayed_it, at < resumed_at);
            return found;
        }
    }
    assert_eq!(replayed, None);
    None
}

fn streams_to_compare() -> u64 {
    match std::env::var("K15_REPETITION_STREAMS") {
        Ok(count) => count.parse().expect("K15_REPETITION_STREAMS is a count"),
        Err(_) => 20_000,
    }
}

#[test]
fn no_miss_and_no_false_alarm() {
    let count = streams_to_compare();
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let found: u64 = std::thread::scope(|scope| {
        let worker = |worker| {
            let mut found = 0u64;
            for seed in (worker..count).step_by(workers as usize) {
                let mut draws = Draws(splitmix64(seed));
                let settings = Settings {
                    max_period: 1 + draws.below(80),
                    min_repeats: 2 + draws.below(4),
                    min_covered: 2 + draws.below(70),
                    near: None,
                };
                let longest = settings.max_period + 5;
                let length = 1 + draws.below(700);
                let tokens = stream(&mut draws, length, longest);
                let resumed_at = draws.below(tokens.len() + 1);
                found += u64::from(compare(&tokens, &settings, resumed_at).is_some());
            }
            found
        };
        let handles: Vec<_> =
            (0..workers).map(|start| scope.spawn(move || worker(start))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).sum()
    });
    println!("{count} streams compared, {found} of them loops");
    assert!(found * 4 > count && found * 10 < 9 * count, "{found} loops of {count} streams");
}

#[test]
fn found_from_the_least_length_to_one_and_a_half_of_it() {
    for (min_repeats, min_covered) in [(2, 2), (2, 50), (3, 3), (4, 64), (5, 256)] {
        let settings = Settings { max_period: 200, min_repeats, min_covered, near: None };
        for period in [1, 2, 3, 7, 12, 13, 16, 17, 63, 64, 65, 128, 199, 200] {
            let least = settings.least_tail(period);
            let unit: Vec<i32> = (0..i32::try_from(period).unwrap()).collect();
            for offset in [0, 1, 5, 31, 64, 100] {
                let mut tokens = vec![-1; usize::from(offset > 0)];
                tokens.extend((1000..).take(offset));
                let start = tokens.len();
                tokens.extend(unit.iter().cycle().take(2 * least));
                let found = compare(&tokens, &settings, 0).unwrap();
                assert_eq!((found.start, found.period), (start, period));
                assert!((least..=least + least / 2).contains(&found.covered), "{found:?}");
                // A token less than the least length, however often, is no loop.
                let mut short = Vec::new();
                for separator in 0..4 {
                    short.extend(unit.iter().cycle().take(least - 1));
                    short.push(-2 - separator);
                }
                assert_eq!(compare(&short, &settings, 0), None);
            }
        }
    }
}

#[test]
fn the_longest_period_is_found_and_one_more_is_not() {
    let settings = Settings { near: None, ..Settings::default() };
    for (period, found) in [(16383, true), (16384, true), (16385, false)] {
        let mut draws = Draws(3);
        let unit = draws.tokens(period, 50_000);
        let tokens: Vec<i32> = unit.iter().copied().cycle().take(6 * period).collect();
        let mut detector = Detector::new(1, settings.clone()).unwrap();
        let prefix = draws.tokens(70_001, 3);
        assert_eq!(detector.extend(0, &prefix).unwrap(), None);
        match detector.extend(0, &tokens).unwrap() {
            Some(Loop { start, period: p, covered, kind: Kind::Exact }) if found => {
                assert_eq!((start, p), (prefix.len(), period));
                assert!((4 * period..=6 * period).contains(&covered), "{covered}");
            }
            other => assert_eq!((other, found), (None, false)),
        }
    }
}

#[test]
fn the_place_is_right_after_many_tokens_were_forgotten() {
    let settings =
        Settings { max_period: 50, min_repeats: 3, min_covered: 40, ..Settings::default() };
    let mut detector = Detector::new(1, Settings { near: None, ..settings }).unwrap();
    let mut draws = Draws(9);
    let prefix = draws.tokens(1_000_003, 50_000);
    assert_eq!(detector.extend(0, &prefix).unwrap(), None);
    let found = detector.extend(0, &[-1, -2, -3, -4, -5].repeat(20)).unwrap().unwrap();
    assert_eq!((found.start, found.period), (prefix.len(), 5));
}

#[test]
fn streams_do_not_touch_each_other() {
    let settings = Settings { min_covered: 16, ..Settings::default() };
    let mut together = Detector::new(5, settings.clone()).unwrap();
    let mut draws = Draws(17);
    let mut alone: Vec<_> = (0..5).map(|_| Detector::new(1, settings.clone()).unwrap()).collect();
    for _ in 0..200 {
        let size = draws.below(40);
        let streams: Vec<i64> = (0..size).map(|_| draws.below(5) as i64).collect();
        let tokens = draws.tokens(size, 2);
        let mut expected = Vec::new();
        for (&stream, &token) in streams.iter().zip(&tokens) {
            let slot = usize::try_from(stream).unwrap();
            expected.extend(alone[slot].push(0, token).unwrap().map(|found| (slot, found)));
        }
        assert_eq!(together.push_many(&streams, &tokens).unwrap(), expected);
        for (slot, _) in expected {
            together.reset(slot).unwrap();
            alone[slot].reset(0).unwrap();
        }
    }
}

#[test]
fn a_stream_reports_once_until_it_is_reset() {
    let mut detector = Detector::new(2, Settings::default()).unwrap();
    assert!(detector.extend(1, &[3; 1000]).unwrap().is_some());
    assert_eq!(detector.extend(1, &[3; 100_000]).unwrap(), None);
    assert_eq!(detector.extend(0, &[3; 255]).unwrap(), None);
    detector.reset(1).unwrap();
    let found = detector.extend(1, &[3; 1000]).unwrap().unwrap();
    assert_eq!((found.start, found.period), (0, 1));
}

#[test]
fn bad_input_is_named_and_leaves_the_streams_as_they_were() {
    let refusal = Detector::new(0, Settings::default()).unwrap_err().to_string();
    assert_eq!(refusal, "streams = 0: expected 1 to 1048576");
    let settings = Settings { min_covered: 8, ..Settings::default() };
    let mut detector = Detector::new(2, settings).unwrap();
    let mut refused = |streams: &[i64], tokens: &[i32]| {
        detector.push_many(streams, tokens).unwrap_err().to_string()
    };
    assert_eq!(refused(&[0, 2], &[1, 1]), "stream = 2: expected a slot from 0 to 1");
    assert_eq!(
        refused(&[0; 20], &[1; 19]),
        "tokens = 19 entries: expected 20, one for each of streams"
    );
    assert_eq!(
        refused(&[0, 0, 0, 0, 0, 0, -1], &[1; 7]),
        "stream = -1: expected a slot from 0 to 1"
    );
    assert!(detector.push(2, 0).is_err() && detector.extend(9, &[]).is_err());
    assert!(detector.reset(2).is_err());
    assert_eq!(detector.extend(0, &[1; 7]).unwrap(), None);
}
