//! What is known of the data before anything is trained: as text, and as one page of HTML that fetches nothing.

use std::fmt::Write as _;
use std::path::Path;

use super::chart::{bars, escaped};
use super::config::Config;
use super::data::{Inputs, Target};
use super::error::{Error, Result};
use super::folder::quoted;
use super::known::Known;
use super::prepare::Preparation;
use super::split::Split;
use super::summary::{Content, Summary};

/// A report of data.
#[derive(Clone, Debug)]
pub struct DataReport {
    /// For a terminal.
    pub text: String,
    /// For a browser.
    pub html: String,
}

/// A column as a line of the report.
struct Line {
    name: String,
    kind: &'static str,
    missing: usize,
    /// Least, quartiles and greatest, or the most frequent texts.
    values: String,
    /// What the preparation does.
    done: String,
    /// Bars with their captions.
    plot: Vec<(String, usize)>,
}

/// Bars of a histogram.
const BINS: usize = 24;
/// Texts that are named.
const NAMED: usize = 12;

/// Reports the data of a configuration, how it is parted, and what is done about each column. `memory_bytes` as for a training.
///
/// # Errors
/// What is wrong with the data, by row, column or key.
pub fn report(config: &Config, memory_bytes: usize) -> Result<DataReport> {
    let known = Known::read(config, memory_bytes)?;
    let split = known.split(config)?;
    let passing = |f: &mut dyn FnMut(&Inputs, &[usize]) -> Result<()>| known.picked(&split.train, &mut |inputs, rows, _| f(inputs, rows));
    let preparation = Preparation::fit(&passing, &config.prepare)?;
    Ok(of(config, &known, &split, &preparation))
}

/// The report of data that is read and parted already.
pub(super) fn of(config: &Config, known: &Known, split: &Split, preparation: &Preparation) -> DataReport {
    let lines = lines(known.summary.clone(), preparation);
    let title = config.data.path.file_name().unwrap_or(config.data.path.as_os_str()).to_string_lossy().into_owned();
    let target = target(known, split);
    let head = format!(
        "{} rows, {} are used: {} train, {} say when to stop, {} judge; a prepared row has shape {:?}",
        known.summary.rows,
        known.rows,
        split.train.len(),
        split.validation.len(),
        split.test.len(),
        preparation.shape()
    );
    DataReport { text: text(&title, &head, &lines, &target), html: html(&title, &head, config.data.target(), &lines, &target) }
}

fn lines(mut summary: Summary, preparation: &Preparation) -> Vec<Line> {
    let done = preparation.columns();
    let of = |name: &str| done.iter().find(|(known, _)| *known == name).map_or("", |(_, what)| what.as_str()).to_owned();
    let line = |(name, content): &mut (String, Content)| {
        let done = of(name);
        match content {
            Content::Numbers(seen) => {
                let [low, middle, high] = [0.25, 0.5, 0.75].map(|q| seen.quantile(q));
                let values = format!(
                    "{} … {} (quartiles {}, {}, {}; mean {}, deviation {})",
                    short(seen.least),
                    short(seen.greatest),
                    short(low),
                    short(middle),
                    short(high),
                    short(seen.mean()),
                    short(seen.deviation())
                );
                let width = (seen.greatest - seen.least) / BINS as f64;
                let caption = |bin: usize| format!("from {}", short(seen.least + width * bin as f64));
                let plot = seen.histogram(BINS).into_iter().enumerate().map(|(bin, count)| (caption(bin), count)).collect();
                Line { name: name.clone(), kind: "numbers", missing: seen.missing, values, done, plot }
            }
            Content::Texts(seen) => {
                let mut most: Vec<(String, usize)> = seen.counts.iter().map(|(text, &count)| (text.clone(), count)).collect();
                most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
                most.truncate(NAMED);
                let named: Vec<String> = most.iter().take(4).map(|(text, count)| format!("{text} {count}")).collect();
                let more = if seen.more { "more than " } else { "" };
                let values = format!("{more}{} different: {}", seen.counts.len(), named.join(", "));
                let kind = if done.starts_with("dates") { "dates" } else { "texts" };
                Line { name: name.clone(), kind, missing: seen.missing, values, done, plot: most }
            }
        }
    };
    summary.columns.iter_mut().map(line).collect()
}

/// Classes with their rows in each part, or bins of numbers.
fn target(known: &Known, split: &Split) -> Vec<(String, [usize; 3])> {
    let parts = [&split.train, &split.validation, &split.test];
    match &known.target {
        Target::Classes { labels, of } => {
            let count = |class: usize| parts.map(|part| part.iter().filter(|&&row| of[row] == class).count());
            labels.iter().enumerate().map(|(class, label)| (label.clone(), count(class))).collect()
        }
        Target::Numbers(values) => {
            let range = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
            let (least, width) = (f64::from(range.0), f64::from(range.1 - range.0) / BINS as f64);
            let mut bins: Vec<(String, [usize; 3])> =
                (0..BINS).map(|bin| (format!("from {}", short(least + width * bin as f64)), [0; 3])).collect();
            for (at, part) in parts.iter().enumerate() {
                for &row in *part {
                    let bin = if width > 0.0 { ((f64::from(values[row]) - least) / width) as usize } else { 0 };
                    bins[bin.min(BINS - 1)].1[at] += 1;
                }
            }
            bins
        }
    }
}

/// Four digits of a number.
fn short(value: f64) -> String {
    format!("{value:.3e}").parse().unwrap_or(value).to_string()
}

fn text(title: &str, head: &str, lines: &[Line], target: &[(String, [usize; 3])]) -> String {
    let width = |f: &dyn Fn(&Line) -> usize| lines.iter().map(f).max().unwrap_or(0);
    let names = width(&|line| line.name.chars().count());
    let mut text = format!("{title}: {head}\n\n");
    for line in lines {
        let missing = if line.missing == 0 { String::new() } else { format!(", {} missing", line.missing) };
        let _ = writeln!(text, "{:names$}  {}{missing}: {}", line.name, line.kind, line.values);
        let _ = writeln!(text, "{:names$}  → {}", "", line.done);
    }
    let labels = target.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0).max(6);
    let _ = writeln!(text, "\n{:labels$}  {:>8}  {:>8}  {:>8}", "target", "train", "stop", "judge");
    for (label, [train, stop, judge]) in target {
        let _ = writeln!(text, "{label:labels$}  {train:8}  {stop:8}  {judge:8}");
    }
    text
}

const STYLE: &str = "body{font:14px/1.5 sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222}\
                     table{border-collapse:collapse;width:100%}td,th{padding:.4em .6em;border-bottom:1px solid #ddd;text-align:left;\
                     vertical-align:top}th{background:#f6f6f6}code{background:#f3f3f3}.missing{color:#b00}svg{display:block}";

fn html(title: &str, head: &str, name: &str, lines: &[Line], target: &[(String, [usize; 3])]) -> String {
    let title = escaped(title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head><body>\n\
         <h1>{title}</h1><p>{}</p>\n<h2>Target <code>{}</code></h2>\n",
        escaped(head),
        escaped(name)
    );
    let whole: Vec<(String, usize)> = target.iter().map(|(label, parts)| (label.clone(), parts.iter().sum())).collect();
    page.push_str(&bars(&whole, [640.0, 140.0]));
    page.push_str("<table><tr><th></th><th>train</th><th>say when to stop</th><th>judge</th></tr>\n");
    for (label, parts) in target {
        let cells: String = parts.iter().map(|count| format!("<td>{count}</td>")).collect();
        let _ = writeln!(page, "<tr><td>{}</td>{cells}</tr>", escaped(label));
    }
    page.push_str(
        "</table>\n<h2>Columns</h2>\n<table><tr><th>name</th><th>holds</th><th>missing</th><th>values</th><th>becomes</th></tr>\n",
    );
    for line in lines {
        let missing = if line.missing == 0 { "0".to_owned() } else { format!("<span class=\"missing\">{}</span>", line.missing) };
        let _ = writeln!(
            page,
            "<tr><td><code>{}</code></td><td>{}</td><td>{missing}</td><td>{}{}</td><td>{}</td></tr>",
            escaped(&line.name),
            line.kind,
            escaped(&line.values),
            bars(&line.plot, [320.0, 70.0]),
            escaped(&line.done)
        );
    }
    page.push_str("</table></body></html>\n");
    page
}

/// A first configuration for a file: what its columns seem to need, each rule written out.
///
/// # Errors
/// What is wrong with the file.
pub fn suggest(path: &Path, target: &str, memory_bytes: usize) -> Result<String> {
    let head = format!("[data]\npath = {}\ntarget = {}\n", quoted(&path.to_string_lossy()), quoted(target));
    let tail = "[train]\nepochs = 1\nlearning_rate = 0.001\n";
    let first = |task: &str| Config::parse(&format!("{head}{task}[prepare]\nmissing = \"median\"\n{tail}"));
    let mut config = first("")?;
    if path.is_dir() || path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npz")) {
        config = Config::parse(&format!("{head}{tail}"))?;
    }
    let known = Known::read(&config, memory_bytes).or_else(|_| Known::read(&first("task = \"classify\"\n")?, memory_bytes))?;
    let classes = match &known.target {
        Target::Classes { .. } => true,
        Target::Numbers(values) => {
            let mut whole: Vec<i64> = values.iter().filter(|v| v.fract() == 0.0).map(|&v| v as i64).collect();
            let all = whole.len() == values.len();
            whole.sort_unstable();
            whole.dedup();
            all && whole.len() <= 20 && whole.len() * 3 <= values.len()
        }
    };
    let (task, metric) = if classes { ("classify", "cross_entropy") } else { ("regress", "mean_squared") };
    let mut columns = String::new();
    let mut features = Vec::new();
    let mut summary = known.summary.clone();
    for (name, content) in &mut summary.columns {
        match rules(content) {
            None => continue,
            Some(rules) if rules.is_empty() => {}
            Some(rules) => {
                let _ = writeln!(columns, "[prepare.columns.{}]\n{rules}", quoted(name));
            }
        }
        features.push(quoted(name));
    }
    if known.summary.array.is_none() && features.is_empty() {
        return Err(Error(format!("{}: no column says anything about others", path.display())));
    }
    let features = if features.len() == summary.columns.len() { String::new() } else { format!("features = [{}]\n", features.join(", ")) };
    let (layers, scale) = match summary.array.as_deref() {
        Some([_, height, width]) if *height >= 8 && *width >= 8 => (
            "[[layer]]\nkind = \"conv\"\nfilters = 32\nkernel = 3\npadding = \"same\"\nactivation = \"relu\"\n\n[[layer]]\nkind = \"max_pool\"\nkernel = 2\n\n\
             [[layer]]\nkind = \"flatten\"\n\n",
            "[prepare]\nscale = \"min_max\"\n\n",
        ),
        Some(shape) if shape.len() > 1 => ("[[layer]]\nkind = \"flatten\"\n\n", "[prepare]\nscale = \"min_max\"\n\n"),
        _ => ("", ""),
    };
    let text = format!(
        "{head}task = \"{task}\"\n{features}validation = 0.15\ntest = 0.15\n\n{scale}{columns}{layers}[[layer]]\nkind = \"dense\"\nunits = 32\nactivation = \"relu\"\n\n\
         [train]\nepochs = 200\nbatch = 32\nlearning_rate = 0.001\noptimizer = {{ kind = \"adamw\" }}\nloss = {{ kind = \"{metric}\" }}\npatience = 20\n"
    );
    Config::parse(&text)?;
    Ok(text)
}

/// The rules that a column seems to need; `None` if it is better left out.
fn rules(content: &mut Content) -> Option<String> {
    let mut text = String::new();
    match content {
        Content::Numbers(seen) => {
            if seen.greatest <= seen.least {
                return None;
            }
            if seen.missing > 0 {
                text.push_str("missing = \"median\"\n");
                // Where many are missing, that says something itself.
                if seen.missing * 20 >= seen.count {
                    text.push_str("indicator = true\n");
                }
            }
            let [low, middle, high] = [0.01, 0.5, 0.99].map(|q| seen.quantile(q));
            if seen.least >= 0.0 && high + 1.0 > 20.0 * (middle + 1.0) {
                text.push_str("log = true\n");
            } else if seen.greatest > high + 3.0 * (high - middle) || seen.least < low - 3.0 * (middle - low) {
                text.push_str("clip = [0.01, 0.99]\n");
            }
        }
        Content::Texts(seen) => {
            if seen.more || (seen.counts.len() == seen.count && seen.count > 20 && !dates(seen)) || seen.counts.len() < 2 {
                return None;
            }
            if dates(seen) {
                text.push_str("encode = \"date\"\n");
                if seen.missing > 0 {
                    text.push_str("missing = \"median\"\n");
                }
            } else {
                text.push_str(if seen.counts.len() <= 50 { "encode = \"one_hot\"\n" } else { "encode = \"ordinal\"\n" });
                text.push_str("unknown = \"allow\"\n");
            }
        }
    }
    Some(text)
}

fn dates(seen: &super::data::gather::Texts) -> bool {
    super::prepare::are_dates(seen.counts.keys().map(String::as_str))
}
