// Matrix products of rows in f32, twin rows and, in small models, context rows: out[m, n] = epilogue(v), v = a[m, k] · b[n, k]ᵀ, to which
// an adapter's term is added (ProductUpdate).
// a: [rows, k] f32; b: weights [n, k], one plane of bf16, or three (`wide_*`: weights, or updates, that are more than bf16); bias: [n] f32;
// out: [rows, n] f32. `head_values`: a: [R, H·D], b: [K·Dh, D], out: [R, H·Dh], where heads are rows of the product (ProductArgs::group).
//
// store, add, gated, activated: as in product.cu, out f32. `store` also projects heads.
// Reference: `linear`, `linear_add`, `gated`, `activated`, `head_values` of backend/reference.
//
// Grid: (⌈n / 64⌉, gated ⌈n / 32⌉; ⌈m / 64⌉; groups of heads, 1 where rows are whole), 128 threads. A block makes a tile of 64 rows and 64
// columns (gated: 32 of each weight), a warp 16 rows of it, so that rows are split once a tile; over k in steps of 32, several in flight,
// those of updates last.
// Each element of `a` is taken as a sum of three bf16 numbers, exactly. Multiplied with one plane of weights all three count, with three
// planes the six products that matter in f32, the smallest first. A step has an f32 sum of its own by mma.sync, which cuts bits off a sum
// that products are added to; the steps' sums are added in order by additions that round. Both branches take the same path, so equal
// weights give equal bits.
// Few rows: the time is that of reading the weights. Figures: docs/kernel-notes.md, *Rows in f32*.
#include "args.cuh"

constexpr int TILE_M = 64, TILE_N = 64, STEP = 32;
constexpr int A_PITCH = STEP + 4, B_PITCH = STEP + 8;
constexpr int THREADS = 128;

template <bool WIDE>
struct Stage {
    static constexpr int IN_FLIGHT = WIDE ? 3 : 5;
    float a[TILE_M * A_PITCH];
    // The last two of weights that are more than bf16.
    static constexpr int MIDDLE = WIDE ? 1 : 0, LOW = WIDE ? 2 : 0;
    bf16 b[1 + LOW][TILE_N * B_PITCH];
};

template <Epilogue E, bool WIDE>
__device__ void twin_product(const ProductArgs& args) {
    constexpr int STAGES = Stage<WIDE>::IN_FLIGHT, COLS = E == GATED ? TILE_N / 2 : TILE_N;
    Stage<WIDE>* stages = reinterpret_cast<Stage<WIDE>*>(shared_memory());
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int row0 = blockIdx.y * TILE_M, col0 = blockIdx.x * COLS, heads0 = blockIdx.z * args.group;

    // A thread copies the same chunk of some rows. Rows and columns beyond the last are not copied, and nothing of them is stored.
    constexpr int A_CHUNKS = STEP / 4, A_ROWS = THREADS / A_CHUNKS, A_COPIES = TILE_M / A_ROWS;
    constexpr int B_CHUNKS = STEP / 8, B_ROWS = THREADS / B_CHUNKS, B_COPIES = TILE_N / B_ROWS;
    const int first_a = thread / A_CHUNKS, k_a = thread % A_CHUNKS * 4, first_b = thread / B_CHUNKS, k_b = thread % B_CHUNKS * 8;
    const bool is_up = E == GATED && first_b % 32 / 16;
    auto row_of = [&](const Operands& from, int row) {
        return static_cast<const float*>(from.a) + row / args.group * from.a_pitch + int64_t(heads0 + row % args.group) * from.a_head;
    };
    auto col_of = [&](int i) { return col0 + (E == GATED ? first_b / 32 * 16 + first_b % 16 + i * (B_ROWS / 2) : first_b + i * B_ROWS); };
    auto place_in_b = [&](const Operands& from, int i) { return (int64_t(blockIdx.z) * args.n + col_of(i)) * from.b_pitch + k_b; };
    auto has_low = [](const Operands& from) { return from.b0_low || from.b1_low; };

    // For whole steps over the weights' own k, which are almost all, addresses only move on.
    const Operands own = operands_of<STEP>(args, 0);
    const int whole_steps = args.a_head % 4 == 0 ? args.k / STEP : 0;
    const float* next_a[A_COPIES];
    const bf16 *next_b[B_COPIES], *own_b = is_up ? own.b1 : own.b0, *own_low = is_up ? own.b1_low : own.b0_low;
#pragma unroll
    for (int i = 0; i < A_COPIES; i++) next_a[i] = row_of(own, min(row0 + first_a + i * A_ROWS, args.m - 1)) + k_a;
#pragma unroll
    for (int i = 0; i < B_COPIES; i++) next_b[i] = own_b + place_in_b(own, i);
    auto load_whole = [&](Stage<WIDE>& stage) {
#pragma unroll
        for (int i = 0; i < A_COPIES; i++) {
            const int r = first_a + i * A_ROWS;
            if (row0 + r < args.m) copy_async_16(&stage.a[r * A_PITCH + k_a], next_a[i], 16);
            next_a[i] += STEP;
        }
#pragma unroll
        for (int i = 0; i < B_COPIES; i++) {
            const int to = (first_b + i * B_ROWS) * B_PITCH + k_b;
            if (col_of(i) < args.n) {
                copy_async_16(&stage.b[0][to], next_b[i], 16);
                if (WIDE && has_low(own))
                    for (int plane = 0; plane < 2; plane++)
                        copy_async_16(&stage.b[plane ? stage.LOW : stage.MIDDLE][to],
                                      own_low ? own_low + plane * own.b_low_plane + (next_b[i] - own_b) : next_b[i], own_low ? 16 : 0);
            }
            next_b[i] += STEP;
        }
    };
    auto load_part = [&](Stage<WIDE>& stage, const Operands& from) {
        const float* none = static_cast<const float*>(from.a);
        if (from.a_head % 4 == 0) {
#pragma unroll 1
            for (int i = 0; i < A_COPIES; i++) {
                const int r = first_a + i * A_ROWS, at = from.at + k_a;
                const int bytes = row0 + r < args.m ? min(max(from.k - at, 0), 4) * 4 : 0;
                copy_async_16(&stage.a[r * A_PITCH + k_a], bytes ? row_of(from, row0 + r) + at : none, bytes);
            }
        } else {
#pragma unroll 1
            for (int i = thread; i < TILE_M * STEP; i += THREADS) {
                const int r = i / STEP, k = i % STEP, at = from.at + k;
                const int bytes = row0 + r < args.m && at < from.k ? 4 : 0;
                copy_async_4(&stage.a[r * A_PITCH + k], bytes ? row_of(from, row0 + r) + at : none, bytes);
            }
        }
        const bf16 *b = is_up ? from.b1 : from.b0, *low = is_up ? from.b1_low : from.b0_low;
#pragma unroll 1
        for (int i = 0; i < B_COPIES; i++) {
            const int to = (first_b + i * B_ROWS) * B_PITCH + k_b;
            const int bytes = b && col_of(i) < args.n ? min(max(from.k - from.at - k_b, 0), 8) * 2 : 0;
            const int64_t at = bytes ? place_in_b(from, i) + from.at : 0;
            copy_async_16(&stage.b[0][to], bytes ? static_cast<const void*>(b + at) : none, bytes);
            if (WIDE && has_low(from))
                for (int plane = 0; plane < 2; plane++)
                    copy_async_16(&stage.b[plane ? stage.LOW : stage.MIDDLE][to],
                                  low && bytes ? static_cast<const void*>(low + plane * from.b_low_plane + at) : none, low ? bytes : 0);
        }
    };
    auto load = [&](int step) {
        Stage<WIDE>& stage = stages[step % STAGES];
        if (step < whole_steps)
            load_whole(stage);
        else
            load_part(stage, operands_of<STEP>(args, step));
    };

    const int steps = product_steps<STEP>(args);
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load(step);
        copies_commit();
    }
    const int warp_m = warp * 16;
    float sums[8][4] = {};
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) load(step + STAGES - 1);
        copies_commit();
        if (row0 + warp_m >= args.m) continue;
        const Stage<WIDE>& stage = stages[step % STAGES];
        const bool low = WIDE && has_low(operands_of<STEP>(args, step));
        float in_step[8][4] = {};
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            uint32_t a[3][4], fb[4][4];
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const int row = warp_m + part % 2 * 8 + lane / 4, col = k + part / 2 * 8 + lane % 4 * 2;
                float2 rest = *reinterpret_cast<const float2*>(&stage.a[row * A_PITCH + col]);
                for (int term = 0; term < 3; term++) a[term][part] = take_bf16(rest);
            }
            auto multiply = [&](const uint32_t (&fa)[4]) {
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    const uint32_t b[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
                    mma_m16n8k16(in_step[j], fa, b);
                }
            };
            auto load_b = [&](const bf16* tile) {
#pragma unroll
                for (int j = 0; j < 4; j++) ldmatrix_x4(fb[j], &tile[(j * 16 + lane / 16 * 8 + lane % 8) * B_PITCH + k + lane / 8 % 2 * 8]);
            };
            // The smallest first.
            if (low) {
                load_b(stage.b[stage.LOW]);
                multiply(a[0]);
                load_b(stage.b[stage.MIDDLE]);
                multiply(a[1]);
                multiply(a[0]);
            }
            load_b(stage.b[0]);
            multiply(a[2]);
            multiply(a[1]);
            multiply(a[0]);
        }
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int v = 0; v < 4; v++) sums[j][v] += in_step[j][v];
    }
    copies_wait<0>();

    with_finish<E>(args, [&](auto finish) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = row0 + warp_m + half * 8 + lane / 4;
            if (row >= args.m) continue;
            float* out = static_cast<float*>(args.out) + row / args.group * args.out_pitch + (heads0 + row % args.group) * args.out_head;
#pragma unroll
            for (int j = 0; j < (E == GATED ? 4 : 8); j++) {
                const int col = col0 + j * 8 + lane % 4 * 2, in_b = E == GATED ? j / 2 * 4 + j % 2 : j;
                if (col >= args.n) continue;
                const float *v = &sums[in_b][half * 2], *up = &sums[E == GATED ? in_b + 2 : in_b][half * 2];
                finish_pair<E>(finish, args, out, col, blockIdx.z * args.n + col, {v[0], v[1]}, {up[0], up[1]});
            }
        }
    });
}

#define PRODUCT(NAME, E)                                                                  \
    KERNEL(twin_product_##NAME, ProductArgs, THREADS, 2, twin_product<E, false>)          \
    KERNEL(twin_product_wide_##NAME, ProductArgs, THREADS, 2, twin_product<E, true>)

PRODUCT(store, STORE)
PRODUCT(add, ADD)
PRODUCT(gated, GATED)
PRODUCT(activated, ACTIVATED)
