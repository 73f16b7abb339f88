//! What the rows of `tuco score` say together: TuCo by label, how far labels are apart (5.2 and 5.3 of the paper), and TuCo against
//! OutputCo where rows have it (5.5).

use super::{compare, number};
use crate::{
    metrics::{pearson, quantile, spearman},
    output::{Axes, Report, Series, Table, scatter, text_of},
};
use serde_json::{Map, Value, json};

/// Points of a plot at most.
const MOST_POINTS: usize = 4000;

/// Labels that are told apart; with more, all rows are one class.
const MOST_LABELS: usize = 7;

/// The rows of one label.
#[derive(Default)]
struct OfLabel {
    tuco: Vec<f64>,
    /// Of the rows that have an OutputCo.
    both: Vec<(f64, f64)>,
}

/// Rows as they are read, one after the other.
#[derive(Default)]
pub struct Scored {
    rows: u64,
    errors: u64,
    /// In the order of their first rows.
    classes: Vec<(String, OfLabel)>,
    too_many: bool,
}

impl Scored {
    /// Adds a row.
    ///
    /// # Errors
    /// What keeps it from being a row of `tuco score`.
    pub fn add(&mut self, row: &Map<String, Value>) -> Result<(), String> {
        if row.get("error").is_none_or(Value::is_null) {
            let tuco = row.get("tuco").and_then(Value::as_f64).ok_or("has neither tuco nor error")?;
            let label = match row.get("label") {
                None | Some(Value::Null) => "no label".to_owned(),
                Some(label) => text_of(label),
            };
            let class = self.class(label);
            class.tuco.push(tuco);
            class
                .both
                .extend(row.get("output_co").and_then(Value::as_f64).map(|output_co| (tuco, output_co)));
        } else {
            self.errors += 1;
        }
        self.rows += 1;
        Ok(())
    }

    fn class(&mut self, label: String) -> &mut OfLabel {
        let found = self.classes.iter().position(|(name, _)| *name == label);
        let place = match found {
            _ if self.too_many => 0,
            Some(place) => place,
            None if self.classes.len() == MOST_LABELS => {
                let all = self.classes.drain(..).fold(OfLabel::default(), |mut all, (_, class)| {
                    all.tuco.extend(class.tuco);
                    all.both.extend(class.both);
                    all
                });
                self.classes.push(("all labels".into(), all));
                self.too_many = true;
                0
            }
            None => {
                self.classes.push((label, OfLabel::default()));
                self.classes.len() - 1
            }
        };
        &mut self.classes[place].1
    }

    /// What the rows say; `None` if none of them has a score.
    pub fn summary(&self) -> Option<Value> {
        let step = self
            .classes
            .iter()
            .map(|(_, class)| class.both.len())
            .sum::<usize>()
            .div_ceil(MOST_POINTS)
            .max(1);
        let described = |(name, OfLabel { tuco, both }): &(String, OfLabel)| {
            let (of_tuco, of_output): (Vec<f64>, Vec<f64>) = both.iter().copied().unzip();
            let quantiles = |values: &[f64]| -> Map<String, Value> {
                let q = |q: f64| (q.to_string(), json!(quantile(values, q)));
                [0.05, 0.5, 0.95].map(q).into_iter().collect()
            };
            json!({
                "name": name,
                "rows": tuco.len(),
                "tuco": quantiles(tuco),
                "output_co": quantiles(&of_output),
                "pearson": pearson(&of_tuco, &of_output),
                "spearman": spearman(&of_tuco, &of_output),
                "points": both.iter().step_by(step).collect::<Vec<_>>(),
            })
        };
        let mut classes: Vec<(&str, &[f64])> =
            self.classes.iter().map(|(name, class)| (name.as_str(), class.tuco.as_slice())).collect();
        compare::negative_first(&mut classes, |(name, _)| name);
        (!classes.is_empty()).then(|| {
            json!({
                "experiment": "score",
                "rows": self.rows,
                "errors": self.errors,
                "classes": self.classes.iter().map(described).collect::<Vec<_>>(),
                // Rows may be millions, which other intervals take long for.
                "pairs": compare::pairs(&classes, |_, _| Vec::new()),
            })
        })
    }
}

/// Tables and plots of a summary; `None` where it lacks something.
pub fn report(summary: &Value) -> Option<Report> {
    let head = [
        "label",
        "rows",
        "TuCo 5 %",
        "median",
        "95 %",
        "OutputCo 5 %",
        "median",
        "95 %",
        "Pearson",
        "Spearman",
    ];
    let caption = "TuCo by label, OutputCo, and how they go together (correlation)";
    let mut table = Table::new(caption, head, Vec::new());
    let mut series = Vec::new();
    for class in summary["classes"].as_array()? {
        let name = class["name"].as_str()?;
        let mut row = vec![name.to_owned(), class["rows"].to_string()];
        for field in ["tuco", "output_co"] {
            row.extend(["0.05", "0.5", "0.95"].map(|q| number(&class[field][q])));
        }
        row.extend(["pearson", "spearman"].map(|field| number(&class[field])));
        table.rows.push(row);
        let point = |point: &Value| Some((point[0].as_f64()?, point[1].as_f64()?));
        let points: Option<Vec<(f64, f64)>> = class["points"].as_array()?.iter().map(point).collect();
        series.push(Series::new(name, points?));
    }
    let mut notes = super::about(summary);
    notes.push(format!("{} rows, {} of them errors", summary["rows"], summary["errors"]));
    let plot = scatter(&Axes::new("TuCo", "OutputCo").of_shares(), &series);
    if plot.is_none() {
        notes.push("The rows have no output_co; tuco score --output-co adds it.".into());
    }
    let pairs = compare::table_of_pairs(summary).filter(|pairs| !pairs.rows.is_empty());
    Some(Report {
        title: "TuCo by label, and against OutputCo (score)".into(),
        notes,
        tables: [table].into_iter().chain(pairs).collect(),
        plots: plot
            .map(|svg| ("OutputCo against TuCo, a point a prompt".to_owned(), svg))
            .into_iter()
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_by_label_and_errors_counted() {
        let mut scored = Scored::default();
        for (label, tuco) in [("a", 0.1), ("b", 0.4), ("a", 0.3)] {
            scored
                .add(json!({ "tuco": tuco, "output_co": tuco * 2.0, "label": label }).as_object().unwrap())
                .unwrap();
        }
        scored.add(json!({ "id": 1, "error": {} }).as_object().unwrap()).unwrap();
        assert!(scored.add(json!({ "id": 1 }).as_object().unwrap()).is_err());
        let summary = scored.summary().unwrap();
        assert_eq!((&summary["rows"], &summary["errors"]), (&json!(4), &json!(1)));
        assert_eq!(summary["classes"][0]["rows"], 2);
        assert!((summary["classes"][0]["pearson"].as_f64().unwrap() - 1.0).abs() < 1e-12);
        // b came later, and is above both of a.
        assert_eq!(
            (&summary["pairs"][0]["positive"], &summary["pairs"][0]["auc"]),
            (&json!("b"), &json!(1.0))
        );
        let report = report(&summary).unwrap();
        assert_eq!((report.plots.len(), report.tables.len()), (1, 2));
        assert_eq!(report.tables[1].head.len(), 4);
    }

    #[test]
    fn many_labels_are_one_class_and_no_output_co_is_said() {
        let mut scored = Scored::default();
        (0..20).for_each(|label| {
            scored.add(json!({ "tuco": 0.5, "label": label }).as_object().unwrap()).unwrap()
        });
        let summary = scored.summary().unwrap();
        assert_eq!(
            (summary["classes"].as_array().unwrap().len(), &summary["classes"][0]["rows"]),
            (1, &json!(20))
        );
        let report = report(&summary).unwrap();
        assert!(
            report.plots.is_empty()
                && report.tables.len() == 1
                && report.notes.iter().any(|note| note.contains("--output-co"))
        );
        assert!(Scored::default().summary().is_none());
    }
}
