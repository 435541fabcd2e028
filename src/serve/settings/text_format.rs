//! Fields of a configuration, read from protobuf's text format or from JSON, whatever their schema.
//!
//! The text format is that of <https://protobuf.dev/reference/protobuf/textformat-spec/> without extensions and `Any`. Reading it
//! by hand instead of through a schema keeps what a newer Triton adds: it is named to the operator and not a syntax error.

/// Fields in the order of the file; a repeated field stands there several times.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields(pub(super) Vec<(String, Field)>);

/// The value of one field.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Field {
    /// A quoted string.
    Text(String),
    /// A number as written, or a word: a boolean or the name of an enumeration's value.
    Word(String),
    /// Fields in braces.
    Message(Fields),
}

/// Messages may be nested this deep; a configuration needs six.
const DEPTH_MAX: usize = 32;

impl Field {
    /// Whether it says no more than its absence would.
    pub(super) fn is_default(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Word(word) => word == "false" || word.parse::<f64>() == Ok(0.0),
            Self::Message(fields) => fields.0.iter().all(|(_, field)| field.is_default()),
        }
    }

    /// The text of a string, number or word.
    pub(super) fn text(&self) -> Result<&str, String> {
        match self {
            Self::Text(text) | Self::Word(text) => Ok(text),
            Self::Message(_) => Err("a value is wanted, not fields in braces".to_owned()),
        }
    }

    /// A whole number of 0 or more. JSON writes those of 64 bits as strings.
    pub(super) fn count(&self) -> Result<usize, String> {
        let text = self.text()?;
        text.parse().map_err(|_| format!("`{text}` is not a whole number of 0 or more"))
    }

    /// A whole number.
    pub(super) fn integer(&self) -> Result<i64, String> {
        let text = self.text()?;
        text.parse().map_err(|_| format!("`{text}` is not a whole number"))
    }

    /// `true` or `false`.
    pub(super) fn flag(&self) -> Result<bool, String> {
        match self.text()? {
            "true" | "True" | "t" | "1" => Ok(true),
            "false" | "False" | "f" | "0" => Ok(false),
            text => Err(format!("`{text}` is neither true nor false")),
        }
    }

    /// The fields of a message.
    pub(super) fn fields(&self) -> Result<&Fields, String> {
        match self {
            Self::Message(fields) => Ok(fields),
            Self::Text(text) | Self::Word(text) => Err(format!("fields in braces are wanted, not `{text}`")),
        }
    }
}

impl Fields {
    /// Every value of a field.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Field> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, field)| field)
    }

    /// The last value of a field, which is the one that counts.
    pub(super) fn last(&self, name: &str) -> Option<&Field> {
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, field)| field)
    }

    /// The entries of a field that is a map: `{ key: … value: … }` for each in the text format, one object in JSON.
    pub(super) fn entries(&self, name: &str) -> Result<Vec<(String, Field)>, String> {
        let mut entries = Vec::new();
        for field in self.all(name) {
            let fields = field.fields()?;
            match fields.last("key") {
                Some(key) => {
                    let value = fields.last("value").cloned().unwrap_or(Field::Message(Self::default()));
                    entries.push((key.text()?.to_owned(), value));
                }
                None => entries.extend(fields.0.iter().cloned()),
            }
        }
        Ok(entries)
    }

    /// Reads the text format.
    ///
    /// # Errors
    /// The line, and what is wrong there.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: text, line: 1 };
        parser.fields(None, 0).map_err(|error| format!("line {}: {error}", parser.line))
    }

    /// The fields of a JSON object.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub(super) fn parse_json(text: &str) -> Result<Self, String> {
        match serde_json::from_str(text).map_err(|error| error.to_string())? {
            serde_json::Value::Object(object) => Self::from_json(object),
            _ => Err("a JSON object is wanted".to_owned()),
        }
    }

    fn from_json(object: serde_json::Map<String, serde_json::Value>) -> Result<Self, String> {
        use serde_json::Value;
        let mut fields = Vec::new();
        for (name, value) in object {
            let values = match value {
                Value::Array(values) => values,
                value => vec![value],
            };
            for value in values {
                let field = match value {
                    Value::Null => continue,
                    Value::Bool(flag) => Field::Word(flag.to_string()),
                    Value::Number(number) => Field::Word(number.to_string()),
                    Value::String(text) => Field::Text(text),
                    Value::Object(object) => Field::Message(Self::from_json(object)?),
                    Value::Array(_) => return Err(format!("`{name}`: a list of lists is no field")),
                };
                fields.push((name.clone(), field));
            }
        }
        Ok(Self(fields))
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Parser<'a> {
    /// Drops white space and comments; what is next, if anything is.
    fn peek(&mut self) -> Option<char> {
        loop {
            let next = self.rest.chars().next()?;
            match next {
                '#' => self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]),
                _ if next.is_whitespace() => self.skip(),
                _ => return Some(next),
            }
        }
    }

    /// Drops one character.
    fn skip(&mut self) {
        if let Some(next) = self.rest.chars().next() {
            self.line += usize::from(next == '\n');
            self.rest = &self.rest[next.len_utf8()..];
        }
    }

    fn take_if(&mut self, wanted: &[char]) -> Option<char> {
        let next = self.peek().filter(|next| wanted.contains(next))?;
        self.skip();
        Some(next)
    }

    /// What stands up to the next character that no word or number has.
    fn word(&mut self) -> Result<&'a str, String> {
        let next = self.peek();
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_.+-".contains(c))).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(next.map_or("the text ends too early".to_owned(), |next| format!("`{next}` is not expected here")));
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(word)
    }

    /// Fields up to `close`, or to the end.
    fn fields(&mut self, close: Option<char>, depth: usize) -> Result<Fields, String> {
        if depth > DEPTH_MAX {
            return Err(format!("the fields are nested deeper than {DEPTH_MAX}"));
        }
        let mut fields = Vec::new();
        loop {
            match (self.peek(), close) {
                (None, None) => return Ok(Fields(fields)),
                (None, Some(close)) => return Err(format!("`{close}` is missing at the end")),
                (Some(next), Some(close)) if next == close => {
                    self.skip();
                    return Ok(Fields(fields));
                }
                _ => {}
            }
            let name = self.word()?.to_owned();
            let colon = self.take_if(&[':']).is_some();
            if self.take_if(&['[']).is_some() {
                while self.take_if(&[']']).is_none() {
                    fields.push((name.clone(), self.value(true, depth).map_err(|error| format!("`{name}`: {error}"))?));
                    if self.take_if(&[',']).is_none() && self.peek() != Some(']') {
                        return Err(format!("`{name}`: `,` or `]` is wanted"));
                    }
                }
            } else {
                fields.push((name.clone(), self.value(colon, depth).map_err(|error| format!("`{name}`: {error}"))?));
            }
            let _ = self.take_if(&[',', ';']);
        }
    }

    /// A message, or behind a colon any value.
    fn value(&mut self, colon: bool, depth: usize) -> Result<Field, String> {
        match self.peek() {
            Some('{') => {
                self.skip();
                self.fields(Some('}'), depth + 1).map(Field::Message)
            }
            Some('<') => {
                self.skip();
                self.fields(Some('>'), depth + 1).map(Field::Message)
            }
            _ if !colon => Err("`:` or `{` is wanted".to_owned()),
            Some('"' | '\'') => {
                let mut text = Vec::new();
                while let Some(quote) = self.take_if(&['"', '\'']) {
                    self.string(quote, &mut text)?;
                }
                String::from_utf8(text).map(Field::Text).map_err(|_| "the string is not UTF-8".to_owned())
            }
            _ => self.word().map(|word| Field::Word(number(word))),
        }
    }

    /// The rest of a string behind its opening quote.
    fn string(&mut self, quote: char, text: &mut Vec<u8>) -> Result<(), String> {
        loop {
            let next = self.rest.chars().next().filter(|&next| next != '\n').ok_or("a string has no end")?;
            self.skip();
            match next {
                _ if next == quote => return Ok(()),
                '\\' => self.escape(text)?,
                _ => text.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn escape(&mut self, text: &mut Vec<u8>) -> Result<(), String> {
        let next = self.rest.chars().next().ok_or("a string has no end")?;
        self.skip();
        text.push(match next {
            'n' => b'\n',
            't' => b'\t',
            'r' => b'\r',
            '\\' | '\'' | '"' | '?' => next as u8,
            'x' => self.code(16, 2)?,
            '0'..='7' => return Err("octal escapes are not supported".to_owned()),
            _ => return Err(format!("`\\{next}` is not an escape that is known")),
        });
        Ok(())
    }

    /// A byte of at most `len` digits.
    fn code(&mut self, radix: u32, len: usize) -> Result<u8, String> {
        let end = self.rest.chars().take(len).take_while(|c| c.is_digit(radix)).count();
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        u8::from_str_radix(digits, radix).map_err(|error| error.to_string())
    }
}

/// A number as Rust reads it: hexadecimal ones in decimal, without the `f` of floats. Anything else as it is.
fn number(word: &str) -> String {
    let (sign, digits) = word.strip_prefix('-').map_or(("", word), |digits| ("-", digits));
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"))
        && let Ok(value) = u64::from_str_radix(hex, 16)
    {
        return format!("{sign}{value}");
    }
    match digits.strip_suffix(['f', 'F']) {
        Some(float) if float.starts_with(|c: char| c.is_ascii_digit() || c == '.') => format!("{sign}{float}"),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_field_is_read() {
        let text = "
            name: \"a\" 'b'   # in two parts
            max_batch_size: 0x10; kind: KIND_CPU, on: true
            dims: [ 1, -1 ]
            dims: 3
            input [ { name: 'x' }, { name: \"\\\"y\\\\\\x41\" } ]
            output < ratio: 0.5f >
            policy: { latest { } }
        ";
        let fields = Fields::parse(text).unwrap();
        let text = |name: &str| fields.last(name).unwrap().text().unwrap().to_owned();
        assert_eq!((text("name"), text("kind")), ("ab".into(), "KIND_CPU".into()));
        assert_eq!(fields.last("max_batch_size").unwrap().count(), Ok(16));
        assert_eq!(fields.last("on").unwrap().flag(), Ok(true));
        assert_eq!(fields.all("dims").map(|dim| dim.integer().unwrap()).collect::<Vec<_>>(), [1, -1, 3]);
        let names: Vec<_> = fields.all("input").map(|input| input.fields().unwrap().last("name").unwrap().text().unwrap()).collect();
        assert_eq!(names, ["x", "\"y\\A"]);
        assert_eq!(fields.last("output").unwrap().fields().unwrap().last("ratio").unwrap().text(), Ok("0.5"));
        assert!(fields.last("policy").unwrap().is_default());
        assert_eq!(Fields::parse(" # nothing").unwrap(), Fields::default());
    }

    #[test]
    fn json_gives_the_same_fields() {
        let json = r#"{"name": "a", "dims": [1, -1], "input": [{"name": "x"}], "map": {"k": "v"}, "on": true, "none": null}"#;
        let text = "name: 'a' dims: [1, -1] input { name: 'x' } map { key: 'k' value: 'v' } on: true";
        let (json, text) = (Fields::parse_json(json).unwrap(), Fields::parse(text).unwrap());
        for name in ["name", "dims", "input", "on", "none"] {
            assert_eq!(json.all(name).collect::<Vec<_>>().len(), text.all(name).collect::<Vec<_>>().len(), "{name}");
        }
        let entry = vec![("k".to_owned(), Field::Text("v".to_owned()))];
        assert_eq!((json.entries("map").unwrap(), text.entries("map").unwrap()), (entry.clone(), entry));
        assert!(Fields::parse_json("[]").unwrap_err().contains("a JSON object"));
        assert!(Fields::parse_json(r#"{"a": [[1]]}"#).unwrap_err().contains("list of lists"));
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        for (text, want) in [
            ("a: 1\nb 2", "line 2: `b`: `:` or `{` is wanted"),
            ("a {\n b: 1", "line 2: `a`: `}` is missing"),
            ("a: \"x", "a string has no end"),
            ("a: 'x\n'", "a string has no end"),
            ("a: [1 2]", "`,` or `]` is wanted"),
            ("a: [1,", "the text ends too early"),
            ("a: '\\q'", "`\\q` is not an escape"),
            ("a: '\\101'", "octal escapes"),
            (": 1", "`:` is not expected here"),
            ("}", "`}` is not expected here"),
        ] {
            let error = Fields::parse(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
        let deep = "a {".repeat(100);
        assert!(Fields::parse(&deep).unwrap_err().contains("nested deeper than 32"));
        assert!(Field::Word("x".into()).count().is_err() && Field::Text("x".into()).fields().is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z0-9:{}<>\\[\\],;#'\"\\\\ \n-]{0,60}") {
            let _ = Fields::parse(&text);
        }
    }
}
