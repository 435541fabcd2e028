//! The product on the tile unit (AMX), in inline assembly for the reasons given in `bf16/amx.rs`, which configures the unit.

use std::arch::asm;
use std::ops::Range;
use std::sync::OnceLock;

use super::{Left, Line, Rows, STEPS_BLOCK, STRIP, Sums, TILE_LINES};
use crate::engine::kernels::bf16::amx::{Configured, permitted};

/// Whether the unit multiplies 8-bit integers, and may be used.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    const AMX_INT8: u32 = 1 << 25;
    *AVAILABLE.get_or_init(|| permitted() && std::arch::x86_64::__cpuid_count(7, 0).edx & AMX_INT8 != 0)
}

/// How far ahead of its use the panel is fetched where no other strip follows, in bytes: eight steps.
const AHEAD: usize = 8 * 2048;

/// Bytes of a panel per step, for the addresses to fetch.
static PANEL_OFFSETS: [usize; STEPS_BLOCK] = {
    let mut offsets = [0; STEPS_BLOCK];
    let mut step = 0;
    while step < STEPS_BLOCK {
        offsets[step] = step * 2048;
        step += 1;
    }
    offsets
};

/// What one call reads.
struct Operands {
    a: *const u8,
    stride: usize,
    offsets: *const usize,
    b: *const Line,
    steps: usize,
    /// What to fetch: lines of `fetch_stride` bytes from `fetch + fetch_offsets[step]` on.
    fetch: *const u8,
    fetch_stride: usize,
    fetch_offsets: *const usize,
}

/// The caller has checked that whole tiles of the rows lie in the data, and that there are lines and offsets for all steps.
pub(super) fn multiply(
    unit: &Configured,
    rows: &Rows<'_>,
    panel: &[Line],
    steps: Range<usize>,
    next: Option<(&Left<'_>, usize)>,
    sums: &mut Sums,
) {
    assert!(steps.len() <= STEPS_BLOCK && rows.count <= STRIP);
    let left = rows.left;
    let b = panel[steps.start * 2 * TILE_LINES..].as_ptr();
    let (fetch, fetch_stride, fetch_offsets) = match next {
        Some((left, row)) => (left.data.as_ptr().wrapping_add(row * left.stride), left.stride, left.offsets[steps.start..].as_ptr()),
        None => (b.cast::<u8>().wrapping_add(AHEAD), 64, PANEL_OFFSETS.as_ptr()),
    };
    let operands = Operands {
        a: left.data.as_ptr().wrapping_add(rows.start * left.stride),
        stride: left.stride,
        offsets: left.offsets[steps.start..].as_ptr(),
        b,
        steps: steps.len(),
        fetch,
        fetch_stride,
        fetch_offsets,
    };
    let c = sums.0.as_mut_ptr().cast::<i32>();
    let two = rows.count > TILE_LINES;
    let _ = unit;
    // SAFETY: `unit` shows that the unit is configured and `available` that it multiplies these; the caller's checks are that
    // every tile lies in its slice; `sums` has four tiles of 1 KiB. A prefetch may go anywhere.
    unsafe {
        match (rows.first, two) {
            (true, _) => {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nomem, nostack, preserves_flags));
            }
            (false, false) => asm!("tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 1024]",
                c = in(reg) c, s = in(reg) 64_usize, options(readonly, nostack, preserves_flags)),
            (false, true) => asm!("tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 1024]",
                "tileloadd tmm2, [{c} + {s} + 2048]", "tileloadd tmm3, [{c} + {s} + 3072]",
                c = in(reg) c, s = in(reg) 64_usize, options(readonly, nostack, preserves_flags)),
        }
        match (operands.steps, two) {
            (0, _) => {}
            (_, false) => one_by_two(&operands),
            (_, true) => two_by_two(&operands),
        }
        if two {
            asm!("tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 1024], tmm1",
                "tilestored [{c} + {s} + 2048], tmm2", "tilestored [{c} + {s} + 3072], tmm3",
                c = in(reg) c, s = in(reg) 64_usize, options(nostack, preserves_flags));
        } else {
            asm!("tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 1024], tmm1",
                c = in(reg) c, s = in(reg) 64_usize, options(nostack, preserves_flags));
        }
    }
}

/// Eight prefetches of lines `{t}`, `{t} + {fs}`, …, and `{t}` moves behind them.
macro_rules! fetch_eight {
    () => {
        "prefetcht0 [{t}]\nprefetcht0 [{t} + {fs}]\nprefetcht0 [{t} + 2*{fs}]\nlea {t}, [{t} + 2*{fs}]\nadd {t}, {fs}\n\
         prefetcht0 [{t}]\nprefetcht0 [{t} + {fs}]\nprefetcht0 [{t} + 2*{fs}]\nlea {t}, [{t} + 2*{fs}]\nadd {t}, {fs}\n\
         prefetcht0 [{t}]\nprefetcht0 [{t} + {fs}]\nlea {t}, [{t} + 2*{fs}]"
    };
}

/// # Safety
///
/// The unit is configured; the operands have 32 rows and two tiles for each of their steps, at least one.
#[inline]
unsafe fn two_by_two(o: &Operands) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "2:",
            "mov {o}, [{p}]",
            "mov {t}, [{q}]",
            "add {o}, {a}",
            "add {t}, {f}",
            "tileloadd tmm4, [{o} + {lda}]",
            "tileloadd tmm6, [{b} + {s}]",
            fetch_eight!(),
            "tdpbusd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {s} + 1024]",
            fetch_eight!(),
            "tdpbusd tmm1, tmm4, tmm7",
            "lea {o}, [{o} + 8*{lda}]",
            "lea {o}, [{o} + 8*{lda}]",
            "tileloadd tmm5, [{o} + {lda}]",
            fetch_eight!(),
            "tdpbusd tmm2, tmm5, tmm6",
            fetch_eight!(),
            "tdpbusd tmm3, tmm5, tmm7",
            "add {p}, 8",
            "add {q}, 8",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            a = in(reg) o.a, lda = in(reg) o.stride, p = inout(reg) o.offsets => _, b = inout(reg) o.b => _,
            n = inout(reg) o.steps => _, s = in(reg) 64_usize, f = in(reg) o.fetch, fs = in(reg) o.fetch_stride,
            q = inout(reg) o.fetch_offsets => _, o = out(reg) _, t = out(reg) _,
            options(readonly, nostack),
        );
    }
}

/// # Safety
///
/// The unit is configured; the operands have 16 rows and two tiles for each of their steps, at least one.
#[inline]
unsafe fn one_by_two(o: &Operands) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "2:",
            "mov {o}, [{p}]",
            "mov {t}, [{q}]",
            "add {o}, {a}",
            "add {t}, {f}",
            "tileloadd tmm4, [{o} + {lda}]",
            "tileloadd tmm6, [{b} + {s}]",
            fetch_eight!(),
            fetch_eight!(),
            "tdpbusd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {s} + 1024]",
            fetch_eight!(),
            fetch_eight!(),
            "tdpbusd tmm1, tmm4, tmm7",
            "add {p}, 8",
            "add {q}, 8",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            a = in(reg) o.a, lda = in(reg) o.stride, p = inout(reg) o.offsets => _, b = inout(reg) o.b => _,
            n = inout(reg) o.steps => _, s = in(reg) 64_usize, f = in(reg) o.fetch, fs = in(reg) o.fetch_stride,
            q = inout(reg) o.fetch_offsets => _, o = out(reg) _, t = out(reg) _,
            options(readonly, nostack),
        );
    }
}
