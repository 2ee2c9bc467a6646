//! The chart beside README's table: bars, written by hand as SVG, readable on light and on dark.

use std::fmt::Write;

use crate::report::digits;

/// Draws each chart's bars, the longest as long as there is room. `bars`: chart, label, value.
pub fn svg(bars: &[(&str, &str, f64)]) -> String {
    let mut charts: Vec<&str> = bars.iter().map(|(chart, _, _)| *chart).collect();
    charts.dedup();
    let mut body = String::new();
    let mut y = 0;
    for chart in charts {
        y += TITLE_HEIGHT;
        writeln!(body, r#"<text class="title" x="0" y="{}">{}</text>"#, y - 8, escaped(chart)).unwrap();
        let here: Vec<_> = bars.iter().filter(|(of, _, _)| *of == chart).collect();
        let most = here.iter().map(|(_, _, value)| *value).fold(0.0, f64::max);
        for (_, label, value) in here {
            let class = if label.starts_with("postwire") { "ours" } else { "peer" };
            let length = value / most * f64::from(BAR_LENGTH);
            let text_y = y + 15;
            let value_x = f64::from(BAR_X) + length + 6.0;
            writeln!(body, r#"<text class="label" x="{}" y="{text_y}">{}</text>"#, BAR_X - 8, escaped(label)).unwrap();
            writeln!(body, r#"<rect class="{class}" x="{BAR_X}" y="{}" width="{length:.1}" height="16"/>"#, y + 2)
                .unwrap();
            writeln!(body, r#"<text x="{value_x:.1}" y="{text_y}">{}</text>"#, digits(*value)).unwrap();
            y += BAR_HEIGHT;
        }
    }
    let width = BAR_X + BAR_LENGTH + VALUE_WIDTH;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n\
         {STYLE}{body}</svg>\n",
        height = y + 6
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

const BAR_X: i32 = 190;
const BAR_LENGTH: i32 = 400;
const VALUE_WIDTH: i32 = 60;
const BAR_HEIGHT: i32 = 22;
const TITLE_HEIGHT: i32 = 32;

/// Whoever asks for dark gets light letters; the bars' colours stand on both.
const STYLE: &str = "<style>
text { font: 13px sans-serif; fill: #24292f }
.title { font-weight: bold }
.label { text-anchor: end }
.ours { fill: #2f81f7 }
.peer { fill: #8b949e }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }
</style>
";
