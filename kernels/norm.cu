// Norms of rows, computed in f32. Weights and biases are f32.
// norm: normalized = (x − μ) / sqrt(mean((x − μ)²) + eps), normed = normalized · (weight + offset) + bias: RMSNorm, μ = 0, or LayerNorm
// where `centered`, μ = mean(x). x: [rows, D] f32 or bf16; normalized (if asked for), normed: [rows, D] bf16 or f32, as names of kernels
// say (norm_IN_OUT); weight, bias: [D]. Grid: (rows), 256 threads: one block a row.
// norm_heads: an RMSNorm in place of every `cols` elements of a row, of each head or all together: x: [rows, H·Dh] or [rows, K·Dh] bf16 or
// f32; weight: [cols].
// normed_key_difference: d = norm_pt(k + d) − norm_ft(k) of every `cols` elements, taken as d · s_pt + k · (s_pt − s_ft), s being what a
// norm multiplies its elements with. k, d: [C, K·Dh] bf16 or f32; weights: [cols].
// Grid of the last two: (⌈rows · parts / 8⌉), 256 threads: one warp every `cols` elements.
//
// Sums are over a thread's columns in order, in `norm` four at a time, then over lanes, in `norm` then over warps: the order depends on the
// columns alone.
// Reference: `norm`, `norm_heads`, `normed_key_difference` of backend/reference.
// Bytes bind. Figures of `norm`: docs/kernel-notes.md, *Norms, rotation, scores and means of twin rows*.
#include "device.cuh"

constexpr int THREADS = 256;

struct NormArgs {
    const void* x;
    // Null where nobody asks for it.
    void* normalized;
    void* normed;
    const float* weight;
    const float* bias;
    int64_t x_pitch, normalized_pitch, normed_pitch;
    int32_t cols, centered;
    float offset, eps;
};

template <class In, class Out>
__device__ void norm(const NormArgs& args) {
    float* scratch = reinterpret_cast<float*>(shared_memory());
    const int64_t row = blockIdx.x;
    const In* x = static_cast<const In*>(args.x) + row * args.x_pitch;
    Out* normed = static_cast<Out*>(args.normed) + row * args.normed_pitch;
    Out* normalized = args.normalized ? static_cast<Out*>(args.normalized) + row * args.normalized_pitch : nullptr;
    // Four columns from `col` on, as a thread takes them; those beyond the last count as `fill`.
    auto take = [&](int col, float fill) {
        float4 v = load4(x + col);
        if (col + 1 >= args.cols) v.y = fill;
        if (col + 2 >= args.cols) v.z = fill;
        if (col + 3 >= args.cols) v.w = fill;
        return v;
    };
    float mean = 0.0f;
    if (args.centered) {
        float sum = 0.0f;
        for (int col = threadIdx.x * 4; col < args.cols; col += THREADS * 4) {
            const float4 v = take(col, 0.0f);
            sum += (v.x + v.y) + (v.z + v.w);
        }
        mean = block_sum<THREADS>(sum, scratch) / args.cols;
    }
    float squares = 0.0f;
    for (int col = threadIdx.x * 4; col < args.cols; col += THREADS * 4) {
        const float4 v = take(col, mean);
        const float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
        squares += (a * a + b * b) + (c * c + d * d);
    }
    squares = block_sum<THREADS>(squares, scratch);
    const float scale = 1.0f / sqrtf(squares / args.cols + args.eps);
    for (int col = threadIdx.x * 4; col < args.cols; col += THREADS * 4) {
        const float4 v = take(col, mean);
        const float4 unit = {(v.x - mean) * scale, (v.y - mean) * scale, (v.z - mean) * scale, (v.w - mean) * scale};
        if (normalized) store4(normalized + col, unit);
        const float4 w = load4(args.weight + col);
        float4 out = {unit.x * (w.x + args.offset), unit.y * (w.y + args.offset), unit.z * (w.z + args.offset), unit.w * (w.w + args.offset)};
        if (args.bias) {
            const float4 b = load4(args.bias + col);
            out = {out.x + b.x, out.y + b.y, out.z + b.z, out.w + b.w};
        }
        store4(normed + col, out);
    }
}

KERNEL(norm_f32_bf16, NormArgs, THREADS, 1, norm<float, bf16>)
KERNEL(norm_bf16_bf16, NormArgs, THREADS, 1, norm<bf16, bf16>)
KERNEL(norm_f32_f32, NormArgs, THREADS, 1, norm<float, float>)

struct NormHeadsArgs {
    void* x;
    const float* weight;
    int64_t pitch;
    // Elements that are normed together, and how many such parts a row has.
    int32_t cols, parts, rows;
    float offset, eps;
    int32_t unused;
};

// This warp's part of all parts of all rows, or −1.
__device__ __forceinline__ int64_t part_of_warp(int64_t parts) {
    const int64_t part = int64_t(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
    return part < parts ? part : -1;
}

template <class T>
__device__ void norm_heads(const NormHeadsArgs& args) {
    const int64_t part = part_of_warp(int64_t(args.rows) * args.parts);
    if (part < 0) return;
    T* x = static_cast<T*>(args.x) + part / args.parts * args.pitch + part % args.parts * args.cols;
    float squares = 0.0f;
    for (int i = threadIdx.x % 32; i < args.cols; i += 32) squares += to_float(x[i]) * to_float(x[i]);
    const float scale = 1.0f / sqrtf(warp_sum(squares) / args.cols + args.eps);
    for (int i = threadIdx.x % 32; i < args.cols; i += 32) store(x + i, to_float(x[i]) * scale * (args.weight[i] + args.offset));
}

KERNEL(norm_heads_bf16, NormHeadsArgs, THREADS, 1, norm_heads<bf16>)
KERNEL(norm_heads_f32, NormHeadsArgs, THREADS, 1, norm_heads<float>)

struct NormedKeyDifferenceArgs {
    const void* keys;
    void* difference;
    const float* weight[2];
    int64_t key_pitch, difference_pitch;
    float offset[2], eps[2];
    int32_t cols, parts, rows, unused;
};

template <class T>
__device__ void normed_key_difference(const NormedKeyDifferenceArgs& args) {
    const int64_t part = part_of_warp(int64_t(args.rows) * args.parts);
    if (part < 0) return;
    const int64_t row = part / args.parts, col = part % args.parts * args.cols;
    const T* keys = static_cast<const T*>(args.keys) + row * args.key_pitch + col;
    T* difference = static_cast<T*>(args.difference) + row * args.difference_pitch + col;
    float squares_pt = 0.0f, squares_ft = 0.0f;
    for (int i = threadIdx.x % 32; i < args.cols; i += 32) {
        const float ft = to_float(keys[i]), pt = ft + to_float(difference[i]);
        squares_pt += pt * pt;
        squares_ft += ft * ft;
    }
    const float pt_scale = 1.0f / sqrtf(warp_sum(squares_pt) / args.cols + args.eps[0]);
    const float ft_scale = 1.0f / sqrtf(warp_sum(squares_ft) / args.cols + args.eps[1]);
    for (int i = threadIdx.x % 32; i < args.cols; i += 32) {
        const float ft = to_float(keys[i]), d = to_float(difference[i]);
        const float pt_factor = pt_scale * (args.weight[0][i] + args.offset[0]);
        const float ft_factor = ft_scale * (args.weight[1][i] + args.offset[1]);
        store(difference + i, d * pt_factor + ft * (pt_factor - ft_factor));
    }
}

KERNEL(normed_key_difference_bf16, NormedKeyDifferenceArgs, THREADS, 1, normed_key_difference<bf16>)
KERNEL(normed_key_difference_f32, NormedKeyDifferenceArgs, THREADS, 1, normed_key_difference<float>)
