/* A step on the simulated wire: each rank is a fiber that opens the transport and groups that programs open, sleeps where it would compute, and sends what it would send by
 * the library's own collectives, which go on while it sleeps. Two sums over ranks along tensor in each layer and direction are waited for; gradients are summed, layer by layer, while the
 * backward pass goes on (zero 3: scattered after each micro-batch, and parameters gathered a layer ahead, twice); stages work in the order of interleaved 1F1B
 * (Narayanan et al. 2021) and have asked for what they receive a pass ahead.
 *
 * All ranks share their buffers: numbers are looked at elsewhere (tests/simulation). Short messages over slow links take as long as long ones over fast links. */
#include "paper_steps.h"

#include <stdio.h>
#include <stdlib.h>

#include "core/iface/collective.h"
#include "transport/sim.h"
#include "transport/transport.h"
#include "transport/tune.h"

enum { FLYING = 24, SLICE_NS = 100000, LINE_UP_NS = 100000 };
typedef enum group_of { ALONG_TENSOR, ALONG_DATA, FORTH, BACK, GROUPS } group_of;

typedef struct stage_play {
    const paper_step *step;
    wefti_sim        *sim;
    int32_t           size, opened, ready, failed;
    uint64_t          begin_ns, end_ns;
    uint8_t          *from, *to; /* all ranks' */
} stage_play;

typedef struct player {
    stage_play       *play;
    const paper_step *step;
    int32_t           rank, stage; /* along pipeline */
    wefti_transport  *transport;
    const wefti_host *host;
    wefti_group      *groups[GROUPS];
    wefti_collective *flying[FLYING]; /* from `oldest` on, around */
    int32_t           oldest, n_flying;
    wefti_collective *gathered, *coming; /* the next layer's parameters; what the next pass receives */
} player;

typedef struct pass { bool back; int32_t chunk, micro; } pass;

/* --- messages --- */

static weft_status progress(player *p) {
    for (int g = 0; g < GROUPS; g++)
        if (p->groups[g]) WEFTI_TRY(p->groups[g]->engine->progress(p->groups[g], wefti_host_now(p->host)));
    return WEFT_OK;
}

static weft_status finish(player *p, wefti_collective **operation) {
    weft_status status = *operation ? WEFT_E_AGAIN : WEFT_OK;
    while (status == WEFT_E_AGAIN) {
        status = wefti_collective_wait(*operation, SLICE_NS);
        if (status == WEFT_E_AGAIN) WEFTI_TRY(progress(p));
    }
    *operation = NULL;
    return status;
}

static weft_status finish_oldest(player *p) {
    WEFTI_TRY(finish(p, &p->flying[p->oldest]));
    p->oldest = (p->oldest + 1) % FLYING;
    p->n_flying--;
    return WEFT_OK;
}

/* `bytes` of all members together; `root` of messages. */
static weft_status begin(player *p, group_of along, wefti_collective_kind kind, double bytes, int32_t root, wefti_collective **operation_out) {
    wefti_group *group = p->groups[along];
    bool         parts = kind == WEFTI_REDUCE_SCATTER || kind == WEFTI_ALLGATHER;
    size_t       count = (size_t)(bytes / p->step->shrink / sizeof(int32_t) / (parts ? group->size : 1)) + 1;
    return wefti_collective_start(group, &(wefti_collective_call){.kind = kind, .dtype = WEFT_I32, .op = WEFTI_REDUCE_SUM, .root = root, .send = p->play->from,
                                                                  .receive = p->play->to, .count = count}, operation_out);
}

/* Nobody waits for it before the end of the step. */
static weft_status let_fly(player *p, group_of along, wefti_collective_kind kind, double bytes, int32_t root) {
    if (p->n_flying == FLYING) WEFTI_TRY(finish_oldest(p));
    WEFTI_TRY(begin(p, along, kind, bytes, root, &p->flying[(p->oldest + p->n_flying) % FLYING]));
    p->n_flying++;
    return WEFT_OK;
}

/* --- a layer --- */

static weft_status compute(player *p, double seconds) {
    uint64_t now_ns, until_ns = wefti_host_now(p->host) + (uint64_t)(seconds * 1e9);
    while ((now_ns = wefti_host_now(p->host)) < until_ns) {
        p->host->sleep(p->host->context, until_ns - now_ns < SLICE_NS ? until_ns - now_ns : SLICE_NS);
        WEFTI_TRY(progress(p));
    }
    return WEFT_OK;
}

static weft_status half_a_layer(player *p, double seconds) {
    wefti_collective *sum = NULL;
    WEFTI_TRY(compute(p, seconds / 2));
    if (!p->groups[ALONG_TENSOR]) return WEFT_OK;
    WEFTI_TRY(begin(p, ALONG_TENSOR, WEFTI_ALLREDUCE, p->step->sum_bytes, 0, &sum));
    return finish(p, &sum);
}

static weft_status layer(player *p, const pass *at) {
    const paper_step *s = p->step;
    double            seconds = at->back ? s->backward_s : s->forward_s;
    bool              sums = at->back && p->groups[ALONG_DATA] && (s->zero >= 2 || at->micro == s->micro - 1);
    if (s->zero == 3 && p->groups[ALONG_DATA]) {
        if (!p->gathered) WEFTI_TRY(begin(p, ALONG_DATA, WEFTI_ALLGATHER, s->layer_bytes, 0, &p->gathered));
        WEFTI_TRY(finish(p, &p->gathered));
        WEFTI_TRY(begin(p, ALONG_DATA, WEFTI_ALLGATHER, s->layer_bytes, 0, &p->gathered));
    }
    WEFTI_TRY(half_a_layer(p, seconds));
    WEFTI_TRY(half_a_layer(p, seconds));
    return sums ? let_fly(p, ALONG_DATA, s->zero > 0 ? WEFTI_REDUCE_SCATTER : WEFTI_ALLREDUCE, s->layer_bytes, 0) : WEFT_OK;
}

/* --- passes --- */

static pass pass_at(const paper_step *s, int32_t number, bool back) {
    int32_t round = s->pipeline * s->chunks, chunk = number / s->pipeline % s->chunks;
    return (pass){back, back ? s->chunks - 1 - chunk : chunk, number / round * s->pipeline + number % s->pipeline};
}

/* Forward passes until the last stage can be reached, then by turns. */
static int32_t order_of(const paper_step *s, int32_t stage, pass *out) {
    int32_t all = s->micro * s->chunks, behind = s->pipeline - 1 - stage, n = 0;
    int32_t first = s->chunks == 1 ? behind : 2 * behind + (s->chunks - 1) * s->pipeline;
    if (first > all) first = all;
    for (int32_t i = 0; i < all + first; i++) {
        if (i < all) out[n++] = pass_at(s, i, false);
        if (i >= first) out[n++] = pass_at(s, i - first, true);
    }
    return n;
}

/* Whether there is a stage before the pass's, or behind it. */
static bool has_neighbour(const player *p, const pass *at, bool behind) {
    int32_t place = at->chunk * p->step->pipeline + p->stage;
    return behind ? place < p->step->chunks * p->step->pipeline - 1 : place > 0;
}

static weft_status receive_ahead(player *p, const pass *at) {
    int32_t stages = p->step->pipeline, from = (p->stage + (at->back ? 1 : stages - 1)) % stages;
    return has_neighbour(p, at, at->back) ? begin(p, at->back ? BACK : FORTH, WEFTI_RECEIVE, p->step->stage_bytes, from, &p->coming) : WEFT_OK;
}

static weft_status run_passes(player *p, const pass *passes, int32_t n) {
    const paper_step *s = p->step;
    WEFTI_TRY(receive_ahead(p, &passes[0]));
    for (int32_t i = 0; i < n; i++) {
        WEFTI_TRY(finish(p, &p->coming));
        if (i + 1 < n) WEFTI_TRY(receive_ahead(p, &passes[i + 1]));
        for (int32_t l = 0; l < s->layers / s->pipeline / s->chunks; l++) WEFTI_TRY(layer(p, &passes[i]));
        int32_t to = (p->stage + (passes[i].back ? s->pipeline - 1 : 1)) % s->pipeline;
        if (has_neighbour(p, &passes[i], !passes[i].back)) WEFTI_TRY(let_fly(p, passes[i].back ? BACK : FORTH, WEFTI_SEND, s->stage_bytes, to));
    }
    while (p->n_flying > 0) WEFTI_TRY(finish_oldest(p));
    WEFTI_TRY(finish(p, &p->gathered));
    WEFTI_TRY(compute(p, s->update_s));
    for (int32_t l = 0; l < s->layers / s->pipeline && (s->zero == 1 || s->zero == 2); l++)
        WEFTI_TRY(let_fly(p, ALONG_DATA, WEFTI_ALLGATHER, s->layer_bytes, 0));
    while (p->n_flying > 0) WEFTI_TRY(finish_oldest(p));
    return WEFT_OK;
}

/* --- ranks --- */

/* Members are `apart` ranks from each other, the first `from`. */
static weft_status open_group(player *p, group_of along, int32_t from, int32_t apart, int32_t size) {
    int32_t ranks[1024], nodes[1024];
    if (size == 1) return WEFT_OK;
    for (int32_t i = 0; i < size; i++) {
        ranks[i] = from + i * apart;
        nodes[i] = ranks[i] / p->step->per_host;
    }
    const wefti_group_options options = {.wire = p->transport->wire, .ranks = ranks, .size = size, .index = (p->rank - from) / apart, .id = (uint16_t)(10 + along),
                                         .in_flight = FLYING + 4, .timeout_ns = p->transport->timeout_ns, .reducer = p->transport->reducer, .fault = p->transport->fault, .nodes = nodes};
    wefti_tuning tuning;
    WEFTI_TRY(wefti_collective_engine_weft()->open(&options, &p->groups[along]));
    if (along > ALONG_DATA) return WEFT_OK;
    WEFTI_TRY(wefti_tuning_measure(p->groups[along], &tuning, NULL)); /* as it is before programs use them */
    wefti_tuning_apply(p->groups[along], &tuning);
    return WEFT_OK;
}

static weft_status line_up(player *p) {
    stage_play *play = p->play;
    if (++play->ready == play->size) play->begin_ns = wefti_host_now(p->host) + 2 * LINE_UP_NS;
    while (play->ready < play->size) p->host->sleep(p->host->context, LINE_UP_NS);
    uint64_t now_ns = wefti_host_now(p->host);
    if (now_ns < play->begin_ns) p->host->sleep(p->host->context, play->begin_ns - now_ns);
    return WEFT_OK;
}

static weft_status take_part(player *p) {
    const paper_step *s = p->step;
    int32_t           t = p->rank % s->tensor, of_stage = s->tensor * s->data, first = p->rank / of_stage * of_stage;
    pass             *passes = calloc((size_t)(2 * s->micro * s->chunks), sizeof *passes);
    if (!passes) return wefti_fail(WEFT_E_NO_MEMORY, "no memory for a step's passes");
    weft_status status = open_group(p, ALONG_TENSOR, p->rank - t, 1, s->tensor);
    if (status == WEFT_OK) status = open_group(p, ALONG_DATA, first + t, s->tensor, s->data);
    if (status == WEFT_OK) status = open_group(p, FORTH, p->rank % of_stage, of_stage, s->pipeline);
    if (status == WEFT_OK) status = open_group(p, BACK, p->rank % of_stage, of_stage, s->pipeline);
    if (status == WEFT_OK) status = line_up(p);
    if (status == WEFT_OK) status = run_passes(p, passes, order_of(s, p->stage, passes));
    free(passes);
    return status;
}

static void run_rank(void *context) {
    player     *p = context;
    stage_play *play = p->play;
    const wefti_transport_options options = {.host = p->host, .network = wefti_sim_network(play->sim, p->rank), .rank = p->rank, .size = play->size,
                                             .timeout_ns = 600 * WEFTI_SECOND_NS, .reducer = wefti_sim_reducer(play->sim)};
    weft_status status = wefti_transport_open(&options, &p->transport);
    play->opened++;
    while (play->opened < play->size) p->host->sleep(p->host->context, WEFTI_MILLISECOND_NS);
    if (status == WEFT_OK) status = take_part(p);
    uint64_t now_ns = wefti_host_now(p->host);
    if (now_ns > play->end_ns) play->end_ns = now_ns;
    if (status != WEFT_OK && !play->failed++) fprintf(stderr, "rank %d: %s: %s\n", (int)p->rank, weft_status_name(status), weft_error_message());
    wefti_sim_spare(play->sim, p->rank);
    for (int g = 0; g < GROUPS; g++) wefti_collective_engine_weft()->close(p->groups[g]);
    wefti_transport_close(p->transport);
}

static weft_status play_all(stage_play *play, player *players, const int32_t *nodes) {
    const paper_step       *s = play->step;
    const wefti_sim_options options = {.seed = 1, .size = play->size, .nodes = nodes, .near = {(uint64_t)(s->near_s * 1e9), s->near_bytes / 1e9 / s->shrink},
                                       .far = {(uint64_t)(s->far_s * 1e9), s->far_bytes / 1e9 / s->shrink}, .core_bytes_per_ns = s->memory_bytes / 1e9 / s->shrink};
    WEFTI_TRY(wefti_sim_create(&options, &play->sim));
    for (int32_t rank = 0; rank < play->size; rank++) {
        players[rank] = (player){.play = play, .step = s, .rank = rank, .stage = rank / (s->tensor * s->data), .host = wefti_sim_host(play->sim, rank)};
        WEFTI_TRY(wefti_sim_start(play->sim, rank, run_rank, &players[rank]));
    }
    return wefti_sim_run(play->sim);
}

static double larger(double a, double b) { return a > b ? a : b; }

double paper_step_play(const paper_step *step) {
    stage_play play = {.step = step, .size = step->data * step->tensor * step->pipeline};
    size_t     bytes = (size_t)(larger(step->layer_bytes, larger(step->sum_bytes, step->stage_bytes)) / step->shrink) + 8 * (size_t)play.size + 64;
    player    *players = calloc((size_t)play.size, sizeof *players);
    int32_t   *nodes = calloc((size_t)play.size, sizeof *nodes);
    play.from = calloc(1, bytes);
    play.to = calloc(1, bytes);
    if (!players || !nodes || !play.from || !play.to || play.size > 1024) {
        fprintf(stderr, "%d ranks: up to 1,024 are played, and there must be memory\n", (int)play.size);
        exit(1);
    }
    for (int32_t rank = 0; rank < play.size; rank++) nodes[rank] = rank / step->per_host;
    weft_status status = play_all(&play, players, nodes);
    if (status != WEFT_OK || play.failed) {
        fprintf(stderr, "%d ranks: %s\n", (int)play.size, status == WEFT_OK ? "a rank failed" : weft_error_message());
        exit(1);
    }
    wefti_sim_release(play.sim);
    free(players);
    free(nodes);
    free(play.from);
    free(play.to);
    return (double)(play.end_ns - play.begin_ns) / 1e9;
}
