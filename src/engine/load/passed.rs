//! Large fields that the reader of a file's messages passed over: where they are.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::elements::WeightFile;

/// A file and the ranges of it that were passed over.
pub(crate) struct Passed {
    file: Arc<WeightFile>,
    /// Offset and number of bytes, by the address of what stands for them in the messages: no two have the same as long as they are kept.
    ranges: HashMap<usize, (u64, usize)>,
    kept: Vec<Bytes>,
}

impl Passed {
    pub(crate) fn new(file: Arc<WeightFile>) -> Self {
        Self { file, ranges: HashMap::new(), kept: Vec::new() }
    }

    /// Notes that `len` bytes from `offset` on were passed over, and returns what stands for them.
    pub(crate) fn add(&mut self, offset: u64, len: usize) -> Bytes {
        let stand_in = Bytes::from(vec![0; 1]);
        self.ranges.insert(stand_in.as_ptr() as usize, (offset, len));
        self.kept.push(stand_in.clone());
        stand_in
    }

    /// Where the bytes are that `field` stands for: offset and number.
    pub(crate) fn range(&self, field: &Bytes) -> Option<(u64, usize)> {
        self.ranges.get(&(field.as_ptr() as usize)).copied()
    }

    pub(crate) fn file(&self) -> &Arc<WeightFile> {
        &self.file
    }
}
