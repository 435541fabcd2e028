//! Puts operators on codes in the place of operators on floats between DequantizeLinear and QuantizeLinear, as tools for static
//! quantisation write them.
//!
//! The sums of codes are exact where those of floats are rounded, and scales are multiplied once. So a code may differ by one from that
//! of the graph as written, where a number lies within rounding of the middle between two codes.

use std::collections::BTreeMap;

use super::pattern::{Links, attached, put, scalar};
use crate::engine::attrs::Attr;
use crate::engine::dtype::DType;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::model::LoadOptions;
use crate::engine::tensor::{Kind, Tensor};

pub(super) fn run(graph: &mut Graph, options: &LoadOptions) {
    if !graph.nodes.iter().any(|node| node.def.name == "DequantizeLinear") {
        return;
    }
    let (mut links, mut changed) = (Links::of(graph), false);
    // In topological order: codes that pass through one operator are found by the next.
    for position in 0..graph.nodes.len() {
        if Rewrite::at(graph, &links, position).is_some() {
            (links, changed) = (Links::of(graph), true);
        }
    }
    if changed {
        super::dead_code::run(graph, options);
    }
}

/// Codes and what they stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Quantised {
    codes: ValueId,
    scale: ValueId,
    zero: ValueId,
    dtype: DType,
}

/// One operator on floats that may become one on codes.
struct Rewrite<'g> {
    graph: &'g mut Graph,
    links: &'g Links,
}

impl Rewrite<'_> {
    /// Rewrites the node at a position, if it is such an operator.
    fn at(graph: &mut Graph, links: &Links, position: usize) -> Option<()> {
        let node = &graph.nodes[position];
        if !node.def.domain.is_empty() {
            return None;
        }
        let name = node.def.name;
        let mut rewrite = Rewrite { graph, links };
        match name {
            "Conv" => rewrite.conv(position),
            "Gemm" => rewrite.gemm(position),
            "MatMul" => rewrite.matmul(position),
            "Add" | "Mul" => rewrite.pair(position),
            "GlobalAveragePool" => rewrite.global_average(position),
            "MaxPool" | "Flatten" | "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Slice" | "Gather" => rewrite.moved(position),
            _ => None,
        }
    }

    /// What a value is the DequantizeLinear of, with a scale for all codes, or for each index of an axis of a constant.
    fn dequantised(&mut self, id: ValueId, axis: Option<i64>) -> Option<Quantised> {
        let node = &self.graph.nodes[self.links.producer(id)?];
        if node.def.name != "DequantizeLinear" || attached(node, "block_size", 0) != 0 {
            return None;
        }
        let (codes, scale, zero) = (node.inputs[0]?, node.inputs[1]?, node.inputs.get(2).copied().flatten());
        let dtype = self.graph.values[codes.index()].kind.as_ref().and_then(Kind::dtype)?;
        let scales = self.graph.constants.get(&scale).filter(|scale| scale.dtype() == DType::F32)?;
        let along = match (scales.len(), axis) {
            (1, _) => true,
            (_, Some(axis)) => attached(node, "axis", 1) == axis && scales.shape().len() == 1 && self.graph.constants.contains_key(&codes),
            _ => false,
        };
        if !along || !matches!(dtype, DType::U8 | DType::I8) {
            return None;
        }
        let zero = match zero {
            Some(zero) => self.graph.constants.contains_key(&zero).then_some(zero)?,
            None => self.constant(format!("{}_zero", self.graph.name(codes)), Tensor::zeros(dtype, &[])),
        };
        Some(Quantised { codes, scale, zero, dtype })
    }

    fn constant(&mut self, name: String, tensor: Tensor) -> ValueId {
        let id = self.graph.add_value(name, Some(Kind::Tensor(tensor.dtype())), None);
        self.graph.constants.insert(id, tensor);
        id
    }

    /// The QuantizeLinear, by position, that alone reads a value, or that alone reads a Relu that alone reads it and that changes no code.
    fn quantised(&mut self, id: ValueId) -> Option<(usize, Quantised)> {
        let mut reader = self.links.only_reader(id)?;
        let relu = self.graph.nodes[reader].def.name == "Relu";
        if relu {
            let [Some(result)] = self.graph.nodes[reader].outputs[..] else { return None };
            reader = self.links.only_reader(result)?;
        }
        let node = &self.graph.nodes[reader];
        if node.def.name != "QuantizeLinear" || attached(node, "block_size", 0) != 0 {
            return None;
        }
        let (scale, zero, codes) = (node.inputs[1]?, node.inputs.get(2).copied().flatten(), node.outputs[0]?);
        scalar::<f32>(self.graph, scale)?;
        let dtype = self.graph.values[codes.index()].kind.as_ref().and_then(Kind::dtype)?;
        if !matches!(dtype, DType::U8 | DType::I8) {
            return None;
        }
        let zero = match zero {
            Some(zero) => zero,
            None => self.constant(format!("{}_zero", self.graph.name(codes)), Tensor::zeros(dtype, &[])),
        };
        let least = match dtype {
            DType::U8 => scalar::<u8>(self.graph, zero)? == u8::MIN,
            _ => scalar::<i8>(self.graph, zero)? == i8::MIN,
        };
        (!relu || least).then_some((reader, Quantised { codes, scale, zero, dtype }))
    }

    /// A bias of floats as integers in units of the sums.
    fn bias(&mut self, id: Option<ValueId>, x: Quantised, w: Quantised, channels: usize) -> Option<Option<ValueId>> {
        let Some(id) = id else { return Some(None) };
        let values: Vec<f64> = self.floats(id)?;
        if values.len() != channels {
            return None;
        }
        let x_scale = f64::from(scalar::<f32>(self.graph, x.scale)?);
        let scales = self.graph.constants.get(&w.scale)?.slice::<f32>()?;
        let unit = |channel: usize| x_scale * f64::from(scales[if scales.len() == 1 { 0 } else { channel }]);
        let integers: Vec<f64> = values.iter().enumerate().map(|(channel, v)| (v / unit(channel)).round_ties_even()).collect();
        // Beyond these a sum may overflow that is none.
        if integers.iter().any(|v| v.is_nan() || v.abs() > f64::from(1 << 30)) {
            return None;
        }
        let integers = Tensor::new(&[channels], integers.into_iter().map(|v| v as i32).collect::<Vec<_>>())?;
        Some(Some(self.constant(format!("{}_codes", self.graph.name(id)), integers)))
    }

    /// The numbers of a constant, or of the DequantizeLinear of one along its only axis.
    fn floats(&self, id: ValueId) -> Option<Vec<f64>> {
        if let Some(constant) = self.graph.constants.get(&id) {
            return (constant.shape().len() == 1).then(|| constant.slice::<f32>().map(|v| v.iter().map(|&v| f64::from(v)).collect()))?;
        }
        let node = &self.graph.nodes[self.links.producer(id)?];
        if node.def.name != "DequantizeLinear" || attached(node, "block_size", 0) != 0 {
            return None;
        }
        let codes = self.graph.constants.get(&node.inputs[0]?).filter(|codes| codes.shape().len() == 1)?;
        let (codes, scale) = (codes.slice::<i32>()?, self.graph.constants.get(&node.inputs[1]?)?.slice::<f32>()?);
        let zeros = match node.inputs.get(2).copied().flatten() {
            Some(zero) => self.graph.constants.get(&zero)?.slice::<i32>()?.to_vec(),
            None => vec![],
        };
        if zeros.iter().any(|&zero| zero != 0) || (scale.len() != 1 && scale.len() != codes.len()) {
            return None;
        }
        Some(codes.iter().enumerate().map(|(i, &code)| f64::from(code) * f64::from(scale[if scale.len() == 1 { 0 } else { i }])).collect())
    }

    fn conv(&mut self, position: usize) -> Option<()> {
        let node = self.graph.nodes[position].clone();
        let (x, w) = (self.dequantised(node.inputs[0]?, None)?, self.dequantised(node.inputs[1]?, Some(0))?);
        let shape = self.graph.constants.get(&w.codes)?.shape();
        let channels = *shape.first()?;
        // Others have no kernel on codes: floats are faster.
        let kernel = attached(&node, "group", 1) == 1 && matches!(shape.len(), 3 | 4) && self.symmetric(w)?;
        if !kernel {
            return None;
        }
        let (at, y) = self.quantised(node.outputs[0]?)?;
        let bias = self.bias(node.inputs.get(2).copied().flatten(), x, w, channels)?;
        let mut inputs = vec![x.codes, x.scale, x.zero, w.codes, w.scale, w.zero, y.scale, y.zero];
        inputs.extend(bias);
        put(&mut self.graph.nodes[at], ("", "QLinearConv", 10), (*node.attributes).clone(), inputs.into_iter().map(Some).collect())
    }

    /// Whether the zero points of constant codes lie in the middle.
    fn symmetric(&self, w: Quantised) -> Option<bool> {
        let zeros = self.graph.constants.get(&w.zero)?;
        Some(match w.dtype {
            DType::U8 => zeros.slice::<u8>()?.iter().all(|&zero| zero == 128),
            _ => zeros.slice::<i8>()?.iter().all(|&zero| zero == 0),
        })
    }

    fn gemm(&mut self, position: usize) -> Option<()> {
        let node = self.graph.nodes[position].clone();
        let across = attached(&node, "transB", 0) != 0;
        let (a, b) = (self.dequantised(node.inputs[0]?, None)?, self.dequantised(node.inputs[1]?, Some(i64::from(!across)))?);
        let &[rows, columns] = self.graph.constants.get(&b.codes)?.shape() else { return None };
        let one = |name: &str| matches!(node.attributes.get(name), None | Some(Attr::Float(1.0)));
        if !one("alpha") || !one("beta") {
            return None;
        }
        let bias = self.bias(node.inputs.get(2).copied().flatten(), a, b, if across { rows } else { columns })?;
        let mut attributes = (*node.attributes).clone();
        attributes.remove("beta");
        let mut inputs: Vec<Option<ValueId>> = [a.codes, a.scale, a.zero, b.codes, b.scale, b.zero].map(Some).to_vec();
        inputs.push(bias);
        let at = match self.quantised(node.outputs[0]?) {
            Some((at, y)) => {
                inputs.extend([Some(y.scale), Some(y.zero)]);
                at
            }
            None => position,
        };
        put(&mut self.graph.nodes[at], ("com.microsoft", "QGemm", 1), attributes, inputs)
    }

    fn matmul(&mut self, position: usize) -> Option<()> {
        let node = self.graph.nodes[position].clone();
        let (a, b) = (self.dequantised(node.inputs[0]?, None)?, self.dequantised(node.inputs[1]?, Some(1))?);
        // Of a batch of matrices axis 1 is that of the rows, along which a scale is no factor of a sum.
        let shared = self.graph.constants.get(&b.scale)?.len() == 1;
        if !shared && self.graph.constants.get(&b.codes)?.shape().len() != 2 {
            return None;
        }
        match self.quantised(node.outputs[0]?) {
            Some((at, y)) => {
                let inputs = [a.codes, a.scale, a.zero, b.codes, b.scale, b.zero, y.scale, y.zero].map(Some).to_vec();
                put(&mut self.graph.nodes[at], ("", "QLinearMatMul", 10), BTreeMap::new(), inputs)
            }
            None => {
                let inputs = [a.codes, b.codes, a.scale, b.scale, a.zero, b.zero].map(Some).to_vec();
                put(&mut self.graph.nodes[position], ("com.microsoft", "MatMulIntegerToFloat", 1), BTreeMap::new(), inputs)
            }
        }
    }

    /// A sum or a product of two tensors.
    fn pair(&mut self, position: usize) -> Option<()> {
        let node = self.graph.nodes[position].clone();
        let (a, b) = (self.dequantised(node.inputs[0]?, None)?, self.dequantised(node.inputs[1]?, None)?);
        let (at, y) = self.quantised(node.outputs[0]?)?;
        if a.dtype != b.dtype || a.dtype != y.dtype {
            return None;
        }
        let inputs = [a.codes, a.scale, a.zero, b.codes, b.scale, b.zero, y.scale, y.zero].map(Some).to_vec();
        let name = if node.def.name == "Add" { "QLinearAdd" } else { "QLinearMul" };
        put(&mut self.graph.nodes[at], ("com.microsoft", name, 1), BTreeMap::new(), inputs)
    }

    fn global_average(&mut self, position: usize) -> Option<()> {
        let node = self.graph.nodes[position].clone();
        let x = self.dequantised(node.inputs[0]?, None)?;
        let (at, y) = self.quantised(node.outputs[0]?)?;
        if x.dtype != y.dtype {
            return None;
        }
        let inputs = [x.codes, x.scale, x.zero, y.scale, y.zero].map(Some).to_vec();
        put(&mut self.graph.nodes[at], ("com.microsoft", "QLinearGlobalAveragePool", 1), BTreeMap::new(), inputs)
    }

    /// What moves elements, or takes the greatest, gives of codes the codes of the result, if both have one scale.
    fn moved(&mut self, position: usize) -> Option<()> {
        let node = self.graph.nodes[position].clone();
        let x = self.dequantised(node.inputs[0]?, None)?;
        let (at, y) = self.quantised(node.outputs[0]?)?;
        let same = |a: ValueId, b: ValueId| a == b || self.graph.constants.get(&a) == self.graph.constants.get(&b);
        let dropped = self.links.only_reader(node.outputs[0]?) == Some(at);
        if x.dtype != y.dtype || !same(x.scale, y.scale) || !same(x.zero, y.zero) || node.outputs.len() != 1 || !dropped {
            return None;
        }
        if !node.def.types.is_empty() && !node.def.types.contains(&x.dtype) {
            return None;
        }
        let mut inputs = node.inputs.clone();
        inputs[0] = Some(x.codes);
        let outputs = self.graph.nodes[at].outputs.clone();
        self.graph.nodes[at] = Node { inputs, outputs, ..node };
        Some(())
    }
}
