//! `tuco compare`: how far classes of prompts are apart in TuCo (5.2 and 5.3 of the paper).

use super::batches::{self, Batching};
use crate::{
    Error, Result,
    backend::Backend,
    engine::Engine,
    metrics::{auc, bootstrap, delong, quantile, tpr_at_fpr, tuco},
    model::PairWeights,
    output::{Axes, Folder, Report, Series, Table, outlines},
};
use serde_json::{Map, Value, json};

/// Random samples of an interval, and their seed.
const RESAMPLES: usize = 2000;
const SEED: u64 = 1;

/// Bins of the histograms.
const BINS: usize = 30;

/// A prompt of a class, or what is wrong with it.
pub struct Prompt {
    pub id: Value,
    pub class: String,
    pub token_ids: std::result::Result<Vec<u32>, (&'static str, String)>,
}

/// The classes in the order of their first prompts.
pub fn classes(prompts: &[Prompt]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for prompt in prompts {
        if !names.contains(&prompt.class.as_str()) {
            names.push(&prompt.class);
        }
    }
    names
}

/// Checks what can be checked before anything is computed.
pub fn check(prompts: &[Prompt]) -> Result<()> {
    let names = classes(prompts);
    if names.len() < 2 {
        let which = names.first().map_or(String::new(), |name| format!(" ({name:?})"));
        return Err(Error::usage(format!(
            "there is only one class of prompts{which}; name two or more files, or give rows a label"
        )));
    }
    for name in names {
        let mut of_class = prompts.iter().filter(|prompt| prompt.class == name);
        if of_class.clone().all(|prompt| prompt.token_ids.is_err()) {
            let first = of_class.find_map(|prompt| prompt.token_ids.as_ref().err());
            let problem = first.map_or(String::new(), |(_, message)| format!("; the first: {message}"));
            return Err(Error::usage(format!("no prompt of class {name:?} can be scored{problem}")));
        }
    }
    Ok(())
}

/// Scores all prompts. Rows go to `folder` as they are ready.
///
/// # Returns
/// The summary.
pub fn run<B: Backend, W: PairWeights>(
    engine: &Engine<'_, B, W>,
    prompts: &[Prompt],
    batching: &Batching<'_>,
    folder: &mut Folder,
) -> Result<Value> {
    let mut scores: Vec<Option<f64>> = Vec::with_capacity(prompts.len());
    for batch in batches::split(prompts, batching, 1, |prompt| prompt.token_ids.as_ref().map_or(0, Vec::len))
    {
        let ids: Vec<&[u32]> =
            batch.iter().filter_map(|prompt| prompt.token_ids.as_ref().ok()).map(Vec::as_slice).collect();
        let scored = batching.compute(batch.len(), &ids, |observer| engine.score(&ids, observer))?;
        let mut scored = scored.iter();
        let mut rows = Vec::with_capacity(batch.len());
        for Prompt { id, class, token_ids } in batch {
            let mut row = Map::new();
            row.insert("id".into(), id.clone());
            row.insert("class".into(), class.as_str().into());
            match token_ids {
                Err((kind, message)) => {
                    row.insert("error".into(), json!({ "type": kind, "message": message }));
                    scores.push(None);
                }
                Ok(ids) => {
                    let last =
                        scored.next().and_then(|score| score.running.last()).copied().unwrap_or_default();
                    row.insert("tuco".into(), json!(tuco(last)));
                    row.insert("n_tokens".into(), ids.len().into());
                    scores.push(Some(tuco(last)));
                }
            }
            rows.push(Value::Object(row));
        }
        folder.append(&rows)?;
        batching.progress.batch_done();
    }
    Ok(summarize(prompts, &scores))
}

fn summarize(prompts: &[Prompt], scores: &[Option<f64>]) -> Value {
    let names = classes(prompts);
    let of_class = |name: &str| -> Vec<f64> {
        let own = prompts.iter().zip(scores).filter(|(prompt, _)| prompt.class == name);
        own.filter_map(|(_, score)| *score).collect()
    };
    let values: Vec<Vec<f64>> = names.iter().map(|name| of_class(name)).collect();
    let all = || values.iter().flatten().copied();
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    let step = ((high - low) / BINS as f64).max(f64::MIN_POSITIVE);
    let described = names.iter().zip(&values).map(|(name, values)| {
        let rows = prompts.iter().filter(|prompt| prompt.class == *name).count();
        let mut bins = [0usize; BINS];
        values.iter().for_each(|value| bins[(((value - low) / step) as usize).min(BINS - 1)] += 1);
        let quantiles: Map<String, Value> = [0.05, 0.25, 0.5, 0.75, 0.95]
            .iter()
            .map(|q| (q.to_string(), json!(quantile(values, *q))))
            .collect();
        json!({
            "name": name,
            "rows": rows,
            "errors": rows - values.len(),
            "mean": values.iter().sum::<f64>() / values.len() as f64,
            "quantiles": quantiles,
            "histogram": bins.to_vec(),
        })
    });
    let mut pairs = Vec::new();
    for (first, negative) in values.iter().enumerate() {
        for (second, positive) in values.iter().enumerate().skip(first + 1) {
            pairs.push(json!({
                "negative": names[first],
                "positive": names[second],
                "auc": auc(negative, positive),
                "auc_delong_95": delong(negative, positive).map(|(low, high)| [low, high]),
                "auc_bootstrap_95": bootstrap(negative, positive, RESAMPLES, SEED).map(|(low, high)| [low, high]),
                "tpr_at_fpr_5": tpr_at_fpr(negative, positive, 0.05),
            }));
        }
    }
    json!({
        "experiment": "compare",
        "classes": described.collect::<Vec<_>>(),
        "histogram_range": [low, high],
        "pairs": pairs,
    })
}

/// Tables and plots of a summary; `None` where it lacks something.
pub fn report(summary: &Value) -> Option<Report> {
    let number = |value: &Value| value.as_f64().map_or("–".to_owned(), |number| format!("{number:.4}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let interval = |value: &Value| match (value[0].as_f64(), value[1].as_f64()) {
        (Some(low), Some(high)) => format!("{low:.3} to {high:.3}"),
        _ => "–".to_owned(),
    };
    let head = ["class", "rows", "5 %", "25 %", "median", "75 %", "95 %"].map(str::to_owned).to_vec();
    let mut quantiles = Table { caption: "TuCo by class".into(), head, rows: Vec::new() };
    let mut series = Vec::new();
    for class in summary["classes"].as_array()? {
        let scored = class["rows"].as_u64()? - class["errors"].as_u64()?;
        let mut row = vec![text(&class["name"]), scored.to_string()];
        row.extend(["0.05", "0.25", "0.5", "0.75", "0.95"].map(|q| number(&class["quantiles"][q])));
        quantiles.rows.push(row);
        let bins: Option<Vec<f64>> = class["histogram"].as_array()?.iter().map(Value::as_f64).collect();
        let points = bins?.into_iter().map(|count| (0.0, count / scored.max(1) as f64)).collect();
        series.push(Series { name: text(&class["name"]), points });
    }
    let head = ["higher against lower", "AUC", "95 % (DeLong)", "95 % (bootstrap)", "TPR at 5 % FPR"];
    let caption = "AUC: the chance that a prompt of the first class has the higher TuCo".to_owned();
    let mut pairs = Table { caption, head: head.map(str::to_owned).to_vec(), rows: Vec::new() };
    for pair in summary["pairs"].as_array()? {
        pairs.rows.push(vec![
            format!("{} against {}", text(&pair["positive"]), text(&pair["negative"])),
            number(&pair["auc"]),
            interval(&pair["auc_delong_95"]),
            interval(&pair["auc_bootstrap_95"]),
            number(&pair["tpr_at_fpr_5"]),
        ]);
    }
    let range = &summary["histogram_range"];
    let axes = Axes { x: "TuCo", y: "share of the class" };
    let plot = outlines(&axes, range[0].as_f64()?, range[1].as_f64()?, &series);
    Some(Report {
        title: "TuCo of classes of prompts (compare)".into(),
        notes: super::about(summary),
        tables: vec![quantiles, pairs],
        plots: plot.map(|svg| ("Histograms of TuCo".to_owned(), svg)).into_iter().collect(),
    })
}
