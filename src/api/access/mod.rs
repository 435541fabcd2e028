//! Who may come in: what a path needs, what a listener has, and whether the key of a request is enough.
//!
//! | route | without keys | with keys |
//! |---|---|---|
//! | models, documentation | everybody | any key but one for metrics |
//! | probes, metrics | everybody | as models and administration, unless configured to need none |
//! | administration: load and unload, logging, tracing, profiling | everybody who reaches the listener | an admin key |
//!
//! Where an admin listener is configured, the routes of the last row and the metrics are on it and nowhere else, and only
//! admin keys open it, if there are any. Where there is none, an admin route of a server with keys needs an admin key: without
//! one it is closed.

mod bucket;
mod cors;
mod keys;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::reload::Watched;
use crate::error::{Error, Kind};

pub use cors::Cors;
pub(super) use keys::Key;
pub use keys::{KeyRing, Role, new_key};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Which routes a listener has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Every route: the server has no admin listener.
    Whole,
    /// What clients of models need: administration has a listener of its own.
    Public,
    /// Every route, for administrators.
    Admin,
}

/// What a path needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    Probe,
    Metrics,
    Admin,
    Model,
}

/// Paths of administration. Routers match static parts of a path byte by byte, undecoded, so no other spelling of these
/// reaches their handlers.
const ADMIN_PATHS: [&str; 6] = [
    "/v2/logging",
    "/v2/trace/setting",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
    "/inference.GRPCInferenceService/TraceSetting",
    "/inference.GRPCInferenceService/LogSettings",
];

/// Probes whose path has no name in it.
const PROBE_PATHS: [&str; 10] = [
    "/",
    "/livez",
    "/readyz",
    "/v2/health/live",
    "/v2/health/ready",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ModelReady",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];

impl Guard {
    pub(super) fn of(path: &str, profile: bool) -> Self {
        if profile || ADMIN_PATHS.contains(&path) {
            return Self::Admin;
        }
        if path == "/metrics" {
            return Self::Metrics;
        }
        if PROBE_PATHS.contains(&path) {
            return Self::Probe;
        }
        match path.strip_prefix("/v2/") {
            // The index tells what `/v2` tells too.
            Some("repository/index") => Self::Model,
            Some(rest) if rest.starts_with("repository/") => Self::Admin,
            Some(rest) if rest.starts_with("models/") && rest.ends_with("/trace/setting") => Self::Admin,
            Some(rest) if rest.starts_with("models/") && rest.ends_with("/ready") => Self::Probe,
            _ => Self::Model,
        }
    }
}

/// What needs no key although there are keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keyless {
    /// Liveness and readiness.
    pub probes: bool,
    /// `/metrics`.
    pub metrics: bool,
}

/// Who may come in.
#[derive(Debug, Default)]
pub struct Access {
    /// `None`: everybody.
    pub keys: Option<Watched<KeyRing>>,
    /// What needs no key although there are keys.
    pub keyless: Keyless,
    /// Which web pages may read answers.
    pub cors: Cors,
}

/// A request that is not let in.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: Error,
    /// How the answer tells what to do.
    pub(super) header: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        let challenge = || (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"ndserve\""));
        Self { error: Error::new(kind, message), header: (kind == Kind::Unauthenticated).then(challenge) }
    }
}

impl Access {
    /// Looks whether the file of keys changed.
    pub(super) fn keys(&self) -> Option<&Watched<KeyRing>> {
        self.keys.as_ref()
    }

    /// Whether every request of a listener may go on, so that none needs a look.
    pub(super) fn is_open(&self, surface: Surface) -> bool {
        self.keys.is_none() && surface != Surface::Public
    }

    /// Whether the request may go on; with the key that let it in, if it needed one.
    pub(super) fn admit(&self, surface: Surface, guard: Guard, headers: &HeaderMap, now: Instant) -> Result<Option<Arc<Key>>, Refusal> {
        if surface == Surface::Public && matches!(guard, Guard::Admin | Guard::Metrics) {
            return Err(Refusal::new(Kind::NotFound, "this is on the admin listener, not here"));
        }
        let Some(keys) = &self.keys else { return Ok(None) };
        match guard {
            Guard::Probe if self.keyless.probes => return Ok(None),
            Guard::Metrics if self.keyless.metrics => return Ok(None),
            _ => {}
        }
        let keys = keys.get();
        if surface == Surface::Admin && !keys.has_admin() {
            return Ok(None);
        }
        let given = given(headers)?;
        let key = keys.find(given).ok_or_else(|| Refusal::new(Kind::Unauthenticated, "the API key is not known"))?;
        let enough = match key.role() {
            Role::Admin => true,
            Role::Metrics => matches!(guard, Guard::Metrics | Guard::Probe),
            Role::Infer => surface != Surface::Admin && matches!(guard, Guard::Model | Guard::Probe),
        };
        if !enough {
            let (name, role) = (key.name(), key.role().name());
            let want = match guard {
                Guard::Admin => "an admin key",
                Guard::Metrics => "a key for metrics, or an admin key",
                _ if surface == Surface::Admin => "an admin key",
                _ => "a key for inference",
            };
            return Err(Refusal::new(Kind::PermissionDenied, format!("the API key `{name}` has the role `{role}`; {want} is needed here")));
        }
        match key.admit(now) {
            Ok(()) => Ok(Some(Arc::clone(key))),
            Err(wait) => Err(limited(key, wait)),
        }
    }
}

fn limited(key: &Key, wait: Duration) -> Refusal {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let mut refusal =
        Refusal::new(Kind::RateLimited, format!("the API key `{}` has used up its rate; try again in {seconds} s", key.name()));
    refusal.header = Some((header::RETRY_AFTER, seconds.into()));
    refusal
}

/// The key that the request brings.
fn given(headers: &HeaderMap) -> Result<&[u8], Refusal> {
    if let Some(key) = headers.get(API_KEY) {
        return Ok(key.as_bytes());
    }
    let Some(authorization) = headers.get(header::AUTHORIZATION) else {
        let message = "an API key is needed: send `Authorization: Bearer <key>` or `X-API-Key: <key>`";
        return Err(Refusal::new(Kind::Unauthenticated, message));
    };
    match authorization.as_bytes().split_at_checked(7) {
        // A scheme is named in any case (RFC 9110, 11.1).
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => Ok(key.trim_ascii()),
        _ => Err(Refusal::new(Kind::Unauthenticated, "the `Authorization` of this request is no `Bearer <key>`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_administration_is_guarded() {
        for path in [
            "/v2/repository/models/a/load",
            "/v2/repository/models/a/unload",
            "/v2/repository/anything",
            "/v2/logging",
            "/v2/trace/setting",
            "/v2/models/a/trace/setting",
            "/v2/models/a/versions/1/trace/setting",
            "/inference.GRPCInferenceService/RepositoryModelLoad",
        ] {
            assert_eq!(Guard::of(path, false), Guard::Admin, "{path}");
        }
        for (path, guard) in [
            ("/metrics", Guard::Metrics),
            ("/livez", Guard::Probe),
            ("/v2/models/a/ready", Guard::Probe),
            ("/grpc.health.v1.Health/Check", Guard::Probe),
            ("/v2/repository/index", Guard::Model),
            ("/v2/models/repository/infer", Guard::Model),
            ("/predict", Guard::Model),
            ("/inference.GRPCInferenceService/ModelInfer", Guard::Model),
            ("/favicon.ico", Guard::Model),
        ] {
            assert_eq!(Guard::of(path, false), guard, "{path}");
        }
        assert_eq!(Guard::of("/predict", true), Guard::Admin, "a profile tells about the model");
    }

    const KEY: [&str; 3] =
        ["infer-0123456789abcdef0123456789abcdef", "metrics-0123456789abcdef0123456789", "admin-0123456789abcdef0123456789abcd"];

    fn access(roles: &[Role], keyless: Keyless) -> Access {
        let mut ring = KeyRing::default();
        for &role in roles {
            ring.add_plain(KEY[role as usize], role, role.name()).unwrap();
        }
        Access { keys: Some(Watched::open(vec![], move |_, _| Ok(ring.clone())).unwrap()), keyless, cors: Cors::default() }
    }

    fn bearer(key: &str) -> HeaderMap {
        [(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}")).unwrap())].into_iter().collect()
    }

    /// The kind of the refusal, if there is one.
    fn refused(access: &Access, surface: Surface, guard: Guard, headers: &HeaderMap) -> Option<Kind> {
        access.admit(surface, guard, headers, Instant::now()).err().map(|refusal| refusal.error.kind())
    }

    #[test]
    fn a_key_opens_what_its_role_says() {
        use Guard::{Admin, Metrics, Model, Probe};
        let access = access(&[Role::Infer, Role::Metrics, Role::Admin], Keyless::default());
        for (role, surface, open) in [
            (Role::Infer, Surface::Whole, &[Probe, Model][..]),
            (Role::Metrics, Surface::Whole, &[Probe, Metrics]),
            (Role::Admin, Surface::Whole, &[Probe, Metrics, Admin, Model]),
            (Role::Infer, Surface::Admin, &[]),
            (Role::Metrics, Surface::Admin, &[Probe, Metrics]),
            (Role::Admin, Surface::Admin, &[Probe, Metrics, Admin, Model]),
        ] {
            for guard in [Probe, Metrics, Admin, Model] {
                let want = (!open.contains(&guard)).then_some(Kind::PermissionDenied);
                let found = refused(&access, surface, guard, &bearer(KEY[role as usize]));
                assert_eq!(found, want, "{role:?} {surface:?} {guard:?}");
                assert_eq!(refused(&access, surface, guard, &HeaderMap::new()), Some(Kind::Unauthenticated));
            }
        }
        for guard in [Admin, Metrics] {
            assert_eq!(refused(&access, Surface::Public, guard, &bearer(KEY[2])), Some(Kind::NotFound), "no key opens it here");
        }
    }

    #[test]
    fn without_an_admin_key_administration_is_closed_but_on_its_own_listener() {
        let access = access(&[Role::Infer], Keyless { probes: true, metrics: false });
        assert_eq!(refused(&access, Surface::Whole, Guard::Admin, &bearer(KEY[0])), Some(Kind::PermissionDenied));
        assert_eq!(refused(&access, Surface::Whole, Guard::Metrics, &HeaderMap::new()), Some(Kind::Unauthenticated));
        assert_eq!(refused(&access, Surface::Whole, Guard::Probe, &HeaderMap::new()), None);
        assert_eq!(refused(&access, Surface::Admin, Guard::Admin, &HeaderMap::new()), None);
    }

    #[test]
    fn a_key_is_read_from_either_header() {
        let access = access(&[Role::Infer], Keyless::default());
        let with = |name: &'static str, value: &str| {
            let headers = [(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())].into_iter().collect();
            refused(&access, Surface::Whole, Guard::Model, &headers)
        };
        let key = KEY[0];
        for (name, value) in
            [("x-api-key", key.to_owned()), ("authorization", format!("bearer  {key}")), ("authorization", format!("BEARER {key} "))]
        {
            assert_eq!(with(name, &value), None, "{name}: {value}");
        }
        for (name, value) in [
            ("x-api-key", String::new()),
            ("x-api-key", format!("Bearer {key}")),
            ("authorization", key.to_owned()),
            ("authorization", format!("Basic {key}")),
            ("authorization", "Bearer".to_owned()),
            ("authorization", format!("Bearer {key}x")),
        ] {
            assert_eq!(with(name, &value), Some(Kind::Unauthenticated), "{name}: {value}");
        }
    }

    #[test]
    fn a_rate_is_told_with_when_to_come_again() {
        let (key, entry) = new_key("slow", Role::Infer, Some(0.4)).unwrap();
        let ring = KeyRing::parse(&entry).unwrap();
        let access = Access { keys: Some(Watched::open(vec![], move |_, _| Ok(ring.clone())).unwrap()), ..Access::default() };
        let now = Instant::now();
        assert!(access.admit(Surface::Whole, Guard::Model, &bearer(&key), now).is_ok());
        let refusal = access.admit(Surface::Whole, Guard::Model, &bearer(&key), now).unwrap_err();
        assert_eq!(refusal.error.kind(), Kind::RateLimited);
        assert_eq!(refusal.header, Some((header::RETRY_AFTER, HeaderValue::from(3))));
    }
}
