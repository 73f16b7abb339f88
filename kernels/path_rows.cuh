// Rows of a sequence's path, brought to shared memory by one warp (TMA): in boxes of 64 rows where they follow each other in their matrix, else row
// by row.
#pragma once
#include "hopper.cuh"

// Rows and columns of a box.
constexpr int BOX = 64, BOX_BYTES = BOX * BOX * int(sizeof(bf16));

// All lanes of a warp wait for a phase, as those that ask for copies have to: none goes on before all have seen that it is over, since what it does
// may end the next one.
__device__ __forceinline__ void warp_wait(Barrier& barrier, int parity) {
    barrier_wait(&barrier, parity);
    __syncwarp();
}

// Makes rows `first` and up of a tile zeros, before `end`; `threads` threads take part, this one as number `thread`. What products then read of it
// they see after async_fence() and a barrier.
__device__ __forceinline__ void clear_rows(bf16* tile, int first, int end, int thread, int threads) {
    // Of a row, 16 bytes each.
    constexpr int PARTS = BOX * int(sizeof(bf16)) / 16;
    uint4* part = reinterpret_cast<uint4*>(tile);
    for (int at = first * PARTS + thread; at < end * PARTS; at += threads) part[at] = uint4{0, 0, 0, 0};
}

// ROWS rows of a path, a multiple of 64, or those of them that are before its end: those of each lane, as a warp looks them up. They are on
// their way until settle().
template <int ROWS>
struct PathRows {
    int32_t rows[ROWS / 32];
    int count, first;
    bool follow_each_other;

    __device__ __forceinline__ PathRows(const int32_t* path, int start, int end) : count(min(ROWS, end - start)) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < ROWS / 32; j++) rows[j] = j * 32 + lane < count ? path[start + j * 32 + lane] : -1;
    }
    __device__ __forceinline__ void settle() {
        first = __shfl_sync(~0u, rows[0], 0);
        bool follow = true;
#pragma unroll
        for (int j = 0; j < ROWS / 32; j++) follow &= rows[j] < 0 || rows[j] == first + j * 32 + int(threadIdx.x) % 32;
        follow_each_other = __all_sync(~0u, follow);
    }

    // What is brought of BOXES times 64 columns. Where rows come in boxes, those after the last are what follows in the matrix.
    template <int BOXES>
    __device__ __forceinline__ int bytes() const {
        return BOXES * (follow_each_other ? (count + BOX - 1) / BOX * BOX_BYTES : count * BOX * int(sizeof(bf16)));
    }

    // Brings them, from column `col` on, to tiles of 64 columns. `from` sees the matrix in boxes of 64 rows, and of one.
    template <int BOXES>
    __device__ __forceinline__ void bring(bf16 (&to)[BOXES][ROWS * BOX], const TensorMap (&from)[2], Barrier* barrier, int col) const {
        const int lane = threadIdx.x % 32;
        if (follow_each_other) {
            if (lane) return;
            for (int row = 0; row < count; row += BOX)
                for (int box = 0; box < BOXES; box++) tensor_load(to[box] + row * BOX, from[0], barrier, col + box * BOX, first + row);
            return;
        }
#pragma unroll
        for (int j = 0; j < ROWS / 32; j++)
            for (int box = 0; box < BOXES; box++)
                if (rows[j] >= 0) tensor_load(to[box] + (j * 32 + lane) * BOX, from[1], barrier, col + box * BOX, rows[j]);
    }
};
