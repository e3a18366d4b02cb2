/* What a pull may see. */
#include <stdlib.h>
#include <string.h>

#include "parallel/server/route.h"
#include "servers.h"

static uint64_t mix(uint64_t salt, int32_t worker, int32_t push, int64_t row, int64_t column) {
    uint64_t key = wefti_mix(salt + (uint64_t)worker * 64 + (uint64_t)push);
    return wefti_mix(key ^ ((uint64_t)row << 20 | (uint64_t)column) * UINT64_C(0x9e3779b97f4a7c15));
}

static bool is_sum(const story_table *table) { return table->options.staleness == 0; }

static int64_t whole(const story_table *table, int32_t workers, int32_t worker, int32_t push, int64_t row, int64_t column) {
    if (!is_sum(table)) return column % workers == worker;
    return (int64_t)(mix(table->salt, worker, push, row, column) >> 24) - (INT64_C(1) << 39);
}
static float real(const story_table *table, int32_t workers, int32_t worker, int32_t push, int64_t row, int64_t column) {
    if (!is_sum(table)) return (float)(column % workers == worker);
    return (float)((double)(mix(table->salt, worker, push, row, column) >> 40) / 3e5 - 20); /* whose sums depend on the order */
}

void story_fill(const story_table *table, int32_t workers, int32_t worker, int32_t push, void *values_out) {
    int     pattern = table->pattern[worker][push];
    int64_t at = 0;
    for (int64_t i = 0; i < table->count[pattern]; i++)
        for (int64_t column = 0; column < table->width; column++, at++) {
            int64_t row = table->place[pattern][i];
            if (table->options.dtype == WEFT_I64) ((int64_t *)values_out)[at] = whole(table, workers, worker, push, row, column);
            else ((float *)values_out)[at] = real(table, workers, worker, push, row, column);
        }
}

static bool touches(const story_table *table, int32_t worker, int32_t push, int64_t row) {
    int pattern = table->pattern[worker][push];
    for (int64_t i = 0; i < table->count[pattern]; i++)
        if (table->place[pattern][i] == row) return true;
    return false;
}

/* How many of a worker's first pushes are in a row. */
static int64_t number(const story_table *table, int32_t worker, int64_t row, int64_t pushes) {
    int64_t sum = 0;
    for (int32_t push = 0; push < pushes && push < STORY_ALL; push++) sum += touches(table, worker, push, row);
    return sum;
}

bool story_is_lost(const story *of, int32_t rank) {
    return of->strikes && !of->spared && rank == of->fault.rank && (wefti_sim_is_gone(of->sim, rank) || wefti_sim_is_cut(of->sim, rank));
}

/* The worker whose pushes may be carried out in part; -1: none. */
static int32_t victim_of(const story *of) { return of->strikes && !of->spared && of->fault.rank < of->workers ? of->fault.rank : -1; }

static bool somebody_quit(const story *of) {
    for (int32_t rank = 0; rank < of->workers; rank++)
        if (of->rank[rank].quit && rank != victim_of(of)) return true;
    return false;
}

/* --- staleness 0 --- */

/* Adds what the workers pushed in a clock to one row: their sum in the order of ranks, then the rule. */
static void add_row(const story *of, const story_table *table, int64_t clock, int32_t victims, int64_t row, void *values) {
    int32_t victim = victim_of(of), pushes[STORY_WORKERS * STORY_PUSHES], workers[STORY_WORKERS * STORY_PUSHES], count = 0;
    for (int32_t worker = 0; worker < of->workers; worker++)
        for (int32_t i = 0; i < table->pushes; i++) {
            int32_t push = (int32_t)clock * table->pushes + i;
            if ((worker == victim && push >= victims) || !touches(table, worker, push, row)) continue;
            workers[count] = worker;
            pushes[count++] = push;
        }
    for (int64_t column = 0; column < table->width && count; column++) {
        int64_t n = 0;
        float   x = real(table, of->workers, workers[0], pushes[0], row, column);
        for (int32_t i = 0; i < count; i++) n += whole(table, of->workers, workers[i], pushes[i], row, column);
        for (int32_t i = 1; i < count; i++) x += real(table, of->workers, workers[i], pushes[i], row, column);
        if (table->options.dtype == WEFT_I64) ((int64_t *)values)[row * table->width + column] += n;
        else ((float *)values)[row * table->width + column] += x;
    }
}

/* All rows at the beginning of a clock, where the victim's first `victims` pushes count. */
static void *model_of(const story *of, story_table *table, int64_t clock, int32_t victims) {
    void  **slot = &table->model[clock][victims];
    size_t  bytes = (size_t)(table->rows * table->width) * weft_dtype_bytes(table->options.dtype);
    int32_t before = clock ? (int32_t)(clock - 1) * table->pushes : 0;
    if (*slot) return *slot;
    *slot = calloc(1, bytes);
    if (!*slot) abort();
    if (clock == 0) return *slot;
    memcpy(*slot, model_of(of, table, clock - 1, victims < before ? victims : before), bytes);
    for (int64_t row = 0; row < table->rows; row++) add_row(of, table, clock - 1, victims, row, *slot);
    return *slot;
}

static bool equals(const story_table *table, int pattern, const void *values, const void *model, int32_t server) {
    size_t bytes = (size_t)table->width * weft_dtype_bytes(table->options.dtype);
    for (int64_t i = 0; i < table->count[pattern]; i++) {
        int64_t row = table->place[pattern][i];
        if (table->server_of[row] == server && memcmp((const uint8_t *)values + (size_t)i * bytes, (const uint8_t *)model + (size_t)row * bytes, bytes) != 0)
            return false;
    }
    return true;
}

static weft_status wrong(const story_table *table, int32_t me, int64_t clock, int32_t server, const char *what) {
    return wefti_fail(WEFT_E_INTERNAL, "table '%s' (staleness %d, %s), rank %d in clock %lld, rows of server %d: %s", table->name,
                      (int)table->options.staleness, weft_dtype_name(table->options.dtype), (int)me, (long long)clock, (int)server, what);
}

static weft_status check_sum(story *of, story_table *table, int32_t me, int64_t clock, int pattern, const void *values) {
    int32_t victim = victim_of(of), all = (int32_t)clock * table->pushes;
    for (int32_t server = 0; server < of->servers; server++) {
        if (victim < 0) {
            if (!equals(table, pattern, values, model_of(of, table, clock, all), server)) return wrong(table, me, clock, server, "not the sum of the clocks before");
            continue;
        }
        const story_tally *tally = &table->tally[victim];
        uint32_t           may = 0;
        for (int32_t k = tally->ended < all ? tally->ended : all; k <= tally->started && k <= all; k++)
            if (equals(table, pattern, values, model_of(of, table, clock, k), server)) may |= k == all ? UINT32_MAX << k : UINT32_C(1) << k;
        if (!may) return wrong(table, me, clock, server, "not the sum of the clocks before, whatever is left of the victim's");
        table->possible[server] &= may;
        if (!table->possible[server]) return wrong(table, me, clock, server, "a push of the victim came after its clock, or in half");
    }
    return WEFT_OK;
}

/* --- others --- */

static weft_status check_count(story *of, story_table *table, int32_t me, int64_t clock, int64_t row, int32_t worker, int64_t count, bool final) {
    const story_tally *tally = &table->tally[worker];
    int32_t            staleness = table->options.staleness, victim = victim_of(of);
    int64_t            least = staleness < 0 ? 0 : (clock - staleness) * table->pushes, most = tally->started;
    if (worker == victim && least > tally->ended) least = tally->ended;
    if (final) least = tally->ended;
    if (worker == me) least = most; /* its own */
    least = number(table, worker, row, least);
    most = number(table, worker, row, most);
    if (count >= least && count <= most) return WEFT_OK;
    return wefti_fail(WEFT_E_INTERNAL, "table '%s' (staleness %d), rank %d in clock %lld%s: row %lld has %lld pushes of rank %d; %lld to %lld are right", table->name,
                      (int)staleness, (int)me, (long long)clock, final ? " at the end" : "", (long long)row, (long long)count, (int)worker, (long long)least,
                      (long long)most);
}

static weft_status check_row(story *of, story_table *table, int32_t me, int64_t clock, int64_t row, const void *values, size_t at, bool final) {
    int32_t victim = victim_of(of);
    for (int64_t column = 0; column < table->width; column++) {
        int32_t worker = (int32_t)(column % of->workers);
        int64_t count = table->options.dtype == WEFT_I64 ? ((const int64_t *)values)[at + (size_t)column] : (int64_t)((const float *)values)[at + (size_t)column];
        WEFTI_TRY(check_count(of, table, me, clock, row, worker, count, final));
        if (!final || worker != victim || worker == me) continue;
        uint32_t may = 0;
        for (int32_t k = table->tally[victim].ended; k <= table->tally[victim].started; k++)
            if (number(table, victim, row, k) == count) may |= UINT32_C(1) << k;
        table->possible[table->server_of[row]] &= may;
        if (!table->possible[table->server_of[row]]) return wrong(table, me, clock, table->server_of[row], "a push of the victim is there in half");
    }
    return WEFT_OK;
}

/* Nobody who is there is further behind than allowed. */
static weft_status check_pace(const story *of, const story_table *table, int32_t me, int64_t clock) {
    for (int32_t worker = 0; worker < of->workers && table->options.staleness >= 0; worker++)
        if (table->tally[worker].clock + table->options.staleness < clock && !story_is_lost(of, worker))
            return wefti_fail(WEFT_E_INTERNAL, "table '%s' (staleness %d): rank %d reads in clock %lld while rank %d is in %lld", table->name,
                              (int)table->options.staleness, (int)me, (long long)clock, (int)worker, (long long)table->tally[worker].clock);
    return WEFT_OK;
}

weft_status story_check(story *of, story_table *table, int32_t me, int64_t clock, int pattern, const void *values, bool final) {
    if (table->count[pattern] == 0) return WEFT_OK; /* no server was asked */
    if (somebody_quit(of)) return WEFT_OK; /* a server is lost, and with it whoever was told first */
    WEFTI_TRY(check_pace(of, table, me, clock));
    if (is_sum(table)) return check_sum(of, table, me, clock, pattern, values);
    for (int64_t i = 0; i < table->count[pattern]; i++)
        WEFTI_TRY(check_row(of, table, me, clock, table->place[pattern][i], values, (size_t)(i * table->width), final));
    return WEFT_OK;
}
