/* What compression keeps, in checkpoints. Each rank has left something else out of the gradients it sent, so the file holds all of it, a
 * row for each rank, and as many ranks go on to the same bits. Where there are more or fewer, rank r takes the sum of rows r, r + ranks,
 * and so on: what matters to the sums to come is the sum of all rows, and that stays. A file without begins with nothing left out.
 * Numbers of pushes, by which random rounding draws, stay each rank's own.
 *
 * Cost: rank 0 holds all rows while it writes or reads; the others one variable. */
#include <stdio.h>
#include <string.h>

#include "core/iface/collective.h"
#include "parallel/compress.h"
#include "parallel/server/states.h"
#include "train/trainer.h"
#include "weft/checkpoint.h"

static bool begins(const char *name, const char *prefix) { return strncmp(name, prefix, strlen(prefix)) == 0; }
bool wefti_is_compress_error(const char *name) { return begins(name, WEFTI_COMPRESS_ERROR); }
bool wefti_is_compress_basis(const char *name) { return begins(name, WEFTI_COMPRESS_BASIS); }

/* --- where it is --- */

/* One that a rank keeps: a variable of its own, or of a parameter what it left out of pushes to the servers; before all, how many it has coded. */
typedef struct state {
    bool        begun, numbers; /* past the numbers of pushes; these are they */
    int32_t     next; /* where to look on */
    weft_table *table;
    char        name[1024];
    weft_dtype  dtype; /* F32; I64 of numbers, which come first and so are aligned */
    weft_shape  shape;
    size_t      bytes;
} state;

static bool is_coded(const weft_trainer *trainer) { return trainer->program.strategy.compress.codec != WEFT_COMPRESS_NONE; }

static bool next_pushed(weft_trainer *trainer, state *s) {
    while (s->next < trainer->training.n) {
        const weft_tensor *parameter = trainer->training.parameters[s->next];
        s->table = wefti_served_table(trainer->served, s->next++);
        if (!s->table || !wefti_table_keeps(s->table)) continue;
        snprintf(s->name, sizeof s->name, "%s%s", WEFTI_COMPRESS_ERROR, parameter->node->name);
        s->shape = parameter->shape;
        return true;
    }
    return false;
}

static bool next_variable(const weft_trainer *trainer, state *s) {
    while (s->next < weft_variables_count(trainer->variables)) {
        weft_variable_info info;
        if (weft_variables_info(trainer->variables, s->next++, &info) != WEFT_OK || !wefti_is_compress_error(info.name)) continue;
        snprintf(s->name, sizeof s->name, "%s", info.name);
        s->shape = info.shape;
        return true;
    }
    return false;
}

static bool next_served(weft_trainer *trainer, state *s) {
    if (!wefti_served_all_are_there(trainer->served)) return false;
    s->numbers = !s->begun && is_coded(trainer);
    s->begun = true;
    if (!s->numbers) return next_pushed(trainer, s);
    snprintf(s->name, sizeof s->name, "%s", WEFTI_COMPRESS_PUSHES);
    s->shape = weft_shape(trainer->training.n);
    return true;
}

/* The next one after `s`, which begins as zero. Ranks have the same ones; none where some are gone, with what they left out. */
static bool next_state(weft_trainer *trainer, state *s) {
    bool there = trainer->served ? next_served(trainer, s) : next_variable(trainer, s);
    s->dtype = s->numbers ? WEFT_I64 : WEFT_F32;
    s->bytes = there ? (size_t)weft_shape_elements(s->shape) * weft_dtype_bytes(s->dtype) : 0;
    return there;
}

static void move_numbers(const weft_trainer *trainer, int64_t *numbers, bool out) {
    for (int32_t i = 0; i < trainer->training.n; i++) {
        weft_table *table = wefti_served_table(trainer->served, i);
        if (out) numbers[i] = table ? (int64_t)wefti_table_pushes(table) : 0;
        else if (table) wefti_table_set_pushes(table, (uint64_t)numbers[i]);
    }
}

static weft_status move_one(const weft_trainer *trainer, const state *s, void *values, bool out) {
    if (s->numbers) {
        move_numbers(trainer, values, out);
        return WEFT_OK;
    }
    if (s->table) return wefti_table_kept(s->table, values, out);
    return out ? weft_variables_get(trainer->variables, s->name, values, s->bytes)
               : weft_variables_set(trainer->variables, s->name, s->dtype, s->shape, values);
}

/* What all of them take, and the largest. */
static void measure(weft_trainer *trainer, size_t *total_out, size_t *largest_out) {
    *total_out = *largest_out = 0;
    for (state s = {0}; next_state(trainer, &s);) {
        *total_out += s.bytes;
        if (s.bytes > *largest_out) *largest_out = s.bytes;
    }
}

/* --- between ranks --- */

/* All rows, at rank 0. */
static weft_status open_states(weft_trainer *trainer, wefti_compress_states *states) {
    size_t total, largest;
    *states = (wefti_compress_states){0};
    measure(trainer, &total, &largest);
    if (total == 0 || trainer->world->rank != 0) return WEFT_OK;
    states->size_bytes = total * (size_t)trainer->world->size;
    return wefti_alloc(states->size_bytes, "what compression keeps on all ranks", &states->memory);
}

void wefti_compress_states_release(wefti_compress_states *states) {
    if (states->memory) wefti_free(states->memory, states->size_bytes);
    *states = (wefti_compress_states){0};
}

/* Moves every state between where it is kept and its rows at rank 0, `out` of there or into them. */
static weft_status move(weft_trainer *trainer, const wefti_compress_states *states, void *one, bool out) {
    char  *rows = states->memory;
    size_t ranks = (size_t)trainer->world->size;
    for (state s = {0}; next_state(trainer, &s);) {
        wefti_collective_call call = {.kind = out ? WEFTI_GATHER : WEFTI_SCATTER, .dtype = WEFT_U8, .count = s.bytes,
                                      .send = out ? one : rows, .receive = out ? rows : one};
        if (out) WEFTI_TRY(move_one(trainer, &s, one, true));
        WEFTI_TRY(wefti_collective_run(trainer->world->group, &call));
        if (!out) WEFTI_TRY(move_one(trainer, &s, one, false));
        if (rows) rows += ranks * s.bytes;
    }
    return WEFT_OK;
}

static weft_status move_all(weft_trainer *trainer, const wefti_compress_states *states, weft_status status, bool out) {
    size_t total = 0, largest = 0;
    void  *one = NULL;
    measure(trainer, &total, &largest);
    if (status == WEFT_OK && total) status = wefti_alloc_raw(largest, WEFTI_CACHE_LINE, "what compression keeps", &one);
    if (total || status != WEFT_OK) status = wefti_agree(wefti_trainer_meets(trainer), status, "moving what compression keeps");
    if (status == WEFT_OK && total) {
        status = move(trainer, states, one, out);
        if (trainer->served) status = wefti_agree(wefti_trainer_meets(trainer), status, "moving what compression keeps"); /* a rank may have died on the way */
    }
    if (one) wefti_free(one, largest);
    return status;
}

weft_status wefti_compress_states_gather(weft_trainer *trainer, wefti_compress_states *states_out) {
    return move_all(trainer, states_out, open_states(trainer, states_out), true);
}

weft_status wefti_compress_states_deal(weft_trainer *trainer, const wefti_compress_states *states) {
    return move_all(trainer, states, WEFT_OK, false);
}

weft_status wefti_compress_states_add(weft_trainer *trainer, const wefti_compress_states *states, weft_checkpoint_writer *writer) {
    const char *rows = states->memory;
    for (state s = {0}; rows && next_state(trainer, &s);) {
        weft_shape shape = weft_shape(trainer->world->size, weft_shape_elements(s.shape));
        WEFTI_TRY(weft_checkpoint_add(writer, s.name, s.dtype, shape, rows));
        rows += (size_t)trainer->world->size * s.bytes;
    }
    return WEFT_OK;
}

/* --- reading --- */

/* Reads an array of any size; the caller frees it. */
static weft_status read_whole(weft_checkpoint *file, const char *name, weft_dtype dtype, weft_shape shape, void **values_out, size_t *bytes_out) {
    *bytes_out = (size_t)weft_shape_elements(shape) * weft_dtype_bytes(dtype);
    *values_out = NULL;
    WEFTI_TRY(wefti_alloc_raw(*bytes_out, WEFTI_CACHE_LINE, "what compression kept", values_out));
    weft_status status = weft_checkpoint_read(file, name, dtype, shape, *values_out);
    if (status == WEFT_OK) return WEFT_OK;
    wefti_free(*values_out, *bytes_out);
    *values_out = NULL;
    return status;
}

/* Row r of `rows` [ranks, n] is the sum of saved rows r, r + ranks, … */
static void deal_rows(const float *saved, int64_t n_saved, float *rows, int64_t ranks, int64_t n) {
    for (int64_t s = 0; s < n_saved; s++)
        for (int64_t i = 0; i < n; i++) {
            float *to = &rows[s % ranks * n + i];
            *to = s < ranks ? saved[s * n + i] : *to + saved[s * n + i];
        }
}

static weft_status check_numbers(const int64_t *saved, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (saved[i] < 0) return wefti_fail(WEFT_E_CORRUPT, "'%s' has %lld pushes of a parameter", WEFTI_COMPRESS_PUSHES, (long long)saved[i]);
    return WEFT_OK;
}

static weft_status read_state(const weft_trainer *trainer, weft_checkpoint *file, const state *s, void *rows) {
    weft_dtype  dtype;
    weft_shape  shape;
    void       *saved;
    size_t      bytes;
    int64_t     elements = weft_shape_elements(s->shape), ranks = trainer->world->size;
    weft_status status = WEFT_OK;
    if (!weft_checkpoint_find(file, s->name, &dtype, &shape)) return WEFT_OK; /* rows begin as zeros */
    if (dtype != s->dtype || shape.rank != 2 || shape.dim[1] != elements || shape.dim[0] < 1)
        return wefti_fail(WEFT_E_SHAPE, "'%s' is %s %s, and should be %s [ranks, %lld]", s->name, weft_dtype_name(dtype), weft_shape_text(shape).text,
                          weft_dtype_name(s->dtype), (long long)elements);
    WEFTI_TRY(read_whole(file, s->name, dtype, shape, &saved, &bytes));
    if (!s->numbers) deal_rows(saved, shape.dim[0], rows, ranks, elements);
    else {
        status = check_numbers(saved, shape.dim[0] * elements);
        memcpy(rows, saved, (size_t)wefti_min_i64(shape.dim[0], ranks) * s->bytes);
    }
    wefti_free(saved, bytes);
    return status;
}

/* Arrays of compression that this program has no use for are read and dropped, so that they are not taken for somebody else's. */
static weft_status drop_unknown(weft_trainer *trainer, weft_checkpoint *file, const char *prefix, const char *parameter) {
    char       name[1024];
    weft_dtype dtype;
    weft_shape shape;
    void      *saved;
    size_t     bytes;
    snprintf(name, sizeof name, "%s%s", prefix, parameter);
    for (state s = {0}; next_state(trainer, &s);)
        if (strcmp(s.name, name) == 0) return WEFT_OK;
    if (weft_variables_find(trainer->variables, name) >= 0 || !weft_checkpoint_find(file, name, &dtype, &shape)) return WEFT_OK;
    WEFTI_TRY(read_whole(file, name, dtype, shape, &saved, &bytes));
    wefti_free(saved, bytes);
    return WEFT_OK;
}

weft_status wefti_compress_states_read(weft_trainer *trainer, weft_checkpoint *file, wefti_compress_states *states_out) {
    WEFTI_TRY(open_states(trainer, states_out));
    char *rows = states_out->memory;
    for (int32_t i = 0; i < trainer->training.n; i++) {
        WEFTI_TRY(drop_unknown(trainer, file, WEFTI_COMPRESS_ERROR, trainer->training.parameters[i]->node->name));
        WEFTI_TRY(drop_unknown(trainer, file, WEFTI_COMPRESS_BASIS, trainer->training.parameters[i]->node->name));
    }
    WEFTI_TRY(drop_unknown(trainer, file, WEFTI_COMPRESS_PUSHES, ""));
    for (state s = {0}; next_state(trainer, &s);) {
        WEFTI_TRY(read_state(trainer, file, &s, rows));
        rows += (size_t)trainer->world->size * s.bytes;
    }
    return WEFT_OK;
}

weft_status wefti_compress_basis_read(const weft_trainer *trainer, weft_checkpoint *file, const weft_variable_info *info, void *values_out) {
    weft_dtype dtype;
    weft_shape shape;
    bool       there = weft_checkpoint_find(file, info->name, &dtype, &shape);
    if (there && dtype == info->dtype && weft_shape_equal(shape, info->shape))
        return weft_checkpoint_read(file, info->name, dtype, shape, values_out);
    if (there) { /* of another rank: it begins anew */
        void  *saved;
        size_t bytes;
        WEFTI_TRY(read_whole(file, info->name, dtype, shape, &saved, &bytes));
        wefti_free(saved, bytes);
    }
    return weft_variables_get(trainer->variables, info->name, values_out, (size_t)info->bytes);
}
