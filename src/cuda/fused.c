/* FUSED programs, compiled: each becomes the text of one kernel (fused_text.c), which NVRTC compiles (nvrtc.h).
 *
 * Reduced outputs: what the kernel sums on its way leaves partial results in scratch, which a pass of reduce.cu's adds up. Other reductions
 * (rows, maxima, a second set of axes) have their elements written to scratch, and are computed from there as if they stood alone.
 * Invariants: a thread reads all its inputs of an element before it writes, so an output may be an input's memory. Where the compiler is
 * missing or fails, the interpreter computes the program, if it has no reduced outputs.
 * Cost: every operand once; compiling takes some tens of milliseconds a new text, and is kept on disk. */
#include "core/tensor/operand.h"

#include <string.h>

#include "cuda/fused.h"
#include "cuda/joined.h"

typedef struct prepared {
    const void      *kernel; /* NULL: interpreted */
    const void      *together; /* the kernel for several of this text; NULL: there is none */
    int32_t          n_words;
    wefti_fused_loop loop;
    int32_t          input_word, output_word;
    int64_t          elements;
    uint64_t         words[];
} prepared;

static bool accepts(const wefti_cuda *cuda, const wefti_call *call) {
    return wefti_cuda_nvrtc_is_there(cuda, NULL) && wefti_cuda_fused_takes(call, call->attrs->fused.fused);
}

static size_t prepared_bytes_of(const wefti_call *call, int32_t n_instructions) {
    return sizeof(prepared) + (size_t)wefti_cuda_fused_words(call, n_instructions) * sizeof(uint64_t);
}
static size_t prepared_bytes(const wefti_call *call) { return prepared_bytes_of(call, call->attrs->fused.fused->n_instructions); }

static weft_status compile(wefti_cuda *cuda, const wefti_call *call, const wefti_fused *fused, prepared *p) {
    wefti_fused_text text;
    WEFTI_TRY(wefti_cuda_fused_write(call, fused, 0, p->words, &text));
    p->n_words = text.n_words;
    p->loop = wefti_cuda_fused_loop(call, fused);
    p->input_word = text.input_word;
    p->output_word = text.output_word;
    p->elements = text.elements;
    weft_status status = wefti_cuda_nvrtc_kernel(cuda, text.text.bytes, "weft_fused", &p->kernel);
    wefti_text_release(&text.text);
    return status;
}

/* After a compilation: where it failed and `otherwise` computes the call too, that is used, and the log says so. */
static weft_status or_interpret(const wefti_cuda *cuda, const wefti_call *call, const wefti_cuda_kernel *otherwise, weft_status status, prepared *p) {
    if (status == WEFT_OK || status == WEFT_E_NO_MEMORY || cuda->broken != WEFT_OK) return status;
    if (otherwise->accepts && !otherwise->accepts(cuda, call)) return status;
    wefti_log(WEFT_LOG_WARNING, "%s; '%s' is interpreted, which is slower", weft_error_message(), call->name ? call->name : "");
    p->kernel = NULL;
    return WEFT_OK;
}

static weft_status prepare(wefti_cuda *cuda, const wefti_call *call, void *memory) {
    return or_interpret(cuda, call, &wefti_cuda_fused, compile(cuda, call, call->attrs->fused.fused, memory), memory);
}

/* Launches the kernel; the words of outputs are set. */
static weft_status launch(const wefti_cuda_run *given, prepared *p) {
    for (int32_t i = 0; i < given->call->n_inputs; i++) p->words[p->input_word + i] = (uint64_t)(uintptr_t)given->inputs[i];
    if (p->elements == 0) return WEFT_OK;
    if (p->loop.blocks > 0x7fffffff)
        return wefti_fail(WEFT_E_UNSUPPORTED, "fused '%s': %s is too large for one launch", given->call->name ? given->call->name : "",
                          weft_shape_text(given->call->outputs[0].shape).text);
    void *arguments[] = {p->words};
    return wefti_cuda_check(given->cuda, cudaLaunchKernel(p->kernel, (dim3){(unsigned)p->loop.blocks, 1, 1}, (dim3){(unsigned)p->loop.threads, 1, 1}, arguments,
                                                          0, given->stream), "fused");
}

/* --- reduced outputs --- */

static int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

/* What the kernel does not write where it belongs. */
static bool is_reduced(const wefti_fused_output *out) { return out->reduce >= 0 && out->reduce != WEFT_OP_NORMALIZE; }

/* Bytes of scratch for output k: partial results, or its elements and what reducing them takes. */
static int64_t output_scratch(const wefti_call *call, const wefti_fused_loop *loop, int32_t k) {
    const wefti_fused        *fused = call->attrs->fused.fused;
    const wefti_fused_output *out = &fused->output[k];
    if (!is_reduced(out)) return 0;
    if (wefti_cuda_fused_sums(loop, fused, k)) return aligned(loop->how.pieces * loop->how.kept * 8);
    wefti_cuda_reduction how = wefti_cuda_reduction_of(fused->space, out->axes);
    return aligned(weft_shape_elements(fused->space) * (int64_t)weft_dtype_bytes(call->outputs[k].dtype)) + aligned(wefti_cuda_reduction_scratch(&how));
}

static int64_t scratch(const wefti_cuda *cuda, const wefti_call *call) {
    wefti_fused_loop loop = wefti_cuda_fused_loop(call, call->attrs->fused.fused);
    int64_t          bytes = 0;
    (void)cuda;
    for (int32_t k = 0; k < call->n_outputs; k++) bytes += output_scratch(call, &loop, k);
    return bytes;
}

/* Reduces output k from its elements, as a call of its own. */
static weft_status reduce_apart(const wefti_cuda_run *given, int32_t k, char *elements) {
    const wefti_fused        *fused = given->call->attrs->fused.fused;
    const wefti_fused_output *out = &fused->output[k];
    wefti_attrs               attrs;
    wefti_operand             x = {.dtype = given->call->outputs[k].dtype, .shape = fused->space};
    const void               *from = elements;
    void                     *to = given->outputs[k];
    memset(&attrs, 0, sizeof attrs);
    attrs.reduce.axes = out->axes;
    attrs.reduce.keep = 1;
    attrs.reduce.count = out->count;
    wefti_contiguous_strides(x.shape, x.stride);
    wefti_call     call = {.op = (weft_op)out->reduce, .attrs = &attrs, .n_inputs = 1, .n_outputs = 1, .inputs = &x, .outputs = &given->call->outputs[k],
                           .name = given->call->name};
    wefti_cuda_run run = {.cuda = given->cuda, .call = &call, .inputs = &from, .outputs = &to, .stream = given->stream};
    run.scratch = elements + aligned(weft_shape_elements(x.shape) * (int64_t)weft_dtype_bytes(x.dtype));
    return wefti_cuda_reduce.run(&run);
}

static weft_status run(const wefti_cuda_run *given) {
    prepared          *p = given->prepared;
    const wefti_fused *fused = given->call->attrs->fused.fused;
    char              *room = given->scratch;
    if (!p->kernel) return wefti_cuda_fused.run(given);
    for (int32_t k = 0; k < given->call->n_outputs; k++) {
        p->words[p->output_word + k] = (uint64_t)(uintptr_t)(is_reduced(&fused->output[k]) ? (void *)room : given->outputs[k]);
        room += output_scratch(given->call, &p->loop, k);
    }
    wefti_cuda_partials partials[WEFTI_REDUCE_AT_ONCE];
    int32_t             n = 0;
    WEFTI_TRY(launch(given, p));
    for (int32_t k = 0; k < given->call->n_outputs; k++) {
        const wefti_fused_output *out = &fused->output[k];
        char                     *from = (char *)(uintptr_t)p->words[p->output_word + k];
        if (!is_reduced(out)) continue;
        if (!wefti_cuda_fused_sums(&p->loop, fused, k)) {
            WEFTI_TRY(reduce_apart(given, k, from));
            continue;
        }
        double divisor = out->reduce != WEFT_OP_MEAN ? 1 : out->count != 0 ? out->count : (double)p->loop.how.reduced;
        partials[n++] = (wefti_cuda_partials){(weft_op)out->reduce, given->call->outputs[k].dtype, divisor, from, given->outputs[k]};
        if (n < WEFTI_REDUCE_AT_ONCE) continue;
        WEFTI_TRY(wefti_cuda_reduce_partials(given, &p->loop.how, partials, n));
        n = 0;
    }
    return n ? wefti_cuda_reduce_partials(given, &p->loop.how, partials, n) : WEFT_OK;
}

/* --- several small ones at once --- */

enum { MOST_TOGETHER = 64, ARGUMENT_BYTES = 4096, TOGETHER_ELEMENTS = 1 << 16 /* of each: larger ones fill a GPU by themselves */ };

static int32_t many_of(int32_t n_words) {
    int32_t most = (ARGUMENT_BYTES - 12) / (8 * n_words + 4);
    return most < MOST_TOGETHER ? most : MOST_TOGETHER;
}

/* The text of the call's kernel, for comparing. */
static weft_status text_of(const wefti_call *call, int32_t many, wefti_fused_text *text_out) {
    size_t      bytes = (size_t)wefti_cuda_fused_words(call, call->attrs->fused.fused->n_instructions) * sizeof(uint64_t);
    uint64_t   *words = NULL;
    WEFTI_TRY(wefti_alloc(bytes, "a fused program's words", &words));
    weft_status status = wefti_cuda_fused_write(call, call->attrs->fused.fused, many, words, text_out);
    wefti_free(words, bytes);
    return status;
}

static bool same_text(const wefti_call *a, const wefti_call *b) {
    wefti_fused_text first = {0}, second = {0};
    bool             same = text_of(a, 0, &first) == WEFT_OK && text_of(b, 0, &second) == WEFT_OK && strcmp(first.text.bytes, second.text.bytes) == 0;
    same = same && many_of(first.n_words) > 1;
    wefti_text_release(&first.text);
    wefti_text_release(&second.text);
    return same;
}

/* Small programs that only differ in shapes, addresses and attributes. */
static bool joins(const wefti_cuda *cuda, const wefti_call *const *calls, int32_t n, const wefti_call *next) {
    const wefti_fused *first = calls[0]->attrs->fused.fused, *other = next->attrs->fused.fused;
    (void)cuda;
    if (n >= WEFTI_CUDA_MOST_JOINED || first->n_instructions != other->n_instructions || first->n_inputs != other->n_inputs ||
        first->n_outputs != other->n_outputs)
        return false;
    if (weft_shape_elements(first->space) > TOGETHER_ELEMENTS || weft_shape_elements(other->space) > TOGETHER_ELEMENTS) return false;
    if (wefti_cuda_fused_loop(calls[0], first).walk != WEFTI_FUSED_FLAT || wefti_cuda_fused_loop(next, other).walk != WEFTI_FUSED_FLAT) return false;
    for (int32_t k = 0; k < first->n_outputs; k++)
        if (first->output[k].reduce >= 0 || other->output[k].reduce >= 0) return false;
    return wefti_cuda_undisturbed(calls, n, next) && same_text(calls[0], next);
}

/* The kernel for several; where it cannot be had each is launched by itself. */
static weft_status prepare_all(wefti_cuda *cuda, const wefti_call *call, void *memory) {
    prepared        *p = memory;
    wefti_fused_text text = {0};
    if (!p->kernel) return WEFT_OK;
    WEFTI_TRY(text_of(call, many_of(p->n_words), &text));
    weft_status status = wefti_cuda_nvrtc_kernel(cuda, text.text.bytes, "weft_fused", &p->together);
    wefti_text_release(&text.text);
    if (status == WEFT_OK || status == WEFT_E_NO_MEMORY || cuda->broken != WEFT_OK) return status;
    wefti_log(WEFT_LOG_WARNING, "%s; '%s' and those like it are launched one by one", weft_error_message(), call->name ? call->name : "");
    p->together = NULL;
    return WEFT_OK;
}

static weft_status launch_many(const wefti_cuda_run *runs, int32_t n, const void *kernel) {
    const prepared *first = runs[0].prepared;
    int32_t         most = many_of(first->n_words);
    size_t          words_at = wefti_align_up(((size_t)most + 1) * sizeof(uint32_t), sizeof(uint64_t)), words_bytes = (size_t)first->n_words * sizeof(uint64_t);
    uint64_t        room[ARGUMENT_BYTES / sizeof(uint64_t)] = {0};
    uint32_t       *begins = (uint32_t *)room;
    for (int32_t i = 0; i < n; i++) {
        prepared *p = runs[i].prepared;
        for (int32_t k = 0; k < runs[i].call->n_inputs; k++) p->words[p->input_word + k] = (uint64_t)(uintptr_t)runs[i].inputs[k];
        for (int32_t k = 0; k < runs[i].call->n_outputs; k++) p->words[p->output_word + k] = (uint64_t)(uintptr_t)runs[i].outputs[k];
        memcpy((char *)room + words_at + (size_t)i * words_bytes, p->words, words_bytes);
        begins[i + 1] = begins[i] + (uint32_t)p->loop.blocks;
    }
    void *arguments[] = {room};
    return wefti_cuda_check(runs->cuda, cudaLaunchKernel(kernel, (dim3){begins[n], 1, 1},
                                                         (dim3){(unsigned)first->loop.threads, 1, 1}, arguments, 0, runs->stream), "fused");
}

static weft_status run_all(const wefti_cuda_run *runs, int32_t n) {
    const prepared *first = runs[0].prepared;
    int32_t         most = many_of(first->n_words);
    const void     *together = first->together;
    for (int32_t i = 0, now; i < n; i += now) {
        now = together && n - i < most ? n - i : together ? most : 1;
        WEFTI_TRY(now > 1 ? launch_many(runs + i, now, together) : run(runs + i));
    }
    return WEFT_OK;
}

const wefti_cuda_kernel wefti_cuda_fused_compiled = {.name = "fused, compiled", .accepts = accepts, .scratch = scratch, .prepared_bytes = prepared_bytes,
                                                     .prepare = prepare, .run = run, .joins = joins, .run_all = run_all, .prepare_all = prepare_all};

/* --- single ops --- */

/* Ops that round once, so that it makes no difference who compiled them, and that have no kernel of their own but for operands which lie
 * alike. Below this size an interpreter is as good, and nothing need be compiled. */
enum { WORTH_COMPILING = 1 << 16 };

static bool lies_like(const wefti_operand *x, const wefti_operand *y) {
    return wefti_operand_is_contiguous(x) && weft_shape_elements(x->shape) == weft_shape_elements(y->shape);
}

static bool accepts_single(const wefti_cuda *cuda, const wefti_call *call) {
    const wefti_operand *y = &call->outputs[0];
    if (weft_shape_elements(y->shape) < WORTH_COMPILING || !wefti_cuda_nvrtc_is_there(cuda, NULL)) return false;
    switch (call->op) {
    case WEFT_OP_ADD:
    case WEFT_OP_SUB:
    case WEFT_OP_MUL:
    case WEFT_OP_DIV:
    case WEFT_OP_MAXIMUM:
    case WEFT_OP_MINIMUM:
    case WEFT_OP_RELU_BACKWARD:
        return !lies_like(&call->inputs[0], y) || !(lies_like(&call->inputs[1], y) || weft_shape_elements(call->inputs[1].shape) == 1);
    default: return true; /* WHERE, comparisons, AND, OR: table.c */
    }
}

static size_t prepared_bytes_of_single(const wefti_call *call) { return prepared_bytes_of(call, 1); }

static weft_status prepare_single(wefti_cuda *cuda, const wefti_call *call, void *memory) {
    wefti_fused *fused = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *fused, "a fused program", &fused));
    fused->space = call->outputs[0].shape;
    fused->n_inputs = call->n_inputs;
    fused->n_instructions = fused->n_outputs = 1;
    fused->instruction[0].op = call->op;
    fused->instruction[0].dtype = call->outputs[0].dtype;
    for (int32_t k = 0; k < 3; k++) fused->instruction[0].source[k] = k;
    fused->instruction[0].attrs = *call->attrs;
    fused->output[0].reduce = -1;
    weft_status status = compile(cuda, call, fused, memory);
    wefti_free(fused, sizeof *fused);
    return or_interpret(cuda, call, &wefti_cuda_elementwise, status, memory);
}

static weft_status run_single(const wefti_cuda_run *given) {
    prepared *p = given->prepared;
    if (!p->kernel) return wefti_cuda_elementwise.run(given);
    p->words[p->output_word] = (uint64_t)(uintptr_t)given->outputs[0];
    return launch(given, p);
}

const wefti_cuda_kernel wefti_cuda_elementwise_compiled = {.name = "elementwise, compiled", .accepts = accepts_single,
                                                           .prepared_bytes = prepared_bytes_of_single, .prepare = prepare_single, .run = run_single};
