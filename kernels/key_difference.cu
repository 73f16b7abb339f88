// The weight whose product with the normalized rows is the difference of the branches' keys, and its bias:
//   weight = W_pt ∘ (g_pt + offset) − W_ft ∘ (g_ft + offset), bias = b_pt − b_ft + W_pt β_pt − W_ft β_ft (each branch has its own offset)
// W: [K·Dh, D], with what an adapter adds, B[K·Dh, rank] · A[rank, D]: bf16, or sums of three bf16 numbers where there are low planes.
// g, β: [D] f32, weights and biases of norms; g + offset is 1 without a norm. b: [K·Dh] f32.
// weight: [K·Dh, D] bf16, and two more planes of what that leaves where context rows are f32; bias: [K·Dh] f32.
//
// Grid: (K·Dh), 256 threads: one block a row of the weight. All is computed in f64. The difference is rounded to f32, and that to bf16; the
// bias is rounded to f32 at the end, its sums being over a thread's columns in order, then lanes, then warps.
// Reference: `key_difference` of backend/reference, with which the product with this weight is compared.
// Bytes bind.
#include "device.cuh"

constexpr int THREADS = 256;

struct KeyWeightSide {
    const bf16* weight;
    // What the weight has beyond bf16: two numbers, `low_plane` elements apart; null where nothing.
    const bf16* low;
    const float* bias;
    // Of the norm; null where there is none.
    const float* factors;
    const float* norm_bias;
    float offset;
    // Of the weight's update, null and 0 where there is none: scaled B [rows, rank] and A [rank, cols], as sums of three bf16 numbers where
    // there are low planes.
    int32_t rank;
    const bf16 *b, *b_low, *a, *a_low;
    int64_t b_pitch, b_low_plane, a_low_plane;
};

// Eight neighbours of a matrix that may be more than bf16.
__device__ __forceinline__ void elements(double (&v)[8], const bf16* high, const bf16* low, int64_t low_plane, int64_t at) {
    float part[8];
    load8(part, high + at);
    for (int i = 0; i < 8; i++) v[i] = part[i];
    if (!low) return;
    float rest[8];
    load8(part, low + at);
    load8(rest, low + low_plane + at);
    for (int i = 0; i < 8; i++) v[i] += double(part[i]) + double(rest[i]);
}
__device__ __forceinline__ double element(const bf16* high, const bf16* low, int64_t low_plane, int64_t at) {
    double value = to_float(high[at]);
    if (low) value += double(to_float(low[at])) + double(to_float(low[low_plane + at]));
    return value;
}

struct KeyWeightArgs {
    KeyWeightSide side[2];
    bf16* weight;
    // Null where context rows are bf16: then so may be the weight.
    bf16* low;
    // Null where no side has a bias.
    float* bias;
    // Of all weights alike.
    int64_t pitch, low_plane;
    int32_t cols, unused;
};

__device__ void key_weight_difference(const KeyWeightArgs& args) {
    double* scratch = reinterpret_cast<double*>(shared_memory());
    const int64_t row = blockIdx.x;
    double bias = 0.0;
    for (int col = threadIdx.x * 8; col < args.cols; col += THREADS * 8) {
        const int64_t at = row * args.pitch + col;
        double scaled[2][8];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const KeyWeightSide& side = args.side[i];
            elements(scaled[i], side.weight, side.low, args.low_plane, at);
            for (int k = 0; k < side.rank; k++) {
                const double b = element(side.b, side.b_low, side.b_low_plane, row * side.b_pitch + k);
                double a[8];
                elements(a, side.a, side.a_low, side.a_low_plane, k * args.pitch + col);
                for (int d = 0; d < 8; d++) scaled[i][d] += b * a[d];
            }
            for (int d = 0; d < 8 && side.norm_bias && col + d < args.cols; d++)
                bias += (i == 0 ? 1.0 : -1.0) * scaled[i][d] * double(side.norm_bias[col + d]);
            if (!side.factors) continue;
            float factors[8];
            load8(factors, side.factors + col);
            for (int d = 0; d < 8; d++) scaled[i][d] *= double(factors[d]) + double(side.offset);
        }
        float2 rest[4];
        for (int d = 0; d < 4; d++) rest[d] = {float(scaled[0][d * 2] - scaled[1][d * 2]), float(scaled[0][d * 2 + 1] - scaled[1][d * 2 + 1])};
        auto take = [&](bf16* to) {
            *reinterpret_cast<uint4*>(to) = uint4{take_bf16(rest[0]), take_bf16(rest[1]), take_bf16(rest[2]), take_bf16(rest[3])};
        };
        take(args.weight + at);
        for (int plane = 0; args.low && plane < 2; plane++) take(args.low + plane * args.low_plane + at);
    }
    if (!args.bias) return;
    bias = block_sum<THREADS>(bias, scratch);
    for (int i = 0; i < 2; i++)
        if (args.side[i].bias) bias += (i == 0 ? 1.0 : -1.0) * double(args.side[i].bias[row]);
    if (threadIdx.x == 0) args.bias[row] = float(bias);
}

KERNEL(key_weight_difference, KeyWeightArgs, THREADS, 1, key_weight_difference)
