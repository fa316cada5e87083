//! An order of groups drawn by the weights of their prompts.
//!
//! # Design
//!
//! Each group gets an exponential variate of its own, divided by its weight; the smallest come
//! first. That is the same as drawing one group after the other, each time in proportion to the
//! weights that are left (Efraimidis and Spirakis 2006). A variate is a pure function of the seed
//! and the group, so that no order in which things happened matters. Equal weights give the order of
//! the strategy uniform.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::noise;

/// Weights of prompts: prompt `prompt_ids[i]` has `weights[i]`, a number of at least 0.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// The prompts' own ids.
    pub prompt_ids: &'a [i64],
    /// Their weights; a group of weight 0 is never taken.
    pub weights: &'a [f64],
}

/// The weights by prompt.
pub(super) enum Lookup<'a> {
    /// As they were given, the ids ascending.
    Sorted(Weights<'a>),
    Hashed(HashMap<i64, f64>),
}

impl<'a> Lookup<'a> {
    pub(super) fn new(given: Weights<'a>) -> Result<Self> {
        let Weights { prompt_ids, weights } = given;
        if prompt_ids.len() != weights.len() {
            let expected = format!("{}, one for each prompt id", prompt_ids.len());
            return Err(Error::invalid("weights", format!("{} weights", weights.len()), expected));
        }
        let is_weight = |weight: &f64| (0.0..f64::INFINITY).contains(weight);
        if let Some(place) = weights.iter().position(|weight| !is_weight(weight)) {
            let value = format!("{} for prompt {}", weights[place], prompt_ids[place]);
            return Err(Error::invalid("weights", value, "finite numbers of at least 0"));
        }
        if prompt_ids.is_sorted_by(|a, b| a < b) {
            return Ok(Self::Sorted(given));
        }
        let mut hashed = HashMap::with_capacity(prompt_ids.len());
        for (&prompt_id, &weight) in prompt_ids.iter().zip(weights) {
            if hashed.insert(prompt_id, weight).is_some() {
                let value = format!("prompt {prompt_id} twice");
                return Err(Error::invalid("weights", value, "each prompt once"));
            }
        }
        Ok(Self::Hashed(hashed))
    }

    fn weight(&self, prompt_id: i64) -> Option<f64> {
        match self {
            Self::Sorted(given) => {
                let place = given.prompt_ids.binary_search(&prompt_id).ok()?;
                Some(given.weights[place])
            }
            Self::Hashed(hashed) => hashed.get(&prompt_id).copied(),
        }
    }

    /// What a group sorts by: the bits of a number above 0, which sort as it does. None where its
    /// weight is 0.
    pub(super) fn key(&self, seed: u64, group_id: u64, prompt_id: i64) -> Result<Option<u64>> {
        let weight = self.weight(prompt_id).ok_or_else(|| {
            let value = format!("none for prompt {prompt_id}, of group {group_id}");
            Error::invalid("weights", value, "one for the prompt of each group that can be taken")
        })?;
        let variate = -(-noise::uniform(seed, group_id, 0)).ln_1p();
        Ok((weight > 0.0).then(|| (variate / weight).to_bits()))
    }
}

/// The numbers by which groups go in the order of [`super::Strategy::Priority`], the least first; infinite
/// where the weight of the prompt is 0. Group `group_ids[i]` is one of prompt `prompt_ids[i]`.
///
/// # Errors
///
/// [`Error::InvalidInput`] if a prompt has no weight, or the weights are none.
pub fn priorities(
    seed: u64,
    group_ids: &[u64],
    prompt_ids: &[i64],
    weights: Weights<'_>,
) -> Result<Vec<f64>> {
    if prompt_ids.len() != group_ids.len() {
        let expected = format!("{}, one for each group", group_ids.len());
        return Err(Error::invalid(
            "prompt_ids",
            format!("{} entries", prompt_ids.len()),
            expected,
        ));
    }
    let weights = Lookup::new(weights)?;
    let groups = group_ids.iter().zip(prompt_ids);
    let key = |(&id, &prompt_id)| {
        Ok(weights.key(seed, id, prompt_id)?.map_or(f64::INFINITY, f64::from_bits))
    };
    groups.map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(weights: &[f64], seed: u64) -> Vec<usize> {
        let ids: Vec<i64> = (0..weights.len() as i64).collect();
        let lookup = Lookup::new(Weights { prompt_ids: &ids, weights }).unwrap();
        let key = |i: &usize| lookup.key(seed, *i as u64, *i as i64).unwrap();
        let mut groups: Vec<usize> = (0..weights.len()).filter(|i| key(i).is_some()).collect();
        groups.sort_by_key(key);
        groups
    }

    /// The chance of an order of all that have a weight: each in proportion to what is left.
    fn chance(weights: &[f64], order: &[usize]) -> f64 {
        let mut left: f64 = weights.iter().sum();
        let mut chance = 1.0;
        for &i in order {
            chance *= weights[i] / left;
            left -= weights[i];
        }
        chance
    }

    #[test]
    fn orders_come_as_often_as_successive_draws_would_give_them() {
        let weights = [1.0, 0.0, 3.0, 0.5, 2.0];
        let draws = 60_000;
        let mut counts: HashMap<Vec<usize>, f64> = HashMap::new();
        for seed in 0..draws {
            *counts.entry(order(&weights, seed)).or_default() += 1.0;
        }
        assert_eq!(counts.len(), 24);
        let chi2: f64 = counts
            .iter()
            .map(|(order, count)| {
                let expected = chance(&weights, order) * draws as f64;
                (count - expected).powi(2) / expected
            })
            .sum();
        // 23 degrees of freedom; one in ten thousand is above 56. The seeds are fixed.
        assert!(chi2 < 56.0, "chi-square {chi2}");
    }

    #[test]
    fn sorted_and_unsorted_weights_say_the_same() {
        let (ids, weights) = ([5, -2, 9], [0.5, 2.0, 0.0]);
        let sorted = Lookup::new(Weights { prompt_ids: &[-2, 5, 9], weights: &[2.0, 0.5, 0.0] });
        let (sorted, hashed) = (
            sorted.unwrap(),
            Lookup::new(Weights { prompt_ids: &ids, weights: &weights }).unwrap(),
        );
        assert!(matches!((&sorted, &hashed), (Lookup::Sorted(_), Lookup::Hashed(_))));
        for (id, weight) in ids.into_iter().zip(weights) {
            assert_eq!(sorted.weight(id), Some(weight));
            assert_eq!(hashed.weight(id), Some(weight));
        }
        assert_eq!((sorted.weight(6), hashed.weight(6)), (None, None));
    }
}
