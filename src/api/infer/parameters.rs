//! Parameters of requests, inputs and outputs: the names that the protocols reserve, with the same rules for all of them.
//!
//! A name that nobody reserves is taken and ignored: clients send their own. A message continues the parameter's name.

use std::time::{Duration, Instant};

use super::Wanted;

/// A parameter's value, whatever the protocol calls its type.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::api) enum Param {
    /// A boolean.
    Bool(bool),
    /// A whole number, signed or unsigned.
    Integer(i128),
    /// A number with a fraction.
    Float(f64),
    /// Text.
    Text(String),
    /// Something that no protocol has as a parameter.
    Other,
}

impl Param {
    /// The value for a message.
    fn show(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(text) => format!("{text:?}"),
            Self::Other => "no plain value".to_owned(),
        }
    }

    fn wrong(&self, wanted: &str) -> String {
        format!("is {} where {wanted} is wanted", self.show())
    }

    fn boolean(&self) -> Result<bool, String> {
        match self {
            Self::Bool(value) => Ok(*value),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn unsigned(&self, wanted: &str) -> Result<u64, String> {
        let number = match self {
            Self::Integer(value) => u64::try_from(*value).ok(),
            _ => None,
        };
        number.ok_or_else(|| self.wrong(wanted))
    }
}

/// What the parameters of a request say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::api) struct Parameters {
    /// How long the client waits; `None` for the model's default.
    pub(in crate::api) timeout: Option<Duration>,
    /// 1 is the most urgent; 0 for the model's default.
    pub(in crate::api) priority: u64,
    /// Whether outputs that do not say otherwise are wanted as raw bytes.
    pub(in crate::api) binary_output: bool,
}

impl Parameters {
    /// Takes a parameter of the request.
    ///
    /// # Errors
    /// If it is reserved and has another type, or is not a client's to set.
    pub(in crate::api) fn set(&mut self, key: &str, value: &Param) -> Result<(), String> {
        match key {
            "timeout" => {
                // Zero means no timeout, as in Triton.
                let micros = value.unsigned("a whole number of microseconds")?;
                self.timeout = (micros > 0).then(|| Duration::from_micros(micros));
            }
            "priority" => self.priority = value.unsigned("a whole number, 0 or more")?,
            "binary_data_output" => self.binary_output = value.boolean()?,
            // No model here keeps state between requests, so a sequence's requests are answered each for itself.
            "sequence_id" if matches!(value, Param::Text(_)) => {}
            "sequence_id" => drop(value.unsigned("a string or a whole number, 0 or more,")?),
            "sequence_start" | "sequence_end" => drop(value.boolean()?),
            key if key.starts_with("triton_") => return Err("is reserved; a client must not set it".to_owned()),
            _ => {}
        }
        Ok(())
    }

    /// Lowers the timeout of a request that was `received` so that it ends by `deadline`, which the transport gives beside the
    /// parameters.
    pub(in crate::api) fn end_by(&mut self, deadline: Option<Instant>, received: Instant) {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(received));
        self.timeout = self.timeout.into_iter().chain(left).min();
    }
}

/// Checks a parameter of an input.
///
/// # Errors
/// If it asks for something that the server does not have.
pub(in crate::api) fn input_parameter(key: &str) -> Result<(), String> {
    if key.starts_with("shared_memory") { Err(shared_memory()) } else { Ok(()) }
}

fn shared_memory() -> String {
    "asks for shared memory, which this server does not offer; send and take the tensors themselves".to_owned()
}

impl Wanted {
    /// Takes a parameter of the output.
    ///
    /// # Errors
    /// If it has another type, or asks for something that the server does not have.
    pub(in crate::api) fn set(&mut self, key: &str, value: &Param) -> Result<(), String> {
        match key {
            "binary_data" => self.binary = Some(value.boolean()?),
            "classification" => {
                let wanted = "how many classes, a whole number";
                self.classes = usize::try_from(value.unsigned(wanted)?).map_err(|_| value.wrong(wanted))?;
            }
            key if key.starts_with("shared_memory") => return Err(shared_memory()),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_parameters_are_typed() {
        let mut parameters = Parameters::default();
        for (key, value) in [
            ("timeout", Param::Integer(5000)),
            ("priority", Param::Integer(2)),
            ("binary_data_output", Param::Bool(true)),
            ("sequence_id", Param::Text("a".into())),
            ("sequence_id", Param::Integer(7)),
            ("sequence_start", Param::Bool(true)),
            ("mine", Param::Float(0.5)),
            ("headers", Param::Other),
        ] {
            parameters.set(key, &value).unwrap();
        }
        assert_eq!(parameters, Parameters { timeout: Some(Duration::from_millis(5)), priority: 2, binary_output: true });
        let now = Instant::now();
        parameters.end_by(Some(now + Duration::from_secs(1)), now);
        parameters.end_by(None, now);
        assert_eq!(parameters.timeout, Some(Duration::from_millis(5)));
        parameters.set("timeout", &Param::Integer(0)).unwrap();
        assert_eq!(parameters.timeout, None);
        parameters.end_by(Some(now + Duration::from_secs(1)), now);
        assert_eq!(parameters.timeout, Some(Duration::from_secs(1)));
        parameters.end_by(Some(now), now + Duration::from_secs(1));
        assert_eq!(parameters.timeout, Some(Duration::ZERO));
        for (key, value, want) in [
            ("timeout", Param::Integer(-1), "is -1 where a whole number of microseconds is wanted"),
            ("timeout", Param::Float(1.5), "is 1.5 where a whole number of microseconds is wanted"),
            ("priority", Param::Text("high".into()), "is \"high\" where a whole number, 0 or more is wanted"),
            ("sequence_id", Param::Bool(true), "is true where a string or a whole number"),
            ("sequence_end", Param::Integer(1), "is 1 where true or false is wanted"),
            ("binary_data_output", Param::Integer(1), "is 1 where true or false is wanted"),
            ("triton_enable_empty_final_response", Param::Bool(true), "is reserved; a client must not set it"),
        ] {
            let message = parameters.set(key, &value).unwrap_err();
            assert!(message.starts_with(want), "{key}: {message}");
        }
    }

    #[test]
    fn parameters_of_tensors() {
        let mut wanted = Wanted::default();
        wanted.set("classification", &Param::Integer(3)).unwrap();
        wanted.set("binary_data", &Param::Bool(false)).unwrap();
        wanted.set("mine", &Param::Other).unwrap();
        assert_eq!((wanted.classes, wanted.binary), (3, Some(false)));
        assert!(wanted.set("classification", &Param::Integer(-3)).unwrap_err().contains("how many classes"));
        assert!(wanted.set("shared_memory_region", &Param::Other).unwrap_err().contains("asks for shared memory"));
        assert!(input_parameter("shared_memory_offset").is_err() && input_parameter("mine").is_ok());
    }
}
