/* The conformance suite of devices: one list of cases (op x dtype x awkward shape x strides x broadcasting), computed
 * by a device and compared with definitions evaluated in f64 here, apart from any device's kernels.
 *
 * A device's test creates it and calls conformance_check, and conformance_same_bits with devices that must agree to the
 * bit. Several devices at once draw and define each case only once. */
#ifndef TESTS_DEVICE_CONFORMANCE_H
#define TESTS_DEVICE_CONFORMANCE_H

#include "core/iface/device.h"

enum { MOST_INPUTS = 6, MOST_OUTPUTS = 5, MOST_OPERANDS = MOST_INPUTS + MOST_OUTPUTS };

/* How an input lies in memory, and an output where a device may be given one that is not contiguous. */
typedef enum layout {
    PLAIN,    /* contiguous */
    GAPPED,   /* every other element of rows that are too long, from an odd origin */
    TURNED,   /* axes in reverse order */
    REPEATED, /* the first axis that is longer than 1 has stride 0 */
    LAYOUT_COUNT,
    LAST = LAYOUT_COUNT /* of four axes the second one innermost: in cases that ask for it, of CONV and POOL */
} layout;

typedef struct argument {
    weft_dtype dtype;
    weft_shape shape;
    layout     layout;
    double     low, high; /* values are drawn from [low, high); integers from low .. high-1 */
    bool       special;   /* some are NaN, infinite, zero of either sign, or equal to a neighbour */
} argument;

/* A tensor by value, row-major. */
typedef struct tensor {
    weft_dtype dtype;
    weft_shape shape;
    int64_t    n;
    double    *f;     /* floats, in f64 */
    int64_t   *i;     /* integers and bool */
    double    *scale; /* of results: what size the terms were, for sums that cancel */
} tensor;

typedef struct test_case test_case;
struct test_case {
    weft_op     op;
    wefti_attrs attrs;
    int32_t     n_inputs, n_outputs;
    argument    inputs[MOST_INPUTS], outputs[MOST_OUTPUTS];
    bool        in_place; /* output 0 is input 0's memory */
    int32_t     n_written; /* inputs from 3 on that the call changes, as UPDATE its states: results after the outputs */
    uint64_t    seed;
    /* Replaces drawn inputs by what must follow from others (a log-sum-exp, an output of the forward pass). */
    void (*derive)(const test_case *self, tensor *inputs);
};

typedef void (*case_visitor)(void *context, const test_case *self);
/* Calls visit for every case of the suite. */
void conformance_visit(case_visitor visit, void *context);
/* Parts of it, by family. */
void visit_elementwise(case_visitor visit, void *context);
void visit_reductions(case_visitor visit, void *context);
void visit_moves(case_visitor visit, void *context);
void visit_products(case_visitor visit, void *context);
void visit_rows(case_visitor visit, void *context);
void visit_fp8(case_visitor visit, void *context);
void visit_edges(case_visitor visit, void *context);

/* What sums of 8-bit products may be off by, as a share of the sum of their magnitudes; f32's as of other products, where it is 0. Tensor cores of Hopper add
 * them with about 14 bits. */
extern double conformance_fp8_sums;
/* Limits the suite to the cases that it takes, where it is set; WEFT_TEST_OPS="matmul,softmax" does by the names of ops. A limited suite
 * does not ask whether every op has cases. */
extern bool (*conformance_takes)(const test_case *self);
/* Whether products with sums over their results' rows are among the cases: devices that compile fused programs have them. */
extern bool conformance_column_sums;
/* Runs every case on every device and compares it with its definition. Fails the test after listing up to 20 that are
 * wrong. */
void conformance_check(wefti_device *const *devices, int32_t n_devices);
/* Runs the large cases and a choice of the others on all devices, and compares bits. */
void conformance_same_bits(wefti_device *const *devices, int32_t n_devices);
/* Runs fused programs whole and as one call an instruction, and compares bits. */
void conformance_fusion(wefti_device *device);
/* Runs fused programs that normalise rows, on a device that takes them, and compares with their definition. */
void conformance_fused_rows(wefti_device *device);
/* How many programs conformance_fusion runs. */
extern int conformance_programs;

/* What a call leaves to look at: its outputs, and the inputs that it changes. At most MOST_OUTPUTS. */
static inline int32_t results_of(const test_case *self) { return self->n_outputs + self->n_written; }
static inline argument result_at(const test_case *self, int32_t k) {
    return k < self->n_outputs ? self->outputs[k] : self->inputs[3 + k - self->n_outputs];
}

/* The definition of an op: fills outputs (and results after them), whose dtype, shape and arrays are there. */
void define(const test_case *self, const tensor *inputs, tensor *outputs);
void define_elementwise(const test_case *self, const tensor *inputs, tensor *outputs);
void define_reduction(const test_case *self, const tensor *inputs, tensor *outputs);
void define_move(const test_case *self, const tensor *inputs, tensor *outputs);
void define_product(const test_case *self, const tensor *inputs, tensor *outputs);
void define_rows(const test_case *self, const tensor *inputs, tensor *outputs);
void define_fp8(const test_case *self, const tensor *inputs, tensor *outputs);
void define_update(const test_case *self, const tensor *inputs, tensor *outputs);

/* Values. */
tensor  tensor_create(weft_dtype dtype, weft_shape shape);
void    tensor_release(tensor *self);
tensor  tensor_draw(const argument *self, uint64_t seed);
double  tensor_get(const tensor *self, const int64_t *index);
/* Coordinates of flat element i, and back. */
void    unravel(weft_shape shape, int64_t i, int64_t *index_out);
int64_t ravel(weft_shape shape, const int64_t *index);
/* Rounds to what the dtype holds, as a device stores an f64 result (16-bit types through f32). */
double  round_to(double value, weft_dtype dtype);
const char *case_name(const test_case *self);

/* Memory of one case on a device. */
typedef struct placed {
    wefti_device *device;
    int32_t       n_buffers;
    void         *buffers[MOST_OPERANDS + 1];
    size_t        bytes[MOST_OPERANDS + 1];
    wefti_operand operands[MOST_OPERANDS];
} placed;
/* Computes a call of drawn inputs and gives the bytes of each result (contiguous), to be freed. False, with the reason
 * in `why`, where the device refused or wrote where it must not. */
bool compute(wefti_device *device, const test_case *self, const tensor *inputs, void **outputs_out, char why[256]);

#endif
