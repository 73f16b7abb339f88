// Matrix products of context rows: out[m, n] = epilogue(v), v = a[m, k] · b[n, k]ᵀ, to which an adapter's term is added (ProductUpdate).
// a: [C, k] bf16; b: weights [n, k] bf16, of wider ones the first plane; bias: [n] f32; out: [C, n] bf16 or f32. k and n are columns and
// rows of the weight, such as D and F.
//
// store_bf16, store_f32: out = v + bias · add: out f32 += v + bias · activated: out bf16 = act(v + bias)
// · gated: out bf16 = act(v + bias) · (up + bias), up being the second weight's v.
// Reference: `linear`, `linear_add`, `gated`, `activated` of backend/reference.
//
// Grid: (tiles), 256 threads, or 128 for narrow ones. A block makes a tile of 128 rows and 256 columns, or of 128 where tiles are too few
// for all multiprocessors (gated: half as many of each weight), by warps of 64 × 64, over k in steps of 32 of which several are in flight
// (cp.async), those of updates last. A warp reads the next 16 of k from shared memory while it multiplies those before, so it waits for
// nothing but one barrier a step.
// The f32 sum of an element is over k in order, 16 at a time (mma.sync), whatever m and the tiles are (tests/common/bits.rs).
// Operations bind. Figures: docs/kernel-notes.md, *The portable product*.
#include "args.cuh"

constexpr int TILE_M = 128, STEP = 32, WARP_TILE = 64;
// Of the order of tiles: that many rows of tiles go through all columns together, so that blocks at work share most of what they read.
constexpr int BAND = 16;

template <int TILE_N>
struct Stage {
    static constexpr int IN_FLIGHT = TILE_N == 256 ? 4 : 3;
    bf16 a[TILE_M * STEP], b[TILE_N * STEP];
};

// Where the chunk of 8 elements is that has number `chunk` in its row: rows have 64 bytes, and of any eight in a row (ldmatrix) the
// same chunk lies in different banks.
__device__ __forceinline__ int place_of(int row, int chunk) { return row * STEP + (chunk ^ row / 2 % 4) * 8; }

// What a warp multiplies for 16 of k.
struct Fragments {
    uint32_t a[4][4], b[4][4];
};

template <Epilogue E, class Out, int TILE_N>
__device__ void product(const ProductArgs& args) {
    constexpr int THREADS = TILE_N, STAGES = Stage<TILE_N>::IN_FLIGHT, COLS = E == GATED ? TILE_N / 2 : TILE_N;
    static_assert(TILE_M / WARP_TILE * (TILE_N / WARP_TILE) * 32 == THREADS, "a thread for each column of the tile");
    Stage<TILE_N>* stages = reinterpret_cast<Stage<TILE_N>*>(shared_memory());
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int row0, col0;
    place_in_bands<BAND>(blockIdx.x, (args.m + TILE_M - 1) / TILE_M, (args.n + COLS - 1) / COLS, row0, col0);
    row0 *= TILE_M;
    col0 *= COLS;

    // A thread copies the same chunk of every ROWS-th row. Of every 32 rows of a gated tile's b, 16 are the gate's and 16 the up's
    // of the same columns. Rows beyond the last are the last again: nothing of them is stored.
    constexpr int CHUNKS = STEP / 8, ROWS = THREADS / CHUNKS, A_COPIES = TILE_M / ROWS, B_COPIES = TILE_N / ROWS;
    const int first = thread / CHUNKS, chunk = thread % CHUNKS, to = place_of(first, chunk);
    const bool is_up = E == GATED && first % 32 / 16;
    auto row_of_a = [&](int i) { return min(row0 + first + i * ROWS, args.m - 1); };
    auto row_of_b = [&](int i) {
        const int in_tile = E == GATED ? first / 32 * 16 + first % 16 + i * (ROWS / 2) : first + i * ROWS;
        return min(col0 + in_tile, args.n - 1);
    };
    // For whole steps over the weights' own k, which are almost all, addresses only move on.
    const int whole_steps = args.k / STEP;
    const bf16 *next_a[A_COPIES], *next_b[B_COPIES];
#pragma unroll
    for (int i = 0; i < A_COPIES; i++) next_a[i] = static_cast<const bf16*>(args.a) + row_of_a(i) * args.a_pitch + chunk * 8;
#pragma unroll
    for (int i = 0; i < B_COPIES; i++) next_b[i] = args.b[is_up] + row_of_b(i) * args.b_pitch + chunk * 8;
    auto load = [&](int step) {
        Stage<TILE_N>& stage = stages[step % STAGES];
        if (step < whole_steps) {
#pragma unroll
            for (int i = 0; i < A_COPIES; i++, next_a[i - 1] += STEP) copy_async_16(&stage.a[to + i * ROWS * STEP], next_a[i], 16);
#pragma unroll
            for (int i = 0; i < B_COPIES; i++, next_b[i - 1] += STEP) copy_async_16(&stage.b[to + i * ROWS * STEP], next_b[i], 16);
            return;
        }
        const Operands from = operands_of<STEP>(args, step);
        const bf16 *a = static_cast<const bf16*>(from.a), *b = is_up ? from.b1 : from.b0;
        const int at = from.at + chunk * 8, bytes = min(max(from.k - at, 0), 8) * 2;
#pragma unroll 1
        for (int i = 0; i < A_COPIES; i++)
            copy_async_16(&stage.a[to + i * ROWS * STEP], bytes ? a + row_of_a(i) * from.a_pitch + at : a, bytes);
#pragma unroll 1
        for (int i = 0; i < B_COPIES; i++)
            copy_async_16(&stage.b[to + i * ROWS * STEP], b && bytes ? b + row_of_b(i) * from.b_pitch + at : a, b ? bytes : 0);
    };

    const int warp_m = warp / (TILE_N / WARP_TILE) * WARP_TILE, warp_n = warp % (TILE_N / WARP_TILE) * WARP_TILE;
    const int from_a = place_of(warp_m + lane % 16, lane / 16), from_b = place_of(warp_n + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    auto read = [&](Fragments& to, int i, int step, int k) {
        const Stage<TILE_N>& stage = stages[step % STAGES];
        // 16 of k are two chunks.
        ldmatrix_x4(to.a[i], &stage.a[(from_a ^ k) + i * 16 * STEP]);
        ldmatrix_x4(to.b[i], &stage.b[(from_b ^ k) + i * 16 * STEP]);
    };
    float sums[4][8][4] = {};
    // Multiplies and reads what comes next, at `k` of `step`.
    auto multiply = [&](const Fragments& now, Fragments& next, int step, int k) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            read(next, i, step, k);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const uint32_t b[2] = {now.b[j / 2][j % 2 * 2], now.b[j / 2][j % 2 * 2 + 1]};
                mma_m16n8k16(sums[i][j], now.a[i], b);
            }
        }
    };

    const int steps = product_steps<STEP>(args);
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load(step);
        copies_commit();
    }
    copies_wait<STAGES - 2>();
    __syncthreads();
    Fragments lower, upper;
#pragma unroll
    for (int i = 0; i < 4; i++) read(lower, i, 0, 0);
    for (int step = 0; step < steps; step++) {
        if (step + STAGES - 1 < steps) load(step + STAGES - 1);
        copies_commit();
        multiply(lower, upper, step, 16);
        copies_wait<STAGES - 2>();
        // All have read this step, and the next is there; after the last, what is read is not used.
        __syncthreads();
        multiply(upper, lower, step + 1, 0);
    }
    copies_wait<0>();

    Out* out = static_cast<Out*>(args.out);
    with_finish<E>(args, [&](auto finish) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            auto for_pairs = [&](auto&& body) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = row0 + warp_m + i * 16 + half * 8 + lane / 4;
                    if (row >= args.m) continue;
#pragma unroll
                    for (int j = 0; j < (E == GATED ? 4 : 8); j++) {
                        const int col = col0 + (E == GATED ? warp_n / 2 : warp_n) + j * 8 + lane % 4 * 2;
                        if (col < args.n) body(half, j, out + row * args.out_pitch + col, col);
                    }
                }
            };
            // Before the first is stored, so that they come together.
            float2 before[2][8] = {};
            if (E == ADD) for_pairs([&](int half, int j, const Out* at, int) { before[half][j] = {to_float(at[0]), to_float(at[1])}; });
            for_pairs([&](int half, int j, Out* at, int col) {
                const int in_b = E == GATED ? j / 2 * 4 + j % 2 : j;
                const float *v = &sums[i][in_b][half * 2], *up = &sums[i][E == GATED ? in_b + 2 : in_b][half * 2];
                float2 done = finish.template operator()<Out>(args, col, {v[0], v[1]}, {up[0], up[1]});
                if (E == ADD) done = {done.x + before[half][j].x, done.y + before[half][j].y};
                // Pitches and columns are even, so pairs are aligned.
                if (col + 1 < args.n)
                    store2(at, done);
                else
                    store(at, done.x);
            });
        }
    });
}

#define PRODUCT(NAME, E, OUT)                                                      \
    KERNEL(product_##NAME, ProductArgs, 256, 1, product<E, OUT, 256>)              \
    KERNEL(product_narrow_##NAME, ProductArgs, 128, 2, product<E, OUT, 128>)

PRODUCT(store_bf16, STORE, bf16)
PRODUCT(store_f32, STORE, float)
PRODUCT(add, ADD, float)
PRODUCT(gated, GATED, bf16)
PRODUCT(activated, ACTIVATED, bf16)
