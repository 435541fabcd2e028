//! Matrix product for the other element types: plain loops, correct first.

/// An element type [`gemm_generic`] can sum in: integers wrap, floats round after each operation.
pub trait Number: Copy {
    /// The empty sum.
    const ZERO: Self;

    /// `self + a * b`.
    fn add_product(self, a: Self, b: Self) -> Self;
}

macro_rules! integer {
    ($($ty:ty),*) => {$(
        impl Number for $ty {
            const ZERO: $ty = 0;

            #[inline(always)]
            fn add_product(self, a: $ty, b: $ty) -> $ty {
                self.wrapping_add(a.wrapping_mul(b))
            }
        }
    )*};
}

macro_rules! float {
    ($($ty:ty),*) => {$(
        impl Number for $ty {
            const ZERO: $ty = 0.0;

            #[inline(always)]
            fn add_product(self, a: $ty, b: $ty) -> $ty {
                self + a * b
            }
        }
    )*};
}

integer!(i8, u8, i16, u16, i32, u32, i64, u64);
float!(f32, f64);

/// `c[m, n] = a[m, k] · b[k, n]`, all dense and row-major, summed in `T` over ascending `k`. The operands may be of narrower
/// types that convert to `T` without loss, such as `u8` and `i8` with sums in `i32`. Panics if a length does not fit.
pub fn gemm_generic<A, B, T>(m: usize, k: usize, n: usize, a: &[A], b: &[B], c: &mut [T])
where
    A: Copy + Into<T>,
    B: Copy + Into<T>,
    T: Number,
{
    assert_eq!(a.len(), m * k, "length of a against m * k");
    assert_eq!(b.len(), k * n, "length of b against k * n");
    assert_eq!(c.len(), m * n, "length of c against m * n");
    c.fill(T::ZERO);
    if k == 0 || n == 0 {
        return;
    }
    // A block of b rows is reused by all rows of a while it is in the second-level cache: 64 KiB to 512 KiB for n = 1024.
    const STEPS: usize = 64;
    for (block, b_block) in b.chunks(STEPS * n).enumerate() {
        for (a_row, c_row) in a.chunks_exact(k).zip(c.chunks_exact_mut(n)) {
            for (value, b_row) in a_row[block * STEPS..].iter().zip(b_block.chunks_exact(n)) {
                let value: T = (*value).into();
                for (sum, factor) in c_row.iter_mut().zip(b_row) {
                    *sum = sum.add_product(value, (*factor).into());
                }
            }
        }
    }
}
