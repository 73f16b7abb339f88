// The products of product.cu for Hopper: out[m, n] = epilogue(v), v = a[m, k] · b[n, k]ᵀ and an adapter's term, of context rows.
// a: [C, k] bf16; b: weights [n, k] bf16, of wider ones the first plane; bias: [n] f32; out: [C, n] bf16 or f32. Epilogues are those of
// product.cu. Reference: `linear`, `linear_add`, `gated`, `activated` of backend/reference.
//
// Grid: (blocks), 384 threads, in clusters of two. A block makes tiles of 128 rows and 256 columns (gated: 128 columns of each weight), or
// half as many columns where those end earlier, or about as early and other lanes want room. Two warpgroups have 64 rows each, over k in
// steps of 64; the first thread of a third brings the steps (TMA), four in flight. The two blocks of a cluster make tiles above each other:
// each brings half of the weights' rows for both. Blocks stay and take one tile after the other, in an order in which those at work share
// most of what they read. Sums leave through shared memory in boxes of 64 rows of 128 bytes, while the next steps come already. Narrow
// blocks leave more than a third of shared memory and registers to those of few twin rows (twin_product_sm90.cu, twin_mean_sm90.cu,
// key_score_sm90.cu), which wait for memory while these multiply. Up to three products of the same rows are stored by one launch: their
// tiles lie beside each other.
// The f32 sum of an element is over k in order, 16 at a time (wgmma), updates last, whatever m and the tiles are (tests/common/bits.rs);
// what is added to memory is v + bias (cp.reduce).
// Operations bind. Figures: docs/kernel-notes.md, *Product of context rows*.
#include "args.cuh"
#include "hopper.cuh"

constexpr int PRODUCTS = 3;

struct HopperProductArgs {
    // Boxes of 64 columns: of `a` 128 rows, of the weights half of TILE_N. Of results 64 rows of 128 bytes. A gated product has the weights of
    // the gate and of the others, and one result.
    TensorMap a, b[PRODUCTS], out[PRODUCTS];
    // What updates add for each weight (ProductUpdate), over their own k.
    TensorMap update_a[PRODUCTS], update_b[PRODUCTS];
    const float* bias[PRODUCTS];
    int32_t m, k;
    // Columns of each result.
    int32_t n[PRODUCTS];
    int32_t update_k[PRODUCTS];
    int32_t activation;
    Parameters parameters;
    int32_t unused[13];
};

constexpr int TILE_M = 128, STEP = 64, CLUSTER = 2;
constexpr int CONSUMERS = 2, CONSUMER_ROWS = TILE_M / CONSUMERS, THREADS = 128 * (1 + CONSUMERS);
// Of the order of tiles: that many rows of clusters' tiles go through all columns together.
constexpr int BAND = 8;

template <int TILE_N>
struct Stage {
    bf16 a[TILE_M * STEP];
    bf16 b[2][TILE_N / 2 * STEP];
};

constexpr int STAGES = 4;

template <int TILE_N>
struct Shared {
    // Of each consumer.
    static constexpr int BOXES = TILE_N == 256 ? 2 : 1;
    Stage<TILE_N> stages[STAGES];
    // Boxes on their way out.
    unsigned char out[CONSUMERS][BOXES][CONSUMER_ROWS * 128];
    Barrier full[STAGES], empty[STAGES];
};

// Columns of a tile.
template <Epilogue E, int TILE_N>
constexpr int TILE_COLS = E == GATED ? TILE_N / 2 : TILE_N;

// The tiles of a cluster, one after the other.
template <Epilogue E, int TILE_N>
struct Tiles {
    static constexpr int COLS = TILE_COLS<E, TILE_N>;
    const HopperProductArgs& args;
    int rows, cols = 0, at, step;
    // The first row of the block's tile, its product, and its first column.
    int row = 0, product = 0, col = 0;

    __device__ __forceinline__ Tiles(const HopperProductArgs& args)
        : args(args), rows((args.m + TILE_M * CLUSTER - 1) / (TILE_M * CLUSTER)), at(blockIdx.x / CLUSTER), step(gridDim.x / CLUSTER) {
#pragma unroll
        for (int i = 0; i < (E == STORE ? PRODUCTS : 1); i++) cols += (args.n[i] + COLS - 1) / COLS;
        place();
    }
    __device__ __forceinline__ bool left() const { return at < rows * cols; }
    __device__ __forceinline__ void next() {
        at += step;
        place();
    }
    __device__ __forceinline__ void place() {
        if (!left()) return;
        place_in_bands<BAND>(at, rows, cols, row, col);
        row = (row * CLUSTER + int(cluster_rank())) * TILE_M;
        product = 0;
        if (E == STORE) {
#pragma unroll
            for (int i = 0; i < PRODUCTS - 1; i++) {
                const int of_product = (args.n[i] + COLS - 1) / COLS;
                if (product == i && col >= of_product) product++, col -= of_product;
            }
        }
        col *= COLS;
    }
    // Over k, and over those of updates.
    __device__ __forceinline__ int steps() const {
        const int updates = steps_over<STEP>(args.update_k[product]) + (E == GATED ? steps_over<STEP>(args.update_k[1]) : 0);
        return steps_over<STEP>(args.k) + updates;
    }
};

template <Epilogue E, int TILE_N>
__device__ __forceinline__ void bring_steps(const HopperProductArgs& args, Shared<TILE_N>& shared) {
    const int rank = cluster_rank();
    int count = 0;
    for (Tiles<E, TILE_N> tiles(args); tiles.left(); tiles.next()) {
        const int product = tiles.product, weight_row = E == GATED ? tiles.col : tiles.col + rank * (TILE_N / 2);
        auto bring = [&](const TensorMap& a, const TensorMap& b, int b_row, int k) {
            for (int at = 0; at < k; at += STEP, count++) {
                const int slot = count % STAGES;
                Stage<TILE_N>& stage = shared.stages[slot];
                barrier_wait(&shared.empty[slot], count / STAGES % 2 ^ 1);
                barrier_expect(&shared.full[slot], sizeof(stage));
                tensor_load(stage.a, a, &shared.full[slot], at, tiles.row);
                tensor_load_multicast(stage.b[rank], b, &shared.full[slot], at, b_row, 3);
            }
        };
        bring(args.a, args.b[E == GATED ? rank : product], weight_row, args.k);
        // An update of one weight meets zeros, rows beyond the last, in the place of the other.
        for (int which = product; which < (E == GATED ? 2 : product + 1); which++)
            bring(args.update_a[which], args.update_b[which], E == GATED && which != rank ? args.n[0] : weight_row, args.update_k[which]);
    }
}

// `sent` counts a warpgroup's boxes.
template <Epilogue E, class Out, int TILE_N>
__device__ __forceinline__ void write_tile(const HopperProductArgs& args, Shared<TILE_N>& shared, const float (&sums)[TILE_N / 2],
                                           const Tiles<E, TILE_N>& tiles, int& sent) {
    constexpr int BOX = 128 / sizeof(Out), BOXES = TILE_COLS<E, TILE_N> / BOX;
    const int consumer = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, lane = thread % 32;
    const int row = tiles.row + consumer * CONSUMER_ROWS, col0 = tiles.col, n = args.n[tiles.product];
    const TensorMap& out = args.out[tiles.product];
    const Ends ends = {{args.bias[tiles.product], E == GATED ? args.bias[1] : nullptr}, args.activation, n, args.parameters};
    with_finish<E>(ends, [&](auto finish) {
#pragma unroll
        for (int box = 0; box < BOXES; box++, sent++) {
            unsigned char* buffer = shared.out[consumer][sent % Shared<TILE_N>::BOXES];
            if (thread == 0) stores_wait<Shared<TILE_N>::BOXES - 1>();
            named_barrier(1 + consumer, 128);
#pragma unroll
            for (int j = 0; j < BOX / 8; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int at = (box * (BOX / 8) + j) * 4 + half * 2, in_box = j * 8 + lane % 4 * 2;
                    const float *v = &sums[at], *up = &sums[E == GATED ? at + TILE_N / 4 : at];
                    // What is beyond the last pair of columns is dropped on its way out.
                    const int weight_row = min(col0 + box * BOX + in_box, (n - 1) / 2 * 2);
                    const float2 done = finish.template operator()<Out>(ends, weight_row, {v[0], v[1]}, {up[0], up[1]});
                    const int box_row = thread / 32 * 16 + half * 8 + lane / 4;
                    store2(reinterpret_cast<Out*>(buffer + swizzled(box_row, in_box * int(sizeof(Out)))), done);
                }
            async_fence();
            named_barrier(1 + consumer, 128);
            if (thread == 0) {
                if (E == ADD)
                    tensor_add(out, buffer, col0 + box * BOX, row);
                else
                    tensor_store(out, buffer, col0 + box * BOX, row);
                stores_commit();
            }
        }
    });
}

template <Epilogue E, class Out, int TILE_N>
__device__ __forceinline__ void multiply(const HopperProductArgs& args, Shared<TILE_N>& shared) {
    // The same for all threads of a warp, so that descriptors are made once for it.
    const int consumer = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1, thread = threadIdx.x % 128;
    // Both blocks bring what is in a slot, so both hear that it is free.
    auto release = [&](int slot) {
        if (thread < CLUSTER) barrier_arrive(&shared.empty[slot], thread);
    };
    int count = 0, sent = 0;
    for (Tiles<E, TILE_N> tiles(args); tiles.left(); tiles.next()) {
        const int steps = tiles.steps();
        float sums[TILE_N / 2];
#pragma unroll
        for (float& sum : sums) sum = 0.0f;
        for (int step = 0; step < steps; step++, count++) {
            const int slot = count % STAGES;
            const Stage<TILE_N>& stage = shared.stages[slot];
            barrier_wait(&shared.full[slot], count / STAGES % 2);
            products_start();
#pragma unroll
            for (int k = 0; k < STEP; k += 16)
                wgmma(sums, tile_descriptor(stage.a + consumer * CONSUMER_ROWS * STEP, k), tile_descriptor(stage.b, k), true);
            products_commit();
            products_wait<1>();
            if (step) release((count - 1) % STAGES);
        }
        products_wait<0>();
        release((count - 1) % STAGES);
        write_tile<E, Out, TILE_N>(args, shared, sums, tiles, sent);
    }
    if (thread == 0) stores_wait<0>();
}

template <Epilogue E, class Out, int TILE_N>
__device__ __forceinline__ void product(const HopperProductArgs& args) {
    Shared<TILE_N>& shared = *reinterpret_cast<Shared<TILE_N>*>(shared_memory());
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < STAGES; slot++) {
            barrier_init(&shared.full[slot], 1);
            barrier_init(&shared.empty[slot], CONSUMERS * CLUSTER);
        }
        barriers_ready();
        for (const TensorMap* map : {&args.a, &args.b[0], &args.b[E == GATED], &args.out[0]}) tensor_prefetch(*map);
    }
    previous_kernel_wait();
    cluster_sync();
    if (threadIdx.x < 128) {
        registers_down<40>();
        if (threadIdx.x == 0) bring_steps<E, TILE_N>(args, shared);
    } else {
        registers_up<TILE_N == 256 ? 232 : 120>();
        multiply<E, Out, TILE_N>(args, shared);
    }
    // The other block may still write to this one's memory.
    cluster_sync();
}

#define PRODUCT(NAME, E, OUT)                                                                                        \
    CLUSTER_KERNEL(product_sm90_##NAME, HopperProductArgs, THREADS, CLUSTER, product<E, OUT, 256>)                   \
    LEAN_CLUSTER_KERNEL(product_sm90_narrow_##NAME, HopperProductArgs, THREADS, 96, CLUSTER, product<E, OUT, 128>)

PRODUCT(store_bf16, STORE, bf16)
PRODUCT(store_f32, STORE, float)
PRODUCT(add, ADD, float)
PRODUCT(gated, GATED, bf16)
PRODUCT(activated, ACTIVATED, bf16)
