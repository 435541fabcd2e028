//! Writing JSON answers: numbers go straight out of a tensor's storage.
//!
//! Floats are the shortest text that reads back to the same bits. What is not finite has no form in JSON: a [`NonFinite`] says
//! what stands there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use half::{bf16, f16};

use crate::config::NonFinite;
use crate::engine::{DType, Slice, Tensor, Value};
use crate::error::Error;

/// A JSON text under construction. The caller keeps the structure: brackets, commas and colons are [`raw`](Self::raw).
#[derive(Debug, Default)]
pub struct Writer {
    out: Out,
}

/// The text, and what its floats need to know.
#[derive(Debug, Default)]
struct Out {
    text: Vec<u8>,
    non_finite: NonFinite,
    /// Floats that were not finite.
    count: usize,
}

/// An element type as JSON has it.
trait Scalar {
    /// Appends the value.
    fn write(&self, out: &mut Out);
}

/// Whole numbers up to this are written without `ryu`, which is slowest on them. Any float type holds them exactly.
const WHOLE: i32 = 1 << 24;

macro_rules! floats {
    ($($t:ty),*) => {
        $(impl Scalar for $t {
            #[inline]
            fn write(&self, out: &mut Out) {
                let whole = *self as i32;
                if whole as $t == *self && (-WHOLE..=WHOLE).contains(&whole) && (whole != 0 || self.is_sign_positive()) {
                    i64::from(whole).write(out);
                    out.text.extend_from_slice(b".0");
                } else if self.is_finite() {
                    out.text.extend_from_slice(ryu::Buffer::new().format_finite(*self).as_bytes());
                } else {
                    out.not_finite(self.is_nan(), *self < 0.0);
                }
            }
        })*
    };
}
floats!(f32, f64);

impl Out {
    #[cold]
    fn not_finite(&mut self, nan: bool, negative: bool) {
        self.count += 1;
        self.text.extend_from_slice(match (self.non_finite, nan, negative) {
            (NonFinite::Null, ..) => b"null",
            (_, true, _) => b"NaN",
            (_, false, false) => b"Infinity",
            (_, false, true) => b"-Infinity",
        });
    }
}

macro_rules! wide {
    ($($t:ty => $wide:ty),*) => {
        $(impl Scalar for $t {
            #[inline]
            fn write(&self, out: &mut Out) {
                <$wide>::from(*self).write(out);
            }
        })*
    };
}
wide!(f16 => f32, bf16 => f32, u8 => u64, u16 => u64, u32 => u64, i8 => i64, i16 => i64, i32 => i64);

impl Scalar for u64 {
    #[inline]
    fn write(&self, out: &mut Out) {
        // The largest has 20 digits.
        let mut text = [0; 20];
        let mut at = text.len();
        let mut rest = *self;
        loop {
            at -= 1;
            text[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        out.text.extend_from_slice(&text[at..]);
    }
}

impl Scalar for i64 {
    #[inline]
    fn write(&self, out: &mut Out) {
        if *self < 0 {
            out.text.push(b'-');
        }
        self.unsigned_abs().write(out);
    }
}

impl Scalar for bool {
    fn write(&self, out: &mut Out) {
        out.text.extend_from_slice(if *self { b"true" } else { b"false" });
    }
}

impl Scalar for String {
    fn write(&self, out: &mut Out) {
        string(&mut out.text, self);
    }
}

/// Appends `text` in double quotes.
fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut from = 0;
    // Names and ids are short, and next to none has a character to escape: that is one look at all of them.
    let plain = text.bytes().fold(true, |plain, b| plain & (b >= 0x20) & (b != b'"') & (b != b'\\'));
    if plain {
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    for (at, &b) in text.as_bytes().iter().enumerate() {
        let escape: &[u8] = match b {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..0x20 => b"\\u00",
            _ => continue,
        };
        out.extend_from_slice(&text.as_bytes()[from..at]);
        out.extend_from_slice(escape);
        if escape.len() > 2 {
            out.extend([b >> 4, b & 15].map(|digit| char::from_digit(digit.into(), 16).expect("below 16") as u8));
        }
        from = at + 1;
    }
    out.extend_from_slice(&text.as_bytes()[from..]);
    out.push(b'"');
}

/// Runs `$body` with `$values` bound to the typed elements of a slice.
macro_rules! with_values {
    ($slice:expr, $values:ident => $body:expr) => {
        match $slice {
            Slice::F32($values) => $body,
            Slice::F64($values) => $body,
            Slice::F16($values) => $body,
            Slice::BF16($values) => $body,
            Slice::I8($values) => $body,
            Slice::I16($values) => $body,
            Slice::I32($values) => $body,
            Slice::I64($values) => $body,
            Slice::U8($values) => $body,
            Slice::U16($values) => $body,
            Slice::U32($values) => $body,
            Slice::U64($values) => $body,
            Slice::Bool($values) => $body,
            Slice::String($values) => $body,
            _ => unreachable!("the other types are widened first"),
        }
    };
}

/// The elements in a type that JSON has a form for, if theirs has none: complex numbers become pairs.
fn widened(values: Slice<'_>, shape: &[usize]) -> Option<Tensor> {
    let dtype = values.dtype();
    let none = dtype.is_narrow() || matches!(dtype, DType::C64 | DType::C128);
    none.then(|| values.to_buffer().into_tensor(shape).expect("as many elements as the shape has").widen())
}

impl Writer {
    /// An empty text with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { out: Out { text: Vec::with_capacity(capacity), ..Out::default() } }
    }

    /// From now on floats that are not finite are written so.
    pub fn non_finite(mut self, non_finite: NonFinite) -> Self {
        self.out.non_finite = non_finite;
        self
    }

    /// The text, of an answer to a client.
    ///
    /// # Errors
    /// `InvalidArgument` if a float was not finite and that is to be refused.
    pub fn finish(self) -> Result<Vec<u8>, Error> {
        match self.out {
            Out { non_finite: NonFinite::Error, count: count @ 1.., .. } => Err(Error::invalid(format!(
                "{count} of the answer's values are NaN or infinite, which JSON cannot carry; ask for binary data (server: --json-non-finite)"
            ))),
            out => Ok(out.text),
        }
    }

    /// The text.
    pub fn into_bytes(self) -> Vec<u8> {
        self.out.text
    }

    /// Appends `text` as it is.
    pub fn raw(&mut self, text: &str) -> &mut Self {
        self.out.text.extend_from_slice(text.as_bytes());
        self
    }

    /// Appends a string.
    pub fn string(&mut self, text: &str) -> &mut Self {
        string(&mut self.out.text, text);
        self
    }

    /// Appends a key with its colon.
    pub fn key(&mut self, name: &str) -> &mut Self {
        self.string(name).raw(":")
    }

    /// Appends an integer.
    pub fn integer(&mut self, value: i64) -> &mut Self {
        value.write(&mut self.out);
        self
    }

    /// Appends a float.
    pub fn float(&mut self, value: f64) -> &mut Self {
        value.write(&mut self.out);
        self
    }

    /// Appends a float in the shortest text for a `f32`.
    pub fn float32(&mut self, value: f32) -> &mut Self {
        value.write(&mut self.out);
        self
    }

    /// Appends `items` with commas between them; `write` writes one.
    pub fn list<I: IntoIterator>(&mut self, items: I, mut write: impl FnMut(&mut Self, I::Item)) -> &mut Self {
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.raw(",");
            }
            write(self, item);
        }
        self
    }

    /// Appends the elements as one flat array.
    pub fn flat(&mut self, values: Slice<'_>) -> &mut Self {
        if let Some(wide) = widened(values, &[values.len()]) {
            return self.flat(wide.data());
        }
        with_values!(values, values => flat(&mut self.out, values));
        self
    }

    /// Appends the elements as arrays nested like `shape`; a bare value if it is empty.
    ///
    /// Panics if the number of elements is not that of `shape`.
    pub fn nested(&mut self, values: Slice<'_>, shape: &[usize]) -> &mut Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "elements of a tensor of shape {shape:?}");
        if let Some(wide) = widened(values, shape) {
            return self.tensor(&wide);
        }
        with_values!(values, values => nested(&mut self.out, values, shape));
        self
    }

    /// Appends texts as arrays nested like `shape`, each as `{"b64": "…"}`.
    ///
    /// Panics if their number is not that of `shape`.
    pub fn nested_base64(&mut self, texts: &[String], shape: &[usize]) -> &mut Self {
        match shape {
            [] => self.raw("{\"b64\":").string(&STANDARD.encode(&texts[0])).raw("}"),
            [count, inner @ ..] => {
                let size = texts.len() / (*count).max(1);
                self.raw("[").list(0..*count, |writer, i| {
                    writer.nested_base64(&texts[i * size..(i + 1) * size], inner);
                });
                self.raw("]")
            }
        }
    }

    /// Appends a tensor as nested arrays.
    pub fn tensor(&mut self, tensor: &Tensor) -> &mut Self {
        self.nested(tensor.data(), tensor.shape())
    }

    /// Appends a value: a tensor as nested arrays, a sequence as an array, a map as an object, what is absent as null.
    pub fn value(&mut self, value: &Value) -> &mut Self {
        match value {
            Value::Tensor(tensor) => self.tensor(tensor),
            Value::Sequence(values) => {
                self.raw("[").list(values, |writer, value| {
                    writer.value(value);
                });
                self.raw("]")
            }
            Value::Map { keys, values } => self.map(keys, values),
            Value::Optional(Some(value)) => self.value(value),
            Value::Optional(None) => self.raw("null"),
        }
    }

    fn map(&mut self, keys: &Tensor, values: &Tensor) -> &mut Self {
        self.raw("{").list(0..keys.len(), |writer, i| {
            match keys.data() {
                Slice::String(keys) => writer.key(&keys[i]),
                // JSON's keys are strings.
                keys => writer.raw("\"").nested(keys.range(i..i + 1), &[]).raw("\":"),
            };
            writer.nested(values.data().range(i..i + 1), &[]);
        });
        self.raw("}")
    }
}

fn flat<T: Scalar>(out: &mut Out, values: &[T]) {
    // Room for short numbers; longer ones make it grow.
    out.text.reserve(values.len() * 4);
    out.text.push(b'[');
    let mut values = values.iter();
    if let Some(first) = values.next() {
        first.write(out);
    }
    for value in values {
        out.text.push(b',');
        value.write(out);
    }
    out.text.push(b']');
}

fn nested<T: Scalar>(out: &mut Out, values: &[T], shape: &[usize]) {
    match shape {
        [] => values[0].write(out),
        [_] => flat(out, values),
        [count, inner @ ..] => {
            let size = values.len() / (*count).max(1);
            out.text.push(b'[');
            for i in 0..*count {
                if i > 0 {
                    out.text.push(b',');
                }
                nested(out, &values[i * size..(i + 1) * size], inner);
            }
            out.text.push(b']');
        }
    }
}
