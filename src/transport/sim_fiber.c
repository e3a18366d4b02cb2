/* Fibers of the simulator: each has a stack of its own and runs until it waits.
 *
 * A fiber has a clock that is ahead of the simulator's by what it has computed since it was let run; looking at the clock costs a
 * little of it, so that a loop that only looks comes to its end. Who waits puts its event into the queue, for the time that it
 * wishes to go on or, when a message comes, for then. Waiting lets go of no lock, so nothing may wait under one.
 *
 * Stacks are switched by hand on x86-64, elsewhere by ucontext, which costs two system calls. They have no guard page: a word at their
 * end is looked at after each run. Cost: a stack a fiber, touched as far as it is used. */
#include <string.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#include "transport/sim_inside.h"

#ifdef __SANITIZE_ADDRESS__
enum { STACK_BYTES = 512 << 10 };
#else
enum { STACK_BYTES = 96 << 10 };
#endif
#define CANARY UINT64_C(0x5745465453544143)

static _Thread_local sim_fiber *entering; /* the one that is begun */

/* --- switching --- */

#ifdef __x86_64__
void wefti_sim_switch(void **save, void *load);
/* What the callee must keep goes onto the old stack, and comes from the new one. */
__asm__(".text\n.p2align 4\n.globl wefti_sim_switch\n.hidden wefti_sim_switch\n.type wefti_sim_switch,@function\nwefti_sim_switch:\n"
        "pushq %rbx\npushq %rbp\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbp\npopq %rbx\nret\n"
        ".size wefti_sim_switch,.-wefti_sim_switch\n");
#endif

/* `last`: `from` never comes back. */
static void switch_stack(sim_stack *from, const sim_stack *to, bool last) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(last ? NULL : &from->fake, to->bottom, to->bytes);
#else
    (void)last;
#endif
#ifdef __x86_64__
    wefti_sim_switch(&from->pointer, to->pointer);
#else
    swapcontext(from->saved, to->saved);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from->fake, NULL, NULL);
#endif
}

static _Noreturn void end(sim_fiber *fiber) {
    wefti_sim *sim = fiber->sim;
    fiber->ended = true;
    if (fiber->is_program) wefti_sim_program_over(fiber->seat);
    switch_stack(&fiber->stack, &sim->scheduler, true);
    __builtin_unreachable();
}

static void enter(void) {
    sim_fiber *fiber = entering;
#ifdef __SANITIZE_ADDRESS__
    const void *bottom = NULL;
    size_t      bytes = 0;
    __sanitizer_finish_switch_fiber(NULL, &bottom, &bytes);
    if (fiber->sim->scheduler.bytes == 0) { /* the first one learns whose stack it came from */
        fiber->sim->scheduler.bottom = (void *)(uintptr_t)bottom;
        fiber->sim->scheduler.bytes = bytes;
    }
#endif
    fiber->function(fiber->argument);
    end(fiber);
}

static weft_status prepare_stack(sim_fiber *fiber) {
    fiber->stack.bottom = fiber->memory;
    fiber->stack.bytes = fiber->sim->options.stack_bytes;
    memcpy(fiber->memory, &(uint64_t){CANARY}, sizeof(uint64_t));
#ifdef __x86_64__
    void **top = (void **)(void *)(fiber->memory + fiber->stack.bytes) - 1; /* functions begin 8 off a multiple of 16 */
    void (*function)(void) = enter;
    *top = NULL; /* no return address: it does not return */
    memcpy(--top, &function, sizeof function);
    for (int kept = 0; kept < 6; kept++) *--top = NULL;
    fiber->stack.pointer = top;
#else
    ucontext_t *saved = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *saved, "a fiber", &saved));
    getcontext(saved);
    saved->uc_stack.ss_sp = fiber->memory;
    saved->uc_stack.ss_size = fiber->stack.bytes;
    saved->uc_link = NULL;
    makecontext(saved, enter, 0);
    fiber->stack.saved = saved;
#endif
    return WEFT_OK;
}

/* --- running --- */

static bool is_whole(const sim_fiber *fiber) {
    uint64_t word;
    memcpy(&word, fiber->memory, sizeof word);
    return word == CANARY;
}

static void set_message(const char *message) {
    if (strcmp(weft_error_message(), message) != 0) (void)wefti_fail(WEFT_OK, "%s", message);
}

static void go_on(wefti_sim *sim, sim_event *event) {
    sim_fiber *fiber = (sim_fiber *)event;
    if (fiber->seat->stopped) {
        fiber->held = true;
        return;
    }
    fiber->waits = false;
    if (fiber->local_ns < sim->now_ns) fiber->local_ns = sim->now_ns;
    set_message(fiber->message);
    sim->running = fiber;
    if (!fiber->begun) {
        fiber->begun = true;
        entering = fiber;
    }
    switch_stack(&sim->scheduler, &fiber->stack, false);
    sim->running = NULL;
    if (!is_whole(fiber)) sim->overflowed = true;
}

void wefti_sim_wait(wefti_sim *sim, uint64_t duration_ns) {
    sim_fiber *fiber = sim->running;
    if (!fiber) {
        sim->now_ns = wefti_deadline_after(sim->now_ns, duration_ns);
        return;
    }
    const char *message = weft_error_message();
    memcpy(fiber->message, message, strlen(message) + 1);
    fiber->waits = true;
    wefti_sim_schedule(sim, &fiber->event, wefti_deadline_after(fiber->local_ns, duration_ns));
    switch_stack(&fiber->stack, &sim->scheduler, false);
}

void wefti_sim_wake(sim_seat *seat) {
    wefti_sim *sim = seat->sim;
    for (sim_fiber *fiber = seat->fibers; fiber; fiber = fiber->next) {
        uint64_t at_ns = fiber->local_ns > sim->now_ns ? fiber->local_ns : sim->now_ns;
        if (fiber->waits && !fiber->held && fiber->begun && fiber->event.at_ns > at_ns) wefti_sim_schedule(sim, &fiber->event, at_ns);
    }
}

_Noreturn void wefti_sim_leave(wefti_sim *sim) { end(sim->running); }

void wefti_sim_spend(wefti_sim *sim, uint64_t duration_ns) {
    if (sim->running) sim->running->local_ns += duration_ns;
}

/* --- making --- */

weft_status wefti_sim_fiber_create(sim_seat *seat, void (*function)(void *), void *argument, bool is_program, sim_fiber **fiber_out) {
    sim_fiber *fiber = NULL;
    wefti_sim *sim = seat->sim;
    if (sim->options.stack_bytes == 0) sim->options.stack_bytes = STACK_BYTES;
    WEFTI_TRY(wefti_alloc(sizeof *fiber, "a fiber", &fiber));
    *fiber = (sim_fiber){.event = {.fire = go_on}, .sim = sim, .seat = seat, .function = function, .argument = argument,
                         .is_program = is_program, .waits = true};
    weft_status status = wefti_alloc_raw(sim->options.stack_bytes, 4096, "a fiber's stack", &fiber->memory);
    if (status == WEFT_OK) status = prepare_stack(fiber);
    if (status != WEFT_OK) {
        wefti_sim_fiber_free(fiber);
        return status;
    }
    fiber->next = seat->fibers;
    seat->fibers = fiber;
    fiber->local_ns = wefti_sim_clock(sim);
    wefti_sim_schedule(sim, &fiber->event, fiber->local_ns);
    *fiber_out = fiber;
    return WEFT_OK;
}

void wefti_sim_fiber_free(sim_fiber *fiber) {
    wefti_free(fiber->memory, fiber->sim->options.stack_bytes);
#ifndef __x86_64__
    wefti_free(fiber->stack.saved, sizeof(ucontext_t));
#endif
    wefti_free(fiber, sizeof *fiber);
}

weft_status wefti_sim_fibers_begin(wefti_sim *sim) {
#ifndef __x86_64__
    if (!sim->scheduler.saved) return wefti_alloc(sizeof(ucontext_t), "the simulator's own stack", &sim->scheduler.saved);
#else
    (void)sim;
#endif
    return WEFT_OK;
}

void wefti_sim_fibers_end(wefti_sim *sim) {
#ifndef __x86_64__
    wefti_free(sim->scheduler.saved, sizeof(ucontext_t));
#else
    (void)sim;
#endif
}
