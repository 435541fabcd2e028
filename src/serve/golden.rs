//! Golden samples: recorded inputs with the outputs that another runtime gave, and how answers are compared to them.

use std::path::Path;

use crate::engine::onnx::read_tensor;
use crate::engine::{Slice, Tensor, Value};

/// How far an answer may be from the recorded one: `|answer − recorded| ≤ absolute + relative · |recorded|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// In parts of the recorded value.
    pub relative: f64,
    /// In the output's own unit.
    pub absolute: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { relative: 1e-4, absolute: 1e-5 }
    }
}

/// Recorded inputs and outputs of a model, each in the order of its signature.
#[derive(Clone, Debug)]
pub struct Golden {
    /// The inputs, several rows each.
    pub inputs: Vec<Tensor>,
    /// What the other runtime answered.
    pub outputs: Vec<Tensor>,
}

/// A sample may be this large; a golden folder is meant to hold a few rows.
const FILE_LIMIT: usize = 256 << 20;

impl Golden {
    /// Reads `input_0.pb` … and `output_0.pb` … from `folder`; `None` if the folder does not exist.
    ///
    /// # Errors
    /// If a file cannot be read, or there are no inputs or no outputs.
    pub fn read(folder: &Path) -> Result<Option<Self>, String> {
        if !folder.is_dir() {
            return Ok(None);
        }
        let (inputs, outputs) = (read_all(folder, "input")?, read_all(folder, "output")?);
        if inputs.is_empty() || outputs.is_empty() {
            return Err(format!("{}: input_0.pb and output_0.pb are wanted", folder.display()));
        }
        Ok(Some(Self { inputs, outputs }))
    }

    /// Compares the answer to the recorded outputs.
    ///
    /// # Errors
    /// The first difference: output, element, what was computed and what was recorded.
    pub fn compare(&self, answer: &[Value], tolerance: Tolerance) -> Result<(), String> {
        if answer.len() < self.outputs.len() {
            return Err(format!("{} outputs are recorded, the model has {}", self.outputs.len(), answer.len()));
        }
        for (i, (recorded, value)) in self.outputs.iter().zip(answer).enumerate() {
            let Value::Tensor(tensor) = value else { return Err(format!("output {i} is recorded as a tensor and is none")) };
            compare(tensor, recorded, tolerance).map_err(|difference| format!("output {i}: {difference}"))?;
        }
        Ok(())
    }
}

impl Golden {
    /// How far the answer is from the recorded outputs: of each output the greatest difference in parts of the greatest recorded
    /// magnitude, and of these the greatest. `None` if nothing is recorded in f32, or the answer is of another form.
    pub fn difference(&self, answer: &[Value]) -> Option<f64> {
        let of = |recorded: &Tensor, value: &Value| {
            let (recorded, found) = (recorded.slice::<f32>()?, value.tensor()?.slice::<f32>()?);
            let size = recorded.iter().fold(0.0_f64, |size, &v| size.max(f64::from(v).abs()));
            let far = recorded.iter().zip(found).fold(0.0_f64, |far, (&a, &b)| far.max((f64::from(a) - f64::from(b)).abs()));
            (recorded.len() == found.len()).then(|| if far == 0.0 { 0.0 } else { far / size })
        };
        self.outputs.iter().zip(answer).filter_map(|(recorded, value)| of(recorded, value)).reduce(f64::max)
    }
}

fn read_all(folder: &Path, prefix: &str) -> Result<Vec<Tensor>, String> {
    let mut tensors = Vec::new();
    loop {
        let path = folder.join(format!("{prefix}_{}.pb", tensors.len()));
        if !path.is_file() {
            return Ok(tensors);
        }
        let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let (_, tensor) = read_tensor(&bytes, FILE_LIMIT).map_err(|error| format!("{}: {error}", path.display()))?;
        tensors.push(tensor);
    }
}

fn compare(answer: &Tensor, recorded: &Tensor, tolerance: Tolerance) -> Result<(), String> {
    if answer.dtype() != recorded.dtype() || answer.shape() != recorded.shape() {
        return Err(format!("{}{:?} is computed, {}{:?} is recorded", answer.dtype(), answer.shape(), recorded.dtype(), recorded.shape()));
    }
    let close = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance.absolute + tolerance.relative * b.abs();
    let different = match (answer.data(), recorded.data()) {
        (Slice::F32(a), Slice::F32(b)) => a.iter().zip(b).position(|(&a, &b)| !close(a.into(), b.into())),
        (Slice::F64(a), Slice::F64(b)) => a.iter().zip(b).position(|(&a, &b)| !close(a, b)),
        (Slice::F16(a), Slice::F16(b)) => a.iter().zip(b).position(|(&a, &b)| !close(a.into(), b.into())),
        (Slice::BF16(a), Slice::BF16(b)) => a.iter().zip(b).position(|(&a, &b)| !close(a.into(), b.into())),
        _ if answer == recorded => None,
        _ => return Err("the elements differ".to_owned()),
    };
    match different {
        None => Ok(()),
        Some(i) => {
            let at = |slice: Slice<'_>| format!("{:?}", slice.range(i..i + 1));
            Err(format!("element {i}: {} is computed, {} is recorded", at(answer.data()), at(recorded.data())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_in_parts_of_the_greatest_value() {
        let golden = Golden { inputs: vec![], outputs: vec![Tensor::vector(vec![4.0_f32, -8.0]), Tensor::vector(vec![1_i64])] };
        let answer = |values: Vec<f32>| vec![Value::Tensor(Tensor::vector(values)), Value::Tensor(Tensor::vector(vec![1_i64]))];
        assert_eq!(golden.difference(&answer(vec![4.0, -8.0])), Some(0.0));
        assert_eq!(golden.difference(&answer(vec![6.0, -8.0])), Some(0.25));
        assert_eq!(golden.difference(&answer(vec![6.0])), None);
    }

    #[test]
    fn a_difference_beyond_the_tolerance_is_shown() {
        let golden = Golden { inputs: vec![], outputs: vec![Tensor::vector(vec![1.0_f32, f32::NAN])] };
        let answer = |values: Vec<f32>| vec![Value::Tensor(Tensor::vector(values))];
        let tolerance = Tolerance { relative: 1e-3, absolute: 0.0 };
        assert_eq!(golden.compare(&answer(vec![1.0005, f32::NAN]), tolerance), Ok(()));
        let error = golden.compare(&answer(vec![1.1, f32::NAN]), tolerance).unwrap_err();
        assert_eq!(error, "output 0: element 0: F32([1.1]) is computed, F32([1.0]) is recorded");
        assert!(golden.compare(&answer(vec![1.0]), tolerance).unwrap_err().contains("float32[1] is computed"));
        assert!(golden.compare(&answer(vec![1.0, 1.0]), tolerance).unwrap_err().contains("element 1"));
        assert!(golden.compare(&[], tolerance).is_err());
    }
}
