//! Triton's model configuration, `config.pbtxt` or as JSON, put over a model's settings.
//!
//! Each field is either understood, or refused because leaving it out would give other answers, or named in a warning. A field
//! that says no more than its absence would is never complained about, so that a configuration that a server wrote out in full
//! can be read back.

use std::path::Path;
use std::time::Duration;

use super::text_format::{Field, Fields};
use super::{LevelPolicy, ModelSettings, Versions};
use crate::engine::{DType, Dim, Port, Signature};
use crate::serve::Step;

/// The file in a model's folder.
pub(super) const FILE: &str = "config.pbtxt";

/// Inputs and outputs as a configuration declares them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Whether dimension 0 is the batch and not among the declared dimensions.
    pub batch: bool,
    /// The inputs.
    pub inputs: Vec<DeclaredPort>,
    /// The outputs.
    pub outputs: Vec<DeclaredPort>,
}

/// An input or output as a configuration declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredPort {
    /// The name in the model file.
    pub name: String,
    /// The name of the type, `TYPE_FP32`.
    pub data_type: String,
    /// The dimensions; -1 is a free one.
    pub dims: Vec<i64>,
}

/// Inputs for a run before the model serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Warmup {
    /// What the configuration calls it.
    pub name: String,
    /// Rows, where the model has a batch dimension.
    pub batch: usize,
    /// How often it is run.
    pub count: usize,
    /// Name, shape without the batch, and contents of each input.
    pub inputs: Vec<(String, Vec<usize>, WarmupData)>,
}

/// What a warm-up input holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmupData {
    /// Zeros.
    Zero,
    /// Numbers that look random.
    Random,
}

/// What is not understood, by the path of the field.
pub(super) type Warnings = Vec<String>;

/// Puts the configuration over `settings`. `folder` is the model's, where it names files.
///
/// # Errors
/// The field, and what is wrong with it or not supported.
pub(super) fn apply(fields: &Fields, settings: &mut ModelSettings, folder: Option<&Path>) -> Result<Warnings, String> {
    let mut warnings = Vec::new();
    // What decides how the dimensions of others are meant.
    let batch = fields.last("max_batch_size").map(Field::count).transpose().map_err(|error| format!("max_batch_size: {error}"))?;
    if fields.last("input").or_else(|| fields.last("output")).is_some() {
        settings.declared = Some(Declared { batch: batch.unwrap_or(0) > 0, ..Declared::default() });
    }
    match batch {
        Some(0) => settings.batching = false,
        Some(rows) => settings.max_batch_rows = rows,
        None => {}
    }
    let mut groups = 0;
    for (name, field) in &fields.0 {
        field_of(name, field, settings, folder, &mut groups, &mut warnings).map_err(|error| format!("{name}: {error}"))?;
    }
    if groups > 0 {
        settings.instances = groups;
    }
    let steps = |fields: &Fields| fields.all("step").map(step).collect::<Result<Vec<Step>, String>>();
    if let Some(ensemble) = fields.last("ensemble_scheduling") {
        settings.steps = steps(ensemble.fields()?).map_err(|error| format!("ensemble_scheduling: {error}"))?;
        settings.pipeline_outputs =
            settings.declared.take().map(|d| d.outputs.into_iter().map(|port| port.name).collect()).unwrap_or_default();
    }
    settings.model_warmup =
        fields.all("model_warmup").map(warmup).collect::<Result<_, _>>().map_err(|error| format!("model_warmup: {error}"))?;
    Ok(warnings)
}

fn field_of(
    name: &str,
    field: &Field,
    settings: &mut ModelSettings,
    folder: Option<&Path>,
    groups: &mut usize,
    warnings: &mut Warnings,
) -> Result<(), String> {
    match name {
        // Read above, or said again by the folder.
        "name" | "max_batch_size" | "ensemble_scheduling" | "model_warmup" => {}
        "platform" | "backend" => platform(field.text()?)?,
        "default_model_filename" => {
            let name = field.text()?;
            if name.contains(['/', '\\']) {
                return Err(format!("`{name}` leads out of the version's folder"));
            }
            settings.file_name = Some(name.to_owned()).filter(|name| !name.is_empty());
        }
        "version_policy" => settings.versions = version_policy(field.fields()?)?,
        "dynamic_batching" => dynamic_batching(field.fields()?, settings, warnings)?,
        "instance_group" => *groups += instances(field.fields()?, warnings)?,
        "input" | "output" => {
            let port = port(field.fields()?, name, settings, folder, warnings)?;
            let declared = settings.declared.get_or_insert_default();
            if name == "input" { declared.inputs.push(port) } else { declared.outputs.push(port) }
        }
        "sequence_batching" => return Err("sequences, which keep state between requests, are not supported".to_owned()),
        "model_transaction_policy" => {
            if field.fields()?.last("decoupled").map(Field::flag).transpose()? == Some(true) {
                return Err("decoupled: several answers to one request are not supported".to_owned());
            }
        }
        _ if field.is_default() => {}
        _ => warnings.push(name.to_owned()),
    }
    Ok(())
}

fn platform(name: &str) -> Result<(), String> {
    match name {
        "" | "onnxruntime_onnx" | "onnxruntime" | "onnx_onnxv1" | "openvino" | "ensemble" | "ndserve" | "ndserve_safetensors" => Ok(()),
        _ => Err(format!("`{name}` cannot be served; ONNX and safetensors can")),
    }
}

fn version_policy(fields: &Fields) -> Result<Versions, String> {
    if let Some(specific) = fields.last("specific") {
        let versions = specific.fields()?.all("versions").map(|version| version.text().map(str::to_owned));
        let versions = versions.collect::<Result<Vec<String>, String>>()?;
        return if versions.is_empty() { Err("specific: no version is named".to_owned()) } else { Ok(Versions::Only(versions)) };
    }
    if fields.last("all").is_some() {
        return Ok(Versions::All);
    }
    let Some(latest) = fields.last("latest") else { return Ok(Versions::default()) };
    let count = latest.fields()?.last("num_versions").map(Field::count).transpose()?;
    Ok(Versions::Latest(count.filter(|&count| count > 0).unwrap_or(1)))
}

fn dynamic_batching(fields: &Fields, settings: &mut ModelSettings, warnings: &mut Warnings) -> Result<(), String> {
    let mut preferred = fields.all("preferred_batch_size").map(Field::count).collect::<Result<Vec<usize>, _>>()?;
    preferred.sort_unstable();
    preferred.dedup();
    settings.preferred_batch_rows = preferred;
    for (name, field) in &fields.0 {
        let told = |error: String| format!("{name}: {error}");
        match name.as_str() {
            "preferred_batch_size" | "priority_queue_policy" => {}
            // Each request has its answer as soon as it is there; there is no order among different connections.
            "preserve_ordering" => {}
            "max_queue_delay_microseconds" => settings.max_delay = micros(field).map_err(told)?,
            "priority_levels" => settings.priority_levels = field.count().map_err(told)?.max(1),
            "default_priority_level" => settings.default_priority = field.count().map_err(told)?.max(1),
            "default_queue_policy" => {
                let policy = queue_policy(field.fields().map_err(told)?, name, warnings).map_err(told)?;
                settings.queue_limit = policy.queue_limit.unwrap_or(settings.queue_limit);
                settings.timeout = policy.timeout.or(settings.timeout);
                settings.max_timeout = policy.max_timeout.or(settings.max_timeout);
            }
            _ if field.is_default() => {}
            _ => warnings.push(format!("dynamic_batching.{name}")),
        }
    }
    for (level, policy) in fields.entries("priority_queue_policy")? {
        let told = |error: String| format!("priority_queue_policy: {level}: {error}");
        let number = level.parse().map_err(|_| told("it is not a level".to_owned()))?;
        let policy = queue_policy(policy.fields().map_err(told)?, "priority_queue_policy", warnings).map_err(told)?;
        settings.priorities.insert(number, policy);
    }
    Ok(())
}

fn queue_policy(fields: &Fields, path: &str, warnings: &mut Warnings) -> Result<LevelPolicy, String> {
    let mut policy = LevelPolicy::default();
    for (name, field) in &fields.0 {
        match name.as_str() {
            "max_queue_size" => policy.queue_limit = Some(field.count()?).filter(|&limit| limit > 0),
            "default_timeout_microseconds" => {
                let timeout = Some(micros(field)?).filter(|timeout| !timeout.is_zero());
                // In Triton a request may only shorten it.
                (policy.timeout, policy.max_timeout) = (timeout, timeout);
            }
            "timeout_action" if matches!(field.text()?, "REJECT" | "0") => {}
            // A request may always ask for less.
            "allow_timeout_override" => {}
            _ if field.is_default() => {}
            _ => warnings.push(format!("dynamic_batching.{path}.{name}")),
        }
    }
    Ok(policy)
}

fn micros(field: &Field) -> Result<Duration, String> {
    Ok(Duration::from_micros(field.count()? as u64))
}

fn instances(fields: &Fields, warnings: &mut Warnings) -> Result<usize, String> {
    let mut count = 1;
    for (name, field) in &fields.0 {
        match name.as_str() {
            "count" => count = field.count()?.max(1),
            "name" => {}
            "kind" if matches!(field.text()?, "KIND_CPU" | "KIND_AUTO" | "KIND_MODEL" | "0" | "2" | "3") => {}
            _ if field.is_default() => {}
            _ => warnings.push(format!("instance_group.{name}")),
        }
    }
    Ok(count)
}

fn port(
    fields: &Fields,
    path: &str,
    settings: &mut ModelSettings,
    folder: Option<&Path>,
    warnings: &mut Warnings,
) -> Result<DeclaredPort, String> {
    let mut port = DeclaredPort { name: String::new(), data_type: String::new(), dims: Vec::new() };
    for (name, field) in &fields.0 {
        match name.as_str() {
            "name" => port.name = field.text()?.to_owned(),
            "data_type" => port.data_type = field.text()?.to_owned(),
            "dims" => port.dims.push(field.integer()?),
            // What the numbers mean to a person; the model file decides what is computed.
            "format" => {}
            "label_filename" if !field.is_default() => {
                let Some(folder) = folder else {
                    warnings.push(format!("{path}.{name}"));
                    continue;
                };
                let file = field.text()?;
                if !crate::serve::is_model_name(file) {
                    return Err(format!("label_filename: `{file}` leads out of the model's folder"));
                }
                let text = std::fs::read_to_string(folder.join(file)).map_err(|error| format!("label_filename: `{file}`: {error}"))?;
                settings.labels = text.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect();
            }
            _ if field.is_default() && name != "reshape" => {}
            "reshape" => return Err(format!("`{}`: reshape is not supported", port.name)),
            _ => warnings.push(format!("{path}.{name}")),
        }
    }
    if port.name.is_empty() { Err("the name is missing".to_owned()) } else { Ok(port) }
}

fn step(field: &Field) -> Result<Step, String> {
    let fields = field.fields()?;
    let text = |name: &str| fields.last(name).map(|field| field.text().map(str::to_owned)).transpose();
    let model = text("model_name")?.filter(|name| !name.is_empty()).ok_or("step: model_name is missing")?;
    // -1 is the newest.
    let version = text("model_version")?.filter(|version| !version.starts_with('-') && !version.is_empty());
    let map = |name: &str| -> Result<_, String> {
        fields.entries(name)?.into_iter().map(|(key, value)| Ok((key, value.text()?.to_owned()))).collect()
    };
    Ok(Step { inputs: map("input_map")?, outputs: map("output_map")?, model, version })
}

fn warmup(field: &Field) -> Result<Warmup, String> {
    let fields = field.fields()?;
    let count = |name: &str| fields.last(name).map(Field::count).transpose().map(|count| count.unwrap_or(0));
    let input = |(name, value): (String, Field)| {
        let fields = value.fields()?;
        let dims = fields.all("dims").map(Field::count).collect::<Result<Vec<_>, _>>().map_err(|error| format!("`{name}`: {error}"))?;
        let on = |name: &str| fields.last(name).is_some_and(|field| field.flag() == Ok(true));
        let data = match () {
            () if on("zero_data") => WarmupData::Zero,
            () if on("random_data") => WarmupData::Random,
            () => return Err(format!("`{name}`: zero_data or random_data is wanted; files are not supported")),
        };
        Ok((name, dims, data))
    };
    Ok(Warmup {
        name: fields.last("name").map(Field::text).transpose()?.unwrap_or_default().to_owned(),
        batch: count("batch_size")?,
        count: count("count")?.max(1),
        inputs: fields.entries("inputs")?.into_iter().map(input).collect::<Result<_, String>>()?,
    })
}

impl Declared {
    /// Checks that a model has the inputs and outputs that are declared. What is not declared it may have all the same.
    ///
    /// # Errors
    /// The first one that it has not, or has otherwise.
    pub fn check(&self, signature: &Signature) -> Result<(), String> {
        for (what, declared, ports) in [("input", &self.inputs, &signature.inputs), ("output", &self.outputs, &signature.outputs)] {
            for wanted in declared {
                let Some(port) = ports.iter().find(|port| port.name == wanted.name) else {
                    let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
                    return Err(format!("{what} `{}` is configured, the model has {}", wanted.name, names.join(", ")));
                };
                wanted.check(port, self.batch).map_err(|error| format!("{what} `{}`: {error}", wanted.name))?;
            }
        }
        Ok(())
    }
}

impl DeclaredPort {
    fn check(&self, port: &Port, batch: bool) -> Result<(), String> {
        let Some(dtype) = port.kind.dtype() else { return Err(format!("the model has a {}, which is no tensor", port.kind)) };
        if !self.data_type.is_empty() && self.data_type != type_name(dtype) {
            return Err(format!("{} is configured, the model has {}", self.data_type, type_name(dtype)));
        }
        let Some(dims) = &port.dims else { return Ok(()) };
        let wanted: Vec<i64> = batch.then_some(-1).into_iter().chain(self.dims.iter().copied()).collect();
        let fits = |(dim, &wanted): (&Dim, &i64)| match dim {
            Dim::Free(_) => true,
            Dim::Fixed(size) => wanted == -1 || usize::try_from(wanted) == Ok(*size),
        };
        // Some write the one dimension of a scalar that the model does not have.
        if dims.len() != wanted.len() || !dims.iter().zip(&wanted).all(fits) {
            let with_batch = if batch { " with the batch dimension in front" } else { "" };
            return Err(format!("shape {wanted:?}{with_batch} is configured, the model has {}", port.dims_text()));
        }
        Ok(())
    }
}

/// The name of an element type in a configuration.
pub(super) fn type_name(dtype: DType) -> String {
    match dtype {
        DType::String => "TYPE_STRING".to_owned(),
        dtype => format!("TYPE_{}", dtype.oip()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Kind;
    use crate::serve::Defaults;

    fn read(text: &str) -> Result<(ModelSettings, Warnings), String> {
        let mut settings = ModelSettings::new(&Defaults::default());
        let warnings = apply(&Fields::parse(text)?, &mut settings, None)?;
        Ok((settings, warnings))
    }

    #[test]
    fn a_whole_configuration_is_understood() {
        let text = r#"
            name: "resnet" platform: "onnxruntime_onnx" backend: "onnxruntime" max_batch_size: 16
            default_model_filename: "net.onnx"
            input [ { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, -1 ] } ]
            output { name: "y" data_type: TYPE_INT64 dims: 10 }
            version_policy { latest { num_versions: 3 } }
            instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_AUTO } ]
            dynamic_batching {
                preferred_batch_size: [ 8, 4 ]
                max_queue_delay_microseconds: 250
                preserve_ordering: true
                priority_levels: 2
                default_priority_level: 2
                default_queue_policy { max_queue_size: 9 default_timeout_microseconds: 5000 timeout_action: REJECT }
                priority_queue_policy { key: 1 value { max_queue_size: 3 allow_timeout_override: true } }
            }
            model_warmup { name: "zeros" batch_size: 4 inputs { key: "x" value { data_type: TYPE_FP32 dims: [3, 8] zero_data: true } } }
        "#;
        let (settings, warnings) = read(text).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!((settings.max_batch_rows, settings.instances, settings.queue_limit), (16, 3, 9));
        assert_eq!(settings.file_name.as_deref(), Some("net.onnx"));
        assert_eq!((settings.versions, settings.preferred_batch_rows), (Versions::Latest(3), vec![4, 8]));
        assert_eq!((settings.max_delay, settings.timeout), (Duration::from_micros(250), Some(Duration::from_millis(5))));
        assert_eq!((settings.priority_levels, settings.default_priority, settings.priorities[&1].queue_limit), (2, 2, Some(3)));
        let input = DeclaredPort { name: "x".into(), data_type: "TYPE_FP32".into(), dims: vec![3, -1] };
        assert_eq!(settings.declared.unwrap().inputs, [input]);
        let inputs = vec![("x".into(), vec![3, 8], WarmupData::Zero)];
        assert_eq!(settings.model_warmup, [Warmup { name: "zeros".into(), batch: 4, count: 1, inputs }]);
    }

    #[test]
    fn versions_batching_and_ensembles() {
        let versions = |text: &str| read(text).unwrap().0.versions;
        assert_eq!(versions("version_policy { all {} }"), Versions::All);
        assert_eq!(versions("version_policy { specific { versions: [1, 3] } }"), Versions::Only(vec!["1".into(), "3".into()]));
        assert_eq!(versions("version_policy { latest {} }"), Versions::Latest(1));
        assert!(!read("max_batch_size: 0").unwrap().0.batching);
        let ensemble = r#"
            platform: "ensemble" max_batch_size: 1
            input { name: "IN" data_type: TYPE_FP32 dims: 2 } output { name: "OUT" data_type: TYPE_FP32 dims: 2 }
            ensemble_scheduling { step [
                { model_name: "a" model_version: -1 input_map { key: "x" value: "IN" } output_map { key: "y" value: "mid" } },
                { model_name: "b" model_version: 2 input_map { key: "x" value: "mid" } output_map { key: "y" value: "OUT" } }
            ] }
        "#;
        let (settings, warnings) = read(ensemble).unwrap();
        assert_eq!((warnings.len(), settings.pipeline_outputs, settings.steps.len()), (0, vec!["OUT".to_owned()], 2));
        assert_eq!((&settings.steps[0].version, settings.steps[1].version.as_deref()), (&None, Some("2")));
        assert_eq!(settings.steps[1].inputs["x"], "mid");
    }

    #[test]
    fn what_is_not_understood_is_named_and_what_would_change_answers_is_refused() {
        let (_, warnings) = read(
            "optimization { cuda { graphs: true } } response_cache { enable: true } parameters { key: 'a' value { string_value: 'b' } }
             instance_group { kind: KIND_GPU gpus: [1] } dynamic_batching { default_queue_policy { timeout_action: DELAY } }
             input { name: 'x' data_type: TYPE_FP32 dims: 1 optional: true } new_field: 3
             model_transaction_policy { decoupled: false } metric_tags {} runtime: ''",
        )
        .unwrap();
        let want = [
            "optimization",
            "response_cache",
            "parameters",
            "instance_group.kind",
            "instance_group.gpus",
            "dynamic_batching.default_queue_policy.timeout_action",
            "input.optional",
            "new_field",
        ];
        assert_eq!(warnings, want);
        for (text, want) in [
            ("platform: 'tensorrt_plan'", "platform: `tensorrt_plan` cannot be served"),
            ("sequence_batching {}", "sequence_batching: sequences"),
            ("model_transaction_policy { decoupled: true }", "decoupled"),
            ("input { name: 'x' reshape { shape: [] } }", "reshape is not supported"),
            ("input { data_type: TYPE_FP32 }", "the name is missing"),
            ("max_batch_size: -1", "max_batch_size: `-1` is not a whole number"),
            ("default_model_filename: '../x.onnx'", "leads out"),
            ("version_policy { specific {} }", "no version is named"),
            ("model_warmup { inputs { key: 'x' value { input_data_file: 'f' } } }", "files are not supported"),
            ("dynamic_batching { priority_queue_policy { key: 'a' value {} } }", "it is not a level"),
            ("ensemble_scheduling { step { } }", "model_name is missing"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn declared_inputs_are_those_of_the_model() {
        let dims = Some(vec![Dim::Free("batch".into()), Dim::Fixed(3)]);
        let port = |name: &str| Port { name: name.into(), kind: Kind::Tensor(DType::F32), dims: dims.clone() };
        let signature = Signature { inputs: vec![port("x")], outputs: vec![port("y")], optional: Vec::new(), batchable: true };
        let check = |text: &str| read(text).unwrap().0.declared.unwrap().check(&signature);
        assert_eq!(check("max_batch_size: 4 input { name: 'x' data_type: TYPE_FP32 dims: 3 }"), Ok(()));
        assert_eq!(check("max_batch_size: 0 input { name: 'x' data_type: TYPE_FP32 dims: [-1, 3] }"), Ok(()));
        for (text, want) in [
            ("max_batch_size: 4 input { name: 'x' dims: [-1, 3] }", "with the batch dimension in front is configured"),
            ("input { name: 'x' dims: 3 }", "shape [3] is configured, the model has [batch, 3]"),
            ("input { name: 'x' data_type: TYPE_INT64 dims: [-1, 3] }", "TYPE_INT64 is configured, the model has TYPE_FP32"),
            ("output { name: 'z' dims: 3 }", "output `z` is configured, the model has y"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
