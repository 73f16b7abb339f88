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
        self.rows.free.push(rows);
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
    free: Vec<Range<usize>>,
}

impl FreeRows {
    /// The first free rows that are enough, or new ones at the end.
    fn take(&mut self, count: usize) -> Range<usize> {
        let Some(place) = self.free.iter().position(|rows| rows.len() >= count) else {
            self.end += count;
            return self.end - count..self.end;
        };
        let rows = self.free.swap_remove(place);
        if rows.len() > count {
            self.free.push(rows.start + count..rows.end);
        }
        rows.start..rows.start + count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_used_again() {
        let mut rows = FreeRows::default();
        assert_eq!((rows.take(5), rows.take(3), rows.take(4)), (0..5, 5..8, 8..12));
        rows.free.push(5..8);
        rows.free.push(0..5);
        assert_eq!((rows.take(4), rows.take(1), rows.take(3)), (0..4, 5..6, 12..15));
        assert_eq!((rows.take(2), rows.take(1)), (6..8, 4..5));
    }
}
