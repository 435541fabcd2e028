//! The codec against tables, against `serde_json`, and against hostile bytes.

use proptest::prelude::*;

use super::{JsonError, Nested, Reader, Result, Writer};
use crate::engine::{Buffer, DType, Element, Slice, Tensor};

fn read(text: &str, dtype: DType) -> Result<(Buffer, Nested)> {
    let mut reader = Reader::new(text.as_bytes());
    let read = reader.tensor(dtype, 0)?;
    reader.end()?;
    Ok(read)
}

fn values<T: Element>(text: &str) -> Vec<T> {
    T::into_vec(read(text, T::DTYPE).unwrap().0).unwrap()
}

fn message(text: &str, dtype: DType) -> String {
    read(text, dtype).unwrap_err().under("data").describe()
}

#[test]
fn nesting_gives_the_shape() {
    for (text, shape) in [
        ("3", &[][..]),
        ("[]", &[0]),
        ("[1, 2,3 ]", &[3]),
        ("[[1,2],[3,4],[5,6]]", &[3, 2]),
        ("[[],[]]", &[2, 0]),
        (" [ [ [ 1 ] ] , [ [ 2 ] ] ] ", &[2, 1, 1]),
    ] {
        assert_eq!(read(text, DType::F32).unwrap().1.as_slice(), shape, "{text}");
    }
}

#[test]
fn a_word_that_begins_like_a_literal_is_no_value() {
    let told = |text: &str| Reader::new(text.as_bytes()).object(|reader, _| reader.skip()).unwrap_err().describe();
    assert!(told("null").contains("is null where an object is wanted"), "{}", told("null"));
    for (text, want) in [("not json", "expected `null`, found `o` at byte 1"), ("frog", "expected `false`, found `r` at byte 1")] {
        assert!(told(text).contains(want), "{}", told(text));
    }
}

#[test]
fn what_is_wrong_with_an_array_is_named_with_its_path() {
    use DType::{Bool, F32, I64, String, U8};
    for (text, dtype, want) in [
        ("[[[1,2,3,4],[1,2,3]]]", F32, "data[0][1] has 3 elements where 4 are wanted (byte 12)"),
        ("[[1,2],[3]]", F32, "data[1] has 1 element where 2 are wanted (byte 7)"),
        ("[[1],2]", F32, "data[1] is a number where an array is wanted (byte 5)"),
        ("[1,[2]]", F32, "data[1] is an array where a number (float32) is wanted (byte 3)"),
        ("[[1],[[2]]]", F32, "data[1][0] is an array where a number (float32) is wanted (byte 6)"),
        ("[[[1]],[2]]", F32, "data[1][0] is a number where an array is wanted (byte 8)"),
        ("[[],[[1]]]", F32, "data[1] has 1 element where 0 are wanted (byte 4)"),
        ("[1, \"2\"]", F32, "data[1] is a string where a number (float32) is wanted (byte 4)"),
        ("[null]", F32, "data[0] is null where a number (float32) is wanted (byte 1)"),
        ("{}", F32, "data is an object where a number (float32) is wanted (byte 0)"),
        ("[0,1,2,1e999]", F32, "data[3] is 1e999, out of range of float32 (byte 7)"),
        ("[1e39]", F32, "data[0] is 1e39, out of range of float32 (byte 1)"),
        ("[3.4028236e38]", F32, "data[0] is 3.4028236e38, out of range of float32 (byte 1)"),
        ("[1,2,300]", U8, "data[2] is 300, out of range of uint8 (0 to 255) (byte 5)"),
        ("[-1]", U8, "data[0] is -1, out of range of uint8 (0 to 255) (byte 1)"),
        ("[9223372036854775808]", I64, "data[0] is 9223372036854775808, out of range of int64"),
        ("[1e30]", I64, "data[0] is 1e30, out of range of int64"),
        ("[1.5]", I64, "data[0] is 1.5 where a whole number (int64) is wanted (byte 1)"),
        ("[NaN]", I64, "data[0] is NaN where a whole number (int64) is wanted (byte 1)"),
        ("[-Infinity]", I64, "data[0] is -Infinity where a whole number (int64) is wanted (byte 1)"),
        ("[true]", I64, "data[0] is a boolean where a whole number (int64) is wanted (byte 1)"),
        ("[2]", Bool, "data[0] is a number other than 0 and 1 where true or false is wanted (byte 1)"),
        ("[\"true\"]", Bool, "data[0] is a string where true or false is wanted (byte 1)"),
        ("[3]", String, "data[0] is a number where a string is wanted (byte 1)"),
        ("[1,]", F32, "the body is not valid JSON: expected a number, found `]` at byte 3"),
        ("[1", F32, "the body is not valid JSON: expected `,` or `]`, found the end at byte 2"),
        ("[01]", F32, "the body is not valid JSON: a number must not begin with a superfluous zero at byte 1"),
        ("[1.]", F32, "the body is not valid JSON: expected a digit, found `]` at byte 3"),
        ("[-]", F32, "the body is not valid JSON: expected a digit, found `]` at byte 2"),
        ("[+1]", F32, "the body is not valid JSON: expected a number, found `+` at byte 1"),
        ("[1e]", F32, "the body is not valid JSON: expected a digit, found `]` at byte 3"),
        ("[.5]", F32, "the body is not valid JSON: expected a number, found `.` at byte 1"),
        ("[NaM]", F32, "the body is not valid JSON: expected `NaN`, found `M` at byte 3"),
        ("[nan]", F32, "the body is not valid JSON: expected `null`, found `a` at byte 2"),
        ("[1] 2", F32, "the body is not valid JSON: expected the end, found `2` at byte 4"),
        ("", F32, "the body is not valid JSON: expected a number, found the end at byte 0"),
    ] {
        let got = message(text, dtype);
        assert!(got.starts_with(want), "{text}\n got: {got}\nwant: {want}");
    }
    assert!(message(&"[".repeat(200), F32).contains("nested deeper than 100 levels at byte 100"));
}

#[test]
fn numbers_of_every_kind_are_read() {
    assert_eq!(values::<u8>("[0,255,1.0,2e1,100e-1,-0]"), [0, 255, 1, 20, 10, 0]);
    assert_eq!(values::<i64>("[-9223372036854775808,9223372036854775807,9007199254740993.0]"), [i64::MIN, i64::MAX, (1 << 53) + 1]);
    assert_eq!(values::<u64>("[18446744073709551615]"), [u64::MAX]);
    assert_eq!(values::<bool>("[true,false,1,0]"), [true, false, true, false]);
    assert_eq!(values::<f32>("[Infinity,-Infinity,1e-60,-0.0,0e9999]"), [f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 0.0]);
    assert!(values::<f32>("[NaN]")[0].is_nan());
    assert!(values::<f64>("-0.0")[0].is_sign_negative());
    assert_eq!(values::<half::f16>("[0.1,65504]"), [half::f16::from_f32(0.1), half::f16::MAX]);
    assert!(message("[65520]", DType::F16).contains("is 65520, out of range of float16"));
}

#[test]
fn decimals_next_to_the_middle_of_two_floats_round_to_the_nearest() {
    // Double rounding would go to even in the first three; the others are the limits of the fast paths.
    for text in [
        "16777217",
        "16777217.0000000001",
        "16777216.9999999999",
        "1.00000005960464477539",
        "1.000000059604644775390625",
        "1.0000000596046448",
        "0.1234567890123456789",
        "9007199254740993",
        "1.1754943508222875e-38",
        "1.1754943e-38",
        "1e-45",
        "7e-46",
        "3.4028235e38",
        "123456789012345678901234567890",
        "0.00000000000000000000000000000000000001",
        "9007199254740992e22",
        "1e23",
        "8.98846567431158e307",
    ] {
        assert_eq!(values::<f64>(text)[0].to_bits(), text.parse::<f64>().unwrap().to_bits(), "{text} as float64");
        let want = text.parse::<f32>().unwrap();
        if want.is_finite() {
            assert_eq!(values::<f32>(text)[0].to_bits(), want.to_bits(), "{text} as float32");
        }
    }
}

#[test]
fn strings_are_decoded_and_encoded() {
    assert_eq!(values::<String>(r#"["a\"\\\/\b\f\n\r\té","\u00e9\ud83d\ude00",""]"#), ["a\"\\/\u{8}\u{c}\n\r\té", "é😀", ""]);
    for (text, want) in [
        (r#"["\ud800"]"#, "half of a surrogate pair"),
        (r#"["\udc00\ud800"]"#, "half of a surrogate pair"),
        (r#"["\ud800\u0041"]"#, "half of a surrogate pair"),
        (r#"["\u12g4"]"#, "expected a hexadecimal digit, found `g` at byte 6"),
        (r#"["\x"]"#, "after a backslash, found `x` at byte 3"),
        ("[\"a\nb\"]", "control character must be escaped in a string at byte 3"),
        ("[\"abc", "the string does not end; found the end at byte 5"),
        ("[\"\\", "found the end"),
    ] {
        let got = message(text, DType::String);
        assert!(got.contains(want), "{text}: {got}");
    }
    let error = Reader::new(b"\"a\xff\"").string().unwrap_err();
    assert_eq!((error.is_syntax(), error.at()), (true, 2));
    let mut writer = Writer::default();
    writer.string("a\"\\\n\r\t\u{1}\u{1f}é😀");
    assert_eq!(writer.into_bytes(), "\"a\\\"\\\\\\n\\r\\t\\u0001\\u001fé😀\"".as_bytes());
}

#[test]
fn objects_and_arrays_are_pulled() {
    let text = br#" { "a" : [ 1 , {"x": null} , [] ] , "b\u0041":true,"c":18446744073709551615 } "#;
    let mut keys = Vec::new();
    let mut reader = Reader::new(text);
    reader
        .object(|reader, key| {
            keys.push(key.to_string());
            match &*key {
                "c" => {
                    assert_eq!(reader.unsigned()?, u64::MAX);
                    Ok(())
                }
                _ => reader.skip(),
            }
        })
        .unwrap();
    reader.end().unwrap();
    assert_eq!(keys, ["a", "bA", "c"]);
    for text in ["{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "{\"a\":1 \"b\":2}", "{", "{\"a\":1", "[1 2]", "[tru]", "nul", "[1,,2]"] {
        let mut reader = Reader::new(text.as_bytes());
        assert!(reader.skip().is_err_and(|error| error.is_syntax()), "{text}");
    }
}

#[test]
fn special_values_and_shapes_are_written() {
    let text = |tensor: &Tensor| {
        let mut writer = Writer::default();
        writer.tensor(tensor);
        String::from_utf8(writer.into_bytes()).unwrap()
    };
    let floats = Tensor::new(&[2, 3], vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.1, 5.0, -1e-7]).unwrap();
    assert_eq!(text(&floats), "[[NaN,Infinity,-Infinity],[0.1,5.0,-1e-7]]");
    assert_eq!(text(&Tensor::zeros(DType::F32, &[0, 3])), "[]");
    assert_eq!(text(&Tensor::zeros(DType::F32, &[2, 0])), "[[],[]]");
    assert_eq!(text(&Tensor::vector(vec![i64::MIN, 0, i64::MAX])), "[-9223372036854775808,0,9223372036854775807]");
    assert_eq!(text(&Tensor::vector(vec![true, false])), "[true,false]");
    assert_eq!(text(&Tensor::scalar("a".to_owned())), "\"a\"");
    assert_eq!(text(&Tensor::scalar(half::f16::from_f32(0.5))), "0.5");
}

fn shapes() -> impl Strategy<Value = Vec<usize>> {
    // A zero in the middle cannot be told from the text, so only the last dimension may be 0.
    (prop::collection::vec(1_usize..4, 0..4), prop::option::of(0_usize..2)).prop_map(|(mut shape, last)| {
        shape.extend(last);
        shape
    })
}

fn tensors() -> impl Strategy<Value = Tensor> {
    // Complex numbers have no JSON form.
    let dtypes: Vec<DType> = DType::ALL.iter().copied().filter(|dtype| !matches!(dtype, DType::C64 | DType::C128)).collect();
    (shapes(), prop::sample::select(dtypes), any::<u64>()).prop_map(|(shape, dtype, seed)| {
        let len: usize = shape.iter().product();
        let mut state = seed;
        let mut bits = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ (state >> 29)
        };
        macro_rules! tensor {
            ($value:expr) => {
                Tensor::new(&shape, (0..len).map(|_| $value).collect()).unwrap()
            };
        }
        // Any bits; what is not a number compares unequal to itself, so it becomes one.
        let number = |value: f64| if value.is_nan() { f64::INFINITY } else { value };
        match dtype {
            DType::F32 => tensor!(number(f32::from_bits(bits() as u32).into()) as f32),
            DType::F64 => tensor!(number(f64::from_bits(bits()))),
            DType::F16 => tensor!(half::f16::from_f64(number(half::f16::from_bits(bits() as u16).into()))),
            DType::BF16 => tensor!(half::bf16::from_f64(number(half::bf16::from_bits(bits() as u16).into()))),
            DType::I8 => tensor!(bits() as i8),
            DType::I16 => tensor!(bits() as i16),
            DType::I32 => tensor!(bits() as i32),
            DType::I64 => tensor!(bits() as i64),
            DType::U8 => tensor!(bits() as u8),
            DType::U16 => tensor!(bits() as u16),
            DType::U32 => tensor!(bits() as u32),
            DType::U64 => tensor!(bits()),
            DType::Bool => tensor!(bits() & 1 == 1),
            DType::String => tensor!(char::from_u32(bits() as u32 & 0x3ffff).unwrap_or('\\').to_string()),
            small => {
                let mut buffer = Buffer::new(small);
                buffer.extend_narrow(&(0..len).map(|_| (bits() % 9) as f64 * 0.25).collect::<Vec<_>>());
                buffer.into_tensor(&shape).unwrap()
            }
        }
    })
}

/// JSON texts as `serde_json` writes them.
fn documents() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::hash_map(".{0,4}", inner, 0..5).prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

fn accepts(bytes: &[u8]) -> std::result::Result<(), Box<JsonError>> {
    let mut reader = Reader::new(bytes);
    reader.skip()?;
    reader.end()
}

proptest! {
    #[test]
    fn what_is_written_reads_back(tensor in tensors()) {
        let mut writer = Writer::default();
        writer.tensor(&tensor);
        let text = writer.into_bytes();
        let (buffer, shape) = Reader::new(&text).tensor(tensor.dtype(), tensor.len()).unwrap();
        prop_assert_eq!(shape.as_slice(), tensor.shape());
        prop_assert_eq!(buffer.into_tensor(&shape).unwrap(), tensor);
    }

    #[test]
    fn flat_is_the_same_elements(tensor in tensors()) {
        let mut writer = Writer::default();
        writer.flat(tensor.data());
        let text = writer.into_bytes();
        let (buffer, _) = Reader::new(&text).tensor(tensor.dtype(), 0).unwrap();
        prop_assert_eq!(buffer.into_tensor(tensor.shape()).unwrap(), tensor);
    }

    #[test]
    fn decimals_are_rounded_correctly(text in "-?(0|[1-9][0-9]{0,12})(\\.[0-9]{1,20})?(e[+-]?[0-9]{1,2})?") {
        prop_assert_eq!(values::<f64>(&text)[0].to_bits(), text.parse::<f64>().unwrap().to_bits());
        let want = text.parse::<f32>().unwrap();
        match read(&text, DType::F32) {
            Ok((buffer, _)) => prop_assert_eq!(f32::into_vec(buffer).unwrap()[0].to_bits(), want.to_bits()),
            Err(_) => prop_assert!(want.is_infinite()),
        }
    }

    #[test]
    fn floats_in_any_notation_are_rounded_correctly(bits in any::<u32>(), digits in 0_usize..20) {
        let value = f32::from_bits(bits);
        if value.is_finite() {
            for text in [format!("{value}"), format!("{value:.digits$e}"), format!("{}", f64::from(value)), format!("{value:.digits$}")] {
                match read(&text, DType::F32) {
                    Ok((buffer, _)) => {
                        prop_assert_eq!(f32::into_vec(buffer).unwrap()[0].to_bits(), text.parse::<f32>().unwrap().to_bits(), "{}", text);
                    }
                    Err(_) => prop_assert!(text.parse::<f32>().unwrap().is_infinite(), "{}", text),
                }
            }
        }
    }

    #[test]
    fn serde_json_agrees_on_documents(document in documents()) {
        for text in [document.to_string(), format!("{document:#}")] {
            prop_assert!(accepts(text.as_bytes()).is_ok(), "{}", text);
        }
    }

    #[test]
    fn serde_json_agrees_on_mutated_documents(document in documents(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut text = document.to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        let theirs = serde_json::from_slice::<serde_json::Value>(&text);
        // The bare tokens are ours alone, and a float beyond the range is refused there only.
        let out_of_range = theirs.as_ref().is_err_and(|error| error.to_string().contains("number out of range"));
        if !out_of_range && !text.windows(3).any(|w| w == b"NaN" || w == b"Inf") {
            prop_assert_eq!(accepts(&text).is_ok(), theirs.is_ok(), "{}", String::from_utf8_lossy(&text));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), dtype in prop::sample::select(DType::ALL)) {
        let _ = accepts(&bytes);
        let _ = Reader::new(&bytes).tensor(dtype, usize::MAX);
    }

    #[test]
    fn mutated_arrays_never_panic(tensor in tensors(), at in any::<prop::sample::Index>(), byte in prop::sample::select(&b"[]{}\",.-eE+0129NIu\\ \xff\x00"[..])) {
        let mut writer = Writer::default();
        writer.tensor(&tensor);
        let mut text = writer.into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok((buffer, shape)) = Reader::new(&text).tensor(tensor.dtype(), 0) {
            prop_assert_eq!(buffer.len(), shape.iter().product::<usize>());
        }
        text.truncate(at);
        let _ = Reader::new(&text).tensor(tensor.dtype(), 0);
    }
}

#[test]
fn a_negative_zero_keeps_its_sign() {
    let mut writer = Writer::default();
    writer.flat(Slice::F32(&[-0.0, 0.0]));
    assert_eq!(writer.into_bytes(), b"[-0.0,0.0]");
}
