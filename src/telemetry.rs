//! Logs: what is written, and how. Set up once, from the settings; to stderr, so that answers on stdout stay clean. What is
//! written can be changed while the process runs ([`Control`]); how cannot.

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Filter, Layer as _, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{LogFormat, Settings};

/// Which lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Lines of level info.
    pub info: bool,
    /// Lines of level warn.
    pub warning: bool,
    /// Lines of level error.
    pub error: bool,
    /// 0: nothing finer; 1: debug; 2 and above: trace.
    pub verbose: u32,
}

impl Levels {
    /// The levels up to `max`.
    fn up_to(max: LevelFilter) -> Self {
        let has = |level: Level| max >= level;
        let verbose = u32::from(has(Level::DEBUG)) + u32::from(has(Level::TRACE));
        Self { info: has(Level::INFO), warning: has(Level::WARN), error: has(Level::ERROR), verbose }
    }

    fn has(self, level: Level) -> bool {
        match level {
            Level::ERROR => self.error,
            Level::WARN => self.warning,
            Level::INFO => self.info,
            Level::DEBUG => self.verbose >= 1,
            Level::TRACE => self.verbose >= 2,
        }
    }
}

/// Decides which lines are written; can be exchanged.
type Chosen<S> = Box<dyn Filter<S> + Send + Sync>;

/// Changes which lines are written.
pub struct Control {
    levels: Mutex<Levels>,
    exchange: Box<dyn Fn(Levels) -> Result<(), String> + Send + Sync>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("levels", &self.levels()).finish_non_exhaustive()
    }
}

static CONTROL: OnceLock<Control> = OnceLock::new();

impl Control {
    /// The control of the process's log; `None` if [`init`] did not start it.
    pub fn global() -> Option<&'static Self> {
        CONTROL.get()
    }

    /// A filter for a layer that begins with the directives of `filter`, and the control over it.
    ///
    /// # Errors
    /// If the directives cannot be read.
    pub fn new<S: Subscriber + for<'a> LookupSpan<'a>>(filter: &str) -> Result<(reload::Layer<Chosen<S>, S>, Self), String> {
        let filter = EnvFilter::try_new(filter).map_err(|error| format!("log-filter: `{filter}`: {error}"))?;
        let levels = Levels::up_to(filter.max_level_hint().unwrap_or(LevelFilter::TRACE));
        let (layer, handle) = reload::Layer::new(Box::new(filter) as Chosen<S>);
        let exchange = move |levels: Levels| {
            let chosen: Chosen<S> = Box::new(filter_fn(move |metadata| levels.has(*metadata.level())));
            handle.reload(chosen).map_err(|error| error.to_string())
        };
        Ok((layer, Self { levels: Mutex::new(levels), exchange: Box::new(exchange) }))
    }

    /// Which lines are written now. Of directives for single parts of the program only the finest level is told.
    pub fn levels(&self) -> Levels {
        *self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes lines of these levels from now on, of every part of the program.
    ///
    /// # Errors
    /// If the log has ended.
    pub fn set(&self, levels: Levels) -> Result<(), String> {
        let mut now = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != levels {
            (self.exchange)(levels)?;
            *now = levels;
        }
        Ok(())
    }
}

/// Starts logging for the whole process.
///
/// # Errors
/// If the filter cannot be read, or logging was started before.
pub fn init(settings: &Settings) -> Result<(), String> {
    let (filter, control) = Control::new(&settings.log_filter)?;
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = match settings.log_format {
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let started = Registry::default().with(layer.with_filter(filter)).try_init();
    started.map_err(|error| error.to_string())?;
    let _ = CONTROL.set(control);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_an_error() {
        assert!(Control::new::<Registry>("info,ndserve::serve=debug").is_ok());
        let error = Control::new::<Registry>("ndserve=loud").err().unwrap();
        assert!(error.starts_with("log-filter: `ndserve=loud`"));
    }

    #[test]
    fn what_is_written_changes_while_the_process_runs() {
        let lines = Lines::default();
        let (filter, control) = Control::new("info").unwrap();
        let writer = lines.clone();
        let layer = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let subscriber = Registry::default().with(layer.with_filter(filter));
        tracing::subscriber::with_default(subscriber, || {
            let speak = || {
                tracing::error!("e");
                tracing::warn!("w");
                tracing::info!("i");
                tracing::debug!("d");
                tracing::trace!("t");
                let bytes = std::mem::take(&mut *lines.0.lock().unwrap());
                String::from_utf8(bytes).unwrap().lines().map(|line| line.chars().last().unwrap()).collect::<String>()
            };
            assert_eq!(speak(), "ewi");
            assert_eq!(control.levels(), Levels { info: true, warning: true, error: true, verbose: 0 });
            control.set(Levels { info: false, verbose: 1, ..control.levels() }).unwrap();
            assert_eq!(speak(), "ewd");
            control.set(Levels { error: false, warning: false, info: true, verbose: 2 }).unwrap();
            assert_eq!(speak(), "idt");
        });
    }
}
