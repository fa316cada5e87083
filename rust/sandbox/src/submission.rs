//! Sources in, verdicts out: languages and compiling on top of a pool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::compiled::Compiled;
use crate::language::{LimitChanges, Ready};
use crate::{
    Cancel, Error, InputFile, Job, Limits, Outcome, Result, Sandbox, Tree, Verdict, parallel,
};

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
    /// More of them, which the compiler does not see: one that has them anew is not compiled anew.
    pub run_files: BTreeMap<String, Vec<u8>>,
    /// Files that are wanted when it has ended, by relative path.
    pub fetch: Vec<String>,
    /// What it may use, over the sandbox's and the language's own.
    pub limits: LimitChanges,
    /// What compiling it may use, over the language's own.
    pub compile_limits: LimitChanges,
    /// What lies in the work directory besides, from an earlier run; what this run leaves there is then
    /// part of its outcome. The source and `files` are written over what is there.
    pub work: Option<Arc<Tree>>,
    /// With this the caller can end it before its time.
    pub cancel: Option<Arc<Cancel>>,
}

/// What became of a source, step by step.
#[derive(Clone, Debug)]
pub struct Steps {
    /// How compiling ended, or had ended when the same source was compiled; `None` for a language that
    /// is not compiled.
    pub compile: Option<Outcome>,
    /// How the run ended; `None` if compiling did not lead to one.
    pub run: Option<Outcome>,
}

impl Steps {
    /// The verdict of the whole, as [`Steps::into_outcome`] gives it.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match (&self.run, &self.compile) {
            (Some(run), _) => run.verdict,
            (None, Some(compile)) if compile.verdict != Verdict::SandboxError => {
                Verdict::CompileError
            }
            _ => Verdict::SandboxError,
        }
    }

    /// How long the run took, or what was to lead to it.
    #[must_use]
    pub fn wall_time(&self) -> Duration {
        let last = self.run.as_ref().or(self.compile.as_ref());
        last.map_or(Duration::ZERO, |outcome| outcome.wall_time)
    }

    /// The outcome of the whole: the run's, or what kept it from taking place.
    #[must_use]
    pub fn into_outcome(self) -> Outcome {
        match (self.run, self.compile) {
            (Some(run), _) => run,
            (None, Some(compile)) => not_compiled(compile),
            (None, None) => Outcome::sandbox_error("the source was not run"),
        }
    }
}

/// The verdict of a source whose compiler ended so.
fn not_compiled(mut compile: Outcome) -> Outcome {
    match compile.verdict {
        Verdict::SandboxError => {}
        Verdict::Ok => {
            let missing: Vec<&str> = compile.refused.keys().map(String::as_str).collect();
            compile.message = format!("compiling left no {}", missing.join(", "));
            compile.verdict = Verdict::CompileError;
        }
        verdict => {
            compile.message = format!("compiling ended with {verdict}");
            compile.verdict = Verdict::CompileError;
        }
    }
    compile.refused.clear();
    compile
}

impl Sandbox {
    /// Runs one source. What was compiled is kept, so the same source with other inputs is only run.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a submission that makes no sense, [`Error::Unenforceable`] for a share
    /// of processors on a host without the means, [`Error::Closed`] after [`Sandbox::close`].
    pub fn run(&self, submission: &Submission) -> Result<Outcome> {
        Ok(self.run_steps(submission)?.into_outcome())
    }

    /// [`Sandbox::run`], with what compiling had to say.
    ///
    /// # Errors
    ///
    /// Those of [`Sandbox::run`].
    pub fn run_steps(&self, submission: &Submission) -> Result<Steps> {
        let ready = self.languages.get(&submission.language)?;
        let language = ready.language;
        // What the sandbox's owner said counts more than what is usual for a language.
        let usual = language.limits.apply(&Limits::default())?;
        let limits = submission.limits.apply(&self.limits.apply(&usual)?)?;
        self.check_share(&limits)?;
        let mut job = self.job(submission, ready, limits)?;
        job.keeps_work = job.work.is_some();
        job.stdin.clone_from(&submission.stdin);
        for (path, content) in &submission.run_files {
            let content = content.clone();
            job.files.insert(path.clone(), InputFile { content, executable: false });
        }
        job.fetch.clone_from(&submission.fetch);
        let mut compile = None;
        if let Some(command) = &language.compile {
            let compiled = self.compile(submission, ready, command)?;
            compile = Some(compiled.outcome.clone());
            let Some(artifacts) = &compiled.artifacts else {
                return Ok(Steps { compile, run: None });
            };
            for (path, content) in artifacts {
                put(&mut job, path, content.clone(), true)?;
            }
        } else {
            let content = submission.source.clone().into_bytes();
            put(&mut job, &language.file, content, false)?;
        }
        set_command(&mut job, ready, &language.run, &submission.arguments);
        Ok(Steps { compile, run: Some(self.pool.run(&job)?) })
    }

    /// Whether a run of this would compile first: its language does, and no artifacts of it are kept.
    #[must_use]
    pub fn must_compile(&self, submission: &Submission) -> bool {
        let ready = self.languages.get(&submission.language);
        ready.is_ok_and(|ready| ready.language.compile.is_some()) && !self.compiled.has(submission)
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

    /// A job in the language's environment, with the submission's files and without a command.
    fn job(&self, submission: &Submission, ready: Ready<'_>, limits: Limits) -> Result<Job> {
        let mut job = Job {
            environment: add(&self.environment, &ready.language.environment),
            work: submission.work.clone(),
            limits,
            cancel: submission.cancel.clone(),
            ..Job::default()
        };
        for (path, content) in &submission.files {
            put(&mut job, path, content.clone(), false)?;
        }
        Ok(job)
    }

    /// What compiling left.
    fn compile(
        &self,
        submission: &Submission,
        ready: Ready<'_>,
        command: &[String],
    ) -> Result<Arc<Compiled>> {
        let language = ready.language;
        let compile = || {
            let usual = language.compile_limits.apply(&self.default_limits)?;
            let limits = submission.compile_limits.apply(&usual)?;
            let mut job = self.job(submission, ready, limits)?;
            job.fetch.clone_from(&language.artifacts);
            let content = submission.source.clone().into_bytes();
            put(&mut job, &language.file, content, false)?;
            set_command(&mut job, ready, command, &[]);
            let mut outcome = self.pool.run(&job)?;
            let files = std::mem::take(&mut outcome.files);
            let is_whole = outcome.verdict == Verdict::Ok && outcome.refused.is_empty();
            Ok(Compiled { artifacts: is_whole.then_some(files), outcome })
        };
        // What else lies there is part of what it is compiled from.
        match submission.work {
            None => self.compiled.get(submission, compile),
            Some(_) => Ok(Arc::new(compile()?)),
        }
    }

    pub(crate) fn check_share(&self, limits: &Limits) -> Result<()> {
        let share = self.capabilities().iter().find(|each| each.name == "cpus");
        match share.filter(|each| limits.cpus.is_some() && !each.enforced) {
            None => Ok(()),
            Some(each) => Err(Error::Unenforceable {
                what: each.name,
                why: each.how.clone(),
                remedy: each.remedy.clone(),
            }),
        }
    }
}

/// Puts a file into a job's work directory.
fn put(job: &mut Job, path: &str, content: Vec<u8>, executable: bool) -> Result<()> {
    match &mut job.work {
        Some(tree) => Arc::make_mut(tree).write(path, content, Some(executable)),
        None => {
            job.files.insert(path.to_owned(), InputFile { content, executable });
            Ok(())
        }
    }
}

/// `base` with `more` added; of two values of one name the later stays.
pub(crate) fn add(base: &[String], more: &[String]) -> Vec<String> {
    let name = |each: &str| each.split_once('=').map_or(each, |(name, _)| name).to_owned();
    let replaced = |each: &&String| !more.iter().any(|new| name(new) == name(each));
    base.iter().filter(replaced).chain(more).cloned().collect()
}

pub(crate) fn set_command(job: &mut Job, ready: Ready<'_>, command: &[String], more: &[String]) {
    let command = ready.command(command, &job.limits);
    job.program = command.first().cloned().unwrap_or_default();
    job.arguments = command.into_iter().chain(more.iter().cloned()).collect();
}
