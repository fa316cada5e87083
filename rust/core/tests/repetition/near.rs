//! Near-repeats against counting each window by hand at every token.

use std::collections::HashSet;

use k15_core::noise::splitmix64;
use k15_core::repetition::{Detector, Kind, Loop, Near, Settings};

use crate::streams::{Draws, stream};

fn windows(near: &Near) -> impl Iterator<Item = usize> {
    let doubled = std::iter::successors(Some(near.window), |grams| Some(2 * grams));
    doubled.take_while(|&grams| grams <= near.max_window)
}

/// Whether the last `grams` n-grams hold too few different ones.
fn stale(tokens: &[i32], near: &Near, grams: usize) -> bool {
    let Some(from) = (tokens.len() + 1).checked_sub(near.ngram + grams) else { return false };
    let different: HashSet<&[i32]> = tokens[from..].windows(near.ngram).collect();
    (different.len() as f64) < near.novelty * grams as f64
}

/// A detector that would report exact loops only of a length that no stream here has.
fn near_only(near: &Near) -> Detector {
    let settings =
        Settings { min_covered: 65536, near: Some(near.clone()), max_period: 1, min_repeats: 2 };
    Detector::new(1, settings).unwrap()
}

#[test]
fn neither_without_cause_nor_a_quarter_window_late() {
    let (mut found, mut silent) = (0, 0);
    for seed in 0..1500 {
        let mut draws = Draws(splitmix64(seed ^ 0xea6));
        let window = 16 + draws.below(100);
        let near = Near {
            ngram: 1 + draws.below(6),
            window,
            max_window: window * (1 + draws.below(5)),
            novelty: [0.05, 0.125, 0.3, 0.6][draws.below(4)],
        };
        let length = 1 + draws.below(900);
        let tokens = stream(&mut draws, length, 40);
        let mut detector = near_only(&near);
        let mut since: Vec<usize> = windows(&near).map(|_| 0).collect();
        let mut looped = false;
        for (at, &token) in tokens.iter().enumerate() {
            let reported = detector.push(0, token).unwrap();
            let seen = &tokens[..=at];
            if let Some(report) = reported {
                assert_eq!((report.kind, report.period), (Kind::Near, 0));
                assert_eq!(report.start + report.covered, seen.len());
                assert!(windows(&near).any(|grams| stale(seen, &near, grams)), "{near:?}");
                looped = true;
                break;
            }
            for (grams, since) in windows(&near).zip(&mut since) {
                *since = if stale(seen, &near, grams) { *since + 1 } else { 0 };
                assert!(*since < (grams / 4).max(1), "missed: {near:?} {tokens:?}");
            }
        }
        *(if looped { &mut found } else { &mut silent }) += 1;
    }
    println!("{found} near-repeats, {silent} streams without");
    assert!(found > 200 && silent > 200, "{found} and {silent}");
}

/// Copies of `unit` in which `changes` tokens of each are new.
fn varied(draws: &mut Draws, unit: &[i32], changes: usize, length: usize) -> Vec<i32> {
    let mut tokens = Vec::new();
    while tokens.len() < length {
        let mut copy = unit.to_vec();
        for _ in 0..changes {
            let at = draws.below(copy.len());
            copy[at] = 100_000 + i32::try_from(draws.below(1_000_000)).unwrap();
        }
        tokens.extend(copy);
    }
    tokens
}

#[test]
fn a_changing_loop_is_found_near_its_beginning() {
    for (period, changes) in [(80, 1), (120, 1), (300, 2), (1000, 5), (1500, 6)] {
        let mut draws = Draws(period as u64);
        let mut tokens = draws.tokens(5000, 50_000);
        let unit = draws.tokens(period, 50_000);
        tokens.extend(varied(&mut draws, &unit, changes, 40_000));
        let mut detector = Detector::new(1, Settings::default()).unwrap();
        let found = detector.extend(0, &tokens).unwrap().unwrap();
        assert_eq!(found.kind, Kind::Near, "{period}");
        assert!(found.start.abs_diff(5000) < 30 + period / 5, "{period}: {found:?}");
        assert!(found.covered < 20 * period + 4000, "{period}: {found:?}");
    }
}

#[test]
fn an_exact_loop_says_so_even_when_its_novelty_gives_it_away() {
    // After 288 tokens the window is due and stale; the exact loop, 258 long, is due only after 320.
    let near = Near { ngram: 8, window: 248, max_window: 248, novelty: 0.1 };
    let both = Settings { near: Some(near), ..Settings::default() };
    let exact = Settings { near: None, ..Settings::default() };
    let tokens: Vec<i32> = (10..40).chain([1, 2, 3].repeat(200)).collect();
    for (settings, covered) in [(both, 258), (exact, 290)] {
        let found = Detector::new(1, settings).unwrap().extend(0, &tokens).unwrap().unwrap();
        let expected = Loop { start: 30, period: 3, covered, kind: Kind::Exact };
        assert_eq!(found, expected);
    }
}

#[test]
fn the_watch_can_be_switched_off() {
    let mut draws = Draws(5);
    let unit = draws.tokens(100, 50_000);
    let tokens = varied(&mut draws, &unit, 1, 50_000);
    let settings = Settings { near: None, ..Settings::default() };
    let mut detector = Detector::new(1, settings).unwrap();
    assert_eq!(detector.extend(0, &tokens).unwrap(), None);
    let mut detector = Detector::new(1, Settings::default()).unwrap();
    assert!(detector.extend(0, &tokens).unwrap().is_some());
}
