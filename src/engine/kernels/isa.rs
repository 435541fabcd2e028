//! Which instruction set the kernels use: detected once, lowered on request, never read from the environment.
//!
//! The features that `detect` tests for and those named in `#[target_feature]` at the kernels must be the same;
//! `instantiate!` is the one place that names them for portable bodies, `gemm/body.rs` for bodies over a type of registers.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set the kernels are compiled for, in ascending order of speed.
///
/// On architectures other than x86-64 only [`Isa::Scalar`] is ever available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every machine of the architecture has; multiply and add round separately.
    Scalar,
    /// AVX2 and FMA (x86-64-v3).
    Avx2,
    /// AVX-512 F, BW, DQ and VL (x86-64-v4).
    Avx512,
    /// The same with a tile unit that multiplies bf16 (AMX), which the system lets this process use. Kernels on f32 are
    /// those of [`Isa::Avx512`].
    Amx,
}

/// The upper bound set by [`Isa::limit`], as the discriminant.
static LIMIT: AtomicU8 = AtomicU8::new(Isa::Amx as u8);

impl Isa {
    /// Every instruction set, in ascending order.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// The best instruction set of this machine, at most the one given to [`Isa::limit`].
    pub fn best() -> Isa {
        let limit = LIMIT.load(Ordering::Relaxed);
        let allowed = |isa: &&Isa| **isa as u8 <= limit && **isa <= Isa::detected();
        Isa::ALL.iter().rev().find(allowed).copied().unwrap_or(Isa::Scalar)
    }

    /// Every instruction set this machine can run, in ascending order, regardless of [`Isa::limit`].
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine can run the instruction set.
    pub fn is_available(self) -> bool {
        self <= Isa::detected()
    }

    /// Lowers what [`Isa::best`] answers from now on. Meant to be called once, from `main`, before anything is packed:
    /// matrices packed earlier keep the instruction set they were packed for.
    pub fn limit(isa: Isa) {
        LIMIT.store(isa as u8, Ordering::Relaxed);
    }

    /// Panics unless this machine can run the instruction set: the proof that every dispatch to feature-gated code needs.
    pub(crate) fn require(self) {
        assert!(self.is_available(), "instruction set {self} is not available on this machine");
    }

    fn detected() -> Isa {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(detect)
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) if is_x86_feature_detected!("avx512bf16") && super::bf16::amx::permitted() => Isa::Amx,
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        (false, _) => Isa::Scalar,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Scalar
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        })
    }
}

/// A name that is not one of `scalar`, `avx2`, `avx512`, `amx`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa(String);

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown instruction set '{}': expected scalar, avx2, avx512 or amx", self.0)
    }
}

impl std::error::Error for UnknownIsa {}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Isa, UnknownIsa> {
        Isa::ALL.into_iter().find(|isa| isa.to_string() == name).ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}

/// Compiles one portable body for every instruction set and calls the instance that `$isa` names.
///
/// The body is an `#[inline(always)]` function generic over `const FMA: bool`: with `FMA` a multiply-add is one instruction
/// with one rounding; without, `f32::mul_add` would be a slow library call, so the body multiplies and adds.
macro_rules! instantiate {
    ($isa:expr, $body:ident, ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2($($arg: $ty),*) $(-> $ret)? {
            $body::<true>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512($($arg: $ty),*) $(-> $ret)? {
            $body::<true>($($arg),*)
        }
        fn scalar($($arg: $ty),*) $(-> $ret)? {
            $body::<false>($($arg),*)
        }
        let isa: $crate::engine::kernels::isa::Isa = $isa;
        isa.require();
        match isa {
            // SAFETY: `require` has just shown that this machine has the features the function is compiled for.
            #[cfg(target_arch = "x86_64")]
            $crate::engine::kernels::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::engine::kernels::isa::Isa::Avx512 | $crate::engine::kernels::isa::Isa::Amx => unsafe { avx512($($arg),*) },
            _ => scalar($($arg),*),
        }
    }};
}
pub(crate) use instantiate;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_names_are_errors() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        let error = "sse9".parse::<Isa>().expect_err("no such name");
        assert!(error.to_string().contains("sse9"));
    }

    #[test]
    fn the_best_is_available() {
        assert!(Isa::available().contains(&Isa::best()));
        assert_eq!(Isa::available()[0], Isa::Scalar);
    }
}
