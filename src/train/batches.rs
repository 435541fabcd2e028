//! How many rows a step takes: one number, or several that take turns from step to step.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;

/// See the module. An epoch begins with the first size; its last batch has the rows that are left.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged, expecting = "the rows of a step are a number, or a list of numbers that take turns")]
pub enum Batches {
    /// All of one size.
    One(usize),
    /// These in turn.
    Turns(Vec<usize>),
}

impl Default for Batches {
    fn default() -> Self {
        Self::One(32)
    }
}

impl fmt::Display for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sizes().iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    }
}

impl Batches {
    /// The sizes in their order.
    pub fn sizes(&self) -> &[usize] {
        match self {
            Self::One(size) => std::slice::from_ref(size),
            Self::Turns(sizes) => sizes,
        }
    }

    /// Whether each has a row, and there is one.
    pub fn are_valid(&self) -> bool {
        !self.sizes().is_empty() && !self.sizes().contains(&0)
    }

    /// The batches of an epoch of so many rows.
    pub fn of(&self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        let mut next = 0_usize;
        let batch = move |size: &usize| {
            let start = next;
            next = rows.min(start.saturating_add(*size));
            (start < rows).then_some(start..next)
        };
        self.sizes().iter().cycle().map_while(batch)
    }

    /// How many these are.
    pub fn count(&self, rows: usize) -> usize {
        let turn = self.sizes().iter().fold(0_usize, |sum, &size| sum.saturating_add(size)).max(1);
        // Whole turns, then what is left of one.
        rows / turn * self.sizes().len() + self.of(rows % turn).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_turns_until_no_rows_are_left() {
        for (sizes, rows, want) in [
            (Batches::One(4), 8, vec![0..4, 4..8]),
            (Batches::One(4), 9, vec![0..4, 4..8, 8..9]),
            (Batches::Turns(vec![1, 3]), 6, vec![0..1, 1..4, 4..5, 5..6]),
            (Batches::Turns(vec![5, usize::MAX]), 7, vec![0..5, 5..7]),
            (Batches::Turns(vec![2, 4]), 12, vec![0..2, 2..6, 6..8, 8..12]),
            (Batches::Turns(vec![2]), 0, vec![]),
        ] {
            assert_eq!(sizes.of(rows).collect::<Vec<_>>(), want, "{sizes}");
            assert_eq!(sizes.count(rows), want.len(), "{sizes}");
        }
    }
}
