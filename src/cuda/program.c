/* Programs of the CUDA device: kernels in order, launched one by one at first and as captured graphs from then on.
 *
 * Idea: a launch only enqueues. The first launch goes call by call, which also lets the driver load the kernels; when a later one comes with
 * the same addresses as the one before, its calls are captured as CUDA graphs and replayed from then on, at one call to the driver each.
 * Calls that cannot be captured (they wait, or call the application) cut a program into parts. Other addresses than those captured are
 * launched call by call again, and captured anew when they repeat. A program whose capture fails stays uncaptured, with a warning.
 *
 * Invariants: query and compile choose a kernel by the same facts; a launch allocates nothing but what a capture or the first profile
 * needs. Cost of a replay: comparing a few addresses. */
#include <string.h>

#include "core/iface/rule.h"
#include "core/tensor/check.h"
#include "core/tensor/codec.h"
#include "cuda/inside.h"
#include "cuda/marks.h"

typedef struct step {
    wefti_call               call;   /* operands in this program's allocation */
    const wefti_cuda_kernel *kernel; /* NULL: nothing to compute */
    const void             **inputs; /* filled when it is enqueued */
    void                   **outputs;
    void                    *prepared;
    bool                     is_prepared;
    int32_t                  together; /* it and those behind it that are done with it; 0: it is done with one before it */
} step;

/* Steps that are captured together, or one that cannot be. */
typedef struct part {
    int32_t         begin, end;
    bool            eager;
    cudaGraphExec_t graph;
} part;

struct wefti_program {
    wefti_cuda  *cuda;
    int32_t      n_steps, n_parts, n_buffers;
    size_t       size_bytes;
    step        *steps;
    part        *parts;
    bool        *reads;    /* [n_buffers] whether any operand lies in it */
    void       **latest;   /* [n_buffers] addresses of the last launch */
    void       **captured; /* [n_buffers] addresses in the graphs */
    bool         has_latest, has_graphs, uncapturable;
    wefti_cuda_run *runs; /* [n_steps] room for those that are done together */
    cudaEvent_t *events; /* [n_steps + 1] for profiles; NULL until the first */
};

/* Kernels, and libraries above all, want scratch aligned to 256 bytes; planners align what they lay out to 64. */

/* --- choosing --- */

const wefti_cuda_kernel *wefti_cuda_choose(const wefti_cuda *cuda, const wefti_call *call) {
    for (int i = 0; i < WEFTI_CUDA_CHOICES; i++) {
        const wefti_cuda_kernel *kernel = wefti_cuda_kernels[call->op][i];
        if (kernel && (!kernel->accepts || kernel->accepts(cuda, call))) return kernel;
    }
    return NULL;
}

/* Nothing to write and no function of the application to call. */
static bool is_empty(const wefti_call *call) {
    if (wefti_ops[call->op].family == WEFTI_CUSTOM) return false;
    for (int32_t i = 0; i < call->n_outputs; i++)
        if (weft_shape_elements(call->outputs[i].shape) != 0) return false;
    return true;
}

static weft_status no_kernel(const wefti_cuda *cuda, const wefti_call *call) {
    const wefti_operand *of = call->n_outputs > 0 ? &call->outputs[0] : &call->inputs[0];
    if (call->op == WEFT_OP_FUSED_MATMUL) return wefti_fail(WEFT_E_UNSUPPORTED, "%s", wefti_cuda_why_no_epilogue(cuda, call));
    if (call->op == WEFT_OP_UPDATE && call->attrs->update.rule->id >= WEFTI_RULE_USER)
        return wefti_fail(WEFT_E_UNSUPPORTED, "update '%s': the rule '%s' is a function of the application, on the host; cuda:%d cannot call it. "
                          "Use one of Weft's solvers, or the device 'cpu'", call->name ? call->name : "", call->attrs->update.rule->name,
                          (int)cuda->ordinal);
    if (call->op == WEFT_OP_ENCODE || call->op == WEFT_OP_DECODE)
        return wefti_fail(WEFT_E_UNSUPPORTED, "cuda:%d has no kernels for the codec %s: let strategy.compress be bf16 or powersgd, or use the device "
                          "'cpu'", (int)cuda->ordinal, wefti_codec_of(call->attrs->codec.codec)->name);
    if (call->op == WEFT_OP_FP8_MATMUL) return wefti_cuda_fp8_refuse(cuda, call);
    return wefti_fail(WEFT_E_UNSUPPORTED, "cuda:%d has no kernel for %s '%s' (%s%s)%s", (int)cuda->ordinal, wefti_ops[call->op].name,
                      call->name ? call->name : "", weft_dtype_name(of->dtype), weft_shape_text(of->shape).text,
                      wefti_cuda_kernels[call->op][0] ? " in this dtype and shape" : "; the device 'cpu' computes it");
}

weft_status wefti_cuda_query(wefti_device *device, const wefti_call *call, int64_t *scratch_bytes_out) {
    const wefti_cuda *cuda = wefti_cuda_of(device);
    *scratch_bytes_out = 0;
    WEFTI_TRY(wefti_call_check(call));
    if (is_empty(call)) return WEFT_OK;
    const wefti_cuda_kernel *kernel = wefti_cuda_choose(cuda, call);
    if (!kernel) return no_kernel(cuda, call);
    if (kernel->scratch) *scratch_bytes_out = kernel->scratch(cuda, call);
    if (*scratch_bytes_out > 0) *scratch_bytes_out += WEFTI_CUDA_SCRATCH_SLACK;
    return WEFT_OK;
}

/* --- compiling --- */

static weft_status check_places(const wefti_segment *segment, const wefti_call *call, int64_t scratch_bytes) {
    for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++) {
        const wefti_operand *operand = i < call->n_inputs ? &call->inputs[i] : &call->outputs[i - call->n_inputs];
        if (operand->buffer < 0 || operand->buffer >= segment->n_buffers)
            return wefti_fail(WEFT_E_INVALID, "cuda: %s '%s' operand %d lies in buffer %d of %d", wefti_ops[call->op].name,
                              call->name ? call->name : "", (int)i, (int)operand->buffer, (int)segment->n_buffers);
    }
    if (call->scratch_bytes < scratch_bytes ||
        (scratch_bytes && (call->scratch_buffer < 0 || call->scratch_buffer >= segment->n_buffers)))
        return wefti_fail(WEFT_E_INVALID, "cuda: %s '%s' needs %lld bytes of scratch and was given %lld", wefti_ops[call->op].name,
                          call->name ? call->name : "", (long long)scratch_bytes, (long long)call->scratch_bytes);
    return WEFT_OK;
}

/* Takes `count` items of `item_bytes` from the program's allocation (or only measures it, while `base` is NULL). */
static void *carve(char *base, size_t *used, size_t count, size_t item_bytes) {
    size_t at = wefti_align_up(*used, WEFTI_CACHE_LINE);
    *used = at + count * item_bytes;
    return base ? base + at : NULL;
}

static void lay_out_step(const wefti_cuda *cuda, const wefti_call *call, char *base, size_t *used, step *step_out) {
    const wefti_cuda_kernel *kernel = is_empty(call) ? NULL : wefti_cuda_choose(cuda, call);
    size_t         n_inputs = (size_t)call->n_inputs, n_outputs = (size_t)call->n_outputs;
    size_t         prepared_bytes = kernel && kernel->prepared_bytes ? kernel->prepared_bytes(call) : 0;
    wefti_operand *operands = carve(base, used, n_inputs + n_outputs, sizeof *operands);
    void         **pointers = carve(base, used, n_inputs + n_outputs, sizeof *pointers);
    void          *prepared = carve(base, used, prepared_bytes, 1);
    if (!base) return;
    if (n_inputs) memcpy(operands, call->inputs, n_inputs * sizeof *operands);
    if (n_outputs) memcpy(operands + n_inputs, call->outputs, n_outputs * sizeof *operands);
    *step_out = (step){.call = *call, .kernel = kernel, .inputs = (const void **)pointers, .outputs = pointers + n_inputs,
                       .prepared = prepared_bytes ? prepared : NULL};
    step_out->call.inputs = operands;
    step_out->call.outputs = operands + n_inputs;
    if (call->scratch_bytes > WEFTI_CUDA_SCRATCH_SLACK) step_out->call.scratch_bytes -= WEFTI_CUDA_SCRATCH_SLACK; /* what kernels see, from an aligned address on */
}

/* Lays out the program; with base NULL measures, with memory (zeroed) fills. Returns the bytes. */
static size_t lay_out(wefti_cuda *cuda, const wefti_segment *segment, char *base) {
    size_t         used = 0, n_calls = (size_t)segment->n_calls, n_buffers = (size_t)segment->n_buffers;
    wefti_program *program = carve(base, &used, 1, sizeof *program);
    step          *steps = carve(base, &used, n_calls, sizeof *steps);
    part          *parts = carve(base, &used, n_calls, sizeof *parts);
    bool          *reads = carve(base, &used, n_buffers, sizeof *reads);
    void         **addresses = carve(base, &used, 2 * n_buffers, sizeof *addresses);
    wefti_cuda_run *runs = carve(base, &used, n_calls, sizeof *runs);
    if (program)
        *program = (wefti_program){.cuda = cuda, .n_steps = segment->n_calls, .n_buffers = segment->n_buffers, .steps = steps, .parts = parts, .runs = runs,
                                   .reads = reads, .latest = addresses, .captured = addresses + n_buffers};
    for (int32_t i = 0; i < segment->n_calls; i++) lay_out_step(cuda, &segment->calls[i], base, &used, base ? &steps[i] : NULL);
    return used;
}

/* Cuts the steps into parts, and notes which buffers they look at. */
static void cut(wefti_program *program) {
    for (int32_t i = 0; i < program->n_steps; i++) {
        const step *self = &program->steps[i];
        if (!self->kernel) continue;
        for (int32_t k = 0; k < self->call.n_inputs; k++) program->reads[self->call.inputs[k].buffer] = true;
        for (int32_t k = 0; k < self->call.n_outputs; k++) program->reads[self->call.outputs[k].buffer] = true;
        if (self->call.scratch_bytes > 0) program->reads[self->call.scratch_buffer] = true;
        part *last = program->n_parts > 0 ? &program->parts[program->n_parts - 1] : NULL;
        if (last && !last->eager && !self->kernel->eager) last->end = i + 1;
        else program->parts[program->n_parts++] = (part){.begin = i, .end = i + 1, .eager = self->kernel->eager};
    }
}

/* Finds runs of calls that a kernel does together. */
static weft_status join(wefti_program *program) {
    const wefti_call **calls = NULL;
    size_t             bytes = (size_t)program->n_steps * sizeof *calls;
    WEFTI_TRY(wefti_alloc(bytes, "a CUDA program", &calls));
    for (int32_t i = 0; i < program->n_steps; i += program->steps[i].together) {
        step   *first = &program->steps[i];
        int32_t n = 1;
        calls[0] = &first->call;
        const wefti_cuda_kernel *with = first->kernel && first->kernel->with ? first->kernel->with : first->kernel;
        while (with && first->kernel->joins && i + n < program->n_steps && program->steps[i + n].kernel == with &&
               first->kernel->joins(program->cuda, calls, n, &program->steps[i + n].call)) {
            calls[n] = &program->steps[i + n].call;
            n++;
        }
        first->together = n;
    }
    wefti_free(calls, bytes);
    return WEFT_OK;
}

static weft_status prepare(wefti_program *program) {
    for (int32_t i = 0; i < program->n_steps; i++) {
        step *self = &program->steps[i];
        if (!self->kernel) continue;
        if (self->kernel->prepare) {
            wefti_cuda_mark_begin("prepare", self->call.name);
            weft_status status = self->kernel->prepare(program->cuda, &self->call, self->prepared);
            wefti_cuda_mark_end();
            if (status != WEFT_OK)
                return wefti_while(status, "preparing %s '%s'", wefti_ops[self->call.op].name, self->call.name ? self->call.name : "");
        }
        self->is_prepared = true;
    }
    for (int32_t i = 0; i < program->n_steps; i += program->steps[i].together) {
        step *self = &program->steps[i];
        if (self->together > 1 && self->kernel->prepare_all) WEFTI_TRY(self->kernel->prepare_all(program->cuda, &self->call, self->prepared));
    }
    return WEFT_OK;
}

weft_status wefti_cuda_compile(wefti_device *device, const wefti_segment *segment, wefti_program **program_out) {
    wefti_cuda *cuda = wefti_cuda_of(device);
    *program_out = NULL;
    WEFTI_TRY(wefti_cuda_enter(cuda));
    for (int32_t i = 0; i < segment->n_calls; i++) {
        int64_t scratch_bytes = 0;
        WEFTI_TRY(wefti_cuda_query(device, &segment->calls[i], &scratch_bytes));
        WEFTI_TRY(check_places(segment, &segment->calls[i], scratch_bytes));
    }
    size_t         size_bytes = lay_out(cuda, segment, NULL);
    wefti_program *program = NULL;
    WEFTI_TRY(wefti_alloc(size_bytes, "a CUDA program", &program));
    (void)lay_out(cuda, segment, (char *)program);
    program->size_bytes = size_bytes;
    cut(program);
    weft_status status = join(program);
    if (status == WEFT_OK) status = prepare(program);
    if (status != WEFT_OK) {
        wefti_cuda_release_program(program);
        return status;
    }
    *program_out = program;
    return WEFT_OK;
}

static void release_graphs(wefti_program *program) {
    for (int32_t i = 0; i < program->n_parts; i++) {
        if (program->parts[i].graph) (void)cudaGraphExecDestroy(program->parts[i].graph);
        program->parts[i].graph = NULL;
    }
    program->has_graphs = false;
}

void wefti_cuda_release_program(wefti_program *program) {
    if (!program) return;
    wefti_cuda *cuda = program->cuda;
    (void)cudaSetDevice(cuda->ordinal);
    (void)!wefti_cuda_finish(cuda, cuda->stream, "releasing a program"); /* what was prepared may be in use */
    release_graphs(program);
    for (int32_t i = 0; i < program->n_steps; i++) {
        step *self = &program->steps[i];
        if (self->is_prepared && self->kernel->unprepare) self->kernel->unprepare(cuda, self->prepared);
    }
    for (int32_t i = 0; program->events && i <= program->n_steps; i++)
        if (program->events[i]) (void)cudaEventDestroy(program->events[i]);
    wefti_free(program->events, ((size_t)program->n_steps + 1) * sizeof *program->events);
    (void)cudaGetLastError();
    wefti_free(program, program->size_bytes);
}

/* --- launching --- */

static void *place(void *const *buffers, int32_t buffer, int64_t offset_bytes) {
    /* Through integers: an empty operand may lie in a NULL buffer. */
    return (void *)((uintptr_t)buffers[buffer] + (uintptr_t)offset_bytes);
}

static wefti_cuda_run run_of(const wefti_program *program, const step *self, void *const *buffers) {
    const wefti_call *call = &self->call;
    for (int32_t i = 0; i < call->n_inputs; i++) self->inputs[i] = place(buffers, call->inputs[i].buffer, call->inputs[i].offset_bytes);
    for (int32_t i = 0; i < call->n_outputs; i++) self->outputs[i] = place(buffers, call->outputs[i].buffer, call->outputs[i].offset_bytes);
    wefti_cuda_run run = {.cuda = program->cuda, .call = call, .inputs = self->inputs, .outputs = self->outputs, .prepared = self->prepared,
                          .stream = program->cuda->stream};
    if (call->scratch_bytes > 0)
        run.scratch = (void *)wefti_align_up((uintptr_t)place(buffers, call->scratch_buffer, call->scratch_offset), WEFTI_CUDA_SCRATCH_ALIGNMENT);
    return run;
}

/* A step, with those that are done with it. */
static weft_status enqueue_step(const wefti_program *program, const step *self, void *const *buffers) {
    wefti_cuda_run *runs = program->runs;
    for (int32_t i = 0; i < self->together; i++) runs[i] = run_of(program, self + i, buffers);
    wefti_cuda_mark_begin(wefti_ops[self->call.op].name, self->call.name);
    weft_status status = self->together > 1 ? self->kernel->run_all(runs, self->together) : self->kernel->run(runs);
    wefti_cuda_mark_end();
    if (status == WEFT_OK) return WEFT_OK;
    return wefti_while(status, "%s '%s'", wefti_ops[self->call.op].name, self->call.name ? self->call.name : "");
}

static weft_status enqueue(const wefti_program *program, int32_t begin, int32_t end, const wefti_launch *launch) {
    for (int32_t i = begin; i < end; i += program->steps[i].together) {
        if (program->steps[i].kernel) WEFTI_TRY(enqueue_step(program, &program->steps[i], launch->buffers));
        if (launch->between) launch->between(launch->context);
    }
    return WEFT_OK;
}

static bool same_addresses(const wefti_program *program, void *const *a, void *const *b) {
    for (int32_t i = 0; i < program->n_buffers; i++)
        if (program->reads[i] && a[i] != b[i]) return false;
    return true;
}

/* Captures one part, without executing anything. */
static weft_status capture_part(wefti_program *program, part *self, const wefti_launch *launch) {
    wefti_cuda  *cuda = program->cuda;
    cudaGraph_t  graph = NULL;
    wefti_launch quiet = {.buffers = launch->buffers};
    WEFTI_TRY(wefti_cuda_check(cuda, cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeRelaxed), "beginning a capture"));
    weft_status status = enqueue(program, self->begin, self->end, &quiet);
    cudaError_t error = cudaStreamEndCapture(cuda->stream, &graph);
    if (status == WEFT_OK) status = wefti_cuda_check(cuda, error, "ending a capture");
    if (status == WEFT_OK) status = wefti_cuda_check(cuda, cudaGraphInstantiate(&self->graph, graph, 0), "making a graph");
    if (graph) (void)cudaGraphDestroy(graph);
    if (status != WEFT_OK) (void)cudaGetLastError();
    return status;
}

/* Captures all parts for these addresses; where one cannot be, none is from now on. */
static weft_status capture(wefti_program *program, const wefti_launch *launch) {
    release_graphs(program);
    for (int32_t i = 0; i < program->n_parts; i++) {
        if (program->parts[i].eager) continue;
        weft_status status = capture_part(program, &program->parts[i], launch);
        if (status == WEFT_OK) continue;
        release_graphs(program);
        if (program->cuda->broken != WEFT_OK) return status;
        program->uncapturable = true;
        wefti_log(WEFT_LOG_WARNING, "cuda:%d launches a segment call by call, it cannot be captured: %s", (int)program->cuda->ordinal,
                  weft_error_message());
        return WEFT_OK;
    }
    program->has_graphs = true;
    memcpy(program->captured, launch->buffers, (size_t)program->n_buffers * sizeof *program->captured);
    return WEFT_OK;
}

static weft_status replay(wefti_program *program, const wefti_launch *launch) {
    for (int32_t i = 0; i < program->n_parts; i++) {
        part *self = &program->parts[i];
        if (self->eager) {
            WEFTI_TRY(enqueue(program, self->begin, self->end, launch));
            continue;
        }
        wefti_cuda_mark_begin("graph from", program->steps[self->begin].call.name);
        cudaError_t error = cudaGraphLaunch(self->graph, program->cuda->stream);
        wefti_cuda_mark_end();
        WEFTI_TRY(wefti_cuda_check(program->cuda, error, "launching a graph"));
        if (launch->between) launch->between(launch->context);
    }
    return WEFT_OK;
}

/* What was done together took its elements' share of the time each. */
static void share_out(const wefti_program *program, int32_t begin, int32_t end, double ns, uint64_t *profile_ns) {
    double elements = 0;
    for (int32_t i = begin; i < end; i++) elements += (double)wefti_operand_elements(&program->steps[i].call.outputs[0]);
    for (int32_t i = begin; i < end; i++) {
        double own = (double)wefti_operand_elements(&program->steps[i].call.outputs[0]);
        profile_ns[i] = (uint64_t)(end - begin == 1 ? ns : elements > 0 ? ns * own / elements : 0);
    }
}

/* Call by call with an event after each; waits for them. */
static weft_status profile(wefti_program *program, const wefti_launch *launch) {
    wefti_cuda *cuda = program->cuda;
    if (!program->events) {
        WEFTI_TRY(wefti_alloc(((size_t)program->n_steps + 1) * sizeof *program->events, "profiling events", &program->events));
        for (int32_t i = 0; i <= program->n_steps; i++) WEFTI_TRY(wefti_cuda_check(cuda, cudaEventCreate(&program->events[i]), "an event"));
    }
    WEFTI_TRY(wefti_cuda_check(cuda, cudaEventRecord(program->events[0], cuda->stream), "profiling"));
    for (int32_t i = 0; i < program->n_steps; i += program->steps[i].together) {
        int32_t next = i + program->steps[i].together;
        WEFTI_TRY(enqueue(program, i, next, launch));
        WEFTI_TRY(wefti_cuda_check(cuda, cudaEventRecord(program->events[next], cuda->stream), "profiling"));
    }
    WEFTI_TRY(wefti_cuda_finish(cuda, cuda->stream, "profiling"));
    for (int32_t i = 0; i < program->n_steps; i += program->steps[i].together) {
        int32_t next = i + program->steps[i].together;
        float   milliseconds = 0;
        WEFTI_TRY(wefti_cuda_check(cuda, cudaEventElapsedTime(&milliseconds, program->events[i], program->events[next]), "profiling"));
        share_out(program, i, next, (double)milliseconds * 1e6, launch->profile_ns);
    }
    return WEFT_OK;
}

static const char *name_of(const step *self) { return self->call.name && *self->call.name ? self->call.name : wefti_ops[self->call.op].name; }

/* The first operation that has an operand in the buffer. */
static const step *user_of(const wefti_program *program, int32_t buffer) {
    for (int32_t s = 0; s < program->n_steps; s++) {
        const wefti_call *call = &program->steps[s].call;
        for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++)
            if ((i < call->n_inputs ? &call->inputs[i] : &call->outputs[i - call->n_inputs])->buffer == buffer) return &program->steps[s];
    }
    return NULL;
}

/* Addresses that this GPU does not reach would be a fault, after which no process uses it again. Looked at where they are new. */
static weft_status check_addresses(const wefti_program *program, void *const *buffers) {
    const wefti_cuda *cuda = program->cuda;
    for (int32_t i = 0; i < program->n_buffers; i++) {
        struct cudaPointerAttributes about;
        if (!program->reads[i] || !buffers[i]) continue;
        if (cudaPointerGetAttributes(&about, buffers[i]) != cudaSuccess) {
            (void)cudaGetLastError();
            continue; /* the launch will tell */
        }
        const step *user = user_of(program, i);
        const char *op = user ? wefti_ops[user->call.op].name : "a program", *name = user ? name_of(user) : "";
        if (about.type == cudaMemoryTypeUnregistered)
            return wefti_fail(WEFT_E_INVALID, "%s '%s' was given memory of the host, %p, where it is due on cuda:%d: copy it there first", op, name, buffers[i],
                              (int)cuda->ordinal);
        if (about.type == cudaMemoryTypeDevice && about.device != cuda->ordinal)
            return wefti_fail(WEFT_E_INVALID, "%s '%s' computes on cuda:%d and was given memory of cuda:%d: all of an operation is on one device", op, name,
                              (int)cuda->ordinal, about.device);
    }
    return WEFT_OK;
}

/* New addresses: they are looked at, and remembered. */
static weft_status take_addresses(wefti_program *program, void *const *buffers) {
    program->has_latest = false;
    WEFTI_TRY(check_addresses(program, buffers));
    memcpy(program->latest, buffers, (size_t)program->n_buffers * sizeof *program->latest);
    program->has_latest = true;
    return WEFT_OK;
}

/* For whoever meets a fault later: what was launched last. */
static void note_launch(const wefti_program *program) {
    char *text = program->cuda->inside->launched;
    if (program->n_steps == 0) return;
    const step *first = &program->steps[0], *last = &program->steps[program->n_steps - 1];
    if (program->n_steps == 1) snprintf(text, sizeof program->cuda->inside->launched, "%s '%.60s'", wefti_ops[first->call.op].name, name_of(first));
    else snprintf(text, sizeof program->cuda->inside->launched, "%d operations from %s '%.60s' to %s '%.60s'", (int)program->n_steps,
                  wefti_ops[first->call.op].name, name_of(first), wefti_ops[last->call.op].name, name_of(last));
}

weft_status wefti_cuda_launch_program(wefti_program *program, const wefti_launch *launch) {
    wefti_cuda *cuda = program->cuda;
    WEFTI_TRY(wefti_cuda_enter(cuda));
    bool again = program->has_latest && same_addresses(program, program->latest, launch->buffers);
    if (!again) WEFTI_TRY(take_addresses(program, launch->buffers));
    if (cuda->inside->noted != program) note_launch(program);
    cuda->inside->noted = program;
    if (launch->profile_ns) return profile(program, launch);
    if (!cuda->capture || program->uncapturable) return enqueue(program, 0, program->n_steps, launch);
    if (program->has_graphs && same_addresses(program, program->captured, launch->buffers)) return replay(program, launch);
    if (again) {
        WEFTI_TRY(capture(program, launch));
        if (program->has_graphs) return replay(program, launch);
    }
    return enqueue(program, 0, program->n_steps, launch);
}
