// What follows where p[head, token] · n[token, column] are summed over the context's tokens (twin_mean.cu, twin_mean_sm90.cu): the norm's weights,
// and what the twin rows of the path add.
#pragma once
#include "twin_attend.cuh"

// A sum over the context's tokens as the norm weighs it, of which `share` of all p falls on them.
__device__ __forceinline__ float weighed(float sum, float scale, float share, float bias) { return sum * scale + share * bias; }

// Weighs a thread's sums as the norm says, adds what the twin rows of the path give, and stores them: of HEADS heads from `first_head` on, eight
// apart, and of pairs of columns from `first_col` on, eight apart. All loads of a loop are under way before the first is used; what is beyond the
// last head or column is loaded again, and not stored.
template <int HEADS, int EIGHTS>
__device__ __forceinline__ void finish_means(const TwinAttendArgs& args, const TwinRow& row, int index, int first_seen, int first_head,
                                             int first_col, float (&means)[HEADS][EIGHTS][2]) {
    auto head_of = [&](int i) { return min(first_head + i * 8, args.heads - 1); };
    auto col_of = [&](int j, int half) { return min(first_col + j * 8 + half, args.hidden - 1); };
    float scale[EIGHTS][2], bias[EIGHTS][2] = {}, share[HEADS] = {};
#pragma unroll
    for (int j = 0; j < EIGHTS; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            scale[j][half] = args.norm_weight ? args.norm_weight[col_of(j, half)] + args.norm_offset : 1.0f;
            if (args.norm_bias) bias[j][half] = args.norm_bias[col_of(j, half)];
        }
#pragma unroll
    for (int i = 0; i < HEADS; i++)
        if (args.norm_bias) share[i] = args.context_share[int64_t(index) * args.heads + head_of(i)];
    auto for_all = [&](auto each) {
#pragma unroll
        for (int i = 0; i < HEADS; i++)
#pragma unroll
            for (int j = 0; j < EIGHTS; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) each(i, j, half);
    };
    for_all([&](int i, int j, int half) { means[i][j][half] = weighed(means[i][j][half], scale[j][half], share[i], bias[j][half]); });
    const float* scores = args.scores + row.scores_start * args.heads;
    for (int token = max(row.context_length, first_seen); token < row.tokens; token++) {
        const float* own = args.twin_normed + (row.twin_start + token - row.context_length) * args.twin_normed_pitch;
        float p[HEADS], n[EIGHTS][2];
#pragma unroll
        for (int i = 0; i < HEADS; i++) p[i] = scores[head_of(i) * score_pitch(row) + token];
#pragma unroll
        for (int j = 0; j < EIGHTS; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) n[j][half] = own[col_of(j, half)];
        for_all([&](int i, int j, int half) { means[i][j][half] += p[i] * n[j][half]; });
    }
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        if (first_head + i * 8 >= args.heads) continue;
        float* to = args.means + row.mean_row * args.mean_pitch + int64_t(first_head + i * 8) * args.hidden;
#pragma unroll
        for (int j = 0; j < EIGHTS; j++) {
            const int col = first_col + j * 8;
            if (col < args.hidden) store_pair(to + col, {means[i][j][0], means[i][j][1]}, col + 1 < args.hidden);
        }
    }
}
