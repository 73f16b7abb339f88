// Operations on the elements of rows, [rows, cols] each; computed in f32. No element depends on those beside it. Bytes bind.
//
// copy: out = a, each bf16 or f32 · accumulate: out f32 += a, bf16 or f32 · add: out = a + b, f32 · scale: out = factor · out, bf16 or f32
// · gather: out[i] = a[rows[i]], bf16 to bf16, bf16 to f32, f32 to f32 · scatter: out[rows[i]] = a[i], both bf16 or both f32 · scatter_add:
// out[rows[i]] += factors[i] · a[i], f32 · blend: out = (1 − factor) a + factor out, f32. `rows` (i32) names no row twice that is
// written.
// Grid: (rows), 256 threads: one block a row, of scatter and scatter_add a row of `a`.
// Reference: the operations of these names in backend/reference. tests/kernels.rs also holds gather and copy_bf16_f32, as `embed` uses
// them, to the bits of the table. Figures of gather: docs/kernel-notes.md, *Embeddings*.
//
// scale_heads: heads[row, h] *= factors[row, h], each of `head_dim` elements, f32. Grid: (rows), 256 threads.
//
// split: rows as sums of three bf16 numbers, each what the ones before leave, rounded; for twin_product_sm90.cu. a: [rows, heads·cols] f32
// to out: [heads / group, 3, rows·group, cols] bf16; rows that are whole have heads = group = 1.
// Grid: (rows · heads; ⌈cols / 1024⌉), 256 threads. Reference: none of its own; the products of twin_product_sm90.cu in tiles of more than
// eight rows are compared after it. Figures: docs/kernel-notes.md, *Rows in f32*.
#include "device.cuh"

constexpr int THREADS = 256;

struct RowsArgs {
    const void* a;
    const void* b;
    void* out;
    // Of gather, scatter and scatter_add.
    const int32_t* rows;
    const float* factors;
    int64_t a_pitch, b_pitch, out_pitch;
    int32_t cols;
    float factor;
};

struct ScaleHeadsArgs {
    float* heads;
    const float* factors;
    int64_t pitch, factor_pitch;
    int32_t count, head_dim;
};

// The heads of a row of `a`, `a_head` elements apart, become rows: of each `group` heads three planes, one below the other. A block takes
// some columns of one. Rows that are whole are one head.
struct SplitArgs {
    const float* a;
    bf16* out;
    int64_t a_pitch, out_pitch;
    int32_t cols;
    int32_t heads, group, a_head;
};

template <class T>
__device__ __forceinline__ T* row_of(void* data, int64_t pitch, int64_t row) {
    return static_cast<T*>(data) + row * pitch;
}
template <class T>
__device__ __forceinline__ const T* row_of(const void* data, int64_t pitch, int64_t row) {
    return static_cast<const T*>(data) + row * pitch;
}

// Calls `f(col)` for every fourth column of this thread; what lies behind the last column of a row belongs to it.
template <class F>
__device__ __forceinline__ void for_columns(const RowsArgs& args, F f) {
    for (int col = threadIdx.x * 4; col < args.cols; col += THREADS * 4) f(col);
}

__device__ __forceinline__ float4 plus(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
__device__ __forceinline__ float4 times(float f, float4 a) { return {f * a.x, f * a.y, f * a.z, f * a.w}; }

template <class In, class Out>
__device__ void copy(const RowsArgs& args) {
    const In* a = row_of<In>(args.a, args.a_pitch, blockIdx.x);
    Out* out = row_of<Out>(args.out, args.out_pitch, blockIdx.x);
    for_columns(args, [&](int col) { store4(out + col, load4(a + col)); });
}

template <class In>
__device__ void accumulate(const RowsArgs& args) {
    const In* a = row_of<In>(args.a, args.a_pitch, blockIdx.x);
    float* out = row_of<float>(args.out, args.out_pitch, blockIdx.x);
    for_columns(args, [&](int col) { store4(out + col, plus(load4(out + col), load4(a + col))); });
}

__device__ void add(const RowsArgs& args) {
    const float* a = row_of<float>(args.a, args.a_pitch, blockIdx.x);
    const float* b = row_of<float>(args.b, args.b_pitch, blockIdx.x);
    float* out = row_of<float>(args.out, args.out_pitch, blockIdx.x);
    for_columns(args, [&](int col) { store4(out + col, plus(load4(a + col), load4(b + col))); });
}

template <class T>
__device__ void scale(const RowsArgs& args) {
    T* out = row_of<T>(args.out, args.out_pitch, blockIdx.x);
    for_columns(args, [&](int col) { store4(out + col, times(args.factor, load4(out + col))); });
}

template <class In, class Out>
__device__ void gather(const RowsArgs& args) {
    const In* a = row_of<In>(args.a, args.a_pitch, args.rows[blockIdx.x]);
    Out* out = row_of<Out>(args.out, args.out_pitch, blockIdx.x);
    for_columns(args, [&](int col) { store4(out + col, load4(a + col)); });
}

template <class T>
__device__ void scatter(const RowsArgs& args) {
    const T* a = row_of<T>(args.a, args.a_pitch, blockIdx.x);
    T* out = row_of<T>(args.out, args.out_pitch, args.rows[blockIdx.x]);
    for_columns(args, [&](int col) { store4(out + col, load4(a + col)); });
}

__device__ void blend(const RowsArgs& args) {
    const float* a = row_of<float>(args.a, args.a_pitch, blockIdx.x);
    float* out = row_of<float>(args.out, args.out_pitch, blockIdx.x);
    const float rest = 1.0f - args.factor;
    for_columns(args, [&](int col) { store4(out + col, plus(times(rest, load4(a + col)), times(args.factor, load4(out + col)))); });
}

__device__ void scatter_add(const RowsArgs& args) {
    const float* a = row_of<float>(args.a, args.a_pitch, blockIdx.x);
    float* out = row_of<float>(args.out, args.out_pitch, args.rows[blockIdx.x]);
    const float factor = args.factors[blockIdx.x];
    for_columns(args, [&](int col) { store4(out + col, plus(load4(out + col), times(factor, load4(a + col)))); });
}

__device__ void scale_heads(const ScaleHeadsArgs& args) {
    float* heads = args.heads + blockIdx.x * args.pitch;
    const float* factors = args.factors + blockIdx.x * args.factor_pitch;
    for (int col = threadIdx.x; col < args.count * args.head_dim; col += THREADS) heads[col] *= factors[col / args.head_dim];
}

__device__ void split(const SplitArgs& args) {
    const int row = blockIdx.x / args.heads, head = blockIdx.x % args.heads;
    const int col = (blockIdx.y * THREADS + threadIdx.x) * 4;
    if (col >= args.cols) return;
    const float4 v = load4_within(args.a + row * args.a_pitch + head * args.a_head, col, args.cols, args.a_head % 4 == 0);
    const int64_t rows_of_group = gridDim.x / args.heads * args.group;
    const int64_t out_row = head / args.group * 3 * rows_of_group + row * args.group + head % args.group;
    bf16* out = args.out + out_row * args.out_pitch + col;
    float2 first = {v.x, v.y}, second = {v.z, v.w};
#pragma unroll
    for (int plane = 0; plane < 3; plane++) {
        const uint32_t low = take_bf16(first), high = take_bf16(second);
        *reinterpret_cast<Bf16x4*>(out + plane * rows_of_group * args.out_pitch) = Bf16x4{low, high};
    }
}

KERNEL(copy_f32_bf16, RowsArgs, THREADS, 1, copy<float, bf16>)
KERNEL(copy_bf16_f32, RowsArgs, THREADS, 1, copy<bf16, float>)
KERNEL(copy_bf16_bf16, RowsArgs, THREADS, 1, copy<bf16, bf16>)
KERNEL(copy_f32_f32, RowsArgs, THREADS, 1, copy<float, float>)
KERNEL(accumulate_bf16, RowsArgs, THREADS, 1, accumulate<bf16>)
KERNEL(accumulate_f32, RowsArgs, THREADS, 1, accumulate<float>)
KERNEL(add_f32, RowsArgs, THREADS, 1, add)
KERNEL(scale_bf16, RowsArgs, THREADS, 1, scale<bf16>)
KERNEL(scale_f32, RowsArgs, THREADS, 1, scale<float>)
KERNEL(gather_bf16_bf16, RowsArgs, THREADS, 1, gather<bf16, bf16>)
KERNEL(gather_bf16_f32, RowsArgs, THREADS, 1, gather<bf16, float>)
KERNEL(gather_f32_f32, RowsArgs, THREADS, 1, gather<float, float>)
KERNEL(scatter_bf16_bf16, RowsArgs, THREADS, 1, scatter<bf16>)
KERNEL(scatter_f32_f32, RowsArgs, THREADS, 1, scatter<float>)
KERNEL(blend_f32, RowsArgs, THREADS, 1, blend)
KERNEL(scatter_add_f32, RowsArgs, THREADS, 1, scatter_add)
KERNEL(scale_heads_f32, ScaleHeadsArgs, THREADS, 1, scale_heads)
KERNEL(split_f32, SplitArgs, THREADS, 1, split)
