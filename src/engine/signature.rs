//! What a model takes and gives: names, kinds and dimensions, and whether rows of several requests may share a run.

use smallvec::SmallVec;

use super::graph::Dim;
use super::op::Shape;
use super::tensor::{Kind, Tensor, Value};
use super::view::View;

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name in the model file.
    pub name: String,
    /// Kind and element type.
    pub kind: Kind,
    /// The dimensions; `None` where neither the file nor the engine knows the rank.
    pub dims: Option<Vec<Dim>>,
}

impl Port {
    /// The dimensions as text: `[batch, 3, 224, 224]`.
    pub fn dims_text(&self) -> String {
        match &self.dims {
            None => "[…]".to_owned(),
            Some(dims) => format!("[{}]", dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// The interface of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// The inputs in order.
    pub inputs: Vec<Port>,
    /// What a request may give beside the inputs, and what is a default of the model where it does not.
    pub optional: Vec<Port>,
    /// The outputs in order.
    pub outputs: Vec<Port>,
    /// Whether dimension 0 of every input and output is one free batch dimension, so that rows of several requests may be
    /// run together and taken apart again.
    pub batchable: bool,
}

/// An input that does not fit the signature. The message names the input, what was wanted and what was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Mismatch(pub String);

impl Signature {
    /// The position of the input called `name`.
    pub fn input(&self, name: &str) -> Option<usize> {
        self.inputs.iter().position(|port| port.name == name)
    }

    /// The position among the optional inputs of the one called `name`.
    pub fn optional(&self, name: &str) -> Option<usize> {
        self.optional.iter().position(|port| port.name == name)
    }

    /// The position of the output called `name`.
    pub fn output(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|port| port.name == name)
    }

    /// Checks one tensor per input, in order, against types, ranks, fixed dimensions and equal names of free ones; an empty
    /// dimension other than the first fits every name.
    ///
    /// # Errors
    /// The first input that does not fit.
    pub fn check(&self, inputs: &[Tensor]) -> Result<(), Mismatch> {
        if inputs.len() != self.inputs.len() {
            return Err(Mismatch(format!("{} inputs are wanted, {} are given", self.inputs.len(), inputs.len())));
        }
        let mut free: SmallVec<[(&str, usize, &str); 4]> = SmallVec::new();
        for (port, tensor) in self.inputs.iter().zip(inputs) {
            port.check(tensor.view())?;
            let Some(dims) = &port.dims else { continue };
            for (axis, (dim, &size)) in dims.iter().zip(tensor.shape()).enumerate() {
                let Dim::Free(name) = dim else { continue };
                // The first call of optimum's decoders: no past yet, though its length goes by the encoder's name.
                if axis > 0 && size == 0 {
                    continue;
                }
                match free.iter().find(|(known, ..)| known == name && !name.is_empty()) {
                    None => free.push((name, size, &port.name)),
                    Some(&(_, other, by)) if other != size => {
                        return Err(Mismatch(format!(
                            "dimension `{name}` is {other} in input `{by}` and {size} in input `{}`; they must be equal",
                            port.name
                        )));
                    }
                    Some(_) => {}
                }
            }
        }
        if self.batchable && self.rows(inputs).is_none() {
            return Err(Mismatch("the inputs have different numbers of rows (dimension 0)".to_owned()));
        }
        Ok(())
    }

    /// Checks tensors for optional inputs, by their positions, each for itself.
    ///
    /// # Errors
    /// The first that does not fit, or is given twice.
    pub fn check_overrides(&self, overrides: &[(usize, Tensor)]) -> Result<(), Mismatch> {
        for (i, (position, tensor)) in overrides.iter().enumerate() {
            let Some(port) = self.optional.get(*position) else {
                return Err(Mismatch(format!("there are {} optional inputs, one at {position} is given", self.optional.len())));
            };
            if overrides[..i].iter().any(|(other, _)| other == position) {
                return Err(Mismatch(format!("input `{}` is given twice", port.name)));
            }
            port.check(tensor.view())?;
        }
        Ok(())
    }

    /// Checks one value per input, in order: as [`Signature::check`] where all are tensors; otherwise each for itself.
    ///
    /// # Errors
    /// The first input that does not fit.
    pub fn check_values(&self, inputs: &[Value]) -> Result<(), Mismatch> {
        if let Some(tensors) = inputs.iter().map(|value| value.tensor().cloned()).collect::<Option<Vec<_>>>() {
            return self.check(&tensors);
        }
        if inputs.len() != self.inputs.len() {
            return Err(Mismatch(format!("{} inputs are wanted, {} are given", self.inputs.len(), inputs.len())));
        }
        for (port, value) in self.inputs.iter().zip(inputs) {
            match value {
                Value::Tensor(tensor) => port.check(tensor.view())?,
                other if other.is(&port.kind) => {}
                _ => return Err(Mismatch(format!("input `{}` wants a {}, got another kind of value", port.name, port.kind))),
            }
        }
        Ok(())
    }

    /// Checks one view per input, in order, each for itself.
    ///
    /// # Errors
    /// The first input that does not fit.
    pub fn check_views(&self, inputs: &[View<'_>]) -> Result<(), Mismatch> {
        if inputs.len() != self.inputs.len() {
            return Err(Mismatch(format!("{} inputs are wanted, {} are given", self.inputs.len(), inputs.len())));
        }
        self.inputs.iter().zip(inputs).try_for_each(|(port, view)| port.check(*view))
    }

    /// The number of rows of a request: dimension 0 of its inputs. `None` if they differ; 1 if the model is not batchable.
    pub fn rows(&self, inputs: &[Tensor]) -> Option<usize> {
        if !self.batchable {
            return Some(1);
        }
        let mut rows = inputs.iter().map(|tensor| tensor.shape().first().copied().unwrap_or(1));
        let first = rows.next()?;
        rows.all(|n| n == first).then_some(first)
    }

    /// The input shapes of a batch of `rows`, if every other dimension is fixed.
    pub fn batch_shapes(&self, rows: usize) -> Option<SmallVec<[Shape; 4]>> {
        let shape = |port: &Port| {
            let dims = port.dims.as_ref()?.iter().enumerate();
            let size = |(i, dim): (usize, &Dim)| match dim {
                Dim::Fixed(n) => Some(*n),
                Dim::Free(_) if i == 0 && self.batchable => Some(rows),
                Dim::Free(_) => None,
            };
            dims.map(size).collect::<Option<Shape>>()
        };
        self.inputs.iter().map(shape).collect()
    }
}

impl Port {
    fn check(&self, tensor: View<'_>) -> Result<(), Mismatch> {
        let name = &self.name;
        if self.kind != Kind::Tensor(tensor.dtype()) {
            return Err(Mismatch(format!("input `{name}` wants element type {}, got {}", self.kind, tensor.dtype())));
        }
        let Some(dims) = &self.dims else { return Ok(()) };
        let fits = |(dim, &size): (&Dim, &usize)| match dim {
            Dim::Fixed(n) => *n == size,
            Dim::Free(_) => true,
        };
        if dims.len() != tensor.shape().len() || !dims.iter().zip(tensor.shape()).all(fits) {
            return Err(Mismatch(format!("input `{name}` wants shape {}, got {:?}", self.dims_text(), tensor.shape())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::dtype::DType;

    fn port(name: &str, dims: &[Dim]) -> Port {
        Port { name: name.into(), kind: Kind::Tensor(DType::F32), dims: Some(dims.to_vec()) }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let free = |name: &str| Dim::Free(name.into());
        let batch = free("batch");
        let signature = Signature {
            inputs: vec![port("x", &[batch.clone(), Dim::Fixed(2)]), port("y", &[batch])],
            batchable: true,
            ..Signature::default()
        };
        let x = |rows| Tensor::zeros(DType::F32, &[rows, 2]);
        let y = |rows| Tensor::zeros(DType::F32, &[rows]);
        assert_eq!(signature.check(&[x(3), y(3)]), Ok(()));
        assert_eq!(signature.rows(&[x(3), y(3)]), Some(3));
        let message = |inputs: &[Tensor]| signature.check(inputs).unwrap_err().0;
        assert_eq!(message(&[x(3)]), "2 inputs are wanted, 1 are given");
        assert!(message(&[x(0), y(4)]).contains("they must be equal"));
        let past = Signature { inputs: vec![port("x", &[free("n"), free("m")]), port("y", &[free("m")])], ..Signature::default() };
        assert_eq!(past.check(&[Tensor::zeros(DType::F32, &[2, 0]), y(4)]), Ok(()));
        assert_eq!(message(&[x(3), y(4)]), "dimension `batch` is 3 in input `x` and 4 in input `y`; they must be equal");
        assert_eq!(message(&[y(3), y(3)]), "input `x` wants shape [batch, 2], got [3]");
        assert_eq!(message(&[Tensor::zeros(DType::I64, &[3, 2]), y(3)]), "input `x` wants element type float32, got int64");
    }
}
