//! Which rows train, which say when to stop, and which judge.

use super::data::Target;
use super::error::{Error, Result};
use super::random::Random;

/// Rows by their use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Rows that train.
    pub train: Vec<usize>,
    /// Rows that say when to stop.
    pub validation: Vec<usize>,
    /// Rows that judge the result and nothing else.
    pub test: Vec<usize>,
}

/// Rows in random order, by class if `stratify` and there are classes, so that each part of the list has a share of every class.
fn order(target: &Target, rows: usize, stratify: bool, seed: u64) -> Vec<Vec<usize>> {
    let mut random = Random::new(seed, 0x5917);
    let mut groups = match target {
        Target::Classes { labels, of } if stratify => {
            let mut groups = vec![Vec::new(); labels.len()];
            of.iter().enumerate().for_each(|(row, &class)| groups[class].push(row));
            groups
        }
        _ => vec![(0..rows).collect()],
    };
    groups.iter_mut().for_each(|group| random.shuffle(group));
    groups
}

/// Parts of all rows: a share for validation and one for the test, each of every class by itself if `stratify`.
///
/// # Errors
/// If the shares leave nothing to train.
pub fn split(target: &Target, rows: usize, (validation, test): (f64, f64), stratify: bool, seed: u64) -> Result<Split> {
    let valid = |share: f64| (0.0..1.0).contains(&share);
    if !valid(validation) || !valid(test) || !valid(validation + test) {
        return Err(Error(format!("`validation` {validation} and `test` {test} are no shares that leave something to train")));
    }
    let mut split = Split::default();
    for group in order(target, rows, stratify, seed) {
        let count = |share: f64| (share * group.len() as f64).round() as usize;
        let tested = count(test);
        let checked = count(validation).min(group.len() - tested);
        split.test.extend(&group[..tested]);
        split.validation.extend(&group[tested..tested + checked]);
        split.train.extend(&group[tested + checked..]);
    }
    // In the order of the file, so that a file of the same rows in the same order gives the same batches.
    [&mut split.train, &mut split.validation, &mut split.test].into_iter().for_each(|part| part.sort_unstable());
    if split.train.is_empty() { Err("no row is left to train with".into()) } else { Ok(split) }
}

/// `count` splits of `rows` into training and test, each row in one test.
///
/// # Errors
/// If there are fewer rows than parts.
pub fn folds(target: &Target, rows: &[usize], count: usize, stratify: bool, seed: u64) -> Result<Vec<Split>> {
    if count < 2 || rows.len() < count {
        return Err(Error(format!("{} rows do not make {count} folds", rows.len())));
    }
    let mut part = vec![0; rows.len()];
    let mut next = 0;
    for group in order(&target.pick(rows), rows.len(), stratify, seed) {
        for at in group {
            part[at] = next % count;
            next += 1;
        }
    }
    let pick = |fold: usize, inside: bool| rows.iter().zip(&part).filter(|(_, p)| (**p == fold) == inside).map(|(row, _)| *row).collect();
    Ok((0..count).map(|fold| Split { train: pick(fold, false), validation: Vec::new(), test: pick(fold, true) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(counts: &[usize]) -> Target {
        let of = counts.iter().enumerate().flat_map(|(class, &n)| std::iter::repeat_n(class, n)).collect();
        Target::Classes { labels: counts.iter().map(ToString::to_string).collect(), of }
    }

    fn all(split: &Split) -> Vec<usize> {
        let mut all = [&split.train[..], &split.validation, &split.test].concat();
        all.sort_unstable();
        all
    }

    #[test]
    fn every_row_is_in_one_part_and_classes_keep_their_shares() {
        let target = classes(&[20, 80]);
        let found = split(&target, 100, (0.1, 0.25), true, 3).unwrap();
        assert_eq!(all(&found), (0..100).collect::<Vec<_>>());
        let minority = |rows: &[usize]| rows.iter().filter(|&&row| row < 20).count();
        assert_eq!((found.test.len(), minority(&found.test)), (25, 5));
        assert_eq!((found.validation.len(), minority(&found.validation)), (10, 2));
        assert_eq!(found, split(&target, 100, (0.1, 0.25), true, 3).unwrap());
        assert_ne!(found, split(&target, 100, (0.1, 0.25), true, 4).unwrap());
        assert!(split(&target, 100, (0.5, 0.5), true, 3).is_err());
    }

    #[test]
    fn folds_test_every_row_once() {
        let target = classes(&[6, 10]);
        let rows: Vec<usize> = (0..16).collect();
        let found = folds(&target, &rows, 4, true, 1).unwrap();
        let mut tested: Vec<usize> = found.iter().flat_map(|fold| fold.test.clone()).collect();
        tested.sort_unstable();
        assert_eq!(tested, rows);
        assert!(found.iter().all(|fold| all(fold) == rows && fold.test.len() == 4));
        assert!(folds(&target, &rows[..3], 4, true, 1).is_err());
    }
}
