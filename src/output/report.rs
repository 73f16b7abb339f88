//! What an experiment found, for people: tables for the terminal, one HTML page that loads nothing from elsewhere.

/// Tables and plots of one experiment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    pub title: String,
    /// What it is of: models, numbers of rows.
    pub notes: Vec<String>,
    pub tables: Vec<Table>,
    /// Captions and SVG.
    pub plots: Vec<(String, String)>,
}

/// A table; all cells but the first of a row are numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    pub caption: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<T: Into<String>>(
        caption: impl Into<String>,
        head: impl IntoIterator<Item = T>,
        rows: Vec<Vec<String>>,
    ) -> Self {
        Self { caption: caption.into(), head: head.into_iter().map(Into::into).collect(), rows }
    }
}

impl Report {
    /// Notes and tables as Markdown.
    pub fn to_markdown(&self) -> String {
        let mut text = format!("{}\n", self.title);
        self.notes.iter().for_each(|note| text += &format!("{note}\n"));
        for Table { caption, head, rows } in &self.tables {
            let in_cells =
                |row: &Vec<String>| -> Vec<String> { row.iter().map(|cell| in_cell(cell)).collect() };
            let (head, rows) = (&in_cells(head), &rows.iter().map(in_cells).collect::<Vec<_>>());
            let width = |col: usize| {
                let cells = std::iter::once(head).chain(rows).filter_map(|row| row.get(col));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            };
            let widths: Vec<usize> = (0..head.len()).map(width).collect();
            let line = |cells: &[String]| {
                let padded = cells.iter().zip(&widths).enumerate().map(|(col, (cell, width))| {
                    if col == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
                });
                format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
            };
            let rule = widths.iter().enumerate().map(|(col, width)| {
                if col == 0 { "-".repeat(width + 2) } else { format!("{}:", "-".repeat(width + 1)) }
            });
            text += &format!("\n{caption}\n\n{}|{}|\n", line(head), rule.collect::<Vec<_>>().join("|"));
            rows.iter().for_each(|row| text += &line(row));
        }
        text
    }
}

/// One page of reports.
pub fn page(reports: &[Report]) -> String {
    let mut body = String::new();
    for Report { title, notes, tables, plots } in reports {
        body += &format!("<h2>{}</h2>\n", escape(title));
        notes.iter().for_each(|note| body += &format!("<p>{}</p>\n", escape(note)));
        for (caption, svg) in plots {
            body += &format!("<figure>{svg}<figcaption>{}</figcaption></figure>\n", escape(caption));
        }
        for Table { caption, head, rows } in tables {
            let cells = |row: &[String], tag: &str| -> String {
                row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
            };
            let rows: String = rows.iter().map(|row| format!("<tr>{}</tr>\n", cells(row, "td"))).collect();
            let (caption, head) = (escape(caption), cells(head, "th"));
            body += &format!("<table><caption>{caption}</caption>\n<tr>{head}</tr>\n{rows}</table>\n");
        }
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>tuco</title>\n<style>{STYLE}</style></head>\n\
         <body><h1>tuco</h1>\n{body}</body></html>\n"
    )
}

const STYLE: &str = "body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse;margin:1.5em 0}caption{text-align:left;font-weight:bold;padding:.3em 0}\
    td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}\
    figure{margin:1.5em 0}svg{max-width:100%;height:auto}figcaption{color:#555}";

/// Text that stands for itself in HTML and SVG.
pub fn escape(text: &str) -> String {
    visible(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Text that stands for itself in a cell of a Markdown table.
fn in_cell(text: &str) -> String {
    visible(text).replace('|', "\\|")
}

/// Text whose control characters, which terminals obey and XML refuses, are pictures of themselves; line breaks are arrows.
pub fn visible(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => '⏎',
        '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('�'),
        '\u{7f}' => '␡',
        '\u{80}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => '�',
        c => c,
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_pages_show_text_as_it_is() {
        let table = Table {
            caption: "c".into(),
            head: vec!["name".into(), "n".into()],
            rows: vec![vec!["a<b|\n\u{1b}".into(), "100".into()]],
        };
        let report =
            Report { title: "t".into(), notes: vec!["n & m".into()], tables: vec![table], plots: vec![] };
        assert_eq!(
            report.to_markdown(),
            "t\nn & m\n\nc\n\n| name    |   n |\n|---------|----:|\n| a<b\\|⏎␛ | 100 |\n"
        );
        let page = page(&[report]);
        assert!(page.contains("a&lt;b|⏎␛<") && page.contains("n &amp; m") && !page.contains("src="));
    }
}
