/* One launch: its blocks one after another in random order, the threads of a block as fibers.
 *
 * A fiber runs until it waits (barrier, warp collective), gives way (atomics) or returns. Then the scheduler takes the runnable warp of the
 * highest priority, and of its lanes the next in a random rotation. Priorities are drawn anew for each block, and at one barrier in two, so
 * that a warp may fall behind all others by as much as the barriers allow.
 *
 * When nobody can run and somebody waits, the launch has failed, and the report says who waits where. Fibers that are left are forgotten
 * with their stacks: kernels own nothing. */
#include "cuda_host/engine.h"
#include "cuda_host/races.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "cuda_host/shim.h"

wefti_shim_place wefti_shim_place_now;

namespace weft_host {
namespace {

enum { MOST_THREADS = 1024, LANES = 32, WARPS = MOST_THREADS / LANES, BARRIERS = 16, PATIENCE = 1 << 22 };
#ifdef __SANITIZE_ADDRESS__
const size_t stack_bytes = 256 << 10;
#else
const size_t stack_bytes = 128 << 10;
#endif

/* --- switching stacks --- */

struct context {
#ifdef __x86_64__
    void *stack_pointer;
#else
    ucontext_t saved;
#endif
    void  *fake_stack; /* AddressSanitizer's */
    char  *bottom;     /* of its stack */
    size_t bytes;
};

#ifdef __x86_64__
extern "C" void wefti_shim_switch(void **save, void *load);
/* Callee-saved registers go on the old stack and come from the new one; rounding modes are the same in all fibers. */
__asm__(".text\n.p2align 4\n.globl wefti_shim_switch\n.type wefti_shim_switch,@function\nwefti_shim_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size wefti_shim_switch,.-wefti_shim_switch\n");
#endif

void enter_fiber();

void prepare_context(context *self, char *stack) {
    self->fake_stack = nullptr;
    self->bottom = stack;
    self->bytes = stack_bytes;
#ifdef __x86_64__
    void **top = reinterpret_cast<void **>(stack + stack_bytes) - 1; /* the entry finds the stack as after a call: 8 off 16 */
    *top = nullptr;                                                   /* its return address */
    *--top = reinterpret_cast<void *>(enter_fiber);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    self->stack_pointer = top;
#else
    getcontext(&self->saved);
    self->saved.uc_stack.ss_sp = stack;
    self->saved.uc_stack.ss_size = stack_bytes;
    self->saved.uc_link = nullptr;
    makecontext(&self->saved, enter_fiber, 0);
#endif
}

/* `last`: the old context never comes back. */
inline void switch_context(context *from, context *to, bool last) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(last ? nullptr : &from->fake_stack, to->bottom, to->bytes);
#else
    (void)last;
#endif
#ifdef __x86_64__
    wefti_shim_switch(&from->stack_pointer, to->stack_pointer);
#else
    swapcontext(&from->saved, &to->saved);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

/* --- a block --- */

enum state { FRESH, READY, AT_BARRIER, AT_COLLECTIVE, GONE };

struct fiber {
    context     at;
    state       is;
    char       *stack;
    uint3       index;
    int         flat;
    /* What it waits for. */
    const char *file;
    int         line, barrier, kind, argument, width;
    unsigned    mask;
    bool        vote;
    uint64_t    value, result;
};

struct warp {
    unsigned runnable, present; /* lanes that can run; that have not left */
    unsigned rotation;
    uint32_t priority;
};

struct barrier {
    int         waiting, count, votes, serial;
    const char *file;
    int         line;
};

struct block {
    const launch *what;
    random       *chance;
    context       scheduler;
    fiber         threads[MOST_THREADS];
    warp          warps[WARPS];
    barrier       barriers[BARRIERS];
    int           order[WARPS]; /* of warps, the highest priority first */
    int           n_threads, n_warps, present;
    fiber        *current;
    unsigned char *shared;
    bool          failed;
    char          why[1024];
    uint32_t      gave_way;
    bool          looks_for_races;
    bool          progress; /* something other than giving way happened */
};
block *now; /* the block that runs */

std::vector<char *> spare_stacks;

char *take_stack() {
    if (!spare_stacks.empty()) {
        char *stack = spare_stacks.back();
        spare_stacks.pop_back();
        return stack;
    }
    const size_t guard = 4096;
    char *memory = static_cast<char *>(mmap(nullptr, stack_bytes + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory == MAP_FAILED) abort();
    mprotect(memory, guard, PROT_NONE);
    return memory + guard;
}

void leave_stack(fiber *self) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(self->stack, stack_bytes); /* what frames that never returned left */
#endif
    spare_stacks.push_back(self->stack);
    self->stack = nullptr;
}

void draw_order(block *b) {
    for (int w = 0; w < b->n_warps; w++) {
        b->order[w] = w;
        b->warps[w].rotation = b->chance->below(LANES);
    }
    for (int w = b->n_warps - 1; w > 0; w--) {
        int other = (int)b->chance->below((uint32_t)w + 1), kept = b->order[w];
        b->order[w] = b->order[other];
        b->order[other] = kept;
    }
}

/* Back to the scheduler, until it comes to this fiber again. */
void pause_fiber() {
    fiber *self = now->current;
    switch_context(&self->at, &now->scheduler, false);
}

[[noreturn]] void end_fiber() {
    switch_context(&now->current->at, &now->scheduler, true);
    abort();
}

void fail(const char *format, va_list arguments) {
    if (now->failed) return;
    now->failed = true;
    vsnprintf(now->why, sizeof now->why, format, arguments);
}
void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail(format, arguments);
    va_end(arguments);
}

void make_ready(fiber *self) {
    self->is = READY;
    now->warps[self->flat / LANES].runnable |= 1u << self->flat % LANES;
    now->progress = true;
}

/* --- barriers --- */

/* Lets go of those who wait at a barrier, if all that it is for have come. */
void try_barrier(int id) {
    block   *b = now;
    barrier *at = &b->barriers[id];
    if (at->waiting == 0 || at->waiting < (at->count ? at->count : b->present)) return;
    int votes = at->votes;
    at->waiting = at->votes = 0;
    uint32_t warps = 0;
    for (int i = 0; i < b->n_threads; i++) {
        fiber *one = &b->threads[i];
        if (one->is != AT_BARRIER || one->barrier != id) continue;
        one->result = (uint64_t)votes;
        warps |= 1u << i / LANES;
        make_ready(one);
    }
    if (b->looks_for_races) races_order_warps(warps);
    if (b->chance->below(2)) draw_order(b);
}

/* --- warp collectives --- */

const char *const kind_names[WEFTI_SHIM_COLLECTIVES] = {"__syncwarp", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync",
    "a vote", "__match_any_sync", "__match_all_sync", "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_min_sync",
    "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync", "__reduce_xor_sync"};

/* The lane that a shuffle reads, -1: its own. */
int source_lane(const fiber *one, int lane) {
    int segment = lane & ~(one->width - 1), last = segment | (one->width - 1), from;
    switch (one->kind) {
    case WEFTI_SHIM_SHFL: return segment | (one->argument & (one->width - 1));
    case WEFTI_SHIM_SHFL_UP: from = lane - one->argument; return from < segment ? -1 : from;
    case WEFTI_SHIM_SHFL_DOWN: from = lane + one->argument; return from > last ? -1 : from;
    default: from = lane ^ one->argument; return from > last ? -1 : from;
    }
}

uint64_t fold(int kind, uint64_t a, uint64_t b) {
    switch (kind) {
    case WEFTI_SHIM_ADD: return (uint32_t)(a + b);
    case WEFTI_SHIM_MIN: return (int32_t)a < (int32_t)b ? a : b;
    case WEFTI_SHIM_MAX: return (int32_t)a > (int32_t)b ? a : b;
    case WEFTI_SHIM_UMIN: return (uint32_t)a < (uint32_t)b ? a : b;
    case WEFTI_SHIM_UMAX: return (uint32_t)a > (uint32_t)b ? a : b;
    case WEFTI_SHIM_AND: return a & b;
    case WEFTI_SHIM_OR: return a | b;
    default: return a ^ b;
    }
}

uint64_t result_for(fiber *lanes, int lane, unsigned taking_part) {
    fiber *one = &lanes[lane];
    uint64_t result = 0;
    unsigned same = 0;
    switch (one->kind) {
    case WEFTI_SHIM_SYNCWARP: return 0;
    case WEFTI_SHIM_SHFL: case WEFTI_SHIM_SHFL_UP: case WEFTI_SHIM_SHFL_DOWN: case WEFTI_SHIM_SHFL_XOR: {
        int from = source_lane(one, lane);
        if (from < 0) return one->value;
        return taking_part >> from & 1u ? lanes[from].value : WEFTI_SHIM_POISON;
    }
    case WEFTI_SHIM_BALLOT:
        for (int i = 0; i < LANES; i++)
            if (taking_part >> i & 1u && lanes[i].value) result |= 1u << i;
        return result;
    case WEFTI_SHIM_MATCH_ANY: case WEFTI_SHIM_MATCH_ALL:
        for (int i = 0; i < LANES; i++)
            if (taking_part >> i & 1u && lanes[i].value == one->value) same |= 1u << i;
        return one->kind == WEFTI_SHIM_MATCH_ANY || same == taking_part ? same : 0;
    default:
        result = one->value;
        for (int i = 0; i < LANES; i++)
            if (taking_part >> i & 1u && i != lane) result = fold(one->kind, result, lanes[i].value);
        return result;
    }
}

/* Completes the collective that lane waits at, if all of its mask are there. */
void try_collective(int w, int lane) {
    warp    *of = &now->warps[w];
    fiber   *lanes = &now->threads[w * LANES], *one = &lanes[lane];
    unsigned due = one->mask & of->present;
    for (int i = 0; i < LANES; i++)
        if (due >> i & 1u && (lanes[i].is != AT_COLLECTIVE || lanes[i].mask != one->mask)) return;
    for (int i = 0; i < LANES; i++) {
        if (!(due >> i & 1u) || (lanes[i].kind == one->kind && lanes[i].line == one->line && lanes[i].width == one->width)) continue;
        fail("lanes %d and %d of warp %d wait for each other at different places: %s at %s:%d, %s at %s:%d", lane, i, w, kind_names[one->kind],
             one->file, one->line, kind_names[lanes[i].kind], lanes[i].file, lanes[i].line);
        return;
    }
    uint64_t results[LANES];
    races_order_warp(w);
    for (int i = 0; i < LANES; i++)
        if (due >> i & 1u) results[i] = result_for(lanes, i, due);
    for (int i = 0; i < LANES; i++)
        if (due >> i & 1u) lanes[i].result = results[i], make_ready(&lanes[i]);
}

/* --- scheduling --- */

void enter_fiber() {
#ifdef __SANITIZE_ADDRESS__
    /* It tells where the stack is that was left: a thread that has launched something looks at its own once more when it ends. */
    const void *bottom;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &now->scheduler.bytes);
    now->scheduler.bottom = static_cast<char *>(const_cast<void *>(bottom));
#endif
    fiber *self = now->current;
    now->what->kernel();
    self->is = GONE;
    end_fiber();
}

/* A thread has returned: others may have waited for that. */
void see_off(fiber *self) {
    int w = self->flat / LANES;
    now->present--;
    now->progress = true;
    now->warps[w].present &= ~(1u << self->flat % LANES);
    leave_stack(self);
    for (int id = 0; id < BARRIERS; id++)
        if (now->barriers[id].count == 0) try_barrier(id);
    for (int i = 0; i < LANES; i++)
        if (now->warps[w].present >> i & 1u && now->threads[w * LANES + i].is == AT_COLLECTIVE) try_collective(w, i);
}

void run_fiber(fiber *self) {
    block *b = now;
    b->current = self;
    threadIdx = self->index;
    b->warps[self->flat / LANES].runnable &= ~(1u << self->flat % LANES);
    if (self->is == FRESH) {
        self->stack = take_stack();
        prepare_context(&self->at, self->stack);
        self->is = READY;
    }
    races_running = {b->looks_for_races ? self->flat : -1, 0, self->stack, self->stack + stack_bytes};
    switch_context(&b->scheduler, &self->at, false);
    races_running.thread = -1;
    if (self->is == GONE) see_off(self);
    else if (self->is == READY) b->warps[self->flat / LANES].runnable |= 1u << self->flat % LANES; /* it gave way */
}

/* Who runs next: NULL if nobody can. */
fiber *choose() {
    block *b = now;
    for (int k = 0; k < b->n_warps; k++) {
        int      w = b->order[k];
        unsigned runnable = b->warps[w].runnable, turn = b->warps[w].rotation;
        if (!runnable) continue;
        unsigned turned = runnable >> turn | (turn ? runnable << (32 - turn) : 0);
        return &b->threads[w * LANES + (int)(((unsigned)__builtin_ctz(turned) + turn) % 32)];
    }
    return nullptr;
}

/* Says who waits where; the threads of one place together. */
void report_deadlock() {
    block *b = now;
    char   text[800];
    int    used = 0;
    bool   told[MOST_THREADS] = {false};
    for (int i = 0; i < b->n_threads && used < 700; i++) {
        fiber *one = &b->threads[i];
        if (told[i] || (one->is != AT_BARRIER && one->is != AT_COLLECTIVE)) continue;
        int count = 0;
        for (int j = i; j < b->n_threads; j++) {
            fiber *other = &b->threads[j];
            if (other->is != one->is || other->line != one->line || strcmp(other->file, one->file) != 0) continue;
            told[j] = true;
            count++;
        }
        used += snprintf(text + used, sizeof text - (size_t)used, "; %d threads (the first is %d) at %s:%d in %s", count, i, one->file, one->line,
                         one->is == AT_BARRIER ? "a barrier" : kind_names[one->kind]);
        if (one->is == AT_COLLECTIVE) used += snprintf(text + used, sizeof text - (size_t)used, " of mask %08x", one->mask);
    }
    fail("nobody can run, %d of %d threads have returned%s", b->n_threads - b->present, b->n_threads, text);
}

void start_threads(block *b) {
    int i = 0;
    b->n_warps = (b->n_threads + LANES - 1) / LANES;
    b->present = b->n_threads;
    for (unsigned z = 0; z < b->what->block.z; z++)
        for (unsigned y = 0; y < b->what->block.y; y++)
            for (unsigned x = 0; x < b->what->block.x; x++, i++) {
                fiber *one = &b->threads[i];
                one->is = FRESH;
                one->index = make_uint3(x, y, z);
                one->flat = i;
                one->stack = nullptr;
            }
    for (int w = 0; w < b->n_warps; w++) {
        int lanes = b->n_threads - w * LANES;
        b->warps[w].runnable = b->warps[w].present = lanes >= LANES ? 0xffffffffu : (1u << lanes) - 1;
    }
    memset(b->barriers, 0, sizeof b->barriers);
}

bool run_block(block *b) {
    now = b;
    start_threads(b);
    draw_order(b);
    b->shared = static_cast<unsigned char *>(aligned_alloc(1024, (b->what->shared_bytes + 1023) / 1024 * 1024 + 1024));
    unsigned char *kept = b->shared;
#ifdef __SANITIZE_ADDRESS__
    free(kept);
    /* Exactly as many bytes as were asked for, so that the red zone is next to them. */
    void *memory = nullptr;
    if (posix_memalign(&memory, 1024, b->what->shared_bytes ? b->what->shared_bytes : 1) != 0) abort();
    kept = b->shared = static_cast<unsigned char *>(memory);
    memset(b->shared, 0xff, b->what->shared_bytes);
#else
    memset(b->shared, 0xff, b->what->shared_bytes + 64);
#endif
    b->looks_for_races = b->what->looks_for_races && races_are_looked_for();
    races_begin_block(b->shared, b->what->shared_bytes);
    uint32_t idle = 0;
    while (b->present > 0 && !b->failed) {
        fiber *next = choose();
        if (!next) {
            report_deadlock();
            break;
        }
        b->progress = false;
        run_fiber(next);
        idle = b->progress ? 0 : idle + 1;
        if (idle == PATIENCE) fail("threads spin without end at %s:%d", next->file, next->line);
    }
#ifndef __SANITIZE_ADDRESS__
    for (int i = 0; i < 64 && !b->failed; i++)
        if (b->shared[b->what->shared_bytes + (size_t)i] != 0xff) fail("wrote %d bytes behind the shared memory that it asked for", i + 1);
#endif
    free(kept);
    for (int i = 0; i < b->n_threads; i++)
        if (b->threads[i].stack) leave_stack(&b->threads[i]);
    now = nullptr;
    return !b->failed;
}

/* A random order of [0, n) without a list of it: i*step + start, step prime to n. */
struct permutation {
    uint64_t n, step, start;
    permutation(uint64_t count, random &chance) : n(count), step(1), start(chance.next() % count) {
        for (int tries = 0; tries < 64 && n > 2; tries++) {
            uint64_t a = n, b = 1 + chance.next() % (n - 1);
            step = b;
            while (b) {
                uint64_t rest = a % b;
                a = b;
                b = rest;
            }
            if (a == 1) return;
        }
        step = 1;
    }
    uint64_t at(uint64_t i) const { return (uint64_t)(((wefti_shim_u128)i * step + start) % n); }
};

} // namespace

bool run_launch(const launch &what, random &chance, std::string &why) {
    static block *b = new block; /* too large for a stack; one launch at a time */
    b->what = &what;
    b->chance = &chance;
    b->failed = false;
    b->n_threads = (int)(what.block.x * what.block.y * what.block.z);
    blockDim = what.block;
    gridDim = what.grid;
    races_begin_launch();
    uint64_t    blocks = (uint64_t)what.grid.x * what.grid.y * what.grid.z;
    permutation order(blocks, chance);
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t at = order.at(i), plane = (uint64_t)what.grid.x * what.grid.y;
        blockIdx = make_uint3((unsigned)(at % what.grid.x), (unsigned)(at % plane / what.grid.x), (unsigned)(at / plane));
        if (run_block(b)) continue;
        char where[128];
        snprintf(where, sizeof where, " (block %u,%u,%u of %u threads)", blockIdx.x, blockIdx.y, blockIdx.z, (unsigned)b->n_threads);
        why = "kernel " + what.name + ": " + b->why + where;
        return false;
    }
    return true;
}

} // namespace weft_host

/* --- what device code calls --- */

using namespace weft_host;

extern "C" unsigned char *wefti_shim_shared(void) { return now->shared; }
extern "C" bool wefti_shim_in_kernel(void) { return now != nullptr; }

extern "C" void wefti_shim_fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail(format, arguments);
    va_end(arguments);
    end_fiber();
}

extern "C" void wefti_shim_give_way(const char *file, int line) {
    block *b = now;
    races_atomic();
    if (b->chance->below(8) != 0) return;
    b->current->file = file;
    b->current->line = line;
    b->warps[b->current->flat / LANES].rotation = b->chance->below(LANES);
    if (b->chance->below(4) == 0) draw_order(b);
    pause_fiber();
}

extern "C" int wefti_shim_barrier(int id, int count, bool vote, const char *file, int line) {
    block *b = now;
    fiber *self = b->current;
    if (id < 0 || id >= BARRIERS) wefti_shim_fail("barrier %d at %s:%d: there are %d", id, file, line, (int)BARRIERS);
    if (count % LANES != 0) wefti_shim_fail("a barrier of %d threads at %s:%d: it must be whole warps", count, file, line);
    barrier *at = &b->barriers[id];
    if (at->waiting > 0 && (at->line != line || at->count != count || strcmp(at->file, file) != 0) && id == 0)
        wefti_shim_fail("divergent barriers: thread %d has come to %s:%d, others wait at %s:%d", self->flat, file, line, at->file, at->line);
    at->file = file;
    at->line = line;
    at->count = count;
    at->waiting++;
    at->votes += vote;
    self->is = AT_BARRIER;
    self->barrier = id;
    self->file = file;
    self->line = line;
    try_barrier(id);
    pause_fiber();
    return (int)self->result;
}

extern "C" uint64_t wefti_shim_collective(wefti_shim_kind kind, unsigned mask, uint64_t value, int argument, int width, const char *file, int line) {
    fiber *self = now->current;
    int    lane = self->flat % LANES, w = self->flat / LANES;
    if (!(mask >> lane & 1u)) wefti_shim_fail("%s at %s:%d: lane %d is not in its own mask %08x", kind_names[kind], file, line, lane, mask);
    if (width <= 0 || width > 32 || (width & (width - 1)))
        wefti_shim_fail("%s at %s:%d: a width of %d", kind_names[kind], file, line, width);
    self->kind = kind;
    self->mask = mask;
    self->value = value;
    self->argument = argument;
    self->width = width;
    self->file = file;
    self->line = line;
    self->is = AT_COLLECTIVE;
    try_collective(w, lane);
    pause_fiber();
    return self->result;
}
