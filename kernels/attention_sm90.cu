// Attention of context rows for Hopper, as attention.cu has it, for heads of the dimensions below and scales above 0.
//   out[i, h] = Σ p[j] · v[j], p = softmax of cap(scale · q[i, h] · k[j]), cap(s) = softcap · tanh(s / softcap) where there is a cap; a head's
//   sink is one more score of the softmax, without a value
// j: the tokens of the sequence's path up to i, within a window if there is one; k and v: of the key head of h.
// q, out: [C, H·Dh] bf16, in one place; k, v: [rows, K·Dh] bf16.
//
// Grid: (blocks), 384 threads. A block takes 128 rows of queries: 64 of two heads that share a key head, or 128 of one head. Two warpgroups
// have 64 rows each and go through the same keys and values in steps of KEYS, which begin at the sequence's first token. A third brings
// them (TMA), two steps in flight. A warpgroup multiplies the next step's keys while it makes weights of the scores before, and the two
// take turns in asking for products, so that the tensor cores have work of one while the other makes weights. Weights go into products from
// registers, values as they lie. Blocks stay and take one piece of work after the other, longest first.
// Keys and values come in boxes of 64 rows where the path's rows follow each other, else row by row. Of a step that ends within a box, the
// values' other rows become zeros: what lies there may be anything.
// Online softmax in f32, products in bf16, weights too, with f32 sums (wgmma), over steps in order: what a query gets depends on its own
// sequence only (tests/common/bits.rs).
// Reference: `attention` of backend/reference.
// Operations bind. Figures: docs/kernel-notes.md, *Attention of context rows*.
#include "args.cuh"
#include "path_rows.cuh"

struct HopperAttentionArgs {
    // Boxes of 64 columns: of queries 64 rows, of keys and of values 64 rows, or one.
    TensorMap q, k[2], v[2];
    bf16* out;
    const AttentionTile* tiles;
    const int32_t* path_rows;
    const float* sinks;
    int64_t pitch;
    // Heads of a block: 2 with tiles of 64 queries, or 1 with tiles of 128. A tile has `head_blocks` blocks.
    int32_t heads, head_blocks, tile_count, group;
    // As AttentionArgs.
    int32_t window;
    float scale, softcap;
    int32_t unused[15];
};

constexpr int CONSUMERS = 2, QUERIES = 64, THREADS = 128 * (1 + CONSUMERS), STAGES = 2;

// Tiles of 64 columns beside each other.
template <int DH>
struct AttentionShared {
    static constexpr int KEYS = DH > 128 ? 64 : 128, BOXES = (DH + BOX - 1) / BOX;
    using Step = bf16[BOXES][KEYS * BOX];
    bf16 q[CONSUMERS][BOXES][QUERIES * BOX];
    Step k[STAGES], v[STAGES];
    Barrier q_full[CONSUMERS], q_empty[CONSUMERS], k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES], landed;
};

// Steps of keys.
struct Steps {
    int first, end;
};

// Those that `queries` queries from `first_query` on see.
template <int KEYS>
__device__ __forceinline__ Steps steps_seen(const HopperAttentionArgs& args, int first_query, int queries) {
    const int unseen = args.window ? max(first_query + 1 - args.window, 0) : 0;
    return {unseen / KEYS, (first_query + queries + KEYS - 1) / KEYS};
}

// The pieces of work of a block, one after the other.
struct Work {
    const HopperAttentionArgs& args;
    int at, count = 0;
    // The one after it is read early.
    AttentionTile tile, ahead;

    __device__ __forceinline__ explicit Work(const HopperAttentionArgs& args)
        : args(args), at(blockIdx.x), tile(tile_of(at)), ahead(tile_of(at + gridDim.x)) {}
    __device__ __forceinline__ bool left() const { return at < args.tile_count * args.head_blocks; }
    __device__ __forceinline__ void next() {
        at += gridDim.x;
        count++;
        tile = ahead;
        ahead = tile_of(at + gridDim.x);
    }
    __device__ __forceinline__ AttentionTile tile_of(int at) const { return args.tiles[min(at / args.head_blocks, args.tile_count - 1)]; }
    // The first of its heads.
    __device__ __forceinline__ int head() const { return at % args.head_blocks * args.heads; }
    // Of the tile's queries and of the heads, those of a consumer.
    __device__ __forceinline__ int part_of(int consumer) const { return args.heads == 1 ? consumer : 0; }
    __device__ __forceinline__ int head_of(int consumer) const { return head() + consumer - part_of(consumer); }
};

// One warp brings everything.
template <int DH>
__device__ __forceinline__ void bring_work(const HopperAttentionArgs& args, AttentionShared<DH>& shared) {
    using Shared = AttentionShared<DH>;
    constexpr int KEYS = Shared::KEYS, BOXES = Shared::BOXES;
    const int lane = threadIdx.x;
    int count = 0, landings = 0;
    for (Work work(args); work.left(); work.next()) {
        const AttentionTile& tile = work.tile;
        const Steps steps = steps_seen<KEYS>(args, tile.first_query, tile.queries);
        const int kv = work.head() / args.group * DH;
        for (int step = steps.first; step < steps.end; step++, count++) {
            const int slot = count % STAGES, parity = count / STAGES % 2 ^ 1;
            PathRows<KEYS> rows(args.path_rows + tile.path, step * KEYS, tile.first_query + tile.queries);
            rows.settle();
            auto bring = [&](typename Shared::Step& to, const TensorMap(&from)[2], Barrier* barrier) {
                if (lane == 0) barrier_expect(barrier, rows.template bytes<BOXES>());
                rows.bring(to, from, barrier, kv);
            };
            warp_wait(shared.k_empty[slot], parity);
            bring(shared.k[slot], args.k, &shared.k_full[slot]);
            if (step == steps.first)
                for (int consumer = 0; consumer < CONSUMERS; consumer++) {
                    warp_wait(shared.q_empty[consumer], work.count % 2 ^ 1);
                    if (lane) continue;
                    barrier_expect(&shared.q_full[consumer], BOXES * BOX_BYTES);
                    for (int box = 0; box < BOXES; box++)
                        tensor_load(shared.q[consumer][box], args.q, &shared.q_full[consumer],
                                    work.head_of(consumer) * DH + box * BOX, tile.row + work.part_of(consumer) * QUERIES);
                }
            warp_wait(shared.v_empty[slot], parity);
            const bool whole_boxes = rows.count % BOX == 0;
            bring(shared.v[slot], args.v, whole_boxes ? &shared.v_full[slot] : &shared.landed);
            if (whole_boxes) continue;
            warp_wait(shared.landed, landings++ % 2);
            for (int box = 0; box < BOXES; box++) clear_rows(shared.v[slot][box], rows.count, (rows.count + BOX - 1) / BOX * BOX, lane, 32);
            async_fence();
            __syncwarp();
            if (lane == 0) barrier_arrive(&shared.v_full[slot]);
        }
    }
}

// Of a thread's scores, score i belongs to row i % 4 / 2 · 8 of the two and to key i / 4 · 8 + i % 2 of those that the lane has.

// softcap · tanh(scale / softcap · s), so written that nothing overflows.
template <int N>
__device__ __forceinline__ void cap(float (&scores)[N], float scale, float softcap) {
    const float inner = 2.0f * LOG2E * scale / softcap;
#pragma unroll
    for (float& s : scores) s = softcap - 2.0f * softcap * fast_reciprocal(fast_exp2(s * inner) + 1.0f);
}

// What a query does not see counts as −∞; `query` is the first row's, counted from the step's first key on.
template <int N>
__device__ __forceinline__ void hide_unseen(float (&scores)[N], int query, int window) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int last_seen = query + half * 8 - threadIdx.x % 4 * 2, first_seen = window ? last_seen + 1 - window : 0;
#pragma unroll
        for (int i = half * 2; i < N; i += i % 2 ? 3 : 1) {
            const int key = i / 4 * 8 + i % 2;
            scores[i] = (key < first_seen) | (key > last_seen) ? -INFINITY : scores[i];
        }
    }
}

// Of a thread's two rows: the largest score, and the sum of the weights that this thread has.
struct Weighted {
    float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};

    // Scores become weights: 2 to the power of `factor` times what they are below the largest. Gives what earlier sums are to be multiplied
    // with.
    template <int N>
    __device__ __forceinline__ float2 weigh(float (&scores)[N], float factor) {
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = largest[half];
#pragma unroll
            for (int i = half * 2; i < N; i += 4) most = fmaxf(most, fmaxf(scores[i], scores[i + 1]));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
            // A row that sees nothing yet stays at zero.
            const float base = most == -INFINITY ? 0.0f : most * factor;
            // Exactly 1 where nothing new is the largest: a row's bits do not depend on steps that it sees nothing of.
            shrink[half] = most == largest[half] ? 1.0f : fast_exp2(fmaf(largest[half], factor, -base));
            largest[half] = most;
            float added = 0.0f;
#pragma unroll
            for (int i = half * 2; i < N; i += 4) {
                scores[i] = fast_exp2(fmaf(scores[i], factor, -base));
                scores[i + 1] = fast_exp2(fmaf(scores[i + 1], factor, -base));
                added += scores[i] + scores[i + 1];
            }
            sum[half] = sum[half] * shrink[half] + added;
        }
        return {shrink[0], shrink[1]};
    }
};

// Lane i of four neighbours has the i-th pairs of four groups, and then all four pairs of the i-th group.
__device__ __forceinline__ void exchange(uint32_t (&pairs)[4]) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        const bool upper = threadIdx.x & bit;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & bit) continue;
            const uint32_t got = __shfl_xor_sync(~0u, upper ? pairs[i] : pairs[i + bit], bit);
            (upper ? pairs[i] : pairs[i + bit]) = got;
        }
    }
}

// Writes a thread's part of its two rows, if there are so many below and with the first one. It has pairs of neighbours, and stores one of
// four groups of 8 columns whole. `sink` is the head's, or null.
template <int DH, int N>
__device__ __forceinline__ void write_rows(bf16* to, int64_t pitch, int there, const float (&out)[N], const Weighted& weighted, float factor,
                                           const float* sink) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = weighted.sum[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (sink) sum += fast_exp2(fmaf(*sink, LOG2E, -weighted.largest[half] * factor));
        const float share = 1.0f / sum;
#pragma unroll
        for (int col = 0; col < DH; col += 32) {
            uint32_t pairs[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = (col / 8 + i) * 4 + half * 2;
                pairs[i] = pack_bf16(out[at] * share, out[at + 1] * share);
            }
            exchange(pairs);
            const int own_col = col + threadIdx.x % 4 * 8;
            if (half * 8 < there && own_col < DH)
                *reinterpret_cast<uint4*>(to + half * 8 * pitch + own_col) = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
        }
    }
}

template <int DH>
__device__ __forceinline__ void attend(const HopperAttentionArgs& args, AttentionShared<DH>& shared) {
    using Shared = AttentionShared<DH>;
    constexpr int KEYS = Shared::KEYS, BOXES = Shared::BOXES, TILE_BYTES = KEYS * BOX * int(sizeof(bf16));
    // Told by one lane to all, so that the compiler knows that warps do not part where it decides.
    const int consumer = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1;
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const bool capped = args.softcap != 0.0f;
    const float factor = capped ? LOG2E : args.scale * LOG2E;

    auto release = [&](Barrier* barrier) {
        if (thread == 0) barrier_arrive(barrier);
    };
    // A consumer asks for the products of a step when the other has asked for its own.
    auto take_turn = [&] { named_barrier(1 + consumer, 128 * CONSUMERS); };
    auto give_turn = [&] { named_arrive(2 - consumer, 128 * CONSUMERS); };
    if (consumer == 1) give_turn();

    int count = 0;
    // Steps that only the other consumer needs.
    auto pass = [&](int steps) {
#pragma unroll 1
        for (; steps > 0; steps--, count++) {
            const int slot = count % STAGES, parity = count / STAGES % 2;
            take_turn();
            give_turn();
            barrier_wait(&shared.k_full[slot], parity);
            barrier_wait(&shared.v_full[slot], parity);
            // All threads have seen that the phases are over, as when they multiply.
            named_barrier(1 + CONSUMERS + consumer, 128);
            release(&shared.k_empty[slot]);
            release(&shared.v_empty[slot]);
        }
    };
    for (Work work(args); work.left(); work.next()) {
        const AttentionTile& tile = work.tile;
        const int skipped = work.part_of(consumer) * QUERIES;
        const int first_query = tile.first_query + skipped, queries = min(QUERIES, tile.queries - skipped);
        const Steps all = steps_seen<KEYS>(args, tile.first_query, tile.queries);
        const Steps own = queries > 0 ? steps_seen<KEYS>(args, first_query, queries) : Steps{all.first, all.first};
        const int row = warp * 16 + lane / 4;

        barrier_wait(&shared.q_full[consumer], work.count % 2);
        pass(own.first - all.first);
        if (own.first < own.end) {
            float scores[KEYS / 2], out[BOXES * BOX / 2];
            uint32_t weights[KEYS / 16][4];
            Weighted weighted;
            // Asks for the scores of a step.
            auto score = [&](int slot) {
                products_start();
#pragma unroll
                for (int i = 0; i < DH; i += 16)
                    wgmma(scores, tile_descriptor(shared.q[consumer][i / BOX], i % BOX), tile_descriptor(shared.k[slot][i / BOX], i % BOX),
                          i > 0);
                products_commit();
            };
            // Asks for the weighted sum of values of 64 keys.
            auto add_box = [&](int slot, int first) {
#pragma unroll
                for (int key = first; key < first + BOX; key += 16)
                    wgmma(out, weights[key / 16], transposed_descriptor(shared.v[slot], key, TILE_BYTES));
            };
            // Scores of a step become weights.
            auto weigh = [&](int step) {
                if (capped) cap(scores, args.scale, args.softcap);
                const int first_key = step * KEYS;
                if (first_key + KEYS - 1 > first_query || (args.window && first_key + args.window < first_query + QUERIES))
                    hide_unseen(scores, first_query + row - first_key, args.window);
                return weighted.weigh(scores, factor);
            };
            auto keep_weights = [&] {
#pragma unroll
                for (int i = 0; i < KEYS / 2; i += 2) weights[i / 8][i % 8 / 2] = pack_bf16(scores[i], scores[i + 1]);
            };

            take_turn();
            barrier_wait(&shared.k_full[count % STAGES], count / STAGES % 2);
            score(count % STAGES);
            give_turn();
#pragma unroll
            for (float& sum : out) sum = 0.0f;
            products_wait<0>();
            release(&shared.k_empty[count % STAGES]);
            weigh(own.first);
            keep_weights();
#pragma unroll 1
            for (int step = own.first + 1; step < own.end; step++) {
                const int before = count % STAGES, parity_before = count / STAGES % 2;
                count++;
                const int slot = count % STAGES, parity = count / STAGES % 2;
                take_turn();
                barrier_wait(&shared.k_full[slot], parity);
                score(slot);
                barrier_wait(&shared.v_full[before], parity_before);
                products_start();
#pragma unroll
                for (int key = 0; key < KEYS; key += BOX) add_box(before, key);
                products_commit();
                give_turn();
                products_wait<1>();
                release(&shared.k_empty[slot]);
                const float2 shrink = weigh(step);
                compute_now(fminf(weighted.sum[0], weighted.sum[1]));
                products_wait<0>();
                release(&shared.v_empty[before]);
#pragma unroll
                for (int i = 0; i < BOXES * BOX / 2; i++) out[i] *= i % 4 < 2 ? shrink.x : shrink.y;
                keep_weights();
            }
            release(&shared.q_empty[consumer]);
            const int last = count % STAGES;
            barrier_wait(&shared.v_full[last], count / STAGES % 2);
            products_start();
            add_box(last, 0);
            products_commit();
            // Boxes beyond the last key were not brought.
            if (KEYS > BOX && first_query + queries - (own.end - 1) * KEYS > BOX) {
                products_start();
                add_box(last, KEYS - BOX);
                products_commit();
            }
            products_wait<0>();
            release(&shared.v_empty[last]);
            count++;

            const int head = work.head_of(consumer);
            bf16* to = args.out + (tile.row + skipped + row) * args.pitch + head * DH;
            write_rows<DH>(to, args.pitch, queries - row, out, weighted, factor, args.sinks ? args.sinks + head : nullptr);
        }
        pass(all.end - own.end);
        if (own.first == own.end) release(&shared.q_empty[consumer]);
    }
}

template <int DH>
__device__ __forceinline__ void attention(const HopperAttentionArgs& args) {
    AttentionShared<DH>& shared = *reinterpret_cast<AttentionShared<DH>*>(shared_memory());
    if (threadIdx.x == 0) {
        for (int consumer = 0; consumer < CONSUMERS; consumer++) {
            barrier_init(&shared.q_full[consumer], 1);
            barrier_init(&shared.q_empty[consumer], 1);
        }
        for (int slot = 0; slot < STAGES; slot++) {
            barrier_init(&shared.k_full[slot], 1);
            barrier_init(&shared.v_full[slot], 1);
            barrier_init(&shared.k_empty[slot], CONSUMERS);
            barrier_init(&shared.v_empty[slot], CONSUMERS);
        }
        barrier_init(&shared.landed, 1);
        barriers_ready();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        registers_down<56>();
        if (threadIdx.x < 32) bring_work<DH>(args, shared);
    } else {
        registers_up<224>();
        attend<DH>(args, shared);
    }
}

KERNEL(attention_sm90_64, HopperAttentionArgs, THREADS, 1, attention<64>)
KERNEL(attention_sm90_80, HopperAttentionArgs, THREADS, 1, attention<80>)
KERNEL(attention_sm90_96, HopperAttentionArgs, THREADS, 1, attention<96>)
KERNEL(attention_sm90_128, HopperAttentionArgs, THREADS, 1, attention<128>)
KERNEL(attention_sm90_256, HopperAttentionArgs, THREADS, 1, attention<256>)
