/* Reductions by way of a parameter server.
 *
 * A reduction is one push and pull of a row that all ranks have in common, in a table of staleness 0 whose rule puts the clock's sum in the row's place. A
 * clock waits for nobody who has died, so a reduction does not either, and it sees all who are there the same: a row is one server's, which sums it
 * once. A one is pushed along, so the sum says how many gave something.
 *
 * A sum over fewer ranks than the world has is multiplied by what is missing: the rows of those who are gone count as if they were like the others'. So
 * means stay means, whether they are divided by how many rows the whole batch has or by a number that is itself such a sum.
 *
 * Least and greatest: each rank's part has a place of its own in the row, and zeros come from the others. Sums are in F64 or I64, in the order
 * of ranks. Cost: a message to a server and back, rows of 8 bytes an element. A table for each length, kind and dtype; nothing is allocated
 * but when one first comes. */
#include <math.h>
#include <stdio.h>

#include "parallel/server/inside.h"
#include "parallel/server/meeting.h"

enum { OPERATIONS = 16 };

typedef struct meeting_table {
    struct meeting_table *next;
    weft_table           *table; /* the server's */
    size_t                count;
    bool                  whole, parts; /* of I64; one part for each rank */
} meeting_table;

typedef struct meeting_operation {
    wefti_collective      base;
    wefti_collective     *inner; /* of the group below; NULL: it is a request */
    weft_request         *request;
    const meeting_table  *at;
    wefti_collective_call call;
    uint64_t              number;
    bool                  taken;
    uint8_t              *memory; /* what is sent, what is received */
    size_t                room;
} meeting_operation;

typedef struct meeting {
    wefti_group       base;
    weft_server      *server;
    wefti_group      *over;
    meeting_table    *tables;
    int32_t           members;
    meeting_operation operations[OPERATIONS];
} meeting;

static weft_status take_sum(void *context, const weft_row *row) {
    (void)context;
    memcpy(row->values, row->update, (size_t)row->width * weft_dtype_bytes(row->dtype));
    return WEFT_OK;
}
const weft_table_function wefti_meeting_rule = {.name = "weft.meeting", .apply = take_sum};

/* --- numbers --- */

static bool is_whole(weft_dtype dtype) { return dtype == WEFT_I64 || dtype == WEFT_I32; }
static bool is_part(const wefti_collective_call *call) { return call->op == WEFTI_REDUCE_MIN || call->op == WEFTI_REDUCE_MAX; }

static bool takes(const wefti_collective_call *call) {
    bool number = call->dtype == WEFT_F32 || call->dtype == WEFT_F64 || is_whole(call->dtype);
    return call->kind == WEFTI_ALLREDUCE && number && (call->op == WEFTI_REDUCE_SUM || call->op == WEFTI_REDUCE_AVG || is_part(call));
}

static size_t width_of(const meeting *m, const meeting_table *at) {
    return (at->count + 1) * (at->parts ? (size_t)m->base.size : 1);
}

/* Element i of each goes to, or comes from, 8 bytes. */
static void widen(weft_dtype dtype, size_t count, const void *from, void *to) {
    for (size_t i = 0; i < count; i++) switch (dtype) {
        case WEFT_F32: ((double *)to)[i] = ((const float *)from)[i]; break;
        case WEFT_I32: ((int64_t *)to)[i] = ((const int32_t *)from)[i]; break;
        default: ((uint64_t *)to)[i] = ((const uint64_t *)from)[i]; break;
        }
}

static void set_number(const meeting_operation *o, size_t i, double real, int64_t whole) {
    switch (o->call.dtype) {
    case WEFT_F32: ((float *)o->call.receive)[i] = (float)real; break;
    case WEFT_F64: ((double *)o->call.receive)[i] = real; break;
    case WEFT_I32: ((int32_t *)o->call.receive)[i] = (int32_t)whole; break;
    default: ((int64_t *)o->call.receive)[i] = whole; break;
    }
}

/* Who gave something has a one behind its part. */
static bool is_there(const meeting_operation *o, const uint8_t *part) {
    const void *mark = part + o->at->count * sizeof(double);
    return o->at->whole ? *(const int64_t *)mark != 0 : *(const double *)mark != 0;
}

static double worse(double a, double b, bool least) { return isnan(a) || isnan(b) ? NAN : (least ? b < a : b > a) ? b : a; }

/* The least or greatest of the parts that are there. */
static int32_t choose(const meeting *m, const meeting_operation *o) {
    const size_t part_bytes = (o->at->count + 1) * sizeof(double);
    const bool   least = o->call.op == WEFTI_REDUCE_MIN;
    int32_t      there = 0;
    for (size_t i = 0; i < o->at->count; i++) {
        double  real = 0;
        int64_t whole = 0;
        there = 0;
        for (int32_t rank = 0; rank < m->base.size; rank++) {
            const uint8_t *part = o->memory + o->room / 2 + (size_t)rank * part_bytes;
            if (!is_there(o, part)) continue;
            double  r = ((const double *)part)[i];
            int64_t w = ((const int64_t *)part)[i];
            bool    first = there++ == 0;
            if (o->at->whole) whole = first || (least ? w < whole : w > whole) ? w : whole;
            else real = first ? r : worse(real, r, least);
        }
        set_number(o, i, real, whole);
    }
    return there;
}

static int32_t scale(const meeting *m, const meeting_operation *o) {
    const void   *sums = o->memory + o->room / 2;
    const int32_t there = o->at->whole ? (int32_t)((const int64_t *)sums)[o->at->count] : (int32_t)((const double *)sums)[o->at->count];
    const bool    all = there == m->base.size || there <= 0;
    double        factor = all ? 1 : (double)m->base.size / there;
    if (o->call.op == WEFTI_REDUCE_AVG) factor /= m->base.size;
    for (size_t i = 0; i < o->at->count; i++) {
        if (!o->at->whole) set_number(o, i, all && factor == 1 ? ((const double *)sums)[i] : ((const double *)sums)[i] * factor, 0);
        else set_number(o, i, 0, factor == 1 ? ((const int64_t *)sums)[i] : llround((double)((const int64_t *)sums)[i] * factor));
    }
    return there;
}

/* --- tables --- */

static weft_status add_table(meeting *m, const wefti_collective_call *call, meeting_table **table_out) {
    char           name[WEFT_TABLE_NAME_BYTES];
    meeting_table *at = NULL;
    bool           whole = is_whole(call->dtype);
    WEFTI_TRY(wefti_alloc(sizeof *at, "reductions by the server", &at));
    *at = (meeting_table){.count = call->count, .whole = whole, .parts = is_part(call)};
    /* Of this split of the server alone: whoever comes into it begins with the others. */
    snprintf(name, sizeof name, WEFTI_MEETING_PREFIX "%llu.%s%s.%zu", (unsigned long long)m->server->generation, whole ? "i64" : "f64", at->parts ? ".parts" : "",
             call->count);
    weft_table_options options = {.name = name, .rows = 1, .width = (int64_t)width_of(m, at), .dtype = whole ? WEFT_I64 : WEFT_F64,
                                  .rule = {.kind = WEFT_TABLE_USER, .function = wefti_meeting_rule.name}};
    weft_status        status = weft_table_create(m->server, &options, &at->table);
    if (status != WEFT_OK) {
        wefti_free(at, sizeof *at);
        return status;
    }
    at->next = m->tables;
    m->tables = *table_out = at;
    return WEFT_OK;
}

static weft_status find_table(meeting *m, const wefti_collective_call *call, meeting_table **table_out) {
    for (*table_out = m->tables; *table_out; *table_out = (*table_out)->next) {
        const meeting_table *at = *table_out;
        if (at->count == call->count && at->whole == is_whole(call->dtype) && at->parts == is_part(call)) return WEFT_OK;
    }
    return add_table(m, call, table_out);
}

/* --- the engine --- */

static meeting *meeting_of(const wefti_collective *operation) { return (meeting *)operation->group; }

static weft_status take_operation(meeting *m, meeting_operation **operation_out) {
    for (int i = 0; i < OPERATIONS; i++)
        if (!m->operations[i].taken) {
            *operation_out = &m->operations[i];
            return WEFT_OK;
        }
    return WEFT_E_AGAIN;
}

static weft_status make_room(const meeting *m, meeting_operation *o) {
    size_t wanted = 2 * width_of(m, o->at) * sizeof(double);
    if (o->room == wanted) return WEFT_OK;
    if (o->memory) wefti_free(o->memory, o->room);
    o->memory = NULL;
    o->room = 0;
    WEFTI_TRY(wefti_alloc(wanted, "a reduction by the server", &o->memory));
    o->room = wanted;
    return WEFT_OK;
}

static weft_status start_request(meeting *m, meeting_operation *o) {
    meeting_table *at = NULL;
    WEFTI_TRY(find_table(m, &o->call, &at));
    o->at = at;
    WEFTI_TRY(make_room(m, o));
    size_t   offset = at->parts ? (size_t)m->base.index * (at->count + 1) : 0, end = offset + at->count;
    uint8_t *mine = o->memory + offset * sizeof(double);
    memset(o->memory, 0, o->room / 2);
    widen(o->call.dtype, at->count, o->call.send, mine);
    if (at->whole) ((int64_t *)o->memory)[end] = 1;
    else ((double *)o->memory)[end] = 1;
    weft_table_call call = {.kind = WEFT_PUSH_PULL, .send = o->memory, .receive = o->memory + o->room / 2, .timeout_ns = (int64_t)o->call.timeout_ns};
    return weft_table_start_call(at->table, &call, &o->request);
}

static weft_status start(wefti_group *group, const wefti_collective_call *call, wefti_collective **operation_out) {
    meeting           *m = (meeting *)group;
    meeting_operation *o = NULL;
    WEFTI_TRY(take_operation(m, &o));
    o->base.group = group;
    o->call = *call;
    o->inner = NULL;
    o->request = NULL;
    if (takes(call) && call->count > 0) WEFTI_TRY(start_request(m, o));
    else WEFTI_TRY(wefti_collective_start(m->over, call, &o->inner));
    o->taken = true;
    o->number = group->sequence++;
    *operation_out = &o->base;
    return WEFT_OK;
}

static weft_status end(meeting_operation *o, weft_status status) {
    meeting *m = meeting_of(&o->base);
    if (status == WEFT_E_AGAIN) return status;
    o->taken = false;
    if (status == WEFT_OK && !o->inner) m->members = o->at->parts ? choose(m, o) : scale(m, o);
    return status;
}

static weft_status test(wefti_collective *operation) {
    meeting_operation *o = (meeting_operation *)operation;
    return end(o, o->inner ? wefti_collective_test(o->inner) : weft_request_test(o->request));
}

static weft_status wait_until(wefti_collective *operation, uint64_t timeout_ns) {
    meeting_operation *o = (meeting_operation *)operation;
    return end(o, o->inner ? wefti_collective_wait(o->inner, timeout_ns) : weft_request_wait(o->request, (int64_t)timeout_ns));
}

static weft_status supports(const wefti_group *group, const wefti_collective_call *call) {
    const meeting *m = (const meeting *)group;
    return takes(call) ? WEFT_OK : m->over->engine->supports(m->over, call);
}

static weft_status progress(wefti_group *group, uint64_t now_ns) {
    meeting *m = (meeting *)group;
    for (int i = 0; i < OPERATIONS; i++)
        if (m->operations[i].taken && m->operations[i].inner) return m->over->engine->progress(m->over, now_ns);
    return weft_server_poll(m->server);
}

static uint64_t sequence(const wefti_collective *operation) { return ((const meeting_operation *)operation)->number; }

static void describe(const wefti_group *group, wefti_text *text) {
    const meeting *m = (const meeting *)group;
    for (int i = 0; i < OPERATIONS; i++) {
        const meeting_operation *o = &m->operations[i];
        if (o->taken && !o->inner)
            wefti_text_add(text, "reduction %llu by the parameter server, %zu elements\n", (unsigned long long)o->number, o->call.count);
    }
    m->over->engine->describe(m->over, text);
}

static const wefti_collective_engine engine = {.name = "server", .supports = supports, .start = start, .progress = progress, .test = test,
                                               .wait = wait_until, .sequence = sequence, .describe = describe};

/* --- opening and closing --- */

weft_status wefti_meeting_open(weft_server *server, wefti_group *over, wefti_group **group_out) {
    meeting *m = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *m, "reductions by the server", &m));
    m->base = (wefti_group){.engine = &engine, .size = over->size, .index = over->index, .ranks = over->ranks};
    m->server = server;
    m->over = over;
    m->members = over->size;
    *group_out = &m->base;
    return WEFT_OK;
}

void wefti_meeting_close(wefti_group *group) {
    meeting *m = (meeting *)group;
    if (!m) return;
    for (meeting_table *at = m->tables, *next; at; at = next) {
        next = at->next;
        wefti_free(at, sizeof *at);
    }
    for (int i = 0; i < OPERATIONS; i++)
        if (m->operations[i].memory) wefti_free(m->operations[i].memory, m->operations[i].room);
    wefti_free(m, sizeof *m);
}

void wefti_meeting_leave(wefti_group *group) {
    for (meeting_table *at = group ? ((meeting *)group)->tables : NULL; at; at = at->next) weft_table_release(at->table);
    wefti_meeting_close(group);
}

int32_t wefti_meeting_members(const wefti_group *group) { return ((const meeting *)group)->members; }
