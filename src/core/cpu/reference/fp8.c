/* FP8_CAST and FP8_MATMUL: products of 8-bit floats as the GPU's are, emulated, so that training with them can be tried anywhere. The
 * conversions are the codecs'. The largest magnitude of each chunk goes through scratch; which chunk found it first changes nothing. */
#include "core/cpu/reference/reference.h"
#include "core/tensor/fp8.h"

#define FP8(x) fp8_##x
#define FP8_FUNCTION static inline __attribute__((unused))
#include "core/tensor/fp8_code.h"

/* --- cast --- */

typedef struct cast {
    const wefti_cpu_run *run;
    int64_t              elements, rows, columns;
    uint32_t            *largest; /* by chunk */
    uint32_t             scale;
} cast;

static uint32_t bits_at(const cast *self, int64_t i, bool contiguous) {
    const wefti_operand *x = &self->run->call->inputs[0];
    return fp8_bits_of((float)wefti_in(self->run, 0, contiguous ? i : wefti_place(x, i)));
}

static void find_largest(void *context, int64_t chunk, int32_t worker) {
    const cast *self = context;
    int64_t     end = wefti_min_i64((chunk + 1) * WEFTI_REFERENCE_GRAIN, self->elements);
    bool        contiguous = wefti_operand_is_contiguous(&self->run->call->inputs[0]);
    uint32_t    largest = 0;
    (void)worker;
    for (int64_t i = chunk * WEFTI_REFERENCE_GRAIN; i < end; i++) {
        uint32_t finite = fp8_finite(bits_at(self, i, contiguous));
        largest = finite > largest ? finite : largest;
    }
    self->largest[chunk] = largest;
}

static void encode(void *context, int64_t chunk, int32_t worker) {
    const cast        *self = context;
    const wefti_attrs *attrs = self->run->call->attrs;
    int64_t            end = wefti_min_i64((chunk + 1) * WEFTI_REFERENCE_GRAIN, self->elements);
    bool               contiguous = wefti_operand_is_contiguous(&self->run->call->inputs[0]);
    uint8_t           *rows = self->run->outputs[0], *columns = self->run->outputs[1];
    float              inverse = fp8_inverse(self->scale);
    (void)worker;
    for (int64_t i = chunk * WEFTI_REFERENCE_GRAIN; i < end; i++) {
        uint8_t code = (uint8_t)fp8_encode(bits_at(self, i, contiguous), inverse, attrs->fp8.form[0]);
        if (attrs->fp8.layouts & WEFTI_FP8_ROWS) rows[i] = code;
        if (attrs->fp8.layouts & WEFTI_FP8_COLUMNS) columns[i % self->columns * self->rows + i / self->columns] = code;
    }
}

static int64_t cast_scratch(const wefti_call *call, int32_t threads) {
    (void)threads;
    return wefti_cpu_chunks(wefti_operand_elements(&call->inputs[0]), WEFTI_REFERENCE_GRAIN) * (int64_t)sizeof(uint32_t);
}

static weft_status run_cast(const wefti_cpu_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    cast                 self = {.run = run, .elements = wefti_operand_elements(x), .columns = x->shape.dim[x->shape.rank - 1], .largest = run->scratch};
    int64_t              chunks = wefti_cpu_chunks(self.elements, WEFTI_REFERENCE_GRAIN);
    uint32_t             largest = 0;
    self.rows = self.columns > 0 ? self.elements / self.columns : 0;
    wefti_cpu_for(run, chunks, find_largest, &self);
    for (int64_t i = 0; i < chunks; i++) largest = self.largest[i] > largest ? self.largest[i] : largest;
    self.scale = fp8_scale(largest, run->call->attrs->fp8.form[0]);
    *(float *)run->outputs[2] = fp8_factor(self.scale);
    wefti_cpu_for(run, chunks, encode, &self);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_fp8_cast = {.name = "fp8 cast", .scratch = cast_scratch, .run = run_cast};

/* --- product --- */

static double factor_of(const wefti_cpu_run *run, int32_t i, int64_t at) {
    return (double)fp8_decode(((const uint8_t *)run->inputs[i])[at], run->call->attrs->fp8.form[i]);
}

static void product_row(void *context, int64_t row, int32_t worker) {
    const wefti_cpu_run *run = context;
    const wefti_operand *a = &run->call->inputs[0], *b = &run->call->inputs[1];
    int64_t              n = b->shape.dim[0], k = b->shape.dim[1];
    double               scale = (double)*(const float *)run->inputs[2] * (double)*(const float *)run->inputs[3];
    (void)worker;
    for (int64_t column = 0; column < n; column++) {
        double sum = 0;
        for (int64_t i = 0; i < k; i++)
            sum += factor_of(run, 0, row * a->stride[0] + i * a->stride[1]) * factor_of(run, 1, column * b->stride[0] + i * b->stride[1]);
        wefti_out(run, 0, row * n + column, sum * scale);
    }
}

static weft_status run_product(const wefti_cpu_run *run) {
    wefti_cpu_for(run, run->call->inputs[0].shape.dim[0], product_row, (void *)(uintptr_t)run);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_fp8_matmul = {.name = "reference fp8 matmul", .run = run_product};
