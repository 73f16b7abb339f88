//! Keys and values of tokens that have passed the layers: each branch has its own, so that every later token attends, in
//! each block, to what that block made of the tokens before it.

use crate::{
    backend::{Backend, Role, Rows},
    model::ModelSpec,
    twin::{Branch, Twin},
};
use std::ops::Range;

/// Keys and values of a block, `[capacity, K·Dh]` each.
pub struct KeysValues<M> {
    pub keys: M,
    pub values: M,
}

/// Keys and values of all blocks that are asked for. All have their rows in common places.
pub struct Cache<M> {
    layers: Vec<Twin<Option<KeysValues<M>>>>,
    rows: FreeRows,
    capacity: usize,
    width: usize,
}

impl<M> Cache<M> {
    pub fn new(spec: &ModelSpec) -> Self {
        let layers = (0..spec.num_hidden_layers).map(|_| Twin::new(None, None)).collect();
        Self { layers, rows: FreeRows::default(), capacity: 0, width: spec.key_width() }
    }

    /// Reserves `count` rows that follow each other.
    pub fn take(&mut self, count: usize) -> Range<usize> {
        self.rows.take(count)
    }

    /// Gives rows back.
    pub fn give_back(&mut self, rows: Range<usize>) {
        self.rows.give_back(rows);
    }

    /// Makes room for all reserved rows. Grows by half at least, so that rows are seldom copied.
    pub fn fit<B: Backend<Mat = M>>(&mut self, backend: &B) {
        let end = self.rows.end;
        if end <= self.capacity {
            return;
        }
        let capacity = end.max(self.capacity + self.capacity / 2);
        let old: Vec<usize> = (0..self.capacity).collect();
        for kept in self.layers.iter_mut().flat_map(|Twin { pt, ft }| [pt, ft]).flatten() {
            for mat in [&mut kept.keys, &mut kept.values] {
                let mut larger = backend.zeros(Rows::Context, Role::Operand, capacity, self.width);
                backend.scatter(mat, &old, &mut larger);
                *mat = larger;
            }
        }
        self.capacity = capacity;
    }

    /// A block's keys and values.
    pub fn of<B: Backend<Mat = M>>(
        &mut self,
        backend: &B,
        layer: usize,
        branch: Branch,
    ) -> &mut KeysValues<M> {
        let (capacity, width) = (self.capacity, self.width);
        let zeros = || backend.zeros(Rows::Context, Role::Operand, capacity, width);
        self.layers[layer]
            .get_mut(branch)
            .get_or_insert_with(|| KeysValues { keys: zeros(), values: zeros() })
    }
}

/// Which rows are reserved: those before `end` that are not free.
#[derive(Debug, Default)]
struct FreeRows {
    end: usize,
    /// In order; no two follow each other, and none is the last before `end`.
    free: Vec<Range<usize>>,
}

impl FreeRows {
    /// The first free rows that are enough, or new ones at the end.
    fn take(&mut self, count: usize) -> Range<usize> {
        let Some(place) = self.free.iter().position(|rows| rows.len() >= count) else {
            self.end += count;
            return self.end - count..self.end;
        };
        let start = self.free[place].start;
        self.free[place].start += count;
        if self.free[place].is_empty() {
            self.free.remove(place);
        }
        start..start + count
    }

    /// Rows that are free side by side become one range, so that longer ones find room there.
    fn give_back(&mut self, mut rows: Range<usize>) {
        let place = self.free.partition_point(|free| free.start < rows.start);
        if self.free.get(place).is_some_and(|after| after.start == rows.end) {
            rows.end = self.free.remove(place).end;
        }
        if place > 0 && self.free[place - 1].end == rows.start {
            rows.start = self.free.remove(place - 1).start;
        }
        if rows.end == self.end {
            self.end = rows.start;
        } else {
            self.free.insert(self.free.partition_point(|free| free.start < rows.start), rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_used_again() {
        let mut rows = FreeRows::default();
        assert_eq!((rows.take(5), rows.take(3), rows.take(4)), (0..5, 5..8, 8..12));
        rows.give_back(5..8);
        rows.give_back(0..2);
        assert_eq!((rows.take(3), rows.take(1), rows.take(3)), (5..8, 0..1, 12..15));
        assert_eq!((rows.take(1), rows.end), (1..2, 15));
    }

    /// A sequence that grows gives its rows back and takes more, again and again.
    #[test]
    fn rows_side_by_side_are_one_room() {
        let mut rows = FreeRows::default();
        assert_eq!((rows.take(4), rows.take(4), rows.take(4), rows.take(1)), (0..4, 4..8, 8..12, 12..13));
        rows.give_back(0..4);
        rows.give_back(8..12);
        rows.give_back(4..8);
        assert_eq!((rows.take(10), rows.free.first(), rows.free.len()), (0..10, Some(&(10..12)), 1));
        rows.give_back(12..13);
        assert_eq!((rows.end, rows.free.len()), (10, 0));
        rows.give_back(0..10);
        assert_eq!((rows.end, rows.free.len(), rows.take(11)), (0, 0, 0..11));
    }
}
