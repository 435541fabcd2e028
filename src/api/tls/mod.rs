//! TLS: certificate, key and the authority of client certificates from PEM files, read anew when they change.
//!
//! A connection takes the configuration in force when it begins and keeps it: a renewed certificate closes nothing.

mod expiry;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::reload::Watched;

use expiry::expiry;

/// Where the PEM files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those between it and the authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities, one of which must have signed the certificate of a client; without, clients need none.
    pub client_ca: Option<PathBuf>,
}

/// What the files say.
#[derive(Debug)]
pub struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    /// When the server's certificate ends, if that can be read.
    pub(super) expiry: Option<SystemTime>,
}

/// The configuration of TLS, up to date.
pub type Tls = Watched<Loaded>;

/// Reads the files.
///
/// # Errors
/// If one cannot be read, or is not what it should be; the message names it.
pub fn open(files: &TlsFiles) -> Result<Tls, String> {
    let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()].into_iter().flatten().cloned().collect();
    let files = files.clone();
    Watched::open(paths, move |bytes, _| load(&files, bytes))
}

fn load(files: &TlsFiles, bytes: &[Vec<u8>]) -> Result<Loaded, String> {
    let (cert, key) = (files.cert.display(), files.key.display());
    let chain = certificates(&bytes[0]).map_err(|error| format!("{cert}: {error}"))?;
    let expiry = expiry(&chain[0]);
    if expiry.is_some_and(|expiry| expiry < SystemTime::now()) {
        // It is served all the same: some clients do not look, and the others tell why they refuse.
        tracing::warn!("{cert}: the certificate has expired");
    }
    let private = PrivateKeyDer::from_pem_slice(&bytes[1]).map_err(|error| match error {
        pem::Error::NoItemsFound => format!("{key}: there is no private key in PEM form, without a password"),
        error => format!("{key}: {error}"),
    })?;
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match (&files.client_ca, bytes.get(2)) {
        (Some(path), Some(pem)) => {
            let path = path.display();
            let mut roots = RootCertStore::empty();
            for authority in certificates(pem).map_err(|error| format!("{path}: {error}"))? {
                roots.add(authority).map_err(|error| format!("{path}: {error}"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()));
            builder.with_client_cert_verifier(verifier.build().map_err(|error| format!("{path}: {error}"))?)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, private).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => format!("{key}: this is not the key of the certificate in {cert}"),
        error => format!("{cert}, {key}: {error}"),
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), expiry })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err("there is no certificate in PEM form".to_owned()),
        Ok(chain) => Ok(chain),
        Err(error) => Err(error.to_string()),
    }
}
