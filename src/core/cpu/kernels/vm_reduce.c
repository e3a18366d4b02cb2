/* Totals of the virtual machine's reduced outputs.
 *
 * Floats add up in f64: along a run of the innermost axis in LANES interleaved sums, which are added as a tree, and across runs in
 * row-major order. What a tile adds depends on shape and axes alone, so a sum has the same bits fused or not. */
#include "core/cpu/kernels/convert.h"
#include "core/cpu/kernels/vm.h"

enum { LANES = 16 };

/* The sum (or extremum) of a run, taken into one total. */
#define RUN_SUM(TYPE)                                                            \
    static void sum_run_##TYPE(const TYPE *x, int64_t count, vm_total *total) {  \
        double  lane[LANES] = {0};                                               \
        int64_t i = 0;                                                           \
        for (; i + LANES <= count; i += LANES)                                   \
            for (int j = 0; j < LANES; j++) lane[j] += (double)x[i + j];         \
        for (int j = 0; i < count; i++, j++) lane[j] += (double)x[i];            \
        for (int width = LANES / 2; width > 0; width /= 2)                       \
            for (int j = 0; j < width; j++) lane[j] += lane[j + width];          \
        total->f += lane[0];                                                     \
    }
#define RUN_EXTREMUM(name, TYPE, member, better)                                        \
    static void name##_run_##TYPE(const TYPE *x, int64_t count, vm_total *total) {      \
        TYPE    lane[LANES];                                                            \
        int64_t i = 0;                                                                  \
        for (int j = 0; j < LANES; j++) lane[j] = x[j < count ? j : 0];                 \
        for (; i + LANES <= count; i += LANES)                                          \
            for (int j = 0; j < LANES; j++) {                                           \
                TYPE one = x[i + j], two = lane[j];                                     \
                lane[j] = better ? one : two;                                           \
            }                                                                           \
        for (int j = 0; i < count; i++, j++) {                                          \
            TYPE one = x[i], two = lane[j];                                             \
            lane[j] = better ? one : two;                                               \
        }                                                                               \
        for (int j = 0; j < LANES; j++) {                                               \
            __typeof__(total->member) one = lane[j], two = total->member;               \
            total->member = better ? one : two;                                         \
        }                                                                               \
    }
#define RUN_SUM_INTEGER(TYPE)                                                    \
    static void sum_run_##TYPE(const TYPE *x, int64_t count, vm_total *total) {  \
        uint64_t sum = 0;                                                        \
        for (int64_t i = 0; i < count; i++) sum += (uint64_t)(int64_t)x[i];      \
        total->i = (int64_t)((uint64_t)total->i + sum);                          \
    }
RUN_SUM(float)
RUN_SUM(double)
RUN_SUM_INTEGER(int64_t)
RUN_SUM_INTEGER(int32_t)
RUN_SUM_INTEGER(uint8_t)
RUN_EXTREMUM(max, float, f, one > two || one != one)
RUN_EXTREMUM(max, double, f, one > two || one != one)
RUN_EXTREMUM(max, int64_t, i, one > two)
RUN_EXTREMUM(max, int32_t, i, one > two)
RUN_EXTREMUM(max, uint8_t, i, one > two)
RUN_EXTREMUM(min, float, f, one < two || one != one)
RUN_EXTREMUM(min, double, f, one < two || one != one)
RUN_EXTREMUM(min, int64_t, i, one < two)
RUN_EXTREMUM(min, int32_t, i, one < two)
RUN_EXTREMUM(min, uint8_t, i, one < two)

/* Each element of a run into a total of its own. */
#define EACH_TOTAL(name, TYPE, member, WIDE, expression)                                \
    static void name##_each_##TYPE(const TYPE *x, int64_t count, vm_total *totals) {    \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < count; i++) {                      \
            WIDE one = (WIDE)x[i], two = (WIDE)totals[i].member;                        \
            totals[i].member = (__typeof__(totals[i].member))(expression);              \
        }                                                                               \
    }
#define EACH_FLOAT(TYPE)                                                                \
    EACH_TOTAL(sum, TYPE, f, double, two + one)                                         \
    EACH_TOTAL(max, TYPE, f, double, one > two || one != one ? one : two)               \
    EACH_TOTAL(min, TYPE, f, double, one < two || one != one ? one : two)
#define EACH_INTEGER(TYPE)                                                              \
    EACH_TOTAL(sum, TYPE, i, uint64_t, two + one)                                       \
    EACH_TOTAL(max, TYPE, i, int64_t, one > two ? one : two)                            \
    EACH_TOTAL(min, TYPE, i, int64_t, one < two ? one : two)
EACH_FLOAT(float)
EACH_FLOAT(double)
EACH_INTEGER(int64_t)
EACH_INTEGER(int32_t)
EACH_INTEGER(uint8_t)

#define TAKE(name, TYPE)                                                                \
    if (step == 0)                                                                      \
        name##_run_##TYPE((const TYPE *)tile + done, run, totals + walk->offset);       \
    else                                                                                \
        name##_each_##TYPE((const TYPE *)tile + done, run, totals + walk->offset)
#define TAKE_TYPE(name)                                  \
    switch (output->type) {                              \
    case VM_F32: TAKE(name, float); break;               \
    case VM_F64: TAKE(name, double); break;              \
    case VM_I64: TAKE(name, int64_t); break;             \
    case VM_I32: TAKE(name, int32_t); break;             \
    default: TAKE(name, uint8_t); break;                 \
    }

void vm_accumulate(const vm_output *output, const void *tile, int64_t count, wefti_walk *walk, vm_total *totals) {
    int64_t step = wefti_walk_step(walk);
    for (int64_t done = 0, run; done < count; done += run) {
        run = wefti_min_i64(wefti_walk_run(walk), count - done);
        if (output->reduce == WEFT_OP_MAX) {
            TAKE_TYPE(max)
        } else if (output->reduce == WEFT_OP_MIN) {
            TAKE_TYPE(min)
        } else {
            TAKE_TYPE(sum)
        }
        wefti_walk_advance(walk, run);
    }
}

static bool is_float(const vm_output *output) { return output->type == VM_F32 || output->type == VM_F64; }

void vm_clear_totals(const vm_output *output, int64_t count, vm_total *totals) {
    vm_total first = {.i = 0};
    if (output->reduce == WEFT_OP_MAX || output->reduce == WEFT_OP_MIN) {
        bool max = output->reduce == WEFT_OP_MAX;
        if (is_float(output))
            first.f = max ? -INFINITY : INFINITY;
        else
            first.i = max ? INT64_MIN : INT64_MAX;
    }
    for (int64_t i = 0; i < count; i++) totals[i] = first;
}

static vm_total join(const vm_output *output, vm_total a, vm_total b) {
    bool floating = is_float(output);
    switch (output->reduce) {
    case WEFT_OP_MAX:
        if (floating) return b.f > a.f || isnan(b.f) ? b : a;
        return b.i > a.i ? b : a;
    case WEFT_OP_MIN:
        if (floating) return b.f < a.f || isnan(b.f) ? b : a;
        return b.i < a.i ? b : a;
    default:
        if (floating) return (vm_total){.f = a.f + b.f};
        return (vm_total){.i = (int64_t)((uint64_t)a.i + (uint64_t)b.i)};
    }
}

void vm_finish_totals(const vm_output *output, const vm_pass *pass, const vm_total *totals, int64_t parts, int64_t begin,
                      int64_t end, void *to) {
    double divisor = 1;
    if (output->reduce == WEFT_OP_MEAN) divisor = output->count != 0 ? output->count : (double)pass->reduced;
    for (int64_t k = begin; k < end; k++) {
        vm_total sum = totals[k];
        for (int64_t part = 1; part < parts; part++) sum = join(output, sum, totals[part * pass->n_totals + k]);
        if (is_float(output))
            wefti_store_f64(to, k, output->dtype, output->reduce == WEFT_OP_MEAN ? sum.f / divisor : sum.f);
        else
            wefti_store_i64(to, k, output->dtype, sum.i);
    }
}
