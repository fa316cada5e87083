//! The index against a linear scan, and its draws against the probabilities that it promises.

use k15_core::sampler::PriorityIndex;
use proptest::prelude::*;

use crate::oracle::{entry, scan, uniforms};

/// Integers as weights: all their sums are exact in f64, whatever the order of addition.
fn whole() -> impl Strategy<Value = f64> {
    prop_oneof![2 => Just(0.0), 3 => (0u32..1000).prop_map(f64::from), 1 => (0u32..1 << 30).prop_map(f64::from)]
}

fn history() -> impl Strategy<Value = (usize, Vec<Vec<(usize, f64)>>)> {
    prop_oneof![1usize..20, 60usize..70, 500usize..600].prop_flat_map(|n| {
        let calls = prop::collection::vec(prop::collection::vec((0..n, whole()), 0..80), 1..8);
        (Just(n), calls)
    })
}

fn replay(n: usize, calls: &[Vec<(usize, f64)>]) -> (PriorityIndex, Vec<f64>) {
    let (mut index, mut weights) = (PriorityIndex::new(n).unwrap(), vec![0.0; n]);
    for call in calls {
        let entries: Vec<i64> = call.iter().map(|&(at, _)| entry(at)).collect();
        let values: Vec<f64> = call.iter().map(|&(_, weight)| weight).collect();
        index.update(&entries, &values).unwrap();
        call.iter().for_each(|&(at, weight)| weights[at] = weight);
    }
    (index, weights)
}

proptest! {
    #[test]
    fn draws_equal_a_linear_scan((n, calls) in history(), seed: u64, count in 0usize..300) {
        let (mut index, mut weights) = replay(n, &calls);
        let total: f64 = weights.iter().sum();
        prop_assert_eq!(index.total(), total);
        prop_assert_eq!(index.all_weights(), weights.clone());
        if total > 0.0 {
            let want: Vec<i64> =
                uniforms(seed).take(count).map(|u| entry(scan(&weights, u * total))).collect();
            prop_assert_eq!(index.sample(count, seed).unwrap(), want);
        } else {
            prop_assert!(index.sample(0, seed).unwrap().is_empty());
            prop_assert!(index.sample(1, seed).is_err());
        }

        // Without replacement: each draw scans the weights that are left.
        let able = weights.iter().filter(|&&weight| weight > 0.0).count();
        let before = weights.clone();
        let want: Vec<i64> = uniforms(seed).take(able).map(|u| {
            let at = scan(&weights, u * weights.iter().sum::<f64>());
            weights[at] = 0.0;
            entry(at)
        }).collect();
        prop_assert_eq!(index.sample_distinct(able, seed).unwrap(), want);
        prop_assert!(index.sample_distinct(able + 1, seed).is_err());
        prop_assert_eq!(index.all_weights(), before);
        prop_assert_eq!(index.total(), total);
    }

    /// Any weights, of any magnitude: the tree is a function of the weights alone, its total is
    /// right to rounding, and what weighs nothing is never drawn, not even past the last sum.
    #[test]
    fn nothing_drifts_for_any_weights(
        first in prop::collection::vec(0.0..=1e290f64, 1..200),
        second in prop::collection::vec(prop_oneof![Just(0.0), 0.0..1e-3f64, 0.0..1.0f64, 0.0..1e12f64], 200),
        seed: u64,
    ) {
        let n = first.len();
        let second = &second[..n];
        let entries: Vec<i64> = (0..n).map(entry).collect();
        let mut used = PriorityIndex::new(n).unwrap();
        used.update(&entries, &first).unwrap();
        for at in (0..n).rev() {
            used.update(&entries[at..=at], &second[at..=at]).unwrap();
        }
        let mut fresh = PriorityIndex::new(n).unwrap();
        fresh.update(&entries, second).unwrap();
        prop_assert_eq!(used.total().to_bits(), fresh.total().to_bits());
        let total: f64 = second.iter().sum();
        prop_assert!((fresh.total() - total).abs() <= 1e-13 * total);
        if total > 0.0 {
            prop_assert_eq!(used.sample(500, seed).unwrap(), fresh.sample(500, seed).unwrap());
            let zero = |&at: &i64| second[usize::try_from(at).unwrap()] == 0.0;
            prop_assert!(!fresh.sample(500, seed).unwrap().iter().any(zero));
            let past = fresh.find(fresh.total() * 2.0).unwrap();
            prop_assert!(second[past] > 0.0);
            prop_assert!(second[past + 1..].iter().all(|&weight| weight == 0.0));
        }
    }

    #[test]
    fn what_is_refused_changes_nothing(n in 1usize..100, bad in prop_oneof![
        Just(-1.0), Just(f64::NAN), Just(f64::INFINITY), Just(1.1e290)
    ]) {
        let mut index = PriorityIndex::new(n).unwrap();
        index.update(&[0], &[5.0]).unwrap();
        let last = entry(n - 1);
        prop_assert!(index.update(&[last, 0], &[1.0, bad]).is_err());
        prop_assert!(index.update(&[last, last + 1], &[1.0, 1.0]).is_err());
        prop_assert!(index.update(&[last, -1], &[1.0, 1.0]).is_err());
        prop_assert!(index.update(&[last], &[1.0, 1.0]).is_err());
        let mut want = vec![0.0; n];
        want[0] = 5.0;
        prop_assert_eq!(index.all_weights(), want);
        prop_assert_eq!(index.total(), 5.0);
    }
}

#[test]
fn a_boundary_belongs_to_the_entry_that_begins_there() {
    let mut index = PriorityIndex::new(70).unwrap();
    index.update(&[0, 1, 9, 69], &[0.0, 2.0, 3.0, 4.0]).unwrap();
    let found = [0.0, 1.0, 2.0, 4.9, 5.0, 8.9].map(|target| index.find(target).unwrap());
    assert_eq!(found, [1, 1, 9, 9, 69, 69]);
    assert_eq!(PriorityIndex::new(70).unwrap().find(0.0), None);
}

fn chi_square(counts: &[u32], probabilities: &[f64]) -> f64 {
    let draws = f64::from(counts.iter().sum::<u32>());
    let term = |(&count, &p): (&u32, &f64)| (f64::from(count) - draws * p).powi(2) / (draws * p);
    counts.iter().zip(probabilities).map(term).sum()
}

#[test]
fn frequencies_with_replacement() {
    let n = 1000;
    let weights: Vec<f32> = (0..n).map(|i| 0.1 + (i % 37) as f32).collect();
    let mut index = PriorityIndex::new(n).unwrap();
    index.update(&(0..n).map(entry).collect::<Vec<_>>(), &weights).unwrap();
    let mut counts = vec![0u32; n];
    for at in index.sample(2_000_000, 3).unwrap() {
        counts[usize::try_from(at).unwrap()] += 1;
    }
    let probabilities: Vec<f64> =
        weights.iter().map(|&weight| f64::from(weight) / index.total()).collect();
    let chi2 = chi_square(&counts, &probabilities);
    assert!((850.0..1160.0).contains(&chi2), "chi2 {chi2} with 999 degrees of freedom");
}

/// Every ordered pair of draws without replacement has w_i / W · w_j / (W − w_i).
#[test]
fn frequencies_without_replacement() {
    let weights = [8.0, 4.0, 2.0, 1.0, 1.0, 0.5, 0.0, 3.5, 5.0, 0.25];
    let total: f64 = weights.iter().sum();
    let mut index = PriorityIndex::new(10).unwrap();
    index.update(&(0..10).map(entry).collect::<Vec<_>>(), &weights).unwrap();
    let mut counts = vec![0u32; 100];
    for seed in 0..400_000 {
        let drawn = index.sample_distinct(2, seed).unwrap();
        counts[usize::try_from(drawn[0] * 10 + drawn[1]).unwrap()] += 1;
    }
    let pairs = (0..100).map(|pair| (pair / 10, pair % 10));
    let probability = |(i, j): (usize, usize)| {
        let pair = weights[i] / total * weights[j] / (total - weights[i]);
        if i == j { 0.0 } else { pair }
    };
    let probabilities: Vec<f64> = pairs.map(probability).collect();
    let possible = |counts: &[u32]| -> (Vec<u32>, Vec<f64>) {
        counts.iter().zip(&probabilities).filter(|&(_, &p)| p > 0.0).map(|(&c, &p)| (c, p)).unzip()
    };
    let (seen, expected) = possible(&counts);
    assert_eq!(seen.iter().sum::<u32>(), 400_000, "an impossible pair was drawn");
    let chi2 = chi_square(&seen, &expected);
    assert!(chi2 < 120.0, "chi2 {chi2} with 71 degrees of freedom");
}
