//! `ndserve prepare`: what the data is, and what will be done about it, before anything is trained.

use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;

use super::{Failure, Outcome, print, train};
use crate::config::{Engine, Flags};
use crate::telemetry;
use crate::train::Config;
use crate::train::report::{report, suggest};

/// Read data, tell what it is and how it will be prepared and parted, and train nothing.
///
/// Of a configuration the rules are those that it declares; of a data file they are inferred, shown, and written with --write.
/// Exits with 0 if a training could begin.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A configuration (docs/training.md), a .csv, .tsv, .parquet or .npz file, or a folder of pictures by class
    #[arg(value_name = "CONFIG.toml|DATA")]
    data: PathBuf,
    /// The column or array that is to be predicted, if the data is no configuration
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Write the report as one page of HTML
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the inferred configuration
    #[arg(long, value_name = "TOML")]
    write: Option<PathBuf>,
    /// Megabytes that raw rows may take in memory; more are read in parts. By default a quarter of what the machine allows
    #[arg(long, value_name = "N")]
    memory_mb: Option<usize>,
    #[command(flatten)]
    flags: Flags<Engine>,
}

pub(super) fn command(args: Args) -> Outcome {
    telemetry::init(&args.flags.settings()?)?;
    let memory = train::memory_bytes(args.memory_mb);
    let configuration = args.data.extension().is_some_and(|extension| extension == "toml");
    let config = if configuration {
        if args.write.is_some() || args.target.is_some() {
            return Err("--write and --target go with data, not with a configuration".into());
        }
        Config::read(&args.data)?.0
    } else {
        let target = args.target.as_deref().or(args.data.is_dir().then_some("")).ok_or("--target is missing: what is to be predicted")?;
        let text = suggest(&path_from(args.write.as_deref(), &args.data)?, target, memory)?;
        if let Some(path) = &args.write {
            if path.exists() {
                return Err(format!("{} exists already", path.display()).into());
            }
            write(path, &text)?;
        }
        print(&format!("{text}\n"))?;
        Config::parse(&text)?
    };
    let found = report(&config, memory)?;
    if let Some(path) = &args.html {
        write(path, &found.html)?;
    }
    print(&found.text)?;
    Ok(ExitCode::SUCCESS)
}

/// The path of data as a configuration at `written` has it, which is read relative to that file's folder: absolute, if that is
/// another one.
fn path_from(written: Option<&Path>, data: &Path) -> std::io::Result<PathBuf> {
    let elsewhere = |path: &Path| Ok::<_, std::io::Error>(absolute(path)? != absolute(path.file_name().unwrap_or_default())?);
    let other = written.map(elsewhere).transpose()?.unwrap_or(false);
    if other { absolute(data) } else { Ok(data.to_owned()) }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    Ok(crate::train::checkpoint::write_whole(path, text.as_bytes())?)
}
