//! The classification extension: the most likely classes of an output instead of its values.

use half::{bf16, f16};

use crate::engine::{DType, Element, Slice, Tensor};

/// Whether the values of a type can be ranked. The message continues the name of the output.
///
/// # Errors
/// If not.
pub(super) fn has_classes(dtype: DType) -> Result<(), String> {
    let ranked = dtype.bits() >= 8 && !dtype.is_narrow() && !matches!(dtype, DType::Bool | DType::String | DType::C64 | DType::C128);
    if ranked { Ok(()) } else { Err(format!("is {}, which has no classes", dtype.oip())) }
}

/// The `count` greatest values of each row (of the whole tensor if it has no rows), greatest first, equal ones in their order:
/// BYTES `[rows, classes]` (or `[classes]`) of `value:index` or `value:index:label`.
///
/// Values are written with the fewest digits that read back to the same bits. NaN is less than everything.
pub(super) fn classify(tensor: &Tensor, count: usize, labels: &[String], batched: bool) -> Tensor {
    let rows = if batched { tensor.shape().first().copied() } else { None };
    let row = tensor.len() / rows.unwrap_or(1).max(1);
    let classes = count.min(row);
    let labels = if labels.len() == row { labels } else { &[] };
    let texts = match tensor.data() {
        Slice::F32(values) => ranked(values, row, classes, labels),
        Slice::F64(values) => ranked(values, row, classes, labels),
        Slice::F16(values) => ranked(&widened(values, f16::to_f32), row, classes, labels),
        Slice::BF16(values) => ranked(&widened(values, bf16::to_f32), row, classes, labels),
        Slice::I8(values) => ranked(values, row, classes, labels),
        Slice::I16(values) => ranked(values, row, classes, labels),
        Slice::I32(values) => ranked(values, row, classes, labels),
        Slice::I64(values) => ranked(values, row, classes, labels),
        Slice::U8(values) => ranked(values, row, classes, labels),
        Slice::U16(values) => ranked(values, row, classes, labels),
        Slice::U32(values) => ranked(values, row, classes, labels),
        Slice::U64(values) => ranked(values, row, classes, labels),
        _ => unreachable!("it has classes"),
    };
    let shape = rows.map_or_else(|| vec![classes], |rows| vec![rows, classes]);
    Tensor::new(&shape, texts).expect("as many classes per row")
}

fn widened<T: Copy>(values: &[T], widen: fn(T) -> f32) -> Vec<f32> {
    values.iter().map(|&value| widen(value)).collect()
}

fn ranked<T: Element + PartialOrd + Copy + std::fmt::Display>(values: &[T], row: usize, classes: usize, labels: &[String]) -> Vec<String> {
    let mut texts = Vec::new();
    for values in values.chunks_exact(row.max(1)) {
        let mut order: Vec<usize> = (0..values.len()).collect();
        // Only NaN has no order with itself.
        let known = |i: usize| values[i].partial_cmp(&values[i]).is_some();
        order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap_or_else(|| known(b).cmp(&known(a))));
        texts.extend(order[..classes].iter().map(|&index| match labels.get(index) {
            Some(label) => format!("{}:{index}:{label}", values[index]),
            None => format!("{}:{index}", values[index]),
        }));
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(tensor: &Tensor) -> Vec<&str> {
        tensor.slice::<String>().unwrap().iter().map(String::as_str).collect()
    }

    #[test]
    fn the_most_likely_come_first() {
        let scores = Tensor::new(&[2, 3], vec![0.25_f32, 0.5, 0.25, f32::NAN, 1.0, -2.0]).unwrap();
        let top = classify(&scores, 2, &["a".into(), "b".into(), "c".into()], true);
        assert_eq!((top.shape(), texts(&top)), (&[2, 2][..], vec!["0.5:1:b", "0.25:0:a", "1:1:b", "-2:2:c"]));
        let all = classify(&scores, 9, &["a".into()], true);
        assert_eq!((all.shape(), texts(&all)[5]), (&[2, 3][..], "NaN:0"));
        let whole = classify(&scores, 1, &[], false);
        assert_eq!((whole.shape(), texts(&whole)), (&[1][..], vec!["1:4"]));
        let counts = classify(&Tensor::new(&[1, 2, 2], vec![1_u8, 3, 255, 2]).unwrap(), 2, &[], true);
        assert_eq!((counts.shape(), texts(&counts)), (&[1, 2][..], vec!["255:2", "3:1"]));
        let empty = classify(&Tensor::zeros(DType::F32, &[2, 0]), 2, &[], true);
        assert_eq!((empty.shape(), empty.len()), (&[2, 0][..], 0));
        assert!(has_classes(DType::Bool).is_err() && has_classes(DType::F16).is_ok() && has_classes(DType::I4).is_err());
    }
}
