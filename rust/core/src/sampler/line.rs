//! A node of the tree of sums, and the search for a target in it.

/// Entries of a cache line: a node of the tree is the line that holds its children.
pub(super) const FANOUT: usize = 8;

/// What each child weighs, or, of a line of starts, where its share begins.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [f64; FANOUT]);

impl Line {
    /// In pairs: short chains for the processor, and each start below is a sum of some of the same
    /// terms.
    #[inline(always)]
    pub(super) fn sum(&self) -> f64 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + b) + (c + d)) + ((e + f) + (g + h))
    }

    /// Where each child's share of the line begins. No start is below the one before it, and a
    /// child of weight 0 ends where it began, rounding included.
    #[inline(always)]
    pub(super) fn starts(&self) -> Self {
        let [a, b, c, d, e, f, g, _] = self.0;
        let two = a + b;
        let four = two + (c + d);
        let six = four + (e + f);
        Self([0.0, a, two, two + c, four, four + e, six, four + ((e + f) + g)])
    }

    pub(super) fn last(&self) -> Option<usize> {
        self.0.iter().rposition(|&weight| weight > 0.0)
    }
}

/// What searches a line: all of them find the same child and the same bits.
pub(super) trait Search: Copy {
    /// The child in whose share `target` lies, and how far into that share; the last child for a
    /// target at or past the line's sum.
    fn find(self, line: &Line, target: f64) -> (usize, f64);

    /// [`Self::find`], of a line whose starts are known.
    fn find_start(self, starts: &Line, target: f64) -> (usize, f64);
}

/// Any processor's search.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Search for Portable {
    #[inline(always)]
    fn find(self, line: &Line, target: f64) -> (usize, f64) {
        self.find_start(&line.starts(), target)
    }

    #[inline(always)]
    fn find_start(self, starts: &Line, target: f64) -> (usize, f64) {
        // Counted, thus free of branches, which would be mispredicted at every level.
        let child = starts.0[1..].iter().map(|&start| usize::from(start <= target)).sum::<usize>();
        let child = child % FANOUT;
        (child, target - starts.0[child])
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{__m512d, _CMP_LE_OQ};

    use pulp::cast;
    use pulp::x86::V4;

    use super::{FANOUT, Line, Search};

    impl Search for V4 {
        #[inline(always)]
        fn find(self, line: &Line, target: f64) -> (usize, f64) {
            const FROM_LANE_1: i32 = 0b01_01_01_01;
            let simd = self.avx512f;
            let ends: __m512d = cast(line.0);
            // The sums of `Line::starts`, each lane's with its own child: to every second lane its
            // neighbour, to every second pair the pair before it, to the second half the first.
            let pair = simd._mm512_unpacklo_pd(simd._mm512_setzero_pd(), ends);
            let ends = simd._mm512_add_pd(ends, pair);
            let pairs = simd._mm512_maskz_permutex_pd::<FROM_LANE_1>(0b1100_1100, ends);
            let ends = simd._mm512_add_pd(ends, pairs);
            let lane_3 = simd._mm512_set1_epi64(3);
            let half = simd._mm512_maskz_permutexvar_pd(0b1111_0000, lane_3, ends);
            let ends = simd._mm512_add_pd(ends, half);
            // A child starts where the one before it ends; the last one's end is nobody's start.
            let begun = simd._mm512_cmp_pd_mask::<_CMP_LE_OQ>(ends, simd._mm512_set1_pd(target));
            let child = (begun & 0b0111_1111).count_ones() as usize;
            let mut starts = [0.0; FANOUT + 1];
            starts[1..].copy_from_slice(&cast::<_, [f64; FANOUT]>(ends));
            (child, target - starts[child])
        }

        #[inline(always)]
        fn find_start(self, starts: &Line, target: f64) -> (usize, f64) {
            let simd = self.avx512f;
            let target_lanes = simd._mm512_set1_pd(target);
            let begun = simd._mm512_cmp_pd_mask::<_CMP_LE_OQ>(cast(starts.0), target_lanes);
            let child = (begun & 0b1111_1110).count_ones() as usize % FANOUT;
            (child, target - starts.0[child])
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use proptest::prelude::*;
    use pulp::x86::V4;

    use super::{FANOUT, Line, Portable, Search};

    fn weights() -> impl Strategy<Value = [f64; FANOUT]> {
        let weight = prop_oneof![
            Just(0.0),
            (1u32..9).prop_map(f64::from),
            1e-3..1.0,
            1e280..1e290,
            Just(f64::MIN_POSITIVE),
        ];
        prop::array::uniform8(weight)
    }

    proptest! {
        #[test]
        fn starts_never_fall_and_a_weight_of_zero_has_no_share(weights in weights()) {
            let line = Line(weights);
            let mut bounds = line.starts().0.to_vec();
            bounds.push(line.sum());
            for (child, bound) in bounds.windows(2).enumerate() {
                prop_assert!(bound[0] <= bound[1]);
                prop_assert!(weights[child] > 0.0 || bound[0] == bound[1]);
            }
        }

        #[test]
        fn every_search_finds_the_same_bits(
            weights in weights(), at in 0..=FANOUT, nudge in -2i64..=2, share in 0.0..1.0,
        ) {
            let Some(simd) = V4::try_new() else { return Ok(()) };
            let line = Line(weights);
            let bound = line.starts().0.get(at).copied().unwrap_or(line.sum());
            let beside = f64::from_bits(bound.to_bits().saturating_add_signed(nudge));
            for target in [beside, share * line.sum()] {
                let bits = |(child, rest): (usize, f64)| (child, rest.to_bits());
                let expected = bits(Portable.find(&line, target));
                prop_assert_eq!(bits(simd.find(&line, target)), expected);
                prop_assert_eq!(bits(simd.find_start(&line.starts(), target)), expected);
            }
        }
    }
}
