//! The settings of a server, declared once in [`settings!`](self): flag, environment variable, key of `ndserve.toml`, help
//! and `docs/configuration.md` follow from the declaration.
//!
//! Defaults < file < environment < flag. Everything is read and validated in `main`'s first steps and then passed whole:
//! nothing else reads the environment.

mod endpoint;
mod value;

use std::fmt::Write as _;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, FromArgMatches};

pub use endpoint::{Endpoint, Endpoints};
pub use value::{Bytes, Count, IsaChoice, LogFormat, Names, NonFinite, Period, Ratio, ReadyWhen, Value, WeightCache};

use crate::engine::{Isa, LoadOptions, PASSES, Precision};
use crate::resources;

/// The file that is read if no other is named and it exists.
pub const DEFAULT_FILE: &str = "ndserve.toml";

/// What the tables of help and documentation know of a setting.
#[derive(Debug)]
pub struct Setting {
    /// The heading under which it stands.
    pub group: &'static str,
    /// The field's name in [`Settings`].
    pub field: &'static str,
    /// The first sentence says what it is, the rest when to change it.
    pub doc: &'static [&'static str],
    /// The default as it would be written; `None` if it is unset by default.
    pub default: Option<&'static str>,
    /// What stands for the value in help.
    pub value: &'static str,
    arg: fn(Arg) -> Arg,
}

impl Setting {
    /// The key in `ndserve.toml`; the flag is `--` and the key.
    pub fn key(&self) -> String {
        self.field.replace('_', "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("NDSERVE_{}", self.field.to_uppercase())
    }

    /// What it is and when to change it, as one text per paragraph.
    fn text(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }

    fn arg(&self) -> Arg {
        let default = self.default.filter(|text| !text.is_empty()).map(|text| format!(" [default: {text}]")).unwrap_or_default();
        let text = self.text();
        let brief = text.split_once(". ").map_or(text.as_str(), |(first, _)| first).trim_end_matches('.');
        let arg = Arg::new(self.field).long(self.key()).env(self.variable()).hide_env_values(true).help_heading(self.group);
        (self.arg)(arg.help(format!("{brief}{default}")).long_help(format!("{text}{default}")))
    }
}

macro_rules! resolved_type {
    (unset, $ty:ty) => { Option<$ty> };
    ($default:literal, $ty:ty) => { $ty };
}

macro_rules! resolve {
    (unset, $given:expr) => {
        $given
    };
    ($default:literal, $given:expr) => {
        $given.unwrap_or_else(|| Value::parse($default).expect("a test parses every default"))
    };
}

macro_rules! default_text {
    (unset) => {
        None
    };
    ($default:literal) => {
        Some($default)
    };
}

/// Declares every setting with its documentation, type and default (`unset`: none).
macro_rules! settings {
    ($(#![group = $group:literal] $($(#[doc = $doc:literal])+ $field:ident: $ty:ty = $default:tt;)+)+) => {
        /// The settings of a server, complete and valid.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Settings { $($($(#[doc = $doc])+ pub $field: resolved_type!($default, $ty),)+)+ }

        /// The settings that one source gives; what it does not give is left to the sources below it.
        #[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        struct Given { $($($field: Option<$ty>,)+)+ }

        /// The table of settings, in the order of help and documentation.
        pub const SETTINGS: &[Setting] = &[$($(Setting {
            group: $group,
            field: stringify!($field),
            doc: &[$($doc),+],
            default: default_text!($default),
            value: <$ty as Value>::NAME,
            arg: <$ty as Value>::arg,
        },)+)+];

        impl Given {
            /// What the flags and variables of a command give; a setting that the command does not have is not given.
            fn take(matches: &mut ArgMatches) -> Self {
                Self { $($($field: matches.try_remove_one::<$ty>(stringify!($field)).ok().flatten(),)+)+ }
            }

            /// These settings, with those of `lower` where there are none.
            fn over(self, lower: Self) -> Self {
                Self { $($($field: self.$field.or(lower.$field),)+)+ }
            }

            fn resolve(self) -> Settings {
                Settings { $($($field: resolve!($default, self.$field),)+)+ }
            }
        }
    };
}

settings! {
    #![group = "Models"]
    /// Folder with one subfolder or one file per model; a Triton repository as it is; or the folder or file of a single model.
    /// A model's folder holds an optional `model.toml` and a folder per version, `1/model.onnx`, or one model itself, as a
    /// downloaded one does.
    models: PathBuf = "models";
    /// The name of the model if `models` is the folder or file of a single one. By default what its `config.pbtxt` says, else that
    /// of the file or folder; set it where a path such as `/mnt/models` says nothing.
    model_name: String = unset;
    /// How often the folder is looked at for new, changed and removed models, which are then loaded, swapped and unloaded. With
    /// 0 only on request. Write to a name that starts with a dot and rename: then no half of a file is ever seen.
    watch: Period = "0s";
    /// Which models must serve for the server to be ready: `all` that were not unloaded on request, `any`, or `none`, which is
    /// for a server whose models are loaded on request. A model whose newest version failed while an older one serves counts as
    /// serving.
    ready_when: ReadyWhen = "all";
    /// The model that `/predict` uses. Needed only if there are several models and clients use that path.
    default_model: String = unset;
    /// Exit if a model cannot be loaded, and load none whose `config.pbtxt` says what is not understood. By default the others are
    /// served, readiness tells which failed and why, and what is not understood is a warning; set it where a half-working server
    /// must not come up.
    strict: bool = "false";
    /// Be ready with an empty model folder. By default a server without a model is never ready, so that a mistyped
    /// path does not take traffic.
    allow_no_models: bool = "false";

    #![group = "Network"]
    /// Where to listen: `address:port` or `http://…`, `https://…` with TLS, `unix:/path` for a socket file; several are separated
    /// by commas. `0.0.0.0:8080` is reachable from other machines; port 0 takes a free one. HTTP/1.1 and HTTP/2 are spoken on each.
    listen: Endpoints = "127.0.0.1:8080";
    /// Where else to listen, written as `listen`: a port of its own for gRPC, which is spoken where `listen` says as well. Set it
    /// to `0.0.0.0:9000` where clients expect KServe's port, to port 8001 for Triton's.
    grpc_listen: Endpoints = "";
    /// Largest request body. A larger one is refused with 413 before it is read.
    max_body: Bytes = "64MiB";
    /// Largest request head: request line and headers. A larger one is refused with 431.
    max_header: Bytes = "64KiB";
    /// Time in which the request head must arrive. Also how long an idle connection is kept open: longer than a load
    /// balancer keeps it (60 s is common), so that the side that sends requests is the one that closes. Over HTTP/1.1 it may be a
    /// quarter longer, and a client that takes nothing of its answer for so long is closed too.
    header_read_timeout: Period = "75s";
    /// Time in which the request body must arrive. Raise it for large bodies over slow links.
    body_read_timeout: Period = "30s";
    /// Connections open at once. Further ones wait in the system's queue until one closes; the limit of open files
    /// (`ulimit -n`) must be larger.
    max_connections: usize = "4096";
    /// Requests worked on at once, over all models. A further one is answered with 503 at once; raise it together with
    /// the queue limits of the models.
    max_in_flight: usize = "4096";
    /// Deadline of a request that does not set its own. Past it the request is dropped from the queue and answered
    /// with 504.
    request_timeout: Period = "30s";
    /// Largest deadline that a request may set for itself. Larger wishes are cut to it.
    request_timeout_max: Period = "5m";
    /// How long to keep serving after SIGTERM, while already reporting "not ready". Set it to the time that the load
    /// balancer needs to notice (Kubernetes: a little over one probe period); 0 where there is none.
    drain_delay: Period = "0s";
    /// How long requests in flight may take to finish after the drain delay. Delay and timeout together must fit into
    /// what the supervisor grants before it kills (Kubernetes: `terminationGracePeriodSeconds`, Docker: 10 s).
    drain_timeout: Period = "8s";
    /// Threads that read requests and write answers. `auto` is the number of usable CPUs, at most 4: they wait most of
    /// the time, the engine does the work.
    http_threads: Count = "auto";

    #![group = "Access"]
    /// Where administration listens, written as `listen`: load and unload, logging, tracing, profiles, metrics. If it is set, these
    /// routes are there and not where `listen` says; set it to an address that clients of models do not reach.
    admin_listen: Endpoints = "";
    /// File with the hashes of API keys, read anew when it changes. With keys every request needs one; without, whoever
    /// reaches the server may use it. `ndserve key` makes keys and docs/security.md describes the file.
    keys_file: PathBuf = unset;
    /// What needs no key although there are keys: `probes`, `metrics`. Add `metrics` where the scraper cannot send one.
    keyless: Names = "probes";
    /// Certificate of the server in PEM form, followed by those between it and its authority. Needed for `https://`; read anew
    /// when it changes, without closing a connection.
    tls_cert: PathBuf = unset;
    /// Private key of the certificate in PEM form, without a password. Needed for `https://`.
    tls_key: PathBuf = unset;
    /// Certificates of authorities in PEM form. If set, a client over TLS needs a certificate that one of them signed.
    tls_client_ca: PathBuf = unset;
    /// Origins such as `https://example.com` whose web pages may read answers, or `*`. By default none; set it only where
    /// browsers talk to the server themselves.
    cors_origins: Names = "";

    #![group = "Answers"]
    /// What JSON answers say for NaN and infinities, which JSON does not have: `token` writes `NaN`, `Infinity` and `-Infinity`
    /// bare, as Triton and TensorFlow Serving do; `null` suits clients whose parsers know JSON only; `error` refuses the request
    /// with 400. Binary tensors are always exact.
    json_non_finite: NonFinite = "token";
    /// Compress answers for clients that accept it (`Accept-Encoding: gzip` or `deflate`). Turn it off where the network is
    /// faster than the compression: many HTTP libraries accept by default.
    compress_answers: bool = "true";

    #![group = "Batching"]
    /// Most rows of one run of a model, and so of one request. `max_batch_rows` of a model's `model.toml` goes before it;
    /// raise it if clients send larger batches, or if batches of this size are usual under load and memory allows.
    max_batch_rows: usize = "64";
    /// How long a request may be held back to wait for others. With 0 a free worker takes at once what waits, and batches
    /// form by themselves under load; set some milliseconds only if throughput matters more than latency.
    /// `max_delay_ms` of `model.toml` goes before it.
    max_delay: Period = "0ms";
    /// Requests that may wait for one model. A further one is answered with 503 at once; lower it where a late answer is
    /// worth nothing. `queue_limit` of `model.toml` goes before it.
    queue_limit: usize = "1024";
    /// Most rows of a model that one request for an explanation may evaluate. `max_evaluations` of a model's `[explain]` goes
    /// before it; raise it for more samples, images and larger backgrounds, set it to 0 where nobody may ask for explanations.
    explain_max_evaluations: usize = "100000";

    #![group = "Engine"]
    /// Threads that compute. `auto` is the number of usable CPUs: affinity and cgroup quota, not the host's cores.
    threads: Count = "auto";
    /// How long one of these threads stays awake, and busy, behind a request that came alone and within this time after the last: a
    /// processor that rests takes tens of microseconds to go on, in a virtual machine above all. Set it to 0 where processor time is dearer
    /// than the time of who asks one request behind the other, or where a meter of it scales the deployment.
    spin: Period = "500us";
    /// Most memory that one run of a model may use for its values. A request that needs more is refused; it also bounds
    /// each constant of a model file.
    memory_limit: Bytes = "8GiB";
    /// How long one run of a model may take before its loops are stopped. A model without Loop, Scan or SequenceMap ends by
    /// itself.
    run_limit: Period = "60s";
    /// Instruction set of the kernels. Lower it to compare results between machines: with the same one they are equal to
    /// the bit.
    isa: IsaChoice = "auto";
    /// Arithmetic of products with constant weights. `bf16` rounds their operands to 8 bits of mantissa: half the memory of
    /// the weights, and several times the speed where the machine multiplies bf16 (instruction set `amx`). `int8` rounds those of
    /// matrix products to 8-bit integers, each row of activations and each column of weights with a scale of its own: a quarter of
    /// the memory; convolutions stay as they are. `int8-weights` and `int4-weights` round the weights of matrix products alone, 64 of a
    /// column with one scale: a quarter and a seventh of the memory, and of what a run with few rows reads, as in decoding; activations
    /// and sums stay f32. `ndserve check` tells how far golden samples are then from what was recorded; a
    /// model that leaves its tolerance is not served.
    precision: Precision = "f32";
    /// Leave weights in the order of their file. A model is ready sooner, by the time that ordering them for the kernels takes, and each
    /// run is slower, for it orders them itself; answers are the same. Only at precision `f32`: a lower one is made with the order.
    no_prepack: bool = "false";
    /// Where weights are kept in the order of the kernels, for the next start: `beside` the model's file, as a hidden file, or in a folder. That
    /// start maps the file instead of reading and ordering the model's weights, and is a third to a half shorter; the file takes as much
    /// room again as the model. Only one that this very program wrote of this very model is used, every piece of it after a look at its hash;
    /// otherwise it is written anew once the models serve, or by `ndserve check`. Delete it whenever you like, but do not write into it: it
    /// is mapped. Whoever may write to the folder may change answers, as who may write to the models. Of ONNX files whose weights lie in them.
    weight_cache: WeightCache = "off";
    /// Optimiser passes to leave out, by name. For finding out which pass changed a result.
    disable_pass: Names = "";

    #![group = "Logs"]
    /// What is logged: `error`, `warn`, `info`, `debug` or `trace`. Directives go further: `info,ndserve::serve=debug` turns
    /// on one part.
    log_filter: String = "info";
    /// How log lines are written. `text` is for people, `json` for collectors.
    log_format: LogFormat = "text";

    #![group = "Traces and metrics"]
    /// Where spans are sent, by OTLP over HTTP with protobuf: `http://collector:4318`. By default spans are not made; what a
    /// collector that is slow or away does not take is dropped and counted.
    otlp_endpoint: String = unset;
    /// The part of the traces that begin at this server which is kept, from 0 to 1. A request with `traceparent` follows the
    /// decision of its client; lower it where every request is too much for the collector.
    trace_ratio: Ratio = "1";
    /// The name under which spans are sent. Set it where several deployments share a collector.
    service_name: String = "ndserve";
    /// Show the metrics also under the names that Triton has for them, `nv_inference_…`. Set it where dashboards or autoscalers
    /// were written for Triton.
    triton_metrics: bool = "false";
}

impl Default for Settings {
    fn default() -> Self {
        Given::default().resolve()
    }
}

impl Settings {
    /// The settings that the text of a file gives, over the defaults.
    ///
    /// # Errors
    /// As [`Flags::settings`].
    pub fn parse(text: &str) -> Result<Self, String> {
        let settings = parse_file(text)?.resolve();
        settings.validate()?;
        Ok(settings)
    }

    /// Where clients of models come in.
    pub fn public(&self) -> impl Iterator<Item = &Endpoint> {
        self.listen.0.iter().chain(&self.grpc_listen.0)
    }

    /// Threads that compute.
    pub fn engine_threads(&self) -> usize {
        self.threads.or_else(resources::usable_cpus)
    }

    /// Threads that read requests and write answers.
    pub fn http_threads(&self) -> usize {
        // They parse and format; beyond a few they only take turns with the engine's threads on the same CPUs.
        const AUTO_MAX: usize = 4;
        self.http_threads.or_else(|| resources::usable_cpus().min(AUTO_MAX))
    }

    /// How models are loaded.
    pub fn load_options(&self) -> LoadOptions {
        let isa = match self.isa {
            IsaChoice::Auto => Isa::best(),
            IsaChoice::Fixed(isa) => isa,
        };
        LoadOptions {
            isa,
            precision: self.precision,
            memory_limit: self.memory_limit.0,
            run_limit: Some(self.run_limit.0),
            no_prepack: self.no_prepack,
            weight_cache: self.weight_cache.0.clone(),
            disabled_passes: self.disable_pass.0.clone(),
            ..LoadOptions::default()
        }
    }

    /// What one setting alone cannot show to be wrong.
    fn validate(&self) -> Result<(), String> {
        let positive = [
            ("max-connections", self.max_connections),
            ("max-in-flight", self.max_in_flight),
            ("max-batch-rows", self.max_batch_rows),
            ("queue-limit", self.queue_limit),
            ("max-body", self.max_body.0),
            ("memory-limit", self.memory_limit.0),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} must be at least 1"));
        }
        let timeouts = [
            ("header-read-timeout", self.header_read_timeout),
            ("body-read-timeout", self.body_read_timeout),
            ("request-timeout", self.request_timeout),
            ("run-limit", self.run_limit),
        ];
        if let Some((name, _)) = timeouts.iter().find(|(_, value)| value.0.is_zero()) {
            return Err(format!("{name} must be more than 0"));
        }
        // hyper keeps at least this much buffer and panics below it.
        const HEADER_MIN: usize = 8 << 10;
        if self.max_header.0 < HEADER_MIN {
            return Err(format!("max-header must be at least {}", Bytes(HEADER_MIN)));
        }
        if self.request_timeout > self.request_timeout_max {
            return Err(format!(
                "request-timeout ({}) must not exceed request-timeout-max ({})",
                self.request_timeout, self.request_timeout_max
            ));
        }
        self.validate_access()?;
        if self.no_prepack && self.precision != Precision::F32 {
            return Err(format!("no-prepack: weights at precision {} are made when they are ordered for the kernels", self.precision));
        }
        match self.disable_pass.0.iter().find(|name| !PASSES.iter().any(|pass| pass.name == *name)) {
            None => Ok(()),
            Some(unknown) => {
                let mut known: Vec<&str> = PASSES.iter().map(|pass| pass.name).collect();
                known.sort_unstable();
                known.dedup();
                Err(format!("disable-pass: there is no pass `{unknown}`; there are {}", known.join(", ")))
            }
        }
    }
}

impl Settings {
    /// What settings of who may come in contradict each other.
    fn validate_access(&self) -> Result<(), String> {
        if self.listen.0.is_empty() {
            return Err("listen must name at least one endpoint".to_owned());
        }
        let mut endpoints = self.public().chain(&self.admin_listen.0);
        let tls = endpoints.find(|endpoint| matches!(endpoint, Endpoint::Https(_)));
        match (tls, &self.tls_cert, &self.tls_key) {
            (_, Some(_), None) | (_, None, Some(_)) => return Err("tls-cert and tls-key belong together".to_owned()),
            (Some(endpoint), None, None) => return Err(format!("{endpoint} needs tls-cert and tls-key")),
            (None, Some(_), Some(_)) => {
                return Err("tls-cert is set, but nothing listens with TLS: write `listen` as https://address:port".to_owned());
            }
            _ => {}
        }
        if self.tls_client_ca.is_some() && tls.is_none() {
            return Err("tls-client-ca is set, but nothing listens with TLS".to_owned());
        }
        match self.keyless.0.iter().find(|name| !["probes", "metrics"].contains(&name.as_str())) {
            None => Ok(()),
            Some(unknown) => Err(format!("keyless: there is no `{unknown}`; there are probes, metrics")),
        }
    }
}

/// Which settings a command takes as flags and variables.
pub trait Scope: Clone {
    /// Whether the command takes this one.
    fn has(setting: &Setting) -> bool;
}

/// Every setting.
#[derive(Clone, Debug)]
pub enum Server {}

impl Scope for Server {
    fn has(_: &Setting) -> bool {
        true
    }
}

/// What matters where one model is run without a server.
#[derive(Clone, Debug)]
pub enum Engine {}

impl Scope for Engine {
    fn has(setting: &Setting) -> bool {
        ["Engine", "Logs"].contains(&setting.group)
    }
}

/// What matters for saying what a model needs.
#[derive(Clone, Debug)]
pub enum Inspection {}

impl Scope for Inspection {
    fn has(setting: &Setting) -> bool {
        Engine::has(setting) || setting.group == "Batching"
    }
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {}

impl Scope for Address {
    fn has(setting: &Setting) -> bool {
        ["listen", "admin_listen"].contains(&setting.field)
    }
}

/// The flags and variables of a command, not yet merged with the file.
#[derive(Clone, Debug)]
pub struct Flags<S: Scope> {
    given: Given,
    file: Option<PathBuf>,
    scope: PhantomData<S>,
}

impl<S: Scope> Flags<S> {
    /// The settings: these flags and variables over the file over the defaults.
    ///
    /// # Errors
    /// If the file cannot be read or has an unknown key or a wrong value, or the settings contradict each other.
    pub fn settings(self) -> Result<Settings, String> {
        let file = match &self.file {
            Some(path) => read_file(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read_file(Path::new(DEFAULT_FILE))?,
            None => Given::default(),
        };
        let settings = self.given.over(file).resolve();
        settings.validate()?;
        Ok(settings)
    }
}

fn read_file(path: &Path) -> Result<Given, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse_file(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn parse_file(text: &str) -> Result<Given, String> {
    toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
}

impl<S: Scope> clap::Args for Flags<S> {
    fn augment_args(command: Command) -> Command {
        let file =
            Arg::new("config").long("config").value_name("FILE").env("NDSERVE_CONFIG").hide_env_values(true).value_parser(PathBuf::parse);
        let file = file.help(format!("File with settings [default: {DEFAULT_FILE}, if it exists]"));
        let chosen = SETTINGS.iter().filter(|setting| S::has(setting));
        command.arg(file).args(chosen.map(Setting::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<S: Scope> FromArgMatches for Flags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Self::from_arg_matches_mut(&mut matches.clone())
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self { given: Given::take(matches), file: matches.remove_one("config"), scope: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The section of `docs/configuration.md` on the settings of a server.
pub fn markdown() -> String {
    let mut text = String::new();
    let mut group = "";
    for setting in SETTINGS {
        if setting.group != group {
            group = setting.group;
            let _ = write!(text, "\n### {group}\n");
        }
        let default = match setting.default {
            None | Some("") => "none".to_owned(),
            Some(default) => format!("`{default}`"),
        };
        let key = setting.key();
        let _ = write!(
            text,
            "\n#### `{key}`\n\n{}\n\n`--{key} <{}>` · `{}` · default: {default}\n",
            setting.text(),
            setting.value,
            setting.variable()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Flags<Server> {
        let command = <Flags<Server> as clap::Args>::augment_args(Command::new("serve"));
        // What the test's own environment holds must not matter.
        let command = command.mut_args(|arg| arg.env(None::<&str>));
        let mut matches = command.try_get_matches_from([&["serve"], args].concat()).unwrap();
        Flags::from_arg_matches_mut(&mut matches).unwrap()
    }

    #[test]
    fn every_default_is_valid_and_every_setting_is_documented() {
        assert_eq!(Settings::default().validate(), Ok(()));
        for setting in SETTINGS {
            let text = setting.text();
            assert!(text.contains(". ") && text.ends_with('.'), "{}: say what it is. And when to change it.", setting.key());
        }
    }

    #[test]
    fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
        let file = parse_file("listen = '127.0.0.1:1'\nmax-body = 100\ndrain-delay = '5s'\nstrict = true\ndisable-pass = ['identity']");
        let given = flags(&["--listen", "127.0.0.1:2", "--strict=false", "--allow-no-models"]).given.over(file.unwrap());
        let settings = given.resolve();
        assert_eq!(settings.listen, Endpoints::parse("127.0.0.1:2").unwrap());
        assert_eq!(settings.max_body, Bytes(100));
        assert_eq!(settings.drain_delay.to_string(), "5s");
        assert_eq!(settings.disable_pass, Names(vec!["identity".into()]));
        assert!(!settings.strict && settings.allow_no_models);
        assert_eq!(settings.max_header, Settings::default().max_header);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |text: &str| parse_file(text).unwrap_err();
        assert!(message("max_body = 1").contains("unknown field `max_body`"));
        assert!(message("max-body = 'much'").contains("`much` is not a size"));
        assert!(message("threads = 0").contains("`0` is neither a number"));
        let invalid = |args: &[&str]| flags(args).given.resolve().validate().unwrap_err();
        assert_eq!(invalid(&["--queue-limit", "0"]), "queue-limit must be at least 1");
        assert_eq!(invalid(&["--request-timeout", "10m"]), "request-timeout (600s) must not exceed request-timeout-max (300s)");
        for (args, message) in [
            (&["--listen", ""][..], "listen must name at least one endpoint"),
            (&["--listen", "https://127.0.0.1:1"], "https://127.0.0.1:1 needs tls-cert and tls-key"),
            (&["--tls-cert", "a"], "tls-cert and tls-key belong together"),
            (&["--tls-cert", "a", "--tls-key", "b"], "tls-cert is set, but nothing listens with TLS"),
            (&["--tls-client-ca", "a"], "tls-client-ca is set, but nothing listens with TLS"),
            (&["--keyless", "probes,models"], "keyless: there is no `models`; there are probes, metrics"),
        ] {
            assert!(invalid(args).starts_with(message), "{args:?}: {}", invalid(args));
        }
        assert!(invalid(&["--disable-pass", "magic"]).starts_with("disable-pass: there is no pass `magic`; there are "));
    }
}
