/* The worker's side: a request is cut into parts, one for each server that it concerns, which end on their own.
 *
 * A part sends its frame, and bodies behind it where they are long, straight from the caller's memory where that lies in the order of servers.
 * What it is to receive is posted before the frame is, so that it comes into place without a copy. Nothing is allocated for a
 * request but staging of hashed tables, and that once. */
#include <stdio.h>
#include <string.h>

#include "parallel/server/coded.h"
#include "parallel/server/entries.h"
#include "parallel/server/follow.h"
#include "parallel/server/keys.h"

/* A server answers what waits at its deadline with what it waits for; who hears nothing for so much longer has lost it. */
#define GRACE_NS (2 * WEFTI_SECOND_NS)

/* --- requests --- */

static void fill_request(weft_server *server, weft_request *request, request_part *parts) {
    request->server = server;
    request->parts = parts;
    for (int32_t i = 0; i < server->servers; i++) {
        parts[i].request = request;
        parts[i].server = i;
    }
}

static weft_status add_detail(weft_server *server) {
    weft_request *request = NULL;
    request_part *parts = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *request, "a request", &request));
    weft_status status = wefti_alloc((size_t)server->servers * sizeof *parts, "a request", &parts);
    if (status != WEFT_OK) {
        wefti_free(request, sizeof *request);
        return status;
    }
    fill_request(server, request, parts);
    request->detached = true;
    request->all = server->all_details;
    server->all_details = request;
    request->next = server->details;
    server->details = request;
    return WEFT_OK;
}

weft_status wefti_client_take(weft_server *server, bool detached, weft_request **request_out) {
    weft_request **list = detached ? &server->details : &server->free_requests;
    if (!*list && !detached)
        return wefti_fail(WEFT_E_AGAIN, "%d requests are in flight; wait for one first, or ask for more (.in_flight)", (int)server->in_flight);
    if (!*list) WEFTI_TRY(add_detail(server));
    weft_request *request = *list;
    *list = request->next;
    request->next = NULL;
    request->state = REQUEST_FREE;
    request->status = WEFT_OK;
    request->message[0] = 0;
    request->own_keys = NULL;
    request->staging_out = request->staging_in = request->file_body = request->shares = NULL;
    request->call = (weft_table_call){0};
    request->table = NULL;
    request->part = 0;
    request->slice_ns = 0;
    request->ask = NULL;
    request->of = NULL;
    request->twins = 0;
    request->for_lost = request->over = request->again = request->copies_out = request->copies_in = false;
    request->lined = request->reads = request->held = request->asks = false;
    *request_out = request;
    return WEFT_OK;
}

void wefti_client_free(weft_server *server, weft_request *request) {
    wefti_keys_free(request->own_keys);
    wefti_server_give(server, request->staging_out);
    wefti_server_give(server, request->staging_in);
    wefti_server_give(server, request->file_body);
    wefti_server_give(server, request->shares);
    if (request->call.pulled) wefti_entries_give(server, request);
    for (int32_t i = 0; request->copies_in && i < server->servers; i++) wefti_shown_let_go(&request->parts[i]);
    if (request->copies_in) server->copying--;
    request->copies_in = false;
    request->own_keys = NULL;
    request->staging_out = request->staging_in = request->file_body = request->shares = NULL;
    request->state = REQUEST_FREE;
    weft_request **list = request->detached ? &server->details : &server->free_requests;
    request->next = *list;
    *list = request;
}

void wefti_client_fail(weft_request *request, weft_status status, const char *text) {
    if (request->status != WEFT_OK) return;
    request->status = status;
    snprintf(request->message, sizeof request->message, "%s", text);
}

void wefti_client_end(weft_server *server, weft_request *request) {
    if (server->twin && wefti_twin_goes_on(server, request)) return;
    if (request->lined) wefti_twin_leave(server, request);
    server->flying--;
    if (wefti_is_of_files(request->kind) && !request->of && wefti_client_follow(server, request)) return;
    if (request->of) {
        wefti_twin_ended(request);
        return;
    }
    request->state = REQUEST_ENDED;
    if (!request->detached) return;
    weft_table *table = request->table;
    if (request->status != WEFT_OK && table && table->trouble == WEFT_OK) {
        table->trouble = request->status;
        snprintf(table->trouble_text, sizeof table->trouble_text, "%s", request->message);
    }
    wefti_client_free(server, request);
}

/* --- parts --- */

static void part_step(weft_server *server, request_part *part) {
    if (--part->pending == 0 && --part->request->pending == 0) {
        part->request->over = true;
        wefti_client_end(server, part->request);
    }
}

/* Whose link broke is asked here, where it is known what was under way. */
static void fail_part(weft_server *server, request_part *part, weft_status status) {
    int32_t rank = wefti_server_rank(server, part->server);
    char    text[WEFTI_SERVER_TEXT_BYTES];
    const char *cause = server->wire->ops->cause ? server->wire->ops->cause(server->wire, rank) : NULL;
    const char *table = part->request->table ? part->request->table->options.name : NULL;
    bool        other = (server->twin || server->of) && wefti_twin_has(part->request->kind);
    if (other && (status == WEFT_E_PEER || part->lost) && server->failed == WEFT_OK) {
        part->lost = true; /* what becomes of it is seen once all that was asked for it has ended */
        return;
    }
    if (server->failed != WEFT_OK) {
        status = server->failed;
        snprintf(text, sizeof text, "%s", server->failure);
    } else if (status == WEFT_E_PEER)
        snprintf(text, sizeof text, "rank %d, which serves rows of %s%s%s, is gone%s%s", (int)rank, table ? "table '" : "the tables", table ? table : "",
                 table ? "'" : "", cause ? ": " : "", cause ? cause : "");
    else snprintf(text, sizeof text, "rank %d, which serves: %s (%s)", (int)rank, weft_status_text(status), weft_status_name(status));
    wefti_client_fail(part->request, status, text);
}

static void frame_done(weft_server *server, server_event *event) {
    request_part *part = event->owner;
    if (event->op.status != WEFT_OK) fail_part(server, part, event->op.status);
    part_step(server, part);
}

static void out_done(weft_server *server, server_mover *mover) {
    request_part *part = mover->owner;
    if (mover->status == WEFT_OK && part->values) {
        mover->base = (uint8_t *)part->values;
        mover->bytes = part->value_bytes;
        part->values = NULL;
        wefti_server_move(server, mover);
        return;
    }
    if (mover->status != WEFT_OK) fail_part(server, part, mover->status);
    part_step(server, part);
}

static void in_done(weft_server *server, server_mover *mover) {
    request_part *part = mover->owner;
    part->receives = false;
    if (mover->status != WEFT_OK) fail_part(server, part, mover->status);
    part_step(server, part);
}

static uint8_t *receive_at(request_part *part) {
    weft_request *request = part->request;
    uint8_t      *base = request->staging_in ? request->staging_in->data : request->call.receive;
    return base + (size_t)part->first * request->table->row_bytes;
}

/* Bytes of the rows that a part is to receive, as they are sent. */
static size_t pulled_bytes(const request_part *part) {
    const weft_table *table = part->request->table;
    if (!wefti_is_pull(part->request->kind) || wefti_entries_are_in(part->request)) return 0; /* of entries the reply says how many */
    return wefti_coded_pulls(part->request) ? wefti_coded_pull_bytes(&table->options, part->count) : (size_t)part->count * table->row_bytes;
}

/* A snapshot was loaded since a server was last heard: what pushes left out is of rows that are no more. */
static void hear_of_loads(weft_server *server, uint64_t loads) {
    if (loads <= server->loads_heard) return;
    server->loads_heard = loads;
    for (weft_table *table = server->tables; table; table = table->next) wefti_coder_forget(table);
}

/* What a server says: the rows, or why not. */
static weft_status read_reply(weft_server *server, request_part *part, size_t bytes) {
    weft_request             *request = part->request;
    const wefti_server_frame *frame = (const wefti_server_frame *)part->reply_bytes;
    const char               *body = (const char *)part->reply_bytes + sizeof *frame;
    WEFTI_TRY(wefti_server_frame_check(frame, bytes));
    if (frame->kind != WEFTI_SERVER_REPLY || frame->slot != part->slot || (unsigned)frame->status >= WEFT_STATUS_COUNT)
        return wefti_fail(WEFT_E_CORRUPT, "rank %d answers what was not asked", (int)wefti_server_rank(server, part->server));
    hear_of_loads(server->of ? server->of : server, frame->first);
    size_t room = bytes - sizeof *frame;
    if (frame->status != WEFT_OK) {
        char text[WEFTI_SERVER_TEXT_BYTES];
        snprintf(text, sizeof text, "%.*s", (int)(room < sizeof text - 1 ? room : sizeof text - 1), body);
        wefti_client_fail(request, (weft_status)frame->status, text);
        return WEFT_OK;
    }
    if (request->ask && (frame->body_bytes != request->answer_bytes || !(frame->flags & WEFTI_SERVER_INLINE)))
        return wefti_fail(WEFT_E_CORRUPT, "rank %d answers a question with %llu bytes, not %zu", (int)wefti_server_rank(server, part->server),
                          (unsigned long long)frame->body_bytes, request->answer_bytes);
    if (request->ask) return WEFT_OK;
    bool pulls = wefti_is_pull(request->kind);
    if (pulls && wefti_entries_are_in(request)) return wefti_entries_reply(server, part, room, in_done);
    size_t wanted = request->kind == WEFTI_SERVER_OPEN ? sizeof request->spec : request->kind == WEFTI_SERVER_SAVE ? sizeof(wefti_server_share) : pulls ? pulled_bytes(part) : 0;
    if (frame->body_bytes != wanted)
        return wefti_fail(WEFT_E_CORRUPT, "rank %d answers with %llu bytes; %zu were asked for", (int)wefti_server_rank(server, part->server),
                          (unsigned long long)frame->body_bytes, wanted);
    if (request->part && pulls && part->count) *request->updates = (int64_t)frame->clock;
    if (part->in_place) server->received_in_place += wanted;
    if (part->large || wanted == 0 || (part->in_place && frame->flags & WEFTI_SERVER_RECEIVED_IN_PLACE)) return WEFT_OK;
    if (!(frame->flags & WEFTI_SERVER_INLINE)) return wefti_fail(WEFT_E_CORRUPT, "an answer of %zu bytes is not where it should be", wanted);
    uint8_t *to = request->kind == WEFTI_SERVER_OPEN   ? (uint8_t *)&request->spec
                  : request->kind == WEFTI_SERVER_SAVE ? request->shares->data + (size_t)part->server * wanted
                                                       : receive_at(part);
    memcpy(to, body, wanted);
    return WEFT_OK;
}

static void reply_done(weft_server *server, server_event *event) {
    request_part *part = event->owner;
    weft_status   before = part->request->status;
    part->answered = true;
    if (event->op.status != WEFT_OK) {
        fail_part(server, part, event->op.status);
    } else if (read_reply(server, part, wefti_server_lengthen(part->reply_bytes, event->op.done_bytes)) != WEFT_OK) {
        wefti_client_fail(part->request, WEFT_E_CORRUPT, weft_error_message());
    }
    bool refused = event->op.status != WEFT_OK || ((wefti_server_frame *)part->reply_bytes)->status != WEFT_OK ||
                   (before == WEFT_OK && part->request->status != WEFT_OK);
    if (part->receives && refused) wefti_server_unmove(server, &part->in);
    part_step(server, part);
}

/* --- starting --- */

static void post_reply(weft_server *server, request_part *part) {
    int32_t rank = wefti_server_rank(server, part->server);
    part->reply.op = wefti_wire_recv(rank, wefti_server_tag(WEFTI_TAG_REPLY, part->slot), part->reply_bytes, sizeof part->reply_bytes);
    part->reply.done = reply_done;
    part->reply.owner = part;
    part->pending++;
    wefti_server_post(server, &part->reply);
}

static void post_in(weft_server *server, request_part *part, size_t bytes) {
    part->in.kind = WEFTI_WIRE_RECV;
    part->in.peer = wefti_server_rank(server, part->server);
    part->in.tag = wefti_server_tag(WEFTI_TAG_REPLY_BODY, part->slot);
    part->in.base = receive_at(part);
    part->in.bytes = bytes;
    part->in.done = in_done;
    part->in.owner = part;
    part->large = part->receives = true;
    part->pending++;
    wefti_server_move(server, &part->in);
}

static void post_out(weft_server *server, request_part *part, const void *body, size_t bytes) {
    part->out.kind = WEFTI_WIRE_SEND;
    part->out.peer = wefti_server_rank(server, part->server);
    part->out.tag = wefti_server_tag(WEFTI_TAG_REQUEST_BODY, part->slot);
    part->out.base = (uint8_t *)(uintptr_t)body;
    part->out.bytes = bytes;
    part->out.done = out_done;
    part->out.owner = part;
    part->pending++;
    wefti_server_move(server, &part->out);
}

/* The frame, with the body in it or behind it. */
static void post_frame(weft_server *server, request_part *part, wefti_server_frame *head, const void *list, size_t list_bytes,
                       const void *values, size_t value_bytes) {
    size_t bytes = sizeof *head + list_bytes + value_bytes;
    bool   inside = bytes <= sizeof part->frame_bytes;
    head->body_bytes = list_bytes + value_bytes;
    if (inside) head->flags |= WEFTI_SERVER_INLINE;
    memcpy(part->frame_bytes, head, sizeof *head);
    if (inside && list_bytes) memcpy(part->frame_bytes + sizeof *head, list, list_bytes);
    if (inside && value_bytes) memcpy(part->frame_bytes + sizeof *head + list_bytes, values, value_bytes);
    int32_t rank = wefti_server_rank(server, part->server);
    size_t  sent = wefti_server_shorten(part->frame_bytes, inside ? bytes : sizeof *head);
    part->frame.op = wefti_wire_send(rank, wefti_server_tag(WEFTI_TAG_REQUEST, 0), part->frame_bytes, sent);
    part->frame.done = frame_done;
    part->frame.owner = part;
    part->pending++;
    wefti_server_post(server, &part->frame);
    if (inside) return;
    bool both = list_bytes && value_bytes;
    part->values = both ? values : NULL;
    part->value_bytes = value_bytes;
    post_out(server, part, list_bytes ? list : values, list_bytes ? list_bytes : value_bytes);
}

/* For a server that has given up to follow: the values themselves, as it may have written where they were copied. The first frame has been sent, as that has
 * read it. */
static void post_again(weft_server *server, request_part *part, wefti_server_frame *head) {
    const size_t row_bytes = part->request->table->row_bytes, bytes = (size_t)part->count * row_bytes;
    head->line_region = head->line = head->send_region = 0;
    head->send_at = 0;
    head->flags &= (uint8_t)~(WEFTI_SERVER_SENT_IN_PLACE | WEFTI_SERVER_INLINE);
    head->body_bytes = bytes;
    server->sent_in_place -= bytes;
    memcpy(part->frame_bytes, head, sizeof *head);
    part->again.op = wefti_wire_send(wefti_server_rank(server, part->server), wefti_server_tag(WEFTI_TAG_REQUEST, 0), part->frame_bytes, sizeof *head);
    part->again.done = frame_done;
    part->again.owner = part;
    part->pending++;
    wefti_server_post(server, &part->again);
    post_out(server, part, (const uint8_t *)part->request->call.send + (size_t)part->first * row_bytes, bytes);
}

/* Where servers find memory of this rank; 0: nowhere. */
static uint32_t find_region(weft_server *server, const void *memory, size_t bytes, uint64_t *at_out) {
    if (bytes < SERVER_IN_PLACE_BYTES || !wefti_server_maps(server)) return 0;
    const wefti_wire_region *region = server->wire->ops->region_of(server->wire, memory, bytes);
    if (!region) return 0;
    *at_out = (uint64_t)((const uint8_t *)memory - (const uint8_t *)region->base);
    return region->id;
}

static void start_part(weft_server *server, weft_request *request, request_part *part, uint64_t timeout_ns) {
    weft_table        *table = request->table;
    weft_keys         *keys = request->own_keys ? request->own_keys : (weft_keys *)request->call.keys;
    bool               rows = wefti_is_of_rows(request->kind);
    bool               pushes = rows && request->kind != WEFTI_SERVER_PULL, pulls = wefti_is_pull(request->kind);
    const void        *list = NULL, *values = NULL;
    size_t             list_bytes = 0, value_bytes = 0;
    wefti_server_frame head = {.magic = WEFTI_SERVER_MAGIC, .kind = (uint8_t)request->kind, .slot = part->slot, .timeout_ns = timeout_ns,
                               .number = ++server->numbers[part->server], .count = rows ? (uint64_t)part->count : 0, .clock = request->clock, .rate = request->call.rate};
    if (table) {
        head.table = table->id;
        head.dtype = (uint8_t)table->options.dtype;
        head.width = (uint64_t)table->options.width;
    }
    head.part = (uint8_t)request->part;
    if (keys) head.keys = keys->id;
    if (request->kind == WEFTI_SERVER_RESIZE) head.first = request->number;
    if (request->kind == WEFTI_SERVER_GIVE) {
        head.keys = request->unit + 1;
        head.clock = request->evaluation;
    }
    if (request->ask) {
        values = request->ask;
        value_bytes = request->ask_bytes;
    }
    if (rows && keys && part->count && !(keys->id && keys->known[part->server])) {
        head.flags |= WEFTI_SERVER_LISTED;
        list = keys->routed + part->first;
        list_bytes = (size_t)part->count * sizeof *keys->routed;
        server->key_bytes += list_bytes;
        size_t packed = keys->packed_begin[part->server + 1] - keys->packed_begin[part->server];
        if (packed) {
            head.flags |= WEFTI_SERVER_PACKED;
            head.first = list_bytes = packed;
            list = keys->packed + keys->packed_begin[part->server];
        }
        server->sent_key_bytes += list_bytes;
        if (keys->id) keys->known[part->server] = 1;
    } else if (rows && !keys) {
        head.first = (uint64_t)part->first;
    }
    if (pushes) {
        const uint8_t *base = request->staging_out ? request->staging_out->data : request->call.send;
        bool           entries = wefti_entries_are_in(request), coded = entries || wefti_coded_pushes(request);
        value_bytes = (size_t)part->count * table->row_bytes;
        server->value_bytes += value_bytes;
        if (coded) value_bytes = part->coded_bytes;
        server->moved_value_bytes += value_bytes;
        values = coded ? part->coded : value_bytes ? base + (size_t)part->first * table->row_bytes : NULL;
        if (coded) head.flags |= entries ? WEFTI_SERVER_ENTRIES : WEFTI_SERVER_SENT_CODED;
        else if ((head.send_region = find_region(server, values, value_bytes, &head.send_at))) {
            head.flags |= WEFTI_SERVER_SENT_IN_PLACE;
            server->sent_in_place += value_bytes;
            values = NULL;
            value_bytes = 0;
        }
    } else if (request->kind == WEFTI_SERVER_CREATE || request->kind == WEFTI_SERVER_OPEN) {
        values = &request->spec;
        value_bytes = sizeof request->spec;
    } else if (request->file_body) {
        head.first = request->number;
        values = request->file_body->data;
        value_bytes = request->file_bytes;
    }
    post_reply(server, part);
    bool   decodes = wefti_coded_pulls(request);
    size_t wanted = pulled_bytes(part);
    if (pulls) server->value_bytes += (size_t)part->count * table->row_bytes;
    server->moved_value_bytes += wanted;
    if (decodes) head.flags |= WEFTI_SERVER_RECEIVED_CODED;
    if (pulls && wefti_entries_are_in(request)) head.flags |= WEFTI_SERVER_ENTRIES;
    part->in_place = wanted && !decodes && (head.receive_region = find_region(server, receive_at(part), wanted, &head.receive_at));
    if (part->in_place) head.flags |= WEFTI_SERVER_RECEIVED_IN_PLACE;
    else if (wanted > WEFTI_REPLY_BYTES - sizeof head) post_in(server, part, wanted);
    bool follows = wefti_follow_start(server, part, &head);
    post_frame(server, part, &head, list, list_bytes, values, value_bytes);
    if (follows && wefti_follow_send(server, part)) post_again(server, part, &head);
}

/* Which rows of the request are the server's. */
static void find_rows(const weft_server *server, const weft_request *request, request_part *part) {
    const weft_keys *keys = request->own_keys ? request->own_keys : request->call.keys;
    if (keys) {
        part->first = keys->begin[part->server];
        part->count = keys->begin[part->server + 1] - part->first;
    } else {
        uint64_t rows = (uint64_t)request->table->options.rows;
        part->first = (int64_t)wefti_route_begin(rows, server->servers, part->server);
        part->count = (int64_t)wefti_route_begin(rows, server->servers, part->server + 1) - part->first;
    }
}

weft_status wefti_client_start(weft_server *server, weft_request *request, int32_t only) {
    bool rows = wefti_is_of_rows(request->kind);
    bool ticks = request->kind == WEFTI_SERVER_PUSH_PULL && request->table->options.staleness == 0;
    uint64_t timeout_ns = request->call.timeout_ns ? (uint64_t)request->call.timeout_ns : server->timeout_ns;
    if (server->failed != WEFT_OK) return wefti_fail(server->failed, "%s", server->failure);
    if (server->pending && request->kind != WEFTI_SERVER_RESIZE)
        return wefti_fail(WEFT_E_PEER, "rank %d: a rank was lost in the moment in which all took the new split, so it is not known who has: "
                          "weft_world_shrink and weft_server_resize find out", (int)server->rank);
    request->deadline_ns = wefti_deadline_after(wefti_host_now(server->host), timeout_ns);
    if (wefti_is_of_files(request->kind)) timeout_ns = server->timeout_ns; /* servers wait for the others so long; files take longer */
    const uint64_t slice_ns = request->of ? request->of->slice_ns : request->slice_ns;
    if (slice_ns && slice_ns < timeout_ns) timeout_ns = slice_ns;
    request->state = REQUEST_FLYING;
    request->pending = 1; /* this function */
    request->over = false;
    server->flying++;
    if (!request->detached) server->request_count++;
    if (request->table) request->clock = request->table->clock;
    if (request->kind == WEFTI_SERVER_CLOCK || (rows && request->kind != WEFTI_SERVER_PULL)) server->changes++;
    if (request->kind == WEFTI_SERVER_SAVE) request->changes = server->changes;
    for (int32_t i = 0; i < server->servers; i++) {
        request_part *part = &request->parts[i];
        part->pending = 0;
        part->answered = part->large = part->receives = part->lost = part->twin_lost = part->from_twin = false;
        part->values = NULL;
        part->line = NULL;
        part->taken = 0;
        if (rows) find_rows(server, request, part);
        if (only >= 0 ? i != only : rows && part->count == 0 && !ticks) continue;
        if (request->for_lost && !request->of->parts[i].lost) continue;
        part->slot = ++server->next_slot;
        part->pending = 1;
        request->pending++;
        start_part(server, request, part, timeout_ns);
        part_step(server, part);
    }
    if (ticks) request->table->clock++;
    if (server->twin) wefti_twin_start(server, request);
    if (--request->pending == 0) {
        request->over = true;
        wefti_client_end(server, request);
    }
    return WEFT_OK;
}

/* --- small pulls --- */

static void brief_done(weft_server *server, server_event *event) {
    request_part            *part = event->owner;
    const wefti_brief_reply *brief = (const wefti_brief_reply *)(const void *)part->reply_bytes;
    size_t                   wanted = (size_t)part->count * part->request->table->row_bytes;
    bool                     plain = event->op.status == WEFT_OK && event->op.done_bytes == sizeof *brief - WEFTI_BRIEF_VALUES + wanted;
    if (!plain || brief->mark != WEFTI_SERVER_BRIEF || brief->kind != WEFTI_SERVER_REPLY || brief->slot != part->slot || brief->body_bytes != wanted ||
        !(brief->flags & WEFTI_SERVER_INLINE)) {
        reply_done(server, event);
        return;
    }
    hear_of_loads(server->of ? server->of : server, brief->first);
    memcpy(receive_at(part), brief->values, wanted);
    part->answered = true;
    part_step(server, part);
}

static void start_brief_part(weft_server *server, request_part *part, uint32_t timeout) {
    const weft_table   *table = part->request->table;
    wefti_brief_request brief = {.mark = WEFTI_SERVER_BRIEF, .kind = WEFTI_SERVER_PULL, .slot = part->slot = ++server->next_slot, .table = table->id,
                                 .number = ++server->numbers[part->server], .count = (uint32_t)part->count, .timeout = timeout};
    memcpy(part->frame_bytes, &brief, sizeof brief);
    part->frame.op = wefti_wire_send(wefti_server_rank(server, part->server), wefti_server_tag(WEFTI_TAG_REQUEST, 0), part->frame_bytes, sizeof brief);
    part->frame.done = frame_done;
    part->frame.owner = part;
    part->pending = 1;
    wefti_server_post(server, &part->frame);
    part->answered = part->large = part->receives = part->lost = part->twin_lost = part->in_place = false;
    part->values = NULL;
    post_reply(server, part);
    part->reply.done = brief_done;
}

weft_status wefti_client_start_brief(weft_server *server, weft_table *table, void *receive, weft_request **request_out) {
    weft_request  *request = NULL;
    const uint64_t timeout = (server->timeout_ns >> 20) + 1; /* as the short form has it */
    if (server->failed != WEFT_OK || server->pending || server->unposted || timeout > UINT32_MAX) return WEFT_E_AGAIN;
    WEFTI_TRY(wefti_client_take(server, false, &request));
    request->kind = WEFTI_SERVER_PULL;
    request->table = table;
    request->call.receive = receive;
    request->clock = table->clock;
    request->pending = 1; /* this function */
    request->over = false;
    for (int32_t i = 0; i < server->servers; i++) {
        find_rows(server, request, &request->parts[i]);
        request->parts[i].pending = 0;
        request->parts[i].lost = request->parts[i].twin_lost = false; /* of what was asked by it before */
        if (request->parts[i].count == 0) continue;
        request->pending++;
        start_brief_part(server, &request->parts[i], (uint32_t)timeout);
    }
    request->state = REQUEST_FLYING;
    request->deadline_ns = wefti_deadline_after(wefti_host_now(server->host), server->timeout_ns);
    server->flying++;
    if (server->twin) wefti_twin_start(server, request);
    server->request_count++;
    server->value_bytes += (size_t)table->options.rows * table->row_bytes;
    server->moved_value_bytes += (size_t)table->options.rows * table->row_bytes;
    request->pending--;
    *request_out = request;
    return WEFT_OK;
}

/* --- deadlines --- */

/* Its memory may be being sent from, so it cannot be given up alone: the wire lets go of everything. */
static void lose(weft_server *server, weft_request *request) {
    char   text[WEFTI_SERVER_TEXT_BYTES];
    size_t used = (size_t)snprintf(text, sizeof text, "no answer in %.3g s from rank", (double)GRACE_NS / 1e9);
    int32_t silent = -1;
    for (int32_t i = 0; i < server->servers; i++)
        if (request->parts[i].pending && !request->parts[i].answered && used < sizeof text) {
            silent = wefti_server_rank(server, i);
            used += (size_t)snprintf(text + used, sizeof text - used, " %d", (int)silent);
        }
    if (used < sizeof text)
        snprintf(text + used, sizeof text - used, ", past the deadline of request %d on table '%s': the parameter server ends here", (int)request->kind,
                 request->table ? request->table->options.name : "");
    wefti_server_fail(server, WEFT_E_TIMEOUT, text);
}

/* Whoever waits here for others' turn, and has been sent to nobody, is no server's delay. */
static bool is_overdue(const weft_request *request, uint64_t now_ns) {
    return request->state == REQUEST_FLYING && !request->held && now_ns > wefti_deadline_after(request->deadline_ns, GRACE_NS);
}

void wefti_client_look(weft_server *server, uint64_t now_ns) {
    for (int32_t i = 0; i < server->in_flight && server->failed == WEFT_OK; i++) {
        weft_request *request = &server->requests[i];
        if (is_overdue(request, now_ns)) lose(server, request);
    }
    for (weft_request *request = server->all_details; request && server->failed == WEFT_OK; request = request->all)
        if (is_overdue(request, now_ns)) lose(server, request);
}

/* --- opening and closing --- */

weft_status wefti_client_open(weft_server *server) {
    size_t requests = (size_t)server->in_flight, parts = requests * (size_t)server->servers;
    WEFTI_TRY(wefti_alloc(requests * sizeof *server->requests, "requests of the parameter server", &server->requests));
    WEFTI_TRY(wefti_alloc(parts * sizeof *server->parts, "requests of the parameter server", &server->parts));
    WEFTI_TRY(wefti_alloc((size_t)server->servers * sizeof *server->numbers, "requests of the parameter server", &server->numbers));
    for (size_t i = 0; i < requests; i++) {
        fill_request(server, &server->requests[i], server->parts + i * (size_t)server->servers);
        server->requests[i].next = server->free_requests;
        server->free_requests = &server->requests[i];
    }
    return WEFT_OK;
}

void wefti_client_close(weft_server *server) {
    size_t requests = (size_t)server->in_flight, servers = (size_t)server->servers;
    wefti_server_give(server, server->lines);
    server->lines = NULL;
    for (size_t i = 0; server->requests && i < requests; i++) {
        wefti_keys_free(server->requests[i].own_keys);
        wefti_server_give(server, server->requests[i].staging_out);
        wefti_server_give(server, server->requests[i].staging_in);
        wefti_server_give(server, server->requests[i].file_body);
        wefti_server_give(server, server->requests[i].shares);
        if (server->requests[i].call.pulled) wefti_entries_give(server, &server->requests[i]);
    }
    while (server->all_details) {
        weft_request *request = server->all_details;
        server->all_details = request->all;
        if (request->call.pulled) wefti_entries_give(server, request);
        wefti_free(request->parts, servers * sizeof *request->parts);
        wefti_free(request, sizeof *request);
    }
    while (server->tables) {
        weft_table *table = server->tables;
        server->tables = table->next;
        while (table->keys) {
            weft_keys *keys = table->keys;
            table->keys = keys->next;
            wefti_keys_free(keys);
        }
        wefti_coder_release(table->coder);
        if (table->twin) wefti_free(table->twin, sizeof *table->twin);
        wefti_free(table, sizeof *table);
    }
    if (server->requests) wefti_free(server->requests, requests * sizeof *server->requests);
    if (server->parts) wefti_free(server->parts, requests * servers * sizeof *server->parts);
    if (server->numbers) wefti_free(server->numbers, servers * sizeof *server->numbers);
}
