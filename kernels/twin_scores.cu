// What twin rows see of each token (twin_attend.cuh): `key_score` of other context rows than key_score.cu and key_score_sm90.cu have,
// `twin_softmax`.
//
// key_score_f32, key_score_any_bf16: scores[row, h, t] = cap(scale · q[row, h] · (k[t] + difference[t])),
// cap(s) = softcap · tanh(s / softcap) where there is a cap. k and difference are of the key head of h; of a twin row k alone counts; what
// the row's window leaves out has −∞.
// q: [R, H·Dh] f32; keys, difference: [C, K·Dh] f32 or bf16; keys of twin rows: [R, K·Dh] f32; scores: of each row [H, tokens] f32.
// Grid: (K · blocks of tokens · R), 128 threads. A lane has eight dimensions of four tokens and adds key and difference before it
// multiplies; f32 sums are over its dimensions in order (fmaf), then over lanes, in an order that depends on Dh alone.
//
// twin_softmax: p = exp(score − largest) / Σ exp(score − largest) over a row's tokens, f32. Of the context p goes to `weights` as a sum of
// three bf16 numbers, exactly, and Σ p to context_share [R, H] f32; of twin rows p takes the place of the scores. Where heads have sinks, what
// these would leave of Σ p goes to shares [R, H] f32.
// Grid: (R, H), 128 threads. Sums are over a thread's tokens in order, then lanes, then warps; they depend on the row's tokens alone.
//
// Reference: `twin_attend` of backend/reference, with `twin_mean`. Bytes bind.
#include "key_score.cuh"

constexpr int THREADS = 128, TOGETHER = 4;

// Eight dimensions of a head.
template <class T>
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

// Grid: key heads, then blocks of tokens, then rows. Each of the `lanes` that share four tokens has eight dimensions of their keys. All of a
// thread's loads are under way before the first is used.
template <class T>
__device__ __forceinline__ void key_score(const TwinAttendArgs& args) {
    float* q = reinterpret_cast<float*>(shared_memory());
    const int kv_heads = args.heads / args.group, kv = blockIdx.x % kv_heads;
    const TwinRow row = args.rows[blockIdx.x / kv_heads / args.score_blocks];
    const int lane_bits = args.lane_bits, lanes = 1 << lane_bits, first = blockIdx.x / kv_heads % args.score_blocks * args.score_tokens;
    if (first >= row.tokens) return;
    const int token = first + (threadIdx.x >> lane_bits) * TOGETHER, lane = threadIdx.x & (lanes - 1), col = kv * args.head_dim + lane * 8;
    const int dims = min(max(args.head_dim - lane * 8, 0), 8);
    const T *keys = static_cast<const T*>(args.keys), *difference = static_cast<const T*>(args.difference);
    int at[TOGETHER];
    Dims<T> loaded[TOGETHER], added[TOGETHER];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) at[i] = token + i < row.context_length ? args.path_rows[row.path + token + i] : -1;
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
        loaded[i].load(keys + int64_t(max(at[i], 0)) * args.key_pitch + col, at[i] < 0 ? 0 : dims);
        added[i].load(difference + int64_t(max(at[i], 0)) * args.difference_pitch + col, at[i] < 0 || !difference ? 0 : dims);
    }
    // Of every head first the first four dimensions of all lanes, then the others: no two lanes read the same bank.
    for (int i = threadIdx.x; i < args.group << (lane_bits + 3); i += THREADS) {
        const int head = i >> (lane_bits + 3), dim = (i >> 2 & (lanes - 1)) * 8 + (i >> (lane_bits + 2) & 1) * 4 + i % 4;
        q[i] = dim < args.head_dim ? queries_of(args, row, kv)[head * args.head_dim + dim] : 0.0f;
    }
    __syncthreads();
    float key[TOGETHER][8] = {};
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
        loaded[i].add_to(key[i]);
        added[i].add_to(key[i]);
        const int own = token + i - row.context_length;
        if (own < 0 || token + i >= row.tokens) continue;
        Dims<float> of_twin;
        of_twin.load(args.twin_keys + (row.twin_start + own) * args.twin_key_pitch + col, dims);
        of_twin.add_to(key[i]);
    }
    const Scores scores(args, row, kv);
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
        if ((lane & (lanes / 4 - 1)) == 0 && of < row.tokens) scores.store(head, of, mine);
    }
}

KERNEL(key_score_f32, TwinAttendArgs, THREADS, 1, key_score<float>)
KERNEL(key_score_any_bf16, TwinAttendArgs, THREADS, 1, key_score<bf16>)

// Grid: (rows, heads).
__device__ void twin_softmax(const TwinAttendArgs& args) {
    float* scratch = reinterpret_cast<float*>(shared_memory());
    const TwinRow row = args.rows[blockIdx.x];
    const int head = blockIdx.y;
    const int64_t pitch = score_pitch(row);
    float* scores = args.scores + row.scores_start * args.heads + head * pitch;
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
    for (int token = threadIdx.x * 2; token < pitch; token += THREADS * 2) {
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
        bf16* piece = args.weights + piece_of(args, row, token, head) * PIECE + token % PIECE_TOKENS;
        for (int number = 0; number < 3; number++) *reinterpret_cast<uint32_t*>(piece + in_piece(head, number)) = take_bf16(rest);
    }
    share = block_sum<THREADS>(share, scratch);
    if (threadIdx.x == 0) {
        args.context_share[int64_t(blockIdx.x) * args.heads + head] = share;
        if (args.sinks) args.shares[row.mean_row * args.share_pitch + head] = sum / (sum + expf(args.sinks[head] - largest));
    }
}

KERNEL(twin_softmax, TwinAttendArgs, THREADS, 1, twin_softmax)
