//! Registers: what sums are kept in, by instruction set. Kernels whose bodies are generic over them are written once.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::{float32x4_t, vaddq_f32, vdupq_n_f32, vld1q_f32, vmaxq_f32, vminq_f32, vmulq_f32, vst1q_f32};
#[cfg(target_arch = "x86_64")]
use std::arch::asm;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _MM_HINT_T1, _mm_prefetch, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps,
    _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

use super::isa::Isa;
use super::vector::math;

/// Some neighbouring elements. The functions become instructions where they are inlined into one that is compiled for the instruction set.
///
/// # Safety
///
/// Of all functions: the machine has the instructions of the type; what is read or written has [`Register::LANES`] elements, or as many as
/// are named.
pub(super) trait Register: Copy {
    /// The instruction set that has them.
    const ISA: Isa;

    const LANES: usize;

    unsafe fn zero() -> Self;

    /// The same value in all lanes.
    unsafe fn all(value: f32) -> Self;

    unsafe fn read(from: *const f32) -> Self;

    /// The first `count` elements, [`Register::LANES`] at most; the other lanes are zero.
    #[inline(always)]
    unsafe fn read_first(from: *const f32, count: usize) -> Self {
        const { assert!(Self::LANES <= PART) };
        // SAFETY: the caller's promise, and a register is not wider than the copy.
        unsafe { Self::read(padded(from, count).as_ptr()) }
    }

    unsafe fn write(self, to: *mut f32);

    /// The first `count` lanes, [`Register::LANES`] at most.
    #[inline(always)]
    unsafe fn write_first(self, to: *mut f32, count: usize) {
        const { assert!(Self::LANES <= PART) };
        let mut values = [0.0; PART];
        // SAFETY: as for reading.
        unsafe {
            self.write(values.as_mut_ptr());
            cut(&values, to, count);
        }
    }

    /// Fetches a line of the cache into the second level: a hint, which is not taken unless a type says how.
    #[inline(always)]
    unsafe fn fetch(_: *const f32) {}

    /// The same number, of which the compiler does not know that it is, if a type says how: what is computed with it stays where it is.
    #[inline(always)]
    unsafe fn unknown(number: usize) -> usize {
        number
    }

    unsafe fn plus(self, other: Self) -> Self;

    unsafe fn times(self, other: Self) -> Self;

    /// `self + a * b`, rounded once with AVX2 and AVX-512, twice in the portable set.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;

    /// Limited to `low..=high`; NaN stays NaN.
    unsafe fn limited(self, low: f32, high: f32) -> Self;
}

/// Four elements of the portable set.
#[cfg(target_arch = "aarch64")]
pub(super) type Four = float32x4_t;
/// Four elements of the portable set.
#[cfg(not(target_arch = "aarch64"))]
pub(super) type Four = [f32; 4];

/// Where there are no others: loops that the compiler makes vector code of.
impl<const N: usize> Register for [f32; N] {
    const ISA: Isa = Isa::Scalar;
    const LANES: usize = N;

    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; N]
    }

    #[inline(always)]
    unsafe fn all(value: f32) -> Self {
        [value; N]
    }

    #[inline(always)]
    unsafe fn read(from: *const f32) -> Self {
        // SAFETY: the caller's promise; an array is aligned as its elements are.
        unsafe { from.cast::<Self>().read() }
    }

    #[inline(always)]
    unsafe fn write(self, to: *mut f32) {
        // SAFETY: the caller's promise; an array is aligned as its elements are.
        unsafe { to.cast::<Self>().write(self) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] + other[lane])
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] * other[lane])
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|lane| math::fma::<false>(a[lane], b[lane], self[lane]))
    }

    #[inline(always)]
    unsafe fn limited(self, low: f32, high: f32) -> Self {
        self.map(|value| math::clamp(value, low, high))
    }
}

/// Elements that a part of a register is copied to: those of one of AVX2. AVX-512 has masks.
const PART: usize = 8;

/// The first `count` elements, and zeros. A call, as is [`cut`]: where such a copy is inlined, the compiler makes one of it and of the whole
/// registers' way, and every row of every tile goes through memory and a copy of a length that is not known.
///
/// # Safety
///
/// `from` has `count` elements.
#[inline(never)]
unsafe fn padded(from: *const f32, count: usize) -> [f32; PART] {
    let mut values = [0.0; PART];
    // SAFETY: the caller's promise.
    values[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(from, count) });
    values
}

/// Copies the first `count` of some values.
///
/// # Safety
///
/// `to` has `count` elements, which nothing else refers to.
#[inline(never)]
unsafe fn cut(values: &[f32; PART], to: *mut f32, count: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(to, count) }.copy_from_slice(&values[..count]);
}

/// NEON, which every processor of aarch64 has. A product and a sum round separately, as they do elsewhere in the portable set.
#[cfg(target_arch = "aarch64")]
impl Register for float32x4_t {
    const ISA: Isa = Isa::Scalar;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn all(value: f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn read(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn write(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { vst1q_f32(to, self) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vaddq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vmulq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vaddq_f32(self, vmulq_f32(a, b)) }
    }

    #[inline(always)]
    unsafe fn limited(self, low: f32, high: f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vminq_f32(vdupq_n_f32(high), vmaxq_f32(vdupq_n_f32(low), self)) }
    }
}

/// The functions that are one instruction of x86: `min` and `max` answer with their second operand if either is NaN.
#[cfg(target_arch = "x86_64")]
macro_rules! instructions {
    ($zero:ident, $all:ident, $read:ident, $write:ident, $plus:ident, $times:ident, $fma:ident, $min:ident, $max:ident) => {
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller's promise.
            unsafe { $zero() }
        }

        #[inline(always)]
        unsafe fn all(value: f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $all(value) }
        }

        #[inline(always)]
        unsafe fn read(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $read(from) }
        }

        #[inline(always)]
        unsafe fn write(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { $write(to, self) }
        }

        #[inline(always)]
        unsafe fn fetch(from: *const f32) {
            // SAFETY: a hint, which every address may be given to.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
        }

        #[inline(always)]
        unsafe fn unknown(mut number: usize) -> usize {
            // SAFETY: no instruction.
            unsafe { asm!("/* {} */", inout(reg) number, options(nomem, nostack, preserves_flags)) };
            number
        }

        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $plus(self, other) }
        }

        #[inline(always)]
        unsafe fn times(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $times(self, other) }
        }

        #[inline(always)]
        unsafe fn plus_product(self, a: Self, b: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $fma(a, b, self) }
        }

        #[inline(always)]
        unsafe fn limited(self, low: f32, high: f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { $min($all(high), $max($all(low), self)) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
impl Register for __m256 {
    const ISA: Isa = Isa::Avx2;
    const LANES: usize = 8;

    instructions!(
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps,
        _mm256_min_ps,
        _mm256_max_ps
    );
}

#[cfg(target_arch = "x86_64")]
impl Register for __m512 {
    const ISA: Isa = Isa::Avx512;
    const LANES: usize = 16;

    instructions!(
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_mul_ps,
        _mm512_fmadd_ps,
        _mm512_min_ps,
        _mm512_max_ps
    );

    #[inline(always)]
    unsafe fn read_first(from: *const f32, count: usize) -> Self {
        // SAFETY: the caller's promise: the mask leaves out what lies behind.
        unsafe { _mm512_maskz_loadu_ps(((1_u32 << count) - 1) as u16, from) }
    }

    #[inline(always)]
    unsafe fn write_first(self, to: *mut f32, count: usize) {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(to, ((1_u32 << count) - 1) as u16, self) }
    }
}
