//! How fast a thread computes and reads memory at most: what the speed of operators is measured against.

use std::hint::black_box;
use std::time::Instant;

use super::isa::Isa;
use super::vector;

/// What the factors of an operator's sums are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// Numbers of 32 bits, or what is computed as such.
    #[default]
    F32,
    /// Numbers rounded to bf16.
    Bf16,
    /// 8-bit integers.
    Int8,
}

impl Arithmetic {
    /// How many times the operations of f32 the instructions do in the same time. With AVX2 and AVX-512 an instruction takes four bytes in
    /// the place of one f32; bf16 is computed as f32 there. A product of tiles (AMX) takes 16 cycles (Intel, *Optimization Reference
    /// Manual*, "TMUL"): 16 · 16 · 32 multiply-adds of bf16 or 16 · 16 · 64 of bytes, where two units of AVX-512 do 16 · 32 of f32.
    pub fn times_f32(self, isa: Isa) -> f64 {
        match (self, isa) {
            (Arithmetic::Bf16, Isa::Amx) => 16.0,
            (Arithmetic::Int8, Isa::Amx) => 32.0,
            (Arithmetic::Int8, Isa::Avx2 | Isa::Avx512) => 4.0,
            _ => 1.0,
        }
    }
}

/// Operations of multiply-adds in f32 a second, two for each: independent chains that never leave the registers. Takes some 10 ms.
pub fn peak_flops(isa: Isa) -> f64 {
    const ROUNDS: usize = 500_000;
    isa.require();
    let (lanes, chains): (usize, fn(usize)) = match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `require` has shown that this machine has the features it is compiled for.
        Isa::Avx512 | Isa::Amx => (16, |rounds| unsafe { x86::chains_512(rounds) }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => (8, |rounds| unsafe { x86::chains_256(rounds) }),
        _ => (4, chains_128),
    };
    (2 * CHAINS * lanes * ROUNDS) as f64 / fastest(|| chains(ROUNDS))
}

/// Bytes a second that are read from memory, and summed. `buffer` is larger than the caches, and written to before.
pub fn read_bandwidth(isa: Isa, buffer: &[f32]) -> f64 {
    size_of_val(buffer) as f64
        / fastest(|| {
            black_box(vector::sum(isa, black_box(buffer)));
        })
}

/// Multiply-adds that do not wait for each other: two units times four to five cycles, and some more.
const CHAINS: usize = 12;

/// Seconds of the fastest of some calls.
fn fastest(mut run: impl FnMut()) -> f64 {
    let one = |()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    [(); 7].map(one).into_iter().fold(f64::INFINITY, f64::min).max(f64::MIN_POSITIVE)
}

/// What every machine of the architecture has: a register of four.
fn chains_128(rounds: usize) {
    let factor = black_box(0.999_f32);
    let mut sums = black_box([[1.0_f32; 4]; CHAINS]);
    for _ in 0..rounds {
        sums.as_flattened_mut().iter_mut().for_each(|sum| *sum = *sum * factor + factor);
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};
    use std::hint::black_box;

    use super::CHAINS;

    macro_rules! chains {
        ($name:ident, $features:literal, $set:ident, $multiply_add:ident) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(rounds: usize) {
                let factor = $set(black_box(0.999));
                let mut sums = [$set(1.0); CHAINS];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = $multiply_add(*sum, factor, factor);
                    }
                }
                black_box(sums);
            }
        };
    }
    chains!(chains_256, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps);
    chains!(chains_512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_a_peak() {
        for isa in Isa::available() {
            // Without optimisation it is a hundredth of what the processor can do.
            let peak = peak_flops(isa);
            assert!((1e7..1e12).contains(&peak), "{isa}: {peak:e}");
            for arithmetic in [Arithmetic::F32, Arithmetic::Bf16, Arithmetic::Int8] {
                assert!(arithmetic.times_f32(isa) >= 1.0, "{arithmetic:?} on {isa}");
            }
        }
    }

    #[test]
    fn memory_has_a_bandwidth() {
        let found = read_bandwidth(Isa::best(), &vec![1.0; 1 << 22]);
        assert!((1e7..1e12).contains(&found), "{found:e}");
    }
}
