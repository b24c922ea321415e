/*
 * Threads of a grid. Each has a stack of its own and runs up to where it waits for its warp or its block; the scheduler
 * then goes on with another one. A warp goes as far as it can by itself before the next one starts: nothing but a
 * barrier makes them wait for one another.
 * SPDX-License-Identifier: MIT
 */
#include "tests/cuda/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
enum { STACK_BYTES = 512 << 10 };
#else
enum { STACK_BYTES = 128 << 10 };
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

enum { WARP = 32, MOST_THREADS = 1024, GUARD_BYTES = 64 << 10 };

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

/* All bytes between hold __shared__ arrays, of all kernels; there may be none. */
extern "C" unsigned char __start_sq_shared[] __attribute__((weak));
extern "C" unsigned char __stop_sq_shared[] __attribute__((weak));

namespace
{

/* ---- Stacks ------------------------------------------------------------------------------- */

struct context {
#if defined(__x86_64__)
    void *sp;
#else
    ucontext_t uc;
#endif
    unsigned char *stack;
    void *fake_stack; /* ASan's */
    const void *bottom;
    size_t size;
};

#if defined(__x86_64__)
extern "C" void emulator_switch(void **save, void *to);
__asm__(".text\n"
        ".type emulator_switch, @function\n"
        "emulator_switch:\n"
        "    endbr64\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size emulator_switch, . - emulator_switch\n");

void prepare(context *c, void (*entry)())
{
    void **sp = reinterpret_cast<void **>(c->stack + STACK_BYTES);
    *--sp = nullptr; /* entry's caller; entry finds the stack as after a call */
    *--sp = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++)
        *--sp = nullptr;
    c->sp = sp;
}

void exchange(context *from, context *to) { emulator_switch(&from->sp, to->sp); }
#else
void prepare(context *c, void (*entry)())
{
    getcontext(&c->uc);
    c->uc.uc_stack.ss_sp = c->stack;
    c->uc.uc_stack.ss_size = STACK_BYTES;
    c->uc.uc_link = nullptr;
    makecontext(&c->uc, entry, 0);
}

void exchange(context *from, context *to) { swapcontext(&from->uc, &to->uc); }
#endif

/* @param last  `from` never runs again */
void switch_context(context *from, context *to, bool last)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(last ? nullptr : &from->fake_stack, to->bottom, to->size);
    exchange(from, to);
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#else
    (void)last;
    exchange(from, to);
#endif
}

std::vector<unsigned char *> free_stacks;

unsigned char *take_stack()
{
    if (!free_stacks.empty()) {
        unsigned char *const s = free_stacks.back();
        free_stacks.pop_back();
        return s;
    }
    void *const map = mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED || mprotect(map, GUARD_BYTES, PROT_NONE)) emulator_die("no memory for a thread's stack");
    return static_cast<unsigned char *>(map) + GUARD_BYTES;
}

/* ---- Threads ------------------------------------------------------------------------------ */

enum state { UNBORN, READY, AT_WARP, AT_BLOCK, ENDED };

struct place {
    const char *name, *file;
    int line;
};

struct thread {
    context c;
    uint3 index;
    state is;
    place at;                       /* where it waits */
    unsigned warp_turn, block_turn; /* collectives that it has come to */
};

struct warp {
    unsigned arrived, done;       /* lanes at the collective at hand; collectives that all came to */
    const thread *first;          /* of these lanes */
    emulator_slot slots[2][WARP]; /* of a collective and of the one before it, which some lanes are still to read */
};

struct grid_run {
    const char *name;
    void (*kernel)();
    emulator_call *call;
    const void *argument;
    unsigned n_threads;
    unsigned barriers, arrived; /* that all came to; threads at the one at hand */
    const thread *first;        /* of these threads */
    int given[2];               /* sums of a barrier and of the one before it */
};

thread threads[MOST_THREADS];
warp warps[MOST_THREADS / WARP];
context scheduler;
thread *current;
grid_run run;

const char *where(const thread *t)
{
    static char text[2][320];
    static unsigned turn;
    char *const s = text[turn++ % 2];
    if (t->is == ENDED)
        snprintf(s, sizeof text[0], "thread (%u, %u, %u) has ended", t->index.x, t->index.y, t->index.z);
    else
        snprintf(s, sizeof text[0], "thread (%u, %u, %u) is at %s in %s:%d", t->index.x, t->index.y, t->index.z,
                 t->at.name, t->at.file, t->at.line);
    return s;
}

[[noreturn]] void die_apart(const char *what, const thread *a, const thread *b)
{
    emulator_die("kernel %s, block (%u, %u, %u): %s: %s, %s", run.name, blockIdx.x, blockIdx.y, blockIdx.z, what,
                 where(a), where(b));
}

bool same_place(const place &a, const place &b)
{
    return a.line == b.line && (a.name == b.name || !strcmp(a.name, b.name)) &&
           (a.file == b.file || !strcmp(a.file, b.file));
}

/* Its frame must have nothing that ASan marks: it is never left. */
__attribute__((no_sanitize("address", "undefined"))) void thread_main()
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
#endif
    run.call(run.kernel, run.argument);
    current->is = ENDED;
    switch_context(&current->c, &scheduler, true);
    __builtin_unreachable();
}

void resume(thread *t)
{
    if (t->is == UNBORN) {
        t->c.stack = take_stack();
        t->c.bottom = t->c.stack;
        t->c.size = STACK_BYTES;
        prepare(&t->c, thread_main);
    }
    t->is = READY;
    current = t;
    threadIdx = t->index;
    switch_context(&scheduler, &t->c, false);
    if (t->is == ENDED) free_stacks.push_back(t->c.stack);
}

void wait_here(state is)
{
    thread *const me = current;
    me->is = is;
    switch_context(&me->c, &scheduler, false);
}

warp *warp_of(const thread *t) { return &warps[(t - threads) / WARP]; }

bool can_run(const thread *t)
{
    switch (t->is) {
    case UNBORN:
    case READY:
        return true;
    case AT_WARP:
        return warp_of(t)->done >= t->warp_turn;
    case AT_BLOCK:
        return run.barriers >= t->block_turn;
    case ENDED:
        break;
    }
    return false;
}

/* ---- Blocks ------------------------------------------------------------------------------- */

/* Runs a warp until none of its threads can go on by themselves. @return whether any did */
bool run_warp(unsigned w)
{
    bool any = false;
    const unsigned first = w * WARP, n = run.n_threads - first < WARP ? run.n_threads - first : (unsigned)WARP;
    for (bool moved = true; moved;) {
        moved = false;
        emulator_permutation order(n);
        for (uint64_t i; order.next(&i);) {
            thread *const t = &threads[first + i];
            if (!can_run(t)) continue;
            resume(t);
            any = moved = true;
        }
    }
    for (unsigned i = first; i < first + n; i++)
        for (unsigned j = first; threads[i].is == AT_WARP && j < first + n; j++)
            if (threads[j].is != AT_WARP) die_apart("lanes of a warp went apart", &threads[i], &threads[j]);
    return any;
}

/* All bytes 255: floats and halves are NaN. Not memset(), which would find ASan's zones between the arrays. */
__attribute__((no_sanitize("address"), noinline)) void spoil_shared()
{
    typedef uint64_t __attribute__((may_alias, aligned(1))) word;
    unsigned char *p = __start_sq_shared, *const end = __stop_sq_shared;
    for (; end - p >= (ptrdiff_t)sizeof(word); p += sizeof(word))
        *reinterpret_cast<volatile word *>(p) = UINT64_MAX;
    for (; p < end; p++)
        *const_cast<volatile unsigned char *>(p) = 255;
}

void run_block()
{
    spoil_shared();
    run.barriers = run.arrived = 0;
    run.given[0] = run.given[1] = 0;
    const unsigned n_warps = (run.n_threads + WARP - 1) / WARP;
    for (unsigned w = 0; w < n_warps; w++)
        warps[w].arrived = warps[w].done = 0;
    for (unsigned i = 0; i < run.n_threads; i++) {
        thread *const t = &threads[i];
        t->is = UNBORN;
        t->warp_turn = t->block_turn = 0;
        t->index = uint3{i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    }
    for (bool moved = true; moved;) {
        moved = false;
        emulator_permutation order(n_warps);
        for (uint64_t w; order.next(&w);)
            moved |= run_warp((unsigned)w);
    }
    for (unsigned i = 1; i < run.n_threads; i++)
        if (threads[i].is != threads[0].is)
            die_apart("a barrier is not reached by all threads", &threads[0], &threads[i]);
}

void check_shape(const char *name, dim3 grid, dim3 block)
{
    const uint64_t n = (uint64_t)block.x * block.y * block.z;
    if (!n || block.x > 1024 || block.y > 1024 || block.z > 64 || n > MOST_THREADS)
        emulator_die("kernel %s: a block of (%u, %u, %u) threads", name, block.x, block.y, block.z);
    if (!grid.x || !grid.y || !grid.z || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535)
        emulator_die("kernel %s: a grid of (%u, %u, %u) blocks", name, grid.x, grid.y, grid.z);
}

} // namespace

void emulator_run_grid(const char *name, void (*kernel)(), emulator_call *call, dim3 grid, dim3 block,
                       const void *argument)
{
    check_shape(name, grid, block);
    run = grid_run();
    run.name = name;
    run.kernel = kernel;
    run.call = call;
    run.argument = argument;
    run.n_threads = block.x * block.y * block.z;
    gridDim = grid;
    blockDim = block;
    emulator_permutation order((uint64_t)grid.x * grid.y * grid.z);
    for (uint64_t i; order.next(&i);) {
        blockIdx = uint3{(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / grid.x / grid.y)};
        run_block();
    }
}

/* ---- Collectives -------------------------------------------------------------------------- */

unsigned emulator_lane() { return (unsigned)(current - threads) % WARP; }

const emulator_slot *emulator_warp(const char *name, unsigned mask, const void *in, size_t bytes, const char *file,
                                   int line)
{
    thread *const me = current;
    warp *const w = warp_of(me);
    const unsigned first = (unsigned)(w - warps) * WARP;
    me->at = place{name, file, line};
    if (mask != SQ_FULL_WARP || first + WARP > run.n_threads)
        emulator_die("kernel %s: %s without all 32 lanes, in %s:%d", run.name, name, file, line);
    emulator_slot *const slots = w->slots[me->warp_turn++ % 2];
    if (bytes) memcpy(slots[emulator_lane()].bytes, in, bytes);
    if (!w->arrived++) w->first = me;
    if (!same_place(w->first->at, me->at)) die_apart("lanes of a warp are at different places", me, w->first);
    if (w->arrived == WARP) {
        w->arrived = 0;
        w->done++;
    }
    wait_here(AT_WARP);
    return slots;
}

int emulator_block(const char *name, bool given, const char *file, int line)
{
    thread *const me = current;
    me->at = place{name, file, line};
    if (!run.arrived) run.first = me;
    if (!same_place(run.first->at, me->at)) die_apart("threads are at different barriers", me, run.first);
    int *const sum = &run.given[me->block_turn++ % 2];
    *sum += given;
    if (++run.arrived == run.n_threads) {
        run.arrived = 0;
        run.barriers++;
        run.given[run.barriers % 2] = 0;
    }
    wait_here(AT_BLOCK);
    return *sum;
}
