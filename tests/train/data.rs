//! Kinds of data, and data that is more than memory holds.

use std::fs;
use std::sync::Arc;

use image::{GrayImage, Luma};
use ndserve::engine::{Tensor, npz};
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::fixture::Folder;
use crate::runs::{TABLE, pictures, table};

/// As [`table`], with dates.
fn dated() -> String {
    let mut text = "size,when,seen,colour,label\n".to_owned();
    for i in 0..120_usize {
        let class = i % 2;
        let size = if i % 11 == 3 { String::new() } else { format!("{}", 3 * i % 50) };
        let colour = ["red", "green", "blue"][i % 3];
        let (month, day) = (1 + (i * 5) % 6 + 6 * class, 1 + (i * 7) % 28);
        text.push_str(&format!(
            "{size},2025-{month:02}-{day:02},{day:02}.{month:02}.2024 1{}:30,{colour},{}\n",
            i % 10,
            ["no", "yes"][class]
        ));
    }
    text
}

const DATED: &str = "[data]\npath = \"data.csv\"\ntarget = \"label\"\nvalidation = 0.2\ntest = 0.2\nfolds = 2\n\
                     [prepare]\nmissing = \"median\"\nindicator = true\nclip = [0.02, 0.98]\n[prepare.columns.colour]\nencode = \"ordinal\"\n\
                     [[layer]]\nkind = \"dense\"\nunits = 8\nactivation = \"relu\"\n\
                     [train]\nepochs = 40\nbatch = 16\nlearning_rate = 0.02\nseed = 3\n";

#[test]
fn dates_become_days_inside_the_model() {
    let folder = Folder::new().with("data.csv", dated()).with("train.toml", DATED);
    let report = folder.done("model");
    assert!(report.test.unwrap().1 >= 0.9, "{report:?}");
    let texts = |a: &str, b: &str| Tensor::new(&[2, 1], vec![a.to_owned(), b.to_owned()]).unwrap();
    let size = Tensor::new(&[2, 1], vec![20.0_f32, f32::NAN]).unwrap();
    let answer = folder
        .answer("model", &[size, texts("2025-03-05", "2025-10-20"), texts("05.03.2024 12:30", "20.10.2024 15:30"), texts("red", "purple")]);
    assert!(answer[0] > 0.5 && answer[3] > 0.5, "{answer:?}");
}

/// What is said of all columns holds for those of which it can be said.
#[test]
fn how_texts_are_encoded_can_be_said_of_all_columns_of_a_mixed_table() {
    let rows: String = (0..40).map(|i| format!("{i},{:02}/11/2026,{},{}\n", 1 + i % 28, ["red", "blue"][i % 2], i % 2)).collect();
    for (rule, parts) in [
        (
            "encode = \"ordinal\"",
            ["size    → numbers", "seen    → texts, a number for each of 28", "colour  → texts, a number for each of 2"],
        ),
        ("date = \"dmy\"", ["size    → numbers", "seen    → dates", "colour  → texts, a column for each of 2"]),
    ] {
        let config =
            format!("[data]\npath = \"data.csv\"\ntarget = \"label\"\n[prepare]\n{rule}\n[train]\nepochs = 1\nlearning_rate = 0.1\n");
        let folder = Folder::new().with("data.csv", format!("size,seen,colour,label\n{rows}")).with("train.toml", config);
        let (config, _) = ndserve::train::Config::read(&folder.0.join("train.toml")).unwrap();
        let text = ndserve::train::report::report(&config, usize::MAX).unwrap().text;
        // A column has two lines: what it holds, and behind an arrow what it becomes.
        let lines: Vec<&str> = text.lines().skip(2).collect();
        let becomes: Vec<String> =
            lines.chunks(2).take(3).map(|pair| format!("{:8}{}", pair[0].split(' ').next().unwrap(), pair[1].trim_start())).collect();
        assert!(becomes.iter().zip(parts).all(|(line, part)| line.starts_with(part)), "{rule}: {becomes:?}");
        folder.done("model");
    }
}

/// What is read in parts gives the same bits as what is in memory.
#[test]
fn data_that_is_more_than_memory_holds_gives_the_same_model() {
    let table_of = |rows: usize| {
        let mut text = "a,b,kind,y\n".to_owned();
        for i in 0..rows {
            let a = (i * 7919) % 1009;
            let b = if i % 13 == 5 { String::new() } else { ((i * 104_729) % 877).to_string() };
            text.push_str(&format!("{a},{b},{},{}\n", ["x", "y", "z"][i % 3], a > 500));
        }
        text
    };
    let config = "[data]\npath = \"data.csv\"\ntarget = \"y\"\ntest_path = \"more.csv\"\nvalidation = 0.1\n[prepare]\nmissing = \"drop\"\nclip = [0.01, 0.99]\n\
                  [train]\nepochs = 2\nbatch = 256\nlearning_rate = 0.01\n";
    let mut folder = Folder::new().with("data.csv", table_of(20_000)).with("more.csv", table_of(9_000)).with("train.toml", config);
    let whole = folder.done("whole/model");
    folder.1 = 1 << 10;
    let parts = folder.done("parts/model");
    assert_eq!((parts.history, parts.test, parts.rows), (whole.history, whole.test, whole.rows));
    assert!(folder.model("whole/model") == folder.model("parts/model"), "parts give other bits");
    let left: Vec<_> = fs::read_dir(folder.0.join("parts/model")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
    // An array too.
    let config = "[data]\npath = \"data.npz\"\ntarget = \"label\"\ntask = \"classify\"\ntest = 0.25\n[prepare]\nscale = \"standard\"\n\
                  [[layer]]\nkind = \"flatten\"\n[train]\nepochs = 3\nbatch = 12\nlearning_rate = 0.02\n";
    let mut folder = Folder::new().with("data.npz", pictures()).with("train.toml", config);
    let whole = folder.done("whole/model");
    folder.1 = 16;
    let parts = folder.done("parts/model");
    assert_eq!((parts.history, parts.test, parts.rows), (whole.history, whole.test, whole.rows));
    assert!(folder.model("whole/model") == folder.model("parts/model"), "parts give other bits");
}

/// The table of [`table`] as a file of two row groups.
pub(crate) fn parquet(text: &str) -> Vec<u8> {
    parquet_packed(text, Compression::SNAPPY)
}

fn parquet_packed(text: &str, compression: Compression) -> Vec<u8> {
    let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split(',').collect()).collect();
    let schema = "message rows { optional double size; required binary colour (STRING); required binary label (STRING); required int32 weight (DATE); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    for rows in rows.chunks(40) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let sizes: Vec<f64> = rows.iter().filter_map(|row| row[0].parse().ok()).collect();
        let levels: Vec<i16> = rows.iter().map(|row| i16::from(!row[0].is_empty())).collect();
        column.typed::<DoubleType>().write_batch(&sizes, Some(&levels), None).unwrap();
        column.close().unwrap();
        for at in [1, 2] {
            let mut column = group.next_column().unwrap().unwrap();
            let texts: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(row[at])).collect();
            column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
            column.close().unwrap();
        }
        let mut column = group.next_column().unwrap().unwrap();
        let numbers: Vec<i32> = rows.iter().map(|row| row[3].parse().unwrap()).collect();
        column.typed::<Int32Type>().write_batch(&numbers, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

/// A table is the same table in every format, compressed or not.
#[test]
fn formats_of_tables_give_the_same_model() {
    let packed = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, table().as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let mut folder = Folder::new().with("data.csv", table()).with("data.csv.gz", packed);
    let compressions = [
        ("none.parquet", Compression::UNCOMPRESSED),
        ("snappy.parquet", Compression::SNAPPY),
        ("gzip.parquet", Compression::GZIP(GzipLevel::default())),
        ("zstd.parquet", Compression::ZSTD(ZstdLevel::default())),
    ];
    for (name, compression) in compressions {
        folder = folder.with(name, parquet_packed(&table(), compression));
    }
    let parameters = |name: &str| {
        let folder = &folder.0.join("train.toml");
        fs::write(folder, TABLE.replace("data.csv", name)).unwrap();
    };
    parameters("data.csv");
    let want = folder.done("csv/model");
    for name in ["data.csv.gz"].into_iter().chain(compressions.map(|(name, _)| name)) {
        parameters(name);
        let found = folder.done(&format!("of-{name}/model"));
        assert_eq!((found.history, found.test, found.rows), (want.history.clone(), want.test, want.rows), "{name}");
    }
}

#[test]
fn a_folder_of_pictures_by_class_is_data() {
    let folder = Folder::new();
    for i in 0..40_u32 {
        let (class, at) = (i % 2, (i / 2) % 6);
        let pixel = |x: u32, y: u32| Luma([if (if class == 0 { y } else { x }) == at { 220 } else { ((x * 31 + y * 17 + i) % 40) as u8 }]);
        let path = folder.0.join(["pictures/column", "pictures/row"][1 - class as usize]);
        fs::create_dir_all(&path).unwrap();
        GrayImage::from_fn(6, 6, pixel).save(path.join(format!("{i:02}.png"))).unwrap();
    }
    fs::write(folder.0.join("pictures/row/notes.txt"), "no picture").unwrap();
    let config = "[data]\npath = \"pictures\"\ntest = 0.25\n[prepare]\nscale = \"min_max\"\n\
                  [[layer]]\nkind = \"conv\"\nfilters = 6\nkernel = 3\npadding = \"same\"\nactivation = \"relu\"\n[[layer]]\nkind = \"max_pool\"\nkernel = 2\n[[layer]]\nkind = \"flatten\"\n\
                  [train]\nepochs = 30\nbatch = 10\nlearning_rate = 0.02\nseed = 5\n";
    let folder = folder.with("train.toml", config);
    let report = folder.done("model");
    assert_eq!(report.rows, [30, 0, 10]);
    assert!(report.test.unwrap().1 >= 0.9, "{report:?}");
    let settings = fs::read_to_string(folder.0.join("model/model.toml")).unwrap();
    assert!(settings.contains("labels = [\"column\", \"row\"]"), "{settings}");
    // Another size is refused by the file's name, or brought to one.
    GrayImage::new(9, 4).save(folder.0.join("pictures/row/odd.png")).unwrap();
    let error = folder.train("model", false, 0, 1).unwrap_err();
    assert!(error.contains("odd.png: 4 × 9 pixels where the first picture has 6 × 6"), "{error}");
    let folder = folder.with("train.toml", config.replace("test = 0.25", "test = 0.25\nsize = [6, 6]\nchannels = 3"));
    assert_eq!(folder.done("model").rows.iter().sum::<usize>(), 41);
    fs::write(folder.0.join("pictures/row/odd.png"), "no picture").unwrap();
    assert!(folder.train("model", false, 0, 1).unwrap_err().contains("odd.png"));
}

/// Each error names file, row, column or array.
#[test]
fn what_is_wrong_with_data_is_named() {
    let least = "[data]\npath = \"data.npz\"\ntarget = \"y\"\n[train]\nepochs = 3\nlearning_rate = 0.1\n";
    let array = |name: &'static str, shape: &[usize]| (name, Tensor::new(shape, vec![0.0_f32; shape.iter().product()]).unwrap());
    for (arrays, message) in [
        (vec![array("x", &[4, 2])], "there is no array `y`; there are `x`"),
        (vec![array("x", &[4, 2]), array("y", &[3])], "array `y` has shape [3]; one value for each of 4 rows is wanted"),
        (vec![array("x", &[4]), array("y", &[4])], "array `x` has shape [4]; a dimension for rows"),
        (vec![array("x", &[4, 2]), array("z", &[4]), array("y", &[4])], "`inputs` must name one"),
    ] {
        let named: Vec<(&str, &Tensor)> = arrays.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let folder = Folder::new().with("data.npz", npz::write(&named).unwrap()).with("train.toml", least);
        let error = folder.train("model", false, 0, 1).unwrap_err();
        assert!(error.contains(message), "{message}: {error}");
    }
    let mut rows = "a,kind,y\n".to_owned();
    (0..40).for_each(|i| rows.push_str(&format!("{i},{},{}\n", if i == 39 { "rare" } else { "usual" }, i % 2)));
    let csv =
        least.replace("data.npz", "data.csv").replace("target = \"y\"", "target = \"y\"\ntest_path = \"test.csv\"\ntask = \"classify\"");
    for (train, test, config, message) in [
        (rows.clone(), "a,kind,y\n1,new,0\n".to_owned(), csv.clone(), "test.csv: row 1: `kind` is \"new\", which no training row has"),
        (
            rows.clone(),
            "a,kind,y\n1,usual,2\n".to_owned(),
            csv.clone(),
            "test.csv: row 1: the target `y` is \"2\", which no training row has",
        ),
        // A row that is left out counts all the same.
        (
            rows.clone(),
            "a,kind,y\n,usual,1\n1,new,0\n".to_owned(),
            format!("{csv}[prepare]\nmissing = \"drop\"\n"),
            "test.csv: row 2: `kind` is \"new\"",
        ),
        (rows.clone(), "a,kind\n1,usual\n".to_owned(), csv.clone(), "test.csv: there is no column `y`"),
        (rows.clone(), "a,y\n1,1\n".to_owned(), csv.clone(), "test.csv: there is no column `kind`"),
        (rows.clone(), "a,kind,y\nx,usual,1\n".to_owned(), csv.clone(), "test.csv: column `a`: numbers in one file, text in the other"),
        (rows.clone(), "a,kind,y\n1,usual,x\n".to_owned(), csv.clone(), "test.csv: the target `y`: numbers in one file, text in the other"),
        // Rows were counted on from the first file's, or without those that are left out.
        (rows.clone(), "a,kind,y\n1,usual,1\n2,usual,\n".to_owned(), csv.clone(), "test.csv: row 2: the target `y` is missing"),
        (rows.clone(), "a,kind,y\n1,usual,1\n,usual,1\n".to_owned(), csv.clone(), "test.csv: row 2: `a` is missing"),
        (
            rows.replace("\n3,usual", "\n,usual").replace("\n7,usual,1", "\n7,usual,"),
            rows.clone(),
            format!("{csv}[prepare]\nmissing = \"drop\"\n"),
            "data.csv: row 8: the target `y` is missing",
        ),
        (rows.replace("\n17,", "\n1O,"), rows.clone(), csv.clone(), "line 19: column `a` is \"1O\", which is no number"),
        (rows.clone(), rows.clone(), format!("{csv}[prepare.columns.kind]\nencode = \"date\"\n"), "column `kind`: \"usual\" is no date"),
        // It was taken without a word, and did nothing.
        (
            rows.clone(),
            rows.clone(),
            format!("{csv}[prepare.columns.kind]\nlog = true\n"),
            "column `kind`: `log` is for numbers; its values are texts",
        ),
        (rows.clone(), rows.clone(), csv.replace("data.csv", "data.xls"), "data.xls: no such file or folder"),
        (rows.clone(), rows.clone(), csv.replace("data.csv", "train.toml"), "the kind of data is not known"),
    ] {
        let folder = Folder::new().with("data.csv", train).with("test.csv", test).with("train.toml", &config);
        let error = folder.train("model", false, 0, 1).unwrap_err();
        assert!(error.contains(message), "{message}: {error}");
        assert!(!folder.0.join("model/1").exists(), "{message}: a model was written");
    }
    // What is read in parts is held to the same.
    for (test, message) in [
        ("a,y\n1,1\n", "test.csv: there is no column `kind`"),
        ("a,kind,y\nx,usual,1\n", "test.csv: column `a`: numbers in one file, text in the other"),
        ("a,kind,y\n1,usual,x\n", "test.csv: the target `y`: numbers in one file, text in the other"),
    ] {
        let mut folder = Folder::new().with("data.csv", rows.clone()).with("test.csv", test).with("train.toml", &csv);
        folder.1 = 0;
        let error = folder.train("model", false, 0, 1).unwrap_err();
        assert!(error.contains(message), "{message}: {error}");
    }
    let allowed = format!("{csv}[prepare.columns.kind]\nunknown = \"allow\"\n");
    let folder = Folder::new().with("data.csv", rows).with("test.csv", "a,kind,y\n1,new,0\n").with("train.toml", allowed);
    assert!(folder.train("model", false, 0, 1).is_ok());
}

/// Read in parts, the columns of the second file were taken by their places and not by their names.
#[test]
fn the_columns_of_a_file_of_test_rows_may_stand_in_another_order() {
    let rows = |order: &[usize]| {
        let line = |cells: [String; 3]| order.iter().map(|&at| cells[at].clone()).collect::<Vec<_>>().join(",") + "\n";
        let row = |i: u32| line([(50 + i % 7).to_string(), format!("0.{}", i % 9), (i % 2).to_string()]);
        line(["a", "b", "y"].map(str::to_owned)) + &(0..40).map(row).collect::<String>()
    };
    let config = "[data]\npath = \"data.csv\"\ntarget = \"y\"\ntest_path = \"test.csv\"\ntask = \"classify\"\n[train]\nepochs = 4\nlearning_rate = 0.1\n";
    let report = |order: &[usize], memory| {
        let mut folder = Folder::new().with("data.csv", rows(&[0, 1, 2])).with("test.csv", rows(order)).with("train.toml", config);
        folder.1 = memory;
        folder.done("model")
    };
    let want = report(&[0, 1, 2], usize::MAX);
    for memory in [usize::MAX, 0] {
        assert_eq!(report(&[2, 1, 0], memory).test, want.test, "{memory}");
    }
}

/// The card told a command that found no data beside the copy of its configuration.
#[test]
fn the_card_of_a_model_elsewhere_says_where_its_configuration_belongs() {
    let folder = Folder::new().with("data.csv", table()).with("train.toml", TABLE);
    folder.done("elsewhere");
    let card = fs::read_to_string(folder.0.join("elsewhere/README.md")).unwrap();
    assert!(card.contains("again, put `train.toml` where its paths lead to the data:"), "{card}");
    folder.done(".");
    let card = fs::read_to_string(folder.0.join("README.md")).unwrap();
    assert!(card.contains("To make everything here again:"), "{card}");
}
