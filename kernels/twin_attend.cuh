// Attention of twin rows: mean[row, head] = Σ p(token) · normed(token), the tokens being those of its path (context rows: normalized · weight + bias
// of the norm) and the twin rows up to the row itself. Values are projected afterwards (`head_values`).
// Reference: `twin_attend` of backend/reference. Three kernels:
//   key_score     (key_score.cu, key_score_sm90.cu, twin_scores.cu) scores[row, head, token] = q · (k + difference), scaled and capped, −∞ where unseen; f32
//   twin_softmax  (twin_scores.cu) p = softmax of them: of twin rows in place of their scores, of the context's tokens as a sum of three bf16; how
//                 much of it falls on the context
//   twin_mean     (twin_mean.cu, twin_mean_sm90.cu) the means; sums f32
// Context rows are bf16, or f32 (which `twin_mean` takes as sums of two bf16).
// Bytes bind: keys, and normalized rows, are read once a branch. Every sum is over the tokens of one sequence, in an order that depends on nothing else.
#pragma once
#include "device.cuh"

// p of a row's context lies in pieces of so many tokens and heads (in_piece); an octet is one of the three numbers that it is the sum of, of eight
// heads.
constexpr int PIECE_TOKENS = 64, PIECE_HEADS = 32, OCTET = 8 * PIECE_TOKENS, PIECE = 3 * PIECE_HEADS * PIECE_TOKENS;

struct TwinRow {
    // In matrices of twin rows, and in those of this pack's means.
    int32_t row, mean_row;
    // The context rows before it are path_rows[path] and up.
    int32_t path, context_length;
    int32_t twin_start;
    // Tokens that it may see, itself the last of them.
    int32_t tokens;
    // Where its scores start, in tokens of one head, whose number is rounded up to pieces.
    int64_t scores_start;
};

struct TwinAttendArgs {
    const float* q;
    const void* keys;
    // Null where the keys are this branch's own.
    const void* difference;
    const void* normalized;
    // Of the norm before attention; null where there is none.
    const float* norm_weight;
    const float* norm_bias;
    const float* twin_keys;
    const float* twin_normed;
    const TwinRow* rows;
    const int32_t* path_rows;
    // [heads, tokens] of every row, one after the other, tokens rounded up to pieces.
    float* scores;
    // p of the context's tokens, zeros for other tokens, anything for heads beyond the last: of every row its pieces (piece_of).
    bf16* weights;
    // [rows, heads]: what of a row's attention falls on the context.
    float* context_share;
    float* means;
    // Of each head a score beside those of the tokens; null: none. Of each of those rows and heads, which share of the softmax that
    // leaves the tokens, `share_pitch` from row to row.
    const float* sinks;
    float* shares;
    int64_t q_pitch, key_pitch, difference_pitch, normalized_pitch, twin_key_pitch, twin_normed_pitch, mean_pitch, share_pitch;
    int32_t heads, group, head_dim, hidden;
    // Tokens that a token sees up to itself; 0: all.
    int32_t window;
    // Of key_score: blocks for each row, tokens of a block, and in twin_scores.cu 2 to the power of how many threads share a key.
    int32_t score_blocks, score_tokens, lane_bits;
    float norm_offset, scale, softcap;
    int32_t row_count;
};

__device__ __forceinline__ int64_t score_pitch(const TwinRow& row) { return (row.tokens + PIECE_TOKENS - 1) / PIECE_TOKENS * PIECE_TOKENS; }

// The number of the piece of p that has this token and this head.
__device__ __forceinline__ int64_t piece_of(const TwinAttendArgs& args, const TwinRow& row, int token, int head) {
    return (row.scores_start + token) / PIECE_TOKENS * ((args.heads + PIECE_HEADS - 1) / PIECE_HEADS) + head / PIECE_HEADS;
}

// Where the first, second or third number of a head lies in its piece: of every eight heads the first octet, the third, the second. With room for
// a fourth after them, first and second ones lie evenly, which twin_mean_sm90.cu wants.
__device__ __forceinline__ int in_piece(int head, int number) {
    return (head % PIECE_HEADS / 8 * 3 + (number ? 3 - number : 0)) * OCTET + head % 8 * PIECE_TOKENS;
}

// The first token that the row's window lets it see.
__device__ __forceinline__ int first_seen_of(const TwinAttendArgs& args, const TwinRow& row) {
    return args.window ? max(row.tokens - args.window, 0) : 0;
}
