//! The networks behind a search: a decoder like GPT-2's, or an encoder with a decoder like T5's, as bodies whose inputs and
//! outputs have their meaning by position, as onnxruntime's exporter writes them.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::engine::attrs::Attrs;
use crate::engine::body::{Body, Runner};
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Kinds, OpError, checked_len};
use crate::engine::ops::real::widen;
use crate::engine::tensor::{Buffer, Kind, Tensor, Value};

/// The networks of a search.
#[derive(Debug)]
pub(super) struct Network {
    decoder: Arc<dyn Body>,
    /// What runs once, before the decoder: the first pass of a decoder alone, or the encoder.
    first: Option<Arc<dyn Body>>,
    /// Whether `first` is an encoder.
    encodes: bool,
}

/// Inputs of a decoder alone before the past: tokens, positions, mask.
const ALONE: usize = 3;

impl Network {
    pub(super) fn new(attrs: &Attrs) -> Result<Self, OpError> {
        let decoder = attrs.required("decoder", attrs.graph("decoder")?)?;
        let (encoder, first) = (attrs.graph("encoder")?, attrs.graph("init_decoder")?);
        let network = match attrs.int_or("model_type", 0)? {
            0 if encoder.is_none() => Self { decoder, first, encodes: false },
            1 if first.is_none() => Self { decoder, first: Some(attrs.required("encoder", encoder)?), encodes: true },
            0 | 1 => return Err(OpError::Attribute("a decoder alone has no encoder, a decoder behind one no first form".to_owned())),
            other => return Err(OpError::unsupported(format!("attribute `model_type` of {other}; supported are 0 and 1"))),
        };
        network.check()?;
        Ok(network)
    }

    pub(super) fn encodes(&self) -> bool {
        self.encodes
    }

    fn bodies(&self) -> impl Iterator<Item = &Arc<dyn Body>> {
        [Some(&self.decoder), self.first.as_ref()].into_iter().flatten()
    }

    /// How many values the decoder carries from token to token.
    fn carried(&self) -> usize {
        self.decoder.outputs().saturating_sub(1)
    }

    /// Whether the decoder reads what the encoder gives, beside what it made of it.
    fn reads_hidden(&self) -> bool {
        self.encodes && self.decoder.formal(2).is_some_and(|formal| formal.name.ends_with("/encoder_hidden_states"))
    }

    /// The decoder's inputs before what is carried.
    fn before(&self) -> usize {
        if self.encodes { 2 + usize::from(self.reads_hidden()) } else { ALONE }
    }

    /// Whether the encoder runs the decoder once, too.
    fn starts(&self) -> bool {
        self.first.as_ref().is_some_and(|first| first.formals() == 3)
    }

    fn check(&self) -> Result<(), OpError> {
        let carried = self.carried();
        let wrong = |what: &str, body: &Arc<dyn Body>| {
            let names: Vec<&str> = (0..body.formals()).filter_map(|i| body.formal(i)).map(|formal| formal.name).collect();
            Err(OpError::unsupported(format!("{what} with the inputs {} and {} outputs", names.join(", "), body.outputs())))
        };
        let read = if self.encodes { 2 * carried } else { carried };
        if carried == 0 || self.decoder.formals() != self.before() + read {
            return wrong("a decoder", &self.decoder);
        }
        match &self.first {
            Some(first) if !self.encodes && (first.formals(), first.outputs()) != (self.decoder.formals(), self.decoder.outputs()) => {
                wrong("a first form of the decoder", first)
            }
            Some(first) if self.encodes => match (first.formals(), first.outputs()) {
                (2, outputs) if outputs == carried && !self.reads_hidden() => Ok(()),
                (3, outputs) if outputs == 2 + 2 * carried => Ok(()),
                _ => wrong("an encoder", first),
            },
            _ => Ok(()),
        }
    }

    /// The kind of the scores. Tokens, positions and masks are int32; what is carried has the kinds that the bodies declare.
    pub(super) fn kinds(&self, node: &[Option<Kind>]) -> Result<Kind, OpError> {
        let mut scores = Kind::Tensor(DType::F32);
        for body in self.bodies() {
            let ids = if self.encodes { 2 } else { ALONE };
            let kind = |i: usize| body.formal(i).and_then(|formal| formal.kind.cloned());
            let ids_of_first = self.encodes && self.starts() && !Arc::ptr_eq(body, &self.decoder);
            let formals: Vec<Kind> = (0..body.formals())
                .map(|i| if i < ids || (i == 2 && ids_of_first) { Kind::Tensor(DType::I32) } else { kind(i).unwrap_or(Kind::Tensor(DType::F32)) })
                .collect();
            let kinds = body.kinds(&formals, node)?;
            if let Some(other) = kinds.iter().find(|kind| !matches!(kind, Kind::Tensor(DType::F32 | DType::F16 | DType::BF16))) {
                return Err(OpError::Type(format!("a network gives {other}; scores and what is carried are floats")));
            }
            if Arc::ptr_eq(body, &self.decoder) {
                scores = kinds[0].clone();
            }
        }
        Ok(scores)
    }

    /// The network with the captured constants built in, and the inputs of the node that are no longer read.
    pub(super) fn bind(&self, constants: &[Option<&Tensor>]) -> Option<(Self, SmallVec<[usize; 2]>)> {
        let first = match &self.first {
            Some(first) => Some(first.bind(constants)?),
            None => None,
        };
        let network = Self { decoder: self.decoder.bind(constants)?, first, encodes: self.encodes };
        let captured = self.bodies().flat_map(|body| body.captures().iter().copied());
        Some((network, captured.filter(|&i| constants.get(i).is_some_and(Option::is_some)).collect()))
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.bodies().map(|body| body.weight_bytes()).sum()
    }
}

/// What a search begins with.
pub(super) struct Prompt<'a> {
    /// `[batch, length]`: what is to be continued, or what the encoder reads.
    pub(super) tokens: &'a [i32],
    /// Which of the tokens count.
    pub(super) mask: Vec<i32>,
    /// The token that has no place of its own.
    pub(super) pad: i32,
    pub(super) batch: usize,
    /// `[batch, started]`: what the decoder behind an encoder begins with.
    pub(super) started: &'a [i32],
    pub(super) beams: usize,
}

/// A network while a search runs it.
pub(super) struct Decoding<'n> {
    network: &'n Network,
    decoder: Box<dyn Runner + 'n>,
    node: &'n [Option<&'n Value>],
    /// `[rows, length]`.
    mask: Vec<i32>,
    rows: usize,
    /// The place of the next token in each row.
    positions: Vec<i32>,
    /// What goes in behind the mask in every pass: what the encoder gave.
    hidden: Option<Tensor>,
    carried: Vec<Tensor>,
    cross: Vec<Tensor>,
    /// Bytes that the search holds beside.
    held: usize,
}

impl<'n> Decoding<'n> {
    /// Runs the prompt; also gives the scores of what may follow, `[rows, vocabulary]`, each row of the batch for as many beams.
    pub(super) fn start(
        network: &'n Network,
        node: &'n [Option<&'n Value>],
        prompt: Prompt<'_>,
        held: usize,
        ctx: &mut Context<'_>,
    ) -> Result<(Self, Tensor), OpError> {
        let Prompt { tokens, mask, pad, batch, started, beams } = prompt;
        let mut decoding = Self {
            network,
            decoder: network.decoder.runner(),
            node,
            mask,
            rows: batch,
            positions: Vec::new(),
            hidden: None,
            carried: Vec::new(),
            cross: Vec::new(),
            held,
        };
        let scores = if network.encodes { decoding.encode(tokens, started, beams, ctx)? } else { decoding.read(tokens, pad, beams, ctx)? };
        Ok((decoding, scores))
    }

    /// A decoder alone reads the prompt.
    fn read(&mut self, tokens: &[i32], pad: i32, beams: usize, ctx: &mut Context<'_>) -> Result<Tensor, OpError> {
        let length = tokens.len() / self.rows.max(1);
        let mut positions = Vec::with_capacity(tokens.len());
        // Also where a mask is given, places are counted over what is no padding.
        for row in tokens.chunks_exact(length.max(1)) {
            let mut next = 0;
            for &token in row {
                positions.push(if token == pad { 0 } else { next });
                next += i32::from(token != pad);
            }
            self.positions.push(next);
        }
        let network = self.network;
        let (body, first) = network.first.as_ref().map_or((&network.decoder, None), |first| (first, Some(first.runner())));
        let mut formals = vec![ids(self.rows, tokens.to_vec())?, ids(self.rows, positions)?, ids(self.rows, self.mask.clone())?];
        for i in ALONE..body.formals() {
            formals.push(nothing(&**body, i, self.rows)?);
        }
        let outputs = match first {
            Some(mut first) => first.run(&formals, self.node, self.held, ctx)?,
            None => self.decoder.run(&formals, self.node, self.held, ctx)?,
        };
        let mut outputs = tensors(outputs)?;
        let scores = outputs.remove(0);
        self.carried = outputs;
        self.spread(beams)?;
        repeat(&scores, 0, beams)
    }

    /// An encoder reads the prompt, and the decoder what it begins with.
    fn encode(&mut self, tokens: &[i32], started: &[i32], beams: usize, ctx: &mut Context<'_>) -> Result<Tensor, OpError> {
        let network = self.network;
        let encoder = network.first.as_ref().ok_or(OpError::Unknown)?;
        let mut formals = vec![ids(self.rows, tokens.to_vec())?, ids(self.rows, self.mask.clone())?];
        if network.starts() {
            formals.push(ids(self.rows, started.to_vec())?);
        }
        let mut outputs = tensors(encoder.runner().run(&formals, self.node, self.held, ctx)?)?;
        if network.starts() {
            let scores = outputs.remove(0);
            let hidden = outputs.remove(0);
            self.hidden = network.reads_hidden().then_some(hidden);
            self.cross = outputs.split_off(network.carried());
            self.carried = outputs;
            self.spread(beams)?;
            return repeat(&scores, 0, beams);
        }
        self.cross = outputs;
        let first = network.before();
        let empty = (first..first + network.carried()).map(|i| nothing(&*network.decoder, i, self.rows)).collect::<Result<_, _>>()?;
        self.carried = tensors(empty)?;
        let scores = self.pass(started.to_vec(), ctx)?;
        self.spread(beams)?;
        repeat(&scores, 0, beams)
    }

    /// The axis of rows of what is carried.
    fn axis(&self) -> usize {
        usize::from(!self.network.encodes)
    }

    /// Every row of the batch becomes `beams` rows.
    fn spread(&mut self, beams: usize) -> Result<(), OpError> {
        let axis = self.axis();
        let length = self.mask.len() / self.rows.max(1);
        self.mask = self.mask.chunks_exact(length.max(1)).flat_map(|mask| mask.repeat(beams)).collect();
        self.positions = self.positions.iter().flat_map(|&position| std::iter::repeat_n(position, beams)).collect();
        self.rows *= beams;
        for tensor in self.cross.iter_mut().chain(&mut self.hidden) {
            *tensor = repeat(tensor, 0, beams)?;
        }
        for tensor in &mut self.carried {
            *tensor = repeat(tensor, axis, beams)?;
        }
        Ok(())
    }

    /// The scores of what may follow the sequences, of which the last token is new, and where row `i` continues the old row
    /// `rows[i]`.
    pub(super) fn step(&mut self, sequences: &[Vec<i32>], rows: &[usize], ctx: &mut Context<'_>) -> Result<Tensor, OpError> {
        let axis = self.axis();
        if rows.iter().enumerate().any(|(to, &from)| to != from) {
            for tensor in &mut self.carried {
                *tensor = pick(tensor, axis, rows)?;
            }
        }
        if !self.network.encodes {
            let length = self.mask.len() / self.rows.max(1);
            self.mask = self.mask.chunks_exact(length.max(1)).flat_map(|mask| mask.iter().copied().chain([1])).collect();
        }
        // A decoder behind an encoder that takes more than a token at a time is given all of them, whatever it carries.
        let all = self.network.encodes && self.network.decoder.formal(0).and_then(|formal| formal.sizes).is_none_or(|sizes| sizes.last() != Some(&Some(1)));
        let tokens = sequences.iter().flat_map(|sequence| &sequence[if all { 0 } else { sequence.len() - 1 }..]).copied().collect();
        let scores = self.pass(tokens, ctx)?;
        self.positions.iter_mut().for_each(|position| *position = position.saturating_add(1));
        Ok(scores)
    }

    fn pass(&mut self, tokens: Vec<i32>, ctx: &mut Context<'_>) -> Result<Tensor, OpError> {
        let mut formals = vec![ids(self.rows, tokens)?];
        if !self.network.encodes {
            formals.push(ids(self.rows, self.positions.clone())?);
        }
        formals.push(ids(self.rows, self.mask.clone())?);
        formals.extend(self.hidden.clone().map(Value::Tensor));
        formals.extend(self.carried.drain(..).map(Value::Tensor));
        formals.extend(self.cross.iter().cloned().map(Value::Tensor));
        let held: usize = formals.iter().map(Value::bytes).sum();
        let mut outputs = tensors(self.decoder.run(&formals, self.node, self.held.saturating_add(held), ctx)?)?;
        let scores = outputs.remove(0);
        self.carried = outputs;
        Ok(scores)
    }
}

/// The scores of the last token of each row, `[rows, vocabulary]`, as f32.
pub(super) fn last(scores: &Tensor, rows: usize, vocabulary: Option<usize>) -> Result<(Vec<f32>, usize), OpError> {
    let unfit = || OpError::shape(format!("scores of shape {:?} for {rows} sequences", scores.shape()));
    let &[found, length, width] = scores.shape() else { return Err(unfit()) };
    let vocabulary = vocabulary.unwrap_or(width);
    if found != rows || length == 0 || vocabulary == 0 || vocabulary > width {
        return Err(unfit());
    }
    let all = widen::<f32>(scores.view())?;
    let rows = all.chunks_exact(length * width);
    Ok((rows.flat_map(|row| row[(length - 1) * width..][..vocabulary].iter().copied()).collect(), vocabulary))
}

fn ids(rows: usize, values: Vec<i32>) -> Result<Value, OpError> {
    let shape = [rows, values.len().checked_div(rows).unwrap_or(0)];
    Tensor::new(&shape, values).map(Value::Tensor).ok_or_else(|| OpError::shape("rows of one length are wanted"))
}

fn tensors(values: Vec<Value>) -> Result<Vec<Tensor>, OpError> {
    let tensor = |value: Value| match value {
        Value::Tensor(tensor) => Ok(tensor),
        _ => Err(OpError::Unknown),
    };
    values.into_iter().map(tensor).collect()
}

/// The past of a network that has read nothing: the sizes that its input declares, with no elements where it leaves the length free.
fn nothing(body: &dyn Body, index: usize, rows: usize) -> Result<Value, OpError> {
    let formal = body.formal(index).ok_or_else(|| OpError::missing_input(index))?;
    let undeclared = || OpError::shape(format!("its body does not declare the sizes of `{}`: heads and their size are wanted", formal.name));
    let sizes = formal.sizes.as_deref().ok_or_else(undeclared)?;
    let (batch, heads) = (sizes.len().checked_sub(4).ok_or_else(undeclared)?, sizes.len() - 3);
    let mut shape: Vec<usize> = Vec::with_capacity(sizes.len());
    for (axis, size) in sizes.iter().enumerate() {
        shape.push(match size {
            _ if axis == batch => rows,
            _ if axis == heads + 1 => 0,
            Some(size) => *size,
            None => return Err(undeclared()),
        });
    }
    let dtype = formal.kind.and_then(Kind::dtype).unwrap_or(DType::F32);
    checked_len(&shape, dtype.size(), usize::MAX)?;
    Ok(Value::Tensor(Tensor::zeros(dtype, &shape)))
}

/// Each entry along an axis as often, one behind the other.
fn repeat(tensor: &Tensor, axis: usize, count: usize) -> Result<Tensor, OpError> {
    if count == 1 {
        return Ok(tensor.clone());
    }
    let size = tensor.shape().get(axis).copied().unwrap_or(0);
    pick(tensor, axis, &(0..size).flat_map(|i| std::iter::repeat_n(i, count)).collect::<Vec<_>>())
}

/// The entries along an axis that `rows` names.
fn pick(tensor: &Tensor, axis: usize, rows: &[usize]) -> Result<Tensor, OpError> {
    let mut shape = tensor.shape().to_vec();
    let size = *shape.get(axis).ok_or_else(|| OpError::shape(format!("a carried value of shape {shape:?} has no rows")))?;
    if let Some(row) = rows.iter().find(|&&row| row >= size) {
        return Err(OpError::shape(format!("a carried value of shape {shape:?} has no row {row}")));
    }
    shape[axis] = rows.len();
    let len = checked_len(&shape, tensor.dtype().size(), isize::MAX as usize)?;
    let mut buffer = Buffer::new(tensor.dtype());
    buffer.grow(len);
    let mut to = buffer.slice_mut(len);
    let inner: usize = shape[axis + 1..].iter().product();
    for at in 0..len.checked_div(inner).unwrap_or(0) {
        let from = (at / rows.len() * size + rows[at % rows.len()]) * inner;
        to.copy_from(at * inner, &tensor.data().range(from..from + inner));
    }
    Ok(buffer.into_tensor(&shape).expect("grown to the shape's length"))
}

/// The kinds of a search's outputs: tokens, and scores of the networks' kind.
pub(super) fn outputs(scores: &Kind, count: usize) -> Kinds {
    let mut kinds = Kinds::from_elem(scores.clone(), count);
    kinds[0] = Kind::Tensor(DType::I32);
    kinds
}
