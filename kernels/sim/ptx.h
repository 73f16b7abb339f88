// ptx.cuh on the simulator.
#pragma once
#include "sim.h"

// Kernels run one after the other.
inline void next_kernel_may_start() {}
inline void previous_kernel_wait() {}

inline uint32_t pack_bf16(float low, float high) {
    auto round = [](float value) -> uint32_t {
        uint32_t bits;
        memcpy(&bits, &value, 4);
        if (std::isnan(value)) return 0x7fc0;
        return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    };
    return round(low) | round(high) << 16;
}

inline float fast_exp2(float x) {
    const float power = std::exp2(x);
    return power < 1.17549435e-38f ? 0.0f : power;
}
inline float fast_reciprocal(float x) { return 1.0f / x; }

// The offset of an address in this block's shared memory, which it must lie in.
inline uint32_t shared_offset(const void* at, unsigned bytes, unsigned alignment) {
    const ptrdiff_t offset = (const unsigned char*)at - shared_memory();
    if (offset < 0 || offset + bytes > sim::block().shared_bytes) sim::die("an address is outside shared memory");
    if (offset % alignment) sim::die("an address in shared memory is not aligned");
    return (uint32_t)offset;
}

inline float sim_bf16(uint32_t pair, int half) {
    return __uint_as_float(half ? pair & 0xffff0000u : pair << 16);
}

// Eight numbers that are computed with at once.
using SimEight = float __attribute__((vector_size(32)));
inline void sim_add_scaled(SimEight& sum, float factor, const float* from) {
    SimEight eight;
    memcpy(&eight, from, sizeof eight);
    sum += factor * eight;
}

inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct In { uint32_t a[4], b[2]; float c[4]; } in;
    struct Out { float c[4]; };
    memcpy(in.a, a, sizeof a);
    memcpy(in.b, b, sizeof b);
    memcpy(in.c, c, sizeof c);
    auto multiply = [](const In* in, Out* out) {
        float a[16][16], b[16][8], c[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const int row = lane / 4, pair = lane % 4 * 2;
            for (int i = 0; i < 4; i++)
                for (int half = 0; half < 2; half++)
                    a[row + i % 2 * 8][pair + half + i / 2 * 8] = sim_bf16(in[lane].a[i], half);
            for (int i = 0; i < 2; i++)
                for (int half = 0; half < 2; half++) b[pair + half + i * 8][row] = sim_bf16(in[lane].b[i], half);
            for (int i = 0; i < 4; i++) c[row + i / 2 * 8][pair + i % 2] = in[lane].c[i];
        }
        for (int i = 0; i < 16; i++) {
            SimEight sum;
            memcpy(&sum, c[i], sizeof sum);
            for (int k = 0; k < 16; k++) sim_add_scaled(sum, a[i][k], b[k]);
            memcpy(c[i], &sum, sizeof sum);
        }
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) out[lane].c[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    };
    const Out out = sim::collective<Out>(~0u, in, multiply, "mma_m16n8k16");
    memcpy(c, out.c, sizeof c);
}

template <bool TRANSPOSED>
void sim_ldmatrix(uint32_t (&r)[4], const void* row) {
    shared_offset(row, 16, 16);
    struct Out { uint32_t r[4]; };
    auto load = [](const void* const* rows, Out* out) {
        for (int lane = 0; lane < 32; lane++)
            for (int m = 0; m < 4; m++) {
                uint16_t half[2];
                for (int i = 0; i < 2; i++) {
                    const int row = TRANSPOSED ? lane % 4 * 2 + i : lane / 4, col = TRANSPOSED ? lane / 4 : lane % 4 * 2 + i;
                    memcpy(&half[i], (const char*)rows[m * 8 + row] + col * 2, 2);
                }
                out[lane].r[m] = half[0] | (uint32_t)half[1] << 16;
            }
    };
    const Out out = sim::collective<Out>(~0u, row, load, "ldmatrix_x4");
    memcpy(r, out.r, sizeof r);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { sim_ldmatrix<false>(r, row); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { sim_ldmatrix<true>(r, row); }

// Copies land when they are waited for, as late as the hardware may.
inline void sim_copy_async(void* to, const void* from, unsigned bytes, unsigned all) {
    shared_offset(to, all, all);
    if (bytes > all) sim::die("a copy takes more than it fills");
    if ((uintptr_t)from % all) sim::die("a copy's source is not aligned");
    if (bytes) sim::check_global(from, bytes);
    sim::self().open_copies.push_back({to, from, bytes, all});
}
inline void copy_async_16(void* to, const void* from, unsigned bytes) { sim_copy_async(to, from, bytes, 16); }
inline void copy_async_4(void* to, const void* from, unsigned bytes) { sim_copy_async(to, from, bytes, 4); }
inline void copies_commit() {
    auto& fiber = sim::self();
    fiber.copy_groups.push_back(std::move(fiber.open_copies));
    fiber.open_copies.clear();
}
template <int N>
void copies_wait() {
    auto& groups = sim::self().copy_groups;
    while (groups.size() > N) {
        for (auto& copy : groups.front()) {
            memset(copy.to, 0, copy.filled);
            memcpy(copy.to, copy.from, copy.bytes);
        }
        groups.pop_front();
    }
}
