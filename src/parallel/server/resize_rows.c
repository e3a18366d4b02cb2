/* Rows that change their server: who sends what to whom, and the sending.
 *
 * Both layouts are known to all, so everybody can tell by itself which ranks have something for which others: nothing is asked. Between two ranks rows go in
 * chunks, a head and a body, one at a time; the last head says that nothing follows. A row is taken from the rank itself where it has it, in either copy, else from
 * whoever has it first. What a chunk consists of is packed column by column: keys, numbers of updates, values, states. Rows that stay on a rank are packed and
 * unpacked there all the same. The old rows are only read.
 *
 * A rank that cannot keep what comes (no memory, nonsense) reads on to the end all the same, so that nobody waits for it, and says so afterwards.
 *
 * Cost: two buffers of PIECE_BYTES (or one row) for each rank that sends or receives; every row that changes its holder once, with 40 bytes a chunk. */
#include <string.h>

#include "core/iface/collective.h"
#include "parallel/server/resize.h"
#include "parallel/server/work.h"

#define PIECE_BYTES ((size_t)1 << 20)
#define LOOK_NS     (50 * WEFTI_MILLISECOND_NS)
#define HEAD_MAGIC  UINT32_C(0x31524d57) /* "WMR1" */

typedef struct head {
    uint32_t magic, copy, table, ends;
    uint64_t first, count, bytes; /* of a dense one: the first row */
} head;

/* From here to `peer`. */
typedef struct stream_out {
    wefti_resize *of;
    int32_t       peer;
    int64_t       run;   /* number of (copy, new share, old share) … */
    int32_t       table; /* … table, and … */
    uint64_t      at;    /* … row or place, that come next */
    int32_t       pending;
    bool          over;
    head          head;
    uint64_t     *places; /* [most_rows] */
    uint8_t      *buffer;
    server_event  event;
    server_mover  body;
} stream_out;

/* From `peer`. */
typedef struct stream_in {
    wefti_resize *of;
    int32_t       peer;
    bool          over;
    head          head;
    uint64_t     *places;
    uint8_t      *buffer;
    server_event  event;
    server_mover  body;
} stream_in;

struct wefti_mover {
    stream_out    *out;
    stream_in     *in;
    int32_t        outs, ins;
    served_table **from[2], **to[2]; /* [tables] by copy; NULL where this rank has none */
    uint64_t      *filled[2];        /* [tables] rows of dense ones that have come */
    size_t         buffer_bytes;
    uint64_t       most_rows;
    uint64_t       steps;            /* chunks, either way */
    weft_status    status;           /* of what came */
    char           message[WEFTI_SERVER_TEXT_BYTES];
};

/* --- who sends --- */

int32_t wefti_resize_source(const wefti_resize *resize, int32_t share, int32_t rank, int32_t *copy_out) {
    int32_t found = -1;
    *copy_out = 0;
    for (int32_t copy = resize->before.copies - 1; copy >= 0; copy--) {
        int32_t holder = resize->new_of[wefti_layout_rank(&resize->before, copy, share)];
        if (holder < 0 || (found == rank && holder != rank)) continue;
        found = holder;
        *copy_out = copy;
    }
    return found;
}

/* A new share on one of its holders, and an old one, from which its rows come. */
typedef struct run { int32_t copy, share, to, old_copy, old_share, from; } run;

static int64_t count_runs(const wefti_resize *resize) {
    return (int64_t)resize->after.copies * resize->after.servers * resize->before.servers;
}

static run run_at(const wefti_resize *resize, int64_t number) {
    run r = {.old_share = (int32_t)(number % resize->before.servers)};
    number /= resize->before.servers;
    r.share = (int32_t)(number % resize->after.servers);
    r.copy = (int32_t)(number / resize->after.servers);
    r.to = wefti_layout_rank(&resize->after, r.copy, r.share);
    r.from = wefti_resize_source(resize, r.old_share, r.to, &r.old_copy);
    return r;
}

/* --- packing --- */

static size_t bytes_of_row(const served_table *table) {
    const wefti_store *store = table->store;
    return (size_t)(table->options.sparse + wefti_store_counts(store)) * sizeof(uint64_t) +
           (size_t)(1 + wefti_store_states(store)) * wefti_store_part_bytes(store, WEFTI_PART_VALUES);
}

static uint64_t rows_of_chunk(const served_table *table) {
    size_t bytes = bytes_of_row(table);
    return bytes < PIECE_BYTES ? PIECE_BYTES / bytes : 1;
}

/* The columns of a chunk, in their order; WEFTI_PART_KEYS - 1: no more. */
static int32_t column_at(const served_table *table, int32_t number) {
    bool sparse = table->options.sparse, counts = wefti_store_counts(table->store);
    if (sparse && number == 0) return WEFTI_PART_KEYS;
    if (counts && number == sparse) return WEFTI_PART_UPDATES;
    number -= sparse + counts;
    return number <= wefti_store_states(table->store) ? number : WEFTI_PART_KEYS - 1;
}

/* Whether a share has a key, by either split. */
static bool has_key(const weft_table_options *o, const wefti_layout *layout, int32_t share, uint64_t key) {
    if (o->split == WEFT_SPLIT_HASH) return wefti_route_hash(key, layout->servers) == share;
    return key >= wefti_route_begin((uint64_t)o->rows, layout->servers, share) && key < wefti_route_begin((uint64_t)o->rows, layout->servers, share + 1);
}

static weft_status pack_dense(stream_out *s, const served_table *table, const run *r) {
    uint64_t rows = (uint64_t)table->options.rows, begin = wefti_route_begin(rows, s->of->after.servers, r->share);
    uint64_t end = wefti_route_begin(rows, s->of->after.servers, r->share + 1), most = rows_of_chunk(table);
    if (begin < table->begin) begin = table->begin;
    if (end > table->begin + table->rows) end = table->begin + table->rows;
    s->head.first = begin + s->at;
    s->head.count = s->head.first < end ? end - s->head.first : 0;
    if (s->head.count > most) s->head.count = most;
    uint8_t *to = s->buffer;
    for (int32_t i = 0, part; s->head.count && (part = column_at(table, i)) >= WEFTI_PART_KEYS; i++) {
        WEFTI_TRY(wefti_store_copy_out(table->store, part, s->head.first - table->begin, s->head.count, to));
        to += s->head.count * wefti_store_part_bytes(table->store, part);
    }
    s->at += s->head.count;
    return WEFT_OK;
}

/* Rows are looked at by a run of keys, and copied by runs of places: the fewer readings where they lie on disk. */
static weft_status choose_rows(stream_out *s, const served_table *table, const run *r) {
    enum { LOOKED_AT = 64 };
    uint64_t rows = (uint64_t)wefti_store_rows(table->store), most = rows_of_chunk(table), keys[LOOKED_AT];
    while (s->at < rows && s->head.count < most) {
        uint64_t count = rows - s->at < LOOKED_AT ? rows - s->at : LOOKED_AT, i = 0;
        WEFTI_TRY(wefti_store_copy_out(table->store, WEFTI_PART_KEYS, s->at, count, keys));
        for (; i < count && s->head.count < most; i++)
            if (has_key(&table->options, &s->of->after, r->share, keys[i])) s->places[s->head.count++] = s->at + i;
        s->at += i;
    }
    return WEFT_OK;
}

static weft_status pack_sparse(stream_out *s, const served_table *table, const run *r) {
    uint8_t *to = s->buffer;
    s->head.count = 0;
    WEFTI_TRY(choose_rows(s, table, r));
    for (int32_t i = 0, part; s->head.count && (part = column_at(table, i)) >= WEFTI_PART_KEYS; i++)
        for (uint64_t row = 0, count; row < s->head.count; row += count) {
            for (count = 1; row + count < s->head.count && s->places[row + count] == s->places[row] + count;) count++;
            WEFTI_TRY(wefti_store_copy_out(table->store, part, s->places[row], count, to));
            to += count * wefti_store_part_bytes(table->store, part);
        }
    return WEFT_OK;
}

/* The next chunk; WEFT_END: there is none. Another failure is of a disk, and nothing follows it either. */
static weft_status pack(stream_out *s) {
    const wefti_resize *of = s->of;
    for (; s->run < count_runs(of); s->run++, s->table = 0) {
        run r = run_at(of, s->run);
        if (r.from != of->world->rank || r.to != s->peer) continue;
        for (; s->table < of->tables; s->table++, s->at = 0) {
            const served_table *table = of->mover->from[r.old_copy][s->table];
            s->head = (head){.magic = HEAD_MAGIC, .copy = (uint32_t)r.copy, .table = (uint32_t)s->table};
            weft_status status = table->options.sparse ? pack_sparse(s, table, &r) : pack_dense(s, table, &r);
            s->head.bytes = s->head.count * bytes_of_row(table);
            if (status == WEFT_OK && s->head.count) return WEFT_OK;
            if (status == WEFT_OK) continue;
            s->head = (head){.magic = HEAD_MAGIC, .ends = 1};
            return status;
        }
    }
    s->head = (head){.magic = HEAD_MAGIC, .ends = 1};
    return WEFT_END;
}

/* --- unpacking --- */

static weft_status check_head(const wefti_resize *of, const head *h, int32_t peer) {
    const served_table *table = h->copy < 2 && of->mover->to[h->copy] && h->table < (uint32_t)of->tables ? of->mover->to[h->copy][h->table] : NULL;
    bool fits = table && h->magic == HEAD_MAGIC && h->count > 0 && h->count <= rows_of_chunk(table) && h->bytes == h->count * bytes_of_row(table) &&
                (table->options.sparse || (h->first >= table->begin && h->first - table->begin <= table->rows && h->count <= table->rows - (h->first - table->begin)));
    return fits ? WEFT_OK : wefti_fail(WEFT_E_CORRUPT, "rank %d sends rows that are none of this rank's", (int)peer);
}

static weft_status unpack(const wefti_resize *of, const head *h, const uint8_t *from, uint64_t *places, int32_t peer) {
    served_table   *table = of->mover->to[h->copy][h->table];
    bool            sparse = table->options.sparse;
    const uint64_t *keys = (const uint64_t *)from; /* the first column, and buffers are aligned */
    for (uint64_t i = 0; sparse && i < h->count; i++)
        if (!has_key(&table->options, &of->after, wefti_server_index(h->copy ? of->fresh->twin : of->fresh), keys[i]))
            return wefti_fail(WEFT_E_CORRUPT, "table '%s': rank %d sends key %llu, which is another server's", table->spec.name, (int)peer, (unsigned long long)keys[i]);
    if (sparse) WEFTI_TRY(wefti_store_find(table->store, keys, (int64_t)h->count, true, places));
    for (int32_t i = 0, part; (part = column_at(table, i)) >= WEFTI_PART_KEYS; i++) {
        if (part != WEFTI_PART_KEYS) WEFTI_TRY(wefti_store_copy_in(table->store, part, sparse ? places : NULL, h->first - table->begin, h->count, from));
        from += h->count * wefti_store_part_bytes(table->store, part);
    }
    of->mover->filled[h->copy][h->table] += h->count;
    return WEFT_OK;
}

static void note(struct wefti_mover *mover, weft_status status) {
    if (status == WEFT_OK || mover->status != WEFT_OK) return;
    mover->status = status;
    snprintf(mover->message, sizeof mover->message, "%.600s", weft_error_message());
}

/* --- sending --- */

static void send_next(stream_out *s);

static void part_sent(stream_out *s, weft_status status) {
    if (status != WEFT_OK) note(s->of->mover, wefti_fail(status, "rank %d was lost while rows went to it", (int)s->peer));
    if (--s->pending > 0 || s->over) return;
    if (status != WEFT_OK) s->over = true; /* the world will say who it was */
    else send_next(s);
}
static void head_sent(weft_server *server, server_event *event) { (void)server, part_sent(event->owner, event->op.status); }
static void body_sent(weft_server *server, server_mover *body) { (void)server, part_sent(body->owner, body->status); }

static void send_next(stream_out *s) {
    wefti_resize *of = s->of;
    weft_status status = pack(s);
    if (status != WEFT_OK && status != WEFT_END) note(of->mover, status);
    s->over = status != WEFT_OK;
    s->pending = 2;
    of->mover->steps++;
    of->moved.sent_rows += s->head.count;
    of->moved.sent_bytes += s->head.bytes;
    s->event.op = wefti_wire_send(s->peer, wefti_server_tag(WEFTI_TAG_ROWS, 0), &s->head, sizeof s->head);
    s->event.done = head_sent;
    s->event.owner = s;
    s->body = (server_mover){.kind = WEFTI_WIRE_SEND, .peer = s->peer, .tag = wefti_server_tag(WEFTI_TAG_ROWS_BODY, 0), .base = s->buffer,
                             .bytes = s->head.bytes, .done = body_sent, .owner = s};
    wefti_server_post(of->fresh, &s->event);
    wefti_server_move(of->fresh, &s->body);
}

/* --- receiving --- */

static void receive_next(stream_in *s);

static void body_received(weft_server *server, server_mover *body) {
    stream_in          *s = body->owner;
    struct wefti_mover *mover = s->of->mover;
    (void)server;
    mover->steps++;
    if (body->status != WEFT_OK) {
        note(mover, wefti_fail(body->status, "rank %d was lost while rows came from it", (int)s->peer));
        s->over = true;
        return;
    }
    s->of->moved.rows += s->head.count;
    s->of->moved.bytes += s->head.bytes;
    if (mover->status == WEFT_OK) note(mover, unpack(s->of, &s->head, s->buffer, s->places, s->peer));
    receive_next(s);
}

/* A head that is none ends the stream: how much follows is not known. */
static void head_received(weft_server *server, server_event *event) {
    stream_in          *s = event->owner;
    struct wefti_mover *mover = s->of->mover;
    weft_status         status = event->op.status;
    if (status != WEFT_OK) status = wefti_fail(status, "rank %d was lost while rows came from it", (int)s->peer);
    else if (event->op.done_bytes != sizeof s->head) status = wefti_fail(WEFT_E_CORRUPT, "rank %d sends what is no chunk of rows", (int)s->peer);
    else if (s->head.magic == HEAD_MAGIC && s->head.ends) status = WEFT_END;
    else status = check_head(s->of, &s->head, s->peer);
    mover->steps++;
    if (status != WEFT_OK) {
        s->over = true;
        if (status != WEFT_END) note(mover, status);
        return;
    }
    s->body = (server_mover){.kind = WEFTI_WIRE_RECV, .peer = s->peer, .tag = wefti_server_tag(WEFTI_TAG_ROWS_BODY, 0), .base = s->buffer,
                             .bytes = s->head.bytes, .done = body_received, .owner = s};
    wefti_server_move(server, &s->body);
}

static void receive_next(stream_in *s) {
    s->event.op = wefti_wire_recv(s->peer, wefti_server_tag(WEFTI_TAG_ROWS, 0), &s->head, sizeof s->head);
    s->event.done = head_received;
    s->event.owner = s;
    wefti_server_post(s->of->fresh, &s->event);
}

/* --- waiting --- */

static bool all_moved(const void *context) {
    const struct wefti_mover *mover = ((const wefti_resize *)context)->mover;
    for (int32_t i = 0; i < mover->outs; i++)
        if (!mover->out[i].over || mover->out[i].pending > 0) return false;
    for (int32_t i = 0; i < mover->ins; i++)
        if (!mover->in[i].over) return false;
    return true;
}

/* Until it is over; the world's verdict ends it, and that nothing moves for a timeout. */
static weft_status wait_until(wefti_resize *of, bool (*over)(const void *context), const uint64_t *steps) {
    weft_server *fresh = of->fresh;
    wefti_fault *fault = of->world->group ? of->world->group->fault : NULL;
    uint64_t     seen = *steps, since_ns = wefti_host_now(fresh->host);
    for (;;) {
        uint64_t    now_ns = wefti_host_now(fresh->host);
        weft_status status = wefti_server_wait(fresh, over, of, now_ns + LOOK_NS);
        if (status != WEFT_E_AGAIN) return status == WEFT_OK ? WEFT_OK : wefti_fail(status, "%s", fresh->failure);
        WEFTI_TRY(wefti_fault_status(fault));
        if (*steps != seen) {
            seen = *steps;
            since_ns = now_ns;
        }
        if (now_ns - since_ns > fresh->timeout_ns)
            return wefti_fail(WEFT_E_TIMEOUT, "rank %d: nothing has moved for %.3g s while the split changes", (int)of->world->rank, (double)fresh->timeout_ns / 1e9);
    }
}

/* --- the directory --- */

static void told(weft_server *server, server_mover *mover) {
    wefti_resize *of = mover->owner;
    (void)server;
    if (mover->status != WEFT_OK && of->told == WEFT_OK) of->told = mover->status;
    of->telling--;
    of->steps++;
}

static bool all_told(const void *context) { return ((const wefti_resize *)context)->telling == 0; }

/* The fresh server is to be gone before what is moved to or from it, where this fails. */
weft_status wefti_resize_send_directory(wefti_resize *of) {
    int32_t me = of->world->rank;
    bool    tells = me == of->reference;
    if (of->world->size < 2 || of->directory_bytes == 0) return WEFT_OK;
    WEFTI_TRY(wefti_alloc((size_t)of->world->size * sizeof *of->movers, "links of a split that changes", &of->movers));
    pthread_mutex_lock(&of->fresh->lock);
    of->telling = 1;
    for (int32_t rank = 0; rank < of->world->size; rank++) {
        if (rank == me || (!tells && rank != of->reference)) continue;
        of->movers[rank] = (server_mover){.kind = tells ? WEFTI_WIRE_SEND : WEFTI_WIRE_RECV, .peer = rank, .tag = wefti_server_tag(WEFTI_TAG_TABLES, 0),
                                          .base = of->directory, .bytes = of->directory_bytes, .done = told, .owner = of};
        of->telling++;
        wefti_server_move(of->fresh, &of->movers[rank]);
    }
    of->telling--;
    pthread_mutex_unlock(&of->fresh->lock);
    weft_status status = wait_until(of, all_told, &of->steps);
    if (status == WEFT_OK && of->told != WEFT_OK)
        status = wefti_fail(of->told, "rank %d was lost while it told of the tables, or another that was told", (int)of->reference);
    return status;
}

/* --- preparing --- */

static weft_status find_tables(wefti_resize *of) {
    struct wefti_mover *mover = of->mover;
    size_t              tables = (size_t)of->tables;
    weft_server        *from[2] = {of->old, of->old ? of->old->twin : NULL}, *to[2] = {of->fresh, of->fresh->twin};
    for (int copy = 0; copy < 2 && tables; copy++) {
        if (from[copy] && from[copy]->serves) WEFTI_TRY(wefti_alloc(tables * sizeof(served_table *), "tables that move", &mover->from[copy]));
        if (to[copy] && to[copy]->serves) WEFTI_TRY(wefti_alloc(tables * sizeof(served_table *), "tables that move", &mover->to[copy]));
        if (to[copy] && to[copy]->serves) WEFTI_TRY(wefti_alloc(tables * sizeof(uint64_t), "tables that move", &mover->filled[copy]));
        for (int32_t t = 0; t < of->tables; t++) {
            uint64_t id = wefti_moved_table_at(of, t)->id;
            if (mover->from[copy] && !(mover->from[copy][t] = wefti_tables_find(from[copy], id)))
                return wefti_fail(WEFT_E_MISMATCH, "rank %d has no table '%s', which rank %d has", (int)of->world->rank, wefti_moved_table_at(of, t)->spec.name,
                                  (int)of->reference);
            if (mover->to[copy]) mover->to[copy][t] = wefti_tables_find(to[copy], id);
            const served_table *table = mover->to[copy] ? mover->to[copy][t] : mover->from[copy] ? mover->from[copy][t] : NULL;
            if (!table) continue;
            uint64_t rows = rows_of_chunk(table);
            if (rows > mover->most_rows) mover->most_rows = rows;
            if (rows * bytes_of_row(table) > mover->buffer_bytes) mover->buffer_bytes = rows * bytes_of_row(table);
        }
    }
    return WEFT_OK;
}

/* Who sends to this rank, and to whom it sends. */
static void find_peers(const wefti_resize *of, uint8_t *sends, uint8_t *gets) {
    for (int64_t number = 0; number < count_runs(of); number++) {
        run r = run_at(of, number);
        if (r.from == of->world->rank) sends[r.to] = 1;
        if (r.to == of->world->rank) gets[r.from] = 1;
    }
    sends[of->world->rank] = gets[of->world->rank] = 0; /* what stays goes by no link */
}

static weft_status make_room(struct wefti_mover *mover, uint64_t **places, uint8_t **buffer) {
    WEFTI_TRY(wefti_alloc_raw((size_t)mover->most_rows * sizeof **places, WEFTI_CACHE_LINE, "rows on their way to another server", places));
    return wefti_alloc_raw(mover->buffer_bytes, WEFTI_CACHE_LINE, "rows on their way to another server", buffer);
}

static weft_status make_streams(wefti_resize *of, const uint8_t *sends, const uint8_t *gets) {
    struct wefti_mover *mover = of->mover;
    size_t              size = (size_t)of->world->size;
    WEFTI_TRY(wefti_alloc((size + 1) * sizeof *mover->out, "links of a split that changes", &mover->out));
    WEFTI_TRY(wefti_alloc(size * sizeof *mover->in, "links of a split that changes", &mover->in));
    for (int32_t rank = 0; rank < of->world->size; rank++) {
        if (sends[rank]) {
            stream_out *out = &mover->out[mover->outs++];
            *out = (stream_out){.of = of, .peer = rank};
            WEFTI_TRY(make_room(mover, &out->places, &out->buffer));
        }
        if (gets[rank]) {
            stream_in *in = &mover->in[mover->ins++];
            *in = (stream_in){.of = of, .peer = rank};
            WEFTI_TRY(make_room(mover, &in->places, &in->buffer));
        }
    }
    /* What stays on this rank goes by the last one. */
    stream_out *stays = &mover->out[of->world->size];
    *stays = (stream_out){.of = of, .peer = of->world->rank};
    return make_room(mover, &stays->places, &stays->buffer);
}

weft_status wefti_resize_prepare_rows(wefti_resize *of) {
    size_t   size = (size_t)of->world->size;
    uint8_t *sends = NULL, *gets = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *of->mover, "rows that move", &of->mover));
    WEFTI_TRY(find_tables(of));
    if (of->tables == 0) return WEFT_OK;
    weft_status status = wefti_alloc(size, "links of a split that changes", &sends);
    if (status == WEFT_OK) status = wefti_alloc(size, "links of a split that changes", &gets);
    if (status == WEFT_OK) find_peers(of, sends, gets);
    if (status == WEFT_OK) status = make_streams(of, sends, gets);
    if (sends) wefti_free(sends, size);
    if (gets) wefti_free(gets, size);
    return status;
}

void wefti_resize_free_rows(wefti_resize *of) {
    struct wefti_mover *mover = of->mover;
    size_t              size = (size_t)of->world->size, tables = (size_t)of->tables;
    if (of->movers) wefti_free(of->movers, size * sizeof *of->movers);
    of->movers = NULL;
    if (!mover) return;
    for (size_t i = 0; mover->out && i <= size; i++) {
        if (mover->out[i].places) wefti_free(mover->out[i].places, (size_t)mover->most_rows * sizeof(uint64_t));
        if (mover->out[i].buffer) wefti_free(mover->out[i].buffer, mover->buffer_bytes);
    }
    for (size_t i = 0; mover->in && i < size; i++) {
        if (mover->in[i].places) wefti_free(mover->in[i].places, (size_t)mover->most_rows * sizeof(uint64_t));
        if (mover->in[i].buffer) wefti_free(mover->in[i].buffer, mover->buffer_bytes);
    }
    if (mover->out) wefti_free(mover->out, (size + 1) * sizeof *mover->out);
    if (mover->in) wefti_free(mover->in, size * sizeof *mover->in);
    for (int copy = 0; copy < 2; copy++) {
        if (mover->from[copy]) wefti_free(mover->from[copy], tables * sizeof(served_table *));
        if (mover->to[copy]) wefti_free(mover->to[copy], tables * sizeof(served_table *));
        if (mover->filled[copy]) wefti_free(mover->filled[copy], tables * sizeof(uint64_t));
    }
    wefti_free(mover, sizeof *mover);
    of->mover = NULL;
}

/* --- moving --- */

static weft_status check_filled(const wefti_resize *of) {
    for (int copy = 0; copy < 2; copy++)
        for (int32_t t = 0; of->mover->to[copy] && t < of->tables; t++) {
            const served_table *table = of->mover->to[copy][t];
            if (!table->options.sparse && of->mover->filled[copy][t] != table->rows)
                return wefti_fail(WEFT_E_CORRUPT, "table '%s': %llu of the %llu rows from %llu on have come to rank %d", table->spec.name,
                                  (unsigned long long)of->mover->filled[copy][t], (unsigned long long)table->rows, (unsigned long long)table->begin,
                                  (int)of->world->rank);
        }
    return WEFT_OK;
}

weft_status wefti_resize_move_rows(wefti_resize *of) {
    struct wefti_mover *mover = of->mover;
    weft_server        *fresh = of->fresh;
    if (of->tables == 0) return WEFT_OK;
    pthread_mutex_lock(&fresh->lock);
    for (int32_t i = 0; i < mover->ins; i++) receive_next(&mover->in[i]);
    for (int32_t i = 0; i < mover->outs; i++) send_next(&mover->out[i]);
    pthread_mutex_unlock(&fresh->lock);
    stream_out *stays = &mover->out[of->world->size];
    weft_status packed = WEFT_OK;
    while (mover->status == WEFT_OK && (packed = pack(stays)) == WEFT_OK) note(mover, unpack(of, &stays->head, stays->buffer, stays->places, stays->peer));
    if (packed != WEFT_OK && packed != WEFT_END) note(mover, packed);
    WEFTI_TRY(wait_until(of, all_moved, &mover->steps));
    if (mover->status != WEFT_OK) return wefti_fail(mover->status, "%s", mover->message);
    return check_filled(of);
}
