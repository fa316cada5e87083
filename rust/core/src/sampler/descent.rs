//! From a target on the line of cumulative weights down the tree to the entry that it falls on.

use super::line::{FANOUT, Line, Portable, Search};
use super::stream::Stream;
use crate::pages::fetch_line;

/// Draws that go down the tree side by side, so that their cache misses overlap.
const ABREAST: usize = 64;

/// A line of the next level and how far into its share the target lies; at the end an entry.
type Lane = (usize, f64);

/// The entry on which `target` falls, some weight being above 0.
pub(super) fn find(levels: &[Vec<Line>], target: f64) -> usize {
    let down =
        |lane: Lane, level: &Vec<Line>| step(lane, level, |line| Portable.find(line, lane.1));
    settle(levels, levels.iter().rev().fold((0, target), down).0)
}

/// `count` entries, each on its own in proportion to its weight, some being above 0.
pub(super) fn draw(levels: &[Vec<Line>], count: usize, noise: &mut Stream) -> Vec<usize> {
    let draws = Draws { levels, count, noise };
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        return simd.vectorize(On(simd, draws));
    }
    draws.run(Portable)
}

struct Draws<'a> {
    levels: &'a [Vec<Line>],
    count: usize,
    noise: &'a mut Stream,
}

/// All of it is inlined into one function, which pulp compiles for the processor at hand.
#[cfg(target_arch = "x86_64")]
struct On<'a, S>(S, Draws<'a>);

#[cfg(target_arch = "x86_64")]
impl<S: Search> pulp::NullaryFnOnce for On<'_, S> {
    type Output = Vec<usize>;

    #[inline(always)]
    fn call(self) -> Vec<usize> {
        self.1.run(self.0)
    }
}

impl Draws<'_> {
    #[inline(always)]
    fn run<S: Search>(self, search: S) -> Vec<usize> {
        let (below, above) = self.levels.split_at(self.with_starts());
        let Self { levels, count, noise } = self;
        let total = levels[levels.len() - 1][0].sum();
        let starts_of = |level: &Vec<Line>| level.iter().map(Line::starts).collect();
        let starts: Vec<Vec<Line>> = above.iter().map(starts_of).collect();
        let mut drawn = Vec::with_capacity(count);
        let mut lanes: [Lane; ABREAST] = [(0, 0.0); ABREAST];
        while drawn.len() < count {
            let lanes = &mut lanes[..ABREAST.min(count - drawn.len())];
            for lane in lanes.iter_mut() {
                *lane = (0, noise.uniform() * total);
            }
            for level in starts.iter().rev() {
                for lane in lanes.iter_mut() {
                    *lane = step(*lane, level, |line| search.find_start(line, lane.1));
                }
            }
            // Each lane's next line is on its way while the other lanes take this step.
            for pair in below.windows(2).rev() {
                for lane in lanes.iter_mut() {
                    *lane = step(*lane, &pair[1], |line| search.find(line, lane.1));
                    fetch_line(line_of(&pair[0], lane.0));
                }
            }
            for lane in lanes.iter_mut() {
                *lane = step(*lane, &levels[0], |line| search.find(line, lane.1));
            }
            drawn.extend(lanes.iter().map(|&(at, _)| settle(levels, at)));
        }
        drawn
    }

    /// The first level whose lines' starts are worth computing for these draws alone: they are few
    /// against them.
    fn with_starts(&self) -> usize {
        let few = |level: &Vec<Line>| level.len() * FANOUT <= self.count;
        self.levels.iter().position(few).unwrap_or(self.levels.len()).max(1)
    }
}

/// Past the last line there is nothing: only a target past the total goes there.
#[inline(always)]
fn line_of(level: &[Line], node: usize) -> &Line {
    &level[node.min(level.len() - 1)]
}

/// One level down, to the line of the child and the target in it.
#[inline(always)]
fn step((node, _): Lane, level: &[Line], find: impl FnOnce(&Line) -> (usize, f64)) -> Lane {
    let node = node.min(level.len() - 1);
    let (child, rest) = find(&level[node]);
    (node * FANOUT + child, rest)
}

/// The entry that a descent ended at, or, where rounding took the target past the last weight of a
/// line and so to an entry of weight 0, the last that weighs something in that line.
#[inline(always)]
fn settle(levels: &[Vec<Line>], at: usize) -> usize {
    if levels[0][at / FANOUT].0[at % FANOUT] > 0.0 { at } else { last_of_line(levels, at) }
}

#[cold]
fn last_of_line(levels: &[Vec<Line>], at: usize) -> usize {
    let mut node = at;
    for (height, level) in levels.iter().enumerate() {
        node /= FANOUT;
        if let Some(child) = level[node].last() {
            let down =
                |node: usize, below: &Vec<Line>| node * FANOUT + below[node].last().unwrap_or(0);
            return levels[..height].iter().rev().fold(node * FANOUT + child, down);
        }
    }
    at
}
