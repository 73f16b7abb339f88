// Scores of twin rows (twin_attend.cuh) where context rows are bf16, heads begin at multiples of 16 bytes, and q of a group has room in
// shared memory; the others are in twin_scores.cu, those for Hopper in key_score_sm90.cu.
//   scores[row, h, t] = cap(scale · q[row, h] · (k[t] + difference[t])), cap(s) = softcap · tanh(s / softcap) where there is a cap
// k and difference are of the key head of h; what the row's window leaves out has −∞. Only the pre-trained branch has a difference.
// q: [R, H·Dh] f32, taken as sums of three bf16 numbers; keys, difference: [C, K·Dh] bf16; keys of twin rows: [R, K·Dh] f32; scores: of
// each row [H, tokens] f32.
//
// Grid: (K · blocks of `score_tokens` tokens · R), 128 threads. A warp has 16 tokens of the context, as rows of mma.sync whose columns are
// the heads of a group. Its threads load keys as they lie, 16 bytes each: so dimensions are taken in another order, in which q is read too.
// Tokens that are twin rows take the path of key_score.cuh, in f32.
// Every 32 dimensions have an f32 sum of their own, the difference before the keys, the smallest parts of q first, as tensor cores cut off
// what a sum does not hold; these are added in order, so bits depend on Dh alone.
// Reference: `twin_attend` of backend/reference, with `twin_softmax` and `twin_mean`.
// Bytes bind. Figures: docs/kernel-notes.md, *Norms, rotation, scores and means of twin rows*.
#include "key_score.cuh"

constexpr int THREADS = 128, TILE = 16, TOKENS = THREADS / 32 * TILE;
// Of 32 dimensions, whose loads are under way together, and heads of a product.
constexpr int CHUNK = 32, CHUNKS = 4, HEADS = 8;

// The planes of q in shared memory: heads of a group, padded with zeros; two of them lie in different banks.
struct Queries {
    bf16* planes;
    int heads, pitch;

    __device__ __forceinline__ Queries(const TwinAttendArgs& args)
        : planes(reinterpret_cast<bf16*>(shared_memory())), heads((args.group + HEADS - 1) / HEADS * HEADS),
          pitch((args.head_dim + 2 * CHUNK - 1) / (2 * CHUNK) * (2 * CHUNK) + CHUNK) {}
    __device__ __forceinline__ void split(const TwinAttendArgs& args, const float* q) {
        const int pairs = pitch / 2;
        for (int i = threadIdx.x; i < heads * pairs; i += THREADS) {
            const int head = i / pairs, dim = i % pairs * 2;
            float2 rest = {};
            if (head < args.group && dim < args.head_dim) rest = *reinterpret_cast<const float2*>(q + head * args.head_dim + dim);
#pragma unroll
            for (int plane = 0; plane < 3; plane++)
                *reinterpret_cast<uint32_t*>(planes + (plane * heads + head) * pitch + dim) = take_bf16(rest);
        }
    }
    // The dimensions of a chunk that a thread multiplies, of its head.
    __device__ __forceinline__ uint4 operand(int plane, int first_head, int chunk) const {
        const int lane = threadIdx.x % 32;
        return *reinterpret_cast<const uint4*>(planes + (plane * heads + first_head + lane / 4) * pitch + chunk * CHUNK + lane % 4 * 8);
    }
};

// What a thread has of two tokens' keys: eight dimensions of each chunk.
struct Keys {
    uint4 rows[CHUNKS][2];

    __device__ __forceinline__ void load(const bf16* keys, int64_t pitch, const int (&at)[2], int first, int dims) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int dim = (first + chunk) * CHUNK + int(threadIdx.x) % 4 * 8;
                rows[chunk][i] = at[i] >= 0 && dim < dims ? *reinterpret_cast<const uint4*>(keys + at[i] * pitch + dim) : uint4{0, 0, 0, 0};
            }
    }
    // The smallest parts of q first.
    __device__ __forceinline__ void multiply(float (&sums)[4], const Queries& queries, int first_head, int first, int chunk) const {
        const uint4(&k)[2] = rows[chunk];
#pragma unroll
        for (int plane = 2; plane >= 0; plane--) {
            const uint4 q = queries.operand(plane, first_head, first + chunk);
            mma_m16n8k16(sums, {k[0].x, k[1].x, k[0].y, k[1].y}, {q.x, q.y});
            mma_m16n8k16(sums, {k[0].z, k[1].z, k[0].w, k[1].w}, {q.z, q.w});
        }
    }
};

__device__ __forceinline__ void key_score_bf16(const TwinAttendArgs& args) {
    const int kv_heads = args.heads / args.group, kv = blockIdx.x % kv_heads;
    const TwinRow row = args.rows[blockIdx.x / kv_heads / args.score_blocks];
    const int first = blockIdx.x / kv_heads % args.score_blocks * args.score_tokens, end = min(first + args.score_tokens, row.tokens);
    if (first >= end) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // The first of two tokens of a thread, eight apart, and where their keys and those of the tokens after them are; −1 where they are none of the
    // context.
    int token = first + warp * TILE + lane / 4, at[2], next[2];
    auto look_up = [&](int (&at)[2], int token) {
#pragma unroll
        for (int i = 0; i < 2; i++) at[i] = token + i * 8 < min(end, row.context_length) ? args.path_rows[row.path + token + i * 8] : -1;
    };
    const bf16* keys = static_cast<const bf16*>(args.keys) + kv * args.head_dim;
    const bf16* difference = args.difference ? static_cast<const bf16*>(args.difference) + kv * args.head_dim : nullptr;
    Keys own, added;
    auto load = [&](int chunk) {
        own.load(keys, args.key_pitch, at, chunk, args.head_dim);
        if (difference) added.load(difference, args.difference_pitch, at, chunk, args.head_dim);
    };
    look_up(at, token);
    look_up(next, token + TOKENS);
    load(0);
    Queries queries(args);
    queries.split(args, queries_of(args, row, kv));
    __syncthreads();
    const Scores scores(args, row, kv);
    const int chunks = (args.head_dim + CHUNK - 1) / CHUNK;
    for (; token - lane / 4 < end; token += TOKENS) {
        const bool there[2] = {at[0] >= 0, at[1] >= 0};
        for (int first_head = 0; first_head < args.group; first_head += HEADS) {
            float sums[4] = {};
            for (int chunk = 0; chunk < chunks; chunk += CHUNKS) {
                if (first_head || chunk) load(chunk);
#pragma unroll
                for (int i = 0; i < CHUNKS; i++) {
                    if (chunk + i >= chunks) break;
                    float of_chunk[4] = {};
                    if (difference) added.multiply(of_chunk, queries, first_head, chunk, i);
                    own.multiply(of_chunk, queries, first_head, chunk, i);
#pragma unroll
                    for (int j = 0; j < 4; j++) sums[j] += of_chunk[j];
                }
            }
            // The next tokens' keys are on their way while these scores are stored.
            if (first_head + HEADS >= args.group) {
                for (int i = 0; i < 2; i++) at[i] = next[i];
                look_up(next, token + 2 * TOKENS);
                load(0);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int head = first_head + lane % 4 * 2 + i % 2;
                if (head < args.group && there[i / 2]) scores.store(head, token + i / 2 * 8, sums[i]);
            }
        }
    }
    score_twin_rows<THREADS / 32>(args, row, kv, first, end);
}

KERNEL(key_score_bf16, TwinAttendArgs, THREADS, 4, key_score_bf16)
