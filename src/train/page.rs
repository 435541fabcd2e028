//! An evaluation as one HTML page that needs nothing else: tables, and plots as SVG inside.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::chart::escaped;
use super::evaluation::{Comparison, Judged, Measures, Slice, Truth};
use super::metrics::{Classification, precision_recall_curve, roc_curve};
use super::statistics::Interval;

/// What the page tells.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// The model, the data.
    pub title: &'a str,
    /// The answers.
    pub judged: Judged<'a>,
    /// The measures of all rows.
    pub measures: &'a Measures,
    /// Where they lie.
    pub intervals: &'a BTreeMap<&'static str, Interval>,
    /// The share of the bootstrap's samples within them.
    pub confidence: f64,
    /// The measures of slices.
    pub slices: &'a [Slice],
    /// Another model beside this one: its name, and the comparison.
    pub comparison: Option<(&'a str, &'a Comparison)>,
}

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child{text-align:left}figure{display:inline-block;margin:0 1em 1em 0}figcaption{color:#555}";

/// The page.
pub fn html(page: &Page<'_>) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style>\n<h1>{0}</h1>\n<p>{1} rows</p>\n",
        escaped(page.title),
        page.judged.rows()
    );
    summary(&mut text, page);
    match (page.measures, page.judged.truth) {
        (Measures::Classes(found), Truth::Classes { labels, of }) => {
            classes(&mut text, found);
            curves(&mut text, page.judged.answers, of, labels);
            calibration(&mut text, found);
        }
        (Measures::Numbers(_), Truth::Numbers(values)) => scatter(&mut text, page.judged.answers, values),
        _ => {}
    }
    by_slices(&mut text, page.slices);
    if let Some((name, comparison)) = page.comparison {
        beside(&mut text, name, comparison);
    }
    text.push_str("</html>\n");
    text
}

fn number(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.4}"))
}

fn summary(text: &mut String, page: &Page<'_>) {
    let percent = page.confidence * 100.0;
    let _ = writeln!(text, "<table><tr><th>measure<th>value<th>{percent}&#8239;% interval");
    for (name, value) in page.measures.named() {
        let interval = page.intervals.get(name).map_or(String::new(), |i| format!("{:.4} to {:.4}", i.low, i.high));
        let _ = writeln!(text, "<tr><td>{name}<td>{}<td>{interval}", number(value));
    }
    text.push_str("</table>\n");
}

fn classes(text: &mut String, found: &Classification) {
    text.push_str("<h2>Classes</h2>\n<table><tr><th>class<th>precision<th>recall<th>F1<th>rows\n");
    for class in &found.classes {
        let _ = writeln!(
            text,
            "<tr><td>{}<td>{:.4}<td>{:.4}<td>{:.4}<td>{}",
            escaped(&class.label),
            class.precision,
            class.recall,
            class.f1,
            class.support
        );
    }
    text.push_str("</table>\n<h2>Confusion</h2>\n<table><tr><th>is \\ was taken for");
    for class in &found.classes {
        let _ = write!(text, "<th>{}", escaped(&class.label));
    }
    text.push('\n');
    for (class, row) in found.classes.iter().zip(&found.confusion) {
        let _ = write!(text, "<tr><td>{}", escaped(&class.label));
        for count in row {
            let share = *count as f64 / class.support.max(1) as f64;
            let _ = write!(text, "<td style=\"background:rgba(31,119,180,{share:.3})\">{count}");
        }
        text.push('\n');
    }
    text.push_str("</table>\n");
}

/// Colours of classes, after Tableau.
const COLOURS: [&str; 10] = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"];

fn curves(text: &mut String, answers: &[f64], of: &[usize], labels: &[String]) {
    let columns = answers.len() / of.len().max(1);
    let scores = |class: usize| -> Vec<(f64, bool)> {
        let score = |row: usize| if columns == 1 { answers[row] } else { answers[row * columns + class] };
        (0..of.len()).map(|row| (score(row), of[row] == class)).collect()
    };
    // Of two classes the second one tells all.
    let shown: Vec<usize> = if labels.len() == 2 { vec![1] } else { (0..labels.len()).collect() };
    type Curve = fn(Vec<(f64, bool)>) -> Vec<(f64, f64)>;
    let plots: [(&str, [&str; 2], Curve, bool); 2] = [
        ("ROC curve", ["false positives", "true positives"], roc_curve, true),
        ("Precision and recall", ["recall", "precision"], precision_recall_curve, false),
    ];
    text.push_str("<h2>Curves</h2>\n");
    for (title, axes, curve, diagonal) in plots {
        let mut plot = Plot::new((0.0, 1.0), (0.0, 1.0), axes);
        if diagonal {
            plot.line(&[(0.0, 0.0), (1.0, 1.0)], "#ccc");
        }
        shown.iter().for_each(|&class| plot.line(&thinned(curve(scores(class))), COLOURS[class % COLOURS.len()]));
        figure(text, title, &plot.done());
    }
    if shown.len() > 1 {
        text.push_str("<p>");
        for &class in &shown {
            let _ = write!(text, "<span style=\"color:{}\">■ {}</span> ", COLOURS[class % COLOURS.len()], escaped(&labels[class]));
        }
        text.push_str("</p>\n");
    }
}

fn calibration(text: &mut String, found: &Classification) {
    let mut plot = Plot::new((0.0, 1.0), (0.0, 1.0), ["said", "found"]);
    plot.line(&[(0.0, 0.0), (1.0, 1.0)], "#ccc");
    let points: Vec<(f64, f64)> = found.calibration.iter().map(|bin| (bin.said, bin.found)).collect();
    plot.line(&points, COLOURS[0]);
    plot.dots(&points, COLOURS[0]);
    figure(text, "Calibration", &plot.done());
}

fn scatter(text: &mut String, answers: &[f64], values: &[f64]) {
    let all = || answers.iter().chain(values).copied();
    let range = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let mut plot = Plot::new(range, range, ["known", "answered"]);
    plot.line(&[(range.0, range.0), (range.1, range.1)], "#ccc");
    plot.dots(&thinned(values.iter().copied().zip(answers.iter().copied()).collect()), COLOURS[0]);
    text.push_str("<h2>Answers</h2>\n");
    figure(text, "Answers over what is known", &plot.done());
    let errors: Vec<f64> = answers.iter().zip(values).map(|(answer, value)| answer - value).collect();
    figure(text, "Errors: answer minus what is known", &histogram(&errors));
}

fn histogram(values: &[f64]) -> String {
    const BINS: usize = 20;
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
    let width = (high - low).max(f64::MIN_POSITIVE) / BINS as f64;
    let mut counts = [0_usize; BINS];
    values.iter().for_each(|value| counts[(((value - low) / width) as usize).min(BINS - 1)] += 1);
    let most = counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    let mut plot = Plot::new((low, high), (0.0, most), ["error", "rows"]);
    for (bin, &count) in counts.iter().enumerate() {
        let from = low + bin as f64 * width;
        plot.bar(from, from + width, count as f64, COLOURS[0]);
    }
    plot.done()
}

fn by_slices(text: &mut String, slices: &[Slice]) {
    let Some(first) = slices.first() else { return };
    text.push_str("<h2>Slices</h2>\n<table><tr><th>slice<th>rows");
    for name in first.measures.keys() {
        let _ = write!(text, "<th>{name}");
    }
    text.push('\n');
    for slice in slices {
        let _ = write!(text, "<tr><td>{} = {}<td>{}", escaped(&slice.column), escaped(&slice.value), slice.rows);
        for value in slice.measures.values() {
            let _ = write!(text, "<td>{}", number(*value));
        }
        text.push('\n');
    }
    text.push_str("</table>\n");
}

fn beside(text: &mut String, name: &str, comparison: &Comparison) {
    let _ = writeln!(text, "<h2>Beside {}</h2>\n<table><tr><th>measure<th>this<th>other<th>other minus this", escaped(name));
    for (name, difference) in &comparison.measures {
        let interval = difference.interval.map_or(String::new(), |i| format!("{:+.4} to {:+.4}", i.low, i.high));
        let _ = writeln!(text, "<tr><td>{name}<td>{}<td>{}<td>{interval}", number(difference.first), number(difference.second));
    }
    let _ = writeln!(text, "</table>\n<p>{}: p = {:.4}</p>", comparison.decisive, comparison.p);
}

fn figure(text: &mut String, caption: &str, svg: &str) {
    let _ = writeln!(text, "<figure>{svg}<figcaption>{}</figcaption></figure>", escaped(caption));
}

/// At most so many points as can be told apart, evenly taken, the last one included.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    const POINTS: usize = 800;
    if points.len() <= POINTS {
        return points;
    }
    (0..POINTS).map(|i| points[i * (points.len() - 1) / (POINTS - 1)]).collect()
}

/// A plot under construction.
struct Plot {
    x: (f64, f64),
    y: (f64, f64),
    axes: [&'static str; 2],
    body: String,
}

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 44.0;
const EDGE: f64 = 12.0;

impl Plot {
    fn new(x: (f64, f64), y: (f64, f64), axes: [&'static str; 2]) -> Self {
        Self { x, y, axes, body: String::new() }
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let share = |(low, high): (f64, f64), v: f64| if high > low { (v - low) / (high - low) } else { 0.5 };
        (LEFT + share(self.x, x) * (WIDTH - LEFT - EDGE), EDGE + (1.0 - share(self.y, y)) * (HEIGHT - BOTTOM - EDGE))
    }

    fn line(&mut self, points: &[(f64, f64)], colour: &str) {
        let mut path = String::new();
        for (i, &point) in points.iter().enumerate() {
            let (x, y) = self.place(point);
            let _ = write!(path, "{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
        }
        let _ = write!(self.body, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
    }

    fn dots(&mut self, points: &[(f64, f64)], colour: &str) {
        for &point in points {
            let (x, y) = self.place(point);
            let _ = write!(self.body, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\" fill-opacity=\"0.6\"/>");
        }
    }

    fn bar(&mut self, from: f64, to: f64, height: f64, colour: &str) {
        let ((left, top), (right, bottom)) = (self.place((from, height)), self.place((to, self.y.0)));
        let (width, height) = ((right - left - 1.0).max(0.5), bottom - top);
        let _ = write!(self.body, "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>");
    }

    fn done(self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\
             <path d=\"M{LEFT} {EDGE}V{0}H{1}\" fill=\"none\" stroke=\"#888\"/>",
            HEIGHT - BOTTOM,
            WIDTH - EDGE
        );
        for i in 0..=4 {
            let share = f64::from(i) / 4.0;
            let value = |(low, high): (f64, f64)| low + share * (high - low);
            let (x, y) = self.place((value(self.x), value(self.y)));
            let _ = write!(
                svg,
                "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                HEIGHT - BOTTOM + 14.0,
                short(value(self.x)),
                LEFT - 6.0,
                y + 4.0,
                short(value(self.y))
            );
        }
        let (middle, bottom) = ((LEFT + WIDTH) / 2.0, HEIGHT - 8.0);
        let [x, y] = self.axes;
        let _ = write!(
            svg,
            "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">{x}</text>\
             <text x=\"12\" y=\"{0}\" transform=\"rotate(-90 12 {0})\" text-anchor=\"middle\">{y}</text>{1}</svg>",
            HEIGHT / 2.0 - EDGE,
            self.body
        );
        svg
    }
}

/// A number of an axis.
fn short(value: f64) -> String {
    if value == 0.0 || (0.01..100_000.0).contains(&value.abs()) {
        let text = format!("{value:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.1e}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::statistics::Bootstrap;
    use super::*;
    use crate::train::evaluation::compare;

    #[test]
    fn a_page_has_all_and_needs_nothing() {
        let labels: Vec<String> = ["a<b", "b", "c"].map(str::to_owned).into();
        let of: Vec<usize> = (0..30).map(|row| row % 3).collect();
        let answers: Vec<f64> = (0..90).map(|i| if i % 3 == i / 3 % 3 { 0.8 } else { 0.1 }).collect();
        let truth = Truth::Classes { labels, of };
        let judged = Judged { truth: &truth, answers: &answers };
        let bootstrap = Bootstrap { samples: 20, confidence: 0.95, seed: 0 };
        let measures = judged.all().unwrap();
        let comparison = compare(&judged, &judged, &bootstrap).unwrap();
        let slice = Slice { column: "kind".into(), value: "x".into(), rows: 3, measures: measures.named().into_iter().collect() };
        let page = html(&Page {
            title: "digits & more",
            judged,
            measures: &measures,
            intervals: &judged.intervals(&measures, &bootstrap),
            confidence: 0.95,
            slices: &[slice],
            comparison: Some(("old", &comparison)),
        });
        for part in [
            "digits &amp; more",
            "a&lt;b",
            "ROC curve",
            "Calibration",
            "Confusion",
            "kind = x",
            "Beside old",
            "p = 1.0000",
            "95&#8239;% interval",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("http://") || page.matches("http://").count() == page.matches("http://www.w3.org/2000/svg").count());
        assert!(!page.contains("NaN") && !page.contains("<script"), "{page}");
    }

    #[test]
    fn numbers_have_a_scatter_and_errors() {
        let truth = Truth::Numbers((0..2000).map(f64::from).collect());
        let answers: Vec<f64> = (0..2000).map(|i| f64::from(i) + f64::from(i % 7)).collect();
        let judged = Judged { truth: &truth, answers: &answers };
        let measures = judged.all().unwrap();
        let (intervals, slices) = (BTreeMap::new(), []);
        let page =
            Page { title: "t", judged, measures: &measures, intervals: &intervals, confidence: 0.9, slices: &slices, comparison: None };
        let page = html(&page);
        assert!(page.contains("Errors: answer minus") && page.matches("<circle").count() == 800 && page.matches("<rect").count() == 20);
        assert_eq!([0.0, 0.25, -1.5, 1e-6, 123_456.0].map(short), ["0", "0.25", "-1.5", "1.0e-6", "1.2e5"]);
    }
}
