//! Arrays of numbers, flat or nested, into one typed vector and the shape that the nesting gives.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use half::{bf16, f16};
use smallvec::SmallVec;

use super::error::JsonError;
use super::number;
use super::reader::{Reader, Token, byte, skip_space};
use super::{Result, reader};
use crate::engine::{Buffer, DType, Element};

/// A shape as the nesting of arrays gives it; empty for a bare value.
pub type Nested = SmallVec<[usize; 4]>;

/// An element type as JSON has it.
pub(super) trait Scalar: Element {
    /// What is wanted, for messages.
    const WANTED: &'static str;
    /// The kinds of JSON values that may become one.
    const TOKENS: &'static [Token];
    /// Fewest bytes that one takes in an array, its comma included.
    const MIN_BYTES: usize = 2;
    /// Reads one at `at`, where a value begins; returns the position behind it.
    fn read(bytes: &[u8], at: usize) -> Result<(Self, usize)>;
}

macro_rules! scalars {
    ($($t:ty: $wanted:literal, $read:path;)*) => {
        $(impl Scalar for $t {
            const WANTED: &'static str = $wanted;
            const TOKENS: &'static [Token] = &[Token::Number];

            #[inline(always)]
            fn read(bytes: &[u8], at: usize) -> Result<(Self, usize)> {
                $read(bytes, at)
            }
        })*
    };
}

scalars! {
    f32: "a number (float32)", number::float32;
    f64: "a number (float64)", number::float64;
    f16: "a number (float16)", number::float16;
    bf16: "a number (bfloat16)", number::bfloat16;
    i8: "a whole number (int8)", number::integer;
    i16: "a whole number (int16)", number::integer;
    i32: "a whole number (int32)", number::integer;
    i64: "a whole number (int64)", number::integer;
    u8: "a whole number (uint8)", number::integer;
    u16: "a whole number (uint16)", number::integer;
    u32: "a whole number (uint32)", number::integer;
    u64: "a whole number (uint64)", number::integer;
}

impl Scalar for bool {
    const WANTED: &'static str = "true or false";
    const TOKENS: &'static [Token] = &[Token::Bool, Token::Number];

    fn read(bytes: &[u8], at: usize) -> Result<(Self, usize)> {
        match byte(bytes, at) {
            b't' => Ok((true, reader::literal(bytes, at, "true")?)),
            b'f' => Ok((false, reader::literal(bytes, at, "false")?)),
            _ => match number::integer::<u8>(bytes, at) {
                Ok((value @ (0 | 1), next)) => Ok((value == 1, next)),
                Err(error) if error.is_syntax() => Err(error),
                _ => Err(JsonError::value(at, "is a number other than 0 and 1 where true or false is wanted")),
            },
        }
    }
}

impl Scalar for String {
    const WANTED: &'static str = "a string";
    const TOKENS: &'static [Token] = &[Token::String, Token::Object];
    const MIN_BYTES: usize = 3;

    /// A string or, as TensorFlow Serving has bytes, `{"b64": "…"}`.
    fn read(bytes: &[u8], at: usize) -> Result<(Self, usize)> {
        let mut reader = Reader::new(bytes).seek(at);
        let text = if byte(bytes, at) == b'{' { base64(&mut reader)? } else { reader.string()?.into_owned() };
        Ok((text, reader.at()))
    }
}

fn base64(reader: &mut Reader<'_>) -> Result<String> {
    let at = reader.at();
    let mut text = None;
    reader.object(|reader, key| {
        if key != "b64" || text.is_some() {
            return Err(JsonError::value(at, "is an object where a string or {\"b64\": \"…\"} is wanted"));
        }
        let at = reader.at();
        let bytes =
            STANDARD.decode(&*reader.string()?).map_err(|error| JsonError::value(at, format!("is no base64: {error}")).under("b64"))?;
        text = Some(String::from_utf8(bytes).map_err(|_| JsonError::value(at, "is no UTF-8 text").under("b64"))?);
        Ok(())
    })?;
    text.ok_or_else(|| JsonError::value(at, "is an object where a string or {\"b64\": \"…\"} is wanted"))
}

impl Reader<'_> {
    /// Reads a value or nested arrays of values of the buffer's element type, appends them to the buffer in row-major order
    /// and returns their shape. `expected` is how many there may be, 0 if that is not known; it only saves growing.
    ///
    /// # Errors
    /// If the arrays are ragged, or an element is of another kind, out of range, or no JSON.
    pub fn append(&mut self, buffer: &mut Buffer, expected: usize) -> Result<Nested> {
        match buffer {
            Buffer::F32(values) => self.nested(values, expected),
            Buffer::F64(values) => self.nested(values, expected),
            Buffer::F16(values) => self.nested(values, expected),
            Buffer::BF16(values) => self.nested(values, expected),
            Buffer::I8(values) => self.nested(values, expected),
            Buffer::I16(values) => self.nested(values, expected),
            Buffer::I32(values) => self.nested(values, expected),
            Buffer::I64(values) => self.nested(values, expected),
            Buffer::U8(values) => self.nested(values, expected),
            Buffer::U16(values) => self.nested(values, expected),
            Buffer::U32(values) => self.nested(values, expected),
            Buffer::U64(values) => self.nested(values, expected),
            Buffer::Bool(values) => self.nested(values, expected),
            Buffer::String(values) => self.nested(values, expected),
            Buffer::C64(_) | Buffer::C128(_) => Err(JsonError::value(self.at(), "is for complex numbers, which have no JSON form")),
            buffer => {
                let mut wide: Vec<f64> = Vec::new();
                let shape = self.nested(&mut wide, expected)?;
                buffer.extend_narrow(&wide);
                Ok(shape)
            }
        }
    }

    /// Reads a value or nested arrays of `dtype` into a new buffer.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn tensor(&mut self, dtype: DType, expected: usize) -> Result<(Buffer, Nested)> {
        let mut buffer = Buffer::new(dtype);
        let shape = self.append(&mut buffer, expected)?;
        Ok((buffer, shape))
    }

    fn nested<T: Scalar>(&mut self, values: &mut Vec<T>, expected: usize) -> Result<Nested> {
        let mut nest = Nest { values, shape: Nested::new() };
        // The body bounds how many there can be, whatever the client promised.
        nest.values.reserve(expected.min(self.remaining() / T::MIN_BYTES));
        if self.next() == b'[' {
            nest.array(self, 0)?;
        } else {
            let (value, next) = T::read(self.bytes, self.at).map_err(|error| wrong_kind::<T>(self, error))?;
            nest.values.push(value);
            self.at = next;
        }
        Ok(nest.shape)
    }
}

/// A dimension whose first array is not read to its end yet.
const UNKNOWN: usize = usize::MAX;

/// Nested arrays under construction.
struct Nest<'v, T> {
    values: &'v mut Vec<T>,
    /// The dimensions that are known from the first array of each level.
    shape: Nested,
}

impl<T: Scalar> Nest<'_, T> {
    /// Reads the array that the reader stands at, which has `level` arrays around it.
    fn array(&mut self, reader: &mut Reader<'_>, level: usize) -> Result<()> {
        let start = reader.at();
        reader.open()?;
        let first_of_its_level = self.shape.len() == level;
        if first_of_its_level {
            self.shape.push(UNKNOWN);
        }
        let count = match reader.next() {
            b']' => 0,
            b'[' => self.arrays(reader, level)?,
            _ => self.elements(reader, level)?,
        };
        reader.close()?;
        let wanted = &mut self.shape[level];
        if *wanted == UNKNOWN {
            *wanted = count;
            self.reserve_for_the_rest(reader, count, reader.at() - start);
        } else if *wanted != count {
            let plural = if count == 1 { "" } else { "s" };
            return Err(JsonError::value(start, format!("has {count} element{plural} where {wanted} are wanted")));
        }
        Ok(())
    }

    /// Reads the elements of an array, which are arrays. Stands at its closing bracket then.
    fn arrays(&mut self, reader: &mut Reader<'_>, level: usize) -> Result<usize> {
        // Elements were seen at this level before: it was found to be the last.
        if self.shape.len() == level + 1 && self.shape[level] != UNKNOWN && self.shape[level] != 0 {
            return Err(JsonError::value(reader.at(), format!("is an array where {} is wanted", T::WANTED)).within(0));
        }
        for index in 0.. {
            if reader.next() != b'[' {
                let token = reader.peek()?;
                return Err(JsonError::value(reader.at(), format!("is {} where an array is wanted", token.name())).within(index));
            }
            self.array(reader, level + 1).map_err(|error| error.within(index))?;
            match reader.next() {
                b',' => reader.at += 1,
                b']' => return Ok(index + 1),
                _ => return Err(reader.expected("`,` or `]`")),
            }
        }
        unreachable!("an array in memory ends")
    }

    /// Reads the elements of an array, which are values. Stands at its closing bracket then.
    fn elements(&mut self, reader: &mut Reader<'_>, level: usize) -> Result<usize> {
        if self.shape.len() > level + 1 {
            let token = reader.peek()?;
            return Err(JsonError::value(reader.at(), format!("is {} where an array is wanted", token.name())).within(0));
        }
        let first = self.values.len();
        let bytes = reader.bytes;
        let mut at = reader.at;
        loop {
            match T::read(bytes, at) {
                Ok((value, next)) => {
                    self.values.push(value);
                    at = next;
                }
                Err(error) => {
                    reader.at = at;
                    return Err(wrong_kind::<T>(reader, error).within(self.values.len() - first));
                }
            }
            at = skip_space(bytes, at);
            match byte(bytes, at) {
                b',' => at = skip_space(bytes, at + 1),
                b']' => break,
                _ => {
                    reader.at = at;
                    return Err(reader.expected("`,` or `]`"));
                }
            }
        }
        reader.at = at;
        Ok(self.values.len() - first)
    }

    /// The first array of a level tells how many bytes an element takes: makes room for what the rest of the body can hold.
    fn reserve_for_the_rest(&mut self, reader: &Reader<'_>, count: usize, bytes: usize) {
        let per_element = (bytes / count.max(1)).max(T::MIN_BYTES);
        // An innermost array only: the levels around it would count arrays.
        if count > 0 && self.values.len() == count {
            self.values.reserve(reader.remaining() / per_element);
        }
    }
}

/// An error at the reader's position: if another kind of value begins there, that is what is wrong.
#[cold]
fn wrong_kind<T: Scalar>(reader: &mut Reader<'_>, error: Box<JsonError>) -> Box<JsonError> {
    match reader.peek() {
        // A misspelt word is no word: `nan` is not null.
        Ok(Token::Null | Token::Bool) if reader.clone().skip().is_err() => reader.clone().skip().err().unwrap_or(error),
        Ok(token) if !T::TOKENS.contains(&token) => {
            JsonError::value(reader.at(), format!("is {} where {} is wanted", token.name(), T::WANTED))
        }
        _ => error,
    }
}
