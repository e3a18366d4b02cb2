/* Saving a run in parallel: each rank writes a file of whole variables, and rank 0 the index of all (io/shards.h).
 *
 * Who writes a variable all ranks know alike: of its stage's ranks, which all have it or a part, whoever has fewest bytes so far. So a variable that is whole
 * goes from a rank's memory to its file, and only of one that is dealt out do the others send their parts, to its writer. All ranks go through the variables in
 * one order; a writer takes what it needs when its file comes to it, and whose disk fails goes on with the others to the end, so nobody waits for ever.
 *
 * Files of a new index have new names: the former index and its files stay whole until the new index, written last, has taken their place. Memory: one variable. */
#include <string.h>

#include "core/iface/collective.h"
#include "io/json.h"
#include "io/shards.h"
#include "io/sink.h"
#include "train/trainer.h"
#include "weft/safetensors.h"

typedef struct sharder {
    weft_trainer  *trainer;
    const char    *index;
    wefti_gatherer gatherer;
    int32_t       *writer;  /* [n] the rank that writes a variable; -1: nobody */
    int32_t       *file;    /* [ranks] the number of a rank's file; -1: it has none */
    struct fetched {
        struct sharder *sharder;
        int32_t         index;
    }             *fetched; /* [n] */
    int32_t        n, n_files, at; /* variables; those before `at` have been moved */
    int64_t        bytes, generation;
} sharder;

static const wefti_listed *listed(const sharder *s, int32_t i) { return &s->gatherer.listing.list[i]; }
static int32_t rank_of(const sharder *s) { return s->trainer->world->rank; }

/* --- who writes what --- */

static weft_status choose_writers(sharder *s) {
    int32_t  ranks = s->trainer->world->size;
    int64_t *load = NULL;
    WEFTI_TRY(wefti_alloc((size_t)ranks * sizeof *load, "writers of a checkpoint", &load));
    wefti_parts_movers(s->trainer, &s->gatherer.listing, s->writer, load);
    for (int32_t r = 0; r < ranks; r++) s->file[r] = r == 0 || load[r] > 0 ? s->n_files++ : -1;
    for (int32_t i = 0; i < s->n; i++) s->bytes += s->writer[i] >= 0 ? listed(s, i)->info.bytes : 0;
    wefti_free(load, (size_t)ranks * sizeof *load);
    return WEFT_OK;
}

/* --- what is written --- */

/* Moves what comes before variable `end`. */
static weft_status go_on(sharder *s, int32_t end) {
    for (; s->at < end; s->at++)
        if (s->writer[s->at] >= 0 && !wefti_window_is_whole(&listed(s, s->at)->window)) WEFTI_TRY(wefti_parts_gather(&s->gatherer, s->at, s->writer[s->at]));
    return WEFT_OK;
}

static weft_status fetch(void *context, uint64_t offset, uint64_t bytes, void *out) {
    const struct fetched *one = context;
    sharder              *s = one->sharder;
    const wefti_listed   *it = listed(s, one->index);
    wefti_device         *device = s->trainer->world->device;
    WEFTI_TRY(go_on(s, one->index + 1));
    if (!wefti_window_is_whole(&it->window)) {
        memcpy(out, (char *)s->gatherer.whole + offset, (size_t)bytes);
        return WEFT_OK;
    }
    const char *memory = wefti_variables_memory(s->trainer->variables, it->here);
    if (offset == 0) WEFTI_TRY(wefti_variables_whole(s->trainer->variables, it->here));
    if (!device->vtable->host_memory) return device->vtable->read(device, out, memory + offset, (size_t)bytes);
    memcpy(out, memory + offset, (size_t)bytes);
    return WEFT_OK;
}

static weft_status write_file(sharder *s, const wefti_saved *saved) {
    weft_checkpoint_writer *writer = NULL;
    wefti_text              path = {0};
    weft_status             status;
    if (s->file[rank_of(s)] < 0) return WEFT_OK;
    WEFTI_TRY_GOTO(wefti_shards_path(s->index, s->generation, s->file[rank_of(s)], s->n_files, &path), done);
    WEFTI_TRY_GOTO(weft_checkpoint_create(path.bytes, &writer), done);
    for (int32_t i = 0; i < s->n; i++) {
        const weft_variable_info *info = &listed(s, i)->info;
        if (s->writer[i] != rank_of(s)) continue;
        s->fetched[i] = (struct fetched){s, i};
        WEFTI_TRY_GOTO(weft_checkpoint_add_fetched(writer, info->name, info->dtype, info->shape, fetch, &s->fetched[i]), done);
    }
    if (rank_of(s) == 0) WEFTI_TRY_GOTO(wefti_save_numbers(s->trainer, saved, writer), done);
    status = weft_checkpoint_commit(writer);
done:
    weft_checkpoint_writer_release(writer);
    wefti_text_release(&path);
    return status;
}

/* --- the index --- */

static const char *file_name(const wefti_text *path) {
    const char *slash = strrchr(path->bytes, '/');
    return slash ? slash + 1 : path->bytes;
}

/* All arrays of a file that has been written. */
static weft_status map_file(const sharder *s, int32_t k, bool first, wefti_text *text) {
    weft_safetensors *file = NULL;
    wefti_text        path = {0};
    weft_status       status = wefti_shards_path(s->index, s->generation, k, s->n_files, &path);
    if (status == WEFT_OK) status = weft_safetensors_open(path.bytes, &file);
    for (int64_t i = 0; status == WEFT_OK && i < weft_safetensors_count(file); i++) {
        wefti_text_add(text, first && i == 0 ? "\n    " : ",\n    ");
        wefti_text_add_json(text, weft_safetensors_at(file, i)->name);
        wefti_text_add(text, ": ");
        wefti_text_add_json(text, file_name(&path));
    }
    weft_safetensors_release(file);
    wefti_text_release(&path);
    return status;
}

static weft_status write_index(const sharder *s) {
    wefti_text  text = {0};
    wefti_sink *sink = NULL;
    weft_status status = WEFT_OK;
    wefti_text_add(&text, "{\n  \"metadata\": {\"total_size\": %lld, \"weft.generation\": %lld},\n  \"weight_map\": {", (long long)s->bytes, (long long)s->generation);
    for (int32_t k = 0; k < s->n_files && status == WEFT_OK; k++) status = map_file(s, k, k == 0, &text);
    wefti_text_add(&text, "\n  }\n}\n");
    if (status == WEFT_OK && text.failed) status = wefti_fail(WEFT_E_NO_MEMORY, "no memory for the index '%s'", s->index);
    if (status == WEFT_OK) status = wefti_sink_create(s->index, &sink);
    if (status == WEFT_OK) status = wefti_sink_append(sink, text.bytes, text.length);
    if (status == WEFT_OK) status = wefti_sink_commit(sink);
    wefti_sink_release(sink);
    wefti_text_release(&text);
    return status;
}

/* The number of this index, by the one that is there. */
static weft_status number_index(sharder *s) {
    wefti_shards former = {.n = 0};
    weft_status  status = rank_of(s) == 0 ? wefti_shards_open(s->index, &former) : WEFT_OK;
    if (status == WEFT_E_NOT_FOUND) status = WEFT_OK;
    s->generation = former.generation + 1;
    wefti_shards_close(&former);
    status = wefti_agree(s->trainer->world, status, "reading the index that is there");
    if (status != WEFT_OK || s->trainer->world->size == 1) return status;
    wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_I64, .send = &s->generation, .receive = &s->generation, .count = 1};
    return wefti_collective_run(s->trainer->world->group, &call);
}

/* --- all of it --- */

static weft_status open_sharder(sharder *s) {
    WEFTI_TRY(wefti_parts_open(s->trainer, true, &s->gatherer));
    s->n = s->gatherer.listing.n;
    WEFTI_TRY(wefti_alloc((size_t)s->n * sizeof *s->writer, "writers of a checkpoint", &s->writer));
    WEFTI_TRY(wefti_alloc((size_t)s->n * sizeof *s->fetched, "writers of a checkpoint", &s->fetched));
    WEFTI_TRY(wefti_alloc((size_t)s->trainer->world->size * sizeof *s->file, "writers of a checkpoint", &s->file));
    return choose_writers(s);
}

static void close_sharder(sharder *s) {
    wefti_free(s->writer, (size_t)s->n * sizeof *s->writer);
    wefti_free(s->fetched, (size_t)s->n * sizeof *s->fetched);
    wefti_free(s->file, (size_t)s->trainer->world->size * sizeof *s->file);
    wefti_parts_close(&s->gatherer);
}

weft_status wefti_save_shards(weft_trainer *trainer, const char *path, const wefti_saved *saved) {
    sharder s = {.trainer = trainer, .index = path};
    if (trainer->served)
        return wefti_fail(WEFT_E_UNSUPPORTED, "'%s': with a parameter server (strategy.sync) a run is saved in one file, by a rank that is left: name one", path);
    weft_status status = wefti_agree(trainer->world, open_sharder(&s), "making ready to save the run");
    if (status == WEFT_OK) status = number_index(&s);
    if (status == WEFT_OK) {
        weft_status wrote = write_file(&s, saved), moved = go_on(&s, s.n);
        status = wefti_agree(trainer->world, wrote != WEFT_OK ? wrote : moved, "writing its part of the run");
        if (status == WEFT_OK) status = wefti_agree(trainer->world, rank_of(&s) == 0 ? write_index(&s) : WEFT_OK, "writing the index of the run");
        if (status == WEFT_OK && rank_of(&s) == 0) wefti_shards_remove_before(path, s.generation);
    }
    close_sharder(&s);
    return status;
}
