//! A heat map as SVG text: one row of cells for each name.

const CELL: (usize, usize) = (20, 16);
const LEFT: usize = 170;
const TOP: usize = 66;
/// The scale of colours above the cells.
const SCALE: (usize, usize) = (120, 12);

/// Cells from white for 0 to blue for the largest value, with the scale; `None` where there is none above 0. Columns are numbered from 1
/// and called `column`s.
pub fn heatmap(names: &[String], column: &str, values: &[Vec<f64>]) -> Option<String> {
    let columns = values.iter().map(Vec::len).max()?;
    let largest = values.iter().flatten().copied().fold(0.0, f64::max);
    if largest <= 0.0 {
        return None;
    }
    let (width, height) = (LEFT + (CELL.0 * columns).max(SCALE.0 + 80) + 10, TOP + CELL.1 * names.len() + 10);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"monospace\" font-size=\"11\">\n"
    );
    for step in 0..SCALE.0 {
        let [red, green, blue] = color(step as f64 / (SCALE.0 - 1) as f64);
        svg += &format!(
            "<rect x=\"{}\" y=\"8\" width=\"1\" height=\"{}\" fill=\"rgb({red},{green},{blue})\"/>\n",
            LEFT + step,
            SCALE.1
        );
    }
    svg += &format!("<text x=\"{}\" y=\"18\" text-anchor=\"end\">0</text>\n", LEFT - 6);
    svg += &format!("<text x=\"{}\" y=\"18\">{largest:.3}</text>\n", LEFT + SCALE.0 + 6);
    svg += &format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{column}</text>\n", LEFT - 6, TOP - 8);
    for index in (0..columns).filter(|index| *index == 0 || (index + 1) % 5 == 0) {
        let x = LEFT + CELL.0 * index + CELL.0 / 2;
        svg += &format!("<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", TOP - 8, index + 1);
    }
    for (row, (name, values)) in names.iter().zip(values).enumerate() {
        let y = TOP + CELL.1 * row;
        let name = super::report::escape(name);
        svg += &format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\n", LEFT - 6, y + 12);
        for (index, value) in values.iter().enumerate() {
            let [red, green, blue] = color(value / largest);
            let (x, w, h) = (LEFT + CELL.0 * index, CELL.0, CELL.1);
            svg += &format!(
                "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"rgb({red},{green},{blue})\">\
                 <title>{name} {column} {}: {value:.4}</title></rect>\n",
                index + 1
            );
        }
    }
    Some(svg + "</svg>")
}

/// White for 0, dark blue for 1.
pub fn color(share: f64) -> [u8; 3] {
    let share = share.clamp(0.0, 1.0);
    [8.0, 81.0, 156.0].map(|full| (255.0 + share * (full - 255.0)) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_a_cell() {
        let svg = heatmap(&["a<".into(), "b".into()], "layer", &[vec![0.0, 0.5], vec![1.0, 0.25]]).unwrap();
        assert_eq!(svg.matches("<title>").count(), 4);
        assert!(
            svg.contains("a&lt; layer 2: 0.5000")
                && svg.contains("rgb(8,81,156)")
                && svg.contains("rgb(255,255,255)")
        );
        assert!(heatmap(&["a".into()], "layer", &[vec![0.0]]).is_none() && heatmap(&[], "", &[]).is_none());
    }
}
