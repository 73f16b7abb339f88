//! `tuco inspect`: what a pair is, what its models have in common, where and how far fine-tuning moved the weights, and
//! what a run will cost.

use super::cost::Operations;
use crate::{
    backend::{Backend, cpu::Cpu},
    checkpoint::{Checkpoint, Pair},
    engine::PackLimits,
    model::{Family, LayerTensor, ModelSpec, PairWeights, Rope, RopeScaling},
    tensor::Tensor,
    twin::{Branch, Twin},
};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Rows of a tensor that a thread compares at once.
const ROWS_AT_ONCE: usize = 256;

/// Squared norms of a tensor and of its change.
#[derive(Debug, Clone, Copy, Default)]
struct Change {
    squared: f64,
    squared_change: f64,
    tensors: usize,
    identical: usize,
}

impl Change {
    /// Of the rows that both tensors have.
    fn of(pt: &Tensor<'_>, ft: &Tensor<'_>) -> Self {
        let rows: Vec<usize> = (0..pt.rows.min(ft.rows)).collect();
        let of_rows = |rows: &[usize]| {
            let mut sum = Change::default();
            let mut values = Twin::new(vec![0.0; pt.cols], vec![0.0; pt.cols]);
            for row in rows {
                pt.widen_run_f64(*row, 0..pt.cols, &mut values.pt);
                ft.widen_run_f64(*row, 0..pt.cols, &mut values.ft);
                for (pt, ft) in values.pt.iter().zip(&values.ft) {
                    sum.squared += pt * pt;
                    sum.squared_change += (ft - pt).powi(2);
                }
            }
            sum
        };
        // Added in order, whichever thread is first.
        let parts: Vec<Change> = rows.par_chunks(ROWS_AT_ONCE).map(of_rows).collect();
        parts.into_iter().fold(Change::default(), |mut all, part| {
            all.merge(part);
            all
        })
    }

    fn merge(&mut self, other: Change) {
        self.squared += other.squared;
        self.squared_change += other.squared_change;
        self.tensors += other.tensors;
        self.identical += other.identical;
    }

    /// `‖W_ft − W_pt‖ / ‖W_pt‖` in the Frobenius norm.
    fn relative(&self) -> f64 {
        if self.squared_change == 0.0 { 0.0 } else { (self.squared_change / self.squared).sqrt() }
    }
}

/// A report in Markdown.
pub fn report(pair: &Pair) -> String {
    let all: Vec<(usize, LayerTensor)> = pair.layer_tensors().collect();
    let changes: Vec<Change> = all.par_iter().map(|(layer, tensor)| change(pair, *layer, *tensor)).collect();
    let mut by_layer = BTreeMap::<usize, Change>::new();
    let mut by_tensor: Vec<(LayerTensor, Change)> = Vec::new();
    let mut total = Change::default();
    for ((layer, tensor), change) in all.iter().zip(&changes) {
        total.merge(*change);
        by_layer.entry(*layer).or_default().merge(*change);
        match by_tensor.iter_mut().find(|(kind, _)| *kind == tensor.listed()) {
            Some((_, sum)) => sum.merge(*change),
            None => by_tensor.push((tensor.listed(), *change)),
        }
    }
    let family = pair.spec().ft.family;
    let mut text = models(pair);
    text += &format!(
        "\n{} of {} layer tensors are identical; relative change of all layers' weights {:.2e}\n",
        total.identical,
        total.tensors,
        total.relative()
    );
    text += "\n| tensor | identical | relative change |\n|---|---:|---:|\n";
    for (tensor, change) in &by_tensor {
        let Change { identical, tensors, .. } = change;
        let name = name_of(family, *tensor);
        text += &format!("| {name} | {identical} of {tensors} | {:.2e} |\n", change.relative());
    }
    text += "\n| layer | identical | relative change |\n|---:|---:|---:|\n";
    for (layer, change) in &by_layer {
        text += &format!(
            "| {layer} | {} of {} | {:.2e} |\n",
            change.identical,
            change.tensors,
            change.relative()
        );
    }
    text + "\n" + &outside_layers(pair) + "\n" + &cost(pair)
}

/// A tensor's name; of fused ones, which have one, also which of its parts it is.
fn name_of(family: &Family, tensor: LayerTensor) -> String {
    let name = family.suffix(tensor).unwrap_or_default();
    let fused: Vec<LayerTensor> = family.fused_with(tensor).collect();
    match fused.iter().position(|part| *part == tensor) {
        Some(part) if fused.len() > 1 => format!("{name}, part {} of {}", part + 1, fused.len()),
        _ => name.to_owned(),
    }
}

/// Embeddings, final norm and unembedding, of a grown vocabulary the rows that both have.
fn outside_layers(pair: &Pair) -> String {
    let mut text = "| outside the layers, where scores take the tuned model's | identical | relative change |\n|---|---:|---:|\n".to_owned();
    let Twin { pt, ft } = pair.checkpoints.as_ref();
    for (name, ft) in ft.tensors_outside_layers() {
        let Some((_, pt)) = pt.tensors_outside_layers().find(|(other, _)| *other == name) else {
            text += &format!("| {name} | only in the tuned model | |\n");
            continue;
        };
        let change = Change::of(&pt, &ft);
        let same = if pt.rows == ft.rows && change.squared_change == 0.0 { "yes" } else { "no" };
        text += &format!("| {name} | {same} | {:.2e} |\n", change.relative());
    }
    text
}

fn change(pair: &Pair, layer: usize, tensor: LayerTensor) -> Change {
    let identical = usize::from(pair.is_shared(layer, tensor));
    let weights = Branch::BOTH.map(|branch| pair.layer_tensor(branch, layer, tensor));
    let [Some(pt), Some(ft)] = weights else { return Change::default() };
    Change { tensors: 1, identical, ..Change::of(&pt, &ft) }
}

/// Weights of the blocks and of the embedding.
fn parameters(spec: &ModelSpec) -> usize {
    let elements = spec.all_layer_tensors().map(|(layer, tensor)| tensor.elements(spec, layer));
    elements.sum::<usize>() + spec.vocab_size * spec.hidden_size
}

fn models(pair: &Pair) -> String {
    let Twin { pt, ft } = pair.checkpoints.as_ref();
    let mut text = "| | base | tuned |\n|---|---|---|\n".to_string();
    let mut row = |name: &str, pt: String, ft: String| text += &format!("| {name} | {pt} | {ft} |\n");
    row("model", pt.path.display().to_string(), ft.path.display().to_string());
    let adapter = |checkpoint: &Checkpoint| {
        checkpoint.adapter.as_ref().map_or("none".into(), |adapter| adapter.dir.display().to_string())
    };
    row("adapter", adapter(pt), adapter(ft));
    for ((name, pt), (_, ft)) in pt.spec.shape_fields().into_iter().zip(ft.spec.shape_fields()) {
        row(name, pt, ft);
    }
    row("vocab_size", pt.spec.vocab_size.to_string(), ft.spec.vocab_size.to_string());
    row(
        "context",
        format!("{} tokens", pt.spec.context_length),
        format!("{} tokens", ft.spec.context_length),
    );
    let of_ropes = |Checkpoint { spec, .. }: &Checkpoint, of: fn(&Rope) -> String| {
        let rotates = spec.layers.iter().any(|layer| layer.rope.is_some());
        if rotates { spec.ropes.iter().map(of).collect::<Vec<_>>().join(", ") } else { "none".into() }
    };
    let mut rope_row = |name: &str, of: fn(&Rope) -> String| row(name, of_ropes(pt, of), of_ropes(ft, of));
    rope_row("rope_theta", |rope| rope.rope_theta.to_string());
    rope_row("rope_scaling", |rope| match &rope.scaling {
        // Its factors are as many as frequencies.
        RopeScaling::LongRope { attention_factor, original_max_position_embeddings, .. } => format!(
            "LongRope {{ attention_factor: {attention_factor}, original_max_position_embeddings: {original_max_position_embeddings}, … }}"
        ),
        other => format!("{other:?}"),
    });
    rope_row("rotated dimensions", |rope| rope.rotary_dim.to_string());
    row("epsilon of norms", pt.spec.norm_eps.to_string(), ft.spec.norm_eps.to_string());
    row("factor on scores", pt.spec.attention_scale.to_string(), ft.spec.attention_scale.to_string());
    if let (Some(pt), Some(ft)) = (pt.spec.hidden_act.limit(), ft.spec.hidden_act.limit()) {
        row("limit of gates", pt.to_string(), ft.to_string());
    }
    row(
        "tie_word_embeddings",
        pt.spec.tie_word_embeddings.to_string(),
        ft.spec.tie_word_embeddings.to_string(),
    );
    let windows = |spec: &ModelSpec| {
        let sliding: Vec<usize> = spec.layers.iter().filter_map(|layer| layer.sliding_window).collect();
        sliding.first().map_or("none".into(), |window| format!("{window} in {} layers", sliding.len()))
    };
    row("sliding_window", windows(&pt.spec), windows(&ft.spec));
    row("dtype", pt.encoding().name().into(), ft.encoding().name().into());
    row("parameters", millions(parameters(&pt.spec)), millions(parameters(&ft.spec)));
    row("files", megabytes(pt.bytes() as f64), megabytes(ft.bytes() as f64));
    for notice in &pair.notices {
        text += &format!("\nNote: {notice}\n");
    }
    text
}

/// Operations and memory of a score on the CPU.
fn cost(pair: &Pair) -> String {
    let spec = pair.spec().ft;
    let mut text =
        "| tokens in a prompt | one forward pass, GFLOP/token | TuCo, of one pass |\n|---:|---:|---:|\n"
            .to_string();
    for tokens in [128.0, 512.0, 2048.0] {
        let Operations { pass, score } = Operations::per_token(spec, tokens);
        text += &format!("| {tokens} | {:.3} | {:.3} |\n", pass / 1e9, score / pass);
    }
    let limits = PackLimits::for_model(spec, Cpu::new().pack_room());
    text += &format!(
        "\nMemory beside the mapped files: {} of workspace and {} of hidden states for 32768 tokens\n",
        megabytes((PackLimits::row_bytes(spec) * limits.tokens) as f64),
        megabytes((4 * spec.hidden_size * 32768) as f64),
    );
    text
}

fn millions(count: usize) -> String {
    format!("{:.1} M", count as f64 / 1e6)
}

fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}
