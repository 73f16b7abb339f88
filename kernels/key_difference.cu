// The weight whose product with the normalized rows is the difference of the branches' keys (`key_difference`):
//   weight = W_pt ∘ (g_pt + offset) − W_ft ∘ (g_ft + offset), rounded to bf16 after the subtraction, and two more numbers of what that leaves,
//   bias = b_pt − b_ft + W_pt β_pt − W_ft β_ft (β: biases of norms), f32.
// One block a row of the weight; bytes bind. Reference: `key_difference` of backend/reference.
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

// An element of a matrix that may be more than bf16.
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
    for (int col = threadIdx.x; col < args.cols; col += THREADS) {
        const int64_t at = row * args.pitch + col;
        double scaled[2];
        for (int i = 0; i < 2; i++) {
            const KeyWeightSide& side = args.side[i];
            double weight = element(side.weight, side.low, args.low_plane, at);
            for (int k = 0; k < side.rank; k++)
                weight += element(side.b, side.b_low, side.b_low_plane, row * side.b_pitch + k) *
                          element(side.a, side.a_low, side.a_low_plane, k * args.pitch + col);
            scaled[i] = weight * (side.factors ? double(side.factors[col]) + double(side.offset) : 1.0);
            if (side.norm_bias) bias += (i == 0 ? 1.0 : -1.0) * weight * double(side.norm_bias[col]);
        }
        float2 rest = {float(scaled[0] - scaled[1]), 0.0f};
        args.weight[at] = {uint16_t(take_bf16(rest))};
        for (int plane = 0; args.low && plane < 2; plane++) args.low[plane * args.low_plane + at] = {uint16_t(take_bf16(rest))};
    }
    if (!args.bias) return;
    bias = block_sum<THREADS>(bias, scratch);
    for (int i = 0; i < 2; i++)
        if (args.side[i].bias) bias += (i == 0 ? 1.0 : -1.0) * double(args.side[i].bias[row]);
    if (threadIdx.x == 0) args.bias[row] = float(bias);
}

KERNEL(key_weight_difference, KeyWeightArgs, THREADS, 1, key_weight_difference)
