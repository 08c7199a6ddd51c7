//! A curve as SVG: the horizontal axis by powers of ten, the vertical one from 0. Nothing that a browser does not draw by
//! itself.

use std::fmt::Write as _;

use super::report::figure;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// Room for the labels at the left, and at each other side.
const LEFT: f64 = 70.0;
const ROOM: f64 = 46.0;

/// Lines across, 0 not counted.
const STEPS: u32 = 4;

const COLOURS: [&str; 4] = ["#1f6feb", "#d1242f", "#1a7f37", "#8250df"];

/// One line of a plot.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Points from left to right.
    pub points: Vec<(f64, f64)>,
}

/// Draws the series over each other.
pub fn svg(title: &str, x_label: &str, y_label: &str, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|one| &one.points);
    let xs = points().map(|(x, _)| x.max(f64::MIN_POSITIVE).log10());
    let (low, high) = xs.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    // A single point, or none, is drawn all the same.
    let (low, high) = if low < high { (low, high) } else { (low.min(0.0), low.max(0.0) + 1.0) };
    let top = round_up(points().map(|(_, y)| *y).fold(0.0, f64::max));
    let x_at = |x: f64| {
        let share = (x.max(f64::MIN_POSITIVE).log10() - low) / (high - low);
        LEFT + share * (WIDTH - LEFT - ROOM)
    };
    let y_at = |y: f64| HEIGHT - ROOM - y / top * (HEIGHT - 2.0 * ROOM);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    text(&mut out, LEFT, 20.0, "start", title);
    text(&mut out, f64::midpoint(LEFT, WIDTH - ROOM), HEIGHT - 8.0, "middle", x_label);
    text(&mut out, LEFT, ROOM - 8.0, "start", y_label);
    for step in 0..=STEPS {
        let y = top * f64::from(step) / f64::from(STEPS);
        text(&mut out, LEFT - 6.0, y_at(y) + 4.0, "end", &figure(y));
    }
    let mut ticks: Vec<f64> = points().map(|(x, _)| *x).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for x in &ticks {
        text(&mut out, x_at(*x), HEIGHT - ROOM + 16.0, "middle", &x.to_string());
    }
    for (at, one) in series.iter().enumerate().filter(|(_, one)| !one.name.is_empty()) {
        let y = ROOM + 14.0 * at as f64;
        text(&mut out, WIDTH - ROOM - 14.0, y + 4.0, "end", &one.name);
        let (x, colour) = (WIDTH - ROOM - 10.0, COLOURS[at % COLOURS.len()]);
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{:.1}\" width=\"10\" height=\"4\" fill=\"{colour}\"/>",
            y - 2.0
        );
    }
    for step in 0..=STEPS {
        let y = y_at(top * f64::from(step) / f64::from(STEPS));
        let right = WIDTH - ROOM;
        let _ = writeln!(out, "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#d0d7de\" fill=\"none\"/>");
    }
    for (at, one) in series.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let place = |(x, y): &(f64, f64)| format!("{:.1},{:.1}", x_at(*x), y_at(*y));
        let line = one.points.iter().map(place).collect::<Vec<_>>().join(" ");
        let _ = writeln!(
            out,
            "<polyline points=\"{line}\" stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"/>"
        );
        for (x, y) in &one.points {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                x_at(*x),
                y_at(*y)
            );
        }
    }
    out + "</svg>\n"
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = escaped(words);
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

/// The next of 1, 2, 4, 8, 10, 20, … that is no smaller: a quarter of each is a round number, too.
fn round_up(value: f64) -> f64 {
    let scale = 10_f64.powf(value.max(f64::MIN_POSITIVE).log10().floor());
    let found = [1.0, 2.0, 4.0, 8.0].into_iter().map(|step| step * scale).find(|step| *step >= value);
    if value <= 0.0 { 1.0 } else { found.unwrap_or(10.0 * scale) }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_inside_and_text_is_escaped() {
        let series = Series { name: "a<b".to_owned(), points: vec![(1_000.0, 30.0), (100_000.0, 42.0)] };
        let drawn = svg("kB & more", "sessions", "kB", &[series]);
        assert!(drawn.contains("a&lt;b") && drawn.contains("kB &amp; more"));
        assert_eq!(drawn.matches("<circle").count(), 2);
        assert!(
            drawn.contains("cx=\"70.0\"") && drawn.contains("cx=\"594.0\""),
            "from edge to edge: {drawn}"
        );
        assert!(drawn.ends_with("</svg>\n"));
    }

    #[test]
    fn no_points_and_a_single_one_are_drawn_too() {
        for points in [vec![], vec![(1.0, 0.0)]] {
            let drawn = svg("t", "x", "y", &[Series { name: "s".to_owned(), points }]);
            assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        }
    }

    #[test]
    fn the_axis_ends_at_a_round_number() {
        for (value, end) in [(0.0, 1.0), (0.3, 0.4), (1.0, 1.0), (42.0, 80.0), (81.0, 100.0), (100.0, 100.0)]
        {
            assert!((round_up(value) / end - 1.0_f64).abs() < 1e-9, "{value}");
        }
    }
}
