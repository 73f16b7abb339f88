// Work of blocks that stay, for kernels of twin rows' attention (twin_attend.cuh). It is in order of what rows see, most first; blocks take it to and
// fro, so that they end together.
#pragma once
#include "twin_attend.cuh"

// What a block, or a cluster of them, takes: some of `parts` parts of every row, one after the other.
struct TwinWork {
    const TwinAttendArgs& args;
    const int block, blocks, parts;
    int turn = 0;
    // The row's number among args.rows, and which of its parts this is.
    int index, part;
    // The row after it is read early.
    TwinRow row, ahead;

    __device__ __forceinline__ TwinWork(const TwinAttendArgs& args, int cluster, int parts)
        : args(args), block(blockIdx.x / cluster), blocks(gridDim.x / cluster), parts(parts), index(block / parts), part(block % parts),
          row(row_of(index)), ahead(row_of(at(1) / parts)) {}
    __device__ __forceinline__ int at(int turn) const { return turn * blocks + (turn % 2 ? blocks - 1 - block : block); }
    __device__ __forceinline__ TwinRow row_of(int index) const { return args.rows[min(index, args.row_count - 1)]; }
    __device__ __forceinline__ bool left() const { return index < args.row_count; }
    __device__ __forceinline__ void next() {
        turn++;
        index = at(turn) / parts;
        part = at(turn) % parts;
        row = ahead;
        ahead = row_of(at(turn + 1) / parts);
    }
};
