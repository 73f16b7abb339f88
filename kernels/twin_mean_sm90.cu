// The means of twin rows' attention (twin_mean.cuh) for Hopper, where context rows are bf16:
//   mean[row, h] = (Σ p[h, t] · normalized[t]) ∘ (weight + offset) + (Σ p[h, t]) · bias + Σ p[h, u] · normed[u]
// t: tokens of the context, u: twin rows up to this one; weight, bias: of the norm, [D] f32; without one only the first and the last sum.
// p of t: sums of three bf16 numbers, in pieces (twin_attend.cuh); p of u and Σ p[h, t]: f32; normalized: [C, D] bf16; normed: [R, D] f32;
// means: [R, H·D] f32.
//
// Grid: (blocks), 384 threads, in clusters of two; narrow ones 160, each alone. A block takes 32 heads of a row and 256 or 64 columns, over
// the context's tokens in steps of 64, which one warp brings (TMA): the rows of a step, and its piece of p, of which each block of a
// cluster brings a share for all, as they differ in columns only. The 64 rows of a product (wgmma) are the first and the second numbers of
// 32 heads' p, those of a head in one thread; the third numbers have a product of their own, half of it unused. Blocks stay; of wide ones
// three more warps finish sums and store them, while the next rows are multiplied. What lies after the context's last token may be anything,
// so it becomes zeros.
// Of the first two numbers every step has an f32 sum of its own, since tensor cores cut bits off where they add to a large one; second +
// first of each step are added in order. The third numbers have one sum over all steps, too small for that to count, which is added after
// them; then what the norm and twin rows give (tests/common/bits.rs).
// Reference: `twin_attend` of backend/reference.
// Bytes bind. Predictions: docs/kernel-notes.md, *Norms, rotation, scores and means of twin rows*.
#include "path_rows.cuh"
#include "twin_mean.cuh"
#include "twin_work.cuh"

struct HopperTwinMeanArgs {
    // The context's normalized rows in boxes of 64 rows, and of one; the pieces of p, as rows of 64 tokens, in boxes of eight heads.
    TensorMap normalized[2], weights;
    TwinAttendArgs twin;
    int32_t unused[4];
};

// Two warpgroups have 128 columns each; a third hands them registers, one of its warps brings the steps, the others finish sums.
struct Wide {
    static constexpr int WIDTH = 128, CONSUMERS = 2, CLUSTER = 2, STAGES = 4, FINISHERS = 3;
};
// Where rows are too few to fill the GPU: beside a narrow block of product_sm90.cu.
struct Narrow {
    static constexpr int WIDTH = 64, CONSUMERS = 1, CLUSTER = 1, STAGES = 3, FINISHERS = 0;
};
template <class P>
constexpr int COLUMNS = P::WIDTH * P::CONSUMERS;

constexpr int STEP = PIECE_TOKENS, EIGHTS_OF_HEADS = PIECE_HEADS / 8;

template <class P>
struct Shared {
    struct Stage {
        bf16 rows[COLUMNS<P> / BOX][STEP * BOX];
        // Of every eight heads the first, third and second numbers, and nothing: so first and second numbers lie evenly.
        bf16 p[EIGHTS_OF_HEADS][4][OCTET];
    };
    Stage stages[P::STAGES];
    // From one head to the next: what a warp puts there does not meet in a bank.
    static constexpr int PITCH = COLUMNS<P> + 8;
    // On their way to those that finish them.
    float sums[P::FINISHERS ? PIECE_HEADS : 0][PITCH];
    Barrier full[P::STAGES], empty[P::STAGES];
};

// Named barriers: those from 1 on are of consumers; `sums` were written, and were read.
constexpr int SUMS_WRITTEN = 3, SUMS_READ = 4;
template <class P>
constexpr int SUMS_THREADS = 128 * P::CONSUMERS + 32 * P::FINISHERS;

// Of a row, some heads and some columns.
template <class P>
struct Work : TwinWork {
    const int column_blocks;

    __device__ __forceinline__ explicit Work(const TwinAttendArgs& args)
        : Work(args, (args.hidden + COLUMNS<P> * P::CLUSTER - 1) / (COLUMNS<P> * P::CLUSTER)) {}
    __device__ __forceinline__ Work(const TwinAttendArgs& args, int column_blocks)
        : TwinWork(args, P::CLUSTER, (args.heads + PIECE_HEADS - 1) / PIECE_HEADS * column_blocks), column_blocks(column_blocks) {}
    __device__ __forceinline__ int first_head() const { return part / column_blocks * PIECE_HEADS; }
    __device__ __forceinline__ int first_col() const { return (part % column_blocks * P::CLUSTER + int(cluster_rank())) * COLUMNS<P>; }
    __device__ __forceinline__ int first_seen() const { return first_seen_of(args, row); }
    __device__ __forceinline__ int first_step() const { return first_seen() / STEP; }
    __device__ __forceinline__ int steps() const { return (row.context_length + STEP - 1) / STEP; }
};

template <class P>
__device__ __forceinline__ void bring_work(const HopperTwinMeanArgs& args, Shared<P>& shared) {
    constexpr int BOXES = COLUMNS<P> / BOX, SHARE = EIGHTS_OF_HEADS / P::CLUSTER;
    const int lane = threadIdx.x % 32;
    int count = 0;
    for (Work<P> work(args.twin); work.left(); work.next()) {
        const int steps = work.steps(), head = work.first_head(), col = work.first_col();
        auto rows_of = [&](int step) { return PathRows<STEP>(args.twin.path_rows + work.row.path, step * STEP, work.row.context_length); };
        int step = work.first_step();
        PathRows<STEP> rows = rows_of(step);
        for (; step < steps; step++, count++) {
            const PathRows<STEP> next = rows_of(step + 1);
            const int slot = count % P::STAGES;
            typename Shared<P>::Stage& stage = shared.stages[slot];
            warp_wait(shared.empty[slot], count / P::STAGES % 2 ^ 1);
            rows.settle();
            if (lane == 0) barrier_expect(&shared.full[slot], rows.template bytes<BOXES>() + PIECE * int(sizeof(bf16)));
            rows.bring(stage.rows, args.normalized, &shared.full[slot], col);
            rows = next;
            if (lane) continue;
            const int piece_row = int(piece_of(args.twin, work.row, step * STEP, head)) * (PIECE / PIECE_TOKENS);
            for (int i = 0; i < SHARE; i++) {
                const int eight = int(cluster_rank()) * SHARE + i;
                if (P::CLUSTER == 1)
                    tensor_load(stage.p[eight], args.weights, &shared.full[slot], 0, piece_row + eight * 24);
                else
                    tensor_load_multicast(stage.p[eight], args.weights, &shared.full[slot], 0, piece_row + eight * 24, (1 << P::CLUSTER) - 1);
            }
        }
    }
}

template <class P>
__device__ __forceinline__ void average(const HopperTwinMeanArgs& args, Shared<P>& shared) {
    constexpr int BOXES = P::WIDTH / BOX, BOX_BYTES_OF_STEP = STEP * BOX * int(sizeof(bf16));
    // `consumer` and `slot` are seen to be the same for all threads of a warp, so that descriptors are made once for it.
    const int consumer = __shfl_sync(~0u, threadIdx.x / 128, 0);
    const int thread = threadIdx.x % 128, lane = thread % 32;
    int count = 0;
    for (Work<P> work(args.twin); work.left(); work.next()) {
        // Of the thread's head, for pairs of columns eight apart: a step's sums of the first numbers and of the second, those of the third, all.
        float high[P::WIDTH / 2], low[P::WIDTH / 2], means[1][P::WIDTH / 8][2] = {};
#pragma unroll
        for (float& sum : low) sum = 0.0f;
        for (int step = work.first_step(); step < work.steps(); step++, count++) {
            const int slot = __shfl_sync(~0u, count % P::STAGES, 0), tokens = work.row.context_length - step * STEP;
            typename Shared<P>::Stage& stage = shared.stages[slot];
            bf16(*rows)[STEP * BOX] = stage.rows + consumer * BOXES;
            barrier_wait(&shared.full[slot], count / P::STAGES % 2);
            if (tokens < STEP) {
                for (int box = 0; box < BOXES; box++) clear_rows(rows[box], tokens, STEP, thread, 128);
                async_fence();
                named_barrier(1 + consumer, 128);
            }
            products_start();
#pragma unroll
            for (int token = 0; token < STEP; token += 16) {
                const uint64_t columns = transposed_descriptor(rows, token, BOX_BYTES_OF_STEP);
                const int evenly = 2 * int(sizeof(stage.p[0][0]));
                wgmma_transposed(low, tile_descriptor(stage.p[0][1], token, evenly), columns, true);
                wgmma_transposed(high, tile_descriptor(stage.p[0][0], token, evenly), columns, token > 0);
            }
            products_commit();
            products_wait<0>();
            for (int rank = 0; rank < P::CLUSTER; rank++)
                if (thread == 0) barrier_arrive(&shared.empty[slot], rank);
#pragma unroll
            for (int j = 0; j < P::WIDTH / 8; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) means[0][j][half] += high[j * 4 + 2 + half] + high[j * 4 + half];
        }
#pragma unroll
        for (int j = 0; j < P::WIDTH / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) means[0][j][half] += low[j * 4 + half];
        const int head = thread / 32 * 8 + lane / 4, col = consumer * P::WIDTH + lane % 4 * 2;
        if constexpr (P::FINISHERS > 0) {
            if (work.turn) named_barrier(SUMS_READ, SUMS_THREADS<P>);
#pragma unroll
            for (int j = 0; j < P::WIDTH / 8; j++) store2(&shared.sums[head][col + j * 8], {means[0][j][0], means[0][j][1]});
            named_arrive(SUMS_WRITTEN, SUMS_THREADS<P>);
        } else {
            finish_means(args.twin, work.row, work.index, work.first_seen(), work.first_head() + head, work.first_col() + col, means);
        }
    }
}

// What finish_means (twin_mean.cuh) does, of sums that others made: each warp takes every third head, each lane pairs of columns. What is needed
// besides the sums is loaded before they are waited for.
template <class P>
__device__ __forceinline__ void finish(const HopperTwinMeanArgs& args, const Shared<P>& shared) {
    constexpr int PAIR_STEP = 64, PAIRS = COLUMNS<P> / PAIR_STEP, HEADS = 4;
    const TwinAttendArgs& twin = args.twin;
    const int warp = threadIdx.x / 32 - 4 * P::CONSUMERS - 1, lane = threadIdx.x % 32;
    for (Work<P> work(twin); work.left(); work.next()) {
        const TwinRow& row = work.row;
        const int first_head = work.first_head(), first_col = work.first_col() + lane * 2, own_head = min(first_head + lane, twin.heads - 1);
        // Columns beyond the last are not stored.
        auto load = [&](const float* from, float2(&to)[PAIRS]) {
#pragma unroll
            for (int j = 0; j < PAIRS; j++) to[j] = load2(from + min(first_col + j * PAIR_STEP, (twin.hidden - 1) / 2 * 2));
        };
        float2 scale[PAIRS], bias[PAIRS] = {}, first_normed[PAIRS];
        if (twin.norm_weight) load(twin.norm_weight, scale);
#pragma unroll
        for (float2& of : scale) of = twin.norm_weight ? float2{of.x + twin.norm_offset, of.y + twin.norm_offset} : float2{1.0f, 1.0f};
        if (twin.norm_bias) load(twin.norm_bias, bias);
        const float share = twin.norm_bias ? twin.context_share[int64_t(work.index) * twin.heads + own_head] : 0.0f;
        // Of a twin row: its p of the lane's head, and its elements.
        const float* own_scores = twin.scores + row.scores_start * twin.heads + own_head * score_pitch(row);
        auto load_twin = [&](int token, float2(&normed)[PAIRS]) {
            load(twin.twin_normed + (row.twin_start + token - row.context_length) * twin.twin_normed_pitch, normed);
            return own_scores[token];
        };
        // The row itself is one, at least.
        const int first_twin = max(row.context_length, work.first_seen());
        const float first_p = load_twin(first_twin, first_normed);
        if (work.turn) named_arrive(SUMS_READ, SUMS_THREADS<P>);
        named_barrier(SUMS_WRITTEN, SUMS_THREADS<P>);
        for (int round = warp; round < PIECE_HEADS; round += HEADS * P::FINISHERS) {
            float2 means[HEADS][PAIRS];
            auto for_all = [&](auto each) {
#pragma unroll
                for (int i = 0; i < HEADS; i++) {
                    const int head = min(round + i * P::FINISHERS, PIECE_HEADS - 1);
#pragma unroll
                    for (int j = 0; j < PAIRS; j++) each(head, j, means[i][j]);
                }
            };
            auto add_twin = [&](float p, const float2(&normed)[PAIRS]) {
                for_all([&](int head, int j, float2& mean) {
                    const float p_of_head = __shfl_sync(~0u, p, head);
                    mean = {mean.x + p_of_head * normed[j].x, mean.y + p_of_head * normed[j].y};
                });
            };
            for_all([&](int head, int j, float2& mean) {
                const float2 sum = load2(&shared.sums[head][lane * 2 + j * PAIR_STEP]);
                const float share_of_head = __shfl_sync(~0u, share, head);
                mean = {weighed(sum.x, scale[j].x, share_of_head, bias[j].x), weighed(sum.y, scale[j].y, share_of_head, bias[j].y)};
            });
            add_twin(first_p, first_normed);
            for (int token = first_twin + 1; token < row.tokens; token++) {
                float2 normed[PAIRS];
                const float p = load_twin(token, normed);
                add_twin(p, normed);
            }
#pragma unroll
            for (int i = 0; i < HEADS; i++) {
                const int head = round + i * P::FINISHERS;
                if (head >= PIECE_HEADS || first_head + head >= twin.heads) continue;
                float* to = twin.means + row.mean_row * twin.mean_pitch + int64_t(first_head + head) * twin.hidden;
#pragma unroll
                for (int j = 0; j < PAIRS; j++) {
                    const int col = first_col + j * PAIR_STEP;
                    if (col < twin.hidden) store_pair(to + col, means[i][j], col + 1 < twin.hidden);
                }
            }
        }
    }
}

template <class P>
__device__ __forceinline__ void twin_mean(const HopperTwinMeanArgs& args) {
    Shared<P>& shared = *reinterpret_cast<Shared<P>*>(shared_memory());
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < P::STAGES; slot++) {
            barrier_init(&shared.full[slot], 1);
            barrier_init(&shared.empty[slot], P::CONSUMERS * P::CLUSTER);
        }
        barriers_ready();
        for (const TensorMap* map : {&args.normalized[0], &args.weights}) tensor_prefetch(*map);
    }
    previous_kernel_wait();
    cluster_sync();
    if (threadIdx.x < 128 * P::CONSUMERS) {
        if (P::FINISHERS) registers_up<192>();
        average<P>(args, shared);
    } else {
        if (P::FINISHERS) registers_down<120>();
        if (threadIdx.x < 128 * P::CONSUMERS + 32)
            bring_work<P>(args, shared);
        else if constexpr (P::FINISHERS > 0)
            finish<P>(args, shared);
    }
    // Other blocks may still tell this one that a place is free.
    cluster_sync();
}

CLUSTER_KERNEL(twin_mean_sm90_bf16, HopperTwinMeanArgs, 384, Wide::CLUSTER, twin_mean<Wide>)
LEAN_CLUSTER_KERNEL(twin_mean_sm90_narrow_bf16, HopperTwinMeanArgs, 160, 112, Narrow::CLUSTER, twin_mean<Narrow>)
