//! Memory that nobody uses, for those who ask for about as much.

use std::collections::BTreeMap;

/// A piece is taken for what is at least so many eighths of it.
const LEAST_EIGHTHS: usize = 7;

/// Pieces of memory by their sizes.
pub struct Pool<T> {
    pieces: BTreeMap<usize, Vec<T>>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { pieces: BTreeMap::new() }
    }
}

impl<T> Pool<T> {
    /// The smallest piece that holds `bytes` bytes and is not much larger, and its size.
    pub fn take(&mut self, bytes: usize) -> Option<(T, usize)> {
        let (size, pieces) = self.pieces.range_mut(bytes..=bytes / LEAST_EIGHTHS * 8).next()?;
        let size = *size;
        let piece = pieces.pop()?;
        if pieces.is_empty() {
            self.pieces.remove(&size);
        }
        Some((piece, size))
    }

    pub fn leave(&mut self, piece: T, bytes: usize) {
        self.pieces.entry(bytes).or_default().push(piece);
    }

    /// Takes all of them.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.pieces).into_values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_piece_that_is_not_much_larger_is_taken() {
        let mut pool = Pool::default();
        for (piece, bytes) in [("large", 9000), ("fits", 7900), ("same", 7168), ("small", 512)] {
            pool.leave(piece, bytes);
        }
        assert_eq!(pool.take(7168), Some(("same", 7168)));
        assert_eq!(pool.take(7168), Some(("fits", 7900)));
        assert_eq!(pool.take(7168), None);
        assert_eq!(pool.take(513), None);
        assert_eq!(pool.take(0), None);
        assert_eq!(pool.drain().collect::<Vec<_>>(), ["small", "large"]);
        assert_eq!(pool.take(512), None);
    }
}
