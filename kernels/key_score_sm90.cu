// Scores of twin rows (twin_attend.cuh) for Hopper, where context rows are bf16 and heads begin at multiples of 16 bytes: heads of up to
// 64, 128 or 256 dimensions, of which at most 64, 32 or 16 share a key head.
//   scores[row, h, t] = cap(scale · q[row, h] · (k[t] + difference[t])), cap(s) = softcap · tanh(s / softcap) where there is a cap
// k and difference are of the key head of h; what the row's window leaves out has −∞. Only the pre-trained branch has a difference.
// q: [R, H·Dh] f32, taken as sums of three bf16 numbers; keys, difference: [C, K·Dh] bf16; keys of twin rows: [R, K·Dh] f32; scores: of
// each row [H, tokens] f32.
//
// Grid: (blocks), 160 threads. Blocks stay, and take some tokens of a row for one key head after the other. One warp brings a key head's
// tiles of 64 tokens (TMA), the difference's before that of the keys themselves; four multiply, while the next keys and the next q are on
// their way. Tokens are the 64 rows of a product (wgmma). Its 16 columns are numbers of four heads of a group: the first and second of each,
// then the third and nothing, so that a thread has all of a head's. Tokens that are twin rows take the path of key_score.cuh, in f32.
// Every 64 dimensions have f32 sums of their own, one for each of q's three numbers, as tensor cores cut off what a sum does not hold;
// (third + second) + first are added in order of dimensions, so bits depend on Dh alone.
// Reference: `twin_attend` of backend/reference, with `twin_softmax` and `twin_mean`.
// Bytes bind. Predictions: docs/kernel-notes.md, *Norms, rotation, scores and means of twin rows*.
#include "key_score.cuh"
#include "path_rows.cuh"
#include "twin_work.cuh"

struct HopperKeyScoreArgs {
    // Boxes of 64 columns and 64 rows, and of one.
    TensorMap keys[2], difference[2];
    TwinAttendArgs twin;
    int32_t unused[4];
};

constexpr int TOKENS = 64, HEADS = 4, COLUMNS = 16;

// BOXES times 64 dimensions.
template <int BOXES>
struct Shared {
    // 64 KiB: three blocks a multiprocessor, or one beside a narrow block of product_sm90.cu.
    static constexpr int STAGES = 8 / BOXES;
    using Tile = bf16[BOXES][TOKENS * BOX];
    Tile tiles[STAGES];
    // Of every four heads of a group; a block has room for those that there are.
    using Queries = bf16[BOXES][COLUMNS * BOX];
    Barrier full[STAGES], empty[STAGES];
    alignas(1024) Queries q[(32 << 10) / sizeof(Queries)];
};

// Of a row, some tokens and one key head.
struct Work : TwinWork {
    const int kv_heads;

    __device__ __forceinline__ explicit Work(const TwinAttendArgs& args) : Work(args, args.heads / args.group) {}
    __device__ __forceinline__ Work(const TwinAttendArgs& args, int kv_heads) : TwinWork(args, 1, args.score_blocks * kv_heads), kv_heads(kv_heads) {}
    __device__ __forceinline__ int kv() const { return part % kv_heads; }
    __device__ __forceinline__ int first() const { return part / kv_heads * args.score_tokens; }
    __device__ __forceinline__ int end() const { return min(first() + args.score_tokens, row.tokens); }
    // Of those, tokens of the context.
    __device__ __forceinline__ int context_end() const { return min(end(), row.context_length); }
};

template <int BOXES>
__device__ __forceinline__ void bring_work(const HopperKeyScoreArgs& args, Shared<BOXES>& shared) {
    constexpr int STAGES = Shared<BOXES>::STAGES;
    const int lane = threadIdx.x % 32;
    int count = 0;
    for (Work work(args.twin); work.left(); work.next()) {
        const int end = work.context_end(), col = work.kv() * args.twin.head_dim;
        auto rows_of = [&](int token) { return PathRows<TOKENS>(args.twin.path_rows + work.row.path, token, end); };
        int token = work.first();
        PathRows<TOKENS> rows = rows_of(token);
        for (; token < end; token += TOKENS) {
            const PathRows<TOKENS> next = rows_of(token + TOKENS);
            rows.settle();
            for (int own = args.twin.difference ? 0 : 1; own < 2; own++, count++) {
                const int slot = count % STAGES;
                warp_wait(shared.empty[slot], count / STAGES % 2 ^ 1);
                if (lane == 0) barrier_expect(&shared.full[slot], rows.template bytes<BOXES>());
                rows.bring(shared.tiles[slot], own ? args.keys : args.difference, &shared.full[slot], col);
            }
            rows = next;
        }
    }
}

// q of a group of heads, on its way to where products find it. The first of a thread's pairs are loaded while products with the last q go on.
template <int BOXES>
struct Queries {
    static constexpr int PAIRS = BOXES * BOX / 2, EARLY = 4;
    float2 early[EARLY];

    __device__ __forceinline__ static float2 load_pair(const TwinAttendArgs& args, const float* q, int i) {
        const int head = i / PAIRS, dim = i % PAIRS * 2;
        if (head >= args.group || dim >= args.head_dim) return {};
        return load2(q + head * args.head_dim + dim);
    }
    __device__ __forceinline__ void load(const TwinAttendArgs& args, const Work& work) {
        const float* q = queries_of(args, work.row, work.kv());
#pragma unroll
        for (int i = 0; i < EARLY; i++) early[i] = load_pair(args, q, threadIdx.x + i * 128);
    }
    __device__ __forceinline__ void split(const TwinAttendArgs& args, Shared<BOXES>& shared, const float* q) const {
        const int pairs = (args.group + HEADS - 1) / HEADS * HEADS * PAIRS;
        auto put = [&](int i, float2 rest) {
            const int head = i / PAIRS, dim = i % PAIRS * 2;
            char* tile = reinterpret_cast<char*>(shared.q[head / HEADS][dim / BOX]);
#pragma unroll
            for (int number = 0; number < 3; number++) {
                const int column = number / 2 * 8 + head % HEADS * 2 + number % 2;
                *reinterpret_cast<uint32_t*>(tile + swizzled(column, dim % BOX * 2)) = take_bf16(rest);
            }
        };
#pragma unroll
        for (int i = 0; i < EARLY; i++)
            if (int(threadIdx.x) + i * 128 < pairs) put(threadIdx.x + i * 128, early[i]);
        for (int i = threadIdx.x + EARLY * 128; i < pairs; i += 128) put(i, load_pair(args, q, i));
        async_fence();
        named_barrier(1, 128);
    }
};

template <int BOXES>
__device__ __forceinline__ void score(const HopperKeyScoreArgs& args, Shared<BOXES>& shared) {
    constexpr int STAGES = Shared<BOXES>::STAGES;
    const TwinAttendArgs& twin = args.twin;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, tiles_of_token = twin.difference ? 2 : 1;
    int count = 0;
    Work work(twin);
    Queries<BOXES> queries;
    if (work.left()) queries.load(twin, work);
    for (; work.left(); work.next()) {
        const int kv = work.kv(), first = work.first(), end = work.end(), context_end = work.context_end();
        // A row shorter than others has none.
        const bool any = first < end;
        if (any) {
            // Products with the last q are over.
            named_barrier(1, 128);
            queries.split(twin, shared, queries_of(twin, work.row, kv));
        }
        Work following = work;
        following.next();
        if (following.left()) queries.load(twin, following);
        if (!any) continue;
        const Scores scores(twin, work.row, kv);
        for (int token = first; token < context_end; token += TOKENS, count += tiles_of_token) {
            for (int i = 0; i < tiles_of_token; i++) barrier_wait(&shared.full[(count + i) % STAGES], (count + i) / STAGES % 2);
            for (int first_head = 0; first_head < twin.group; first_head += HEADS) {
                float sums[BOXES][COLUMNS / 2];
                // Both cases are whole, as a product may not wait for what is decided on the way.
                auto multiply = [&](auto tiles) {
                    products_start();
#pragma unroll
                    for (int i = 0; i < decltype(tiles)::value; i++) {
                        const int slot = __shfl_sync(~0u, (count + i) % STAGES, 0);
#pragma unroll
                        for (int box = 0; box < BOXES; box++)
#pragma unroll
                            for (int dim = 0; dim < BOX; dim += 16)
                                wgmma(sums[box], tile_descriptor(shared.tiles[slot][box], dim),
                                      tile_descriptor(shared.q[first_head / HEADS][box], dim), i > 0 || dim > 0);
                    }
                    products_commit();
                    products_wait<0>();
                };
                if (twin.difference)
                    multiply(Constant<2>());
                else
                    multiply(Constant<1>());
                if (first_head + HEADS >= twin.group && thread == 0)
                    for (int i = 0; i < tiles_of_token; i++) barrier_arrive(&shared.empty[(count + i) % STAGES]);
                const int head = first_head + lane % 4;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float sum = 0.0f;
                    // The smallest parts first.
#pragma unroll
                    for (int box = 0; box < BOXES; box++) sum += (sums[box][4 + half * 2] + sums[box][half * 2 + 1]) + sums[box][half * 2];
                    const int of = token + warp * 16 + lane / 4 + half * 8;
                    if (head < twin.group && of < context_end) scores.store(head, of, sum);
                }
            }
        }
        score_twin_rows<4>(twin, work.row, kv, first, end);
    }
}

template <int BOXES>
__device__ __forceinline__ void key_score(const HopperKeyScoreArgs& args) {
    Shared<BOXES>& shared = *reinterpret_cast<Shared<BOXES>*>(shared_memory());
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < Shared<BOXES>::STAGES; slot++) {
            barrier_init(&shared.full[slot], 1);
            barrier_init(&shared.empty[slot], 1);
        }
        barriers_ready();
    }
    __syncthreads();
    if (threadIdx.x < 128)
        score<BOXES>(args, shared);
    else
        bring_work<BOXES>(args, shared);
}

// Beside a narrow block of product_sm90.cu.
LEAN_KERNEL(key_score_sm90_64, HopperKeyScoreArgs, 160, 112, key_score<1>)
LEAN_KERNEL(key_score_sm90_128, HopperKeyScoreArgs, 160, 112, key_score<2>)
LEAN_KERNEL(key_score_sm90_256, HopperKeyScoreArgs, 160, 112, key_score<4>)
