/* The virtual machine of elementwise programs: what a compiled program is.
 *
 * A program computes values over an iteration space in row-major order, VM_TILE elements at a time: first the call's inputs,
 * then the instructions' results. A value of a tile lies in memory where it already is as it should be, else in a slot of the
 * worker's scratch. 16-bit floats are f32 in slots, and rounded after every instruction. */
#ifndef WEFTI_KERNELS_VM_H
#define WEFTI_KERNELS_VM_H

#include "core/cpu/cpu.h"
#include "core/cpu/kernels/simd.h"

/* Elements: 4 KiB of f32, so that the few values which are alive at once fit the first-level cache. Reductions are cut at tiles,
 * so their bits depend on this number. */
enum { VM_TILE = 1024 };

/* How values are held in slots. */
typedef enum vm_type { VM_F32, VM_F64, VM_I64, VM_I32, VM_U8, VM_TYPES } vm_type;
typedef enum vm_rounding { VM_AS_IS, VM_TO_BF16, VM_TO_F16, VM_TO_BOOL } vm_rounding;

typedef struct vm_step vm_step;
typedef void vm_function(const vm_step *step, int64_t count, void *to, const void *a, const void *b, const void *c);

struct vm_step {
    vm_function       *function; /* NULL: DROPOUT, which needs to know where it is */
    const wefti_attrs *attrs;
    vm_rounding        rounding;
    int32_t            source[3]; /* values */
    int32_t            slot;      /* for the result, where it is not computed into an output */
    int32_t            output;    /* >= 0: computed straight into this whole output, unless a later step reads its memory */
    uint32_t           passes;    /* bit i: needed in pass i */
};

/* An input that cannot be used where it lies. */
typedef enum vm_input_kind {
    VM_DIRECT,   /* contiguous over the space */
    VM_CONSTANT, /* one element */
    VM_WALKED    /* anything else, and 16-bit floats */
} vm_input_kind;
typedef struct vm_input {
    vm_input_kind kind;
    weft_dtype    dtype;
    vm_type       type;
    int32_t       slot;
    int32_t       last_step; /* that reads it; -1: none */
    weft_shape    space;     /* with axes merged that lie evenly in this operand */
    int64_t       stride[WEFT_MAX_RANK];
} vm_input;

typedef struct vm_output {
    int32_t    value;
    int32_t    reduce; /* as in wefti_fused_output */
    int32_t    pass;
    int32_t    copied_from; /* whole: the value to convert or copy at the end of a tile; -1: its step computes into it */
    double     count;
    weft_dtype dtype;
    vm_type    type; /* of its value */
    int64_t    total_offset; /* reduced: of its totals in a part's, in elements */
} vm_output;

/* One walk over the space: the outputs that are reduced over the same axes, and in the last pass the whole outputs too.
 * The space is seen as [outer][split][inner]; a part is a range of `split`. */
typedef struct vm_pass {
    uint32_t   axes;
    int64_t    outer, split, inner, parts;
    bool       reduces, split_is_reduced;
    weft_shape space; /* axes merged where both or neither are reduced */
    int64_t    stride[WEFT_MAX_RANK]; /* of the totals over it; 0 where reduced */
    int64_t    kept, reduced;         /* totals of one output, and elements in each */
    int64_t    n_totals;              /* of all its outputs */
} vm_pass;

typedef struct vm_program {
    weft_shape space;
    int64_t    elements;
    int32_t    n_inputs, n_steps, n_outputs, n_passes, n_slots;
    int64_t    slot_bytes, totals_bytes;
    vm_step    steps[WEFTI_FUSED_MAX];
    vm_type    types[WEFTI_FUSED_MAX]; /* of the steps' results */
    vm_output  outputs[WEFTI_FUSED_MAX];
    vm_pass    passes[WEFTI_FUSED_MAX];
    vm_input   inputs[]; /* [n_inputs] */
} vm_program;

WEFTI_INLINE vm_type vm_type_of(weft_dtype dtype) {
    switch (dtype) {
    case WEFT_F64: return VM_F64;
    case WEFT_I64: return VM_I64;
    case WEFT_I32: return VM_I32;
    case WEFT_U8:
    case WEFT_BOOL: return VM_U8;
    default: return VM_F32;
    }
}
WEFTI_INLINE int64_t vm_type_bytes(vm_type type) { return type == VM_U8 ? 1 : type == VM_F32 || type == VM_I32 ? 4 : 8; }

/* The function of an op on operands of `from` (its last input's type) with results of `dtype`; NULL where there is none. */
#define vm_function_of WEFTI_CPU_NAME(wefti_vm_function_of)
vm_function *vm_function_of(weft_op op, weft_dtype from, weft_dtype dtype);

/* Totals of reduced outputs: floats in f64, integers in i64. */
typedef union vm_total {
    double  f;
    int64_t i;
} vm_total;
#define vm_accumulate WEFTI_CPU_NAME(wefti_vm_accumulate)
/* Takes the `count` elements of a tile into totals; the walk is over pass->space with pass->stride, and goes on. */
void vm_accumulate(const vm_output *output, const void *tile, int64_t count, wefti_walk *walk, vm_total *totals);
#define vm_clear_totals WEFTI_CPU_NAME(wefti_vm_clear_totals)
void vm_clear_totals(const vm_output *output, int64_t count, vm_total *totals);
#define vm_finish_totals WEFTI_CPU_NAME(wefti_vm_finish_totals)
/* Adds up `parts` arrays of totals, `stride` apart, and stores results [begin, end). */
void vm_finish_totals(const vm_output *output, const vm_pass *pass, const vm_total *totals, int64_t parts, int64_t begin,
                      int64_t end, void *to);

#endif
