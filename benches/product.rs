//! The matrix product with a bf16 weight at the shapes of a 135M model and of an 8B model: `rows cols inner GFLOP/s` on a
//! line each, the best of several runs (the first one widens the weight). `benches/vs_openblas.py` compares it with numpy.

use std::time::Instant;
use tuco::{
    backend::{Backend, Linear, Role, Rows, cpu::Cpu},
    tensor::{Dtype, Tensor},
};

const SHAPES: [(usize, usize, usize); 7] = [
    (2048, 576, 576),
    (2048, 192, 576),
    (2048, 1536, 576),
    (2048, 576, 1536),
    (2048, 160, 160),
    (512, 4096, 1024),
    (512, 4096, 4096),
];

fn main() {
    let backend = Cpu::new();
    for (rows, cols, inner) in SHAPES {
        let bytes: Vec<u8> =
            (0..cols * inner).flat_map(|i| (0x3f80 + (i % 64) as u16).to_le_bytes()).collect();
        let tensor = Tensor::stored(Dtype::Bf16, cols, inner, &bytes);
        let weight = Linear { weight: backend.weight(tensor), bias: None };
        let a = backend.zeros(Rows::Context, Role::Operand, rows, inner);
        let mut out = backend.zeros(Rows::Context, Role::Operand, rows, cols);
        let seconds = (0..10)
            .map(|_| {
                let start = Instant::now();
                backend.linear(&a, &weight, &mut out);
                start.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min);
        println!("{rows} {cols} {inner} {:.1}", 2.0 * (rows * cols * inner) as f64 / seconds / 1e9);
    }
}
