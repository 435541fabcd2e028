//! What the commands make of a model that was trained here, and of data in other files than it was trained on.

use std::fs;
use std::path::Path;

use crate::data::parquet;
use crate::fixture::{Folder, ndserve};
use crate::runs::{TABLE, table};

fn path(folder: &Folder, name: &str) -> String {
    folder.0.join(name).to_string_lossy().into_owned()
}

/// The model of [`TABLE`], with inputs `size`, `colour` and `weight`, beside its data.
fn trained() -> Folder {
    let folder = Folder::new().with("data.csv", table()).with("train.toml", TABLE);
    folder.done("model");
    folder
}

/// The lines of a table with its columns in another order, and one more in front.
fn moved(table: &str) -> String {
    let line = |(at, line): (usize, &str)| {
        let cells: Vec<&str> = line.split(',').collect();
        format!("{},{},{},{},{}\n", if at == 0 { "note" } else { "x" }, cells[1], cells[3], cells[0], cells[2])
    };
    table.lines().enumerate().map(line).collect()
}

#[test]
fn columns_in_another_order_are_the_inputs_of_their_names() {
    let folder = trained().with("moved.csv", moved(&table()));
    for command in ["evaluate", "explain"] {
        let of = |data: &str| {
            let (model, data) = (path(&folder, "model"), path(&folder, data));
            let background = ["--background", &*data];
            let args = [command, &model, &data, "--target", "label", "--json"];
            ndserve(&[&args[..], if command == "explain" { &background } else { &[] }].concat())
        };
        let (want, found) = (of("data.csv"), of("moved.csv"));
        assert!(want.0 == Some(0) && want == found, "{command}: {want:?} {found:?}");
    }
    // A column that is no input can be sliced by.
    let (code, said, errors) =
        ndserve(&["evaluate", &path(&folder, "model"), &path(&folder, "moved.csv"), "--target", "label", "--slice", "note"]);
    assert!(code == Some(0) && said.contains("note = x: 60 rows"), "{said}{errors}");
}

#[test]
fn slices_are_of_the_columns_of_every_kind_of_table() {
    let folder = trained().with("data.parquet", parquet(&table()));
    let of = |data: &str| {
        let (model, data) = (path(&folder, "model"), path(&folder, data));
        ndserve(&["evaluate", &model, &data, "--target", "label", "--slice", "colour,label", "--json"])
    };
    let (want, found) = (of("data.csv"), of("data.parquet"));
    assert!(want.0 == Some(0) && want.1.contains("\"column\": \"colour\"") && want == found, "{want:?} {found:?}");
}

/// The model of a table says what its columns are called and what is usual; its background holds texts too.
#[test]
fn a_trained_table_explains_itself() {
    let folder = trained();
    let settings = fs::read_to_string(folder.0.join("model/model.toml")).unwrap();
    assert!(settings.ends_with("\n[explain]\nbackground = \"background.npz\"\n"), "{settings}");
    let [model, data] = ["model", "data.csv"].map(|name| path(&folder, name));
    let (code, said, errors) = ndserve(&["explain", &model, &data, "--target", "label", "--rows", "1"]);
    assert!(code == Some(0) && said.starts_with("shapley, background: 36 rows of model, "), "{said}{errors}");
    assert!(said.contains("  colour = red\n"), "{said}");
    // Numbers alone are one input, whose columns have names.
    let numbers = "[data]\npath = \"numbers.csv\"\ntarget = \"c\"\n[train]\nepochs = 1\nlearning_rate = 0.1\n";
    let folder = Folder::new().with("numbers.csv", "a,\"b \"\"x\"\"\",c\n1,2,3\n4,5,6\n").with("train.toml", numbers);
    folder.done("model");
    let settings = fs::read_to_string(folder.0.join("model/model.toml")).unwrap();
    assert!(settings.contains("features = [\"a\", "), "{settings}");
    let [model, data] = ["model", "numbers.csv"].map(|name| path(&folder, name));
    let (code, said, errors) = ndserve(&["explain", &model, &data, "--target", "c"]);
    assert!(code == Some(0) && said.contains("  b \"x\" = 2\n") && said.contains("2 rows of model"), "{said}{errors}");
    // What the configuration says of explanations is all that is said.
    let folder = folder.with("train.toml", format!("{numbers}[model.settings]\nexplain = {{ method = \"occlusion\" }}\n"));
    folder.done("other");
    let settings = fs::read_to_string(folder.0.join("other/model.toml")).unwrap();
    assert!(!settings.contains("background") && !folder.0.join("other/background.npz").exists(), "{settings}");
}

fn copied(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("1")).unwrap();
    for file in ["1/model.onnx", "model.toml"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

#[test]
fn a_model_with_the_classes_in_another_order_is_not_compared() {
    let folder = trained();
    copied(&folder.0.join("model"), &folder.0.join("other"));
    let compared = || {
        let [model, other, data] = ["model", "other", "data.csv"].map(|name| path(&folder, name));
        ndserve(&["evaluate", &model, &data, "--target", "label", "--against", &other])
    };
    assert_eq!(compared().0, Some(0));
    fs::write(folder.0.join("other/model.toml"), "labels = [\"yes\", \"no\"]\n").unwrap();
    let (code, _, errors) = compared();
    assert!(code == Some(1) && errors.contains("other: its labels are yes, no; those of the first model are no, yes"), "{errors}");
}

#[test]
fn a_target_that_is_nowhere_is_named() {
    let folder = trained();
    let data = path(&folder, "data.csv");
    let (code, _, errors) = ndserve(&["explain", &path(&folder, "model"), &data, "--background", &data, "--target", "lable"]);
    assert!(code == Some(1) && errors.contains("there is no column or array `lable`"), "{errors}");
}

#[test]
fn a_configuration_that_is_written_into_another_folder_finds_its_data() {
    let folder = Folder::new().with("data.csv", table());
    let run = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_ndserve")).args(args).current_dir(&folder.0).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    for written in ["configurations/data.toml", "data.toml"] {
        run(&["prepare", "data.csv", "--target", "label", "--write", written]);
        run(&["prepare", written]);
    }
    // Beside the data a path of the machine says nothing more.
    assert!(fs::read_to_string(folder.0.join("data.toml")).unwrap().contains("path = \"data.csv\""));
}
