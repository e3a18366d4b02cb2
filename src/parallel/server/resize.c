/* Another split of the rows, while training goes on.
 *
 * All ranks of a world meet, some with a part of a server and some with none, and make a server anew beside the old one: links, roles, stores. What workers
 * have asked is carried out first, and they ask nothing more; so rows stand still, on all servers after the same clock, and are copied to where they
 * are to be. When everybody has all, everybody takes the new server for the old one, behind the handles that programs have. Until then the old one is untouched,
 * so whatever fails before leaves it as it was.
 *
 * The last two meetings decide. In the first all say that they are ready; who comes through it knows that all are. In the second they say so: who comes
 * through that takes the new split. Who fails in the first knows that nobody can come through the second. Who fails in the second knows nothing: some may
 * have taken it. It keeps both and asks nothing, until the ranks that are left meet again in the next world: a split that anybody has taken is the one.
 *
 * Cost: five meetings of all ranks, a message for each worker and old server, a wire, and the new rows in memory beside the old ones. */
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/iface/collective.h"
#include "parallel/server/resize.h"

/* --- meeting --- */

/* What a rank says when it comes. */
typedef struct presence {
    uint32_t magic;
    int32_t  servers, dedicated, replicas;
    int32_t  brings;       /* it has a part of a server … */
    int32_t  rank, pending_rank; /* … in which it has this number; and in the split that it may have taken */
    wefti_layout layout;
    uint64_t nonce, job, generation, pending, resizes; /* generations are from 1 on */
} presence;

/* What became of a step on a rank. */
typedef struct outcome {
    int32_t status, tables; /* tables: of one who has rows, else -1 */
    char    text[400];
} outcome;

static weft_status exchange(weft_world *world, const void *mine, size_t bytes, void *all) {
    if (world->size > 1) return world->links->exchange(world, "parameter server", mine, bytes, all);
    memcpy(all, mine, bytes);
    return WEFT_OK;
}

/* The first failure of all ranks is everybody's. *heard_out: all have said how it went. */
static weft_status agree(const wefti_resize *of, weft_status status, int32_t tables, outcome *all, bool *heard_out) {
    outcome mine = {.status = (int32_t)status, .tables = tables};
    if (status != WEFT_OK) snprintf(mine.text, sizeof mine.text, "%.390s", weft_error_message());
    *heard_out = false;
    WEFTI_TRY(exchange(of->world, &mine, sizeof mine, all));
    *heard_out = true;
    for (int32_t rank = 0; rank < of->world->size; rank++) {
        all[rank].text[sizeof all[rank].text - 1] = 0;
        if (all[rank].status != WEFT_OK && (unsigned)all[rank].status < WEFT_STATUS_COUNT)
            return wefti_fail((weft_status)all[rank].status, "the split of the parameter server stays as it was, for rank %d: %s", (int)rank, all[rank].text);
    }
    return WEFT_OK;
}

static uint64_t make_nonce(const weft_world *world) {
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t parts[] = {(uint64_t)now.tv_sec, (uint64_t)now.tv_nsec, (uint64_t)getpid(), (uint64_t)world->rank};
    return wefti_hash(WEFTI_HASH_BEGIN, parts, sizeof parts);
}

static wefti_layout layout_of(const weft_server *server) {
    return (wefti_layout){server->size, server->servers, server->first_server, server->workers, server->twin ? 2 : 1};
}

static presence introduce(const weft_world *world, const weft_server_options *o, const weft_server *server) {
    presence p = {.magic = WEFTI_SERVER_MAGIC, .servers = o->servers, .dedicated = o->dedicated, .replicas = o->replicas, .nonce = make_nonce(world)};
    if (!server) return p;
    p.brings = 1;
    p.rank = server->rank;
    p.layout = layout_of(server);
    p.job = server->job;
    p.generation = server->generation;
    p.resizes = server->resizes;
    if (server->pending) {
        p.pending = server->generation + 1;
        p.pending_rank = server->pending->fresh->rank;
    }
    return p;
}

static weft_status check_presence(const presence *all, int32_t size) {
    for (int32_t rank = 1; rank < size; rank++) {
        const presence *a = &all[0], *b = &all[rank];
        if (a->magic != b->magic)
            return wefti_fail(WEFT_E_MISMATCH, "weft_server_create: rank 0 speaks version %.4s of the parameter server, rank %d version %.4s", (const char *)&a->magic,
                              (int)rank, (const char *)&b->magic);
        if (a->servers != b->servers || a->dedicated != b->dedicated || a->replicas != b->replicas)
            return wefti_fail(WEFT_E_MISMATCH, "weft_server_create: rank 0 wants %d %sservers and %d replicas, rank %d %d %sservers and %d", (int)a->servers,
                              a->dedicated ? "dedicated " : "", (int)a->replicas, (int)rank, (int)b->servers, b->dedicated ? "dedicated " : "", (int)b->replicas);
    }
    return WEFT_OK;
}

/* Whose split is the newest; and that all who bring something bring that. */
static weft_status find_newest(wefti_resize *of, const presence *all) {
    of->newest = -1;
    for (int32_t rank = 0; rank < of->world->size; rank++)
        if (all[rank].brings && (of->newest < 0 || all[rank].generation > all[of->newest].generation)) of->newest = rank;
    if (of->newest < 0) return WEFT_OK;
    const presence *newest = &all[of->newest];
    of->generation = newest->generation;
    of->job = newest->job;
    for (int32_t rank = 0; rank < of->world->size; rank++)
        if (all[rank].brings && (all[rank].job != of->job || (all[rank].generation != of->generation && all[rank].pending != of->generation)))
            return wefti_fail(WEFT_E_MISMATCH, "weft_server_resize: rank %d brings a part of one parameter server, and rank %d of another%s", (int)of->newest, (int)rank,
                              all[rank].job == of->job ? ", which has missed a change of its split" : "");
    return WEFT_OK;
}

static weft_status number_ranks(wefti_resize *of, const presence *all) {
    const presence *newest = &all[of->newest];
    of->before = newest->layout;
    if (of->before.size < 1 || of->before.size > WEFTI_ALL_WORKERS || of->before.servers < 1 || of->before.first + of->before.servers != of->before.size)
        return wefti_fail(WEFT_E_CORRUPT, "weft_server_resize: rank %d brings a part of a server that cannot be", (int)of->newest);
    WEFTI_TRY(wefti_alloc((size_t)of->world->size * sizeof *of->old_of, "numbers of ranks", &of->old_of));
    WEFTI_TRY(wefti_alloc((size_t)of->before.size * sizeof *of->new_of, "numbers of ranks", &of->new_of));
    for (int32_t old = 0; old < of->before.size; old++) of->new_of[old] = -1;
    for (int32_t rank = 0; rank < of->world->size; rank++) {
        bool in_doubt = all[rank].generation != of->generation;
        of->old_of[rank] = !all[rank].brings ? -1 : in_doubt ? all[rank].pending_rank : all[rank].rank;
        if (of->old_of[rank] >= 0 && of->old_of[rank] < of->before.size) of->new_of[of->old_of[rank]] = rank;
    }
    return WEFT_OK;
}

/* --- standing still --- */

/* Detached: what servers have heard is known by those that wait for it. */
static weft_status announce_to(weft_server *server, uint64_t number) {
    weft_request *request = NULL;
    WEFTI_TRY(wefti_client_take(server, true, &request));
    request->kind = WEFTI_SERVER_RESIZE;
    request->number = number;
    weft_status status = wefti_client_start(server, request, -1);
    if (status != WEFT_OK) wefti_client_free(server, request);
    return status;
}

static weft_status announce(weft_server *server, uint64_t number) {
    if (!server->works) return WEFT_OK;
    pthread_mutex_lock(&server->lock);
    weft_status status = announce_to(server, number);
    if (status == WEFT_OK && server->twin) status = announce_to(server->twin, number);
    pthread_mutex_unlock(&server->lock);
    return status;
}

static bool has_flown(const weft_server *server) {
    for (const weft_request *request = server->all_details; request; request = request->all)
        for (int32_t i = 0; request->state == REQUEST_FLYING && i < server->servers; i++)
            if (request->parts[i].pending > 0 && !server->gone[wefti_server_rank(server, i)]) return false;
    return !server->serves || (wefti_serve_is_ready(server, server->of ? server->of->resizes : server->resizes) && !wefti_serve_is_busy(server));
}

static bool stands_still(const void *context) {
    const weft_server *server = context, *fresh = server->pending ? server->pending->fresh : NULL;
    return has_flown(server) && (!server->twin || has_flown(server->twin)) &&
           (!fresh || (has_flown(fresh) && (!fresh->twin || has_flown(fresh->twin))));
}

static weft_status check_requests(const weft_server *server) {
    int32_t count = 0;
    for (int32_t i = 0; i < server->in_flight; i++) count += server->requests[i].state != REQUEST_FREE;
    if (count == 0) return WEFT_OK;
    return wefti_fail(WEFT_E_STATE, "weft_server_resize: %d requests of rank %d have not been waited for", (int)count, (int)server->rank);
}

/* Says that this rank asks nothing more, and waits for the others to say so: with a limit, for some may never. */
static weft_status stand_still(weft_server *server) {
    weft_server *fresh = server->pending ? server->pending->fresh : NULL;
    weft_status early = check_requests(server); /* the others are not to wait for this rank to find that out */
    char        why[WEFTI_MESSAGE_BYTES];
    snprintf(why, sizeof why, "%s", weft_error_message());
    server->resizes++;
    if (fresh) fresh->resizes = server->resizes;
    WEFTI_TRY(announce(server, server->resizes));
    if (fresh) WEFTI_TRY(announce(fresh, server->resizes));
    if (early != WEFT_OK) return wefti_fail(early, "%s", why);
    weft_status status = wefti_server_wait(server, stands_still, server, wefti_deadline_after(wefti_host_now(server->host), server->timeout_ns));
    return status == WEFT_OK || status == WEFT_E_AGAIN ? WEFT_OK : wefti_fail(status, "%s", server->failure);
}

static void forget_absent(const wefti_resize *of, weft_server *server) {
    for (int32_t old = 0; old < of->before.size; old++)
        if (of->new_of[old] < 0) server->gone[old] = true;
}

static weft_status settle_tables(weft_server *server, int32_t *count_out) {
    *count_out = 0;
    for (served_table *table = server->served; table; table = table->next, (*count_out)++) WEFTI_TRY(wefti_clock_settle(server, table));
    return WEFT_OK;
}

static weft_status explain_restless(const weft_server *server) {
    char   text[WEFTI_SERVER_TEXT_BYTES] = "";
    size_t used = 0;
    for (int32_t worker = 0; server->serves && worker < server->workers && used + 16 < sizeof text; worker++) {
        const server_session *session = &server->sessions[worker];
        if (!session->left && !session->dead && session->moving < server->resizes) used += (size_t)snprintf(text + used, sizeof text - used, " %d", (int)worker);
    }
    return wefti_fail(WEFT_E_TIMEOUT, "rank %d waited %.3g s for the requests of the split before to end%s%s", (int)server->rank, (double)server->timeout_ns / 1e9,
                      used ? "; workers that go on by it: rank" : "", text);
}

/* Once it is known who is there: nothing moves any more, or it is said why. */
static weft_status settle(const wefti_resize *of, int32_t *tables_out) {
    weft_server *server = of->old;
    *tables_out = -1;
    if (!server) return WEFT_OK;
    pthread_mutex_lock(&server->lock);
    forget_absent(of, server);
    if (server->twin) forget_absent(of, server->twin);
    pthread_mutex_unlock(&server->lock);
    weft_status status = wefti_server_wait(server, stands_still, server, wefti_deadline_after(wefti_host_now(server->host), server->timeout_ns));
    if (status == WEFT_E_AGAIN) return explain_restless(server);
    if (status != WEFT_OK) return wefti_fail(status, "%s", server->failure);
    if (!server->serves) return WEFT_OK;
    int32_t count = 0;
    pthread_mutex_lock(&server->lock);
    status = settle_tables(server, &count);
    if (status == WEFT_OK && server->twin) status = settle_tables(server->twin, tables_out);
    pthread_mutex_unlock(&server->lock);
    *tables_out = count;
    return status;
}

/* --- the new server --- */

static weft_status find_reference(wefti_resize *of, const outcome *all) {
    of->reference = -1;
    for (int32_t rank = of->world->size - 1; rank >= 0; rank--)
        if (all[rank].tables >= 0) of->reference = rank;
    for (int32_t share = 0; share < of->before.servers; share++) {
        int32_t copy;
        if (of->reference >= 0 && wefti_resize_source(of, share, WEFTI_NOBODY, &copy) >= 0) continue;
        int32_t holder = wefti_layout_rank(&of->before, 0, share), twin = wefti_layout_rank(&of->before, 1, share);
        if (of->before.copies > 1)
            return wefti_fail(WEFT_E_PEER, "rank %d of the split before is gone, and so is rank %d, which had its rows too: they are lost; load a snapshot", (int)holder, (int)twin);
        return wefti_fail(WEFT_E_PEER, "rank %d of the split before, which had rows, is gone, and they are lost: load a snapshot, or use .replicas", (int)holder);
    }
    of->tables = all[of->reference].tables;
    of->entry_bytes = sizeof(wefti_moved_table) + (size_t)of->world->size * sizeof(uint64_t);
    of->directory_bytes = (size_t)of->tables * of->entry_bytes;
    return WEFT_OK;
}

/* Newcomers begin in the clock in hand, or in that of the slowest. */
static void write_clocks(const wefti_resize *of, const served_table *table, uint64_t *clocks) {
    uint64_t slowest = UINT64_MAX;
    for (int32_t rank = 0; rank < of->world->size; rank++) {
        int32_t old = of->old_of[rank];
        clocks[rank] = old >= 0 && old < of->before.workers ? table->clocks[old] : UINT64_MAX;
        if (clocks[rank] < slowest) slowest = clocks[rank];
    }
    if (table->sum) slowest = table->closed;
    else if (slowest == UINT64_MAX) slowest = 0;
    for (int32_t rank = 0; rank < of->world->size; rank++)
        if (clocks[rank] == UINT64_MAX) clocks[rank] = slowest;
}

static weft_status make_directory(wefti_resize *of) {
    if (of->directory_bytes == 0) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(of->directory_bytes, "the list of tables", &of->directory));
    if (of->world->rank != of->reference) return WEFT_OK;
    int32_t t = 0;
    for (const served_table *table = of->old->served; table; table = table->next, t++) {
        wefti_moved_table *entry = wefti_moved_table_at(of, t);
        *entry = (wefti_moved_table){.spec = table->spec, .id = table->id, .closed = table->closed};
        write_clocks(of, table, wefti_moved_clocks(entry));
    }
    return WEFT_OK;
}

static weft_status make_tables(const wefti_resize *of, weft_server *server) {
    for (int32_t t = 0; server->serves && t < of->tables; t++) {
        wefti_moved_table *entry = wefti_moved_table_at(of, t);
        served_table      *table = NULL;
        WEFTI_TRY(wefti_tables_add(server, &entry->spec, entry->id, &table));
        table->closed = entry->closed;
        memcpy(table->clocks, wefti_moved_clocks(entry), (size_t)server->workers * sizeof *table->clocks);
    }
    return WEFT_OK;
}

static weft_status prepare(wefti_resize *of) {
    WEFTI_TRY(make_tables(of, of->fresh));
    if (of->fresh->twin) WEFTI_TRY(make_tables(of, of->fresh->twin));
    WEFTI_TRY(wefti_resize_prepare_keys(of));
    return wefti_resize_prepare_rows(of);
}

static weft_status note_clocks(const wefti_resize *of, weft_server *server) {
    if (of->tables == 0) return WEFT_OK;
    WEFTI_TRY(wefti_alloc((size_t)of->tables * sizeof *server->began, "clocks of tables", &server->began));
    server->began_count = of->tables;
    for (int32_t t = 0; t < of->tables; t++) {
        wefti_moved_table *entry = wefti_moved_table_at(of, t);
        server->began[t] = (wefti_began){entry->id, wefti_moved_clocks(entry)[of->world->rank]};
    }
    return WEFT_OK;
}

/* --- taking it --- */

typedef struct wefti_retired {
    struct wefti_retired *next;
    wefti_wire           *wire;
} wefti_retired;

static void point_back(weft_server *server) {
    for (int32_t i = 0; i < server->in_flight; i++) server->requests[i].server = server;
    for (weft_request *request = server->all_details; request; request = request->all) request->server = server;
    if (server->twin) server->twin->of = server;
}

/* All but the handle's own. */
static void swap_insides(weft_server *a, weft_server *b) {
    const size_t at = offsetof(weft_server, twin), bytes = sizeof *a - at;
    uint8_t      kept[sizeof *a];
    memcpy(kept, (uint8_t *)a + at, bytes);
    memcpy((uint8_t *)a + at, (uint8_t *)b + at, bytes);
    memcpy((uint8_t *)b + at, kept, bytes);
    point_back(a);
    point_back(b);
}

static bool lends_regions(const weft_server *server) {
    for (const server_buffer *buffer = server->lent; buffer; buffer = buffer->next)
        if (buffer->region) return true;
    return false;
}

/* Nothing that was posted to it is of use; its memory is. */
static void let_go_of_all(wefti_wire *wire, uint64_t now_ns) {
    wefti_wire_op *ops[64];
    int32_t        count = 0;
    wire->ops->abort(wire, WEFT_E_ABORTED, -1);
    do (void)!wire->ops->poll(wire, now_ns, ops, (int32_t)WEFTI_COUNT(ops), &count);
    while (count > 0);
}

/* Without failing: `retired` was made before. What was the handle's inside is freed. */
static void take_over(weft_server *server, wefti_resize *of) {
    weft_server   *fresh = of->fresh;
    wefti_retired *retired = of->retired;
    wefti_server_park(server);
    pthread_mutex_lock(&server->lock);
    wefti_server_add_counts(server, &server->before);
    server->before.held_bytes = server->before.spilled_bytes = 0;
    swap_insides(server, fresh);
    wefti_resize_take_keys(of);
    server->generation = of->generation + 1;
    wefti_began *began = server->began;
    int32_t      count = server->began_count;
    server->began = fresh->began;
    server->began_count = fresh->began_count;
    fresh->began = began;
    fresh->began_count = count;
    server->renews = fresh->renews;
    if (retired && lends_regions(server)) {
        let_go_of_all(fresh->wire, fresh->now_ns);
        retired->wire = fresh->wire;
        fresh->wire = NULL;
        retired->next = server->retired;
        server->retired = retired;
        of->retired = NULL;
    }
    pthread_mutex_unlock(&server->lock);
    wefti_server_unpark(server);
    wefti_resize_free_keys(of);
    wefti_server_bury(fresh);
    of->fresh = NULL;
}

static void free_resize(wefti_resize *of) {
    wefti_resize_free_keys(of); /* it needs the fresh server, whose end the rows have to wait for */
    wefti_server_bury(of->fresh);
    of->fresh = NULL;
    wefti_resize_free_rows(of);
    if (of->old_of) wefti_free(of->old_of, (size_t)of->world->size * sizeof *of->old_of);
    if (of->new_of) wefti_free(of->new_of, (size_t)of->before.size * sizeof *of->new_of);
    if (of->directory) wefti_free(of->directory, of->directory_bytes);
    if (of->retired) wefti_free(of->retired, sizeof *of->retired);
    wefti_free(of, sizeof *of);
}

void wefti_resize_close(weft_server *server) {
    if (server->pending) free_resize(server->pending);
    server->pending = NULL;
    while (server->retired) {
        wefti_retired *retired = server->retired;
        server->retired = retired->next;
        retired->wire->ops->close(retired->wire, 0);
        wefti_free(retired, sizeof *retired);
    }
    if (server->began) wefti_free(server->began, (size_t)server->began_count * sizeof *server->began);
    server->began = NULL;
}

/* --- the call --- */

/* A split that was in doubt: somebody has taken it, or nobody has. */
static void resolve(const wefti_resize *of, weft_server *server) {
    wefti_resize *pending = server->pending;
    if (!pending) return;
    pthread_mutex_lock(&server->lock); /* the thread moves the one that is pending along */
    server->pending = NULL;
    pthread_mutex_unlock(&server->lock);
    if (of->generation > server->generation) take_over(server, pending);
    free_resize(pending);
}

static weft_status meet(wefti_resize *of, const weft_server_options *options) {
    presence mine = introduce(of->world, options, of->old), *all = NULL;
    size_t   bytes = (size_t)of->world->size * sizeof *all;
    WEFTI_TRY(wefti_alloc(bytes, "roles of ranks", &all));
    weft_status status = exchange(of->world, &mine, sizeof mine, all);
    if (status == WEFT_OK) status = check_presence(all, of->world->size);
    if (status == WEFT_OK) status = find_newest(of, all);
    if (status == WEFT_OK && of->newest < 0) of->job = all[0].nonce;
    if (status == WEFT_OK && of->newest >= 0) status = number_ranks(of, all);
    if (status == WEFT_OK && of->newest >= 0 && of->old) resolve(of, of->old);
    for (int32_t rank = 0; status == WEFT_OK && rank < of->world->size; rank++)
        if (all[rank].brings && all[rank].resizes > of->resizes) of->resizes = all[rank].resizes;
    wefti_free(all, bytes);
    return status;
}

/* From the meeting on: `status` is how this rank stands still. In doubt is who has been ready, and does not know of the others. */
static weft_status change(wefti_resize *of, const weft_server_options *options, weft_status status, bool *in_doubt_out) {
    size_t   bytes = (size_t)of->world->size * sizeof(outcome);
    outcome *all = NULL;
    int32_t  tables = -1;
    bool     heard;
    WEFTI_TRY(wefti_alloc(bytes, "what became of ranks", &all));
    if (status == WEFT_OK) status = settle(of, &tables);
    WEFTI_TRY_GOTO(agree(of, status, tables, all, &heard), done);
    WEFTI_TRY_GOTO(find_reference(of, all), done);
    WEFTI_TRY_GOTO(wefti_server_open(of->world, options, &of->fresh), done);
    of->fresh->job = of->job;
    of->fresh->generation = of->generation + 1;
    of->fresh->resizes = of->resizes;
    of->after = layout_of(of->fresh);
    WEFTI_TRY_GOTO(make_directory(of), done);
    WEFTI_TRY_GOTO(wefti_resize_send_directory(of), done);
    status = prepare(of);
    if (status == WEFT_OK) status = note_clocks(of, of->fresh);
    if (status == WEFT_OK && of->old && lends_regions(of->old)) status = wefti_alloc(sizeof *of->retired, "memory that is lent", &of->retired);
    WEFTI_TRY_GOTO(agree(of, status, 0, all, &heard), done);
    status = wefti_resize_move_rows(of);
    WEFTI_TRY_GOTO(agree(of, status, 0, all, &heard), done);
    status = agree(of, WEFT_OK, 0, all, &heard);
    *in_doubt_out = !heard;
done:
    wefti_free(all, bytes);
    return status;
}

weft_status wefti_resize_create(weft_world *world, const weft_server_options *options, weft_server **server_out) {
    wefti_resize *of = NULL;
    bool          in_doubt = false;
    *server_out = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *of, "a parameter server", &of));
    of->world = world;
    weft_status status = meet(of, options);
    if (status == WEFT_OK && of->newest < 0) {
        status = wefti_server_open(world, options, server_out);
        if (*server_out) (*server_out)->generation = 1;
    } else if (status == WEFT_OK) {
        status = change(of, options, WEFT_OK, &in_doubt);
        if (status == WEFT_OK) {
            *server_out = of->fresh;
            of->fresh = NULL;
        }
    }
    if (*server_out) (*server_out)->job = of->job;
    char message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    free_resize(of);
    return status == WEFT_OK ? WEFT_OK : wefti_fail(status, "%s", message);
}

/* What is left at zero and is no role stays as it was. */
static weft_server_options merge(const weft_server *server, const weft_server_options *options) {
    weft_server_options merged = options ? *options : (weft_server_options){0};
    if (!merged.functions) {
        merged.functions = server->functions;
        merged.function_count = server->function_count;
    }
    if (!merged.in_flight && server->works) merged.in_flight = server->in_flight;
    if (!merged.timeout_ns) merged.timeout_ns = (int64_t)server->timeout_ns;
    if (!merged.spill) merged.spill = server->spill;
    return merged;
}

weft_status weft_server_resize(weft_server *server, weft_world *world, const weft_server_options *options, weft_server_moved *moved_out) {
    wefti_resize *of = NULL;
    bool          in_doubt = false;
    if (moved_out) *moved_out = (weft_server_moved){0};
    if (!server || !world) return wefti_fail(WEFT_E_INVALID, "weft_server_resize: the %s is NULL", server ? "world" : "server");
    weft_server_options merged = merge(server, options);
    WEFTI_TRY(wefti_server_check_options(&merged, world->size));
    WEFTI_TRY(wefti_alloc(sizeof *of, "a change of the split", &of));
    uint64_t began_ns = wefti_host_now(server->host);
    of->world = world;
    of->old = server;
    weft_status still = stand_still(server), status;
    char        why[WEFTI_MESSAGE_BYTES];
    snprintf(why, sizeof why, "%s", weft_error_message());
    status = meet(of, &merged);
    server->resizes = of->resizes > server->resizes ? of->resizes : server->resizes;
    if (status == WEFT_OK) status = change(of, &merged, still == WEFT_OK ? WEFT_OK : wefti_fail(still, "%s", why), &in_doubt);
    if (status == WEFT_OK) {
        take_over(server, of);
        if (moved_out) *moved_out = of->moved;
        if (moved_out) moved_out->pause_ns = (int64_t)(wefti_host_now(server->host) - began_ns);
        free_resize(of);
        return WEFT_OK;
    }
    snprintf(why, sizeof why, "%s", weft_error_message());
    if (in_doubt) {
        pthread_mutex_lock(&server->lock);
        server->pending = of;
        pthread_mutex_unlock(&server->lock);
        return wefti_fail(status, "weft_server_resize: not known whether the others have taken the new split: go on in the next world (weft_world_shrink): %s", why);
    }
    free_resize(of);
    return wefti_fail(status, "weft_server_resize: %s", why);
}
