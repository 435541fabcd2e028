//! `ndserve deploy`: a model into a repository, or into a running server, after it has shown what it can.

use std::fmt::Write as _;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::evaluate::{Answers, Rows};
use super::files::write_whole;
use super::remote::Remote;
use super::target::Target;
use super::{Failure, Outcome, print};
use crate::config::{Engine, Flags, Settings};
use crate::engine::{FORMATS, LoadOptions, Model, Session, Tensor, Threads, Value};
use crate::serve::{Golden, ModelSettings, is_model_name, version_file, versions};
use crate::telemetry;
use crate::train::data::Column;
use crate::train::evaluation::{Judged, compare};
use crate::train::statistics::Bootstrap;

/// Put a model into a repository under a new version, or load it into a running server.
///
/// The copy is loaded and must reproduce its golden samples before it gets its name. Exits with 0 if the model is deployed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A model file, or a model folder (its newest version is taken)
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A folder of models, or the address of a server that loads models on request: http://host:port
    #[arg(long, value_name = "DIR|URL")]
    to: String,
    /// The name of the model there; by default that of its folder or file
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Send this share of the requests to the new version, in percent, and the rest to the one that is there; only into a folder
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=99))]
    canary: Option<u32>,
    /// Rows whose answers are known: a model that is worse on them than the one that is there is not deployed
    #[arg(long, value_name = "FILE", requires = "target")]
    data: Option<PathBuf>,
    /// The column or array of the data that holds the right answers
    #[arg(long, value_name = "NAME", requires = "data")]
    target: Option<String>,
    /// The columns of the data that the models take; all others where none are named
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    features: Vec<String>,
    /// Deploy a worse model too, or one with other inputs, outputs or labels
    #[arg(long)]
    force: bool,
    /// The API key of a server that asks for one
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    #[command(flatten)]
    flags: Flags<Engine>,
}

pub(super) fn command(args: Args) -> Outcome {
    let settings = args.flags.clone().settings()?;
    telemetry::init(&settings)?;
    let target = Target::one(&args.model)?;
    let name = args.name.clone().unwrap_or_else(|| target.name.clone());
    if !is_model_name(&name) {
        return Err(format!("`{name}` cannot be the name of a model; --name gives another").into());
    }
    let said =
        if args.to.contains("://") { to_server(&args, &target, &name, &settings)? } else { to_folder(&args, &target, &name, &settings)? };
    print(&said)?;
    Ok(ExitCode::SUCCESS)
}

/// The files of a model by their path in its folder, for version `version`.
fn files(target: &Target, version: &str) -> Result<Vec<(String, PathBuf)>, Failure> {
    let file = target.file.as_ref().map_err(|reason| reason.clone())?;
    let beside = file.parent().unwrap_or(Path::new(""));
    let folder = target.folder.as_deref();
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir(if beside.as_os_str().is_empty() { Path::new(".") } else { beside })? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Of a lone file what lies beside it is not its own, but for weights that it keeps apart.
        let own = folder.is_some() || path == *file || name.starts_with(&format!("{stem}."));
        let of_model = folder == Some(beside) && matches!(name.as_str(), "model.toml" | "README.md" | "train.toml");
        // A file of any name becomes what a version's folder has.
        let format = FORMATS.iter().find(|format| name.ends_with(&format!(".{}", format.extension)));
        let name = match format {
            Some(format) if folder.is_none() && path == *file => format.file_name.to_owned(),
            _ => name,
        };
        if path.is_file() && own && !of_model && !name.starts_with('.') {
            found.push((format!("{version}/{name}"), path));
        }
    }
    let golden = [Some(beside), folder].into_iter().flatten().map(|place| place.join("golden")).find(|golden| golden.is_dir());
    for entry in golden.into_iter().map(fs::read_dir).collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
        let path = entry?.path();
        found.push((format!("{version}/golden/{}", path.file_name().unwrap_or_default().to_string_lossy()), path));
    }
    found.sort();
    Ok(found)
}

/// What belongs to all versions of a model: its settings with what they name, and what tells of it. Other archives in its folder are
/// what it was trained on, or checkpoints, which no server needs.
fn shared_files(target: &Target, own: &ModelSettings) -> Vec<(String, PathBuf)> {
    let Some(folder) = &target.folder else { return Vec::new() };
    let kinds = ["toml", "pbtxt", "md", "svg", "txt"];
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let shared = |path: &PathBuf| path.is_file() && path.extension().is_some_and(|extension| kinds.iter().any(|kind| extension == *kind));
    let named = |path: PathBuf| Some((path.file_name()?.to_str()?.to_owned(), path));
    let mut found: Vec<_> = entries.filter(shared).filter_map(named).collect();
    let background =
        own.explain.background.as_ref().filter(|name| Path::new(name).components().all(|part| matches!(part, Component::Normal(_))));
    found.extend(background.map(|name| (name.clone(), folder.join(name))));
    found.sort();
    found
}

/// Loads the copy and runs its golden samples; tells what was shown.
fn verify(file: &Path, settings: &ModelSettings, options: &LoadOptions) -> Result<&'static str, Failure> {
    let named = |error: String| Failure(format!("{}: {error}", file.display()));
    let model = Model::load(file, options).map_err(|error| named(error.to_string()))?;
    let golden = file.parent().map(|folder| Golden::read(&folder.join("golden"))).transpose()?.flatten();
    let Some(golden) = golden else { return Ok("there are no golden samples") };
    let mut session = Session::new(Arc::new(model), Arc::new(Threads::single()));
    let answer = session.run(&golden.inputs).map_err(|error| named(format!("the golden samples do not run: {error}")))?;
    golden.compare(&answer, settings.tolerance).map_err(|error| named(format!("the golden samples are not reproduced: {error}")))?;
    Ok("its golden samples are reproduced")
}

fn to_folder(args: &Args, target: &Target, name: &str, settings: &Settings) -> Result<String, Failure> {
    let repository = PathBuf::from(&args.to);
    let home = repository.join(name);
    let defaults = super::serve::defaults(settings);
    let present = if home.is_dir() { Some(ModelSettings::read(&home, &defaults)?) } else { None };
    let known = present.as_ref().map(|settings| versions(&home, settings)).transpose()?.unwrap_or_default();
    let own = target.settings(settings)?;
    let next = known.iter().filter_map(|version| version.parse::<u64>().ok()).max().map_or(1, |newest| newest + 1);
    let version = next.to_string();
    let mut said = String::new();
    if let (Some(settings_there), Some(newest)) = (&present, known.last()) {
        let there = version_file(&home, newest, settings_there)?;
        guard(args, (target, &own), (&home, settings_there, &there), settings, &mut said)?;
    } else if args.canary.is_some() {
        return Err(format!("--canary splits requests with the version that is there, and there is none in {}", home.display()).into());
    }
    // What is not there yet goes again if the model does not come.
    let made: Vec<&Path> = repository.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    // A name that begins with a dot is no model and no version: nobody reads it before it is whole.
    let temporary = repository.join(format!(".{name}.{}", std::process::id()));
    remove_left(&repository, name);
    let outcome = copy((target, &own), &version, &temporary, present.is_none()).and_then(|()| {
        let file = version_file(&temporary, &version, &own)?;
        let _ = writeln!(said, "{}", verify(&file, &own, &settings.load_options())?);
        settle(args, &home, &temporary, (&version, known.last()), present.is_none())
    });
    let _ = fs::remove_dir_all(&temporary);
    if outcome.is_err() {
        // Only an empty folder is removed: what another put there meanwhile stays.
        made.iter().for_each(|folder| drop(fs::remove_dir(folder)));
    }
    outcome?;
    let _ = writeln!(said, "{} is version {version} of `{name}`", home.join(&version).display());
    Ok(said)
}

/// Removes copies of `name` that were begun long ago: whoever made them was killed. That one cannot be removed is no error.
fn remove_left(repository: &Path, name: &str) {
    /// No copy takes as long.
    const LONG: Duration = Duration::from_secs(6 * 3600);
    for entry in fs::read_dir(repository).into_iter().flatten().flatten() {
        let of_a_process = |other: &str| {
            let number = other.strip_prefix('.').and_then(|rest| rest.strip_prefix(name)).and_then(|rest| rest.strip_prefix('.'));
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
        };
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if entry.file_name().to_str().is_some_and(of_a_process) && age().is_some_and(|age| age > LONG) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Copies the version, and what belongs to all versions if the model is new.
fn copy((target, own): (&Target, &ModelSettings), version: &str, to: &Path, whole: bool) -> Result<(), Failure> {
    let shared = if whole { shared_files(target, own) } else { Vec::new() };
    for (path, from) in files(target, version)?.into_iter().chain(shared) {
        let to = to.join(path);
        let written = to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            fs::copy(&from, &to)?;
            fs::File::open(&to)?.sync_all()
        });
        written.map_err(|error| format!("{}: {error}", to.display()))?;
    }
    Ok(())
}

/// Gives the copy its name.
fn settle(args: &Args, home: &Path, copy: &Path, (version, newest): (&str, Option<&String>), whole: bool) -> Result<(), Failure> {
    let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(|error| Failure(format!("{}: {error}", to.display())));
    if whole {
        return rename(copy, home);
    }
    let (Some(percent), Some(newest)) = (args.canary, newest) else {
        return rename(&copy.join(version), &home.join(version));
    };
    // First every request is held at the version that is there; then the new one comes; then it gets its share.
    let path = home.join("model.toml");
    let text = if path.exists() { fs::read_to_string(&path)? } else { String::new() };
    if text.contains("version_labels") {
        return Err(format!("{}: it has version_labels already; set the split there", path.display()).into());
    }
    let labelled = |label: String| write_whole(&path, format!("version_labels = {{ default = {label} }}\n{text}").as_bytes());
    labelled(format!("\"{newest}\""))?;
    rename(&copy.join(version), &home.join(version))?;
    labelled(format!("{{ split = {{ {newest} = {}, {version} = {percent} }} }}", 100 - percent))?;
    Ok(())
}

/// Refuses what would be worse, or other, than what is there.
fn guard(
    args: &Args,
    (target, own): (&Target, &ModelSettings),
    (home, present, there): (&Path, &ModelSettings, &Path),
    settings: &Settings,
    said: &mut String,
) -> Result<(), Failure> {
    let options = settings.load_options();
    let (new, _) = target.load(&options).map_err(|error| target.failed(&error))?;
    let old = Model::load(there, &options).map_err(|error| format!("{}: {error}", there.display()))?;
    let ports = |model: &Model| (model.signature().inputs.clone(), model.signature().outputs.clone());
    if ports(&new) != ports(&old) && !args.force {
        return Err("the inputs or outputs are not those of the model that is there; --force deploys it all the same".into());
    }
    if own.labels != present.labels && !own.labels.is_empty() && !args.force {
        let labels = |settings: &ModelSettings| settings.labels.join(", ");
        return Err(format!(
            "the labels are {}, those of the model that is there {}; --force deploys it all the same",
            labels(own),
            labels(present)
        )
        .into());
    }
    let Some(rows) = rows(args) else { return Ok(()) };
    let (there, known) = rows.answers(home, settings)?;
    let (now, _) = rows.answers(&args.model, settings)?;
    better(args, &rows, (&there, &now), known, said)
}

/// What is evaluated on, if anything is.
fn rows(args: &Args) -> Option<Rows<'_>> {
    let (Some(data), Some(target)) = (&args.data, &args.target) else { return None };
    Some(Rows { data, target, features: &args.features, task: None })
}

/// Refuses answers that are worse than those of the model that is there.
fn better(args: &Args, rows: &Rows<'_>, (there, now): (&Answers, &Answers), known: Column, said: &mut String) -> Result<(), Failure> {
    let truth = rows.truth(known, now)?;
    let judged = |answers| Judged { truth: &truth, answers };
    let bootstrap = Bootstrap { samples: 500, confidence: 0.95, seed: 0 };
    let found = compare(&judged(&there.scores.values), &judged(&now.scores.values), &bootstrap)?;
    let difference = found.measures[found.decisive];
    let (old, new) = (difference.first.unwrap_or(f64::NAN), difference.second.unwrap_or(f64::NAN));
    let told = format!("{}: {old:.6} there, {new:.6} now, p = {:.4}", found.decisive, found.p);
    if old != new && !found.second_is_better && !args.force {
        return Err(format!("the model is worse than the one that is there ({told}); --force deploys it all the same").into());
    }
    let _ = writeln!(said, "{told}");
    Ok(())
}

/// [`guard`] against the model that a server has under the name: it is asked for its answers.
fn guard_server(
    args: &Args,
    (target, own): (&Target, &ModelSettings),
    name: &str,
    remote: &Remote<'_>,
    settings: &Settings,
    said: &mut String,
) -> Result<(), Failure> {
    let Some(served) = remote.served(name)? else { return Ok(()) };
    let options = settings.load_options();
    let (new, _) = target.load(&options).map_err(|error| target.failed(&error))?;
    let fits = served.fits(new.signature());
    if !fits && !args.force {
        return Err("the inputs or outputs are not those of the model that is there; --force deploys it all the same".into());
    }
    let labels = own.labels.join(",");
    if labels != served.labels && !labels.is_empty() && !args.force {
        return Err(format!(
            "the labels are {labels}, those of the model that is there {}; --force deploys it all the same",
            served.labels
        )
        .into());
    }
    // Against a model of another kind there is nothing to judge by.
    let Some(rows) = rows(args).filter(|_| fits) else { return Ok(()) };
    let (now, known) = rows.answers(&args.model, settings)?;
    let signature = new.signature();
    let mut ask = |given: &[Tensor], output: usize| Ok(Value::Tensor(remote.infer(name, signature, given, &signature.outputs[output])?));
    let (there, _) = rows.answered(signature, now.labels.clone(), (options.memory_limit, ROWS_ASKED), &mut ask)?;
    better(args, &rows, (&there, &now), known, said)
}

/// Rows that a server is asked for at once: few enough for its limit of a request, whatever they are.
const ROWS_ASKED: usize = 16;

/// Loads the model by the repository extension, with its files in the request.
fn to_server(args: &Args, target: &Target, name: &str, settings: &Settings) -> Result<String, Failure> {
    if args.canary.is_some() {
        return Err("--canary needs the folder of the models: a server takes one set of files".into());
    }
    let remote = Remote::new(&args.to, args.key.as_deref())?;
    let own = target.settings(settings)?;
    let version = "1";
    let temporary = std::env::temp_dir().join(format!("ndserve-deploy-{}", std::process::id()));
    let shown = copy((target, &own), version, &temporary, true)
        .and_then(|()| Ok(version_file(&temporary, version, &own)?))
        .and_then(|file| verify(&file, &own, &settings.load_options()));
    let _ = fs::remove_dir_all(&temporary);
    let mut said = format!("{}\n", shown?);
    guard_server(args, (target, &own), name, &remote, settings, &mut said)?;
    let mut members = serde_json::Map::new();
    // A server wants to be told what files are; the settings among them say that.
    members.insert("config".to_owned(), "{}".into());
    for (path, from) in files(target, version)?.into_iter().chain(shared_files(target, &own)) {
        let bytes = fs::read(&from).map_err(|error| format!("{}: {error}", from.display()))?;
        members.insert(format!("file:{path}"), STANDARD.encode(bytes).into());
    }
    let body = serde_json::json!({ "parameters": members }).to_string();
    let url = args.to.trim_end_matches('/');
    let reply = remote.post(&format!("/v2/repository/models/{name}/load"), body.as_bytes())?;
    if reply.status != 200 {
        return Err(format!("{url}: {}: {}", reply.status, reply.text()).into());
    }
    let _ = writeln!(said, "`{name}` is loaded into {url}, until it is loaded again");
    Ok(said)
}
