/* One call on a device, many times over: its operands filled, checked and timed. For the benches of the CUDA device. */
#ifndef WEFT_BENCH_CUDA_CALL_H
#define WEFT_BENCH_CUDA_CALL_H

#include "bench.h"
#include "core/iface/device.h"
#include "weft.h"

enum { CUDA_CALL_OPERANDS = 9 };
typedef struct cuda_call {
    wefti_device  *device;
    const char    *name;
    weft_op        op;
    wefti_attrs    attrs;
    int32_t        n_inputs, n_outputs; /* operands in this order */
    wefti_operand  operand[CUDA_CALL_OPERANDS];
    int64_t        label_end;           /* integers are drawn below it */
    wefti_program *program;
    void          *buffers[CUDA_CALL_OPERANDS + 1]; /* the last is scratch */
    size_t         bytes[CUDA_CALL_OPERANDS + 1];
} cuda_call;

/* Ends the program with the message of a failed status. */
void cuda_call_must(weft_status status);
/* Opens a GPU; false, having said why, where there is none. */
bool cuda_call_open_gpu(const char *name, weft_world **world_out);
/* Zeroes all but the device. */
void cuda_call_begin(cuda_call *self, weft_op op, const char *name, int32_t n_inputs, int32_t n_outputs);
/* A contiguous operand. */
void cuda_call_operand(cuda_call *self, int32_t which, weft_dtype dtype, weft_shape shape);
/* Allocates operands, fills inputs with numbers between -1 and 1 and compiles a segment of the call, `times` times over. */
void cuda_call_open(cuda_call *self, int32_t times);
/* The operands' memory alone, for programs of the caller's own; cuda_call_close gives it back with `program`. */
void cuda_call_hold(cuda_call *self);
void cuda_call_close(cuda_call *self);
/* Seconds a call, of five windows. */
bench_spread cuda_call_time(cuda_call *self, int32_t times, double window_s);
/* GB/s, read and written, of a copy of f32: what memory-bound kernels are measured by. */
double cuda_call_copy_rate(wefti_device *device, int64_t elements, double window_s);
/* A case's bandwidth on the screen and, where the results were right, as a record; or that it was not measured, for which the last message says why. */
void cuda_call_show(FILE *json, const char *bench, const char *what, bench_spread rate, double limit, bool right);
void cuda_call_unmeasured(FILE *json, const char *bench, const char *what, double limit);
void cuda_call_launch(cuda_call *self);
void cuda_call_wait(cuda_call *self);

#endif
