//! The types of settings: how each is written, and what stands for it in help.
//!
//! A value is written the same way in a flag, in an environment variable and in a file, where numbers and booleans may also
//! be TOML's own.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Arg;
use clap::builder::BoolishValueParser;
use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::engine::{Isa, Precision, WeightCachePlace};

/// A type of settings.
pub trait Value: Clone + Send + Sync + 'static {
    /// What stands for the value in help.
    const NAME: &'static str;

    /// Reads the value from text.
    ///
    /// # Errors
    /// What is wrong with the text and what is wanted.
    fn parse(text: &str) -> Result<Self, String>;

    /// The flag that takes the value.
    fn arg(arg: Arg) -> Arg {
        arg.value_name(Self::NAME).value_parser(Self::parse)
    }
}

/// Reads `T` by `FromStr`, with the text in the message.
fn from_str<T: FromStr<Err: fmt::Display>>(text: &str, want: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("`{text}` is not {want}: {error}"))
}

impl Value for PathBuf {
    const NAME: &'static str = "PATH";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("the path is empty".into()) } else { Ok(text.into()) }
    }
}

impl Value for String {
    const NAME: &'static str = "TEXT";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Value for SocketAddr {
    const NAME: &'static str = "ADDRESS:PORT";

    fn parse(text: &str) -> Result<Self, String> {
        from_str(text, "an address with a port, such as 127.0.0.1:8080 or [::]:8080")
    }
}

impl Value for usize {
    const NAME: &'static str = "N";

    fn parse(text: &str) -> Result<Self, String> {
        from_str(text, "a whole number")
    }
}

impl Value for bool {
    const NAME: &'static str = "true|false";

    fn parse(text: &str) -> Result<Self, String> {
        from_str(text, "true or false")
    }

    fn arg(arg: Arg) -> Arg {
        // `--strict` alone turns it on, `--strict=false` turns off what a file turned on.
        let arg = arg.value_name(Self::NAME).num_args(0..=1).require_equals(true).default_missing_value("true").hide_possible_values(true);
        arg.value_parser(BoolishValueParser::new())
    }
}

/// Reads a [`Value`] from TOML: text as in a flag, or a number where that is what the text would be.
struct TextOrNumber<T>(fn(&str) -> Result<T, String>);

impl<T> Visitor<'_> for TextOrNumber<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text or a number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        (self.0)(&number.to_string()).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        (self.0)(&number.to_string()).map_err(E::custom)
    }
}

macro_rules! deserialize_as_text {
    ($($ty:ty),*) => {
        $(impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(TextOrNumber(<Self as Value>::parse))
            }
        })*
    };
}
deserialize_as_text!(Period, ReadyWhen, Bytes, Count, IsaChoice, Precision, WeightCache, LogFormat, NonFinite, Ratio);

/// A number and the unit behind it.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// Where packed weights are kept, if they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightCache(pub Option<WeightCachePlace>);

impl Value for WeightCache {
    const NAME: &'static str = "off|beside|FOLDER";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "" => return Err("the folder is empty; wanted is off, beside or a folder".into()),
            "off" => None,
            "beside" => Some(WeightCachePlace::Beside),
            folder => Some(WeightCachePlace::Folder(folder.into())),
        }))
    }
}

/// A duration: `250ms`, `5s`, `2m`, `1h`; `0` needs no unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

impl Value for Period {
    const NAME: &'static str = "DURATION";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a duration such as 250ms, 5s, 2m or 1h");
        let (number, unit) = split_unit(text.trim());
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "" if number == 0.0 => 0.0,
            _ => return Err(wrong()),
        };
        Duration::try_from_secs_f64(number * seconds).map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A number of bytes: `64MiB`, `16KiB`, `1.5GB`, or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub usize);

/// Units of [`Bytes`], the largest binary one first, as [`Bytes`] is shown.
const UNITS: &[(&str, usize)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("", 1),
];

impl Value for Bytes {
    const NAME: &'static str = "SIZE";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size such as 16KiB, 64MiB, 8GiB or a number of bytes");
        let (number, unit) = split_unit(text.trim());
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        // Whole numbers stay exact; the rest is rounded, which nobody notices in a limit.
        if let Ok(number) = number.parse::<usize>() {
            return number.checked_mul(*factor).map(Self).ok_or_else(wrong);
        }
        let bytes = number.parse::<f64>().map_err(|_| wrong())? * *factor as f64;
        if bytes.is_finite() && bytes <= 1e18 { Ok(Self(bytes as usize)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Bytes {
    /// The largest binary unit in which the number is at least 1, with one decimal where it is not whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS[..5].iter().find(|(_, factor)| self.0 >= *factor).unwrap_or(&("B", 1));
        if self.0.is_multiple_of(*factor) {
            write!(f, "{} {unit}", self.0 / factor)
        } else {
            write!(f, "{:.1} {unit}", self.0 as f64 / *factor as f64)
        }
    }
}

/// A part of a whole, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(pub f64);

impl Value for Ratio {
    const NAME: &'static str = "0..1";

    fn parse(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Self(ratio)),
            _ => Err(format!("`{text}` is not a number from 0 to 1")),
        }
    }
}

/// A number of threads, or `auto`: what the machine and its limits allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Chosen from CPU quota and affinity.
    Auto,
    /// This many, at least one.
    Fixed(usize),
}

impl Value for Count {
    const NAME: &'static str = "N|auto";

    fn parse(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "auto" => Ok(Self::Auto),
            Ok(count) if (1..=1024).contains(&count) => Ok(Self::Fixed(count)),
            _ => Err(format!("`{text}` is neither a number from 1 to 1024 nor `auto`")),
        }
    }
}

impl Count {
    /// The number; `auto` is what the closure says.
    pub fn or_else(self, auto: impl FnOnce() -> usize) -> usize {
        match self {
            Self::Auto => auto(),
            Self::Fixed(count) => count,
        }
    }
}

/// An instruction set, or `auto`: the best that the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsaChoice {
    /// The best of this machine.
    Auto,
    /// This one.
    Fixed(Isa),
}

impl Value for Precision {
    const NAME: &'static str = "f32|bf16|int8|int8-weights|int4-weights";

    fn parse(text: &str) -> Result<Self, String> {
        Self::from_str(text).map_err(|error| error.to_string())
    }
}

impl Value for IsaChoice {
    const NAME: &'static str = "auto|scalar|avx2|avx512|amx";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let isa: Isa = text.parse().map_err(|_| format!("`{text}` is none of auto, scalar, avx2, avx512, amx"))?;
        if isa.is_available() { Ok(Self::Fixed(isa)) } else { Err(format!("this machine does not have the instruction set `{isa}`")) }
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Value for LogFormat {
    const NAME: &'static str = "text|json";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is neither text nor json")),
        }
    }
}

/// What JSON answers say for NaN and the infinities, for which JSON has no form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NonFinite {
    /// The bare tokens `NaN`, `Infinity` and `-Infinity`.
    #[default]
    Token,
    /// `null`.
    Null,
    /// The request is refused.
    Error,
}

impl Value for NonFinite {
    const NAME: &'static str = "token|null|error";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "token" => Ok(Self::Token),
            "null" => Ok(Self::Null),
            "error" => Ok(Self::Error),
            _ => Err(format!("`{text}` is none of token, null, error")),
        }
    }
}

/// Which models must serve for the server to be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyWhen {
    /// Every one.
    All,
    /// At least one.
    Any,
    /// None.
    None,
}

impl Value for ReadyWhen {
    const NAME: &'static str = "all|any|none";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "any" => Ok(Self::Any),
            "none" => Ok(Self::None),
            _ => Err(format!("`{text}` is neither all nor any nor none")),
        }
    }
}

/// Names: separated by commas in a flag or variable, an array in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Names(pub Vec<String>);

impl Value for Names {
    const NAME: &'static str = "NAME,…";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self(text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let parse = |text| Period::parse(text).map(|p| p.0);
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
        for wrong in ["", "5", "s", "-1s", "5 parsecs", "1e99h", "1.2.3s"] {
            assert_eq!(parse(wrong), Err(format!("`{wrong}` is not a duration such as 250ms, 5s, 2m or 1h")));
        }
    }

    #[test]
    fn sizes() {
        let parse = |text| Bytes::parse(text).map(|b| b.0);
        assert_eq!(parse("64MiB"), Ok(64 << 20));
        assert_eq!(parse("1.5 KiB"), Ok(1536));
        assert_eq!(parse("2GB"), Ok(2_000_000_000));
        assert_eq!(parse("17"), Ok(17));
        for wrong in ["", "MiB", "-1", "5 apples", "99999999999TiB"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for (bytes, text) in [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB")] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn choices() {
        assert_eq!(Count::parse("auto"), Ok(Count::Auto));
        assert_eq!(Count::parse("3"), Ok(Count::Fixed(3)));
        assert!(Count::parse("0").is_err() && Count::parse("-1").is_err());
        assert_eq!(IsaChoice::parse("scalar"), Ok(IsaChoice::Fixed(Isa::Scalar)));
        assert!(IsaChoice::parse("sse9").is_err());
        assert_eq!(Ratio::parse("0.25"), Ok(Ratio(0.25)));
        assert!(["-0.1", "1.1", "NaN", "half"].iter().all(|text| Ratio::parse(text).is_err()));
        assert_eq!(NonFinite::parse("null"), Ok(NonFinite::Null));
        assert!(NonFinite::parse("nan").is_err());
        assert_eq!(Names::parse("a, b,,"), Ok(Names(vec!["a".into(), "b".into()])));
    }
}
