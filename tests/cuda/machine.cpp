/*
 * The emulated machine: its memory, its streams, and the calls of CUDA's runtime.
 * SPDX-License-Identifier: MIT
 *
 * One lock guards it all, so that programs with several threads can use it.
 */
#include "tests/cuda/machine.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
enum { WITH_ASAN = 1 };
#else
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
enum { WITH_ASAN = 0 };
#endif

enum { ALIGN = 256, SPOILED = 0xff };
static const size_t HUGE_PAGE = 2 << 20;

void emulator_die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("CUDA emulator: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

namespace
{

typedef std::lock_guard<std::recursive_mutex> hold;
std::recursive_mutex lock;

const char *variable(const char *name, const char *otherwise)
{
    const char *const v = getenv(name);
    return v && *v ? v : otherwise;
}

/* ---- Order -------------------------------------------------------------------------------- */

struct settings {
    emulator_order order = EMULATOR_FORWARD;
    uint64_t seed = 1;
    int n_gpus = 1;
    size_t capacity = (size_t)8 << 30;
    unsigned fail_at[EMULATOR_FAILURES] = {0}, calls[EMULATOR_FAILURES] = {0};

    settings()
    {
        const std::string o = variable("SQ_EMULATOR_ORDER", "forward");
        if (o == "reverse")
            order = EMULATOR_REVERSE;
        else if (o.compare(0, 8, "shuffled") == 0)
            order = EMULATOR_SHUFFLED;
        else if (o != "forward")
            emulator_die("SQ_EMULATOR_ORDER: \"%s\"", o.c_str());
        if (o.size() > 9) seed = strtoull(o.c_str() + 9, nullptr, 10);
        n_gpus = atoi(variable("SQ_EMULATOR_GPUS", "1"));
        capacity = strtoull(variable("SQ_EMULATOR_MEMORY", "8589934592"), nullptr, 10);
        read_failure(variable("SQ_EMULATOR_FAIL", ""));
    }

    void read_failure(const std::string &f)
    {
        static const char *const names[] = {"malloc:", "pinned:", "stream:", "blas:", "launch:"};
        for (int i = 0; i < EMULATOR_FAILURES; i++)
            if (f.compare(0, strlen(names[i]), names[i]) == 0)
                fail_at[i] = (unsigned)atoi(f.c_str() + strlen(names[i]));
    }
};

settings &set()
{
    static settings s;
    return s;
}

uint64_t random_number()
{
    uint64_t z = set().seed += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* ---- Memory ------------------------------------------------------------------------------- */

struct block {
    size_t bytes, room; /* asked for, and rounded up */
};

/* The range is handed out from its beginning on and never again, so that what is freed is never somebody else's. */
unsigned char *region;
size_t region_size, region_used, live_bytes;
std::map<uintptr_t, block> blocks, pinned;
int open_count;

bool in_region(const void *p)
{
    return region && (const unsigned char *)p >= region && (const unsigned char *)p < region + region_size;
}

void make_region()
{
    if (region) return;
    void *const wish = (void *)(uintptr_t)0x200000000000;
    for (region_size = (size_t)1 << 40; region_size >= (size_t)1 << 30; region_size /= 2) {
        void *const p = mmap(wish, region_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) continue;
        region = (unsigned char *)p;
        break;
    }
    if (!region) emulator_die("no addresses for the device's memory");
    madvise(region, region_size, MADV_HUGEPAGE); /* opening and closing them takes a 500th of the time */
}

size_t rounded(size_t n, size_t step) { return (n + step - 1) / step * step; }

void protect(int how)
{
    if (region_used && mprotect(region, rounded(region_used, HUGE_PAGE), how))
        emulator_die("mprotect: %s", strerror(errno));
}

/* Gaps of allocations, and what was rounded up, as they were left. ASan says it sooner. */
void check_gaps(const char *name)
{
    if (WITH_ASAN) return;
    for (const auto &b : blocks) {
        const unsigned char *const p = (const unsigned char *)b.first;
        const ptrdiff_t end = (ptrdiff_t)(b.second.room + ALIGN), bytes = (ptrdiff_t)b.second.bytes;
        ptrdiff_t before = -1, past = bytes;
        while (before >= -ALIGN && p[before] == SPOILED)
            before--;
        while (past < end && p[past] == SPOILED)
            past++;
        if (before >= -ALIGN || past < end)
            emulator_die("kernel %s wrote to byte %td of an allocation of %td", name, past < end ? past : before,
                         bytes);
    }
}

/* The allocation that p is in. */
std::map<uintptr_t, block>::const_iterator find(const std::map<uintptr_t, block> &in, const void *p)
{
    auto i = in.upper_bound((uintptr_t)p);
    if (i == in.begin()) return in.end();
    --i;
    return (uintptr_t)p - i->first < i->second.bytes ? i : in.end();
}

bool is_mapped(uintptr_t p)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    return !msync((void *)(p & ~(page - 1)), 1, MS_ASYNC) || errno != ENOMEM;
}

/* Two numbers side by side hardly look like an address: nothing of a program but ASan's shadow lies below LEAST. */
void check_argument(const char *name, const void *argument, size_t bytes)
{
    static const uintptr_t LEAST = 0x100080000000;
    for (size_t i = 0; i + sizeof(uintptr_t) <= bytes; i += sizeof(uintptr_t)) {
        uintptr_t word;
        memcpy(&word, (const char *)argument + i, sizeof word);
        const void *const p = (const void *)word;
        if (in_region(p)) {
            if (blocks.count(word) || find(blocks, p) != blocks.end()) continue;
            if (word && find(blocks, (const void *)(word - 1)) != blocks.end()) continue; /* an end */
            emulator_die("kernel %s: byte %zu of its argument points to no allocation of the device", name, i);
        }
        if (word >= LEAST && word < (uintptr_t)1 << 47 && is_mapped(word))
            emulator_die("kernel %s: byte %zu of its argument points into the program's memory", name, i);
    }
}

/* ---- Streams ------------------------------------------------------------------------------ */

struct task {
    const char *what;
    std::function<void()> work;
};

} // namespace

struct emulator_stream {
    bool waits_for_default;
    uint64_t begun, queued; /* tasks ever */
    std::deque<task> tasks;
};

struct emulator_event {
    emulator_stream *stream;
    uint64_t after; /* tasks of it */
};

namespace
{

std::set<emulator_stream *> streams;
std::set<emulator_event *> events;
cudaError_t last_error, broken; /* broken: what every call says from a failed launch on */
uint64_t n_launches;

cudaError_t tell(cudaError_t e)
{
    if (broken) e = broken;
    if (e) last_error = e;
    return e;
}

void check_stream(cudaStream_t s)
{
    if (s && !streams.count(s)) emulator_die("a stream that is closed");
}

void drain_to(emulator_stream *s, uint64_t end)
{
    while (s->begun < end) {
        task t = std::move(s->tasks.front());
        s->tasks.pop_front();
        s->begun++;
        if (!broken) t.work();
    }
}

void drain(cudaStream_t s)
{
    if (s) drain_to(s, s->queued);
}

void drain_all(bool with_others)
{
    for (emulator_stream *s : streams)
        if (with_others || s->waits_for_default) drain(s);
}

/* Bytes of the device and of pinned memory are taken when the stream comes to the copy; others at once. */
struct side {
    bool device, late;
};

side side_of(const char *what, const void *p, size_t bytes)
{
    if (in_region(p)) {
        emulator_check_range(what, p, bytes);
        return side{true, true};
    }
    return side{false, find(pinned, p) != pinned.end()};
}

void check_kind(cudaMemcpyKind kind, const side &to, const side &from)
{
    static const char *const names[] = {"host to host", "host to device", "device to host", "device to device"};
    if (kind == cudaMemcpyDefault) return;
    if ((kind & 1) != to.device || (kind >> 1) != from.device) emulator_die("a copy that is none from %s", names[kind]);
}

void move_bytes(void *to, const void *from, size_t bytes)
{
    const emulator_opened o;
    if (bytes) memcpy(to, from, bytes);
}

unsigned *failure_of(emulator_failure what) { return &set().fail_at[what]; }

} // namespace

emulator_opened::emulator_opened()
{
    if (!open_count++) protect(PROT_READ | PROT_WRITE);
}

emulator_opened::~emulator_opened()
{
    if (!--open_count) protect(PROT_NONE);
}

emulator_permutation::emulator_permutation(uint64_t n_) : n(n_), seen(0), mask(0), step(1), at(0)
{
    while (mask + 1 < n)
        mask = mask * 2 + 1;
    if (set().order == EMULATOR_REVERSE) at = step = mask;
    if (set().order == EMULATOR_SHUFFLED) {
        at = random_number() & mask;
        step = (random_number() | 1) & mask;
    }
}

bool emulator_permutation::next(uint64_t *i)
{
    while (seen <= mask) {
        *i = at;
        at = (at + step) & mask;
        seen++;
        if (*i < n) return true;
    }
    return false;
}

bool emulator_fails(emulator_failure what)
{
    unsigned *const at = failure_of(what);
    return *at && ++set().calls[what] == *at;
}

void emulator_check_range(const char *what, const void *p, size_t bytes)
{
    const hold h(lock);
    const auto b = find(blocks, p);
    if (!bytes && (b != blocks.end() || find(blocks, (const char *)p - 1) != blocks.end())) return;
    if (b == blocks.end()) emulator_die("%s: no allocation of the device is there", what);
    const size_t offset = (uintptr_t)p - b->first;
    if (bytes > b->second.bytes - offset)
        emulator_die("%s: %zu bytes from %zu on, in an allocation of %zu", what, bytes, offset, b->second.bytes);
}

void emulator_queue(cudaStream_t s, const char *what, std::function<void()> work)
{
    const hold h(lock);
    check_stream(s);
    if (!s) {
        drain_all(false);
        if (!broken) work();
        return;
    }
    s->tasks.push_back(task{what, std::move(work)});
    s->queued++;
}

/* ---- For tests ---------------------------------------------------------------------------- */

void emulator_set_order(emulator_order order, uint64_t seed)
{
    const hold h(lock);
    set().order = order;
    set().seed = seed;
}

void emulator_fail(emulator_failure what, unsigned nth)
{
    const hold h(lock);
    *failure_of(what) = nth;
    set().calls[what] = 0;
    broken = last_error = cudaSuccess;
}

void emulator_set_gpus(int n)
{
    const hold h(lock);
    set().n_gpus = n;
}

size_t emulator_used_bytes()
{
    const hold h(lock);
    return live_bytes;
}

unsigned emulator_used_pieces()
{
    const hold h(lock);
    return (unsigned)(blocks.size() + pinned.size() + streams.size() + events.size());
}

uint64_t emulator_launches()
{
    const hold h(lock);
    return n_launches;
}

/* ---- CUDA's runtime: devices -------------------------------------------------------------- */

const char *cudaGetErrorName(cudaError_t e)
{
    switch (e) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorInvalidValue:
        return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver:
        return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
        return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
        return "cudaErrorInvalidDevice";
    case cudaErrorNotReady:
        return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
        return "cudaErrorLaunchFailure";
    }
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure:
        return "unspecified launch failure";
    default:
        return cudaGetErrorName(e);
    }
}

cudaError_t cudaGetLastError()
{
    const hold h(lock);
    const cudaError_t e = broken ? broken : last_error;
    last_error = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError()
{
    const hold h(lock);
    return broken ? broken : last_error;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 13000;
    return tell(cudaSuccess);
}

cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDeviceCount(int *n)
{
    const hold h(lock);
    *n = set().n_gpus;
    return tell(*n ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device)
{
    const hold h(lock);
    if (!set().n_gpus) return tell(cudaErrorNoDevice);
    return tell(device >= 0 && device < set().n_gpus ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return tell(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    const hold h(lock);
    if (device < 0 || device >= set().n_gpus) return tell(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated GPU");
    p->totalGlobalMem = set().capacity;
    p->sharedMemPerBlock = 48 << 10;
    p->major = 8;
    p->multiProcessorCount = 4;
    p->maxThreadsPerBlock = 1024;
    p->l2CacheSize = 4 << 20;
    return tell(cudaSuccess);
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int device)
{
    cudaDeviceProp p;
    const cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e == cudaSuccess)
        *value = a == cudaDevAttrMultiProcessorCount      ? p.multiProcessorCount
                 : a == cudaDevAttrComputeCapabilityMajor ? p.major
                                                          : p.minor;
    return e;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    const hold h(lock);
    *total = set().capacity;
    *left = set().capacity > live_bytes ? set().capacity - live_bytes : 0;
    return tell(cudaSuccess);
}

cudaError_t cudaDeviceSynchronize()
{
    const hold h(lock);
    drain_all(true);
    return tell(cudaSuccess);
}

/* ---- CUDA's runtime: memory --------------------------------------------------------------- */

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    const hold h(lock);
    if (broken) return tell(broken);
    if (!set().n_gpus) return tell(cudaErrorNoDevice);
    const size_t room = bytes <= set().capacity ? rounded(bytes ? bytes : 1, ALIGN) : 0;
    if (emulator_fails(EMULATOR_FAIL_MALLOC) || !room || live_bytes + room > set().capacity)
        return tell(cudaErrorMemoryAllocation);
    make_region();
    if (region_used + room + 2 * ALIGN > region_size) return tell(cudaErrorMemoryAllocation);
    unsigned char *const gap = region + region_used;
    region_used += room + 2 * ALIGN;
    const emulator_opened o;
    memset(gap, SPOILED, room + 2 * ALIGN);
    ASAN_POISON_MEMORY_REGION(gap, ALIGN);
    ASAN_POISON_MEMORY_REGION(gap + ALIGN + bytes, room - bytes + ALIGN);
    blocks[(uintptr_t)gap + ALIGN] = block{bytes, room};
    live_bytes += room;
    *p = gap + ALIGN;
    return tell(cudaSuccess);
}

cudaError_t cudaFree(void *p)
{
    const hold h(lock);
    if (!p) return tell(cudaSuccess);
    const auto b = blocks.find((uintptr_t)p);
    if (b == blocks.end()) emulator_die("cudaFree() of what is no allocation of the device");
    drain_all(true);
    {
        const emulator_opened o;
        memset(p, SPOILED, b->second.bytes);
    }
    ASAN_POISON_MEMORY_REGION(p, b->second.room);
    const uintptr_t first = rounded((uintptr_t)p, HUGE_PAGE),
                    end = ((uintptr_t)p + b->second.room) / HUGE_PAGE * HUGE_PAGE;
    if (end > first) madvise((void *)first, end - first, MADV_DONTNEED);
    live_bytes -= b->second.room;
    blocks.erase(b);
    return tell(cudaSuccess);
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags)
{
    (void)flags;
    const hold h(lock);
    if (broken) return tell(broken);
    void *const memory = emulator_fails(EMULATOR_FAIL_PINNED) ? nullptr : malloc(bytes ? bytes : 1);
    if (!memory) return tell(cudaErrorMemoryAllocation);
    memset(memory, SPOILED, bytes);
    pinned[(uintptr_t)memory] = block{bytes, bytes};
    *p = memory;
    return tell(cudaSuccess);
}

cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaHostAlloc(p, bytes, cudaHostAllocDefault); }

cudaError_t cudaFreeHost(void *p)
{
    const hold h(lock);
    if (!p) return tell(cudaSuccess);
    if (!pinned.count((uintptr_t)p)) emulator_die("cudaFreeHost() of what is no pinned memory");
    drain_all(true);
    pinned.erase((uintptr_t)p);
    free(p);
    return tell(cudaSuccess);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s)
{
    const hold h(lock);
    if (!bytes) return tell(cudaSuccess);
    const side t = side_of("a copy's target", to, bytes), f = side_of("a copy's source", from, bytes);
    check_kind(kind, t, f);
    check_stream(s);
    if (f.late) {
        emulator_queue(s, "copy", [=] { move_bytes(to, from, bytes); });
    } else {
        const std::string taken((const char *)from, bytes);
        emulator_queue(s, "copy", [=] { move_bytes(to, taken.data(), bytes); });
    }
    if (!t.late) drain(s);
    return tell(cudaSuccess);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s)
{
    const hold h(lock);
    if (!bytes) return tell(cudaSuccess);
    emulator_check_range("cudaMemset()", to, bytes);
    emulator_queue(s, "cudaMemset", [=] {
        const emulator_opened o;
        memset(to, value, bytes);
    });
    return tell(cudaSuccess);
}

cudaError_t cudaMemset(void *to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }

/* ---- CUDA's runtime: streams -------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    const hold h(lock);
    if (broken) return tell(broken);
    if (!set().n_gpus) return tell(cudaErrorNoDevice);
    if (emulator_fails(EMULATOR_FAIL_STREAM)) return tell(cudaErrorMemoryAllocation);
    *s = new emulator_stream();
    (*s)->waits_for_default = !(flags & cudaStreamNonBlocking);
    streams.insert(*s);
    return tell(cudaSuccess);
}

cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, cudaStreamDefault); }

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    const hold h(lock);
    if (!s) emulator_die("cudaStreamDestroy() of no stream");
    check_stream(s);
    drain(s);
    for (emulator_event *e : events)
        if (e->stream == s) e->stream = nullptr;
    streams.erase(s);
    delete s;
    return tell(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    const hold h(lock);
    check_stream(s);
    if (s)
        drain(s);
    else
        drain_all(false);
    return tell(cudaSuccess);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    (void)flags;
    const hold h(lock);
    if (broken) return tell(broken);
    if (emulator_fails(EMULATOR_FAIL_STREAM)) return tell(cudaErrorMemoryAllocation);
    *e = new emulator_event();
    events.insert(*e);
    return tell(cudaSuccess);
}

cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    const hold h(lock);
    if (!events.erase(e)) emulator_die("cudaEventDestroy() of no event");
    delete e;
    return tell(cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    const hold h(lock);
    check_stream(s);
    if (!events.count(e)) emulator_die("cudaEventRecord() of no event");
    e->stream = s;
    e->after = s ? s->queued : 0;
    return tell(cudaSuccess);
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    const hold h(lock);
    if (e->stream) drain_to(e->stream, e->after);
    return tell(cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    (void)flags;
    const hold h(lock);
    emulator_stream *const other = e->stream;
    const uint64_t after = e->after;
    if (!other) return tell(cudaSuccess);
    emulator_queue(s, "cudaStreamWaitEvent", [=] {
        if (streams.count(other)) drain_to(other, after);
    });
    return tell(cudaSuccess);
}

cudaError_t emulator_launch(const char *name, void (*kernel)(), emulator_call *call, dim3 grid, dim3 block,
                            const void *argument, const void *without_padding, size_t bytes, size_t shared_bytes,
                            cudaStream_t s)
{
    const hold h(lock);
    if (!set().n_gpus) return tell(cudaErrorNoDevice);
    if (shared_bytes) emulator_die("kernel %s: dynamic shared memory", name);
    if (bytes > 4096) emulator_die("kernel %s: an argument of %zu bytes", name, bytes);
    check_argument(name, without_padding, bytes);
    struct alignas(16) copy {
        unsigned char bytes[4096];
    };
    std::vector<copy> taken(1);
    memcpy(taken[0].bytes, argument, bytes);
    emulator_queue(s, name, [=] {
        if (emulator_fails(EMULATOR_FAIL_LAUNCH)) {
            broken = cudaErrorLaunchFailure;
            return;
        }
        const emulator_opened o;
        n_launches++;
        emulator_run_grid(name, kernel, call, grid, block, taken[0].bytes);
        check_gaps(name);
    });
    return tell(cudaSuccess);
}
