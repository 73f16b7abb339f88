//! Memory that nobody uses, for those who ask for about as much.

use std::collections::BTreeMap;

/// A piece is taken for what is at least so many eighths of it.
const LEAST_EIGHTHS: usize = 7;

/// Pieces of memory by their sizes.
pub struct Pool<T> {
    pieces: BTreeMap<usize, Vec<T>>,
    /// There was not enough for all once: what pieces are larger than what they are taken for may be what others lack.
    is_short: bool,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { pieces: BTreeMap::new(), is_short: false }
    }
}

impl<T> Pool<T> {
    /// The smallest piece that holds `bytes` bytes and is not much larger, and its size. No larger at all once memory was short.
    pub fn take(&mut self, bytes: usize) -> Option<(T, usize)> {
        let most = if self.is_short { bytes } else { bytes / LEAST_EIGHTHS * 8 };
        let (size, pieces) = self.pieces.range_mut(bytes..=most).next()?;
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

    /// Takes all of them, as memory is short.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.is_short = true;
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
        pool.leave("fits", 7900);
        assert_eq!((pool.take(7168), pool.take(7900)), (None, Some(("fits", 7900))));
    }
}
