//! The operator table. One file per family: each operator's struct, its `impl Op`, its row in `DEFS`, its tests.

use super::adjoint::Rule;
use super::dtype::DType;
use super::op::{OpDef, OpError};

/// The newest opset of `ai.onnx` that the table knows.
pub const LATEST_OPSET: u16 = 28;

/// No upper bound: a domain of its own versions, or an operator that has not changed since.
const ANY: u16 = u16::MAX;

/// Declares the family modules and the table of their rows together.
macro_rules! families {
    ($($family:ident),* $(,)?) => {
        $(pub(crate) mod $family;)*
        const FAMILIES: &[&[OpDef]] = &[$($family::DEFS),*];
    };
}

mod axes;
mod broadcast;
mod chain;
mod columns;
pub(crate) mod conv_last;
mod integer_product;
mod legacy;
mod ml_scores;
mod number;
pub(crate) mod pool_last;
mod product;
mod qlinear;
mod qlinear_conv_packed;
mod qlinear_scaling;
mod real;
mod residual;
mod scalar;
mod sum_to;
mod window;

#[cfg(test)]
pub(crate) mod testing;

families![
    activation,
    arithmetic,
    attention,
    batch_norm,
    bias,
    bitwise,
    cast,
    cast_by_name,
    causal_conv,
    compare,
    compress,
    constant,
    control,
    conv,
    conv_transpose,
    cumulative,
    deform_conv,
    depth,
    dequantize,
    detection,
    dropout,
    einsum,
    experimental,
    fused,
    gather,
    gemm,
    generate,
    generation,
    geometry,
    grid_sample,
    hash,
    identity,
    image_decoder,
    layout,
    linalg,
    loss,
    matmul,
    ml,
    ml_labels,
    ml_linear,
    ml_maps,
    ml_svm,
    moe,
    normalization,
    optional,
    pad,
    pool,
    qlinear_attention,
    qlinear_conv,
    qlinear_elementwise,
    qlinear_embed,
    qlinear_matmul,
    qlinear_pool,
    quantize,
    quantize_dynamic,
    quantize_gather,
    quantize_nbits,
    random,
    recurrent,
    reduce,
    reshape,
    resize,
    reverse_sequence,
    scatter,
    search,
    sequence,
    signal,
    skip_norm,
    softmax,
    spectrum,
    swiglu,
    text,
    training,
    tree,
    unary,
    unique,
    unpool,
];

/// The gradients of a family stand beside its operators, in the module `gradient` of its file.
macro_rules! differentiable {
    ($($family:ident),* $(,)?) => {
        const RULES: &[&[Rule]] = &[$($family::gradient::RULES),*];
    };
}

differentiable![
    activation,
    arithmetic,
    batch_norm,
    cast,
    compare,
    conv,
    cumulative,
    dropout,
    gather,
    gemm,
    identity,
    layout,
    loss,
    matmul,
    normalization,
    pad,
    pool,
    recurrent,
    reduce,
    reshape,
    softmax,
    unary,
];

/// Every row of the table of gradients.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    RULES.iter().copied().flatten()
}

/// The domain of the operators that only rules of gradients emit: no file can name them, so they are not in the table.
pub(crate) const OWN: &str = "ndserve";

/// What names an operator of the engine's own. It computes in f32 or f64, as input 0 has it.
pub(crate) const fn own(name: &'static str) -> OpDef {
    const TYPES: &[DType] = &[DType::F32, DType::F64];
    OpDef { name, domain: OWN, opsets: 1..=1, types: TYPES, build: |_| Err(OpError::Unsupported(String::new())) }
}

/// Every row of the operator table.
pub fn all() -> impl Iterator<Item = &'static OpDef> {
    FAMILIES.iter().copied().flatten()
}

/// The row for an operator under an opset of its domain.
///
/// # Errors
/// Why there is none: the operator is unknown, or known only under other opsets.
pub(crate) fn find(domain: &str, name: &str, opset: u16) -> Result<&'static OpDef, String> {
    let named = || all().filter(|def| def.name == name && def.domain == domain);
    if let Some(def) = named().find(|def| def.opsets.contains(&opset)) {
        return Ok(def);
    }
    let ranges = named().map(|def| match (*def.opsets.start(), *def.opsets.end()) {
        (from, ANY) => format!("from opset {from}"),
        (from, to) => format!("in opsets {from} to {to}"),
    });
    let ranges: Vec<String> = ranges.collect();
    Err(if ranges.is_empty() {
        "the operator is not supported".to_owned()
    } else {
        format!("the operator is supported {}", ranges.join(" and "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rows_claim_the_same_opset() {
        for a in all() {
            let rows = all().filter(|b| a.name == b.name && a.domain == b.domain);
            let overlapping = rows.filter(|b| a.opsets.start() <= b.opsets.end() && b.opsets.start() <= a.opsets.end());
            assert_eq!(overlapping.count(), 1, "{} {:?}", a.name, a.opsets);
        }
    }

    /// Operators of `com.microsoft` that ONNX Runtime's optimiser and exporters write; files with `com.microsoft.nchwc` are for
    /// one machine, and refused.
    #[test]
    fn what_exporters_write_of_com_microsoft_has_a_row() {
        const WRITTEN: &str = "FusedMatMul FusedGemm FusedConv BiasGelu Gelu QuickGelu SkipLayerNormalization DynamicQuantizeMatMul \
            MatMulIntegerToFloat QLinearAdd QLinearGlobalAveragePool QGemm Attention MultiHeadAttention GroupQueryAttention PackedAttention \
            PackedMultiHeadAttention EmbedLayerNormalization SkipSimplifiedLayerNormalization SimplifiedLayerNormalization FastGelu \
            BiasSplitGelu RotaryEmbedding MatMulNBits GatherBlockQuantized QMoE MoE QAttention QEmbedLayerNormalization DynamicQuantizeLSTM \
            QLinearMul QLinearSigmoid QLinearLeakyRelu QLinearSoftmax QLinearConcat QLinearAveragePool QLinearConv NhwcMaxPool QuantizeLinear \
            DequantizeLinear BiasAdd BiasSoftmax Pad Unique NGramRepeatBlock BeamSearch GreedySearch GatherND Inverse TransposeMatMul \
            ExpandDims ReduceSumInteger Tokenizer CDist";
        let missing: Vec<&str> = WRITTEN.split_whitespace().filter(|name| find("com.microsoft", name, 1).is_err()).collect();
        assert_eq!(missing, [""; 0]);
        assert!(find("", "SimplifiedLayerNormalization", 17).is_ok());
        assert!(find("com.microsoft.nchwc", "Conv", 1).is_err());
    }

    /// A tensor without elements may still have an axis that nobody could walk along, or allocate for.
    #[test]
    fn huge_axes_of_empty_tensors_cost_nothing() {
        use crate::engine::dtype::DType;
        use crate::engine::tensor::Tensor;
        use testing::op;
        const HUGE: usize = 1 << 40;
        let wide = Tensor::zeros(DType::F32, &[0, HUGE]);
        let tall = Tensor::zeros(DType::F32, &[HUGE, 0]);
        let (one, axis) = (Tensor::scalar(1.0_f32), Tensor::vector(vec![1_i64]));
        let runs: Vec<(testing::Case, Vec<&Tensor>)> = vec![
            (op("ReduceSum"), vec![&wide, &axis]),
            (op("LayerNormalization"), vec![&wide, &one]),
            (op("Softmax"), vec![&wide]),
            (op("Softmax"), vec![&tall]),
            (op("Gemm"), vec![&tall, &wide, &one]),
            (op("Gemm").attr("transA", 1_i64), vec![&tall, &tall, &one]),
            (op("MatMul"), vec![&wide, &tall]),
            (op("Concat").attr("axis", 1_i64), vec![&tall, &tall]),
            (op("Split").attr("axis", 1_i64).outputs(2), vec![&tall]),
            (op("Gather").attr("axis", 1_i64), vec![&wide, &axis]),
            (op("Add"), vec![&wide, &one]),
            (op("Transpose"), vec![&tall]),
            (op("CumSum"), vec![&tall, &axis]),
            (op("TopK").outputs(2), vec![&wide, &axis]),
            (op("ArgMax").attr("axis", 1_i64), vec![&wide]),
            (op("NonZero"), vec![&tall]),
            (op("Trilu"), vec![&wide]),
            (op("Slice"), vec![&wide, &axis, &axis]),
            (op("Einsum").attr("equation", "ij,jk->ik"), vec![&wide, &tall]),
            (op("DFT"), vec![&tall]),
            (op("Det"), vec![&wide]),
        ];
        for (case, inputs) in runs {
            // An error is an answer too: what counts is that there is one.
            let _ = case.run(&inputs);
        }
    }
}
