//! `ndserve serve`: from settings to a server, and back down in order.

use crate::config::{Flags, Server, Settings};
use crate::serve::Defaults;
use crate::telemetry;

use super::Outcome;

/// Serve the models of a folder over HTTP.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags<Server>,
}

pub(super) fn command(args: Args) -> Outcome {
    let settings = args.flags.settings()?;
    telemetry::init(&settings)?;
    run(settings)
}

/// What models get that do not say otherwise.
pub(super) fn defaults(settings: &Settings) -> Defaults {
    Defaults {
        max_batch_rows: settings.max_batch_rows,
        max_delay: settings.max_delay.0,
        queue_limit: settings.queue_limit,
        timeout: Some(settings.request_timeout.0),
    }
}

fn run(_settings: Settings) -> Outcome {
    Err("waits for the protocols".into())
}
