//! `k15-sandboxd`: runs model-written code for whoever asks over HTTP.
//!
//! # How a request lives
//!
//! `server.rs` accepts connections on a TCP address or a Unix socket. `http/` checks who asks, reads the
//! body within its limits and turns it into a submission. `queue.rs` says at once whether it can start in
//! time; a thread of its own then runs it in the sandbox's pool, which is synchronous, and the answer goes
//! back. A caller that goes away takes its run with it.

mod app;
mod away;
mod config;
#[cfg(test)]
mod config_tests;
mod expect;
mod http;
mod lines;
mod log;
mod metrics;
mod queue;
#[cfg(test)]
mod queue_tests;
mod server;
mod sessions;
#[cfg(test)]
mod sessions_tests;
mod taken;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use app::App;
use config::Config;

/// Runs model-written code in sandboxes for whoever asks over HTTP.
///
/// Without a file of settings it listens on 127.0.0.1:8080. POST /run_code has SandboxFusion's contract;
/// POST /v1/run is its own. GET /health, /ready, /metrics and /v1/languages tell how it is;
/// GET /openapi.json has all of it.
#[derive(Parser)]
#[command(name = "k15-sandboxd", version)]
struct Arguments {
    /// Settings in TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address (127.0.0.1:8080) or socket (unix:/run/k15.sock) to listen on, over the settings'.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Most runs at once, over the settings'.
    #[arg(long, value_name = "N")]
    slots: Option<usize>,
    /// The spawner's binary, over the settings'; else beside this program.
    #[arg(long, value_name = "FILE")]
    spawner: Option<PathBuf>,
    /// Check the settings, print them whole, and exit.
    #[arg(long)]
    check_config: bool,
    /// Print the OpenAPI document of what can be asked, and exit.
    #[arg(long)]
    openapi: bool,
}

impl Arguments {
    fn config(self) -> Result<Config, config::Error> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        config.listen = self.listen.unwrap_or(config.listen);
        config.sandbox.slots = self.slots.unwrap_or(config.sandbox.slots);
        config.sandbox.spawner = self.spawner.or(config.sandbox.spawner);
        config.check()?;
        Ok(config)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.openapi {
        println!("{:#}", http::document());
        return ExitCode::SUCCESS;
    }
    let is_check = arguments.check_config;
    let config = match arguments.config() {
        Ok(config) => config,
        Err(error) => return fail(&error, 2),
    };
    if is_check {
        print!("{config}");
        return ExitCode::SUCCESS;
    }
    let app = match App::open(config) {
        Ok(app) => app,
        Err(error) => return fail(&error, 1),
    };
    match server::serve(app) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("k15-sandboxd: {error}");
    ExitCode::from(code)
}
