/* Arithmetic on dense tables where they lie. A message's commands are checked all before the first is carried out.
 *
 * Sums: blocks of 1024 products in eight lanes, which are added pairwise, and block sums with what rounding left out of them (Neumaier 1974). So
 * a sum has the same bits in every run, and is good to about the rounding of its blocks whatever its length. Costs no memory. */
#include <math.h>
#include <string.h>

#include "parallel/server/work.h"

typedef struct vectors {
    void   *x, *y;
    int64_t elements;
    bool    wide; /* F64 */
} vectors;

/* --- checking --- */

static weft_status find_vector(const weft_server *server, uint64_t id, served_table **table_out) {
    served_table *table = *table_out = wefti_tables_find(server, id);
    int64_t       elements = 0;
    if (!table) return wefti_fail(WEFT_E_NOT_FOUND, "rank %d, which serves, has no table of number %016llx", (int)server->rank, (unsigned long long)id);
    if (!wefti_store_vector(table->store, &elements))
        return wefti_fail(WEFT_E_INVALID, "table '%s' is no vector: those are dense tables of F32 or F64", table->spec.name);
    if (table->options.rule.kind == WEFT_TABLE_FTRL)
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': rows of FTRL follow from their states, and are no vector", table->spec.name);
    return WEFT_OK;
}

static bool takes_x(uint32_t op) { return op == WEFT_VECTOR_COPY || op == WEFT_VECTOR_AXPY || op == WEFT_VECTOR_MULTIPLY || op == WEFT_VECTOR_DOT; }

static weft_status find_both(const weft_server *server, const wefti_vector_frame *command, served_table **y_out, vectors *vectors_out) {
    served_table *x = NULL, *y = NULL;
    if (command->op > WEFTI_VECTOR_GATHER) return wefti_fail(WEFT_E_INVALID, "there is no vector command %u", (unsigned)command->op);
    WEFTI_TRY(find_vector(server, command->y, &y));
    *y_out = y;
    vectors_out->y = wefti_store_vector(y->store, &vectors_out->elements);
    vectors_out->wide = y->options.dtype == WEFT_F64;
    if (command->op == WEFTI_VECTOR_GATHER && (!vectors_out->wide || command->number == 0))
        return wefti_fail(WEFT_E_INVALID, "table '%s': a sum over %llu units into %s; it wants one, and F64", y->spec.name,
                          (unsigned long long)command->number, weft_dtype_name(y->options.dtype));
    if (!takes_x(command->op)) return WEFT_OK;
    WEFTI_TRY(find_vector(server, command->x, &x));
    vectors_out->x = wefti_store_vector(x->store, &(int64_t){0});
    if (x->options.dtype != y->options.dtype)
        return wefti_fail(WEFT_E_DTYPE, "tables '%s' of %s and '%s' of %s in one command", x->spec.name, weft_dtype_name(x->options.dtype), y->spec.name,
                          weft_dtype_name(y->options.dtype));
    if (x->options.rows != y->options.rows || x->options.width != y->options.width)
        return wefti_fail(WEFT_E_SHAPE, "tables '%s' of %lld rows of %lld and '%s' of %lld rows of %lld in one command", x->spec.name,
                          (long long)x->options.rows, (long long)x->options.width, y->spec.name, (long long)y->options.rows, (long long)y->options.width);
    return WEFT_OK;
}

/* --- arithmetic --- */

enum { BLOCK = 1024, LANES = 8 };

static double block_f32(const float *x, const float *y, int64_t n) {
    double  lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) lane[k] += (double)x[i + k] * y[i + k];
    for (int k = 0; i + k < n; k++) lane[k] += (double)x[i + k] * y[i + k];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}
static double block_f64(const double *x, const double *y, int64_t n) {
    double  lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) lane[k] += x[i + k] * y[i + k];
    for (int k = 0; i + k < n; k++) lane[k] += x[i + k] * y[i + k];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

static double dot(const vectors *v) {
    double sum = 0, lost = 0;
    for (int64_t i = 0; i < v->elements; i += BLOCK) {
        int64_t count = wefti_min_i64(BLOCK, v->elements - i);
        double  block = v->wide ? block_f64((const double *)v->x + i, (const double *)v->y + i, count)
                                : block_f32((const float *)v->x + i, (const float *)v->y + i, count);
        double  more = sum + block;
        lost += fabs(sum) >= fabs(block) ? (sum - more) + block : (block - more) + sum;
        sum = more;
    }
    return isfinite(lost) ? sum + lost : sum;
}

#define EACH(v, expression)                                                                                                                          \
    do {                                                                                                                                             \
        if ((v)->wide) {                                                                                                                             \
            double *y = (v)->y, s = scale;                                                                                                           \
            const double *x = (v)->x;                                                                                                                \
            for (int64_t i = 0; i < (v)->elements; i++) y[i] = expression;                                                                           \
            (void)x, (void)s;                                                                                                                        \
        } else {                                                                                                                                     \
            float *y = (v)->y, s = (float)scale;                                                                                                     \
            const float *x = (v)->x;                                                                                                                 \
            for (int64_t i = 0; i < (v)->elements; i++) y[i] = expression;                                                                           \
            (void)x, (void)s;                                                                                                                        \
        }                                                                                                                                            \
    } while (0)

static double calculate(uint32_t op, const vectors *v, double scale) {
    switch (op) {
    case WEFT_VECTOR_FILL: EACH(v, s); return 0;
    case WEFT_VECTOR_COPY: EACH(v, x[i]); return 0;
    case WEFT_VECTOR_SCALE: EACH(v, y[i] * s); return 0;
    case WEFT_VECTOR_AXPY: EACH(v, y[i] + s * x[i]); return 0;
    case WEFT_VECTOR_MULTIPLY: EACH(v, y[i] * x[i]); return 0;
    default: return dot(v);
    }
}

/* --- requests --- */

static weft_status answer(weft_server *server, server_job *job, const double *results, uint64_t count) {
    size_t bytes = (size_t)count * sizeof *results;
    WEFTI_TRY(wefti_server_take(server, bytes, false, &job->answer));
    memcpy(job->answer->data, results, bytes);
    job->answer_bytes = bytes;
    return WEFT_OK;
}

weft_status wefti_vectors_carry_out(weft_server *server, server_job *job, bool repeated) {
    server_session           *session = &server->sessions[job->worker];
    const wefti_vector_frame *commands = job->body ? (const wefti_vector_frame *)(const void *)job->body->data : NULL;
    uint64_t                  count = job->frame.body_bytes / sizeof *commands;
    served_table             *table = NULL;
    vectors                   both = {0};
    if (!commands || count > VECTORS_MOST || job->frame.body_bytes % sizeof *commands)
        return wefti_fail(WEFT_E_CORRUPT, "%llu bytes of vector commands of rank %d", (unsigned long long)job->frame.body_bytes, (int)job->worker);
    if (repeated && session->results && session->resulted == job->frame.number) return answer(server, job, session->results, count);
    if (repeated) return wefti_fail(WEFT_E_STATE, "vector commands of rank %d came again after later ones", (int)job->worker);
    for (uint64_t i = 0; i < count; i++) WEFTI_TRY(find_both(server, &commands[i], &table, &both));
    if (!session->results) WEFTI_TRY(wefti_alloc(sizeof(double) * VECTORS_MOST, "results of vector commands", &session->results));
    session->resulted = job->frame.number;
    for (uint64_t i = 0; i < count; i++) {
        const wefti_vector_frame *command = &commands[i];
        WEFTI_TRY(find_both(server, command, &table, &both));
        session->results[i] = 0;
        if (command->op != WEFT_VECTOR_DOT) {
            wefti_lend_end_all(server, table);
            WEFTI_TRY(find_both(server, command, &table, &both)); /* rows that somebody reads have gone on elsewhere */
        }
        if (command->op == WEFTI_VECTOR_GATHER) WEFTI_TRY(wefti_gather_begin(table, command->x, command->number));
        else session->results[i] = calculate(command->op, &both, command->scale);
    }
    return answer(server, job, session->results, count);
}
