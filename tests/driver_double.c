/* A driver without a GPU: "GPU memory" is heap memory, contexts and streams are counted, any call can be made to fail. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int current, retained, streams, blocks, pinned, failing_calls;
static char failing[64];
static int failing_code;

static int fails(const char *name) {
    if (strcmp(name, failing)) return 0;
    failing_calls++;
    return failing_code;
}
#define BEGIN(name) do { int code = fails(name); if (code) return code; } while (0)
#define IN_CONTEXT do { if (!current) return 201; } while (0) /* CUDA_ERROR_INVALID_CONTEXT */

void double_fail(const char *name, int code) { strncpy(failing, name, 63); failing_code = code; failing_calls = 0; }
int double_failed(void) { return failing_calls; }
void double_counts(int *counts) {
    counts[0] = current; counts[1] = retained; counts[2] = streams; counts[3] = blocks; counts[4] = pinned;
}

void double_forget(void) { current = retained = streams = blocks = pinned = 0; } /* of what a test left behind on purpose */

int cuInit(unsigned flags) { (void)flags; return fails("cuInit"); }
int cuDeviceGet(int *device, int index) { BEGIN("cuDeviceGet"); *device = 40 + index; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    BEGIN("cuDevicePrimaryCtxRetain");
    if (device != 40) return 101;
    *context = (void *)0x7777; retained++;
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    BEGIN("cuDevicePrimaryCtxRelease_v2");
    if (device != 40) return 101;
    retained--;
    return 0;
}
int cuCtxPushCurrent_v2(void *context) {
    BEGIN("cuCtxPushCurrent_v2");
    if (context != (void *)0x7777) return 201;
    current++;
    return 0;
}
int cuCtxPopCurrent_v2(void **context) {
    BEGIN("cuCtxPopCurrent_v2"); IN_CONTEXT;
    current--;
    *context = (void *)0x7777;
    return 0;
}
int cuCtxGetCurrent(void **context) { *context = current ? (void *)0x7777 : 0; return 0; }
int cuStreamCreate(void **stream, unsigned flags) {
    BEGIN("cuStreamCreate"); IN_CONTEXT;
    if (flags != 1) return 1;
    *stream = malloc(1); streams++;
    return 0;
}
int cuStreamDestroy_v2(void *stream) { IN_CONTEXT; free(stream); streams--; return 0; }
int cuStreamSynchronize(void *stream) { BEGIN("cuStreamSynchronize"); IN_CONTEXT; return stream ? 0 : 400; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    BEGIN("cuMemAlloc_v2"); IN_CONTEXT;
    char *block = malloc(size + 8);
    memcpy(block, &size, 8); memset(block + 8, 0xcc, size);
    *address = (uint64_t)(block + 8); blocks++;
    return 0;
}
int cuMemFree_v2(uint64_t address) { BEGIN("cuMemFree_v2"); IN_CONTEXT; free((char *)address - 8); blocks--; return 0; }
int cuMemAllocHost_v2(void **pointer, size_t size) {
    BEGIN("cuMemAllocHost_v2"); IN_CONTEXT;
    *pointer = malloc(size); memset(*pointer, 0xcc, size); pinned++;
    return 0;
}
int cuMemFreeHost(void *pointer) { BEGIN("cuMemFreeHost"); IN_CONTEXT; free(pointer); pinned--; return 0; }
static int copy(void *to, const void *from, uint64_t block, size_t size, void *stream) {
    size_t room;
    IN_CONTEXT;
    memcpy(&room, (char *)block - 8, 8);
    if (!stream || size > room) return 1;
    memcpy(to, from, size);
    return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t address, const void *host, size_t size, void *stream) {
    BEGIN("cuMemcpyHtoDAsync_v2");
    return copy((void *)address, host, address, size, stream);
}
int cuMemcpyDtoHAsync_v2(void *host, uint64_t address, size_t size, void *stream) {
    BEGIN("cuMemcpyDtoHAsync_v2");
    return copy(host, (void *)address, address, size, stream);
}
int cuGetErrorName(int code, const char **name) {
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 201 ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR_UNKNOWN";
    return 0;
}
