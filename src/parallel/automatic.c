/* The search: a step's time and a rank's memory for each strategy that multiplies to the ranks, and the least of them. Cost: some thousands of evaluations
 * of a dozen terms. */
#include "parallel/automatic.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BUCKET_BYTES (4.0 * (1 << 20))
#define USABLE 0.9
enum { MOST_MICRO = 64 };

static double log2_up(int32_t n) { return ceil(log2((double)n)); }

/* `count` all-reduces of `bytes` together. */
static double all_reduce(wefti_auto_link link, int32_t n, double count, double bytes) {
    return n > 1 ? count * 2 * log2_up(n) * link.alpha + 2.0 * (n - 1) / n * bytes * link.beta : 0;
}

static double seconds_of(const wefti_auto_machine *m, const wefti_auto_work *work) { return work->flops / m->flops + work->bytes / m->bytes; }

static const wefti_auto_split *split_of(const wefti_auto_split *list, int32_t n, int32_t ranks) {
    for (int32_t i = 0; i < n; i++)
        if (list[i].ranks == ranks) return &list[i];
    return NULL;
}

/* Ranks of an axis that stand `stride` apart: whether some of them are on other hosts. */
static wefti_auto_link link_of(const wefti_auto_machine *m, int32_t stride, int32_t extent) {
    int32_t host = m->per_host > 0 ? m->per_host : m->ranks;
    return stride * extent > host ? m->far : m->near;
}

static double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

/* What the rank with most to do has of tensor- and pipeline-split together: the stage's share of the tensor rank's part. */
static wefti_auto_split combined(const wefti_auto_costs *c, const wefti_auto_split *tensor, const wefti_auto_split *stage) {
    const wefti_auto_split *whole = &c->tensor[0];
    wefti_auto_split        s = *tensor;
    if (!stage) return s;
    double share = ratio(stage->work.flops + stage->work.bytes, whole->work.flops + whole->work.bytes), parameters = ratio(stage->parameter_bytes, whole->parameter_bytes);
    s.work = (wefti_auto_work){tensor->work.flops * ratio(stage->work.flops, whole->work.flops), tensor->work.bytes * ratio(stage->work.bytes, whole->work.bytes),
                               tensor->work.ops * ratio(stage->work.ops, whole->work.ops)};
    s.update_bytes = tensor->update_bytes * parameters;
    s.messages = tensor->messages * share;
    s.message_bytes = tensor->message_bytes * share;
    s.parameter_bytes = tensor->parameter_bytes * parameters;
    s.state_bytes = tensor->state_bytes * ratio(stage->state_bytes, whole->state_bytes);
    s.kept_bytes = tensor->kept_bytes * ratio(stage->kept_bytes, whole->kept_bytes);
    if (whole->recompute_bytes >= 0) s.recompute_bytes = tensor->recompute_bytes * ratio(stage->recompute_bytes, whole->recompute_bytes);
    return s;
}

static int32_t chunks_of(const weft_strategy *s) { return s->schedule != WEFT_INTERLEAVED ? 1 : s->chunks > 0 ? s->chunks : 2; }

/* Micro-batches that a stage keeps at once. */
static double in_flight(const weft_strategy *s, int32_t micro) {
    double p = s->pipeline, v = chunks_of(s);
    if (s->pipeline == 1) return 1;
    if (s->schedule == WEFT_GPIPE) return micro;
    return s->schedule == WEFT_INTERLEAVED ? fmin(micro, (2 * (p - 1) + (v - 1) * p + 1) / v) : fmin(micro, p);
}

/* Of the (P - 1) micro-batches that a pipeline fills and drains in, what is not filled by something else. */
static double bubble(const wefti_auto_costs *c, const weft_strategy *s) {
    return (s->pipeline - 1) * (s->schedule == WEFT_ZERO_BUBBLE ? 1 - (1 - c->forward_share) / 2 : 1) / chunks_of(s);
}

static double memory_of(const weft_strategy *s, const wefti_auto_split *own, int32_t micro) {
    double d = s->data;
    double parameters = own->parameter_bytes / (s->zero >= 3 ? d : 1), gradients = own->parameter_bytes / (s->zero >= 2 ? d : 1);
    double states = own->state_bytes / (s->zero >= 1 ? d : 1), kept = s->recompute ? own->recompute_bytes : own->kept_bytes;
    return parameters + gradients + states + kept / (d * micro) * in_flight(s, micro);
}

/* What of the messages of gradients nothing hides: by how long the last backward pass is. */
static double exposed(const wefti_auto_costs *c, const weft_strategy *s, const wefti_auto_machine *m, const wefti_auto_split *own, double micro_seconds) {
    if (s->data == 1) return 0;
    wefti_auto_link link = link_of(m, s->tensor, s->data);
    double          buckets = fmax(1, ceil(own->parameter_bytes / BUCKET_BYTES)), all = all_reduce(link, s->data, buckets, own->parameter_bytes);
    double          backward = (1 - c->forward_share) * micro_seconds;
    double          often = s->zero >= 2 && s->accumulate > 1 ? s->accumulate : 1; /* parts of gradients are not kept whole: each micro-batch is summed */
    if (s->zero == 1 || s->zero == 2) return all / 2 + often * fmax(all / 2 - backward, all / 2 / buckets);
    if (s->zero == 3) return often * fmax(1.5 * all - micro_seconds, all / buckets);
    return fmax(all - backward, all / buckets);
}

wefti_auto_candidate wefti_auto_judge(const wefti_auto_costs *c, const wefti_auto_machine *m, const weft_strategy *s) {
    wefti_auto_candidate    it = {.strategy = *s};
    const wefti_auto_split *tensor = split_of(c->tensor, c->n_tensor, s->tensor), *stage = split_of(c->pipeline, c->n_pipeline, s->pipeline);
    int32_t                 micro = s->accumulate > 0 ? s->accumulate : 1;
    bool whole = !tensor || (s->pipeline > 1 && (!stage || !split_of(c->pipeline, c->n_pipeline, s->pipeline * chunks_of(s))));
    if (whole) return (wefti_auto_candidate){.strategy = *s, .seconds = INFINITY, .memory_bytes = INFINITY};
    wefti_auto_split own = combined(c, tensor, s->pipeline > 1 ? stage : NULL);
    double           again = s->recompute ? 1 + c->forward_share : 1, pieces = (double)s->data * micro;
    double           parameters = (micro > 1 ? 6 : 3) * own.parameter_bytes / m->bytes; /* read twice, gradients written; and added up */
    double           computing = again * (seconds_of(m, &own.work) / pieces + own.work.ops * m->op_seconds) + parameters;
    double           waiting = again * all_reduce(link_of(m, 1, s->tensor), s->tensor, own.messages, own.message_bytes / pieces);
    it.computing = micro * computing;
    it.tensors = micro * waiting;
    if (s->pipeline > 1) {
        wefti_auto_link link = link_of(m, s->tensor * s->data, s->pipeline);
        double          pass = chunks_of(s) * (stage->messages / 2 * link.alpha + stage->message_bytes / 2 / pieces / s->tensor * link.beta);
        it.idle = bubble(c, s) * (computing + waiting) + 2 * (s->pipeline - 1) * pass + micro * fmax(0, 2 * pass - computing - waiting);
    }
    it.gradients = exposed(c, s, m, &own, computing + waiting);
    bool parts = s->zero >= 1 || (m->shares_updates && s->divide_bytes >= 0 && s->tensor == 1 && s->pipeline == 1);
    it.updating = own.update_bytes / m->bytes / (parts ? s->data : 1);
    it.seconds = it.computing + it.tensors + it.idle + it.gradients + it.updating;
    it.memory_bytes = memory_of(s, &own, micro);
    it.fits = m->memory_bytes <= 0 || it.memory_bytes <= USABLE * m->memory_bytes;
    return it;
}

/* --- all of them --- */

typedef struct search {
    const wefti_auto_costs   *costs;
    const wefti_auto_machine *machine;
    const weft_strategy      *asked;
    wefti_auto_allows         allows;
    void                     *context;
    wefti_auto_choice        *choice;
} search;

static weft_status consider(search *x, weft_strategy strategy) {
    wefti_auto_choice *choice = x->choice;
    if (x->allows && !x->allows(x->context, &strategy)) return WEFT_OK;
    wefti_auto_candidate it = wefti_auto_judge(x->costs, x->machine, &strategy);
    if (!isfinite(it.seconds)) return WEFT_OK;
    if (choice->n == choice->room) {
        int32_t wider = choice->room ? 2 * choice->room : 64;
        WEFTI_TRY(wefti_grow(&choice->candidates, sizeof it * (size_t)choice->room, sizeof it * (size_t)wider, "an automatic strategy"));
        choice->room = wider;
    }
    choice->candidates[choice->n++] = it;
    choice->n_fitting += it.fits;
    return WEFT_OK;
}

/* Schedules, ZeRO and recomputation of one mesh with one number of micro-batches. */
static weft_status vary(search *x, weft_strategy strategy) {
    const weft_strategy *asked = x->asked;
    int32_t last = strategy.pipeline > 1 && strategy.accumulate > 1 && asked->schedule == WEFT_1F1B ? WEFT_ZERO_BUBBLE : (int32_t)asked->schedule;
    for (int32_t order = asked->schedule; order <= last; order++)
        for (int32_t zero = asked->zero; zero <= (strategy.data > 1 && asked->zero == 0 ? 3 : asked->zero); zero++)
            for (int32_t again = asked->recompute; again <= (x->costs->tensor[0].recompute_bytes >= 0); again++) {
                weft_strategy each = strategy;
                each.schedule = (weft_pipeline_order)order;
                each.zero = zero;
                each.recompute = again;
                WEFTI_TRY(consider(x, each));
            }
    return WEFT_OK;
}

static weft_status try_mesh(search *x, int32_t data, int32_t tensor, int32_t pipeline) {
    const weft_strategy *asked = x->asked;
    weft_strategy        strategy = *asked;
    if ((asked->data > 0 && asked->data != data) || (asked->tensor > 0 && asked->tensor != tensor) || (asked->pipeline > 0 && asked->pipeline != pipeline)) return WEFT_OK;
    if (x->costs->rows > 0 && data > x->costs->rows) return WEFT_OK;
    strategy.automatic = false;
    strategy.data = data;
    strategy.tensor = tensor;
    strategy.pipeline = pipeline;
    if (asked->accumulate > 0) return vary(x, strategy);
    for (int32_t micro = 1; micro <= MOST_MICRO && (micro == 1 || (int64_t)micro * data <= x->costs->rows); micro *= 2) {
        strategy.accumulate = micro;
        WEFTI_TRY(vary(x, strategy));
    }
    return WEFT_OK;
}

/* Equal ones by what is simpler: fewer kinds of splits, ZeRO, recomputation, micro-batches. */
static int complexity(const weft_strategy *s) {
    return 1000 * ((s->tensor > 1) + (s->pipeline > 1)) + 300 * s->recompute + 100 * s->zero + 50 * (s->schedule != WEFT_1F1B) + s->accumulate;
}

static int better_first(const void *left, const void *right) {
    const wefti_auto_candidate *a = left, *b = right;
    double                      x = a->fits ? a->seconds : a->memory_bytes, y = b->fits ? b->seconds : b->memory_bytes;
    if (a->fits != b->fits) return a->fits ? -1 : 1;
    if (fabs(x - y) > 1e-9 * (fabs(x) + fabs(y))) return x < y ? -1 : 1;
    return complexity(&a->strategy) - complexity(&b->strategy);
}

/* How many ranks the strategy that needs least would have to be given, by what is shared without end: ZeRO 3, or parts of the model. */
static weft_status nothing_fits(const wefti_auto_choice *choice, const wefti_auto_machine *m) {
    const wefti_auto_candidate *least = &choice->candidates[0];
    double                      factor = least->memory_bytes / (USABLE * m->memory_bytes);
    return wefti_fail(WEFT_E_NO_MEMORY, "no strategy of %d fits: the one that needs least, %s, would hold %.4g MB a rank, and %.4g of a rank's %.4g MB may be taken; about %d ranks "
                      "would do, or a smaller batch or model", (int)choice->n, weft_strategy_text(&least->strategy).text, least->memory_bytes / 1e6, USABLE * m->memory_bytes / 1e6,
                      m->memory_bytes / 1e6, (int)ceil(factor * m->ranks));
}

weft_status wefti_auto_search(const wefti_auto_costs *costs, const wefti_auto_machine *machine, const weft_strategy *asked, wefti_auto_allows allows, void *context,
                              wefti_auto_choice *choice) {
    search x = {costs, machine, asked, allows, context, choice};
    *choice = (wefti_auto_choice){.n = 0};
    for (int32_t tensor = 1; tensor <= machine->ranks; tensor++)
        for (int32_t pipeline = 1; machine->ranks % tensor == 0 && pipeline <= machine->ranks / tensor; pipeline++)
            if (machine->ranks / tensor % pipeline == 0) WEFTI_TRY(try_mesh(&x, machine->ranks / tensor / pipeline, tensor, pipeline));
    if (choice->n == 0)
        return wefti_fail(WEFT_E_INVALID, "strategy: nothing that goes with %s makes %d ranks: an axis does not divide them, the batch has fewer rows (%lld), or what is asked for "
                          "does not go together", weft_strategy_text(asked).text, (int)machine->ranks, (long long)costs->rows);
    qsort(choice->candidates, (size_t)choice->n, sizeof *choice->candidates, better_first);
    return choice->n_fitting > 0 ? WEFT_OK : nothing_fits(choice, machine);
}

void wefti_auto_release(wefti_auto_choice *choice) {
    wefti_free(choice->candidates, sizeof *choice->candidates * (size_t)choice->room);
    *choice = (wefti_auto_choice){.n = 0};
}

/* --- words --- */

static void add_time(wefti_text *text, const char *before, double seconds, const char *after) {
    if (seconds >= 0.9995) wefti_text_add(text, "%s%.3g s%s", before, seconds, after);
    else wefti_text_add(text, "%s%.3g ms%s", before, 1e3 * seconds, after);
}

static void add_bytes(wefti_text *text, double bytes) {
    if (bytes >= 1e9) wefti_text_add(text, "%.3g GB", bytes / 1e9);
    else wefti_text_add(text, "%.3g MB", bytes / 1e6);
}

static void add_parts(wefti_text *text, const wefti_auto_candidate *it) {
    add_time(text, "", it->computing, " computing");
    if (it->tensors > 0) add_time(text, ", ", it->tensors, " for parts of tensors");
    if (it->idle > 0) add_time(text, ", ", it->idle, " idle in the pipeline");
    if (it->gradients > 0) add_time(text, ", ", it->gradients, " for gradients");
    add_time(text, ", ", it->updating, " updating");
}

/* The best of those that are split along `axis` alone (0 data, 1 tensor, 2 pipeline); NULL: none. */
static const wefti_auto_candidate *best_along(const wefti_auto_choice *choice, int axis) {
    for (int32_t i = 0; i < choice->n; i++) {
        const weft_strategy *s = &choice->candidates[i].strategy;
        bool                 along[] = {s->data > 1, s->tensor > 1, s->pipeline > 1};
        if (along[axis] && along[0] + along[1] + along[2] == 1) return &choice->candidates[i];
    }
    return NULL;
}

static void add_alternative(wefti_text *text, const wefti_auto_choice *choice, const wefti_auto_machine *m, int axis) {
    static const char *const    names[] = {"data", "tensors", "a pipeline"};
    const wefti_auto_candidate *first = &choice->candidates[0], *it = best_along(choice, axis);
    if (!it || it == first) return;
    wefti_text_add(text, "  by %s alone, %s: ", names[axis], weft_strategy_text(&it->strategy).text);
    if (!it->fits) {
        wefti_text_add(text, "does not fit, it would hold ");
        add_bytes(text, it->memory_bytes);
        wefti_text_add(text, " of ");
        add_bytes(text, m->memory_bytes);
        wefti_text_add(text, "\n");
        return;
    }
    add_time(text, "", it->seconds, "");
    wefti_text_add(text, ", %.2f times as long: ", it->seconds / first->seconds);
    add_parts(text, it);
    wefti_text_add(text, "\n");
}

void wefti_auto_explain(const wefti_auto_choice *choice, const wefti_auto_machine *m, wefti_text *text) {
    const wefti_auto_candidate *first = &choice->candidates[0];
    wefti_text_add(text, "strategy: %s, chosen of %d that fit, of %d\n", weft_strategy_text(&first->strategy).text, (int)choice->n_fitting, (int)choice->n);
    add_time(text, "because a step should take ", first->seconds, ": ");
    add_parts(text, first);
    wefti_text_add(text, "; a rank holds about ");
    add_bytes(text, first->memory_bytes);
    if (m->memory_bytes > 0) wefti_text_add(text, " of ");
    if (m->memory_bytes > 0) add_bytes(text, m->memory_bytes);
    wefti_text_add(text, "\n");
    for (int axis = 0; axis < 3; axis++) add_alternative(text, choice, m, axis);
    for (int32_t i = 1; i < choice->n_fitting && i <= 5; i++) {
        wefti_text_add(text, "%s  %2d. %s: ", i == 1 ? "next to it:\n" : "", (int)i + 1, weft_strategy_text(&choice->candidates[i].strategy).text);
        add_time(text, "", choice->candidates[i].seconds, "");
        wefti_text_add(text, ", ");
        add_bytes(text, choice->candidates[i].memory_bytes);
        wefti_text_add(text, "\n");
    }
    wefti_text_add(text, "by %.3g GFLOP/s, %.3g GB/s and %.3g us to launch an operation on each rank; %.3g us and %.3g GB/s between ranks", m->flops / 1e9, m->bytes / 1e9,
                   1e6 * m->op_seconds, 1e6 * m->near.alpha, 1e-9 / m->near.beta);
    if (m->per_host > 0 && m->per_host < m->ranks) wefti_text_add(text, ", %.3g us and %.3g GB/s between hosts", 1e6 * m->far.alpha, 1e-9 / m->far.beta);
    wefti_text_add(text, "\n");
}
