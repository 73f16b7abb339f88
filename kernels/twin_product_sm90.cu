// The products of twin_product.cu for Hopper: out[m, n] = epilogue(v), v = a[m, k] · b[n, k]ᵀ and an adapter's term, of rows in f32.
// a: [rows, k] f32, each element a sum of three bf16 numbers, which `split_f32` (elementwise.cu) has put into three planes; in tiles of
// eight rows they come as they are, and two warps of each block split them. b: weights [n, k] in one bf16 plane, or three; bias: [n] f32;
// out: [rows, n] f32. Epilogues and heads are as in twin_product.cu. Reference: `linear`, `linear_add`, `gated`, `activated`, `head_values`
// of backend/reference.
//
// Grid: (blocks; groups of heads), 288 threads, in tiles of eight rows 352, of more than 64 rows 384. The weights' rows are the 64 rows of an
// instruction, those of `a` its columns. A block makes a tile of 128 rows of weights (gated: 64 of each) and ROWS of `a`. A step is 64 columns
// of one plane of the weights and of those planes of `a` that it is multiplied with. Two warpgroups have 64 rows of the weights each (gated:
// the gate's and the up's), one warp brings the steps (TMA); of more than 64 rows a third warpgroup, which that warp is of, hands registers to
// the two. Two products of the same rows may be stored by one launch: their tiles follow each other.
//
// Each plane of a step has f32 sums of its own (wgmma), since tensor cores cut bits off where they add to a large one; they are added up in
// f32, of each step those of the smallest products first. The sum of an element is ((p0 + p1) + p2) + p3 of four parts of k, each over its
// steps in order, updates last: whatever m and the tiles are (tests/common/bits.rs). The four blocks of a cluster have a part each, so that few
// tiles fill the GPU too; or two have two, or one has all. Sums meet in shared memory, where each block of a cluster finishes a share of the
// tile's columns.
// Few rows: the time is that of reading the weights; of 96 L2 binds, of many operations. Figures: docs/kernel-notes.md, *Rows in f32*.
#include "args.cuh"
#include "hopper.cuh"

// Rows of `a` as they are, of heads `head` elements apart.
struct UnsplitRows {
    const float* from;
    int64_t pitch, head;
};

struct HopperTwinProductArgs {
    // Boxes of 64 columns: of the planes of `a`, one below the other, ROWS rows; of the weights' first planes 64, the gate's first; of their
    // other two, one below the other, the same. A gated product has two weights and one result.
    TensorMap a, b[2], b_low[2];
    // What updates add for each weight (ProductUpdate), over their own k.
    TensorMap update_a[2], update_b[2], update_b_low[2];
    // In place of `a` and `update_a` where a tile has eight rows.
    UnsplitRows rows, update_rows[2];
    const float* bias[2];
    float* out[2];
    int64_t out_pitch[2];
    // Columns of each result.
    int32_t n[2];
    // 1 or 3, of each weight and of its update.
    int32_t planes[2], update_planes[2];
    int32_t update_k[2];
    // `group` heads of a row are rows of the product that go with the same `n` of `weight_rows` rows of the weights, those of block y; their
    // results lie `out_head` apart.
    int32_t weight_rows[2];
    int32_t group, out_head;
    int32_t m, k;
    int32_t activation;
    Parameters parameters;
    int32_t unused[15];
};

constexpr int STEP = 64, PARTS = 4;
constexpr int CONSUMERS = 2, WEIGHT_ROWS = 64, TILE = CONSUMERS * WEIGHT_ROWS;
// The first of those that split.
constexpr int FIRST_SPLITTER = 128 * CONSUMERS + 32;
// Whether warps of the block split the rows: in tiles of eight.
template <int ROWS>
constexpr bool SPLITS = ROWS == 8;
constexpr int SPLITTERS = 2;

// Named barriers: 1 is all consumers', this and the next are one's turn to ask for products.
constexpr int TURN = 2;
// Whether an instruction has columns for all planes of the rows.
template <int ROWS>
constexpr bool ALL_PLANES = ROWS <= 64;
// Of a block: what multiplies, a warp that brings steps, and those that split, or a whole warpgroup, which hands registers to the others.
template <int ROWS>
constexpr int THREADS = ALL_PLANES<ROWS> ? FIRST_SPLITTER + (SPLITS<ROWS> ? 32 * SPLITTERS : 0) : 128 * (CONSUMERS + 1);

template <int ROWS>
struct Stage {
    bf16 a[3][ROWS * STEP];
    bf16 b[CONSUMERS][WEIGHT_ROWS * STEP];
};

template <int ROWS>
struct Shared {
    // Those of 8 and 32 rows leave room for a second block, which reads while one begins or ends; those of 8 also for one of product_sm90.cu's
    // narrow ones.
    static constexpr int STAGES = ROWS == 128 ? 3 : ROWS == 64 ? 5 : 4;
    // From one row of sums to the next: neither what a warp puts there nor what it takes meets in a bank.
    static constexpr int PITCH = TILE + 4;
    union {
        Stage<ROWS> stages[STAGES];
        // The tile's, in the end; of two parts.
        float sums[2][ROWS * PITCH];
    };
    Barrier full[STAGES], empty[STAGES];
};

// The first row of a block's tile, its product, and its first column of the result. Tiles of the same weights follow each other.
struct Place {
    int row, product = 0, col;

    template <Epilogue E>
    __device__ __forceinline__ static Place of_block(const HopperTwinProductArgs& args, int cluster, int tile_rows) {
        constexpr int COLS = E == GATED ? WEIGHT_ROWS : TILE;
        const int tile = blockIdx.x / cluster, rows = (args.m + tile_rows - 1) / tile_rows;
        Place place = {tile % rows * tile_rows, 0, tile / rows};
        const int of_first = (args.n[0] + COLS - 1) / COLS;
        if (E == STORE && place.col >= of_first) place.product++, place.col -= of_first;
        place.col *= COLS;
        return place;
    }
};

// The steps of one of the parts, one after the other: some of the product's own, then every fourth of the updates'. A step is 64 columns
// from `at` on, of plane `plane` of the weights, or of update `update` where that is not negative.
template <Epilogue E>
struct Steps {
    const HopperTwinProductArgs& args;
    int product, update = -1, plane, at, end, planes;
    // Of those of updates, the next; of both, and of the first.
    int next_update, updates, first_updates;

    __device__ __forceinline__ Steps(const HopperTwinProductArgs& args, int product, int part)
        : args(args), product(product), next_update(part) {
        const int all = steps_over<STEP>(args.k);
        planes = E == GATED ? max(args.planes[0], args.planes[1]) : args.planes[product];
        first_updates = steps_over<STEP>(args.update_k[product]) * args.update_planes[product];
        updates = first_updates + (E == GATED ? steps_over<STEP>(args.update_k[1]) * args.update_planes[1] : 0);
        at = all * part / PARTS * STEP;
        end = all * (part + 1) / PARTS * STEP;
        plane = planes - 1;
        if (at == end) go_to_update();
    }
    __device__ __forceinline__ bool left() const { return at < end; }
    __device__ __forceinline__ void next() {
        if (update >= 0 || (plane == 0 && at + STEP == end)) {
            go_to_update();
        } else if (plane) {
            plane--;
        } else {
            plane = planes - 1;
            at += STEP;
        }
    }
    __device__ __forceinline__ void go_to_update() {
        update = E == GATED ? int(next_update >= first_updates) : product;
        at = end;
        if (next_update >= updates) return;
        const int number = next_update - (E == GATED && update ? first_updates : 0), of_update = args.update_planes[update];
        plane = of_update - 1 - number % of_update;
        at = number / of_update * STEP;
        end = at + STEP;
        next_update += PARTS;
    }
};

template <Epilogue E, int ROWS>
__device__ __forceinline__ void bring_step(const HopperTwinProductArgs& args, Stage<ROWS>& stage, Barrier* full, const Place& place,
                                           const Steps<E>& step) {
    const bool own = step.update < 0;
    const TensorMap& a = own ? args.a : args.update_a[step.update];
    const int a_planes = SPLITS<ROWS> ? 0 : 3 - step.plane;
    barrier_expect(full, a_planes * int(sizeof(stage.a[0])) + int(sizeof(stage.b)));
    for (int plane = 0; plane < a_planes; plane++)
        tensor_load(stage.a[plane], a, full, step.at, (blockIdx.y * 3 + plane) * args.m + place.row);
    for (int consumer = 0; consumer < CONSUMERS; consumer++) {
        const int which = E == GATED ? consumer : place.product, planes = own ? args.planes[which] : args.update_planes[which];
        // A weight that does not have this plane, or whose update this is not, gives rows beyond its last: zeros.
        const bool has = step.plane < planes && (own || step.update == which), low = has && step.plane;
        const TensorMap& high_map = own ? args.b[which] : args.update_b[step.update];
        const TensorMap& low_map = own ? args.b_low[which] : args.update_b_low[step.update];
        const int in_plane = blockIdx.y * args.n[which] + place.col + (E == GATED ? 0 : consumer * WEIGHT_ROWS);
        const int row = has ? (low ? (step.plane - 1) * args.weight_rows[which] : 0) + in_plane : args.weight_rows[which];
        tensor_load(stage.b[consumer], low ? low_map : high_map, full, step.at, row);
    }
}

// The part of k that a block of a cluster takes after `turn` others.
template <int CLUSTER>
__device__ __forceinline__ int part_of(int turn) {
    return int(cluster_rank()) * (PARTS / CLUSTER) + turn;
}

template <Epilogue E, int ROWS, int CLUSTER>
__device__ __forceinline__ void bring_steps(const HopperTwinProductArgs& args, Shared<ROWS>& shared, const Place& place) {
    constexpr int STAGES = Shared<ROWS>::STAGES;
    int count = 0;
    for (int turn = 0; turn < PARTS / CLUSTER; turn++) {
        for (Steps<E> step(args, place.product, part_of<CLUSTER>(turn)); step.left(); step.next(), count++) {
            const int slot = count % STAGES;
            barrier_wait(&shared.empty[slot], count / STAGES % 2 ^ 1);
            bring_step<E>(args, shared.stages[slot], &shared.full[slot], place, step);
        }
    }
}

// What a lane has of a step's eight rows: four columns of every second row.
struct SplitRows {
    float4 fours[4];

    // Calls `f(i, row)` for those of its rows that are not beyond the tile's last.
    template <class F>
    __device__ __forceinline__ static void for_rows(int count, F f) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i * 2 < count) f(i, i * 2 + int(threadIdx.x) % 32 / 16);
    }
    template <Epilogue E>
    __device__ __forceinline__ void load(const HopperTwinProductArgs& args, const Steps<E>& step, int first_row, int count) {
        const bool own = step.update < 0;
        const UnsplitRows& rows = own ? args.rows : args.update_rows[step.update];
        const int k = own ? args.k : args.update_k[step.update], col = step.at + int(threadIdx.x) % 16 * 4;
        for_rows(count, [&](int i, int row) {
            const int at = min(first_row + row, args.m - 1);
            const float* from = rows.from + at / args.group * rows.pitch + (blockIdx.y * args.group + at % args.group) * rows.head;
            fours[i] = load4_within(from, col, row < count ? k : 0, rows.head % 4 == 0);
        });
    }
    __device__ __forceinline__ void store(bf16 (&planes)[3][8 * STEP], int count) const {
        for_rows(count, [&](int i, int row) {
            float2 first = {fours[i].x, fours[i].y}, second = {fours[i].z, fours[i].w};
            const int at = swizzled(row, int(threadIdx.x) % 16 * 4 * int(sizeof(bf16)));
#pragma unroll
            for (int plane = 0; plane < 3; plane++) {
                const uint32_t low = take_bf16(first), high = take_bf16(second);
                *reinterpret_cast<Bf16x4*>(reinterpret_cast<char*>(planes[plane]) + at) = Bf16x4{low, high};
            }
        });
    }
};

// Splits the rows of the block's steps, each warp those of every second; its next are on their way meanwhile.
template <Epilogue E>
__device__ __forceinline__ void split_steps(const HopperTwinProductArgs& args, Shared<8>& shared, const Place& place) {
    constexpr int STAGES = Shared<8>::STAGES;
    static_assert(STAGES % SPLITTERS == 0, "a place belongs to one warp");
    const int warp = (threadIdx.x - FIRST_SPLITTER) / 32, lane = threadIdx.x % 32, rows = min(8, args.m - place.row);
    Steps<E> step(args, place.product, part_of<PARTS>(0));
    auto skip = [&](int steps) {
        for (int i = 0; i < steps && step.left(); i++) step.next();
    };
    skip(warp);
    if (!step.left()) return;
    SplitRows split;
    split.load(args, step, place.row, rows);
    // Rows beyond the last stay zeros.
    for (int slot = warp; slot < STAGES; slot += SPLITTERS)
        for (uint4* at = reinterpret_cast<uint4*>(shared.stages[slot].a) + lane; at < reinterpret_cast<uint4*>(shared.stages[slot].b); at += 32)
            *at = uint4{};
    for (int count = warp; step.left(); count += SPLITTERS) {
        const int slot = count % STAGES;
        barrier_wait(&shared.empty[slot], count / STAGES % 2 ^ 1);
        __syncwarp();
        split.store(shared.stages[slot].a, rows);
        async_fence();
        __syncwarp();
        if (lane == 0) barrier_arrive(&shared.full[slot]);
        skip(SPLITTERS);
        if (step.left()) split.load(args, step, place.row, rows);
    }
}

// Adds a step to the thread's sums: of the products with the last of PLANES planes of `a`, the smallest, and then with each before it, every
// plane's own. Few rows make columns of all three planes of one instruction, so that weights are read once for them; of other planes than those
// there are, nobody asks.
template <int PLANES, int ROWS>
__device__ __forceinline__ void multiply_step(float (&of_part)[ROWS / 2], int consumer, const Stage<ROWS>& stage) {
    const bf16* weights = stage.b[consumer];
    constexpr int COUNT = (ALL_PLANES<ROWS> ? 3 : 1) * ROWS / 2;
    auto multiply = [&](float(&sums)[COUNT], int plane) {
        products_start();
#pragma unroll
        for (int k = 0; k < STEP; k += 16) wgmma(sums, tile_descriptor(weights, k), tile_descriptor(stage.a[plane], k), k > 0);
        products_commit();
    };
    auto add = [&](const float* sums) {
#pragma unroll
        for (int i = 0; i < ROWS / 2; i++) of_part[i] += sums[i];
    };
    if constexpr (ALL_PLANES<ROWS>) {
        float sums[COUNT];
        multiply(sums, 0);
        products_wait<0>();
#pragma unroll
        for (int plane = PLANES - 1; plane >= 0; plane--) add(sums + plane * (ROWS / 2));
    } else {
        // One plane's sums are added while the next are made; the warpgroups ask in turn, so that one adds while the other's products go on.
        float first[COUNT], second[COUNT];
        named_barrier(TURN + consumer, 128 * CONSUMERS);
        multiply(first, PLANES - 1);
        if constexpr (PLANES > 1) multiply(second, PLANES - 2);
        if constexpr (PLANES > 2) {
            products_wait<1>();
            add(first);
            multiply(first, 0);
        }
        named_arrive(TURN + (consumer ^ 1), 128 * CONSUMERS);
        products_wait<(PLANES > 1)>();
        add(PLANES == 3 ? second : first);
        products_wait<0>();
        if constexpr (PLANES > 1) add(PLANES == 3 ? first : second);
    }
}

// Leaves the block's sums in its shared memory.
template <Epilogue E, int ROWS, int CLUSTER>
__device__ __forceinline__ void multiply(const HopperTwinProductArgs& args, Shared<ROWS>& shared, int product) {
    constexpr int STAGES = Shared<ROWS>::STAGES;
    // `consumer` and `slot` are seen to be the same for all threads of a warp, so that descriptors are made once for it.
    const int consumer = __shfl_sync(~0u, threadIdx.x / 128, 0), thread = threadIdx.x % 128, lane = thread % 32;
    int count = 0;
    if (!ALL_PLANES<ROWS> && consumer) named_arrive(TURN, 128 * CONSUMERS);
    // Of the parts before the last, and of that.
    float totals[ROWS / 2] = {}, of_part[ROWS / 2] = {};
#pragma unroll 1
    for (int turn = 0; turn < PARTS / CLUSTER; turn++) {
#pragma unroll
        for (int i = 0; i < ROWS / 2; i++) totals[i] += of_part[i], of_part[i] = 0.0f;
        for (Steps<E> step(args, product, part_of<CLUSTER>(turn)); step.left(); step.next(), count++) {
            const int slot = __shfl_sync(~0u, count % STAGES, 0);
            const Stage<ROWS>& stage = shared.stages[slot];
            barrier_wait(&shared.full[slot], count / STAGES % 2);
            if (step.plane == 0)
                multiply_step<3>(of_part, consumer, stage);
            else if (step.plane == 1)
                multiply_step<2>(of_part, consumer, stage);
            else
                multiply_step<1>(of_part, consumer, stage);
            if (thread == 0) barrier_arrive(&shared.empty[slot]);
        }
    }
    // The last turn is given to nobody.
    if (!ALL_PLANES<ROWS> && consumer == 0) named_barrier(TURN, 128 * CONSUMERS);
    // The other warpgroup has read its last step too.
    named_barrier(1, 128 * CONSUMERS);
    // The second of two blocks leaves its parts apart, as they are added to the first's one by one.
    const bool apart = CLUSTER == 2 && cluster_rank();
#pragma unroll
    for (int i = 0; i < ROWS / 2; i++) {
        const int row = i / 4 * 8 + lane % 4 * 2 + i % 2, col = thread / 32 * 16 + lane / 4 + i % 4 / 2 * 8;
        float* to = &shared.sums[0][row * Shared<ROWS>::PITCH + consumer * WEIGHT_ROWS + col];
        *to = apart ? totals[i] : totals[i] + of_part[i];
        if (apart) to[ROWS * Shared<ROWS>::PITCH] = of_part[i];
    }
}

// Adds the sums of the cluster's blocks, for this block's share of the columns.
template <Epilogue E, int ROWS, int CLUSTER>
__device__ __forceinline__ void finish_share(const HopperTwinProductArgs& args, const Shared<ROWS>& shared, const Place& place) {
    constexpr int SHARE = (E == GATED ? WEIGHT_ROWS : TILE) / CLUSTER, THREADS_OF_ROW = SHARE / 2;
    const int in_tile = int(cluster_rank()) * SHARE + threadIdx.x % THREADS_OF_ROW * 2, col = place.col + in_tile;
    const Ends ends = {{args.bias[place.product], E == GATED ? args.bias[1] : nullptr}, args.activation, args.n[place.product], args.parameters};
    if (col >= ends.n) return;
    auto sum_of = [&](int row, int in_tile) {
        const float* at = &shared.sums[0][row * Shared<ROWS>::PITCH + in_tile];
        float2 sum = {};
        auto add = [&](const float* at, int rank) {
            const float2 part = cluster_load(reinterpret_cast<const float2*>(at), rank);
            sum = {sum.x + part.x, sum.y + part.y};
        };
#pragma unroll
        for (int rank = 0; rank < CLUSTER; rank++) add(at, rank);
        if (CLUSTER == 2) add(at + ROWS * Shared<ROWS>::PITCH, 1);
        return sum;
    };
    with_finish<E>(ends, [&](auto finish) {
        for (int row = threadIdx.x / THREADS_OF_ROW; row < min(ROWS, args.m - place.row); row += 128 * CONSUMERS / THREADS_OF_ROW) {
            const float2 v = sum_of(row, in_tile), up = E == GATED ? sum_of(row, WEIGHT_ROWS + in_tile) : float2{};
            const int at = place.row + row, head = blockIdx.y * args.group + at % args.group;
            float* out = args.out[place.product] + at / args.group * args.out_pitch[place.product] + head * args.out_head;
            finish_pair<E>(finish, ends, out, col, blockIdx.y * ends.n + col, v, up);
        }
    });
}

template <Epilogue E, int ROWS, int CLUSTER>
__device__ __forceinline__ void twin_product(const HopperTwinProductArgs& args) {
    Shared<ROWS>& shared = *reinterpret_cast<Shared<ROWS>*>(shared_memory());
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < Shared<ROWS>::STAGES; slot++) {
            barrier_init(&shared.full[slot], SPLITS<ROWS> ? 2 : 1);
            barrier_init(&shared.empty[slot], CONSUMERS);
        }
        barriers_ready();
        if (!SPLITS<ROWS>) tensor_prefetch(args.a);
        for (const TensorMap* map : {&args.b[0], &args.b[E == GATED]}) tensor_prefetch(*map);
    }
    previous_kernel_wait();
    __syncthreads();
    const Place place = Place::of_block<E>(args, CLUSTER, ROWS);
    const bool multiplies = threadIdx.x < 128 * CONSUMERS;
    if (multiplies) {
        if (!ALL_PLANES<ROWS>) registers_up<232>();
        multiply<E, ROWS, CLUSTER>(args, shared, place.product);
    } else {
        if (!ALL_PLANES<ROWS>) registers_down<40>();
        if (threadIdx.x == 128 * CONSUMERS) bring_steps<E, ROWS, CLUSTER>(args, shared, place);
        if constexpr (SPLITS<ROWS>)
            if (threadIdx.x >= FIRST_SPLITTER) split_steps<E>(args, shared, place);
    }
    cluster_sync();
    if (multiplies) finish_share<E, ROWS, CLUSTER>(args, shared, place);
    // Other blocks may still read this one's sums.
    cluster_meet();
}

// Eight rows: beside a narrow block of product_sm90.cu.
#define TWIN_PRODUCT(NAME, E)                                                                                                \
    LEAN_CLUSTER_KERNEL(twin_product_sm90_8_##NAME, HopperTwinProductArgs, THREADS<8>, 72, PARTS, twin_product<E, 8, PARTS>) \
    CLUSTER_KERNEL(twin_product_sm90_32_##NAME, HopperTwinProductArgs, THREADS<32>, PARTS, twin_product<E, 32, PARTS>)       \
    CLUSTER_KERNEL(twin_product_sm90_64_##NAME, HopperTwinProductArgs, THREADS<64>, PARTS, twin_product<E, 64, PARTS>)       \
    CLUSTER_KERNEL(twin_product_sm90_128_##NAME, HopperTwinProductArgs, THREADS<128>, PARTS, twin_product<E, 128, PARTS>)    \
    CLUSTER_KERNEL(twin_product_sm90_halves_##NAME, HopperTwinProductArgs, THREADS<96>, 2, twin_product<E, 96, 2>)           \
    CLUSTER_KERNEL(twin_product_sm90_whole_##NAME, HopperTwinProductArgs, THREADS<96>, 1, twin_product<E, 96, 1>)

TWIN_PRODUCT(store, STORE)
TWIN_PRODUCT(add, ADD)
TWIN_PRODUCT(gated, GATED)
TWIN_PRODUCT(activated, ACTIVATED)
