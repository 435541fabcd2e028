//! Products as ONNX Runtime's optimiser writes them: with an activation, a factor or transposed operands in one operator.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::smallvec;

use super::ANY;
use super::axes::{offsets, same_type, strides};
use super::conv::{Conv, conv};
use super::matmul::{MatMul, narrow};
use super::number::{Number, with_float};
use super::product::flops;
use crate::engine::attrs::{Attr, Attrs};
use crate::engine::dtype::DType;
use crate::engine::kernels::epilogue::Activation;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::kernels::weights::Precision;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Shape, types};
use crate::engine::tensor::{Buffer, Kind, Tensor};
use crate::engine::view::{View, ViewMut};

const fn def(name: &'static str, types: &'static [DType], build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "com.microsoft", opsets: 1..=ANY, types, build }
}

const GEMM_TYPES: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I32, DType::I64, DType::U32, DType::U64];

pub(crate) const DEFS: &[OpDef] = &[
    def("FusedConv", types::FLOATS, fused_conv),
    def("FusedGemm", GEMM_TYPES, fused_gemm),
    def("FusedMatMul", types::FLOATS, fused_matmul),
    def("TransposeMatMul", types::FLOATS, fused_matmul),
];

/// An operator of the default domain, out of the table.
pub(crate) fn standard(name: &str, opset: u16, attrs: &[(&str, Attr)], inputs: usize) -> Result<Box<dyn Op>, OpError> {
    let def = super::find("", name, opset).map_err(OpError::Unsupported)?;
    let values: BTreeMap<String, Attr> = attrs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    (def.build)(&Attrs::new(values, opset, vec![true; inputs], vec![true]))
}

/// The elementwise operator that follows, by its name in the standard and its parameters in their order; those that are not
/// given have the standard's defaults.
fn activation_op(name: &str, given: &[Option<f32>]) -> Result<Arc<dyn Op>, OpError> {
    let names: &[&str] = match name {
        "Relu" | "Tanh" | "Sigmoid" | "Softplus" | "Softsign" => &[],
        "LeakyRelu" | "Elu" | "ThresholdedRelu" | "Celu" => &["alpha"],
        "HardSigmoid" => &["alpha", "beta"],
        "Clip" => &["min", "max"],
        other => return Err(OpError::unsupported(format!("activation `{other}` is not supported"))),
    };
    let attrs: Vec<(&str, Attr)> = names.iter().zip(given).filter_map(|(&name, value)| Some((name, Attr::Float((*value)?)))).collect();
    // Clip has attributes up to opset 10; Celu is newer.
    standard(name, if name == "Celu" { 12 } else { 10 }, &attrs, 1).map(Arc::from)
}

/// A product, and an activation in place.
#[derive(Debug)]
struct Then {
    first: Box<dyn Op>,
    activation: Arc<dyn Op>,
}

impl Op for Then {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        self.first.kinds(inputs)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        self.first.shapes(inputs)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.first.run(inputs, outputs, ctx)?;
        self.activation.run_in_place(0, &Inputs(&[None]), outputs, ctx)
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let Prepacked { op, consumed } = self.first.prepack(constants, isa)?;
        Some(Prepacked { op: Box::new(Self { first: op, activation: Arc::clone(&self.activation) }), consumed })
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        self.first.flops(inputs)
    }

    fn arithmetic(&self) -> Arithmetic {
        self.first.arithmetic()
    }

    fn packed_bytes(&self) -> usize {
        self.first.packed_bytes()
    }

    fn row_wise(&self, inputs: &Facts<'_>) -> bool {
        self.first.row_wise(inputs) && self.activation.row_wise(inputs)
    }
}

fn fused_gemm(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let mut values: Vec<(&str, Attr)> = Vec::new();
    for name in ["alpha", "beta"] {
        values.extend(attrs.float(name)?.map(|value| (name, Attr::Float(value))));
    }
    for name in ["transA", "transB"] {
        values.extend(attrs.int(name)?.map(|value| (name, Attr::Int(value))));
    }
    let first = standard("Gemm", 13, &values, attrs.inputs.len())?;
    let given = [attrs.float("activation_alpha")?, attrs.float("activation_beta")?, attrs.float("activation_gamma")?];
    match attrs.string_or("activation", "")?.as_str() {
        "" => Ok(first),
        name => Ok(Box::new(Then { first, activation: activation_op(name, &given)? })),
    }
}

/// `activation(x * w + bias + z)`; input 3, z, may be missing.
#[derive(Debug)]
struct FusedConv {
    plain: Conv,
    /// The same with the activation in its kernel, which only f32 has, and only where nothing comes between.
    fused: Conv,
    activation: Option<Arc<dyn Op>>,
    adds: bool,
}

fn fused_conv(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let plain = conv(attrs)?;
    let name = attrs.string_or("activation", "")?;
    let given: Vec<Option<f32>> = attrs.floats("activation_params")?.unwrap_or_default().into_iter().map(Some).collect();
    let parameter = |i: usize, default: f32| given.get(i).copied().flatten().unwrap_or(default);
    let kernel = match name.as_str() {
        "Relu" => Activation::Relu,
        "Tanh" => Activation::Tanh,
        "Sigmoid" => Activation::Sigmoid,
        "LeakyRelu" => Activation::LeakyRelu { alpha: parameter(0, 0.01) },
        "Clip" => Activation::Clip { min: parameter(0, f32::NEG_INFINITY), max: parameter(1, f32::INFINITY) },
        "HardSigmoid" => Activation::HardSigmoid { alpha: parameter(0, 0.2), beta: parameter(1, 0.5) },
        _ => Activation::None,
    };
    let fused = plain.clone().with(kernel);
    let activation = if name.is_empty() { None } else { Some(activation_op(&name, &given)?) };
    let adds = attrs.inputs.get(3) == Some(&true);
    Ok(Box::new(FusedConv { plain, fused, activation, adds }))
}

impl FusedConv {
    /// Whether the kernel applies the activation itself.
    fn in_kernel(&self) -> bool {
        !self.adds && (self.activation.is_none() || self.fused.activation != Activation::None)
    }
}

impl Op for FusedConv {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..4)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shapes = self.plain.shapes(&Facts(&inputs.0[..inputs.len().min(3)]))?;
        if self.adds && inputs.shape(3)? != &shapes[0][..] {
            return Err(OpError::shape(format!("input 3 has shape {:?}, the output {:?}", inputs.shape(3)?, shapes[0].as_slice())));
        }
        Ok(shapes)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let dtype = inputs.at(0)?.dtype();
        // Conv would add input 3 as well, but only of f32.
        let operands = Inputs(&inputs.0[..inputs.len().min(3)]);
        if dtype != DType::F64 && self.in_kernel() {
            return self.fused.run(&operands, outputs, ctx);
        }
        self.plain.run(&operands, outputs, ctx)?;
        if self.adds {
            let (z, y) = (inputs.at(3)?, outputs.at(0)?);
            with_float!(dtype, T => {
                y.slice::<T>()?.iter_mut().zip(z.slice::<T>()?).for_each(|(y, z)| *y = Number::add(*y, *z));
            }, else return Err(OpError::wrong_type(DType::F32, dtype)));
        }
        match &self.activation {
            Some(activation) => activation.run_in_place(0, &Inputs(&[None]), outputs, ctx),
            None => Ok(()),
        }
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        if self.in_kernel() { self.fused.prepack(constants, isa) } else { None }
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        self.plain.flops(inputs)
    }
}

/// How an operand lies in memory, against how it is multiplied.
#[derive(Clone, Copy, Debug)]
struct Side {
    /// The last two dimensions are exchanged.
    transposed: bool,
    /// The first dimension is the row, behind which the batch follows.
    batch_inside: bool,
}

impl Side {
    fn plain(self) -> bool {
        !self.transposed && !self.batch_inside
    }

    /// Which dimension of the operand each dimension of the factor is; vectors stay as they are.
    fn order(self, rank: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..rank).collect();
        if rank >= 2 && self.batch_inside {
            order[..rank - 1].rotate_left(1);
        }
        if rank >= 2 && self.transposed {
            order.swap(rank - 2, rank - 1);
        }
        order
    }

    fn shape(self, shape: &[usize]) -> Shape {
        self.order(shape.len()).into_iter().map(|d| shape[d]).collect()
    }

    /// The factor as a tensor of its own; of f32 for the types that compute so.
    fn tensor(self, x: View<'_>) -> Result<Tensor, OpError> {
        fn copy<T: Copy, Y: crate::engine::dtype::Element>(side: Side, x: &[T], shape: &[usize], f: impl Fn(T) -> Y) -> Option<Tensor> {
            let (from, order) = (strides(shape), side.order(shape.len()));
            let steps: Vec<isize> = order.iter().map(|&d| from[d] as isize).collect();
            let dims = side.shape(shape);
            let mut values = Vec::with_capacity(x.len());
            offsets(&dims, &steps, 0, |at| values.push(f(x[at as usize])));
            Tensor::new(&dims, values)
        }
        let factor = with_float!(x.dtype(), T => match x.dtype() {
            DType::F64 => copy(self, x.slice::<f64>()?, x.shape(), |v| v),
            _ => copy(self, x.slice::<T>()?, x.shape(), |v| v.to_f64() as f32),
        }, else return Err(OpError::wrong_type(DType::F32, x.dtype())));
        factor.ok_or_else(|| OpError::shape("the operands do not fit"))
    }
}

/// `alpha * a · b` with operands that lie otherwise.
#[derive(Clone, Debug)]
struct FusedMatMul {
    alpha: f32,
    a: Side,
    b: Side,
}

const PLAIN: MatMul = MatMul { activation: Activation::None, precision: Precision::F32 };

fn fused_matmul(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let side = |transposed: &str, batch: &str| {
        Ok::<_, OpError>(Side { transposed: attrs.bool_or(transposed, false)?, batch_inside: attrs.bool_or(batch, false)? })
    };
    let (a, b) = (side("transA", "transBatchA")?, side("transB", "transBatchB")?);
    Ok(Box::new(FusedMatMul { alpha: attrs.float_or("alpha", 1.0)?, a, b }))
}

/// The shape of a product of factors of these shapes.
fn product_shape(a: Shape, b: Shape) -> Result<Vec<Shape>, OpError> {
    use crate::engine::op::Fact;
    let (a, b) = (Fact::shaped(DType::F32, a), Fact::shaped(DType::F32, b));
    PLAIN.shapes(&Facts(&[Some(&a), Some(&b)]))
}

/// Multiplies through `op`, whose factors are `inputs`, and by alpha.
fn scaled(op: &dyn Op, alpha: f32, inputs: &Inputs<'_>, y: &mut ViewMut<'_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
    let shape = y.shape();
    let wide = if y.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mut buffer = Buffer::new(wide);
    buffer.grow(shape.iter().product());
    op.run(inputs, &mut Outputs(&mut [Some(buffer.view_mut(shape))]), ctx)?;
    let mut result = buffer.view_mut(shape);
    if wide == DType::F64 {
        y.slice::<f64>()?.iter_mut().zip(result.slice::<f64>()?).for_each(|(y, v)| *y = f64::from(alpha) * *v);
        return Ok(());
    }
    let values = result.slice::<f32>()?;
    values.iter_mut().for_each(|v| *v *= alpha);
    narrow(values, y)
}

impl Op for FusedMatMul {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        product_shape(self.a.shape(inputs.shape(0)?), self.b.shape(inputs.shape(1)?))
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (a, b) = (inputs.at(0)?, inputs.at(1)?);
        let keeps = |side: Side, x: View<'_>| side.plain() && matches!(x.dtype(), DType::F32 | DType::F64);
        let own = |side: Side, x: View<'_>| if keeps(side, x) { Ok(None) } else { side.tensor(x).map(Some) };
        let (own_a, own_b) = (own(self.a, a)?, own(self.b, b)?);
        let factors = [Some(own_a.as_ref().map_or(a, Tensor::view)), Some(own_b.as_ref().map_or(b, Tensor::view))];
        scaled(&PLAIN, self.alpha, &Inputs(&factors), outputs.at(0)?, ctx)
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let b = constants.get(1).copied().flatten().filter(|b| b.dtype() == DType::F32)?;
        let factor = self.b.tensor(b.view()).ok()?;
        let product = PLAIN.prepack(&[None, Some(&factor)], isa)?.op;
        let op = PackedFusedMatMul { fused: self.clone(), product, b_shape: factor.shape().into() };
        Some(Prepacked { op: Box::new(op), consumed: smallvec![1] })
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let depth = inputs.shape(0).map(|a| self.a.shape(a).last().copied().unwrap_or(1));
        let output = self.shapes(inputs).map(|shapes| shapes[0].iter().fold(2_u64, |product, &n| product.saturating_mul(n as u64)));
        depth.and_then(|depth| Ok(output?.saturating_mul(depth as u64))).unwrap_or(0)
    }
}

/// FusedMatMul with a constant matrix on the right.
#[derive(Debug)]
struct PackedFusedMatMul {
    fused: FusedMatMul,
    product: Box<dyn Op>,
    b_shape: Shape,
}

impl Op for PackedFusedMatMul {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        product_shape(self.fused.a.shape(inputs.shape(0)?), self.b_shape.clone())
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let a = inputs.at(0)?;
        let own = if self.fused.a.plain() { None } else { Some(self.fused.a.tensor(a)?) };
        let factor = own.as_ref().map_or(a, Tensor::view);
        scaled(&*self.product, self.fused.alpha, &Inputs(&[Some(factor)]), outputs.at(0)?, ctx)
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let (Ok(a), [_, n]) = (inputs.shape(0), &*self.b_shape) else { return 0 };
        flops(a.iter().product(), 1, *n)
    }

    fn arithmetic(&self) -> Arithmetic {
        self.product.arithmetic()
    }

    fn packed_bytes(&self) -> usize {
        self.product.packed_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, assert_close, noise, op, tensor};
    use super::*;

    fn ms(name: &'static str) -> Case {
        op(name).domain("com.microsoft").opset(1)
    }

    #[test]
    fn convolutions_with_a_sum_and_an_activation() {
        let (x, w, z) = (tensor(&[1, 2, 4, 4], &noise(32, 1)), tensor(&[3, 2, 2, 2], &noise(24, 2)), tensor(&[1, 3, 3, 3], &noise(27, 3)));
        let plain = op("Conv").one(&[&x, &w]);
        let of = |t: &Tensor| t.slice::<f32>().unwrap().to_vec();
        let relu: Vec<f32> = of(&plain).iter().map(|v| v.max(0.0)).collect();
        assert_close(&ms("FusedConv").attr("activation", "Relu").one(&[&x, &w]), plain.shape(), &relu, 1e-6);
        assert_eq!(ms("FusedConv").one(&[&x, &w]), plain);
        let sum: Vec<f32> = of(&plain).iter().zip(of(&z)).map(|(y, z)| (y + z).clamp(-0.5, 0.5)).collect();
        let clipped = ms("FusedConv").attr("activation", "Clip").attr("activation_params", &[-0.5_f32, 0.5][..]);
        assert_close(&clipped.run_some(&[Some(&x), Some(&w), None, Some(&z)]).unwrap()[0], plain.shape(), &sum, 1e-6);
        let wide = |t: &Tensor| tensor(t.shape(), &of(t).iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
        let y = ms("FusedConv").attr("activation", "LeakyRelu").attr("activation_params", &[0.5_f32][..]).one(&[&wide(&x), &wide(&w)]);
        let leaky = of(&plain).iter().map(|&v| if v < 0.0 { 0.5 * v } else { v }).collect::<Vec<_>>();
        assert_close(&tensor(y.shape(), &y.slice::<f64>().unwrap().iter().map(|&v| v as f32).collect::<Vec<_>>()), plain.shape(), &leaky, 1e-5);
        assert!(matches!(ms("FusedConv").attr("activation", "Sine").error(&[&x, &w]), OpError::Unsupported(_)));
        assert!(matches!(ms("FusedConv").run_some(&[Some(&x), Some(&w), None, Some(&x)]), Err(OpError::Shape(_))));
    }

    #[test]
    fn gemm_with_an_activation() {
        let (a, b) = (tensor(&[2, 3], &noise(6, 1)), tensor(&[4, 3], &noise(12, 2)));
        let plain = op("Gemm").attr("transB", 1_i64).attr("alpha", 2.0_f32).one(&[&a, &b]);
        let case = || ms("FusedGemm").attr("transB", 1_i64).attr("alpha", 2.0_f32);
        assert_eq!(case().one(&[&a, &b]), plain);
        let elu: Vec<f32> = plain.slice::<f32>().unwrap().iter().map(|&v| if v < 0.0 { 0.5 * v.exp_m1() } else { v }).collect();
        assert_close(&case().attr("activation", "Elu").attr("activation_alpha", 0.5_f32).one(&[&a, &b]), &[2, 4], &elu, 1e-5);
        assert!(matches!(case().attr("activation", "Sine").error(&[&a, &b]), OpError::Unsupported(_)));
    }

    #[test]
    fn products_of_operands_that_lie_otherwise() {
        let (a, b) = (tensor(&[2, 3, 4], &noise(24, 1)), tensor(&[2, 4, 5], &noise(40, 2)));
        let permuted = |t: &Tensor, perm: &[i64]| op("Transpose").attr("perm", perm).one(&[t]);
        let plain = op("MatMul").one(&[&a, &b]);
        let want: Vec<f32> = plain.slice::<f32>().unwrap().iter().map(|v| v * 0.5).collect();
        let case = || ms("FusedMatMul").attr("alpha", 0.5_f32);
        assert_close(&case().one(&[&a, &b]), plain.shape(), &want, 0.0);
        let across = case().attr("transA", 1_i64).attr("transB", 1_i64);
        assert_close(&across.one(&[&permuted(&a, &[0, 2, 1]), &permuted(&b, &[0, 2, 1])]), plain.shape(), &want, 0.0);
        // The batch lies behind the row.
        let inside = case().attr("transBatchA", 1_i64).attr("transBatchB", 1_i64).attr("transB", 1_i64);
        assert_close(&inside.one(&[&permuted(&a, &[1, 0, 2]), &permuted(&b, &[2, 0, 1])]), plain.shape(), &want, 0.0);
        let (m, n) = (tensor(&[3, 4], &noise(12, 3)), tensor(&[5, 4], &noise(20, 4)));
        let flat = op("Gemm").attr("transB", 1_i64).one(&[&m, &n]);
        assert_close(&ms("TransposeMatMul").attr("transB", 1_i64).one(&[&m, &n]), &[3, 5], flat.slice().unwrap(), 1e-6);
        // A vector has nothing to exchange.
        let v = tensor(&[4], &noise(4, 5));
        assert_eq!(ms("FusedMatMul").attr("transB", 1_i64).one(&[&m, &v]), op("MatMul").one(&[&m, &v]));
        assert!(matches!(ms("FusedMatMul").attr("transA", 1_i64).error(&[&m, &n]), OpError::Shape(_)));
        let half = |t: &Tensor| tensor(t.shape(), &t.slice::<f32>().unwrap().iter().map(|&v| half::f16::from_f32(v)).collect::<Vec<_>>());
        assert_eq!(ms("FusedMatMul").attr("transB", 1_i64).one(&[&half(&m), &half(&n)]).dtype(), DType::F16);
    }
}
