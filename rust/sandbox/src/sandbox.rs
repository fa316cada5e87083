//! Sources in, verdicts out: languages and compiling on top of a pool.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::capability::{self, Capability};
use crate::cgroup::Host;
use crate::compiled::{Artifacts, Cache};
use crate::language::{Languages, LimitChanges, Ready};
use crate::rootfs::{Bind, Plan, Source};
use crate::runner::{Crun, Direct, Runner, Users, Warm, Warmth};
use crate::{
    Error, InputFile, Job, Limits, Outcome, Pool, Result, Verdict, janitor::Janitor, parallel,
    registry,
};

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

/// A source to run.
#[derive(Clone, Debug, Default)]
pub struct Submission {
    /// The program's text.
    pub source: String,
    /// Its language, by name.
    pub language: String,
    /// Arguments after those of the language's command.
    pub arguments: Vec<String>,
    /// What it can read from its standard input.
    pub stdin: Vec<u8>,
    /// Files in the work directory, by relative path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Files that are wanted when it has ended, by relative path.
    pub fetch: Vec<String>,
    /// What it may use, over the sandbox's and the language's own.
    pub limits: LimitChanges,
}

/// Runs sources in a pool of slots.
pub struct Sandbox {
    // Dropped in this order: the pool's slots, then what is left of its groups, then the janitor.
    pool: Pool,
    entry: registry::Entry,
    janitor: Janitor,
    languages: Languages,
    limits: LimitChanges,
    default_limits: Limits,
    capabilities: Vec<Capability>,
    /// The root's: every sandbox's own with what an image asks for.
    environment: Vec<String>,
    compiled: Cache,
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

    /// Runs one source. What was compiled is kept, so the same source with other inputs is only run.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a submission that makes no sense, [`Error::Unenforceable`] for a share
    /// of processors on a host without the means, [`Error::Closed`] after [`Sandbox::close`].
    pub fn run(&self, submission: &Submission) -> Result<Outcome> {
        let ready = self.languages.get(&submission.language)?;
        let language = ready.language;
        // What the sandbox's owner said counts more than what is usual for a language.
        let usual = language.limits.apply(&Limits::default())?;
        let limits = submission.limits.apply(&self.limits.apply(&usual)?)?;
        self.check_share(&limits)?;
        let mut job = Job {
            environment: add(&self.environment, &ready.language.environment),
            stdin: submission.stdin.clone(),
            fetch: submission.fetch.clone(),
            limits,
            ..Job::default()
        };
        for (path, content) in &submission.files {
            job.files
                .insert(path.clone(), InputFile { content: content.clone(), executable: false });
        }
        if let Some(command) = &language.compile {
            match &*self.compile(submission, ready, command)? {
                Ok(artifacts) => {
                    for (path, content) in artifacts {
                        let content = content.clone();
                        job.files.insert(path.clone(), InputFile { content, executable: true });
                    }
                }
                Err(outcome) => return Ok(outcome.clone()),
            }
        } else {
            let content = submission.source.clone().into_bytes();
            job.files.insert(language.file.clone(), InputFile { content, executable: false });
        }
        set_command(&mut job, ready, &language.run, &submission.arguments);
        self.pool.run(&job)
    }

    /// Runs all `submissions`, keeping as many slots busy as there are; results are in their order.
    ///
    /// # Errors
    ///
    /// The first error of [`Sandbox::run`] in their order; the others have run all the same.
    pub fn run_many(&self, submissions: &[Submission]) -> Result<Vec<Outcome>> {
        let run = |submission: &Submission| self.run(submission);
        parallel::map(submissions, self.pool.most(), run).into_iter().collect()
    }

    /// Ends the slots and removes all that was made. Runs under way are waited for.
    pub fn close(&self) {
        if self.pool.close() {
            self.entry.close();
            self.janitor.dismiss();
        }
    }

    fn check_share(&self, limits: &Limits) -> Result<()> {
        let share = self.capabilities.iter().find(|each| each.name == "cpus");
        match share.filter(|each| limits.cpus.is_some() && !each.enforced) {
            None => Ok(()),
            Some(each) => Err(Error::Unenforceable {
                what: each.name,
                why: each.how.clone(),
                remedy: each.remedy.clone(),
            }),
        }
    }

    /// What compiling left, or the outcome that tells why there is nothing.
    fn compile(
        &self,
        submission: &Submission,
        ready: Ready<'_>,
        command: &[String],
    ) -> Result<Arc<std::result::Result<Artifacts, Outcome>>> {
        let language = ready.language;
        self.compiled.get(submission, || {
            let mut job = Job {
                environment: add(&self.environment, &ready.language.environment),
                fetch: language.artifacts.clone(),
                limits: language.compile_limits.apply(&self.default_limits)?,
                ..Job::default()
            };
            for (path, content) in &submission.files {
                let file = InputFile { content: content.clone(), executable: false };
                job.files.insert(path.clone(), file);
            }
            let content = submission.source.clone().into_bytes();
            job.files.insert(language.file.clone(), InputFile { content, executable: false });
            set_command(&mut job, ready, command, &[]);
            let mut outcome = self.pool.run(&job)?;
            match outcome.verdict {
                Verdict::Ok if outcome.refused.is_empty() => return Ok(Ok(outcome.files)),
                Verdict::SandboxError => {}
                verdict => {
                    let missing: Vec<&str> = outcome.refused.keys().map(String::as_str).collect();
                    outcome.message = if verdict == Verdict::Ok {
                        format!("compiling left no {}", missing.join(", "))
                    } else {
                        format!("compiling ended with {verdict}")
                    };
                    outcome.verdict = Verdict::CompileError;
                }
            }
            outcome.files.clear();
            outcome.refused.clear();
            Ok(Err(outcome))
        })
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

/// `base` with `more` added; of two values of one name the later stays.
fn add(base: &[String], more: &[String]) -> Vec<String> {
    let name = |each: &str| each.split_once('=').map_or(each, |(name, _)| name).to_owned();
    let replaced = |each: &&String| !more.iter().any(|new| name(new) == name(each));
    base.iter().filter(replaced).chain(more).cloned().collect()
}

fn set_command(job: &mut Job, ready: Ready<'_>, command: &[String], more: &[String]) {
    let command = ready.command(command, &job.limits);
    job.program = command.first().cloned().unwrap_or_default();
    job.arguments = command.into_iter().chain(more.iter().cloned()).collect();
}
