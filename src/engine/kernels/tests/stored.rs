//! What was made of numbers once is found by the next who packs them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;

use super::Random;
use crate::engine::kernels::conv::ConvShape;
use crate::engine::kernels::conv::last::{Apart, Image, PackedConvLast, conv2d_last};
use crate::engine::kernels::epilogue::Epilogue;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::stored::{LINE_BYTES, Source, Stored};
use crate::engine::kernels::weights::{Precision, Weights};

/// Numbers whose forms are remembered.
struct Remembered {
    numbers: Vec<f32>,
    forms: RefCell<BTreeMap<String, Stored>>,
    was_read: Cell<bool>,
}

impl Remembered {
    fn new(numbers: Vec<f32>) -> Self {
        Self { numbers, forms: RefCell::default(), was_read: Cell::new(false) }
    }
}

impl Source for Remembered {
    fn count(&self) -> usize {
        self.numbers.len()
    }

    fn numbers(&self) -> &[f32] {
        self.was_read.set(true);
        &self.numbers
    }

    fn kept(&self, form: fmt::Arguments<'_>, lines: usize) -> Option<Stored> {
        let stored = self.forms.borrow().get(&form.to_string()).cloned()?;
        assert_eq!(stored.elements::<u8>().len(), lines * LINE_BYTES, "{form}");
        Some(stored)
    }

    fn keep(&self, form: fmt::Arguments<'_>, stored: &Stored) {
        assert!(self.forms.borrow_mut().insert(form.to_string(), stored.clone()).is_none(), "{form} is another form's name, too");
    }
}

#[test]
fn matrices_are_found_in_every_precision() {
    let (k, n) = (40, 72);
    for isa in Isa::available() {
        let source = Remembered::new(Random::new(1).values(k * n));
        let rows = Random::new(2).values(3 * k.max(n));
        let precisions = Precision::ALL;
        let sizes = [(k, n, false), (k, n, true), (n, k, false), (n, k, true)];
        for (precision, (k, n, transposed)) in precisions.into_iter().flat_map(|precision| sizes.map(|size| (precision, size))) {
            let product = |weights: Weights| {
                let mut c = vec![0.0; 3 * n];
                weights.multiply(&rows[..3 * k], 3, &mut c, &Epilogue::default());
                c
            };
            let want = product(Weights::pack(precision, isa, &source.numbers, k, n, transposed));
            for read in [true, false] {
                source.was_read.set(false);
                let found = product(Weights::pack(precision, isa, &source, k, n, transposed));
                assert_eq!(found, want, "{isa} {precision} {k} {n} {transposed}");
                assert_eq!(source.was_read.get(), read, "{isa} {precision} {k} {n} {transposed}");
            }
        }
        assert_eq!(source.forms.borrow().len(), precisions.len() * sizes.len());
    }
}

#[test]
fn a_matrix_without_codes_is_found_as_it_is() {
    let mut numbers = Random::new(1).values(64 * 32);
    numbers[7] = f32::INFINITY;
    let source = Remembered::new(numbers);
    for read in [true, true] {
        // Whether there are codes is known from the numbers alone.
        source.was_read.set(false);
        assert!(matches!(Weights::pack(Precision::Int4Weights, Isa::best(), &source, 64, 32, false), Weights::F32(_)));
        assert_eq!(source.was_read.get(), read);
    }
    assert_eq!(source.forms.borrow().len(), 1);
}

#[test]
fn convolutions_are_found() {
    for isa in Isa::available() {
        let kernels = [((1, 1), 1), ((3, 3), 1), ((3, 3), 2), ((1, 9), 1)];
        for (kernel, stride) in kernels {
            let (c, taps) = (32, kernel.0 * kernel.1);
            let source = Remembered::new(Random::new(3).values(c * c * taps));
            let shape = ConvShape {
                n: 1,
                c_in: c,
                c_out: c,
                h_in: 12,
                w_in: 12,
                kernel_h: kernel.0,
                kernel_w: kernel.1,
                stride_h: stride,
                stride_w: stride,
                h_out: (12 - kernel.0) / stride + 1,
                w_out: (12 - kernel.1) / stride + 1,
                pad_top: 0,
                pad_left: 0,
                dilation_h: 1,
                dilation_w: 1,
                groups: 1,
            };
            let image = Random::new(4).values(12 * 12 * c);
            let convolved = |w: PackedConvLast| {
                let mut y = vec![0.0; shape.h_out * shape.w_out * c];
                let x = Image { data: &image, channels_last: true };
                conv2d_last(&shape, &w, x, &Epilogue::default(), 0..shape.h_out, &mut y, &mut Vec::new());
                y
            };
            let apart = (1, Apart { taps: false, pixels: stride > 1 });
            let want = convolved(PackedConvLast::pack((Precision::F32, isa), &source.numbers, (c, c), kernel, apart));
            for read in [true, false] {
                source.was_read.set(false);
                let found = convolved(PackedConvLast::pack((Precision::F32, isa), &source, (c, c), kernel, apart));
                assert_eq!(found, want, "{isa} {kernel:?} {stride}");
                assert_eq!(source.was_read.get(), read, "{isa} {kernel:?} {stride}");
            }
            // The same numbers as another convolution.
            PackedConvLast::pack((Precision::F32, isa), &source, (c * taps, c), (1, 1), (1, Apart::default()));
            assert_eq!(source.forms.borrow().len(), if taps == 1 { 1 } else { 2 });
        }
    }
}
