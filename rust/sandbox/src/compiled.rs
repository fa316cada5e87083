//! What compiling left, kept so that one source is compiled once for all its inputs.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::sandbox::Submission;
use crate::{Outcome, Result, Verdict};

/// Files by name.
pub(crate) type Artifacts = BTreeMap<String, Vec<u8>>;

/// Artifacts, or the outcome of the compiler's failure.
type Compiled = Arc<std::result::Result<Artifacts, Outcome>>;

/// The most bytes of artifacts, with their sources, that are kept.
const CAPACITY: usize = 256 << 20;

/// All that artifacts depend on. The whole of it is the key: a hash that is met on purpose would hand one
/// program's artifacts to another.
type Key = (String, String, BTreeMap<String, Vec<u8>>);

/// One source's place: filled by the first who needs it while the others wait.
type Place = Arc<Mutex<Option<Compiled>>>;

#[derive(Default)]
pub(crate) struct Cache(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    places: HashMap<Key, Place>,
    /// In the order of arrival, with the bytes that each takes.
    order: VecDeque<(Key, usize)>,
    bytes: usize,
}

impl Cache {
    /// What `compile` made of the source the first time. A failure of the sandbox's own is not kept.
    pub(crate) fn get(
        &self,
        submission: &Submission,
        compile: impl FnOnce() -> Result<std::result::Result<Artifacts, Outcome>>,
    ) -> Result<Compiled> {
        let key =
            (submission.language.clone(), submission.source.clone(), submission.files.clone());
        let place = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(kept.places.entry(key.clone()).or_default())
        };
        let mut filled = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = &*filled {
            return Ok(Arc::clone(compiled));
        }
        let compiled = match compile() {
            Ok(compiled) => Arc::new(compiled),
            Err(error) => {
                self.forget(&key);
                return Err(error);
            }
        };
        if let Err(Outcome { verdict: Verdict::SandboxError, .. }) = &*compiled {
            self.forget(&key);
        } else {
            *filled = Some(Arc::clone(&compiled));
            self.keep(key, size(submission, &compiled));
        }
        Ok(compiled)
    }

    fn forget(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).places.remove(key);
    }

    /// Counts a new entry and drops the oldest until all fit.
    fn keep(&self, key: Key, bytes: usize) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += bytes;
        kept.order.push_back((key, bytes));
        while kept.bytes > CAPACITY {
            let Some((oldest, bytes)) = kept.order.pop_front() else { break };
            kept.bytes -= bytes;
            kept.places.remove(&oldest);
        }
    }
}

/// What an entry takes: the key is held twice.
fn size(submission: &Submission, compiled: &Compiled) -> usize {
    let files = |files: &BTreeMap<String, Vec<u8>>| files.values().map(Vec::len).sum::<usize>();
    let made = match &**compiled {
        Ok(artifacts) => files(artifacts),
        Err(outcome) => outcome.stdout.len() + outcome.stderr.len(),
    };
    2 * (submission.source.len() + files(&submission.files)) + made + 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submission(source: &str) -> Submission {
        Submission { source: source.into(), language: "c".into(), ..Submission::default() }
    }

    fn made(length: usize) -> Result<std::result::Result<Artifacts, Outcome>> {
        Ok(Ok(Artifacts::from([("main".into(), vec![0; length])])))
    }

    #[test]
    fn a_source_is_compiled_once() {
        let cache = Cache::default();
        cache.get(&submission("a"), || made(1)).unwrap();
        cache.get(&submission("a"), || panic!("compiled twice")).unwrap();
        let mut other = 0;
        cache
            .get(&submission("b"), || {
                other += 1;
                made(1)
            })
            .unwrap();
        assert_eq!(other, 1);
    }

    #[test]
    fn the_oldest_goes_when_there_is_too_much() {
        let cache = Cache::default();
        for source in ["a", "b", "c"] {
            cache.get(&submission(source), || made(CAPACITY / 2)).unwrap();
        }
        let mut again = false;
        cache
            .get(&submission("a"), || {
                again = true;
                made(1)
            })
            .unwrap();
        assert!(again);
    }

    #[test]
    fn the_sandboxs_own_failure_is_not_kept() {
        let cache = Cache::default();
        let failed = cache.get(&submission("a"), || Ok(Err(Outcome::sandbox_error("x")))).unwrap();
        assert!(failed.is_err());
        assert!(cache.get(&submission("a"), || made(1)).unwrap().is_ok());
    }
}
