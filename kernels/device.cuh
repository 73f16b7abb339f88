// What every kernel starts from: the device or its simulator, the 16-bit type, reductions of fixed order.
//
// A kernel is a function of one struct, made known (as tuco_NAME) with KERNEL(name, struct, threads, blocks a multiprocessor, function);
// the host fills the same struct (src/backend/cuda/args.rs). Pitches count elements; those of activations and weights are
// multiples of 8, and a row's elements beyond its columns may be read, but mean nothing.
#pragma once
#ifdef TUCO_SIM
#include "sim/sim.h"
#else
#include <cstdint>
#define KERNEL(NAME, ARGS, THREADS, BLOCKS, ...) KERNEL_WITHIN(__launch_bounds__(THREADS, BLOCKS), NAME, ARGS, __VA_ARGS__)
#define KERNEL_WITHIN(BOUNDS, NAME, ARGS, ...)                                                                     \
    extern "C" __global__ void BOUNDS tuco_##NAME(const __grid_constant__ ARGS args) {                             \
        next_kernel_may_start();                                                                                   \
        previous_kernel_wait();                                                                                    \
        __VA_ARGS__(args);                                                                                         \
    }
extern __shared__ __align__(1024) unsigned char tuco_shared[];
__device__ __forceinline__ unsigned char* shared_memory() { return tuco_shared; }
#endif
#include "ptx.cuh"

struct bf16 {
    uint16_t bits;
};

// The activation between an MLP's products; numbers as on the host.
enum Activation : int32_t { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4, XIELU = 5, CLAMPED_SWIGLU = 6 };

// Parameters of an activation (src/model/mod.rs): of XIELU `alpha_p`, `alpha_n`, `beta` and `eps`, of CLAMPED_SWIGLU `alpha` and `limit`.
struct Parameters {
    float alpha, alpha_n, beta, limit;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }
__device__ __forceinline__ float low_float(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_float(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Takes a bf16 part off two f32: pairs of the parts. Three times gives all 24 bits.
__device__ __forceinline__ uint32_t take_bf16(float2& v) {
    const uint32_t pair = pack_bf16(v.x, v.y);
    v = {v.x - low_float(pair), v.y - high_float(pair)};
    return pair;
}

__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(bf16* to, float value) { to->bits = uint16_t(pack_bf16(value, 0.0f)); }

// Four neighbours, 16 or 8 bytes aligned.
__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
struct alignas(8) Bf16x4 {
    uint32_t low, high;
};
__device__ __forceinline__ float4 load4(const bf16* from) {
    const Bf16x4 pairs = *reinterpret_cast<const Bf16x4*>(from);
    return {low_float(pairs.low), high_float(pairs.low), low_float(pairs.high), high_float(pairs.high)};
}

// Four neighbours from column `col` on of a row of `cols`, zeros beyond it; `aligned` where that is at whole 16 bytes.
__device__ __forceinline__ float4 load4_within(const float* row, int col, int cols, bool aligned) {
    if (aligned && col + 4 <= cols) return load4(row + col);
    auto at = [&](int col) { return col < cols ? row[col] : 0.0f; };
    return {at(col), at(col + 1), at(col + 2), at(col + 3)};
}

__device__ __forceinline__ void store4(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }
__device__ __forceinline__ void store4(bf16* to, float4 v) {
    *reinterpret_cast<Bf16x4*>(to) = Bf16x4{pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
}

// Eight neighbours, 16 bytes aligned.
__device__ __forceinline__ void load8(float (&v)[8], const float* from) {
    const float4 low = load4(from), high = load4(from + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w, v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}
__device__ __forceinline__ void load8(float (&v)[8], const bf16* from) {
    const uint4 pairs = *reinterpret_cast<const uint4*>(from);
    v[0] = low_float(pairs.x), v[1] = high_float(pairs.x), v[2] = low_float(pairs.y), v[3] = high_float(pairs.y);
    v[4] = low_float(pairs.z), v[5] = high_float(pairs.z), v[6] = low_float(pairs.w), v[7] = high_float(pairs.w);
}
__device__ __forceinline__ void store8(float* to, const float (&v)[8]) {
    store4(to, {v[0], v[1], v[2], v[3]});
    store4(to + 4, {v[4], v[5], v[6], v[7]});
}
__device__ __forceinline__ void store8(bf16* to, const float (&v)[8]) {
    *reinterpret_cast<uint4*>(to) = uint4{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}

// Two neighbours, 8 or 4 bytes aligned.
__device__ __forceinline__ float2 load2(const float* from) { return *reinterpret_cast<const float2*>(from); }
__device__ __forceinline__ void store2(float* to, float2 v) { *reinterpret_cast<float2*>(to) = v; }
__device__ __forceinline__ void store2(bf16* to, float2 v) { *reinterpret_cast<uint32_t*>(to) = pack_bf16(v.x, v.y); }

// Two neighbours, of any alignment and only the first where there is no second.
template <class T>
__device__ __forceinline__ void store_pair(T* to, float2 v, bool both) {
    if (both && reinterpret_cast<uintptr_t>(to) % (2 * sizeof(T)) == 0) {
        store2(to, v);
        return;
    }
    store(to, v.x);
    if (both) store(to + 1, v.y);
}

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
    for (int bits = 16; bits; bits /= 2) value += __shfl_xor_sync(~0u, value, bits);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
    for (int bits = 16; bits; bits /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, bits));
    return value;
}

// The sum over a block of THREADS threads, for all of them; `scratch` holds THREADS / 32 values.
template <int THREADS, class T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    T sum = scratch[0];
    for (int warp = 1; warp < THREADS / 32; warp++) sum += scratch[warp];
    return sum;
}

template <int THREADS>
__device__ __forceinline__ float block_max(float value, float* scratch) {
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    float largest = scratch[0];
    for (int warp = 1; warp < THREADS / 32; warp++) largest = fmaxf(largest, scratch[warp]);
    return largest;
}

// A number that the compiler knows.
template <int VALUE>
struct Constant {
    static constexpr int value = VALUE;
};

// `QUICK`: within 1e-6 of x, for results that are rounded to bf16.
template <int ACTIVATION, bool QUICK>
__device__ __forceinline__ float activate(float x, const Parameters& parameters) {
    // A NaN stays one.
    if (ACTIVATION == RELU) return x < 0.0f ? 0.0f : x;
    if (ACTIVATION == RELU2) return x < 0.0f ? 0.0f : x * x;
    if (ACTIVATION == XIELU) {
        const float below = fminf(x, parameters.limit);
        // exp(x) - 1 - x, near 0 by its series.
        const float series = below * below * (0.5f + below * (0.16666667f + 0.041666667f * below));
        const float quick = below > -0.0625f ? series : fast_exp2(1.4426950408889634f * below) - 1.0f - below;
        const float curve = QUICK ? quick : expm1f(below) - x;
        return parameters.beta * x + (x > 0.0f ? parameters.alpha * x * x : parameters.alpha_n * curve);
    }
    if (ACTIVATION == GELU) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    if (ACTIVATION == CLAMPED_SWIGLU && x > parameters.limit) x = parameters.limit;
    // (1 + tanh(u)) / 2 is the sigmoid of 2 u.
    const float u = ACTIVATION == SILU ? x : ACTIVATION == CLAMPED_SWIGLU ? parameters.alpha * x : 1.59576912160573072f * (x + 0.044715f * x * x * x);
    if (QUICK) return x * fast_reciprocal(1.0f + fast_exp2(-1.4426950408889634f * u));
    if (ACTIVATION == SILU || ACTIVATION == CLAMPED_SWIGLU) return x / (1.0f + expf(-u));
    return 0.5f * x * (1.0f + tanhf(0.5f * u));
}
