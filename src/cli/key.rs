//! `ndserve key`: a new API key.

use std::process::ExitCode;

use super::{Outcome, print};
use crate::api::access::{Role, new_key};

/// Make an API key: its entry for the file of keys goes to stdout, the key itself to stderr, where it is seen once.
///
/// `ndserve key --name mobile >> keys.toml` adds it to the file; the server reads the file anew by itself.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Whose key it is: the name in metrics and logs
    #[arg(long)]
    name: String,
    /// What it may do: `infer`, `metrics` (read them, nothing else) or `admin` (everything)
    #[arg(long, default_value = "infer", value_parser = role)]
    role: Role,
    /// How often it may be used, in requests per second [default: as often as it is]
    #[arg(long)]
    rate: Option<f64>,
}

fn role(text: &str) -> Result<Role, String> {
    let roles = [Role::Infer, Role::Metrics, Role::Admin];
    roles.into_iter().find(|role| role.name() == text).ok_or_else(|| format!("`{text}` is none of infer, metrics, admin"))
}

pub(super) fn command(args: Args) -> Outcome {
    let (key, entry) = new_key(&args.name, args.role, args.rate)?;
    print(&format!("{entry}\n"))?;
    eprintln!("{key}");
    Ok(ExitCode::SUCCESS)
}
