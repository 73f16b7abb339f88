// hopper.cuh on the simulator.
#pragma once
#include "sim.h"

#define CLUSTER_KERNEL(NAME, ARGS, THREADS, CLUSTER, ...)                                     \
    static sim::Registered registered_##NAME({#NAME, sizeof(ARGS), (THREADS),                 \
        [](const sim::Grid& grid, const void* bytes) {                                        \
            const ARGS& args = *(const ARGS*)bytes;                                           \
            sim::run(#NAME, grid, (CLUSTER), [&args] { __VA_ARGS__(args); });                            \
        }});

// In eight bytes of shared memory, as the hardware's.
struct Barrier {
    uint16_t phase, arrivals, pending;
    // In units of 16 bytes; bytes may come before they are announced.
    int16_t bytes;
};
static_assert(sizeof(Barrier) == 8);

// Moves on when all have arrived and all bytes are there.
inline void sim_barrier_check(Barrier& barrier) {
    sim::running.progress++;
    if (barrier.pending || barrier.bytes) return;
    barrier.phase ^= 1;
    barrier.pending = barrier.arrivals;
}

// What lies at the same place in another block of the cluster.
template <class T>
T* sim_in_block(T* at, unsigned rank) {
    const uint32_t offset = shared_offset(at, sizeof(T), alignof(T) > 8 ? alignof(T) : 8);
    return (T*)(sim::running.blocks[rank].shared() + offset);
}

inline uint32_t shared_address(const void* at) { return shared_offset(at, 1, 1); }
inline uint32_t cluster_rank() { return sim::block().index.x % sim::running.cluster; }
inline void cluster_sync() {
    auto alive = [] {
        unsigned all = 0;
        for (unsigned i = 0; i < sim::running.cluster; i++) all += sim::running.blocks[i].live;
        return all;
    };
    sim::wait(sim::running.cluster_barrier, alive, "cluster_sync");
}
inline void barrier_init(Barrier* barrier, uint32_t arrivals) {
    shared_offset(barrier, 8, 8);
    *barrier = {0, (uint16_t)arrivals, (uint16_t)arrivals, 0};
}
inline void barriers_ready() {}
inline void sim_arrive(Barrier& barrier) {
    if (!barrier.pending) sim::die("more threads arrive at a barrier than it counts");
    barrier.pending--;
    sim_barrier_check(barrier);
}
inline void barrier_expect(Barrier* barrier, uint32_t bytes) {
    if (bytes % 16) sim::die("a barrier expects bytes that are no multiple of 16");
    barrier->bytes += (int16_t)(bytes / 16);
    sim_arrive(*barrier);
}
inline void barrier_arrive(Barrier* barrier, uint32_t rank) { sim_arrive(*sim_in_block(barrier, rank)); }
inline void barrier_wait(Barrier* barrier, uint32_t parity) {
    while (barrier->phase == parity) sim::yield("barrier_wait");
}

// What the host's TensorMap holds on the simulator.
struct SimTensor {
    unsigned char* base;
    uint64_t rows, cols, pitch_bytes, box_rows, box_cols, element_bytes;
};
inline const SimTensor& sim_tensor(const TensorMap& map) { return *(const SimTensor*)&map; }
inline uint32_t sim_swizzle(uint32_t offset) { return offset ^ (offset >> 7 & 7) << 4; }

// Calls `each(shared offset, address in the matrix or null, bytes)` for every element of a box.
template <class Each>
void sim_box(const TensorMap& map, const void* shared, int col, int row, Each each) {
    const SimTensor& tensor = sim_tensor(map);
    if (tensor.box_cols * tensor.element_bytes != 128) sim::die("a row of a box is not 128 bytes");
    const uint32_t start = shared_offset(shared, tensor.box_rows * 128, 1024);
    for (uint32_t r = 0; r < tensor.box_rows; r++)
        for (uint32_t c = 0; c < tensor.box_cols; c++) {
            const int64_t y = (int64_t)row + r, x = (int64_t)col + c;
            const bool inside = y >= 0 && y < (int64_t)tensor.rows && x >= 0 && x < (int64_t)tensor.cols;
            unsigned char* at = inside ? tensor.base + y * tensor.pitch_bytes + x * tensor.element_bytes : nullptr;
            each(sim_swizzle(start + r * 128 + c * tensor.element_bytes), at, tensor.element_bytes);
        }
    if (tensor.rows) sim::check_global(tensor.base, (tensor.rows - 1) * tensor.pitch_bytes + tensor.cols * tensor.element_bytes);
}

inline void tensor_load_multicast(void* to, const TensorMap& from, Barrier* barrier, int col, int row, uint16_t blocks) {
    for (unsigned rank = 0; rank < 16; rank++) {
        if (!(blocks >> rank & 1)) continue;
        if (rank >= sim::running.cluster) sim::die("a copy goes to a block that the cluster does not have");
        unsigned char* shared = sim::running.blocks[rank].shared();
        sim_box(from, to, col, row, [&](uint32_t offset, const void* at, uint64_t bytes) {
            if (at) memcpy(shared + offset, at, bytes);
            else memset(shared + offset, 0, bytes);
        });
        Barrier& there = *sim_in_block(barrier, rank);
        there.bytes -= (int16_t)(sim_tensor(from).box_rows * 8);
        sim_barrier_check(there);
    }
}
inline void tensor_load(void* to, const TensorMap& from, Barrier* barrier, int col, int row) {
    tensor_load_multicast(to, from, barrier, col, row, (uint16_t)(1 << cluster_rank()));
}

// Stores read shared memory when they are waited for, as late as the hardware may.
template <bool ADD>
void sim_store(const TensorMap& to, const void* from, int col, int row) {
    sim::self().open_stores.push_back([=, shared = shared_memory()] {
        sim_box(to, from, col, row, [&](uint32_t offset, unsigned char* at, uint64_t bytes) {
            if (!at) return;
            if (!ADD) {
                memcpy(at, shared + offset, bytes);
                return;
            }
            if (bytes != 4) sim::die("only f32 are added");
            float sum, value;
            memcpy(&sum, at, 4);
            memcpy(&value, shared + offset, 4);
            sum += value;
            memcpy(at, &sum, 4);
        });
    });
}
inline void tensor_store(const TensorMap& to, const void* from, int col, int row) { sim_store<false>(to, from, col, row); }
inline void tensor_add(const TensorMap& to, const void* from, int col, int row) { sim_store<true>(to, from, col, row); }
inline void stores_commit() {
    auto& fiber = sim::self();
    fiber.store_groups.push_back(std::move(fiber.open_stores));
    fiber.open_stores.clear();
}
template <int N>
void stores_wait() {
    auto& groups = sim::self().store_groups;
    while (groups.size() > N) {
        for (auto& store : groups.front()) store();
        groups.pop_front();
    }
}
inline void async_fence() {}
inline void named_barrier(uint32_t id, uint32_t threads) {
    if (id == 0 || id >= sim::NAMED_BARRIERS) sim::die("a named barrier's number is not from 1 to 15");
    sim::wait(sim::block().named[id], [=] { return threads; }, "named_barrier");
}
template <int>
void registers_down() {}
template <int>
void registers_up() {}

// Products are made when they are waited for, as late as the hardware may: a tile that is overwritten too early shows.
inline void products_start() {}
inline void products_commit() {
    auto& group = sim::warpgroup();
    if (sim::self().index % 128 == 0) {
        group.committed.push_back(std::move(group.open));
        group.open.clear();
    }
    sim::wait(group.barrier, [] { return 128u; }, "products_commit");
}
inline float sim_tile(uint64_t descriptor, int row, int k) {
    const uint32_t start = (uint32_t)(descriptor & 0x3fff) << 4, eight_rows = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    const uint32_t offset = sim_swizzle(start + row / 8 * eight_rows + row % 8 * 128 + k * 2);
    if (offset + 2 > sim::block().shared_bytes) sim::die("a product reads outside shared memory");
    uint16_t bits;
    memcpy(&bits, sim::block().shared() + offset, 2);
    return __uint_as_float((uint32_t)bits << 16);
}
inline void sim_multiply(const sim::Product& product) {
    static thread_local float a[64][16], b[16][256], sums[64][256];
    for (int k = 0; k < 16; k++) {
        for (int row = 0; row < 64; row++) a[row][k] = sim_tile(product.a, row, k);
        for (int col = 0; col < 256; col++) b[k][col] = sim_tile(product.b, col, k);
    }
    auto each = [&](auto work) {
        for (int thread = 0; thread < 128; thread++)
            for (int i = 0; i < 128; i++) {
                const int row = thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8, col = i / 4 * 8 + thread % 4 * 2 + i % 2;
                work(product.sums[thread][i], sums[row][col]);
            }
    };
    each([](float& from, float& sum) { sum = from; });
    for (int row = 0; row < 64; row++)
        for (int k = 0; k < 16; k++)
            for (int col = 0; col < 256; col++) sums[row][col] += a[row][k] * b[k][col];
    each([](float& to, float& sum) { to = sum; });
}
template <int N>
void products_wait() {
    auto& group = sim::warpgroup();
    sim::wait(group.barrier, [] { return 128u; }, "products_wait");
    if (sim::self().index % 128 == 0)
        while (group.committed.size() > N) {
            for (auto& product : group.committed.front()) sim_multiply(product);
            group.committed.pop_front();
        }
    sim::wait(group.barrier, [] { return 128u; }, "products_wait");
}
inline void wgmma_m64n256k16(float (&d)[128], uint64_t a, uint64_t b) {
    auto& group = sim::warpgroup();
    const unsigned thread = sim::self().index % 128;
    if (thread == 0) group.open.push_back({a, b, {}});
    sim::wait(group.barrier, [] { return 128u; }, "wgmma_m64n256k16");
    sim::Product& product = group.open.back();
    if (product.a != a || product.b != b) sim::die("threads of a warpgroup multiply different tiles");
    product.sums[thread] = d;
    sim::wait(group.barrier, [] { return 128u; }, "wgmma_m64n256k16");
}
