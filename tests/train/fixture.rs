//! A folder with a training, and what it answers.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ndserve::engine::{LoadOptions, Model, Session, Tensor, Threads};
use ndserve::train::{Config, Controls, Ended, Progress, Report, run};

/// A folder that is removed when it is dropped.
/// The number is how many bytes of raw rows may be in memory.
pub(crate) struct Folder(pub(crate) PathBuf, pub(crate) usize);

/// What is told of a step, as `Progress` has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) step: usize,
    pub(crate) steps: usize,
    pub(crate) loss: f64,
    pub(crate) metric: &'static str,
    pub(crate) value: f64,
    pub(crate) validation: Option<f64>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("train-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder, usize::MAX)
    }

    pub(crate) fn with(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.0.join(name), content).unwrap();
        self
    }

    /// Trains; `stop_at` is the step at which Ctrl-C is pressed.
    pub(crate) fn train(&self, output: &str, resume: bool, stop_at: usize, threads: usize) -> Result<Ended, String> {
        let stop = AtomicBool::new(false);
        let steps = Cell::new(0);
        let step = |_: &Progress<'_>| {
            steps.set(steps.get() + 1);
            if steps.get() == stop_at {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let threads = Arc::new(Threads::new(threads).unwrap());
        self.controlled(output, &Controls { stop: &stop, resume, threads, memory_bytes: self.1, say: &|_| {}, step: &step })
    }

    /// Trains; Ctrl-C is pressed behind a line that begins with `line`.
    pub(crate) fn train_until(&self, output: &str, line: &str) -> Ended {
        let stop = AtomicBool::new(false);
        let say = |said: &str| {
            if said.starts_with(line) {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let threads = Arc::new(Threads::single());
        let controls = Controls { stop: &stop, resume: false, threads, memory_bytes: self.1, say: &say, step: &|_| {} };
        self.controlled(output, &controls).unwrap()
    }

    /// Trains; gives what was told of each step.
    pub(crate) fn told(&self, output: &str) -> Vec<(String, Step)> {
        let told = RefCell::new(Vec::new());
        let step = |at: &Progress<'_>| {
            let step =
                Step { step: at.step, steps: at.steps, loss: at.loss, metric: at.metric, value: at.value, validation: at.validation };
            told.borrow_mut().push((at.part.to_owned(), step));
        };
        let (stop, threads) = (AtomicBool::new(false), Arc::new(Threads::single()));
        let controls = Controls { stop: &stop, resume: false, threads, memory_bytes: self.1, say: &|_| {}, step: &step };
        self.controlled(output, &controls).unwrap();
        told.into_inner()
    }

    /// Trains, and copies what lies in the folder of the model to `copy` when a line that begins with `line` is said: what is there
    /// if the process is killed at that moment.
    pub(crate) fn killed_at(&self, output: &str, line: &str, copy: &str) {
        let (from, to) = (self.0.join(output), self.0.join(copy));
        let say = |said: &str| {
            if said.starts_with(line) {
                fs::create_dir_all(&to).unwrap();
                for file in fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().path()) {
                    fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
                }
            }
        };
        let (stop, threads) = (AtomicBool::new(false), Arc::new(Threads::single()));
        let controls = Controls { stop: &stop, resume: false, threads, memory_bytes: self.1, say: &say, step: &|_| {} };
        self.controlled(output, &controls).unwrap();
    }

    fn controlled(&self, output: &str, controls: &Controls<'_>) -> Result<Ended, String> {
        let (config, text) = Config::read(&self.0.join("train.toml")).map_err(|error| error.to_string())?;
        run(&config, &text, &self.0.join(output), controls).map_err(|error| error.to_string())
    }

    pub(crate) fn done(&self, output: &str) -> Report {
        match self.train(output, false, 0, 1).unwrap() {
            Ended::Done(report) => *report,
            Ended::Stopped => panic!("it was not stopped"),
        }
    }

    pub(crate) fn answer(&self, output: &str, inputs: &[Tensor]) -> Vec<f32> {
        let model = Model::load(&self.0.join(output).join("1/model.onnx"), &LoadOptions::default()).unwrap();
        let mut session = Session::new(Arc::new(model), Arc::new(Threads::single()));
        session.run(inputs).unwrap()[0].tensor().unwrap().slice::<f32>().unwrap().to_vec()
    }

    pub(crate) fn model(&self, output: &str) -> Vec<u8> {
        fs::read(self.0.join(output).join("1/model.onnx")).unwrap()
    }
}

/// Runs the program; gives its exit code, and what it said.
pub(crate) fn ndserve(args: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_ndserve")).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}
