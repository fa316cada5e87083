//! Runs untrusted programs, thousands a second, each in a sandbox of its own.
//!
//! # The parts
//!
//! ```text
//! sandbox     sources, languages, compiling          language, compiled: what it uses
//! pool        slots made in advance, replaced        runner: Runner makes slots, RunnerSlot runs jobs
//! slot        our side of a slot: clock, output      spawner: the other side, a process of its own
//! cgroup      limits and accounts, v1 and v2         rootfs: what a run sees as its root
//! registry    what dead processes left, cleaned      janitor: a process that cleans when ours is killed
//! capability  what this host can enforce             seccomp: the allow-list and its compiler
//! tree        a work directory between runs
//! protocol    what slot and spawner say, over wire   sys: the kernel's calls, the only `unsafe`
//! ```
//!
//! # A run, step by step
//!
//! 1. [`Pool::run`] takes a slot on the caller's thread; no run changes threads.
//! 2. The slot sets the cgroup's limits and counters, makes three pipes, and sends one message with the
//!    program, its small files and the pipes' far ends to the slot's spawner (`protocol`).
//! 3. The spawner makes a detached tmpfs, writes the files to it, and starts init with
//!    `CLONE_VM | CLONE_VFORK` in new pid, mount and ipc namespaces. It is suspended from here on.
//! 4. Init (pid 1, `spawner/child.rs`) ties its life to the spawner's, raises its OOM score, mounts the
//!    tmpfs at /tmp and a read-only /proc, and starts the program's process the same way, which
//!    lowers its limits, takes the run's user, and becomes the program by exec. Init is suspended only
//!    until then; afterwards it reaps orphans and ends with the program. The kernel kills the rest.
//! 5. The slot waits for the answer. After 2 ms it also reads output, feeds input, and looks at clock and
//!    accounts. Whoever is over a limit is killed by init's pidfd, which the slot takes out of the
//!    spawner when it needs it.
//! 6. The spawner goes on, hands out wanted files, answers, and drops the tmpfs. The slot reads what is in
//!    the pipes and the accounts, and `slot/verdict.rs` judges.
//!
//! In a slot of the warm runner a zygote, an interpreter that the spawner has started, takes steps 3 and 4
//! from init on (`spawner/zygote.rs`).
//!
//! # Without privileges
//!
//! Where [`capability`] finds that this process is an ordinary user's, the spawner starts by making a user
//! namespace (`spawner/user_namespace.rs`) and does the rest as above, with what such a namespace cannot
//! have taken from the host: the devices, and the users. Every run is then the caller to the kernel, and
//! what keeps it from the caller's processes is the pid namespace. Limits are those of the cgroups in which
//! the caller may make others.
//!
//! # Who owns what
//!
//! The pool's keeper thread opens slots, because the kernel kills a spawner when the thread that started
//! it ends; so no spawner outlives its process. A [`cgroup::Group`] owns its directories and removes them when
//! dropped; the registry's entry names them on disk before they are made, and the janitor, or the next
//! pool, removes them if we cannot. Mounts live in the spawner's mount namespace and end with it.
//!
//! # Adding things
//!
//! * A runner: a file in `runner/` with a [`runner::Runner`] and its [`runner::RunnerSlot`], and its name in
//!   [`Sandbox::open`]. The slot gets its own [`cgroup::Group`]; on v1 what starts runs must live in it.
//! * A limit: a field of [`Limits`] (with its range in `Limits::check`) and of
//!   [`language::LimitChanges`]; who enforces it (a [`cgroup::Controller`], a resource limit in
//!   `slot/request.rs`, or the slot's watch); its line in [`capability::capabilities`].
//! * A language: a table in `language/languages.toml`, its programs in tests/language_programs.py.
//! * A system call: `seccomp/rules.rs`, with the reason.
//! * An attack: a case in tests/attacks (see the frame there).
#![deny(unsafe_code)]

mod cancel;
pub mod capability;
pub mod cgroup;
mod command;
mod compiled;
mod error;
mod janitor;
mod job;
pub mod language;
mod limits;
mod parallel;
mod pool;
mod protocol;
pub mod registry;
pub mod rootfs;
pub mod runner;
mod sandbox;
pub mod seccomp;
pub mod slot;
pub mod spawner;
mod submission;
pub mod sys;
mod tree;
mod wire;

pub use cancel::Cancel;
pub use command::Command;
pub use error::{Error, Result};
pub use job::{InputFile, Job, Outcome, Verdict, WORK_DIRECTORY};
pub use limits::Limits;
pub use pool::Pool;
pub use sandbox::{Options, RUNNERS, Sandbox};
pub use submission::{Steps, Submission};
pub use tree::{Kind, Node, Tree};
