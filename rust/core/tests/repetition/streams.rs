//! Streams of the kinds that detectors stumble over, each a function of its seed.

use k15_core::noise::splitmix64;

/// Numbers below a bound, a function of the seed.
pub struct Draws(pub u64);

impl Draws {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        usize::try_from(splitmix64(self.0 ^ 0x5eed) % bound as u64).unwrap()
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn tokens(&mut self, length: usize, alphabet: usize) -> Vec<i32> {
        (0..length).map(|_| i32::try_from(self.below(alphabet)).unwrap()).collect()
    }
}

fn fibonacci_word(length: usize) -> Vec<i32> {
    let (mut a, mut b) = (vec![0], vec![0, 1]);
    while b.len() < length {
        let next = [b.clone(), a].concat();
        (a, b) = (b, next);
    }
    b.truncate(length);
    b
}

/// A stream of one of the kinds that detectors stumble over.
pub fn stream(draws: &mut Draws, length: usize, longest: usize) -> Vec<i32> {
    let alphabet = [1, 2, 3, 3, 10, 50_000][draws.below(6)];
    let period = 1 + draws.below(longest);
    let mut tokens = draws.tokens(draws.0 as usize % 97, alphabet);
    let unit = draws.tokens(period, alphabet);
    match draws.below(7) {
        0 => tokens.extend(draws.tokens(length, alphabet)),
        1 => tokens.extend(unit.iter().cycle().take(length)),
        2 => {
            // Nearly periodic: now and then a token changes, and the loop goes on or begins anew.
            let every = 1 + draws.below(8 * period);
            for at in 0..length {
                let token = unit[at % period];
                tokens.push(if draws.one_in(every) { token + 1 } else { token });
            }
        }
        3 => {
            // Rows of a table: some columns equal, some counting, some random.
            for at in 0..length {
                let column = at % period;
                tokens.push(match column % 5 {
                    0 => i32::try_from(at / period / 3).unwrap(),
                    1 if draws.one_in(4) => i32::try_from(draws.below(alphabet)).unwrap(),
                    _ => unit[column],
                });
            }
        }
        4 => {
            // One copy after another, each cut short or followed by noise: boundaries everywhere.
            while tokens.len() < length {
                let copies = 1 + draws.below(8);
                let cut = draws.below(period);
                tokens.extend(unit.iter().cycle().take(copies * period + cut));
                let noise = draws.below(4);
                tokens.extend(draws.tokens(noise, alphabet));
            }
        }
        5 => tokens.extend(fibonacci_word(length)),
        _ => {
            // A loop inside a loop: inner copies, then a separator, all repeated.
            let inner = draws.below(9) + 1;
            let unit = [unit.repeat(inner), vec![-1]].concat();
            tokens.extend(unit.iter().cycle().take(length));
        }
    }
    tokens
}
