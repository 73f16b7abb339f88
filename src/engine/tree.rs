//! Prompts that begin alike share the rows of their common beginning: the rows of a pack form trees, and each row
//! attends to the way from the root to itself.

use super::pack::RopeTables;
use crate::backend::Sequence;
use std::ops::Range;

/// Rows of a forest that are a matrix of their own after the last layer.
pub struct Chosen {
    /// Which rows of the forest they are.
    pub rows: Vec<usize>,
    /// As parts of this matrix; their paths are rows of the forest.
    pub sequences: Vec<Sequence>,
    /// Which rows of this matrix each prompt has asked for, in the order of [`Forest::ends`].
    pub of_prompt: Vec<Vec<usize>>,
}

/// The rows of some prompts, each common beginning once.
pub struct Forest {
    /// Rows that follow each other in all prompts that they belong to; together all rows, in order.
    pub sequences: Vec<Sequence>,
    pub token_ids: Vec<u32>,
    pub positions: Vec<u32>,
    /// The prompts, as numbers in the batch, and which of the sequences each ends with.
    pub ends: Vec<(usize, usize)>,
    /// Tokens of the prompts, those that are shared counted for each.
    pub tokens: usize,
}

impl Forest {
    pub fn rows(&self) -> usize {
        self.token_ids.len()
    }

    /// The row of the last token of each prompt, in the order of [`Forest::ends`].
    pub fn last_rows(&self) -> Vec<usize> {
        self.ends.iter().map(|(_, end)| self.sequences[*end].context.end - 1).collect()
    }

    /// The last tokens of the prompts as rows of a matrix of their own; their paths are rows of the forest.
    pub fn last_tokens(&self) -> Vec<Sequence> {
        let last = |(row, (_, end)): (usize, &(usize, usize))| {
            let sequence = &self.sequences[*end];
            Sequence { context: row..row + 1, ..sequence.clone() }
        };
        self.ends.iter().enumerate().map(last).collect()
    }

    /// The rows of each prompt from a position on: `first` gives it for a prompt's number in the batch.
    pub fn rows_from(&self, first: impl Fn(usize) -> usize) -> Chosen {
        // What a prompt asks of a sequence it asks up to its end, so that one position for each sequence says it.
        let mut asked_from = vec![usize::MAX; self.sequences.len()];
        for (prompt, end) in &self.ends {
            for part in &self.sequences[*end].path {
                let sequence = self.sequences.partition_point(|sequence| sequence.context.end <= part.start);
                asked_from[sequence] = first(*prompt).min(asked_from[sequence]);
            }
        }
        let mut chosen = Chosen { rows: Vec::new(), sequences: Vec::new(), of_prompt: Vec::new() };
        let mut place = vec![None; self.rows()];
        for (sequence, from) in self.sequences.iter().zip(asked_from) {
            let begins = sequence.path_len() - sequence.context.len();
            let skipped = from.saturating_sub(begins);
            if skipped >= sequence.context.len() {
                continue;
            }
            let start = chosen.rows.len();
            for row in sequence.context.clone().skip(skipped) {
                place[row] = Some(chosen.rows.len());
                chosen.rows.push(row);
            }
            chosen.sequences.push(Sequence { context: start..chosen.rows.len(), ..sequence.clone() });
        }
        let of_prompt = |(prompt, end): &(usize, usize)| {
            self.sequences[*end].path_rows(first(*prompt)).filter_map(|row| place[row]).collect()
        };
        chosen.of_prompt = self.ends.iter().map(of_prompt).collect();
        chosen
    }
}

/// Lays prompts out in forests of at most `most_rows` rows besides those of a first prompt: where what prompts share is long, many of
/// them still share it.
pub fn plant(prompts: &[&[u32]], most_rows: usize, ropes: &mut RopeTables<'_>) -> Vec<Forest> {
    let kinds: Vec<_> = prompts.iter().map(|prompt| ropes.kind(prompt.len())).collect();
    let order = sorted(prompts, &kinds);
    let mut forests = Vec::new();
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let mut rows = 0;
        let mut fits = |at: usize, prompt: &usize| {
            let before = (at > 0).then(|| rest[at - 1]).filter(|before| kinds[*before] == kinds[*prompt]);
            let shared = before.map_or(0, |before| common(prompts[before], prompts[*prompt]));
            let own = prompts[*prompt].len() - shared;
            rows += if at == 0 { 0 } else { own };
            rows <= most_rows
        };
        let count = rest.iter().enumerate().take_while(|(at, prompt)| fits(*at, prompt)).count();
        let (chosen, later) = rest.split_at(count);
        let mut forest = Forest {
            sequences: Vec::new(),
            token_ids: Vec::new(),
            positions: Vec::new(),
            ends: Vec::new(),
            tokens: chosen.iter().map(|prompt| prompts[*prompt].len()).sum(),
        };
        for alike in chosen.chunk_by(|a, b| kinds[*a] == kinds[*b]) {
            grow(&mut forest, prompts, &runs(prompts, alike), ropes);
        }
        forests.push(forest);
        rest = later;
    }
    forests
}

/// Numbers of prompts such that those that begin alike follow each other. Rotations may depend on the length of the whole
/// prompt (its kind); those that rotate alike come one after the other.
pub fn sorted(prompts: &[&[u32]], kinds: &[Vec<usize>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by(|a, b| kinds[*a].cmp(&kinds[*b]).then_with(|| prompts[*a].cmp(prompts[*b])));
    order
}

/// Tokens that follow each other in all prompts that go through them.
pub struct Run {
    /// One of these prompts, and which of its tokens they are: only a prompt without any tokens has an empty run.
    pub prompt: usize,
    pub tokens: Range<usize>,
    /// The run before it.
    pub parent: Option<usize>,
    /// Tokens of the longest of these prompts.
    pub longest: usize,
    /// The prompts that end with it.
    pub ends: Vec<usize>,
}

/// The tree of the prompts `sorted`, each run before those that branch off from it.
pub fn runs(prompts: &[&[u32]], sorted: &[usize]) -> Vec<Run> {
    /// Prompts of the list that agree in their first `depth` tokens, up to the run `parent`.
    struct Branching {
        prompts: Range<usize>,
        depth: usize,
        parent: Option<usize>,
    }
    let mut runs: Vec<Run> = Vec::new();
    let mut todo = vec![Branching { prompts: 0..sorted.len(), depth: 0, parent: None }];
    while let Some(Branching { prompts: range, depth, parent }) = todo.pop() {
        let members = &sorted[range.clone()];
        let (first, last) = (prompts[members[0]], prompts[members[members.len() - 1]]);
        let end = common(first, last);
        let ending = members.iter().take_while(|prompt| prompts[**prompt].len() == end).count();
        let mut before = parent;
        if end > depth || ending > 0 {
            before = Some(runs.len());
            runs.push(Run {
                prompt: members[0],
                tokens: depth..end,
                parent,
                longest: members.iter().map(|prompt| prompts[*prompt].len()).max().unwrap_or(end),
                ends: members[..ending].to_vec(),
            });
        }
        let mut start = range.start + ending;
        let mut branches = Vec::new();
        for branch in members[ending..].chunk_by(|a, b| prompts[*a][end] == prompts[*b][end]) {
            branches.push(Branching { prompts: start..start + branch.len(), depth: end, parent: before });
            start += branch.len();
        }
        todo.extend(branches.into_iter().rev());
    }
    runs
}

/// Adds a tree of prompts, which rotate alike.
fn grow(forest: &mut Forest, prompts: &[&[u32]], runs: &[Run], ropes: &mut RopeTables<'_>) {
    let first = forest.sequences.len();
    for (index, run) in runs.iter().enumerate() {
        let start = forest.rows();
        forest.token_ids.extend(&prompts[run.prompt][run.tokens.clone()]);
        forest.positions.extend(run.tokens.start as u32..run.tokens.end as u32);
        let context = start..forest.rows();
        let mut path = run.parent.map_or(Vec::new(), |parent| forest.sequences[first + parent].path.clone());
        path.push(context.clone());
        forest.sequences.push(Sequence { context, twin: 0..0, path, ropes: ropes.get(run.longest) });
        forest.ends.extend(run.ends.iter().map(|prompt| (*prompt, first + index)));
    }
}

/// How many tokens two prompts begin with alike.
pub fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::parse_config, twin::Twin};

    fn planted(prompts: &[&[u32]], most_rows: usize) -> Vec<Forest> {
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
            "num_attention_heads": 1, "vocab_size": 9,
        });
        let spec = parse_config(&config).unwrap();
        let ropes = Twin::new(spec.ropes.as_slice(), spec.ropes.as_slice());
        plant(prompts, most_rows, &mut RopeTables::new(ropes))
    }

    /// The tokens that a prompt's path spells.
    fn spelled(forest: &Forest, end: usize) -> Vec<u32> {
        forest.sequences[end].path_rows(0).map(|row| forest.token_ids[row]).collect()
    }

    #[test]
    fn every_path_spells_its_prompt_and_beginnings_are_stored_once() {
        let prompts: [&[u32]; 7] =
            [&[1, 2, 3, 4], &[5], &[1, 2], &[1, 2, 3, 5, 6], &[1, 2, 3, 4], &[5, 5, 5], &[1, 2, 7]];
        for (most_rows, rows) in [(100, 10), (1, 16), (3, 14)] {
            let forests = planted(&prompts, most_rows);
            let mut seen = vec![false; prompts.len()];
            for forest in &forests {
                for (prompt, end) in &forest.ends {
                    assert_eq!(spelled(forest, *end), prompts[*prompt]);
                    seen[*prompt] = true;
                }
                let mut next = 0;
                for sequence in &forest.sequences {
                    assert_eq!(sequence.context.start, next);
                    next = sequence.context.end;
                    let (_, first) = crate::backend::Rows::Context.of(sequence);
                    assert_eq!(forest.positions[sequence.context.start] as usize, first);
                }
                assert_eq!(next, forest.rows());
            }
            assert!(seen.iter().all(|seen| *seen));
            let total: usize = forests.iter().map(Forest::rows).sum();
            assert_eq!(total, rows, "forests of {most_rows}");
        }
    }
}
