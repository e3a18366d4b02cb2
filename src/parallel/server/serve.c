/* The server's side: requests come in, are carried out in each worker's order, and are answered.
 *
 * A request with a long body is read whole before it is carried out, so that a worker which dies in the middle of one leaves nothing half done;
 * others' requests go by meanwhile. A request that repeats a number of its worker is answered, and changes nothing. */
#include <string.h>

#include "parallel/server/saves.h"
#include "parallel/server/work.h"

/* A broken link is believed once nothing has come by it for so long: what was sent before is still carried out. */
#define LAST_WORDS_NS (20 * WEFTI_MILLISECOND_NS)

/* --- jobs --- */

static weft_status take_job(weft_server *server, server_job **job_out) {
    if (!server->free_jobs) {
        server_job *job = NULL;
        WEFTI_TRY(wefti_alloc(sizeof *job, "a request in hand", &job));
        job->all = server->all_jobs;
        server->all_jobs = job;
        server->free_jobs = job;
    }
    server_job *job = *job_out = server->free_jobs;
    server->free_jobs = job->next;
    job->next = NULL;
    job->body = job->answer = job->decoded = NULL;
    job->chosen = NULL;
    job->keys = NULL;
    job->answer_bytes = job->list_bytes = 0;
    job->updates = 0;
    job->values = NULL;
    job->entries = (wefti_entries){0};
    job->in_place = false;
    job->lender = NULL;
    job->lent = NULL;
    job->status = WEFT_OK;
    return WEFT_OK;
}

static void job_step(weft_server *server, server_job *job) {
    if (--job->pending > 0) return;
    wefti_lend_end(job);
    wefti_server_give(server, job->answer);
    job->answer = NULL;
    job->next = server->free_jobs;
    server->free_jobs = job;
}

static void reply_sent(weft_server *server, server_event *event) { job_step(server, event->owner); } /* who is gone misses it */
static void answer_sent(weft_server *server, server_mover *mover) { job_step(server, mover->owner); }

/* A request that its worker sends again. */
void wefti_serve_forget(weft_server *server, server_job *job) {
    job->pending = 1;
    wefti_server_give(server, job->body);
    job->body = NULL;
    job_step(server, job);
}

void wefti_serve_answer(weft_server *server, server_job *job, weft_status status) {
    wefti_server_frame reply = {.magic = WEFTI_SERVER_MAGIC, .kind = WEFTI_SERVER_REPLY, .slot = job->frame.slot, .status = (int32_t)status,
                                .number = job->frame.number, .table = job->frame.table, .clock = job->updates, .first = server->loads};
    size_t room = sizeof job->reply_bytes - sizeof reply, inside = 0;
    wefti_server_give(server, job->body);
    wefti_server_give(server, job->decoded);
    job->body = job->decoded = NULL;
    if (status != WEFT_OK) {
        inside = (size_t)snprintf((char *)job->reply_bytes + sizeof reply, room, "%.*s", WEFTI_SERVER_TEXT_BYTES - 1, weft_error_message());
        job->answer_bytes = 0;
        reply.body_bytes = inside;
        reply.flags = WEFTI_SERVER_INLINE;
    } else {
        reply.body_bytes = job->answer_bytes;
        if (job->in_place) {
            reply.flags = WEFTI_SERVER_RECEIVED_IN_PLACE;
        } else if (job->answer_bytes <= room) {
            inside = job->answer_bytes;
            if (inside) memcpy(job->reply_bytes + sizeof reply, job->answer->data, inside);
            reply.flags = WEFTI_SERVER_INLINE;
        }
    }
    memcpy(job->reply_bytes, &reply, sizeof reply);
    job->reply.op = wefti_wire_send(job->worker, wefti_server_tag(WEFTI_TAG_REPLY, reply.slot), job->reply_bytes,
                                    wefti_server_shorten(job->reply_bytes, sizeof reply + inside));
    job->reply.done = reply_sent;
    job->reply.owner = job;
    job->pending = 2;
    server->served_count++;
    wefti_server_post(server, &job->reply);
    job->out.kind = WEFTI_WIRE_SEND;
    job->out.peer = job->worker;
    job->out.tag = wefti_server_tag(WEFTI_TAG_REPLY_BODY, reply.slot);
    job->out.base = job->lent ? (uint8_t *)job->lent : job->answer ? job->answer->data : NULL;
    job->out.bytes = inside || !job->answer ? 0 : job->answer_bytes;
    job->out.done = answer_sent;
    job->out.owner = job;
    wefti_server_move(server, &job->out);
}

/* --- in each worker's order --- */

/* Word of a worker's region goes another way than its requests, and may come after them: then they are tried again by the next look. */
static bool is_on_the_way(weft_server *server, const server_job *job) {
    const wefti_server_frame *frame = &job->frame;
    wefti_wire_peer_region    there;
    if (!wefti_server_maps(server)) return false;
    if (frame->line_region && server->wire->ops->peer_region(server->wire, job->worker, frame->line_region, &there) == WEFT_E_AGAIN) return true;
    return (frame->flags & WEFTI_SERVER_SENT_IN_PLACE && server->wire->ops->peer_region(server->wire, job->worker, frame->send_region, &there) == WEFT_E_AGAIN) ||
           (frame->flags & WEFTI_SERVER_RECEIVED_IN_PLACE &&
            server->wire->ops->peer_region(server->wire, job->worker, frame->receive_region, &there) == WEFT_E_AGAIN);
}

static void run_session(weft_server *server, int32_t worker) {
    server_session *session = &server->sessions[worker];
    while (!session->halted && session->first && session->first->state == JOB_READY && !is_on_the_way(server, session->first)) {
        server_job *job = session->first;
        session->first = job->next;
        if (!session->first) session->end = NULL;
        job->next = NULL;
        if (job->status == WEFT_E_PEER) { /* it died while it said this */
            wefti_serve_forget(server, job);
            continue;
        }
        if (job->status != WEFT_OK) {
            wefti_tables_refuse(server, job);
            continue;
        }
        wefti_tables_carry_out(server, job);
    }
}

static void body_in(weft_server *server, server_mover *mover) {
    server_job *job = mover->owner;
    size_t      rest = (size_t)job->frame.body_bytes - job->list_bytes;
    if (mover->status == WEFT_OK && job->list_bytes && mover->bytes == job->list_bytes && mover->value_part == 0 && rest) {
        mover->value_part = 1;
        if (!mover->discards) mover->base += job->list_bytes;
        mover->bytes = rest;
        wefti_server_move(server, mover);
        return;
    }
    job->state = JOB_READY;
    if (mover->status != WEFT_OK) job->status = mover->status == WEFT_E_MISMATCH ? WEFT_E_CORRUPT : WEFT_E_PEER;
    if (job->status == WEFT_E_CORRUPT) snprintf(job->message, sizeof job->message, "a request's body is not as long as its head says");
    run_session(server, job->worker);
}

/* What there is no memory for is read all the same, and thrown away: the worker is told, and the link goes on. */
static void read_body(weft_server *server, server_job *job) {
    weft_status status = wefti_server_take(server, (size_t)job->frame.body_bytes, false, &job->body);
    job->state = JOB_READING;
    if (status != WEFT_OK) {
        job->status = status;
        snprintf(job->message, sizeof job->message, "rank %d, which serves, has no memory for a request of %llu bytes: push fewer rows at once",
                 (int)server->rank, (unsigned long long)job->frame.body_bytes);
    }
    job->in = (server_mover){.kind = WEFTI_WIRE_RECV, .peer = job->worker, .tag = wefti_server_tag(WEFTI_TAG_REQUEST_BODY, job->frame.slot),
                             .base = status == WEFT_OK ? job->body->data : server->trash, 
                             .discards = status != WEFT_OK, .done = body_in, .owner = job,
                             .bytes = job->list_bytes ? job->list_bytes : (size_t)job->frame.body_bytes};
    wefti_server_move(server, &job->in);
}

/* --- what comes in --- */

static void post_slot(weft_server *server, server_slot *slot);

static void add_job(weft_server *server, const server_slot *slot, int32_t worker, size_t bytes) {
    server_session *session = &server->sessions[worker];
    server_job     *job = NULL;
    if (take_job(server, &job) != WEFT_OK) {
        wefti_server_fail(server, WEFT_E_NO_MEMORY, weft_error_message());
        return;
    }
    memcpy(&job->frame, slot->bytes, sizeof job->frame);
    job->worker = worker;
    job->deadline_ns = wefti_deadline_after(server->now_ns, job->frame.timeout_ns);
    if (session->end) session->end->next = job;
    else session->first = job;
    session->end = job;
    size_t inside = bytes - sizeof job->frame, list = 0;
    bool   packed = job->frame.flags & WEFTI_SERVER_PACKED; /* at least a byte a key */
    if (packed) list = (size_t)job->frame.first;
    if (job->frame.flags & WEFTI_SERVER_LISTED && (packed ? list > job->frame.body_bytes || job->frame.count > list : !wefti_mul_size((size_t)job->frame.count, sizeof(uint64_t), &list) || list > job->frame.body_bytes)) {
        job->status = WEFT_E_CORRUPT;
        snprintf(job->message, sizeof job->message, "a request of rank %d has %llu keys in %llu bytes", (int)worker,
                 (unsigned long long)job->frame.count, (unsigned long long)job->frame.body_bytes);
        list = 0;
    }
    job->list_bytes = job->frame.flags & WEFTI_SERVER_LISTED ? list : 0;
    if (!(job->frame.flags & WEFTI_SERVER_INLINE)) {
        if (job->frame.body_bytes) read_body(server, job);
        else job->state = JOB_READY;
        return;
    }
    job->state = JOB_READY;
    if (!inside || job->status != WEFT_OK) return;
    job->status = wefti_server_take(server, inside, false, &job->body);
    if (job->status == WEFT_OK) memcpy(job->body->data, slot->bytes + sizeof job->frame, inside);
    else snprintf(job->message, sizeof job->message, "%.600s", weft_error_message());
}

/* A pull of a few bytes that finds nothing before it is answered from the frame as it is, before anything is noted about it. False: it is to go the ordinary
 * way. */
static bool answer_brief(weft_server *server, const server_slot *slot, int32_t worker) {
    wefti_brief_request brief;
    wefti_brief_reply   reply = {.mark = WEFTI_SERVER_BRIEF, .kind = WEFTI_SERVER_REPLY, .flags = WEFTI_SERVER_INLINE, .first = server->loads};
    server_session     *session = &server->sessions[worker];
    server_job         *job = NULL;
    memcpy(&brief, slot->bytes, sizeof brief);
    if (brief.mark != WEFTI_SERVER_BRIEF || brief.kind != WEFTI_SERVER_PULL || brief.flags || brief.keys) return false;
    if (session->first || session->halted || session->left || session->dead || brief.number != session->last + 1) return false;
    served_table *table = wefti_tables_find(server, brief.table);
    if (!table || !wefti_tables_read_brief(server, table, worker, brief.count, reply.values) || take_job(server, &job) != WEFT_OK) return false;
    reply.slot = brief.slot;
    reply.body_bytes = brief.count * table->row_bytes;
    size_t bytes = sizeof reply - WEFTI_BRIEF_VALUES + (size_t)reply.body_bytes;
    memcpy(job->reply_bytes, &reply, bytes);
    job->worker = worker;
    job->reply.op = wefti_wire_send(worker, wefti_server_tag(WEFTI_TAG_REPLY, brief.slot), job->reply_bytes, bytes);
    job->reply.done = reply_sent;
    job->reply.owner = job;
    job->pending = 1;
    wefti_server_post(server, &job->reply);
    session->last = brief.number;
    session->down_ns = 0;
    session->heard_ns = server->now_ns;
    server->served_count++;
    return true;
}

/* Ranks are authenticated by the wire, so nonsense is a defect of a rank: it is not listened to any more. */
static void slot_done(weft_server *server, server_event *event) {
    server_slot *slot = event->owner;
    if (event->op.status != WEFT_OK && event->op.status != WEFT_E_MISMATCH) return; /* the wire is over */
    int32_t worker = event->op.done_peer;
    bool    known = event->op.status == WEFT_OK && worker >= 0 && worker < server->workers;
    if (known && event->op.done_bytes == sizeof(wefti_brief_request) && answer_brief(server, slot, worker)) {
        post_slot(server, slot);
        return;
    }
    if (known) {
        size_t bytes = wefti_server_lengthen(slot->bytes, event->op.done_bytes);
        if (wefti_server_frame_check((const wefti_server_frame *)slot->bytes, bytes) == WEFT_OK) {
            server->sessions[worker].down_ns = 0;
            server->sessions[worker].heard_ns = server->now_ns;
            add_job(server, slot, worker, bytes);
        } else {
            wefti_log(WEFT_LOG_WARNING, "rank %d: %s", (int)worker, weft_error_message());
        }
    }
    post_slot(server, slot);
    if (worker >= 0 && worker < server->workers) run_session(server, worker);
}

static void post_slot(weft_server *server, server_slot *slot) {
    slot->event.op = wefti_wire_recv(WEFTI_WIRE_ANY_PEER, wefti_server_tag(WEFTI_TAG_REQUEST, 0), slot->bytes, sizeof slot->bytes);
    slot->event.done = slot_done;
    slot->event.owner = slot;
    wefti_server_post(server, &slot->event);
}

/* --- who is there --- */

bool wefti_serve_is_over(const weft_server *server) {
    for (int32_t worker = 0; worker < server->workers; worker++)
        if (!server->sessions[worker].left && !server->sessions[worker].dead) return false;
    return true;
}

bool wefti_serve_is_ready(const weft_server *server, uint64_t number) {
    for (int32_t worker = 0; worker < server->workers; worker++) {
        const server_session *session = &server->sessions[worker];
        if (!session->left && !session->dead && session->moving < number) return false;
    }
    return true;
}

bool wefti_serve_is_busy(const weft_server *server) {
    for (const server_job *job = server->all_jobs; job; job = job->all)
        if (job->pending > 0) return true;
    return false;
}

/* Where the world would not tell, who is waited for to leave and asks nothing for the server's timeout is taken to be gone: it may be this rank
 * that is cut off. */
static void look_for_silence(weft_server *server, int32_t worker, uint64_t now_ns) {
    uint64_t since_ns = server->sessions[worker].heard_ns;
    if (!server->leaves || !server->alone_ns || worker == server->rank) return;
    if (since_ns < server->alone_ns) since_ns = server->alone_ns;
    if (now_ns > wefti_deadline_after(since_ns, server->timeout_ns)) server->gone[worker] = true;
}

static void look_at_worker(weft_server *server, int32_t worker, uint64_t now_ns) {
    server_session *session = &server->sessions[worker];
    if (!session->left && !session->dead) look_for_silence(server, worker, now_ns);
    if (session->left || session->dead || !wefti_server_is_gone(server, worker)) return;
    if (!session->down_ns) {
        session->down_ns = now_ns;
        return;
    }
    if (now_ns - session->down_ns < LAST_WORDS_NS || (session->first && session->first->state == JOB_READY)) return;
    session->dead = true;
    wefti_tables_worker_gone(server);
}

void wefti_serve_look(weft_server *server, uint64_t now_ns) {
    for (int32_t worker = 0; worker < server->workers; worker++) {
        run_session(server, worker);
        look_at_worker(server, worker, now_ns);
    }
    wefti_tables_look(server, now_ns);
    wefti_saves_look(server, now_ns);
}

/* --- opening and closing --- */

weft_status wefti_serve_open(weft_server *server) {
    server->slot_count = server->workers * 4 < 16 ? 16 : server->workers * 4 > 256 ? 256 : server->workers * 4;
    WEFTI_TRY(wefti_alloc((size_t)server->workers * sizeof *server->sessions, "workers' sessions", &server->sessions));
    WEFTI_TRY(wefti_alloc((size_t)server->slot_count * sizeof *server->slots, "room for requests", &server->slots));
    WEFTI_TRY(wefti_alloc_raw(SERVER_PIECE_BYTES, WEFTI_CACHE_LINE, "room for requests", &server->trash));
    for (int32_t i = 0; i < server->slot_count; i++) post_slot(server, &server->slots[i]);
    return WEFT_OK;
}

void wefti_serve_close(weft_server *server) {
    while (server->all_jobs) {
        server_job *job = server->all_jobs;
        server->all_jobs = job->all;
        if (job->body) wefti_server_free_buffer(server, job->body);
        if (job->answer) wefti_server_free_buffer(server, job->answer);
        if (job->decoded) wefti_server_free_buffer(server, job->decoded);
        wefti_free(job, sizeof *job);
    }
    for (int32_t worker = 0; server->sessions && worker < server->workers; worker++) wefti_free(server->sessions[worker].results, sizeof(double) * VECTORS_MOST);
    if (server->sessions) wefti_free(server->sessions, (size_t)server->workers * sizeof *server->sessions);
    if (server->slots) wefti_free(server->slots, (size_t)server->slot_count * sizeof *server->slots);
    if (server->trash) wefti_free(server->trash, SERVER_PIECE_BYTES);
}
