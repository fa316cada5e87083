//! Sandboxes that live over several steps.
//!
//! # Design
//!
//! What a session keeps between its steps is the work directory, as a [`Tree`] in this process's memory:
//! it cannot be reached by any path, takes no slot while nobody uses it, and ends with the process however
//! that ends. Each session sets aside the room of its disk when it is opened, so none is refused a step
//! for what others hold. Its identifier is the right to it: 128 random bits. It is looked up by its hash
//! under a key of this process's own, so the time of a look-up says nothing of how near a guess is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k15_sandbox::language::LimitChanges;
use k15_sandbox::{Cancel, Limits, Tree, sys};

/// What an entry of a work directory takes beside its content, generously.
const ENTRY_BYTES: u64 = 1024;

/// Files that a work directory leaves free on its disk: its root, and what a writable root needs.
const SPARE: u64 = 8;

/// Why no session was opened.
#[derive(Debug)]
pub enum Full {
    /// There are as many as there may be, or what they have set aside leaves no room.
    Now,
    /// It is larger than all sessions may be together.
    Ever,
    /// The kernel gave no random bits.
    Broken(sys::Errno),
}

/// Why a session cannot be had.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gone {
    /// There is none by this identifier.
    Absent,
    /// A step of it is under way.
    Busy,
}

/// See the module.
pub struct Sessions {
    most: usize,
    most_bytes: u64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    by_id: HashMap<String, Session>,
    bytes: u64,
    closed: u64,
    expired: u64,
}

struct Session {
    tree: Arc<Tree>,
    limits: Limits,
    changes: LimitChanges,
    bytes: u64,
    lease: Duration,
    expires: Instant,
    /// When it ends even if it is in use.
    end: Instant,
    /// What ends the step that is under way.
    step: Option<Arc<Cancel>>,
}

/// How many there are, and what they have set aside; how many have ended, by their owners and by time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Sessions that are open.
    pub open: usize,
    /// The bytes that they have set aside.
    pub bytes: u64,
    /// Sessions that were closed.
    pub closed: u64,
    /// Sessions whose time was over.
    pub expired: u64,
}

/// What a session is opened with.
pub struct Terms {
    /// How long it lives when nobody uses it.
    pub lease: Duration,
    /// How long it lives in all.
    pub life: Duration,
    /// What its steps are given where they ask for nothing else.
    pub changes: LimitChanges,
    /// The same with the sandbox's own where there is nothing else.
    pub limits: Limits,
}

impl Sessions {
    /// None yet; later `most` at once, which together set aside `most_bytes`.
    pub fn new(most: usize, most_bytes: u64) -> Self {
        Self { most, most_bytes, held: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens one: its identifier, and how long it lives unused.
    ///
    /// # Errors
    ///
    /// [`Full`].
    pub fn open(&self, terms: Terms) -> Result<(String, Duration), Full> {
        let Terms { lease, life, changes, limits } = terms;
        let bytes = limits.disk_bytes + ENTRY_BYTES * limits.disk_files;
        let [first, second] = sys::process::random_words().map_err(Full::Broken)?;
        let id = format!("{first:016x}{second:016x}");
        let now = Instant::now();
        let mut held = self.lock();
        held.sweep(now);
        if bytes > self.most_bytes {
            return Err(Full::Ever);
        }
        if held.by_id.len() >= self.most || held.bytes + bytes > self.most_bytes {
            return Err(Full::Now);
        }
        held.bytes += bytes;
        let (tree, end) = (Arc::default(), now + life);
        let expires = end.min(now + lease);
        let session = Session { tree, limits, changes, bytes, lease, expires, end, step: None };
        held.by_id.insert(id.clone(), session);
        Ok((id, lease.min(life)))
    }

    /// What lies in a session's work directory, also while a step is under way: as that has found it.
    ///
    /// # Errors
    ///
    /// [`Gone::Absent`].
    pub fn tree(&self, id: &str) -> Result<Arc<Tree>, Gone> {
        Ok(Arc::clone(&self.lock().used(id)?.tree))
    }

    /// Seconds until it ends, if nobody uses it; asking is using it.
    ///
    /// # Errors
    ///
    /// [`Gone::Absent`].
    pub fn renew(&self, id: &str) -> Result<f64, Gone> {
        let expires = self.lock().used(id)?.expires;
        Ok(expires.saturating_duration_since(Instant::now()).as_secs_f64())
    }

    /// Changes a work directory by `edit`, of which nothing stays if it fails.
    ///
    /// # Errors
    ///
    /// [`Gone`]; inside, what `edit` or the session's disk refuse.
    pub fn edit(
        &self,
        id: &str,
        edit: impl FnOnce(&mut Tree) -> k15_sandbox::Result<()>,
    ) -> Result<k15_sandbox::Result<Arc<Tree>>, Gone> {
        let mut held = self.lock();
        let session = held.used(id)?;
        if session.step.is_some() {
            return Err(Gone::Busy);
        }
        let mut tree = Tree::clone(&session.tree);
        let edited = edit(&mut tree).and_then(|()| tree.check(&session.limits, SPARE));
        Ok(edited.map(|()| {
            session.tree = Arc::new(tree);
            Arc::clone(&session.tree)
        }))
    }

    /// Begins a step, which `cancel` ends. It lasts until what is returned is dropped.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub fn begin(self: &Arc<Self>, id: &str, cancel: &Arc<Cancel>) -> Result<Step, Gone> {
        let mut held = self.lock();
        let session = held.used(id)?;
        if session.step.is_some() {
            return Err(Gone::Busy);
        }
        session.step = Some(Arc::clone(cancel));
        Ok(Step {
            sessions: Arc::clone(self),
            id: id.to_owned(),
            tree: Arc::clone(&session.tree),
            limits: session.limits.clone(),
            changes: session.changes.clone(),
            cancel: Arc::clone(cancel),
        })
    }

    /// Ends it, with the step that is under way: whether there was one.
    pub fn close(&self, id: &str) -> bool {
        let mut held = self.lock();
        let was_there = held.used(id).is_ok() && held.remove(id);
        held.closed += u64::from(was_there);
        was_there
    }

    /// Ends those whose time is over.
    pub fn sweep(&self) {
        self.lock().sweep(Instant::now());
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        let held = self.lock();
        let (open, bytes) = (held.by_id.len(), held.bytes);
        Counts { open, bytes, closed: held.closed, expired: held.expired }
    }
}

impl Held {
    /// A session that is there, its lease begun anew.
    fn used(&mut self, id: &str) -> Result<&mut Session, Gone> {
        let now = Instant::now();
        if self.by_id.get(id).is_some_and(|session| session.is_over(now)) {
            self.remove(id);
            self.expired += 1;
        }
        let session = self.by_id.get_mut(id).ok_or(Gone::Absent)?;
        session.expires = session.end.min(now + session.lease);
        Ok(session)
    }

    fn sweep(&mut self, now: Instant) {
        let is_over = |(id, session): (&String, &Session)| session.is_over(now).then(|| id.clone());
        let over: Vec<String> = self.by_id.iter().filter_map(is_over).collect();
        for id in over {
            self.remove(&id);
            self.expired += 1;
        }
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(session) = self.by_id.remove(id) else { return false };
        self.bytes -= session.bytes;
        if let Some(step) = session.step {
            step.cancel();
        }
        true
    }
}

impl Session {
    /// A lease does not run while a step does.
    fn is_over(&self, now: Instant) -> bool {
        now >= self.end || self.step.is_none() && now >= self.expires
    }
}

/// A step that is under way.
pub struct Step {
    sessions: Arc<Sessions>,
    id: String,
    cancel: Arc<Cancel>,
    /// What it finds.
    pub tree: Arc<Tree>,
    /// The session's limits.
    pub limits: Limits,
    /// What of them the session has asked for.
    pub changes: LimitChanges,
}

impl Step {
    /// Keeps what the step has left, or what was there if that is `None`.
    ///
    /// # Errors
    ///
    /// [`Gone::Absent`] if the session has ended in between.
    pub fn keep(self, left: Option<Tree>) -> Result<(), Gone> {
        let mut held = self.sessions.lock();
        let session = held.by_id.get_mut(&self.id).ok_or(Gone::Absent)?;
        if let Some(left) = left {
            session.tree = Arc::new(left);
        }
        Ok(())
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let mut held = self.sessions.lock();
        let Some(session) = held.by_id.get_mut(&self.id) else { return };
        if session.step.as_ref().is_some_and(|step| Arc::ptr_eq(step, &self.cancel)) {
            session.step = None;
            session.expires = session.end.min(Instant::now() + session.lease);
        }
    }
}
