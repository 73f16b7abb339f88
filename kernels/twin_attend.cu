// Attention of twin rows: mean[row, head] = Σ p(token) · normed(token), the tokens being those of its path (context rows: normalized · weight + bias
// of the norm) and the twin rows up to the row itself. Values are projected afterwards (`head_values`).
// Reference: `twin_attend` of backend/reference. Three kernels:
//   key_score     scores[row, head, token] = q · (k + difference), scaled and capped, −∞ where unseen; f32
//   twin_softmax  softmax of them in place; of the context's tokens as a sum of three bf16; how much of it falls on the context
//   twin_mean     the means; sums f32 (mma.sync)
// Context rows are bf16, or f32 (then taken as sums of two bf16).
// Bytes bind: keys, and normalized rows, are read once a branch. Every sum is over the tokens of one sequence in their order.
#include "device.cuh"

// Tokens of the context that are averaged at a time.
constexpr int STEP = 32;

struct TwinRow {
    // In matrices of twin rows, and in those of this pack's means.
    int32_t row, mean_row;
    // The context rows before it are path_rows[path] and up.
    int32_t path, context_length;
    int32_t twin_start;
    // Tokens that it may see, itself the last of them.
    int32_t tokens;
    // Where its scores start, in tokens of one head, whose number is rounded up to steps.
    int64_t scores_start;
};

struct TwinAttendArgs {
    const float* q;
    const void* keys;
    // Null where the keys are this branch's own.
    const void* difference;
    const void* normalized;
    // Of the norm before attention; null where there is none.
    const float* norm_weight;
    const float* norm_bias;
    const float* twin_keys;
    const float* twin_normed;
    const TwinRow* rows;
    const int32_t* path_rows;
    // [heads, tokens] of every row, one after the other, tokens rounded up to steps.
    float* scores;
    // p of the context's tokens in three planes, [heads, tokens] of every row in each; zeros for other tokens.
    bf16* weights;
    int64_t weight_plane;
    // [rows, heads]: what of a row's attention falls on the context.
    float* context_share;
    float* means;
    int64_t q_pitch, key_pitch, difference_pitch, normalized_pitch, twin_key_pitch, twin_normed_pitch, mean_pitch;
    int32_t heads, group, head_dim, hidden;
    // Tokens that a token sees up to itself; 0: all.
    int32_t window;
    // Blocks of key_score for each row.
    int32_t score_blocks, unused;
    float norm_offset, scale, softcap;
};

__device__ __forceinline__ int64_t score_pitch(const TwinRow& row) { return (row.tokens + STEP - 1) / STEP * STEP; }

constexpr int SCORE_THREADS = 128, TOGETHER = 4;

// Eight dimensions of a head: as they lie in memory where heads begin at multiples of 16 bytes, else one by one.
template <class T, bool ALIGNED>
struct Dims {
    float values[8];
    __device__ __forceinline__ void load(const T* from, int count) {
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = i < count ? to_float(from[i]) : 0.0f;
    }
    __device__ __forceinline__ void add_to(float (&sum)[8]) const {
#pragma unroll
        for (int i = 0; i < 8; i++) sum[i] += values[i];
    }
};
template <>
struct Dims<bf16, true> {
    uint4 pairs;
    __device__ __forceinline__ void load(const bf16* from, int count) { pairs = count ? *reinterpret_cast<const uint4*>(from) : uint4{0, 0, 0, 0}; }
    __device__ __forceinline__ void add_to(float (&sum)[8]) const {
        const uint32_t all[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i * 2] += low_float(all[i]), sum[i * 2 + 1] += high_float(all[i]);
    }
};

// Grid: key heads, then blocks of tokens, then rows. Each of the `lanes` that share four tokens has eight dimensions of their keys. All of a
// thread's loads are under way before the first is used.
template <class T, bool ALIGNED>
__device__ __forceinline__ void key_score(const TwinAttendArgs& args) {
    float* q = reinterpret_cast<float*>(shared_memory());
    const int kv_heads = args.heads / args.group, kv = blockIdx.x % kv_heads;
    const TwinRow row = args.rows[blockIdx.x / kv_heads / args.score_blocks];
    // A power of two.
    int lane_bits = 2;
    while ((8 << lane_bits) < args.head_dim) lane_bits++;
    const int lanes = 1 << lane_bits, first = blockIdx.x / kv_heads % args.score_blocks * (SCORE_THREADS * TOGETHER >> lane_bits);
    if (first >= row.tokens) return;
    const int token = first + (threadIdx.x >> lane_bits) * TOGETHER, lane = threadIdx.x & (lanes - 1), col = kv * args.head_dim + lane * 8;
    const int dims = min(max(args.head_dim - lane * 8, 0), 8);
    const T *keys = static_cast<const T*>(args.keys), *difference = static_cast<const T*>(args.difference);
    int at[TOGETHER];
    Dims<T, ALIGNED> loaded[TOGETHER], added[TOGETHER];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) at[i] = token + i < row.context_length ? args.path_rows[row.path + token + i] : -1;
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
        loaded[i].load(keys + int64_t(max(at[i], 0)) * args.key_pitch + col, at[i] < 0 ? 0 : dims);
        added[i].load(difference + int64_t(max(at[i], 0)) * args.difference_pitch + col, at[i] < 0 || !difference ? 0 : dims);
    }
    // Of every head first the first four dimensions of all lanes, then the others: no two lanes read the same bank.
    for (int i = threadIdx.x; i < args.group << (lane_bits + 3); i += SCORE_THREADS) {
        const int head = i >> (lane_bits + 3), dim = (i >> 2 & (lanes - 1)) * 8 + (i >> (lane_bits + 2) & 1) * 4 + i % 4;
        q[i] = dim < args.head_dim ? args.q[row.row * args.q_pitch + (kv * args.group + head) * args.head_dim + dim] : 0.0f;
    }
    __syncthreads();
    float key[TOGETHER][8] = {};
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
        loaded[i].add_to(key[i]);
        added[i].add_to(key[i]);
        const int own = token + i - row.context_length;
        if (own < 0 || token + i >= row.tokens) continue;
        Dims<float, false> of_twin;
        of_twin.load(args.twin_keys + (row.twin_start + own) * args.twin_key_pitch + col, dims);
        of_twin.add_to(key[i]);
    }
    const int64_t pitch = score_pitch(row);
    float* scores = args.scores + row.scores_start * args.heads + kv * args.group * pitch;
    const int first_seen = args.window ? max(row.tokens - args.window, 0) : 0;
    const bool second_half = lane & lanes / 2, odd_quarter = lane & lanes / 4;
    for (int head = 0; head < args.group; head++) {
        const float4 low = load4(q + (head * 2 * lanes + lane) * 4), high = load4(q + ((head * 2 + 1) * lanes + lane) * 4);
        float sum[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            const float* k = key[i];
            const float half = fmaf(low.w, k[3], fmaf(low.z, k[2], fmaf(low.y, k[1], low.x * k[0])));
            sum[i] = fmaf(high.w, k[7], fmaf(high.z, k[6], fmaf(high.y, k[5], fmaf(high.x, k[4], half))));
        }
        // Half of the lanes go on with two of the tokens, a quarter with one of them.
        float mine = second_half ? sum[2] : sum[0], next = second_half ? sum[3] : sum[1];
        mine += __shfl_xor_sync(~0u, second_half ? sum[0] : sum[2], lanes / 2);
        next += __shfl_xor_sync(~0u, second_half ? sum[1] : sum[3], lanes / 2);
        const float given = odd_quarter ? mine : next;
        mine = (odd_quarter ? next : mine) + __shfl_xor_sync(~0u, given, lanes / 4);
        for (int bits = lanes / 8; bits; bits /= 2) mine += __shfl_xor_sync(~0u, mine, bits);
        const int of = token + second_half * 2 + odd_quarter;
        if ((lane & (lanes / 4 - 1)) != 0 || of >= row.tokens) continue;
        float score = mine * args.scale;
        if (args.softcap != 0.0f) score = args.softcap * tanhf(score / args.softcap);
        scores[head * pitch + of] = of < first_seen ? -INFINITY : score;
    }
}

__device__ void key_score_bf16(const TwinAttendArgs& args) {
    if (args.head_dim % 8 == 0)
        key_score<bf16, true>(args);
    else
        key_score<bf16, false>(args);
}

KERNEL(key_score_bf16, TwinAttendArgs, SCORE_THREADS, 5, key_score_bf16)
KERNEL(key_score_f32, TwinAttendArgs, SCORE_THREADS, 1, key_score<float, false>)

constexpr int SOFTMAX_THREADS = 128;

// Grid: (rows, heads).
__device__ void twin_softmax(const TwinAttendArgs& args) {
    float* scratch = reinterpret_cast<float*>(shared_memory());
    const TwinRow row = args.rows[blockIdx.x];
    const int64_t pitch = score_pitch(row), start = row.scores_start * args.heads + blockIdx.y * pitch;
    float* scores = args.scores + start;
    float largest = -INFINITY;
    for (int token = threadIdx.x; token < row.tokens; token += SOFTMAX_THREADS) largest = fmaxf(largest, scores[token]);
    largest = block_max<SOFTMAX_THREADS>(largest, scratch);
    float sum = 0.0f;
    for (int token = threadIdx.x; token < row.tokens; token += SOFTMAX_THREADS) {
        scores[token] = expf(scores[token] - largest);
        sum += scores[token];
    }
    sum = block_sum<SOFTMAX_THREADS>(sum, scratch);
    float share = 0.0f;
    for (int token = threadIdx.x * 2; token < pitch; token += SOFTMAX_THREADS * 2) {
        float p[2];
        for (int i = 0; i < 2; i++) {
            p[i] = token + i < row.tokens ? scores[token + i] / sum : 0.0f;
            if (token + i < row.context_length) {
                share += p[i];
            } else {
                scores[token + i] = p[i];
                p[i] = 0.0f;
            }
        }
        float2 rest = {p[0], p[1]};
        for (int plane = 0; plane < 3; plane++)
            *reinterpret_cast<uint32_t*>(args.weights + plane * args.weight_plane + start + token) = take_bf16(rest);
    }
    share = block_sum<SOFTMAX_THREADS>(share, scratch);
    if (threadIdx.x == 0) args.context_share[int64_t(blockIdx.x) * args.heads + blockIdx.y] = share;
}

KERNEL(twin_softmax, TwinAttendArgs, SOFTMAX_THREADS, 1, twin_softmax)

constexpr int MEAN_THREADS = 256, HEADS = 32, COLUMNS = 256, MEAN_STAGES = 3;
// ldmatrix reads eight rows from different banks.
constexpr int N_PITCH = COLUMNS + 8, P_PITCH = STEP + 8;

template <class T>
struct MeanStage {
    T n[STEP * N_PITCH];
    bf16 p[3][HEADS * P_PITCH];
};

// Fragments of 16 tokens `n` and 16 columns, as of two products: what is bf16, and what has to be added.
__device__ __forceinline__ void load_columns(const bf16* n, uint32_t (&high)[4], uint32_t (&)[4]) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(high, n + lane % 16 * N_PITCH + lane / 16 * 8);
}
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

// Grid: (columns / 256, then rows; heads / 32): blocks at work together read whole rows. A warp takes 32 columns of 32 heads. Every step has a sum of its own, as tensor cores cut off what a
// sum does not hold.
template <class T>
__device__ void twin_mean(const TwinAttendArgs& args) {
    constexpr bool WIDE = sizeof(T) == 4;
    constexpr int CHUNK = 16 / sizeof(T), CHUNKS = COLUMNS / CHUNK, TURNS = STEP * CHUNKS / MEAN_THREADS;
    MeanStage<T>* stages = reinterpret_cast<MeanStage<T>*>(shared_memory());
    const int column_blocks = (args.hidden + COLUMNS - 1) / COLUMNS, index = blockIdx.x / column_blocks;
    const TwinRow row = args.rows[index];
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int col0 = blockIdx.x % column_blocks * COLUMNS, head0 = blockIdx.y * HEADS;
    const int64_t pitch = score_pitch(row);
    const bf16* weights = args.weights + row.scores_start * args.heads;
    const T* normalized = static_cast<const T*>(args.normalized);
    const int32_t* path = args.path_rows + row.path;
    const int steps = (row.context_length + STEP - 1) / STEP;
    const int first_seen = args.window ? max(row.tokens - args.window, 0) : 0;
    const int first_step = min(first_seen / STEP, steps);

    // What this thread brings of a step: chunks of some rows, whose places are looked up a step before, and of some heads' p.
    const int col = thread % CHUNKS * CHUNK, t = thread / CHUNKS;
    const bool has_col = col0 + col < args.hidden;
    const T* n_from = normalized + (has_col ? col0 + col : 0);
    int32_t from[TURNS];
    auto look_up = [&](int step) {
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const int token = step * STEP + t + turn * (MEAN_THREADS / CHUNKS);
            from[turn] = token < row.context_length ? path[token] : -1;
        }
    };
    constexpr int P_CHUNKS = 3 * HEADS * STEP / 8, P_TURNS = (P_CHUNKS + MEAN_THREADS - 1) / MEAN_THREADS;
    const bf16* p_from[P_TURNS];
    int p_to[P_TURNS], p_step[P_TURNS];
#pragma unroll
    for (int turn = 0; turn < P_TURNS; turn++) {
        const int chunk = thread + turn * MEAN_THREADS, head = chunk / (STEP / 8) % HEADS, token = chunk % (STEP / 8) * 8;
        const int plane = chunk / (HEADS * STEP / 8);
        const bool there = chunk < P_CHUNKS && head0 + head < args.heads;
        p_from[turn] = weights + (there ? plane * args.weight_plane + (head0 + head) * pitch + first_step * STEP + token : 0);
        p_to[turn] = (plane * HEADS + head) * P_PITCH + token;
        p_step[turn] = there ? STEP : 0;
    }
    auto bring = [&](int step, MeanStage<T>& stage) {
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const bool there = from[turn] >= 0 && has_col;
            copy_async_16(&stage.n[(t + turn * (MEAN_THREADS / CHUNKS)) * N_PITCH + col],
                          n_from + (there ? from[turn] * args.normalized_pitch : 0), there ? 16 : 0);
        }
#pragma unroll
        for (int turn = 0; turn < P_TURNS; turn++) {
            if (thread + turn * MEAN_THREADS < P_CHUNKS) copy_async_16(&stage.p[0][p_to[turn]], p_from[turn], p_step[turn] ? 16 : 0);
            p_from[turn] += p_step[turn];
        }
        look_up(step + 1);
    };
    look_up(first_step);
    for (int i = 0; i < MEAN_STAGES - 1; i++) {
        if (first_step + i < steps) bring(first_step + i, stages[i]);
        copies_commit();
    }
    int slot = 0, next_slot = MEAN_STAGES - 1;
    auto follow = [](int& slot) { slot = slot == MEAN_STAGES - 1 ? 0 : slot + 1; };
    float sums[2][4][4] = {};
    for (int step = first_step; step < steps; step++) {
        copies_wait<MEAN_STAGES - 2>();
        __syncthreads();
        if (step + MEAN_STAGES - 1 < steps) bring(step + MEAN_STAGES - 1, stages[next_slot]);
        copies_commit();
        const MeanStage<T>& stage = stages[slot];
        follow(slot);
        follow(next_slot);
        float of_step[2][4][4] = {};
#pragma unroll
        for (int t = 0; t < STEP; t += 16) {
            uint32_t n[2][4], n_low[2][4];
            for (int pair = 0; pair < 2; pair++) load_columns(&stage.n[t * N_PITCH + warp * 32 + pair * 16], n[pair], n_low[pair]);
            uint32_t p[3][2][4];
#pragma unroll
            for (int i = 0; i < 6; i++) ldmatrix_x4(p[i / 2][i % 2], &stage.p[i / 2][(i % 2 * 16 + lane % 16) * P_PITCH + t + lane / 16 * 8]);
            // The smallest parts first; sums take turns, so that none waits for itself.
            auto multiply = [&](const uint32_t(&planes)[2][4], const uint32_t(&columns)[2][4]) {
#pragma unroll
                for (int i = 0; i < 8; i++) mma_m16n8k16(of_step[i / 4][i % 4], planes[i / 4], {columns[i % 4 / 2][i % 2 * 2], columns[i % 4 / 2][i % 2 * 2 + 1]});
            };
            if (WIDE) {
                multiply(p[1], n_low);
                multiply(p[0], n_low);
            }
            multiply(p[2], n);
            multiply(p[1], n);
            multiply(p[0], n);
        }
#pragma unroll
        for (int i = 0; i < 32; i++) sums[i / 16][i / 4 % 4][i % 4] += of_step[i / 16][i / 4 % 4][i % 4];
    }
    copies_wait<0>();

    // All loads of a loop are under way before the first is used; what is beyond the last is loaded again, and not stored.
    int heads[4], cols[4][2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        heads[i] = min(head0 + i * 8 + lane / 4, args.heads - 1);
        for (int half = 0; half < 2; half++) cols[i][half] = min(col0 + warp * 32 + i * 8 + lane % 4 * 2 + half, args.hidden - 1);
    }
    float scale[4][2], bias[4][2] = {}, share[4] = {};
#pragma unroll
    for (int j = 0; j < 8; j++) {
        scale[j / 2][j % 2] = args.norm_weight ? args.norm_weight[cols[j / 2][j % 2]] + args.norm_offset : 1.0f;
        if (args.norm_bias) bias[j / 2][j % 2] = args.norm_bias[cols[j / 2][j % 2]];
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (args.norm_bias) share[i] = args.context_share[int64_t(index) * args.heads + heads[i]];
#pragma unroll
    for (int at = 0; at < 32; at++) {
        float& sum = sums[at / 16][at / 4 % 4][at % 4];
        sum = sum * scale[at / 4 % 4][at % 2] + share[at / 16 * 2 + at % 4 / 2] * bias[at / 4 % 4][at % 2];
    }
    const float* scores = args.scores + row.scores_start * args.heads;
    for (int token = max(row.context_length, first_seen); token < row.tokens; token++) {
        const float* own = args.twin_normed + (row.twin_start + token - row.context_length) * args.twin_normed_pitch;
        float p[4], n[4][2];
#pragma unroll
        for (int i = 0; i < 4; i++) p[i] = scores[heads[i] * pitch + token];
#pragma unroll
        for (int j = 0; j < 8; j++) n[j / 2][j % 2] = own[cols[j / 2][j % 2]];
#pragma unroll
        for (int at = 0; at < 32; at++) sums[at / 16][at / 4 % 4][at % 4] += p[at / 16 * 2 + at % 4 / 2] * n[at / 4 % 4][at % 2];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (head0 + i * 8 + lane / 4 >= args.heads) continue;
        float* mean = args.means + row.mean_row * args.mean_pitch + int64_t(heads[i]) * args.hidden;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int col = col0 + warp * 32 + j * 8 + lane % 4 * 2;
            const float* sum = &sums[i / 2][j][i % 2 * 2];
            if (col < args.hidden) store_pair(mean + col, {sum[0], sum[1]}, col + 1 < args.hidden);
        }
    }
}

KERNEL(twin_mean_bf16, TwinAttendArgs, MEAN_THREADS, 2, twin_mean<bf16>)
KERNEL(twin_mean_f32, TwinAttendArgs, MEAN_THREADS, 1, twin_mean<float>)
