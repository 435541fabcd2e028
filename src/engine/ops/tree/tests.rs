//! Expectations are ONNX Runtime's (1.32) unless a comment says otherwise.

use super::super::testing::{Case, assert_close, noise, op, tensor};
use super::*;
use crate::engine::tensor::Tensor;

fn ml(name: &'static str, opset: u16) -> Case {
    op(name).domain("ai.onnx.ml").opset(opset)
}

const BRANCHES: [&str; 6] = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"];

/// One tree with one comparison of feature 0 with `threshold`: node 0, leaves 1 (true) and 2 (false). The lists of
/// leaves begin with `votes`.
fn stump(case: Case, mode: &str, threshold: f32, votes: &str, leaves: &[(i64, i64, f32)]) -> Case {
    let name = |rest: &str| format!("{votes}_{rest}");
    let ints = |f: fn(&(i64, i64, f32)) -> i64| leaves.iter().map(f).collect::<Vec<_>>();
    case.attr("nodes_treeids", &[5_i64, 5, 5][..])
        .attr("nodes_nodeids", &[0_i64, 1, 2][..])
        .attr("nodes_featureids", &[0_i64, 0, 0][..])
        .attr("nodes_modes", &[mode, "LEAF", "LEAF"][..])
        .attr("nodes_values", &[threshold, 0.0, 0.0][..])
        .attr("nodes_truenodeids", &[1_i64, 0, 0][..])
        .attr("nodes_falsenodeids", &[2_i64, 0, 0][..])
        .attr("nodes_hitrates", &[1.0_f32, 1.0, 1.0][..])
        .attr(&name("treeids"), &vec![5_i64; leaves.len()][..])
        .attr(&name("nodeids"), &ints(|l| l.0)[..])
        .attr(&name("ids"), &ints(|l| l.1)[..])
        .attr(&name("weights"), &leaves.iter().map(|l| l.2).collect::<Vec<_>>()[..])
}

fn regressor(mode: &str, threshold: f32) -> Case {
    stump(ml("TreeEnsembleRegressor", 3), mode, threshold, "target", &[(1, 0, 10.0), (2, 0, 20.0)]).attr("n_targets", 1_i64)
}

#[test]
fn every_comparison_takes_its_branch() {
    let x = tensor(&[4, 1], &[-1.0_f32, 0.5, 2.0, f32::NAN]);
    for (mode, want) in BRANCHES.into_iter().zip([[1, 1, 2, 2], [1, 2, 2, 2], [2, 1, 1, 2], [2, 2, 1, 2], [2, 1, 2, 2], [1, 2, 1, 1]]) {
        let want = want.map(|leaf| leaf as f32 * 10.0);
        assert_close(&regressor(mode, 0.5).one(&[&x]), &[4, 1], &want, 0.0);
        let missing = [want[0], want[1], want[2], 10.0];
        let tracks = regressor(mode, 0.5).attr("nodes_missing_value_tracks_true", &[1_i64, 0, 0][..]);
        assert_close(&tracks.one(&[&x]), &[4, 1], &missing, 0.0);
    }
    assert!(matches!(regressor("BRANCH_ALMOST", 0.5).error(&[&x]), OpError::Attribute(_)));
}

/// Double features are compared with the threshold as it is: float(0.1) is greater than 0.1.
#[test]
fn thresholds_are_compared_in_the_wider_type() {
    let narrow = regressor("BRANCH_LEQ", 0.1);
    assert_close(&narrow.one(&[&tensor(&[2, 1], &[0.1_f64, 0.100_000_001_6])]), &[2, 1], &[10.0, 20.0], 0.0);
    assert_close(&narrow.one(&[&tensor(&[1, 1], &[0.1_f32])]), &[1, 1], &[10.0], 0.0);
    assert_close(&narrow.one(&[&tensor(&[2], &[0_i64, 7])]), &[1, 1], &[10.0], 0.0);
    assert_close(&narrow.one(&[&tensor(&[2, 1], &[0_i32, 1])]), &[2, 1], &[10.0, 20.0], 0.0);
    let none: &[f32] = &[];
    let wide = regressor("BRANCH_LEQ", 0.1).attr("nodes_values", none).attr("nodes_values_as_tensor", tensor(&[3], &[0.1_f64, 0.0, 0.0]));
    assert_close(&wide.one(&[&tensor(&[1, 1], &[0.1_f32])]), &[1, 1], &[20.0], 0.0);
    let both = regressor("BRANCH_LEQ", 0.1).attr("nodes_values_as_tensor", tensor(&[3], &[0.1_f64, 0.0, 0.0]));
    assert!(matches!(both.error(&[&tensor(&[1, 1], &[0.1_f32])]), OpError::Attribute(_)));
}

/// Two stumps and a tree that is a leaf.
fn forest(targets: i64) -> Case {
    ml("TreeEnsembleRegressor", 1)
        .attr("nodes_treeids", &[0_i64, 0, 0, 1, 1, 1, 2][..])
        .attr("nodes_nodeids", &[0_i64, 1, 2, 0, 1, 2, 0][..])
        .attr("nodes_featureids", &[0_i64, 0, 0, 1, 0, 0, 0][..])
        .attr("nodes_modes", &["BRANCH_LEQ", "LEAF", "LEAF", "BRANCH_LT", "LEAF", "LEAF", "LEAF"][..])
        .attr("nodes_values", &[0.0_f32; 7][..])
        .attr("nodes_truenodeids", &[1_i64, 0, 0, 1, 0, 0, 0][..])
        .attr("nodes_falsenodeids", &[2_i64, 0, 0, 2, 0, 0, 0][..])
        .attr("target_treeids", &[0_i64, 0, 1, 1, 2][..])
        .attr("target_nodeids", &[1_i64, 2, 1, 2, 0][..])
        .attr("target_ids", &[0_i64, targets - 1, 0, 0, 0][..])
        .attr("target_weights", &[1.0_f32, 2.0, 4.0, 8.0, 3.0][..])
        .attr("n_targets", targets)
}

#[test]
fn votes_are_aggregated() {
    let x = tensor(&[2, 2], &[-1.0_f32, 1.0, 1.0, -1.0]);
    for (function, want) in [("SUM", [12.0, 9.0]), ("AVERAGE", [4.0, 3.0]), ("MIN", [1.0, 2.0]), ("MAX", [8.0, 4.0])] {
        let case = || forest(1).attr("aggregate_function", function);
        assert_close(&case().one(&[&x]), &[2, 1], &want, 1e-6);
        assert_close(&case().attr("base_values", &[0.5_f32][..]).one(&[&x]), &[2, 1], &want.map(|v| v + 0.5), 1e-6);
    }
    assert_close(&forest(2).one(&[&x]), &[2, 2], &[12.0, 0.0, 7.0, 2.0], 0.0);
    let softmax = forest(2).attr("post_transform", "SOFTMAX").attr("base_values", &[-7.0_f32, -1.0][..]);
    assert_close(&softmax.one(&[&x]).rows(1..2), &[1, 2], &[0.268_941, 0.731_059], 1e-5);
    assert!(matches!(forest(1).attr("base_values", &[1.0_f32, 2.0][..]).error(&[&x]), OpError::Attribute(_)));
    assert!(matches!(forest(1).attr("aggregate_function", "MEDIAN").error(&[&x]), OpError::Attribute(_)));
    assert!(matches!(forest(1).error(&[&tensor(&[2, 1], &[0.0_f32, 1.0])]), OpError::Shape(_)));
    assert!(matches!(forest(1).error(&[&tensor(&[1, 1, 2], &[0.0_f32, 1.0])]), OpError::Shape(_)));
    assert_close(&forest(2).one(&[&tensor::<f32>(&[0, 2], &[])]), &[0, 2], &[], 0.0);
}

#[test]
fn rows_do_not_depend_on_their_number() {
    let rows = 1000;
    let x = noise(rows * 2, 7);
    let all = forest(2).one(&[&tensor(&[rows, 2], &x)]);
    for r in [0, 63, 64, 500, 999] {
        assert_eq!(forest(2).one(&[&tensor(&[1, 2], &x[r * 2..r * 2 + 2])]), all.rows(r..r + 1));
    }
}

#[test]
fn what_is_no_tree_is_refused() {
    let x = tensor(&[1, 2], &[0.0_f32, 0.0]);
    let message = |case: Case| match case.error(&[&x]) {
        OpError::Attribute(message) => message,
        other => panic!("{other:?}"),
    };
    let inner = &["BRANCH_LEQ", "BRANCH_LEQ", "LEAF"][..];
    let list = |case: Case, name: &str, values: &[i64]| case.attr(name, values);
    let cycle = list(regressor("BRANCH_LEQ", 0.0).attr("nodes_modes", inner), "nodes_truenodeids", &[1, 0, 0]);
    assert_eq!(message(cycle), "tree 5 has a cycle");
    let itself = list(regressor("BRANCH_LEQ", 0.0), "nodes_truenodeids", &[0, 0, 0]);
    assert_eq!(message(itself), "tree 5 has a cycle");
    let nowhere = list(regressor("BRANCH_LEQ", 0.0), "nodes_falsenodeids", &[7, 0, 0]);
    assert_eq!(message(nowhere), "tree 5 has no node 7, which a branch names");
    assert_eq!(message(list(regressor("BRANCH_LEQ", 0.0), "nodes_nodeids", &[0, 1, 1])), "tree 5 has node 1 twice");
    assert_eq!(message(list(regressor("BRANCH_LEQ", 0.0), "target_nodeids", &[1, 9])), "tree 5 has no node 9, which a weight names");
    for (name, values) in [
        ("nodes_featureids", &[-1_i64, 0, 0][..]),
        ("nodes_featureids", &[i64::MAX, 0, 0]),
        ("nodes_featureids", &[0]),
        ("target_ids", &[0, 1]),
        ("target_ids", &[0, -1]),
        ("target_treeids", &[0]),
    ] {
        message(list(regressor("BRANCH_LEQ", 0.0), name, values));
    }
    message(regressor("BRANCH_LEQ", 0.0).attr("n_targets", 0_i64));
    message(ml("TreeEnsembleRegressor", 3));
    assert!(regressor("BRANCH_LEQ", 0.0).attr("n_targets", i64::MAX).run(&[&x]).is_err());
}

/// How a converter of LightGBM writes that feature 0 is 1, 4 or 9: the branches for `true` meet in one leaf.
#[test]
fn branches_may_meet() {
    let case = ml("TreeEnsembleRegressor", 3)
        .attr("nodes_treeids", &[0_i64; 5][..])
        .attr("nodes_nodeids", &[0_i64, 1, 2, 3, 4][..])
        .attr("nodes_featureids", &[0_i64; 5][..])
        .attr("nodes_modes", &["BRANCH_EQ", "BRANCH_EQ", "BRANCH_EQ", "LEAF", "LEAF"][..])
        .attr("nodes_values", &[1.0_f32, 4.0, 9.0, 0.0, 0.0][..])
        .attr("nodes_truenodeids", &[3_i64, 3, 3, 0, 0][..])
        .attr("nodes_falsenodeids", &[1_i64, 2, 4, 0, 0][..])
        .attr("target_treeids", &[0_i64, 0][..])
        .attr("target_nodeids", &[4_i64, 3][..])
        .attr("target_ids", &[0_i64, 0][..])
        .attr("target_weights", &[-1.0_f32, 1.0][..])
        .attr("n_targets", 1_i64);
    let x = tensor(&[5, 1], &[1.0_f32, 2.0, 4.0, 9.0, f32::NAN]);
    assert_close(&case.one(&[&x]), &[5, 1], &[1.0, -1.0, 1.0, 1.0, -1.0], 0.0);
}

fn classifier(classes: &[i64], leaves: &[(i64, i64, f32)]) -> Case {
    stump(ml("TreeEnsembleClassifier", 3), "BRANCH_LEQ", 0.0, "class", leaves).outputs(2).attr("classlabels_int64s", classes)
}

fn check_classes(case: Case, labels: [i64; 2], scores: &[f32]) {
    let found = case.run(&[&tensor(&[2, 1], &[-1.0_f32, 1.0])]).unwrap();
    assert_eq!(found[0], tensor(&[2], &labels));
    assert_close(&found[1], &[2, scores.len() / 2], scores, 1e-6);
}

#[test]
fn a_lone_score_is_a_probability_or_a_margin() {
    let positive = || classifier(&[3, 7], &[(1, 0, 0.9), (2, 0, 0.2)]);
    check_classes(positive(), [7, 3], &[0.1, 0.9, 0.8, 0.2]);
    check_classes(positive().attr("post_transform", "SOFTMAX"), [7, 3], &[0.1, 0.9, 0.8, 0.2]);
    check_classes(positive().attr("post_transform", "LOGISTIC"), [7, 3], &[0.289_050, 0.710_950, 0.450_166, 0.549_834]);
    check_classes(positive().attr("base_values", &[0.05_f32][..]), [7, 3], &[0.05, 0.95, 0.75, 0.25]);
    check_classes(positive().attr("base_values", &[0.05_f32, 0.3][..]), [7, 3], &[0.95, 0.0, 0.25, 0.0]);
    let margin = || classifier(&[3, 7], &[(1, 0, -0.9), (2, 0, 0.2)]);
    check_classes(margin(), [3, 7], &[0.9, -0.9, -0.2, 0.2]);
    check_classes(margin().attr("post_transform", "LOGISTIC"), [3, 7], &[0.710_950, 0.289_050, 0.450_166, 0.549_834]);
}

#[test]
fn votes_for_the_second_class_alone() {
    let case = || classifier(&[3, 7], &[(1, 1, 0.9), (2, 1, 0.2)]);
    check_classes(case(), [7, 3], &[0.0, 0.9, 0.0, 0.2]);
    check_classes(case().attr("base_values", &[0.05_f32][..]), [7, 3], &[0.0, 0.9, 0.0, 0.2]);
    check_classes(case().attr("base_values", &[0.05_f32, 0.3][..]), [3, 3], &[0.0, 0.3, 0.0, 0.3]);
    check_classes(case().attr("post_transform", "LOGISTIC"), [7, 3], &[0.5, 0.710_950, 0.5, 0.549_834]);
}

/// The scores are ONNX Runtime's; of the labels, it answers 0 or 1 whatever their names.
#[test]
fn votes_for_both_classes() {
    let case = || classifier(&[3, 7], &[(1, 0, 0.9), (1, 1, 0.1), (2, 0, 0.2), (2, 1, -0.8)]);
    check_classes(case(), [7, 3], &[0.9, 0.1, 0.2, -0.8]);
    check_classes(case().attr("post_transform", "SOFTMAX"), [7, 3], &[0.689_974, 0.310_026, 0.731_059, 0.268_941]);
    check_classes(case().attr("base_values", &[0.05_f32][..]), [7, 3], &[0.95, 0.1, 0.25, -0.8]);
    check_classes(case().attr("base_values", &[0.05_f32, 0.3][..]), [7, 7], &[-1.2, 1.2, -0.5, 0.5]);
}

#[test]
fn of_more_classes_the_greatest_score_wins() {
    let three = || classifier(&[3, 7, 9], &[(1, 0, 0.3), (1, 2, 0.6), (2, 1, -0.5), (2, 0, -0.7)]);
    check_classes(three(), [9, 7], &[0.3, 0.0, 0.6, -0.7, -0.5, 0.0]);
    check_classes(three().attr("base_values", &[1.0_f32, 0.0, 0.0][..]), [3, 3], &[1.3, 0.0, 0.6, 0.3, -0.5, 0.0]);
    let none: &[i64] = &[];
    let text = three().attr("classlabels_int64s", none).attr("classlabels_strings", &["a", "b", "c"][..]);
    let found = text.run(&[&tensor(&[2, 1], &[-1.0_f64, 1.0])]).unwrap();
    assert_eq!(found[0], tensor(&[2], &["c", "b"].map(str::to_owned)));
    check_classes(classifier(&[4], &[(1, 0, 0.3), (2, 0, -0.5)]), [1, 0], &[0.3, -0.5]);
    let x = tensor(&[1, 1], &[0.0_f32]);
    for bad in [three().attr("classlabels_int64s", none), three().attr("classlabels_int64s", &[1_i64, 2][..])] {
        assert!(matches!(bad.error(&[&x]), OpError::Attribute(_)));
    }
    assert!(matches!(three().attr("base_values", &[1.0_f32][..]).error(&[&x]), OpError::Attribute(_)));
}

/// Node 0 tests membership in {0.3, -1}; its branch for `false` is node 1.
fn listed<T: Number>(wide: fn(f64) -> T) -> Case {
    let reals = |values: &[f64]| Tensor::vector(values.iter().map(|&v| wide(v)).collect());
    ml("TreeEnsemble", 5)
        .attr("nodes_splits", reals(&[0.0, -1.0]))
        .attr("nodes_featureids", &[0_i64, 1][..])
        .attr("nodes_modes", tensor(&[2], &[6_u8, 0]))
        .attr("nodes_truenodeids", &[0_i64, 1][..])
        .attr("nodes_falsenodeids", &[1_i64, 2][..])
        .attr("nodes_trueleafs", &[1_i64, 1][..])
        .attr("nodes_falseleafs", &[0_i64, 1][..])
        .attr("leaf_targetids", &[0_i64, 1, 0][..])
        .attr("leaf_weights", reals(&[1.0, 2.0, 3.0]))
        .attr("membership_values", reals(&[0.3, -1.0, f64::NAN]))
        .attr("tree_roots", &[0_i64][..])
        .attr("n_targets", 2_i64)
}

#[test]
fn leaves_may_be_listed_apart() {
    let x = [1.0, -2.0, 0.3, 0.4, 0.5, 0.5];
    let want = [0.0, 2.0, 1.0, 0.0, 3.0, 0.0];
    let wide = listed(|v| v).one(&[&tensor(&[3, 2], &x)]);
    assert_eq!(wide, tensor(&[3, 2], &want));
    let narrow = listed(|v| v as f32).one(&[&tensor(&[3, 2], &x.map(|v| v as f32))]);
    assert_eq!(narrow, tensor(&[3, 2], &want.map(|v| v as f32)));
    let half = listed(half::f16::from_f64).one(&[&tensor(&[3, 2], &x.map(half::f16::from_f64))]);
    assert_eq!(half, tensor(&[3, 2], &want.map(half::f16::from_f64)));
    // By the standard 1 is SOFTMAX and 2 is LOGISTIC; ONNX Runtime 1.32 takes them the other way round.
    let softmax = listed(|v| v as f32).attr("post_transform", 1_i64).one(&[&tensor(&[1, 2], &[0.3_f32, 0.4])]);
    assert_close(&softmax, &[1, 2], &[0.731_059, 0.268_941], 1e-5);
    let x = tensor(&[1, 2], &[0.0_f32, 0.0]);
    for (name, values) in [
        ("nodes_truenodeids", &[3_i64, 1][..]),
        ("nodes_falsenodeids", &[2, 2]),
        ("nodes_falsenodeids", &[0, 2]),
        ("tree_roots", &[2]),
        ("tree_roots", &[-1]),
        ("leaf_targetids", &[0, 2, 0]),
        ("nodes_trueleafs", &[1]),
        ("aggregate_function", &[]),
    ] {
        assert!(matches!(listed(|v| v as f32).attr(name, values).error(&[&x]), OpError::Attribute(_)), "{name}");
    }
    for (name, value) in [("aggregate_function", 4_i64), ("post_transform", 5)] {
        assert!(matches!(listed(|v| v as f32).attr(name, value).error(&[&x]), OpError::Attribute(_)), "{name}");
    }
    for bad in [tensor(&[2], &[7_u8, 0]), tensor(&[2], &[6_u8, 6]), tensor(&[2], &[0_i64, 0])] {
        assert!(matches!(listed(|v| v as f32).attr("nodes_modes", bad).error(&[&x]), OpError::Attribute(_)));
    }
}

#[test]
fn numbers_out_of_range_do_no_harm() {
    use super::super::ml_scores::torture;
    let x = tensor(&[3, 2], &[0.0_f32, 1.0, -1.0, f32::NAN, f32::INFINITY, 0.5]);
    let lists = |names: &[(&'static str, &[i64])]| names.iter().map(|&(name, list)| (name, list.to_vec())).collect::<Vec<_>>();
    let named = lists(&[
        ("nodes_treeids", &[0, 0, 0, 1, 1, 1, 2]),
        ("nodes_nodeids", &[0, 1, 2, 0, 1, 2, 0]),
        ("nodes_featureids", &[0, 0, 0, 1, 0, 0, 0]),
        ("nodes_truenodeids", &[1, 0, 0, 1, 0, 0, 0]),
        ("nodes_falsenodeids", &[2, 0, 0, 2, 0, 0, 0]),
        ("nodes_missing_value_tracks_true", &[1, 0, 0, 1, 0, 0, 0]),
        ("target_treeids", &[0, 0, 1, 1, 2]),
        ("target_nodeids", &[1, 2, 1, 2, 0]),
        ("target_ids", &[0, 1, 0, 0, 0]),
    ]);
    torture(|| forest(2), &named, &x);
    let listed_lists = lists(&[
        ("nodes_featureids", &[0, 1]),
        ("nodes_truenodeids", &[0, 1]),
        ("nodes_falsenodeids", &[1, 2]),
        ("nodes_trueleafs", &[1, 1]),
        ("nodes_falseleafs", &[0, 1]),
        ("leaf_targetids", &[0, 1, 0]),
        ("tree_roots", &[0]),
    ]);
    torture(|| listed(|v| v as f32), &listed_lists, &x);
    let classes = lists(&[("class_ids", &[0, 2, 1, 0]), ("class_nodeids", &[1, 1, 2, 2]), ("classlabels_int64s", &[3, 7, 9])]);
    torture(|| classifier(&[3, 7, 9], &[(1, 0, 0.3), (1, 2, 0.6), (2, 1, -0.5), (2, 0, -0.7)]), &classes, &x);
}

/// Trees as the attributes list them, node by node.
#[derive(Default)]
struct Listed {
    /// Tree and number of each node.
    ids: Vec<(i64, i64)>,
    features: Vec<i64>,
    modes: Vec<&'static str>,
    values: Vec<f32>,
    children: Vec<(i64, i64)>,
    missing: Vec<i64>,
    weights: Vec<f32>,
}

impl Listed {
    /// Complete trees of 0 to 4 levels of tests, with numbers that look random.
    fn new(trees: i64, features: usize, modes: &[&'static str], missing: bool) -> Self {
        Self::of_levels((0..trees).map(|tree| tree % 5), features, modes, missing)
    }

    /// Complete trees, each of so many levels of tests.
    fn of_levels(levels: impl Iterator<Item = i64>, features: usize, modes: &[&'static str], missing: bool) -> Self {
        let mut numbers = noise(1 << 14, 5).into_iter();
        let mut listed = Self::default();
        for (tree, levels) in (0_i64..).zip(levels) {
            let inner = (1_i64 << levels) - 1;
            for node in 0..2 * inner + 1 {
                let number = numbers.next().expect("enough numbers");
                let at = ((number + 2.0) * (1 << 22) as f32) as usize;
                listed.ids.push((tree, node));
                listed.features.push((at / 8 % features) as i64);
                listed.modes.push(if node < inner { modes[at % modes.len()] } else { "LEAF" });
                listed.values.push(if node < inner { number } else { 0.0 });
                listed.children.push(if node < inner { (2 * node + 1, 2 * node + 2) } else { (0, 0) });
                listed.missing.push(i64::from(missing && node < inner && at / 64 % 2 == 1));
                listed.weights.push(number);
            }
        }
        listed
    }

    /// One tree of so many levels of tests, each of which leads to a leaf or to the next.
    fn chain(levels: usize) -> Self {
        let numbers = noise(2 * levels + 1, 6);
        let mut listed = Self::default();
        for (node, &number) in (0_i64..).zip(&numbers) {
            let inner = node % 2 == 0 && node < 2 * levels as i64;
            listed.ids.push((0, node));
            listed.features.push(node / 2 % 3);
            listed.modes.push(if inner { "BRANCH_LEQ" } else { "LEAF" });
            listed.values.push(if inner { number } else { 0.0 });
            listed.children.push(if inner { (node + 1, node + 2) } else { (0, 0) });
            listed.missing.push(0);
            listed.weights.push(number);
        }
        listed
    }

    fn case(&self) -> Case {
        let ids = |f: fn(&(i64, i64)) -> i64, of: &[(i64, i64)]| of.iter().map(f).collect::<Vec<_>>();
        let leaves: Vec<usize> = (0..self.ids.len()).filter(|&i| self.modes[i] == "LEAF").collect();
        let of_leaves: Vec<(i64, i64)> = leaves.iter().map(|&i| self.ids[i]).collect();
        ml("TreeEnsembleRegressor", 3)
            .attr("nodes_treeids", &ids(|id| id.0, &self.ids)[..])
            .attr("nodes_nodeids", &ids(|id| id.1, &self.ids)[..])
            .attr("nodes_featureids", &self.features[..])
            .attr("nodes_modes", &self.modes[..])
            .attr("nodes_values", &self.values[..])
            .attr("nodes_truenodeids", &ids(|id| id.0, &self.children)[..])
            .attr("nodes_falsenodeids", &ids(|id| id.1, &self.children)[..])
            .attr("nodes_missing_value_tracks_true", &self.missing[..])
            .attr("target_treeids", &ids(|id| id.0, &of_leaves)[..])
            .attr("target_nodeids", &ids(|id| id.1, &of_leaves)[..])
            .attr("target_ids", &vec![0_i64; leaves.len()][..])
            .attr("target_weights", &leaves.iter().map(|&i| self.weights[i]).collect::<Vec<_>>()[..])
            .attr("n_targets", 1_i64)
    }

    /// The definition: one tree after the other, one comparison after the other.
    fn score(&self, row: &[f32]) -> f32 {
        let roots = (0..self.ids.len()).filter(|&i| self.ids[i].1 == 0);
        roots.fold(0.0, |score, root| {
            let mut at = root;
            while self.modes[at] != "LEAF" {
                let (x, value) = (row[self.features[at] as usize], self.values[at]);
                let holds = match self.modes[at] {
                    "BRANCH_LEQ" => x <= value,
                    "BRANCH_LT" => x < value,
                    "BRANCH_GTE" => x >= value,
                    other => panic!("{other}"),
                };
                let yes = holds || (self.missing[at] == 1 && x.is_nan());
                at = root + if yes { self.children[at].0 } else { self.children[at].1 } as usize;
            }
            score + self.weights[at]
        })
    }
}

#[test]
fn walks_side_by_side_arrive_where_each_alone_does() {
    for (modes, missing) in [(&["BRANCH_LT"][..], false), (&["BRANCH_LT"], true), (&["BRANCH_LEQ"], false), (&["BRANCH_LEQ"], true), (&["BRANCH_LT", "BRANCH_GTE"], true)] {
        // As many trees, and as many rows, as leave some beside the groups that walk together; the first two are too small to be filled up,
        // the last two test too many features.
        for (trees, rows, features) in [(1, 1, 5), (2, 3, 5), (7, 3, 5), (8, 8, 5), (21, 9, 5), (21, 100, 5), (21, 9, 700), (5, 9, 300)] {
            let listed = Listed::new(trees, features, modes, missing);
            let mut x = noise(rows * features, rows as u32);
            x.iter_mut().step_by(7).for_each(|x| *x = f32::NAN);
            let want: Vec<f32> = x.chunks(features).map(|row| listed.score(row)).collect();
            assert_eq!(listed.case().one(&[&tensor(&[rows, features], &x)]), tensor(&[rows, 1], &want), "{modes:?} {trees} {rows} {features}");
        }
    }
}

/// Trees that are filled up have places for 4, 6 or 8 levels, and deeper ones are not.
#[test]
fn trees_of_every_depth_are_walked_to_their_leaves() {
    for most in 4..=9 {
        for missing in [false, true] {
            let listed = Listed::of_levels([most, most - 1, most].into_iter(), 5, &["BRANCH_LEQ"], missing);
            let mut x = noise(11 * 5, 9);
            x[3] = f32::NAN;
            let want: Vec<f32> = x.chunks(5).map(|row| listed.score(row)).collect();
            assert_eq!(listed.case().one(&[&tensor(&[11, 5], &x)]), tensor(&[11, 1], &want), "{most} {missing}");
        }
    }
}

/// With 4 levels the tree is filled up, with 40 it is not.
#[test]
fn walks_of_unequal_length_arrive() {
    for levels in [1, 4, 13, 40] {
        let listed = Listed::chain(levels);
        let x = noise(30 * 3, 8);
        let want: Vec<f32> = x.chunks(3).map(|row| listed.score(row)).collect();
        assert_eq!(listed.case().one(&[&tensor(&[30, 3], &x)]), tensor(&[30, 1], &want), "{levels}");
    }
}

/// Each row's scores are those that the explained sums come to, whatever the base values are, or the sums are refused.
#[test]
fn sums_that_are_explained_are_the_scores_of_classifiers_of_two_classes() {
    type Leaves = &'static [(i64, i64, f32)];
    const FIRST: Leaves = &[(1, 0, -0.9), (2, 0, 0.2)];
    const SECOND: Leaves = &[(1, 1, 0.9), (2, 1, 0.2)];
    const BOTH: Leaves = &[(1, 0, 0.9), (1, 1, 0.1), (2, 0, 0.2), (2, 1, -0.8)];
    const SOME: Leaves = &[(1, 0, 0.9), (2, 0, 0.2), (2, 1, -0.8)];
    const LATER: Leaves = &[(1, 1, 0.9), (2, 0, 0.2), (2, 1, -0.8)];
    const BASES: [&[f32]; 3] = [&[], &[0.05], &[0.05, 0.3]];
    let x = tensor(&[2, 1], &[-1.0_f32, 1.0]);
    // For each number of base values whether the scores are such sums.
    for (leaves, explained) in
        [(FIRST, [true; 3]), (SECOND, [true; 3]), (BOTH, [true; 3]), (SOME, [false; 3]), (LATER, [true, false, false])]
    {
        for (base, explained) in BASES.into_iter().zip(explained) {
            let case = || {
                let case = classifier(&[3, 7], leaves);
                if base.is_empty() { case } else { case.attr("base_values", base) }
            };
            let op = case().build(&[Some(&x)]).unwrap();
            let found = shapley(&*op);
            assert_eq!(found.is_ok(), explained, "{leaves:?} {base:?}");
            let Ok(explaining) = found else { continue };
            let scores = case().run(&[&x]).unwrap().remove(1);
            for class in 0..2 {
                let weights = Tensor::new(&[2, 2], [0, 1, 0, 1].map(|c| if c == class { 1.0_f64 } else { 0.0 }).to_vec()).unwrap();
                let sums = shapley::tests::run(&*explaining, &[&x, &x, &weights], None).unwrap().1;
                for row in 0..2 {
                    let want = f64::from(scores.slice::<f32>().unwrap()[2 * row + class]);
                    assert!((sums[2 * row] - want).abs() < 1e-6, "{leaves:?} {base:?} class {class}: {} is not {want}", sums[2 * row]);
                }
            }
        }
    }
}
