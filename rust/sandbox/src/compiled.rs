//! What compiling left, kept so that one source is compiled once for all its inputs.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::submission::Submission;
use crate::{Outcome, Result, Verdict};

/// Files by name.
pub(crate) type Artifacts = BTreeMap<String, Vec<u8>>;

/// How compiling ended, and what it left if it went well.
pub(crate) struct Compiled {
    pub(crate) outcome: Outcome,
    pub(crate) artifacts: Option<Artifacts>,
}

impl Compiled {
    /// Whether the same source would end so again. What a limit, the sandbox or its caller ended says
    /// nothing about the next time.
    fn is_kept(&self) -> bool {
        self.artifacts.is_some()
            || matches!(self.outcome.verdict, Verdict::Ok | Verdict::NonzeroExit)
    }
}

/// The most bytes of artifacts, with their sources, that are kept.
const CAPACITY: usize = 256 << 20;

/// All that artifacts depend on. The whole of it is the key: a hash that is met on purpose would hand one
/// program's artifacts to another.
type Key = (String, String, BTreeMap<String, Vec<u8>>);

/// One source's place: filled by the first who needs it while the others wait.
type Place = Arc<Mutex<Option<Arc<Compiled>>>>;

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
    /// What `compile` made of the source the first time that it ended by itself.
    pub(crate) fn get(
        &self,
        submission: &Submission,
        compile: impl FnOnce() -> Result<Compiled>,
    ) -> Result<Arc<Compiled>> {
        let key = key(submission);
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
        if compiled.is_kept() {
            *filled = Some(Arc::clone(&compiled));
            self.keep(key, size(submission, &compiled));
        } else {
            self.forget(&key);
        }
        Ok(compiled)
    }

    /// Whether the next [`Cache::get`] would find what was made.
    pub(crate) fn has(&self, submission: &Submission) -> bool {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = kept.places.get(&key(submission)) else { return false };
        // One that is held is being compiled.
        place.try_lock().is_ok_and(|filled| filled.is_some())
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

fn key(submission: &Submission) -> Key {
    (submission.language.clone(), submission.source.clone(), submission.files.clone())
}

/// What an entry takes: the key is held twice.
fn size(submission: &Submission, compiled: &Compiled) -> usize {
    let files = |files: &BTreeMap<String, Vec<u8>>| files.values().map(Vec::len).sum::<usize>();
    let made = compiled.artifacts.as_ref().map_or(0, files)
        + compiled.outcome.stdout.len()
        + compiled.outcome.stderr.len();
    2 * (submission.source.len() + files(&submission.files)) + made + 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submission(source: &str) -> Submission {
        Submission { source: source.into(), language: "c".into(), ..Submission::default() }
    }

    fn made(length: usize) -> Result<Compiled> {
        let artifacts = Some(Artifacts::from([("main".into(), vec![0; length])]));
        Ok(Compiled { artifacts, ..ended(Verdict::Ok) })
    }

    fn ended(verdict: Verdict) -> Compiled {
        let outcome = Outcome { verdict, ..Outcome::sandbox_error("") };
        Compiled { artifacts: None, outcome }
    }

    #[test]
    fn a_source_is_compiled_once() {
        let cache = Cache::default();
        cache.get(&submission("a"), || made(1)).unwrap();
        assert!(cache.has(&submission("a")) && !cache.has(&submission("b")));
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
    fn only_what_would_end_so_again_is_kept() {
        for (verdict, is_kept) in [
            (Verdict::NonzeroExit, true),
            (Verdict::SandboxError, false),
            (Verdict::WallLimit, false),
            (Verdict::Signalled, false),
        ] {
            let cache = Cache::default();
            cache.get(&submission("a"), || Ok(ended(verdict))).unwrap();
            let mut again = false;
            cache
                .get(&submission("a"), || {
                    again = true;
                    made(1)
                })
                .unwrap();
            assert_eq!(again, !is_kept, "{verdict}");
        }
    }
}
