// What only Hopper has (sm_90a): copies by descriptor (TMA), barriers in shared memory that count their bytes, products of whole
// warpgroups (wgmma), clusters. Each instruction is behind a small function that the simulator has too.
#pragma once
#include "device.cuh"

// How a matrix lies in device memory and which box of it a copy takes; the host fills it (TensorMap of src/backend/cuda/args.rs).
struct alignas(64) TensorMap {
    uint64_t words[16];
};

#ifdef TUCO_SIM
#include "sim/hopper.h"
#else
// A kernel whose threads have no more than so many registers: what its blocks leave is for those of other kernels.
#define LEAN_KERNEL(NAME, ARGS, THREADS, REGISTERS, ...) KERNEL_WITHIN(__maxnreg__(REGISTERS), NAME, ARGS, __VA_ARGS__)
// A kernel of clusters of CLUSTER blocks that follow each other in x. It calls previous_kernel_wait() once it is set up.
#define CLUSTER_KERNEL(NAME, ARGS, THREADS, CLUSTER, ...) CLUSTER_KERNEL_WITHIN(__launch_bounds__(THREADS, 1), NAME, ARGS, CLUSTER, __VA_ARGS__)
#define LEAN_CLUSTER_KERNEL(NAME, ARGS, THREADS, REGISTERS, CLUSTER, ...) CLUSTER_KERNEL_WITHIN(__maxnreg__(REGISTERS), NAME, ARGS, CLUSTER, __VA_ARGS__)
#define CLUSTER_KERNEL_WITHIN(BOUNDS, NAME, ARGS, CLUSTER, ...)                                                  \
    extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) BOUNDS                                            \
        tuco_##NAME(const __grid_constant__ ARGS args) {                                                         \
        next_kernel_may_start();                                                                                 \
        __VA_ARGS__(args);                                                                                       \
    }

using Barrier = uint64_t;

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of a cluster; what they wrote to shared memory before is seen by all afterwards.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// All threads of a cluster; of what they wrote it says nothing.
__device__ __forceinline__ void cluster_meet() { asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory"); }

__device__ __forceinline__ void barrier_init(Barrier* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// After barrier_init, before all threads meet: copies and other blocks see the barriers.
__device__ __forceinline__ void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and announces `bytes` that copies will bring in this phase.
__device__ __forceinline__ void barrier_expect(Barrier* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

// Arrives.
__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives at the barrier that block `rank` of the cluster has at this place: says that products and copies no longer read something. Of what
// was written before it says nothing to the other block, which would take a fence of the whole device.
__device__ __forceinline__ void barrier_arrive(Barrier* barrier, uint32_t rank) {
    asm volatile(
        "{\n.reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(shared_address(barrier)), "r"(rank)
        : "memory");
}

// Waits until the phase of this parity is over; the one before the first counts as over, its parity being 1.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "AGAIN_%=:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra AGAIN_%=;\n}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// Brings a matrix's description near, where copies look for it.
__device__ __forceinline__ void tensor_prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Reads what the block `rank` of the cluster has at this place.
__device__ __forceinline__ float2 cluster_load(const float2* at, uint32_t rank) {
    float2 found;
    asm volatile(
        "{\n.reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %2, %3;\n"
        "ld.shared::cluster.v2.f32 {%0, %1}, [remote];\n}"
        : "=f"(found.x), "=f"(found.y)
        : "r"(shared_address(at)), "r"(rank)
        : "memory");
    return found;
}

// Copies the box whose first element is at (col, row) to shared memory, zeros where it leaves the matrix; `barrier` counts its bytes.
__device__ __forceinline__ void tensor_load(void* to, const TensorMap& from, Barrier* barrier, int col, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(to)),
        "l"(&from), "r"(shared_address(barrier)), "r"(col), "r"(row)
        : "memory");
}

// The same into each block of the cluster that `blocks` has a bit for, at the same place; each one's barrier counts.
__device__ __forceinline__ void tensor_load_multicast(void* to, const TensorMap& from, Barrier* barrier, int col, int row, uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
        "l"(&from), "r"(shared_address(barrier)), "r"(col), "r"(row), "h"(blocks)
        : "memory");
}

// Copies a box from shared memory; what leaves the matrix is dropped.
__device__ __forceinline__ void tensor_store(const TensorMap& to, const void* from, int col, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&to),
                 "r"(shared_address(from)), "r"(col), "r"(row)
                 : "memory");
}

// Adds a box to what is there.
__device__ __forceinline__ void tensor_add(const TensorMap& to, const void* from, int col, int row) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&to),
                 "r"(shared_address(from)), "r"(col), "r"(row)
                 : "memory");
}

__device__ __forceinline__ void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's groups of stores still read shared memory.
template <int N>
__device__ __forceinline__ void stores_wait() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

// What this thread wrote to shared memory is seen by the copies and products that follow the next barrier.
__device__ __forceinline__ void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Barrier `id`, from 1 on, of `threads` threads of a block.
__device__ __forceinline__ void named_barrier(uint32_t id, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Counts at it, for others that wait.
__device__ __forceinline__ void named_arrive(uint32_t id, uint32_t threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Registers go from the warpgroups that need few to those that need many.
template <int N>
__device__ __forceinline__ void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// Before the first product of a group: what was written to its registers counts.
__device__ __forceinline__ void products_start() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most N groups of products are in flight.
template <int N>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Holds the compiler to computing `value`, which is never below 0, before it waits for products: else it would wait first, and nothing
// would overlap.
__device__ __forceinline__ void compute_now(float value) {
    asm volatile("{\n.reg .pred below;\nsetp.lt.f32 below, %0, 0f00000000;\n@below nanosleep.u32 1;\n}" ::"f"(value));
}

// The registers of a product's sums as operands of the instruction.
#define SUMS_4(I) "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3])
#define SUMS_8(I) SUMS_4(I), SUMS_4(I + 4)
#define SUMS_12(I) SUMS_8(I), SUMS_4(I + 8)
#define SUMS_16(I) SUMS_8(I), SUMS_8(I + 8)
#define SUMS_32(I) SUMS_16(I), SUMS_16(I + 16)
#define SUMS_48(I) SUMS_32(I), SUMS_16(I + 32)
#define SUMS_64(I) SUMS_32(I), SUMS_32(I + 32)
#define SUMS_96(I) SUMS_64(I), SUMS_32(I + 64)
#define SUMS_128(I) SUMS_64(I), SUMS_64(I + 64)
#define NAMES_4 "%0,%1,%2,%3"
#define NAMES_8 NAMES_4 ",%4,%5,%6,%7"
#define NAMES_12 NAMES_8 ",%8,%9,%10,%11"
#define NAMES_16 NAMES_12 ",%12,%13,%14,%15"
#define NAMES_32 NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_48 NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define NAMES_64 NAMES_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES_96 \
    NAMES_64     \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define NAMES_128 \
    NAMES_96      \
    ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// d[64, N] = a[64, 16] · b[N, 16]ᵀ by a warpgroup, added to what is there if `add`. d[4 j + i] is row 16 warp + lane / 4 + i / 2 · 8,
// column 8 j + lane % 4 · 2 + i % 2. `a` and `b` are descriptors of tiles in shared memory.
#define PRODUCT_OF_TILES(N, REGISTERS, A, B, ADD) PRODUCT_OF_SHARED(wgmma, 0, N, REGISTERS, A, B, ADD)
// d[64, N] = a[64, 16] · b[16, N], likewise; `b` is a transposed_descriptor.
#define PRODUCT_WITH_TRANSPOSED(N, REGISTERS, A, B, ADD) PRODUCT_OF_SHARED(wgmma_transposed, 1, N, REGISTERS, A, B, ADD)
#define PRODUCT_OF_SHARED(NAME, TRANSPOSED, N, REGISTERS, A, B, ADD)                                                    \
    __device__ __forceinline__ void NAME(float (&d)[REGISTERS], uint64_t a, uint64_t b, bool add) {                     \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD ", 0;\n"                                              \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" NAMES_##REGISTERS "}, " A ", " B      \
                     ", add, 1, 1, 0, " #TRANSPOSED ";\n}"                                                             \
                     : SUMS_##REGISTERS(0)                                                                              \
                     : "l"(a), "l"(b), "r"(int(add)));                                                                  \
    }
PRODUCT_OF_TILES(16, 8, "%8", "%9", "%10")
PRODUCT_OF_TILES(24, 12, "%12", "%13", "%14")
PRODUCT_OF_TILES(64, 32, "%32", "%33", "%34")
PRODUCT_OF_TILES(96, 48, "%48", "%49", "%50")
PRODUCT_OF_TILES(128, 64, "%64", "%65", "%66")
PRODUCT_OF_TILES(192, 96, "%96", "%97", "%98")
PRODUCT_OF_TILES(256, 128, "%128", "%129", "%130")
PRODUCT_WITH_TRANSPOSED(64, 32, "%32", "%33", "%34")
PRODUCT_WITH_TRANSPOSED(128, 64, "%64", "%65", "%66")

// d[64, N] += a[64, 16] · b[16, N]. `a` is in registers, as mma_m16n8k16 takes it, 16 rows a warp; they stay as they are until the product
// is waited for. `b` is a transposed_descriptor.
#define PRODUCT_OF_ROWS(N, REGISTERS, A0, A1, A2, A3, B)                                                                \
    __device__ __forceinline__ void wgmma(float (&d)[REGISTERS], const uint32_t (&a)[4], uint64_t b) {                  \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" NAMES_##REGISTERS "}, "               \
                     "{" A0 ", " A1 ", " A2 ", " A3 "}, " B ", 1, 1, 1, 1;"                                             \
                     : SUMS_##REGISTERS(0)                                                                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                             \
    }
PRODUCT_OF_ROWS(64, 32, "%32", "%33", "%34", "%35", "%36")
PRODUCT_OF_ROWS(128, 64, "%64", "%65", "%66", "%67", "%68")
PRODUCT_OF_ROWS(256, 128, "%128", "%129", "%130", "%131", "%132")
#endif

// Where a descriptor says that a tile is, from byte `byte` of it on. A block's number in its cluster stands above its shared address.
__device__ __forceinline__ uint64_t descriptor_address(const void* tile, int byte) {
    return ((shared_address(tile) + byte) & 0x3ffff) >> 4;
}

// Names a tile of rows of 64 bf16, 128 bytes, as a tensor copy lays it out (16-byte parts of a row in the order part ^ row % 8), from a
// multiple of 1024 bytes on, for products; `k` columns, a multiple of 16, are left out. Eight rows and the next eight begin `eight_rows` bytes
// apart, a multiple of 1024.
__device__ __forceinline__ uint64_t tile_descriptor(const void* tile, int k, int eight_rows = 1024) {
    const uint64_t start = descriptor_address(tile, k * 2), swizzle_128_bytes = 1;
    return start | uint64_t(1) << 16 | uint64_t(eight_rows >> 4) << 32 | swizzle_128_bytes << 62;
}

// Names rows `row` to `row` + 15, a multiple of 16, of such tiles beside each other, `tile_bytes` apart, as the transposed operand: products
// go along rows, columns are those of the result.
__device__ __forceinline__ uint64_t transposed_descriptor(const void* tile, int row, int tile_bytes) {
    const uint64_t start = descriptor_address(tile, row * 128), eight_rows = 1024 >> 4, swizzle_128_bytes = 1;
    return start | uint64_t(tile_bytes >> 4) << 16 | eight_rows << 32 | swizzle_128_bytes << 62;
}

// Where byte `byte` of row `row` lies in a tile of rows of 128 bytes that a tensor copy takes.
__device__ __forceinline__ int swizzled(int row, int byte) { return row * 128 + (byte ^ row % 8 * 16); }
