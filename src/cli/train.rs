//! `ndserve train`: from data to a model folder.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Failure, Outcome, print, progress};
use crate::config::{Engine, Flags};
use crate::engine::Threads;
use crate::train::{Config, Controls, Ended, Progress, run};
use crate::{resources, telemetry};

/// Train a network and write a model folder that is ready to serve.
///
/// Ctrl-C stops behind the step at work and leaves a checkpoint. Exits with 0 if the model was written.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to train on and how (docs/training.md)
    #[arg(value_name = "CONFIG.toml")]
    training: PathBuf,
    /// The model folder; by default that of a train.toml, else one named as the configuration beside it
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Go on from the checkpoint in the model folder, to the same bits
    #[arg(long)]
    resume: bool,
    /// Megabytes that raw rows may take in memory; more are read in parts. By default a quarter of what the machine allows
    #[arg(long, value_name = "N")]
    memory_mb: Option<usize>,
    #[command(flatten)]
    flags: Flags<Engine>,
}

pub(super) fn command(args: Args) -> Outcome {
    let settings = args.flags.settings()?;
    telemetry::init(&settings)?;
    let (config, text) = Config::read(&args.training)?;
    let output = args.output.unwrap_or_else(|| beside(&args.training));
    let stop = Arc::new(AtomicBool::new(false));
    interruptible(Arc::clone(&stop))?;
    let bar = progress::bar("training", 0);
    let controls = Controls {
        stop: &stop,
        resume: args.resume,
        threads: Arc::new(Threads::new(settings.engine_threads())?),
        memory_bytes: memory_bytes(args.memory_mb),
        say: &|line| bar.suspend(|| eprintln!("{}", line.trim_end())),
        step: &|at| {
            bar.set_prefix(at.part.to_owned());
            bar.set_length(at.steps as u64);
            bar.set_position(at.step as u64);
            bar.set_message(told(at));
        },
    };
    let ended = run(&config, &text, &output, &controls)?;
    bar.finish_and_clear();
    let Ended::Done(report) = ended else {
        eprintln!("stopped; `--resume` goes on from {}", output.display());
        return Ok(ExitCode::FAILURE);
    };
    let test = report.test.map_or(String::new(), |(loss, value)| format!("test: loss {loss:.6}, {} {value:.4}\n", report.metric));
    let folds = if report.folds.is_empty() {
        String::new()
    } else {
        format!("{} folds: {} {:.4}\n", report.folds.len(), report.metric, report.folds.iter().sum::<f64>() / report.folds.len() as f64)
    };
    print(&format!(
        "{folds}training: loss {:.6}, {} {:.4}; {:.0} rows a second\n{test}{}\n",
        report.train.0,
        report.metric,
        report.train.1,
        report.speed,
        output.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// What a bar says of a step: the rows that train, and those that say when to stop as they were behind the last epoch.
fn told(at: &Progress<'_>) -> String {
    let validation = at.validation.map_or(String::new(), |value| format!(", validation {value:.4}"));
    format!("loss {:.6}, {} {:.4}{validation}", at.loss, at.metric, at.value)
}

/// Bytes that raw rows may take.
pub(super) fn memory_bytes(megabytes: Option<usize>) -> usize {
    megabytes.map_or_else(|| resources::memory_bytes() / 4, |megabytes| megabytes << 20)
}

/// The folder of a `train.toml`, which lies in the model folder that it makes; of another configuration one of its name.
fn beside(training: &Path) -> PathBuf {
    if training.file_name().is_some_and(|name| name == "train.toml") {
        return training.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    }
    training.with_extension("")
}

/// Sets `stop` at Ctrl-C; a step is short, so that nothing more is needed.
fn interruptible(stop: Arc<AtomicBool>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.store(true, Ordering::Relaxed);
                eprintln!("stopping behind this step");
            }
        });
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_loss_and_metric() {
        let at = |validation| Progress { part: "training", step: 3, steps: 9, loss: 0.25, metric: "accuracy", value: 0.875, validation };
        assert_eq!(told(&at(None)), "loss 0.250000, accuracy 0.8750");
        assert_eq!(told(&at(Some(0.5))), "loss 0.250000, accuracy 0.8750, validation 0.5000");
    }
}
