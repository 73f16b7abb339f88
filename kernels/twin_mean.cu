// The means of twin rows' attention (twin_mean.cuh) by mma.sync; for Hopper and context rows in bf16 they are in twin_mean_sm90.cu.
//   mean[row, h] = (Σ p[h, t] · normalized[t]) ∘ (weight + offset) + (Σ p[h, t]) · bias + Σ p[h, u] · normed[u]
// t: tokens of the context, u: twin rows up to this one; weight, bias: of the norm, [D] f32; without one only the first and the last sum.
// p of t: sums of three bf16 numbers, in pieces (twin_attend.cuh); p of u and Σ p[h, t]: f32; normalized: [C, D] bf16, or f32, taken as
// sums of two bf16 numbers; normed: [R, D] f32; means: [R, H·D] f32.
//
// Grid: (⌈D / 256⌉ · R; ⌈H / 32⌉), 128 threads, narrow (⌈D / 64⌉ · R; ⌈H / 32⌉), 64, in an order in which blocks at work together read
// whole rows. A block has 32 heads and 256 columns of one row, a warp 64 of the columns, which read the same p; narrow ones 64 and 32,
// where rows are too few to fill the GPU or other lanes work beside them. It goes over the tokens in steps of 32, three of them in flight
// (cp.async; of rows in f32 two; of 64 columns twice as many).
// Every step has an f32 sum of its own, as tensor cores cut off what a sum does not hold, of each 16 tokens the smallest parts first; steps
// are added in order, then what the norm and twin rows give, in f32 (tests/common/bits.rs).
// Reference: `twin_attend` of backend/reference.
// Bytes bind. Figures: docs/kernel-notes.md, *Norms, rotation, scores and means of twin rows*.
#include "twin_mean.cuh"

// Tokens of a step.
constexpr int STEP = 32, HEADS = PIECE_HEADS;
// ldmatrix reads eight rows from different banks.
constexpr int P_PITCH = STEP + 8;

template <class T, int COLUMNS>
struct Stage {
    // Columns of a warp.
    static constexpr int WIDTH = COLUMNS == 256 ? 64 : 32, THREADS = COLUMNS / WIDTH * 32;
    static constexpr int N_PITCH = COLUMNS + 8;
    // Of rows in f32 no more fit where a block has 99 KiB (compute capability 8.6 and 8.9).
    static constexpr int COUNT = (sizeof(T) == 4 ? 2 : 3) * (COLUMNS == 64 ? 2 : 1);
    T n[STEP * N_PITCH];
    bf16 p[3][HEADS * P_PITCH];
};

// Fragments of 16 tokens `n` and 16 columns, as of two products: what is bf16, and what has to be added.
template <int N_PITCH>
__device__ __forceinline__ void load_columns(const bf16* n, uint32_t (&high)[4], uint32_t (&)[4]) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(high, n + lane % 16 * N_PITCH + lane / 16 * 8);
}
template <int N_PITCH>
__device__ __forceinline__ void load_columns(const float* n, uint32_t (&high)[4], uint32_t (&low)[4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int part = 0; part < 4; part++) {
        const float* at = n + (part % 2 * 8 + lane % 4 * 2) * N_PITCH + part / 2 * 8 + lane / 4;
        float2 rest = {at[0], at[N_PITCH]};
        high[part] = take_bf16(rest);
        low[part] = take_bf16(rest);
    }
}

// What a thread brings of each step: chunks of some rows, whose places are looked up a step before, one by each lane, and of some heads' p.
template <class T, int COLUMNS>
struct Loader {
    static_assert(STEP == 32);
    static constexpr int THREADS = Stage<T, COLUMNS>::THREADS, N_PITCH = Stage<T, COLUMNS>::N_PITCH;
    static constexpr int CHUNK = 16 / sizeof(T), CHUNKS = COLUMNS / CHUNK, TURNS = STEP * CHUNKS / THREADS;
    // Turns for the p of one plane, and heads of each.
    static constexpr int P_TURNS = HEADS * STEP / 8 / THREADS, P_HEADS = HEADS / P_TURNS;
    const int32_t* path;
    const T* n_from;
    int64_t n_pitch;
    int context_length, n_to, p_to;
    bool has_col;
    // The lane's context row of the step that is brought next; −1 beyond the last.
    int32_t row_of_lane;
    const bf16* p_from;
    // From a piece of p to that of the next tokens.
    int p_next;

    __device__ __forceinline__ Loader(const TwinAttendArgs& args, const TwinRow& row, int col0, int head0, int first_step)
        : path(args.path_rows + row.path), n_pitch(args.normalized_pitch), context_length(row.context_length) {
        const int thread = threadIdx.x, col = thread % CHUNKS * CHUNK;
        has_col = col0 + col < args.hidden;
        n_from = static_cast<const T*>(args.normalized) + (has_col ? col0 + col : 0);
        n_to = thread / CHUNKS * N_PITCH + col;
        const int head = thread / (STEP / 8), first = first_step * STEP, token = thread % (STEP / 8) * 8;
        p_from = args.weights + piece_of(args, row, first, head0) * PIECE + in_piece(head, 0) + first % PIECE_TOKENS + token;
        p_next = (args.heads + HEADS - 1) / HEADS * PIECE;
        p_to = head * P_PITCH + token;
        look_up(first_step);
    }
    __device__ __forceinline__ void look_up(int step) {
        const int token = step * STEP + int(threadIdx.x) % STEP;
        row_of_lane = token < context_length ? path[token] : -1;
    }
    __device__ __forceinline__ void bring(int step, Stage<T, COLUMNS>& stage) {
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const int row = __shfl_sync(~0u, row_of_lane, int(threadIdx.x) / CHUNKS + turn * (THREADS / CHUNKS));
            const bool there = row >= 0 && has_col;
            copy_async_16(&stage.n[n_to + turn * (THREADS / CHUNKS) * N_PITCH], n_from + (there ? row * n_pitch : 0), there ? 16 : 0);
        }
#pragma unroll
        for (int turn = 0; turn < 3 * P_TURNS; turn++) {
            const int plane = turn / P_TURNS, head = turn % P_TURNS * P_HEADS;
            copy_async_16(&stage.p[plane][p_to + head * P_PITCH], p_from + in_piece(head, plane), 16);
        }
        p_from += (step + 1) * STEP % PIECE_TOKENS ? STEP : p_next - (PIECE_TOKENS - STEP);
        look_up(step + 1);
    }
};

// A thread's sums: of 32 heads in halves of 16, of a warp's columns in eights, as products of mma_m16n8k16 lie.
template <int EIGHTS>
struct Sums {
    float of[2][EIGHTS][4] = {};
};

template <class T, int COLUMNS, int EIGHTS>
__device__ __forceinline__ void multiply_step(Sums<EIGHTS>& sums, const Stage<T, COLUMNS>& stage) {
    constexpr int N_PITCH = Stage<T, COLUMNS>::N_PITCH;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
    for (int t = 0; t < STEP; t += 16) {
        uint32_t n[EIGHTS / 2][4], n_low[EIGHTS / 2][4];
#pragma unroll
        for (int pair = 0; pair < EIGHTS / 2; pair++)
            load_columns<N_PITCH>(&stage.n[t * N_PITCH + warp * EIGHTS * 8 + pair * 16], n[pair], n_low[pair]);
        // Sums take turns, so that none waits for itself.
        auto multiply = [&](int plane, const uint32_t(&columns)[EIGHTS / 2][4]) {
            uint32_t p[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) ldmatrix_x4(p[i], &stage.p[plane][(i * 16 + lane % 16) * P_PITCH + t + lane / 16 * 8]);
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < EIGHTS; j++) mma_m16n8k16(sums.of[i][j], p[i], {columns[j / 2][j % 2 * 2], columns[j / 2][j % 2 * 2 + 1]});
        };
        // The smallest parts first.
        if (sizeof(T) == 4) {
            multiply(1, n_low);
            multiply(0, n_low);
        }
        multiply(2, n);
        multiply(1, n);
        multiply(0, n);
    }
}

template <class T, int COLUMNS>
__device__ void twin_mean(const TwinAttendArgs& args) {
    using Stage = Stage<T, COLUMNS>;
    constexpr int STAGES = Stage::COUNT, EIGHTS = Stage::WIDTH / 8;
    Stage* stages = reinterpret_cast<Stage*>(shared_memory());
    const int column_blocks = (args.hidden + COLUMNS - 1) / COLUMNS, index = blockIdx.x / column_blocks;
    const TwinRow row = args.rows[index];
    const int col0 = blockIdx.x % column_blocks * COLUMNS, head0 = blockIdx.y * HEADS;
    const int steps = (row.context_length + STEP - 1) / STEP;
    const int first_seen = first_seen_of(args, row), first_step = min(first_seen / STEP, steps);
    Loader<T, COLUMNS> loader(args, row, col0, head0, first_step);
    for (int i = 0; i < STAGES - 1; i++) {
        if (first_step + i < steps) loader.bring(first_step + i, stages[i]);
        copies_commit();
    }
    int slot = 0, next_slot = STAGES - 1;
    auto follow = [](int& slot) { slot = slot == STAGES - 1 ? 0 : slot + 1; };
    Sums<EIGHTS> sums;
    for (int step = first_step; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) loader.bring(step + STAGES - 1, stages[next_slot]);
        copies_commit();
        Sums<EIGHTS> of_step;
        multiply_step(of_step, stages[slot]);
        follow(slot);
        follow(next_slot);
#pragma unroll
        for (int i = 0; i < 2 * EIGHTS * 4; i++) sums.of[i / 4 / EIGHTS][i / 4 % EIGHTS][i % 4] += of_step.of[i / 4 / EIGHTS][i / 4 % EIGHTS][i % 4];
    }
    copies_wait<0>();
    const int lane = threadIdx.x % 32;
    float means[4][EIGHTS][2];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < EIGHTS; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) means[i][j][half] = sums.of[i / 2][j][i % 2 * 2 + half];
    finish_means(args, row, index, first_seen, head0 + lane / 4, col0 + int(threadIdx.x) / 32 * Stage::WIDTH + lane % 4 * 2, means);
}

KERNEL(twin_mean_bf16, TwinAttendArgs, 128, 3, twin_mean<bf16, 256>)
KERNEL(twin_mean_f32, TwinAttendArgs, 128, 1, twin_mean<float, 256>)
KERNEL(twin_mean_narrow_bf16, TwinAttendArgs, 64, 1, twin_mean<bf16, 64>)
KERNEL(twin_mean_narrow_f32, TwinAttendArgs, 64, 1, twin_mean<float, 64>)
