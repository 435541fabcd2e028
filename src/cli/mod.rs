//! The command line: one file per command. `ndserve` alone is `ndserve serve`.
//!
//! Exit codes: 0 if all that was asked for was done, 1 if not, 2 if it could not be understood. Answers go to stdout, errors
//! and logs to stderr.

mod bench;
mod check;
mod deploy;
mod evaluate;
mod explain;
mod files;
mod healthcheck;
mod key;
mod predict;
mod prepare;
mod progress;
mod remote;
mod rows;
mod serve;
mod target;
mod train;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::engine::{Isa, keep_freed_memory};
use crate::resources::allow_huge_pages;

/// A model server for CPUs: loads ONNX models at run time and answers batched predictions over HTTP.
#[derive(Debug, Parser)]
#[command(name = "ndserve", max_term_width = 120, after_help = "Without a command, `ndserve` is `ndserve serve`.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Predict(predict::Args),
    Check(check::Args),
    Bench(bench::Args),
    Healthcheck(healthcheck::Args),
    Prepare(prepare::Args),
    Train(train::Args),
    Evaluate(evaluate::Args),
    Explain(Box<explain::Args>),
    Deploy(deploy::Args),
    Key(key::Args),
}

/// What a command could not do, in words for the person who asked.
struct Failure(String);

impl<E: Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

type Outcome = Result<ExitCode, Failure>;

/// Runs the command that the arguments name; the first one is the program's own name.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    allow_huge_pages();
    keep_freed_memory();
    let parsed = Cli::command().version(version()).try_get_matches_from(with_default_command(args));
    let cli = match parsed.and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe while printing help is no failure.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let outcome = match cli.command {
        Command::Serve(args) => serve::command(args),
        Command::Predict(args) => predict::command(args),
        Command::Check(args) => check::command(args),
        Command::Bench(args) => bench::command(args),
        Command::Healthcheck(args) => healthcheck::command(args),
        Command::Prepare(args) => prepare::command(args),
        Command::Train(args) => train::command(args),
        Command::Evaluate(args) => evaluate::command(args),
        Command::Explain(args) => explain::command(*args),
        Command::Deploy(args) => deploy::command(args),
        Command::Key(args) => key::command(args),
    };
    outcome.unwrap_or_else(|Failure(message)| {
        eprintln!("error: {message}");
        ExitCode::FAILURE
    })
}

/// Puts `serve` where a command is missing, so that `ndserve --models DIR` works.
fn with_default_command(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let own = ["-h", "--help", "-V", "--version"];
    let missing = match args.get(1) {
        None => true,
        Some(first) => first.to_string_lossy().starts_with('-') && !own.iter().any(|flag| first == flag),
    };
    if missing {
        args.insert(args.len().min(1), "serve".into());
    }
    args
}

/// Version, platform, and the instruction set that the kernels would use here.
fn version() -> String {
    let environment = if cfg!(target_env = "musl") { "-musl" } else { "" };
    let (version, arch, os) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, std::env::consts::OS);
    format!("{version} ({arch}-{os}{environment}, {})", Isa::best())
}

/// Writes an answer to stdout. A reader that has gone away (`| head`) has all that it wanted.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("stdout: {error}").into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default_command() {
        let with = |args: &[&str]| with_default_command(args.iter().map(OsString::from));
        assert_eq!(with(&["ndserve"]), ["ndserve", "serve"]);
        assert_eq!(with(&["ndserve", "--strict"]), ["ndserve", "serve", "--strict"]);
        assert_eq!(with(&["ndserve", "--help"]), ["ndserve", "--help"]);
        assert_eq!(with(&["ndserve", "check", "x"]), ["ndserve", "check", "x"]);
    }
}
