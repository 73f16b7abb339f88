//! The same bits of the same rows: of a prompt whose rows lie in other places, in other parts, among other rows; of products of more rows.

use std::ops::Range;
use tuco::{
    backend::{Attended, AttentionShape, Backend, Linear, Role, Rows, Sequence},
    model::Activation,
    tensor::{Dtype, Tensor},
    twin::Twin,
};

fn number(row: usize, col: usize, seed: usize) -> f32 {
    ((row * 37 + col * 101 + seed) * 7919 % 1009) as f32 / 504.0 - 1.0
}

/// Context rows: [`rows_of`].
fn rows<B: Backend>(backend: &B, tokens: &[Option<usize>], cols: usize, seed: usize) -> B::Mat {
    rows_of(Rows::Context, backend, tokens, cols, seed)
}

/// Rows of operands: of each token of a prompt its own numbers, NaN where no token is.
fn rows_of<B: Backend>(
    kind: Rows,
    backend: &B,
    tokens: &[Option<usize>],
    cols: usize,
    seed: usize,
) -> B::Mat {
    let row = |token: &Option<usize>| -> Vec<f32> {
        (0..cols).map(|col| token.map_or(f32::NAN, |token| number(token, col, seed))).collect()
    };
    let bytes: Vec<u8> = tokens.iter().flat_map(row).flat_map(f32::to_le_bytes).collect();
    let mut stream = backend.zeros(kind, Role::Stream, tokens.len(), cols);
    let ids: Vec<u32> = (0..tokens.len() as u32).collect();
    let table = backend.table(Tensor::stored(Dtype::F32, tokens.len(), cols, &bytes));
    backend.embed(&ids, &table, &mut stream);
    let mut mat = backend.zeros(kind, Role::Operand, tokens.len(), cols);
    backend.copy(&stream, &mut mat);
    mat
}

/// Where the tokens of a prompt are whose parts lie in these of `count` rows.
fn places(count: usize, parts: &[Range<usize>]) -> Vec<Option<usize>> {
    let mut tokens = vec![None; count];
    for (token, row) in parts.iter().cloned().flatten().enumerate() {
        tokens[row] = Some(token);
    }
    tokens
}

/// Attention of a prompt whose parts lie in these rows, each part a sequence that goes on where the one before ended; all other
/// rows are NaN. Gives the prompt's rows in their order.
fn attention<B: Backend>(
    backend: &B,
    shape: &AttentionShape,
    count: usize,
    parts: &[Range<usize>],
) -> Vec<f64> {
    let tokens = places(count, parts);
    let sequences: Vec<Sequence> = (0..parts.len())
        .map(|part| Sequence {
            context: parts[part].clone(),
            path: parts[..=part].to_vec(),
            twin: 0..0,
            ropes: Twin::new([].into(), [].into()),
        })
        .collect();
    let (q_cols, kv_cols) =
        (shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim);
    let mut q = rows(backend, &tokens, q_cols, 1);
    let (k, v) = (rows(backend, &tokens, kv_cols, 2), rows(backend, &tokens, kv_cols, 3));
    backend.attention(&mut q, &k, &v, &backend.layout(&sequences), shape, None);
    let found = backend.read(&q);
    backend.check().unwrap();
    parts.iter().cloned().flatten().flat_map(|row| &found[row * q_cols..][..q_cols]).copied().collect()
}

/// Attention of one twin row whose context lies in these rows, beside `others` twin rows that see but NaN. Gives its means.
fn twin_attention<B: Backend>(
    backend: &B,
    shape: &AttentionShape,
    count: usize,
    parts: &[Range<usize>],
    others: usize,
) -> Vec<f64> {
    /// As many as some blocks, narrow ones, or as half of a pair of wide ones.
    const HIDDEN: usize = 500;
    let AttentionShape { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim, .. } = *shape;
    let tokens = places(count, parts);
    let unseen = count - 5..count;
    let sequence = |twin: usize| Sequence {
        context: 0..0,
        path: if twin < others { Vec::from([unseen.clone()]) } else { parts.to_vec() },
        twin: twin..twin + 1,
        ropes: Twin::new([].into(), [].into()),
    };
    let layout = backend.layout(&(0..=others).map(sequence).collect::<Vec<_>>());
    let context = |cols, seed| rows(backend, &tokens, cols, seed);
    let twin_tokens: Vec<_> = (0..=others).map(|row| (row == others).then_some(200)).collect();
    let twin = |cols, seed| rows_of(Rows::Twin, backend, &twin_tokens, cols, seed);
    let attended = Attended {
        context_keys: &context(kv_heads * head_dim, 2),
        key_difference: Some(&context(kv_heads * head_dim, 3)),
        normalized: &context(HIDDEN, 4),
        norm: None,
        twin_keys: &twin(kv_heads * head_dim, 5),
        twin_normed: &twin(HIDDEN, 6),
    };
    let mut means = backend.zeros(Rows::Twin, Role::Operand, others + 1, heads * HIDDEN);
    backend.twin_attend(&twin(heads * head_dim, 1), &attended, &layout, shape, &mut means, None);
    let found = backend.read(&means);
    backend.check().unwrap();
    found[others * heads * HIDDEN..].to_vec()
}

/// Holds attention, of context rows and of a twin row, to the same bits for a prompt of 200 tokens alone and for one that others are beside, all
/// of NaN, and whose beginning is shared.
pub fn check_attention<B: Backend>(backend: &B) {
    let plain = AttentionShape {
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 64,
        scale: 0.3,
        softcap: None,
        sliding_window: None,
    };
    let shapes = [
        plain,
        AttentionShape { num_key_value_heads: 2, head_dim: 80, softcap: Some(2.0), ..plain },
        AttentionShape { num_attention_heads: 3, head_dim: 96, sliding_window: Some(70), ..plain },
        AttentionShape { head_dim: 128, sliding_window: Some(150), ..plain },
        AttentionShape { num_attention_heads: 1, head_dim: 128, ..plain },
        AttentionShape { num_attention_heads: 1, head_dim: 256, sliding_window: Some(33), ..plain },
    ];
    for shape in &shapes {
        let alone = attention(backend, shape, 200, std::slice::from_ref(&(0..200)));
        assert!(alone.iter().all(|value| value.is_finite()), "{shape:?}");
        let elsewhere =
            [vec![41..100, 100..241], vec![200..290, 0..70, 90..91, 300..339], vec![0..128, 200..272]];
        for parts in &elsewhere {
            assert!(attention(backend, shape, 400, parts) == alone, "{shape:?}: {parts:?}");
        }
        let alone = twin_attention(backend, shape, 200, std::slice::from_ref(&(0..200)), 0);
        assert!(alone.iter().all(|value| value.is_finite()), "{shape:?}");
        for parts in &elsewhere {
            let found = twin_attention(backend, shape, 400, parts, 40);
            assert!(found == alone, "twin row, {shape:?}: {parts:?}");
        }
    }
}

/// Holds products to the same bits for the first `few` of `many` rows and for them alone, of which a backend may make other tiles. Gated ones
/// have half of the columns.
pub fn check_products<B: Backend>(backend: &B, many: usize, few: &[usize], cols: usize) {
    const INNER: usize = 264;
    let weight = |rows: usize, seed: usize| {
        let values = (0..rows * INNER).map(|at| number(at / INNER, at % INNER, seed));
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        Linear { weight: backend.weight(Tensor::stored(Dtype::F32, rows, INNER, bytes.leak())), bias: None }
    };
    let (w, gate, up) = (weight(cols, 4), weight(cols / 2, 5), weight(cols / 2, 6));
    let results = |count: usize| -> Vec<Vec<f64>> {
        let tokens: Vec<_> = (0..count).map(Some).collect();
        let a = rows(backend, &tokens, INNER, 7);
        let empty = |role, cols| backend.zeros(Rows::Context, role, count, cols);
        let (mut stored, mut added) = (empty(Role::Operand, cols), empty(Role::Stream, cols));
        let (mut activated, mut gated) = (empty(Role::Operand, cols), empty(Role::Operand, cols / 2));
        backend.linear(&a, &w, &mut stored);
        backend.linear_add(&a, &w, &mut added);
        backend.activated(&a, &w, Activation::Gelu, &mut activated);
        backend.gated(&a, &gate, &up, Activation::Silu, &mut gated);
        let [mut first, mut third] = [(); 2].map(|()| empty(Role::Operand, cols / 2));
        let mut second = empty(Role::Operand, cols);
        backend.linears(&a, &mut [(&gate, &mut first), (&w, &mut second), (&up, &mut third)]);
        assert!(backend.read(&second) == backend.read(&stored), "beside other products");
        let found = [&stored, &added, &activated, &gated, &first, &third].map(|mat| backend.read(mat));
        backend.check().unwrap();
        found.into()
    };
    let of_many = results(many);
    for few in few {
        for (of_many, of_few) in of_many.iter().zip(results(*few)) {
            assert!(of_few == of_many[..of_few.len()], "{few} of {many} rows");
            assert!(of_few.iter().any(|value| *value != 0.0));
        }
    }
}
