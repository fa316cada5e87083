//! Settings: a file in TOML, with a default for everything.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k15_sandbox::language::LimitChanges;
use k15_sandbox::rootfs::{Bind, Source};
use k15_sandbox::{Limits, Options};
use serde::{Deserialize, Serialize};

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("config = {path:?}: expected a file of settings in TOML: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what was expected; the message names the key.
    #[error("{path}: {message}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong, and where.
        message: String,
    },
    /// A value is out of range.
    #[error("{key} = {value}: expected {expected}")]
    Invalid {
        /// The key, with its table.
        key: &'static str,
        /// The value.
        value: String,
        /// What would have been accepted.
        expected: String,
    },
}

fn invalid(key: &'static str, value: impl fmt::Display, expected: impl Into<String>) -> Error {
    Error::Invalid { key, value: value.to_string(), expected: expected.into() }
}

/// All settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `ADDRESS:PORT` or `unix:PATH`.
    pub listen: String,
    /// Where the bearer token is read from. One is required on an address that others can reach.
    pub token_file: Option<PathBuf>,
    /// Environment variable that holds the token instead.
    pub token_env: Option<String>,
    /// What answers name the machine, as SandboxFusion's `executor_pod_name`.
    pub pod_name: Option<String>,
    /// Whether each request is logged, or only what went wrong.
    pub log_requests: bool,
    /// How requests are taken.
    pub http: Http,
    /// How runs wait.
    pub queue: Queue,
    /// Sandboxes that live over several steps.
    pub sessions: Sessions,
    /// Where and how they run.
    pub sandbox: Sandbox,
}

/// How requests are taken.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Most bytes of a request's body.
    pub body_bytes: usize,
    /// Seconds in which a request's head, and then its body, must have come.
    pub read_seconds: f64,
    /// Seconds in which a client must go on taking its answer.
    pub write_seconds: f64,
    /// Most connections at once; others wait to be accepted.
    pub connections: usize,
    /// Seconds that runs under way are given when the daemon is told to stop.
    pub grace_seconds: f64,
}

/// How runs wait.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// A request that is not expected to start within so many seconds is answered 504 at once.
    pub start_within_seconds: f64,
    /// Whether a request of `/run_code` that says how long compiling may take is held for so much longer
    /// where nothing must be compiled: its client reads for all of it.
    pub wait_in_compile_time: bool,
    /// Most requests that wait at once; at most three quarters of `http.connections`.
    pub most_waiting: usize,
}

/// Sandboxes that live over several steps.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// Most sessions at once.
    pub most: usize,
    /// Most bytes that they set aside together: each its `disk_bytes`, and 1 KiB for each of its `disk_files`.
    pub bytes: u64,
    /// Seconds that a session lives when nobody uses it, where it does not ask for another lease.
    pub lease_seconds: f64,
    /// Most seconds that a session lives, used or not.
    pub life_seconds: f64,
}

/// Where and how programs run.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sandbox {
    /// The spawner's binary; else the one beside this program.
    pub spawner: Option<PathBuf>,
    /// `auto`, `direct`, `crun`, `crun-plain` or `warm`.
    pub runner: String,
    /// Most runs at once.
    pub slots: usize,
    /// Slots that are made in advance and kept.
    pub least_slots: usize,
    /// What runs are given where they ask for nothing else; the keys of `Limits`.
    pub limits: LimitChanges,
    /// The most that a request can ask for.
    pub most: LimitChanges,
    /// The root file system: a directory, or `oci:DIRECTORY[:NAME]`; else the host's own.
    pub root: Option<String>,
    /// Where images are unpacked.
    pub image_cache: Option<PathBuf>,
    /// Whether runs can write to the root.
    pub writable_root: bool,
    /// Further files of the host that runs see: path in the sandbox = path on the host.
    pub binds: std::collections::BTreeMap<String, PathBuf>,
    /// Files of languages in TOML.
    pub languages: Vec<PathBuf>,
    /// Modules that warm interpreters have imported.
    pub warm_modules: Vec<String>,
    /// Runs that a warm interpreter serves.
    pub warm_runs: u32,
    /// Limits that the host need not be able to hold.
    pub allow_unenforced: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".into(),
            token_file: None,
            token_env: None,
            pod_name: None,
            log_requests: true,
            http: Http::default(),
            queue: Queue::default(),
            sessions: Sessions::default(),
            sandbox: Sandbox::default(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            body_bytes: 64 << 20,
            read_seconds: 30.0,
            write_seconds: 30.0,
            connections: 4096,
            grace_seconds: 30.0,
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self { start_within_seconds: 8.0, wait_in_compile_time: true, most_waiting: 65_536 }
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self { most: 1024, bytes: 8 << 30, lease_seconds: 600.0, life_seconds: 14_400.0 }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        let options = Options::new("");
        Self {
            spawner: None,
            runner: options.runner,
            slots: std::thread::available_parallelism().map_or(4, std::num::NonZero::get),
            least_slots: options.least_slots,
            limits: LimitChanges::default(),
            most: LimitChanges {
                cpu_seconds: Some(3600.0),
                wall_seconds: Some(300.0),
                memory_bytes: Some(4 << 30),
                processes: Some(1024),
                disk_bytes: Some(2 << 30),
                disk_files: Some(1 << 20),
                output_bytes: Some(64 << 20),
                open_files: Some(4096),
                stack_bytes: Some(1 << 30),
                cpus: None,
            },
            root: None,
            image_cache: None,
            writable_root: false,
            binds: std::collections::BTreeMap::new(),
            languages: Vec::new(),
            warm_modules: Vec::new(),
            warm_runs: options.warm_runs,
            allow_unenforced: Vec::new(),
        }
    }
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`Error`] names the file and the key.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Unreadable { path: path.into(), source })?;
        toml::from_str(&text).map_err(|error| Error::Malformed {
            path: path.display().to_string(),
            message: error.to_string(),
        })
    }

    /// Where to listen.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if `listen` is neither.
    pub fn address(&self) -> Result<Address, Error> {
        if let Some(path) = self.listen.strip_prefix("unix:") {
            return Ok(Address::Unix(path.into()));
        }
        let wrong = || {
            invalid(
                "listen",
                format!("{:?}", self.listen),
                "an IP address with a port, or unix:PATH",
            )
        };
        self.listen.parse().map(Address::Tcp).map_err(|_| wrong())
    }

    /// Refuses what makes no sense, and an open door without a token.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] names the key.
    pub fn check(&self) -> Result<(), Error> {
        if let Address::Tcp(address) = self.address()?
            && !address.ip().is_loopback()
            && self.token_file.is_none()
            && self.token_env.is_none()
        {
            let expected =
                "token_file or token_env beside an address that other machines can reach";
            return Err(invalid("listen", format!("{:?}", self.listen), expected));
        }
        for (key, value) in [
            ("http.read_seconds", self.http.read_seconds),
            ("http.write_seconds", self.http.write_seconds),
            ("http.grace_seconds", self.http.grace_seconds),
            ("queue.start_within_seconds", self.queue.start_within_seconds),
            ("sessions.lease_seconds", self.sessions.lease_seconds),
            ("sessions.life_seconds", self.sessions.life_seconds),
        ] {
            if !(0.0..=86_400.0).contains(&value) {
                return Err(invalid(key, value, "between 0 and 86400"));
            }
        }
        for (key, value) in [
            ("http.body_bytes", self.http.body_bytes),
            ("http.connections", self.http.connections),
            ("queue.most_waiting", self.queue.most_waiting),
        ] {
            if value == 0 {
                return Err(invalid(key, value, "at least 1"));
            }
        }
        let limits = |key, changes: &LimitChanges| {
            changes
                .apply(&Limits::default())
                .map_err(|error| Error::Malformed { path: key, message: error.to_string() })
        };
        limits("sandbox.limits".into(), &self.sandbox.limits)?;
        limits("sandbox.most".into(), &self.sandbox.most)?;
        Ok(())
    }

    /// The token that callers must know, if one is set.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if it is to be read from where there is none.
    pub fn token(&self) -> Result<Option<String>, Error> {
        let (key, found) = match (&self.token_file, &self.token_env) {
            (Some(path), None) => {
                let token = std::fs::read_to_string(path)
                    .map_err(|source| Error::Unreadable { path: path.clone(), source })?;
                ("token_file", token.trim().to_owned())
            }
            (None, Some(name)) => ("token_env", std::env::var(name).unwrap_or_default()),
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(invalid("token_env", "set", "either it or token_file"));
            }
        };
        if found.len() < 16 || !found.bytes().all(|byte| byte.is_ascii_graphic()) {
            let expected = "a token of at least 16 printable characters where it points to";
            return Err(invalid(key, "that", expected));
        }
        Ok(Some(found))
    }

    /// How long a request may wait for its start.
    pub fn start_within(&self) -> Duration {
        Duration::from_secs_f64(self.queue.start_within_seconds)
    }

    /// What the sandbox is opened with.
    ///
    /// # Errors
    ///
    /// [`Error::Unreadable`] for a file of languages.
    pub fn options(&self) -> Result<Options, Error> {
        let sandbox = &self.sandbox;
        let beside = || {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name("k15-spawner")
        };
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path)
                .map_err(|source| Error::Unreadable { path: path.clone(), source })
        };
        Ok(Options {
            spawner: sandbox.spawner.clone().unwrap_or_else(beside),
            runner: sandbox.runner.clone(),
            slots: sandbox.slots,
            least_slots: sandbox.least_slots,
            limits: sandbox.limits.clone(),
            root: sandbox.root.as_deref().map_or(Source::Host, Source::parse),
            image_cache: sandbox.image_cache.clone(),
            writable_root: sandbox.writable_root,
            binds: sandbox
                .binds
                .iter()
                .map(|(target, source)| Bind { source: source.clone(), target: target.clone() })
                .collect(),
            languages: sandbox.languages.iter().map(read).collect::<Result<_, _>>()?,
            warm_modules: sandbox.warm_modules.clone(),
            warm_runs: sandbox.warm_runs,
            allow_unenforced: sandbox.allow_unenforced.clone(),
        })
    }
}

impl fmt::Display for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}
