//! The one call of the matrix-product library.

use super::element::Element;

/// The size of a product: `out[rows, cols]`, `inner` products summed up for each.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub rows: usize,
    pub cols: usize,
    pub inner: usize,
}

/// The left operand: `inner` contiguous elements of each row, rows `stride` apart.
#[derive(Debug, Clone, Copy)]
pub struct Left<T> {
    pub data: *const T,
    pub stride: usize,
}

/// The right operand, element `(inner, col)` at `inner · inner_stride + col · col_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Right<T> {
    pub data: *const T,
    pub inner_stride: usize,
    pub col_stride: usize,
}

/// Tells the library, for the whole process, not to copy rows of the left operand into tiles: they are contiguous, and
/// each would be copied once for every block of columns. Changes no bit of a result.
pub fn leave_rows_in_place() {
    gemm::set_rhs_packing_threshold(usize::from(u16::MAX));
}

/// `out (+)= left · right` on this thread; rows of `out` lie `stride` apart. With `add` the product is added to what
/// `out` holds.
///
/// # Safety
/// All three are valid for the size, and nobody else touches `out`.
pub unsafe fn gemm<T: Element>(
    size: Size,
    left: Left<T>,
    right: Right<T>,
    out: *mut T,
    stride: usize,
    add: bool,
) {
    // The library likes results whose columns are contiguous: the transposed product, operands swapped.
    unsafe {
        gemm::gemm(
            size.cols,
            size.rows,
            size.inner,
            out,
            stride as isize,
            1,
            add,
            right.data,
            right.inner_stride as isize,
            right.col_stride as isize,
            left.data,
            left.stride as isize,
            1,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
