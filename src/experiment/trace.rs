//! `tuco trace`: the contributions to every token of one prompt and response, layer by layer, and what fine-tuning says.

use super::{
    batches::{Batch, Batching},
    numbers,
    worker::Worker,
};
use crate::{
    Error, ErrorKind, Result,
    engine::{AnyEngine, Observer, Split, Trace},
    metrics::{PartsL1, RunningL1, beta, beta_per_layer, tuco},
    output::{Axes, Folder, Report, Series, Table, color, curves, heatmap, visible},
    prompt::Encoder,
};
use serde_json::{Value, json};

/// Tokens listed of those most promoted and demoted.
const LISTED: usize = 8;

/// The tokens of a prompt and of the response that follows it.
pub struct TracedText {
    pub token_ids: Vec<u32>,
    /// How many of them are the prompt's.
    pub prompt: usize,
    /// Tokens of the prompt were left out.
    pub truncated: bool,
}

/// Traces the text.
///
/// # Returns
/// The summary.
///
/// # Errors
/// As [`Batching::share`]; [`ErrorKind::NotFinite`] where the hidden state or the logits overflow.
pub fn run(
    engine: &dyn AnyEngine,
    text: &TracedText,
    encoder: &Encoder,
    batching: &Batching<'_>,
    folder: &mut Folder,
) -> Result<Value> {
    batching.limits.check(text.token_ids.len()).map_err(|error| Error::usage(error.message))?;
    let prompts = [text.token_ids.as_slice()];
    let batch = Batch { of: (), rows: 1, tokens: text.token_ids.len() };
    let compute = |worker: &Worker<'_, &dyn AnyEngine>, (): &(), observer: Observer<'_>| {
        worker.install(|engine| {
            let trace = engine.trace(&prompts, observer)?.remove(0);
            trace.check_finite().map_err(|why| Error::new(ErrorKind::NotFinite, why))?;
            let says = engine.logits_of_parts(&trace.split)?;
            Ok((trace, says))
        })
    };
    let name = |token: u32| encoder.text_of(token).unwrap_or_else(|| format!("<{token}>"));
    let mut traced = None;
    let engines = [engine];
    let workers = Worker::of_each(&engines, batching.pools);
    batching.share(&workers, std::iter::once(batch), compute, |(), (trace, says)| {
        folder.append(&rows(text, &trace, &name))?;
        traced = Some((trace, says));
        Ok(())
    })?;
    let (trace, says) = traced.expect("the batch was taken");
    let shares = |part: fn(&PartsL1) -> RunningL1| -> Vec<Vec<f64>> {
        let of_token = |layers: &Vec<PartsL1>| layers.iter().map(|l1| tuco(part(l1))).collect();
        trace.tokens.iter().map(of_token).collect()
    };
    let all_tokens = trace.over_all_tokens();
    let last = |table: Vec<Vec<f64>>| table.last().cloned().unwrap_or_default();
    Ok(json!({
        "experiment": "trace",
        "tokens": text.token_ids.len(),
        "truncated": text.truncated,
        "texts": text.token_ids.iter().map(|token| name(*token)).collect::<Vec<_>>(),
        "beta_per_layer": shares(|l1| l1.whole),
        "last_token": {
            "whole": last(shares(|l1| l1.whole)),
            "attention": last(shares(|l1| l1.attention)),
            "mlp": last(shares(|l1| l1.mlp)),
        },
        "all_tokens": { "beta": beta(&all_tokens), "beta_per_layer": beta_per_layer(&all_tokens) },
        "says": says_of(&says, &name),
    }))
}

fn rows(text: &TracedText, trace: &Trace, name: &dyn Fn(u32) -> String) -> Vec<Value> {
    let row = |(position, (token, layers)): (usize, (&u32, &Vec<PartsL1>))| {
        let per_layer = |part: fn(&PartsL1) -> RunningL1| -> Vec<f64> {
            layers.iter().map(|l1| tuco(part(l1))).collect()
        };
        json!({
            "position": position,
            "token_id": token,
            "text": name(*token),
            "in_response": position >= text.prompt,
            "tuco": layers.last().map(|l1| tuco(l1.whole)),
            "ptc_l1": layers.last().map(|l1| l1.whole.ptc),
            "ftc_l1": layers.last().map(|l1| l1.whole.ftc),
            "beta_per_layer": per_layer(|l1| l1.whole),
            "attention_per_layer": per_layer(|l1| l1.attention),
            "mlp_per_layer": per_layer(|l1| l1.mlp),
        })
    };
    text.token_ids.iter().zip(&trace.tokens).enumerate().map(row).collect()
}

/// The tokens that each part of the last hidden state promotes and demotes most.
fn says_of(logits: &Split, name: &dyn Fn(u32) -> String) -> Value {
    let listed = |logits: &[f64]| {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let entry = |token: &usize| json!({ "text": name(*token as u32), "token_id": token, "logit": logits[*token] });
        let promoted: Vec<Value> = order.iter().take(LISTED).map(entry).collect();
        let demoted: Vec<Value> = order.iter().rev().take(LISTED).map(entry).collect();
        json!({ "promotes": promoted, "demotes": demoted })
    };
    json!({ "fine_tuning": listed(&logits.ft), "pre_training": listed(&logits.pt) })
}

/// The text, each token on the colour of its TuCo.
pub fn colored(summary: &Value) -> Option<String> {
    let tucos = last_of_each(&summary["beta_per_layer"])?;
    let largest = tucos.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut text = String::new();
    for (token, tuco) in summary["texts"].as_array()?.iter().zip(tucos) {
        let [red, green, blue] = color(tuco / largest);
        let ink = if tuco / largest > 0.5 { 97 } else { 30 };
        // A line break would take the colour with it.
        for (index, part) in token.as_str()?.split('\n').enumerate() {
            if index > 0 {
                text.push('\n');
            }
            text += &format!("\u{1b}[{ink};48;2;{red};{green};{blue}m{}\u{1b}[0m", visible(part));
        }
    }
    Some(text + &format!("\n(white: TuCo 0, blue: {largest:.3})\n"))
}

fn last_of_each(table: &Value) -> Option<Vec<f64>> {
    table.as_array()?.iter().map(|layers| layers.as_array()?.last()?.as_f64()).collect()
}

/// Tables and plots of a summary; `None` where it lacks something.
pub fn report(summary: &Value) -> Option<Report> {
    let visible = |text: &Value| visible(text.as_str().unwrap_or_default()).replace(' ', "␣");
    let mut tokens = Table::new("TuCo of every token", ["token", "TuCo"], Vec::new());
    let names: Vec<String> = summary["texts"].as_array()?.iter().map(visible).collect();
    for (name, tuco) in names.iter().zip(last_of_each(&summary["beta_per_layer"])?) {
        tokens.rows.push(vec![name.clone(), format!("{tuco:.4}")]);
    }
    let mut says = Table::new(
        "What the two parts of the last hidden state add to logits (the final norm's scale is that of the whole)",
        ["", "fine-tuning promotes", "demotes", "pre-training promotes", "demotes"],
        Vec::new(),
    );
    for place in 0..LISTED {
        let mut row = vec![(place + 1).to_string()];
        for part in ["fine_tuning", "pre_training"] {
            for list in ["promotes", "demotes"] {
                let entry = &summary["says"][part][list][place];
                let logit = entry["logit"].as_f64();
                row.push(
                    logit.map_or("–".into(), |logit| format!("{} {logit:+.2}", visible(&entry["text"]))),
                );
            }
        }
        says.rows.push(row);
    }
    let betas: Option<Vec<Vec<f64>>> = summary["beta_per_layer"].as_array()?.iter().map(numbers).collect();
    let curve = |name: &str, field: &str| -> Option<Series> {
        let values = numbers(&summary["last_token"][field])?;
        let points =
            values.into_iter().enumerate().map(|(layer, value)| ((layer + 1) as f64, value)).collect();
        Some(Series::new(name, points))
    };
    let series = [curve("whole", "whole")?, curve("attention", "attention")?, curve("MLP", "mlp")?];
    let heat = heatmap(&names, "layer", &betas?)
        .map(|svg| ("β after every layer (columns), by token".to_owned(), svg));
    // As many layers as there is room for.
    let layers = series[0].points.len();
    let every = layers.div_ceil(16).max(1);
    let marks = (every..=layers).step_by(every).map(|layer| (layer as f64, layer.to_string()));
    let axes = Axes::new("layer", "β of the last token").with_marks(marks).of_shares();
    let lines = curves(&axes, &series)
        .map(|svg| ("β of the last token after every layer, and of attention and MLP alone".to_owned(), svg));
    let mut notes = super::about(summary);
    notes.push(format!(
        "β of all tokens together, as in the paper's bound: {:.4}",
        summary["all_tokens"]["beta"].as_f64()?
    ));
    if summary["truncated"] == true {
        notes.push("Tokens of the prompt were left out (--on-overlength).".into());
    }
    Some(Report {
        title: "Contributions to every token (trace)".into(),
        notes,
        tables: vec![tokens, says],
        plots: lines.into_iter().chain(heat).collect(),
    })
}
