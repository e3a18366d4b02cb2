/* Rows of operands as contiguous f32, whatever dtype and strides they have, and sums over them. */
#ifndef WEFTI_KERNELS_ROWS_H
#define WEFTI_KERNELS_ROWS_H

#include "core/cpu/cpu.h"
#include "core/cpu/kernels/convert.h"
#include "core/cpu/kernels/math.h"

enum { ROW_LANES = 16, ROW_CHUNK = 8192 };

static inline __attribute__((unused)) int64_t rows_per_chunk(int64_t length) {
    return wefti_max_i64(1, ROW_CHUNK / wefti_max_i64(length, 1));
}

/* Row `row` of an operand: where it lies, or copied to `buffer`. */
static inline __attribute__((unused)) const float *row_load(const wefti_operand *operand, const void *data, bool contiguous,
                                                            int64_t row, int64_t length, float *buffer) {
    int64_t bytes = (int64_t)weft_dtype_bytes(operand->dtype);
    if (contiguous) {
        const char *from = (const char *)data + row * length * bytes;
        if (operand->dtype == WEFT_F32) return (const float *)(const void *)from;
        convert_to_f32(from, operand->dtype, length, buffer);
        return buffer;
    }
    wefti_walk walk;
    wefti_walk_start(&walk, operand->shape, operand->stride, row * length);
    for (int64_t done = 0, run; done < length; done += run) {
        run = wefti_min_i64(wefti_walk_run(&walk), length - done);
        const char *from = (const char *)data + walk.offset * bytes;
        int64_t     step = wefti_walk_step(&walk);
        if (step == 1)
            convert_to_f32(from, operand->dtype, run, buffer + done);
        else
            for (int64_t i = 0; i < run; i++) convert_to_f32(from + i * step * bytes, operand->dtype, 1, buffer + done + i);
        wefti_walk_advance(&walk, run);
    }
    return buffer;
}

/* Element `index` of a small operand in row-major order, in elements. */
static inline __attribute__((unused)) int64_t row_place(const wefti_operand *operand, int64_t index) {
    wefti_walk walk;
    wefti_walk_start(&walk, operand->shape, operand->stride, index);
    return walk.offset;
}

/* Sums in f64 over interleaved lanes, which are added as a tree; `term` is an expression in i. */
#define ROW_SUM(name, parameters, term)                                                                  \
    static inline __attribute__((unused)) double name parameters {                                       \
        double  lane[ROW_LANES] = {0};                                                                   \
        int64_t at = 0;                                                                                  \
        for (; at + ROW_LANES <= count; at += ROW_LANES)                                                 \
            for (int j = 0; j < ROW_LANES; j++) {                                                        \
                int64_t i = at + j;                                                                      \
                lane[j] += (double)(term);                                                               \
            }                                                                                            \
        for (int j = 0; at + j < count; j++) {                                                           \
            int64_t i = at + j;                                                                          \
            lane[j] += (double)(term);                                                                   \
        }                                                                                                \
        for (int width = ROW_LANES / 2; width > 0; width /= 2)                                           \
            for (int j = 0; j < width; j++) lane[j] += lane[j + width];                                  \
        return lane[0];                                                                                  \
    }
ROW_SUM(row_sum, (const float *x, int64_t count), x[i])
ROW_SUM(row_square_sum, (const float *x, int64_t count), x[i] * x[i])
ROW_SUM(row_product_sum, (const float *x, const float *y, int64_t count), x[i] * y[i])
ROW_SUM(row_spread_sum, (const float *x, float mean, int64_t count), (x[i] - mean) * (x[i] - mean))

/* The largest element; NaN is passed over, to show in what is computed from it. */
static inline __attribute__((unused)) float row_most(const float *x, int64_t count) {
    float   lane[ROW_LANES];
    int64_t at = 0;
    for (int j = 0; j < ROW_LANES; j++) lane[j] = -INFINITY;
    for (; at + ROW_LANES <= count; at += ROW_LANES)
        for (int j = 0; j < ROW_LANES; j++) lane[j] = x[at + j] > lane[j] ? x[at + j] : lane[j];
    for (int j = 0; at + j < count; j++) lane[j] = x[at + j] > lane[j] ? x[at + j] : lane[j];
    float most = lane[0];
    for (int j = 1; j < ROW_LANES; j++) most = lane[j] > most ? lane[j] : most;
    return most;
}

/* y = exp(x - shift). */
static inline __attribute__((unused)) void row_exp(const float *x, float shift, int64_t count, float *y) {
    _Pragma("GCC ivdep") for (int64_t i = 0; i < count; i++) y[i] = f32_exp(x[i] - shift);
}

#endif
