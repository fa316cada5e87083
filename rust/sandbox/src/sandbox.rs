//! A sandbox: what it is made from, opening and closing it. `submission.rs` runs sources in it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::capability::{self, Capability};
use crate::cgroup::Host;
use crate::compiled::Cache;
use crate::language::{Languages, LimitChanges};
use crate::rootfs::{Bind, Plan, Source};
use crate::runner::{Crun, Direct, Runner, Users, Warm, Warmth};
use crate::submission::{add, set_command};
use crate::{Error, Job, Limits, Pool, Result, janitor::Janitor, registry};

/// The names of the runners.
pub const RUNNERS: &[&str] = &["direct", "crun", "crun-plain", "warm"];

/// What a sandbox is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// The spawner's binary.
    pub spawner: PathBuf,
    /// `auto` or a runner's name.
    pub runner: String,
    /// The most runs at once.
    pub slots: usize,
    /// How many slots are made in advance and kept.
    pub least_slots: usize,
    /// What runs are given where they ask for nothing else.
    pub limits: LimitChanges,
    /// The root file system.
    pub root: Source,
    /// Where images are unpacked; `None`: the usual place.
    pub image_cache: Option<PathBuf>,
    /// Whether runs can write to the root. What they write counts as theirs, and ends with them.
    pub writable_root: bool,
    /// Directories and files of the host that runs see too, read-only.
    pub binds: Vec<Bind>,
    /// Tables of languages in TOML, over the built-in one.
    pub languages: Vec<String>,
    /// Modules that the `warm` runner imports in advance besides its own list; they must be there.
    pub warm_modules: Vec<String>,
    /// How many runs of the `warm` runner one started interpreter serves: they share its hash seed.
    pub warm_runs: u32,
    /// Names of [`capability::OPTIONAL`] limits that this host need not hold.
    pub allow_unenforced: Vec<String>,
}

impl Options {
    /// The defaults, with the spawner at `spawner`.
    #[must_use]
    pub fn new(spawner: impl Into<PathBuf>) -> Self {
        Self {
            spawner: spawner.into(),
            runner: "auto".into(),
            slots: 4,
            least_slots: 1,
            limits: LimitChanges::default(),
            root: Source::default(),
            image_cache: None,
            writable_root: false,
            binds: Vec::new(),
            languages: Vec::new(),
            warm_modules: Vec::new(),
            warm_runs: 128,
            allow_unenforced: Vec::new(),
        }
    }
}

/// Runs sources in a pool of slots.
pub struct Sandbox {
    // Dropped in this order: the pool's slots, then what is left of its groups, then the janitor.
    pub(crate) pool: Pool,
    entry: registry::Entry,
    janitor: Janitor,
    pub(crate) languages: Languages,
    pub(crate) limits: LimitChanges,
    pub(crate) default_limits: Limits,
    capabilities: Vec<Capability>,
    /// The root's: every sandbox's own with what an image asks for.
    pub(crate) environment: Vec<String>,
    pub(crate) compiled: Cache,
}

/// Every sandbox's own environment.
const ENVIRONMENT: [&str; 5] = [
    "PATH=/usr/local/bin:/usr/bin:/bin",
    "HOME=/tmp",
    "TMPDIR=/tmp",
    "LANG=C.UTF-8",
    "USER=runner",
];

impl Sandbox {
    /// Opens a sandbox: cleans what dead processes have left, looks at what the host can do, and makes
    /// the first slots.
    ///
    /// # Errors
    ///
    /// [`Error::Unenforceable`] if the host cannot hold a limit that was not allowed to be missing,
    /// [`Error::InvalidInput`] for options that make no sense, [`Error::SlotBroken`] with the spawner's
    /// words if a slot cannot be made.
    pub fn open(options: &Options) -> Result<Self> {
        let capabilities = capability::capabilities(&Host::detect()?);
        capability::require(&capabilities, &options.allow_unenforced)?;
        let default_limits = options.limits.apply(&Limits::default())?;
        let (root, image_environment) = options.root.unpacked(options.image_cache.as_deref())?;
        let environment = add(&ENVIRONMENT.map(str::to_owned), &image_environment);
        let plan = Plan::new(&root, &options.binds, options.writable_root)?;
        let languages = languages(options, &plan)?;
        if !options.spawner.is_file() {
            let expected = "the spawner's binary (`make build` makes it)";
            return Err(Error::invalid("spawner", options.spawner.display(), expected));
        }
        let (entry, host) = registry::Entry::new()?;
        let janitor =
            Janitor::start(&options.spawner, entry.path()).inspect_err(|_| entry.close())?;
        let pool = runner(options, plan, host, entry.name.clone(), &languages, &environment)
            .and_then(|runner| Pool::open(runner, options.least_slots, options.slots))
            .inspect_err(|_| {
                entry.close();
                janitor.dismiss();
            })?;
        let (limits, compiled) = (options.limits.clone(), Cache::default());
        Ok(Self {
            pool,
            entry,
            janitor,
            languages,
            limits,
            default_limits,
            capabilities,
            environment,
            compiled,
        })
    }

    /// What a sandbox of `options` would find on this host: what it can hold runs to, and the languages.
    /// Nothing is made or started.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for options that make no sense.
    pub fn examine(options: &Options) -> Result<(Vec<Capability>, BTreeMap<String, String>)> {
        let capabilities = capability::capabilities(&Host::detect()?);
        let (root, _) = options.root.unpacked(options.image_cache.as_deref())?;
        let plan = Plan::new(&root, &options.binds, options.writable_root)?;
        Ok((capabilities, languages(options, &plan)?.missing()))
    }

    /// What this host can hold a run to.
    #[must_use]
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// The languages by name, each with a sentence on what is missing for it; empty if nothing is.
    #[must_use]
    pub fn languages(&self) -> BTreeMap<String, String> {
        self.languages.missing()
    }

    /// What is missing for a language, as [`Sandbox::languages`] says it; `None` if it is not in the table.
    #[must_use]
    pub fn missing(&self, language: &str) -> Option<&str> {
        self.languages.missing_for(language)
    }

    /// The pool, for jobs that are no sources.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What runs are given where they ask for nothing else.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.default_limits
    }

    /// Ends the slots and removes all that was made. Runs under way are waited for.
    pub fn close(&self) {
        if self.pool.close() {
            self.entry.close();
            self.janitor.dismiss();
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.close();
    }
}

/// The runner that `options` ask for, whose slots' groups are called `name` on `host`.
fn runner(
    options: &Options,
    plan: Plan,
    host: Host,
    name: String,
    languages: &Languages,
    environment: &[String],
) -> Result<Box<dyn Runner>> {
    let is_privileged = capability::is_privileged();
    let users = Arc::new(if is_privileged {
        Users::of_process(std::process::id())
    } else {
        Users::of_ordinary_user()
    });
    if options.writable_root && !is_privileged {
        return Err(Error::Missing {
            what: "root, which a root that runs can write to needs",
            remedy: "Run it as root, or without writable_root",
        });
    }
    let spawner = options.spawner.clone();
    Ok(match options.runner.as_str() {
        "auto" | "direct" => Box::new(Direct::new(spawner, plan, host, name, users)),
        other if RUNNERS.contains(&other) && !is_privileged => {
            return Err(Error::Missing {
                what: "root, which every runner but direct needs",
                remedy: "Run it as root, or with runner auto or direct",
            });
        }
        "crun" => Box::new(Crun::new(spawner, plan, host, name, users)?),
        "crun-plain" => Box::new(Crun::new(spawner, plan, host, name, users)?.plain()),
        "warm" if options.writable_root => {
            let expected = "false: a warm interpreter has opened files of the root that is there";
            return Err(Error::invalid("writable_root", true, expected));
        }
        "warm" => {
            let direct = Direct::new(spawner, plan, host, name, users);
            Box::new(Warm::new(direct, warmth(languages, options, environment)?))
        }
        other => {
            let expected = format!("one of auto, {}", RUNNERS.join(", "));
            return Err(Error::invalid("runner", format!("{other:?}"), expected));
        }
    })
}

/// The languages of `options`, with the tools that `plan` shows.
fn languages(options: &Options, plan: &Plan) -> Result<Languages> {
    let tables = options.languages.iter().map(String::as_str);
    Languages::new(tables, |path| plan.find(path).is_some())
}

/// What zygotes are made of: the language `python`, and what `options` ask for.
fn warmth(languages: &Languages, options: &Options, environment: &[String]) -> Result<Warmth> {
    let ready = languages.get("python")?;
    let usual = ready.language.limits.apply(&Limits::default())?;
    let limits = options.limits.apply(&usual)?;
    let mut template = Job {
        environment: add(environment, &ready.language.environment),
        limits,
        ..Job::default()
    };
    set_command(&mut template, ready, &ready.language.run, &[]);
    Warmth::new(template, &ready.language.file, &options.warm_modules, options.warm_runs)
}
