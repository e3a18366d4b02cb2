/* Snapshots on a server: when rows are copied, so that all servers' copies are of one moment, and who is answered.
 *
 * Every worker asks for a snapshot at the same place among its requests. A table of staleness 0 is copied when the clock before that is closed: what
 * comes after is in the sum of a later clock. Rows of the others change with every push, so a server does not listen to a worker that has asked until
 * all have, and then copies (Chandy and Lamport, "Distributed snapshots", 1985, with links that are waited for instead of recorded): what it has
 * is what all pushed before they asked, on each server. Then training goes on while the copy is written. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "parallel/server/follow.h"
#include "parallel/server/meeting.h"
#include "parallel/server/saves_format.h"

typedef struct save_table {
    served_table     *table;
    uint64_t          clock; /* staleness 0: that is copied. Else of the worker that asked first */
    wefti_share_table share;
} save_table;

typedef enum save_state { SAVE_MARKING, SAVE_WRITING, SAVE_OVER } save_state;

/* One snapshot. */
struct server_save {
    server_save       *next;
    uint64_t           number; /* of the workers' snapshots, from 1 on */
    char               path[WEFTI_FRAME_BYTES], file[WEFTI_FRAME_BYTES + WEFTI_SUFFIX_BYTES];
    save_state         state;
    bool               aligns, aligned; /* some table is not of staleness 0; all have asked */
    bool              *marked; /* [workers] */
    bool              *told;   /* [workers] who has got the share, and may commit it */
    save_table        *tables; /* [count] */
    wefti_share_table *shares; /* [count] while they are written */
    int32_t            count, index, servers, workers;
    uint64_t           deadline_ns;
    weft_status        status;
    char               message[WEFTI_SERVER_TEXT_BYTES];
    wefti_server_share share;
    wefti_server_share *manifest; /* [servers] */
    bool               commits, committed; /* the manifest is being, has been written */
    weft_status        commit_status;
    server_job        *waiting, *committing;
    keeper_job         write, commit;
};

/* A snapshot on its way in. */
struct server_load {
    int32_t           worker, count, room, index, servers;
    char              path[WEFTI_FRAME_BYTES];
    wefti_load_table *tables;
    bool              over;
    server_job       *waiting;
    keeper_job        fill;
};

static bool is_saved(const served_table *table) { return !wefti_meeting_owns(table->spec.name); }

static bool is_out(const weft_server *server, int32_t worker) {
    return server->sessions[worker].left || server->sessions[worker].dead;
}

/* --- answers --- */

static void answer_share(weft_server *server, server_job *job, server_save *save) {
    weft_status status = save->status;
    if (status == WEFT_OK) status = wefti_server_take(server, sizeof save->share, false, &job->answer);
    else status = wefti_fail(status, "%s", save->message);
    if (status == WEFT_OK) {
        memcpy(job->answer->data, &save->share, sizeof save->share);
        job->answer_bytes = sizeof save->share;
        save->told[job->worker] = true;
    }
    wefti_serve_answer(server, job, status);
}

static server_job *pop(server_job **list) {
    server_job *job = *list;
    *list = job->next;
    job->next = NULL;
    return job;
}

static void push(server_job **list, server_job *job) {
    job->next = *list;
    *list = job;
}

/* --- the end of one --- */

static void let_go_on(weft_server *server, const server_save *save) {
    for (int32_t worker = 0; worker < server->workers; worker++)
        if (save->marked[worker]) server->sessions[worker].halted = false;
}

static void end_save(weft_server *server, server_save *save, weft_status status, const char *text) {
    if (!save->aligned) let_go_on(server, save);
    save->aligned = true;
    save->state = SAVE_OVER;
    save->status = status;
    if (status != WEFT_OK) snprintf(save->message, sizeof save->message, "rank %d, which serves, taking a snapshot: %.500s", (int)server->rank, text);
    for (int32_t i = 0; i < save->count; i++) {
        wefti_share_release(&save->tables[i].share);
        if (save->shares) wefti_share_release(&save->shares[i]);
    }
    while (save->waiting) answer_share(server, pop(&save->waiting), save);
}

static void free_save(server_save *save) {
    for (int32_t i = 0; i < save->count; i++) {
        if (save->tables) wefti_share_release(&save->tables[i].share);
        if (save->shares) wefti_share_release(&save->shares[i]);
    }
    size_t count = (size_t)save->count;
    if (save->tables) wefti_free(save->tables, count * sizeof *save->tables);
    if (save->shares) wefti_free(save->shares, count * sizeof *save->shares);
    if (save->marked) wefti_free(save->marked, (size_t)save->workers * sizeof *save->marked);
    if (save->told) wefti_free(save->told, (size_t)save->workers * sizeof *save->told);
    if (save->manifest) wefti_free(save->manifest, (size_t)save->servers * sizeof *save->manifest);
    wefti_free(save, sizeof *save);
}

/* --- copying and writing --- */

static weft_status write_share(void *context) {
    server_save *save = context;
    return wefti_share_write(save->file, save->shares, save->count, save->index, save->servers);
}

static void begin_writing(weft_server *server, server_save *save) {
    for (int32_t i = 0; i < save->count; i++) {
        save->shares[i] = save->tables[i].share;
        save->tables[i].share.memory = NULL;
        save->share.bytes += save->shares[i].bytes;
        save->share.rows += save->shares[i].rows;
    }
    save->state = SAVE_WRITING;
    save->write.run = write_share;
    save->write.context = save;
    wefti_keeper_run(server, &save->write);
}

static bool all_have_asked(const weft_server *server, const server_save *save) {
    for (int32_t worker = 0; worker < server->workers; worker++)
        if (!save->marked[worker] && !is_out(server, worker)) return false;
    return true;
}

static void advance(weft_server *server, server_save *save) {
    int32_t copied = 0;
    if (save->state != SAVE_MARKING) return;
    bool aligned = !save->aligns || save->aligned || all_have_asked(server, save);
    for (int32_t i = 0; i < save->count; i++) {
        save_table *one = &save->tables[i];
        if (!one->share.copied && (one->table->sum ? one->table->closed >= one->clock : aligned)) {
            weft_status status = wefti_share_copy(one->table, &one->share);
            if (status != WEFT_OK) {
                end_save(server, save, status, weft_error_message());
                return;
            }
            one->share.clock = one->table->sum ? one->table->closed : one->clock;
        }
        copied += one->share.copied;
    }
    if (aligned && !save->aligned) {
        save->aligned = true;
        let_go_on(server, save);
    }
    if (copied == save->count) begin_writing(server, save);
}

void wefti_saves_advance(weft_server *server) {
    for (server_save *save = server->saves; save; save = save->next) advance(server, save);
}

/* --- asking --- */

/* Names of files that no other snapshot has. */
static void name_share(weft_server *server, server_save *save) {
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t parts[] = {(uint64_t)now.tv_sec, (uint64_t)now.tv_nsec, (uint64_t)getpid(), save->number, (uint64_t)server->rank};
    wefti_share_suffix(wefti_mix(wefti_hash(WEFTI_HASH_BEGIN, parts, sizeof parts)), save->index, save->servers, save->share.suffix);
    snprintf(save->file, sizeof save->file, "%s%s", save->path, save->share.suffix);
}

static void forget_old(weft_server *server, uint64_t number) {
    for (server_save **at = &server->saves; *at;) {
        server_save *save = *at;
        if (save->number + 1 < number && save->state == SAVE_OVER && !save->commits) {
            *at = save->next;
            free_save(save);
        } else at = &save->next;
    }
}

static weft_status create_save(weft_server *server, const server_job *job, const char *path, server_save **save_out) {
    server_save *save = NULL;
    weft_status  status;
    int32_t      count = 0;
    forget_old(server, job->frame.first);
    for (const served_table *table = server->served; table; table = table->next) count += is_saved(table);
    WEFTI_TRY(wefti_alloc(sizeof *save, "a snapshot", &save));
    save->number = job->frame.first;
    save->index = wefti_server_index(server);
    save->servers = server->servers;
    save->workers = server->workers;
    save->count = count;
    save->deadline_ns = job->deadline_ns;
    snprintf(save->path, sizeof save->path, "%s", path);
    name_share(server, save);
    WEFTI_TRY_GOTO(wefti_alloc((size_t)server->workers * sizeof *save->marked, "a snapshot", &save->marked), failed);
    WEFTI_TRY_GOTO(wefti_alloc((size_t)server->workers * sizeof *save->told, "a snapshot", &save->told), failed);
    WEFTI_TRY_GOTO(wefti_alloc((size_t)server->servers * sizeof *save->manifest, "a snapshot", &save->manifest), failed);
    if (count) WEFTI_TRY_GOTO(wefti_alloc((size_t)count * sizeof *save->tables, "a snapshot", &save->tables), failed);
    if (count) WEFTI_TRY_GOTO(wefti_alloc((size_t)count * sizeof *save->shares, "a snapshot", &save->shares), failed);
    save_table *one = save->tables;
    for (served_table *table = server->served; table; table = table->next) {
        if (!is_saved(table)) continue;
        one->table = table;
        one->clock = table->clocks[job->worker];
        if (!table->sum) save->aligns = true;
        one++;
    }
    save->next = server->saves;
    server->saves = save;
    *save_out = save;
    return WEFT_OK;
failed:
    free_save(save);
    return status;
}

static server_save *find_save(const weft_server *server, uint64_t number) {
    server_save *save = server->saves;
    while (save && save->number != number) save = save->next;
    return save;
}

static weft_status read_path(const server_job *job, char path[WEFTI_FRAME_BYTES]) {
    size_t length = (size_t)job->frame.body_bytes;
    if (!job->body || length == 0 || length >= WEFTI_FRAME_BYTES || memchr(job->body->data, 0, length))
        return wefti_fail(WEFT_E_CORRUPT, "rank %d names no file", (int)job->worker);
    memcpy(path, job->body->data, length);
    path[length] = 0;
    return WEFT_OK;
}

static weft_status check_clocks(const server_save *save, const server_job *job) {
    for (int32_t i = 0; i < save->count; i++) {
        const save_table *one = &save->tables[i];
        uint64_t          clock = one->table->clocks[job->worker];
        if (one->table->sum && one->table->options.spares == 0 && clock != one->clock)
            return wefti_fail(WEFT_E_MISMATCH, "rank %d asks for snapshot %llu in clock %llu of table '%s', and another rank in clock %llu: all workers "
                              "save in the same clock", (int)job->worker, (unsigned long long)save->number, (unsigned long long)clock, one->table->spec.name,
                              (unsigned long long)one->clock);
    }
    return WEFT_OK;
}

static void carry_out_save(weft_server *server, server_job *job) {
    char         path[WEFTI_FRAME_BYTES];
    server_save *save = find_save(server, job->frame.first);
    weft_status  status = read_path(job, path);
    if (status == WEFT_OK && !save) status = create_save(server, job, path, &save);
    if (status == WEFT_OK && strcmp(path, save->path) != 0)
        status = wefti_fail(WEFT_E_MISMATCH, "snapshot %llu is of '%.200s' for rank %d, and of '%.200s' for another: all workers save together",
                            (unsigned long long)save->number, path, (int)job->worker, save->path);
    if (status != WEFT_OK) {
        wefti_serve_answer(server, job, status);
        return;
    }
    status = check_clocks(save, job);
    if (status != WEFT_OK && save->state == SAVE_MARKING) end_save(server, save, status, weft_error_message());
    save->marked[job->worker] = true;
    if (status != WEFT_OK) {
        wefti_serve_answer(server, job, status);
        return;
    }
    if (save->state == SAVE_OVER) {
        answer_share(server, job, save);
        return;
    }
    push(&save->waiting, job);
    if (!save->aligned && save->aligns) server->sessions[job->worker].halted = true;
    advance(server, save);
}

/* --- the manifest --- */

static weft_status write_manifest(void *context) {
    server_save *save = context;
    return wefti_manifest_write(save->path, save->manifest, save->servers);
}

static void answer_commit(weft_server *server, server_job *job, const server_save *save) {
    wefti_serve_answer(server, job, save->commit_status == WEFT_OK ? WEFT_OK
                                        : wefti_fail(save->commit_status, "rank %d, which serves, writing the manifest of a snapshot: %.500s",
                                                     (int)server->rank, save->commit.message));
}

/* Suffixes become parts of names of files. */
static bool are_suffixes(const wefti_server_share *shares, int32_t count) {
    for (int32_t i = 0; i < count; i++)
        if (!memchr(shares[i].suffix, 0, sizeof shares[i].suffix) || shares[i].suffix[0] != '.' || strchr(shares[i].suffix, '/')) return false;
    return true;
}

/* A worker says that it came to nothing, as on another server it did, or for this worker alone. Another one that has got the share may be committing it, which
 * only the first server hears of; so it is removed once nobody has it, and nobody gets it then. What a dead worker has got is left for the next to remove. */
static void drop_share(server_save *save, int32_t worker) {
    bool had = save->told[worker], has = false;
    save->told[worker] = false;
    for (int32_t i = 0; i < save->workers; i++) has = has || save->told[i];
    if (!had || has || save->state != SAVE_OVER || save->status != WEFT_OK || save->committed || save->commits) return;
    (void)!unlink(save->file);
    save->status = WEFT_E_STATE;
    snprintf(save->message, sizeof save->message, "snapshot %llu came to nothing for rank %d before: save again", (unsigned long long)save->number, (int)worker);
}

static void carry_out_commit(weft_server *server, server_job *job) {
    server_save *save = find_save(server, job->frame.first);
    size_t       bytes = (size_t)server->servers * sizeof *save->manifest;
    if (!save) {
        wefti_serve_answer(server, job, wefti_fail(WEFT_E_STATE, "rank %d, which serves, knows no snapshot %llu", (int)server->rank,
                                                   (unsigned long long)job->frame.first));
        return;
    }
    if (job->frame.body_bytes == 0) {
        drop_share(save, job->worker);
        wefti_serve_answer(server, job, WEFT_OK);
        return;
    }
    if (!job->body || job->frame.body_bytes != bytes || !are_suffixes((const wefti_server_share *)job->body->data, server->servers)) {
        wefti_serve_answer(server, job, wefti_fail(WEFT_E_CORRUPT, "rank %d commits a snapshot with a list of shares that is none", (int)job->worker));
        return;
    }
    if (save->committed) {
        answer_commit(server, job, save);
        return;
    }
    if (!save->commits) memcpy(save->manifest, job->body->data, bytes);
    push(&save->committing, job);
    if (save->commits) return;
    save->commits = true;
    save->commit.run = write_manifest;
    save->commit.context = save;
    wefti_keeper_run(server, &save->commit);
}

/* --- loading --- */

static void free_load(weft_server *server) {
    struct server_load *load = server->load;
    if (!load) return;
    for (int32_t i = 0; i < load->count; i++) {
        wefti_sum_release(load->tables[i].sum);
        wefti_store_release(load->tables[i].store);
    }
    if (load->tables) wefti_free(load->tables, (size_t)load->room * sizeof *load->tables);
    wefti_free(load, sizeof *load);
    server->load = NULL;
}

static weft_status fill_stores(void *context) {
    struct server_load *load = context;
    return wefti_snapshot_fill(load->path, load->tables, load->count, load->index, load->servers);
}

static weft_status prepare_load(weft_server *server, server_job *job) {
    struct server_load *load = NULL;
    char                path[WEFTI_FRAME_BYTES];
    if (server->load) return wefti_fail(WEFT_E_STATE, "a snapshot is being loaded already, for rank %d: one worker loads for all", (int)server->load->worker);
    WEFTI_TRY(read_path(job, path));
    WEFTI_TRY(wefti_alloc(sizeof *load, "a snapshot", &load));
    server->load = load;
    load->worker = job->worker;
    load->index = wefti_server_index(server);
    load->servers = server->servers;
    snprintf(load->path, sizeof load->path, "%s", path);
    int32_t count = 0;
    for (const served_table *table = server->served; table; table = table->next) count += is_saved(table);
    if (!count) return wefti_fail(WEFT_E_STATE, "there are no tables to load into: create them first, with the options that they had");
    WEFTI_TRY(wefti_alloc((size_t)count * sizeof *load->tables, "a snapshot", &load->tables));
    load->room = count;
    for (served_table *table = server->served; table; table = table->next) {
        wefti_load_table *one = &load->tables[load->count];
        if (!is_saved(table)) continue;
        WEFTI_TRY(wefti_tables_check_idle(server, table));
        one->table = table;
        load->count++;
        WEFTI_TRY(wefti_tables_make_store(server, table, &one->store, &one->sum));
    }
    load->fill.run = fill_stores;
    load->fill.context = load;
    push(&load->waiting, job);
    wefti_keeper_run(server, &load->fill);
    return WEFT_OK;
}

static weft_status adopt_load(weft_server *server, const server_job *job) {
    struct server_load *load = server->load;
    if (!load || !load->over || load->worker != job->worker) return wefti_fail(WEFT_E_STATE, "rank %d has no snapshot loaded here", (int)job->worker);
    for (int32_t i = 0; i < load->count; i++) WEFTI_TRY(wefti_tables_check_idle(server, load->tables[i].table));
    server->loads++;
    for (int32_t i = 0; i < load->count; i++) {
        wefti_lend_end_all(server, load->tables[i].table);
        wefti_tables_change_store(load->tables[i].table, &load->tables[i].store, &load->tables[i].sum);
        wefti_shown_forget(server, load->tables[i].table);
    }
    return WEFT_OK;
}

static void carry_out_load(weft_server *server, server_job *job) {
    weft_status status = WEFT_OK;
    switch (job->frame.first) {
    case WEFTI_LOAD_PREPARE:
        status = prepare_load(server, job);
        if (status == WEFT_OK) return;
        break;
    case WEFTI_LOAD_ADOPT: status = adopt_load(server, job); break;
    default: break;
    }
    /* While somebody waits for it the keeper fills it. */
    if (server->load && server->load->worker == job->worker && !server->load->waiting) free_load(server);
    wefti_serve_answer(server, job, status);
}

/* --- all --- */

void wefti_saves_carry_out(weft_server *server, server_job *job) {
    switch (job->frame.kind) {
    case WEFTI_SERVER_SAVE: carry_out_save(server, job); break;
    case WEFTI_SERVER_COMMIT: carry_out_commit(server, job); break;
    default: carry_out_load(server, job); break;
    }
}

static void give_up(weft_server *server, server_save *save) {
    char   text[WEFTI_SERVER_TEXT_BYTES];
    size_t used = (size_t)snprintf(text, sizeof text, "not all workers asked for snapshot %llu ('%.200s') in time; missing: rank",
                                   (unsigned long long)save->number, save->path);
    for (int32_t worker = 0; worker < server->workers && used + 16 < sizeof text; worker++)
        if (!save->marked[worker] && !is_out(server, worker)) used += (size_t)snprintf(text + used, sizeof text - used, " %d", (int)worker);
    end_save(server, save, WEFT_E_TIMEOUT, text);
}

static bool is_done(const keeper_job *job) { return atomic_load_explicit(&job->done, memory_order_acquire); }

static void end_fill(weft_server *server, struct server_load *load) {
    weft_status status = load->fill.status;
    load->over = true;
    if (status != WEFT_OK) status = wefti_fail(status, "rank %d, which serves: %s", (int)server->rank, load->fill.message);
    wefti_serve_answer(server, pop(&load->waiting), status);
}

void wefti_saves_look(weft_server *server, uint64_t now_ns) {
    struct server_load *load = server->load;
    for (server_save *save = server->saves; save; save = save->next) {
        advance(server, save);
        if (save->state == SAVE_MARKING && now_ns >= save->deadline_ns) give_up(server, save);
        if (save->state == SAVE_WRITING && is_done(&save->write)) end_save(server, save, save->write.status, save->write.message);
        if (!save->commits || !is_done(&save->commit)) continue;
        save->commits = false;
        save->committed = true;
        save->commit_status = save->commit.status;
        while (save->committing) answer_commit(server, pop(&save->committing), save);
    }
    if (load && load->over && is_out(server, load->worker)) free_load(server); /* it will not say what is to be done with it */
    else if (load && !load->over && is_done(&load->fill)) end_fill(server, load);
}

void wefti_saves_close(weft_server *server) {
    wefti_keeper_close(server);
    while (server->saves) {
        server_save *save = server->saves;
        server->saves = save->next;
        free_save(save);
    }
    free_load(server);
}
