// Attention of twin rows: mean[row, head] = Σ p(token) · normed(token), the tokens being those of its path (context rows: normalized · weight + bias
// of the norm) and the twin rows up to the row itself. Values are projected afterwards (`head_values`).
// Reference: `twin_attend` of backend/reference. Three kernels:
//   key_score     scores[row, head, token] = q · (k + difference), scaled and capped, −∞ where unseen; f32
//   twin_softmax  softmax of them in place; how much of it falls on the context
//   twin_mean     the means; p as a sum of three bf16, sums f32 (mma.sync)
// Context rows are bf16, or f32 (then taken as sums of two bf16).
// Bytes bind: keys, and normalized rows, are read once a branch. Every sum is over the tokens of one sequence in their order.
#include "device.cuh"

constexpr int THREADS = 128;

struct TwinRow {
    // In matrices of twin rows, and in those of this pack's means.
    int32_t row, mean_row;
    // The context rows before it are path_rows[path] and up.
    int32_t path, context_length;
    int32_t twin_start;
    // Tokens that it may see, itself the last of them.
    int32_t tokens;
    // Where its scores start, in tokens of one head.
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
    // [heads, tokens] of every row, one after the other.
    float* scores;
    // [rows, heads]: what of a row's attention falls on the context.
    float* context_share;
    float* means;
    int64_t q_pitch, key_pitch, difference_pitch, normalized_pitch, twin_key_pitch, twin_normed_pitch, mean_pitch;
    int32_t heads, group, head_dim, hidden;
    // Tokens that a token sees up to itself; 0: all.
    int32_t window;
    float norm_offset, scale, softcap;
};

constexpr int SCORED = 64;

// Grid: (tokens / 64, rows). A warp takes one token at a time.
template <class T>
__device__ void key_score(const TwinAttendArgs& args) {
    float* q = reinterpret_cast<float*>(shared_memory());
    const TwinRow row = args.rows[blockIdx.x];
    const int first = blockIdx.y * SCORED, end = min(first + SCORED, row.tokens);
    if (first >= end) return;
    const int width = args.heads * args.head_dim, lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < width; i += THREADS) q[i] = args.q[row.row * args.q_pitch + i];
    __syncthreads();
    const T *keys = static_cast<const T*>(args.keys), *difference = static_cast<const T*>(args.difference);
    float* scores = args.scores + row.scores_start * args.heads;
    const int first_seen = args.window ? max(row.tokens - args.window, 0) : 0;
    for (int token = first + threadIdx.x / 32; token < end; token += THREADS / 32) {
        for (int kv = 0; kv < args.heads / args.group; kv++) {
            for (int head = kv * args.group; head < (kv + 1) * args.group; head++) {
                float sum = 0.0f;
                for (int i = lane; i < args.head_dim; i += 32) {
                    const int col = kv * args.head_dim + i;
                    float key;
                    if (token < row.context_length) {
                        const int64_t at = args.path_rows[row.path + token];
                        key = to_float(keys[at * args.key_pitch + col]);
                        if (difference) key += to_float(difference[at * args.difference_pitch + col]);
                    } else {
                        key = args.twin_keys[(row.twin_start + token - row.context_length) * args.twin_key_pitch + col];
                    }
                    sum += q[head * args.head_dim + i] * key;
                }
                float score = warp_sum(sum) * args.scale;
                if (args.softcap != 0.0f) score = args.softcap * tanhf(score / args.softcap);
                if (lane == 0) scores[int64_t(head) * row.tokens + token] = token < first_seen ? -INFINITY : score;
            }
        }
    }
}

KERNEL(key_score_bf16, TwinAttendArgs, THREADS, 1, key_score<bf16>)
KERNEL(key_score_f32, TwinAttendArgs, THREADS, 1, key_score<float>)

// Grid: (heads, rows).
__device__ void twin_softmax(const TwinAttendArgs& args) {
    float* scratch = reinterpret_cast<float*>(shared_memory());
    const TwinRow row = args.rows[blockIdx.x];
    float* scores = args.scores + row.scores_start * args.heads + int64_t(blockIdx.y) * row.tokens;
    float largest = -INFINITY;
    for (int token = threadIdx.x; token < row.tokens; token += THREADS) largest = fmaxf(largest, scores[token]);
    largest = block_max<THREADS>(largest, scratch);
    float sum = 0.0f;
    for (int token = threadIdx.x; token < row.tokens; token += THREADS) {
        scores[token] = expf(scores[token] - largest);
        sum += scores[token];
    }
    sum = block_sum<THREADS>(sum, scratch);
    float share = 0.0f;
    for (int token = threadIdx.x; token < row.tokens; token += THREADS) {
        scores[token] /= sum;
        if (token < row.context_length) share += scores[token];
    }
    share = block_sum<THREADS>(share, scratch);
    if (threadIdx.x == 0) args.context_share[int64_t(blockIdx.x) * args.heads + blockIdx.y] = share;
}

KERNEL(twin_softmax, TwinAttendArgs, THREADS, 1, twin_softmax)

constexpr int HEADS = 32, COLUMNS = 64, STEP = 32, N_PITCH = COLUMNS + 8, P_PITCH = STEP + 4;

template <class T>
struct MeanStage {
    T n[STEP * N_PITCH];
    float p[HEADS * P_PITCH];
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

// Grid: (columns / 64, rows, heads / 32). A warp takes 16 columns of 32 heads.
template <class T>
__device__ void twin_mean(const TwinAttendArgs& args) {
    constexpr bool WIDE = sizeof(T) == 4;
    constexpr int CHUNK = 16 / sizeof(T);
    MeanStage<T>* stages = reinterpret_cast<MeanStage<T>*>(shared_memory());
    const TwinRow row = args.rows[blockIdx.x];
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int col0 = blockIdx.y * COLUMNS, head0 = blockIdx.z * HEADS;
    const float* scores = args.scores + row.scores_start * args.heads;
    const T* normalized = static_cast<const T*>(args.normalized);
    const int32_t* path = args.path_rows + row.path;

    auto load = [&](int step) {
        MeanStage<T>& stage = stages[step % 2];
        for (int chunk = thread; chunk < STEP * COLUMNS / CHUNK; chunk += THREADS) {
            const int t = chunk / (COLUMNS / CHUNK), i = chunk % (COLUMNS / CHUNK) * CHUNK, token = step * STEP + t;
            const bool there = token < row.context_length && col0 + i < args.hidden;
            copy_async_16(&stage.n[t * N_PITCH + i], normalized + (there ? path[token] * args.normalized_pitch + col0 + i : 0), there ? 16 : 0);
        }
        for (int at = thread; at < HEADS * STEP; at += THREADS) {
            const int head = head0 + at / STEP, token = step * STEP + at % STEP;
            const bool there = head < args.heads && token < row.context_length;
            copy_async_4(&stage.p[at / STEP * P_PITCH + at % STEP], scores + (there ? int64_t(head) * row.tokens + token : 0), there ? 4 : 0);
        }
    };
    const int steps = (row.context_length + STEP - 1) / STEP;
    const int first_seen = args.window ? max(row.tokens - args.window, 0) : 0;
    const int first_step = min(first_seen / STEP, steps);
    if (first_step < steps) load(first_step);
    copies_commit();
    float sums[2][2][4] = {};
    for (int step = first_step; step < steps; step++) {
        if (step + 1 < steps) load(step + 1);
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        const MeanStage<T>& stage = stages[step % 2];
#pragma unroll
        for (int t = 0; t < STEP; t += 16) {
            uint32_t fn[4], fn_low[4];
            load_columns(&stage.n[t * N_PITCH + warp * 16], fn, fn_low);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t p[3][4];
#pragma unroll
                for (int part = 0; part < 4; part++) {
                    const int head = i * 16 + part % 2 * 8 + lane / 4, token = t + part / 2 * 8 + lane % 4 * 2;
                    float2 rest = *reinterpret_cast<const float2*>(&stage.p[head * P_PITCH + token]);
                    for (int term = 0; term < 3; term++) p[term][part] = take_bf16(rest);
                }
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    if (WIDE) mma_m16n8k16(sums[i][j], p[1], {fn_low[j * 2], fn_low[j * 2 + 1]});
                    if (WIDE) mma_m16n8k16(sums[i][j], p[0], {fn_low[j * 2], fn_low[j * 2 + 1]});
                    for (int term = 2; term >= 0; term--) mma_m16n8k16(sums[i][j], p[term], {fn[j * 2], fn[j * 2 + 1]});
                }
            }
        }
        __syncthreads();
    }
    copies_wait<0>();

    for (int i = 0; i < 8; i++) {
        const int head = head0 + i / 4 * 16 + i % 4 / 2 * 8 + lane / 4;
        if (head >= args.heads) continue;
        const float share = args.context_share[int64_t(blockIdx.x) * args.heads + head];
        float* mean = args.means + row.mean_row * args.mean_pitch + int64_t(head) * args.hidden;
        for (int half = 0; half < 2; half++) {
            const int col = col0 + warp * 16 + i % 2 * 8 + lane % 4 * 2 + half;
            if (col >= args.hidden) continue;
            float value = sums[i / 4][i % 2][i % 4 / 2 * 2 + half];
            if (args.norm_weight) value *= args.norm_weight[col] + args.norm_offset;
            if (args.norm_bias) value += share * args.norm_bias[col];
            for (int token = max(row.context_length, first_seen); token < row.tokens; token++) {
                const int64_t own = row.twin_start + token - row.context_length;
                value += scores[int64_t(head) * row.tokens + token] * args.twin_normed[own * args.twin_normed_pitch + col];
            }
            mean[col] = value;
        }
    }
}

KERNEL(twin_mean_bf16, TwinAttendArgs, THREADS, 1, twin_mean<bf16>)
KERNEL(twin_mean_f32, TwinAttendArgs, THREADS, 1, twin_mean<float>)
