// hopper.cuh on the simulator.
#pragma once
#include "sim.h"

#define LEAN_KERNEL(NAME, ARGS, THREADS, REGISTERS, ...) KERNEL(NAME, ARGS, THREADS, 1, __VA_ARGS__)
#define LEAN_CLUSTER_KERNEL(NAME, ARGS, THREADS, REGISTERS, CLUSTER, ...) CLUSTER_KERNEL(NAME, ARGS, THREADS, CLUSTER, __VA_ARGS__)
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
    sim::running().progress++;
    if (barrier.pending || barrier.bytes) return;
    barrier.phase ^= 1;
    barrier.pending = barrier.arrivals;
}

// What lies at the same place in another block of the cluster.
template <class T>
T* sim_in_block(T* at, unsigned rank) {
    const uint32_t offset = shared_offset(at, sizeof(T), alignof(T) > 8 ? alignof(T) : 8);
    return (T*)(sim::running().blocks[rank].shared() + offset);
}

inline uint32_t cluster_rank() { return sim::block().index.x % sim::running().cluster; }
// With the block's number in its cluster above what is used of it within the block.
inline uint32_t shared_address(const void* at) { return shared_offset(at, 1, 1) | cluster_rank() << 24; }
inline void cluster_sync() {
    auto alive = [] {
        unsigned all = 0;
        for (unsigned i = 0; i < sim::running().cluster; i++) all += sim::running().blocks[i].live;
        return all;
    };
    sim::wait(sim::running().cluster_barrier, alive, "cluster_sync");
}
inline void cluster_meet() { cluster_sync(); }
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
inline void barrier_arrive(Barrier* barrier) {
    shared_offset(barrier, 8, 8);
    sim_arrive(*barrier);
}
inline void barrier_arrive(Barrier* barrier, uint32_t rank) { sim_arrive(*sim_in_block(barrier, rank)); }
inline void barrier_wait(Barrier* barrier, uint32_t parity) {
    while (barrier->phase == parity) sim::yield("barrier_wait");
}

inline float2 cluster_load(const float2* at, uint32_t rank) {
    if (rank >= sim::running().cluster) sim::die("a read is from a block that the cluster does not have");
    if (!sim::running().blocks[rank].live) sim::die("a read is from a block that has ended");
    return *sim_in_block(at, rank);
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
    // Boxes of fewer rows than the pattern has may begin at any of its rows.
    const uint32_t start = shared_offset(shared, tensor.box_rows * 128, tensor.box_rows % 8 ? 128 : 1024);
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
        if (rank >= sim::running().cluster) sim::die("a copy goes to a block that the cluster does not have");
        unsigned char* shared = sim::running().blocks[rank].shared();
        sim_box(from, to, col, row, [&](uint32_t offset, const void* at, uint64_t bytes) {
            if (at) memcpy(shared + offset, at, bytes);
            else memset(shared + offset, 0, bytes);
        });
        Barrier& there = *sim_in_block(barrier, rank);
        there.bytes -= (int16_t)(sim_tensor(from).box_rows * 8);
        sim_barrier_check(there);
    }
}
inline void tensor_prefetch(const TensorMap&) {}
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
inline sim::Barrier& sim_named(uint32_t id) {
    if (id == 0 || id >= sim::NAMED_BARRIERS) sim::die("a named barrier's number is not from 1 to 15");
    return sim::block().named[id];
}
inline void named_barrier(uint32_t id, uint32_t threads) {
    sim::wait(sim_named(id), [=] { return threads; }, "named_barrier");
}
inline void named_arrive(uint32_t id, uint32_t threads) {
    sim::Barrier& barrier = sim_named(id);
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        barrier.generation++;
    }
    sim::running().progress++;
}
template <int>
void registers_down() {}
template <int>
void registers_up() {}

// Products are made when they are waited for, as late as the hardware may: a tile or a register that is written too early shows. Until
// then their sums are NaN in every thread's registers.
inline void products_start() { sim::warpgroup().started = true; }
inline void products_commit() {
    auto& group = sim::warpgroup();
    sim::wait(group.barrier, [] { return 128u; }, "products_commit");
    if (sim::self().index % 128 == 0) {
        group.committed.push_back(std::move(group.open));
        group.open.clear();
    }
    sim::wait(group.barrier, [] { return 128u; }, "products_commit");
    if (sim::self().products != group.committed.back().size()) sim::die("threads of a warpgroup make different numbers of products");
    sim::self().products = 0;
}

inline void compute_now(float) {}

// What a descriptor names, tiles of rows of 128 bytes: from where on, and the bytes from one tile and from eight rows to the next.
struct SimTiles {
    uint32_t start, tile_bytes, eight_rows;

    explicit SimTiles(uint64_t descriptor)
        : start((uint32_t)(descriptor & 0x3fff) << 4), tile_bytes((uint32_t)(descriptor >> 16 & 0x3fff) << 4),
          eight_rows((uint32_t)(descriptor >> 32 & 0x3fff) << 4) {
        if (descriptor >> 49 != 1 << 13 || descriptor & 0xc000c000) sim::die("a descriptor names no tile with swizzled rows of 128 bytes");
        if (start % 1024 > 96 || start % 32) sim::die("a descriptor's start is not one of its tile's first row");
    }
    // Eight columns from `col` on, a multiple of eight.
    void read(uint32_t tile, uint32_t row, uint32_t col, float (&to)[8]) const {
        const uint32_t offset = sim_swizzle(start + tile * tile_bytes + row / 8 * eight_rows + row % 8 * 128 + col * 2);
        if (offset + 16 > sim::block().shared_bytes) sim::die("a product reads outside shared memory");
        uint16_t bits[8];
        memcpy(bits, sim::block().shared() + offset, sizeof bits);
        for (int i = 0; i < 8; i++) to[i] = sim_bf16(bits[i], 0);
    }
};

// Calls `each(value, register)` for all sums that a thread has.
template <class Each>
void sim_each_sum(sim::Sums& sums, unsigned thread, Each each) {
    for (unsigned i = 0; i < sums.count; i++) {
        const int row = thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8, col = i / 4 * 8 + thread % 4 * 2 + i % 2;
        each(sums.values[row][col], sums.registers[thread][i]);
    }
}

inline void sim_multiply(const sim::Product& product) {
    static thread_local float a[64][16], b[16][256];
    float eight[8];
    sim::Sums& sums = *product.sums;
    const unsigned cols = sums.count * 2;
    const SimTiles b_tiles(product.b);
    const bool in_registers = product.rows[0];
    const SimTiles a_tiles(in_registers ? product.b : product.a);
    if ((!in_registers && a_tiles.tile_bytes != 16) || (!product.transposed && b_tiles.tile_bytes != 16))
        sim::die("a descriptor of tiles along k tells a distance to others");
    if (product.transposed) {
        for (int k = 0; k < 16; k++)
            for (unsigned col = 0; col < cols; col += 8) {
                b_tiles.read(col / 64, k, col % 64, eight);
                memcpy(&b[k][col], eight, sizeof eight);
            }
    } else {
        for (unsigned col = 0; col < cols; col++)
            for (int k = 0; k < 16; k += 8) {
                b_tiles.read(0, col, k, eight);
                for (int i = 0; i < 8; i++) b[k + i][col] = eight[i];
            }
    }
    for (int row = 0; row < 64; row++)
        for (int k = 0; k < 16; k += 8) {
            const int thread = row / 16 * 32 + row % 8 * 4, part = row % 16 / 8 + k / 8 * 2;
            if (in_registers)
                for (int i = 0; i < 8; i++) eight[i] = sim_bf16(product.rows[thread + i / 2][part], i % 2);
            else
                a_tiles.read(0, row, k, eight);
            memcpy(&a[row][k], eight, sizeof eight);
        }
    for (int row = 0; row < 64; row++)
        for (unsigned col = 0; col < cols; col += 8) {
            SimEight sum = {};
            if (product.add) memcpy(&sum, &sums.values[row][col], sizeof sum);
            for (int k = 0; k < 16; k++) sim_add_scaled(sum, a[row][k], &b[k][col]);
            memcpy(&sums.values[row][col], &sum, sizeof sum);
        }
    if (--sums.products) return;
    for (unsigned thread = 0; thread < 128; thread++)
        sim_each_sum(sums, thread, [](float value, float& in_register) { in_register = value; });
    sim::warpgroup().sums.remove_if([&](const sim::Sums& other) { return &other == &sums; });
}
template <int N>
void products_wait() {
    auto& group = sim::warpgroup();
    sim::wait(group.barrier, [] { return 128u; }, "products_wait");
    if (sim::self().index % 128 == 0) {
        group.started = false;
        while (group.committed.size() > N) {
            for (auto& product : group.committed.front()) sim_multiply(product);
            group.committed.pop_front();
        }
    }
    sim::wait(group.barrier, [] { return 128u; }, "products_wait");
}

template <size_t REGISTERS>
void sim_product(float (&d)[REGISTERS], const uint32_t* rows, uint64_t a, uint64_t b, bool transposed, bool add) {
    static_assert(REGISTERS % 4 == 0 && REGISTERS <= 128, "a product has 8 to 256 columns, a multiple of 8");
    auto& group = sim::warpgroup();
    const unsigned thread = sim::self().index % 128, number = sim::self().products++;
    // The first thread that comes to a product makes it known; they meet when it is committed.
    if (number == group.open.size()) {
        if (!group.started) sim::die("products begin without products_start");
        auto is_same = [&](const sim::Sums& sums) { return sums.registers[thread] == d; };
        auto found = std::find_if(group.sums.begin(), group.sums.end(), is_same);
        if (found == group.sums.end()) found = group.sums.emplace(found);
        found->count = REGISTERS;
        found->products++;
        group.open.push_back({a, b, {}, transposed, add, &*found});
    }
    sim::Product& product = group.open[number];
    if (product.a != a || product.b != b || product.transposed != transposed || product.add != add) sim::die("threads of a warpgroup multiply different tiles");
    product.rows[thread] = rows;
    sim::Sums& sums = *product.sums;
    if (!sums.registers[thread]) {
        sums.registers[thread] = d;
        sim_each_sum(sums, thread, [](float& value, float& in_register) {
            value = in_register;
            in_register = NAN;
        });
    }
    if (sums.registers[thread] != d) sim::die("threads of a warpgroup add to different sums");
}
template <size_t REGISTERS>
void wgmma(float (&d)[REGISTERS], uint64_t a, uint64_t b, bool add) {
    sim_product(d, nullptr, a, b, false, add);
}
template <size_t REGISTERS>
void wgmma_transposed(float (&d)[REGISTERS], uint64_t a, uint64_t b, bool add) {
    sim_product(d, nullptr, a, b, true, add);
}
template <size_t REGISTERS>
void wgmma(float (&d)[REGISTERS], const uint32_t (&a)[4], uint64_t b) {
    sim_product(d, a, 0, b, true, true);
}
