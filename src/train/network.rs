//! Networks as lists of layers: each becomes operators of a graph, and says which parameters it has.
//!
//! One description gives three graphs: as it trains, as it is evaluated between epochs, and as it serves.

use serde::Deserialize;

use super::base::{Base, Ids};
use super::error::{Error, Result};
use super::random::Random;
use crate::engine::{Appender, Attr, DType, Dim, Emit, Kind, Tensor, ValueId, drop_out};

/// One size for all dimensions, or one for each.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Sizes {
    /// For all.
    One(usize),
    /// For each.
    Each(Vec<usize>),
}

impl Sizes {
    fn over(&self, rank: usize, key: &str) -> Result<Vec<i64>> {
        match self {
            Self::One(n) => Ok(vec![*n as i64; rank]),
            Self::Each(list) if list.len() == rank => Ok(list.iter().map(|&n| n as i64).collect()),
            Self::Each(list) => Err(Error(format!("`{key}` has {} sizes for {rank} dimensions", list.len()))),
        }
    }
}

/// Zeros around the input of a window.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Padding {
    /// On each side of all dimensions, or of each.
    Sides(Sizes),
    /// "same": as many that a stride of 1 keeps the size; "valid": none.
    Word(String),
}

/// A function of one element.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the variants are named after the functions")]
pub enum Function {
    Relu,
    LeakyRelu,
    Sigmoid,
    Tanh,
    Gelu,
    Elu,
    Selu,
    Silu,
    Softplus,
}

impl Function {
    fn emit(self, emit: &mut dyn Emit, x: ValueId) -> Result<ValueId> {
        let name = match self {
            Self::Relu => "Relu",
            Self::LeakyRelu => "LeakyRelu",
            Self::Sigmoid => "Sigmoid",
            Self::Tanh => "Tanh",
            Self::Gelu => "Gelu",
            Self::Elu => "Elu",
            Self::Selu => "Selu",
            Self::Softplus => "Softplus",
            Self::Silu => {
                let gate = emit.op("Sigmoid", &[x])?;
                return Ok(emit.op("Mul", &[x, gate])?);
            }
        };
        Ok(emit.op(name, &[x])?)
    }
}

/// A layer as the configuration names it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs, reason = "docs/training.md says what each key means")]
pub enum Layer {
    Dense {
        units: usize,
        #[serde(default = "yes")]
        bias: bool,
        activation: Option<Function>,
    },
    Conv {
        filters: usize,
        kernel: Sizes,
        stride: Option<Sizes>,
        dilation: Option<Sizes>,
        padding: Option<Padding>,
        groups: Option<usize>,
        #[serde(default = "yes")]
        bias: bool,
        activation: Option<Function>,
    },
    MaxPool {
        kernel: Sizes,
        stride: Option<Sizes>,
        padding: Option<Padding>,
    },
    AveragePool {
        kernel: Sizes,
        stride: Option<Sizes>,
        padding: Option<Padding>,
    },
    GlobalMaxPool {},
    GlobalAveragePool {},
    BatchNorm {
        #[serde(default = "momentum")]
        momentum: f32,
        #[serde(default = "epsilon")]
        epsilon: f32,
    },
    LayerNorm {
        #[serde(default = "epsilon")]
        epsilon: f32,
    },
    Activation {
        function: Function,
    },
    Dropout {
        rate: f32,
    },
    Flatten {},
    Residual {
        layers: Vec<Layer>,
        #[serde(default)]
        shortcut: Vec<Layer>,
    },
}

fn yes() -> bool {
    true
}

fn momentum() -> f32 {
    0.9
}

fn epsilon() -> f32 {
    1e-5
}

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Trained and regularised.
    Weight,
    /// Trained, not regularised.
    Bias,
    /// Not trained: the layer itself says its next value.
    Statistic,
}

/// A tensor that belongs to the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name in the exported file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub values: Vec<f32>,
    /// What it is for.
    pub role: Role,
}

/// Which of a network's graphs is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Parameters are inputs; dropout drops by a seed, batch norm goes by the batch.
    Train {
        /// The number that masks are drawn from.
        seed: ValueId,
    },
    /// Parameters are inputs; the rest is as it serves.
    Evaluate,
    /// Parameters are constants.
    Serve,
}

/// A network under construction over a graph.
pub struct Builder<'a, 'g> {
    /// Where operators go.
    pub emit: &'a mut Appender<'g>,
    mode: Mode,
    /// All parameters; those that do not exist yet are added, from random numbers.
    parameters: &'a mut Vec<Parameter>,
    random: Random,
    /// How many parameters were used so far.
    used: usize,
    /// The value of each parameter used.
    ids: Vec<ValueId>,
    /// New values of statistics: the parameter and the value.
    updates: Vec<(usize, ValueId)>,
    dropouts: u32,
    counts: Vec<(&'static str, usize)>,
    /// What the names of parameters begin with: those of a base are taken.
    prefix: &'static str,
}

/// What a network was built into.
#[derive(Clone, Debug)]
pub struct Built {
    /// `[rows, outputs]`: before the function that makes probabilities of them.
    pub output: ValueId,
    /// The value of each parameter.
    pub parameters: Vec<ValueId>,
    /// New values of statistics: the parameter and the value.
    pub updates: Vec<(usize, ValueId)>,
}

impl<'a, 'g> Builder<'a, 'g> {
    /// A builder over `emit`. Parameters that are missing are drawn from the stream of `seed`.
    pub fn new(emit: &'a mut Appender<'g>, mode: Mode, parameters: &'a mut Vec<Parameter>, seed: u64) -> Self {
        let random = Random::new(seed, 0x1717);
        Self { emit, mode, parameters, random, used: 0, ids: Vec::new(), updates: Vec::new(), dropouts: 0, counts: Vec::new(), prefix: "" }
    }

    fn op(&mut self, name: &str, attrs: &[(&str, Attr)], inputs: &[ValueId]) -> Result<ValueId> {
        let emit: &mut dyn Emit = self.emit;
        Ok(emit.with(name, attrs, inputs)?)
    }

    /// Builds the base, if there is one, on `x`, whose rows have the shape `shape`; `layers` behind it; and a dense layer of
    /// `outputs`, unless the base is taken whole and has as many.
    ///
    /// # Errors
    /// The layer that does not fit, by its number.
    pub fn network(mut self, (base, layers): (Option<&Base>, &[Layer]), x: ValueId, shape: &[usize], outputs: usize) -> Result<Built> {
        let (mut x, mut shape) = (x, shape.to_vec());
        if let Some(base) = base {
            x = self.base(base, x)?;
            shape.clone_from(&base.shape);
            self.prefix = "head.";
        }
        (x, shape) = self.layers(layers, x, shape, "layer")?;
        let mut output = x;
        if !base.is_some_and(|base| base.is_all(layers, outputs)) {
            let last = Layer::Dense { units: outputs, bias: true, activation: None };
            (output, _) = self.layer(&last, x, shape).map_err(|error| Error(format!("the output layer: {error}")))?;
        }
        Ok(Built { output, parameters: self.ids, updates: self.updates })
    }

    /// The nodes of a base, with its trained weights as parameters.
    fn base(&mut self, base: &Base, x: ValueId) -> Result<ValueId> {
        let mut ids = Ids::from([(base.input, x)]);
        for (id, role) in &base.weights.trained {
            let tensor = &base.graph.constants[id];
            let values = tensor.slice::<f32>().ok_or("a weight is not of FP32")?;
            let mut next = values.iter().copied();
            let name = base.graph.name(*id).to_owned();
            let own = self.parameter(name, tensor.shape(), *role, |_| next.next().unwrap_or_default());
            ids.insert(*id, own);
        }
        self.emit.splice(&base.graph, base.end, &mut ids);
        ids.get(&base.end).copied().ok_or_else(|| "what is taken of the base is nowhere computed".into())
    }

    fn layers(&mut self, layers: &[Layer], mut x: ValueId, mut shape: Vec<usize>, path: &str) -> Result<(ValueId, Vec<usize>)> {
        for (number, layer) in layers.iter().enumerate() {
            let name = format!("{path} {}", number + 1);
            (x, shape) = self.layer(layer, x, shape).map_err(|error| Error(format!("{name}: {error}")))?;
        }
        Ok((x, shape))
    }

    /// `dense_1`, `dense_2`, …
    fn name(&mut self, kind: &'static str) -> String {
        match self.counts.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((kind, 1)),
        }
        let count = self.counts.iter().find(|(known, _)| *known == kind).map_or(1, |(_, count)| *count);
        format!("{}{kind}_{count}", self.prefix)
    }

    fn parameter(&mut self, name: String, shape: &[usize], role: Role, mut first: impl FnMut(&mut Random) -> f32) -> ValueId {
        let index = self.used;
        self.used += 1;
        if index == self.parameters.len() {
            let values = (0..shape.iter().product::<usize>()).map(|_| first(&mut self.random)).collect();
            self.parameters.push(Parameter { name: name.clone(), shape: shape.into(), values, role });
        }
        let graph = &mut *self.emit.graph;
        let dims = shape.iter().map(|&n| Dim::Fixed(n)).collect();
        let id = graph.add_value(name, Some(Kind::Tensor(DType::F32)), Some(dims));
        if self.mode == Mode::Serve {
            let tensor = Tensor::new(shape, self.parameters[index].values.clone()).expect("as many values as the shape says");
            graph.constants.insert(id, tensor);
        } else {
            graph.inputs.push(id);
        }
        self.ids.push(id);
        id
    }

    /// Weights and biases between ±1/√fan_in, as PyTorch draws them.
    fn weights(&mut self, name: &str, shape: &[usize], bias: bool) -> Vec<ValueId> {
        let fan_in: usize = shape[1..].iter().product();
        let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
        let draw = move |random: &mut Random| ((2.0 * random.uniform() - 1.0) * bound) as f32;
        let mut ids = vec![self.parameter(format!("{name}.weight"), shape, Role::Weight, draw)];
        if bias {
            ids.push(self.parameter(format!("{name}.bias"), &shape[..1], Role::Bias, draw));
        }
        ids
    }

    fn layer(&mut self, layer: &Layer, x: ValueId, shape: Vec<usize>) -> Result<(ValueId, Vec<usize>)> {
        match layer {
            Layer::Dense { units, bias, activation } => self.dense(x, &shape, *units, *bias, *activation),
            Layer::Conv { .. } => self.conv(layer, x, &shape),
            Layer::MaxPool { kernel, stride, padding } => self.pool("MaxPool", x, &shape, (kernel, stride.as_ref(), padding.as_ref())),
            Layer::AveragePool { kernel, stride, padding } => {
                self.pool("AveragePool", x, &shape, (kernel, stride.as_ref(), padding.as_ref()))
            }
            Layer::GlobalMaxPool {} => self.global("GlobalMaxPool", x, &shape),
            Layer::GlobalAveragePool {} => self.global("GlobalAveragePool", x, &shape),
            Layer::BatchNorm { momentum, epsilon } => self.batch_norm(x, shape, *momentum, *epsilon),
            Layer::LayerNorm { epsilon } => {
                let (name, size) = (self.name("layer_norm"), [*shape.last().unwrap_or(&1)]);
                let scale = self.parameter(format!("{name}.weight"), &size, Role::Bias, |_| 1.0);
                let bias = self.parameter(format!("{name}.bias"), &size, Role::Bias, |_| 0.0);
                Ok((self.op("LayerNormalization", &[("epsilon", Attr::Float(*epsilon))], &[x, scale, bias])?, shape))
            }
            Layer::Activation { function } => Ok((function.emit(self.emit, x)?, shape)),
            Layer::Dropout { rate } => {
                if !(0.0..1.0).contains(rate) {
                    return Err(Error(format!("`rate` is {rate}, not in [0, 1)")));
                }
                self.dropouts += 1;
                match self.mode {
                    Mode::Train { seed } if *rate > 0.0 => Ok((drop_out(self.emit, x, seed, self.dropouts, *rate)?, shape)),
                    _ => Ok((x, shape)),
                }
            }
            Layer::Flatten {} => Ok((self.op("Flatten", &[("axis", Attr::Int(1))], &[x])?, vec![shape.iter().product()])),
            Layer::Residual { layers, shortcut } => {
                let (y, after) = self.layers(layers, x, shape.clone(), "layer")?;
                let (x, shape) = self.layers(shortcut, x, shape, "shortcut")?;
                if after != shape {
                    return Err(Error(format!("a residual of shape {after:?} cannot be added to an input of shape {shape:?}")));
                }
                Ok((self.op("Add", &[], &[y, x])?, shape))
            }
        }
    }

    fn dense(
        &mut self,
        x: ValueId,
        shape: &[usize],
        units: usize,
        bias: bool,
        activation: Option<Function>,
    ) -> Result<(ValueId, Vec<usize>)> {
        let &[inputs] = shape else {
            return Err(Error(format!("a dense layer wants a row of numbers; the layer before gives {shape:?} (is a flatten missing?)")));
        };
        if units == 0 {
            return Err("`units` is 0".into());
        }
        let name = self.name("dense");
        let mut operands = vec![x];
        operands.extend(self.weights(&name, &[units, inputs], bias));
        let y = self.op("Gemm", &[("transB", Attr::Int(1))], &operands)?;
        Ok((self.activated(y, activation)?, vec![units]))
    }

    fn activated(&mut self, y: ValueId, activation: Option<Function>) -> Result<ValueId> {
        activation.map_or(Ok(y), |function| function.emit(self.emit, y))
    }

    fn conv(&mut self, layer: &Layer, x: ValueId, shape: &[usize]) -> Result<(ValueId, Vec<usize>)> {
        let Layer::Conv { filters, kernel, stride, dilation, padding, groups, bias, activation } = layer else {
            return Err("it is no convolution".into());
        };
        let (channels, spatial) = spatial(shape)?;
        let (rank, groups) = (spatial.len(), groups.unwrap_or(1));
        if *filters == 0 || groups == 0 || channels % groups != 0 || filters % groups != 0 {
            return Err(Error(format!("{channels} channels and {filters} filters in {groups} groups")));
        }
        let window = Window::new(rank, (kernel, stride.as_ref(), dilation.as_ref(), padding.as_ref()), 1)?;
        let name = self.name("conv");
        let sizes: Vec<usize> = [*filters, channels / groups].into_iter().chain(window.kernel.iter().map(|&n| n as usize)).collect();
        let mut operands = vec![x];
        operands.extend(self.weights(&name, &sizes, *bias));
        let attrs =
            [window.attrs(), vec![("group", Attr::Int(groups as i64)), ("dilations", Attr::Ints(window.dilation.clone()))]].concat();
        let y = self.op("Conv", &attrs, &operands)?;
        let shape = [vec![*filters], window.positions(spatial)?].concat();
        Ok((self.activated(y, *activation)?, shape))
    }

    fn pool(
        &mut self,
        op: &str,
        x: ValueId,
        shape: &[usize],
        (kernel, stride, padding): (&Sizes, Option<&Sizes>, Option<&Padding>),
    ) -> Result<(ValueId, Vec<usize>)> {
        let (channels, spatial) = spatial(shape)?;
        // A pool moves by its own size where nothing says another.
        let window = Window::new(spatial.len(), (kernel, Some(stride.unwrap_or(kernel)), None, padding), 1)?;
        let y = self.op(op, &window.attrs(), &[x])?;
        Ok((y, [vec![channels], window.positions(spatial)?].concat()))
    }

    fn global(&mut self, op: &str, x: ValueId, shape: &[usize]) -> Result<(ValueId, Vec<usize>)> {
        let (channels, _) = spatial(shape)?;
        let pooled = self.op(op, &[], &[x])?;
        Ok((self.op("Flatten", &[("axis", Attr::Int(1))], &[pooled])?, vec![channels]))
    }

    fn batch_norm(&mut self, x: ValueId, shape: Vec<usize>, momentum: f32, epsilon: f32) -> Result<(ValueId, Vec<usize>)> {
        let (name, size) = (self.name("batch_norm"), [shape[0]]);
        let scale = self.parameter(format!("{name}.weight"), &size, Role::Bias, |_| 1.0);
        let bias = self.parameter(format!("{name}.bias"), &size, Role::Bias, |_| 0.0);
        let at = self.used;
        let mean = self.parameter(format!("{name}.mean"), &size, Role::Statistic, |_| 0.0);
        let variance = self.parameter(format!("{name}.variance"), &size, Role::Statistic, |_| 1.0);
        let inputs = [x, scale, bias, mean, variance];
        let mut attrs = vec![("epsilon", Attr::Float(epsilon))];
        if !matches!(self.mode, Mode::Train { .. }) {
            return Ok((self.op("BatchNormalization", &attrs, &inputs)?, shape));
        }
        attrs.extend([("momentum", Attr::Float(momentum)), ("training_mode", Attr::Int(1))]);
        let found = self.emit.call("BatchNormalization", &attrs, &inputs.map(Some), 3)?;
        self.updates.extend([(at, found[1]), (at + 1, found[2])]);
        Ok((found[0], shape))
    }
}

/// Channels and the dimensions behind them.
fn spatial(shape: &[usize]) -> Result<(usize, &[usize])> {
    match shape {
        [channels, spatial @ ..] if (1..=2).contains(&spatial.len()) => Ok((*channels, spatial)),
        _ => Err(Error(format!("it wants [channels, length] or [channels, height, width]; the layer before gives {shape:?}"))),
    }
}

struct Window {
    kernel: Vec<i64>,
    stride: Vec<i64>,
    dilation: Vec<i64>,
    /// In front of each dimension, then behind each.
    padding: Vec<i64>,
}

impl Window {
    fn new(
        rank: usize,
        (kernel, stride, dilation, padding): (&Sizes, Option<&Sizes>, Option<&Sizes>, Option<&Padding>),
        default: i64,
    ) -> Result<Self> {
        let kernel = kernel.over(rank, "kernel")?;
        let each = |sizes: Option<&Sizes>, key: &str| sizes.map_or(Ok(vec![default; rank]), |sizes| sizes.over(rank, key));
        let (stride, dilation) = (each(stride, "stride")?, each(dilation, "dilation")?);
        if let Some(zero) = [("kernel", &kernel), ("stride", &stride), ("dilation", &dilation)].iter().find(|(_, list)| list.contains(&0)) {
            return Err(Error(format!("`{}` is 0", zero.0)));
        }
        let padding = match padding {
            None => vec![0; 2 * rank],
            Some(Padding::Sides(sizes)) => sizes.over(rank, "padding")?.repeat(2),
            Some(Padding::Word(word)) if word == "valid" => vec![0; 2 * rank],
            Some(Padding::Word(word)) if word == "same" => {
                if stride.iter().any(|&n| n != 1) {
                    return Err("`padding` = \"same\" needs a stride of 1".into());
                }
                let total = |i: usize| dilation[i] * (kernel[i] - 1);
                (0..rank).map(|i| total(i) / 2).chain((0..rank).map(|i| total(i) - total(i) / 2)).collect()
            }
            Some(Padding::Word(word)) => {
                return Err(Error(format!("`padding` is {word:?}; a number, a list, \"same\" or \"valid\" is wanted")));
            }
        };
        Ok(Self { kernel, stride, dilation, padding })
    }

    fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let ints = |values: &[i64]| Attr::Ints(values.to_vec());
        vec![("kernel_shape", ints(&self.kernel)), ("strides", ints(&self.stride)), ("pads", ints(&self.padding))]
    }

    fn positions(&self, spatial: &[usize]) -> Result<Vec<usize>> {
        let one = |i: usize| {
            let room = spatial[i] as i64 + self.padding[i] + self.padding[i + spatial.len()];
            let extent = self.dilation[i] * (self.kernel[i] - 1) + 1;
            if extent > room {
                return Err(Error(format!("the kernel {:?} does not fit into {spatial:?}", self.kernel)));
            }
            Ok(((room - extent) / self.stride[i] + 1) as usize)
        };
        (0..spatial.len()).map(one).collect()
    }
}
