/* The CPU device: host memory, a thread pool, and programs that are arrays of kernel calls.
 *
 * Idea: compile chooses a kernel for each call, lets it prepare what it can, and lays everything that a launch needs
 * into one allocation; launch turns buffer numbers into pointers and runs the steps in order. Parallelism is inside the
 * kernels. Invariants: query and compile choose by the same function of the call alone; a launch allocates nothing and
 * takes no lock. Cost of a step: a few stores, beside what its kernel does. */
#include <stdlib.h>
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/iface/host.h"
#include "core/iface/rule.h"
#include "core/tensor/check.h"

typedef struct cpu_device {
    wefti_device          base;
    wefti_pool           *pool;
    wefti_cpu_isa         isa;
    const wefti_cpu_fast *fast; /* NULL: reference only */
} cpu_device;

typedef struct step {
    wefti_call              call;   /* operands in this program's allocation */
    const wefti_cpu_kernel *kernel; /* NULL: nothing to compute */
    const void            **inputs; /* filled at launch */
    void                  **outputs;
    void                   *prepared;
} step;

struct wefti_program {
    cpu_device *device;
    int32_t     n_steps;
    size_t      size_bytes;
    step       *steps;
};

static const char *const isa_names[WEFTI_CPU_ISA_COUNT] = {
    [WEFTI_CPU_AUTO] = "auto",         [WEFTI_CPU_REFERENCE] = "reference", [WEFTI_CPU_BASELINE] = "baseline",
    [WEFTI_CPU_AVX2] = "avx2",         [WEFTI_CPU_AVX512] = "avx512",
};

const char *wefti_cpu_isa_name(wefti_cpu_isa isa) { return (unsigned)isa < WEFTI_CPU_ISA_COUNT ? isa_names[isa] : "?"; }

bool wefti_cpu_has(wefti_cpu_isa isa) {
    switch (isa) {
    case WEFTI_CPU_AUTO:
    case WEFTI_CPU_REFERENCE:
    case WEFTI_CPU_BASELINE: return true;
#ifdef WEFTI_ISA_DISPATCH
    case WEFTI_CPU_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case WEFTI_CPU_AVX512:
        return wefti_cpu_has(WEFTI_CPU_AVX2) && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#endif
    default: return false;
    }
}

static const wefti_cpu_fast *fast_of(wefti_cpu_isa isa) {
    switch (isa) {
#ifdef WEFTI_ISA_DISPATCH
    case WEFTI_CPU_AVX2: return &wefti_cpu_fast_avx2;
    case WEFTI_CPU_AVX512: return &wefti_cpu_fast_avx512;
#endif
    case WEFTI_CPU_BASELINE: return &wefti_cpu_fast_baseline;
    default: return NULL;
    }
}

static weft_status resolve_isa(wefti_cpu_isa asked, wefti_cpu_isa *isa_out) {
    const char *text = getenv("WEFT_CPU_ISA");
    if (asked == WEFTI_CPU_AUTO && text && *text) {
        for (int isa = 0; isa < WEFTI_CPU_ISA_COUNT; isa++)
            if (strcmp(text, isa_names[isa]) == 0) {
                asked = (wefti_cpu_isa)isa;
                text = NULL;
                break;
            }
        if (text)
            return wefti_fail(WEFT_E_INVALID, "WEFT_CPU_ISA=%s: expected auto, reference, baseline, avx2 or avx512",
                              text);
    }
    if ((unsigned)asked >= WEFTI_CPU_ISA_COUNT)
        return wefti_fail(WEFT_E_INVALID, "cpu: no instruction set %d", (int)asked);
    if (!wefti_cpu_has(asked))
        return wefti_fail(WEFT_E_UNSUPPORTED, "cpu: this machine or build has no %s; use WEFT_CPU_ISA=baseline or auto",
                          isa_names[asked]);
    if (asked == WEFTI_CPU_AUTO)
        asked = wefti_cpu_has(WEFTI_CPU_AVX512) ? WEFTI_CPU_AVX512
                : wefti_cpu_has(WEFTI_CPU_AVX2) ? WEFTI_CPU_AVX2
                                                : WEFTI_CPU_BASELINE;
    *isa_out = asked;
    return WEFT_OK;
}

static cpu_device *cpu_of(const wefti_device *device) { return (cpu_device *)(uintptr_t)device; }
wefti_cpu_isa wefti_cpu_isa_of(const wefti_device *device) { return cpu_of(device)->isa; }

static void release(wefti_device *device) {
    if (!device) return;
    wefti_pool_release(cpu_of(device)->pool);
    wefti_free(device, sizeof(cpu_device));
}

static weft_status allocate(wefti_device *device, size_t size_bytes, const char *what, void **memory_out) {
    (void)device;
    return wefti_alloc_raw(size_bytes, WEFTI_CACHE_LINE, what, memory_out);
}
static void deallocate(wefti_device *device, void *memory, size_t size_bytes) {
    (void)device;
    wefti_free(memory, size_bytes);
}
static weft_status write_memory(wefti_device *device, void *device_memory, const void *host_memory, size_t size_bytes) {
    (void)device;
    if (size_bytes) memmove(device_memory, host_memory, size_bytes);
    return WEFT_OK;
}
static weft_status read_memory(wefti_device *device, void *host_memory, const void *device_memory, size_t size_bytes) {
    return write_memory(device, host_memory, device_memory, size_bytes);
}

static const wefti_cpu_kernel *choose(const cpu_device *cpu, const wefti_call *call) {
    for (int i = 0; cpu->fast && i < WEFTI_CPU_CHOICES; i++) {
        const wefti_cpu_kernel *kernel = cpu->fast->kernels[call->op][i];
        if (kernel && (!kernel->accepts || kernel->accepts(call))) return kernel;
    }
    return wefti_cpu_reference[call->op];
}

/* Nothing to write and no function of the application to call. */
static bool is_empty(const wefti_call *call) {
    if (wefti_ops[call->op].family == WEFTI_CUSTOM) return false;
    for (int32_t i = 0; i < call->n_outputs; i++)
        if (wefti_operand_elements(&call->outputs[i]) != 0) return false;
    return true;
}

/* The rule's own function computes an update here. */
static weft_status check_rule(const wefti_call *call) {
    const wefti_rule *rule = call->op == WEFT_OP_UPDATE ? call->attrs->update.rule : NULL;
    if (!rule || (call->outputs[0].dtype == WEFT_F64 ? rule->apply_f64 : rule->apply_f32)) return WEFT_OK;
    return wefti_fail(WEFT_E_UNSUPPORTED, "update '%s': rule '%s' has no function for %s", call->name ? call->name : "", rule->name,
                      weft_dtype_name(call->outputs[0].dtype));
}

static bool is_by_rows(const wefti_call *call) {
    return (call->op == WEFT_OP_ATTENTION || call->op == WEFT_OP_ATTENTION_BACKWARD) && call->attrs->attention.by_rows;
}

/* Nobody is asked to leave images with channels last: kernels write outputs in order. */
static weft_status check_layout(const wefti_call *call) {
    if (call->n_outputs == 0 || wefti_operand_is_contiguous(&call->outputs[0])) return WEFT_OK;
    return wefti_fail(WEFT_E_UNSUPPORTED, "cpu: %s '%s' is to leave channels last, which this device does not", wefti_ops[call->op].name,
                      call->name ? call->name : "");
}

static weft_status query(wefti_device *device, const wefti_call *call, int64_t *scratch_bytes_out) {
    cpu_device *cpu = cpu_of(device);
    *scratch_bytes_out = 0;
    if (is_by_rows(call)) return wefti_fail(WEFT_E_UNSUPPORTED, "attention '%s' by rows: the CPU has it by heads", call->name ? call->name : "");
    WEFTI_TRY(wefti_call_check(call));
    WEFTI_TRY(check_rule(call));
    WEFTI_TRY(check_layout(call));
    if (is_empty(call)) return WEFT_OK;
    const wefti_cpu_kernel *kernel = choose(cpu, call);
    if (!kernel) return wefti_fail(WEFT_E_UNSUPPORTED, "cpu: there is no kernel for %s '%s'", wefti_ops[call->op].name, call->name ? call->name : "");
    if (kernel->scratch) *scratch_bytes_out = kernel->scratch(call, wefti_pool_threads(cpu->pool));
    return WEFT_OK;
}

static weft_status check_places(const wefti_segment *segment, const wefti_call *call, int64_t scratch_bytes) {
    for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++) {
        const wefti_operand *operand = i < call->n_inputs ? &call->inputs[i] : &call->outputs[i - call->n_inputs];
        if (operand->buffer < 0 || operand->buffer >= segment->n_buffers)
            return wefti_fail(WEFT_E_INVALID, "cpu: %s '%s' operand %d lies in buffer %d of %d",
                              wefti_ops[call->op].name, call->name ? call->name : "", (int)i, (int)operand->buffer,
                              (int)segment->n_buffers);
    }
    if (call->scratch_bytes < scratch_bytes ||
        (scratch_bytes && (call->scratch_buffer < 0 || call->scratch_buffer >= segment->n_buffers)))
        return wefti_fail(WEFT_E_INVALID, "cpu: %s '%s' needs %lld bytes of scratch and was given %lld",
                          wefti_ops[call->op].name, call->name ? call->name : "", (long long)scratch_bytes,
                          (long long)call->scratch_bytes);
    return WEFT_OK;
}

/* Takes `count` items of `item_bytes` from the program's allocation (or only measures it, while `base` is NULL). */
static void *carve(char *base, size_t *used, size_t count, size_t item_bytes) {
    size_t at = wefti_align_up(*used, WEFTI_CACHE_LINE);
    *used = at + count * item_bytes;
    return base ? base + at : NULL;
}

/* Lays out the steps; with base NULL measures, with memory fills. Returns the bytes. */
static size_t lay_out(const cpu_device *cpu, const wefti_segment *segment, char *base) {
    size_t         used = 0;
    wefti_program *program = carve(base, &used, 1, sizeof *program);
    step          *steps = carve(base, &used, (size_t)segment->n_calls, sizeof *steps);
    if (program)
        *program = (wefti_program){.device = (cpu_device *)(uintptr_t)cpu, .n_steps = segment->n_calls, .steps = steps};
    for (int32_t i = 0; i < segment->n_calls; i++) {
        const wefti_call       *call = &segment->calls[i];
        const wefti_cpu_kernel *kernel = is_empty(call) ? NULL : choose(cpu, call);
        size_t         n_inputs = (size_t)call->n_inputs, n_outputs = (size_t)call->n_outputs;
        size_t         prepared_bytes = kernel && kernel->prepared_bytes ? kernel->prepared_bytes(call) : 0;
        wefti_operand *operands = carve(base, &used, n_inputs + n_outputs, sizeof *operands);
        void         **pointers = carve(base, &used, n_inputs + n_outputs, sizeof *pointers);
        void          *prepared = carve(base, &used, prepared_bytes, 1);
        if (!base) continue;
        if (n_inputs) memcpy(operands, call->inputs, n_inputs * sizeof *operands);
        if (n_outputs) memcpy(operands + n_inputs, call->outputs, n_outputs * sizeof *operands);
        steps[i] = (step){.call = *call,
                          .kernel = kernel,
                          .inputs = (const void **)pointers,
                          .outputs = pointers + n_inputs,
                          .prepared = prepared_bytes ? prepared : NULL};
        steps[i].call.inputs = operands;
        steps[i].call.outputs = operands + n_inputs;
    }
    return used;
}

static void release_program(wefti_program *program) {
    if (program) wefti_free(program, program->size_bytes);
}

static weft_status compile(wefti_device *device, const wefti_segment *segment, wefti_program **program_out) {
    cpu_device *cpu = cpu_of(device);
    *program_out = NULL;
    for (int32_t i = 0; i < segment->n_calls; i++) {
        int64_t scratch_bytes = 0;
        WEFTI_TRY(query(device, &segment->calls[i], &scratch_bytes));
        WEFTI_TRY(check_places(segment, &segment->calls[i], scratch_bytes));
    }
    size_t         size_bytes = lay_out(cpu, segment, NULL);
    wefti_program *program = NULL;
    WEFTI_TRY(wefti_alloc(size_bytes, "a CPU program", &program));
    (void)lay_out(cpu, segment, (char *)program);
    program->size_bytes = size_bytes;
    for (int32_t i = 0; i < program->n_steps; i++) {
        step *self = &program->steps[i];
        if (!self->kernel || !self->kernel->prepare) continue;
        weft_status status = self->kernel->prepare(&self->call, wefti_pool_threads(cpu->pool), self->prepared);
        if (status != WEFT_OK) {
            release_program(program);
            return status;
        }
    }
    *program_out = program;
    return WEFT_OK;
}

static uint64_t clock_ns(void) { return wefti_host_now(wefti_host_system()); }

static void *place(void *const *buffers, int32_t buffer, int64_t offset_bytes) {
    /* Through integers: an empty operand may lie in a NULL buffer. */
    return (void *)((uintptr_t)buffers[buffer] + (uintptr_t)offset_bytes);
}

static weft_status run_step(const cpu_device *cpu, const step *self, void *const *buffers,
                            const wefti_pool_idle *idle) {
    const wefti_call *call = &self->call;
    for (int32_t i = 0; i < call->n_inputs; i++)
        self->inputs[i] = place(buffers, call->inputs[i].buffer, call->inputs[i].offset_bytes);
    for (int32_t i = 0; i < call->n_outputs; i++)
        self->outputs[i] = place(buffers, call->outputs[i].buffer, call->outputs[i].offset_bytes);
    wefti_cpu_run run = {.call = call, .inputs = self->inputs, .outputs = self->outputs, .prepared = self->prepared,
                         .threads = wefti_pool_threads(cpu->pool), .pool = cpu->pool, .idle = idle};
    if (call->scratch_bytes > 0) run.scratch = place(buffers, call->scratch_buffer, call->scratch_offset);
    uint64_t    arithmetic = wefti_flush_subnormals();
    weft_status status = self->kernel->run(&run);
    wefti_restore_subnormals(arithmetic);
    return status;
}

static weft_status launch(wefti_program *program, const wefti_launch *launch_) {
    wefti_pool_idle idle = {launch_->between, launch_->context};
    for (int32_t i = 0; i < program->n_steps; i++) {
        const step *self = &program->steps[i];
        uint64_t    begin = launch_->profile_ns ? clock_ns() : 0;
        if (self->kernel) {
            weft_status status = run_step(program->device, self, launch_->buffers, idle.call ? &idle : NULL);
            if (status != WEFT_OK)
                return wefti_while(status, "%s '%s'", wefti_ops[self->call.op].name,
                                   self->call.name ? self->call.name : "");
        }
        if (launch_->profile_ns) launch_->profile_ns[i] = clock_ns() - begin;
        if (launch_->between) launch_->between(launch_->context);
    }
    return WEFT_OK;
}

static weft_status reduce(void *device, void *dst, const void *const *sources, int32_t source_count, size_t count,
                          weft_dtype dtype, wefti_reduce_op op, int32_t divisor) {
    const cpu_device *cpu = device;
    uint64_t    arithmetic = wefti_flush_subnormals(); /* always: `idle` may call it from within a region */
    weft_status status = (cpu->fast ? cpu->fast->reduce : wefti_cpu_reduce)(NULL, dst, sources, source_count, count, dtype, op,
                                                                            divisor);
    wefti_restore_subnormals(arithmetic);
    return status;
}

static int32_t threads(wefti_device *device) { return wefti_pool_threads(cpu_of(device)->pool); }

static const wefti_device_vtable vtable = {
    .kind = "cpu",
    .host_memory = true,
    .fuses_reductions = true,
    .release = release,
    .allocate = allocate,
    .deallocate = deallocate,
    .write = write_memory,
    .read = read_memory,
    .query = query,
    .compile = compile,
    .release_program = release_program,
    .launch = launch,
    .reduce = reduce,
    .threads = threads,
};

weft_status wefti_cpu_create(const wefti_cpu_options *options, wefti_device **device_out) {
    static const wefti_cpu_options defaults;
    if (!options) options = &defaults;
    *device_out = NULL;
    wefti_cpu_isa isa = WEFTI_CPU_AUTO;
    WEFTI_TRY(resolve_isa(options->isa, &isa));
    cpu_device *cpu = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *cpu, "the CPU device", &cpu));
    weft_status status = wefti_pool_create(&options->threads, &cpu->pool);
    if (status != WEFT_OK) {
        wefti_free(cpu, sizeof *cpu);
        return status;
    }
    cpu->base.vtable = &vtable;
    cpu->isa = isa;
    cpu->fast = fast_of(isa);
    *device_out = &cpu->base;
    return WEFT_OK;
}
