/* Loaders: position, order, share, and a thread that reads ahead.
 *
 * Idea: batch i of epoch e is a pure function of the options, so the reading thread and the consumer each keep a position
 * of their own and meet at a ring of slots. The reader fills slot `made % slots` while made - returned < slots; the
 * consumer takes slot `taken % slots` once made > taken and gives it back with its next call.
 * Invariants, under the mutex: returned <= taken <= made <= returned + slots and taken - returned <= 1; a failure is
 * written once, after which the reader ends. Batches made before it are still handed out.
 * Cost: (ahead + 1) local batches and one row number each; starting the thread is the last allocation. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "train/dataset.h"
#include "train/shuffle.h"

typedef struct position {
    int64_t epoch, batch;
} position;

typedef struct slot {
    weft_batch batch;
    void      *data[WEFT_BATCH_MAX_FIELDS];
} slot;

struct weft_loader {
    weft_loader_options options;
    wefti_dataset      *dataset;
    int64_t             batches;    /* in an epoch */
    int64_t             most_local; /* rows of this rank's largest share */
    int64_t             room;       /* rows that each slot has room for */
    slot               *slots;
    int32_t             slot_count;
    int64_t            *row;        /* numbers of the rows of one share; the reader's */
    position            reading;    /* the reader's */
    position            next;       /* the consumer's: what next() hands out */
    bool                started;
    pthread_t           thread;
    pthread_mutex_t     mutex;
    pthread_cond_t      filled, emptied;
    uint64_t            made, taken, returned; /* under the mutex */
    bool                stop;
    weft_status         failure;
    char                message[WEFTI_MESSAGE_BYTES];
};

static bool at_end(const weft_loader *loader, position at) {
    return loader->options.epochs >= 0 && at.epoch >= loader->options.epochs;
}

static void advance(const weft_loader *loader, position *at) {
    if (++at->batch < loader->batches) return;
    at->batch = 0;
    at->epoch++;
}

/* Reads the share of one batch into a slot. */
static weft_status fill(weft_loader *loader, position at, slot *to) {
    const weft_loader_options *options = &loader->options;
    wefti_dataset             *dataset = loader->dataset;
    weft_batch                *batch = &to->batch;
    int64_t                    begin = at.batch * options->batch;
    batch->global_rows = wefti_min_i64(options->batch, dataset->rows - begin);
    weft_batch_share(batch->global_rows, options->rank, options->ranks, &batch->first_row, &batch->local_rows);
    batch->epoch = at.epoch;
    batch->index = at.batch;
    batch->count = loader->batches;
    wefti_shuffle shuffle = wefti_shuffle_of((uint64_t)dataset->rows, options->seed, (uint64_t)at.epoch);
    for (int64_t i = 0; i < batch->local_rows; i++) {
        int64_t place = begin + batch->first_row + i;
        loader->row[i] = options->in_order ? place : (int64_t)wefti_shuffle_at(&shuffle, (uint64_t)place);
    }
    for (int32_t field = 0; field < dataset->field_count; field++) batch->field[field].shape.dim[0] = batch->local_rows;
    weft_status status = dataset->fill(dataset, loader->row, batch->local_rows, to->data);
    return status == WEFT_OK ? status
                             : wefti_while(status, "reading batch %lld of epoch %lld on rank %d", (long long)at.batch,
                                           (long long)at.epoch, options->rank);
}

static void *read_ahead(void *argument) {
    weft_loader *loader = argument;
    while (!at_end(loader, loader->reading)) {
        pthread_mutex_lock(&loader->mutex);
        while (!loader->stop && loader->made - loader->returned == (uint64_t)loader->slot_count)
            pthread_cond_wait(&loader->emptied, &loader->mutex);
        bool  stop = loader->stop;
        slot *to = &loader->slots[loader->made % (uint64_t)loader->slot_count];
        pthread_mutex_unlock(&loader->mutex);
        if (stop) break;
        weft_status status = fill(loader, loader->reading, to);
        pthread_mutex_lock(&loader->mutex);
        if (status == WEFT_OK) loader->made++;
        else {
            loader->failure = status;
            snprintf(loader->message, sizeof loader->message, "%s", weft_error_message());
        }
        pthread_cond_signal(&loader->filled);
        pthread_mutex_unlock(&loader->mutex);
        if (status != WEFT_OK) break;
        advance(loader, &loader->reading);
    }
    return NULL;
}

static weft_status start(weft_loader *loader) {
    sigset_t all, before;
    loader->reading = loader->next;
    loader->made = loader->taken = loader->returned = 0;
    loader->stop = false;
    sigfillset(&all); /* signals are the program's: none is to be handled on the reader */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&loader->thread, NULL, read_ahead, loader);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return wefti_fail(WEFT_E_NO_MEMORY, "cannot start the loader's reading thread: %s (use no_thread)", strerror(error));
    loader->started = true;
    return WEFT_OK;
}

static void stop(weft_loader *loader) {
    if (loader->started) {
        pthread_mutex_lock(&loader->mutex);
        loader->stop = true;
        pthread_cond_signal(&loader->emptied);
        pthread_mutex_unlock(&loader->mutex);
        pthread_join(loader->thread, NULL);
    }
    loader->started = false;
    loader->failure = WEFT_OK;
}

/* Waits for the next slot; NULL where the reader failed before it. */
static slot *take(weft_loader *loader) {
    slot *ready = NULL;
    pthread_mutex_lock(&loader->mutex);
    if (loader->returned < loader->taken) {
        loader->returned++;
        pthread_cond_signal(&loader->emptied);
    }
    while (loader->made == loader->taken && loader->failure == WEFT_OK)
        pthread_cond_wait(&loader->filled, &loader->mutex);
    if (loader->made > loader->taken) ready = &loader->slots[loader->taken++ % (uint64_t)loader->slot_count];
    pthread_mutex_unlock(&loader->mutex);
    return ready;
}

weft_status weft_loader_next(weft_loader *loader, weft_batch *batch_out) {
    if (!loader || !batch_out) return wefti_fail(WEFT_E_INVALID, "weft_loader_next: loader or batch_out is NULL");
    if (at_end(loader, loader->next)) return WEFT_END;
    slot *ready = &loader->slots[0];
    if (loader->options.no_thread) {
        WEFTI_TRY(fill(loader, loader->next, ready));
    } else {
        if (!loader->started) WEFTI_TRY(start(loader));
        ready = take(loader);
        if (!ready) return wefti_fail(loader->failure, "%s", loader->message);
    }
    *batch_out = ready->batch;
    advance(loader, &loader->next);
    return WEFT_OK;
}

static weft_status check_options(weft_loader_options *options) {
    if (options->ranks == 0) options->ranks = 1;
    if (options->epochs == 0) options->epochs = 1;
    if (options->ahead == 0) options->ahead = 2;
    if (options->batch < 1 || options->batch > UINT32_MAX)
        return wefti_fail(WEFT_E_INVALID, "a loader's batch is %lld rows; expected 1 to 2^32-1", (long long)options->batch);
    if (options->ranks < 1 || options->rank < 0 || options->rank >= options->ranks)
        return wefti_fail(WEFT_E_INVALID, "a loader for rank %d of %d; expected 0 to %d", options->rank, options->ranks,
                          options->ranks - 1);
    if (options->ahead < 1 || options->ahead > 1024)
        return wefti_fail(WEFT_E_INVALID, "a loader that reads %d batches ahead; expected 1 to 1024", options->ahead);
    return WEFT_OK;
}

static weft_status count_batches(weft_loader *loader) {
    int64_t rows = loader->dataset->rows, batch = loader->options.batch;
    loader->batches = rows / batch + (!loader->options.drop_last && rows % batch != 0);
    if (loader->batches == 0)
        return wefti_fail(WEFT_E_INVALID, "a data set of %lld rows makes no batch of %lld%s", (long long)rows,
                          (long long)batch, loader->options.drop_last ? " (drop_last is set)" : "");
    int64_t largest = wefti_min_i64(batch, rows);
    loader->most_local = (largest + loader->options.ranks - 1) / loader->options.ranks;
    return WEFT_OK;
}

static weft_status allocate_slots(weft_loader *loader) {
    const wefti_dataset *dataset = loader->dataset;
    loader->slot_count = loader->options.no_thread ? 1 : loader->options.ahead + 1;
    loader->room = loader->most_local;
    WEFTI_TRY(wefti_alloc((size_t)loader->slot_count * sizeof(slot), "the slots of a loader", &loader->slots));
    size_t bytes = 0;
    if (!wefti_mul_size((size_t)loader->room, sizeof(int64_t), &bytes))
        return wefti_fail(WEFT_E_OVERFLOW, "a loader's batch of %lld rows is too large", (long long)loader->options.batch);
    WEFTI_TRY(wefti_alloc(bytes, "the row numbers of a loader", &loader->row));
    for (int32_t i = 0; i < loader->slot_count; i++)
        for (int32_t field = 0; field < dataset->field_count; field++) {
            slot *at = &loader->slots[i];
            at->batch.field_count = dataset->field_count;
            at->batch.field[field] = dataset->field[field];
            if (!wefti_mul_size((size_t)loader->room, dataset->row_bytes[field], &bytes))
                return wefti_fail(WEFT_E_OVERFLOW, "a loader's batch of %lld rows of '%s' is too large",
                                  (long long)loader->options.batch, dataset->field[field].name);
            WEFTI_TRY(wefti_alloc(bytes, "a loader's batch", &at->data[field]));
            at->batch.field[field].data = at->data[field];
        }
    return WEFT_OK;
}

/* Takes the data set over, also on failure. */
static weft_status open_on(wefti_dataset *dataset, const weft_loader_options *options, weft_loader **loader_out) {
    weft_loader *loader = NULL;
    weft_status  status = wefti_alloc(sizeof *loader, "a loader", &loader);
    if (status != WEFT_OK) {
        dataset->release(dataset);
        return status;
    }
    loader->dataset = dataset;
    loader->options = *options;
    pthread_mutex_init(&loader->mutex, NULL);
    pthread_cond_init(&loader->filled, NULL);
    pthread_cond_init(&loader->emptied, NULL);
    WEFTI_TRY_GOTO(count_batches(loader), fail);
    WEFTI_TRY_GOTO(allocate_slots(loader), fail);
    *loader_out = loader;
    return WEFT_OK;
fail:
    weft_loader_release(loader);
    return status;
}

/* What all ways to open begin with; `checked` becomes the options with their defaults filled in. */
static weft_status begin_open(const void *source, const weft_loader_options *options, weft_loader_options *checked,
                              weft_loader **loader_out) {
    if (loader_out) *loader_out = NULL;
    if (!source || !options || !loader_out)
        return wefti_fail(WEFT_E_INVALID, "opening a loader needs a source, options and a place for the loader");
    *checked = *options;
    return check_options(checked);
}

weft_status weft_loader_open_images(const weft_image_source *source, const weft_loader_options *options,
                                    weft_loader **loader_out) {
    weft_loader_options checked;
    wefti_dataset      *dataset = NULL;
    WEFTI_TRY(begin_open(source, options, &checked, loader_out));
    WEFTI_TRY(wefti_dataset_images(source, &dataset));
    return open_on(dataset, &checked, loader_out);
}

weft_status weft_loader_open_text(const weft_text_source *source, const weft_loader_options *options,
                                  weft_loader **loader_out) {
    weft_loader_options checked;
    wefti_dataset      *dataset = NULL;
    WEFTI_TRY(begin_open(source, options, &checked, loader_out));
    WEFTI_TRY(wefti_dataset_text(source, &dataset));
    return open_on(dataset, &checked, loader_out);
}

weft_status weft_loader_open_arrays(const weft_batch_field *fields, int32_t field_count,
                                    const weft_loader_options *options, weft_loader **loader_out) {
    weft_loader_options checked;
    wefti_dataset      *dataset = NULL;
    WEFTI_TRY(begin_open(fields, options, &checked, loader_out));
    WEFTI_TRY(wefti_dataset_arrays(fields, field_count, &dataset));
    return open_on(dataset, &checked, loader_out);
}

void weft_loader_describe(const weft_loader *loader, weft_batch *batch_out) {
    *batch_out = (weft_batch){.field_count = loader->dataset->field_count, .global_rows = loader->options.batch,
                              .local_rows = loader->most_local, .count = loader->batches};
    for (int32_t field = 0; field < batch_out->field_count; field++) {
        batch_out->field[field] = loader->dataset->field[field];
        batch_out->field[field].shape.dim[0] = loader->most_local;
    }
}

int64_t weft_loader_rows(const weft_loader *loader) { return loader->dataset->rows; }
int64_t weft_loader_batches(const weft_loader *loader) { return loader->batches; }

void weft_loader_save(const weft_loader *loader, weft_loader_state *state_out) {
    *state_out = (weft_loader_state){.epoch = loader->next.epoch, .batch = loader->next.batch,
                                     .seed = loader->options.seed, .rows = loader->dataset->rows,
                                     .batch_rows = loader->options.batch, .in_order = loader->options.in_order,
                                     .drop_last = loader->options.drop_last};
}

weft_status weft_loader_restore(weft_loader *loader, const weft_loader_state *state) {
    const weft_loader_options *options = &loader->options;
    if (state->rows != loader->dataset->rows || state->batch_rows != options->batch ||
        state->in_order != options->in_order || state->drop_last != options->drop_last)
        return wefti_fail(WEFT_E_MISMATCH, "the saved loader had %lld rows, batch %lld, %s, %s; this one has %lld rows, "
                          "batch %lld, %s, %s", (long long)state->rows, (long long)state->batch_rows,
                          state->in_order ? "in order" : "shuffled", state->drop_last ? "last dropped" : "last kept",
                          (long long)loader->dataset->rows, (long long)options->batch,
                          options->in_order ? "in order" : "shuffled", options->drop_last ? "last dropped" : "last kept");
    if (state->epoch < 0 || state->batch < 0 || state->batch >= loader->batches)
        return wefti_fail(WEFT_E_INVALID, "a saved loader cannot stand at batch %lld of epoch %lld; an epoch has %lld",
                          (long long)state->batch, (long long)state->epoch, (long long)loader->batches);
    stop(loader);
    loader->options.seed = state->seed;
    loader->next = (position){state->epoch, state->batch};
    return WEFT_OK;
}

weft_status weft_loader_rewind(weft_loader *loader) {
    weft_loader_state state;
    weft_loader_save(loader, &state);
    state.epoch = state.batch = 0;
    return weft_loader_restore(loader, &state);
}

static void free_slots(weft_loader *loader) {
    for (int32_t i = 0; loader->slots && i < loader->slot_count; i++)
        for (int32_t field = 0; field < loader->dataset->field_count; field++)
            if (loader->slots[i].data[field])
                wefti_free(loader->slots[i].data[field], (size_t)loader->room * loader->dataset->row_bytes[field]);
    if (loader->slots) wefti_free(loader->slots, (size_t)loader->slot_count * sizeof(slot));
    if (loader->row) wefti_free(loader->row, (size_t)loader->room * sizeof(int64_t));
    loader->slots = NULL;
    loader->row = NULL;
}

weft_status weft_loader_share(weft_loader *loader, int32_t rank, int32_t ranks) {
    if (!loader) return wefti_fail(WEFT_E_INVALID, "weft_loader_share: the loader is NULL");
    weft_loader_options options = loader->options;
    options.rank = rank;
    options.ranks = ranks;
    if (ranks < 1) return wefti_fail(WEFT_E_INVALID, "weft_loader_share: rank %d of %d", rank, ranks);
    WEFTI_TRY(check_options(&options));
    if (rank == loader->options.rank && ranks == loader->options.ranks) return WEFT_OK;
    int64_t most = (wefti_min_i64(options.batch, loader->dataset->rows) + ranks - 1) / ranks;
    stop(loader);
    if (most > loader->room) {
        weft_loader before = *loader; /* of which the slots alone are looked at */
        loader->most_local = most;
        loader->slots = NULL;
        loader->row = NULL;
        weft_status status = allocate_slots(loader);
        if (status != WEFT_OK) {
            free_slots(loader);
            loader->slots = before.slots;
            loader->row = before.row;
            loader->room = before.room;
            loader->most_local = before.most_local;
            return status;
        }
        free_slots(&before);
    }
    loader->most_local = most;
    loader->options = options;
    return WEFT_OK;
}

void weft_loader_release(weft_loader *loader) {
    if (!loader) return;
    stop(loader);
    free_slots(loader);
    pthread_mutex_destroy(&loader->mutex);
    pthread_cond_destroy(&loader->filled);
    pthread_cond_destroy(&loader->emptied);
    loader->dataset->release(loader->dataset);
    wefti_free(loader, sizeof *loader);
}
