// Matrix products of rows in f32: out[m, n] = epilogue(a[m, k] · b[n, k]ᵀ), a and out f32. Each element of `a` is taken as a sum of
// three bf16 numbers, exactly; so are weights, unless one holds them all (checkpoints in bf16); of the products those that
// matter in f32 are taken, summed in f32: in a step by mma.sync, which cuts bits off a sum that products are added to, the steps by additions
// that round. Both branches take the same path, so equal weights give equal bits.
//
// store, add, gated, activated: as in product.cu, out f32. `store` also projects heads (ProductArgs::group).
// Reference: `linear`, `linear_add`, `gated`, `activated`, `head_values` of backend/reference.
//
// A block makes a tile of 64 rows and 64 columns (gated: 32 of each weight), 4 warps of 32 × 32, over k in steps of 32, three in flight, those of updates last.
// Grid: (columns, rows, groups of heads). Few rows: the time is that of reading the weights.
#include "args.cuh"

constexpr int TILE_M = 64, TILE_N = 64, STEP = 32, STAGES = 3;
constexpr int A_PITCH = STEP + 4, B_PITCH = STEP + 8;
constexpr int THREADS = 128;

struct Stage {
    float a[TILE_M * A_PITCH];
    // The last two of weights that are more than bf16.
    bf16 b[3][TILE_N * B_PITCH];
};

template <Epilogue E>
__device__ void twin_product(const ProductArgs& args) {
    Stage* stages = reinterpret_cast<Stage*>(shared_memory());
    constexpr int COLS = E == GATED ? TILE_N / 2 : TILE_N;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int row0 = blockIdx.y * TILE_M, col0 = blockIdx.x * COLS, heads0 = blockIdx.z * args.group;

    auto has_low = [](const Operands& from) { return from.b0_low || from.b1_low; };
    auto load = [&](int step) {
        Stage& stage = stages[step % STAGES];
        const Operands from = operands_of<STEP>(args, step);
        const float* rows = static_cast<const float*>(from.a);
        auto row_of = [&](int row) { return rows + row / args.group * from.a_pitch + int64_t(heads0 + row % args.group) * from.a_head; };
        if (from.a_head % 4 == 0) {
            for (int chunk = thread; chunk < TILE_M * STEP / 4; chunk += THREADS) {
                const int r = chunk / (STEP / 4), k = chunk % (STEP / 4) * 4, at = from.at + k;
                const int bytes = row0 + r < args.m ? min(max(from.k - at, 0), 4) * 4 : 0;
                copy_async_16(&stage.a[r * A_PITCH + k], bytes ? row_of(row0 + r) + at : rows, bytes);
            }
        } else {
            for (int i = thread; i < TILE_M * STEP; i += THREADS) {
                const int r = i / STEP, k = i % STEP, at = from.at + k;
                const int bytes = row0 + r < args.m && at < from.k ? 4 : 0;
                copy_async_4(&stage.a[r * A_PITCH + k], bytes ? row_of(row0 + r) + at : rows, bytes);
            }
        }
        for (int chunk = thread; chunk < TILE_N * STEP / 8; chunk += THREADS) {
            const int r = chunk / (STEP / 8), k = chunk % (STEP / 8) * 8, at = from.at + k;
            const bool second = E == GATED && r % 32 / 16;
            const bf16 *b = second ? from.b1 : from.b0, *low = second ? from.b1_low : from.b0_low;
            const int col = col0 + (E == GATED ? r / 32 * 16 + r % 16 : r);
            const int bytes = b && col < args.n ? min(max(from.k - at, 0), 8) * 2 : 0;
            const int64_t in_b = bytes ? (int64_t(blockIdx.z) * args.n + col) * from.b_pitch + at : 0;
            copy_async_16(&stage.b[0][r * B_PITCH + k], bytes ? static_cast<const void*>(b + in_b) : rows, bytes);
            if (!has_low(from)) continue;
            for (int plane = 0; plane < 2; plane++)
                copy_async_16(&stage.b[plane + 1][r * B_PITCH + k],
                              low && bytes ? static_cast<const void*>(low + plane * from.b_low_plane + in_b) : rows, low ? bytes : 0);
        }
    };

    const int steps = product_steps<STEP>(args);
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load(step);
        copies_commit();
    }
    const int warp_m = warp / 2 * 32, warp_n = warp % 2 * 32;
    float sums[2][4][4] = {};
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) load(step + STAGES - 1);
        copies_commit();
        const Stage& stage = stages[step % STAGES];
        float in_step[2][4][4] = {};
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            uint32_t a[3][2][4], fb[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int part = 0; part < 4; part++) {
                    const int row = warp_m + i * 16 + part % 2 * 8 + lane / 4, col = k + part / 2 * 8 + lane % 4 * 2;
                    float2 rest = *reinterpret_cast<const float2*>(&stage.a[row * A_PITCH + col]);
                    for (int term = 0; term < 3; term++) a[term][i][part] = take_bf16(rest);
                }
            auto multiply = [&](const uint32_t (&fa)[2][4]) {
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const uint32_t b[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
                        mma_m16n8k16(in_step[i][j], fa[i], b);
                    }
            };
            auto load_b = [&](const bf16* tile) {
#pragma unroll
                for (int j = 0; j < 2; j++)
                    ldmatrix_x4(fb[j], &tile[(warp_n + j * 16 + lane / 16 * 8 + lane % 8) * B_PITCH + k + lane / 8 % 2 * 8]);
            };
            // The smallest first.
            if (has_low(operands_of<STEP>(args, step))) {
                load_b(stage.b[2]);
                multiply(a[0]);
                load_b(stage.b[1]);
                multiply(a[1]);
                multiply(a[0]);
            }
            load_b(stage.b[0]);
            multiply(a[2]);
            multiply(a[1]);
            multiply(a[0]);
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int v = 0; v < 4; v++) sums[i][j][v] += in_step[i][j][v];
    }
    copies_wait<0>();

    with_finish<E>(args, [&](auto finish) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = row0 + warp_m + i * 16 + half * 8 + lane / 4;
                if (row >= args.m) continue;
                float* out = static_cast<float*>(args.out) + row / args.group * args.out_pitch + (heads0 + row % args.group) * args.out_head;
#pragma unroll
                for (int j = 0; j < (E == GATED ? 2 : 4); j++) {
                    const int col = col0 + (E == GATED ? warp_n / 2 : warp_n) + j * 8 + lane % 4 * 2;
                    if (col >= args.n) continue;
                    const float* v = &sums[i][j][half * 2];
                    const float* up = &sums[i][E == GATED ? j + 2 : j][half * 2];
                    finish_pair<E>(finish, args, out, col, blockIdx.z * args.n + col, {v[0], v[1]}, {up[0], up[1]});
                }
            }
    });
}

KERNEL(twin_product_store, ProductArgs, THREADS, 1, twin_product<STORE>)
KERNEL(twin_product_add, ProductArgs, THREADS, 1, twin_product<ADD>)
KERNEL(twin_product_gated, ProductArgs, THREADS, 1, twin_product<GATED>)
KERNEL(twin_product_activated, ProductArgs, THREADS, 1, twin_product<ACTIVATED>)
