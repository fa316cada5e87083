//! Success rates and the prompt sampler against lists of everything that ever happened.

use k15_core::sampler::{Curriculum, Measure, Pace, PromptSampler, Rule, SuccessRates};
use proptest::prelude::*;

use crate::oracle::{scan, uniforms};

const IDS: i64 = 1000;

/// A reward of a prompt under a version.
type Event = (usize, f32, u32);

#[derive(Clone, Debug)]
struct Settings {
    gamma: f64,
    prior_rate: f64,
    prior_count: f64,
    rule: Rule,
    alpha: f64,
    epsilon: f64,
    curriculum: Option<Curriculum>,
    labels: Vec<f32>,
}

impl Settings {
    fn rates(&self) -> SuccessRates {
        SuccessRates::new(self.labels.len(), self.gamma, self.prior_rate, self.prior_count).unwrap()
    }

    fn sampler(&self) -> PromptSampler {
        let ids = (IDS..).take(self.labels.len()).collect();
        let sampler = PromptSampler::new(ids, self.rates(), self.rule, self.alpha, self.epsilon)
            .and_then(|sampler| sampler.with_difficulty(self.labels.clone()))
            .unwrap();
        match self.curriculum {
            Some(curriculum) => sampler.with_curriculum(curriculum).unwrap(),
            None => sampler,
        }
    }

    /// s_i as it is defined: a sum over all rewards that ever came.
    fn rate(&self, events: &[Event], prompt: usize) -> f64 {
        let newest = events.iter().map(|event| event.2).max().unwrap_or(0);
        let mut sums = (self.prior_rate * self.prior_count, self.prior_count);
        for &(_, reward, version) in events.iter().filter(|event| event.0 == prompt) {
            let weight = self.gamma.powi(i32::try_from(newest - version).unwrap());
            sums = (sums.0 + weight * f64::from(reward), sums.1 + weight);
        }
        sums.0 / sums.1
    }

    fn weight(&self, rate: f64) -> f64 {
        match self.rule {
            Rule::Uniform => 1.0,
            Rule::Learnability => rate * (1.0 - rate) + self.epsilon,
            Rule::Priority | Rule::Thompson => (1.0 - rate).powf(self.alpha) + self.epsilon,
        }
    }

    /// How far a prompt lies outside what the curriculum admits.
    fn distance(&self, rate: f64, prompt: usize, iteration: u64) -> f64 {
        let Some(curriculum) = self.curriculum else { return 0.0 };
        let labels = self.labels.iter().map(|&label| f64::from(label));
        let (hardness, hard, least, most) = match curriculum.measure {
            Measure::Difficulty => (
                f64::from(self.labels[prompt]),
                curriculum.hard,
                labels.clone().fold(f64::MAX, f64::min),
                labels.fold(f64::MIN, f64::max),
            ),
            Measure::PassRate => (-rate, curriculum.hard.map(|x| -x), -1.0, 0.0),
        };
        let mut distance = 0.0f64;
        if let Some(hard) = hard
            && iteration >= curriculum.warmup_iterations
        {
            distance = distance.max(hard - hardness);
        }
        if let Some(pace) = curriculum.pace
            && iteration < pace.iterations
        {
            let reached =
                pace.start * pace.iterations as f64 + (1.0 - pace.start) * iteration as f64;
            let bound = least + (most - least) * reached / pace.iterations as f64;
            distance = distance.max(hardness - bound);
        }
        distance
    }

    /// The draws as they are promised, by walks along the weights that are left.
    fn draws(
        &self,
        rates: &[f64],
        n: usize,
        seed: u64,
        iteration: u64,
        replace: bool,
    ) -> Vec<usize> {
        let all = 0..self.labels.len();
        let distances: Vec<f64> =
            all.clone().map(|at| self.distance(rates[at], at, iteration)).collect();
        let mut outside: Vec<f64> = distances.iter().copied().filter(|&d| d > 0.0).collect();
        outside.sort_by(f64::total_cmp);
        let weights_of = |from: f64, to: f64| -> Vec<f64> {
            let inside = |at: usize| from <= distances[at] && distances[at] <= to;
            all.clone().map(|at| if inside(at) { self.weight(rates[at]) } else { 0.0 }).collect()
        };
        let admitted = self.labels.len() - outside.len();
        let mut weights = match replace && admitted == 0 {
            true => weights_of(f64::MIN_POSITIVE, outside[0]),
            false => weights_of(0.0, 0.0),
        };
        let mut drawn = Vec::new();
        for u in uniforms(seed).take(n) {
            if !replace && drawn.len() == admitted {
                weights = weights_of(f64::MIN_POSITIVE, outside[n - admitted - 1]);
            }
            let at = scan(&weights, u * weights.iter().sum::<f64>());
            if !replace {
                weights[at] = 0.0;
            }
            drawn.push(at);
        }
        drawn
    }
}

fn curriculum() -> impl Strategy<Value = Option<Curriculum>> {
    let pace = (0.0..=1.0f64, 1u64..12).prop_map(|(start, iterations)| Pace { start, iterations });
    let bounds = prop_oneof![
        (0.0..=1.0f64).prop_map(|hard| (Some(hard), None)),
        pace.clone().prop_map(|pace| (None, Some(pace))),
        (0.0..=1.0f64, pace).prop_map(|(hard, pace)| (Some(hard), Some(pace))),
    ];
    let measure = prop_oneof![Just(Measure::Difficulty), Just(Measure::PassRate)];
    let made = (measure, 0u64..6, bounds).prop_map(|(measure, warmup, (hard, pace))| {
        let scale = if measure == Measure::Difficulty { 7.0 } else { 1.0 };
        let warmup_iterations = if hard.is_some() { warmup } else { 0 };
        Curriculum { measure, warmup_iterations, hard: hard.map(|hard| hard * scale), pace }
    });
    prop_oneof![1 => Just(None), 4 => made.prop_map(Some)]
}

fn settings() -> impl Strategy<Value = Settings> {
    let rule = prop_oneof![Just(Rule::Uniform), Just(Rule::Priority), Just(Rule::Learnability)];
    let gamma = prop_oneof![Just(0.0), Just(1.0), 0.5..1.0f64];
    let labels = prop::collection::vec((0u8..8).prop_map(f32::from), 1..80);
    (gamma, 0.0..=1.0f64, 1e-3..5.0f64, rule, 0.0..3.0f64, 1e-4..0.5f64, curriculum(), labels)
        .prop_map(|(gamma, prior_rate, prior_count, rule, alpha, epsilon, curriculum, labels)| {
            Settings { gamma, prior_rate, prior_count, rule, alpha, epsilon, curriculum, labels }
        })
}

/// Rewards of a few calls, each under one version, newer or older than the last.
fn calls(n: usize) -> impl Strategy<Value = Vec<(Vec<(usize, f32)>, u32)>> {
    let reward = prop_oneof![Just(0.0f32), Just(1.0), Just(0.5), 0.0..=1.0f32];
    let call = (prop::collection::vec((0..n, reward), 0..12), 0u32..30);
    prop::collection::vec(call, 0..8)
}

proptest! {
    #[test]
    fn rates_and_draws_equal_the_definitions(
        (settings, calls) in settings().prop_flat_map(|s| {
            let n = s.labels.len();
            (Just(s), calls(n))
        }),
        seed: u64,
        share in 0.0..=1.0f64,
        iterations in prop::collection::vec(0u64..14, 1..4),
        split in 0usize..8,
    ) {
        let n = settings.labels.len();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to n")]
        let wanted = (share * n as f64).round() as usize;
        let mut sampler = settings.sampler();
        let mut events: Vec<Event> = Vec::new();
        for (turn, (rewards, version)) in calls.iter().enumerate() {
            let ids: Vec<i64> = rewards.iter().map(|&(at, _)| IDS + at as i64).collect();
            let values: Vec<f32> = rewards.iter().map(|&(_, reward)| reward).collect();
            sampler.update(&ids, &values, *version).unwrap();
            events.extend(rewards.iter().map(|&(at, reward)| (at, reward, *version)));
            // Draws between updates must leave no trace.
            sampler.sample(wanted, seed ^ 1, iterations[0], turn % 2 == 0).unwrap();
            if turn == split {
                // A run that goes on from a checkpoint has no other draws.
                let mut twin = settings.sampler();
                twin.update(&[IDS], &[1.0], *version).unwrap();
                twin.sample(1, seed, iterations[0], false).unwrap();
                twin.restore(&sampler.state()).unwrap();
                prop_assert_eq!(twin.state(), sampler.state());
                sampler = twin;
            }
        }

        // Rates that lie on a bound may fall on either side of it by rounding, so the definition
        // of the draws takes the rates from the sampler, once they are known to be right.
        let rates: Vec<f64> = sampler.success_rates().collect();
        for (at, &rate) in rates.iter().enumerate() {
            prop_assert!((rate - settings.rate(&events, at)).abs() < 1e-12);
        }
        for &iteration in &iterations {
            let inside = (0..n).filter(|&at| settings.distance(rates[at], at, iteration) <= 0.0);
            prop_assert_eq!(sampler.admissible(iteration), inside.count());
            for replace in [false, true] {
                let want: Vec<i64> = settings
                    .draws(&rates, wanted, seed, iteration, replace)
                    .into_iter()
                    .map(|at| IDS + at as i64)
                    .collect();
                prop_assert_eq!(sampler.sample(wanted, seed, iteration, replace).unwrap(), want);
            }
        }
        prop_assert!(sampler.sample(n + 1, seed, 0, false).is_err());
    }

    /// A state with any byte changed, or cut anywhere, is refused and changes nothing.
    #[test]
    fn damaged_states_are_refused(at in 0usize..108, flip in 1u8..=255, cut in 0usize..108) {
        let settings = plain(Rule::Priority, 3);
        let mut sampler = settings.sampler();
        sampler.update(&[IDS, IDS + 2], &[1.0, 0.25], 5).unwrap();
        let state = sampler.state();
        prop_assert_eq!(state.len(), 108);
        let mut damaged = state.clone();
        damaged[at] ^= flip;
        prop_assert!(sampler.restore(&damaged).is_err());
        prop_assert!(sampler.restore(&state[..cut]).is_err());
        prop_assert_eq!(sampler.state(), state);
    }

    /// Rewards of another order of versions give the same rates.
    #[test]
    fn the_order_of_versions_does_not_matter(
        events in prop::collection::vec((0usize..4, 0.0..=1.0f32, 0u32..40), 0..60),
    ) {
        let rates = |events: &mut dyn Iterator<Item = &Event>| -> Vec<f64> {
            let mut rates = plain(Rule::Priority, 4).rates();
            events.for_each(|&(at, reward, version)| rates.record(at, f64::from(reward), version));
            (0..4).map(|at| rates.rate(at)).collect()
        };
        let (one, other) = (rates(&mut events.iter()), rates(&mut events.iter().rev()));
        for (one, other) in one.iter().zip(&other) {
            prop_assert!((one - other).abs() < 1e-12);
        }
    }
}

fn plain(rule: Rule, n: usize) -> Settings {
    Settings {
        gamma: 0.9,
        prior_rate: 0.5,
        prior_count: 2.0,
        rule,
        alpha: 1.0,
        epsilon: 1e-9,
        curriculum: None,
        labels: vec![0.0; n],
    }
}

/// Prompt 0 is unknown, Beta(1, 1); prompt 1 failed twice, Beta(1, 3). A draw takes prompt 0 with
/// the mean of (1 − x) / (1 − x + 1 − y) over both distributions.
#[test]
fn thompson_draws_rates_anew_for_each_seed() {
    let mut sampler = plain(Rule::Thompson, 2).sampler();
    sampler.update(&[IDS + 1, IDS + 1], &[0.0, 0.0], 0).unwrap();
    let grid = || (0..1000).map(|i| (f64::from(i) + 0.5) / 1000.0);
    let mut want = 0.0;
    for failing in grid() {
        // 1 − y of Beta(1, 3) has the density 3 (1 − y)²; 1 − x of Beta(1, 1) has density 1.
        let density = 3.0 * failing * failing / 1e6;
        want += grid().map(|unknown| density * unknown / (unknown + failing)).sum::<f64>();
    }
    let draws = 100_000;
    let first = (0..draws).filter(|&seed| sampler.sample(1, seed, 0, true).unwrap() == [IDS]);
    let share = first.count() as f64 / draws as f64;
    assert!((share - want).abs() < 0.005, "{share}, expected {want}");
    let by_mean = 0.5 / (0.5 + 0.75);
    assert!((want - by_mean).abs() > 0.01, "the test can tell Thompson from its mean");
}

#[test]
fn states_of_other_prompts_or_decay_are_refused() {
    let settings = plain(Rule::Priority, 3);
    let state = settings.sampler().state();
    let message = |settings: Settings| {
        settings.sampler().restore(&state).map_err(|error| error.to_string()).unwrap_err()
    };
    assert!(message(plain(Rule::Priority, 4)).contains("it is of 3, the sampler has 4"));
    assert!(message(Settings { gamma: 1.0, ..settings.clone() }).contains("it has 0.9"));
    let ids = vec![IDS, IDS + 2, IDS + 1];
    let mut shuffled = PromptSampler::new(ids, settings.rates(), Rule::Priority, 1.0, 0.1).unwrap();
    assert!(shuffled.restore(&state).is_err());
}
