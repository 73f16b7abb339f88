// Ragged causal attention of context rows, in place: the queries of a tile become its outputs.
//   q[i, h] = Σ p[j] · v[j], p = softmax of cap(scale · q[i, h] · k[j]), cap(s) = softcap · tanh(s / softcap) where there is a cap; a head's
//   sink is one more score of the softmax, without a value
// j: the tokens of the sequence's path up to i, within a window if there is one; k and v: of the key head of h.
// q: [C, H·Dh], k, v: [rows, K·Dh]: bf16, in attention_f32 (below) f32.
//
// Grid: (tiles; H), 128 threads; the host orders tiles longest first. A block takes 64 queries of one head of one sequence, a warp 16 of
// them, over keys in steps of 64 (32 for heads of more than 128 dimensions), two steps in flight. Heads are padded to DH dimensions with
// zeros.
// Online softmax in f32, products in bf16, p too, with f32 sums (mma.sync). Steps begin at multiples of their length and are taken in
// order: what a query gets depends on its own sequence only (tests/common/bits.rs).
// Reference: `attention` of backend/reference.
// Operations bind: 4 · H · Dh a pair of tokens that see each other. Figures: docs/kernel-notes.md, *Attention of context rows*.
#include "args.cuh"

constexpr int THREADS = 128, QUERIES = 64;

struct AttentionArgs {
    void* q;
    const void* k;
    const void* v;
    const AttentionTile* tiles;
    const int32_t* path_rows;
    // Of each head a score beside those of the tokens, f32; null: none.
    const float* sinks;
    int64_t q_pitch, kv_pitch;
    // Query heads that share a key-value head.
    int32_t group, head_dim;
    // Tokens that a token sees up to itself; 0: all.
    int32_t window;
    float scale;
    // 0: none.
    float softcap;
    int32_t unused;
};

template <int DH>
struct AttentionShared {
    static constexpr int KEYS = DH > 128 ? 32 : 64;
    // Rows 16 bytes longer than a multiple of 32: ldmatrix reads eight of them from different banks.
    static constexpr int PITCH = DH + 8;
    bf16 q[QUERIES * PITCH];
    bf16 k[2][KEYS * PITCH], v[2][KEYS * PITCH];
};

// Copies a head of ROWS rows of TILES matrices alike, `row_of(i)` being the i-th of them, into a tile each; zeros from the `count`-th on and for
// padding.
template <int DH, int ROWS, int TILES, class RowOf>
__device__ __forceinline__ void load_tiles(bf16* const (&tiles)[TILES], const bf16* const (&from)[TILES], int64_t pitch, int count, int head_dim,
                                           RowOf row_of) {
    constexpr int PITCH = AttentionShared<DH>::PITCH, TURNS = ROWS * DH / 8 / THREADS;
    // Heads that do not start on 16 bytes are copied by hand, and only few models have such.
    if (head_dim % 8 == 0) {
        // Where all chunks come from is looked up before the first is asked for.
        int64_t at[TURNS];
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const int chunk = threadIdx.x + turn * THREADS, r = chunk / (DH / 8), i = chunk % (DH / 8) * 8;
            at[turn] = r < count && i < head_dim ? row_of(r) * pitch + i : -1;
        }
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const int chunk = threadIdx.x + turn * THREADS, r = chunk / (DH / 8), i = chunk % (DH / 8) * 8;
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
                copy_async_16(&tiles[tile][r * PITCH + i], from[tile] + max(at[turn], int64_t(0)), at[turn] < 0 ? 0 : 16);
        }
    } else {
        for (int at = threadIdx.x; at < ROWS * DH; at += THREADS) {
            const int r = at / DH, i = at % DH;
            for (int tile = 0; tile < TILES; tile++)
                tiles[tile][r * PITCH + i] = r < count && i < head_dim ? from[tile][row_of(r) * pitch + i] : bf16{0};
        }
    }
}

template <int DH>
__device__ void attention(const AttentionArgs& args) {
    using Shared = AttentionShared<DH>;
    constexpr int KEYS = Shared::KEYS, PITCH = Shared::PITCH;
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    const AttentionTile tile = args.tiles[blockIdx.x];
    const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bf16* q = static_cast<bf16*>(args.q) + tile.row * args.q_pitch + int64_t(head) * args.head_dim;
    const int64_t kv = int64_t(head / args.group) * args.head_dim;
    const bf16 *k_head = static_cast<const bf16*>(args.k) + kv, *v_head = static_cast<const bf16*>(args.v) + kv;
    const int32_t* path = args.path_rows + tile.path;

    const int end = tile.first_query + tile.queries;
    const int unseen = args.window ? max(tile.first_query + 1 - args.window, 0) : 0;
    const int first_step = unseen / KEYS, steps = (end + KEYS - 1) / KEYS;
    auto load_keys = [&](int step) {
        auto row_of = [&](int i) -> int64_t { return path[step * KEYS + i]; };
        load_tiles<DH, KEYS, 2>({shared.k[step % 2], shared.v[step % 2]}, {k_head, v_head}, args.kv_pitch, end - step * KEYS, args.head_dim, row_of);
    };
    load_tiles<DH, QUERIES, 1>({shared.q}, {q}, args.q_pitch, tile.queries, args.head_dim, [](int i) -> int64_t { return i; });
    load_keys(first_step);
    copies_commit();

    // Scores times `factor` are exponents of 2; those that are capped, or scaled by nothing above 0, are made anew before.
    const bool plain = args.softcap == 0.0f && args.scale > 0.0f;
    const float factor = plain ? args.scale * LOG2E : LOG2E;
    const int first_row = tile.first_query + warp * 16;
    // Of this thread's two rows, 8 apart.
    const int row = first_row + lane / 4;
    float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    float out[DH / 8][4] = {};
    for (int step = first_step; step < steps; step++) {
        if (step + 1 < steps) load_keys(step + 1);
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        const bf16 *k = shared.k[step % 2], *v = shared.v[step % 2];

        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int d = 0; d < DH; d += 16) {
            uint32_t fq[4];
            ldmatrix_x4(fq, &shared.q[(warp * 16 + lane % 16) * PITCH + d + lane / 16 * 8]);
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                uint32_t fk[4];
                ldmatrix_x4(fk, &k[(j * 16 + lane / 16 * 8 + lane % 8) * PITCH + d + lane / 8 % 2 * 8]);
                mma_m16n8k16(scores[2 * j], fq, {fk[0], fk[1]});
                mma_m16n8k16(scores[2 * j + 1], fq, {fk[2], fk[3]});
            }
        }
        if (!plain) {
#pragma unroll
            for (int at = 0; at < KEYS / 2; at++) {
                float& s = scores[at / 4][at % 4];
                s *= args.scale;
                if (args.softcap != 0.0f) s = args.softcap * tanhf(s / args.softcap);
            }
        }
        // What a row does not see counts as −∞.
        const int first_key = step * KEYS;
        if (first_key + KEYS - 1 > first_row || (args.window && first_key + args.window <= first_row + 15)) {
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int key = first_key + j * 8 + lane % 4 * 2 + i % 2, query = row + i / 2 * 8;
                    if (key > query || key >= end || (args.window && key + args.window <= query)) scores[j][i] = -INFINITY;
                }
        }
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = largest[half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) most = fmaxf(most, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
            // A row that sees nothing yet stays at zero.
            const float base = most == -INFINITY ? 0.0f : most * factor;
            shrink[half] = most == largest[half] ? 1.0f : fast_exp2(fmaf(largest[half], factor, -base));
            largest[half] = most;
            float added = 0.0f;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    scores[j][i] = fast_exp2(fmaf(scores[j][i], factor, -base));
                    added += scores[j][i];
                }
            sum[half] = sum[half] * shrink[half] + added;
        }
        // Most steps find no larger score.
        if (!__all_sync(~0u, shrink[0] == 1.0f && shrink[1] == 1.0f)) {
#pragma unroll
            for (int n = 0; n < DH / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) out[n][i] *= shrink[i / 2];
        }
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            const float *p = scores[2 * j], *p8 = scores[2 * j + 1];
            const uint32_t fp[4] = {pack_bf16(p[0], p[1]), pack_bf16(p[2], p[3]), pack_bf16(p8[0], p8[1]), pack_bf16(p8[2], p8[3])};
#pragma unroll
            for (int n = 0; n < DH / 16; n++) {
                uint32_t fv[4];
                ldmatrix_x4_trans(fv, &v[(j * 16 + lane % 16) * PITCH + n * 16 + lane / 16 * 8]);
                mma_m16n8k16(out[2 * n], fp, {fv[0], fv[1]});
                mma_m16n8k16(out[2 * n + 1], fp, {fv[2], fv[3]});
            }
        }
        __syncthreads();
    }
    copies_wait<0>();

#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
        sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
        const int query = row + half * 8;
        if (query >= end) continue;
        if (args.sinks) sum[half] += fast_exp2(fmaf(args.sinks[head], LOG2E, -largest[half] * factor));
        const float share = 1.0f / sum[half];
        bf16* to = q + (query - tile.first_query) * args.q_pitch;
#pragma unroll
        for (int n = 0; n < DH / 8; n++) {
            const int i = n * 8 + lane % 4 * 2;
            const float2 values = {out[n][half * 2] * share, out[n][half * 2 + 1] * share};
            if (i < args.head_dim) store_pair(to + i, values, i + 1 < args.head_dim);
        }
    }
}

KERNEL(attention_16, AttentionArgs, THREADS, 1, attention<16>)
KERNEL(attention_32, AttentionArgs, THREADS, 1, attention<32>)
KERNEL(attention_64, AttentionArgs, THREADS, 1, attention<64>)
KERNEL(attention_80, AttentionArgs, THREADS, 1, attention<80>)
KERNEL(attention_96, AttentionArgs, THREADS, 1, attention<96>)
KERNEL(attention_128, AttentionArgs, THREADS, 1, attention<128>)
KERNEL(attention_256, AttentionArgs, THREADS, 1, attention<256>)

// The same in f32 throughout, without tensor cores, for context rows in f32. A warp takes one query after the other, of 64; the
// keys and values of 32 tokens at a time lie in shared memory.
constexpr int F32_KEYS = 32, F32_WARPS = THREADS / 32, MOST_DIMS = 256;

__device__ void attention_f32(const AttentionArgs& args) {
    const AttentionTile tile = args.tiles[blockIdx.x];
    const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = args.head_dim;
    // Odd pitches: the lanes of a warp read from different banks.
    const int pitch = dim | 1;
    float* keys = reinterpret_cast<float*>(shared_memory());
    float *values = keys + F32_KEYS * pitch, *query = values + F32_KEYS * pitch + warp * pitch;
    float* q = static_cast<float*>(args.q) + (tile.row - tile.first_query) * args.q_pitch + int64_t(head) * dim;
    const int64_t kv = int64_t(head / args.group) * dim;
    const int32_t* path = args.path_rows + tile.path;
    const float *k = static_cast<const float*>(args.k) + kv, *v = static_cast<const float*>(args.v) + kv;

    const int end = tile.first_query + tile.queries;
    // All warps go through the same tiles of keys, whatever their queries see of them.
    for (int first = tile.first_query; first < end; first += F32_WARPS) {
        const int row = first + warp;
        const bool there = row < end;
        // All lanes have read the query before.
        __syncwarp();
        for (int i = lane; i < dim; i += 32) query[i] = there ? q[row * args.q_pitch + i] : 0.0f;
        const int last = min(first + F32_WARPS, end);
        const int unseen = args.window ? max(first + 1 - args.window, 0) : 0;
        float largest = -INFINITY, sum = 0.0f, out[MOST_DIMS / 32] = {};
        for (int start = unseen / F32_KEYS * F32_KEYS; start < last; start += F32_KEYS) {
            __syncthreads();
            for (int at = threadIdx.x; at < F32_KEYS * dim; at += THREADS) {
                const int token = start + at / dim, i = at % dim;
                const int64_t from = token < last ? path[token] * args.kv_pitch + i : 0;
                keys[at / dim * pitch + i] = token < last ? k[from] : 0.0f;
                values[at / dim * pitch + i] = token < last ? v[from] : 0.0f;
            }
            __syncthreads();
            const int token = start + lane;
            float score = 0.0f;
            for (int i = 0; i < dim; i++) score = fmaf(query[i], keys[lane * pitch + i], score);
            score *= args.scale;
            if (args.softcap != 0.0f) score = args.softcap * tanhf(score / args.softcap);
            if (token > row || (args.window && token + args.window <= row)) score = -INFINITY;
            const float most = fmaxf(largest, warp_max(score)), base = most == -INFINITY ? 0.0f : most;
            const float shrink = expf(largest - base), p = expf(score - base);
            largest = most;
            sum = sum * shrink + warp_sum(p);
#pragma unroll
            for (int n = 0; n < MOST_DIMS / 32; n++) out[n] *= shrink;
            for (int from = 0; from < F32_KEYS; from++) {
                const float share = __shfl_sync(~0u, p, from);
#pragma unroll
                for (int n = 0; n < MOST_DIMS / 32; n++)
                    if (n * 32 + lane < dim) out[n] = fmaf(share, values[from * pitch + n * 32 + lane], out[n]);
            }
        }
        if (!there) continue;
        if (args.sinks) sum += expf(args.sinks[head] - largest);
#pragma unroll
        for (int n = 0; n < MOST_DIMS / 32; n++)
            if (n * 32 + lane < dim) q[row * args.q_pitch + n * 32 + lane] = out[n] / sum;
    }
}

KERNEL(attention_f32, AttentionArgs, THREADS, 1, attention_f32)
