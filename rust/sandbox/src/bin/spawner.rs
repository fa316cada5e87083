//! The spawner's binary. `serve PARENT`: a slot's spawner, the slot's socket being standard input.
//! `init`: pid 1 of a container, started by a container runtime.
//! `clean PARENT ENTRY`: waits for the end of process PARENT and cleans up after its pool.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse().ok();
    let result = match *words.as_slice() {
        ["serve", parent] => {
            number(parent).map(|parent| k15_sandbox::spawner::serve(io::stdin().as_fd(), parent))
        }
        ["clean", parent, entry] => number(parent)
            .map(|parent| k15_sandbox::registry::clean_after(parent, Path::new(entry))),
        ["init"] => Some(k15_sandbox::spawner::be_init()),
        _ => None,
    };
    match result {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("k15-spawner: {error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("k15-spawner is started by the sandbox, not by hand");
            ExitCode::from(2)
        }
    }
}
