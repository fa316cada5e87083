//! The class `k15core._core.SandboxPool`, under `k15core.sandbox.Sandbox`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k15_sandbox::capability::Capability;
use k15_sandbox::language::LimitChanges;
use k15_sandbox::rootfs::{Bind, Source};
use k15_sandbox::{Error, InputFile, Job, Limits, Options, Outcome, RUNNERS, Sandbox, Submission};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

pyo3::import_exception!(k15core.errors, InvalidInputError);
pyo3::import_exception!(k15core.errors, SandboxError);
pyo3::import_exception!(k15core.errors, UnenforceableError);

/// An error of the sandbox on its way into Python.
struct Fault(Error);

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<Fault> for PyErr {
    fn from(fault: Fault) -> Self {
        let message = fault.0.to_string();
        match fault.0 {
            Error::InvalidInput { .. } => InvalidInputError::new_err(message),
            Error::Unenforceable { .. } => UnenforceableError::new_err(message),
            _ => SandboxError::new_err(message),
        }
    }
}

/// A pool of slots that runs sources.
#[pyclass(frozen, module = "k15core._core")]
pub struct SandboxPool {
    sandbox: Sandbox,
}

#[pymethods]
impl SandboxPool {
    #[new]
    #[pyo3(signature = (spawner, *, runner, slots, least_slots, limits, root, image_cache, writable_root, binds, languages, warm_modules, warm_runs, allow_unenforced))]
    #[expect(clippy::too_many_arguments, reason = "keywords, each with its own meaning")]
    fn new(
        py: Python<'_>,
        spawner: PathBuf,
        runner: String,
        slots: usize,
        least_slots: usize,
        limits: &Bound<'_, PyDict>,
        root: Option<String>,
        image_cache: Option<PathBuf>,
        writable_root: bool,
        binds: Vec<(PathBuf, String)>,
        languages: Vec<String>,
        warm_modules: Vec<String>,
        warm_runs: u32,
        allow_unenforced: Vec<String>,
    ) -> PyResult<Self> {
        let options = Options {
            spawner,
            runner,
            slots,
            least_slots,
            limits: changes(limits)?,
            root: root.as_deref().map_or(Source::Host, Source::parse),
            image_cache,
            writable_root,
            binds: read_binds(binds),
            languages,
            warm_modules,
            warm_runs,
            allow_unenforced,
        };
        let sandbox = py.detach(|| Sandbox::open(&options).map_err(Fault))?;
        Ok(Self { sandbox })
    }

    /// Run one submission: a dict, see `submission`.
    fn run<'py>(
        &self,
        py: Python<'py>,
        submission: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let submission = read_submission(submission)?;
        let outcome = py.detach(|| self.sandbox.run(&submission).map_err(Fault))?;
        result(py, outcome)
    }

    /// Run many, keeping every slot busy.
    fn run_many<'py>(
        &self,
        py: Python<'py>,
        submissions: Vec<Bound<'py, PyDict>>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let submissions =
            submissions.iter().map(read_submission).collect::<PyResult<Vec<Submission>>>()?;
        let outcomes = py.detach(|| self.sandbox.run_many(&submissions).map_err(Fault))?;
        outcomes.into_iter().map(|outcome| result(py, outcome)).collect()
    }

    /// Run a program that is in the root already, `times` times; the last result.
    #[pyo3(signature = (arguments, *, environment, stdin, files, fetch, limits, times))]
    #[expect(clippy::too_many_arguments, reason = "keywords, each with its own meaning")]
    fn execute<'py>(
        &self,
        py: Python<'py>,
        arguments: Vec<String>,
        environment: Vec<String>,
        stdin: Vec<u8>,
        files: BTreeMap<String, (Vec<u8>, bool)>,
        fetch: Vec<String>,
        limits: &Bound<'py, PyDict>,
        times: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        let files = files
            .into_iter()
            .map(|(path, (content, executable))| (path, InputFile { content, executable }))
            .collect();
        let job = Job {
            program: arguments.first().cloned().unwrap_or_default(),
            arguments,
            environment,
            stdin,
            files,
            fetch,
            limits: changes(limits)?.apply(self.sandbox.limits()).map_err(Fault)?,
            ..Job::default()
        };
        let outcome = py.detach(|| {
            for _ in 1..times {
                self.sandbox.pool().run(&job).map_err(Fault)?;
            }
            self.sandbox.pool().run(&job).map_err(Fault)
        })?;
        result(py, outcome)
    }

    /// Languages by name, each with a sentence on what is missing for it.
    fn languages(&self) -> BTreeMap<String, String> {
        self.sandbox.languages()
    }

    /// What the host can hold a run to: (name, enforced, how, remedy) each.
    fn capabilities(&self) -> Vec<Promise> {
        self.sandbox.capabilities().iter().map(promise).collect()
    }

    /// What a sandbox would find here: the runners' names, capabilities and languages as above.
    #[staticmethod]
    fn examine(languages: Vec<String>, binds: Vec<(PathBuf, String)>) -> PyResult<Findings> {
        let options = Options { languages, binds: read_binds(binds), ..Options::new("") };
        let (capabilities, languages) = Sandbox::examine(&options).map_err(Fault)?;
        Ok((RUNNERS.to_vec(), capabilities.iter().map(promise).collect(), languages))
    }

    /// The limits of a run that asks for nothing else.
    fn limits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Limits {
            cpu_time,
            wall_time,
            memory_bytes,
            processes,
            disk_bytes,
            disk_files,
            output_bytes,
            open_files,
            stack_bytes,
            cpus,
        } = self.sandbox.limits();
        let dict = PyDict::new(py);
        dict.set_item("cpu_seconds", cpu_time.as_secs_f64())?;
        dict.set_item("wall_seconds", wall_time.as_secs_f64())?;
        dict.set_item("memory_bytes", memory_bytes)?;
        dict.set_item("processes", processes)?;
        dict.set_item("disk_bytes", disk_bytes)?;
        dict.set_item("disk_files", disk_files)?;
        dict.set_item("output_bytes", output_bytes)?;
        dict.set_item("open_files", open_files)?;
        dict.set_item("stack_bytes", stack_bytes)?;
        dict.set_item("cpus", cpus)?;
        Ok(dict)
    }

    /// The runner's name.
    #[getter]
    fn runner(&self) -> &'static str {
        self.sandbox.pool().runner()
    }

    /// How many slots are open now.
    #[getter]
    fn open_slots(&self) -> usize {
        self.sandbox.pool().slots()
    }

    /// End the slots and remove all that was made; runs under way are waited for.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.sandbox.close());
    }
}

fn read_binds(pairs: Vec<(PathBuf, String)>) -> Vec<Bind> {
    pairs.into_iter().map(|(source, target)| Bind { source, target }).collect()
}

/// The runners' names, capabilities, languages with what is missing for each.
type Findings = (Vec<&'static str>, Vec<Promise>, BTreeMap<String, String>);

/// A capability: name, enforced, how, remedy.
type Promise = (&'static str, bool, String, String);

fn promise(each: &Capability) -> Promise {
    (each.name, each.enforced, each.how.clone(), each.remedy.clone())
}

fn read_submission(dict: &Bound<'_, PyDict>) -> PyResult<Submission> {
    let item = |name: &str| {
        dict.get_item(name)?.ok_or_else(|| {
            InvalidInputError::new_err(format!("{name} is missing: expected it in a submission"))
        })
    };
    Ok(Submission {
        source: item("source")?.extract()?,
        language: item("language")?.extract()?,
        arguments: item("arguments")?.extract()?,
        stdin: item("stdin")?.extract()?,
        files: item("files")?.extract()?,
        fetch: item("fetch")?.extract()?,
        limits: changes(item("limits")?.cast()?)?,
        ..Submission::default()
    })
}

/// Limits by name; those that are not there stay as they are.
fn changes(dict: &Bound<'_, PyDict>) -> PyResult<LimitChanges> {
    let mut changes = LimitChanges::default();
    for (name, value) in dict {
        let name: String = name.extract()?;
        let refused = || {
            let value = value.repr().map_or_else(|_| String::new(), |text| text.to_string());
            InvalidInputError::new_err(format!("{name} = {value}: expected a positive number"))
        };
        let seconds = || value.extract().map(Some).map_err(|_| refused());
        let count = || value.extract().map(Some).map_err(|_| refused());
        match name.as_str() {
            "cpu_seconds" => changes.cpu_seconds = seconds()?,
            "wall_seconds" => changes.wall_seconds = seconds()?,
            "cpus" => changes.cpus = seconds()?,
            "memory_bytes" => changes.memory_bytes = count()?,
            "processes" => changes.processes = count()?,
            "disk_bytes" => changes.disk_bytes = count()?,
            "disk_files" => changes.disk_files = count()?,
            "output_bytes" => changes.output_bytes = count()?,
            "open_files" => changes.open_files = count()?,
            "stack_bytes" => changes.stack_bytes = count()?,
            _ => {
                let message = format!("limits: {name:?} is no limit");
                return Err(InvalidInputError::new_err(message));
            }
        }
    }
    Ok(changes)
}

fn result(py: Python<'_>, outcome: Outcome) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    let files = PyDict::new(py);
    for (path, content) in &outcome.files {
        files.set_item(path, PyBytes::new(py, content))?;
    }
    dict.set_item("verdict", outcome.verdict.name())?;
    dict.set_item("exit_code", outcome.exit_code)?;
    dict.set_item("signal", outcome.signal)?;
    dict.set_item("stdout", PyBytes::new(py, &outcome.stdout))?;
    dict.set_item("stderr", PyBytes::new(py, &outcome.stderr))?;
    dict.set_item("truncated", outcome.truncated)?;
    dict.set_item("cpu_seconds", outcome.cpu_time.as_secs_f64())?;
    dict.set_item("wall_seconds", outcome.wall_time.as_secs_f64())?;
    dict.set_item("peak_memory", outcome.peak_memory)?;
    dict.set_item("files", files)?;
    dict.set_item("refused_files", outcome.refused)?;
    dict.set_item("message", outcome.message)?;
    Ok(dict)
}
