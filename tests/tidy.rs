//! The wall between the layers, and the rules of the house that no compiler checks.
//!
//! One crate has no compiler wall between its modules, so this test reads every path that a file names (`crate::…`, `super::…`,
//! `use` lists, names bound by `use`) and holds it against [`LAYERS`]. The rules are data: each row says why, and a sample
//! that breaks it is part of the row, so that no rule is unable to fail.
#![allow(missing_docs, reason = "a test binary has no readers of its documentation page")]

use std::path::Path;

// A file beside this one would be a test of its own.
#[path = "tidy/source.rs"]
mod source;

use source::{File, Tree, tokens};

// ---------------------------------------------------------------------------------------------------------------- the rules

/// Modules that stand at one height, and the layers they may name. Modules of one layer may name each other.
struct Layer {
    name: &'static str,
    /// Module paths; what lies below one belongs to it. The engine's own module is the facade alone.
    modules: &'static [&'static str],
    may: &'static [&'static str],
    why: &'static str,
}

/// main → cli → api → serve → engine facade; below it graph → vocabulary, and model and its kin → ops → kernels.
const LAYERS: &[Layer] = &[
    Layer { name: "program", modules: &["main"], may: &["cli"], why: "an allocator and a call: nothing there to test" },
    Layer { name: "map", modules: &["lib"], may: &[], why: "declares the modules and does nothing" },
    Layer {
        name: "cli",
        modules: &["cli"],
        may: &["api", "serve", "explain", "train", "config", "telemetry", "trace", "resources", "error", "engine"],
        why: "puts everything together, so nothing may need it",
    },
    Layer {
        name: "api",
        modules: &["api"],
        may: &["serve", "explain", "config", "telemetry", "trace", "resources", "error", "engine"],
        why: "protocols translate; which command runs them is not theirs to know",
    },
    Layer {
        name: "serve",
        modules: &["serve"],
        may: &["explain", "trace", "resources", "error", "engine"],
        why: "batching is the same for every protocol; settings reach it as values, so that tests need no files",
    },
    Layer {
        name: "explain",
        modules: &["explain"],
        may: &["error", "engine"],
        why: "says what to evaluate and never evaluates: a queue does, or a session",
    },
    Layer { name: "train", modules: &["train"], may: &["error", "engine"], why: "training is offline; a server must not drag it in" },
    Layer { name: "telemetry", modules: &["telemetry"], may: &["config", "error"], why: "logs are set up from settings alone" },
    Layer { name: "trace", modules: &["trace"], may: &[], why: "what a request takes along must not know who looks into it" },
    Layer { name: "config", modules: &["config"], may: &["resources", "error", "engine"], why: "settings know limits, not their users" },
    Layer { name: "resources", modules: &["resources"], may: &[], why: "asks the system, nothing else" },
    Layer { name: "error", modules: &["error"], may: &["engine"], why: "translates the engine's errors once for every protocol" },
    Layer {
        name: "engine",
        modules: &["engine"],
        may: &["model", "graph", "ops", "vocabulary", "kernels"],
        why: "the facade re-exports; nothing below may look up to it",
    },
    Layer {
        name: "model",
        modules: &[
            "engine::append",
            "engine::differentiate",
            "engine::evaluate",
            "engine::execute",
            "engine::explain",
            "engine::load",
            "engine::model",
            "engine::npz",
            "engine::onnx",
            "engine::optimize",
            "engine::plan",
            "engine::portions",
            "engine::overrides",
            "engine::program",
            "engine::session",
            "engine::subgraph",
        ],
        may: &["graph", "ops", "vocabulary", "kernels"],
        why: "from bytes to answers; knows operators only through their trait and table",
    },
    Layer {
        name: "graph",
        modules: &["engine::error", "engine::graph", "engine::signature"],
        may: &["vocabulary"],
        why: "what a model is, before anything runs it",
    },
    Layer {
        name: "ops",
        modules: &["engine::ops"],
        may: &["vocabulary", "kernels"],
        why: "an operator sees its operands, never the graph: so it can be tested alone and fused freely",
    },
    Layer {
        name: "vocabulary",
        modules: &[
            "engine::adjoint",
            "engine::attrs",
            "engine::body",
            "engine::dtype",
            "engine::elements",
            "engine::narrow",
            "engine::op",
            "engine::tensor",
            "engine::threads",
            "engine::view",
            "engine::weight_cache",
        ],
        may: &["kernels"],
        why: "values, views and the operator's contract: what every part of the engine speaks",
    },
    Layer { name: "kernels", modules: &["engine::kernels"], may: &[], why: "arithmetic on slices, the only home of unsafe code" },
];

/// Layers of the engine: its tests may reach any of them, whatever their height.
const ENGINE: &[&str] = &["engine", "model", "graph", "ops", "vocabulary", "kernels"];

/// The modules below the facade that are public as modules: files of values, and small element types, used by name
/// (`onnx::read_tensor`, `npz::read`, `narrow::I4`).
const FACADE_MODULES: &[&str] = &["onnx", "narrow", "npz"];

/// Crates that a part of the tree must not name.
struct Foreign {
    under: &'static str,
    crates: &'static [&'static str],
    why: &'static str,
}

const HTTP: &[&str] = &["axum", "http", "http_body", "http_body_util", "hyper", "hyper_util", "tonic", "tower", "tower_http"];

const FOREIGN: &[Foreign] = &[
    Foreign { under: "src/engine/", crates: HTTP, why: "the engine knows nothing of networks" },
    Foreign { under: "src/engine/", crates: &["tokio", "futures"], why: "the engine is synchronous" },
    Foreign { under: "src/engine/", crates: &["tracing", "log"], why: "the engine never logs: it returns errors" },
    Foreign { under: "src/engine/", crates: &["clap"], why: "the engine has no command line" },
    Foreign { under: "src/engine/kernels/", crates: &["ndarray", "prost"], why: "kernels work on one piece of plain slices" },
    Foreign { under: "src/serve/", crates: HTTP, why: "only api knows protocols" },
    Foreign { under: "src/error.rs", crates: HTTP, why: "only api knows status codes" },
    Foreign { under: "src/cli/", crates: HTTP, why: "only api knows protocols" },
    Foreign { under: "src/train/", crates: HTTP, why: "training is synchronous and offline" },
];

/// Words that a Rust file must not contain.
struct Word {
    words: &'static [&'static str],
    /// Where the rule holds; empty: everywhere.
    under: &'static str,
    /// Where it does not.
    except: &'static [&'static str],
    why: &'static str,
}

const WORDS: &[Word] = &[
    Word { words: &["unsafe"], under: "", except: &["src/engine/kernels/"], why: "unsafe code lives in engine/kernels alone" },
    Word { words: &["todo", "!"], under: "", except: &[], why: "finish it, or refuse it with an error that says so" },
    Word { words: &["unimplemented", "!"], under: "", except: &[], why: "finish it, or refuse it with an error that says so" },
    Word { words: &["dbg", "!"], under: "", except: &[], why: "left over from debugging" },
    Word {
        words: &["println", "!"],
        under: "src/",
        except: &["src/cli/", "src/engine/kernels/tests/"],
        why: "only commands speak to the terminal",
    },
    Word { words: &["eprintln", "!"], under: "src/", except: &["src/cli/"], why: "only commands speak to the terminal" },
];

/// Functions that read or write the environment.
const ENVIRONMENT: &[&str] = &["var", "var_os", "vars", "vars_os", "set_var", "remove_var"];
const ENVIRONMENT_READERS: &[&str] = &["src/main.rs", "src/cli/"];

const FILE_LINES_MAX: usize = 800;
const NAMES: &[&str] = &["common", "helper", "helpers", "misc", "types", "util", "utils"];

/// Paths of the machines this was developed on; put together here so that this file does not contain them.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/tmp/", "wt")];

/// A check of the whole tree, a tree that breaks it (several: each must) and one that does not.
struct Rule {
    name: &'static str,
    why: &'static str,
    check: fn(&Tree) -> Vec<String>,
    bad: &'static [Sample],
    good: Sample,
}

/// Files as path and text.
type Sample = &'static [(&'static str, &'static str)];

const RULES: &[Rule] = &[
    Rule {
        name: "layers",
        why: "dependencies point one way, so that each part can be read, tested and replaced without those above it",
        check: layers,
        bad: &[
            &[("src/engine/plan.rs", "use crate::serve::Handle;")],
            &[("src/engine/ops/add.rs", "fn f(g: &super::super::graph::Graph) {}")],
            &[("src/engine/ops/add.rs", "use crate::{engine::{op::Op, session::Session}};")],
            &[("src/engine/ops/mod.rs", "use super as up; fn f() { up::plan::plan() }")],
            &[("src/engine/tensor.rs", "use crate::engine::Element;"), ("src/engine/mod.rs", "pub use dtype::Element;")],
            &[("src/serve/mod.rs", "mod inner { use super::super::api::Server; }")],
            &[("src/serve/mod.rs", "macro_rules! m { () => { $crate::cli::run() } }")],
            &[("src/main.rs", "fn main() { ndserve::serve::run() }")],
            &[("src/new.rs", "use crate::error::Error;")],
        ],
        good: &[
            ("src/engine/ops/add.rs", "use super::super::op::Op; mod tests { use crate::engine::Model; }"),
            ("src/engine/mod.rs", "pub use model::Model;"),
            ("src/main.rs", "fn main() { ndserve::cli::run() } // crate::serve::run"),
        ],
    },
    Rule {
        name: "facade",
        why: "what the engine re-exports is its contract; everything below may change without the server noticing",
        check: facade,
        bad: &[
            &[("src/engine/mod.rs", "pub use model::{Model};"), ("src/serve/a.rs", "use crate::engine::model::Model;")],
            &[("src/engine/mod.rs", "pub use kernels::isa::Isa;"), ("src/config.rs", "use crate::engine::kernels::isa::Isa;")],
            &[("src/engine/mod.rs", "pub use model::Model;"), ("src/cli/a.rs", "use crate::engine; fn f() { engine::plan::plan() }")],
            &[("src/engine/mod.rs", "pub use model::Model;"), ("src/api/a.rs", "use crate::engine::*;")],
        ],
        good: &[
            ("src/engine/mod.rs", "pub use model::{Model, load as load_model};"),
            ("src/serve/a.rs", "use crate::engine::{self, Model, load_model, onnx::read_tensor}; type M = engine::Model;"),
        ],
    },
    Rule {
        name: "foreign crates",
        why: "a dependency that is named in one place can be replaced in one place",
        check: foreign,
        bad: &[
            &[("src/engine/a.rs", "fn f() { tracing::info!(\"\") }")],
            &[("src/serve/a.rs", "use axum::Router;")],
            &[("src/engine/kernels/a.rs", "use prost;")],
        ],
        good: &[("src/serve/a.rs", "mod http; use http::Page; use tokio::sync; use crate::error::http; fn f() {} // axum::Router")],
    },
    Rule {
        name: "words",
        why: "see each word",
        check: words,
        bad: &[&[("tests/a.rs", "fn f() { unsafe { g() } }")]],
        good: &[
            ("src/engine/kernels/a.rs", "unsafe fn f() {}"),
            ("src/a.rs", "#![deny(unsafe_code)] // todo!\nconst A: &str = \"dbg!()\";"),
        ],
    },
    Rule {
        name: "environment",
        why: "settings are read once and passed as values: nothing below the commands behaves differently by surprise",
        check: environment,
        bad: &[
            &[("src/serve/a.rs", "fn f() { std::env::var(\"A\"); }")],
            &[("src/engine/a.rs", "use std::env; fn f() { env::vars(); }")],
            &[("src/config/a.rs", "use std::env::{self, var_os};")],
        ],
        good: &[("src/cli/a.rs", "use std::env; fn f() { env::var(\"A\"); }"), ("src/serve/a.rs", "const A: &str = env!(\"A\");")],
    },
    Rule {
        name: "head",
        why: "the first line of a file says what it is for",
        check: head,
        bad: &[&[("src/a.rs", "use std::fmt;\n")], &[("build.rs", "\n//! Late.\n")], &[("benches/a.rs", "//!\n")]],
        good: &[("src/a.rs", "//! What it is.\n")],
    },
    Rule {
        name: "length",
        why: "a file is read as a whole",
        check: length,
        bad: &[&[("src/a.rs", LONG)]],
        good: &[("src/a.rs", "\n\n"), ("docs/a.md", LONG)],
    },
    Rule {
        name: "names",
        why: "a name that fits everything collects everything",
        check: file_names,
        bad: &[&[("src/serve/utils.rs", "")], &[("tests/common/mod.rs", "")]],
        good: &[("src/serve/queue.rs", ""), ("docs/common.md", "")],
    },
    Rule {
        name: "dependencies",
        why: "a dependency is code to build, audit and update: the line says what for",
        check: dependencies,
        bad: &[
            &[("Cargo.toml", "[dependencies]\nserde = \"1\"\n")],
            &[("Cargo.toml", "[target.'cfg(unix)'.dependencies]\nlibc = \"0.2\" #\n")],
            &[("Cargo.toml", "[dev-dependencies.proptest]\nversion = \"1\"\n")],
            &[("Cargo.toml", "[dependencies]\ntokio = { version = \"1\", features = [\n  \"net\",\n] }\n")],
        ],
        good: &[("Cargo.toml", "[package]\nname = \"a\"\n\n[dependencies]\na = \"1\"  # why\nb = { features = [\n  \"x\",\n] }  # why\n")],
    },
    Rule {
        name: "decisions",
        why: "decisions are cited by number",
        check: decisions,
        bad: &[
            &[("docs/decisions/json.md", "")],
            &[("docs/decisions/0002-a.md", "")],
            &[("docs/decisions/0001-a.md", ""), ("docs/decisions/0001-b.md", "")],
            &[("docs/decisions/0001-A_b.md", "")],
        ],
        good: &[("docs/decisions/0001-a-b.md", ""), ("docs/decisions/0002-c.md", ""), ("docs/decisions/README.md", "")],
    },
    Rule {
        name: "links",
        why: "a reader follows them",
        check: links,
        bad: &[&[("README.md", "See [it](docs/a.md).")], &[("docs/a.md", "[b](b.md#part)")], &[("docs/a.md", "[b](../../b.md)")]],
        good: &[
            ("README.md", "[a](docs/a.md#x) [d](docs/) [w](https://example.com) [h](#here)\n```\n[x](y)\n```\n`[x](y)`"),
            ("docs/a.md", "[up](../README.md \"title\")"),
        ],
    },
    Rule {
        name: "machine paths",
        why: "the repository must work on every machine",
        check: machine_paths,
        bad: &[&[("a.sh", concat!("cd /wo", "rk/main"))], &[("a.txt", concat!("=/tmp/", "wt/a"))]],
        good: &[("a.yml", "path: /home/me/work/x and docs/work/x")],
    },
];

const LONG: &str = {
    const LINES: &[u8] = &[b'\n'; FILE_LINES_MAX + 1];
    match std::str::from_utf8(LINES) {
        Ok(text) => text,
        Err(_) => panic!("newlines are text"),
    }
};

// --------------------------------------------------------------------------------------------------------------- the checks

fn layers(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.rust("src/") {
        let Some(own) = layer(&file.module()) else {
            found.push(format!("{}: in no layer; say where it belongs in LAYERS", file.path));
            continue;
        };
        let in_engine = ENGINE.contains(&own.name);
        for name in file.names() {
            let Some(target) = name.own_module().and_then(|path| if in_engine { layer(path) } else { layer(seen_from_outside(path)) })
            else {
                continue;
            };
            let in_engine_test = name.in_test && in_engine && ENGINE.contains(&target.name);
            if target.name != own.name && !own.may.contains(&target.name) && !in_engine_test {
                let (path, from, to) = (name.path.join("::"), own.name, target.name);
                found.push(format!("{}:{}: `{path}`: {from} must not name {to} ({})", file.path, name.line, own.why));
            }
        }
    }
    found
}

/// A public module of the facade is the facade to those outside the engine.
fn seen_from_outside(path: &[String]) -> &[String] {
    match path {
        [engine, module, ..] if engine == "engine" && FACADE_MODULES.contains(&module.as_str()) => &path[..1],
        _ => path,
    }
}

/// The layer of a module or of something in it, by the longest module path that it begins with.
fn layer<S: AsRef<str>>(path: &[S]) -> Option<&'static Layer> {
    let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
    let depth = |module: &str| {
        let wanted: Vec<&str> = module.split("::").collect();
        // A module of the engine that no row lists must not pass as the facade; what the facade exports may.
        let fits = path.starts_with(&wanted) && (module != "engine" || path.len() == 1 || !is_module(path[1]));
        fits.then_some(wanted.len())
    };
    let rows = LAYERS.iter().filter_map(|layer| Some((layer.modules.iter().filter_map(|module| depth(module)).max()?, layer)));
    rows.max_by_key(|(depth, _)| *depth).map(|(_, layer)| layer)
}

/// Of the names right below the engine, modules are those that the table or the disk knows.
fn is_module(name: &str) -> bool {
    let listed = LAYERS.iter().flat_map(|layer| layer.modules).any(|module| module.strip_prefix("engine::") == Some(name));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine");
    listed || root.join(name).is_dir() || root.join(format!("{name}.rs")).is_file()
}

fn facade(tree: &Tree) -> Vec<String> {
    let Some(facade) = tree.files.get("src/engine/mod.rs") else { return Vec::new() };
    let exported = facade.exports();
    let mut found = Vec::new();
    for file in tree.rust("src/").filter(|file| !file.path.starts_with("src/engine/")) {
        for name in file.names() {
            if let [engine, item, ..] = name.path.as_slice()
                && name.own
                && engine == "engine"
                && !exported.contains(item)
                && !FACADE_MODULES.contains(&item.as_str())
            {
                found.push(format!("{}:{}: `{}` is not re-exported by the engine", file.path, name.line, name.path.join("::")));
            }
        }
    }
    found
}

fn foreign(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.rust("src/") {
        for Foreign { crates, why, .. } in FOREIGN.iter().filter(|row| file.path.starts_with(row.under)) {
            for name in file.names().into_iter().filter(|name| !name.own && crates.contains(&name.path[0].as_str())) {
                found.push(format!("{}:{}: `{}`: {why}", file.path, name.line, name.path.join("::")));
            }
        }
    }
    found
}

fn words(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.rust("") {
        let tokens = tokens(&file.text);
        for Word { words, why, .. } in WORDS.iter().filter(|row| row.holds(&file.path)) {
            for here in tokens.windows(words.len()).filter(|here| here.iter().map(|token| token.text).eq(words.iter().copied())) {
                found.push(format!("{}:{}: `{}`: {why}", file.path, here[0].line, words.concat()));
            }
        }
    }
    found
}

impl Word {
    fn holds(&self, path: &str) -> bool {
        path.starts_with(self.under) && !self.except.iter().any(|except| path.starts_with(except))
    }
}

fn environment(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.rust("src/").filter(|file| !ENVIRONMENT_READERS.iter().any(|reader| file.path.starts_with(reader))) {
        for name in file.names() {
            if let [std, env, function, ..] = name.path.as_slice()
                && (std.as_str(), env.as_str()) == ("std", "env")
                && ENVIRONMENT.contains(&function.as_str())
            {
                found.push(format!("{}:{}: `{}`", file.path, name.line, name.path.join("::")));
            }
        }
    }
    found
}

fn head(tree: &Tree) -> Vec<String> {
    let bare = |file: &&File| !file.text.starts_with("//! ");
    tree.rust("").filter(bare).map(|file| format!("{}: the first line is no `//!` sentence", file.path)).collect()
}

fn length(tree: &Tree) -> Vec<String> {
    let files = tree.rust("").map(|file| (&file.path, file.text.lines().count()));
    files.filter(|(_, lines)| *lines > FILE_LINES_MAX).map(|(path, lines)| format!("{path}: {lines} lines")).collect()
}

fn file_names(tree: &Tree) -> Vec<String> {
    let vague = |file: &&File| file.path.split('/').any(|part| NAMES.contains(&part.trim_end_matches(".rs")));
    tree.rust("").filter(vague).map(|file| format!("{}: name it by what it does", file.path)).collect()
}

fn dependencies(tree: &Tree) -> Vec<String> {
    let Some(manifest) = tree.files.get("Cargo.toml") else { return Vec::new() };
    let says_why = |text: &str| text.split_once('#').is_some_and(|(_, reason)| !reason.trim().is_empty());
    let (mut found, mut listing, mut entry) = (Vec::new(), false, String::new());
    for (line, number) in manifest.text.lines().zip(1..) {
        if line.starts_with('[') {
            let section = line.trim_start_matches('[').split(']').next().unwrap_or_default();
            listing = section.ends_with("dependencies");
            if section.contains("dependencies.") && !says_why(line) {
                found.push(format!("Cargo.toml:{number}: {section} has no `# reason`"));
            }
        } else if listing && !line.trim().is_empty() && !line.starts_with('#') {
            entry.push_str(line);
            let open = entry.matches(['[', '{']).count() > entry.matches([']', '}']).count();
            if !open && !says_why(&std::mem::take(&mut entry)) {
                found.push(format!("Cargo.toml:{number}: `{line}` has no `# reason`"));
            }
        }
    }
    found
}

fn decisions(tree: &Tree) -> Vec<String> {
    let names = tree.files.keys().filter_map(|path| path.strip_prefix("docs/decisions/")).filter(|name| *name != "README.md");
    let well_formed = |name: &str| {
        let (number, rest) = name.strip_suffix(".md")?.split_once('-')?;
        let kebab = !rest.is_empty() && rest.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        (kebab && number.len() == 4).then(|| number.parse::<usize>().ok()).flatten()
    };
    let mut found = Vec::new();
    for (name, expected) in names.zip(1..) {
        match well_formed(name) {
            None => found.push(format!("docs/decisions/{name}: must be NNNN-words-in-lower-case.md")),
            Some(number) if number != expected => found.push(format!("docs/decisions/{name}: number {expected:04} is expected here")),
            Some(_) => {}
        }
    }
    found
}

fn links(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.files.values().filter(|file| file.path.ends_with(".md")) {
        let mut fenced = false;
        for (line, number) in file.text.lines().zip(1..) {
            fenced ^= line.trim_start().starts_with("```");
            if fenced {
                continue;
            }
            // Every second piece between backticks is code.
            for target in line.split('`').step_by(2).flat_map(|prose| prose.split("](").skip(1)) {
                let target = target.split([')', ' ', '#']).next().unwrap_or_default();
                if target.is_empty() || target.contains(':') {
                    continue;
                }
                if !relative(&file.path, target).is_some_and(|path| tree.exists(&path)) {
                    found.push(format!("{}:{number}: `{target}` leads nowhere", file.path));
                }
            }
        }
    }
    found
}

/// Where a link in the file `from` leads; `None` if out of the repository.
fn relative(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

fn machine_paths(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.files.values() {
        for (line, number) in file.text.lines().zip(1..) {
            for path in MACHINE_PATHS {
                // Not as the tail of a longer path.
                let starts = |(at, _): (usize, &str)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}".contains(c));
                if line.match_indices(path).any(starts) {
                    found.push(format!("{}:{number}: {path}", file.path));
                }
            }
        }
    }
    found
}

// -------------------------------------------------------------------------------------------------------------------- tests

#[test]
fn the_tree_is_tidy() {
    let tree = Tree::read(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(tree.files.contains_key("src/lib.rs"), "the repository was not read");
    let mut report = String::new();
    for rule in RULES {
        let found = (rule.check)(&tree);
        if !found.is_empty() {
            report.push_str(&format!("\n{} ({}):\n  {}\n", rule.name, rule.why, found.join("\n  ")));
        }
    }
    assert!(report.is_empty(), "{report}");
}

#[test]
fn every_rule_can_fail_and_can_pass() {
    for rule in RULES {
        for bad in rule.bad {
            assert!(!(rule.check)(&Tree::sample(bad)).is_empty(), "{}: finds nothing in {bad:?}", rule.name);
        }
        assert_eq!((rule.check)(&Tree::sample(rule.good)), Vec::<String>::new(), "{}: {:?}", rule.name, rule.good);
        assert!(!rule.bad.is_empty() && !rule.why.is_empty(), "{}", rule.name);
    }
}

/// Every pair of rows of the table: what is not allowed is found, what is allowed is not.
#[test]
fn every_layer_is_held() {
    let file = |layer: &Layer| format!("src/{}.rs", layer.modules[0].replace("::", "/"));
    for from in LAYERS {
        assert!(!from.why.is_empty() && from.may.iter().all(|may| LAYERS.iter().any(|layer| layer.name == *may)), "{}", from.name);
        for to in LAYERS.iter().filter(|to| !["program", "map"].contains(&to.name) && to.name != from.name) {
            let text = format!("use crate::{}::Thing;", to.modules[0]);
            let found = layers(&Tree::sample(&[(&file(from), &text)]));
            assert_eq!(found.is_empty(), from.may.contains(&to.name), "{} → {}: {found:?}", from.name, to.name);
        }
    }
}

#[test]
fn every_foreign_crate_and_word_is_found() {
    for row in FOREIGN {
        let path = if row.under.ends_with('/') { format!("{}a.rs", row.under) } else { row.under.to_owned() };
        for name in row.crates {
            assert!(!foreign(&Tree::sample(&[(&path, &format!("use {name}::Thing;"))])).is_empty(), "{name} in {path}");
        }
    }
    for row in WORDS {
        let path = format!("{}a.rs", row.under);
        assert!(!words(&Tree::sample(&[(&path, &row.words.concat())])).is_empty(), "{:?}", row.words);
        for except in row.except {
            let path = if except.ends_with('/') { format!("{except}a.rs") } else { except.to_string() };
            assert!(words(&Tree::sample(&[(&path, &row.words.concat())])).is_empty(), "{:?} in {except}", row.words);
        }
    }
}
