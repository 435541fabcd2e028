//! BeamSearch and GreedySearch of `com.microsoft`: sequences of tokens that a decoder, an attribute of the node, continues
//! until they end or are long enough. Computed as onnxruntime computes them on a CPU, with the networks that
//! its exporter writes: a decoder like GPT-2's, or an encoder and a decoder like T5's.

mod beam;
mod network;
mod scores;

use super::ANY;
use super::axes::{present, size, within};
use super::control::{dynamic_only, one};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element};
use crate::engine::kernels::isa::Isa;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Shape};
use crate::engine::tensor::{Buffer, Kind, Tensor, Value};
use beam::{Beams, Choice};
use network::{Decoding, Network, Prompt, last};
use scores::{Rules, highest, log_softmax};

const fn def(name: &'static str, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "com.microsoft", opsets: 1..=ANY, types: &[DType::I32], build }
}

pub(crate) const DEFS: &[OpDef] = &[def("BeamSearch", |attrs| build(attrs, true)), def("GreedySearch", |attrs| build(attrs, false))];

/// Where an operator has its inputs; the tokens are first, the greatest length second, the smallest third.
#[derive(Debug)]
struct Places {
    repetition_penalty: usize,
    vocabulary: usize,
    first: usize,
    mask: usize,
}

const BEAM: Places = Places { repetition_penalty: 6, vocabulary: 7, first: 8, mask: 9 };
const GREEDY: Places = Places { repetition_penalty: 3, vocabulary: 4, first: 5, mask: 6 };

const MAX_LENGTH: usize = 1;
const MIN_LENGTH: usize = 2;
/// Of BeamSearch only.
const NUM_BEAMS: usize = 3;
const NUM_RETURNED: usize = 4;
const LENGTH_PENALTY: usize = 5;
const DECODER_TOKENS: usize = 10;
const PROCESSOR: usize = 11;

#[derive(Debug)]
struct Search {
    network: Network,
    beams: bool,
    eos: i32,
    pad: i32,
    /// The token that a decoder behind an encoder begins with.
    start: i32,
    ngram: usize,
    early_stopping: bool,
    vocabulary: Option<usize>,
    /// How many inputs are the operator's own: behind them are those that its bodies capture.
    own: usize,
}

fn build(attrs: &Attrs, beams: bool) -> Result<Box<dyn Op>, OpError> {
    let token = |name: &str, value: i64| i32::try_from(value).map_err(|_| OpError::Attribute(format!("attribute `{name}` is {value}, no token")));
    let required = |name: &str| token(name, attrs.required(name, attrs.int(name)?)?);
    let vocabulary = match attrs.int_or("vocab_size", -1)? {
        value if value > 0 => Some(size(value)?),
        _ => None,
    };
    let network = Network::new(attrs)?;
    if network.encodes() && !beams {
        return Err(OpError::unsupported("a greedy search behind an encoder: a beam search of one beam is"));
    }
    Ok(Box::new(Search {
        network,
        beams,
        eos: required("eos_token_id")?,
        pad: required("pad_token_id")?,
        start: token("decoder_start_token_id", attrs.int_or("decoder_start_token_id", -1)?)?,
        ngram: size(attrs.int_or("no_repeat_ngram_size", 0)?)?,
        early_stopping: beams && attrs.bool_or("early_stopping", false)?,
        vocabulary,
        own: attrs.inputs.len(),
    }))
}

/// The numbers that a run is given.
struct Wanted<'a> {
    tokens: &'a [i32],
    batch: usize,
    /// What is searched begins with: the prompt, or what the decoder behind an encoder begins with.
    begin: Vec<Vec<i32>>,
    mask: Vec<i32>,
    beams: usize,
    returned: usize,
    max_length: usize,
    length_penalty: f32,
    rules: Rules<'a>,
}

/// The elements of a tensor and its shape.
type Elements<'a, T> = (&'a [T], &'a [usize]);

impl Search {
    fn places(&self) -> &'static Places {
        if self.beams { &BEAM } else { &GREEDY }
    }

    /// An input of the operator's own.
    fn input<'a>(&self, inputs: &[Option<&'a Value>], index: usize) -> Option<&'a Value> {
        inputs.get(index).copied().flatten().filter(|_| index < self.own)
    }

    fn number(&self, inputs: &[Option<&Value>], index: usize, what: &str) -> Result<Option<usize>, OpError> {
        let value: Option<i32> = one(self.input(inputs, index), what)?;
        let unfit = |value: i32| OpError::value(format!("{what} is {value}"));
        value.map(|value| usize::try_from(value).map_err(|_| unfit(value))).transpose()
    }

    fn elements<'a, T: Element>(&self, inputs: &[Option<&'a Value>], index: usize) -> Result<Option<Elements<'a, T>>, OpError> {
        let Some(value) = self.input(inputs, index) else { return Ok(None) };
        let tensor = value.tensor().ok_or(OpError::Unknown)?;
        let values = tensor.slice::<T>().ok_or_else(|| OpError::wrong_type(T::DTYPE, tensor.dtype()))?;
        Ok(Some((values, tensor.shape())))
    }

    fn factor(&self, inputs: &[Option<&Value>], index: usize, what: &str) -> Result<f32, OpError> {
        let Some(value) = self.input(inputs, index).and_then(Value::tensor) else { return Ok(1.0) };
        one::<f32>(Some(&Value::Tensor(value.widen())), what).map(|value| value.unwrap_or(1.0))
    }

    /// Which tokens count where no mask is given: all but padding; before an encoder all but padding at the beginning, as its
    /// tokenizer may end a sequence with the token of padding.
    fn mask(&self, tokens: &[i32], length: usize) -> Vec<i32> {
        let mut mask = Vec::with_capacity(tokens.len());
        for row in tokens.chunks_exact(length.max(1)) {
            let mut begun = false;
            for &token in row {
                begun |= token != self.pad;
                mask.push(i32::from(if self.network.encodes() { begun } else { token != self.pad }));
            }
        }
        mask
    }

    fn wanted<'a>(&self, inputs: &[Option<&'a Value>]) -> Result<Wanted<'a>, OpError> {
        let places = self.places();
        let (tokens, shape) = self.elements::<i32>(inputs, 0)?.ok_or_else(|| OpError::missing_input(0))?;
        let &[batch, length] = shape else { return Err(OpError::shape(format!("tokens of shape {shape:?}, not of a batch of sequences"))) };
        let mask = match self.elements::<i32>(inputs, places.mask)? {
            Some((mask, given)) if given == shape => mask.to_vec(),
            Some((_, given)) => return Err(OpError::shape(format!("a mask of shape {given:?} for tokens of shape {shape:?}"))),
            None => self.mask(tokens, length),
        };
        let begin: Vec<Vec<i32>> = match self.elements::<i32>(inputs, DECODER_TOKENS)?.filter(|_| self.network.encodes()) {
            Some((begin, &[rows, length])) if rows == batch && length > 0 => begin.chunks_exact(length).map(<[i32]>::to_vec).collect(),
            Some((_, shape)) => return Err(OpError::shape(format!("the decoder begins with tokens of shape {shape:?} for {batch} sequences"))),
            None if self.network.encodes() => vec![vec![self.start]; batch],
            None if length > 0 => tokens.chunks_exact(length).map(<[i32]>::to_vec).collect(),
            None => vec![Vec::new(); batch],
        };
        let max_length = self.number(inputs, MAX_LENGTH, "the greatest length")?.ok_or_else(|| OpError::missing_input(MAX_LENGTH))?;
        let count = |index: usize, what: &str| if self.beams { self.number(inputs, index, what) } else { Ok(Some(1)) };
        let beams = count(NUM_BEAMS, "the number of beams")?.ok_or_else(|| OpError::missing_input(NUM_BEAMS))?;
        let returned = count(NUM_RETURNED, "the number of answers")?.ok_or_else(|| OpError::missing_input(NUM_RETURNED))?;
        let begins = begin.first().map_or(1, Vec::len);
        if batch == 0 || length == 0 || max_length <= begins || beams == 0 || returned == 0 || returned > beams {
            let message = format!("{returned} of {beams} sequences of at most {max_length} tokens that begin with {begins} are wanted for {shape:?}");
            return Err(OpError::value(message));
        }
        let rules = Rules {
            repetition_penalty: self.factor(inputs, places.repetition_penalty, "the penalty of repetition")?,
            ngram: self.ngram,
            vocabulary: self.elements::<i32>(inputs, places.vocabulary)?.map(|(mask, _)| mask),
            first: self.elements::<i32>(inputs, places.first)?.map(|(mask, _)| mask),
            min_length: self.number(inputs, MIN_LENGTH, "the smallest length")?.unwrap_or(0),
            eos: self.eos,
        };
        let length_penalty = if self.beams { self.factor(inputs, LENGTH_PENALTY, "the penalty of length")? } else { 1.0 };
        Ok(Wanted { tokens, batch, begin, mask, beams, returned, max_length, length_penalty, rules })
    }

    fn prompt<'a>(&self, wanted: &'a Wanted<'_>, started: &'a [i32]) -> Prompt<'a> {
        Prompt { tokens: wanted.tokens, mask: wanted.mask.clone(), pad: self.pad, batch: wanted.batch, started, beams: wanted.beams }
    }

    /// The best token each time.
    fn greedy(&self, wanted: &Wanted<'_>, node: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let Wanted { batch, max_length, rules, .. } = wanted;
        within(ctx.budget, batch.saturating_mul(*max_length), 2 * size_of::<i32>())?;
        let mut sequences = wanted.begin.clone();
        let mut ended = vec![false; *batch];
        let rows: Vec<usize> = (0..*batch).collect();
        let held = batch * max_length * size_of::<i32>();
        let (mut decoding, mut given) = Decoding::start(&self.network, node, self.prompt(wanted, &[]), held, ctx)?;
        let mut first = true;
        loop {
            let (mut scores, vocabulary) = last(&given, *batch, self.vocabulary)?;
            rules.check(*batch, vocabulary)?;
            let mut next = Vec::with_capacity(*batch);
            for (row, scores) in scores.chunks_exact_mut(vocabulary).enumerate() {
                rules.apply(&sequences[row], row, first, scores);
                let token = highest(scores) as i32;
                ended[row] |= token == self.eos;
                next.push(if ended[row] { self.pad } else { token });
            }
            sequences.iter_mut().zip(&next).for_each(|(sequence, &token)| sequence.push(token));
            first = false;
            if sequences[0].len() >= *max_length || ended.iter().all(|&ended| ended) {
                break;
            }
            given = decoding.step(&sequences, &rows, ctx)?;
        }
        let mut tokens = vec![self.pad; batch * max_length];
        tokens.chunks_exact_mut(*max_length).zip(&sequences).for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
        Ok(vec![Value::Tensor(Tensor::new(&[*batch, *max_length], tokens).expect("made to fit"))])
    }

    fn beam(&self, wanted: &Wanted<'_>, node: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let Wanted { batch, beams, max_length, rules, .. } = wanted;
        let rows = batch.saturating_mul(*beams);
        // Sequences under way, ended, and the answer.
        within(ctx.budget, rows.saturating_mul(*max_length), 4 * size_of::<i32>())?;
        let held = rows * max_length * 4 * size_of::<i32>();
        let mut sequences: Vec<Vec<i32>> = wanted.begin.iter().flat_map(|begin| std::iter::repeat_n(begin.clone(), *beams)).collect();
        let begins = sequences[0].len();
        let choice = Choice { beams: *beams, eos: self.eos, pad: self.pad, length_penalty: wanted.length_penalty, early_stopping: self.early_stopping };
        let mut found = Beams::new(choice, *batch);
        let mut steps = Vec::new();
        let started = wanted.begin.concat();
        let (mut decoding, mut given) = Decoding::start(&self.network, node, self.prompt(wanted, &started), held, ctx)?;
        let dtype = given.dtype();
        let vocabulary = loop {
            let (mut scores, vocabulary) = last(&given, rows, self.vocabulary)?;
            rules.check(*batch, vocabulary)?;
            if vocabulary < 2 {
                return Err(OpError::value("beams need two tokens to choose from"));
            }
            let first = sequences[0].len() == begins;
            for (row, scores) in scores.chunks_exact_mut(vocabulary).enumerate() {
                log_softmax(scores);
                rules.apply(&sequences[row], row / beams, first, scores);
                scores.iter_mut().for_each(|score| *score += found.sums[row]);
            }
            let next: Vec<beam::Next> =
                scores.chunks_exact(beams * vocabulary).enumerate().flat_map(|(b, scores)| found.advance(b, scores, &sequences)).collect();
            if next.len() != rows {
                return Err(OpError::value("there are too few tokens to choose from"));
            }
            sequences = next.iter().map(|next| sequences[next.row].iter().copied().chain([next.token]).collect()).collect();
            if self.outputs() > 2 {
                within(ctx.budget.saturating_sub(held), steps.len().saturating_add(scores.len()), size_of::<f32>())?;
                steps.extend_from_slice(&scores);
            }
            if sequences[0].len() >= *max_length || found.done() {
                break vocabulary;
            }
            let from: Vec<usize> = next.iter().map(|next| next.row).collect();
            given = decoding.step(&sequences, &from, ctx)?;
        };
        let best = found.finish(&sequences, wanted.returned);
        let mut outputs = self.answer(wanted, &best, dtype)?;
        if self.outputs() > 2 {
            let shape = [max_length - begins, *batch, *beams, vocabulary];
            let len = crate::engine::op::checked_len(&shape, size_of::<f32>(), ctx.budget)?;
            steps.resize(len, 0.0);
            outputs.push(floats(dtype, &shape, &steps)?);
        }
        Ok(outputs)
    }

    /// How many outputs there are at most.
    fn outputs(&self) -> usize {
        if self.beams { 3 } else { 1 }
    }

    fn answer(&self, wanted: &Wanted<'_>, best: &[Vec<(f32, Vec<i32>)>], dtype: DType) -> Result<Vec<Value>, OpError> {
        let Wanted { batch, returned, max_length, .. } = *wanted;
        let mut tokens = vec![self.pad; batch * returned * max_length];
        let mut sums = vec![0.0_f32; batch * returned];
        for (row, (sum, sequence)) in best.iter().enumerate().flat_map(|(b, best)| best.iter().enumerate().map(move |(i, one)| (b * returned + i, one))) {
            tokens[row * max_length..][..sequence.len()].copy_from_slice(sequence);
            sums[row] = *sum;
        }
        let tokens = Tensor::new(&[batch, returned, max_length], tokens).expect("made to fit");
        Ok(vec![Value::Tensor(tokens), floats(dtype, &[batch, returned], &sums)?])
    }
}

/// Numbers in the type of the networks' scores.
fn floats(dtype: DType, shape: &[usize], values: &[f32]) -> Result<Value, OpError> {
    let mut buffer = Buffer::new(dtype);
    buffer.grow(values.len());
    super::real::store(values, &mut buffer.view_mut(shape))?;
    Ok(Value::Tensor(buffer.into_tensor(shape).expect("made to fit")))
}

impl Op for Search {
    dynamic_only!();

    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        present(inputs, MAX_LENGTH + 1)?;
        if self.beams && inputs.get(PROCESSOR).is_some_and(Option::is_some) && PROCESSOR < self.own {
            return Err(OpError::unsupported("input `logits_processor`: time stamps of Whisper"));
        }
        Ok(network::outputs(&self.network.kinds(inputs)?, self.outputs()))
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let wanted = self.wanted(inputs)?;
        if self.beams { self.beam(&wanted, inputs, ctx) } else { self.greedy(&wanted, inputs, ctx) }
    }

    fn prepack(&self, constants: &[Option<&Tensor>], _: Isa) -> Option<Prepacked> {
        let (network, consumed) = self.network.bind(constants)?;
        let consumed = consumed.into_iter().filter(|&input| input >= self.own).collect();
        Some(Prepacked { op: Box::new(Self { network, ..*self }), consumed })
    }

    fn binds_bodies(&self) -> bool {
        true
    }

    fn packed_bytes(&self) -> usize {
        self.network.weight_bytes()
    }
}
