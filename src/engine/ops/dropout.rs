//! Dropout: the identity as it serves, a random mask as it trains.
//!
//! With a seed the mask is the one of the reference evaluator: that of numpy's `RandomState`, a Mersenne Twister.

pub(crate) mod gradient;
pub(crate) mod mask;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::smallvec;

use super::ANY;
use super::axes::same_type;
use super::identity::Identity;
use super::number::{Number, with_float};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;
use crate::engine::view::ViewMut;

/// In training, the types of 8 bits are refused.
const TYPES: &[DType] = &[
    DType::F32,
    DType::F64,
    DType::F16,
    DType::BF16,
    DType::F8E4M3Fn,
    DType::F8E4M3Fnuz,
    DType::F8E5M2,
    DType::F8E5M2Fnuz,
];

pub(crate) const DEFS: &[OpDef] = &[OpDef { name: "Dropout", domain: "", opsets: 1..=ANY, types: TYPES, build: dropout }];

/// The share of elements to drop where nothing says another.
const RATIO: f32 = 0.5;

fn dropout(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    attrs.ignore(&["consumed_inputs"]);
    let ratio = if attrs.opset < 12 { attrs.float_or("ratio", RATIO)? } else { RATIO };
    let seed = attrs.int("seed")?;
    let mode = match attrs.opset {
        ..7 if !attrs.bool_or("is_test", false)? => Mode::Training,
        ..12 => Mode::Serving,
        _ if attrs.inputs.get(2) == Some(&true) => Mode::Input,
        _ => Mode::Serving,
    };
    if mode == Mode::Serving && attrs.outputs.len() < 2 {
        return Ok(Box::new(Identity));
    }
    let bool_mask = attrs.opset >= 10;
    Ok(Box::new(Dropout { mode, ratio, seed: seed.map(|seed| seed as u32), bool_mask, runs: AtomicU64::new(RandomState::new().hash_one(0)) }))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Serving,
    Training,
    /// As input 2 says.
    Input,
}

/// Dropout with a mask output or in training.
#[derive(Debug)]
struct Dropout {
    mode: Mode,
    ratio: f32,
    /// With it, every run drops the same elements.
    seed: Option<u32>,
    /// Whether the mask is of truth values; before opset 10 it is of the input's type.
    bool_mask: bool,
    /// Without a seed, the seed of the next run.
    runs: AtomicU64,
}

/// The Mersenne Twister MT19937 as numpy seeds and reads it.
struct Twister {
    state: [u32; Self::LEN],
    at: usize,
}

impl Twister {
    const LEN: usize = 624;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::LEN];
        for i in 1..Self::LEN {
            let last = state[i - 1];
            state[i] = (last ^ last >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, at: Self::LEN }
    }

    fn next(&mut self) -> u32 {
        if self.at == Self::LEN {
            for i in 0..Self::LEN {
                let joined = self.state[i] & 0x8000_0000 | self.state[(i + 1) % Self::LEN] & 0x7fff_ffff;
                let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % Self::LEN] ^ joined >> 1 ^ twist;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    /// A number in [0, 1) with 53 random bits.
    fn uniform(&mut self) -> f64 {
        let (high, low) = (self.next() >> 5, self.next() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }
}

fn fill_mask(mask: &mut ViewMut<'_>, keep: impl Fn(usize) -> bool) -> Result<(), OpError> {
    let dtype = mask.dtype();
    if dtype == DType::Bool {
        mask.slice::<bool>()?.iter_mut().enumerate().for_each(|(i, mask)| *mask = keep(i));
        return Ok(());
    }
    with_float!(dtype, T => {
        mask.slice::<T>()?.iter_mut().enumerate().for_each(|(i, mask)| *mask = if keep(i) { T::ONE } else { T::ZERO });
        Ok(())
    }, else Err(OpError::wrong_type(DType::Bool, dtype)))
}

impl Dropout {
    /// The share of elements to drop, and the factor on the others, in the precision of the ratio.
    fn ratio(&self, inputs: &Inputs<'_>) -> Result<(f64, f64), OpError> {
        fn of<T: Number>(ratio: T) -> (f64, f64) {
            (ratio.to_f64(), Number::div(T::ONE, Number::sub(T::ONE, ratio)).to_f64())
        }
        let (ratio, scale) = match inputs.get(1).filter(|_| self.mode == Mode::Input) {
            None => of(self.ratio),
            Some(given) => with_float!(given.dtype(), T => match given.slice::<T>()? {
                [ratio] => of(*ratio),
                _ => return Err(OpError::shape(format!("the ratio has shape {:?}", given.shape()))),
            }, else return Err(OpError::wrong_type(DType::F32, given.dtype()))),
        };
        if (0.0..1.0).contains(&ratio) { Ok((ratio, scale)) } else { Err(OpError::value(format!("the ratio {ratio} is not in [0, 1)"))) }
    }

    fn trains(&self, inputs: &Inputs<'_>) -> Result<bool, OpError> {
        Ok(match self.mode {
            Mode::Serving => false,
            Mode::Training => true,
            Mode::Input => inputs.at(2)?.slice::<bool>()?.first() == Some(&true),
        })
    }
}

impl Op for Dropout {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let kind = same_type(inputs, 1, [0])?.swap_remove(0);
        let mask = if self.bool_mask { Kind::Tensor(DType::Bool) } else { kind.clone() };
        Ok(smallvec![kind, mask])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape: Shape = inputs.shape(0)?.into();
        Ok(vec![shape.clone(), shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let (ratio, scale) = if self.trains(inputs)? { self.ratio(inputs)? } else { (0.0, 1.0) };
        if ratio == 0.0 {
            if let Some(y) = outputs.get(0) {
                y.data().copy_from(0, &x.data());
            }
            return outputs.get(1).map_or(Ok(()), |mask| fill_mask(mask, |_| true));
        }
        let seed = self.seed.unwrap_or_else(|| (self.runs.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed) >> 32) as u32);
        let mut twister = Twister::new(seed);
        let keep: Vec<bool> = (0..x.len()).map(|_| twister.uniform() >= ratio).collect();
        if let Some(y) = outputs.get(0) {
            with_float!(x.dtype(), T => {
                for ((y, x), &keep) in y.slice::<T>()?.iter_mut().zip(x.slice::<T>()?).zip(&keep) {
                    // A product, so that what is not finite stays so.
                    *y = T::from_f64(x.to_f64() * f64::from(u8::from(keep)) * scale);
                }
            }, else return Err(OpError::wrong_type(DType::F32, x.dtype())));
        }
        outputs.get(1).map_or(Ok(()), |mask| fill_mask(mask, |i| keep[i]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    #[test]
    fn serving_keeps_everything() {
        let x = tensor(&[2], &[1.0_f32, f32::INFINITY]);
        assert_eq!(op("Dropout").opset(11).attr("ratio", 0.9_f32).one(&[&x]), x);
        let old = op("Dropout").opset(1).attr("is_test", 1_i64).attr("consumed_inputs", &[0_i64][..]);
        assert_eq!(old.one(&[&x]), x);
        let masked = op("Dropout").outputs(2).run(&[&x]).unwrap();
        assert_eq!(masked, [x.clone(), tensor(&[2], &[true, true])]);
        assert_eq!(op("Dropout").opset(7).outputs(2).run(&[&x]).unwrap()[1], tensor(&[2], &[1.0_f32, 1.0]));
        let (half, none, on, off) = (Tensor::scalar(0.5_f32), Tensor::scalar(0.0_f32), Tensor::scalar(true), Tensor::scalar(false));
        assert_eq!(op("Dropout").one(&[&x, &half, &off]), x);
        assert_eq!(op("Dropout").one(&[&x, &none, &on]), x);
    }

    #[test]
    fn the_twister_is_that_of_numpy() {
        // numpy.random.RandomState(0).uniform(0, 1, 3)
        let mut twister = Twister::new(0);
        assert_eq!([0, 1, 2].map(|_| twister.uniform()), [0.548_813_503_927_324_8, 0.715_189_366_372_419_5, 0.602_763_376_071_643_9]);
    }

    #[test]
    fn training_drops_at_random() {
        let (x, on) = (tensor(&[1000], &[1.0_f32; 1000]), Tensor::scalar(true));
        let case = || op("Dropout").attr("seed", 7_i64).outputs(2);
        for ratio in [0.25_f32, 0.9] {
            let found = case().run(&[&x, &Tensor::scalar(ratio), &on]).unwrap();
            let mask = found[1].slice::<bool>().unwrap();
            let kept = mask.iter().filter(|&&keep| keep).count() as f32;
            assert!((kept - 1000.0 * (1.0 - ratio)).abs() < 60.0, "{kept} of 1000 were kept at {ratio}");
            let want: Vec<f32> = mask.iter().map(|&keep| if keep { 1.0 / (1.0 - ratio) } else { 0.0 }).collect();
            assert_close(&found[0], &[1000], &want, 1e-6);
        }
        let default = case().run_some(&[Some(&x), None, Some(&on)]).unwrap();
        assert_eq!(default, case().run(&[&x, &Tensor::scalar(0.5_f32), &on]).unwrap());
        // Without a seed, runs differ.
        let op = op("Dropout").build(&[Some(&x), None, Some(&on)]).unwrap();
        assert_ne!(dropped(&*op, &x, &on), dropped(&*op, &x, &on));
    }

    fn dropped(op: &dyn Op, x: &Tensor, on: &Tensor) -> Tensor {
        let (mut scratch, threads) = (Default::default(), crate::engine::threads::Threads::single());
        let mut ctx = Context { scratch: &mut scratch, threads: &threads, isa: crate::engine::kernels::isa::Isa::best(), budget: 1 << 30, deadline: None };
        let mut y = x.data().to_buffer();
        op.run(&Inputs(&[Some(x.view()), None, Some(on.view())]), &mut Outputs(&mut [Some(y.view_mut(x.shape()))]), &mut ctx).unwrap();
        y.into_tensor(x.shape()).unwrap()
    }

    #[test]
    fn a_ratio_out_of_range_is_an_error() {
        let (x, on) = (tensor(&[2], &[1.0_f32, 2.0]), Tensor::scalar(true));
        for ratio in [1.0_f32, -0.1, f32::NAN] {
            assert!(matches!(op("Dropout").error(&[&x, &Tensor::scalar(ratio), &on]), OpError::Value(_)));
        }
        assert!(matches!(op("Dropout").error(&[&x, &tensor(&[2], &[0.5_f32; 2]), &on]), OpError::Shape(_)));
        assert!(matches!(op("Dropout").error(&[&x, &Tensor::scalar(0.5_f32), &Tensor::scalar(1_i64)]), OpError::Type(_)));
    }
}
