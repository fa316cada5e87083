//! Draws from a Beta distribution.

use super::stream::Stream;

/// One draw from Beta(a, b). With a = 0 it is 0, with b = 0 it is 1.
///
/// # Design
///
/// X / (X + Y) for two gamma variables, kept as logarithms: for shapes far below 1 both underflow,
/// but their ratio does not.
pub(super) fn draw(a: f64, b: f64, noise: &mut Stream) -> f64 {
    if a <= 0.0 || b <= 0.0 {
        return if a <= 0.0 { 0.0 } else { 1.0 };
    }
    1.0 / (1.0 + (log_gamma_variable(b, noise) - log_gamma_variable(a, noise)).exp())
}

/// The logarithm of a gamma variable, after Marsaglia and Tsang (ACM TOMS 26, 2000).
fn log_gamma_variable(shape: f64, noise: &mut Stream) -> f64 {
    if shape < 1.0 {
        // A variable of shape + 1 times u^(1/shape) has the wanted shape (their section 6).
        let boost = positive(noise).ln() / shape;
        return log_gamma_variable(shape + 1.0, noise) + boost;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(noise);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && positive(noise).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return (d * v).ln();
        }
    }
}

/// A standard normal variable, after Box and Muller.
fn normal(noise: &mut Stream) -> f64 {
    let radius = (-2.0 * positive(noise).ln()).sqrt();
    radius * (std::f64::consts::TAU * noise.uniform()).cos()
}

/// A uniform number in (0, 1], of which a logarithm can be taken.
fn positive(noise: &mut Stream) -> f64 {
    1.0 - noise.uniform()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u64 = 20_000;

    /// The greatest distance between the draws' distribution and a known one (Kolmogorov–Smirnov).
    fn distance(a: f64, b: f64, cdf: impl Fn(f64) -> f64) -> f64 {
        let mut draws: Vec<f64> =
            (0..DRAWS).map(|i| draw(a, b, &mut Stream::of_entry(5, i))).collect();
        draws.sort_by(f64::total_cmp);
        let n = DRAWS as f64;
        let at = |(i, &x): (usize, &f64)| {
            let (p, i) = (cdf(x), i as f64);
            (p - i / n).abs().max((p - (i + 1.0) / n).abs())
        };
        draws.iter().enumerate().map(at).fold(0.0, f64::max)
    }

    #[test]
    fn draws_follow_known_distributions() {
        let limit = 1.95 / (DRAWS as f64).sqrt(); // passed by chance once in 1000 seeds
        assert!(distance(1.0, 1.0, |x| x) < limit);
        assert!(distance(2.0, 1.0, |x| x * x) < limit);
        assert!(distance(1.0, 7.5, |x| 1.0 - (1.0 - x).powf(7.5)) < limit);
        let arcsine = |x: f64| 2.0 / std::f64::consts::PI * x.sqrt().asin();
        assert!(distance(0.5, 0.5, arcsine) < limit);
        let cubic = |x: f64| x.powi(3) * (10.0 - 15.0 * x + 6.0 * x * x);
        assert!(distance(3.0, 3.0, cubic) < limit);
    }

    #[test]
    fn extreme_shapes_stay_between_0_and_1() {
        for (a, b) in [(1e-9, 1e-9), (1e-300, 2.0), (1e12, 1e-3), (0.0, 1.0), (1.0, 0.0)] {
            for i in 0..100 {
                let x = draw(a, b, &mut Stream::of_entry(1, i));
                assert!((0.0..=1.0).contains(&x), "Beta({a}, {b}) gave {x}");
            }
        }
    }
}
