/* Elementwise ops, FUSED, and SUM, MEAN, MAX and MIN, by one virtual machine for tiles (vm.h).
 *
 * Idea: an elementwise op is a program of one instruction, a reduction one of none; compile turns the call into a vm_program,
 * which says for every value where it will lie. A tile then costs one indirect call an instruction, on data in the first-level
 * cache, so a chain of any length reads and writes memory once.
 * Invariants: all that a tile reads from an output's memory (which may be an input's) is read before it is written; chunks and
 * parts follow from the shape, so bits do not depend on threads. A fused reduction is taken over the same tiles as one
 * alone.
 * Cost: a few slots of VM_TILE elements a thread, and for reductions an f64 a result and part (at most 16 parts, and only where
 * the axis that is cut is reduced away). */
#include "core/cpu/kernels/convert.h"
#include "core/cpu/kernels/fast.h"
#include "core/cpu/kernels/random.h"
#include "core/cpu/kernels/vm.h"

enum { PARTS = 16, CHUNK = 8 * VM_TILE, FINISH_CHUNK = 4096, VM_MOST_INPUTS = 3 * WEFTI_FUSED_MAX };

/* Compiling. */

static vm_rounding rounding_of(weft_dtype dtype) {
    return dtype == WEFT_BF16 ? VM_TO_BF16 : dtype == WEFT_F16 ? VM_TO_F16 : VM_AS_IS;
}

/* Whether an op's result in BOOL can be something else than 0 or 1: arithmetic on bytes. */
static bool leaves_bool(weft_op op) {
    switch (op) {
    case WEFT_OP_NEG:
    case WEFT_OP_ADD:
    case WEFT_OP_SUB:
    case WEFT_OP_MUL:
    case WEFT_OP_CLAMP: return true;
    default: return false;
    }
}

/* Drops axes of size 1 and merges those that lie evenly; an empty walk has one axis of size 1. */
static void merge_axes(weft_shape space, const int64_t *stride, weft_shape *merged, int64_t *merged_stride) {
    *merged = weft_shape_of(1, (const int64_t[]){1});
    merged_stride[0] = 0;
    int32_t n = 0;
    for (int32_t axis = 0; axis < space.rank; axis++) {
        if (space.dim[axis] == 1) continue;
        if (n > 0 && merged_stride[n - 1] == stride[axis] * space.dim[axis]) {
            merged->dim[n - 1] *= space.dim[axis];
            merged_stride[n - 1] = stride[axis];
        } else {
            merged->dim[n]     = space.dim[axis];
            merged_stride[n++] = stride[axis];
        }
    }
    merged->rank = n > 0 ? n : 1;
}

static void add_input(vm_program *p, int32_t index, const wefti_operand *operand) {
    vm_input *input = &p->inputs[index];
    int64_t   stride[WEFT_MAX_RANK] = {0};
    wefti_operand_expand(operand, p->space, stride);
    merge_axes(p->space, stride, &input->space, input->stride);
    input->dtype     = operand->dtype;
    input->type      = vm_type_of(operand->dtype);
    input->slot      = -1;
    input->last_step = -1;
    bool one   = input->space.rank == 1 && input->stride[0] == 0;
    bool plain = input->space.rank == 1 && (input->stride[0] == 1 || p->elements == 1);
    if (plain && rounding_of(operand->dtype) == VM_AS_IS)
        input->kind = VM_DIRECT;
    else
        input->kind = one ? VM_CONSTANT : VM_WALKED;
}

/* The value that `source` of a fused program names. */
static int32_t value_of(const vm_program *p, int32_t source) { return source >= 0 ? source : p->n_inputs + (-1 - source); }

static void add_step(vm_program *p, weft_op op, const wefti_attrs *attrs, weft_dtype from, weft_dtype dtype, const int32_t *source) {
    vm_step *step = &p->steps[p->n_steps];
    *step = (vm_step){.function = op == WEFT_OP_DROPOUT ? NULL : vm_function_of(op, from, dtype), .attrs = attrs, .output = -1, .slot = -1};
    step->rounding = dtype == WEFT_BOOL && leaves_bool(op) ? VM_TO_BOOL : rounding_of(dtype);
    for (int32_t k = 0; k < wefti_ops[op].inputs_max; k++) {
        step->source[k] = value_of(p, source[k]);
        if (step->source[k] < p->n_inputs) p->inputs[step->source[k]].last_step = p->n_steps;
    }
    for (int32_t k = wefti_ops[op].inputs_max; k < 3; k++) step->source[k] = -1;
    p->types[p->n_steps++] = vm_type_of(dtype);
}

static vm_type type_of_value(const vm_program *p, int32_t value) {
    return value < p->n_inputs ? p->inputs[value].type : p->types[value - p->n_inputs];
}

static void add_output(vm_program *p, int32_t value, int32_t reduce, uint32_t axes, double count, weft_dtype dtype) {
    vm_output *output = &p->outputs[p->n_outputs++];
    *output = (vm_output){.value = value, .reduce = reduce, .count = count, .dtype = dtype, .copied_from = -1};
    output->type = type_of_value(p, value);
    if (reduce < 0) return; /* its pass is the last, whatever that will be */
    for (output->pass = 0; output->pass < p->n_passes; output->pass++)
        if (p->passes[output->pass].axes == axes) break;
    vm_pass *pass = &p->passes[output->pass];
    if (output->pass == p->n_passes) *(p->n_passes++, pass) = (vm_pass){.axes = axes, .reduces = true};
}

/* Cuts the first axis that is long enough, else the longest; axes in front of it become `outer`. */
static void plan_parts(const vm_program *p, vm_pass *pass) {
    int32_t cut = 0;
    for (int32_t axis = 0; axis < pass->space.rank; axis++) {
        if (pass->space.dim[axis] > pass->space.dim[cut]) cut = axis;
        if (pass->space.dim[axis] >= PARTS) {
            cut = axis;
            break;
        }
    }
    pass->outer = pass->inner = 1;
    for (int32_t axis = 0; axis < cut; axis++) pass->outer *= pass->space.dim[axis];
    for (int32_t axis = cut + 1; axis < pass->space.rank; axis++) pass->inner *= pass->space.dim[axis];
    pass->split            = pass->space.dim[cut];
    pass->split_is_reduced = pass->reduces && pass->stride[cut] == 0;
    pass->parts            = wefti_max_i64(1, wefti_min_i64(pass->split, wefti_min_i64(PARTS, p->elements / CHUNK)));
    if (!pass->reduces) pass->parts = wefti_max_i64(1, wefti_cpu_chunks(p->elements, CHUNK));
}

static void plan_pass(vm_program *p, vm_pass *pass) {
    pass->kept = pass->reduced = 1;
    int64_t stride[WEFT_MAX_RANK] = {0};
    for (int32_t axis = p->space.rank - 1; axis >= 0; axis--) {
        bool away    = pass->axes >> axis & 1;
        stride[axis] = away ? 0 : pass->kept;
        *(away ? &pass->reduced : &pass->kept) *= p->space.dim[axis];
    }
    if (!pass->reduces) {
        pass->space = weft_shape_of(1, &p->elements);
        pass->stride[0] = 1;
    } else if (p->elements > 0) {
        merge_axes(p->space, stride, &pass->space, pass->stride);
    } else {
        pass->space = weft_shape_of(1, &p->elements);
    }
    plan_parts(p, pass);
}

/* Marks what each pass needs, and gives totals their places. */
static void plan_passes(vm_program *p) {
    if (p->n_passes == 0) p->passes[p->n_passes++] = (vm_pass){.axes = 0};
    for (int32_t i = 0; i < p->n_passes; i++) plan_pass(p, &p->passes[i]);
    int64_t totals = 0;
    for (int32_t k = 0; k < p->n_outputs; k++) {
        vm_output *output = &p->outputs[k];
        if (output->reduce < 0) output->pass = p->n_passes - 1;
        vm_pass *pass = &p->passes[output->pass];
        if (output->reduce >= 0) {
            output->total_offset = pass->n_totals;
            pass->n_totals += pass->kept;
            totals = wefti_max_i64(totals, pass->n_totals * (pass->split_is_reduced ? pass->parts : 1));
        }
        if (output->value >= p->n_inputs) p->steps[output->value - p->n_inputs].passes |= 1u << output->pass;
    }
    p->totals_bytes = totals * (int64_t)sizeof(vm_total);
    for (int32_t j = p->n_steps - 1; j >= 0; j--)
        for (int32_t k = 0; k < 3; k++)
            if (p->steps[j].source[k] >= p->n_inputs) p->steps[p->steps[j].source[k] - p->n_inputs].passes |= p->steps[j].passes;
}

/* Slots: one for each input that is loaded and each step's result while it is needed; a whole output of a step's own type needs
 * none where its memory will do, but has one for when it will not (an input that is read later may lie there). */
static void plan_slots(vm_program *p) {
    int32_t last[WEFTI_FUSED_MAX], holder[2 * WEFTI_FUSED_MAX];
    for (int32_t j = 0; j < p->n_steps; j++) {
        last[j] = j;
        for (int32_t k = 0; k < 3; k++)
            if (p->steps[j].source[k] >= p->n_inputs) last[p->steps[j].source[k] - p->n_inputs] = j;
    }
    for (int32_t k = 0; k < p->n_outputs; k++) {
        vm_output *output = &p->outputs[k];
        int32_t    j      = output->value - p->n_inputs;
        if (j >= 0) last[j] = p->n_steps;
        if (output->reduce >= 0) continue;
        output->copied_from = output->value;
        if (j >= 0 && p->steps[j].output < 0 && rounding_of(output->dtype) == VM_AS_IS) {
            p->steps[j].output  = k;
            output->copied_from = -1;
        }
    }
    int64_t widest = 4;
    for (int32_t i = 0; i < p->n_inputs; i++) {
        if (p->inputs[i].kind != VM_DIRECT) p->inputs[i].slot = p->n_slots++;
        widest = wefti_max_i64(widest, vm_type_bytes(p->inputs[i].type));
    }
    int32_t n = 0, first = p->n_slots;
    for (int32_t j = 0; j < p->n_steps; j++) {
        int32_t s = 0;
        while (s < n && last[holder[s]] >= j) s++;
        if (s == n) n++;
        holder[s]        = j;
        p->steps[j].slot = first + s;
        widest           = wefti_max_i64(widest, vm_type_bytes(p->types[j]));
    }
    p->n_slots += n;
    p->slot_bytes = VM_TILE * widest;
}

/* The program of a call, without what is not needed to know its size. */
static void compile_call(const wefti_call *call, vm_program *p) {
    p->n_inputs = call->n_inputs;
    const int32_t own[3] = {0, 1, 2};
    bool          reduction = wefti_ops[call->op].family == WEFTI_REDUCE, fused = call->op == WEFT_OP_FUSED;
    if (reduction) p->n_inputs = 1;
    p->space    = fused ? call->attrs->fused.fused->space : reduction ? call->inputs[0].shape : call->outputs[0].shape;
    p->elements = weft_shape_elements(p->space);
    for (int32_t i = 0; i < p->n_inputs; i++) add_input(p, i, &call->inputs[i]);
    if (fused) {
        const wefti_fused *f = call->attrs->fused.fused;
        for (int32_t j = 0; j < f->n_instructions; j++) {
            const wefti_fused_instruction *it = &f->instruction[j];
            int32_t    source = it->source[wefti_ops[it->op].inputs_max - 1];
            weft_dtype from   = source >= 0 ? call->inputs[source].dtype : f->instruction[-1 - source].dtype;
            add_step(p, it->op, &it->attrs, from, it->dtype, it->source);
        }
        for (int32_t k = 0; k < f->n_outputs; k++)
            add_output(p, p->n_inputs + f->output[k].instruction, f->output[k].reduce, f->output[k].axes, f->output[k].count,
                       call->outputs[k].dtype);
    } else if (reduction) {
        double count = call->op == WEFT_OP_MEAN ? call->attrs->reduce.count : 0;
        add_output(p, 0, (int32_t)call->op, call->attrs->reduce.axes, count, call->outputs[0].dtype);
    } else {
        int32_t last = wefti_ops[call->op].inputs_max - 1;
        add_step(p, call->op, call->attrs, call->inputs[last].dtype, call->outputs[0].dtype, own);
        add_output(p, p->n_inputs, -1, 0, 0, call->outputs[0].dtype);
    }
    plan_passes(p);
    plan_slots(p);
}

/* Running. */

/* What one worker knows while it is in a range of the space. */
typedef struct frame {
    const vm_program    *p;
    const wefti_cpu_run *run;
    char                *slots;
    int64_t              at; /* the tile's first element */
    int64_t              count;
    const void          *value[VM_MOST_INPUTS + WEFTI_FUSED_MAX];
    wefti_walk           walk[VM_MOST_INPUTS];
    wefti_walk           total_walk[WEFTI_FUSED_MAX];
} frame;

static char *slot_of(const frame *f, int32_t slot) { return f->slots + slot * f->p->slot_bytes; }

/* Copies `count` elements, `step` apart, to a slot. */
static void load_strided(const vm_input *input, const char *from, int64_t step, int64_t count, char *to) {
#define LOAD(TYPE)                                                                   \
    do {                                                                             \
        const TYPE *in  = (const TYPE *)(const void *)from;                          \
        TYPE       *out = (TYPE *)(void *)to;                                        \
        if (step == 0) {                                                             \
            TYPE same = in[0];                                                       \
            for (int64_t i = 0; i < count; i++) out[i] = same;                       \
        } else {                                                                     \
            for (int64_t i = 0; i < count; i++) out[i] = in[i * step];               \
        }                                                                            \
    } while (0)
    switch (input->type) {
    case VM_U8: LOAD(uint8_t); return;
    case VM_I64:
    case VM_F64: LOAD(int64_t); return;
    default: LOAD(int32_t); return;
    }
#undef LOAD
}

static void load_run(const vm_input *input, const char *from, int64_t step, int64_t count, char *to) {
    int64_t bytes = vm_type_bytes(input->type);
    if (rounding_of(input->dtype) != VM_AS_IS) {
        float *out = (float *)(void *)to;
        if (step == 1) {
            convert_to_f32(from, input->dtype, count, out);
        } else if (step == 0) {
            convert_to_f32(from, input->dtype, 1, out);
            for (int64_t i = 1; i < count; i++) out[i] = out[0];
        } else {
            for (int64_t i = 0; i < count; i++) convert_to_f32(from + i * step * 2, input->dtype, 1, out + i);
        }
    } else if (step == 1) {
        memcpy(to, from, (size_t)(count * bytes));
    } else {
        load_strided(input, from, step, count, to);
    }
}

static void load_input(frame *f, int32_t index) {
    const vm_input *input = &f->p->inputs[index];
    const char     *data  = f->run->inputs[index];
    int64_t         bytes = (int64_t)weft_dtype_bytes(input->dtype);
    if (input->kind == VM_DIRECT) {
        f->value[index] = data + f->at * bytes;
        return;
    }
    if (input->kind == VM_CONSTANT) return; /* loaded with the range */
    wefti_walk *walk = &f->walk[index];
    int64_t     step = wefti_walk_step(walk);
    if (step == 1 && wefti_walk_run(walk) >= f->count && rounding_of(input->dtype) == VM_AS_IS) {
        f->value[index] = data + walk->offset * bytes;
        wefti_walk_advance(walk, f->count);
        return;
    }
    char *to = slot_of(f, input->slot);
    f->value[index] = to;
    for (int64_t done = 0, count; done < f->count; done += count) {
        count = wefti_min_i64(wefti_walk_run(walk), f->count - done);
        load_run(input, data + walk->offset * bytes, step, count, to + done * vm_type_bytes(input->type));
        wefti_walk_advance(walk, count);
    }
}

static void round_tile(vm_rounding rounding, int64_t count, void *values) {
    if (rounding == VM_TO_BOOL) {
        uint8_t *bytes = values;
        for (int64_t i = 0; i < count; i++) bytes[i] = bytes[i] != 0;
        return;
    }
    float   *x = values;
    uint16_t half[64];
    for (int64_t i = 0; i < count; i += 64) {
        int64_t n = wefti_min_i64(64, count - i);
        if (rounding == VM_TO_BF16) {
            convert_f32_to_bf16(x + i, n, half);
            convert_bf16_to_f32(half, n, x + i);
        } else {
            convert_f32_to_f16(x + i, n, half);
            convert_f16_to_f32(half, n, x + i);
        }
    }
}

/* x/(1-p) where the uniform number of the element is at least p, that is where its 24 bits are at least p * 2^24. */
static void drop_run(const vm_step *step, uint64_t draw, int64_t index, int64_t count, vm_type type, const char *x, char *to) {
    uint32_t word[VM_TILE];
    double   p = step->attrs->dropout.p, scale = 1 / (1 - p);
    uint32_t least = (uint32_t)ceil(p * 0x1p24);
    philox_run(step->attrs->dropout.key, draw, (uint64_t)index, count, word);
    if (type == VM_F32) {
        const float *in  = (const float *)(const void *)x;
        float       *out = (float *)(void *)to;
        for (int64_t i = 0; i < count; i++) out[i] = word[i] >> 8 >= least ? (float)((double)in[i] * scale) : 0;
    } else {
        const double *in  = (const double *)(const void *)x;
        double       *out = (double *)(void *)to;
        for (int64_t i = 0; i < count; i++) out[i] = word[i] >> 8 >= least ? in[i] * scale : 0;
    }
}

/* Elements of a tile that follow each other in the global tensor are drawn together. */
static void drop_tile(const frame *f, const vm_step *step, char *to) {
    const wefti_window *window = &step->attrs->dropout.window;
    int32_t     x = step->source[0], counter = step->source[1];
    bool        one = counter < f->p->n_inputs && f->p->inputs[counter].kind == VM_CONSTANT;
    vm_type     type = type_of_value(f->p, x), counter_type = type_of_value(f->p, counter);
    weft_shape  global = f->p->space, merged;
    int64_t     own[WEFT_MAX_RANK] = {0}, stride[WEFT_MAX_RANK], base = 0;
    wefti_walk  walk;
    if (window->split) global.dim[window->axis] = window->global;
    wefti_contiguous_strides(global, own);
    if (window->split) base = window->begin * own[window->axis];
    merge_axes(f->p->space, own, &merged, stride);
    wefti_walk_start(&walk, merged, stride, f->at);
    for (int64_t done = 0, count; done < f->count; done += count) {
        count = wefti_min_i64(wefti_walk_run(&walk), f->count - done);
        if (!one || wefti_walk_step(&walk) != 1) count = 1;
        const void *draws = f->value[counter];
        int64_t     draw  = counter_type == VM_I32 ? ((const int32_t *)draws)[done] : ((const int64_t *)draws)[done];
        drop_run(step, (uint64_t)draw, base + walk.offset, count, type, (const char *)f->value[x] + done * vm_type_bytes(type),
                 to + done * vm_type_bytes(type));
        wefti_walk_advance(&walk, count);
    }
}

/* Whether a step may write its output at once: not if an input that a later step reads lies there. */
static bool may_write(const frame *f, int32_t j) {
    const void *to = f->run->outputs[f->p->steps[j].output];
    for (int32_t i = 0; i < f->p->n_inputs; i++)
        if (f->run->inputs[i] == to && f->p->inputs[i].last_step > j) return false;
    return true;
}

static char *output_at(const frame *f, int32_t k) {
    return (char *)f->run->outputs[k] + f->at * (int64_t)weft_dtype_bytes(f->p->outputs[k].dtype);
}

static void run_step(frame *f, int32_t j, bool whole) {
    const vm_step *step = &f->p->steps[j];
    const void    *source[3] = {NULL, NULL, NULL};
    for (int k = 0; k < 3; k++)
        if (step->source[k] >= 0) source[k] = f->value[step->source[k]];
    bool  straight = whole && step->output >= 0 && may_write(f, j);
    char *to = straight ? output_at(f, step->output) : slot_of(f, step->slot);
    if (step->function)
        step->function(step, f->count, to, source[0], source[1], source[2]);
    else
        drop_tile(f, step, to);
    if (step->rounding != VM_AS_IS) round_tile(step->rounding, f->count, to);
    f->value[f->p->n_inputs + j] = to;
}

/* Whole outputs that no step computed into. */
static void store_output(frame *f, int32_t k) {
    const vm_output *output = &f->p->outputs[k];
    const void      *from   = f->value[output->value];
    char            *to     = output_at(f, k);
    if (rounding_of(output->dtype) != VM_AS_IS)
        convert_from_f32(from, output->dtype, f->count, to);
    else if (to != from)
        memcpy(to, from, (size_t)(f->count * vm_type_bytes(output->type)));
}

/* Elements [begin, end) of the space in one pass. `totals` is NULL where nothing is reduced. */
static void run_range(frame *f, int32_t index, int64_t begin, int64_t end, vm_total *totals) {
    const vm_program *p    = f->p;
    const vm_pass    *pass = &p->passes[index];
    bool              last = index == p->n_passes - 1;
    for (int32_t i = 0; i < p->n_inputs; i++)
        if (p->inputs[i].kind == VM_WALKED) wefti_walk_start(&f->walk[i], p->inputs[i].space, p->inputs[i].stride, begin);
    for (int32_t k = 0; k < p->n_outputs; k++)
        if (p->outputs[k].reduce >= 0 && p->outputs[k].pass == index)
            wefti_walk_start(&f->total_walk[k], pass->space, pass->stride, begin);
    for (f->at = begin; f->at < end; f->at += f->count) {
        f->count = wefti_min_i64(VM_TILE, end - f->at);
        for (int32_t i = 0; i < p->n_inputs; i++) load_input(f, i);
        for (int32_t j = 0; j < p->n_steps; j++)
            if (p->steps[j].passes >> index & 1) run_step(f, j, last);
        for (int32_t k = 0; k < p->n_outputs; k++) {
            const vm_output *output = &p->outputs[k];
            if (output->pass != index) continue;
            if (output->reduce >= 0)
                vm_accumulate(output, f->value[output->value], f->count, &f->total_walk[k], totals + output->total_offset);
            else if (output->copied_from >= 0 || f->value[output->value] != output_at(f, k))
                store_output(f, k);
        }
    }
}

typedef struct execution {
    const vm_program    *p;
    const wefti_cpu_run *run;
    int32_t              pass;
    vm_total            *totals;
} execution;

static void start_frame(frame *f, const execution *e, int32_t worker) {
    f->p     = e->p;
    f->run   = e->run;
    f->slots = (char *)e->run->scratch + e->p->totals_bytes + worker * e->p->n_slots * e->p->slot_bytes;
    for (int32_t i = 0; i < f->p->n_inputs; i++) {
        const vm_input *input = &f->p->inputs[i];
        if (input->kind != VM_CONSTANT) continue;
        f->value[i] = slot_of(f, input->slot);
        load_run(input, f->run->inputs[i], 0, wefti_min_i64(VM_TILE, f->p->elements), slot_of(f, input->slot));
    }
}

static void run_part(void *context, int64_t part, int32_t worker) {
    const execution *e    = context;
    const vm_pass   *pass = &e->p->passes[e->pass];
    frame            f;
    start_frame(&f, e, worker);
    if (!pass->reduces) {
        run_range(&f, e->pass, part * CHUNK, wefti_min_i64((part + 1) * CHUNK, e->p->elements), NULL);
        return;
    }
    vm_total *totals = e->totals;
    if (pass->split_is_reduced) {
        totals += part * pass->n_totals;
        for (int32_t k = 0; k < e->p->n_outputs; k++)
            if (e->p->outputs[k].pass == e->pass && e->p->outputs[k].reduce >= 0)
                vm_clear_totals(&e->p->outputs[k], pass->kept, totals + e->p->outputs[k].total_offset);
    }
    int64_t from = pass->split * part / pass->parts, to = pass->split * (part + 1) / pass->parts;
    for (int64_t outer = 0; outer < pass->outer; outer++)
        run_range(&f, e->pass, (outer * pass->split + from) * pass->inner, (outer * pass->split + to) * pass->inner, totals);
}

typedef struct finishing {
    const execution *e;
    int32_t          output;
} finishing;

static void finish_part(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const finishing *self   = context;
    const vm_output *output = &self->e->p->outputs[self->output];
    const vm_pass   *pass   = &self->e->p->passes[output->pass];
    vm_finish_totals(output, pass, self->e->totals + output->total_offset, pass->split_is_reduced ? pass->parts : 1,
                     chunk * FINISH_CHUNK, wefti_min_i64((chunk + 1) * FINISH_CHUNK, pass->kept),
                     self->e->run->outputs[self->output]);
}

static void run_pass(execution *e) {
    const vm_program *p    = e->p;
    const vm_pass    *pass = &p->passes[e->pass];
    if (pass->reduces && (!pass->split_is_reduced || p->elements == 0))
        for (int32_t k = 0; k < p->n_outputs; k++)
            if (p->outputs[k].pass == e->pass && p->outputs[k].reduce >= 0)
                vm_clear_totals(&p->outputs[k], pass->kept, e->totals + p->outputs[k].total_offset);
    if (p->elements > 0) wefti_cpu_for(e->run, pass->parts, run_part, e);
    for (int32_t k = 0; k < p->n_outputs; k++) {
        if (p->outputs[k].pass != e->pass || p->outputs[k].reduce < 0) continue;
        finishing f = {e, k};
        wefti_cpu_for(e->run, wefti_cpu_chunks(pass->kept, FINISH_CHUNK), finish_part, &f);
    }
}

static weft_status run_program(const wefti_cpu_run *run) {
    execution e = {.p = run->prepared, .run = run, .totals = run->scratch};
    for (e.pass = 0; e.pass < e.p->n_passes; e.pass++) run_pass(&e);
    return WEFT_OK;
}

/* The kernels. */

static bool accepts_fused(const wefti_call *call) {
    const wefti_fused *f = call->attrs->fused.fused;
    if (f->n_inputs > VM_MOST_INPUTS) return false;
    for (int32_t j = 0; j < f->n_instructions; j++) {
        const wefti_fused_instruction *it = &f->instruction[j];
        int32_t    source = it->source[wefti_ops[it->op].inputs_max - 1];
        weft_dtype from   = source >= 0 ? call->inputs[source].dtype : f->instruction[-1 - source].dtype;
        if (it->op != WEFT_OP_DROPOUT && !vm_function_of(it->op, from, it->dtype)) return false;
    }
    return true;
}

static bool accepts_elementwise(const wefti_call *call) {
    weft_dtype from = call->inputs[wefti_ops[call->op].inputs_max - 1].dtype;
    return call->op == WEFT_OP_DROPOUT || vm_function_of(call->op, from, call->outputs[0].dtype);
}

static size_t prepared_bytes(const wefti_call *call) {
    return sizeof(vm_program) + (size_t)call->n_inputs * sizeof(vm_input);
}

static weft_status prepare(const wefti_call *call, int32_t threads, void *prepared) {
    (void)threads;
    compile_call(call, prepared);
    return WEFT_OK;
}

static int64_t scratch(const wefti_call *call, int32_t threads) {
    union {
        vm_program p;
        char       bytes[sizeof(vm_program) + VM_MOST_INPUTS * sizeof(vm_input)];
    } memory;
    memset(&memory, 0, prepared_bytes(call));
    compile_call(call, &memory.p);
    return memory.p.totals_bytes + threads * memory.p.n_slots * memory.p.slot_bytes;
}

#define VM_KERNEL(takes) \
    {.name = "tiles", .accepts = takes, .scratch = scratch, .prepared_bytes = prepared_bytes, .prepare = prepare, .run = run_program}
const wefti_cpu_kernel wefti_kernel_fused       = VM_KERNEL(accepts_fused);
const wefti_cpu_kernel wefti_kernel_elementwise = VM_KERNEL(accepts_elementwise);
const wefti_cpu_kernel wefti_kernel_reduce      = VM_KERNEL(NULL);
