//! Pictures: lines over a grid, as SVG.

use std::fmt::Write;

/// One line of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// One diagram.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// What stands below the horizontal axis.
    pub horizontal: String,
    /// Lines.
    pub lines: Vec<Line>,
    /// Least and most of the vertical axis; `None`: from 0 to what the lines need.
    pub range: Option<(f64, f64)>,
}

/// Colours of lines, told apart by most eyes. Source: Okabe, Ito, "Color universal design", 2008.
const COLORS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b3a800"];

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 330.0;
/// Left, right, top, bottom of a diagram within its panel.
const MARGINS: (f64, f64, f64, f64) = (62.0, 160.0, 40.0, 46.0);

/// Draws panels under each other.
pub fn svg(panels: &[Panel]) -> String {
    let height = HEIGHT * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (at, panel) in panels.iter().enumerate() {
        draw(&mut svg, panel, HEIGHT * at as f64);
    }
    svg + "</svg>\n"
}

fn draw(svg: &mut String, panel: &Panel, top: f64) {
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let across = points().map(|point| point.0).fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)));
    let across = if across.0 < across.1 { across } else { (0.0, 1.0) };
    let most = points().map(|point| point.1).fold(0.0, f64::max);
    let up = panel.range.unwrap_or((0.0, if 0.0 < most { most * 1.05 } else { 1.0 }));
    let (left, right) = (MARGINS.0, WIDTH - MARGINS.1);
    let (upper, lower) = (top + MARGINS.2, top + HEIGHT - MARGINS.3);
    let x = |value: f64| left + (value - across.0) / (across.1 - across.0) * (right - left);
    let y = |value: f64| lower - (value.clamp(up.0, up.1) - up.0) / (up.1 - up.0) * (lower - upper);
    // Writing to a string cannot fail.
    let mut say = |text: String| _ = svg.write_str(&text);
    say(format!(
        "<text x=\"{left}\" y=\"{:.1}\" font-size=\"14\" font-weight=\"bold\">{}</text>\n",
        upper - 16.0,
        escape(&panel.title)
    ));
    for tick in ticks(up) {
        let y = y(tick);
        say(format!(
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            left - 8.0,
            y + 4.0,
            number(tick)
        ));
    }
    for tick in ticks(across) {
        let x = x(tick);
        say(format!(
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{upper:.1}\" y2=\"{lower:.1}\" stroke=\"#eeeeee\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            lower + 17.0,
            number(tick)
        ));
    }
    say(format!(
        "<path d=\"M{left} {upper:.1}V{lower:.1}H{right}\" fill=\"none\" stroke=\"#444444\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
        (left + right) / 2.0,
        lower + 36.0,
        escape(&panel.horizontal)
    ));
    for (at, line) in panel.lines.iter().enumerate() {
        let color = COLORS[at % COLORS.len()];
        // More lines than colours: the others are dashed.
        let dash = if at < COLORS.len() { "" } else { " stroke-dasharray=\"6 3\"" };
        let path: Vec<String> =
            line.points.iter().map(|(across, up)| format!("{:.1} {:.1}", x(*across), y(*up))).collect();
        let key = upper + 8.0 + 18.0 * at as f64;
        if !path.is_empty() {
            say(format!(
                "<path d=\"M{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.6\"{dash}/>\n",
                path.join("L")
            ));
        }
        say(format!(
            "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{key:.1}\" y2=\"{key:.1}\" stroke=\"{color}\" stroke-width=\"3\"{dash}/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            right + 14.0,
            right + 32.0,
            right + 38.0,
            key + 4.0,
            escape(&line.name)
        ));
    }
}

/// Round numbers within a range, four to nine of them.
fn ticks((least, most): (f64, f64)) -> Vec<f64> {
    let rough = (most - least) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|factor| factor * power).find(|step| rough <= *step);
    let step = step.unwrap_or(rough);
    let first = (least / step).ceil() as i64;
    (first..).map(|at| at as f64 * step).take_while(|tick| *tick <= most + step * 1e-9).collect()
}

fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
