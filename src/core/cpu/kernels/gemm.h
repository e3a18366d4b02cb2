/* Matrix products of packed operands, on one thread: what matmul, convolution and attention are made of.
 *
 * A (rows x k) is packed in panels of at most WEFTI_GEMM_ROWS rows, cut as evenly as can be, each stored [k][rows of the
 * panel]; B (k x columns) in panels of GEMM_WIDTH columns, stored [k][width], the last one padded with zeros to a whole number of
 * vectors. Every element of C is the sum over k in order, one rounding a step where the set has fused multiply-add, so how a
 * product is cut into rows and columns never shows in the result. Cutting k does: the parts are added. */
#ifndef WEFTI_KERNELS_GEMM_H
#define WEFTI_KERNELS_GEMM_H

#include <stdbool.h>

#include "core/cpu/cpu.h"
#include "core/cpu/kernels/simd.h"

/* The tallest tile: its accumulators, two vectors a row, leave registers for two vectors of B and one of A. */
#if VECTOR_REGISTERS == 32
#define WEFTI_GEMM_ROWS 14
#else
#define WEFTI_GEMM_ROWS 6
#endif

/* What becomes of C: set, added to, or set past the caches, for which its rows lie on whole cache lines and the caller fences. */
typedef enum wefti_gemm_store { GEMM_STORE, GEMM_ADD, GEMM_STREAM } wefti_gemm_store;

typedef struct wefti_gemm {
    int64_t element_bytes;
    int64_t width; /* columns of a panel of B */
    /* C[rows x columns] = A B, or added to C; ldc: elements from row to row of C. */
    void (*multiply)(int64_t rows, int64_t columns, int64_t k, const void *packed_a, const void *packed_b, void *c,
                     int64_t ldc, wefti_gemm_store how);
    /* The same with A where it lies: rows `row_stride` apart with k steps side by side, or k steps `k_stride` apart with rows side
     * by side. */
    void (*multiply_rows)(int64_t rows, int64_t columns, int64_t k, const void *a, int64_t row_stride, const void *packed_b, void *c,
                          int64_t ldc, wefti_gemm_store how);
    void (*multiply_columns)(int64_t rows, int64_t columns, int64_t k, const void *a, int64_t k_stride, const void *packed_b, void *c,
                             int64_t ldc, wefti_gemm_store how);
    /* The same with B where it lies, columns side by side and steps of k `k_stride` apart (> 0). It is packed into packed_b on the
     * way, for the next rows. row_stride 0: A is packed. */
    void (*multiply_packing)(int64_t rows, int64_t columns, int64_t k, const void *a, int64_t row_stride, const void *b,
                             int64_t k_stride, void *packed_b, void *c, int64_t ldc, wefti_gemm_store how);
    /* Packs panels [begin, end) of the rows of a strided operand, and of its columns. `packed` is where the first panel of all
     * begins. Nothing outside of these panels is written. */
    void (*pack_a)(const void *a, int64_t row_stride, int64_t k_stride, int64_t rows, int64_t k, int64_t begin, int64_t end,
                   void *packed);
    void (*pack_b)(const void *b, int64_t column_stride, int64_t k_stride, int64_t columns, int64_t k, int64_t begin,
                   int64_t end, void *packed);
} wefti_gemm;
#define wefti_gemm_f32_functions WEFTI_CPU_NAME(wefti_gemm_f32_functions)
#define wefti_gemm_f64_functions WEFTI_CPU_NAME(wefti_gemm_f64_functions)
extern const wefti_gemm wefti_gemm_f32_functions, wefti_gemm_f64_functions;

WEFTI_INLINE int64_t gemm_a_panels(int64_t rows) { return (rows + WEFTI_GEMM_ROWS - 1) / WEFTI_GEMM_ROWS; }
WEFTI_INLINE int64_t gemm_b_panels(int64_t columns, int64_t width) { return (columns + width - 1) / width; }
/* Whether A is as well read where it lies, row by row. Rows a multiple of 4 KiB apart share one set of the first-level cache
 * (64 sets of 64 bytes on common machines) and would push each other out before the next step reads the same line. */
WEFTI_INLINE bool gemm_reads_rows(int64_t row_stride, int64_t k_stride, int64_t element_bytes) {
    return k_stride == 1 && row_stride * element_bytes % 4096 != 0;
}
WEFTI_INLINE wefti_gemm_store gemm_store(bool add) { return add ? GEMM_ADD : GEMM_STORE; }
/* Elements of a packed operand; of A it is rows * k. */
WEFTI_INLINE int64_t gemm_b_elements(int64_t columns, int64_t k, int64_t width) {
    return gemm_b_panels(columns, width) * width * k;
}

#endif
