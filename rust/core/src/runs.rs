//! Copying runs of entries from place to place in flat arrays.

use crate::error::{Error, Result};

/// Runs of entries of `width` bytes, copied from one array to another: run i has `lengths[i]`
/// entries, from `sources[i]` on to `targets[i]` on.
///
/// # Errors
///
/// [`Error::InvalidInput`], before anything is written, if a run is not within both arrays.
pub fn copy_runs(
    from: &[u8],
    into: &mut [u8],
    sources: &[i64],
    targets: &[i64],
    lengths: &[i64],
    width: usize,
) -> Result<()> {
    let n = lengths.len();
    for (field, length) in [("sources", sources.len()), ("targets", targets.len())] {
        if length != n {
            let expected = format!("{n}, one for each of lengths");
            return Err(Error::invalid(field, format!("{length} entries"), expected));
        }
    }
    let range = |field, start: i64, length: i64, bytes: usize| {
        let inside = || {
            let first = usize::try_from(start).ok()?.checked_mul(width)?;
            let end = usize::try_from(length).ok()?.checked_mul(width)?.checked_add(first)?;
            (end <= bytes).then_some(first..end)
        };
        let expected = || format!("a start within {} entries", bytes / width.max(1));
        inside().ok_or_else(|| {
            Error::invalid(field, format!("{start}, for {length} entries"), expected())
        })
    };
    let mut runs = Vec::with_capacity(n);
    for i in 0..n {
        runs.push((
            range("sources", sources[i], lengths[i], from.len())?,
            range("targets", targets[i], lengths[i], into.len())?,
        ));
    }
    for (source, target) in runs {
        into[target].copy_from_slice(&from[source]);
    }
    Ok(())
}
