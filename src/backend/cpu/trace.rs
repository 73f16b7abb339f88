//! Contributions of a layer's parts to all rows, in one pass over their streams.

use super::{element::Element, vector::vectorize};
use crate::{
    backend::Mat,
    metrics::{PartsL1, RunningL1},
};
use pulp::Arch;
use rayon::prelude::*;

/// Partial sums of a norm: the order of summation does not depend on the vector width.
const LANES: usize = 8;

/// See [`Backend::trace`](crate::backend::Backend::trace): the streams `x`, after attention (pt, ft), after the layer (pt, ft); the sums P
/// and F of attention, P and F of the MLP.
pub fn trace<T: Element>(arch: Arch, streams: [&Mat<T>; 5], sums: [&mut [f64]; 4]) -> Vec<PartsL1> {
    let cols = streams[0].cols;
    let [a, b, c, d] = sums.map(|sum| sum.par_chunks_exact_mut(cols));
    let rows = a.zip(b).zip(c.zip(d)).enumerate();
    rows.map(|(row, ((a, b), (c, d)))| {
        let mut l1 = [0.0; 6];
        vectorize(
            arch,
            #[inline(always)]
            || l1 = row_l1(streams.map(|stream| stream.row(row)), [a, b, c, d]),
        );
        let [attention, mlp, whole] = [0, 2, 4].map(|i| RunningL1 { ptc: l1[i], ftc: l1[i + 1] });
        PartsL1 { attention, mlp, whole }
    })
    .collect()
}

/// The norms of P and F of attention, of the MLP and of both together.
#[inline(always)]
fn row_l1<T: Element>(streams: [&[T]; 5], sums: [&mut [f64]; 4]) -> [f64; 6] {
    let [x, attention_pt, attention_ft, pt, ft] = streams;
    let [p_attention, f_attention, p_mlp, f_mlp] = sums;
    let mut lanes = [[0.0f64; LANES]; 6];
    for start in (0..x.len()).step_by(LANES) {
        let end = (start + LANES).min(x.len());
        for (lane, i) in (start..end).enumerate() {
            let (x, at_pt, at_ft) = (x[i].wide(), attention_pt[i].wide(), attention_ft[i].wide());
            let mlp_pt = pt[i].wide() - at_pt;
            p_attention[i] += at_pt - x;
            f_attention[i] += at_ft - at_pt;
            p_mlp[i] += mlp_pt;
            f_mlp[i] += (ft[i].wide() - at_ft) - mlp_pt;
            lanes[0][lane] += p_attention[i].abs();
            lanes[1][lane] += f_attention[i].abs();
            lanes[2][lane] += p_mlp[i].abs();
            lanes[3][lane] += f_mlp[i].abs();
            lanes[4][lane] += (p_attention[i] + p_mlp[i]).abs();
            lanes[5][lane] += (f_attention[i] + f_mlp[i]).abs();
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}
