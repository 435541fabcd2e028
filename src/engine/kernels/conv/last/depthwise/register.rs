//! Registers of channels: what the sums of a depthwise convolution are kept in, by instruction set.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

use crate::engine::kernels::vector::math;

/// Some neighbouring channels. The functions become instructions where they are inlined into one that is compiled for the instruction set.
///
/// # Safety
///
/// Of all functions: the machine has the instructions of the type; what is read or written has [`Register::LANES`] elements.
pub(super) trait Register: Copy {
    const LANES: usize;

    unsafe fn zero() -> Self;

    unsafe fn read(from: *const f32) -> Self;

    unsafe fn write(self, to: *mut f32);

    unsafe fn plus(self, other: Self) -> Self;

    /// `self + a * b`, rounded once if there is an instruction for it.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;

    /// Limited to `low..=high`; NaN stays NaN.
    unsafe fn limited(self, low: f32, high: f32) -> Self;
}

/// Where there are no others: loops that the compiler makes vector code of.
impl Register for [f32; 8] {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; 8]
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
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|lane| math::fma::<false>(a[lane], b[lane], self[lane]))
    }

    #[inline(always)]
    unsafe fn limited(self, low: f32, high: f32) -> Self {
        self.map(|value| math::clamp(value, low, high))
    }
}

/// A register of x86: `min` and `max` answer with their second operand if either is NaN.
#[cfg(target_arch = "x86_64")]
macro_rules! register {
    ($register:ty, $lanes:literal, $zero:ident, $read:ident, $write:ident, $add:ident, $fma:ident, $set:ident, $min:ident, $max:ident) => {
        impl Register for $register {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the caller's promise.
                unsafe { $zero() }
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
            unsafe fn plus(self, other: Self) -> Self {
                // SAFETY: the caller's promise.
                unsafe { $add(self, other) }
            }

            #[inline(always)]
            unsafe fn plus_product(self, a: Self, b: Self) -> Self {
                // SAFETY: the caller's promise.
                unsafe { $fma(a, b, self) }
            }

            #[inline(always)]
            unsafe fn limited(self, low: f32, high: f32) -> Self {
                // SAFETY: the caller's promise.
                unsafe { $min($set(high), $max($set(low), self)) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
register!(
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_fmadd_ps,
    _mm256_set1_ps,
    _mm256_min_ps,
    _mm256_max_ps
);
#[cfg(target_arch = "x86_64")]
register!(
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_fmadd_ps,
    _mm512_set1_ps,
    _mm512_min_ps,
    _mm512_max_ps
);
