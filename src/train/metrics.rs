//! What predictions are worth: the measures of classification and of regression, with scikit-learn's definitions.

use serde::Serialize;

use super::error::{Error, Result};

/// Measures of one class against all others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OfClass {
    /// The class.
    pub label: String,
    /// Of those that were taken for it, the share that is.
    pub precision: f64,
    /// Of those that are, the share that was taken for it.
    pub recall: f64,
    /// The harmonic mean of both.
    pub f1: f64,
    /// How many there are.
    pub support: usize,
}

/// A bin of a calibration curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// The mean probability that was said.
    pub said: f64,
    /// The share for which it was so.
    pub found: f64,
    /// How many rows.
    pub rows: usize,
}

/// Measures of a classification.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classification {
    /// The share of right answers.
    pub accuracy: f64,
    /// The mean of the classes' recalls.
    pub balanced_accuracy: f64,
    /// The mean of the classes' precisions.
    pub precision_macro: f64,
    /// The mean of the classes' recalls, with classes that are said and never are.
    pub recall_macro: f64,
    /// The mean of the classes' precisions, by their support.
    pub precision_weighted: f64,
    /// The mean of the classes' recalls, by their support.
    pub recall_weighted: f64,
    /// The mean of the classes' F1.
    pub f1_macro: f64,
    /// The mean of the classes' F1, by their support.
    pub f1_weighted: f64,
    /// The area under the curve of true over false positives: of class 1, or the mean of each class against all others.
    pub roc_auc: Option<f64>,
    /// The average precision: of class 1, or the mean of each class against all others.
    pub pr_auc: Option<f64>,
    /// Minus the mean logarithm of the right class's probability.
    pub log_loss: f64,
    /// The mean squared difference of the probability of class 1; of several classes, the sum over them.
    pub brier: f64,
    /// Each class.
    pub classes: Vec<OfClass>,
    /// Rows: what is; columns: what was said.
    pub confusion: Vec<Vec<usize>>,
    /// Of the probability of class 1, or of the class that was said, in ten bins of equal width.
    pub calibration: Vec<Bin>,
}

/// Measures of a regression.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Regression {
    /// The mean absolute error.
    pub mae: f64,
    /// The root of the mean squared error.
    pub rmse: f64,
    /// The share of the variance that is explained; `None` if there is no variance.
    pub r2: Option<f64>,
    /// The mean of the errors in shares of the true values.
    pub mape: f64,
}

/// 0 where there is nothing to divide by.
fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}

/// The class that scores say, the first of the greatest; of one score whether it is class 1.
pub(super) fn said(scores: &[f64]) -> usize {
    match scores {
        [one] => usize::from(*one > 0.5),
        _ => (0..scores.len()).fold(0, |best, class| if scores[class] > scores[best] { class } else { best }),
    }
}

/// Measures of probabilities `[rows][classes]` (of one column: those of class 1) for the true classes.
///
/// # Errors
/// If the probabilities do not fit the rows, or one is no number.
pub fn classification(probabilities: &[f64], truth: &[usize], labels: &[String]) -> Result<Classification> {
    let (rows, classes) = (truth.len(), labels.len());
    if rows == 0 || classes < 2 {
        return Err("there are no rows, or fewer than two classes".into());
    }
    let wide: Vec<f64> = match probabilities.len() / rows {
        1 if classes == 2 => probabilities.iter().flat_map(|&p| [1.0 - p, p]).collect(),
        n if n == classes => probabilities.to_vec(),
        n => return Err(Error(format!("{n} probabilities of a row for {classes} classes"))),
    };
    if let Some(row) = (0..wide.len()).find(|&i| !wide[i].is_finite()) {
        return Err(Error(format!("row {}: the answer is no number", row / classes + 1)));
    }
    let of = |row: usize| &wide[row * classes..][..classes];
    let said: Vec<usize> = (0..rows).map(|row| said(of(row))).collect();
    let mut confusion = vec![vec![0; classes]; classes];
    truth.iter().zip(&said).for_each(|(&is, &said)| confusion[is][said] += 1);
    let each: Vec<OfClass> = (0..classes).map(|c| of_class(&confusion, c, &labels[c])).collect();
    let present: Vec<&OfClass> = each.iter().filter(|class| class.support > 0).collect();
    let mean = |f: &dyn Fn(&OfClass) -> f64, list: &[&OfClass]| list.iter().map(|class| f(class)).sum::<f64>() / list.len() as f64;
    // A class that neither is nor is said does not count, as in scikit-learn.
    let seen: Vec<&OfClass> =
        each.iter().enumerate().filter(|(c, class)| class.support > 0 || said.contains(c)).map(|(_, class)| class).collect();
    let column = |c: usize| -> Vec<(f64, bool)> { (0..rows).map(|row| (of(row)[c], truth[row] == c)).collect() };
    let areas = |f: fn(Vec<(f64, bool)>) -> Option<f64>| -> Option<f64> {
        if classes == 2 {
            return f(column(1));
        }
        let all: Option<Vec<f64>> = (0..classes).map(|c| f(column(c))).collect();
        all.map(|all| all.iter().sum::<f64>() / classes as f64)
    };
    let weighted = |f: &dyn Fn(&OfClass) -> f64| each.iter().map(|class| f(class) * class.support as f64).sum::<f64>() / rows as f64;
    let right = truth.iter().zip(&said).filter(|(a, b)| a == b).count();
    Ok(Classification {
        accuracy: right as f64 / rows as f64,
        balanced_accuracy: mean(&|class| class.recall, &present),
        precision_macro: mean(&|class| class.precision, &seen),
        recall_macro: mean(&|class| class.recall, &seen),
        precision_weighted: weighted(&|class| class.precision),
        recall_weighted: weighted(&|class| class.recall),
        f1_macro: mean(&|class| class.f1, &seen),
        f1_weighted: weighted(&|class| class.f1),
        roc_auc: areas(roc_auc),
        pr_auc: areas(average_precision),
        log_loss: truth.iter().enumerate().map(|(row, &class)| log_loss(of(row), class)).sum::<f64>() / rows as f64,
        brier: brier(&wide, truth, classes),
        calibration: calibration(
            &(0..rows)
                .map(|row| if classes == 2 { (of(row)[1], truth[row] == 1) } else { (of(row)[said[row]], said[row] == truth[row]) })
                .collect::<Vec<_>>(),
        ),
        classes: each,
        confusion,
    })
}

fn of_class(confusion: &[Vec<usize>], c: usize, label: &str) -> OfClass {
    let right = confusion[c][c] as f64;
    let (said, is): (usize, usize) = (confusion.iter().map(|row| row[c]).sum(), confusion[c].iter().sum());
    let (precision, recall) = (ratio(right, said as f64), ratio(right, is as f64));
    OfClass { label: label.to_owned(), precision, recall, f1: ratio(2.0 * right, (said + is) as f64), support: is }
}

/// Of probabilities that are brought to a sum of 1, and away from 0 by the precision of f64.
fn log_loss(row: &[f64], class: usize) -> f64 {
    let sum: f64 = row.iter().map(|p| p.clamp(f64::EPSILON, 1.0 - f64::EPSILON)).sum();
    -(row[class].clamp(f64::EPSILON, 1.0 - f64::EPSILON) / sum).ln()
}

fn brier(wide: &[f64], truth: &[usize], classes: usize) -> f64 {
    let off = |(i, p): (usize, &f64)| (p - if truth[i / classes] == i % classes { 1.0 } else { 0.0 }).powi(2);
    let sum: f64 = wide.iter().enumerate().map(off).sum();
    sum / truth.len() as f64 / if classes == 2 { 2.0 } else { 1.0 }
}

/// Scores from the greatest to the least, with how many rows of each are and are not.
fn thresholds(mut scores: Vec<(f64, bool)>) -> Vec<(f64, f64)> {
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut counts: Vec<(f64, f64)> = Vec::new();
    let mut last = None;
    for (score, is) in scores {
        if last != Some(score) {
            counts.push((0.0, 0.0));
            last = Some(score);
        }
        if let Some((yes, no)) = counts.last_mut() {
            *if is { yes } else { no } += 1.0;
        }
    }
    counts
}

/// The curve of true over false positives, from (0, 0) to (1, 1); none if there is only one kind of rows.
pub fn roc_curve(scores: Vec<(f64, bool)>) -> Vec<(f64, f64)> {
    let counts = thresholds(scores);
    let (yes, no) = counts.iter().fold((0.0, 0.0), |(a, b), (y, n)| (a + y, b + n));
    if yes == 0.0 || no == 0.0 {
        return Vec::new();
    }
    let mut points = vec![(0.0, 0.0)];
    let (mut found, mut wrong) = (0.0, 0.0);
    for (y, n) in counts {
        (found, wrong) = (found + y, wrong + n);
        points.push((wrong / no, found / yes));
    }
    points
}

/// The curve of precision over recall; none if there is no row that is.
pub fn precision_recall_curve(scores: Vec<(f64, bool)>) -> Vec<(f64, f64)> {
    let counts = thresholds(scores);
    let yes: f64 = counts.iter().map(|(y, _)| y).sum();
    let (mut found, mut taken) = (0.0, 0.0);
    let point = |(y, n): (f64, f64)| {
        (found, taken) = (found + y, taken + y + n);
        (found / yes, found / taken)
    };
    if yes == 0.0 { Vec::new() } else { counts.into_iter().map(point).collect() }
}

/// The area under the curve of true over false positives, by trapezoids; `None` if there is only one kind of rows.
fn roc_auc(scores: Vec<(f64, bool)>) -> Option<f64> {
    let counts = thresholds(scores);
    let (yes, no) = counts.iter().fold((0.0, 0.0), |(a, b), (y, n)| (a + y, b + n));
    let (mut area, mut found) = (0.0, 0.0);
    for (y, n) in counts {
        area += n * (found + y / 2.0);
        found += y;
    }
    (yes > 0.0 && no > 0.0).then(|| area / (yes * no))
}

/// `Σ (Rₙ − Rₙ₋₁) Pₙ` over thresholds; `None` if there is no row that is.
fn average_precision(scores: Vec<(f64, bool)>) -> Option<f64> {
    let counts = thresholds(scores);
    let yes: f64 = counts.iter().map(|(y, _)| y).sum();
    let (mut sum, mut found, mut taken) = (0.0, 0.0, 0.0);
    for (y, n) in counts {
        found += y;
        taken += y + n;
        sum += y / yes * (found / taken);
    }
    (yes > 0.0).then_some(sum)
}

fn calibration(pairs: &[(f64, bool)]) -> Vec<Bin> {
    const BINS: usize = 10;
    let mut bins = vec![(0.0, 0.0, 0); BINS];
    for &(p, is) in pairs {
        // What lies on an edge belongs to the bin below it.
        let bin = &mut bins[(1..BINS).filter(|&edge| edge as f64 * (1.0 / BINS as f64) < p).count()];
        *bin = (bin.0 + p, bin.1 + if is { 1.0 } else { 0.0 }, bin.2 + 1);
    }
    bins.into_iter()
        .filter(|bin| bin.2 > 0)
        .map(|(said, found, rows)| Bin { said: said / rows as f64, found: found / rows as f64, rows })
        .collect()
}

/// Measures of predicted numbers.
///
/// # Errors
/// If there are not as many predictions as values, or one is no number.
pub fn regression(predictions: &[f64], truth: &[f64]) -> Result<Regression> {
    if predictions.len() != truth.len() || truth.is_empty() {
        return Err(Error(format!("{} answers for {} rows", predictions.len(), truth.len())));
    }
    if let Some(row) = predictions.iter().position(|p| !p.is_finite()) {
        return Err(Error(format!("row {}: the answer is no number", row + 1)));
    }
    let count = truth.len() as f64;
    let mean = |f: &dyn Fn(f64, f64) -> f64| predictions.iter().zip(truth).map(|(&p, &y)| f(p, y)).sum::<f64>() / count;
    let centre = truth.iter().sum::<f64>() / count;
    let (off, spread) = (mean(&|p, y| (p - y).powi(2)), mean(&|_, y| (y - centre).powi(2)));
    let mape = mean(&|p, y| (p - y).abs() / y.abs().max(f64::EPSILON));
    Ok(Regression { mae: mean(&|p, y| (p - y).abs()), rmse: off.sqrt(), r2: (spread > 0.0).then(|| 1.0 - off / spread), mape })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Drawn by numpy; what is expected is scikit-learn's answer to the same.
    const TWO_P: &[f64] = &[
        0.55, 0.72, 0.6, 0.54, 0.42, 0.65, 0.44, 0.89, 0.96, 0.38, 0.79, 0.53, 0.57, 0.93, 0.07, 0.09, 0.02, 0.83, 0.78, 0.87, 0.98, 0.8,
        0.46, 0.78, 0.12, 0.64, 0.14, 0.94, 0.52, 0.41, 0.26, 0.77, 0.46, 0.57, 0.02, 0.62, 0.61, 0.62, 0.94, 0.68,
    ];
    const TWO_T: &[usize] =
        &[1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1];
    const TWO: [f64; 8] =
        [0.8, 0.7733333333333333, 0.7802197802197802, 0.7967032967032968, 0.896, 0.9431857166569242, 0.4002170120775318, 0.1288975];
    const TWO_EACH: &[[f64; 3]] =
        &[[0.7692307692307693, 0.6666666666666666, 0.7142857142857143], [0.8148148148148148, 0.88, 0.8461538461538461]];
    const TWO_CONFUSION: &[&[usize]] = &[&[10, 5], &[3, 22]];
    const CALIBRATION: &[[f64; 2]] = &[
        [0.049999999999999996, 0.0],
        [0.13, 0.0],
        [0.26, 0.0],
        [0.38, 1.0],
        [0.438, 0.4],
        [0.5542857142857142, 0.42857142857142855],
        [0.6366666666666667, 0.8333333333333334],
        [0.7733333333333334, 1.0],
        [0.8633333333333333, 1.0],
        [0.95, 1.0],
    ];
    const THREE_P: &[f64] = &[
        0.38897008965752766,
        0.5436464775818544,
        0.06738343276061802,
        0.5074616158478241,
        0.35981273709381845,
        0.13272564705835746,
        0.43643245737518466,
        0.05812173950519172,
        0.5054458031196236,
        0.6408980435902679,
        0.09278944557634215,
        0.2663125108333899,
        0.08108852852372347,
        0.7228873157541653,
        0.19602415572211124,
        0.1829914199345284,
        0.7986394333391879,
        0.018369146726283703,
        0.6082298853028023,
        0.001621220131520761,
        0.390148894565677,
        0.0639857302220043,
        0.27014836326873426,
        0.6658659065092614,
        0.14013733534520384,
        0.42057370666866917,
        0.4392889579861269,
        0.2044382910608616,
        0.06076665949068468,
        0.7347950494484536,
        0.16155177909451024,
        0.5107129803072681,
        0.3277352405982217,
        0.1390411746761033,
        0.6620511880742805,
        0.1989076372496162,
        0.41471374496186925,
        0.1695342930910757,
        0.41575196194705516,
        0.37238673809009454,
        0.40791660157522536,
        0.21969666033468008,
        0.6636290957813911,
        0.21929327001835688,
        0.11707763420025187,
        0.711372436826686,
        0.014785712264963634,
        0.27384185090835034,
        0.4526789894789162,
        0.14369012154924987,
        0.40363088897183397,
        0.5283852088779297,
        0.1373651453499607,
        0.33424964577210975,
        0.32561228594231195,
        0.34484315993980036,
        0.3295445541178876,
        0.39523099602514716,
        0.3940517319882432,
        0.21071727198660967,
        0.6876172791904737,
        0.13887105386444365,
        0.1735116669450828,
        0.43773132140453547,
        0.3228313796378941,
        0.23943729895757035,
        0.027237287286492863,
        0.6497177657644797,
        0.3230449469490274,
        0.7556420529470973,
        0.018079634302431393,
        0.22627831275047133,
        0.14012562898388334,
        0.7554205995079466,
        0.10445377150817003,
        0.43085567302468925,
        0.37660564746977876,
        0.19253867950553202,
        0.29210877465419605,
        0.04004247547176215,
        0.6678487498740416,
        0.15505161048555888,
        0.3285093174568981,
        0.5164390720575431,
        0.6556645430528443,
        0.34225299554185556,
        0.0020824614053001995,
        0.2295720904987516,
        0.673560689368675,
        0.09686722013257355,
        0.7251520369288976,
        0.05503677816183677,
        0.2198111849092657,
        0.010102307497374887,
        0.8529130352632138,
        0.13698465723941117,
        0.09910866290789185,
        0.6157708444087286,
        0.2851204926833795,
        0.027333089769099653,
        0.15201715203267108,
        0.8206497581982293,
        0.22338792565953655,
        0.07049099995916858,
        0.7061210743812948,
        0.3646454843871924,
        0.2938678335902029,
        0.34148668202260457,
        0.5976560684885439,
        0.17060469294761932,
        0.23173923856383685,
        0.07071467229778833,
        0.06185974150880755,
        0.8674255861934042,
        0.5906851985637988,
        0.2960323015652262,
        0.11328249987097512,
        0.3179289940988825,
        0.0647550435064358,
        0.6173159623946819,
    ];
    const THREE_T: &[usize] =
        &[0, 1, 0, 0, 0, 0, 2, 2, 1, 2, 2, 1, 2, 0, 0, 2, 0, 0, 1, 2, 0, 2, 1, 2, 1, 2, 2, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 2, 0, 2];
    const THREE: [f64; 8] = [
        0.525,
        0.5260683760683761,
        0.5277777777777778,
        0.525,
        0.751733957400624,
        0.587537131724984,
        0.9177983854047256,
        0.5572050405509904,
    ];
    const THREE_EACH: &[[f64; 3]] = &[
        [0.47058823529411764, 0.5333333333333333, 0.5],
        [0.5833333333333334, 0.5833333333333334, 0.5833333333333334],
        [0.5454545454545454, 0.46153846153846156, 0.5],
    ];
    const THREE_CONFUSION: &[&[usize]] = &[&[8, 4, 3], &[3, 7, 2], &[6, 1, 6]];
    const Y: &[f64] = &[
        -4.522, 1.261, -2.698, 8.715, -5.464, 2.335, 0.804, -4.84, 3.616, 0.142, 4.859, 5.118, 11.816, 7.683, -0.846, -0.197, 6.498, 4.276,
        4.201, -7.085, 0.878, -2.69, 2.4, 0.509, 5.551, 2.586, 4.932, -1.332, -3.722, -1.05,
    ];
    const Q: &[f64] = &[
        -4.539, 1.64, -0.439, 8.673, -6.42, 1.989, 0.34, -4.359, 2.075, 0.205, 5.016, 5.35, 11.219, 7.445, -2.27, -0.69, 5.955, 4.692,
        3.045, -6.304, 2.372, -4.76, 2.826, 1.186, 4.914, 2.189, 4.799, -1.63, -4.031, -2.726,
    ];
    const NUMBERS: [f64; 4] = [0.6900666666666665, 0.9131512470560395, 0.9571749416049478, 0.4701293228263973];

    /// The bound that is asked for.
    const BOUND: f64 = 1e-9;

    fn near(what: &str, found: f64, want: f64) {
        assert!((found - want).abs() <= BOUND * want.abs().max(1.0), "{what}: {found} is not {want}");
    }

    #[test]
    fn measures_of_classes_are_those_of_scikit_learn() {
        let labels = |n: usize| (0..n).map(|c| c.to_string()).collect::<Vec<_>>();
        for (p, t, n, want, each, confusion) in
            [(TWO_P, TWO_T, 2, TWO, TWO_EACH, TWO_CONFUSION), (THREE_P, THREE_T, 3, THREE, THREE_EACH, THREE_CONFUSION)]
        {
            let found = classification(p, t, &labels(n)).unwrap();
            let all = [
                found.accuracy,
                found.balanced_accuracy,
                found.f1_macro,
                found.f1_weighted,
                found.roc_auc.unwrap(),
                found.pr_auc.unwrap(),
                found.log_loss,
                found.brier,
            ];
            for (i, (found, want)) in all.into_iter().zip(want).enumerate() {
                near(&format!("{n} classes, measure {i}"), found, want);
            }
            for (class, want) in found.classes.iter().zip(each) {
                near("precision", class.precision, want[0]);
                near("recall", class.recall, want[1]);
                near("f1", class.f1, want[2]);
            }
            assert_eq!(found.confusion, confusion);
        }
        let found = classification(TWO_P, TWO_T, &labels(2)).unwrap();
        assert_eq!(found.calibration.len(), CALIBRATION.len());
        for (bin, want) in found.calibration.iter().zip(CALIBRATION) {
            near("said", bin.said, want[0]);
            near("found", bin.found, want[1]);
        }
    }

    #[test]
    fn measures_of_numbers_are_those_of_scikit_learn() {
        let found = regression(Q, Y).unwrap();
        for (found, want) in [found.mae, found.rmse, found.r2.unwrap(), found.mape].into_iter().zip(NUMBERS) {
            near("number", found, want);
        }
        assert_eq!(regression(&[1.0, 2.0], &[3.0, 3.0]).unwrap().r2, None);
    }

    #[test]
    fn answers_that_do_not_fit_are_refused() {
        let labels = ["a".to_owned(), "b".to_owned()];
        assert!(classification(&[0.1, 0.2, 0.7], &[0], &labels).is_err());
        assert_eq!(classification(&[0.5, f64::NAN], &[0, 1], &labels).unwrap_err().0, "row 2: the answer is no number");
        assert_eq!(regression(&[1.0], &[1.0, 2.0]).unwrap_err().0, "1 answers for 2 rows");
        // One kind of rows only: there is no curve.
        assert_eq!(classification(&[0.5, 0.4], &[0, 0], &labels).unwrap().roc_auc, None);
    }
}
