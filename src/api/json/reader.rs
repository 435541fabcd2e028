//! The pull parser: structure, strings and literals. Numbers are in [`number`](super::number), arrays of them in
//! [`values`](super::values).

use std::borrow::Cow;

use super::error::{JsonError, found};
use super::{Result, number};

/// Objects and arrays may be this deep; it bounds the parser's recursion. Triton's limit.
const MAX_DEPTH: usize = 100;

/// What stands next in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the kinds of JSON values")]
pub enum Token {
    Object,
    Array,
    String,
    Number,
    Bool,
    Null,
}

impl Token {
    /// The kind with its article, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Object => "an object",
            Self::Array => "an array",
            Self::String => "a string",
            Self::Number => "a number",
            Self::Bool => "a boolean",
            Self::Null => "null",
        }
    }
}

/// A position in a JSON text.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    /// The same as text, if all of it is UTF-8: to look once costs less than to look at each string.
    text: Option<&'a str>,
    pub(super) at: usize,
    depth: usize,
}

/// The byte at `at`, or 0 past the end: no JSON token has a 0, so one comparison does for both.
#[inline(always)]
pub(super) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// The first position from `at` on that is no white space.
#[inline(always)]
pub(super) fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while let b' ' | b'\n' | b'\t' | b'\r' = byte(bytes, at) {
        at += 1;
    }
    at
}

impl<'a> Reader<'a> {
    /// A reader at the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, text: std::str::from_utf8(bytes).ok(), at: 0, depth: 0 }
    }

    /// The byte that the reader stands at.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes from the reader to the end.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// What stands next. White space before it is consumed, itself is not.
    ///
    /// # Errors
    /// If no value begins here.
    pub fn peek(&mut self) -> Result<Token> {
        self.at = skip_space(self.bytes, self.at);
        Ok(match byte(self.bytes, self.at) {
            b'{' => Token::Object,
            b'[' => Token::Array,
            b'"' => Token::String,
            b'-' | b'0'..=b'9' | b'N' | b'I' => Token::Number,
            b't' | b'f' => Token::Bool,
            b'n' => Token::Null,
            _ => return Err(self.expected("a value")),
        })
    }

    /// Reads an object: `member` is called with each key and must read exactly the value.
    ///
    /// # Errors
    /// If no object stands here, or `member` fails.
    pub fn object(&mut self, mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<()>) -> Result<()> {
        self.want(Token::Object)?;
        self.open()?;
        if self.next() == b'}' {
            return self.close();
        }
        loop {
            if self.next() != b'"' {
                return Err(self.expected("a key in double quotes"));
            }
            let key = self.string()?;
            if self.next() != b':' {
                return Err(self.expected("`:`"));
            }
            self.at += 1;
            member(self, key)?;
            match self.next() {
                b',' => self.at += 1,
                b'}' => return self.close(),
                _ => return Err(self.expected("`,` or `}`")),
            }
        }
    }

    /// Reads an array: `element` is called with each index and must read exactly the value.
    ///
    /// # Errors
    /// If no array stands here, or `element` fails.
    pub fn array(&mut self, mut element: impl FnMut(&mut Self, usize) -> Result<()>) -> Result<()> {
        self.want(Token::Array)?;
        self.open()?;
        if self.next() == b']' {
            return self.close();
        }
        for index in 0.. {
            element(self, index).map_err(|error| error.within(index))?;
            match self.next() {
                b',' => self.at += 1,
                b']' => break,
                _ => return Err(self.expected("`,` or `]`")),
            }
        }
        self.close()
    }

    /// Reads a string.
    ///
    /// # Errors
    /// If no string stands here, it does not end, or it is not UTF-8.
    pub fn string(&mut self) -> Result<Cow<'a, str>> {
        self.want(Token::String)?;
        let start = self.at + 1;
        let mut owned = String::new();
        let mut from = start;
        let mut at = start;
        loop {
            match byte(self.bytes, at) {
                b'"' => break,
                b'\\' => {
                    owned.push_str(self.utf8(from, at)?);
                    let (c, next) = escape(self.bytes, at)?;
                    owned.push(c);
                    (from, at) = (next, next);
                }
                0..0x20 if at >= self.bytes.len() => return Err(JsonError::syntax(at, "the string does not end; found the end")),
                0..0x20 => return Err(JsonError::syntax(at, "a control character must be escaped in a string")),
                _ => at += 1,
            }
        }
        let last = self.utf8(from, at)?;
        self.at = at + 1;
        if from == start {
            return Ok(Cow::Borrowed(last));
        }
        owned.push_str(last);
        Ok(Cow::Owned(owned))
    }

    /// Reads `true` or `false`.
    ///
    /// # Errors
    /// If something else stands here.
    pub fn boolean(&mut self) -> Result<bool> {
        self.want(Token::Bool)?;
        let value = byte(self.bytes, self.at) == b't';
        self.at = literal(self.bytes, self.at, if value { "true" } else { "false" })?;
        Ok(value)
    }

    /// Reads an integer that is not negative.
    ///
    /// # Errors
    /// If something else stands here.
    pub fn unsigned(&mut self) -> Result<u64> {
        self.want(Token::Number)?;
        let (value, next) = number::integer(self.bytes, self.at)?;
        self.at = next;
        Ok(value)
    }

    /// Reads a number of any kind; its text, which Rust's types parse too.
    ///
    /// # Errors
    /// If something else stands here.
    pub fn number(&mut self) -> Result<&'a str> {
        self.want(Token::Number)?;
        let next = number::skip(self.bytes, self.at)?;
        let text = self.utf8(self.at, next)?;
        self.at = next;
        Ok(text)
    }

    /// Reads any value and forgets it.
    ///
    /// # Errors
    /// If it is no JSON.
    pub fn skip(&mut self) -> Result<()> {
        match self.peek()? {
            Token::Object => self.object(|reader, _| reader.skip()),
            Token::Array => self.array(|reader, _| reader.skip()),
            Token::String => self.string().map(drop),
            Token::Bool => self.boolean().map(drop),
            Token::Null => {
                self.at = literal(self.bytes, self.at, "null")?;
                Ok(())
            }
            Token::Number => {
                self.at = number::skip(self.bytes, self.at)?;
                Ok(())
            }
        }
    }

    /// Checks that nothing but white space follows.
    ///
    /// # Errors
    /// If something does.
    pub fn end(&mut self) -> Result<()> {
        self.next();
        if self.at < self.bytes.len() { Err(self.expected("the end")) } else { Ok(()) }
    }

    /// What the array that stands next begins with; `None` if it is empty or no array.
    pub fn first_element(&self) -> Option<Token> {
        let mut ahead = self.clone();
        ahead.want(Token::Array).and_then(|()| ahead.open()).and_then(|()| ahead.peek()).ok()
    }

    /// The first key of the object that stands next, or of the first element of the array; `None` if there is none.
    pub fn first_key(&self) -> Option<Cow<'a, str>> {
        let mut ahead = self.clone();
        if ahead.peek().ok()? == Token::Array {
            ahead.open().ok()?;
        }
        ahead.want(Token::Object).ok()?;
        ahead.open().ok()?;
        ahead.string().ok()
    }

    /// Another reader of the same text at `at`, a position that [`at`](Self::at) gave, with this one's depth.
    pub fn seek(&self, at: usize) -> Self {
        Self { at, ..*self }
    }

    /// Checks what stands next.
    ///
    /// # Errors
    /// If it is something else.
    pub fn want(&mut self, wanted: Token) -> Result<()> {
        match self.peek()? {
            token if token == wanted => Ok(()),
            token => Err(self.misfit(token, wanted)),
        }
    }

    /// What is wrong with a value that is not of the kind that is wanted: a word that only begins like a literal is no JSON.
    #[cold]
    fn misfit(&self, token: Token, wanted: Token) -> Box<JsonError> {
        let word = match (token, byte(self.bytes, self.at)) {
            (Token::Null, _) => "null",
            (Token::Bool, b't') => "true",
            (Token::Bool, _) => "false",
            _ => "",
        };
        let value = || JsonError::value(self.at, format!("is {} where {} is wanted", token.name(), wanted.name()));
        literal(self.bytes, self.at, word).err().unwrap_or_else(value)
    }

    /// Enters an object or array.
    pub(super) fn open(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(JsonError::syntax(self.at, format!("it is nested deeper than {MAX_DEPTH} levels")));
        }
        self.at += 1;
        Ok(())
    }

    /// Leaves an object or array.
    pub(super) fn close(&mut self) -> Result<()> {
        self.depth -= 1;
        self.at += 1;
        Ok(())
    }

    /// Skips white space and returns the byte that stands there, 0 at the end.
    #[inline]
    pub(super) fn next(&mut self) -> u8 {
        self.at = skip_space(self.bytes, self.at);
        byte(self.bytes, self.at)
    }

    #[cold]
    pub(super) fn expected(&self, what: &str) -> Box<JsonError> {
        JsonError::syntax(self.at, format!("expected {what}, {}", found(self.bytes, self.at)))
    }

    fn utf8(&self, from: usize, to: usize) -> Result<&'a str> {
        if let Some(text) = self.text.and_then(|text| text.get(from..to)) {
            return Ok(text);
        }
        std::str::from_utf8(&self.bytes[from..to])
            .map_err(|error| JsonError::syntax(from + error.valid_up_to(), "a string must be UTF-8; found another byte sequence"))
    }
}

/// Checks that `word` stands at `at`; returns the position behind it.
pub(super) fn literal(bytes: &[u8], at: usize, word: &str) -> Result<usize> {
    if bytes[at..].starts_with(word.as_bytes()) {
        return Ok(at + word.len());
    }
    let wrong = word.bytes().enumerate().find(|&(i, b)| byte(bytes, at + i) != b).map_or(0, |(i, _)| i);
    Err(JsonError::syntax(at + wrong, format!("expected `{word}`, {}", found(bytes, at + wrong))))
}

/// Decodes the escape whose backslash stands at `at`; returns the character and the position behind it.
fn escape(bytes: &[u8], at: usize) -> Result<(char, usize)> {
    let c = match byte(bytes, at + 1) {
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unicode(bytes, at),
        _ => return Err(JsonError::syntax(at + 1, format!("expected one of \"\\/bfnrtu after a backslash, {}", found(bytes, at + 1)))),
    };
    Ok((c, at + 2))
}

/// Decodes `\uXXXX`, or the two of a surrogate pair.
fn unicode(bytes: &[u8], at: usize) -> Result<(char, usize)> {
    let first = hex4(bytes, at + 2)?;
    if let Some(c) = char::from_u32(first) {
        return Ok((c, at + 6));
    }
    let lone = || JsonError::syntax(at, format!("\\u{first:04x} is half of a surrogate pair; the other half is wanted"));
    if first >= 0xdc00 || byte(bytes, at + 6) != b'\\' || byte(bytes, at + 7) != b'u' {
        return Err(lone());
    }
    let second = hex4(bytes, at + 8)?;
    if !(0xdc00..0xe000).contains(&second) {
        return Err(lone());
    }
    let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    Ok((char::from_u32(code).expect("a surrogate pair is a character"), at + 12))
}

fn hex4(bytes: &[u8], at: usize) -> Result<u32> {
    (at..at + 4).try_fold(0, |value, i| {
        let digit = char::from(byte(bytes, i)).to_digit(16);
        digit.map(|d| value * 16 + d).ok_or_else(|| JsonError::syntax(i, format!("expected a hexadecimal digit, {}", found(bytes, i))))
    })
}
