//! A step of a training allocates nothing once one has been done ([decision 15](../docs/decisions/0015-what-a-training-step-keeps.md)): counted, with an allocator that counts.
#![allow(missing_docs, reason = "a test binary has no readers of its documentation page")]

use std::alloc::System;
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ndserve::engine::{Tensor, Threads, npz};
use ndserve::train::{Config, Controls, Progress, run};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const NETWORKS: [&str; 3] = [
    r#"layer = [
        { kind = "conv", filters = 32, kernel = 3, padding = 1, bias = false }, { kind = "batch_norm" },
        { kind = "activation", function = "relu" },
        { kind = "residual", layers = [
            { kind = "conv", filters = 64, kernel = 3, padding = 1, stride = 2, bias = false }, { kind = "batch_norm" },
            { kind = "activation", function = "relu" }, { kind = "conv", filters = 64, kernel = 3, padding = 1 }, { kind = "batch_norm" },
          ], shortcut = [{ kind = "conv", filters = 64, kernel = 1, stride = 2 }, { kind = "batch_norm" }] },
        { kind = "activation", function = "relu" }, { kind = "max_pool", kernel = 2 }, { kind = "flatten" },
        { kind = "dense", units = 256, activation = "relu" }, { kind = "dropout", rate = 0.5 },
      ]
      train.optimizer = { kind = "adam" }"#,
    r#"layer = [{ kind = "flatten" }, { kind = "dense", units = 300, activation = "relu" }, { kind = "dense", units = 100, activation = "tanh" }]
      train.optimizer = { kind = "sgd", momentum = 0.9 }
      train.clip_norm = 1.0
      train.l2 = 0.01"#,
    r#"layer = [{ kind = "conv", filters = 8, kernel = 3, activation = "relu" }, { kind = "average_pool", kernel = 2 }, { kind = "global_average_pool" }]
      train.augment = { shift = 1, flip = true, noise = 0.1 }
      train.optimizer = { kind = "adamw" }"#,
];

const STEPS: usize = 20;
const BATCH: usize = 16;

/// Allocations between the ends of each two neighbouring steps of one epoch.
fn counted(network: &str, threads: usize, folder: &Path) -> Vec<usize> {
    let text = format!(
        "{network}\ndata.path = \"data.npz\"\ndata.target = \"y\"\ndata.task = \"classify\"\ntrain.epochs = 1\ntrain.batch = {BATCH}\ntrain.learning_rate = 0.01\n"
    );
    std::fs::write(folder.join("train.toml"), &text).unwrap();
    let (config, text) = Config::read(&folder.join("train.toml")).unwrap();
    let ends = RefCell::new(Vec::with_capacity(STEPS));
    let step = |at: &Progress<'_>| {
        assert!(at.loss.is_finite());
        let counted = ALLOCATOR.stats();
        ends.borrow_mut().push(counted.allocations + counted.reallocations);
    };
    let controls = Controls {
        stop: &AtomicBool::new(false),
        resume: false,
        threads: Arc::new(Threads::new(threads).unwrap()),
        memory_bytes: 1 << 30,
        say: &|_| {},
        step: &step,
    };
    run(&config, &text, &folder.join("model"), &controls).unwrap();
    let ends = ends.into_inner();
    ends.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

// One test: what others allocate beside it would be counted.
#[test]
fn a_step_allocates_nothing_once_one_is_done() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("allocations-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let rows = STEPS * BATCH;
    let noise = |i: usize| ((i as f32 * 12.9898).sin() * 43758.547).fract();
    let x = Tensor::new(&[rows, 3, 12, 12], (0..rows * 3 * 144).map(noise).collect()).unwrap();
    let y = Tensor::new(&[rows], (0..rows as i64).map(|i| i % 10).collect::<Vec<_>>()).unwrap();
    std::fs::write(folder.join("data.npz"), npz::write(&[("x", &x), ("y", &y)]).unwrap()).unwrap();
    for network in NETWORKS {
        for threads in [1, 2] {
            let found = counted(network, threads, &folder);
            assert_eq!(found.len(), STEPS - 1);
            if threads == 1 {
                assert!(found.iter().all(|&count| count == 0), "{found:?} allocations in the steps of {network}");
                continue;
            }
            // A thread takes its first work of a kind when it comes to it: few steps have any, and few those.
            let some = found.iter().filter(|&&count| count > 0).count();
            assert!(4 * some <= found.len() && found.iter().sum::<usize>() <= 32, "{threads} threads: {found:?} in the steps of {network}");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
