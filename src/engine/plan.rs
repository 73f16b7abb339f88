//! How the prompts of a batch become packs. Prompts that begin alike share the context rows of their common beginning: they
//! are computed once, in the first pack that needs them, and later packs inherit what attention reads of them.

use super::{
    pack::{PackLimits, RopeTables},
    tree::{Run, common, runs, sorted},
};
use crate::backend::Sequence;
use std::{collections::BTreeSet, ops::Range, sync::Arc};

/// The rows that a pack's attention reads: those that it inherits from the pack before it, then its own context rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage {
    pub inherited: usize,
    pub own: usize,
    /// Which of them the next pack inherits.
    pub bequeathed: Vec<usize>,
}

/// A pack before anything of it is computed.
#[derive(Debug)]
pub struct Draft {
    /// Runs of context rows, and prompts' last tokens. Paths are rows of the lineage.
    pub sequences: Vec<Sequence>,
    /// Of the pack's own context rows.
    pub token_ids: Vec<u32>,
    pub positions: Vec<u32>,
    pub lineage: Lineage,
    pub twin_rows: Range<usize>,
    /// Tokens of the prompts that end here, those that are shared counted for each.
    pub tokens: usize,
}

/// The packs of a batch.
#[derive(Debug)]
pub struct Plan {
    pub packs: Vec<Draft>,
    /// The prompt of each twin row.
    pub prompts: Vec<usize>,
}

impl Plan {
    /// Lays prompts of at least one token out, sharing common beginnings or each for itself in the order given.
    pub fn new(
        prompts: &[&[u32]],
        limits: PackLimits,
        prefix_sharing: bool,
        ropes: &mut RopeTables<'_>,
    ) -> Self {
        let contexts: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt[..prompt.len() - 1]).collect();
        let kinds: Vec<_> = prompts.iter().map(|prompt| ropes.kind(prompt.len())).collect();
        let order = if prefix_sharing { sorted(&contexts, &kinds) } else { (0..prompts.len()).collect() };
        let mut planner = Planner { contexts, limits, ropes, packs: Vec::new(), prompts: Vec::new() };
        if !prompts.is_empty() {
            planner.open(&[]);
        }
        for alike in order.chunk_by(|a, b| prefix_sharing && kinds[*a] == kinds[*b]) {
            planner.lay(&runs(&planner.contexts, alike));
        }
        Self { packs: planner.packs, prompts: planner.prompts }
    }
}

struct Planner<'p, 'r, 'w> {
    contexts: Vec<&'p [u32]>,
    limits: PackLimits,
    ropes: &'r mut RopeTables<'w>,
    packs: Vec<Draft>,
    prompts: Vec<usize>,
}

/// Where a run lies: in which pack, and the path to its end there.
struct Place {
    pack: usize,
    path: Vec<Range<usize>>,
}

impl Planner<'_, '_, '_> {
    /// Adds a tree of prompts.
    fn lay(&mut self, runs: &[Run]) {
        let mut places: Vec<Place> = Vec::with_capacity(runs.len());
        for (index, run) in runs.iter().enumerate() {
            let rows = run.tokens.len();
            let own = self.pack().lineage.own;
            if own > 0 && own + rows > self.limits.tokens {
                let path = self.path(runs, &places, run.parent);
                self.open(&path);
            }
            let path = self.path(runs, &places, run.parent);
            let path = self.add_run(run, path);
            places.push(Place { pack: self.packs.len() - 1, path });
            for prompt in &run.ends {
                if self.pack().twin_rows.len() == self.limits.sequences {
                    let path = self.path(runs, &places, Some(index));
                    self.open(&path);
                }
                let path = self.path(runs, &places, Some(index));
                self.add_end(*prompt, path);
            }
        }
    }

    fn pack(&mut self) -> &mut Draft {
        self.packs.last_mut().expect("a pack was opened")
    }

    /// Begins a pack that inherits a path of the one before it.
    fn open(&mut self, path: &[Range<usize>]) {
        let bequeathed: Vec<usize> = path.iter().cloned().flatten().collect();
        let inherited = bequeathed.len();
        if let Some(before) = self.packs.last_mut() {
            before.lineage.bequeathed = bequeathed;
        }
        self.packs.push(Draft {
            sequences: Vec::new(),
            token_ids: Vec::new(),
            positions: Vec::new(),
            lineage: Lineage { inherited, ..Lineage::default() },
            twin_rows: self.prompts.len()..self.prompts.len(),
            tokens: 0,
        });
    }

    /// The path to the end of a run in the pack at work. Where the run lies in an earlier pack it was inherited: what is
    /// laid after the beginning of a pack branches off from the path to that beginning.
    fn path(&self, runs: &[Run], places: &[Place], run: Option<usize>) -> Vec<Range<usize>> {
        let Some(run) = run else { return Vec::new() };
        let place = &places[run];
        if place.pack == self.packs.len() - 1 {
            return place.path.clone();
        }
        std::iter::once(0..runs[run].tokens.end).collect()
    }

    /// Adds a run's rows; gives the path to its end.
    fn add_run(&mut self, run: &Run, mut path: Vec<Range<usize>>) -> Vec<Range<usize>> {
        let ropes = self.ropes.get(run.longest + 1);
        let tokens = &self.contexts[run.prompt][run.tokens.clone()];
        let pack = self.packs.last_mut().expect("a pack was opened");
        let start = pack.lineage.own;
        let rows = pack.lineage.inherited + start..pack.lineage.inherited + start + tokens.len();
        match path.last_mut() {
            Some(last) if last.end == rows.start => last.end = rows.end,
            _ if rows.is_empty() => {}
            _ => path.push(rows),
        }
        if !tokens.is_empty() {
            pack.lineage.own += tokens.len();
            pack.token_ids.extend_from_slice(tokens);
            pack.positions.extend(run.tokens.start as u32..run.tokens.end as u32);
            let twin = pack.twin_rows.end..pack.twin_rows.end;
            let context = start..pack.lineage.own;
            pack.sequences.push(Sequence { context, twin, path: path.clone(), ropes });
        }
        path
    }

    /// Adds the last token of a prompt whose context ends where `path` does.
    fn add_end(&mut self, prompt: usize, path: Vec<Range<usize>>) {
        let tokens = self.contexts[prompt].len() + 1;
        let ropes = self.ropes.get(tokens);
        self.prompts.push(prompt);
        let pack = self.pack();
        let twin = pack.twin_rows.end..pack.twin_rows.end + 1;
        pack.twin_rows.end = twin.end;
        pack.tokens += tokens;
        let context = pack.lineage.own..pack.lineage.own;
        pack.sequences.push(Sequence { context, twin, path, ropes });
    }
}

/// Counts the rows of a batch as prompts are added to it.
pub struct RowCount<'a> {
    ropes: RopeTables<'a>,
    prefix_sharing: bool,
    /// With their kinds, so that those that share most are neighbours.
    prompts: BTreeSet<(Vec<usize>, Arc<[u32]>)>,
    rows: usize,
}

impl<'a> RowCount<'a> {
    pub(super) fn new(ropes: RopeTables<'a>, prefix_sharing: bool) -> Self {
        Self { ropes, prefix_sharing, prompts: BTreeSet::new(), rows: 0 }
    }

    /// How many rows there are at most if `prompt` is added: its last token is a row of its own always, nobody shares it.
    pub fn rows_with(&self, prompt: &Arc<[u32]>) -> usize {
        let key = (self.ropes.kind(prompt.len()), prompt.clone());
        let before = self.prompts.range(..&key).next_back();
        let after = self.prompts.range(&key..).next();
        let alike = before.into_iter().chain(after).filter(|(kind, _)| *kind == key.0);
        let before_last = |prompt: &'_ [u32]| prompt.len().saturating_sub(1);
        let shared =
            alike.map(|(_, other)| common(&other[..before_last(other)], &prompt[..before_last(prompt)]));
        self.rows + (prompt.len() - shared.max().unwrap_or(0)).max(1)
    }

    pub fn add(&mut self, prompt: &Arc<[u32]>) {
        self.rows = self.rows_with(prompt);
        if self.prefix_sharing {
            self.prompts.insert((self.ropes.kind(prompt.len()), prompt.clone()));
        }
    }

    /// Starts again, with no prompts.
    pub fn clear(&mut self) {
        self.prompts.clear();
        self.rows = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backend::Rows, model::parse_config, twin::Twin};

    fn with_ropes<T>(work: impl FnOnce(RopeTables<'_>) -> T) -> T {
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
            "num_attention_heads": 1, "vocab_size": 9,
        });
        let spec = parse_config(&config).unwrap();
        work(RopeTables::new(Twin::new(spec.ropes.as_slice(), spec.ropes.as_slice())))
    }

    fn planned(prompts: &[&[u32]], tokens: usize, sequences: usize, prefix_sharing: bool) -> Plan {
        let limits = PackLimits { tokens, sequences };
        with_ropes(|mut ropes| Plan::new(prompts, limits, prefix_sharing, &mut ropes))
    }

    /// Follows the rows of a plan from pack to pack and gives the context that each twin row sees.
    fn spelled(plan: &Plan) -> Vec<Vec<u32>> {
        let (mut contexts, mut inherited) = (Vec::new(), Vec::new());
        for pack in &plan.packs {
            assert_eq!(pack.lineage.inherited, inherited.len());
            assert_eq!(pack.lineage.own, pack.token_ids.len());
            let rows: Vec<u32> = inherited.iter().chain(&pack.token_ids).copied().collect();
            let (mut next, mut twin) = (0, pack.twin_rows.start);
            for sequence in &pack.sequences {
                assert_eq!((sequence.context.start, sequence.twin.start), (next, twin));
                (next, twin) = (sequence.context.end, sequence.twin.end);
                let path: Vec<usize> = sequence.path_rows(0).collect();
                let (own, first) = Rows::Context.of(sequence);
                for (offset, row) in own.enumerate() {
                    assert_eq!(pack.positions[row] as usize, first + offset);
                    assert_eq!(path[first + offset], pack.lineage.inherited + row);
                }
                if !sequence.twin.is_empty() {
                    contexts.push(path.iter().map(|row| rows[*row]).collect());
                }
            }
            assert_eq!((next, twin), (pack.lineage.own, pack.twin_rows.end));
            inherited = pack.lineage.bequeathed.iter().map(|row| rows[*row]).collect();
        }
        assert!(inherited.is_empty());
        contexts
    }

    #[test]
    fn every_twin_row_sees_its_context_and_beginnings_are_computed_once() {
        let prompts: [&[u32]; 9] = [
            &[1, 2, 3, 4],
            &[5],
            &[1, 2],
            &[1, 2, 3, 5, 6],
            &[1, 2, 3, 4],
            &[5, 5, 5],
            &[1, 2, 7, 7],
            &[6],
            &[1, 2, 3, 5, 7, 8],
        ];
        for (tokens, sequences, packs) in [(100, 100, 1), (1, 100, 7), (4, 3, 3), (100, 1, 9)] {
            let plan = planned(&prompts, tokens, sequences, true);
            assert_eq!(plan.packs.len(), packs, "packs of {tokens} tokens, {sequences} prompts");
            let own: usize = plan.packs.iter().map(|pack| pack.lineage.own).sum();
            assert_eq!(own, 8, "1 2 3 5 7, 7 and 5 5");
            let mut seen = vec![false; prompts.len()];
            for (prompt, context) in plan.prompts.iter().zip(spelled(&plan)) {
                assert_eq!(context, prompts[*prompt][..prompts[*prompt].len() - 1]);
                seen[*prompt] = true;
            }
            assert!(seen.iter().all(|seen| *seen));
            let total: usize = plan.packs.iter().map(|pack| pack.tokens).sum();
            assert_eq!(total, prompts.iter().map(|prompt| prompt.len()).sum::<usize>());
        }
    }

    #[test]
    fn without_sharing_packs_keep_to_their_limits_and_the_order() {
        let prompts: Vec<Vec<u32>> = [3usize, 4, 9, 1, 1, 1, 1, 2].iter().map(|n| vec![0; *n]).collect();
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let plan = planned(&prompts, 5, 3, false);
        let twins: Vec<Range<usize>> = plan.packs.iter().map(|pack| pack.twin_rows.clone()).collect();
        assert_eq!(twins, [0..2, 2..3, 3..6, 6..8]);
        assert_eq!(plan.prompts, (0..8).collect::<Vec<_>>());
        assert!(plan.packs.iter().all(|pack| pack.lineage.bequeathed.is_empty()));
        assert!(planned(&[], 5, 3, true).packs.is_empty());
        let lengths: Vec<usize> = spelled(&plan).iter().map(Vec::len).collect();
        assert_eq!(lengths, [2, 3, 8, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn rows_are_counted_as_they_are_shared() {
        let counted = |prefix_sharing: bool| {
            with_ropes(|ropes| {
                let mut count = RowCount::new(ropes, prefix_sharing);
                let prompts: [&[u32]; 4] = [&[1, 2, 3, 4], &[1, 2, 7], &[1, 2, 3, 4], &[0]];
                let add = |prompt: &&[u32]| {
                    let prompt: Arc<[u32]> = (*prompt).into();
                    count.add(&prompt);
                    count.rows
                };
                prompts.iter().map(add).collect::<Vec<_>>()
            })
        };
        assert_eq!(counted(true), [4, 5, 6, 7]);
        assert_eq!(counted(false), [4, 7, 11, 12]);
    }
}
