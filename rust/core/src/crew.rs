//! Threads that help with a piece of work that is over in a tenth of a millisecond.
//!
//! # Design
//!
//! A decoding step wants help once a layer. A thread that had to be started or woken would come when the work
//! is done, so one that has helped stays awake for about a millisecond, and yields its processor to whoever
//! has something to do there. Nobody waits for a helper that has not come: a call is withdrawn when the
//! caller has found nothing more to do, so a helper whose processor others hold, or whom a fork has left
//! behind, is not missed. One call is served at a time; who calls meanwhile works alone.
#![expect(unsafe_code, reason = "a helper works on what its caller has borrowed")]

use std::any::Any;
use std::hint::spin_loop;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{self, Thread};

/// How often a helper looks for a call before it sleeps, and pauses between two looks: about a millisecond.
const LOOKS: usize = 1000;
const PAUSES: usize = 32;

static CREW: Mutex<Vec<Helper>> = Mutex::new(Vec::new());

/// Run `work` here and, if they come before it is done here, on up to `helpers` other threads at once.
///
/// When this returns nobody works any more. `work` should take pieces from a common heap until there are
/// none. A panic of a helper goes on in the caller.
pub(crate) fn together(helpers: usize, work: &(dyn Fn() + Sync)) {
    let crew = match CREW.try_lock() {
        _ if helpers == 0 => return work(),
        Ok(crew) => Some(crew),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    let Some(mut crew) = crew else { return work() };
    while crew.len() < helpers {
        let Ok(helper) = Helper::start() else { break };
        crew.push(helper);
    }
    let call = Call { work, panic: Mutex::new(None) };
    {
        let _open = Open::new(&crew[..helpers.min(crew.len())], &call);
        work();
    }
    if let Some(panic) = call.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

/// What helpers are called to do.
struct Call<'a> {
    work: &'a (dyn Fn() + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Call<'_> {
    fn answer(&self) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(self.work)) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }
}

/// Where a helper finds its call: null, a call that nobody has taken, or [`taken`].
type Inbox = AtomicPtr<Call<'static>>;

/// Stands in an inbox while the helper works: no call has this address.
fn taken() -> *mut Call<'static> {
    NonNull::dangling().as_ptr()
}

struct Helper {
    inbox: Arc<Inbox>,
    thread: Thread,
}

impl Helper {
    fn start() -> io::Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let own = Arc::clone(&inbox);
        let thread = thread::Builder::new().name("k15-crew".into()).spawn(move || serve(&own))?;
        Ok(Self { inbox, thread: thread.thread().clone() })
    }
}

/// A helper's life. It ends with the process.
fn serve(inbox: &Inbox) {
    let mut looks = 0;
    loop {
        let call = inbox.load(Relaxed);
        let open = !call.is_null() && call != taken();
        if open && inbox.compare_exchange(call, taken(), Acquire, Relaxed).is_ok() {
            // SAFETY: the call was in the inbox when it was taken, and from then on its caller does not go
            // on before the inbox is empty again: see Open.
            unsafe { &*call }.answer();
            inbox.store(ptr::null_mut(), Release);
            looks = 0;
        } else if looks < LOOKS {
            looks += 1;
            pause();
        } else {
            thread::park(); // returns at once if there was a call since the last look
            looks = 0;
        }
    }
}

/// Wait for a moment, and let others have the processor.
fn pause() {
    (0..PAUSES).for_each(|_| spin_loop());
    thread::yield_now();
}

/// A call that helpers may take until this is dropped. Then those who have not are no longer wanted, and
/// those who have are waited for, whether the caller returns or unwinds: the call outlives its use.
struct Open<'a> {
    helpers: &'a [Helper],
    call: *mut Call<'static>,
}

impl<'a> Open<'a> {
    fn new(helpers: &'a [Helper], call: &'a Call<'a>) -> Self {
        let call = ptr::from_ref(call).cast::<Call<'static>>().cast_mut();
        for helper in helpers {
            helper.inbox.store(call, Release);
            helper.thread.unpark();
        }
        Self { helpers, call }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        for Helper { inbox, .. } in self.helpers {
            if inbox.compare_exchange(self.call, ptr::null_mut(), Acquire, Acquire).is_err() {
                while !inbox.load(Acquire).is_null() {
                    pause();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::thread::ThreadId;

    const ROUNDS: usize = if cfg!(miri) { 20 } else { 20_000 };

    /// Adds 1 to each number, whoever takes it; who took them.
    fn count_up(numbers: &mut [usize], helpers: usize) -> Vec<ThreadId> {
        let (heap, who) = (Mutex::new(numbers.iter_mut()), Mutex::new(Vec::new()));
        together(helpers, &|| {
            loop {
                let Some(number) = heap.lock().unwrap().next() else { return };
                *number += 1;
                who.lock().unwrap().push(thread::current().id());
            }
        });
        who.into_inner().unwrap()
    }

    #[test]
    fn each_piece_is_done_once_and_is_done_on_return() {
        for helpers in 0..4 {
            let mut numbers = [0; 7];
            for round in 1..=ROUNDS {
                count_up(&mut numbers, helpers);
                assert_eq!(numbers, [round; 7]);
            }
        }
    }

    #[test]
    fn helpers_come_awake_or_asleep() {
        let here = thread::current().id();
        for _ in 0..3 {
            let (met, mut rounds) = (AtomicUsize::new(0), 0);
            // Another test may hold the crew: then nobody comes, and the call is made again.
            while met.load(Relaxed) == 0 {
                rounds += 1;
                assert!(rounds < 100_000, "no helper ever came");
                together(1, &|| {
                    if thread::current().id() == here {
                        (0..1000).for_each(|_| thread::yield_now());
                    } else {
                        met.fetch_add(1, Relaxed);
                    }
                });
            }
            thread::sleep(std::time::Duration::from_millis(20)); // they fall asleep
        }
    }

    #[test]
    fn callers_beside_each_other_and_within_each_other_all_get_their_work_done() {
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS / 10 {
                        let done = AtomicUsize::new(0);
                        together(2, &|| {
                            together(1, &|| {
                                done.fetch_add(1, Relaxed);
                            });
                        });
                        assert!((1..=6).contains(&done.into_inner()));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_next_call_is_served() {
        let here = thread::current().id();
        for panics_here in [true, false] {
            let panicked = (0..100_000).any(|_| {
                catch_unwind(AssertUnwindSafe(|| {
                    together(1, &|| {
                        assert!((thread::current().id() == here) != panics_here, "as asked");
                        (0..1000).for_each(|_| thread::yield_now());
                    });
                }))
                .is_err()
            });
            assert!(panicked);
            let mut numbers = [0; 3];
            assert_eq!(count_up(&mut numbers, 1).len(), 3);
            assert_eq!(numbers, [1; 3]);
        }
    }
}
