// The arguments of kernels that share them. On the host: src/backend/cuda/args.rs.
#pragma once
#include "device.cuh"

// What an adapter adds to a product with a weight: a[m, k] · b[n, k]ᵀ, `a` being the product's rows times Aᵀ and `b` the scaled B of the
// adapter. k = 0: nothing.
struct ProductUpdate {
    const void* a;
    const bf16 *b, *b_low;
    int64_t a_pitch, b_pitch, b_low_plane;
    int32_t k, a_head;
};

// out[m, n] = epilogue(a[m, k] · b[n, k]ᵀ + bias). Gated products have two weights and biases, the gate's first.
// An adapter's term of the sum comes after the weight's own: ProductUpdate.
//
// `group` heads of one row may lie in it behind each other, as rows of a product of their own (`head_values`): row i of
// the product is then head `block z · group + i % group` of row i / group, `a_head` and `out_head` elements apart, and block z
// takes the rows of `b` from z · n on.
//
// Sums are over k in steps, the updates' after the weights'.
struct ProductArgs {
    const void* a;
    const bf16* b[2];
    // What the weights have beyond bf16, as sums of two more numbers `b_low_plane` elements apart; null where nothing.
    const bf16* b_low[2];
    const float* bias[2];
    void* out;
    int64_t a_pitch, b_pitch, b_low_plane, out_pitch;
    int32_t m, n, k;
    int32_t activation;
    int32_t group, a_head, out_head;
    Parameters parameters;
    int32_t unused;
    // Of each weight.
    ProductUpdate update[2];
};

// What a product takes in one step, of STEP elements from `at` on of `k`: without weights that are null.
struct Operands {
    const void* a;
    const bf16 *b0, *b1, *b0_low, *b1_low;
    int64_t a_pitch, b_pitch, b_low_plane;
    int32_t a_head, k, at;
};

template <int STEP>
__device__ __forceinline__ int steps_over(int k) {
    return (k + STEP - 1) / STEP;
}

// Of all operands.
template <int STEP>
__device__ __forceinline__ int product_steps(const ProductArgs& args) {
    return steps_over<STEP>(args.k) + steps_over<STEP>(args.update[0].k) + steps_over<STEP>(args.update[1].k);
}

template <int STEP>
__device__ __forceinline__ Operands operands_of(const ProductArgs& args, int step) {
    const int own = steps_over<STEP>(args.k), first = own + steps_over<STEP>(args.update[0].k);
    if (step < own)
        return {args.a, args.b[0], args.b[1], args.b_low[0], args.b_low[1], args.a_pitch, args.b_pitch, args.b_low_plane, args.a_head, args.k, step * STEP};
    const bool second = step >= first;
    const ProductUpdate& u = args.update[second];
    const bf16 *b = u.b, *low = u.b_low, *none = nullptr;
    return {u.a, second ? none : b, second ? b : none, second ? none : low, second ? low : none,
            u.a_pitch, u.b_pitch, u.b_low_plane, u.a_head, u.k, (step - (second ? first : own)) * STEP};
}

// The tile of number `at`, of `rows` × `cols` tiles, in an order in which BAND rows of them go through all columns together.
template <int BAND>
__device__ __forceinline__ void place_in_bands(int at, int rows, int cols, int& row, int& col) {
    const int band = at / (BAND * cols), in_band = at % (BAND * cols), height = min(BAND, rows - band * BAND);
    row = band * BAND + in_band % height;
    col = in_band / height;
}

// `queries` queries of one sequence, at positions from `first_query` on, in rows from `row` on. The rows of keys and values at
// positions 0 and up are path_rows[path] and up.
struct AttentionTile {
    int32_t row, queries, first_query, path;
};

constexpr float LOG2E = 1.4426950408889634f;

enum Epilogue { STORE, ADD, GATED, ACTIVATED };

// A NaN stays one.
__device__ __forceinline__ float clamped(float x, float limit) { return x > limit ? limit : x < -limit ? -limit : x; }

// What a product does with its sums, as far as its arguments say: `ACTIVATION`, and whether there is a bias.
template <Epilogue E, int ACTIVATION, bool BIAS>
struct Finish {
    // What becomes of `v`, two neighbours of a row, before it is stored or added: the first weight's row `weight_row` and the next gave `v`,
    // the second's `up`. Results for Out in bf16 are as exact as that needs.
    template <class Out, class Args>
    __device__ __forceinline__ float2 operator()(const Args& args, int weight_row, float2 v, float2 up) const {
        auto add_bias = [&](const float* bias, float2& to) {
            if (BIAS && bias) to = {to.x + bias[weight_row], to.y + bias[weight_row + 1]};
        };
        constexpr bool quick = sizeof(Out) == 2;
        add_bias(args.bias[0], v);
        if (E != GATED && E != ACTIVATED) return v;
        v = {activate<ACTIVATION, quick>(v.x, args.parameters), activate<ACTIVATION, quick>(v.y, args.parameters)};
        if (E == ACTIVATED) return v;
        add_bias(args.bias[1], up);
        if (ACTIVATION == CLAMPED_SWIGLU) up = {clamped(up.x, args.parameters.limit) + 1.0f, clamped(up.y, args.parameters.limit) + 1.0f};
        return {v.x * up.x, v.y * up.y};
    }
};

// Calls `body` with the Finish of a product, so that what its arguments say is not asked for every element.
template <Epilogue E, class Args, class Body>
__device__ __forceinline__ void with_finish(const Args& args, Body&& body) {
    auto with_bias = [&](auto activation) {
        constexpr int ACTIVATION = decltype(activation)::value;
        if (args.bias[0] || args.bias[1])
            body(Finish<E, ACTIVATION, true>());
        else
            body(Finish<E, ACTIVATION, false>());
    };
    if constexpr (E != GATED && E != ACTIVATED)
        with_bias(Constant<SILU>());
    else
        switch (args.activation) {
            case SILU: return with_bias(Constant<SILU>());
            case GELU: return with_bias(Constant<GELU>());
            case GELU_TANH: return with_bias(Constant<GELU_TANH>());
            case RELU: return with_bias(Constant<RELU>());
            case RELU2: return with_bias(Constant<RELU2>());
            default:
                // No family has the one as a gate; the other is nothing else, and its family has biases.
                if constexpr (E == ACTIVATED)
                    with_bias(Constant<XIELU>());
                else
                    body(Finish<E, CLAMPED_SWIGLU, true>());
        }
}

// What a product's end needs of the arguments of kernels that make several.
struct Ends {
    const float* bias[2];
    int32_t activation, n;
    Parameters parameters;
};

// Stores or adds columns `col`, `col + 1`, of which the second may be beyond the last, at the row `out`.
template <Epilogue E, class FinishPair, class Args, class Out>
__device__ __forceinline__ void finish_pair(const FinishPair& finish, const Args& args, Out* out, int col, int weight_row, float2 v, float2 up) {
    const bool both = col + 1 < args.n;
    v = finish.template operator()<Out>(args, weight_row, v, up);
    if (E == ADD) v = {v.x + to_float(out[col]), both ? v.y + to_float(out[col + 1]) : 0.0f};
    store_pair(out + col, v, both);
}
