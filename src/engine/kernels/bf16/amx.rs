//! Everything that speaks to the tile unit (AMX): the permission, its configuration, the product of tiles.
//!
//! Inline assembly, because the intrinsics are not stable. The unit has eight registers of 16 rows of 64 bytes. Their content and
//! shape survive from one block of assembly to the next, as the compiler neither knows nor uses them; [`Configured`] brackets
//! that: it is made before the first tile instruction of a thread's piece of work and clears the unit when it is dropped.

use std::arch::asm;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;

use super::{Line, Rows, STRIP, Sums, TILE_LINES};

/// Whether the machine has the unit, with products of bf16, and the system lets this process use it.
///
/// Asks once. On Linux the permission holds for all threads of the process, those that exist and those to come.
pub(crate) fn permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| present() && request())
}

/// What CPUID and the operating system's register mask say.
fn present() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATE: u32 = 1 << 17 | 1 << 18;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 || __cpuid_count(7, 0).edx & AMX_BF16_AND_TILE != AMX_BF16_AND_TILE {
        return false;
    }
    let enabled: u32;
    // SAFETY: XGETBV of register 0 reads a mask and exists where OSXSAVE is set; it touches no memory.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack, preserves_flags)) };
    enabled & TILE_STATE == TILE_STATE
}

/// Asks Linux for the state of the tiles, which it gives out on request only (`arch_prctl(2)`).
#[cfg(target_os = "linux")]
fn request() -> bool {
    const SYS_ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: isize = 0x1023;
    const XFEATURE_XTILEDATA: isize = 18;
    let answer: isize;
    // SAFETY: the system call takes two numbers, reads and writes no memory of ours, and clobbers rcx and r11 as all do.
    unsafe {
        asm!("syscall", inlateout("rax") SYS_ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn request() -> bool {
    false
}

/// Proof that this thread's unit is configured: all registers are 16 rows of 64 bytes.
#[derive(Debug)]
pub(crate) struct Configured {
    /// The configuration is the thread's: the proof must not go to another.
    thread: PhantomData<*const ()>,
}

#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configured {
    /// Panics where the unit may not be used.
    pub(crate) fn new() -> Configured {
        assert!(permitted(), "the tile unit is not available on this machine");
        let mut configuration = Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].fill(64);
        configuration.rows[..8].fill(16);
        // SAFETY: `permitted` has shown that the instruction exists and may be used; it reads the 64 bytes of the structure.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly, preserves_flags)) };
        Configured { thread: PhantomData }
    }

    /// `sums += a · b`, or `sums = a · b` if `first`, of a strip's tiles for some steps. Panics if a slice is too short.
    #[inline]
    pub(super) fn multiply(&self, piece: &Piece<'_>, sums: &mut Sums) {
        let Piece { rows, steps, panel, first, .. } = piece;
        let two = rows.count > TILE_LINES;
        assert!(steps.end <= rows.offsets.len() && panel.len() >= steps.end * 2 * TILE_LINES, "operands of steps {steps:?}");
        assert!(rows.count <= STRIP, "a strip of {} rows", rows.count);
        let c = sums.0.as_mut_ptr().cast::<f32>();
        // SAFETY: `self` shows that the unit is configured; the assertions, and what `Rows` promises, that every tile of the steps lies in
        // its slice (a tile is 1 KiB); `sums` has four tiles. A prefetch may go anywhere.
        unsafe {
            match (first, two) {
                (true, _) => {
                    asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nomem, nostack, preserves_flags))
                }
                (false, false) => asm!("tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 1024]",
                    c = in(reg) c, s = in(reg) 64_usize, options(readonly, nostack, preserves_flags)),
                (false, true) => asm!("tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 1024]",
                    "tileloadd tmm2, [{c} + {s} + 2048]", "tileloadd tmm3, [{c} + {s} + 3072]",
                    c = in(reg) c, s = in(reg) 64_usize, options(readonly, nostack, preserves_flags)),
            }
            if !steps.is_empty() {
                let product = PRODUCTS[usize::from(two)][piece.fetch.1 as usize][usize::from(piece.touch.is_some())];
                product(piece);
            }
            match two {
                false => asm!("tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 1024], tmm1",
                    c = in(reg) c, s = in(reg) 64_usize, options(nostack, preserves_flags)),
                true => asm!("tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 1024], tmm1",
                    "tilestored [{c} + {s} + 2048], tmm2", "tilestored [{c} + {s} + 3072], tmm3",
                    c = in(reg) c, s = in(reg) 64_usize, options(nostack, preserves_flags)),
            }
        }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: the unit is configured; without state, the system has nothing to save when it switches threads.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// What a call multiplies, and what it asks for meanwhile: hardware does not foresee loads of tiles.
pub(super) struct Piece<'a> {
    /// The strip's rows; a second tile is there if there are more than 16.
    pub(super) rows: Rows<'a>,
    pub(super) steps: Range<usize>,
    pub(super) panel: &'a [Line],
    /// Whether the sums start from zero.
    pub(super) first: bool,
    /// What to fetch, and how much of it per step.
    pub(super) fetch: (*const Line, Pace),
    /// The rows of the output, two lines of each, `1` elements apart, to be written next.
    pub(super) touch: Option<(*const f32, usize)>,
}

/// How much of a panel's step a strip fetches: into the second-level cache if others fetch the rest, all of it into the first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    Quarter,
    Half,
    All,
}

impl Pace {
    /// Lines per step.
    pub(super) fn lines(self) -> usize {
        8 << self as usize
    }
}

/// The inner loop for one or two tiles of rows by two tiles of columns.
///
/// # Safety
///
/// The unit is configured; the rows and the panel have tiles for all steps of the piece, of which there is at least one.
type Product = unsafe fn(&Piece<'_>);

/// The inner loops: by whether there are two tiles of rows, by [`Pace`], by whether the output is fetched.
const PRODUCTS: [[[Product; 2]; 3]; 2] = [
    [[one_8, one_8_touching], [one_16, one_16_touching], [one_32, one_32_touching]],
    [[two_8, two_8_touching], [two_16, two_16_touching], [two_32, two_32_touching]],
];

/// A quarter of the lines that a step fetches.
macro_rules! fetch {
    (8) => {
        "prefetcht1 [{f}]\nprefetcht1 [{f} + 64]\nadd {f}, 128"
    };
    (16) => {
        "prefetcht1 [{f}]\nprefetcht1 [{f} + 64]\nprefetcht1 [{f} + 128]\nprefetcht1 [{f} + 192]\nadd {f}, 256"
    };
    (32) => {
        "prefetcht0 [{f}]\nprefetcht0 [{f} + 64]\nprefetcht0 [{f} + 128]\nprefetcht0 [{f} + 192]\n\
         prefetcht0 [{f} + 256]\nprefetcht0 [{f} + 320]\nprefetcht0 [{f} + 384]\nprefetcht0 [{f} + 448]\n\
         prefetcht1 [{f} + 65536]\nprefetcht1 [{f} + 65792]\nadd {f}, 512"
    };
}

/// A row of the output.
macro_rules! touch {
    (true) => {
        "prefetchw [{c}]\nprefetchw [{c} + 64]\nadd {c}, {ldc}"
    };
    (false) => {
        "/* {c} {ldc} */"
    };
}

/// The loop of a [`Product`]. The tiles of rows are `{o}` and `{d}` behind it, rows `{s}` apart.
macro_rules! product {
    ($name:ident, two, $fetch:tt, $touch:tt) => {
        product!(
            $name, $fetch, $touch,
            "tdpbf16ps tmm1, tmm4, tmm7\nadd {o}, {d}\ntileloadd tmm5, [{o} + {s}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7"
        );
    };
    ($name:ident, one, $fetch:tt, $touch:tt) => {
        product!($name, $fetch, $touch, "tdpbf16ps tmm1, tmm4, tmm7", "/* {d} */", "");
    };
    ($name:ident, $fetch:tt, $touch:tt, $second:literal, $third:literal, $fourth:literal) => {
        /// # Safety
        ///
        /// As for [`Product`].
        unsafe fn $name(piece: &Piece<'_>) {
            let Piece { rows, steps, panel, .. } = piece;
            let (c, ldc) = piece.touch.unwrap_or((std::ptr::null(), 0));
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    "2:",
                    "mov {o}, [{p}]",
                    "add {o}, {a}",
                    "tileloadd tmm4, [{o} + {s}]",
                    "tileloadd tmm6, [{b} + {l}]",
                    fetch!($fetch),
                    touch!($touch),
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {l} + 1024]",
                    fetch!($fetch),
                    touch!($touch),
                    $second,
                    fetch!($fetch),
                    touch!($touch),
                    $third,
                    fetch!($fetch),
                    touch!($touch),
                    $fourth,
                    "add {p}, 8",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    a = in(reg) rows.lines.as_ptr(),
                    p = inout(reg) rows.offsets[steps.start..].as_ptr() => _,
                    b = inout(reg) panel[steps.start * 2 * TILE_LINES..].as_ptr() => _,
                    f = inout(reg) piece.fetch.0 => _,
                    c = inout(reg) c => _,
                    ldc = in(reg) ldc * size_of::<f32>(),
                    n = inout(reg) steps.len() => _,
                    s = in(reg) rows.stride * size_of::<Line>(),
                    d = in(reg) rows.tile * size_of::<Line>(),
                    l = in(reg) 64_usize,
                    o = out(reg) _,
                    options(readonly, nostack),
                );
            }
        }
    };
}

product!(two_8, two, 8, false);
product!(two_8_touching, two, 8, true);
product!(two_16, two, 16, false);
product!(two_16_touching, two, 16, true);
product!(two_32, two, 32, false);
product!(two_32_touching, two, 32, true);
product!(one_8, one, 8, false);
product!(one_8_touching, one, 8, true);
product!(one_16, one, 16, false);
product!(one_16_touching, one, 16, true);
product!(one_32, one, 32, false);
product!(one_32_touching, one, 32, true);
