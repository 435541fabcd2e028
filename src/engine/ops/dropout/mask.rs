//! Masks of dropout whose random numbers the trainer chooses: the same seed gives the same mask on every machine.

use super::Twister;
use crate::engine::adjoint::{Emit, ValueId};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{ints, require, same_type, size};
use crate::engine::ops::own;
use crate::engine::ops::scalar::{Scalar, with_scalar};
use crate::engine::tensor::Kind;

static MASK: OpDef = own("DropoutMask");

/// `value` with each element dropped at `rate`, and the others as much greater that the mean stays. `seed` is an int64 number that
/// the caller gives for each run, `layer` tells several masks of one run apart.
///
/// # Errors
/// If `value` is no tensor of f32 or f64, or the rate is not in [0, 1).
pub fn drop_out(emit: &mut dyn Emit, value: ValueId, seed: ValueId, layer: u32, rate: f32) -> Result<ValueId, OpError> {
    if !(0.0..1.0).contains(&rate) {
        return Err(OpError::value(format!("the rate {rate} is not in [0, 1)")));
    }
    let (like, shape) = (emit.number(value, 1.0 / (1.0 - f64::from(rate)))?, emit.shape(value)?);
    let mask = emit.one(&MASK, Mask { layer, rate: rate.into() }, &[like, seed, shape])?;
    emit.op("Mul", &[value, mask])
}

/// Inputs: what stands where an element is kept, the seed, the shape.
#[derive(Debug)]
struct Mask {
    layer: u32,
    rate: f64,
}

impl Op for Mask {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        same_type(inputs, 3, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.ints(2)?.into_iter().map(size).collect::<Result<_, _>>()?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (kept, seed) = (inputs.at(0)?, ints(inputs.at(1)?)?);
        let &[seed] = seed.as_slice() else { return Err(OpError::shape("a seed is one number")) };
        // Neighbouring seeds of the twister begin alike; the multiplier of a Weyl sequence sets them apart.
        let mixed = (seed as u64 ^ (u64::from(self.layer) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut twister = Twister::new((mixed >> 32) as u32);
        with_scalar!(kept.dtype(), T => {
            let kept = kept.slice::<T>()?[0];
            for y in outputs.at(0)?.slice::<T>()? {
                *y = if twister.uniform() < self.rate { T::of(0.0) } else { kept };
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::append::Appender;
    use crate::engine::dtype::DType;
    use crate::engine::graph::{Dim, Graph};
    use crate::engine::load::{Loaded, Metadata};
    use crate::engine::model::{LoadOptions, Model};
    use crate::engine::session::Session;
    use crate::engine::tensor::Tensor;
    use crate::engine::threads::Threads;

    #[test]
    fn a_seed_decides_what_is_dropped() {
        let mut graph = Graph::default();
        let mut input = |name: &str, dtype, dims: &[usize]| {
            let id = graph.add_value(name, Some(Kind::Tensor(dtype)), Some(dims.iter().map(|&n| Dim::Fixed(n)).collect()));
            graph.inputs.push(id);
            id
        };
        let (x, seed) = (input("x", DType::F32, &[1000]), input("seed", DType::I64, &[]));
        let mut emit = Appender::new(&mut graph, "");
        let one = drop_out(&mut emit, x, seed, 1, 0.25).unwrap();
        let two = drop_out(&mut emit, x, seed, 2, 0.25).unwrap();
        assert!(drop_out(&mut emit, x, seed, 2, 1.0).is_err());
        graph.outputs = vec![one, two];
        let model = Model::build(Loaded { graph, metadata: Metadata::default() }, &LoadOptions::default()).unwrap();
        let mut session = Session::new(std::sync::Arc::new(model), std::sync::Arc::new(Threads::single()));
        let mut run = |seed: i64| session.run(&[Tensor::vector(vec![3.0_f32; 1000]), Tensor::scalar(seed)]).unwrap();
        let (first, second) = (run(7), run(8));
        assert_eq!(first, run(7));
        assert_ne!(first, second);
        assert_ne!(first[0], first[1]);
        let values = first[0].tensor().unwrap().slice::<f32>().unwrap();
        assert!(values.iter().all(|&v| v == 0.0 || v == 4.0));
        assert!((values.iter().filter(|&&v| v == 0.0).count() as f64 - 250.0).abs() < 60.0);
    }
}
