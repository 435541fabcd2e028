//! All that is known of the data: targets, how rows are parted, and how to pass over the inputs.

use std::hash::Hasher;
use std::path::{Path, PathBuf};

use super::config::{Config, Data, Task};
use super::data::{Column, Inputs, Source, Target, Targets, Wanted};
use super::error::{Error, Result};
use super::loss::Loss;
use super::split::{Split, split};
use super::summary::Summary;

/// What is called with a part: its inputs, the numbers of some rows in it, and the number of its first row.
pub(super) type OnPart<'a> = &'a mut dyn FnMut(&Inputs, &[usize], usize) -> Result<()>;

/// See the module.
pub(super) struct Known {
    source: Source,
    /// The rows of the source that are used, if these are not all.
    kept: Option<Vec<usize>>,
    pub(super) rows: usize,
    pub(super) target: Target,
    pub(super) task: Task,
    pub(super) summary: Summary,
    /// Of the data that is used.
    hash: u64,
    /// How many rows are to be parted; those behind them judge.
    own: usize,
    names: Names,
}

/// How rows are called.
struct Names {
    /// The number in the files of each row of the source, where others were left out.
    numbers: Option<Vec<usize>>,
    /// Rows of the first file, those that are left out included; all until that is known.
    own: usize,
    first: PathBuf,
    /// The second file.
    test: Option<PathBuf>,
}

impl Names {
    fn new(data: &Data) -> Self {
        Self { numbers: None, own: usize::MAX, first: data.path.clone(), test: data.test_path.clone() }
    }

    /// A row of the source, as the user finds it in its file.
    fn of(&self, row: usize) -> String {
        let row = self.numbers.as_ref().map_or(row, |numbers| numbers[row]);
        match &self.test {
            Some(test) if row >= self.own => format!("{}: row {}", test.display(), row - self.own + 1),
            _ => format!("{}: row {}", self.first.display(), row + 1),
        }
    }
}

impl Known {
    /// Opens the data and passes over it once. It is held in memory if it takes no more than `limit` bytes.
    ///
    /// # Errors
    /// What is wrong with it, by row, column or key.
    pub(super) fn read(config: &Config, limit: usize) -> Result<Self> {
        let data = &config.data;
        let texts = config.prepare.texts();
        let wanted = Wanted {
            inputs: data.inputs.as_deref(),
            target: data.target(),
            features: &data.features,
            texts: &texts,
            any_texts: false,
            size: data.size,
            channels: data.channels,
        };
        let mut source = Source::open(&[data.path.as_path()], &wanted, limit)?;
        let (mut pass, mut names) = (Pass::default(), Names::new(data));
        source.each(&mut |first, inputs, target| pass.part(config, &names, (first, inputs, target)))?;
        let own = pass.kept.len();
        names.own = pass.all;
        if let Some(path) = &data.test_path {
            // Opened together they are read again; the rows of the second file come behind those of the first.
            let paths: [&Path; 2] = [&data.path, path];
            source = Source::open(&paths, &wanted, limit)?;
            pass = Pass::default();
            source.each(&mut |first, inputs, target| pass.part(config, &names, (first, inputs, target)))?;
        }
        let Pass { kept, target, summary, all, hashes, .. } = pass;
        let (task, target) = targets(config, target.ok_or("there is no row")?, &|row| names.of(kept[row]))?;
        let whole = kept.len() == all;
        if !whole {
            source.keep(&kept);
        }
        let rows = kept.len();
        names.numbers = (!whole && !source.streams()).then(|| kept.clone());
        let kept = (!whole && source.streams()).then_some(kept);
        let mut hash = Fnv::default();
        hashes.iter().for_each(|part| hash.write(&part.finish().to_le_bytes()));
        match &target {
            Target::Numbers(values) => values.iter().for_each(|v| hash.write(&v.to_bits().to_le_bytes())),
            Target::Classes { of, .. } => of.iter().for_each(|&class| hash.write(&(class as u64).to_le_bytes())),
        }
        Ok(Self { source, kept, rows, target, task, summary, hash: hash.finish(), own, names })
    }

    /// Whether the rows are read from files each time.
    pub(super) fn streams(&self) -> bool {
        self.source.streams()
    }

    /// The hash of this data and of a configuration's text: FNV-1a, which is no secret and the same everywhere.
    pub(super) fn hash(&self, text: &str) -> String {
        let mut hasher = Fnv::default();
        hasher.write(text.as_bytes());
        hasher.write(&self.hash.to_le_bytes());
        format!("{:016x}", hasher.finish())
    }

    /// Calls `f` with those of `rows`, which rise, that are in each part: the part's inputs, the numbers in it, and the number of its
    /// first row.
    pub(super) fn picked(&self, rows: &[usize], f: OnPart<'_>) -> Result<()> {
        // From a row that is used to its number in the source.
        let of_source = |row: usize| self.kept.as_ref().map_or(row, |kept| kept[row]);
        self.source.each(&mut |first, inputs, _| {
            let start = rows.partition_point(|&row| of_source(row) < first);
            let end = rows.partition_point(|&row| of_source(row) < first + inputs.rows());
            if start == end {
                return Ok(());
            }
            let inside: Vec<usize> = rows[start..end].iter().map(|&row| of_source(row) - first).collect();
            f(inputs, &inside, first)
        })
    }

    /// What a row of the source is called in an error: its number in its file, and the file where there are two.
    pub(super) fn name(&self, row: usize) -> String {
        self.names.of(row)
    }

    /// Some rows, which rise, as they are.
    pub(super) fn pick(&self, rows: &[usize]) -> Result<Inputs> {
        let mut found: Option<Inputs> = None;
        self.picked(rows, &mut |inputs, picked, _| {
            let part = inputs.pick(picked);
            match &mut found {
                None => found = Some(part),
                Some(all) => all.append(&part)?,
            }
            Ok(())
        })?;
        found.ok_or_else(|| "there is no row".into())
    }

    /// Which rows train, say when to stop, and judge.
    ///
    /// # Errors
    /// If nothing is left to train with, or a row has a label that no training row has.
    pub(super) fn split(&self, config: &Config) -> Result<Split> {
        let own: Vec<usize> = (0..self.own).collect();
        let shares = (config.data.validation, config.data.test);
        let mut parts = split(&self.target.pick(&own), self.own, shares, config.data.stratify, config.train.seed)?;
        parts.test.extend(self.own..self.rows);
        if let Target::Classes { labels, of } = &self.target {
            let mut trained = vec![false; labels.len()];
            parts.train.iter().for_each(|&row| trained[of[row]] = true);
            if let Some(&row) = parts.validation.iter().chain(&parts.test).find(|row| !trained[of[**row]]) {
                return Err(Error(format!(
                    "{}: the target `{}` is {:?}, which no training row has",
                    self.names.of(self.kept.as_ref().map_or(row, |kept| kept[row])),
                    config.data.target(),
                    labels[of[row]]
                )));
            }
        }
        Ok(parts)
    }

    /// What is made small: what the configuration, which may be a trial's, says, or what goes with the task.
    pub(super) fn loss(&self, config: &Config) -> Loss {
        config.train.loss.unwrap_or(match self.task {
            Task::Classify => Loss::CrossEntropy {},
            Task::Binary => Loss::BinaryCrossEntropy {},
            Task::Regress => Loss::MeanSquared {},
        })
    }

    /// Columns of the output.
    pub(super) fn outputs(&self) -> usize {
        match (&self.target, self.task) {
            (Target::Classes { labels, .. }, Task::Classify) => labels.len(),
            _ => 1,
        }
    }
}

/// The task, and the targets as it has them; `place` names a row.
fn targets(config: &Config, target: Targets, place: &dyn Fn(usize) -> String) -> Result<(Task, Target)> {
    let data = &config.data;
    let task = data.task.unwrap_or(if target.are_texts() || !data.labels.is_empty() { Task::Classify } else { Task::Regress });
    let target = match task {
        Task::Regress => target.numbers(data.target(), place)?,
        Task::Classify | Task::Binary => target.classes(&data.labels, data.target(), place)?,
    };
    if let Target::Classes { labels, .. } = &target {
        let fits = if task == Task::Binary { labels.len() == 2 } else { labels.len() >= 2 };
        if !fits {
            return Err(Error(format!("the target `{}` has {} classes: {}", data.target(), labels.len(), labels.join(", "))));
        }
    }
    Ok((task, target))
}

/// What one pass over all rows finds.
#[derive(Default)]
struct Pass {
    /// Rows that are used.
    kept: Vec<usize>,
    all: usize,
    target: Option<Targets>,
    summary: Summary,
    /// One for each column, so that the size of parts makes no difference.
    hashes: Vec<Fnv>,
}

impl Pass {
    fn part(&mut self, config: &Config, names: &Names, (first, inputs, target): (usize, &Inputs, &Column)) -> Result<()> {
        let rows = config.prepare.rows(inputs, |row| names.of(first + row))?;
        self.all = first + inputs.rows();
        self.summary.add(inputs);
        self.hash(inputs, &rows);
        let all = self.target.get_or_insert_with(|| Targets::like(target));
        all.add(target, rows.iter().copied())?;
        self.kept.extend(rows.iter().map(|row| first + row));
        Ok(())
    }

    fn hash(&mut self, inputs: &Inputs, rows: &[usize]) {
        match inputs {
            Inputs::Array { shape, values, .. } => {
                self.hashes.resize_with(1, Fnv::default);
                let size: usize = shape.iter().product();
                let mut numbers = |row: &usize| values[row * size..(row + 1) * size].iter().for_each(|v| self.hashes[0].word(v.to_bits()));
                rows.iter().for_each(&mut numbers);
            }
            Inputs::Table(table) => {
                self.hashes.resize_with(table.columns.len(), Fnv::default);
                for (hash, column) in self.hashes.iter_mut().zip(&table.columns) {
                    match column {
                        Column::Numbers(values) => rows.iter().for_each(|&row| hash.word(values[row].to_bits())),
                        Column::Texts(values) => rows.iter().for_each(|&row| hash.write(values[row].as_bytes())),
                    }
                }
            }
        }
    }
}

#[derive(Clone)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// A number at once, which is four times as fast as its bytes.
    fn word(&mut self, word: u32) {
        self.0 = (self.0 ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3);
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    }
}
