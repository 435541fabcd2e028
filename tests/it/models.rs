//! Model folders for the tests: the repository's own models, and identities of every kind of input, written here as ONNX.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Every type with a form in the Open Inference protocol: its name there and its number in `TensorProto.DataType`.
pub(crate) const TYPES: [(&str, u64); 14] = [
    ("FP32", FLOAT),
    ("UINT8", UINT8),
    ("INT8", 3),
    ("UINT16", 4),
    ("INT16", 5),
    ("INT32", 6),
    ("INT64", INT64),
    ("BYTES", STRING),
    ("BOOL", BOOL),
    ("FP16", FLOAT16),
    ("FP64", 11),
    ("UINT32", 12),
    ("UINT64", 13),
    ("BF16", 16),
];

/// Numbers of `TensorProto.DataType`.
const FLOAT: u64 = 1;
const UINT8: u64 = 2;
const INT64: u64 = 7;
const STRING: u64 = 8;
const BOOL: u64 = 9;
const FLOAT16: u64 = 10;

/// A folder that is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl std::ops::Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A new folder in cargo's folder for tests.
pub(crate) fn new_folder() -> Folder {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("it-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    Folder(folder)
}

/// A folder of some of the repository's models.
pub(crate) fn only(names: &[&str]) -> Folder {
    let folder = new_folder();
    for name in names {
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name), &folder.join(name));
    }
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A folder of the repository's models and one identity per kind of input:
/// `pair` (x: FP32 [batch, 2], n: INT64 [batch, 1], in two versions), `bytes` (UINT8 [batch, 3]), `text` (BYTES [batch]),
/// `flags` (BOOL [batch, 2]), `half` (FP16 [batch, 2]), `any` (FP32 [batch, w]), `types` (one input [batch, 2] of each of
/// [`TYPES`], named after it), `typed` (the same without the half floats, which gRPC has no typed contents for), `scaled` (x: FP32 [batch, 2] times twice the optional w, 1.5 by default), `broken` (no model at all).
pub(crate) fn folder() -> Folder {
    let folder = only(&["two-features", "digits", "breast-cancer", "diabetes"]);
    let pair = [("x", FLOAT, &[2][..]), ("n", INT64, &[1])];
    write(&folder, "pair", "1", &pair);
    write(&folder, "pair", "2", &pair);
    fs::write(folder.join("pair/model.toml"), "versions = \"all\"\nmax_batch_rows = 4\n").unwrap();
    write(&folder, "bytes", "1", &[("b", UINT8, &[3])]);
    write(&folder, "text", "1", &[("s", STRING, &[])]);
    write(&folder, "flags", "1", &[("f", BOOL, &[2])]);
    write(&folder, "half", "1", &[("h", FLOAT16, &[2])]);
    write(&folder, "any", "v1.2", &[("x", FLOAT, &[0])]);
    write_scaled(&folder);
    let types = TYPES.map(|(name, number)| (name, number, &[2][..]));
    write(&folder, "types", "1", &types);
    let typed: Vec<Tensor<'_>> = types.into_iter().filter(|(name, ..)| !matches!(*name, "FP16" | "BF16")).collect();
    write(&folder, "typed", "1", &typed);
    fs::create_dir_all(folder.join("broken/1")).unwrap();
    fs::write(folder.join("broken/1/model.onnx"), b"not a model").unwrap();
    folder
}

/// A name, an element type, and the dimensions behind the batch; 0 is a free one.
type Tensor<'a> = (&'a str, u64, &'a [u64]);

/// Writes a model that answers each input `x` as `x_out`.
fn write(folder: &Path, name: &str, version: &str, tensors: &[Tensor<'_>]) {
    let mut graph = Message::default();
    for (tensor, ..) in tensors {
        let mut node = Message::default();
        node.text(1, tensor).text(2, &format!("{tensor}_out")).text(3, tensor).text(4, "Identity");
        graph.message(1, &node);
    }
    graph.text(2, name);
    for (tensor, dtype, dims) in tensors {
        graph.message(11, &value_info(tensor, *dtype, dims));
        graph.message(12, &value_info(&format!("{tensor}_out"), *dtype, dims));
    }
    save(&folder.join(name).join(version), &graph);
}

/// Writes a version that answers `y = factor · x` to FP32 rows of two.
pub(crate) fn scaled(model: &Path, version: &str, factor: f32) {
    let mut node = Message::default();
    node.text(1, "x").text(1, "factor").text(2, "y").text(3, "scale").text(4, "Mul");
    let mut constant = Message::default();
    constant.number(2, FLOAT).text(8, "factor").bytes(9, &factor.to_le_bytes());
    let mut graph = Message::default();
    graph.message(1, &node).text(2, "scaled").message(5, &constant);
    graph.message(11, &value_info("x", FLOAT, &[2])).message(12, &value_info("y", FLOAT, &[2]));
    save(&model.join(version), &graph);
}

/// Writes the model file of a graph, whole or not at all.
fn save(folder: &Path, graph: &Message) {
    let mut opset = Message::default();
    opset.text(1, "").number(2, 17);
    let mut model = Message::default();
    model.number(1, 8).message(7, graph).message(8, &opset);
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(".model.onnx"), model.0).unwrap();
    fs::rename(folder.join(".model.onnx"), folder.join("model.onnx")).unwrap();
}

/// Writes a model that has an initialiser among its inputs.
fn write_scaled(folder: &Path) {
    let mut graph = Message::default();
    for (op, inputs, output) in [("Add", ["w", "w"], "s"), ("Mul", ["x", "s"], "y")] {
        let mut node = Message::default();
        node.text(1, inputs[0]).text(1, inputs[1]).text(2, output).text(4, op);
        graph.message(1, &node);
    }
    let mut weight = Message::default();
    weight.number(1, 1).number(2, FLOAT).text(8, "w").bytes(9, &1.5_f32.to_le_bytes());
    graph.text(2, "scaled").message(5, &weight);
    for (field, name, dims) in [(11, "x", &[2][..]), (11, "w", &[]), (12, "y", &[2])] {
        graph.message(field, &value_info(name, FLOAT, dims));
    }
    save(&folder.join("scaled").join("1"), &graph);
}

fn value_info(name: &str, dtype: u64, dims: &[u64]) -> Message {
    let mut shape = Message::default();
    let mut batch = Message::default();
    batch.text(2, "batch");
    shape.message(1, &batch);
    for &size in dims {
        let mut dim = Message::default();
        if size == 0 {
            dim.text(2, "width")
        } else {
            dim.number(1, size)
        };
        shape.message(1, &dim);
    }
    let (mut tensor, mut kind, mut info) = (Message::default(), Message::default(), Message::default());
    tensor.number(1, dtype).message(2, &shape);
    kind.message(1, &tensor);
    info.text(1, name).message(2, &kind);
    info
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) -> &mut Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(&mut self, field: u64, text: &str) -> &mut Self {
        self.bytes(field, text.as_bytes())
    }

    fn message(&mut self, field: u64, message: &Self) -> &mut Self {
        self.bytes(field, &message.0)
    }
}
