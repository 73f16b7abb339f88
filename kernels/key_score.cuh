// What kernels of scores (twin_attend.cuh) have in common: where scores go, and those of tokens that are twin rows.
#pragma once
#include "twin_attend.cuh"

// The scores of a row for the heads that share a key head.
struct Scores {
    const TwinAttendArgs& args;
    const int64_t pitch;
    float* const to;
    const int first_seen;

    __device__ __forceinline__ Scores(const TwinAttendArgs& args, const TwinRow& row, int kv)
        : args(args), pitch(score_pitch(row)), to(args.scores + row.scores_start * args.heads + kv * args.group * pitch),
          first_seen(first_seen_of(args, row)) {}
    __device__ __forceinline__ void store(int head, int token, float sum) const {
        float score = sum * args.scale;
        if (args.softcap != 0.0f) score = args.softcap * tanhf(score / args.softcap);
        to[head * pitch + token] = token < first_seen ? -INFINITY : score;
    }
};

// The queries of those heads.
__device__ __forceinline__ const float* queries_of(const TwinAttendArgs& args, const TwinRow& row, int kv) {
    return args.q + row.row * args.q_pitch + kv * args.group * args.head_dim;
}

// Scores of the tokens from `first` to `end` that are twin rows, whose keys are f32: by WARPS warps, each a head, each lane some dimensions.
template <int WARPS>
__device__ __forceinline__ void score_twin_rows(const TwinAttendArgs& args, const TwinRow& row, int kv, int first, int end) {
    const Scores scores(args, row, kv);
    const float* q = queries_of(args, row, kv);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int token = max(first, row.context_length); token < end; token++) {
        const float* key = args.twin_keys + (row.twin_start + token - row.context_length) * args.twin_key_pitch + kv * args.head_dim;
        for (int head = warp; head < args.group; head += WARPS) {
            float sum = 0.0f;
            for (int dim = lane; dim < args.head_dim; dim += 32) sum = fmaf(q[head * args.head_dim + dim], key[dim], sum);
            sum = warp_sum(sum);
            if (lane == 0) scores.store(head, token, sum);
        }
    }
}
