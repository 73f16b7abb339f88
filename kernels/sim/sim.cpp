// The scheduler of the simulated device, its memory, and what the host calls.
#include "sim.h"

#include <csignal>
#include <map>

#include <sys/mman.h>

#if !defined(__x86_64__)
#error "the simulator switches fibers on x86-64 only"
#endif

extern "C" void sim_switch(void** save, void* to);
asm(".text\n.globl sim_switch\nsim_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

namespace sim {

__thread Running* of_thread = nullptr;
void make_running() {
    static thread_local Running made;
    of_thread = &made;
    // Handlers of signals find little room in what threads have for them, where registers are many.
    static thread_local std::vector<char> room(64 << 10);
    const stack_t stack{room.data(), 0, room.size()};
    sigaltstack(&stack, nullptr);
}

// A device's memory: allocations by address. How many kernels it has run.
struct Device {
    std::map<const unsigned char*, size_t> allocations;
    unsigned launches = 0;
};

// What nobody may write.
constexpr unsigned char GUARD_BYTE = 0xA5;
constexpr size_t PAGE = 4096;
static size_t pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

// Memory that ends where a page begins that nobody may touch, after another such page.
static unsigned char* guarded(size_t bytes) {
    void* all = mmap(nullptr, pages(bytes) + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect((char*)all + PAGE, pages(bytes), PROT_READ | PROT_WRITE)) die("the host has no memory left");
    unsigned char* data = (unsigned char*)all + PAGE + pages(bytes) - bytes;
    memset(data - (pages(bytes) - bytes), GUARD_BYTE, pages(bytes) - bytes);
    return data;
}

static void release(unsigned char* data, size_t bytes) { munmap(data + bytes - pages(bytes) - PAGE, pages(bytes) + 2 * PAGE); }

Shared::Shared() : end(guarded(pages(SHARED_BYTES)) + pages(SHARED_BYTES)) {}
Shared::~Shared() { release(end - pages(SHARED_BYTES), pages(SHARED_BYTES)); }

// Says which kernel it was that touched memory which is not its own.
static struct sigaction handler_before;
static void on_fault(int, siginfo_t*, void*) {
    if (of_thread && of_thread->fiber) die("memory is touched that is outside of what there is");
    sigaction(SIGSEGV, &handler_before, nullptr);
}
static void watch_faults() {
    struct sigaction ours {};
    ours.sa_sigaction = on_fault;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &ours, &handler_before);
}

static std::vector<Entry>& kernels() {
    static std::vector<Entry> all;
    return all;
}
void add_kernel(const Entry& entry) { kernels().push_back(entry); }

void die(const char* what) {
    const uint3 none{}, at = running().fiber ? running().fiber->block->index : none;
    fprintf(stderr, "simulator: %s: %s (block %u,%u,%u thread %d)\n", running().kernel, what, at.x, at.y, at.z,
            running().fiber ? (int)running().fiber->index : -1);
    for (auto& block : running().blocks)
        for (auto& fiber : block.fibers)
            if (fiber.index < block.threads && !fiber.done && fiber.index % 32 == 0)
                fprintf(stderr, "  block %u,%u,%u thread %u waits at %s\n", block.index.x, block.index.y,
                        block.index.z, fiber.index, fiber.waits_at);
    abort();
}

// Goes on with the next thread that does not wait, or with the host when there is none left.
static void pass_on(void** save) {
    Running& now = running();
    while (now.alive) {
        if (++now.turn == now.turns.size()) {
            now.turn = 0;
            if (now.progress == now.progress_before) {
                now.fiber = nullptr;
                die("every thread waits");
            }
            now.progress_before = now.progress;
        }
        const Turn& turn = now.turns[now.turn];
        if (!turn.fiber || (turn.generation && *turn.generation == turn.seen && turn.ended == now.ended)) continue;
        // It may be the one that passes on.
        void* to = turn.fiber->stack_pointer;
        const bool stays = turn.fiber == now.fiber;
        now.fiber = turn.fiber;
        if (!stays) sim_switch(save, to);
        return;
    }
    sim_switch(save, now.host);
}

void yield(const char* at, const unsigned* generation) {
    Fiber& fiber = self();
    Turn& turn = *fiber.turn;
    fiber.waits_at = at;
    turn.generation = generation;
    if (generation) turn.seen = *generation;
    turn.ended = running().ended;
    pass_on(&fiber.stack_pointer);
}

// What shared memory has beyond what was asked for.
static void check_slack(const Block& block) {
    for (const unsigned char* at = block.shared() + block.shared_bytes; at < block.memory.end; at++)
        if (*at != GUARD_BYTE) die("something was written behind a block's shared memory");
}

static void enter() {
    running().body();
    Fiber& fiber = self();
    for (auto& group : fiber.copy_groups)
        if (!group.empty()) die("a thread ends with copies in flight");
    if (!fiber.open_copies.empty()) die("a thread ends with copies it did not commit");
    if (!fiber.open_stores.empty() || !fiber.store_groups.empty()) die("a thread ends with stores that still read shared memory");
    if (!warpgroup().open.empty() || !warpgroup().committed.empty()) die("a warpgroup ends with products in flight");
    fiber.done = true;
    if (!--fiber.block->live) check_slack(*fiber.block);
    warp().live &= ~(1u << lane());
    fiber.turn->fiber = nullptr;
    running().ended++;
    running().alive--;
    running().progress++;
    pass_on(&fiber.stack_pointer);
    abort();
}

static void start(Block& block, const Grid& grid, uint3 index) {
    block.index = index;
    block.threads = block.live = grid.threads;
    block.shared_bytes = grid.shared_bytes;
    while (block.fibers.size() < grid.threads) block.fibers.emplace_back();
    block.warps.assign((grid.threads + 31) / 32, Warp{});
    block.warpgroups.assign((grid.threads + 127) / 128, Warpgroup{});
    block.barrier = Barrier{};
    for (auto& barrier : block.named) barrier = Barrier{};
    memset(block.shared(), 0xFF, block.shared_bytes);
    memset(block.shared() + block.shared_bytes, GUARD_BYTE, block.memory.end - block.shared() - block.shared_bytes);
    for (unsigned i = 0; i < grid.threads; i++) {
        Fiber& fiber = block.fibers[i];
        fiber.block = &block;
        fiber.index = i;
        fiber.done = false;
        fiber.products = 0;
        fiber.copy_groups.clear();
        fiber.open_copies.clear();
        fiber.open_stores.clear();
        fiber.store_groups.clear();
        // Stacks lie at even distances: without this their ends, which are what is used, would all compete for the same few places of the cache.
        const unsigned shift = i % 64 * 320;
        void** top = (void**)(((uintptr_t)fiber.stack.get() + STACK_BYTES - shift) & ~uintptr_t(15));
        *--top = nullptr;
        *--top = (void*)enter;
        for (int i = 0; i < 6; i++) *--top = nullptr;
        fiber.stack_pointer = top;
        block.warps[i / 32].live |= 1u << (i % 32);
    }
}

static void check_guards() {
    static const std::vector<unsigned char> guard(256, GUARD_BYTE);
    for (auto& [data, bytes] : running().device->allocations) {
        const size_t before = std::min(pages(bytes) - bytes, guard.size());
        if (memcmp(data - before, guard.data(), before)) die("something was written before an allocation");
    }
}

void run(const char* kernel, const Grid& grid, unsigned cluster, std::function<void()> body) {
    static const char* order = getenv("TUCO_SIM_ORDER");
    // Every second launch of a device runs its blocks and threads from the last to the first.
    const bool reversed = (running().device->launches++ % 2 == 1) != (order && strcmp(order, "reversed") == 0);
    running().kernel = kernel;
    running().grid = grid;
    running().cluster = cluster;
    running().body = std::move(body);
    if (grid.shared_bytes > (strstr(kernel, "_sm90") ? SHARED_BYTES : LEAST_SHARED_BYTES)) die("more shared memory than a block has");
    if (grid.blocks[0] % cluster) die("the grid is not made of whole clusters");
    while (running().blocks.size() < cluster) running().blocks.emplace_back();
    const unsigned total = grid.blocks[0] * grid.blocks[1] * grid.blocks[2];
    std::vector<Turn>& turns = running().turns;
    turns.resize(cluster * grid.threads);
    for (unsigned n = 0; n < total; n += cluster) {
        const unsigned first = reversed ? total - cluster - n : n;
        running().cluster_barrier = Barrier{};
        for (unsigned i = 0; i < cluster; i++) {
            const unsigned b = first + i;
            start(running().blocks[i], grid,
                  {b % grid.blocks[0], b / grid.blocks[0] % grid.blocks[1], b / (grid.blocks[0] * grid.blocks[1])});
        }
        for (unsigned i = 0; i < turns.size(); i++) {
            const unsigned at = reversed ? unsigned(turns.size()) - 1 - i : i;
            turns[i] = {&running().blocks[at / grid.threads].fibers[at % grid.threads]};
            turns[i].fiber->turn = &turns[i];
        }
        running().fiber = nullptr;
        running().alive = unsigned(turns.size());
        // The first turn follows the last.
        running().turn = turns.size() - 1;
        running().progress_before = running().progress - 1;
        pass_on(&running().host);
    }
    running().fiber = nullptr;
    check_guards();
}

void check_global(const void* from, size_t bytes) {
    const unsigned char* start = (const unsigned char*)from;
    const auto& all = running().device->allocations;
    auto after = all.upper_bound(start);
    if (after == all.begin()) die("a copy reads outside an allocation");
    const auto& [data, size] = *--after;
    if (start + bytes > data + size) die("a copy reads outside an allocation");
}

}  // namespace sim

extern "C" {

sim::Device* sim_open() {
    static const bool watching = (sim::watch_faults(), true);
    (void)watching;
    return new sim::Device;
}

void sim_close(sim::Device* device) {
    for (auto& [data, bytes] : device->allocations) sim::release((unsigned char*)data, bytes);
    delete device;
}

// Memory full of NaN, `bytes` a multiple of what it has to be aligned to.
void* sim_alloc(sim::Device* device, size_t bytes) {
    unsigned char* data = sim::guarded(bytes);
    memset(data, 0xFF, bytes);
    device->allocations[data] = bytes;
    return data;
}

void sim_free(sim::Device* device, unsigned char* data) {
    const auto allocation = device->allocations.find(data);
    if (allocation == device->allocations.end()) sim::die("memory is freed that was not allocated");
    const size_t bytes = allocation->second;
    device->allocations.erase(allocation);
    sim::release(data, bytes);
}

// 0, or 1 for a kernel that is not there, 2 for arguments or threads that are not its own.
int sim_launch(sim::Device* device, const char* name, const sim::Grid* grid, const void* args, size_t bytes) {
    for (auto& entry : sim::kernels()) {
        if (strcmp(entry.name, name)) continue;
        if (entry.argument_bytes != bytes || entry.threads != grid->threads) return 2;
        sim::running().device = device;
        entry.launch(*grid, args);
        return 0;
    }
    return 1;
}

}  // extern "C"
