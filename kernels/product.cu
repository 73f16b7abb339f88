// Matrix products of context rows: out[m, n] = epilogue(a[m, k] · b[n, k]ᵀ), bf16 operands, f32 sums (mma.sync).
//
// store_bf16, store_f32: out = v + bias · add: out f32 += v + bias · gated: out bf16 = act(v + bias) · (up + bias)
// · activated: out bf16 = act(v + bias). Reference: `linear`, `linear_add`, `gated`, `activated` of backend/reference.
//
// A block makes a tile of 128 rows and 128 columns (gated: 64 columns of each weight), 8 warps of 64 × 32, over k in steps of 32,
// three of them in flight (cp.async), those of updates last. Grid: (columns, rows). The sum of an element is over k in order, whatever m is.
#include "args.cuh"

constexpr int TILE_M = 128, TILE_N = 128, STEP = 32, STAGES = 3;
// Rows of 80 bytes: ldmatrix reads eight of them from different banks.
constexpr int PITCH = STEP + 8;
constexpr int THREADS = 256;

struct Stage {
    bf16 a[TILE_M * PITCH], b[TILE_N * PITCH];
};

template <Epilogue E, class Out>
__device__ void product(const ProductArgs& args) {
    Stage* stages = reinterpret_cast<Stage*>(shared_memory());
    constexpr int COLS = E == GATED ? TILE_N / 2 : TILE_N;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int row0 = blockIdx.y * TILE_M, col0 = blockIdx.x * COLS;

    // Of every 32 rows of a gated tile's b, which one warp multiplies, 16 are the gate's and 16 the up's of the same columns.
    auto load = [&](int step) {
        Stage& stage = stages[step % STAGES];
        const Operands from = operands_of<STEP>(args, step);
        const bf16* a = static_cast<const bf16*>(from.a);
        for (int chunk = thread; chunk < TILE_M * STEP / 8; chunk += THREADS) {
            const int r = chunk / (STEP / 8), k = chunk % (STEP / 8) * 8;
            const int row = row0 + r, at = from.at + k;
            const int bytes = row < args.m ? min(max(from.k - at, 0), 8) * 2 : 0;
            copy_async_16(&stage.a[r * PITCH + k], a + (bytes ? row * from.a_pitch + at : 0), bytes);
        }
        for (int chunk = thread; chunk < TILE_N * STEP / 8; chunk += THREADS) {
            const int r = chunk / (STEP / 8), k = chunk % (STEP / 8) * 8;
            const bf16* b = E == GATED && r % 32 / 16 ? from.b1 : from.b0;
            const int col = col0 + (E == GATED ? r / 32 * 16 + r % 16 : r), at = from.at + k;
            const int bytes = b && col < args.n ? min(max(from.k - at, 0), 8) * 2 : 0;
            copy_async_16(&stage.b[r * PITCH + k], bytes ? b + col * from.b_pitch + at : a, bytes);
        }
    };

    const int steps = product_steps<STEP>(args);
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load(step);
        copies_commit();
    }
    const int warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
    float sums[4][4][4] = {};
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) load(step + STAGES - 1);
        copies_commit();
        const Stage& stage = stages[step % STAGES];
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            uint32_t fa[4][4], fb[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                ldmatrix_x4(fa[i], &stage.a[(warp_m + i * 16 + lane % 16) * PITCH + k + lane / 16 * 8]);
#pragma unroll
            for (int j = 0; j < 2; j++)
                ldmatrix_x4(fb[j], &stage.b[(warp_n + j * 16 + lane / 16 * 8 + lane % 8) * PITCH + k + lane / 8 % 2 * 8]);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const uint32_t b[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
                    mma_m16n8k16(sums[i][j], fa[i], b);
                }
        }
    }
    copies_wait<0>();

    Out* out = static_cast<Out*>(args.out);
    with_finish<E>(args, [&](auto finish) {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = row0 + warp_m + i * 16 + half * 8 + lane / 4;
                if (row >= args.m) continue;
#pragma unroll
                for (int j = 0; j < (E == GATED ? 2 : 4); j++) {
                    const int col = col0 + (E == GATED ? warp_n / 2 : warp_n) + j * 8 + lane % 4 * 2;
                    if (col >= args.n) continue;
                    const float* v = &sums[i][j][half * 2];
                    const float* up = &sums[i][E == GATED ? j + 2 : j][half * 2];
                    finish_pair<E>(finish, args, out + row * args.out_pitch, col, col, {v[0], v[1]}, {up[0], up[1]});
                }
            }
    });
}

KERNEL(product_store_bf16, ProductArgs, THREADS, 1, product<STORE, bf16>)
KERNEL(product_store_f32, ProductArgs, THREADS, 1, product<STORE, float>)
KERNEL(product_add, ProductArgs, THREADS, 1, product<ADD, float>)
KERNEL(product_gated, ProductArgs, THREADS, 1, product<GATED, bf16>)
KERNEL(product_activated, ProductArgs, THREADS, 1, product<ACTIVATED, bf16>)
