//! Plots as SVG text, to stand alone or inside a report.

use plotters::{
    coord::{
        Shift,
        ranged1d::{BoldPoints, DefaultFormatting, KeyPointHint},
        types::RangedCoordf64,
    },
    prelude::*,
};
use std::ops::Range;

/// A named list of points.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Of each point the lowest and the highest y that it may have; or empty.
    pub intervals: Vec<(f64, f64)>,
}

impl Series {
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, intervals: Vec::new() }
    }

    pub fn with_intervals(self, intervals: Vec<(f64, f64)>) -> Self {
        Self { intervals, ..self }
    }
}

/// What the axes show.
#[derive(Clone, Default)]
pub struct Axes<'a> {
    pub x: &'a str,
    pub y: &'a str,
    /// Places on the x axis that are named, in order; none: round numbers.
    pub marks: Vec<(f64, String)>,
    /// Both are shares, from 0 to 1: the axes end there. Of the x axis only where it has no marks.
    pub shares: bool,
}

impl<'a> Axes<'a> {
    pub fn new(x: &'a str, y: &'a str) -> Self {
        Self { x, y, ..Self::default() }
    }

    /// The same with places on the x axis named.
    pub fn with_marks(self, marks: impl IntoIterator<Item = (f64, String)>) -> Self {
        Self { marks: marks.into_iter().collect(), ..self }
    }

    pub fn of_shares(self) -> Self {
        Self { shares: true, ..self }
    }

    /// What a range of values shows at most.
    fn within(&self, (low, high): (f64, f64)) -> (f64, f64) {
        if self.shares { (low.max(0.0), high.min(1.0)) } else { (low, high) }
    }
}

const SIZE: (u32, u32) = (720, 400);
/// Beside the plot, for the names of series.
const LEGEND: u32 = 170;
/// Letters of a name that it has room for.
const LETTERS: usize = 22;
const LINE: i32 = 20;
const FONT: &str = "sans-serif";

/// Told apart by people who see colours otherwise too (Okabe and Ito).
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(80, 80, 80),
];

/// Lines through points; `None` where there is nothing to draw.
pub fn curves(axes: &Axes<'_>, series: &[Series]) -> Option<String> {
    let (x, y) = ranges(series)?;
    draw(axes, x, y, series, |chart| {
        for (index, Series { points, intervals, .. }) in series.iter().enumerate() {
            let color = color_of(index);
            for ((x, _), (low, high)) in points.iter().zip(intervals) {
                chart.draw_series(LineSeries::new([(*x, *low), (*x, *high)], color.stroke_width(1)))?;
            }
            chart
                .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3))?;
        }
        Ok(())
    })
}

/// Points alone; `None` where there is nothing to draw.
pub fn scatter(axes: &Axes<'_>, classes: &[Series]) -> Option<String> {
    let (x, y) = ranges(classes)?;
    draw(axes, x, y, classes, |chart| {
        for (index, Series { points, .. }) in classes.iter().enumerate() {
            let color = color_of(index).mix(0.6).filled();
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 2, color)))?;
        }
        Ok(())
    })
}

/// What the axes have to hold.
fn ranges(series: &[Series]) -> Option<((f64, f64), (f64, f64))> {
    let points = || series.iter().flat_map(|series| series.points.iter().copied());
    let ends = series.iter().flat_map(|series| series.intervals.iter().flat_map(|(low, high)| [*low, *high]));
    Some((range(points().map(|(x, _)| x))?, range(points().map(|(_, y)| y).chain(ends))?))
}

/// Outlines of histograms: of each class the shares of its values in bins between `low` and `high`.
pub fn outlines(axes: &Axes<'_>, low: f64, high: f64, classes: &[Series]) -> Option<String> {
    let most =
        classes.iter().flat_map(|class| class.points.iter().map(|(_, share)| *share)).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    draw(axes, range([low, high].into_iter())?, (0.0, most * 1.08), classes, |chart| {
        for (index, Series { points, .. }) in classes.iter().enumerate() {
            let color = color_of(index);
            let step = (high - low) / points.len() as f64;
            let mut outline = vec![(low, 0.0)];
            for (bin, (_, share)) in points.iter().enumerate() {
                outline.push((low + step * bin as f64, *share));
                outline.push((low + step * (bin + 1) as f64, *share));
            }
            outline.push((high, 0.0));
            chart.draw_series(
                AreaSeries::new(outline, 0.0, color.mix(0.2)).border_style(color.stroke_width(2)),
            )?;
        }
        Ok(())
    })
}

fn color_of(series: usize) -> RGBColor {
    COLORS[series % COLORS.len()]
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Marked, RangedCoordf64>>;
type Drawn = Result<(), DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

fn draw(
    axes: &Axes<'_>,
    x: (f64, f64),
    y: (f64, f64),
    named: &[Series],
    series: impl FnOnce(&mut Chart<'_, '_>) -> Drawn,
) -> Option<String> {
    let y = axes.within(y);
    let x = if axes.marks.is_empty() { axes.within(x) } else { x };
    let range = RangedCoordf64::from(x.0..x.1);
    let marks = match axes.marks.is_empty() {
        true => range.key_points(BoldPoints(8)),
        false => axes.marks.iter().map(|(place, _)| *place).collect(),
    };
    let name_of = |place: &f64| {
        let mark = axes.marks.iter().find(|(marked, _)| marked == place);
        mark.map_or_else(|| round(*place), |(_, name)| name.clone())
    };
    let mut svg = String::new();
    {
        let size = (SIZE.0 + if named.len() > 1 { LEGEND } else { 0 }, SIZE.1);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let plot = || -> Drawn {
            area.fill(&WHITE)?;
            let (left, right) = area.split_horizontally(SIZE.0);
            let mut chart = ChartBuilder::on(&left)
                .margin(12)
                .x_label_area_size(44)
                .y_label_area_size(60)
                .build_cartesian_2d(Marked { range, marks }, y.0..y.1)?;
            let mut mesh = chart.configure_mesh();
            mesh.light_line_style(WHITE).bold_line_style(BLACK.mix(0.1)).x_desc(axes.x).y_desc(axes.y);
            mesh.x_label_formatter(&name_of).y_label_formatter(&|place| round(*place));
            mesh.label_style((FONT, 13)).axis_desc_style((FONT, 14)).draw()?;
            series(&mut chart)?;
            if named.len() > 1 {
                legend(&right, named)?;
            }
            area.present()
        };
        // Text in memory: only drawing outside of itself could fail.
        plot().ok()?;
    }
    Some(svg)
}

/// An axis with lines and names at chosen places.
struct Marked {
    range: RangedCoordf64,
    marks: Vec<f64>,
}

impl Ranged for Marked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.range.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.range()
    }
}

/// The colours and names of the series, one below the other; of many as many as there is room for.
fn legend(area: &DrawingArea<SVGBackend<'_>, Shift>, named: &[Series]) -> Drawn {
    let room = (SIZE.1 as i32 - 40) / LINE;
    for (index, Series { name, .. }) in named.iter().take(room as usize).enumerate() {
        let y = 20 + LINE * index as i32;
        area.draw(&Rectangle::new([(0, y - 5), (12, y + 5)], color_of(index).filled()))?;
        let shown = match name.chars().count() {
            0..=LETTERS => name.clone(),
            _ => name.chars().take(LETTERS - 1).chain(['…']).collect(),
        };
        area.draw(&Text::new(shown, (18, y - 7), (FONT, 13)))?;
    }
    Ok(())
}

/// A number on an axis, without what adding up steps leaves.
fn round(value: f64) -> String {
    let rounded = (value * 1e6).round() / 1e6;
    if rounded == 0.0 { "0".to_owned() } else { rounded.to_string() }
}

/// All values with a margin, wide enough for a single one.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let margin = if high > low { 0.05 * (high - low) } else { 0.05 * high.abs().max(0.1) };
    (low.is_finite() && high.is_finite()).then_some((low - margin, high + margin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_are_svg_and_nothing_is_drawn_of_nothing() {
        let axes = Axes::new("alpha", "accuracy");
        let series = |points: &[(f64, f64)]| Series::new("a <b>", points.to_vec());
        let svg = curves(&axes, &[series(&[(0.5, 0.1), (1.0, 0.7)]), series(&[(1.0, 0.2)])]).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("accuracy") && svg.contains("a &lt;b&gt;"), "{svg}");
        assert!(!svg.contains("href"), "nothing is loaded from elsewhere");
        assert!(curves(&axes, &[series(&[])]).is_none() && scatter(&axes, &[series(&[])]).is_none());
        let dots = scatter(&axes, &[series(&[(0.5, 0.1), (1.0, 0.7)])]).unwrap();
        assert_eq!(dots.matches("<circle").count(), 2);
        let lines = |series| curves(&axes, &[series]).unwrap().matches("<polyline").count();
        let point = || series(&[(1.0, 0.5)]);
        assert_eq!(lines(point().with_intervals(vec![(0.4, 0.6)])), lines(point()) + 1);
        assert!(outlines(&axes, 0.0, 1.0, &[series(&[(0.0, 0.5), (0.0, 0.5)])]).is_some());
        assert!(outlines(&axes, 0.0, 1.0, &[series(&[(0.0, 0.0)])]).is_none());
    }
}
