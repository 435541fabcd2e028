//! A folder per test, small ONNX files written byte by byte, and the program started on them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use ndserve::engine::Tensor;
use ndserve::engine::onnx::{read_tensor, write_value};

/// A folder that goes away with the test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ndserve-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn write_tensor(&self, name: &str, tensor: Tensor) {
        self.write(name, write_value("", &tensor.into()));
    }

    pub(crate) fn read_tensor(&self, name: &str) -> (String, Tensor) {
        read_tensor(&fs::read(self.path(name)).unwrap(), usize::MAX).unwrap()
    }

    /// Starts the program in this folder with nothing of the test's own environment that it would read.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ndserve"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NDSERVE_")) {
            command.env_remove(name);
        }
        command.args(args).current_dir(&self.0).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How the program ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ran {
    /// It did what was asked.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// It ended with `code` and an error that has all of `parts`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "`{part}` is not in {self:?}");
        }
        self
    }
}

/// The models of the project itself.
pub(crate) fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A protobuf field of bytes: text or a message.
fn bytes(field: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3 | 2, &mut out);
    varint(content.as_ref().len() as u64, &mut out);
    out.extend_from_slice(content.as_ref());
    out
}

/// A protobuf field of a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(value, &mut out);
    out
}

/// A node: operator, inputs, outputs.
pub(crate) struct Node(pub(crate) &'static str, pub(crate) &'static [&'static str], pub(crate) &'static [&'static str]);

/// An ONNX file whose inputs and outputs are all float32 `[batch, 2]`.
pub(crate) fn onnx(nodes: &[Node], inputs: &[&str], outputs: &[&str]) -> Vec<u8> {
    let port = |field: u64, name: &str| {
        let dims = [bytes(1, bytes(2, "batch")), bytes(1, number(1, 2))].concat();
        let tensor = [number(1, 1), bytes(2, dims)].concat();
        bytes(field, [bytes(1, name), bytes(2, bytes(1, tensor))].concat())
    };
    let node = |(i, Node(op, inputs, outputs)): (usize, &Node)| {
        let mut node: Vec<u8> = inputs.iter().flat_map(|name| bytes(1, name)).collect();
        node.extend(outputs.iter().flat_map(|name| bytes(2, name)));
        node.extend(bytes(3, format!("node-{i}")));
        node.extend(bytes(4, op));
        bytes(1, node)
    };
    let mut graph: Vec<u8> = nodes.iter().enumerate().flat_map(node).collect();
    graph.extend(bytes(2, "test"));
    graph.extend(inputs.iter().flat_map(|name| port(11, name)));
    graph.extend(outputs.iter().flat_map(|name| port(12, name)));
    [number(1, 10), bytes(2, "a test"), bytes(7, graph), bytes(8, number(2, 20))].concat()
}

/// `y = x + w`, where `w` is an input with an initialiser: `[1, 2]`.
pub(crate) fn with_default() -> Vec<u8> {
    let values: Vec<u8> = [10.0_f32, 20.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let weight = [number(1, 1), number(1, 2), number(2, 1), bytes(8, "w"), bytes(9, values)].concat();
    // A message that comes twice is one: the graph gets the initialiser.
    [onnx(&[Node("Add", &["x", "w"], &["y"])], &["w", "x"], &["y"]), bytes(7, bytes(5, weight))].concat()
}

/// `a` and `b` pass through `Relu`, to `p` and `q`.
pub(crate) fn two_relus() -> Vec<u8> {
    onnx(&[Node("Relu", &["a"], &["p"]), Node("Relu", &["b"], &["q"])], &["a", "b"], &["p", "q"])
}

/// A model with an operator that nobody knows in its graph, in both branches of an If, in the body of a Loop and in a function;
/// its signature has a sequence and an optional value.
pub(crate) fn unknown_everywhere() -> Vec<u8> {
    let names = |field: u64, names: &[&str]| names.iter().flat_map(|name| bytes(field, name)).collect::<Vec<u8>>();
    let node = |op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Vec<u8>)]| {
        let attribute = |(name, graph): &(&str, Vec<u8>)| bytes(5, [bytes(1, name), number(20, 5), bytes(6, graph)].concat());
        let attributes: Vec<u8> = attributes.iter().flat_map(attribute).collect();
        [names(1, inputs), names(2, outputs), bytes(4, op), attributes].concat()
    };
    let port = |name: &str, kind: Vec<u8>| [bytes(1, name), bytes(2, kind)].concat();
    let tensor = |element: u64, dims: &[Vec<u8>]| {
        let dims: Vec<u8> = dims.iter().flat_map(|dim| bytes(1, dim)).collect();
        bytes(1, [number(1, element), bytes(2, dims)].concat())
    };
    let body = |op: &str, formals: &[&str], results: &[&str]| {
        let formals: Vec<u8> = formals.iter().flat_map(|name| bytes(11, bytes(1, name))).collect();
        let results: Vec<u8> = results.iter().flat_map(|name| bytes(12, bytes(1, name))).collect();
        [bytes(1, node(op, &["x"], &["r"], &[])), formals, results].concat()
    };
    let choose = node("If", &["c"], &["a"], &[("then_branch", body("InThen", &[], &["r"])), ("else_branch", body("InElse", &[], &["r"]))]);
    let repeat = node("Loop", &["n", "", "x"], &["b"], &[("body", body("InLoop", &["i", "keep", "v"], &["keep", "r"]))]);
    let call = [node("Local", &["x"], &["d"], &[]), bytes(7, "local")].concat();
    let nodes = [node("InGraph", &["x"], &["g"], &[]), choose, repeat, call, node("Sum", &["g", "a", "b", "d"], &["y"], &[])];
    let rows = tensor(1, &[bytes(2, "batch"), number(1, 2)]);
    let inputs =
        [port("x", rows.clone()), port("list", bytes(4, bytes(1, tensor(1, &[])))), port("c", tensor(9, &[])), port("n", tensor(7, &[]))];
    let outputs = [port("y", rows), port("maybe", bytes(9, bytes(1, tensor(7, &[]))))];
    let mut graph: Vec<u8> = nodes.iter().flat_map(|node| bytes(1, node)).collect();
    graph.extend(inputs.iter().flat_map(|input| bytes(11, input)));
    graph.extend(outputs.iter().flat_map(|output| bytes(12, output)));
    let import = |domain: &str, version: u64| [bytes(1, domain), number(2, version)].concat();
    let function = [
        bytes(1, "Local"),
        bytes(4, "x"),
        bytes(5, "r"),
        bytes(7, node("InFunction", &["x"], &["r"], &[])),
        bytes(9, import("", 20)),
        bytes(10, "local"),
    ];
    let property = |key: &str, value: &str| bytes(14, [bytes(1, key), bytes(2, value)].concat());
    [
        number(1, 10),
        bytes(2, "a test"),
        bytes(6, "two lines\nof words"),
        bytes(7, graph),
        bytes(8, import("", 20)),
        bytes(8, import("local", 3)),
        property("author", "nobody"),
        property("version", "7"),
        bytes(25, function.concat()),
    ]
    .concat()
}
