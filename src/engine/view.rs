//! Borrowed tensors: what an operator reads and writes.
//!
//! Invariant: the elements are row-major and contiguous, so a kernel may always take the slice.

use half::{bf16, f16};
use ndarray::{ArrayViewD, ArrayViewMutD, IxDyn};
use num_complex::Complex;

use super::dtype::{DType, Element, for_each_dtype};
use super::narrow::{F4E2M1, F6E2M3, F6E3M2, F8E4M3Fn, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, I2, I4, U2, U4};
use super::op::OpError;

macro_rules! define_slices {
    ($($variant:ident: $t:ty),*) => {
        /// A typed slice of any element type.
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[allow(missing_docs, reason = "the variants are named after the types they hold")]
        pub enum Slice<'a> { $($variant(&'a [$t])),* }

        /// A mutable typed slice of any element type.
        #[derive(Debug)]
        #[allow(missing_docs, reason = "the variants are named after the types they hold")]
        pub enum SliceMut<'a> { $($variant(&'a mut [$t])),* }

        impl<'a> Slice<'a> {
            /// The element type.
            pub fn dtype(&self) -> DType { match self { $(Self::$variant(_) => DType::$variant),* } }
            /// The number of elements.
            pub fn len(&self) -> usize { match self { $(Self::$variant(s) => s.len()),* } }
            /// Whether there is no element.
            pub fn is_empty(&self) -> bool { self.len() == 0 }
            /// Elements `range` of the slice.
            pub fn range(&self, range: std::ops::Range<usize>) -> Slice<'a> {
                match self { $(Self::$variant(s) => Slice::$variant(&s[range])),* }
            }
        }

        impl SliceMut<'_> {
            /// The element type.
            pub fn dtype(&self) -> DType { match self { $(Self::$variant(_) => DType::$variant),* } }
            /// The number of elements.
            pub fn len(&self) -> usize { match self { $(Self::$variant(s) => s.len()),* } }
            /// Whether there is no element.
            pub fn is_empty(&self) -> bool { self.len() == 0 }
            /// Elements `range` of the slice, to be written.
            pub fn range_mut(&mut self, range: std::ops::Range<usize>) -> SliceMut<'_> {
                match self { $(Self::$variant(s) => SliceMut::$variant(&mut s[range])),* }
            }
            /// Copies `source` to the elements from `offset` on. Panics if the types differ or it does not fit.
            pub fn copy_from(&mut self, offset: usize, source: &Slice<'_>) {
                match (self, source) {
                    $((Self::$variant(to), Slice::$variant(from)) => to[offset..offset + from.len()].clone_from_slice(from),)*
                    (to, from) => panic!("copy of {} into {}", from.dtype(), to.dtype()),
                }
            }
        }
    };
}
for_each_dtype!(define_slices);

/// The table behind [`View::bits`]: which types are seen as which unsigned integer.
macro_rules! define_bits {
    ($($bits:ident: $($variant:ident),*;)*) => {
        impl<'a> Slice<'a> {
            /// The same elements as unsigned integers of their size; see [`View::bits`].
            fn bits(self) -> Self {
                match self {
                    $($(Self::$variant(s) => Self::$bits(bytemuck::cast_slice(s)),)*)*
                    same => same,
                }
            }
        }

        impl SliceMut<'_> {
            /// The same elements as unsigned integers of their size; see [`View::bits`].
            fn bits(&mut self) -> SliceMut<'_> {
                match self {
                    $($(Self::$variant(s) => SliceMut::$bits(bytemuck::cast_slice_mut(s)),)*)*
                    Self::Bool(s) => SliceMut::Bool(s),
                    Self::String(s) => SliceMut::String(s),
                    Self::C128(s) => SliceMut::C128(s),
                }
            }
        }
    };
}
define_bits! {
    U8: U8, I8, F8E4M3Fn, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, F6E2M3, F6E3M2, F4E2M1, I4, U4, I2, U2;
    U16: U16, I16, F16, BF16;
    U32: U32, I32, F32;
    U64: U64, I64, F64, C64;
}

/// A tensor that an operator reads.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    slice: Slice<'a>,
    shape: &'a [usize],
}

impl<'a> View<'a> {
    /// A view of `slice` as a tensor of `shape`.
    ///
    /// Panics if the number of elements differs: the callers are the plan and owned tensors, which keep them equal.
    pub fn new(slice: Slice<'a>, shape: &'a [usize]) -> Self {
        assert_eq!(slice.len(), shape.iter().product::<usize>(), "elements of a view of shape {shape:?}");
        Self { slice, shape }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.slice.dtype()
    }

    /// The shape.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The elements, type-erased.
    pub fn data(&self) -> Slice<'a> {
        self.slice
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.slice.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.slice.is_empty()
    }

    /// The elements in row-major order.
    ///
    /// # Errors
    /// [`OpError::Type`] if the tensor does not hold `T`.
    pub fn slice<T: Element>(&self) -> Result<&'a [T], OpError> {
        T::slice(&self.slice).ok_or_else(|| OpError::wrong_type(T::DTYPE, self.dtype()))
    }

    /// The same tensor with its elements as unsigned integers of their size, for an operator that moves elements and computes
    /// nothing: it is compiled for a handful of types (`with_bits!`) and not for each that there is. Texts, truth values and
    /// complex128 stay what they are.
    pub fn bits(self) -> Self {
        Self { slice: self.slice.bits(), shape: self.shape }
    }

    /// The tensor as an ndarray view.
    ///
    /// # Errors
    /// [`OpError::Type`] if the tensor does not hold `T`.
    pub fn array<T: Element>(&self) -> Result<ArrayViewD<'a, T>, OpError> {
        let slice = self.slice::<T>()?;
        Ok(ArrayViewD::from_shape(IxDyn(self.shape), slice).expect("a view is contiguous"))
    }
}

/// A tensor that an operator writes: its type and shape were decided by [`Op::shapes`](super::op::Op::shapes).
#[derive(Debug)]
pub struct ViewMut<'a> {
    slice: SliceMut<'a>,
    shape: &'a [usize],
}

impl<'a> ViewMut<'a> {
    /// A view of `slice` as a tensor of `shape`; panics if the number of elements differs.
    pub fn new(slice: SliceMut<'a>, shape: &'a [usize]) -> Self {
        assert_eq!(slice.len(), shape.iter().product::<usize>(), "elements of a view of shape {shape:?}");
        Self { slice, shape }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.slice.dtype()
    }

    /// The shape.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The elements, type-erased.
    pub fn data(&mut self) -> &mut SliceMut<'a> {
        &mut self.slice
    }

    /// The elements in row-major order.
    ///
    /// # Errors
    /// [`OpError::Type`] if the tensor does not hold `T`.
    pub fn slice<T: Element>(&mut self) -> Result<&mut [T], OpError> {
        let found = self.slice.dtype();
        T::slice_mut(&mut self.slice).ok_or_else(|| OpError::wrong_type(T::DTYPE, found))
    }

    /// The same tensor with its elements as unsigned integers of their size: [`View::bits`].
    pub fn bits(&mut self) -> ViewMut<'_> {
        ViewMut { slice: self.slice.bits(), shape: self.shape }
    }

    /// The tensor as an ndarray view.
    ///
    /// # Errors
    /// [`OpError::Type`] if the tensor does not hold `T`.
    pub fn array<T: Element>(&mut self) -> Result<ArrayViewMutD<'_, T>, OpError> {
        let shape = IxDyn(self.shape);
        let slice = self.slice::<T>()?;
        Ok(ArrayViewMutD::from_shape(shape, slice).expect("a view is contiguous"))
    }
}

/// An empty list in the memory of another, whose items are dropped: for lists of what is borrowed, which cannot be kept as they are.
pub fn emptied<A, B>(mut list: Vec<A>) -> Vec<B> {
    list.clear();
    // Collected in place where the items are of one size, which a test in `tests/allocations.rs` relies on.
    list.into_iter().map(|_| unreachable!("the list is empty")).collect()
}
