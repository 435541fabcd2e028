//! What models may contain: bodies that read from around them, functions, sparse and shared weights.

use super::*;
use crate::engine::load::proto::SparseTensorProto;
use crate::engine::tensor::Kind;

fn scalar<T: crate::engine::dtype::Element>(value: T) -> Value {
    Value::Tensor(Tensor::scalar(value))
}

/// A branch that adds or multiplies `x` of the graph around it with a weight of its own.
fn branch(op: &str, weight: f32) -> GraphProto {
    let mut branch = graph(vec![], vec![node(op, &["x", "w"], &["result"])], &["result"]);
    branch.initializer.push(initializer("w", &Tensor::scalar(weight)));
    branch
}

#[test]
fn a_branch_reads_from_around_it() {
    let choose = with(node("If", &["c"], &["y"]), [body("then_branch", branch("Add", 1.0)), body("else_branch", branch("Mul", 3.0))]);
    // `x` is a result of the graph, and listed behind its reader.
    let nodes = vec![choose, node("Neg", &["a"], &["x"])];
    let model = model(graph(vec![info("c", 9, &[]), info("a", FLOAT, &[2])], nodes, &["y"]));
    let y = |condition: bool| run(&model, &[scalar(condition), floats(&[2], &[1.0, 2.0])]).unwrap();
    assert_eq!(y(true), [floats(&[2], &[0.0, -1.0])]);
    assert_eq!(y(false), [floats(&[2], &[-3.0, -6.0])]);
}

#[test]
fn a_branch_may_be_a_value_from_around_it_and_nest() {
    let inner =
        with(node("If", &["c"], &["r"]), [body("then_branch", graph(vec![], vec![], &["x"])), body("else_branch", branch("Mul", 2.0))]);
    let outer = with(
        node("If", &["c"], &["y"]),
        [body("then_branch", graph(vec![], vec![inner], &["r"])), body("else_branch", branch("Add", 5.0))],
    );
    let model = model(graph(vec![info("c", 9, &[]), info("x", FLOAT, &[1])], vec![outer], &["y"]));
    assert_eq!(run(&model, &[scalar(true), floats(&[1], &[4.0])]).unwrap(), [floats(&[1], &[4.0])]);
    assert_eq!(run(&model, &[scalar(false), floats(&[1], &[4.0])]).unwrap(), [floats(&[1], &[9.0])]);
}

/// Doubles its carried value, and gives the value of each turn.
fn doubling(condition: &str) -> GraphProto {
    let nodes = vec![node("Add", &["v", "v"], &["w"]), node("Add", &["w", "bias"], &["out"]), node("Identity", &["w"], &["each"])];
    let formals = vec![untyped("i"), untyped("keep"), untyped("v")];
    graph(formals, nodes, &[condition, "out", "each"])
}

#[test]
fn a_loop_carries_values_and_collects_them() {
    let repeat = with(node("Loop", &["n", "", "x"], &["last", "all"]), [body("body", doubling("keep"))]);
    let mut graph = graph(vec![info("n", 7, &[]), info("x", FLOAT, &[2])], vec![repeat], &["last", "all"]);
    graph.initializer.push(initializer("bias", &Tensor::scalar(1.0_f32)));
    let model = model(graph);
    let turns = |n: i64| run(&model, &[scalar(n), floats(&[2], &[1.0, 2.0])]).unwrap();
    assert_eq!(turns(2), [floats(&[2], &[7.0, 11.0]), floats(&[2, 2], &[2.0, 4.0, 6.0, 10.0])]);
    assert_eq!(turns(0)[0], floats(&[2], &[1.0, 2.0]));
    assert_eq!(turns(-1)[1].tensor().unwrap().shape()[0], 0);
}

/// What a body reads from around it is not what the node leaves out.
#[test]
fn a_loop_may_leave_out_its_own_inputs() {
    let stop = scalar(2_i64);
    let turn = |keep: &str, each: &str| {
        graph(
            vec![untyped("i"), untyped("keep")],
            vec![node("Less", &["i", "most"], &["go"]), node("Identity", &[each], &["each"])],
            &[keep, "each"],
        )
    };
    let whole = |repeat: NodeProto| {
        let mut graph = graph(vec![info("n", 7, &[]), info("c", 9, &[])], vec![repeat], &["all"]);
        graph.initializer.push(initializer("most", stop.tensor().unwrap()));
        model(graph)
    };
    let inputs = [scalar(3_i64), scalar(false)];
    let counted = whole(with(node("Loop", &["n"], &["all"]), [body("body", turn("keep", "c"))]));
    assert_eq!(run(&counted, &inputs).unwrap(), [Value::Tensor(Tensor::vector(vec![false; 3]))]);
    let stopped = whole(with(node("Loop", &[], &["all"]), [body("body", turn("go", "n"))]));
    assert_eq!(run(&stopped, &inputs).unwrap(), [Value::Tensor(Tensor::vector(vec![3_i64; 3]))]);
    let neither = |op: &str| {
        let value = || graph(vec![], vec![node("Identity", &["c"], &["r"])], &["r"]);
        with(node(op, &[], &["all"]), [body("then_branch", value()), body("else_branch", value())])
    };
    assert!(run(&whole(neither("If")), &inputs).unwrap_err().contains("input 0"));
    for op in ["Scan", "SequenceMap"] {
        let node = with(node(op, &[], &["all"]), [body("body", turn("keep", "c"))]);
        assert!(run(&whole(if op == "Scan" { with(node, [int("num_scan_inputs", 1)]) } else { node }), &inputs).is_err(), "{op}");
    }
}

#[test]
fn a_scan_goes_along_any_axis_and_backward() {
    let sum = graph(
        vec![untyped("state"), untyped("slice")],
        vec![node("Add", &["state", "slice"], &["next"]), node("Identity", &["next"], &["out"])],
        &["next", "out"],
    );
    let attributes = [
        body("body", sum),
        int("num_scan_inputs", 1),
        ints("scan_input_axes", &[1]),
        ints("scan_input_directions", &[1]),
        ints("scan_output_axes", &[-1]),
    ];
    let model = model(graph(
        vec![info("s", FLOAT, &[2]), info("x", FLOAT, &[2, 3])],
        vec![with(node("Scan", &["s", "x"], &["last", "all"]), attributes)],
        &["last", "all"],
    ));
    let outputs = run(&model, &[floats(&[2], &[0.0, 0.0]), floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]).unwrap();
    assert_eq!(outputs, [floats(&[2], &[6.0, 15.0]), floats(&[2, 3], &[3.0, 5.0, 6.0, 6.0, 11.0, 15.0])]);
}

/// A scan over nothing gives nothing, of the shape that its body declares.
#[test]
fn a_scan_over_nothing_has_a_shape() {
    let mut body_graph = graph(vec![untyped("row")], vec![node("Neg", &["row"], &["out"])], &[]);
    body_graph.output = vec![info("out", FLOAT, &[2])];
    let attributes = [body("body", body_graph), int("num_scan_inputs", 1), ints("scan_output_axes", &[-1])];
    let scan = with(node("Scan", &["x"], &["y"]), attributes);
    let model = model(graph(vec![info("x", FLOAT, &[-1, 2])], vec![scan], &["y"]));
    assert_eq!(run(&model, &[floats(&[0, 2], &[])]).unwrap(), [floats(&[2, 0], &[])]);
    assert_eq!(run(&model, &[floats(&[1, 2], &[1.0, 2.0])]).unwrap(), [floats(&[2, 1], &[-1.0, -2.0])]);
}

#[test]
fn sequences_go_in_and_out() {
    let sequence = TypeProto {
        value: Some(type_proto::Value::SequenceType(Box::new(type_proto::Sequence {
            elem_type: info("", FLOAT, &[]).r#type.map(Box::new),
        }))),
        ..Default::default()
    };
    let input = ValueInfoProto { name: Some("s".into()), r#type: Some(sequence), ..Default::default() };
    let double = graph(vec![untyped("e")], vec![node("Add", &["e", "e"], &["d"])], &["d"]);
    let map = with(node("SequenceMap", &["s"], &["t"]), [body("body", double)]);
    let join = with(node("ConcatFromSequence", &["t"], &["y"]), [int("axis", 0)]);
    let model = model(graph(vec![input], vec![map, join], &["t", "y"]));
    let given = Value::Sequence(vec![floats(&[1], &[1.0]), floats(&[2], &[2.0, 3.0])]);
    let outputs = run(&model, &[given]).unwrap();
    assert_eq!(outputs, [Value::Sequence(vec![floats(&[1], &[2.0]), floats(&[2], &[4.0, 6.0])]), floats(&[3], &[2.0, 4.0, 6.0])]);
    let empty = run(&model, &[Value::Sequence(vec![])]).unwrap_err();
    assert!(empty.contains("ConcatFromSequence"), "{empty}");
    let wrong = run(&model, &[scalar(1.0_f32)]).unwrap_err();
    assert_eq!(wrong, "input `s` wants element type sequence of float32, got float32");
}

#[test]
fn a_function_becomes_its_nodes() {
    let reference = AttributeProto {
        name: Some("alpha".into()),
        ref_attr_name: Some("slope".into()),
        r#type: Some(AttributeType::Float as i32),
        ..Default::default()
    };
    let slope =
        AttributeProto { name: Some("slope".into()), r#type: Some(AttributeType::Float as i32), f: Some(0.5), ..Default::default() };
    let leaky = FunctionProto {
        attribute: vec!["slope".into()],
        ..function("Leaky", &["a", "b"], &["r", "a"], vec![with(node("LeakyRelu", &["a"], &["r"]), [reference])])
    };
    // A function that calls one, omits an optional input, and gives an input back.
    let twice = function(
        "Twice",
        &["a"],
        &["r"],
        vec![
            with(in_domain(node("Leaky", &["a"], &["h", "same"]), "local"), [slope]),
            in_domain(node("Leaky", &["h"], &["g"]), "local"),
            node("Add", &["g", "same"], &["r"]),
        ],
    );
    let calls = vec![in_domain(node("Twice", &["x"], &["y"]), "local"), in_domain(node("Twice", &["y"], &["z"]), "local")];
    let mut model = model(graph(vec![info("x", FLOAT, &[2])], calls, &["y", "z"]));
    model.functions = vec![twice, leaky];
    let outputs = run(&model, &[floats(&[2], &[-100.0, 1.0])]).unwrap();
    assert_eq!(outputs, [floats(&[2], &[-100.0 * 0.5 * 0.01 - 100.0, 2.0]), floats(&[2], &[-100.5 * 0.5 * 0.01 - 100.5, 4.0])]);
}

#[test]
fn sparse_weights_are_dense_in_memory() {
    let values = initializer("w", &Tensor::vector(vec![5.0_f32, 7.0]));
    let make = |indices: Tensor| {
        let sparse = SparseTensorProto { values: Some(values.clone()), indices: Some(initializer("", &indices)), dims: vec![2, 3] };
        let mut graph = graph(vec![info("x", FLOAT, &[3])], vec![node("Add", &["w", "x"], &["y"])], &["y"]);
        graph.sparse_initializer.push(sparse);
        model(graph)
    };
    let x = [floats(&[3], &[0.0; 3])];
    let want = [floats(&[2, 3], &[0.0, 5.0, 0.0, 0.0, 0.0, 7.0])];
    assert_eq!(run(&make(Tensor::vector(vec![1_i64, 5])), &x).unwrap(), want);
    assert_eq!(run(&make(Tensor::new(&[2, 2], vec![0_i64, 1, 1, 2]).unwrap()), &x).unwrap(), want);
    for wrong in [Tensor::vector(vec![1_i64, 6]), Tensor::vector(vec![1_i64, -1]), Tensor::vector(vec![1_i64])] {
        assert!(matches!(load(&make(wrong)), Err(LoadError::Format(message)) if message.contains("`w`")));
    }
}

#[test]
fn a_later_import_of_a_domain_replaces_an_earlier_one_and_unused_ones_do_not_matter() {
    let mut model = model(graph(vec![info("x", FLOAT, &[2])], vec![node("Relu", &["x"], &["y"])], &["y"]));
    model.opset_import.extend([opset("com.example.unknown", 77), opset("", 13)]);
    let loaded = load(&model).unwrap();
    assert_eq!(loaded.summary().operators, [("Relu".to_owned(), 13, 1)]);
    assert_eq!(loaded.signature().outputs[0].kind, Kind::Tensor(crate::engine::dtype::DType::F32));
}

/// `y = x · (w + w) + b`: `w`, of any length, and `b` are initialisers that are inputs too.
fn with_defaults() -> ModelProto {
    let nodes = vec![node("Add", &["w", "w"], &["s"]), node("Mul", &["x", "s"], &["p"]), node("Add", &["p", "b"], &["y"])];
    let mut graph = graph(vec![info("w", FLOAT, &[-1]), info("x", FLOAT, &[1]), info("b", FLOAT, &[])], nodes, &["y"]);
    graph.initializer.push(initializer("b", &Tensor::scalar(0.5_f32)));
    graph.initializer.push(initializer("w", &Tensor::vector(vec![3.0_f32])));
    model(graph)
}

fn session(model: Model) -> Session {
    Session::new(Arc::new(model), Arc::new(Threads::single()))
}

#[test]
fn an_input_with_an_initialiser_is_optional_and_a_constant_otherwise() {
    let loaded = load(&with_defaults()).unwrap();
    let names = |ports: &[crate::engine::Port]| ports.iter().map(|port| port.name.clone()).collect::<Vec<_>>();
    assert_eq!(
        (names(&loaded.signature().inputs), names(&loaded.signature().optional)),
        (vec!["x".to_owned()], vec!["w".into(), "b".into()])
    );
    assert_eq!(loaded.graph().nodes.len(), 2, "the sum of the initialisers is folded: {}", loaded.graph().dump());
    let mut session = session(loaded);
    let x = [floats(&[1], &[2.0])];
    let w = |values: &[f32]| (0, Tensor::vector(values.to_vec()));
    let b = |value: f32| (1, Tensor::scalar(value));
    assert_eq!(session.run_values(&x).unwrap(), [floats(&[1], &[12.5])]);
    for (overrides, want) in
        [(vec![w(&[1.0])], vec![4.5]), (vec![b(7.0)], vec![19.0]), (vec![b(1.0), w(&[0.0, 1.0])], vec![1.0, 5.0]), (vec![], vec![12.5])]
    {
        assert_eq!(session.run_overriding(&x, &overrides).unwrap(), [floats(&[want.len()], &want)], "{overrides:?}");
        assert_eq!(session.run_values(&x).unwrap(), [floats(&[1], &[12.5])], "the next run has the defaults again");
    }
    let mut message = |overrides: &[(usize, Tensor)]| session.run_overriding(&x, overrides).unwrap_err().to_string();
    assert_eq!(message(&[b(1.0), b(2.0)]), "input `b` is given twice");
    assert_eq!(message(&[(2, Tensor::scalar(1.0_f32))]), "there are 2 optional inputs, one at 2 is given");
    assert_eq!(message(&[(1, Tensor::scalar(1_i64))]), "input `b` wants element type float32, got int64");
    assert_eq!(message(&[(0, Tensor::scalar(1.0_f32))]), "input `w` wants shape [?], got []");
}

#[test]
fn before_ir_version_4_initialisers_among_the_inputs_say_nothing() {
    let mut model = with_defaults();
    model.ir_version = Some(3);
    let loaded = load(&model).unwrap();
    assert!(loaded.signature().optional.is_empty());
    assert_eq!(session(loaded).run_values(&[floats(&[1], &[2.0])]).unwrap(), [floats(&[1], &[12.5])]);
}

#[test]
fn an_initialiser_of_another_type_than_its_input_is_refused() {
    let mut model = with_defaults();
    model.graph.as_mut().unwrap().input[2] = info("b", 7, &[]);
    assert_eq!(load(&model).unwrap_err().to_string(), "input `b` is int64, its initialiser float32");
    let mut twice = with_defaults();
    let graph = twice.graph.as_mut().unwrap();
    graph.input.push(graph.input[0].clone());
    assert_eq!(load(&twice).unwrap_err().to_string(), "there are two inputs named `w`");
}

#[test]
fn what_replaced_initialisers_need_is_counted() {
    let mut constant = with_defaults();
    constant.graph.as_mut().unwrap().input.retain(|info| info.name() == "x");
    // `w` is folded into another constant; `b` is the same one in both forms.
    assert_eq!(load(&with_defaults()).unwrap().summary().weight_bytes, load(&constant).unwrap().summary().weight_bytes + 4);
}
