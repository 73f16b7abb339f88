// The products of product.cu for Hopper: out[m, n] = epilogue(a[m, k] · b[n, k]ᵀ), bf16 operands, f32 sums (wgmma). Operations bind.
//
// A block makes tiles of 128 rows and 256 columns (gated: 128 columns of each weight), one warpgroup for 64 rows, over k in steps of 64;
// a third warpgroup's first thread brings the steps (TMA), four in flight. The two blocks of a cluster make tiles above each other: each
// brings half of the weights' rows for both. Blocks stay and take one tile after the other, in an order in which those at work share
// most of what they read. Sums leave through shared memory in boxes of 64 rows of 128 bytes, while the next steps come already.
// The sum of an element is over k in order, whatever m is. Grid: (blocks).
#include "args.cuh"
#include "hopper.cuh"

struct HopperProductArgs {
    // Boxes of 64 columns: of `a` 128 rows, of the weights 128, the gate's first. Of `out` 64 rows of 128 bytes.
    TensorMap a, b[2], out;
    const float* bias[2];
    int32_t m, n, k;
    int32_t activation;
    int32_t unused[8];
};

constexpr int TILE_M = 128, TILE_N = 256, STEP = 64, STAGES = 4, CLUSTER = 2;
constexpr int CONSUMERS = 2, CONSUMER_ROWS = TILE_M / CONSUMERS, THREADS = 128 * (1 + CONSUMERS);
// Of the order of tiles: that many rows of clusters' tiles go through all columns together.
constexpr int BAND = 8;

struct Stage {
    bf16 a[TILE_M * STEP];
    bf16 b[2][TILE_N / 2 * STEP];
};

struct Shared {
    Stage stages[STAGES];
    // Boxes on their way out, two for each consumer.
    unsigned char out[CONSUMERS][2][CONSUMER_ROWS * 128];
    Barrier full[STAGES], empty[STAGES];
};

// The tiles of a cluster, one after the other.
struct Tiles {
    int rows, cols, at, step;

    __device__ __forceinline__ Tiles(const HopperProductArgs& args, int tile_cols)
        : rows((args.m + TILE_M * CLUSTER - 1) / (TILE_M * CLUSTER)), cols((args.n + tile_cols - 1) / tile_cols),
          at(blockIdx.x / CLUSTER), step(gridDim.x / CLUSTER) {}
    __device__ __forceinline__ bool left() const { return at < rows * cols; }
    __device__ __forceinline__ void next() { at += step; }
    // The first row of the block's tile, and its number among the columns.
    __device__ __forceinline__ void place(int& row, int& col) const {
        const int band = at / (BAND * cols), in_band = at % (BAND * cols), height = min(BAND, rows - band * BAND);
        row = ((band * BAND + in_band % height) * CLUSTER + int(cluster_rank())) * TILE_M;
        col = in_band / height;
    }
};

template <Epilogue E>
__device__ __forceinline__ void bring_steps(const HopperProductArgs& args, Shared& shared, int tile_cols) {
    const int rank = cluster_rank(), steps = (args.k + STEP - 1) / STEP;
    int count = 0;
    for (Tiles tiles(args, tile_cols); tiles.left(); tiles.next()) {
        int row, col;
        tiles.place(row, col);
        for (int step = 0; step < steps; step++, count++) {
            const int slot = count % STAGES;
            Stage& stage = shared.stages[slot];
            cluster_barrier_wait(&shared.empty[slot], count / STAGES % 2 ^ 1);
            barrier_expect(&shared.full[slot], sizeof(Stage));
            tensor_load(stage.a, args.a, &shared.full[slot], step * STEP, row);
            const int weight_row = E == GATED ? col * tile_cols : col * tile_cols + rank * (TILE_N / 2);
            tensor_load_multicast(stage.b[rank], args.b[E == GATED ? rank : 0], &shared.full[slot], step * STEP, weight_row, 3);
        }
    }
}

template <Epilogue E, class Out>
__device__ __forceinline__ void write_tile(const HopperProductArgs& args, Shared& shared, const float (&sums)[128], int row, int col0) {
    constexpr int BOX = 128 / sizeof(Out), BOXES = (E == GATED ? TILE_N / 2 : TILE_N) / BOX;
    static_assert(BOXES % 2 == 0, "the boxes of a tile begin with the first of the two buffers");
    const int consumer = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, lane = thread % 32;
#pragma unroll
    for (int box = 0; box < BOXES; box++) {
        unsigned char* buffer = shared.out[consumer][box % 2];
        if (thread == 0) stores_wait<1>();
        named_barrier(1 + consumer, 128);
#pragma unroll
        for (int j = 0; j < BOX / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int at = (box * (BOX / 8) + j) * 4 + half * 2, in_box = j * 8 + lane % 4 * 2;
                const float *v = &sums[at], *up = &sums[E == GATED ? at + 64 : at];
                const int col = col0 + box * BOX + in_box;
                // What is beyond the last column is dropped on its way out.
                const float2 done = col < args.n ? finish<E>(args, col, col, {v[0], v[1]}, {up[0], up[1]}) : float2{};
                const int box_row = thread / 32 * 16 + half * 8 + lane / 4;
                store2(reinterpret_cast<Out*>(buffer + swizzled(box_row, in_box * int(sizeof(Out)))), done);
            }
        async_fence();
        named_barrier(1 + consumer, 128);
        if (thread == 0) {
            if (E == ADD)
                tensor_add(args.out, buffer, col0 + box * BOX, row);
            else
                tensor_store(args.out, buffer, col0 + box * BOX, row);
            stores_commit();
        }
    }
}

template <Epilogue E, class Out>
__device__ __forceinline__ void multiply(const HopperProductArgs& args, Shared& shared, int tile_cols) {
    const int consumer = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, steps = (args.k + STEP - 1) / STEP;
    // Both blocks bring what is in a slot, so both hear that it is free.
    auto release = [&](int slot) {
        if (thread < CLUSTER) barrier_arrive(&shared.empty[slot], thread);
    };
    int count = 0;
    for (Tiles tiles(args, tile_cols); tiles.left(); tiles.next()) {
        float sums[128];
#pragma unroll
        for (int i = 0; i < 128; i++) sums[i] = 0.0f;
        for (int step = 0; step < steps; step++, count++) {
            const int slot = count % STAGES;
            const Stage& stage = shared.stages[slot];
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
        int row, col;
        tiles.place(row, col);
        write_tile<E, Out>(args, shared, sums, row + consumer * CONSUMER_ROWS, col * tile_cols);
    }
    if (thread == 0) stores_wait<0>();
}

template <Epilogue E, class Out>
__device__ __forceinline__ void product(const HopperProductArgs& args) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    constexpr int TILE_COLS = E == GATED ? TILE_N / 2 : TILE_N;
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < STAGES; slot++) {
            barrier_init(&shared.full[slot], 1);
            barrier_init(&shared.empty[slot], CONSUMERS * CLUSTER);
        }
        barriers_ready();
    }
    cluster_sync();
    if (threadIdx.x < 128) {
        registers_down<40>();
        if (threadIdx.x == 0) bring_steps<E>(args, shared, TILE_COLS);
    } else {
        registers_up<232>();
        multiply<E, Out>(args, shared, TILE_COLS);
    }
    // The other block may still write to this one's memory.
    cluster_sync();
}

CLUSTER_KERNEL(product_sm90_store_bf16, HopperProductArgs, THREADS, CLUSTER, product<STORE, bf16>)
CLUSTER_KERNEL(product_sm90_store_f32, HopperProductArgs, THREADS, CLUSTER, product<STORE, float>)
CLUSTER_KERNEL(product_sm90_add, HopperProductArgs, THREADS, CLUSTER, product<ADD, float>)
CLUSTER_KERNEL(product_sm90_gated, HopperProductArgs, THREADS, CLUSTER, product<GATED, bf16>)
CLUSTER_KERNEL(product_sm90_activated, HopperProductArgs, THREADS, CLUSTER, product<ACTIVATED, bf16>)
