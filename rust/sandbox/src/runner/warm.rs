//! The warm runner: Python programs are copies of an interpreter that has started already.
//!
//! # Design
//!
//! A slot has a zygote (`spawner/zygote.rs`): an interpreter of the slot's own root that has imported what
//! programs use. A run of the language `python` is a copy of it, in namespaces of its own like any other
//! run. Everything else, other languages and programs by path, takes the direct way in a second spawner of
//! the same slot, so that one pool serves all.
//!
//! # What is fresh
//!
//! All that is fresh in a direct run, except what an interpreter draws when it starts: the seed of `hash`
//! for strings, and where things lie in memory. `random` and `numpy.random` are seeded anew in every
//! run. The hash seed belongs to the zygote, which serves [`Warmth`]'s number of runs, one after the other,
//! and is then replaced by one that was started meanwhile; with 1 the seed is fresh in every run, at the
//! price of an interpreter's start for each, which runs beside the run before.

use std::sync::Arc;

use super::{Direct, Runner, RunnerSlot, Users};
use crate::cgroup::Group;
use crate::slot::{Request, Slot};
use crate::wire::Writer;
use crate::{Error, Job, Outcome, Result};

/// What every zygote imports: what programs use most and what costs little. Much more is not for nothing:
/// what a zygote holds is copied, page table by page table, for every run.
const MODULES: &[&str] = &[
    "array",
    "bisect",
    "collections",
    "collections.abc",
    "contextlib",
    "copy",
    "datetime",
    "enum",
    "functools",
    "heapq",
    "io",
    "itertools",
    "json",
    "math",
    "operator",
    "random",
    "re",
    "string",
    "threading",
    "time",
    "types",
    "typing",
];

/// What zygotes are made of and how many runs each serves.
#[derive(Clone, Debug)]
pub struct Warmth {
    /// A program of the language without arguments of its own: the command and the environment.
    template: Job,
    /// Modules that must be there.
    modules: Vec<String>,
    runs: u32,
}

impl Warmth {
    /// Zygotes for programs that are run like `template`, whose last argument is the program's file, with
    /// `modules` imported, that serve `runs` runs each.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a command that does not end in a file, names of modules that are none, and
    /// no runs.
    pub(crate) fn new(template: Job, file: &str, modules: &[String], runs: u32) -> Result<Self> {
        let options = template.arguments.get(1..).unwrap_or_default();
        let alien = |word: &String| ["-c", "-m", "-i", "-"].contains(&word.as_str());
        if template.arguments.last().is_none_or(|last| last != file) || options.iter().any(alien) {
            let expected = format!("a command of the form `python3 OPTIONS {file}` to run it warm");
            let command = template.arguments.join(" ");
            return Err(Error::invalid("language python", command, expected));
        }
        let plain = |name: &str| {
            let part = |part: &str| {
                let mut letters = part.chars();
                letters.next().is_some_and(|first| first.is_alphabetic() || first == '_')
                    && letters.all(|letter| letter.is_alphanumeric() || letter == '_')
            };
            name.split('.').all(part)
        };
        if let Some(name) = modules.iter().find(|name| !plain(name)) {
            return Err(Error::invalid("warm_modules", format!("{name:?}"), "names of modules"));
        }
        if runs == 0 {
            return Err(Error::invalid("warm_runs", runs, "at least 1"));
        }
        Ok(Self { template, modules: modules.to_vec(), runs })
    }

    pub(crate) fn modules(&self) -> &[String] {
        &self.modules
    }

    /// Whether `job` can be a copy of a zygote.
    fn takes(&self, job: &Job) -> bool {
        let same = &self.template;
        job.program == same.program
            && job.arguments.starts_with(&same.arguments)
            && job.environment == same.environment
            && job.limits.stack_bytes <= same.limits.stack_bytes
    }

    /// Writes it as a message of [`crate::protocol::WARM`] has it.
    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.string(&self.template.program);
        let words = self.template.arguments.get(1..).unwrap_or_default();
        let options = words.split_last().map(|(_, options)| options).unwrap_or_default();
        for words in [options, &self.template.environment] {
            writer.count(words.len());
            words.iter().for_each(|word| writer.string(word));
        }
        writer.count(self.modules.len() + MODULES.len());
        self.modules.iter().for_each(|name| writer.string(name));
        MODULES.iter().for_each(|name| writer.string(name));
        writer.string(words.last().map_or("", String::as_str));
        writer.count(self.modules.len());
        writer.long(self.template.limits.stack_bytes);
    }

    /// What a zygote's failure means to the caller: `NAME: REASON` is a module that was asked for.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let Error::SlotBroken(said) = error else { return error };
        let words = said.split_once("the slot broke: ").map_or(said.as_str(), |(_, rest)| rest);
        match words.split_once(": ") {
            Some((name, reason)) if self.modules.iter().any(|module| module == name) => {
                let expected = format!("a module that the sandbox's Python can import: {reason}");
                Error::invalid("warm_modules", format!("{name:?}"), expected)
            }
            _ => Error::SlotBroken(words.to_owned()),
        }
    }
}

/// See the module.
pub struct Warm {
    direct: Direct,
    warmth: Arc<Warmth>,
}

impl Warm {
    pub(crate) fn new(direct: Direct, warmth: Warmth) -> Self {
        Self { direct, warmth: Arc::new(warmth) }
    }
}

impl Runner for Warm {
    fn name(&self) -> &'static str {
        "warm"
    }

    fn check(&self, job: &Job) -> Result<()> {
        Request::new(job).map(|_| ())
    }

    fn open(&self, number: u64) -> Result<Box<dyn RunnerSlot>> {
        let Direct { spawner, plan, host, pool_name, users } = &self.direct;
        let group = Group::create(host, pool_name, &format!("slot-{number}-warm"))?;
        let warm = Slot::open_warm(spawner, plan, group, &self.warmth)?;
        let direct = self.direct.open(number)?;
        let (warmth, users) = (Arc::clone(&self.warmth), Arc::clone(users));
        Ok(Box::new(WarmSlot { warm, direct, warmth, users, served: 0 }))
    }
}

struct WarmSlot {
    warm: Slot,
    direct: Box<dyn RunnerSlot>,
    warmth: Arc<Warmth>,
    users: Arc<Users>,
    /// How many runs the zygote has served.
    served: u32,
}

impl RunnerSlot for WarmSlot {
    fn is_well(&self) -> bool {
        self.warm.is_well() && self.direct.is_well()
    }

    fn run(&mut self, job: &Job) -> Result<Outcome> {
        if !self.warmth.takes(job) {
            return self.direct.run(job);
        }
        let request = Request::new(job)?;
        if self.served == self.warmth.runs {
            self.warm.switch_zygote(&self.warmth)?;
            self.served = 0;
        }
        if self.served == self.warmth.runs / 2 {
            self.warm.prepare_zygote()?;
        }
        self.served += 1;
        self.warm.run(&request, self.users.take())
    }
}
