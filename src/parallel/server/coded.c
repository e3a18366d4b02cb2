/* Coded requests.
 *
 * The worker brings the rows into the order of servers, adds what it has kept of them, codes each server's part, and keeps what that leaves out, by
 * row: in a store like those of servers, dense or sparse as the table, so a row may be pushed by any list or key set. Of `significant` a row also keeps
 * how large it was when it was last sent. Random rounding is keyed by seed, worker and the pushes that the worker has made of this table, or the
 * request's number where the server rounds: the same program rounds the same way.
 *
 * The server decodes into rows of its own and goes on as if these had come. Where rows are left out, the rule sees those that came alone.
 *
 * Memory for the length of a push: rows three times over where something is kept, and 9 bytes a row. What is not finite is sent and not kept, or one
 * NaN would stay for ever. */
#include "parallel/server/coded.h"

#include <math.h>
#include <string.h>

#include "parallel/server/keys.h"
#include "parallel/server/route.h"
#include "parallel/server/states.h"
#include "parallel/server/store.h"

struct wefti_coder {
    pthread_mutex_t lock;
    wefti_store    *kept;  /* [width] a row, and for `significant` its largest magnitude when it was last sent; NULL: nothing is kept */
    int64_t         width; /* of a row in it */
    uint64_t        pushes;
    atomic_bool     stale; /* what is kept is of rows that a snapshot has replaced */
};

enum { FROM_WORKER, FROM_SERVER };

/* Seed, worker and direction to a key; a message's number and server to a stream. */
static void draw_by(wefti_coding *coding, int32_t worker, int direction, uint64_t number, int32_t server) {
    coding->key = wefti_mix(coding->how->seed + UINT64_C(0x9e3779b97f4a7c15) * (2 * (uint64_t)worker + 1 + (uint64_t)direction));
    coding->stream = number * WEFTI_ALL_WORKERS + (uint64_t)server;
}

static wefti_coding coding_of(const weft_table_options *o, const weft_compression *how) {
    return (wefti_coding){.how = how, .dtype = o->dtype, .width = o->width};
}

/* --- the worker's --- */

static weft_status make_store(const weft_table_options *o, wefti_coder *coder) {
    return wefti_store_create(&(wefti_store_options){.sparse = o->sparse, .rows = (uint64_t)o->rows, .width = coder->width, .dtype = WEFT_F32, .name = o->name},
                              &coder->kept);
}

weft_status wefti_coder_create(const weft_table_options *o, wefti_coder **coder_out) {
    wefti_coder *coder = NULL;
    *coder_out = NULL;
    if (o->push.codec == WEFT_COMPRESS_NONE && o->pull.codec == WEFT_COMPRESS_NONE) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(sizeof *coder, "a table's codecs", &coder));
    pthread_mutex_init(&coder->lock, NULL);
    coder->width = o->width + (o->push.codec == WEFT_COMPRESS_SIGNIFICANT);
    *coder_out = coder;
    if (!wefti_coding_feeds_back(&o->push)) return WEFT_OK;
    weft_status status = make_store(o, coder);
    if (status == WEFT_OK) return WEFT_OK;
    wefti_coder_release(coder);
    *coder_out = NULL;
    return status;
}

void wefti_coder_release(wefti_coder *coder) {
    if (!coder) return;
    wefti_store_release(coder->kept);
    pthread_mutex_destroy(&coder->lock);
    wefti_free(coder, sizeof *coder);
}

void wefti_coder_forget(weft_table *table) {
    if (table->coder) atomic_store(&table->coder->stale, true);
}

/* Under the coder's lock. */
static weft_status forget_if_stale(const weft_table_options *o, wefti_coder *coder) {
    if (!coder->kept || !atomic_load(&coder->stale)) return WEFT_OK;
    wefti_store *old = coder->kept;
    weft_status  status = make_store(o, coder);
    if (status != WEFT_OK) {
        coder->kept = old;
        return status;
    }
    atomic_store(&coder->stale, false);
    wefti_store_release(old);
    return WEFT_OK;
}

bool wefti_table_keeps(const weft_table *table) { return table->coder && table->coder->kept && !table->options.sparse; }

weft_status wefti_table_kept(weft_table *table, float *values, bool out) {
    wefti_coder  *coder = table->coder;
    const int64_t width = table->options.width;
    float        *row = NULL;
    size_t        bytes = (size_t)coder->width * sizeof *row;
    WEFTI_TRY(wefti_alloc(bytes, "what compression keeps", &row));
    pthread_mutex_lock(&coder->lock);
    if (!out) atomic_store(&coder->stale, true);
    weft_status status = forget_if_stale(&table->options, coder);
    for (int64_t i = 0; i < table->options.rows && status == WEFT_OK; i++) {
        if (out) status = wefti_store_read(coder->kept, NULL, NULL, (uint64_t)i, 1, row);
        if (out) memcpy(values + i * width, row, (size_t)width * sizeof *row);
        else memcpy(row, values + i * width, (size_t)width * sizeof *row);
        if (!out && status == WEFT_OK) status = wefti_store_write(coder->kept, NULL, (uint64_t)i, 1, row);
    }
    pthread_mutex_unlock(&coder->lock);
    wefti_free(row, bytes);
    return status;
}

uint64_t wefti_table_pushes(weft_table *table) { return table->coder ? table->coder->pushes : 0; }
void     wefti_table_set_pushes(weft_table *table, uint64_t pushes) {
    if (table->coder) table->coder->pushes = pushes;
}

static const weft_keys *keys_of(const weft_request *request) { return request->own_keys ? request->own_keys : request->call.keys; }
static int64_t rows_of(const weft_request *request) { return keys_of(request) ? keys_of(request)->count : request->table->options.rows; }

static bool is_coded(const weft_request *request, const weft_compression *how) {
    if (request->part || request->call.plain || request->call.entries || request->call.pulled || how->codec == WEFT_COMPRESS_NONE) return false;
    int64_t count = request->call.keys ? request->call.keys->count : request->call.rows ? request->call.row_count : request->table->options.rows;
    return count > 0 && (how->least == 0 || count >= (how->least + request->table->options.width - 1) / request->table->options.width);
}
bool wefti_coded_pushes(const weft_request *request) {
    return (request->kind == WEFTI_SERVER_PUSH || request->kind == WEFTI_SERVER_PUSH_PULL) && is_coded(request, &request->table->options.push);
}
bool wefti_coded_pulls(const weft_request *request) { return wefti_is_pull(request->kind) && is_coded(request, &request->table->options.pull); }

/* A push on its way into its code. Rows are in the order of servers. */
typedef struct push {
    wefti_coding coding;
    int64_t      rows, width; /* width of what is kept */
    float       *values;      /* [rows, width of the table]; of other dtypes than f32 for `nonzero` */
    float       *kept;        /* [rows, width], `values` included from add_kept on; NULL: nothing is */
    float       *back;        /* [rows, width of the table] what was sent, of codecs of elements */
    uint64_t    *places;      /* [rows] of what is kept; NULL: from 0 on */
    uint8_t     *sent;        /* [rows] of codecs of rows */
    void        *scratch;
} push;

static size_t take_from(size_t *at, size_t bytes) {
    size_t here = *at;
    *at += wefti_align_up(bytes, WEFTI_CACHE_LINE);
    return here;
}

/* Memory of a push, in one buffer. */
static weft_status lay_out(weft_server *server, const weft_request *request, push *p, server_buffer **work_out) {
    const wefti_coder *coder = request->table->coder;
    const bool         elements = wefti_codec_of((int32_t)p->coding.how->codec)->functions, keeps = coder->kept, routed = keys_of(request);
    const size_t       rows = (size_t)p->rows, row_bytes = request->table->row_bytes;
    size_t             bytes = 0, values = take_from(&bytes, rows * row_bytes), kept = take_from(&bytes, keeps ? rows * (size_t)coder->width * 4 : 0);
    size_t             back = take_from(&bytes, keeps && elements ? rows * row_bytes : 0), places = take_from(&bytes, keeps && routed ? rows * 8 : 0);
    size_t             sent = take_from(&bytes, elements ? 0 : rows), scratch = take_from(&bytes, wefti_coding_scratch(&p->coding, p->rows));
    pthread_mutex_lock(&server->lock);
    weft_status status = wefti_server_take(server, bytes, false, work_out);
    pthread_mutex_unlock(&server->lock);
    if (status != WEFT_OK) return status;
    uint8_t *base = (*work_out)->data;
    p->values = (float *)(void *)(base + values);
    p->kept = keeps ? (float *)(void *)(base + kept) : NULL;
    p->back = keeps && elements ? (float *)(void *)(base + back) : NULL;
    p->places = keeps && routed ? (uint64_t *)(void *)(base + places) : NULL;
    p->sent = elements ? NULL : base + sent;
    p->scratch = base + scratch;
    p->width = coder->width;
    return WEFT_OK;
}

static void gather(const weft_request *request, push *p) {
    const weft_keys *keys = keys_of(request);
    const size_t     row_bytes = request->table->row_bytes;
    uint8_t         *to = (uint8_t *)(void *)p->values;
    const uint8_t   *from = request->call.send;
    if (!keys || !keys->places) memcpy(to, from, (size_t)p->rows * row_bytes);
    else
        for (int64_t row = 0; row < p->rows; row++) memcpy(to + (size_t)row * row_bytes, from + (size_t)keys->places[row] * row_bytes, row_bytes);
}

/* values += what is kept of these rows. Keys of a dense table are their own places. */
static weft_status add_kept(const weft_request *request, wefti_coder *coder, push *p) {
    const weft_keys *keys = keys_of(request);
    if (!p->kept) return WEFT_OK;
    if (p->places && request->table->options.sparse) WEFTI_TRY(wefti_store_find(coder->kept, keys->routed, p->rows, true, p->places));
    else if (p->places) memcpy(p->places, keys->routed, (size_t)p->rows * sizeof *p->places);
    WEFTI_TRY(wefti_store_read(coder->kept, keys ? keys->routed : NULL, p->places, 0, p->rows, p->kept));
    for (int64_t row = 0; row < p->rows; row++)
        for (int64_t i = 0; i < p->coding.width; i++) p->values[row * p->coding.width + i] += p->kept[row * p->width + i];
    return WEFT_OK;
}

static float magnitude_of(const float *row, int64_t width) {
    float largest = 0;
    for (int64_t i = 0; i < width; i++)
        if (!(fabsf(row[i]) <= largest)) largest = fabsf(row[i]); /* NaN too */
    return largest;
}

/* Which rows are sent, by codecs of whole rows. */
static void choose(push *p) {
    const size_t row_bytes = (size_t)p->coding.width * weft_dtype_bytes(p->coding.dtype);
    const double threshold = p->coding.how->threshold > 0 ? p->coding.how->threshold : 0.5;
    for (int64_t row = 0; row < p->rows && p->sent; row++) {
        if (p->coding.how->codec == WEFT_COMPRESS_NONZERO) {
            p->sent[row] = !wefti_coding_is_zero(&p->coding, (const uint8_t *)(const void *)p->values + (size_t)row * row_bytes);
            continue;
        }
        float size = magnitude_of(p->values + row * p->coding.width, p->coding.width), *last = &p->kept[row * p->width + p->coding.width];
        p->sent[row] = size != 0 && !((double)size <= threshold * (double)*last);
        if (p->sent[row]) *last = isfinite(size) ? size : 0;
    }
}

static weft_status code_parts(weft_server *server, weft_request *request, push *p, uint64_t number) {
    const weft_keys *keys = keys_of(request);
    const uint64_t   all = (uint64_t)request->table->options.rows;
    uint8_t         *at = request->staging_out->data;
    for (int32_t i = 0; i < server->servers; i++) {
        int64_t begin = keys ? keys->begin[i] : (int64_t)wefti_route_begin(all, server->servers, i);
        int64_t end = keys ? keys->begin[i + 1] : (int64_t)wefti_route_begin(all, server->servers, i + 1), rows = end - begin;
        draw_by(&p->coding, server->rank, FROM_WORKER, number, i);
        const uint8_t *values = (const uint8_t *)(const void *)p->values + (size_t)begin * request->table->row_bytes;
        request->parts[i].coded = at;
        request->parts[i].coded_bytes = wefti_coding_write(&p->coding, values, rows, p->sent ? p->sent + begin : NULL, at, p->scratch);
        if (p->back && rows) {
            int64_t          elements = rows * p->coding.width;
            wefti_codec_part part = {.elements = elements, .given = elements};
            if (p->coding.how->codec == WEFT_COMPRESS_TOP_K) part.kept = wefti_codec_kept(p->coding.how, elements);
            WEFTI_TRY(wefti_codec_of((int32_t)p->coding.how->codec)->functions->decode(&part, at, request->parts[i].coded_bytes, false,
                                                                                      p->back + begin * p->coding.width));
        }
        at += request->parts[i].coded_bytes;
    }
    return WEFT_OK;
}

static void keep(wefti_coder *coder, push *p) {
    if (!p->kept) return;
    for (int64_t row = 0; row < p->rows; row++)
        for (int64_t i = 0; i < p->coding.width; i++) {
            float value = p->values[row * p->coding.width + i], sent = p->back ? p->back[row * p->coding.width + i] : p->sent[row] ? value : 0;
            float rest = value - sent;
            p->kept[row * p->width + i] = isfinite(rest) ? rest : 0;
        }
    weft_status status = wefti_store_write(coder->kept, p->places, 0, p->rows, p->kept);
    (void)status; /* fails of hybrid stores only */
}

static weft_status code(weft_server *server, weft_request *request, push *p) {
    wefti_coder *coder = request->table->coder;
    gather(request, p);
    pthread_mutex_lock(&coder->lock);
    uint64_t    number = ++coder->pushes;
    weft_status status = forget_if_stale(&request->table->options, coder);
    if (status == WEFT_OK) status = add_kept(request, coder, p);
    if (status == WEFT_OK) {
        choose(p);
        status = code_parts(server, request, p, number);
    }
    if (status == WEFT_OK) keep(coder, p);
    pthread_mutex_unlock(&coder->lock);
    return status;
}

weft_status wefti_coded_push(weft_server *server, weft_request *request) {
    const weft_table *table = request->table;
    push              p = {.coding = coding_of(&table->options, &table->options.push), .rows = rows_of(request)};
    server_buffer    *work = NULL;
    if (!wefti_coding_fits(&p.coding, p.rows))
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': %lld rows of %lld elements are too many for %s in one request", table->options.name, (long long)p.rows,
                          (long long)table->options.width, wefti_codec_of((int32_t)table->options.push.codec)->name);
    /* Parts are rounded up one by one (a scale, an element kept, bits of rows): what one server's would take, and a little for each. */
    size_t bytes = wefti_coding_bytes(&p.coding, p.rows) + (size_t)server->servers * 64;
    WEFTI_TRY(lay_out(server, request, &p, &work));
    pthread_mutex_lock(&server->lock);
    weft_status status = wefti_server_take(server, bytes, false, &request->staging_out);
    pthread_mutex_unlock(&server->lock);
    if (status == WEFT_OK) status = code(server, request, &p);
    pthread_mutex_lock(&server->lock);
    wefti_server_give(server, work);
    pthread_mutex_unlock(&server->lock);
    return status;
}

size_t wefti_coded_pull_bytes(const weft_table_options *o, int64_t rows) {
    wefti_coding coding = coding_of(o, &o->pull);
    return wefti_coding_bytes(&coding, rows);
}

static weft_status decode_part(const weft_table *table, const uint8_t *bytes, int64_t rows, float *out) {
    wefti_codec_part part = {.elements = rows * table->options.width, .given = rows * table->options.width};
    if (rows == 0) return WEFT_OK;
    return wefti_codec_of((int32_t)table->options.pull.codec)->functions->decode(&part, bytes, wefti_coded_pull_bytes(&table->options, rows), false, out);
}

weft_status wefti_coded_pulled(weft_server *server, weft_request *request) {
    const weft_table *table = request->table;
    const weft_keys  *keys = keys_of(request);
    const size_t      row_bytes = table->row_bytes, bytes = (size_t)rows_of(request) * row_bytes;
    const bool        routed = keys && keys->places;
    server_buffer    *work = NULL;
    weft_status       status = WEFT_OK;
    if (routed) {
        pthread_mutex_lock(&server->lock);
        status = wefti_server_take(server, bytes, false, &work);
        pthread_mutex_unlock(&server->lock);
    }
    uint8_t *rows = work ? work->data : request->call.receive;
    for (int32_t i = 0; i < server->servers && status == WEFT_OK; i++) {
        size_t begin = (size_t)request->parts[i].first * row_bytes;
        status = decode_part(table, request->staging_in->data + begin, request->parts[i].count, (float *)(void *)(rows + begin));
    }
    for (int64_t i = 0; routed && status == WEFT_OK && i < keys->count; i++)
        memcpy((uint8_t *)request->call.receive + (size_t)keys->places[i] * row_bytes, rows + (size_t)i * row_bytes, row_bytes);
    pthread_mutex_lock(&server->lock);
    wefti_server_give(server, work);
    pthread_mutex_unlock(&server->lock);
    return status;
}

/* --- the server's --- */

weft_status wefti_coded_read(weft_server *server, const served_table *table, server_job *job) {
    wefti_coding  coding = coding_of(&table->options, &table->options.push);
    const int64_t rows = (int64_t)job->frame.count;
    const size_t  places = wefti_align_up((size_t)rows * sizeof *job->chosen, WEFTI_CACHE_LINE);
    size_t        bytes = 0;
    if (coding.how->codec == WEFT_COMPRESS_NONE)
        return wefti_fail(WEFT_E_CORRUPT, "table '%s' has no codec for pushes, and rank %d pushes coded rows", table->spec.name, (int)job->worker);
    if (!job->body && rows) return wefti_fail(WEFT_E_CORRUPT, "table '%s': coded rows of rank %d have no bytes", table->spec.name, (int)job->worker);
    if (!rows) return WEFT_OK;
    if (!wefti_mul_size((size_t)rows, table->row_bytes, &bytes) || bytes > SIZE_MAX / 2 || !wefti_coding_fits(&coding, rows))
        return wefti_fail(WEFT_E_CORRUPT, "table '%s': rank %d pushes %lld coded rows", table->spec.name, (int)job->worker, (long long)rows);
    WEFTI_TRY(wefti_server_take(server, places + bytes, false, &job->decoded));
    job->chosen = (uint64_t *)(void *)job->decoded->data;
    job->values = job->decoded->data + places;
    weft_status status = wefti_coding_read(&coding, job->body->data + job->list_bytes, (size_t)job->frame.body_bytes - job->list_bytes, rows, job->chosen,
                                           &job->chosen_count, job->decoded->data + places);
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "table '%s', a push of rank %d", table->spec.name, (int)job->worker);
}

/* Keys and places of the chosen rows alone, as if the request had named no others. */
static weft_status choose_keys(served_table *table, const server_job *job, served_keys **keys_out) {
    const served_keys *all = job->keys;
    served_keys       *keys = NULL;
    size_t             bytes = (size_t)job->chosen_count * sizeof(uint64_t);
    WEFTI_TRY(wefti_alloc(sizeof *keys, "a key set", &keys));
    keys->count = job->chosen_count;
    keys->worker = job->worker;
    keys->users = 1;
    keys->next = table->keys;
    table->keys = keys;
    *keys_out = keys;
    WEFTI_TRY(wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "a key set", &keys->keys));
    WEFTI_TRY(wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "a key set", &keys->places));
    for (int64_t i = 0; i < keys->count; i++) {
        keys->keys[i] = all ? all->keys[job->chosen[i]] : job->frame.first + job->chosen[i];
        keys->places[i] = all ? all->places[job->chosen[i]] : keys->keys[i] - table->begin;
        keys->missing = keys->missing || keys->places[i] == WEFTI_PLACE_NONE;
    }
    if (keys->missing) WEFTI_TRY(wefti_store_find(table->store, keys->keys, keys->count, true, keys->places));
    keys->missing = false;
    return WEFT_OK;
}

weft_status wefti_coded_give(weft_server *server, served_table *table, server_job *job) {
    served_keys   *all = job->keys;
    const uint64_t count = job->frame.count;
    weft_status    status = WEFT_OK;
    bool           some = (uint64_t)job->chosen_count < count;
    if (job->chosen_count == 0) return WEFT_OK;
    if (some) {
        served_keys *keys = NULL;
        status = choose_keys(table, job, &keys);
        job->keys = keys;
        job->frame.count = (uint64_t)job->chosen_count;
    }
    if (!some && all && all->missing) {
        status = wefti_store_find(table->store, all->keys, all->count, true, all->places);
        all->missing = status != WEFT_OK;
    }
    if (status == WEFT_OK) status = wefti_clock_push(server, table, job);
    if (some) wefti_tables_let_go(table, job->keys);
    job->keys = all;
    job->frame.count = count;
    return status;
}

weft_status wefti_coded_answer(weft_server *server, const served_table *table, server_job *job) {
    wefti_coding   coding = coding_of(&table->options, &table->options.pull);
    const int64_t  rows = (int64_t)job->frame.count;
    server_buffer *plain = job->answer, *coded = NULL;
    if (coding.how->codec == WEFT_COMPRESS_NONE)
        return wefti_fail(WEFT_E_CORRUPT, "table '%s' has no codec for pulls, and rank %d wants rows coded", table->spec.name, (int)job->worker);
    size_t bytes = wefti_coding_bytes(&coding, rows);
    WEFTI_TRY(wefti_server_take(server, bytes, false, &coded));
    draw_by(&coding, job->worker, FROM_SERVER, job->frame.number, server->rank - server->first_server);
    (void)wefti_coding_write(&coding, plain->data, rows, NULL, coded->data, NULL);
    wefti_server_give(server, plain);
    job->answer = coded;
    job->answer_bytes = bytes;
    return WEFT_OK;
}
