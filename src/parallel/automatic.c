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

static int32_t extent(int32_t asked) { return asked > 1 ? asked : 1; }

/* Ranks that have parameters alike, but for those of experts, and those that have experts' alike. */
static int32_t alike(const weft_strategy *s) { return s->data * extent(s->sequence) * extent(s->expert); }
static int32_t experts_alike(const weft_strategy *s) { return s->data * extent(s->sequence); }

/* What a mesh splits a program by; NULL where an axis has one rank. */
typedef struct splits {
    const wefti_auto_split *tensor, *stage, *stretch, *expert;
} splits;

/* false: the program has no such split. */
static bool find_splits(const wefti_auto_costs *c, const weft_strategy *s, splits *x) {
    *x = (splits){.tensor = split_of(c->tensor, c->n_tensor, s->tensor)};
    if (s->pipeline > 1) x->stage = split_of(c->pipeline, c->n_pipeline, s->pipeline);
    if (extent(s->sequence) > 1) x->stretch = split_of(c->sequence, c->n_sequence, s->sequence);
    if (extent(s->expert) > 1) x->expert = split_of(c->expert, c->n_expert, s->expert);
    return x->tensor && (x->stage || s->pipeline == 1) && (x->stretch || extent(s->sequence) == 1) && (x->expert || extent(s->expert) == 1);
}

/* What is left of what a rank has, where another axis leaves this share of the whole program. */
static void shrink(wefti_auto_split *own, const wefti_auto_split *whole, const wefti_auto_split *part) {
    double parameters = ratio(part->parameter_bytes, whole->parameter_bytes);
    own->work.flops *= ratio(part->work.flops, whole->work.flops);
    own->work.bytes *= ratio(part->work.bytes, whole->work.bytes);
    own->work.ops *= ratio(part->work.ops, whole->work.ops);
    own->update_bytes *= parameters;
    own->parameter_bytes *= parameters;
    own->state_bytes *= ratio(part->state_bytes, whole->state_bytes);
    own->kept_bytes *= ratio(part->kept_bytes, whole->kept_bytes);
    if (whole->recompute_bytes >= 0) own->recompute_bytes *= ratio(part->recompute_bytes, whole->recompute_bytes);
}

static double share_of(const wefti_auto_split *part, const wefti_auto_split *whole) {
    return part ? ratio(part->work.flops + part->work.bytes, whole->work.flops + whole->work.bytes) : 1;
}

/* What the rank with most to do has of all splits together: each axis' share of the tensor rank's part. Messages are of its tensors alone. */
static wefti_auto_split combined(const wefti_auto_costs *c, const splits *x) {
    const wefti_auto_split *whole = &c->tensor[0], *parts[] = {x->stage, x->stretch, x->expert};
    wefti_auto_split        s = *x->tensor;
    for (size_t i = 0; i < WEFTI_COUNT(parts); i++)
        if (parts[i]) shrink(&s, whole, parts[i]);
    s.messages *= share_of(x->stage, whole);
    s.message_bytes *= share_of(x->stage, whole) * share_of(x->stretch, whole);
    if (x->expert) s.expert_bytes = s.parameter_bytes * ratio(x->expert->expert_bytes, x->expert->parameter_bytes);
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

/* Of parameters, gradients or states a rank's part, where ZeRO deals them out. */
static double dealt(const weft_strategy *s, const wefti_auto_split *own, double bytes, bool out) {
    double experts = bytes * ratio(own->expert_bytes, own->parameter_bytes);
    return out ? (bytes - experts) / alike(s) + experts / experts_alike(s) : bytes;
}

static double memory_of(const weft_strategy *s, const wefti_auto_split *own, int32_t micro) {
    double parameters = dealt(s, own, own->parameter_bytes, s->zero >= 3), gradients = dealt(s, own, own->parameter_bytes, s->zero >= 2);
    double states = dealt(s, own, own->state_bytes, s->zero >= 1), kept = s->recompute ? own->recompute_bytes : own->kept_bytes;
    return parameters + gradients + states + kept / ((double)s->data * extent(s->expert) * micro) * in_flight(s, micro);
}

/* What of the messages of gradients nothing hides: by how long the last backward pass is. */
static double exposed(const wefti_auto_costs *c, const weft_strategy *s, const wefti_auto_machine *m, const wefti_auto_split *own, double micro_seconds) {
    if (alike(s) == 1) return 0;
    wefti_auto_link link = link_of(m, s->tensor, alike(s));
    double          dense = own->parameter_bytes - own->expert_bytes, buckets = fmax(1, ceil(dense / BUCKET_BYTES)), of_experts = ceil(own->expert_bytes / BUCKET_BYTES);
    double          all = all_reduce(link, alike(s), buckets, dense) + all_reduce(link, experts_alike(s), of_experts, own->expert_bytes);
    double          backward = (1 - c->forward_share) * micro_seconds;
    double          often = s->zero >= 2 && s->accumulate > 1 ? s->accumulate : 1; /* parts of gradients are not kept whole: each micro-batch is summed */
    buckets += of_experts;
    if (s->zero == 1 || s->zero == 2) return all / 2 + often * fmax(all / 2 - backward, all / 2 / buckets);
    if (s->zero == 3) return often * fmax(1.5 * all - micro_seconds, all / buckets);
    return fmax(all - backward, all / buckets);
}

/* What a micro-batch of 1 / pieces of the batch waits for besides. Ranks of a tensor group have heads in parts, and rows that travel whole. */
static double round_the_ring(const wefti_auto_machine *m, const weft_strategy *s, const splits *x, double stage, double pieces) {
    if (!x->stretch) return 0;
    wefti_auto_link link = link_of(m, s->tensor, s->sequence);
    return stage * (x->stretch->messages * link.alpha + x->stretch->message_bytes / pieces / s->tensor * link.beta);
}
static double to_experts(const wefti_auto_machine *m, const weft_strategy *s, const splits *x, double stage, double stretch, double pieces) {
    if (!x->expert) return 0;
    wefti_auto_link link = link_of(m, s->tensor * extent(s->sequence), s->expert);
    double          others = s->expert - 1;
    return stage * (x->expert->messages * others * link.alpha + stretch * x->expert->message_bytes / pieces * others / s->expert * link.beta);
}

static double idle_of(const wefti_auto_costs *c, const wefti_auto_machine *m, const weft_strategy *s, const splits *x, double pieces, int32_t micro, double busy) {
    if (s->pipeline == 1) return 0;
    wefti_auto_link link = link_of(m, s->tensor * alike(s), s->pipeline);
    double          stretch = extent(s->sequence);
    double          pass = chunks_of(s) * (x->stage->messages / 2 * link.alpha + x->stage->message_bytes / 2 / pieces / s->tensor / stretch * link.beta);
    return bubble(c, s) * busy + 2 * (s->pipeline - 1) * pass + micro * fmax(0, 2 * pass - busy);
}

wefti_auto_candidate wefti_auto_judge(const wefti_auto_costs *c, const wefti_auto_machine *m, const weft_strategy *s) {
    wefti_auto_candidate    it = {.strategy = *s};
    const wefti_auto_split *whole = &c->tensor[0];
    int32_t                 micro = s->accumulate > 0 ? s->accumulate : 1;
    splits                  x;
    if (!find_splits(c, s, &x) || (s->pipeline > 1 && !split_of(c->pipeline, c->n_pipeline, s->pipeline * chunks_of(s))))
        return (wefti_auto_candidate){.strategy = *s, .seconds = INFINITY, .memory_bytes = INFINITY};
    wefti_auto_split own = combined(c, &x);
    double           again = s->recompute ? 1 + c->forward_share : 1, pieces = (double)s->data * extent(s->expert) * micro;
    double           parameters = (micro > 1 ? 6 : 3) * own.parameter_bytes / m->bytes; /* read twice, gradients written; and added up */
    double           computing = again * (seconds_of(m, &own.work) / pieces + own.work.ops * m->op_seconds) + parameters;
    double           tensors = again * all_reduce(link_of(m, 1, s->tensor), s->tensor, own.messages, own.message_bytes / pieces);
    double           ring = again * round_the_ring(m, s, &x, share_of(x.stage, whole), pieces);
    double           choices = again * to_experts(m, s, &x, share_of(x.stage, whole), share_of(x.stretch, whole), pieces), busy = computing + tensors + ring + choices;
    it.computing = micro * computing;
    it.tensors = micro * tensors;
    it.ring = micro * ring;
    it.choices = micro * choices;
    it.idle = idle_of(c, m, s, &x, pieces, micro, busy);
    it.gradients = exposed(c, s, m, &own, busy);
    bool parts = s->zero >= 1 || (m->shares_updates && s->divide_bytes >= 0 && alike(s) == m->ranks);
    it.updating = dealt(s, &own, own.update_bytes, parts) / m->bytes;
    it.seconds = it.computing + it.tensors + it.ring + it.choices + it.idle + it.gradients + it.updating;
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
        for (int32_t zero = asked->zero; zero <= (alike(&strategy) > 1 && asked->zero == 0 ? 3 : asked->zero); zero++)
            for (int32_t again = asked->recompute; again <= (x->costs->tensor[0].recompute_bytes >= 0); again++) {
                weft_strategy each = strategy;
                each.schedule = (weft_pipeline_order)order;
                each.zero = zero;
                each.recompute = again;
                WEFTI_TRY(consider(x, each));
            }
    return WEFT_OK;
}

static bool is_open(int32_t asked, int32_t ranks) { return asked == 0 || asked == ranks; }

/* `mesh` has the extents, and else nothing. */
static weft_status try_mesh(search *x, weft_strategy mesh) {
    const weft_strategy *asked = x->asked;
    weft_strategy        strategy = *asked;
    int64_t              shares = (int64_t)mesh.data * mesh.expert;
    if (!is_open(asked->data, mesh.data) || !is_open(asked->tensor, mesh.tensor) || !is_open(asked->pipeline, mesh.pipeline) || !is_open(asked->sequence, mesh.sequence) ||
        !is_open(asked->expert, mesh.expert) || (x->costs->rows > 0 && shares > x->costs->rows))
        return WEFT_OK;
    strategy.automatic = false;
    strategy.data = mesh.data;
    strategy.tensor = mesh.tensor;
    strategy.pipeline = mesh.pipeline;
    if (mesh.sequence > 1) strategy.sequence = mesh.sequence;
    if (mesh.expert > 1) strategy.expert = mesh.expert;
    if (asked->accumulate > 0) return vary(x, strategy);
    for (int32_t micro = 1; micro <= MOST_MICRO && (micro == 1 || micro * shares <= x->costs->rows); micro *= 2) {
        strategy.accumulate = micro;
        WEFTI_TRY(vary(x, strategy));
    }
    return WEFT_OK;
}

/* Each way to write the ranks as a product of five extents, of which data takes what the others leave. */
static weft_status try_meshes(search *x) {
    int32_t ranks = x->machine->ranks;
    for (int32_t tensor = 1; tensor <= ranks; tensor++)
        for (int32_t pipeline = 1; ranks % tensor == 0 && pipeline <= ranks / tensor; pipeline++)
            for (int32_t sequence = 1; ranks / tensor % pipeline == 0 && sequence <= ranks / tensor / pipeline; sequence++)
                for (int32_t expert = 1; ranks / tensor / pipeline % sequence == 0 && expert <= ranks / tensor / pipeline / sequence; expert++) {
                    int32_t left = ranks / tensor / pipeline / sequence;
                    if (left % expert != 0 || (sequence > 1 && !split_of(x->costs->sequence, x->costs->n_sequence, sequence)) ||
                        (expert > 1 && !split_of(x->costs->expert, x->costs->n_expert, expert)))
                        continue;
                    WEFTI_TRY(try_mesh(x, (weft_strategy){.data = left / expert, .tensor = tensor, .pipeline = pipeline, .sequence = sequence, .expert = expert}));
                }
    return WEFT_OK;
}

/* Equal ones by what is simpler: fewer kinds of splits, ZeRO, recomputation, micro-batches. */
static int complexity(const weft_strategy *s) {
    return 1000 * ((s->tensor > 1) + (s->pipeline > 1) + (s->sequence > 1) + (s->expert > 1)) + 300 * s->recompute + 100 * s->zero + 50 * (s->schedule != WEFT_1F1B) + s->accumulate;
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
    WEFTI_TRY(try_meshes(&x));
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
    if (it->ring > 0) add_time(text, ", ", it->ring, " for keys and values that go round");
    if (it->choices > 0) add_time(text, ", ", it->choices, " for choices of experts");
    if (it->idle > 0) add_time(text, ", ", it->idle, " idle in the pipeline");
    if (it->gradients > 0) add_time(text, ", ", it->gradients, " for gradients");
    add_time(text, ", ", it->updating, " updating");
}

enum { ALONG = 5 };

/* The best of those that are split along `axis` alone (0 data, 1 tensor, 2 pipeline, 3 sequence, 4 expert); NULL: none. */
static const wefti_auto_candidate *best_along(const wefti_auto_choice *choice, int axis) {
    for (int32_t i = 0; i < choice->n; i++) {
        const weft_strategy *s = &choice->candidates[i].strategy;
        bool                 along[ALONG] = {s->data > 1, s->tensor > 1, s->pipeline > 1, s->sequence > 1, s->expert > 1};
        if (along[axis] && along[0] + along[1] + along[2] + along[3] + along[4] == 1) return &choice->candidates[i];
    }
    return NULL;
}

static void add_alternative(wefti_text *text, const wefti_auto_choice *choice, const wefti_auto_machine *m, int axis) {
    static const char *const    names[] = {"data", "tensors", "a pipeline", "time", "experts"};
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
    for (int axis = 0; axis < ALONG; axis++) add_alternative(text, choice, m, axis);
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
