/* A driver for machines without one: what tests/driver.rs loads as libcuda.so.1. It comes as far as DRIVER says and then fails, or computes
   nothing but holds the host to its rules: memory that is not there is not written, pinned memory that a copy still reads is left alone,
   descriptions of matrices are such as hardware takes. Of memory it has as many bytes as MEMORY says. It tells what breaks a rule, and at
   the end what was made and not given back. The numbers of errors and attributes are those of cuda.h. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, NO_CONTEXT = 201, NO_BINARY = 209, UNKNOWN = 999 };
enum { MOST_THREADS = 1024, MOST_BLOCKS = 65535, STAGED = 64 << 10 };

/* The calls of all threads take turns. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

/* How often the context was made current in this thread. */
static __thread int current;
/* Contexts, streams, events and modules that are there, and how often the context is current in all threads. */
static int made, entered;

/* Memory: of the device, or of the host and pinned. */
struct memory {
    struct memory *next;
    char *at;
    size_t bytes;
};
static struct memory *allocated, *pinned;
static size_t used;

/* Work is asked for in its order: so much of it was, so much was waited for. */
struct stream {
    uint64_t asked;
};
struct event {
    struct stream *stream;
    uint64_t asked;
};

/* A copy from pinned memory that nobody has waited for. */
struct copy {
    struct copy *next;
    struct stream *stream;
    uint64_t asked;
    const char *from;
    size_t bytes;
    uint64_t sum;
};
static struct copy *copies;

static int is(const char *scene) {
    const char *driver = getenv("DRIVER");
    return driver != NULL && strcmp(driver, scene) == 0;
}

/* Shared memory of a block: that of an H100 or of an A100. */
static int most_shared(void) {
    return (is("computes on Hopper") ? 227 : 163) << 10;
}

static int broken(const char *rule) {
    fprintf(stderr, "driver: %s\n", rule);
    return INVALID;
}

static uint64_t sum_of(const char *from, size_t bytes) {
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i++) sum = sum * 31 + (unsigned char)from[i];
    return sum;
}

/* What a stream was asked for up to `asked` is done. */
static void complete(struct stream *stream, uint64_t asked) {
    for (struct copy **place = &copies; *place != NULL;) {
        struct copy *copy = *place;
        if (copy->stream != stream || copy->asked > asked) {
            place = &copy->next;
            continue;
        }
        if (sum_of(copy->from, copy->bytes) != copy->sum) broken("pinned memory was written while a copy read it");
        *place = copy->next;
        free(copy);
    }
}

static size_t bytes_of(const struct memory *memory) {
    size_t bytes = 0;
    for (; memory != NULL; memory = memory->next) bytes += memory->bytes;
    return bytes;
}

static int holds(const struct memory *memory, uint64_t at, size_t bytes) {
    for (; memory != NULL; memory = memory->next) {
        uint64_t start = (uint64_t)memory->at;
        if (at >= start && at + bytes <= start + memory->bytes) return 1;
    }
    return 0;
}

static int add(struct memory **list, void **at, size_t bytes) {
    struct memory *memory = malloc(sizeof *memory);
    *memory = (struct memory){*list, aligned_alloc(256, (bytes + 255) / 256 * 256), bytes};
    memset(memory->at, 0, bytes);
    *list = memory;
    *at = memory->at;
    return 0;
}

static int take_off(struct memory **list, uint64_t at) {
    for (; *list != NULL; list = &(*list)->next) {
        if ((uint64_t)(*list)->at != at) continue;
        struct memory *memory = *list;
        *list = memory->next;
        free(memory->at);
        free(memory);
        return 0;
    }
    return broken("memory was freed that is not there");
}

static size_t memory_bytes(void) {
    const char *memory = getenv("MEMORY");
    return memory == NULL ? (size_t)1 << 30 : strtoull(memory, NULL, 10);
}

__attribute__((destructor)) static void tell(void) {
    while (copies != NULL) complete(copies->stream, UINT64_MAX);
    if (made != 0 || entered != 0)
        fprintf(stderr, "driver: %d things are left, the context is current %d times\n", made, entered);
    if (allocated != NULL || pinned != NULL)
        fprintf(stderr, "driver: %zu bytes of the device are left, %zu of the host\n", bytes_of(allocated), bytes_of(pinned));
}

/* Everything but what comes before the context asks for it to be current. */
#define TURN(work)                             \
    do {                                       \
        if (current <= 0) return NO_CONTEXT;   \
        pthread_mutex_lock(&turn);             \
        int turn_result = (work);              \
        pthread_mutex_unlock(&turn);           \
        return turn_result;                    \
    } while (0)

static int make(void **thing, size_t bytes) {
    *thing = calloc(1, bytes);
    made++;
    return 0;
}

static int drop(void *thing) {
    if (thing == NULL) return UNKNOWN;
    free(thing);
    made--;
    return 0;
}

int cuInit(unsigned flags) {
    return flags != 0 || is("does not start") ? UNKNOWN : is("no device") ? NO_DEVICE : 0;
}

int cuGetErrorString(int error, const char **text) {
    *text = error == NO_MEMORY ? "out of memory" : error == NO_BINARY ? "no kernel image is available" : "unknown error";
    return 0;
}

int cuDeviceGetCount(int *count) {
    *count = is("none visible") ? 0 : 1;
    return 0;
}

int cuDriverGetVersion(int *version) {
    *version = is("old driver") ? 12080 : 13000;
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return 0;
}

int cuDeviceGetName(char *name, int bytes, int device) {
    strncpy(name, "GPU of a test", (size_t)bytes);
    return device;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    enum { MULTIPROCESSORS = 16, CACHE = 38, MAJOR = 75, MINOR = 76, SHARED = 97 };
    switch (attribute) {
    case MULTIPROCESSORS: *value = 132; break;
    case CACHE: *value = 50 << 20; break;
    case MAJOR: *value = is("old GPU") ? 7 : is("computes on Hopper") ? 9 : 8; break;
    case MINOR: *value = is("old GPU") ? 5 : 0; break;
    case SHARED: *value = most_shared(); break;
    default: return UNKNOWN;
    }
    return device;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    if (is("no memory")) return NO_MEMORY;
    return make(context, 1) + device;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    made--;
    return device;
}

int cuCtxPushCurrent_v2(void *context) {
    current++;
    __sync_fetch_and_add(&entered, 1);
    return context == NULL;
}

int cuCtxPopCurrent_v2(void **context) {
    *context = NULL;
    current--;
    __sync_fetch_and_sub(&entered, 1);
    return 0;
}

int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = *greatest = 0;
    return current > 0 ? 0 : NO_CONTEXT;
}

int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    TURN(flags == 0 || priority != 0 ? UNKNOWN : make(stream, sizeof(struct stream)));
}

static int synchronize(struct stream *stream) {
    complete(stream, stream->asked);
    return 0;
}

int cuStreamSynchronize(struct stream *stream) {
    TURN(synchronize(stream));
}

int cuStreamDestroy_v2(struct stream *stream) {
    TURN(synchronize(stream) + drop(stream));
}

int cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
    TURN(stream == NULL || event == NULL ? broken("a stream waits for no event") : (int)flags);
}

int cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    TURN(make(event, sizeof(struct event)));
}

int cuEventDestroy_v2(struct event *event) {
    TURN(drop(event));
}

static int record(struct event *event, struct stream *stream) {
    *event = (struct event){stream, ++stream->asked};
    return 0;
}

int cuEventRecord(struct event *event, struct stream *stream) {
    TURN(record(event, stream));
}

static int finish(struct event *event) {
    if (event->stream != NULL) complete(event->stream, event->asked);
    return 0;
}

int cuEventSynchronize(struct event *event) {
    TURN(finish(event));
}

int cuModuleLoadData(void **module, const void *image) {
    if (image == NULL) return UNKNOWN;
    if (!is("computes") && !is("computes on Hopper")) return *module = NULL, NO_BINARY;
    TURN(make(module, 1));
}

int cuModuleUnload(void *module) {
    TURN(drop(module));
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = module;
    TURN(strncmp(name, "tuco_", 5) == 0 ? 0 : broken("a kernel has another's name"));
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
    enum { SHARED = 8 };
    TURN(function == NULL || (attribute == SHARED && value > most_shared()) ? broken("a kernel asks for too much memory") : 0);
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *all_bytes) {
    *all_bytes = memory_bytes();
    *free_bytes = *all_bytes - used;
    return current > 0 ? 0 : NO_CONTEXT;
}

static int allocate(void **at, size_t bytes) {
    if (bytes == 0) return broken("no memory is allocated");
    if (used + bytes > memory_bytes()) return NO_MEMORY;
    used += bytes;
    return add(&allocated, at, bytes);
}

int cuMemAlloc_v2(void **at, size_t bytes) {
    TURN(allocate(at, bytes));
}

static int give_back(uint64_t at) {
    for (struct memory *memory = allocated; memory != NULL; memory = memory->next)
        if ((uint64_t)memory->at == at) used -= memory->bytes;
    return take_off(&allocated, at);
}

int cuMemFree_v2(uint64_t at) {
    TURN(give_back(at));
}

int cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
    TURN(add(&pinned, at, bytes) + (int)flags);
}

static int unpin(void *at) {
    for (struct copy *copy = copies; copy != NULL; copy = copy->next)
        if (copy->from == at) return broken("pinned memory is freed that a copy reads");
    return take_off(&pinned, (uint64_t)at);
}

int cuMemFreeHost(void *at) {
    TURN(unpin(at));
}

static int bring(uint64_t to, const void *from, size_t bytes, struct stream *stream) {
    if (!holds(allocated, to, bytes)) return broken("a copy writes where no memory is");
    memcpy((void *)to, from, bytes);
    stream->asked++;
    if (!holds(pinned, (uint64_t)from, bytes)) {
        return bytes > STAGED ? broken("a copy of memory that is not pinned may read it later") : 0;
    }
    struct copy *copy = malloc(sizeof *copy);
    *copy = (struct copy){copies, stream, stream->asked, from, bytes, sum_of(from, bytes)};
    copies = copy;
    return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, struct stream *stream) {
    TURN(bring(to, from, bytes, stream));
}

static int fetch(void *to, uint64_t from, size_t bytes, struct stream *stream) {
    if (!holds(allocated, from, bytes)) return broken("a copy reads where no memory is");
    memcpy(to, (const void *)from, bytes);
    stream->asked++;
    return 0;
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, struct stream *stream) {
    TURN(fetch(to, from, bytes, stream));
}

static int clear(uint64_t at, unsigned char value, size_t bytes, struct stream *stream) {
    if (!holds(allocated, at, bytes)) return broken("memory is cleared that is not there");
    memset((void *)at, value, bytes);
    stream->asked++;
    return 0;
}

int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, struct stream *stream) {
    TURN(clear(at, value, bytes, stream));
}

struct launch {
    unsigned grid[3], block[3], shared;
    struct stream *stream;
    void *attributes;
    unsigned attribute_count;
};

static int launch(const struct launch *config, void *function) {
    const unsigned *grid = config->grid, *block = config->block;
    if (function == NULL || config->stream == NULL) return broken("a kernel is not there");
    if (grid[0] == 0 || grid[1] == 0 || grid[1] > MOST_BLOCKS || grid[2] == 0 || grid[2] > MOST_BLOCKS)
        return broken("a kernel has a grid that is none");
    if (block[0] == 0 || block[0] > MOST_THREADS || block[1] != 1 || block[2] != 1 || config->shared > (unsigned)most_shared())
        return broken("a kernel has blocks that are none");
    if ((config->attributes == NULL) != (config->attribute_count == 0)) return broken("a kernel lacks its attributes");
    config->stream->asked++;
    return 0;
}

int cuLaunchKernelEx(const struct launch *config, void *function, void **args, void **extra) {
    TURN(args == NULL || extra != NULL ? UNKNOWN : launch(config, function));
}

static int describe(int type, unsigned rank, uint64_t at, const uint64_t *dims, const uint64_t *strides, const unsigned *box) {
    enum { F32 = 7, BF16 = 9 };
    size_t element = type == F32 ? 4 : type == BF16 ? 2 : 0;
    if (element == 0 || rank != 2 || at % 16 != 0 || strides[0] % 16 != 0 || strides[0] >> 40 != 0)
        return broken("a matrix lies as hardware does not take it");
    if (dims[0] == 0 || dims[1] == 0 || dims[0] >> 32 != 0 || dims[1] >> 32 != 0 || box[0] == 0 || box[1] == 0 || box[1] > 256)
        return broken("a matrix has a shape that hardware does not take");
    if (box[0] * element > 128) return broken("rows of a box are wider than what is swizzled");
    if (!holds(allocated, at, (dims[1] - 1) * strides[0] + dims[0] * element)) return broken("a matrix goes beyond its memory");
    return 0;
}

int cuTensorMapEncodeTiled(void *map, int type, unsigned rank, uint64_t at, const uint64_t *dims, const uint64_t *strides,
                           const unsigned *box, const unsigned *steps, int interleave, int swizzle, int promotion, int outside) {
    enum { SWIZZLE_128B = 3, PROMOTION_256B = 3 };
    if (steps[0] != 1 || steps[1] != 1 || interleave != 0 || swizzle != SWIZZLE_128B || promotion != PROMOTION_256B || outside != 0)
        return UNKNOWN;
    TURN((uint64_t)map % 64 != 0 ? broken("a description is not aligned") : describe(type, rank, at, dims, strides, box));
}
