/* A driver that comes as far as DRIVER says and then fails, for machines without one: what tests/driver.rs loads as libcuda.so.1. Functions
   are those that are called until then; the numbers of errors and attributes are those of cuda.h. */
#include <stdlib.h>
#include <string.h>

enum { NO_MEMORY = 2, NO_DEVICE = 100, NO_BINARY = 209, UNKNOWN = 999 };

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
    *context = context;
    return is("no memory") ? NO_MEMORY : device;
}

int cuCtxSetCurrent(void *context) {
    return context == NULL;
}

int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = *greatest = 0;
    return 0;
}

int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    *stream = stream;
    return flags == 0 || priority != 0;
}

int cuStreamCreate(void **stream, unsigned flags) {
    return cuStreamCreateWithPriority(stream, flags, 0);
}

int cuEventCreate(void **event, unsigned flags) {
    *event = event;
    return flags == 0;
}

int cuModuleLoadData(void **module, const void *image) {
    *module = NULL;
    return image != NULL ? NO_BINARY : UNKNOWN;
}
