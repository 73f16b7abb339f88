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
pub fn trace<T: Element>(arch: Arch, streams: [&Mat<T>; 5], sums: [&mut Mat<T>; 4]) -> Vec<PartsL1> {
    let cols = streams[0].cols;
    let [a, b, c, d] = sums.map(|sum| sum.data_mut().par_chunks_exact_mut(cols));
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
fn row_l1<T: Element>(streams: [&[T]; 5], sums: [&mut [T]; 4]) -> [f64; 6] {
    let mut lanes = [[0.0; LANES]; 6];
    let streams = streams.map(|stream| stream.as_chunks::<LANES>());
    let mut sums = sums.map(|sum| sum.as_chunks_mut::<LANES>());
    for at in 0..streams[0].0.len() {
        let streams = streams.each_ref().map(|(whole, _)| whole[at].map(T::wide));
        let mut added = sums.each_ref().map(|(whole, _)| whole[at].map(T::wide));
        add::<T>(streams, &mut added, &mut lanes);
        for ((whole, _), added) in sums.iter_mut().zip(added) {
            whole[at] = added.map(T::of);
        }
    }
    let padded = |rest: &[T]| std::array::from_fn(|lane| rest.get(lane).map_or(0.0, |value| value.wide()));
    let mut added = sums.each_ref().map(|(_, rest)| padded(rest));
    add::<T>(streams.map(|(_, rest)| padded(rest)), &mut added, &mut lanes);
    for ((_, rest), added) in sums.into_iter().zip(added) {
        rest.iter_mut().zip(added).for_each(|(sum, added)| *sum = T::of(added));
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// Adds to the sums of some columns, rounded to what they are kept in, and to the norms of these columns.
#[inline(always)]
fn add<T: Element>(streams: [[f64; LANES]; 5], sums: &mut [[f64; LANES]; 4], l1: &mut [[f64; LANES]; 6]) {
    let [x, attention_pt, attention_ft, pt, ft] = streams;
    for i in 0..LANES {
        let mlp_pt = pt[i] - attention_pt[i];
        let parts = [
            attention_pt[i] - x[i],
            attention_ft[i] - attention_pt[i],
            mlp_pt,
            (ft[i] - attention_ft[i]) - mlp_pt,
        ];
        for part in 0..4 {
            sums[part][i] = T::of(sums[part][i] + parts[part]).wide();
            l1[part][i] += sums[part][i].abs();
        }
        for part in 0..2 {
            l1[4 + part][i] += (sums[part][i] + sums[2 + part][i]).abs();
        }
    }
}
