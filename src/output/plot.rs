//! Plots as SVG text, to stand alone or inside a report.

use plotters::prelude::*;

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

/// Names of the axes.
pub struct Axes<'a> {
    pub x: &'a str,
    pub y: &'a str,
}

const SIZE: (u32, u32) = (720, 400);
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
    draw(axes, x, y, |chart| {
        for (index, Series { name, points, intervals }) in series.iter().enumerate() {
            let color = COLORS[index % COLORS.len()];
            for ((x, _), (low, high)) in points.iter().zip(intervals) {
                chart.draw_series(LineSeries::new([(*x, *low), (*x, *high)], color.stroke_width(1)))?;
            }
            chart
                .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3))?
                .label(name.as_str())
                .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 12, y + 4)], color.filled()));
        }
        Ok(())
    })
}

/// Points alone; `None` where there is nothing to draw.
pub fn scatter(axes: &Axes<'_>, classes: &[Series]) -> Option<String> {
    let (x, y) = ranges(classes)?;
    draw(axes, x, y, |chart| {
        for (index, Series { name, points, .. }) in classes.iter().enumerate() {
            let color = COLORS[index % COLORS.len()];
            chart
                .draw_series(points.iter().map(|point| Circle::new(*point, 2, color.mix(0.6).filled())))?
                .label(name.as_str())
                .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 12, y + 4)], color.filled()));
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
    draw(axes, range([low, high].into_iter())?, (0.0, most * 1.08), |chart| {
        for (index, Series { name, points, .. }) in classes.iter().enumerate() {
            let color = COLORS[index % COLORS.len()];
            let step = (high - low) / points.len() as f64;
            let mut outline = vec![(low, 0.0)];
            for (bin, (_, share)) in points.iter().enumerate() {
                outline.push((low + step * bin as f64, *share));
                outline.push((low + step * (bin + 1) as f64, *share));
            }
            outline.push((high, 0.0));
            chart
                .draw_series(
                    AreaSeries::new(outline, 0.0, color.mix(0.25)).border_style(color.stroke_width(2)),
                )?
                .label(name.as_str())
                .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 12, y + 4)], color.filled()));
        }
        Ok(())
    })
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;
type Drawn = Result<(), DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

fn draw(
    axes: &Axes<'_>,
    x: (f64, f64),
    y: (f64, f64),
    series: impl FnOnce(&mut Chart<'_, '_>) -> Drawn,
) -> Option<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let plot = || -> Drawn {
            area.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&area)
                .margin(12)
                .x_label_area_size(44)
                .y_label_area_size(60)
                .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
            let mut mesh = chart.configure_mesh();
            mesh.light_line_style(WHITE).bold_line_style(BLACK.mix(0.1)).x_desc(axes.x).y_desc(axes.y);
            mesh.label_style((FONT, 13)).axis_desc_style((FONT, 14)).draw()?;
            series(&mut chart)?;
            let mut labels = chart.configure_series_labels();
            labels
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.2))
                .label_font((FONT, 13))
                .draw()?;
            area.present()
        };
        // Text in memory: only drawing outside of itself could fail.
        plot().ok()?;
    }
    Some(svg)
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
        let axes = Axes { x: "alpha", y: "accuracy" };
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
