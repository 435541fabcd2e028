//! Rows of images: every second element, pairs of neighbouring channels rounded to bf16, and rows put beside others.

use super::bf16::pair;
use super::isa::Isa;

/// `to[i] = from[2 * i]`, as far as both reach.
pub(crate) fn every_second<T: Copy>(isa: Isa, from: &[T], to: &mut [T]) {
    let count = to.len().min(from.len().div_ceil(2));
    let (from, to) = (&from[..(2 * count).min(from.len())], &mut to[..count]);
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 && size_of::<T>() == 4 {
        isa.require();
        // SAFETY: `require` has shown that this machine has the features it is compiled for; an element has 4 bytes.
        return unsafe { avx512::every_second(from, to) };
    }
    let _ = isa;
    to.iter_mut().zip(from.iter().step_by(2)).for_each(|(to, from)| *to = *from);
}

/// Copies rows of `len` elements, which lie behind each other in `from`, to where they begin every `pitch` elements in `to`; the last as
/// far as `to` reaches. Short as the rows of channels are, a call of the system's copy for each costs more than the copy. Panics if `len`
/// exceeds `pitch`.
pub fn copy_rows(from: &[f32], len: usize, to: &mut [f32], pitch: usize) {
    const PIECE: usize = 16;
    assert!(len <= pitch, "rows of {len} every {pitch}");
    if len == 0 {
        return;
    }
    for (from, to) in from.chunks_exact(len).zip(to.chunks_mut(pitch)) {
        let to = &mut to[..len];
        match from.last_chunk::<PIECE>() {
            Some(tail) => {
                to.as_chunks_mut::<PIECE>().0.iter_mut().zip(from.as_chunks::<PIECE>().0).for_each(|(to, from)| *to = *from);
                *to.last_chunk_mut().expect("as long") = *tail;
            }
            None => to.iter_mut().zip(from).for_each(|(to, from)| *to = *from),
        }
    }
}

/// `to[i]` is the pair of `even[i]` and `odd[i]`, as far as all reach.
pub(crate) fn rounded_pairs(isa: Isa, even: &[f32], odd: &[f32], to: &mut [u32]) {
    let count = to.len().min(even.len()).min(odd.len());
    let (even, odd, to) = (&even[..count], &odd[..count], &mut to[..count]);
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx {
        isa.require();
        // SAFETY: `require` has shown that this machine has the features it is compiled for.
        return unsafe { avx512::rounded_pairs(even, odd, to) };
    }
    let _ = isa;
    to.iter_mut().zip(even.iter().zip(odd)).for_each(|(to, (even, odd))| *to = pair(*even, *odd));
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_si512, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi32,
        _mm512_maskz_loadu_ps, _mm512_permutex2var_epi32, _mm512_permutexvar_epi16, _mm512_storeu_si512,
    };

    const LANES: usize = 16;

    /// # Safety
    ///
    /// `T` has 4 bytes; `from` has twice the elements of `to`, or one less; the machine has the feature named below.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn every_second<T: Copy>(from: &[T], to: &mut [T]) {
        let index: [u32; LANES] = std::array::from_fn(|i| 2 * i as u32);
        // SAFETY: the array has 64 bytes.
        let index = unsafe { _mm512_loadu_si512(index.as_ptr().cast()) };
        let steps = from.len() / (2 * LANES);
        for step in 0..steps {
            // SAFETY: `from` has 32 elements from here on, and so has `to` 16.
            unsafe {
                let low = _mm512_loadu_si512(from.as_ptr().add(step * 2 * LANES).cast());
                let high = _mm512_loadu_si512(from.as_ptr().add(step * 2 * LANES + LANES).cast());
                _mm512_storeu_si512(to.as_mut_ptr().add(step * LANES).cast(), _mm512_permutex2var_epi32(low, index, high));
            }
        }
        let rest = from.len() - steps * 2 * LANES;
        if rest > 0 {
            let mask = |count: usize| ((1_u32 << count.min(LANES)) - 1) as u16;
            // SAFETY: the masks leave out what lies beyond the `rest` elements of `from` and the half as many, rounded up, of `to`.
            unsafe {
                let (from, to) = (from.as_ptr().add(steps * 2 * LANES), to.as_mut_ptr().add(steps * LANES));
                let low = _mm512_maskz_loadu_epi32(mask(rest), from.cast());
                let high = _mm512_maskz_loadu_epi32(mask(rest.saturating_sub(LANES)), from.wrapping_add(LANES).cast());
                _mm512_mask_storeu_epi32(to.cast(), mask(rest.div_ceil(2)), _mm512_permutex2var_epi32(low, index, high));
            }
        }
    }

    /// Panics unless all lengths are equal.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn rounded_pairs(even: &[f32], odd: &[f32], to: &mut [u32]) {
        assert!(even.len() == to.len() && odd.len() == to.len(), "rows of one length");
        // The conversion puts the even halves into the lower half of the register.
        let index: [u16; 2 * LANES] = std::array::from_fn(|i| (i / 2 + i % 2 * LANES) as u16);
        // SAFETY: the array has 64 bytes.
        let index = unsafe { _mm512_loadu_si512(index.as_ptr().cast()) };
        for at in (0..to.len()).step_by(LANES) {
            let mask = ((1_u32 << (to.len() - at).min(LANES)) - 1) as u16;
            // SAFETY: the mask leaves out what lies beyond the slices, which are equally long.
            let (even, odd) =
                unsafe { (_mm512_maskz_loadu_ps(mask, even.as_ptr().add(at)), _mm512_maskz_loadu_ps(mask, odd.as_ptr().add(at))) };
            // SAFETY: both are 64 bytes without padding, and every bit pattern is valid.
            let halves = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even)) };
            // SAFETY: as for the loads.
            unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().add(at).cast(), mask, _mm512_permutexvar_epi16(index, halves)) };
        }
    }
}
