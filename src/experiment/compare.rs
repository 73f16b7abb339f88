//! `tuco compare`: how far classes of prompts are apart in TuCo (5.2 and 5.3 of the paper).

use super::{
    batches::{self, Batching},
    interval, number, numbers,
    score::{Columns, Scoring},
    task::fields_or_error,
};
use crate::{
    Error, Result,
    engine::AnyEngine,
    metrics::{auc, bootstrap, delong, newcombe, quantile, tpr_at_fpr},
    output::{Axes, Folder, Report, Series, Table, outlines},
};
use serde_json::{Map, Value, json};

/// Random samples of an interval, and their seed.
const RESAMPLES: usize = 2000;
const SEED: u64 = 1;

/// Classes at most, every two of which are compared.
const MOST_CLASSES: usize = 100;

/// Bins of the histograms.
const BINS: usize = 30;

/// A prompt and its class; a row that cannot be read has none.
pub type Prompt = batches::Prompt<Option<String>>;

/// The scores of a class of prompts.
pub struct Class<'a> {
    pub name: &'a str,
    pub scores: Vec<f64>,
    /// Prompts that have none.
    pub errors: usize,
}

/// The classes in the order of their first prompts, or [negative first](negative_first).
pub fn classes(prompts: &[Prompt]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for name in prompts.iter().filter_map(|prompt| prompt.about.as_deref()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    negative_first(&mut names, |name| name);
    names
}

/// Brings two classes that say themselves which is the negative one (0 and 1, false and true) into that order, whichever came first.
pub fn negative_first<T>(classes: &mut [T], name: impl Fn(&T) -> &str) {
    if let [first, second] = classes
        && [("1", "0"), ("true", "false")].contains(&(name(first), name(second)))
    {
        classes.reverse();
    }
}

/// Checks what can be checked before anything is computed.
///
/// # Returns
/// A sentence for each class of which nothing can be scored.
///
/// # Errors
/// A usage error where fewer than two classes have prompts that can be scored, or where there are more than a report can hold.
pub fn check(prompts: &[Prompt]) -> Result<Vec<String>> {
    let first_of = |class: Option<&str>| {
        let mut of_class = prompts.iter().filter(|prompt| prompt.about.as_deref() == class);
        let first = of_class.find_map(|prompt| prompt.encoded.as_ref().err());
        first.map_or(String::new(), |failure| format!("; the first: {}", failure.message))
    };
    let is_scored = |name: &&str| {
        prompts.iter().any(|prompt| prompt.about.as_deref() == Some(*name) && prompt.encoded.is_ok())
    };
    let all = classes(prompts);
    if all.len() > MOST_CLASSES {
        let [first, second] = [all[0], all[1]];
        return Err(Error::usage(format!(
            "there are {} classes of prompts ({first:?}, {second:?}, …), expected at most {MOST_CLASSES}; --by names the field that \
             tells them",
            all.len()
        )));
    }
    let (scored, broken): (Vec<&str>, Vec<&str>) = all.into_iter().partition(is_scored);
    let told = |name: &&str| format!("no prompt of class {name:?} can be scored{}", first_of(Some(*name)));
    let broken: Vec<String> = broken.iter().map(told).collect();
    if scored.len() > 1 {
        return Ok(broken);
    }
    if let Some(told) = broken.first() {
        return Err(Error::usage(told));
    }
    let which = scored.first().map_or(String::new(), |name| format!(" ({name:?})"));
    let unread = match prompts.iter().filter(|prompt| prompt.about.is_none()).count() {
        0 => String::new(),
        count => format!("; {count} rows cannot be read{}", first_of(None)),
    };
    Err(Error::usage(format!(
        "there is only one class of prompts{which}; name two or more files, or give rows a label{unread}"
    )))
}

/// Scores all prompts, on one engine for each device. Rows go to `folder` as they are ready.
///
/// # Returns
/// The summary.
pub fn run(
    engines: &[&dyn AnyEngine],
    prompts: &[Prompt],
    batching: &Batching<'_>,
    folder: &mut Folder,
) -> Result<Value> {
    let scoring = Scoring::of_each(engines, Columns::default());
    let mut classes: Vec<Class<'_>> =
        classes(prompts).into_iter().map(|name| Class { name, scores: Vec::new(), errors: 0 }).collect();
    let row = |prompt: &Prompt, outcome| {
        let class = prompt.about.as_deref().map(|name| ("class".to_owned(), json!(name)));
        class.into_iter().chain(fields_or_error(outcome)).collect()
    };
    batching.pass(&scoring, prompts, folder, row, |prompt, row| {
        let own = prompt.about.as_deref();
        if let Some(class) = classes.iter_mut().find(|class| Some(class.name) == own) {
            match row.get("tuco").and_then(Value::as_f64) {
                Some(tuco) => class.scores.push(tuco),
                None => class.errors += 1,
            }
        }
    })?;
    let scored: usize = classes.iter().map(|class| class.scores.len()).sum();
    let mut summary = Map::new();
    summary.insert("experiment".into(), json!("compare"));
    summary.insert("rows".into(), json!(prompts.len()));
    summary.insert("errors".into(), json!(prompts.len() - scored));
    summary.extend(describe(&classes));
    Ok(summary.into())
}

/// Quantiles and histograms of the classes, and how far every two of them are apart; the later is expected to have the
/// higher scores.
pub fn describe(classes: &[Class<'_>]) -> Map<String, Value> {
    let all = || classes.iter().flat_map(|class| class.scores.iter().copied());
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let step = ((high - low) / BINS as f64).max(f64::MIN_POSITIVE);
    let described = classes.iter().map(|Class { name, scores, errors }| {
        let mut bins = [0usize; BINS];
        scores.iter().for_each(|value| bins[(((value - low) / step) as usize).min(BINS - 1)] += 1);
        let quantiles: Map<String, Value> = [0.05, 0.25, 0.5, 0.75, 0.95]
            .iter()
            .map(|q| (q.to_string(), json!(quantile(scores, *q))))
            .collect();
        json!({
            "name": name,
            "rows": scores.len() + errors,
            "errors": errors,
            "mean": scores.iter().sum::<f64>() / scores.len() as f64,
            "quantiles": quantiles,
            "histogram": bins.to_vec(),
        })
    });
    let all: Vec<(&str, &[f64])> =
        classes.iter().map(|class| (class.name, class.scores.as_slice())).collect();
    let pairs = pairs(&all, |lower, higher| {
        let delong = delong(lower, higher);
        let bootstrap = bootstrap(lower, higher, RESAMPLES, SEED);
        vec![("auc_delong_95", json!(delong)), ("auc_bootstrap_95", json!(bootstrap))]
    });
    let fields = [
        ("classes", described.collect::<Vec<_>>().into()),
        // Infinite, and so null, where nothing has a score.
        ("histogram_range", json!([low, high])),
        ("pairs", pairs.into()),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

/// How far every two of some classes of scores are apart, the later being the positive one; `more` tells more of two.
pub fn pairs(
    classes: &[(&str, &[f64])],
    more: impl Fn(&[f64], &[f64]) -> Vec<(&'static str, Value)>,
) -> Vec<Value> {
    let mut pairs = Vec::new();
    for (first, (negative, lower)) in classes.iter().enumerate() {
        for (positive, higher) in &classes[first + 1..] {
            let auc = auc(lower, higher);
            let interval = auc.map(|auc| newcombe(auc, lower.len(), higher.len()));
            let mut pair = json!({
                "negative": negative,
                "positive": positive,
                "auc": auc,
                "auc_newcombe_95": interval,
                "tpr_at_fpr_5": tpr_at_fpr(lower, higher, 0.05),
            });
            more(lower, higher).into_iter().for_each(|(name, value)| pair[name] = value);
            pairs.push(pair);
        }
    }
    pairs
}

/// The table of [`pairs`]; `None` where a summary has none.
pub fn table_of_pairs(summary: &Value) -> Option<Table> {
    let all = [
        ("95 % (Newcombe)", "auc_newcombe_95"),
        ("95 % (DeLong)", "auc_delong_95"),
        ("95 % (bootstrap)", "auc_bootstrap_95"),
    ];
    let pairs = summary["pairs"].as_array()?;
    let told = |(_, field): &(&str, &str)| pairs.iter().any(|pair| pair.get(*field).is_some());
    let intervals: Vec<(&str, &str)> = all.into_iter().filter(told).collect();
    let mut head = vec!["positive against negative", "AUC"];
    head.extend(intervals.iter().map(|(name, _)| *name));
    head.push("TPR at 5 % FPR");
    let mut caption = "AUC: the chance that a prompt of the first class has the higher TuCo (positive is the class that came later, of 0 and 1, or \
                       false and true, the second)"
        .to_owned();
    let is_whole = |pair: &Value| [0.0, 1.0].map(Some).contains(&pair["auc"].as_f64());
    if intervals.len() > 1 && pairs.iter().any(is_whole) {
        caption += "; DeLong's interval and the bootstrap have no width at an AUC of 0 or 1, as they cannot see what was not drawn";
    }
    let row = |pair: &Value| {
        let text = |name: &str| pair[name].as_str().unwrap_or_default();
        let mut row =
            vec![format!("{} against {}", text("positive"), text("negative")), number(&pair["auc"])];
        row.extend(intervals.iter().map(|(_, field)| interval(&pair[*field], 3)));
        row.push(number(&pair["tpr_at_fpr_5"]));
        row
    };
    Some(Table::new(caption, head, pairs.iter().map(row).collect()))
}

/// Tables and plots of a summary; `None` where it lacks something.
pub fn report(summary: &Value) -> Option<Report> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let head = ["class", "rows", "5 %", "25 %", "median", "75 %", "95 %"];
    let mut quantiles = Table::new("TuCo by class", head, Vec::new());
    let mut series = Vec::new();
    for class in summary["classes"].as_array()? {
        let scored = class["rows"].as_u64()? - class["errors"].as_u64()?;
        let mut row = vec![text(&class["name"]), scored.to_string()];
        row.extend(["0.05", "0.25", "0.5", "0.75", "0.95"].map(|q| number(&class["quantiles"][q])));
        quantiles.rows.push(row);
        let bins = numbers(&class["histogram"])?;
        let points = bins.into_iter().map(|count| (0.0, count / scored.max(1) as f64)).collect();
        series.push(Series::new(text(&class["name"]), points));
    }
    let axes = Axes::new("TuCo", "share of the class").of_shares();
    let range = &summary["histogram_range"];
    let plot = match (range[0].as_f64(), range[1].as_f64()) {
        (Some(low), Some(high)) => outlines(&axes, low, high, &series),
        _ => None,
    };
    let plots = plot.map(|svg| ("Histograms of TuCo".to_owned(), svg)).into_iter().collect();
    let mut notes = super::about(summary);
    if let (Some(rows), Some(errors)) = (summary["rows"].as_u64(), summary["errors"].as_u64()) {
        notes.push(format!("{rows} prompts, {errors} errors"));
    }
    let title = "TuCo of classes of prompts (compare)".into();
    Some(Report { title, notes, tables: vec![quantiles, table_of_pairs(summary)?], plots })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Encoded;

    #[test]
    fn labels_that_say_which_is_negative_need_no_order() {
        let prompt = |class: &&str| Prompt {
            id: 1.into(),
            label: None,
            meta: None,
            about: Some((*class).to_owned()),
            encoded: Ok(Encoded { token_ids: vec![1], truncated: false }),
        };
        let names = |labels: &[&str]| -> Vec<String> {
            let prompts: Vec<Prompt> = labels.iter().map(prompt).collect();
            classes(&prompts).into_iter().map(str::to_owned).collect()
        };
        assert_eq!(names(&["1", "0", "1"]), ["0", "1"]);
        assert_eq!(names(&["true", "false"]), ["false", "true"]);
        assert_eq!(names(&["0", "1"]), ["0", "1"]);
        assert_eq!(names(&["b", "a"]), ["b", "a"]);
        assert_eq!(names(&["2", "1", "0"]), ["2", "1", "0"]);
    }
}
