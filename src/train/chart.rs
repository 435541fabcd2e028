//! Curves as SVG: a picture that a README shows and that needs nothing else.

use std::fmt::Write as _;

/// A curve: its name, its colour, its values by epoch.
pub struct Curve<'a> {
    /// What it shows.
    pub name: &'a str,
    /// A colour of CSS.
    pub colour: &'a str,
    /// A value for each epoch; missing ones are gaps.
    pub values: Vec<Option<f64>>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 32.0;
const TOP: f64 = 24.0;

/// The curves over epochs, values on a logarithmic axis.
pub fn curves(title: &str, curves: &[Curve<'_>]) -> String {
    let all = || curves.iter().flat_map(|c| &c.values).flatten().filter(|v| **v > 0.0).map(|v| v.log10());
    let (mut low, mut high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    if !low.is_finite() {
        (low, high) = (-1.0, 0.0);
    }
    if high - low < 0.1 {
        (low, high) = (low - 0.1, high + 0.1);
    }
    let epochs = curves.iter().map(|c| c.values.len()).max().unwrap_or(0).max(2);
    let x = |epoch: usize| LEFT + epoch as f64 / (epochs - 1) as f64 * (WIDTH - LEFT - 16.0);
    let y = |log: f64| TOP + (high - log) / (high - low) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/><text x=\"{LEFT}\" y=\"16\">{}</text>\n",
        escaped(title)
    );
    for i in 0..=4 {
        let log = low + (high - low) * f64::from(i) / 4.0;
        let at = y(log);
        let right = WIDTH - 16.0;
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/><text x=\"4\" y=\"{:.1}\">{:.2e}</text>",
            at + 4.0,
            10_f64.powf(log)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{0}\">1</text><text x=\"{1}\" y=\"{0}\" text-anchor=\"end\">epoch {epochs}</text>",
        HEIGHT - 10.0,
        WIDTH - 16.0
    );
    for (number, curve) in curves.iter().enumerate() {
        let mut path = String::new();
        let mut pen = 'M';
        for (epoch, value) in curve.values.iter().enumerate() {
            match value.filter(|v| *v > 0.0) {
                Some(value) => {
                    let _ = write!(path, "{pen}{:.1} {:.1}", x(epoch), y(value.log10()));
                    pen = 'L';
                }
                None => pen = 'M',
            }
        }
        let (colour, at) = (curve.colour, LEFT + 160.0 * (number + 1) as f64);
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/><text x=\"{at}\" y=\"16\" fill=\"{colour}\">{}</text>",
            escaped(curve.name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Bars side by side, each with its caption and count when it is pointed at; captions below if there is room.
pub fn bars(bars: &[(String, usize)], [width, height]: [f64; 2]) -> String {
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1) as f64;
    let step = width / bars.len().max(1) as f64;
    let bottom = height - 16.0;
    let mut svg = format!("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-size=\"10\">");
    for (at, (caption, count)) in bars.iter().enumerate() {
        let (x, tall) = (at as f64 * step, *count as f64 / most * bottom);
        let _ = write!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{tall:.1}\" fill=\"#1f77b4\"><title>{}: {count}</title></rect>",
            x + 1.0,
            bottom - tall,
            (step - 2.0).max(1.0),
            escaped(caption)
        );
        // A letter is about six wide.
        let room = (step / 6.0) as usize;
        if room >= 4 {
            let short: String = caption.chars().take(room).collect();
            let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 1.0, height - 4.0, escaped(&short));
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Text as XML has it.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_tall_as_their_counts() {
        let svg = bars(&[("a<b".to_owned(), 2), ("c".to_owned(), 4)], [100.0, 66.0]);
        assert!(svg.contains("height=\"25.0\" fill") && svg.contains("height=\"50.0\" fill") && svg.contains("a&lt;b: 2"), "{svg}");
    }

    #[test]
    fn a_gap_lifts_the_pen() {
        let svg = curves("a < b", &[Curve { name: "loss", colour: "red", values: vec![Some(1.0), None, Some(0.1), Some(0.01)] }]);
        assert!(svg.contains("a &lt; b"));
        let path = svg.split("<path d=\"").last().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 1), "{path}");
    }
}
