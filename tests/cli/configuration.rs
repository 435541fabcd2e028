//! Where settings come from, and that the documentation says what the program does.

use std::path::Path;

use ndserve::config::SETTINGS;
use ndserve::serve::{Defaults, ModelSettings};

use crate::fixture::{Folder, Ran, two_relus};

/// `healthcheck` tells the address that it asked, and so the setting in force.
#[track_caller]
fn listens_at(folder: &Folder, args: &[&str], variable: Option<&str>, port: u16) {
    let mut command = folder.command(&[&["healthcheck"], args].concat());
    if let Some(address) = variable {
        command.env("NDSERVE_LISTEN", address);
    }
    Ran::from(command.output().unwrap()).fails(1, &[&format!("http://127.0.0.1:{port}/readyz")]);
}

#[test]
fn a_flag_goes_before_the_environment_before_the_file() {
    // Nobody listens on these: the lowest ports are the system's.
    let folder = Folder::new();
    folder.write("ndserve.toml", "listen = '127.0.0.1:11'");
    folder.write("other.toml", "listen = '127.0.0.1:14'");
    listens_at(&folder, &[], None, 11);
    listens_at(&folder, &["--config", "other.toml"], None, 14);
    listens_at(&folder, &[], Some("127.0.0.1:12"), 12);
    listens_at(&folder, &["--listen", "127.0.0.1:13"], Some("127.0.0.1:12"), 13);
}

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    let folder = Folder::new();
    folder.write("model.onnx", two_relus());
    folder.write("ndserve.toml", "threads = 2\nmax-bodi = '1MiB'");
    folder.run(&["check", "model.onnx"]).fails(1, &["ndserve.toml", "unknown field `max-bodi`", "max-body"]);
    folder.run(&["check", "model.onnx", "--config", "nothing.toml"]).fails(1, &["nothing.toml"]);
    folder.write("ndserve.toml", "threads = 2");
    folder.run(&["check", "model.onnx"]).ok();
}

#[test]
fn a_wrong_value_names_the_setting() {
    let folder = Folder::new();
    folder.write("model.onnx", two_relus());
    folder.run(&["check", "model.onnx", "--threads", "many"]).fails(2, &["--threads", "`many` is neither a number"]);
    folder.run(&["check", "model.onnx", "--isa", "sse9"]).fails(2, &["--isa", "`sse9` is none of"]);
    folder.run(&["check", "model.onnx", "--disable-pass", "magic"]).fails(1, &["there is no pass `magic`"]);
    folder.run(&["check", "model.onnx", "--no-prepack", "--precision", "bf16"]).fails(1, &["no-prepack: weights at precision bf16"]);
    folder.run(&["check", "model.onnx", "--no-prepack"]).ok();
    folder.run(&["check", "model.onnx", "--weight-cache", ""]).fails(2, &["--weight-cache", "wanted is off, beside or a folder"]);
    folder.run(&["check", "model.onnx", "--log-filter", "a=loud"]).fails(1, &["log-filter: `a=loud`"]);
    folder.run(&["serve", "--listen", "everywhere"]).fails(2, &["--listen", "`everywhere` is not an address"]);
    folder.run(&["--drain-delay", "5"]).fails(2, &["--drain-delay", "`5` is not a duration"]);
    let mut command = folder.command(&["check", "model.onnx"]);
    Ran::from(command.env("NDSERVE_MEMORY_LIMIT", "lots").output().unwrap()).fails(2, &["`lots` is not a size"]);
}

#[test]
fn every_setting_is_a_flag_with_a_variable() {
    let help = Folder::new().run(&["serve", "--help"]).ok().out;
    for setting in SETTINGS {
        assert!(help.contains(&format!("--{}", setting.key())), "{}: {help}", setting.key());
        assert!(help.contains(&format!("[env: {}]", setting.variable())), "{}: {help}", setting.variable());
    }
}

/// `UPDATE_DOCS=1 cargo test --test cli` writes the section anew.
#[test]
fn the_documentation_is_that_of_the_code() {
    const BEGIN: &str = "<!-- settings -->\n";
    const END: &str = "\n<!-- /settings -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let after = rest.split_once(END.trim_start()).unwrap().1;
    let want = format!("{before}{BEGIN}{}{END}{after}", ndserve::config::markdown());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &want).unwrap();
    } else {
        assert!(page == want, "docs/configuration.md is not what src/config says; UPDATE_DOCS=1 cargo test --test cli writes it");
    }
}

/// The parser itself tells which keys it knows.
#[test]
fn every_key_of_a_models_settings_is_documented() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md")).unwrap();
    let error = ModelSettings::parse("no_such_key = 1", &Defaults::default()).unwrap_err();
    let known: Vec<&str> = error.split_once("expected one of").unwrap().1.split('`').skip(1).step_by(2).collect();
    assert!(known.len() > 5, "{error}");
    let documented: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(documented, known);
}
