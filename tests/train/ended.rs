//! Trainings that end otherwise than by their last epoch, as processes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use crate::fixture::{Folder, ndserve};
use crate::runs::{TABLE, table};

/// Many epochs, a line said behind every one-twentieth of them.
fn long() -> Folder {
    let config = TABLE.replace("epochs = 30", "epochs = 600").replace("patience = 12\n", "");
    Folder::new().with("data.csv", table()).with("train.toml", config)
}

fn path(folder: &Folder, name: &str) -> String {
    folder.0.join(name).to_string_lossy().into_owned()
}

/// Starts a training and waits until its first line about an epoch.
#[cfg(unix)]
fn started(folder: &Folder, output: &str) -> std::process::Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ndserve"))
        .args(["train", &path(folder, "train.toml"), "--output", &path(folder, output)])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (seen, first) = mpsc::sync_channel(1);
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // Read to its end: nobody listening would be an error of its own.
    std::thread::spawn(move || {
        let epochs = lines.map_while(Result::ok).filter(|line| line.starts_with("epoch "));
        epochs.for_each(|_| {
            let _ = seen.try_send(());
        });
    });
    first.recv().expect("it ended before an epoch was told of");
    child
}

#[cfg(unix)]
#[test]
fn an_interrupted_training_leaves_a_checkpoint_and_goes_on_to_the_same_bits() {
    use rustix::process::{Pid, Signal, kill_process};
    let folder = long();
    let mut child = started(&folder, "parts/model");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(folder.0.join("parts/model/checkpoint.npz").is_file() && !folder.0.join("parts/model/1").exists());
    // A kill leaves the last epoch's, whole.
    let mut child = started(&folder, "killed/model");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(folder.0.join("killed/model/checkpoint.npz").is_file());
    // One that came in the midst of a write leaves that, too.
    fs::write(folder.0.join("killed/model/checkpoint.npz.17.tmp"), "half").unwrap();
    let whole = ndserve(&["train", &path(&folder, "train.toml"), "--output", &path(&folder, "whole/model")]);
    assert_eq!(whole.0, Some(0), "{}", whole.2);
    for output in ["parts/model", "killed/model"] {
        let (code, _, errors) = ndserve(&["train", &path(&folder, "train.toml"), "--output", &path(&folder, output), "--resume"]);
        assert!(code == Some(0) && errors.contains("resumed behind epoch"), "{errors}");
        assert!(folder.model(output) == folder.model("whole/model"), "{output}: other bits");
        let left = fs::read_dir(folder.0.join(output)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert_eq!(left.filter(|name| name.starts_with("checkpoint")).collect::<Vec<_>>(), Vec::<String>::new());
    }
}

/// A disk that takes no more, by a limit on the size of files.
#[cfg(unix)]
/// Of a folder that cannot be written whole nothing is replaced: samples of another model would keep the old one from serving.
#[test]
fn a_model_that_cannot_be_written_leaves_the_one_that_was_there() {
    let folder = Folder::new().with("data.csv", table()).with("train.toml", TABLE);
    folder.done("model");
    let files = || {
        let mut found = Vec::new();
        for path in ["model", "model/golden"] {
            let entries = fs::read_dir(folder.0.join(path)).unwrap().map(|entry| entry.unwrap().path());
            found.extend(entries.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())));
        }
        found.sort();
        found
    };
    let before = files();
    assert!(before.len() > 8, "{before:?}");
    // A folder stands where the model's own should.
    fs::rename(folder.0.join("model/1"), folder.0.join("model/kept")).unwrap();
    fs::write(folder.0.join("model/1"), "").unwrap();
    fs::write(folder.0.join("train.toml"), TABLE.replace("seed = 3", "seed = 4")).unwrap();
    let error = folder.train("model", false, 0, 1).unwrap_err();
    assert!(error.contains("model/1/model.onnx: "), "{error}");
    fs::remove_file(folder.0.join("model/1")).unwrap();
    // The checkpoint lets the training go on once there is room.
    let after: Vec<_> = files().into_iter().filter(|(path, _)| !path.ends_with("checkpoint.npz")).collect();
    assert!(before == after, "{:?}", after.iter().map(|(path, _)| path).collect::<Vec<_>>());
    assert!(matches!(folder.train("model", true, 0, 1).unwrap(), ndserve::train::Ended::Done(_)));
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    let folder = Folder::new().with("data.csv", table()).with("train.toml", TABLE);
    let script = "trap '' XFSZ; ulimit -f 1; exec \"$@\"";
    let output = Command::new("sh")
        .args([
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_ndserve"),
            "train",
            &path(&folder, "train.toml"),
            "--output",
            &path(&folder, "model"),
        ])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && errors.contains("checkpoint.npz: "), "{errors}");
    let left: Vec<_> = fs::read_dir(folder.0.join("model")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn data_is_described_before_it_is_trained() {
    let folder = Folder::new().with("data.csv", table()).with("train.toml", TABLE);
    let html = path(&folder, "data.html");
    let (code, said, errors) = ndserve(&["prepare", &path(&folder, "train.toml"), "--html", &html]);
    assert_eq!(code, Some(0), "{errors}");
    for part in [
        "60 rows, 60 are used: 36 train, 12 say when to stop, 12 judge",
        "size    numbers, 6 missing: ",
        "colour  texts: 2 different: blue 30, red 30",
        "a column for each of 2 categories",
        "no            18         6         6",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let page = fs::read_to_string(&html).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.matches("<svg").count() == 4, "{page}");
    let fetched = ["src=", "href=", "url(", "@import"];
    assert!(fetched.iter().all(|word| !page.contains(word)), "the page fetches nothing");
    // Of data without a configuration the rules are inferred, shown and written; a training takes them.
    let written = path(&folder, "inferred.toml");
    let (code, said, errors) = ndserve(&["prepare", &path(&folder, "data.csv"), "--target", "label", "--write", &written]);
    assert_eq!(code, Some(0), "{errors}");
    for part in [
        "[prepare.columns.\"size\"]\nmissing = \"median\"\nindicator = true",
        "features = [\"size\", \"colour\"]",
        "encode = \"one_hot\"",
        "task = \"classify\"",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (code, _, errors) = ndserve(&["train", &written]);
    assert_eq!(code, Some(0), "{errors}");
    for (args, message) in [
        (vec!["prepare", &path(&folder, "data.csv")], "--target is missing"),
        (vec!["prepare", &path(&folder, "data.csv"), "--target", "lable"], "there is no column `lable`"),
        (vec!["prepare", &path(&folder, "data.csv"), "--target", "label", "--write", &written], "exists already"),
    ] {
        let args: Vec<&str> = args.iter().map(|arg| &**arg).collect();
        let (code, _, errors) = ndserve(&args);
        assert!(code == Some(1) && errors.contains(message), "{message}: {errors}");
    }
}
