//! From settings to listeners, keys, certificates and traces.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::api::access::{Cors, KeyRing, Keyless, Role};
use crate::api::{Access, Collector, Listener, Listeners, Surface, Tls, TlsFiles, Watched, export, open_tls};
use crate::config::{Endpoint, Settings};
use crate::trace::Tracer;

/// Keys themselves, separated by commas: `key` or `name=key`. Not settings: the flags of a process are seen by everybody on
/// the machine.
const KEY_VARIABLES: [(&str, Role); 3] =
    [("NDSERVE_API_KEYS", Role::Infer), ("NDSERVE_METRICS_KEYS", Role::Metrics), ("NDSERVE_ADMIN_KEYS", Role::Admin)];

/// Spans that wait for the collector: at a few hundred bytes each, some megabytes at most.
const SPANS_MAX: usize = 8192;
/// How long the last spans may take.
const SPANS_TIMEOUT: Duration = Duration::from_secs(2);

/// The certificates, if the server has any.
pub(super) fn tls(settings: &Settings) -> Result<Option<Arc<Tls>>, String> {
    let (Some(cert), Some(key)) = (settings.tls_cert.clone(), settings.tls_key.clone()) else { return Ok(None) };
    let files = TlsFiles { cert, key, client_ca: settings.tls_client_ca.clone() };
    Ok(Some(Arc::new(open_tls(&files)?)))
}

/// Who may come in.
pub(super) fn access(settings: &Settings) -> Result<Access, String> {
    let has = |name: &str| settings.keyless.0.iter().any(|known| known == name);
    let keyless = Keyless { probes: has("probes"), metrics: has("metrics") };
    let cors = Cors::new(&settings.cors_origins.0).map_err(|error| format!("cors-origins: {error}"))?;
    let mut given = KeyRing::default();
    for (variable, role) in KEY_VARIABLES {
        match std::env::var(variable) {
            Ok(text) => given.add_plain(&text, role, &format!("env-{}", role.name())).map_err(|error| format!("{variable}: {error}"))?,
            Err(std::env::VarError::NotPresent) => {}
            Err(std::env::VarError::NotUnicode(_)) => return Err(format!("{variable}: it is not UTF-8")),
        }
    }
    let Some(file) = settings.keys_file.clone() else {
        let keys = if given.is_empty() { None } else { Some(Watched::open(vec![], move |_, _| Ok(given.clone()))?) };
        return Ok(Access { keys, keyless, cors });
    };
    let name = file.display().to_string();
    let keys = Watched::open(vec![file], move |bytes, before| {
        let ring = std::str::from_utf8(&bytes[0]).map_err(|error| error.to_string()).and_then(KeyRing::parse);
        let mut ring = ring.map_err(|error| format!("{name}: {error}"))?;
        ring.merge(&given)?;
        Ok(ring.keeping(before))
    });
    Ok(Access { keys: Some(keys.map_err(|error| format!("keys-file: {error}"))?), keyless, cors })
}

/// Listens everywhere.
pub(super) async fn listen(settings: &Settings, tls: Option<&Arc<Tls>>) -> Result<Listeners, String> {
    let public = if settings.admin_listen.0.is_empty() { Surface::Whole } else { Surface::Public };
    let mut listeners = Listeners::default();
    for (endpoints, surface) in [(&settings.listen, public), (&settings.admin_listen, Surface::Admin)] {
        for endpoint in &endpoints.0 {
            listeners.0.push(Listener::bind(endpoint, tls, surface).await?);
        }
    }
    Ok(listeners)
}

/// What whoever reaches an endpoint from another machine may do there, if that is more than a stranger should.
pub(super) fn openness(settings: &Settings, access: &Access) -> Vec<String> {
    let keys = access.keys.as_ref().map(Watched::get);
    let has_admin = keys.as_ref().is_some_and(|keys| keys.has_admin());
    // A client certificate is asked for over TLS alone.
    let asks = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Https(_)) && settings.tls_client_ca.is_some();
    let open = |endpoint: &&Endpoint| !(endpoint.is_local() || asks(endpoint));
    let mut warnings = Vec::new();
    if keys.is_none()
        && let Some(endpoint) = settings.listen.0.iter().find(open)
    {
        let what = if settings.admin_listen.0.is_empty() { "may use, load and unload every model" } else { "may use every model" };
        warnings.push(format!("whoever reaches {endpoint} {what}; set keys-file, tls-client-ca, or listen on 127.0.0.1"));
    }
    if !has_admin && let Some(endpoint) = settings.admin_listen.0.iter().find(open) {
        warnings.push(format!(
            "whoever reaches {endpoint} may load and unload every model; make a key with the role admin, or listen on 127.0.0.1"
        ));
    }
    if keys.is_some()
        && let Some(endpoint) = settings.listen.0.iter().find(|endpoint| !endpoint.is_local() && matches!(endpoint, Endpoint::Http(_)))
    {
        warnings.push(format!("keys sent to {endpoint} can be read on the way; use https://, or a proxy that does"));
    }
    warnings
}

/// Spans on their way to the collector.
#[derive(Debug)]
pub(super) struct Sending {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Sending {
    /// Sends what waits, as long as that takes no more than a moment.
    pub(super) async fn finish(self) {
        let _ = self.stop.send(());
        if tokio::time::timeout(SPANS_TIMEOUT, self.task).await.is_err() {
            tracing::warn!("the last spans did not reach the collector");
        }
    }
}

/// Starts sending spans, if the settings say where.
pub(super) fn traces(settings: &Settings) -> Result<Option<(Arc<Tracer>, Sending)>, String> {
    let Some(endpoint) = &settings.otlp_endpoint else { return Ok(None) };
    let collector = Collector::parse(endpoint)?;
    let (tracer, spans) = Tracer::new(settings.trace_ratio.0, SPANS_MAX);
    let (stop, stopped) = oneshot::channel();
    let stopped = async move { stopped.await.unwrap_or(()) };
    let task = tokio::spawn(export(collector, settings.service_name.clone(), spans, Arc::clone(&tracer), stopped));
    Ok(Some((tracer, Sending { stop, task })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_told() {
        let told = |text: &str, keys: &[Role]| {
            let mut ring = KeyRing::default();
            for &role in keys {
                ring.add_plain(&format!("{}-0123456789abcdef0123456789abcdef", role.name()), role, role.name()).unwrap();
            }
            let keys = (!ring.is_empty()).then(|| Watched::open(vec![], move |_, _| Ok(ring.clone())).unwrap());
            openness(&Settings::parse(text).unwrap(), &Access { keys, ..Access::default() }).join("; ")
        };
        assert_eq!(told("", &[]), "");
        assert_eq!(told("listen = 'unix:/run/a.sock'", &[]), "");
        let open = told("listen = '127.0.0.1:1, 0.0.0.0:2'", &[]);
        assert!(open.starts_with("whoever reaches http://0.0.0.0:2 may use, load and unload every model"), "{open}");
        let split = told("listen = '0.0.0.0:2'\nadmin-listen = '127.0.0.1:3'", &[]);
        assert!(split.starts_with("whoever reaches http://0.0.0.0:2 may use every model"), "{split}");
        let admin = told("admin-listen = '0.0.0.0:3'", &[Role::Infer]);
        assert!(admin.starts_with("whoever reaches http://0.0.0.0:3 may load and unload every model"), "{admin}");
        assert_eq!(told("admin-listen = '0.0.0.0:3'", &[Role::Admin]), "");
        let plain = told("listen = '0.0.0.0:2'", &[Role::Infer]);
        assert!(plain.starts_with("keys sent to http://0.0.0.0:2 can be read on the way"), "{plain}");
        let tls = "listen = 'https://0.0.0.0:2'\ntls-cert = 'a'\ntls-key = 'b'\n";
        assert_eq!(told(&format!("{tls}tls-client-ca = 'c'"), &[]), "");
        assert!(told(tls, &[]).starts_with("whoever reaches https://0.0.0.0:2"));
        assert_eq!(told(tls, &[Role::Infer]), "");
    }
}
