//! `PromptSampler`: which prompts to roll out next.

use std::sync::{Mutex, MutexGuard, PoisonError};

use k15_core::Error;
use k15_core::sampler::{self, Curriculum, Measure, Pace, Rule, SuccessRates};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::argument::{column, unsigned};
use crate::error::Result;

/// Draws prompts by a rule over their success rates, among those that a curriculum admits.
#[pyclass(frozen, module = "k15core._core")]
pub struct PromptSampler(Mutex<sampler::PromptSampler>);

impl PromptSampler {
    /// Called without the GIL, so that waiting for another thread does not stop it.
    fn lock(&self) -> MutexGuard<'_, sampler::PromptSampler> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PromptSampler {
    #[new]
    #[pyo3(signature = (
        prompt_ids, *, difficulty = None, rule = "uniform", alpha = 1.0, epsilon = 0.01,
        gamma = 0.9, prior_rate = 0.5, prior_count = 1.0, curriculum = "none",
        warmup_iterations = 0, min_difficulty = None, max_pass_rate = None,
        pace_iterations = None, pace_start = None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword settings of one object")]
    fn new(
        prompt_ids: &Bound<'_, PyAny>,
        difficulty: Option<&Bound<'_, PyAny>>,
        rule: &str,
        alpha: f64,
        epsilon: f64,
        gamma: f64,
        prior_rate: f64,
        prior_count: f64,
        curriculum: &str,
        warmup_iterations: i128,
        min_difficulty: Option<f64>,
        max_pass_rate: Option<f64>,
        pace_iterations: Option<i128>,
        pace_start: Option<f64>,
    ) -> Result<Self> {
        let ids = column::<i64>("prompt_ids", prompt_ids, "int64")?.values().into_owned();
        let rates = SuccessRates::new(ids.len(), gamma, prior_rate, prior_count)?;
        let rule = Rule::from_name(rule)?;
        let mut sampler = sampler::PromptSampler::new(ids, rates, rule, alpha, epsilon)?;
        if let Some(labels) = difficulty {
            let labels = column::<f32>("difficulty", labels, "float32")?.values().into_owned();
            sampler = sampler.with_difficulty(labels)?;
        }
        let measure = match curriculum {
            "none" => None,
            "difficulty" => Some(Measure::Difficulty),
            "pass_rate" => Some(Measure::PassRate),
            other => {
                let expected = "one of none, difficulty, pass_rate";
                return Err(Error::invalid("curriculum", other, expected).into());
            }
        };
        let unused = |field, value: Option<String>, of: &str| match value {
            Some(value) => Err(Error::invalid(field, value, format!("None unless {of}"))),
            None => Ok(()),
        };
        if measure != Some(Measure::Difficulty) {
            let value = min_difficulty.map(|label| label.to_string());
            unused("min_difficulty", value, "curriculum = difficulty")?;
        }
        if measure != Some(Measure::PassRate) {
            let value = max_pass_rate.map(|rate| rate.to_string());
            unused("max_pass_rate", value, "curriculum = pass_rate")?;
        }
        if pace_iterations.is_none() {
            let value = pace_start.map(|start| start.to_string());
            unused("pace_start", value, "pace_iterations is given")?;
        }
        let warmup_iterations = unsigned("warmup_iterations", warmup_iterations)?;
        let Some(measure) = measure else {
            let value = pace_iterations.map(|count| count.to_string());
            unused("pace_iterations", value, "there is a curriculum")?;
            if warmup_iterations > 0 {
                let expected = "0 unless there is a curriculum";
                return Err(Error::invalid("warmup_iterations", warmup_iterations, expected).into());
            }
            return Ok(Self(Mutex::new(sampler)));
        };
        let pace = match pace_iterations {
            Some(iterations) => Some(Pace {
                start: pace_start.unwrap_or(0.2),
                iterations: unsigned("pace_iterations", iterations)?,
            }),
            None => None,
        };
        let hard = min_difficulty.or(max_pass_rate);
        let curriculum = Curriculum { measure, warmup_iterations, hard, pace };
        Ok(Self(Mutex::new(sampler.with_curriculum(curriculum)?)))
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        py.detach(|| self.lock().prompt_ids().len())
    }

    #[getter]
    fn prompt_ids<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        py.detach(|| self.lock().prompt_ids().to_vec()).into_pyarray(py)
    }

    #[pyo3(signature = (n, *, seed, iteration = 0, replace = false))]
    fn sample<'py>(
        &self,
        py: Python<'py>,
        n: i128,
        seed: i128,
        iteration: i128,
        replace: bool,
    ) -> Result<Bound<'py, PyArray1<i64>>> {
        let (n, seed) = (unsigned("n", n)?, unsigned("seed", seed)?);
        let iteration = unsigned("iteration", iteration)?;
        let drawn = py.detach(|| self.lock().sample(n, seed, iteration, replace))?;
        Ok(drawn.into_pyarray(py))
    }

    fn update(
        &self,
        py: Python<'_>,
        prompt_ids: &Bound<'_, PyAny>,
        mean_rewards: &Bound<'_, PyAny>,
        version: i128,
    ) -> Result<()> {
        let version = unsigned("version", version)?;
        let ids = column::<i64>("prompt_ids", prompt_ids, "int64")?;
        let rewards = column::<f32>("mean_rewards", mean_rewards, "float32")?;
        let (ids, rewards) = (ids.values(), rewards.values());
        Ok(py.detach(|| self.lock().update(&ids, &rewards, version))?)
    }

    fn success_rates<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        #[expect(clippy::cast_possible_truncation, reason = "a rate needs no more than 24 bits")]
        let rates = py.detach(|| self.lock().success_rates().map(|rate| rate as f32).collect());
        let rates: Vec<f32> = rates;
        rates.into_pyarray(py)
    }

    #[pyo3(signature = (iteration = 0))]
    fn admissible(&self, py: Python<'_>, iteration: i128) -> Result<usize> {
        let iteration = unsigned("iteration", iteration)?;
        Ok(py.detach(|| self.lock().admissible(iteration)))
    }

    #[pyo3(signature = (*, seed = 0, iteration = 0))]
    fn weights<'py>(
        &self,
        py: Python<'py>,
        seed: i128,
        iteration: i128,
    ) -> Result<Bound<'py, PyArray1<f64>>> {
        let (seed, iteration) = (unsigned("seed", seed)?, unsigned("iteration", iteration)?);
        Ok(py.detach(|| self.lock().weights(seed, iteration)).into_pyarray(py))
    }

    fn state<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| self.lock().state()))
    }

    fn restore(&self, py: Python<'_>, state: &[u8]) -> Result<()> {
        Ok(py.detach(|| self.lock().restore(state))?)
    }
}
