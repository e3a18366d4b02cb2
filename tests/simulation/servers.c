/* The ranks of a story, and its end. */
#include "servers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/server/route.h"

/* --- making --- */

static uint64_t draw(uint64_t *random, uint64_t below) { /* xorshift64* */
    *random ^= *random >> 12;
    *random ^= *random << 25;
    *random ^= *random >> 27;
    return (*random * UINT64_C(2685821657736338717) >> 11) % below;
}
uint64_t story_draw(story *of, uint64_t below) { return draw(&of->random, below); }

static bool in_pattern(int pattern, int64_t row, int64_t rows) {
    return pattern == 0 || (pattern == 1 && row % 2 == 0) || (pattern == 2 && row % 3 == 1) || (pattern == 3 && row <= rows / 4);
}

static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

void story_add_table(story *of, weft_table_options options, int64_t rows, int64_t width) {
    story_table *table = &of->table[of->tables++];
    *table = (story_table){.options = options, .rows = rows, .width = width, .salt = story_draw(of, UINT64_C(1) << 48),
                           .pushes = 1 + (int32_t)story_draw(of, STORY_PUSHES), .both = story_draw(of, 3) == 0, .lists = story_draw(of, 3) == 0,
                           .overlap = story_draw(of, 2)};
    snprintf(table->name, sizeof table->name, "table %d", (int)of->tables);
    bool hash = options.split == WEFT_SPLIT_HASH || (options.split == WEFT_SPLIT_DEFAULT && options.sparse);
    table->options.width = width;
    table->options.rows = !options.sparse ? rows : hash ? 0 : 5 * rows + 1;
    for (int64_t i = 0; i < rows; i++)
        table->keys[i] = !options.sparse ? (uint64_t)i : hash ? wefti_mix(table->salt + (uint64_t)i) : (uint64_t)(5 * i + 1);
    qsort(table->keys, (size_t)rows, sizeof *table->keys, by_size);
    for (int64_t i = 0; i < rows; i++) {
        table->server_of[i] = hash ? wefti_route_hash(table->keys[i], of->servers) : wefti_route_range(table->keys[i], (uint64_t)table->options.rows, of->servers);
        for (int pattern = 0; pattern < STORY_PATTERNS; pattern++) {
            if (!in_pattern(pattern, i, rows)) continue;
            table->place[pattern][table->count[pattern]] = i;
            table->list[pattern][table->count[pattern]++] = table->keys[i];
        }
    }
    for (int32_t worker = 0; worker < STORY_WORKERS; worker++)
        for (int i = 0; i < STORY_ALL; i++) table->pattern[worker][i] = (int8_t)story_draw(of, STORY_PATTERNS);
}

static void make_roles(story *of, bool replicated) {
    of->servers = 1 + replicated + (int32_t)story_draw(of, replicated ? 2 : 3);
    of->roles.dedicated = story_draw(of, 2) || replicated;
    of->roles.replicas = replicated;
    of->workers = 2 + (int32_t)story_draw(of, STORY_WORKERS - 1);
    if (!of->roles.dedicated && of->servers > of->workers) of->servers = of->workers;
    of->size = of->roles.dedicated ? of->workers + of->servers : of->workers;
    of->first_server = of->size - of->servers;
    of->roles.servers = of->servers;
    of->roles.timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS;
}

static void make_fault(story *of, bool replicated) {
    static const wefti_sim_act acts[] = {WEFTI_SIM_KILL, WEFTI_SIM_KILL, WEFTI_SIM_KILL, WEFTI_SIM_STOP, WEFTI_SIM_CUT};
    of->strikes = story_draw(of, 3) != 0;
    of->fault = (wefti_sim_fault){.act = acts[story_draw(of, WEFTI_COUNT(acts))], .rank = (int32_t)story_draw(of, (uint64_t)of->size)};
    if (replicated) { /* a server more often than a worker */
        of->fault.act = WEFTI_SIM_KILL;
        if (story_draw(of, 2)) of->fault.rank = of->first_server + (int32_t)story_draw(of, (uint64_t)of->servers);
    }
    if (story_draw(of, 2)) of->fault.message = 1 + story_draw(of, 60);
    else of->fault.at_ns = story_draw(of, (uint64_t)of->clocks * (200000 + of->pause_ns));
    if (of->fault.act == WEFTI_SIM_STOP && story_draw(of, 3)) of->fault.for_ns = 1 + story_draw(of, WEFTI_SECOND_NS);
    of->spared = of->fault.act == WEFTI_SIM_STOP && of->fault.for_ns;
}

static void make(story *of, uint64_t seed, bool replicated) {
    static const weft_dtype         dtypes[] = {WEFT_F32, WEFT_I64};
    static const int32_t            stalenesses[] = {0, 0, 1, 3, WEFT_TABLE_ASYNCHRONOUS};
    static const size_t             most[] = {0, 5000, 30000, 70000};
    *of = (story){.seed = seed, .random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1};
    for (int i = 0; i < 8; i++) (void)story_draw(of, 2);
    make_roles(of, replicated);
    of->options = (wefti_sim_options){.seed = seed, .size = of->size, .limit_ns = 300 * WEFTI_SECOND_NS, .most_bytes = most[story_draw(of, WEFTI_COUNT(most))]};
    if (story_draw(of, 3)) of->options.jitter_ns = story_draw(of, 200000);
    if (story_draw(of, 3) == 0) of->options.lost = 1 + (uint32_t)story_draw(of, 20000);
    of->options.again_ns = 1 + story_draw(of, 100 * WEFTI_MILLISECOND_NS);
    of->clocks = 1 + (int32_t)story_draw(of, STORY_CLOCKS);
    of->pause_ns = story_draw(of, 2) ? 0 : 1 + story_draw(of, 2 * WEFTI_MILLISECOND_NS);
    of->repeats = story_draw(of, 2);
    for (int32_t tables = 1 + (story_draw(of, 3) == 0); tables > 0; tables--) {
        weft_table_options options = {.dtype = dtypes[story_draw(of, 2)], .staleness = stalenesses[story_draw(of, WEFTI_COUNT(stalenesses))],
                                      .sparse = story_draw(of, 2)};
        options.split = (weft_table_split)story_draw(of, options.sparse ? 3 : 2);
        bool large = story_draw(of, 8) == 0;
        story_add_table(of, options, 1 + (int64_t)story_draw(of, STORY_ROWS), of->workers + (int64_t)story_draw(of, large ? 500 : 12));
    }
    make_fault(of, replicated);
}

void story_make(story *of, uint64_t seed) { make(of, seed, false); }
void story_make_replicated(story *of, uint64_t seed) { make(of, seed, true); }

void story_make_entries(story *of, uint64_t seed) {
    make(of, seed, seed % 2);
    for (int32_t t = 0; t < of->tables; t++) {
        uint64_t how = wefti_mix(seed * STORY_TABLES + (uint64_t)t) % 4;
        of->table[t].entries = how != 1;
        of->table[t].options.hybrid = how != 0;
    }
}

/* --- a worker --- */

static weft_status open_wire(weft_world *world, const char *what, wefti_wire **wire_out) { return wefti_transport_open_wire(world->transport, what, wire_out); }
static weft_status exchange(weft_world *world, const char *what, const void *mine, size_t bytes, void *all_out) {
    return wefti_transport_exchange(world->transport, what, mine, bytes, all_out);
}

typedef struct worker {
    story      *of;
    story_rank *mine;
    int32_t     rank;
    weft_table *table[STORY_TABLES];
    weft_keys  *keys[STORY_TABLES][STORY_PATTERNS];
    struct {
        weft_request *request; /* NULL: none */
        int64_t       clock;
        int           pattern;
        uint64_t      began_ns;
    } ahead[STORY_TABLES];
} worker;

static uint64_t now_of(const worker *self) { return wefti_host_now(self->mine->links.host); }

static void rest(const worker *self, uint64_t for_ns) {
    const wefti_host *host = self->mine->links.host;
    if (for_ns) host->sleep(host->context, for_ns);
}

static bool is_zero(const story_table *table, const void *value) {
    return table->options.dtype == WEFT_I64 ? *(const int64_t *)value == 0 : *(const float *)value == 0;
}

/* Rows of a pattern as entries: what is not zero of them. */
static weft_entries pack(const story_table *table, int pattern, const uint8_t *values, uint8_t *packed) {
    const size_t  element = weft_dtype_bytes(table->options.dtype);
    const int64_t rows = table->count[pattern], elements = rows * table->width;
    uint32_t     *columns = (uint32_t *)(void *)(packed + (size_t)elements * element), *counts = columns + elements;
    int64_t       at = 0;
    for (int64_t i = 0; i < elements; i++) {
        const uint8_t *value = values + (size_t)i * element;
        if (i % table->width == 0) counts[i / table->width] = 0;
        if (is_zero(table, value)) continue;
        memcpy(packed + (size_t)at * element, value, element);
        columns[at++] = (uint32_t)(i % table->width);
        counts[i / table->width]++;
    }
    return (weft_entries){.counts = counts, .columns = columns, .values = packed};
}

/* What came as entries, as rows in `receive`. */
static void unpack(worker *self, int32_t t, int pattern) {
    const story_table  *table = &self->of->table[t];
    const weft_entries *from = &self->mine->pulled;
    const size_t        element = weft_dtype_bytes(table->options.dtype);
    int64_t             at = 0;
    if (!table->entries) return;
    memset(self->mine->receive, 0, (size_t)(table->count[pattern] * table->width) * element);
    for (int64_t row = 0; row < table->count[pattern]; row++)
        for (uint32_t i = 0; i < from->counts[row]; i++, at++)
            memcpy(self->mine->receive + (size_t)(row * table->width + from->columns[at]) * element, (const uint8_t *)from->values + (size_t)at * element, element);
}

static weft_status start(worker *self, int32_t t, weft_request_kind kind, int pattern, const void *send, void *receive, weft_request **request_out) {
    const story_table *table = &self->of->table[t];
    weft_table_call    call = {.kind = kind, .send = send, .receive = receive};
    bool               whole = !table->options.sparse && pattern == 0;
    if (table->lists && !whole) {
        call.rows = table->list[pattern];
        call.row_count = table->count[pattern];
    } else if (!whole) call.keys = self->keys[t][pattern];
    weft_entries entries;
    for (int i = 0; i < STORY_PUSHES && table->entries && send; i++)
        if (send == self->mine->send[i]) entries = pack(table, pattern, send, self->mine->packed[i]);
    if (table->entries && send) call.entries = &entries;
    if (table->entries && kind != WEFT_PUSH) call.pulled = &self->mine->pulled;
    return weft_table_start_call(self->table[t], &call, request_out);
}

static weft_status end(worker *self, weft_request *request, uint64_t began_ns) {
    weft_status status = weft_request_wait(request, 0);
    uint64_t    took_ns = now_of(self) - began_ns;
    if (took_ns > self->mine->longest_ns) self->mine->longest_ns = took_ns;
    return status;
}

static weft_status pull(worker *self, int32_t t, int pattern, bool final) {
    weft_request *request = NULL;
    uint64_t      began_ns = now_of(self);
    WEFTI_TRY(start(self, t, WEFT_PULL, pattern, NULL, self->mine->receive, &request));
    WEFTI_TRY(end(self, request, began_ns));
    unpack(self, t, pattern);
    return story_check(self->of, &self->of->table[t], self->rank, weft_table_time(self->table[t]), pattern, self->mine->receive, final);
}

/* One that is under way while the worker ends the clock that it is in: it sees the clocks before all the same. */
static weft_status begin_ahead(worker *self, int32_t t) {
    int pattern = (int)draw(&self->mine->random, STORY_PATTERNS);
    self->ahead[t].pattern = pattern;
    self->ahead[t].clock = weft_table_time(self->table[t]);
    self->ahead[t].began_ns = now_of(self);
    return start(self, t, WEFT_PULL, pattern, NULL, self->mine->ahead[t], &self->ahead[t].request);
}

static weft_status end_ahead(worker *self, int32_t t) {
    weft_request *request = self->ahead[t].request;
    self->ahead[t].request = NULL;
    if (!request) return WEFT_OK;
    WEFTI_TRY(end(self, request, self->ahead[t].began_ns));
    return story_check(self->of, &self->of->table[t], self->rank, self->ahead[t].clock, self->ahead[t].pattern, self->mine->ahead[t], false);
}

static void sent_again(weft_server *server, server_event *event) {
    (void)server;
    event->owner = NULL;
}

/* The number of the last request to the first server comes again, as a push of one row: it changes nothing. */
static void send_again(worker *self, int32_t t) {
    static const uint64_t one[600] = {1};
    const story_table    *table = &self->of->table[t];
    weft_server          *server = self->mine->server;
    int64_t               row = 0;
    while (row < table->rows && table->server_of[row] != 0) row++;
    size_t bytes = (size_t)table->width * weft_dtype_bytes(table->options.dtype);
    if (row == table->rows || self->mine->again.owner || sizeof(wefti_server_frame) + 8 + bytes > sizeof self->mine->frame) return;
    wefti_server_frame head = {.magic = WEFTI_SERVER_MAGIC, .kind = WEFTI_SERVER_PUSH, .flags = WEFTI_SERVER_LISTED | WEFTI_SERVER_INLINE,
                               .dtype = (uint8_t)table->options.dtype, .slot = UINT32_MAX - server->next_slot, .table = self->table[t]->id, .count = 1,
                               .width = (uint64_t)table->width, .timeout_ns = WEFTI_SECOND_NS, .number = server->numbers[0], .body_bytes = 8 + bytes};
    memcpy(self->mine->frame, &head, sizeof head);
    memcpy(self->mine->frame + sizeof head, &table->keys[row], 8);
    memcpy(self->mine->frame + sizeof head + 8, one, bytes);
    self->mine->again.op = wefti_wire_send(server->first_server, wefti_server_tag(WEFTI_TAG_REQUEST, 0), self->mine->frame, sizeof head + 8 + bytes);
    self->mine->again.done = sent_again;
    self->mine->again.owner = self;
    pthread_mutex_lock(&server->lock);
    wefti_server_post(server, &self->mine->again);
    pthread_mutex_unlock(&server->lock);
}

/* The pushes of a clock: one after the other, or all started before the first is waited for. */
static weft_status push_all(worker *self, int32_t t, int32_t clock) {
    story        *of = self->of;
    story_table  *table = &of->table[t];
    story_tally  *tally = &table->tally[self->rank];
    weft_request *requests[STORY_PUSHES];
    uint64_t      began_ns = now_of(self);
    weft_status   status = WEFT_OK;
    int32_t       started = 0, ended = 0, first = clock * table->pushes;
    /* Of several that are under way at once a later one may be whole where an earlier one is not; the model knows first pushes only. */
    bool          overlap = table->overlap && !(of->strikes && of->fault.rank == self->rank);
    while (status == WEFT_OK && started < table->pushes) {
        bool both = table->both && started == table->pushes - 1;
        story_fill(table, of->workers, self->rank, first + started, self->mine->send[started]);
        tally->started = first + started + 1;
        if (both && table->options.staleness == 0) tally->clock++;
        status = start(self, t, both ? WEFT_PUSH_PULL : WEFT_PUSH, table->pattern[self->rank][first + started], self->mine->send[started],
                       self->mine->receive, &requests[started]);
        if (status == WEFT_OK) started++;
        while (ended < started && (!overlap || status != WEFT_OK || started == table->pushes)) {
            weft_status how = end(self, requests[ended], began_ns);
            if (how == WEFT_OK && status == WEFT_OK) tally->ended = first + ended + 1;
            if (status == WEFT_OK) status = how;
            ended++;
        }
    }
    return status;
}

static weft_status one_clock(worker *self, int32_t t, int32_t clock) {
    story       *of = self->of;
    story_table *table = &of->table[t];
    bool         sum = table->options.staleness == 0;
    int          last = table->pattern[self->rank][(clock + 1) * table->pushes - 1];
    WEFTI_TRY(push_all(self, t, clock));
    if (table->both) unpack(self, t, last);
    if (table->both) WEFTI_TRY(story_check(of, table, self->rank, weft_table_time(self->table[t]), last, self->mine->receive, false));
    if (of->repeats) send_again(self, t);
    rest(self, draw(&self->mine->random, of->pause_ns + 1));
    if (!sum && draw(&self->mine->random, 2)) WEFTI_TRY(pull(self, t, (int)draw(&self->mine->random, STORY_PATTERNS), false));
    if (!table->both || !sum) {
        table->tally[self->rank].clock++;
        WEFTI_TRY(weft_table_clock(self->table[t]));
    }
    WEFTI_TRY(end_ahead(self, t));
    if (draw(&self->mine->random, 4)) WEFTI_TRY(pull(self, t, (int)draw(&self->mine->random, STORY_PATTERNS), false));
    return sum && !table->entries && draw(&self->mine->random, 2) ? begin_ahead(self, t) : WEFT_OK;
}

static weft_status open_table(worker *self, int32_t t) {
    story_table *table = &self->of->table[t];
    weft_table_options options = table->options;
    options.name = table->name;
    WEFTI_TRY(weft_table_create(self->mine->server, &options, &self->table[t]));
    for (int pattern = 0; pattern < STORY_PATTERNS; pattern++)
        WEFTI_TRY(weft_keys_create(self->table[t], table->list[pattern], table->count[pattern], &self->keys[t][pattern]));
    return WEFT_OK;
}

static weft_status settle(worker *self) {
    story *of = self->of;
    bool   lost = false;
    self->mine->settled = true;
    for (int32_t rank = 0; rank < of->workers; rank++)
        while (!of->rank[rank].settled && !of->rank[rank].quit && !story_is_lost(of, rank)) {
            WEFTI_TRY(weft_server_poll(self->mine->server));
            rest(self, WEFTI_MILLISECOND_NS);
        }
    for (int32_t rank = 0; rank < of->size; rank++) lost = lost || story_is_lost(of, rank);
    for (int i = 0; lost && i < 100; i++) { /* what it has sent comes now */
        WEFTI_TRY(weft_server_poll(self->mine->server));
        rest(self, 5 * WEFTI_MILLISECOND_NS);
    }
    return WEFT_OK;
}

static weft_status work_on(worker *self) {
    story *of = self->of;
    for (int32_t t = 0; t < of->tables; t++) WEFTI_TRY(open_table(self, t));
    for (int32_t clock = 0; clock < of->clocks; clock++)
        for (int32_t t = 0; t < of->tables; t++) {
            rest(self, draw(&self->mine->random, of->pause_ns + 1));
            WEFTI_TRY(one_clock(self, t, clock));
        }
    for (int32_t t = 0; t < of->tables; t++) WEFTI_TRY(end_ahead(self, t));
    WEFTI_TRY(settle(self));
    for (int32_t t = 0; t < of->tables; t++) {
        WEFTI_TRY(pull(self, t, 0, true));
        if (draw(&self->mine->random, 2)) weft_keys_release(self->keys[t][1]);
        if (draw(&self->mine->random, 2)) weft_table_release(self->table[t]);
    }
    return WEFT_OK;
}

static weft_status work(worker *self) {
    char        message[WEFTI_MESSAGE_BYTES];
    weft_status status = work_on(self);
    snprintf(message, sizeof message, "%s", weft_error_message());
    for (int32_t t = 0; t < self->of->tables; t++)
        if (self->ahead[t].request) (void)!weft_request_wait(self->ahead[t].request, 0);
    return status == WEFT_OK ? WEFT_OK : wefti_fail(status, "%s", message);
}

/* --- a rank --- */

/* All have their links: what befalls one of them begins to count. */
static weft_status meet(story *of, story_rank *mine) {
    if (++of->ready == of->size) {
        wefti_sim_fault fault = of->fault;
        for (int32_t rank = 0; rank < of->size; rank++) of->sent[rank] = wefti_sim_messages(of->sim, rank);
        if (fault.message) fault.message += of->sent[fault.rank];
        else fault.at_ns += wefti_sim_now(of->sim);
        if (of->strikes) WEFTI_TRY(wefti_sim_plan(of->sim, &fault));
    }
    while (of->ready < of->size) {
        WEFTI_TRY(weft_server_poll(mine->server));
        mine->links.host->sleep(mine->links.host->context, WEFTI_MILLISECOND_NS);
    }
    return WEFT_OK;
}

/* Silence is noticed by worlds, while their rank 0 is there. */
static void stay(const story *of, const story_rank *mine) {
    for (int32_t rank = 0; rank < of->size; rank++)
        while (!of->rank[rank].left && rank != of->fault.rank) mine->links.host->sleep(mine->links.host->context, 10 * WEFTI_MILLISECOND_NS);
}

static weft_status run_rank(sim_rank *self) {
    story          *of = (story *)(uintptr_t)self->world->context;
    story_rank     *mine = &of->rank[self->rank];
    worker          me = {.of = of, .mine = mine, .rank = self->rank};
    wefti_transport *transport = self->transport;
    size_t          most = 0;
    of->sim = self->world->sim;
    mine->links = (wefti_world_links){.host = transport->host, .open_wire = open_wire, .exchange = exchange};
    mine->world = (weft_world){.rank = self->rank, .size = of->size, .group = transport->group, .transport = transport, .links = &mine->links,
                               .timeout_ns = (int64_t)self->world->timeout_ns};
    mine->random = of->seed + (uint64_t)self->rank * 1000 + 1;
    for (int32_t t = 0; t < of->tables; t++) {
        size_t bytes = (size_t)(of->table[t].rows * of->table[t].width) * weft_dtype_bytes(of->table[t].options.dtype);
        most = bytes > most ? bytes : most;
    }
    for (int i = 0; i < STORY_PUSHES; i++) mine->send[i] = malloc(most), mine->packed[i] = malloc(3 * most);
    mine->receive = malloc(most);
    for (int32_t t = 0; t < STORY_TABLES; t++) mine->ahead[t] = malloc(most);
    WEFTI_TRY(weft_server_create(&mine->world, &of->roles, &mine->server));
    weft_status status = meet(of, mine);
    if (status == WEFT_OK) status = weft_server_is_worker(mine->server) ? work(&me) : weft_server_serve(mine->server);
    mine->quit = status != WEFT_OK;
    if (weft_server_is_serving(mine->server) && status == WEFT_OK && of->roles.dedicated) {
        weft_server_counts counts;
        weft_server_count(mine->server, &counts);
        of->repeated += counts.repeated;
    }
    weft_server_release(mine->server);
    mine->server = NULL;
    mine->left = true;
    if (of->strikes && !of->spared && of->fault.act != WEFTI_SIM_KILL && self->rank != of->fault.rank) stay(of, mine);
    return status;
}

static void bury(sim_rank *self) {
    story_rank *mine = &((story *)(uintptr_t)self->world->context)->rank[self->rank];
    wefti_server_bury(mine->server);
    mine->server = NULL;
    for (int i = 0; i < STORY_PUSHES; i++) {
        free(mine->send[i]), free(mine->packed[i]);
        mine->send[i] = mine->packed[i] = NULL;
    }
    free(mine->receive);
    mine->receive = NULL;
    for (int32_t t = 0; t < STORY_TABLES; t++) {
        free(mine->ahead[t]);
        mine->ahead[t] = NULL;
    }
    weft_entries_release(&mine->pulled);
}

/* --- the end --- */

/* How a rank that is there may have ended. */
static const char *judge_rank(const story *of, const sim_world *world, int32_t rank) {
    const sim_rank *self = &world->ranks[rank];
    char            name[40];
    bool            server_lost = of->strikes && !of->spared && of->fault.rank >= of->first_server && !of->roles.replicas;
    bool            sudden = of->fault.act == WEFTI_SIM_KILL || of->spared;
    snprintf(name, sizeof name, "rank %d,", (int)of->fault.rank);
    if (!self->ended) return "has not ended";
    if (self->status == WEFT_OK) {
        if (of->rank[rank].longest_ns > (!of->strikes || sudden ? 3 : 15) * WEFTI_SECOND_NS) return "waited for too long";
        return NULL;
    }
    if (!server_lost || rank >= of->workers) return "ended badly";
    if (self->status == WEFT_E_PEER && strstr(self->message, name)) return NULL;
    /* Of silence whoever waits knows at his deadline; he may have waited for one who waited. */
    if (!sudden && (self->status == WEFT_E_TIMEOUT || self->status == WEFT_E_PEER)) return NULL;
    return "was not told of the server that is lost";
}

static const char *judge(const story *of, const sim_world *world, char *words, size_t bytes) {
    if (world->outcome != WEFT_OK) return world->words;
    for (int32_t rank = 0; rank < of->size; rank++) {
        bool silent = of->strikes && !of->spared && of->fault.act != WEFTI_SIM_KILL && rank == of->fault.rank;
        if (wefti_sim_is_gone(world->sim, rank) || silent) continue;
        const char *what = judge_rank(of, world, rank);
        if (!what) continue;
        snprintf(words, bytes, "rank %d %s after %.3f s, its longest request took %.3f s: %s, %.400s", (int)rank, what,
                 (double)(world->ranks[rank].ended_ns - world->began_ns) / 1e9, (double)of->rank[rank].longest_ns / 1e9,
                 weft_status_name(world->ranks[rank].status), world->ranks[rank].message);
        return words;
    }
    return NULL;
}

void story_free_models(story *of) {
    for (int32_t t = 0; t < of->tables; t++)
        for (int clock = 0; clock <= STORY_CLOCKS; clock++)
            for (int i = 0; i <= STORY_ALL; i++) {
                free(of->table[t].model[clock][i]);
                of->table[t].model[clock][i] = NULL;
            }
}

static const char *describe(const story *of, char *text, size_t bytes) {
    static const char *const acts[] = {"dies", "stops", "is cut off"};
    int used = snprintf(text, bytes, "%d workers, %d %s servers, ", (int)of->workers, (int)of->servers, of->roles.dedicated ? "dedicated" : "beside");
    for (int32_t t = 0; t < of->tables; t++)
        used += snprintf(text + used, bytes - (size_t)used, "%s%s%s %lld x %lld of %s, staleness %d, ", of->table[t].options.sparse ? "sparse" : "dense",
                         of->table[t].options.hybrid ? ", hybrid" : "", of->table[t].entries ? ", by entries," : "",
                         (long long)of->table[t].rows, (long long)of->table[t].width, weft_dtype_name(of->table[t].options.dtype),
                         (int)of->table[t].options.staleness);
    if (of->strikes)
        snprintf(text + used, bytes - (size_t)used, "rank %d %s%s at %s %llu", (int)of->fault.rank, acts[of->fault.act], of->spared ? " for a while" : "",
                 of->fault.message ? "message" : "ns", (unsigned long long)(of->fault.message ? of->fault.message : of->fault.at_ns));
    else snprintf(text + used, bytes - (size_t)used, "no fault");
    return text;
}

const char *story_run(story *of, void (*trace)(void *context, const char *line), char *words_out, size_t words_bytes) {
    char        words[1000], what[400];
    sim_world   world = {.function = run_rank, .bury = bury, .context = of, .timeout_ns = 30 * WEFTI_SECOND_NS};
    of->options.trace = trace;
    of->ready = 0;
    of->repeated = 0;
    memset(of->rank, 0, sizeof of->rank);
    for (int32_t t = 0; t < of->tables; t++) {
        memset(of->table[t].tally, 0, sizeof of->table[t].tally);
        memset(of->table[t].possible, 0xff, sizeof of->table[t].possible);
    }
    sim_world_run(&world, &of->options, NULL);
    const char *wrong = judge(of, &world, words, sizeof words);
    if (wrong) snprintf(words_out, words_bytes, "%s: %s", describe(of, what, sizeof what), wrong);
    for (int32_t rank = 0; rank < of->size && world.outcome == WEFT_OK; rank++) of->sent[rank] = wefti_sim_messages(world.sim, rank) - of->sent[rank];
    of->hash = world.hash;
    if (!wrong || world.outcome == WEFT_OK) sim_world_free(&world);
    return wrong ? words_out : NULL;
}
