//! SIGTERM and SIGINT: the first asks the server to stop, the second ends the process. SIGHUP has keys and certificates read
//! anew at once.

use tokio::sync::watch;

use crate::api::App;

/// Whether the server is asked to stop.
#[derive(Clone, Debug)]
pub(super) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Listens for signals from now on.
    ///
    /// # Errors
    /// If the system does not let the process listen.
    pub(super) fn on_signals() -> std::io::Result<Self> {
        let (ask, asked) = watch::channel(false);
        let mut signals = Signals::new()?;
        tokio::spawn(async move {
            signals.next().await;
            // The receivers may be gone: then the server has ended by itself.
            let _ = ask.send(true);
            let code = signals.next().await;
            tracing::warn!("stopping at once: a second signal");
            #[expect(clippy::disallowed_methods, reason = "whoever asks twice does not want to wait for the drain")]
            std::process::exit(code);
        });
        Ok(Self(asked))
    }

    /// Has keys and certificates read anew at each SIGHUP, where there is one.
    ///
    /// # Errors
    /// If the system does not let the process listen.
    pub(super) fn reload_on_hangup(&self, app: App) -> std::io::Result<()> {
        #[cfg(unix)]
        {
            let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
            tokio::spawn(async move {
                while hangup.recv().await.is_some() {
                    let app = app.clone();
                    let _ = tokio::task::spawn_blocking(move || app.reload()).await;
                }
            });
        }
        #[cfg(not(unix))]
        drop(app);
        Ok(())
    }

    /// Waits until the server is asked to stop.
    pub(super) async fn requested(mut self) {
        // The sender lives as long as the process.
        let _ = self.0.wait_for(|asked| *asked).await;
    }
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal; gives the exit code of a process that it kills: 128 and its number.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => 128 + 15,
            _ = self.interrupt.recv() => 128 + 2,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> i32 {
        // If it cannot be listened for, the system ends the process itself.
        let _ = tokio::signal::ctrl_c().await;
        130
    }
}
