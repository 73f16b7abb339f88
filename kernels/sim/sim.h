// CUDA device code on the CPU, for tests: every thread of a block is a fiber; the blocks of a cluster run together,
// clusters one after another. It shows what a test should catch: missing barriers (every second kernel runs its threads in reverse
// order), deadlocks, reads of shared memory nobody wrote (it starts as NaN), copies used before they were waited for, bad
// alignment of what is copied, anything read or written behind buffers and shared memory, or written right before buffers. It says
// nothing of speed or of the memory model.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <type_traits>
#include <vector>

#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__

struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

namespace sim {

// Shared memory of a block, as on sm_90, and as on sm_86 and sm_89, which other kernels than those for Hopper have to do with.
constexpr unsigned SHARED_BYTES = 227 << 10, LEAST_SHARED_BYTES = 99 << 10;
constexpr unsigned STACK_BYTES = 96 << 10;

struct Barrier {
    unsigned arrived = 0, generation = 0;
};

// A cp.async that has not landed.
struct Copy {
    void* to;
    const void* from;
    unsigned bytes, filled;
};

// Sums of a warpgroup that products in flight add to: where each thread has its own of them, and what they are.
struct Sums {
    float* registers[128] = {};
    unsigned count = 0, products = 0;
    float values[64][256];
};

// A product of a warpgroup that has not been made.
struct Product {
    uint64_t a, b;
    // Each thread's part of `a` where it is in registers.
    const uint32_t* rows[128];
    bool transposed, add;
    Sums* sums;
};

struct Block;
struct Fiber;

// One of the threads at work, and what it waits for, as it was when it began to wait: see `yield`. Those of all threads lie together, as they are
// looked at again and again.
struct Turn {
    Fiber* fiber;
    const unsigned* generation = nullptr;
    unsigned seen = 0, ended = 0;
};

struct Fiber {
    void* stack_pointer = nullptr;
    Block* block = nullptr;
    unsigned index = 0;
    bool done = false;
    // Of a warpgroup that are not committed.
    unsigned products = 0;
    const char* waits_at = "";
    Turn* turn = nullptr;
    std::vector<Copy> open_copies;
    std::deque<std::vector<Copy>> copy_groups;
    std::vector<std::function<void()>> open_stores;
    std::deque<std::vector<std::function<void()>>> store_groups;
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
};

struct Warp {
    unsigned char in[32][64], out[32][64];
    Barrier barrier;
    unsigned mask = 0, live = 0;
};

struct Warpgroup {
    Barrier barrier;
    // Whether what threads did with registers counts for products.
    bool started = false;
    std::list<Sums> sums;
    std::vector<Product> open;
    std::deque<std::vector<Product>> committed;
};

constexpr unsigned NAMED_BARRIERS = 16;

// Room for a block's shared memory, which ends where it does, but for what it is aligned to.
struct Shared {
    unsigned char* const end;
    Shared();
    ~Shared();
    Shared(const Shared&) = delete;
};

struct Block {
    uint3 index{};
    std::deque<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<Warpgroup> warpgroups;
    Barrier barrier, named[NAMED_BARRIERS];
    unsigned threads = 0, live = 0;
    unsigned shared_bytes = 0;
    Shared memory;

    // 1024 bytes aligned.
    unsigned char* shared() const { return memory.end - (shared_bytes + 1023) / 1024 * 1024; }
};

struct Grid {
    uint32_t blocks[3];
    uint32_t threads, shared_bytes;
};

struct Device;

// The kernel at work.
struct Running {
    Device* device = nullptr;
    const char* kernel = "";
    Grid grid{};
    // Blocks that run together, those of a cluster.
    unsigned cluster = 1;
    std::deque<Block> blocks;
    Barrier cluster_barrier;
    // All threads, in the order in which they run in turns; the one at work.
    std::vector<Turn> turns;
    size_t turn = 0;
    Fiber* fiber = nullptr;
    // Who waits for all to end.
    void* host = nullptr;
    // Counts what threads achieve; what it was when the turns began anew.
    uint64_t progress = 0, progress_before = 0;
    // Threads that have ended, of the cluster those that have not.
    unsigned ended = 0, alive = 0;
    std::function<void()> body;
};

// This host thread's. A plain pointer: what it points to is made once, and is looked up at every step of a thread of the kernel.
extern __thread Running* of_thread;
void make_running();
inline Running& running() {
    if (!of_thread) make_running();
    return *of_thread;
}

[[noreturn]] void die(const char* what);
// Lets other threads run; this one goes on when `generation`, if there is one, is no longer as it is, or when threads have ended.
void yield(const char* at, const unsigned* generation = nullptr);
void run(const char* kernel, const Grid& grid, unsigned cluster, std::function<void()> body);
// Dies unless `bytes` from `from` on lie inside one device allocation.
void check_global(const void* from, size_t bytes);

inline Fiber& self() { return *running().fiber; }
inline Block& block() { return *self().block; }
inline Warp& warp() { return block().warps[self().index / 32]; }
inline Warpgroup& warpgroup() { return block().warpgroups[self().index / 128]; }
inline unsigned lane() { return self().index % 32; }

template <class Needed>
void wait(Barrier& barrier, Needed needed, const char* at) {
    unsigned generation = barrier.generation;
    barrier.arrived++;
    while (barrier.generation == generation) {
        if (barrier.arrived >= needed()) {
            barrier.arrived = 0;
            barrier.generation++;
            running().progress++;
            return;
        }
        yield(at, &barrier.generation);
    }
}

// Something that all lanes of `mask` do together: `work(in, out)` turns what each put in into what each gets.
template <class Out, class In, class Work>
Out collective(unsigned mask, const In& in, Work work, const char* at) {
    static_assert(sizeof(In) <= 64 && sizeof(Out) <= 64);
    Warp& w = warp();
    if (!(mask >> lane() & 1)) die("a lane is not in its own mask");
    if (w.barrier.arrived && w.mask != mask) die("lanes of a warp disagree about the mask");
    w.mask = mask;
    memcpy(w.in[lane()], &in, sizeof in);
    unsigned generation = w.barrier.generation;
    w.barrier.arrived++;
    while (w.barrier.generation == generation) {
        if (w.barrier.arrived >= (unsigned)__builtin_popcount(mask & w.live)) {
            In ins[32];
            Out outs[32];
            for (int i = 0; i < 32; i++) memcpy(&ins[i], w.in[i], sizeof(In));
            work(ins, outs);
            for (int i = 0; i < 32; i++) memcpy(w.out[i], &outs[i], sizeof(Out));
            w.barrier.arrived = 0;
            w.barrier.generation++;
            running().progress++;
            break;
        }
        yield(at, &w.barrier.generation);
    }
    Out out;
    memcpy(&out, w.out[lane()], sizeof out);
    return out;
}

struct Entry {
    const char* name;
    unsigned argument_bytes, threads;
    void (*launch)(const Grid&, const void*);
};
void add_kernel(const Entry& entry);
struct Registered {
    explicit Registered(const Entry& entry) { add_kernel(entry); }
};

}  // namespace sim

#define threadIdx (uint3{sim::self().index, 0, 0})
#define blockIdx (sim::block().index)
#define gridDim (uint3{sim::running().grid.blocks[0], sim::running().grid.blocks[1], sim::running().grid.blocks[2]})

inline unsigned char* shared_memory() { return sim::block().shared(); }

inline void __syncthreads() {
    sim::wait(sim::block().barrier, [] { return sim::block().live; }, "__syncthreads");
}
inline void __syncwarp() {
    sim::collective<int>(~0u, 0, [](const int*, int*) {}, "__syncwarp");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
    auto swap = [=](const T* in, T* out) { for (int i = 0; i < 32; i++) out[i] = in[i ^ bits]; };
    return sim::collective<T>(mask, value, swap, "__shfl_xor_sync");
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
    struct In { T value; int from; };
    auto pick = [](const In* in, T* out) { for (int i = 0; i < 32; i++) out[i] = in[in[i].from & 31].value; };
    return sim::collective<T>(mask, In{value, from}, pick, "__shfl_sync");
}
inline int __all_sync(unsigned mask, int holds) {
    auto all = [](const int* in, int* out) {
        const int every = std::all_of(in, in + 32, [](int holds) { return holds != 0; });
        for (int i = 0; i < 32; i++) out[i] = every;
    };
    return sim::collective<int>(mask, holds, all, "__all_sync");
}
inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
using std::max;
using std::min;

// Makes `FUNCTION(args)`, for every thread, the kernel `NAME`; `BLOCKS` a multiprocessor are what registers must allow.
#define KERNEL(NAME, ARGS, THREADS, BLOCKS, ...)                                              \
    static sim::Registered registered_##NAME({#NAME, sizeof(ARGS), (THREADS),                 \
        [](const sim::Grid& grid, const void* bytes) {                                        \
            const ARGS& args = *(const ARGS*)bytes;                                           \
            sim::run(#NAME, grid, 1, [&args] { __VA_ARGS__(args); });                           \
        }});
