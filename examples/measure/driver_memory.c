// What the CUDA driver takes to give memory and to take it back, piece by piece, as PyTorch's expandable
// segments ask for it: cuMemCreate, cuMemMap and cuMemSetAccess; then cuMemUnmap and cuMemRelease.
//
//     cc -O2 -o driver_memory driver_memory.c -I/usr/local/cuda/include -lcuda -lpthread
//     ./driver_memory
//
// One JSON object a line, times in microseconds for each piece: "there" until it can be used, "back" until it is
// gone. The GPU needs 75 GB that are free. Processes share it, each with a context of its own, and begin together.
#include <cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1ull << 20)
#define GIB (1024 * MIB)
#define CHECK(call)                                                           \
    do {                                                                      \
        CUresult result_ = (call);                                            \
        if (result_ != CUDA_SUCCESS) {                                        \
            const char *name_ = "?";                                          \
            cuGetErrorName(result_, &name_);                                  \
            fprintf(stderr, "line %d, %s: %s\n", __LINE__, #call, name_);     \
            _exit(1);                                                         \
        }                                                                     \
    } while (0)

enum { CREATE, MAP, ACCESS, UNMAP, RELEASE, CALLS };
static const char *const NAMES[CALLS] = {"create", "map", "access", "unmap", "release"};

// Pieces of `piece` bytes are taken and given back `cycles` times, `pieces` at a time, while `held` bytes stay.
typedef struct {
    const char *name;
    size_t piece, held;
    int pieces, cycles, processes;
    // A kernel of 16 blocks reads the host's memory over and over.
    int busy;
} Case;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec * 1e-3;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Ends when the flag is set, and after 15 s in any case.
static const char *const POLL =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry poll(.param .u64 flag)\n{\n .reg .pred p, q; .reg .u64 a, from, t; .reg .u32 v;\n"
    " ld.param.u64 a, [flag];\n cvta.to.global.u64 a, a;\n mov.u64 from, %globaltimer;\n"
    "L: ld.volatile.global.u32 v, [a];\n setp.ne.u32 p, v, 0;\n @p ret;\n mov.u64 t, %globaltimer;\n"
    " sub.u64 t, t, from;\n setp.lt.u64 q, t, 15000000000;\n @q bra L;\n ret;\n}\n";

static void begin(void) {
    CUdevice device;
    CUcontext context;
    alarm(60); // ends a process whose partner failed
    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&device, 0));
    CHECK(cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cuCtxSetCurrent(context));
}

static CUmemAllocationProp on_device(void) {
    CUmemAllocationProp prop;
    memset(&prop, 0, sizeof prop);
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    return prop;
}

static volatile unsigned *keep_busy(CUstream stream) {
    CUmodule module;
    CUfunction poll;
    CUdeviceptr at;
    unsigned *flag;
    CHECK(cuModuleLoadData(&module, POLL));
    CHECK(cuModuleGetFunction(&poll, module, "poll"));
    CHECK(cuMemHostAlloc((void **)&flag, sizeof *flag, CU_MEMHOSTALLOC_DEVICEMAP));
    *flag = 0;
    CHECK(cuMemHostGetDevicePointer(&at, flag, 0));
    void *arguments[] = {&at};
    CHECK(cuLaunchKernel(poll, 16, 1, 1, 128, 1, 1, 0, stream, arguments, NULL));
    return flag;
}

static void run(const Case *c, pthread_barrier_t *barrier, int process) {
    begin();
    CUmemAllocationProp prop = on_device();
    CUmemAccessDesc access = {.location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    int held = c->held / c->piece, all = held + c->pieces;
    CUmemGenericAllocationHandle *handles = calloc(all, sizeof *handles);
    double *times[CALLS];
    int count[CALLS] = {0};
    for (int k = 0; k < CALLS; k++) times[k] = calloc((size_t)all + c->pieces * c->cycles, sizeof(double));
    CUdeviceptr base;
    CHECK(cuMemAddressReserve(&base, all * c->piece, 0, 0, 0));
#define TIMED(k, call)                               \
    do {                                             \
        double start_ = now();                       \
        CHECK(call);                                 \
        times[k][count[k]++] = now() - start_;       \
    } while (0)
#define TAKE(i)                                                                       \
    do {                                                                              \
        TIMED(CREATE, cuMemCreate(&handles[i], c->piece, &prop, 0));                  \
        TIMED(MAP, cuMemMap(base + (i) * c->piece, c->piece, 0, handles[i], 0));      \
        TIMED(ACCESS, cuMemSetAccess(base + (i) * c->piece, c->piece, &access, 1));   \
    } while (0)
    for (int i = 0; i < held; i++) TAKE(i);
    memset(count, 0, sizeof count);
    CUstream stream;
    CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    volatile unsigned *flag = c->busy ? keep_busy(stream) : NULL;
    pthread_barrier_wait(barrier);
    double there = 0, back = 0;
    for (int cycle = 0; cycle < c->cycles; cycle++) {
        double start = now();
        for (int i = held; i < all; i++) TAKE(i);
        there += now() - start;
        if (!c->busy) {
            CHECK(cuMemsetD8Async(base + held * c->piece, 1, c->pieces * c->piece, stream));
            CHECK(cuStreamSynchronize(stream));
        }
        start = now();
        for (int i = held; i < all; i++) {
            TIMED(UNMAP, cuMemUnmap(base + i * c->piece, c->piece));
            TIMED(RELEASE, cuMemRelease(handles[i]));
        }
        back += now() - start;
    }
    pthread_barrier_wait(barrier);
    if (flag) *flag = 1;
    CHECK(cuCtxSynchronize());
    double pieces = (double)c->pieces * c->cycles;
    printf("{\"case\":\"%s\",\"piece\":%zu,\"held\":%zu,\"processes\":%d,\"process\":%d,\"there\":%.1f,\"back\":%.1f", c->name,
           c->piece, c->held, c->processes, process, there / pieces, back / pieces);
    for (int k = 0; k < CALLS; k++) {
        qsort(times[k], count[k], sizeof(double), compare);
        printf(",\"median %s\":%.1f", NAMES[k], times[k][count[k] / 2]);
    }
    printf("}\n");
    fflush(stdout);
}

// A request that the driver refuses, since too little is left.
static void refused(void) {
    begin();
    CUmemAllocationProp prop = on_device();
    CUmemGenericAllocationHandle handle;
    while (cuMemCreate(&handle, 20 * MIB, &prop, 0) == CUDA_SUCCESS)
        ;
    double start = now();
    for (int i = 0; i < 50; i++)
        if (cuMemCreate(&handle, 20 * MIB, &prop, 0) == CUDA_SUCCESS) _exit(1);
    printf("{\"case\":\"refused\",\"piece\":%llu,\"there\":%.1f}\n", 20 * MIB, (now() - start) / 50);
    fflush(stdout);
}

// cuMemAlloc and cuMemFree, as native segments ask for them.
static void native(size_t bytes) {
    enum { SEGMENTS = 12, CYCLES = 4 };
    begin();
    CUdeviceptr at[SEGMENTS];
    double there = 0, back = 0;
    for (int cycle = 0; cycle < CYCLES; cycle++) {
        double start = now();
        for (int i = 0; i < SEGMENTS; i++) CHECK(cuMemAlloc(&at[i], bytes));
        there += now() - start;
        CHECK(cuMemsetD8(at[0], 1, bytes));
        CHECK(cuCtxSynchronize());
        start = now();
        for (int i = 0; i < SEGMENTS; i++) CHECK(cuMemFree(at[i]));
        back += now() - start;
    }
    printf("{\"case\":\"native\",\"piece\":%zu,\"there\":%.1f,\"back\":%.1f}\n", bytes, there / SEGMENTS / CYCLES, back / SEGMENTS / CYCLES);
    fflush(stdout);
}

static int failed;

static void wait_for(int processes) {
    for (int i = 0; i < processes; i++) {
        int status;
        wait(&status);
        if (status) {
            fprintf(stderr, "a process failed\n");
            failed = 1;
        }
    }
}

static void each(Case c) {
    pthread_barrier_t *barrier = mmap(NULL, sizeof *barrier, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_barrierattr_t shared;
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(barrier, &shared, c.processes);
    fflush(stdout);
    for (int process = 0; process < c.processes; process++)
        if (fork() == 0) {
            run(&c, barrier, process);
            _exit(0);
        }
    wait_for(c.processes);
}

int main(void) {
    each((Case){"warm-up", 20 * MIB, 0, 100, 2, 1, 0});
    each((Case){"size", 2 * MIB, 0, 1000, 3, 1, 0});
    each((Case){"size", 20 * MIB, 0, 150, 6, 1, 0});
    each((Case){"size", 128 * MIB, 0, 60, 6, 1, 0});
    each((Case){"size", 512 * MIB, 0, 16, 6, 1, 0});
    each((Case){"held", 20 * MIB, 40 * GIB, 150, 6, 1, 0});
    each((Case){"held", 20 * MIB, 70 * GIB, 150, 6, 1, 0});
    each((Case){"busy", 20 * MIB, 60 * GIB, 100, 2, 1, 1});
    for (int n = 2; n <= 8; n *= 2) {
        each((Case){"processes", 2 * MIB, 0, 600, 3, n, 0});
        each((Case){"processes", 20 * MIB, 48 * GIB / n, 100, 4, n, 0});
        each((Case){"processes", 128 * MIB, 0, 30, 3, n, 0});
    }
    if (fork() == 0) {
        refused();
        _exit(0);
    }
    wait_for(1);
    size_t sizes[] = {20 * MIB, 234 * MIB, 512 * MIB};
    for (int k = 0; k < 3; k++) {
        if (fork() == 0) {
            native(sizes[k]);
            _exit(0);
        }
        wait_for(1);
    }
    return failed;
}
