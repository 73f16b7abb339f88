/* A driver that comes as far as DRIVER says and then fails, for machines without one: what tests/driver.rs loads as libcuda.so.1. Functions
   are those that are called until then; the numbers of errors and attributes are those of cuda.h. It tells at the end what was made and
   not given back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NO_MEMORY = 2, NO_DEVICE = 100, NO_CONTEXT = 201, NO_BINARY = 209, UNKNOWN = 999 };

/* Contexts, streams and events that are there; how often the context was made current in the one thread that does. */
static int made, current;

__attribute__((destructor)) static void tell(void) {
    if (made != 0 || current != 0) fprintf(stderr, "driver: %d things are left, the context is current %d times\n", made, current);
}

/* Makes something in the current context. */
static int make(void **thing) {
    if (current <= 0) return NO_CONTEXT;
    *thing = thing;
    made++;
    return 0;
}

static int drop(void) {
    if (current <= 0) return NO_CONTEXT;
    made--;
    return 0;
}

static int is(const char *scene) {
    const char *driver = getenv("DRIVER");
    return driver != NULL && strcmp(driver, scene) == 0;
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
    enum { MAJOR = 75, MINOR = 76 };
    *value = attribute == MAJOR ? (is("old GPU") ? 7 : 8) : attribute == MINOR ? (is("old GPU") ? 5 : 0) : 1;
    return device;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    if (is("no memory")) return NO_MEMORY;
    *context = context;
    made++;
    return device;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    made--;
    return device;
}

int cuCtxPushCurrent_v2(void *context) {
    current++;
    return context == NULL;
}

int cuCtxPopCurrent_v2(void **context) {
    *context = NULL;
    current--;
    return 0;
}

int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = *greatest = 0;
    return current > 0 ? 0 : NO_CONTEXT;
}

int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    return flags == 0 || priority != 0 ? UNKNOWN : make(stream);
}

int cuStreamDestroy_v2(void *stream) {
    return stream == NULL ? UNKNOWN : drop();
}

int cuEventCreate(void **event, unsigned flags) {
    return flags == 0 ? UNKNOWN : make(event);
}

int cuEventDestroy_v2(void *event) {
    return event == NULL ? UNKNOWN : drop();
}

int cuModuleLoadData(void **module, const void *image) {
    *module = NULL;
    return current > 0 && image != NULL ? NO_BINARY : UNKNOWN;
}
