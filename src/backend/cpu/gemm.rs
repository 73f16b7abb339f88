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
pub struct Left<'a, T> {
    pub data: &'a [T],
    pub stride: usize,
}

/// The right operand, element `(inner, col)` at `inner · inner_stride + col · col_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Right<'a, T> {
    pub data: &'a [T],
    pub inner_stride: usize,
    pub col_stride: usize,
}

/// Tells the library, for the whole process, to read operands where they lie wherever it can: copying them into tiles
/// first, as it would, costs more than it gains for the layouts of this backend. Changes no bit of a result.
pub fn leave_operands_in_place() {
    gemm::set_rhs_packing_threshold(usize::from(u16::MAX));
    gemm::set_lhs_packing_threshold_single_thread(usize::from(u16::MAX));
}

/// `out (+)= left · right` on this thread; rows of `out` lie `stride` apart. With `add` the product is added to what
/// `out` holds.
///
/// # Safety
/// `out` is valid for the size, and nobody else touches it.
pub unsafe fn gemm<T: Element>(
    size: Size,
    left: Left<'_, T>,
    right: Right<'_, T>,
    out: *mut T,
    stride: usize,
    add: bool,
) {
    let Size { rows, cols, inner } = size;
    let last = |outer: usize, outer_stride: usize, inner_stride: usize| {
        (outer - 1) * outer_stride + (inner - 1) * inner_stride
    };
    assert!(last(rows, left.stride, 1) < left.data.len(), "left operand of a product");
    assert!(
        last(cols, right.col_stride, right.inner_stride) < right.data.len(),
        "right operand of a product"
    );
    // The library likes results whose columns are contiguous: the transposed product, operands swapped.
    unsafe {
        gemm::gemm(
            cols,
            rows,
            inner,
            out,
            stride as isize,
            1,
            add,
            right.data.as_ptr(),
            right.inner_stride as isize,
            right.col_stride as isize,
            left.data.as_ptr(),
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
