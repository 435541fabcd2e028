//! Archives of recorded cases: `fixtures/NAME/cases.zip`, in which each case is a folder of files.

use std::collections::BTreeMap;
use std::io::Read;

/// The files of a case by their names.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// The cases of `tests/fixtures/{name}/cases.zip` by their names.
pub(crate) fn cases(name: &str) -> BTreeMap<String, Files> {
    let path = format!("{}/tests/fixtures/{name}/cases.zip", env!("CARGO_MANIFEST_DIR"));
    let mut archive = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut cases: BTreeMap<String, Files> = BTreeMap::new();
    for i in 0..archive.len() {
        let mut file = archive.by_index(i).unwrap();
        let path = file.name().unwrap().into_owned();
        let (case, name) = path.split_once('/').unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        cases.entry(case.to_owned()).or_default().insert(name.to_owned(), bytes);
    }
    cases
}
