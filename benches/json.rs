//! Reading a tensor of 3×224×224 floats on one core: from JSON, in bytes of text per second, and from the bytes of a binary
//! request, both beside a copy of the same bytes.
//!
//! `cargo bench --bench json`. Each figure is the least of many runs: what the work costs without disturbance.
#![allow(missing_docs, reason = "a benchmark has no readers of its documentation page")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use ndserve::api::decode_binary;
use ndserve::api::json::Reader;
use ndserve::engine::DType;

const LEN: usize = 3 * 224 * 224;
const RUNS: usize = 400;

fn least(mut work: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..RUNS).map(time).min().unwrap_or_default()
}

/// How a number is written.
type Form = fn(&mut String, f32);

/// An array of numbers in −1..1 that look random (Numerical Recipes' linear congruential generator).
fn text(format: Form) -> String {
    let mut state = 1_u32;
    let mut text = String::from("[");
    for i in 0..LEN {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push_str(if i == 0 { "" } else { "," });
        format(&mut text, (state >> 8) as f32 / (1 << 23) as f32 - 1.0);
    }
    text + "]"
}

fn main() {
    json();
    binary();
}

/// The bytes of a tensor that begins anywhere in a body.
fn binary() {
    let body: Vec<u8> = (0..LEN).flat_map(|i| (i as f32 / LEN as f32).to_le_bytes()).chain([0; 4]).collect();
    println!("\n| bytes behind a multiple of 4 | copy µs | decode µs | ratio |\n|---|---|---|---|");
    for offset in [0, 1, 3] {
        // The start of a large vector lies on a page.
        let bytes = &body[offset..offset + 4 * LEN];
        let copied = least(|| drop(black_box(bytes.to_vec())));
        let decoded = least(|| drop(black_box(decode_binary(DType::F32, &[1, 3, 224, 224], bytes).expect("as many as the shape has"))));
        let (copy, decode) = (copied.as_secs_f64() * 1e6, decoded.as_secs_f64() * 1e6);
        println!("| {offset} | {copy:.1} | {decode:.1} | {:.2} |", decode / copy);
    }
}

fn json() {
    let forms: [(&str, Form); 3] = [
        ("4 decimals", |text, x| _ = write!(text, "{x:.4}")),
        ("6 decimals", |text, x| _ = write!(text, "{x:.6}")),
        ("shortest", |text, x| _ = write!(text, "{x}")),
    ];
    println!("| numbers with | bytes | read ms | read MB/s | copy MB/s |\n|---|---|---|---|---|");
    for (name, form) in forms {
        let text = text(form);
        let read = least(|| {
            let (buffer, shape) = Reader::new(text.as_bytes()).tensor(DType::F32, LEN).expect("it is an array of numbers");
            assert_eq!((buffer.len(), &shape[..]), (LEN, &[LEN][..]));
            black_box(buffer);
        });
        let mut copy = Vec::with_capacity(text.len());
        let copied = least(|| {
            copy.clear();
            copy.extend_from_slice(text.as_bytes());
            black_box(&copy);
        });
        let rate = |time: Duration| text.len() as f64 / time.as_secs_f64() / 1e6;
        println!("| {name} | {} | {:.3} | {:.0} | {:.0} |", text.len(), read.as_secs_f64() * 1e3, rate(read), rate(copied));
    }
}
