//! API keys: which there are, what each may do, and how often.
//!
//! A key is 256 random bits; the file holds its SHA-256. A slow hash is for words that people choose: nobody finds a random
//! key of this length by trying, whatever the hash costs.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::bucket::{Bucket, Rate};

/// What a key may do.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything but what changes or watches the server.
    #[default]
    Infer,
    /// Only `/metrics`: for what scrapes them.
    Metrics,
    /// Everything.
    Admin,
}

impl Role {
    /// The word in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// The file of keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
    #[serde(default)]
    role: Role,
    rate: Option<f64>,
    burst: Option<f64>,
}

/// A key that the server knows.
#[derive(Debug)]
pub(in crate::api) struct Key {
    name: String,
    role: Role,
    hash: [u8; SHA256_OUTPUT_LEN],
    rate: Option<Rate>,
    bucket: Option<Mutex<Bucket>>,
    /// Requests that were let in, and those over the rate.
    pub(in crate::api) admitted: AtomicU64,
    pub(in crate::api) limited: AtomicU64,
}

impl Key {
    fn new(name: String, role: Role, hash: [u8; SHA256_OUTPUT_LEN], rate: Option<Rate>) -> Self {
        let bucket = rate.map(|rate| Mutex::new(Bucket::new(rate, Instant::now())));
        Self { name, role, hash, rate, bucket, admitted: AtomicU64::new(0), limited: AtomicU64::new(0) }
    }

    pub(in crate::api) fn name(&self) -> &str {
        &self.name
    }

    pub(in crate::api) fn role(&self) -> Role {
        self.role
    }

    /// Counts a request.
    ///
    /// # Errors
    /// The rate is exceeded: how long to wait.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Duration> {
        let taken = self.bucket.as_ref().map_or(Ok(()), |bucket| bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now));
        let count = if taken.is_ok() { &self.admitted } else { &self.limited };
        count.fetch_add(1, Relaxed);
        taken
    }

    /// Whether this is the same key under the same terms.
    fn same(&self, other: &Self) -> bool {
        self.name == other.name && self.role == other.role && self.hash == other.hash && self.rate == other.rate
    }
}

/// All keys.
#[derive(Clone, Debug, Default)]
pub struct KeyRing(Vec<Arc<Key>>);

impl KeyRing {
    /// The keys of a file.
    ///
    /// # Errors
    /// If it is not as `docs/security.md` says, or holds no key, or two of one name or hash.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        if file.key.is_empty() {
            return Err("there is no [[key]]; `ndserve key` makes one".to_owned());
        }
        let mut ring = Self::default();
        for entry in file.key {
            let name = entry.name.clone();
            ring.add(entry.check().map_err(|error| format!("key `{name}`: {error}"))?)?;
        }
        Ok(ring)
    }

    /// Adds keys that are given as they are, separated by commas: `key` or `name=key`. `kind` is the name of those without.
    ///
    /// # Errors
    /// If one is too short to be random, or given twice. The message does not hold it.
    pub fn add_plain(&mut self, text: &str, role: Role, kind: &str) -> Result<(), String> {
        /// 128 bits in hexadecimal digits.
        const MIN_BYTES: usize = 32;
        for (i, part) in text.split(',').map(str::trim).filter(|part| !part.is_empty()).enumerate() {
            let (name, key) =
                part.split_once('=').map_or((format!("{kind}-{}", i + 1), part), |(name, key)| (name.trim().to_owned(), key.trim()));
            if key.len() < MIN_BYTES || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!("key `{name}`: it must have {MIN_BYTES} visible ASCII characters or more; `ndserve key` makes one"));
            }
            self.add(Key::new(name, role, hash(key.as_bytes()), None))?;
        }
        Ok(())
    }

    fn add(&mut self, key: Key) -> Result<(), String> {
        if key.name.is_empty() {
            return Err("a key has an empty name".to_owned());
        }
        if let Some(known) = self.0.iter().find(|known| known.name == key.name || known.hash == key.hash) {
            let (name, what) = (&key.name, if known.name == key.name { "name" } else { "hash" });
            return Err(format!("key `{name}`: another key, `{}`, has the same {what}", known.name));
        }
        self.0.push(Arc::new(key));
        Ok(())
    }

    /// Adds the keys of `other`.
    ///
    /// # Errors
    /// If two have one name or hash.
    pub fn merge(&mut self, other: &Self) -> Result<(), String> {
        for key in &other.0 {
            self.add(Key::new(key.name.clone(), key.role, key.hash, key.rate))?;
        }
        Ok(())
    }

    /// These keys with the counters and buckets of `before`, for those that stay as they were.
    pub fn keeping(mut self, before: Option<&Self>) -> Self {
        for key in &mut self.0 {
            if let Some(known) = before.and_then(|before| before.0.iter().find(|known| known.same(key))) {
                *key = Arc::clone(known);
            }
        }
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one may do everything.
    pub fn has_admin(&self) -> bool {
        self.0.iter().any(|key| key.role == Role::Admin)
    }

    pub(in crate::api) fn iter(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.0.iter()
    }

    /// The key that was given. Takes as long for any wrong one.
    pub(super) fn find(&self, given: &[u8]) -> Option<&Arc<Key>> {
        let given = hash(given);
        let mut found = None;
        for key in &self.0 {
            // No early end: the time must not tell how many keys stand before the right one.
            if bool::from(key.hash.ct_eq(&given)) {
                found = Some(key);
            }
        }
        found
    }
}

impl Entry {
    fn check(self) -> Result<Key, String> {
        let hash = unhex(&self.sha256).ok_or("sha256 must have 64 hexadecimal digits; `ndserve key` prints them")?;
        let rate = match (self.rate, self.burst) {
            (None, None) => None,
            (None, Some(_)) => return Err("`burst` needs `rate`".to_owned()),
            (Some(rate), burst) => {
                // By default what comes in a second may come at once.
                let burst = burst.unwrap_or_else(|| rate.max(1.0));
                if !(rate > 0.0 && rate.is_finite() && burst >= 1.0 && burst.is_finite()) {
                    return Err("`rate` (requests per second) must be more than 0, `burst` at least 1".to_owned());
                }
                Some(Rate { per_second: rate, burst })
            }
        };
        Ok(Key::new(self.name, self.role, hash, rate))
    }
}

fn hash(bytes: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has as many bytes")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    let digits = text.trim().as_bytes();
    if digits.len() != 2 * SHA256_OUTPUT_LEN {
        return None;
    }
    let mut out = [0; SHA256_OUTPUT_LEN];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).expect("two digits");
    }
    Some(out)
}

/// A new key and its entry for the file.
///
/// # Errors
/// If the system has no random numbers, or the name cannot be one.
pub fn new_key(name: &str, role: Role, rate: Option<f64>) -> Result<(String, String), String> {
    let mut random = [0; 32];
    SystemRandom::new().fill(&mut random).map_err(|_| "the system gives no random numbers")?;
    // The prefix lets scanners for secrets find one that was published by mistake.
    let key = format!("nds_{}", hex(&random));
    let mut entry = format!("[[key]]\nname = {}\nsha256 = \"{}\"\n", toml::Value::from(name), hex(&hash(key.as_bytes())));
    if role != Role::default() {
        entry.push_str(&format!("role = \"{}\"\n", role.name()));
    }
    if let Some(rate) = rate {
        entry.push_str(&format!("rate = {rate:?}\n"));
    }
    KeyRing::parse(&entry)?;
    Ok((key, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of `abc`, from FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_new_key_opens_with_its_entry_and_nothing_else() {
        let (key, entry) = new_key("a \"b\"", Role::Metrics, Some(2.5)).unwrap();
        let ring = KeyRing::parse(&entry).unwrap();
        let found = ring.find(key.as_bytes()).unwrap();
        assert_eq!((found.name(), found.role()), ("a \"b\"", Role::Metrics));
        assert!(!entry.contains(&key), "the file does not hold the key");
        for wrong in ["", "nds_", &key[..key.len() - 1], &format!("{key}0"), &key.to_uppercase()] {
            assert!(ring.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
        assert_ne!(new_key("a", Role::Infer, None).unwrap().0, new_key("a", Role::Infer, None).unwrap().0);
        assert!(new_key("", Role::Infer, None).is_err() && new_key("a", Role::Infer, Some(0.0)).is_err());
    }

    #[test]
    fn the_hash_is_that_of_sha256sum() {
        let ring = KeyRing::parse(&format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'")).unwrap();
        assert!(ring.find(b"abc").is_some());
    }

    #[test]
    fn a_wrong_file_is_an_error_that_names_what() {
        let entry = |rest: &str| format!("[[key]]\nname = 'a'\n{rest}\n");
        let valid = format!("sha256 = '{ABC}'");
        for (text, message) in [
            (String::new(), "there is no [[key]]"),
            ("[[keys]]\n".to_owned(), "unknown field `keys`"),
            (entry(""), "missing field `sha256`"),
            (entry("sha256 = 'abc'"), "key `a`: sha256 must have 64 hexadecimal digits"),
            (entry(&format!("sha256 = 'g{}'", &ABC[1..])), "key `a`: sha256 must have 64 hexadecimal digits"),
            (entry(&format!("{valid}\nrole = 'root'")), "unknown variant `root`"),
            (entry(&format!("{valid}\nburst = 5.0")), "key `a`: `burst` needs `rate`"),
            (entry(&format!("{valid}\nrate = 0.0")), "key `a`: `rate` (requests per second) must be more than 0"),
            (entry(&format!("{valid}\nrate = nan")), "key `a`: `rate`"),
            (entry(&valid) + &entry(&valid.replace("ba78", "ba79")), "key `a`: another key, `a`, has the same name"),
            (entry(&valid) + &entry(&valid).replace("'a'", "'b'"), "key `b`: another key, `a`, has the same hash"),
            (format!("[[key]]\nname = ''\n{valid}"), "a key has an empty name"),
        ] {
            let error = KeyRing::parse(&text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn plain_keys_have_names_and_a_least_length() {
        let (one, two) = ("1".repeat(32), "2".repeat(40));
        let mut ring = KeyRing::default();
        ring.add_plain(&format!("{one}, mobile={two},"), Role::Infer, "env").unwrap();
        assert_eq!(ring.find(one.as_bytes()).unwrap().name(), "env-1");
        assert_eq!(ring.find(two.as_bytes()).unwrap().name(), "mobile");
        assert!(!ring.has_admin());
        let short = ring.add_plain("short=hunter2", Role::Admin, "env").unwrap_err();
        assert!(short.contains("key `short`") && !short.contains("hunter2"), "{short}");
        assert!(ring.add_plain(&one, Role::Admin, "admin").unwrap_err().contains("same hash"));
    }

    #[test]
    fn a_reload_keeps_the_counters_of_keys_that_stay() {
        let file = |rate: u32| format!("[[key]]\nname = 'a'\nsha256 = '{ABC}'\nrate = {rate}\nburst = 1");
        let before = KeyRing::parse(&file(1)).unwrap();
        let now = Instant::now();
        assert!(before.find(b"abc").unwrap().admit(now).is_ok());
        let reload = |rate| KeyRing::parse(&file(rate)).unwrap().keeping(Some(&before));
        let (same, other) = (reload(1), reload(2));
        assert!(same.find(b"abc").unwrap().admit(now).is_err(), "the bucket is the same one");
        assert!(other.find(b"abc").unwrap().admit(now).is_ok(), "other terms, a new bucket");
    }
}
