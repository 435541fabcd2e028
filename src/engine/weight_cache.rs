//! Packed weights in a file, for the next process: it maps them instead of reading and packing.
//!
//! Nothing of it is trusted. The file names the program that wrote it, by a hash of the executable, and the model's file, by a hash of its
//! content; each piece has a hash of its own, which is looked at before the piece is used. What does not fit is as if it was not there, and
//! is written anew. It may be deleted at any time. A writer makes another file and renames it, so that nobody's pages change.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use twox_hash::xxhash3_128::Hasher;

use super::elements::read_at;
use super::kernels::stored::{LINE_BYTES, Mapping, Stored};
use super::threads::Threads;

/// Where packed weights are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightCachePlace {
    /// In the folder of the model's file, as a hidden file.
    Beside,
    /// In a folder of their own.
    Folder(PathBuf),
}

impl WeightCachePlace {
    /// The file for the weights in `weights`, packed as `label` says.
    fn file(&self, weights: &Path, label: &str) -> PathBuf {
        let name = weights.file_name().unwrap_or_default().to_string_lossy();
        match self {
            Self::Beside => weights.with_file_name(format!(".{name}.{label}.packed")),
            Self::Folder(folder) => {
                let full = fs::canonicalize(weights).unwrap_or_else(|_| weights.to_owned());
                folder.join(format!("{name}.{:016x}.{label}.packed", hash(full.to_string_lossy().as_bytes()) as u64))
            }
        }
    }
}

/// The first bytes of a file, with the version of what follows: the length of the table and its hash, then the table as JSON, then the
/// pieces, each at a whole page.
const MAGIC: &[u8; 16] = b"ndserve packed 1";
const PAGE: usize = 4096;
/// Bytes of a table at most: of one that is longer the length is damaged.
const TABLE_MOST: usize = 64 << 20;
/// Bytes of a file that are hashed at a time: what they are read to stays in the second-level cache.
const PIECE: usize = 256 << 10;

#[derive(Serialize, Deserialize)]
struct Table {
    program: String,
    model: String,
    /// The model's file as it was when `model` was its hash.
    stamp: Stamp,
    pieces: Vec<Piece>,
}

#[derive(Serialize, Deserialize)]
struct Piece {
    /// Where its numbers begin in the model's file.
    offset: u64,
    /// What they were made into.
    form: String,
    at: usize,
    bytes: usize,
    hash: String,
}

/// Clocks of file systems have ticks of up to so long.
const TICK: Duration = Duration::from_secs(2);

/// What tells one content of a file from another without reading it: every change of the content changes the last time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    inode: u64,
    modified: Duration,
    changed: Duration,
}

impl Stamp {
    #[cfg(unix)]
    fn of(metadata: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let time = |seconds: i64, nanos: i64| Duration::new(seconds.try_into().unwrap_or(0), nanos.try_into().unwrap_or(0));
        Self {
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified: time(metadata.mtime(), metadata.mtime_nsec()),
            changed: time(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    #[cfg(not(unix))]
    fn of(metadata: &fs::Metadata) -> Self {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        Self { bytes: metadata.len(), inode: 0, modified, changed: modified }
    }

    /// Whether a change from now on would have another time.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.checked_sub(self.changed).is_some_and(|age| age > TICK)
    }
}

/// Waits until the file at `path` is old enough for what is packed of it to be kept, at most two seconds.
pub fn wait_until_settled(path: &Path) {
    const STEP: Duration = Duration::from_millis(50);
    let until = Instant::now() + TICK + STEP;
    while Instant::now() < until && path.metadata().is_ok_and(|metadata| !Stamp::of(&metadata).is_settled()) {
        std::thread::sleep(STEP);
    }
}

/// By the place of the numbers and their form.
type Key = (u64, String);

/// What is remembered of one file of weights.
#[derive(Debug)]
pub(crate) struct WeightCache {
    path: PathBuf,
    weights: PathBuf,
    stamp: Stamp,
    /// Whether the stamp would tell a change that came while the file is read.
    settled: bool,
    found: Option<Found>,
    /// What was used or made: what the file should have.
    used: Mutex<BTreeMap<Key, Stored>>,
    incomplete: AtomicBool,
    found_bytes: AtomicUsize,
    damage: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Found {
    mapping: Arc<Mapping>,
    pieces: HashMap<Key, (std::ops::Range<usize>, String)>,
}

/// What came of keeping weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptWeights {
    /// The file that was written.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

impl WeightCache {
    /// For the weights in `file`, which was opened at `weights` and is hashed on `threads` where its stamp is not known. `label` names how
    /// they are packed: the instruction set and the precision.
    ///
    /// # Errors
    /// If the system does not tell about the file.
    pub(crate) fn open(place: &WeightCachePlace, weights: &Path, file: &File, label: &str, threads: &Threads) -> io::Result<Self> {
        let stamp = Stamp::of(&file.metadata()?);
        let mut cache = Self {
            path: place.file(weights, label),
            weights: weights.to_owned(),
            settled: stamp.is_settled(),
            stamp,
            found: None,
            used: Mutex::default(),
            incomplete: AtomicBool::new(false),
            found_bytes: AtomicUsize::new(0),
            damage: Mutex::default(),
        };
        match cache.find(file, threads) {
            Ok(found) => cache.found = found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => cache.damaged(&error.to_string()),
        }
        Ok(cache)
    }

    /// The file of an earlier process, if it is of this program and of these weights.
    fn find(&self, weights: &File, threads: &Threads) -> io::Result<Option<Found>> {
        let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut file = File::open(&self.path)?;
        let mut head = [0; 40];
        file.read_exact(&mut head)?;
        let (magic, head) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(damaged("it does not begin as such a file does"));
        }
        let len = usize::try_from(u64::from_le_bytes(*head.first_chunk().expect("24 bytes"))).unwrap_or(usize::MAX);
        if len > TABLE_MOST {
            return Err(damaged("its table has no length"));
        }
        let mut table = vec![0; len];
        file.read_exact(&mut table)?;
        if hash(&table).to_le_bytes() != head[8..] {
            return Err(damaged("its table was changed"));
        }
        let table: Table = serde_json::from_slice(&table).map_err(|error| damaged(&error.to_string()))?;
        if Some(&table.program) != program().as_ref() {
            return Ok(None);
        }
        let known = self.settled && table.stamp == self.stamp;
        if !known && table.model != hash_of_file(weights, threads)? {
            return Ok(None);
        }
        let mapping = Arc::new(Mapping::new(&file)?);
        let pieces = table.pieces.into_iter().map(|Piece { offset, form, at, bytes, hash }| {
            let range = at..at.checked_add(bytes)?;
            (range.end <= mapping.bytes().len()).then_some(((offset, form), (range, hash)))
        });
        let pieces = pieces.collect::<Option<_>>().ok_or_else(|| damaged("it is shorter than its table says"))?;
        Ok(Some(Found { mapping, pieces }))
    }

    fn damaged(&self, what: &str) {
        let mut damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        damage.get_or_insert_with(|| format!("{}: {what}", self.path.display()));
    }

    /// What the numbers from `offset` on became in `form`, if it has `lines`.
    pub(crate) fn kept(&self, offset: u64, form: &str, lines: usize) -> Option<Stored> {
        let found = self.found.as_ref()?;
        let key = (offset, form.to_owned());
        let (bytes, expected) = found.pieces.get(&key)?;
        let stored = Stored::mapped(&found.mapping, bytes.clone()).filter(|_| bytes.len() == lines * LINE_BYTES);
        // To look at each byte brings its page in, too.
        let Some(stored) = stored.filter(|stored| hex(hash(stored.elements())) == *expected) else {
            self.damaged(&format!("the piece for `{form}` of the numbers at {offset} was changed"));
            return None;
        };
        self.found_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(key, stored.clone());
        Some(stored)
    }

    /// Remembers what the numbers from `offset` on became in `form`.
    pub(crate) fn keep(&self, offset: u64, form: &str, stored: &Stored) {
        // What is smaller takes a page all the same, and is packed as soon as found.
        if stored.elements::<u8>().len() >= PAGE {
            self.incomplete.store(true, Ordering::Relaxed);
            self.used.lock().unwrap_or_else(PoisonError::into_inner).insert((offset, form.to_owned()), stored.clone());
        }
    }

    /// Bytes that were found instead of packed.
    pub(crate) fn found_bytes(&self) -> usize {
        self.found_bytes.load(Ordering::Relaxed)
    }

    /// What is wrong with the file that was found.
    pub(crate) fn damage(&self) -> Option<String> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether something was packed that the file does not have.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete.load(Ordering::Relaxed)
    }

    /// Lets go of what is only needed to write the file.
    pub(crate) fn forget(&self) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Writes what was used and made, if the file lacks some of it, once; reads all of the model's file.
    ///
    /// # Errors
    /// If the file cannot be written, or the model's file is not known to be what was read.
    pub(crate) fn write(&self) -> Option<Result<KeptWeights, String>> {
        self.incomplete.swap(false, Ordering::Relaxed).then(|| self.write_used())
    }

    fn write_used(&self) -> Result<KeptWeights, String> {
        let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        let program = program().ok_or("the program's own file cannot be read")?;
        if !self.settled {
            return Err(format!("{} was changed less than two seconds before it was loaded", self.weights.display()));
        }
        let of_weights = |error: io::Error| format!("{}: {error}", self.weights.display());
        let weights = File::open(&self.weights).map_err(of_weights)?;
        let model = hash_of_file(&weights, &Threads::single()).map_err(of_weights)?;
        let metadata = weights.metadata().map_err(of_weights)?;
        if Stamp::of(&metadata) != self.stamp {
            return Err(format!("{} has changed since it was loaded", self.weights.display()));
        }
        let mut at = 0;
        let mut pieces = Vec::new();
        for ((offset, form), stored) in &used {
            let bytes: &[u8] = stored.elements();
            pieces.push(Piece { offset: *offset, form: form.clone(), at, bytes: bytes.len(), hash: hex(hash(bytes)) });
            at += bytes.len().next_multiple_of(PAGE);
        }
        let table = table(Table { program, model, stamp: self.stamp.clone(), pieces });
        self.replace(&table, used.values(), &metadata).map_err(|error| format!("{}: {error}", self.path.display()))
    }

    /// Writes another file and puts it in the place of the one there may be.
    fn replace<'a>(&self, table: &[u8], pieces: impl Iterator<Item = &'a Stored>, model: &fs::Metadata) -> io::Result<KeptWeights> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".{}.new-", name.trim_start_matches('.'));
        remove_left(folder, &prefix);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let new = folder.join(format!("{prefix}{}-{now}", std::process::id()));
        let write = || {
            let file = File::options().write(true).create_new(true).open(&new)?;
            let mut to = BufWriter::with_capacity(1 << 20, file);
            to.write_all(table)?;
            for piece in pieces {
                let bytes: &[u8] = piece.elements();
                to.write_all(bytes)?;
                to.write_all(&vec![0; bytes.len().next_multiple_of(PAGE) - bytes.len()])?;
            }
            let file = to.into_inner()?;
            file.set_permissions(readable_as(model))?;
            let bytes = file.metadata()?.len();
            fs::rename(&new, &self.path)?;
            Ok(KeptWeights { path: self.path.clone(), bytes })
        };
        let written = write();
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }
}

/// Removes what writers left that were killed.
fn remove_left(folder: &Path, prefix: &str) {
    const OLD: Duration = Duration::from_secs(3600);
    for item in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = || item.metadata().ok()?.modified().ok()?.elapsed().ok();
        if item.file_name().to_string_lossy().starts_with(prefix) && age().is_some_and(|age| age > OLD) {
            let _ = fs::remove_file(item.path());
        }
    }
}

/// Whoever may read the model may read what was made of it, and nobody is to write to it.
#[cfg(unix)]
fn readable_as(model: &fs::Metadata) -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    fs::Permissions::from_mode(model.permissions().mode() & 0o444)
}

#[cfg(not(unix))]
fn readable_as(model: &fs::Metadata) -> fs::Permissions {
    let mut permissions = model.permissions();
    permissions.set_readonly(true);
    permissions
}

/// The begin of a file, up to the first piece, whose places are counted from here so far.
fn table(mut table: Table) -> Vec<u8> {
    let head = MAGIC.len() + 24;
    // The places in the table make it longer: what it would be with the longest ones decides where the pieces begin.
    let longest = serde_json::to_vec(&table).expect("text and numbers").len() + 20 * table.pieces.len();
    let first = (head + longest).next_multiple_of(PAGE);
    table.pieces.iter_mut().for_each(|piece| piece.at += first);
    let text = serde_json::to_vec(&table).expect("text and numbers");
    let mut bytes = [MAGIC, &(text.len() as u64).to_le_bytes()[..], &hash(&text).to_le_bytes(), &text].concat();
    bytes.resize(first, 0);
    bytes
}

fn hash(bytes: &[u8]) -> u128 {
    Hasher::oneshot(bytes)
}

fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

/// A hash of the hashes of a file's pieces.
fn hash_of_file(file: &File, threads: &Threads) -> io::Result<String> {
    let len = file.metadata()?.len();
    let mut pieces: Vec<(u64, io::Result<u128>)> = (0..len.div_ceil(PIECE as u64)).map(|i| (i * PIECE as u64, Ok(0))).collect();
    threads.for_each(pieces.iter_mut(), |(offset, hash_of_piece)| {
        let mut bytes = vec![0; PIECE.min(usize::try_from(len - *offset).unwrap_or(PIECE))];
        *hash_of_piece = read_at(file, &mut bytes, *offset).map(|()| hash(&bytes));
    });
    let mut hashes = len.to_le_bytes().to_vec();
    for (_, piece) in pieces {
        hashes.extend(piece?.to_le_bytes());
    }
    Ok(hex(hash(&hashes)))
}

/// The hash of the running program: another one may pack in another way. `None` if its file cannot be read.
fn program() -> Option<String> {
    static PROGRAM: OnceLock<Option<String>> = OnceLock::new();
    // What runs, also if another file has its name by now.
    let path = || if cfg!(target_os = "linux") { Some("/proc/self/exe".into()) } else { std::env::current_exe().ok() };
    let read = || hash_of_file(&File::open(path()?).ok()?, &Threads::single()).ok();
    PROGRAM.get_or_init(read).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = "doubled";
    const COUNT: usize = 20_000;

    /// A folder with a file of weights that is old enough for its stamp to be trusted, and whatever is kept of it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("ndserve-weights-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).unwrap();
            let new = Self(folder);
            new.write_weights(1.0);
            new
        }

        fn weights(&self) -> PathBuf {
            self.0.join("model.onnx")
        }

        fn write_weights(&self, value: f32) {
            fs::write(self.weights(), bytemuck::cast_slice(&[value; COUNT])).unwrap();
            std::thread::sleep(Duration::from_millis(2100));
        }

        fn open(&self) -> WeightCache {
            let file = File::open(self.weights()).unwrap();
            WeightCache::open(&WeightCachePlace::Beside, &self.weights(), &file, "test", &Threads::single()).unwrap()
        }

        /// Keeps something made of the weights, in several pieces.
        fn fill(&self) -> PathBuf {
            let cache = self.open();
            for offset in [0, 8] {
                assert!(cache.kept(offset, FORM, LINES).is_none());
                cache.keep(offset, FORM, &made(offset as f32));
            }
            let kept = cache.write().unwrap().unwrap();
            assert_eq!(fs::metadata(&kept.path).unwrap().len(), kept.bytes);
            assert!(cache.write().is_none(), "once");
            kept.path
        }

        /// Changes what is kept.
        fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
            let path = self.open().path;
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::remove_file(&path).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const LINES: usize = COUNT * size_of::<f32>() / LINE_BYTES;

    fn made(value: f32) -> Stored {
        Stored::new(COUNT, |elements: &mut [f32]| elements.fill(value))
    }

    #[test]
    fn what_was_kept_is_found() {
        let folder = Folder::new("found");
        let path = folder.fill();
        let cache = folder.open();
        for offset in [8, 0] {
            assert!(cache.kept(offset, FORM, LINES).unwrap().elements::<f32>() == [offset as f32; COUNT]);
        }
        assert_eq!((cache.found_bytes(), cache.is_incomplete(), cache.damage()), (2 * LINES * LINE_BYTES, false, None));
        assert!(cache.kept(16, FORM, LINES).is_none() && cache.kept(0, "tripled", LINES).is_none());
        assert!(cache.write().is_none());
        let others: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|item| item.unwrap().path()).collect();
        assert_eq!(others.len(), 2, "{others:?}");
        // What is mapped outlives the name of its file.
        let held = cache.kept(0, FORM, LINES).unwrap();
        fs::remove_file(path).unwrap();
        assert_eq!(held.elements::<f32>()[COUNT - 1], 0.0);
        assert!(folder.open().kept(0, FORM, LINES).is_none());
    }

    #[test]
    fn what_is_lacking_is_added() {
        let folder = Folder::new("added");
        folder.fill();
        let cache = folder.open();
        cache.kept(0, FORM, LINES).unwrap();
        cache.keep(16, FORM, &made(3.0));
        cache.write().unwrap().unwrap();
        let cache = folder.open();
        assert!(cache.kept(0, FORM, LINES).is_some() && cache.kept(16, FORM, LINES).is_some());
        assert!(cache.kept(8, FORM, LINES).is_none(), "nobody asked for it");
    }

    #[test]
    fn a_byte_that_was_changed_is_noticed() {
        let folder = Folder::new("changed");
        let path = folder.fill();
        let whole = fs::read(&path).unwrap();
        for at in [0, 20, 30, 100, whole.len() / 2, whole.len() - PAGE] {
            folder.change(|bytes| bytes[at] ^= 1);
            let cache = folder.open();
            let found = [0, 8].map(|offset| cache.kept(offset, FORM, LINES));
            assert!(found.iter().any(Option::is_none) && cache.damage().is_some(), "byte {at}");
            // What is found nevertheless is what was kept.
            found.iter().zip([0.0, 8.0]).for_each(|(found, value)| {
                assert!(found.as_ref().is_none_or(|found| found.elements::<f32>() == [value; COUNT]), "byte {at}");
            });
            folder.change(|bytes| bytes.clone_from(&whole));
        }
        for len in [0, 10, 39, 50, PAGE, whole.len() - PAGE] {
            folder.change(|bytes| bytes.truncate(len));
            let cache = folder.open();
            assert!([0, 8].iter().any(|&offset| cache.kept(offset, FORM, LINES).is_none()) && cache.damage().is_some(), "{len} bytes");
            folder.change(|bytes| bytes.clone_from(&whole));
        }
        assert_eq!(folder.open().damage(), None);
    }

    #[test]
    fn other_weights_and_other_programs_find_nothing() {
        let folder = Folder::new("others");
        folder.fill();
        fs::rename(folder.weights(), folder.0.join("moved")).unwrap();
        fs::copy(folder.0.join("moved"), folder.weights()).unwrap();
        assert!(folder.open().kept(0, FORM, LINES).is_some(), "the same content in another file");
        folder.write_weights(2.0);
        let cache = folder.open();
        assert!(cache.kept(0, FORM, LINES).is_none() && cache.damage().is_none(), "other weights of the same size");
        folder.write_weights(1.0);
        assert!(folder.open().kept(0, FORM, LINES).is_some());
        folder.change(|bytes| {
            let len = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
            let mut read: Table = serde_json::from_slice(&bytes[40..40 + len]).unwrap();
            read.program = hex(1);
            read.pieces.iter_mut().for_each(|piece| piece.at -= PAGE);
            let head = table(read);
            bytes[..head.len()].copy_from_slice(&head);
        });
        let cache = folder.open();
        assert!(cache.kept(0, FORM, LINES).is_none() && cache.damage().is_none(), "another program");
    }

    #[test]
    fn nothing_is_kept_of_weights_that_changed_or_may_have() {
        let folder = Folder::new("young");
        let cache = folder.open();
        cache.keep(0, FORM, &made(1.0));
        fs::write(folder.weights(), bytemuck::cast_slice(&[2.0_f32; COUNT])).unwrap();
        assert!(cache.write().unwrap().unwrap_err().contains("has changed"));
        let cache = folder.open();
        cache.keep(0, FORM, &made(2.0));
        assert!(cache.write().unwrap().unwrap_err().contains("less than two seconds"));
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_told() {
        let folder = Folder::new("folder");
        let (weights, file) = (folder.weights(), File::open(folder.weights()).unwrap());
        let open =
            |place: &Path| WeightCache::open(&WeightCachePlace::Folder(place.into()), &weights, &file, "test", &Threads::single()).unwrap();
        // A file is where the folder would be.
        let cache = open(&weights.join("below"));
        cache.keep(0, FORM, &made(1.0));
        assert!(cache.write().unwrap().unwrap_err().contains("below"));
        let place = folder.0.join("of/its/own");
        let cache = open(&place);
        cache.keep(0, FORM, &made(1.0));
        assert!(cache.write().unwrap().unwrap().path.starts_with(&place));
        assert!(open(&place).kept(0, FORM, LINES).is_some());
        assert!(folder.open().kept(0, FORM, LINES).is_none(), "it is not beside");
    }
}
