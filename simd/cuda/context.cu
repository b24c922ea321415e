/*
 * context: the device, its streams, its memory, its copies of the weights, and the table of all verbs.
 * SPDX-License-Identifier: MIT
 */
#include "simd/cuda/cuda.cuh"

enum { FIRST_PLACES = 1024, ALIGN = 64 };

static const size_t MIB = 1 << 20;

/* ---- Failures ---------------------------------------------------------------------------- */

void sq_cuda_fail(sq_stream *s, bool no_memory, const char *why)
{
    if (s->failed) return;
    s->failed = true;
    s->no_memory = no_memory;
    snprintf(s->why, sizeof s->why, "%s", why);
}

bool sq_cuda_check(sq_stream *s, cudaError_t e, const char *what)
{
    char why[sizeof s->why];
    if (e == cudaSuccess) return true;
    (void)cudaGetLastError(); /* CUDA's memory of it, for the next caller */
    snprintf(why, sizeof why, "%s: %s", what, cudaGetErrorString(e));
    sq_cuda_fail(s, e == cudaErrorMemoryAllocation, why);
    return false;
}

bool sq_cuda_ready(sq_stream *s)
{
    return !s->failed && sq_cuda_check(s, cudaSetDevice(s->device->id), "choosing the GPU");
}

/* ---- Streams ----------------------------------------------------------------------------- */

static void stream_close(sq_stream *s)
{
    if (!s) return;
    (void)cudaSetDevice(s->device->id);
    (void)cudaStreamSynchronize(s->stream);
    if (s->blas) (void)cublasDestroy(s->blas);
    for (int i = 0; i < SQ_SLOT_COUNT; i++)
        (void)cudaFree(s->scratch[i]);
    (void)cudaFreeHost(s->stage);
    (void)cudaStreamDestroy(s->stream);
    (void)cudaGetLastError();
    free(s);
}

static bool stream_open(sq_stream **out, sq_device *d, char *why, size_t why_size)
{
    *out = NULL;
    sq_stream *const s = (sq_stream *)calloc(1, sizeof *s);
    if (!s) {
        snprintf(why, why_size, "there is no memory for a stream");
        return false;
    }
    s->device = d;
    if (!sq_cuda_ready(s) ||
        !sq_cuda_check(s, cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "opening a stream")) {
        snprintf(why, why_size, "%s", s->why);
        free(s);
        return false;
    }
    *out = s;
    return true;
}

/* Waits; a failure is the stream's. */
static void wait_for(sq_stream *s)
{
    if (!sq_cuda_ready(s)) return;
    sq_cuda_check(s, cudaStreamSynchronize(s->stream), "running");
    s->staged = 0;
}

static bool finish(sq_stream *s, bool *no_memory, char *why, size_t why_size)
{
    wait_for(s);
    const bool ok = !s->failed;
    *no_memory = !ok && s->no_memory;
    if (ok) return true;
    snprintf(why, why_size, "%s", s->why);
    (void)cudaStreamSynchronize(s->stream); /* what was begun before the failure */
    (void)cudaGetLastError();
    return false;
}

/* ---- Devices ----------------------------------------------------------------------------- */

static bool find_gpu(sq_device *d, char *why, size_t why_size)
{
    int driver = 0, runtime = 0, n = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || !driver) {
        snprintf(why, why_size, "no NVIDIA driver is installed");
        return false;
    }
    const cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaErrorInsufficientDriver) {
        (void)cudaRuntimeGetVersion(&runtime);
        snprintf(why, why_size, "the NVIDIA driver is too old: it knows CUDA %d.%d, and %d.%d is needed", driver / 1000,
                 driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
        return false;
    }
    if (e != cudaSuccess && e != cudaErrorNoDevice) {
        snprintf(why, why_size, "the GPU cannot be used: %s", cudaGetErrorString(e));
        return false;
    }
    cudaDeviceProp about;
    for (d->id = 0; d->id < n; d->id++) {
        if (cudaGetDeviceProperties(&about, d->id) != cudaSuccess) continue;
        snprintf(d->label, sizeof d->label, "%s", about.name);
        d->n_sms = (uint32_t)about.multiProcessorCount;
        if (about.major >= 8) return true;
        snprintf(why, why_size, "%s is too old a GPU: its compute capability is %d.%d, and 8.0 is the least",
                 about.name, about.major, about.minor);
    }
    if (!d->n_sms) snprintf(why, why_size, "no GPU was found");
    return false;
}

static void device_close(sq_device *d)
{
    if (!d) return;
    stream_close(d->uploader);
    (void)cudaSetDevice(d->id);
    for (size_t i = 0; i < d->n_places; i++)
        if (d->uploads[i].host) (void)cudaFree(d->uploads[i].copy);
    (void)cudaGetLastError();
    free(d->uploads);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static bool device_open(sq_device **out, sq_precision precision, char *why, size_t why_size)
{
    *out = NULL;
    sq_device *const d = (sq_device *)calloc(1, sizeof *d);
    sq_upload *const uploads = (sq_upload *)calloc(FIRST_PLACES, sizeof *uploads);
    snprintf(why, why_size, "there is no memory for a list of weights");
    if (!d || !uploads || !find_gpu(d, why, why_size) || pthread_mutex_init(&d->lock, NULL)) {
        (void)cudaGetLastError();
        free(uploads);
        free(d);
        return false;
    }
    d->precision = precision;
    d->uploads = uploads;
    d->n_places = FIRST_PLACES;
    if (!stream_open(&d->uploader, d, why, why_size)) {
        device_close(d);
        return false;
    }
    *out = d;
    return true;
}

static const char *label(const sq_device *d) { return d->label; }

/* ---- Memory ------------------------------------------------------------------------------ */

static void *device_alloc(sq_device *d, size_t bytes)
{
    void *memory = NULL;
    if (cudaSetDevice(d->id) == cudaSuccess && cudaMalloc(&memory, bytes ? bytes : 1) == cudaSuccess) return memory;
    (void)cudaGetLastError();
    return NULL;
}

static void device_free(sq_device *d, void *memory)
{
    (void)cudaSetDevice(d->id);
    (void)cudaFree(memory);
    (void)cudaGetLastError();
}

static void fail_memory(sq_stream *s, size_t bytes, const char *what)
{
    char why[sizeof s->why];
    size_t available = 0, all = 0;
    (void)cudaMemGetInfo(&available, &all);
    (void)cudaGetLastError();
    snprintf(why, sizeof why, "the GPU's memory is full: %zu MiB are needed for %s, and %zu of %zu are left",
             (bytes + MIB - 1) / MIB, what, available / MIB, all / MIB);
    sq_cuda_fail(s, true, why);
}

void *sq_cuda_scratch(sq_stream *s, sq_slot slot, size_t bytes)
{
    if (!sq_cuda_ready(s)) return NULL;
    if (s->scratch[slot] && bytes <= s->scratch_bytes[slot]) return s->scratch[slot];
    wait_for(s); /* verbs before this one may be reading it */
    (void)cudaFree(s->scratch[slot]);
    s->scratch_bytes[slot] = 0;
    s->scratch[slot] = NULL;
    if (s->failed) return NULL;
    const size_t size = bytes / MIB * MIB + MIB; /* so that what grows a bit each time rarely comes here */
    s->scratch[slot] = device_alloc(s->device, size);
    if (s->scratch[slot])
        s->scratch_bytes[slot] = size;
    else
        fail_memory(s, size, "intermediate results");
    return s->scratch[slot];
}

/* The program may change what lies at `from` as soon as this returns, and it may be pinned: so it is copied first, or
 * waited for. */
void sq_cuda_write(sq_stream *s, void *to, const void *from, size_t bytes)
{
    if (!bytes || !sq_cuda_ready(s)) return;
    if (bytes > SQ_STAGE_BYTES) {
        sq_cuda_check(s, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, s->stream), "writing");
        wait_for(s);
        return;
    }
    if (!s->stage) {
        void *stage = NULL;
        if (!sq_cuda_check(s, cudaHostAlloc(&stage, SQ_STAGE_BYTES, cudaHostAllocDefault), "taking pinned memory"))
            return;
        s->stage = (uint8_t *)stage;
    }
    if (bytes > SQ_STAGE_BYTES - s->staged) {
        wait_for(s);
        if (s->failed) return;
    }
    uint8_t *const at = s->stage + s->staged;
    memcpy(at, from, bytes);
    s->staged += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    sq_cuda_check(s, cudaMemcpyAsync(to, at, bytes, cudaMemcpyHostToDevice, s->stream), "writing");
}

/* After a failure zeros are read: callers look at what they got before they finish(). */
void sq_cuda_read(sq_stream *s, void *to, const void *from, size_t bytes)
{
    if (bytes && sq_cuda_ready(s))
        sq_cuda_check(s, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, s->stream), "reading");
    wait_for(s);
    if (s->failed && bytes) memset(to, 0, bytes);
}

void sq_cuda_copy(sq_stream *s, void *to, const void *from, size_t bytes)
{
    if (bytes && sq_cuda_ready(s))
        sq_cuda_check(s, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, s->stream), "copying");
}

/* ---- Weights ----------------------------------------------------------------------------- */

static sq_upload *place_of(sq_upload *uploads, size_t n_places, const void *host, sq_form form, size_t bytes)
{
    uint64_t hash = ((uint64_t)(uintptr_t)host ^ (uint64_t)form) * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(hash >> 32) & (n_places - 1);
    while (uploads[i].host && (uploads[i].host != host || uploads[i].form != form || uploads[i].bytes != bytes))
        i = (i + 1) & (n_places - 1);
    return &uploads[i];
}

static bool grow_table(sq_device *d)
{
    const size_t n = d->n_places * 2;
    sq_upload *const grown = (sq_upload *)calloc(n, sizeof *grown);
    if (!grown) return false;
    for (size_t i = 0; i < d->n_places; i++) {
        const sq_upload *const u = &d->uploads[i];
        if (u->host) *place_of(grown, n, u->host, u->form, u->bytes) = *u;
    }
    free(d->uploads);
    d->uploads = grown;
    d->n_places = n;
    return true;
}

/* A new copy; the device is locked. NULL: the stream has failed. */
static void *make_copy(sq_stream *s, size_t bytes, sq_fill_fn *fill, const void *ctx)
{
    sq_device *const d = s->device;
    bool no_memory;
    char why[sizeof s->why];
    void *const copy = device_alloc(d, bytes);
    if (!copy) {
        fail_memory(s, bytes, "weights");
        return NULL;
    }
    fill(d->uploader, ctx, copy);
    if (finish(d->uploader, &no_memory, why, sizeof why)) return copy;
    sq_cuda_fail(s, no_memory, why);
    d->uploader->failed = false; /* the next stream may have more luck */
    d->uploader->staged = 0;
    device_free(d, copy);
    return NULL;
}

const void *sq_cuda_upload(sq_stream *s, const void *host, sq_form form, size_t bytes, sq_fill_fn *fill,
                           const void *ctx)
{
    sq_device *const d = s->device;
    const void *copy = NULL;
    if (!sq_cuda_ready(s)) return NULL;
    pthread_mutex_lock(&d->lock);
    sq_upload *place = place_of(d->uploads, d->n_places, host, form, bytes);
    if (place->host) {
        copy = place->copy;
    } else if (d->n_uploads * 2 >= d->n_places && !grow_table(d)) {
        sq_cuda_fail(s, true, "there is no memory for the list of weights");
    } else {
        place = place_of(d->uploads, d->n_places, host, form, bytes);
        place->copy = make_copy(s, bytes, fill, ctx);
        copy = place->copy;
        if (copy) {
            place->host = host;
            place->form = form;
            place->bytes = bytes;
            d->n_uploads++;
        }
    }
    pthread_mutex_unlock(&d->lock);
    return copy;
}

typedef struct bytes_ctx {
    const void *host;
    size_t bytes;
} bytes_ctx;

static void fill_bytes(sq_stream *uploader, const void *ctx, void *copy)
{
    const bytes_ctx *const b = (const bytes_ctx *)ctx;
    sq_cuda_write(uploader, copy, b->host, b->bytes);
}

const void *sq_cuda_weights(sq_stream *s, const void *host, size_t bytes)
{
    const bytes_ctx ctx = {host, bytes};
    return sq_cuda_upload(s, host, SQ_FORM_BYTES, bytes, fill_bytes, &ctx);
}

/* ---- The table --------------------------------------------------------------------------- */

const sq_device_ops sq_cuda_ops = {
    .name = "cuda",
    .open = device_open,
    .close = device_close,
    .label = label,
    .stream_open = stream_open,
    .stream_close = stream_close,
    .finish = finish,
    .alloc = device_alloc,
    .free = device_free,
    .write = sq_cuda_write,
    .read = sq_cuda_read,
    .copy = sq_cuda_copy,
    .project = sq_cuda_project,
    .rows = sq_cuda_rows,
    .attend = sq_cuda_attend,
    .store_kv = sq_cuda_store_kv,
    .route = sq_cuda_route,
    .settle = sq_cuda_settle,
    .patches = sq_cuda_patches,
    .depthwise = sq_cuda_depthwise,
    .resize = sq_cuda_resize,
    .mine = sq_cuda_mine,
    .means = sq_cuda_means,
    .relu = sq_cuda_relu,
    .add = sq_cuda_add,
    .add_weights = sq_cuda_add_weights,
};
