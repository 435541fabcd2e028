//! Everything that speaks to the tile unit (AMX): the permission, its configuration, the product of tiles.
//!
//! Inline assembly, because the intrinsics are not stable. The unit has eight registers of 16 rows of 64 bytes. Their content and
//! shape survive from one block of assembly to the next, as the compiler neither knows nor uses them; [`Configured`] brackets
//! that: it is made before the first tile instruction of a thread's piece of work and clears the unit when it is dropped.

use std::arch::asm;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::{Line, Sums, TILE_LINES};

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

    /// `sums += a · b`, or `sums = a · b` if `first`: `R` tiles of rows by two tiles of columns. `a` holds `R` tiles and `b` two
    /// for each of `steps`. Panics if a slice is too short.
    ///
    /// While it runs, two tiles per step from `next` on are fetched into the first-level cache, for the call that follows, and with
    /// two tiles of rows half a tile per step from `far` on into the second: hardware does not foresee loads of tiles.
    #[inline]
    pub(super) fn multiply<const R: usize>(
        &self,
        (a, b): (&[Line], &[Line]),
        steps: usize,
        first: bool,
        (next, far): (*const Line, *const Line),
        sums: &mut Sums,
    ) {
        assert!(R == 1 || R == 2);
        assert!(a.len() >= steps * R * TILE_LINES && b.len() >= steps * 2 * TILE_LINES, "operands of {steps} steps");
        let c = sums.0.as_mut_ptr().cast::<f32>();
        let (a, b) = (a.as_ptr(), b.as_ptr());
        // SAFETY: `self` shows that the unit is configured; the assertion, that every tile of `steps` steps lies in its
        // slice (a tile is 1 KiB); `sums` has four tiles. A prefetch may go anywhere.
        unsafe {
            match (first, R) {
                (true, _) => {
                    asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nomem, nostack, preserves_flags))
                }
                (false, 1) => asm!("tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 1024]",
                    c = in(reg) c, s = in(reg) 64_usize, options(readonly, nostack, preserves_flags)),
                (false, _) => asm!("tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 1024]",
                    "tileloadd tmm2, [{c} + {s} + 2048]", "tileloadd tmm3, [{c} + {s} + 3072]",
                    c = in(reg) c, s = in(reg) 64_usize, options(readonly, nostack, preserves_flags)),
            }
            match (steps, R) {
                (0, _) => {}
                (_, 1) => one_by_two(a, b, steps, next),
                _ => two_by_two(a, b, steps, next, far),
            }
            match R {
                1 => asm!("tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 1024], tmm1",
                    c = in(reg) c, s = in(reg) 64_usize, options(nostack, preserves_flags)),
                _ => asm!("tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 1024], tmm1",
                    "tilestored [{c} + {s} + 2048], tmm2", "tilestored [{c} + {s} + 3072], tmm3",
                    c = in(reg) c, s = in(reg) 64_usize, options(nostack, preserves_flags)),
            }
        }
    }
}

impl Configured {
    /// Fetches the two lines from `to` on, to be written.
    #[inline(always)]
    pub(super) fn expect(&self, to: *const f32) {
        // SAFETY: a prefetch may go anywhere.
        unsafe { asm!("prefetchw [{0}]", "prefetchw [{0} + 64]", in(reg) to, options(nostack, preserves_flags, readonly)) };
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: the unit is configured; without state, the system has nothing to save when it switches threads.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// # Safety
///
/// The unit is configured; `a` and `b` each point at two tiles for each of `steps` steps, at least one.
#[inline]
unsafe fn two_by_two(a: *const Line, b: *const Line, steps: usize, next: *const Line, far: *const Line) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "2:",
            "tileloadd tmm4, [{a} + {s}]",
            "tileloadd tmm6, [{b} + {s}]",
            "prefetcht0 [{f} + 0]", "prefetcht0 [{f} + 64]", "prefetcht0 [{f} + 128]", "prefetcht0 [{f} + 192]",
            "prefetcht0 [{f} + 256]", "prefetcht0 [{f} + 320]", "prefetcht0 [{f} + 384]", "prefetcht0 [{f} + 448]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {s} + 1024]",
            "prefetcht0 [{f} + 512]", "prefetcht0 [{f} + 576]", "prefetcht0 [{f} + 640]", "prefetcht0 [{f} + 704]",
            "prefetcht0 [{f} + 768]", "prefetcht0 [{f} + 832]", "prefetcht0 [{f} + 896]", "prefetcht0 [{f} + 960]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {s} + 1024]",
            "prefetcht0 [{f} + 1024]", "prefetcht0 [{f} + 1088]", "prefetcht0 [{f} + 1152]", "prefetcht0 [{f} + 1216]",
            "prefetcht0 [{f} + 1280]", "prefetcht0 [{f} + 1344]", "prefetcht0 [{f} + 1408]", "prefetcht0 [{f} + 1472]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "prefetcht1 [{g} + 0]", "prefetcht1 [{g} + 64]", "prefetcht1 [{g} + 128]", "prefetcht1 [{g} + 192]",
            "prefetcht1 [{g} + 256]", "prefetcht1 [{g} + 320]", "prefetcht1 [{g} + 384]", "prefetcht1 [{g} + 448]",
            "prefetcht0 [{f} + 1536]", "prefetcht0 [{f} + 1600]", "prefetcht0 [{f} + 1664]", "prefetcht0 [{f} + 1728]",
            "prefetcht0 [{f} + 1792]", "prefetcht0 [{f} + 1856]", "prefetcht0 [{f} + 1920]", "prefetcht0 [{f} + 1984]",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "add {f}, 2048",
            "add {g}, 512",
            "dec {n}",
            "jnz 2b",
            a = inout(reg) a => _, b = inout(reg) b => _, f = inout(reg) next => _, g = inout(reg) far => _, n = inout(reg) steps => _, s = in(reg) 64_usize,
            options(readonly, nostack),
        );
    }
}

/// # Safety
///
/// The unit is configured; `a` points at one tile and `b` at two for each of `steps` steps, at least one.
#[inline]
unsafe fn one_by_two(a: *const Line, b: *const Line, steps: usize, next: *const Line) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "2:",
            "tileloadd tmm4, [{a} + {s}]",
            "tileloadd tmm6, [{b} + {s}]",
            "prefetcht0 [{f} + 0]", "prefetcht0 [{f} + 64]", "prefetcht0 [{f} + 128]", "prefetcht0 [{f} + 192]",
            "prefetcht0 [{f} + 256]", "prefetcht0 [{f} + 320]", "prefetcht0 [{f} + 384]", "prefetcht0 [{f} + 448]",
            "prefetcht0 [{f} + 512]", "prefetcht0 [{f} + 576]", "prefetcht0 [{f} + 640]", "prefetcht0 [{f} + 704]",
            "prefetcht0 [{f} + 768]", "prefetcht0 [{f} + 832]", "prefetcht0 [{f} + 896]", "prefetcht0 [{f} + 960]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {s} + 1024]",
            "prefetcht0 [{f} + 1024]", "prefetcht0 [{f} + 1088]", "prefetcht0 [{f} + 1152]", "prefetcht0 [{f} + 1216]",
            "prefetcht0 [{f} + 1280]", "prefetcht0 [{f} + 1344]", "prefetcht0 [{f} + 1408]", "prefetcht0 [{f} + 1472]",
            "prefetcht0 [{f} + 1536]", "prefetcht0 [{f} + 1600]", "prefetcht0 [{f} + 1664]", "prefetcht0 [{f} + 1728]",
            "prefetcht0 [{f} + 1792]", "prefetcht0 [{f} + 1856]", "prefetcht0 [{f} + 1920]", "prefetcht0 [{f} + 1984]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 1024",
            "add {b}, 2048",
            "add {f}, 2048",
            "dec {n}",
            "jnz 2b",
            a = inout(reg) a => _, b = inout(reg) b => _, f = inout(reg) next => _, n = inout(reg) steps => _, s = in(reg) 64_usize,
            options(readonly, nostack),
        );
    }
}
