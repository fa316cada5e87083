//! When the next one can start, as far as anybody can tell.

/// How much a run counts in the mean once there have been many.
const LEAST_WEIGHT: f64 = 0.05;

/// How long runs take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usual {
    seconds: f64,
    runs: u32,
}

impl Usual {
    /// Counts a run.
    pub fn learn(&mut self, seconds: f64) {
        self.runs = self.runs.saturating_add(1);
        self.seconds += (1.0 / f64::from(self.runs)).max(LEAST_WEIGHT) * (seconds - self.seconds);
    }

    /// Seconds that a run takes; 0 before any has ended.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Seconds until one starts that `ahead` others go before, where each thread's run has taken
    /// `elapsed` seconds.
    ///
    /// A run that has taken less than is usual takes the rest of it; one that has taken more is taken to
    /// need as long again as it is over: a slow run says little of those that wait behind it, unless all
    /// threads have one.
    pub fn until_start(&self, ahead: usize, elapsed: impl Iterator<Item = f64>) -> f64 {
        let mut left: Vec<f64> = elapsed.map(|taken| (self.seconds - taken).abs()).collect();
        left.sort_by(f64::total_cmp);
        // With the first n threads alone it would start then; with all, when it is soonest.
        let (mut sum, mut soonest, mut threads) = (0.0, f64::INFINITY, 0.0);
        for each in left {
            sum += each;
            threads += 1.0;
            let shared = (self.seconds * (count(ahead) + 1.0 - threads) + sum) / threads;
            soonest = shared.max(each).min(soonest);
        }
        soonest
    }
}

/// As a number that can be multiplied.
pub fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual(seconds: f64) -> Usual {
        let mut usual = Usual::default();
        usual.learn(seconds);
        usual
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a}, expected {b}");
    }

    #[test]
    fn the_mean_follows_what_runs_take() {
        let mut usual = Usual::default();
        for seconds in [1.0, 2.0, 3.0] {
            usual.learn(seconds);
        }
        close(usual.seconds(), 2.0);
        for _ in 0..200 {
            usual.learn(5.0);
        }
        assert!((usual.seconds() - 5.0).abs() < 0.01);
    }

    #[test]
    fn it_starts_when_a_thread_is_free() {
        close(usual(1.0).until_start(0, [0.25].into_iter()), 0.75);
        close(usual(1.0).until_start(3, [0.25].into_iter()), 3.75);
        close(usual(1.0).until_start(0, [0.0, 0.6].into_iter()), 0.4);
        close(usual(1.0).until_start(1, [0.0, 0.6].into_iter()), 1.0);
        close(usual(1.0).until_start(19, [0.5, 0.5].into_iter()), 9.5);
        // Nothing has ended yet: as long again as it has taken.
        close(Usual::default().until_start(5, [0.3].into_iter()), 0.3);
    }

    #[test]
    fn a_slow_run_does_not_make_the_others_slow() {
        // One of two threads has had a run of 9 s where 0.1 s is usual: the other serves all.
        let wait = usual(0.1).until_start(20, [9.0, 0.0].into_iter());
        assert!((2.0..2.2).contains(&wait), "{wait}");
        // Where all have one, everybody waits for it.
        assert!(usual(0.1).until_start(0, [9.0, 9.0].into_iter()) > 8.0);
    }
}
