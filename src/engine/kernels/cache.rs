//! How large the caches of a processor are. What follows from it, how much is worked on together, changes no result.

use std::fs;
use std::sync::OnceLock;

/// Bytes of the caches that data of one processor goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// The first level's.
    pub first: usize,
    /// The second level's.
    pub second: usize,
    /// The third level's, which other processors may share.
    pub third: usize,
}

/// Where the system does not say: what most processors have at least.
const UNKNOWN: Caches = Caches { first: 32 << 10, second: 512 << 10, third: 8 << 20 };

/// The caches of this machine's first processor, as Linux describes them; asked for once.
pub fn caches() -> Caches {
    static FOUND: OnceLock<Caches> = OnceLock::new();
    *FOUND.get_or_init(|| {
        described(|index, name| fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}")).unwrap_or_default())
    })
}

/// What is said of caches by their numbers: `level`, `type` and `size`; nothing of one that is not there.
fn described(of: impl Fn(usize, &str) -> String) -> Caches {
    let mut found = UNKNOWN;
    for index in 0..8 {
        let Some(bytes) = bytes(of(index, "size").trim()) else { continue };
        match (of(index, "level").trim(), of(index, "type").trim()) {
            ("1", "Data" | "Unified") => found.first = bytes,
            ("2", "Data" | "Unified") => found.second = bytes,
            ("3", "Data" | "Unified") => found.third = bytes,
            _ => {}
        }
    }
    found
}

/// `32K` as 32768; none if it is no such size, or one that no cache has.
fn bytes(size: &str) -> Option<usize> {
    let (number, unit) = match size.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => (size.strip_suffix('M')?, 1 << 20),
    };
    let bytes = number.parse::<usize>().ok()?.checked_mul(unit)?;
    (4 << 10..=1 << 30).contains(&bytes).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_as_the_system_describes_them() {
        let with = |second: &str| {
            let all = [["1", "Data", "48K"], ["1", "Instruction", "64K"], ["2", "Unified", second], ["3", "Unified", "32768K"]];
            described(|index, name| {
                let at = ["level", "type", "size"].iter().position(|known| *known == name).expect("one of three");
                all.get(index).map_or(String::new(), |cache| format!("{}\n", cache[at]))
            })
        };
        assert_eq!(with("2M"), Caches { first: 48 << 10, second: 2 << 20, third: 32 << 20 });
        for size in ["", "K", "-1K", "0K", "32", "99999999999999999999K", "18446744073709551615M"] {
            assert_eq!(with(size), Caches { first: 48 << 10, third: 32 << 20, ..UNKNOWN }, "{size}");
        }
        assert_eq!(described(|_, _| String::new()), UNKNOWN);
    }
}
