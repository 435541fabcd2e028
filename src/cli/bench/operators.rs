//! Where the time of a run goes: each operator's, beside what the processor could do in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::By;
use crate::cli::Failure;
use crate::engine::{Isa, Model, Plan, Session, Shape, Value, ValueId, Work, peak_flops, read_bandwidth};

/// What all threads can do together, measured with as many busy.
#[derive(Clone, Copy, Debug)]
struct Machine {
    isa: Isa,
    /// Operations of f32 a second.
    flops: f64,
    /// Bytes a second that are read from memory.
    bandwidth: f64,
}

impl Machine {
    fn measure(isa: Isa, threads: usize) -> Machine {
        /// Elements that are read, 128 MiB over all threads and at least 16 MiB each: more than caches hold.
        const READ: usize = 32 << 20;
        const READ_LEAST: usize = 4 << 20;
        let one = || {
            let buffer = vec![1.0_f32; (READ / threads).max(READ_LEAST)];
            (peak_flops(isa), read_bandwidth(isa, &buffer))
        };
        let (flops, bandwidth) = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
            let found = running.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            found.fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        });
        Machine { isa, flops, bandwidth }
    }

    /// Seconds that the work takes at least: its operations at the peak of their arithmetic, or its bytes from memory, whichever is longer.
    fn least(&self, work: &Work) -> f64 {
        let computing = work.flops as f64 / (self.flops * work.arithmetic.times_f32(self.isa));
        computing.max(work.bytes as f64 / self.bandwidth)
    }
}

/// A line of the table.
#[derive(Debug, Default)]
struct Row {
    nodes: usize,
    time: Duration,
    flops: u64,
    bytes: u64,
    /// Seconds that it takes at least.
    least: f64,
    /// What the node computes of what, where the line is of one.
    of: String,
}

/// Runs the model for some seconds and tells where the time went.
pub(super) fn table(session: &mut Session, inputs: &[Value], seconds: f64, threads: usize, by: By) -> Result<String, Failure> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut runs = 0_u32;
    session.start_profile();
    while runs == 0 || Instant::now() < end {
        session.run_values(inputs)?;
        runs += 1;
    }
    let times = session.end_profile().unwrap_or_default();
    let model = session.model();
    let machine = Machine::measure(model.isa(), threads);
    let shapes: Vec<Shape> =
        inputs.iter().map(|value| value.tensor().map_or_else(Shape::default, |tensor| tensor.shape().into())).collect();
    let plan = model.plan(&shapes)?;

    let mut rows: Vec<(String, Row)> = Vec::new();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for (position, work) in plan.steps(model.graph()) {
        let op = model.graph().nodes[position].op_type();
        let line = match by {
            By::Operator => *kinds.entry(op.clone()).or_insert(rows.len()),
            By::Node => rows.len(),
        };
        if line == rows.len() {
            let of = if by == By::Node { operands(model, &plan, position) } else { String::new() };
            rows.push((op, Row { of, ..Row::default() }));
        }
        let row = &mut rows[line].1;
        row.nodes += 1;
        row.time += times[position];
        row.flops += work.flops;
        row.bytes += work.bytes;
        row.least += machine.least(&work);
    }
    if by == By::Operator {
        rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.time));
    }
    Ok(text(&machine, threads, rows, runs))
}

fn text(machine: &Machine, threads: usize, rows: Vec<(String, Row)>, runs: u32) -> String {
    let total: Duration = rows.iter().map(|(_, row)| row.time).sum();
    let mut text = format!(
        "\nlimits of {threads} threads: {:.1} GFLOP/s in f32, {:.1} GB/s from memory; above 100%: read from caches, or fewer operations\n\
         {:24} {:>6} {:>10} {:>7} {:>9} {:>7} {:>7}\n",
        machine.flops / 1e9,
        machine.bandwidth / 1e9,
        "operator",
        "nodes",
        "ms/run",
        "share",
        "GFLOP/s",
        "GB/s",
        "limit"
    );
    for (op, row) in rows {
        let per_run = row.time.as_secs_f64() / f64::from(runs);
        let share = 100.0 * row.time.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        let rate = |of: u64| if of > 0 && per_run > 0.0 { format!("{:.1}", of as f64 / per_run / 1e9) } else { "-".to_owned() };
        let limit = if per_run > 0.0 { format!("{:.0}%", 100.0 * row.least / per_run) } else { "-".to_owned() };
        let (flops, bytes) = (rate(row.flops), rate(row.bytes));
        let line = format!("{op:24} {:>6} {:>10.4} {share:>6.1}% {flops:>9} {bytes:>7} {limit:>7}  {}", row.nodes, per_run * 1e3, row.of);
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// The shapes of what a node reads and computes, and its name.
fn operands(model: &Model, plan: &Plan, position: usize) -> String {
    let node = &model.graph().nodes[position];
    let list = |values: &[Option<ValueId>]| {
        let shapes = values.iter().flatten().map(|id| plan.shape(*id).map_or_else(|| "[…]".to_owned(), |shape| format!("{shape:?}")));
        shapes.collect::<Vec<_>>().join(", ")
    };
    format!("{} → {}  {}", list(&node.inputs), list(&node.outputs), node.name)
}
