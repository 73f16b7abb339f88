//! The matrix of the CPU backends.

/// A row-major matrix. Shrinking keeps the memory.
#[derive(Debug, Clone, Default)]
pub struct Mat<T> {
    pub rows: usize,
    pub cols: usize,
    data: Vec<T>,
}

impl<T: Copy + Default> Mat<T> {
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![T::default(); rows * cols] }
    }

    /// Sets the number of rows; elements are undefined afterwards.
    pub fn resize(&mut self, rows: usize) {
        self.rows = rows;
        if self.data.len() < rows * self.cols {
            self.data.resize(rows * self.cols, T::default());
        }
    }

    pub fn data(&self) -> &[T] {
        &self.data[..self.rows * self.cols]
    }

    pub fn data_mut(&mut self) -> &mut [T] {
        &mut self.data[..self.rows * self.cols]
    }

    pub fn row(&self, row: usize) -> &[T] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.data[row * self.cols..(row + 1) * self.cols]
    }
}
