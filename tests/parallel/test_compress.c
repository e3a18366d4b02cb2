/* Compressed sums over ranks, rank by rank in this process: what comes out of each codec's exchange is what its definition says, bit by bit and
 * the same on every rank; what a rank leaves out it keeps, and nothing is lost over many steps; PowerSGD's factors are orthonormal and
 * give a matrix of low rank back. And the settings: what they read as, and how wrong ones are refused.
 *
 * A message is made a leaf of each rank's graph: all ranks run, what they send is exchanged and set on each, and all run again. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/interp.h"
#include "core/tensor/half.h"
#include "parallel/compress.h"

enum { MOST_RANKS = 5, MOST_MESSAGES = 8 };

typedef struct member {
    weft_graph       *graph;
    interp           *in;
    wefti_compress    compress;
    wefti_compressed *one;
    weft_tensor      *g, *skip, *scale, *result, *p;
    weft_tensor      *next_error, *next_basis; /* what the states become; NULL: there are none */
    weft_tensor      *message[MOST_MESSAGES];  /* results of communication */
    int32_t           n_messages;
} member;

typedef struct fleet {
    weft_compression how;
    weft_shape       shape;
    int64_t          elements;
    int32_t          ranks;
    bool             scaled, skip;
    member           member[MOST_RANKS];
} fleet;

static void *data_of(const member *m, const weft_tensor *tensor) { return (void *)(uintptr_t)interp_data(m->in, tensor); }

static void find_messages(member *m, weft_tensor **wanted, int32_t *n_wanted) {
    for (int32_t id = 0; id < m->graph->n_nodes; id++) {
        wefti_node *node = m->graph->nodes[id];
        if (node->op == WEFT_OP_ASSIGN) {
            if (node->inputs[0] == m->one->error) m->next_error = node->inputs[1];
            else m->next_basis = node->inputs[1];
            wanted[(*n_wanted)++] = node->inputs[1];
        }
        if (node->op != WEFT_OP_ALL_REDUCE && node->op != WEFT_OP_ALL_GATHER && node->op != WEFT_OP_ALL_TO_ALL) continue;
        m->message[m->n_messages++] = &node->outputs[0];
        wanted[(*n_wanted)++] = node->inputs[0];
    }
}

/* The operations of messages stay known in `how`, for their nodes become leaves. */
static weft_op kinds[MOST_MESSAGES];

static void open_member(fleet *f, int32_t rank) {
    member      *m = &f->member[rank];
    weft_tensor *wanted[32];
    int32_t      n = 0;
    cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 21}, &m->graph), WEFT_OK);
    m->g = weft_input(m->graph, "g", WEFT_F32, f->shape);
    m->skip = weft_input(m->graph, "skip", WEFT_BOOL, weft_shape_scalar());
    m->scale = weft_input(m->graph, "scale", WEFT_F32, weft_shape_scalar());
    m->compress = (wefti_compress){.how = &f->how, .graph = m->graph, .ranks = f->ranks, .rank = rank, .loss_scale = f->scaled ? m->scale : NULL};
    m->one = wefti_compress_begin(&m->compress, m->g, "w");
    cr_assert_not_null(m->one);
    m->result = wefti_compress_end(m->one);
    wefti_compress_keep(m->one, m->skip);
    cr_assert_eq(weft_graph_check(m->graph), WEFT_OK, "%s", weft_graph_message(m->graph));
    wanted[n++] = m->result;
    if (f->how.codec == WEFT_COMPRESS_POWER_SGD) wanted[n++] = m->p = m->one->own->node->inputs[0];
    find_messages(m, wanted, &n);
    for (int32_t k = 0; k < m->n_messages; k++) {
        kinds[k] = m->message[k]->node->op;
        m->message[k]->node->op = WEFT_OP_STATE;
    }
    m->in = interp_open(m->graph, wanted, n, true);
}

static fleet *fleet_open(weft_compression how, weft_shape shape, int32_t ranks, bool scaled) {
    fleet *f = calloc(1, sizeof *f);
    *f = (fleet){.how = how, .shape = shape, .elements = weft_shape_elements(shape), .ranks = ranks, .scaled = scaled};
    for (int32_t r = 0; r < ranks; r++) open_member(f, r);
    for (int32_t r = 1; r < ranks; r++) cr_assert_eq(f->member[r].n_messages, f->member[0].n_messages);
    for (int32_t r = 0; r < ranks && f->member[0].one->basis; r++) /* as the variables begin: normal numbers, everywhere the same */
        for (int64_t i = 0; i < weft_shape_elements(f->member[r].one->basis->shape); i++)
            interp_set_one(f->member[r].in, f->member[r].one->basis, i, sin(1 + (double)i * 1.7) + cos(3 + (double)(i * i) * 0.37));
    return f;
}

static void fleet_close(fleet *f) {
    for (int32_t r = 0; r < f->ranks; r++) {
        interp_close(f->member[r].in);
        weft_graph_release(f->member[r].graph);
    }
    free(f);
}

static size_t bytes_of(const weft_tensor *t) { return (size_t)weft_shape_elements(t->shape) * weft_dtype_bytes(t->dtype); }

static void exchange(fleet *f, int32_t k) {
    size_t ranks = (size_t)f->ranks, in_bytes = bytes_of(f->member[0].message[k]->node->inputs[0]);
    for (size_t to = 0; to < ranks; to++) {
        char *out = data_of(&f->member[to], f->member[to].message[k]);
        for (size_t from = 0; from < ranks; from++) {
            const char *in = data_of(&f->member[from], f->member[from].message[k]->node->inputs[0]);
            size_t      row = in_bytes / ranks;
            if (kinds[k] == WEFT_OP_ALL_GATHER) memcpy(out + from * in_bytes, in, in_bytes);
            else if (kinds[k] == WEFT_OP_ALL_TO_ALL) memcpy(out + from * row, in + to * row, row);
            else
                for (size_t i = 0; i < in_bytes / 4; i++) ((float *)out)[i] = from ? ((float *)out)[i] + ((const float *)in)[i] : ((const float *)in)[i];
        }
    }
}

/* One step with these gradients [ranks, elements]: results are the same on all ranks, and states are those of the next step. */
static const float *run_step(fleet *f, const float *gradients, int64_t step) {
    for (int32_t k = 0; k <= f->member[0].n_messages; k++) {
        for (int32_t r = 0; r < f->ranks; r++) {
            member *m = &f->member[r];
            memcpy(data_of(m, m->g), gradients + r * f->elements, (size_t)f->elements * sizeof *gradients);
            interp_set_one(m->in, m->skip, 0, f->skip);
            interp_run(m->in, step);
        }
        if (k < f->member[0].n_messages) exchange(f, k);
    }
    for (int32_t r = 0; r < f->ranks; r++) {
        member *m = &f->member[r];
        cr_assert_eq(memcmp(data_of(m, m->result), data_of(&f->member[0], f->member[0].result), bytes_of(m->result)), 0,
                     "codec %d on %d ranks: rank %d has other bits than rank 0", (int)f->how.codec, f->ranks, r);
        if (m->next_error) memcpy(data_of(m, m->one->error), data_of(m, m->next_error), bytes_of(m->next_error));
        if (m->next_basis) memcpy(data_of(m, m->one->basis), data_of(m, m->next_basis), bytes_of(m->next_basis));
    }
    return data_of(&f->member[0], f->member[0].result);
}

static const float *error_of(const fleet *f, int32_t rank) { return data_of(&f->member[rank], f->member[rank].one->error); }

static float *gradients_of(int32_t ranks, int64_t elements, uint32_t seed, bool whole) {
    float *g = malloc((size_t)ranks * (size_t)elements * sizeof *g);
    for (int64_t i = 0; i < ranks * elements; i++) {
        seed = seed * 1664525u + 1013904223u;
        double unit = (double)(seed >> 8) * 0x1p-23 - 1;
        g[i] = (float)(whole ? floor(unit * 100) : unit * unit * unit);
    }
    return g;
}

/* --- what each exchange gives, from the codec's functions --- */

static void round_trip(const wefti_codec_functions *codec, wefti_codec_part part, const float *x, float *x_out) {
    size_t   bytes = (size_t)codec->bytes(part.elements, part.kept);
    uint8_t *encoded = malloc(bytes);
    void    *scratch = codec->scratch_bytes ? malloc((size_t)codec->scratch_bytes(part.elements)) : NULL;
    codec->encode(&part, x, encoded, scratch);
    cr_assert_eq(codec->decode(&part, encoded, bytes, false, x_out), WEFT_OK);
    free(encoded);
    free(scratch);
}

/* Each rank's part is added up, from the first rank on, and rounded once more. `own_out` [ranks, n]: what each rank sent. */
static void scattered(const wefti_codec_functions *codec, const float *g, int32_t ranks, int64_t n, float *own_out, float *result_out) {
    int64_t part = (n + ranks - 1) / ranks;
    part = (part + codec->grain - 1) / codec->grain * codec->grain;
    for (int64_t at = 0; at < n; at += part) {
        wefti_codec_part cut = {.elements = part, .given = n - at < part ? n - at : part};
        float           *sum = calloc((size_t)part, sizeof *sum);
        for (int32_t r = 0; r < ranks; r++) round_trip(codec, cut, g + r * n + at, own_out + r * n + at);
        for (int32_t r = 0; r < ranks; r++)
            for (int64_t i = 0; i < cut.given; i++) sum[i] = r ? sum[i] + own_out[r * n + at + i] : own_out[r * n + at + i];
        round_trip(codec, cut, sum, result_out + at);
        free(sum);
    }
}

static void gathered(const wefti_codec_functions *codec, int64_t kept, const float *g, int32_t ranks, int64_t n, float *own_out, float *result_out) {
    for (int32_t r = 0; r < ranks; r++) {
        round_trip(codec, (wefti_codec_part){.elements = n, .given = n, .kept = kept}, g + r * n, own_out + r * n);
        for (int64_t i = 0; i < n; i++) result_out[i] = r ? result_out[i] + own_out[r * n + i] : own_out[r * n + i];
    }
}

static void same_values(const float *got, const float *due, int64_t n, const char *what, const fleet *f) {
    for (int64_t i = 0; i < n; i++)
        cr_assert(got[i] == due[i] || (isnan(got[i]) && isnan(due[i])), "codec %d, %d ranks, %lld elements: %s %lld is %a, not %a", (int)f->how.codec, f->ranks,
                  (long long)n, what, (long long)i, (double)got[i], (double)due[i]);
}

static void check_exchange(weft_compression how, int32_t ranks, int64_t n) {
    const wefti_codec *codec = wefti_codec_of(how.codec);
    fleet             *f = fleet_open(how, weft_shape(n), ranks, false);
    size_t             bytes = (size_t)n * sizeof(float);
    float             *error = calloc((size_t)ranks, bytes), *own = malloc((size_t)ranks * bytes), *due = malloc(bytes);
    for (uint32_t step = 0; step < 4; step++) {
        float *g = gradients_of(ranks, n, step + 1, false), *fed = malloc((size_t)ranks * bytes);
        bool   keeps = wefti_compress_feeds_back(&how);
        for (int64_t i = 0; i < ranks * n; i++) fed[i] = keeps ? g[i] + error[i] : g[i];
        if (codec->exchange == WEFTI_CODEC_GATHER) gathered(codec->functions, wefti_codec_kept(&how, n), fed, ranks, n, own, due);
        else scattered(codec->functions, fed, ranks, n, own, due);
        same_values(run_step(f, g, step), due, n, "element", f);
        for (int64_t i = 0; i < ranks * n; i++) error[i] = fed[i] - own[i];
        for (int32_t r = 0; keeps && r < ranks; r++) same_values(error_of(f, r), error + r * n, n, "what is kept of", f);
        cr_assert(keeps || !f->member[0].one->error);
        free(g);
        free(fed);
    }
    free(error);
    free(own);
    free(due);
    fleet_close(f);
}

Test(compress, gives_what_the_codecs_say_bit_by_bit) {
    static const int64_t sizes[] = {1, 2, 31, 33, 95, 97, 1000, 2049};
    for (int32_t ranks = 2; ranks <= MOST_RANKS; ranks++)
        for (size_t s = 0; s < WEFTI_COUNT(sizes); s++)
            for (int codec = 0; codec < WEFT_CODEC_COUNT; codec++)
                for (int feedback = 0; feedback < 2; feedback++) {
                    if (!wefti_codec_of(codec)->functions || wefti_codec_of(codec)->exchange == WEFTI_CODEC_SERVED) continue;
                    check_exchange((weft_compression){.codec = (weft_codec)codec, .ratio = 0.1, .error_feedback = feedback}, ranks, sizes[s]);
                }
}

/* --- nothing is lost --- */

/* What came out in all steps and what all ranks keep is what went in. Whole numbers add up exactly. */
static void loses_nothing(weft_compression how, weft_shape shape, double tolerance) {
    enum { RANKS = 3, STEPS = 20 };
    fleet  *f = fleet_open(how, shape, RANKS, false);
    double *in = calloc((size_t)f->elements, sizeof *in), *out = calloc((size_t)f->elements, sizeof *out), off = 0, size = 0;
    for (uint32_t step = 0; step < STEPS; step++) {
        float       *g = gradients_of(RANKS, f->elements, 100 + step, true);
        const float *result = run_step(f, g, step);
        for (int64_t i = 0; i < f->elements; i++) {
            out[i] += (double)result[i];
            for (int32_t r = 0; r < RANKS; r++) in[i] += (double)g[r * f->elements + i];
        }
        free(g);
    }
    for (int64_t i = 0; i < f->elements; i++) {
        for (int32_t r = 0; r < RANKS; r++) out[i] += (double)error_of(f, r)[i];
        off = fmax(off, fabs(in[i] - out[i]));
        size = fmax(size, fabs(in[i]));
    }
    cr_assert_leq(off, tolerance * size, "codec %d: %g of %g is lost", (int)how.codec, off, size);
    free(in);
    free(out);
    fleet_close(f);
}

Test(compress, loses_nothing_of_whole_numbers_by_top_k) {
    loses_nothing((weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = 0.03}, weft_shape(40, 50), 0);
    loses_nothing((weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = 1}, weft_shape(17), 0);
}
Test(compress, loses_nothing_but_rounding_by_power_sgd) {
    loses_nothing((weft_compression){.codec = WEFT_COMPRESS_POWER_SGD, .rank = 3}, weft_shape(40, 50), 1e-5);
    loses_nothing((weft_compression){.codec = WEFT_COMPRESS_POWER_SGD, .rank = 1}, weft_shape(9, 4, 5), 1e-5);
}

/* A skipped step leaves the states as they were. */
Test(compress, keeps_its_states_in_a_skipped_step) {
    for (int codec = 1; codec < WEFT_CODEC_COUNT; codec++) {
        if (wefti_codec_of(codec)->exchange == WEFTI_CODEC_SERVED) continue;
        weft_compression how = {.codec = (weft_codec)codec, .ratio = 0.05, .error_feedback = true};
        fleet           *f = fleet_open(how, weft_shape(30, 40), 2, false);
        float           *g = gradients_of(2, f->elements, 9, false), before[1200], basis[4 * 40];
        const weft_tensor *q = f->member[1].one->basis;
        for (int step = 0; step < 2; step++) (void)run_step(f, g, step);
        memcpy(before, error_of(f, 1), sizeof before);
        if (q) memcpy(basis, data_of(&f->member[1], q), sizeof basis);
        f->skip = true;
        g[3] = NAN;
        (void)run_step(f, g, 2);
        cr_assert_eq(memcmp(before, error_of(f, 1), sizeof before), 0, "codec %d", codec);
        if (q) cr_assert_eq(memcmp(basis, data_of(&f->member[1], q), sizeof basis), 0);
        f->skip = false;
        g[3] = 1;
        (void)run_step(f, g, 3);
        cr_assert_neq(memcmp(before, error_of(f, 1), sizeof before), 0, "codec %d never keeps anything", codec);
        free(g);
        fleet_close(f);
    }
}

/* What is kept is of the unscaled gradient, though another factor is on the loss in every step. */
Test(compress, keeps_what_is_left_out_without_the_losses_scale) {
    for (int codec = 1; codec < WEFT_CODEC_COUNT; codec++) {
        if (wefti_codec_of(codec)->exchange == WEFTI_CODEC_SERVED) continue;
        weft_compression how = {.codec = (weft_codec)codec, .ratio = 0.05, .error_feedback = true};
        fleet           *plain = fleet_open(how, weft_shape(30, 40), 2, false), *scaled = fleet_open(how, weft_shape(30, 40), 2, true);
        for (int step = 0; step < 3; step++) {
            float *g = gradients_of(2, plain->elements, 50u + (uint32_t)step, false), factor = ldexpf(1, 4 + 3 * step);
            for (int64_t i = 0; i < plain->elements; i++) g[i] += 0.5f; /* nothing that underflows beside the others */
            const float *due = run_step(plain, g, step);
            for (int64_t i = 0; i < 2 * plain->elements; i++) g[i] *= factor;
            for (int32_t r = 0; r < 2; r++) interp_set_one(scaled->member[r].in, scaled->member[r].scale, 0, (double)factor);
            const float *got = run_step(scaled, g, step);
            for (int64_t i = 0; i < plain->elements; i++)
                cr_assert(fabsf(got[i] - due[i] * factor) <= 1e-4f * fabsf(factor), "codec %d step %d: %g, not %g", codec, step, (double)got[i], (double)(due[i] * factor));
            for (int32_t r = 0; r < 2; r++)
                for (int64_t i = 0; i < plain->elements; i++)
                    cr_assert(fabsf(error_of(scaled, r)[i] - error_of(plain, r)[i]) <= 1e-4f, "codec %d step %d: keeps %g, not %g", codec, step,
                              (double)error_of(scaled, r)[i], (double)error_of(plain, r)[i]);
            free(g);
        }
        fleet_close(plain);
        fleet_close(scaled);
    }
}

/* What is not finite on one rank is not finite on any: the step can be skipped everywhere. */
Test(compress, brings_nan_to_every_rank) {
    for (int codec = 1; codec < WEFT_CODEC_COUNT && wefti_codec_of(codec)->exchange != WEFTI_CODEC_SERVED; codec++)
        for (int which = 0; which < 2; which++) {
            weft_compression how = {.codec = (weft_codec)codec, .ratio = 0.01};
            fleet           *f = fleet_open(how, weft_shape(30, 40), 3, false);
            float           *g = gradients_of(3, f->elements, 4, false);
            bool             finite = true;
            g[2 * f->elements + 517] = which ? INFINITY : NAN;
            const float *result = run_step(f, g, 0);
            for (int64_t i = 0; i < f->elements; i++) finite &= (bool)isfinite(result[i]);
            cr_assert(!finite, "codec %d hides what is not finite", codec);
            free(g);
            fleet_close(f);
        }
}

/* --- PowerSGD --- */

/* The sum over ranks of matrices that have `rank` together, [a, b]. */
static float *low_rank(int32_t ranks, int64_t a, int64_t b, int rank) {
    float *g = calloc((size_t)(ranks * a * b), sizeof *g);
    for (int32_t r = 0; r < ranks; r++)
        for (int k = 0; k < rank; k++)
            for (int64_t i = 0; i < a; i++)
                for (int64_t j = 0; j < b; j++)
                    g[(r * a + i) * b + j] += (float)((r + 1) * sin((double)(i * (k + 1)) + k) * cos((double)(j * (2 * k + 1)) * 0.7 + 1) / (1 + k));
    return g;
}

static void check_orthonormal(const fleet *f, int alive_due) {
    const member *m = &f->member[0];
    int64_t       rank = m->p->shape.dim[0], a = m->p->shape.dim[1];
    const float  *p = data_of(m, m->p);
    int           alive = 0;
    for (int64_t i = 0; i < rank; i++) {
        double length = 0;
        for (int64_t k = 0; k < a; k++) length += (double)p[i * a + k] * (double)p[i * a + k];
        alive += length > 0;
        cr_assert(length == 0 || fabs(length - 1) < 1e-5, "row %lld has length %g", (long long)i, length);
        for (int64_t j = 0; j < i; j++) {
            double product = 0;
            for (int64_t k = 0; k < a; k++) product += (double)p[i * a + k] * (double)p[j * a + k];
            cr_assert(fabs(product) < 1e-4, "rows %lld and %lld: %g", (long long)i, (long long)j, product);
        }
    }
    cr_assert_eq(alive, alive_due, "%d rows, not %d", alive, alive_due);
}

static void gives_back(int64_t a, int64_t b, int rank, int32_t setting) {
    weft_compression how = {.codec = WEFT_COMPRESS_POWER_SGD, .rank = setting};
    fleet           *f = fleet_open(how, weft_shape(a, b), 2, false);
    float           *g = low_rank(2, a, b, rank);
    double           off = 0, size = 0;
    for (int step = 0; step < 3; step++) {
        const float *result = run_step(f, g, step);
        for (int64_t i = 0; i < a * b; i++) {
            double due = (double)g[i] + (double)g[a * b + i];
            off += (due - (double)result[i]) * (due - (double)result[i]);
            size += due * due;
        }
        check_orthonormal(f, rank);
        for (int64_t i = 0; i < f->how.rank * b; i++) /* a row that fell away begins anew, and is not zero for ever */
            cr_assert(isfinite(interp_get(f->member[0].in, f->member[0].one->basis, i)));
        for (int64_t row = 0; row < setting; row++) {
            double length = 0;
            for (int64_t j = 0; j < b; j++) length += fabs(interp_get(f->member[0].in, f->member[0].one->basis, row * b + j));
            cr_assert_gt(length, 0, "row %lld of the basis is zero", (long long)row);
        }
    }
    cr_assert_leq(sqrt(off), 1e-5 * sqrt(size), "rank %d of [%lld, %lld] under rank %d: off by %g of %g", rank, (long long)a, (long long)b, setting, sqrt(off), sqrt(size));
    free(g);
    fleet_close(f);
}

Test(compress_power_sgd, gives_a_matrix_of_low_rank_back) {
    gives_back(30, 40, 1, 1);
    gives_back(30, 40, 3, 3);
    gives_back(70, 20, 4, 4);
    gives_back(30, 40, 2, 6); /* rows that depend on others fall away */
    gives_back(200, 300, 1, 4);
}

Test(compress_power_sgd, gives_zero_for_zero) {
    fleet       *f = fleet_open((weft_compression){.codec = WEFT_COMPRESS_POWER_SGD}, weft_shape(30, 40), 2, false);
    float       *g = calloc(2 * 1200, sizeof *g);
    const float *result = run_step(f, g, 0);
    for (int i = 0; i < 1200; i++) cr_assert_eq(result[i], 0);
    check_orthonormal(f, 0);
    free(g);
    g = low_rank(2, 30, 40, 2);
    (void)run_step(f, g, 1);
    result = run_step(f, g, 2);
    for (int i = 0; i < 1200; i++) cr_assert_float_eq(result[i], g[i] + g[1200 + i], 1e-4f);
    free(g);
    fleet_close(f);
}

/* A matrix that does not change is followed: after a few steps its largest part is sent as well as any matrix of that rank could.
 * Singular values are 8, 4, 2, 1, …; of rank 2 the best leaves sqrt(2^2 + 1 + …) of the whole. */
Test(compress_power_sgd, follows_the_largest_singular_vectors) {
    enum { A = 32, B = 48 };
    weft_compression how = {.codec = WEFT_COMPRESS_POWER_SGD, .rank = 2};
    fleet           *f = fleet_open(how, weft_shape(A, B), 2, false);
    float           *g = calloc(2 * A * B, sizeof *g), *nothing = calloc(2 * A * B, sizeof *nothing);
    double           best = 0, left = 0, pi = acos(-1.0);
    for (int k = 0; k < 16; k++) /* rows and columns of cosine transforms are orthogonal */
        for (int i = 0; i < A; i++)
            for (int j = 0; j < B; j++)
                g[i * B + j] += (float)(ldexp(8, -k) * sqrt(2.0 / A) * cos(pi * (i + 0.5) * (k + 1) / A) * sqrt(2.0 / B) * cos(pi * (j + 0.5) * (k + 1) / B));
    for (int k = 2; k < 16; k++) best += ldexp(64, -2 * k);
    for (int step = 0; step < 12; step++) {
        const float *result;
        for (int32_t r = 0; r < 2; r++) memcpy(data_of(&f->member[r], f->member[r].one->error), nothing, A * B * sizeof(float)); /* no feedback here */
        result = run_step(f, g, step);
        left = 0;
        for (int i = 0; i < A * B; i++) left += ((double)result[i] - (double)g[i]) * ((double)result[i] - (double)g[i]);
    }
    cr_assert_float_eq(sqrt(left), sqrt(best), 0.02 * sqrt(best), "%g is left, %g could be", sqrt(left), sqrt(best));
    free(g);
    free(nothing);
    fleet_close(f);
}

/* --- settings --- */

Test(compress_settings, say_what_is_compressed) {
    weft_compression none = {0}, bf16 = {.codec = WEFT_COMPRESS_BF16}, few = {.codec = WEFT_COMPRESS_TOP_K, .least = 10};
    weft_compression factors = {.codec = WEFT_COMPRESS_POWER_SGD, .rank = 4, .least = 1};
    cr_assert(!wefti_compress_takes(&none, WEFT_F32, weft_shape(5000)));
    cr_assert(wefti_compress_takes(&bf16, WEFT_F32, weft_shape(1024)));
    cr_assert(!wefti_compress_takes(&bf16, WEFT_F32, weft_shape(1023)));
    cr_assert(!wefti_compress_takes(&bf16, WEFT_F64, weft_shape(5000)));
    cr_assert(wefti_compress_takes(&few, WEFT_F32, weft_shape(10)) && !wefti_compress_takes(&few, WEFT_F32, weft_shape(9)));
    cr_assert(!wefti_compress_takes(&few, WEFT_F32, weft_shape(INT64_C(1) << 33)), "a place has 32 bits");
    cr_assert(wefti_compress_takes(&factors, WEFT_F32, weft_shape(9, 9)), "4 * 18 < 81");
    cr_assert(!wefti_compress_takes(&factors, WEFT_F32, weft_shape(8, 8)), "4 * 16 = 64");
    cr_assert(!wefti_compress_takes(&factors, WEFT_F32, weft_shape(5000)), "a vector is no matrix");
    cr_assert(wefti_compress_takes(&factors, WEFT_F32, weft_shape(16, 3, 3, 3)), "a filter is one of its first axis by the others");
}

static void reads(const char *text, weft_codec codec, double ratio, int32_t rank) {
    weft_compression c;
    cr_assert_eq(weft_compression_parse(text, &c), WEFT_OK, "'%s': %s", text, weft_error_message());
    cr_assert(c.codec == codec && c.ratio == ratio && c.rank == rank, "'%s' is codec %d, %g, %d", text, (int)c.codec, c.ratio, c.rank);
    cr_assert(c.warmup == 0 && c.least == 0 && !c.error_feedback);
}

Test(compress_settings, are_read_from_text) {
    reads("none", WEFT_COMPRESS_NONE, 0, 0);
    reads("bf16", WEFT_COMPRESS_BF16, 0, 0);
    reads("fp8", WEFT_COMPRESS_FP8, 0, 0);
    reads("fp8-e5m2", WEFT_COMPRESS_FP8_E5M2, 0, 0);
    reads("topk", WEFT_COMPRESS_TOP_K, 0, 0);
    reads("topk:0.05", WEFT_COMPRESS_TOP_K, 0.05, 0);
    reads("topk:1", WEFT_COMPRESS_TOP_K, 1, 0);
    reads("powersgd", WEFT_COMPRESS_POWER_SGD, 0, 0);
    reads("fixed8", WEFT_COMPRESS_FIXED8, 0, 0);
    reads("nonzero", WEFT_COMPRESS_NONZERO, 0, 0);
    reads("significant:0.25", WEFT_COMPRESS_SIGNIFICANT, 0, 0);
    reads("powersgd:2", WEFT_COMPRESS_POWER_SGD, 0, 2);
}

static void refused(const char *text, const char *word) {
    weft_compression c = {.codec = WEFT_COMPRESS_FP8};
    cr_assert_eq(weft_compression_parse(text, &c), WEFT_E_INVALID, "'%s' is taken", text ? text : "NULL");
    cr_assert(strstr(weft_error_message(), word), "'%s' does not say '%s'", weft_error_message(), word);
    cr_assert_eq(c.codec, WEFT_COMPRESS_NONE);
}

Test(compress_settings, refuse_text_that_is_none) {
    refused(NULL, "NULL");
    refused("", "none, bf16, fp8, fp8-e5m2, topk, powersgd");
    refused("BF16", "there is no compression 'BF16': there are none, bf16");
    refused("bf", "'bf'");
    refused("topk:", "'' is no number");
    refused("topk:many", "'many' is no number");
    refused("topk:0.1x", "no number");
    refused("topk:0", "more than 0");
    refused("topk:1.5", "compress.ratio is 1.5");
    refused("topk:nan", "out of range");
    refused("topk:-0.1", "compression 'topk:-0.1'");
    refused("powersgd:65", "compress.rank is 65");
    refused("powersgd:2.5", "a whole one");
    refused("powersgd:1e12", "out of range");
    refused("powersgd:-1", "compression 'powersgd:-1'");
    refused("bf16:3", "topk's ratio, significant's threshold or powersgd's rank");
    refused("none:1", "topk's ratio");
}

static void invalid(weft_compression how, const char *word) {
    cr_assert_eq(wefti_compress_check(&how), WEFT_E_INVALID, "taken: %s", word);
    cr_assert(strstr(weft_error_message(), word), "'%s' does not say '%s'", weft_error_message(), word);
}

Test(compress_settings, refuse_fields_that_make_no_sense) {
    invalid((weft_compression){.codec = (weft_codec)99}, "compress.codec is 99; there are none, bf16");
    invalid((weft_compression){.codec = (weft_codec)-1}, "compress.codec is -1");
    invalid((weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = -0.5}, "compress.ratio is -0.5");
    invalid((weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = (double)NAN}, "compress.ratio");
    invalid((weft_compression){.codec = WEFT_COMPRESS_POWER_SGD, .rank = -4}, "compress.rank is -4");
    invalid((weft_compression){.codec = WEFT_COMPRESS_BF16, .warmup = -1}, "compress.warmup is -1");
    invalid((weft_compression){.codec = WEFT_COMPRESS_BF16, .least = -7}, "compress.least -7");
    cr_assert_eq(wefti_compress_check(&(weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = 1, .rank = 64, .least = 1}), WEFT_OK);
}
