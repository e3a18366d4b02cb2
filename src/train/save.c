/* Saving and loading a run. One file, written by rank 0, since under data parallelism every rank has the same variables (where ranks have parts:
 * save_split.c); loading sends rank 0's copy to the others, so that only its file system matters and all ranks begin with the same bits. Where training goes by a
 * server it is the lowest rank that is there (lead.c), and parameters come from the servers. Everything is read and checked before the first variable changes. Names: parameters and states under their own; the rest under "weft.". */
#include <string.h>

#include "core/iface/collective.h"
#include "io/shards.h"
#include "train/trainer.h"
#include "weft/checkpoint.h"
#include "weft/loader.h"

weft_status wefti_agree(weft_world *world, weft_status own, const char *doing) {
    if (world->size == 1) return own;
    /* The smallest failing rank decides: (rank, status) in one number, the largest being "no error". */
    int64_t code = own == WEFT_OK ? INT64_MAX : (int64_t)world->rank * WEFT_STATUS_COUNT + (int64_t)own;
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I64, .op = WEFTI_REDUCE_MIN, .send = &code,
                                  .receive = &code, .count = 1, .timeout_ns = WEFTI_AGREE_LIMIT_NS};
    char message[WEFTI_MESSAGE_BYTES];
    memcpy(message, weft_error_message(), sizeof message);
    WEFTI_TRY(wefti_collective_run(world->group, &call));
    if (own != WEFT_OK) return wefti_fail(own, "%s", message);
    if (code == INT64_MAX) return WEFT_OK;
    weft_status status = (weft_status)(code % WEFT_STATUS_COUNT);
    return wefti_fail(status, "rank %d: %s failed on rank %lld: %s (its own message says more)", world->rank, doing,
                      (long long)(code / WEFT_STATUS_COUNT), weft_status_text(status));
}

/* --- saving --- */

static weft_status first_of(weft_status first, weft_status then) { return first != WEFT_OK ? first : then; }

/* A variable whose memory is not the host's, for the writer to fetch piece by piece. */
typedef struct far_variable {
    wefti_device *device;
    const char   *memory;
} far_variable;

static weft_status fetch_piece(void *context, uint64_t offset, uint64_t bytes, void *out) {
    const far_variable *from = context;
    return from->device->vtable->read(from->device, out, from->memory + offset, (size_t)bytes);
}

/* What the writer fetches from, by variable. */
typedef struct sources {
    wefti_gatherer *gatherer;
    wefti_gathered *gathered; /* [n] */
    far_variable   *far;      /* [n]; NULL where memory is the host's */
    size_t          n;
} sources;

static weft_status open_sources(wefti_gatherer *gatherer, sources *from) {
    from->gatherer = gatherer;
    from->n = (size_t)gatherer->listing.n;
    WEFTI_TRY(wefti_alloc(from->n * sizeof *from->gathered, "saving", &from->gathered));
    return gatherer->trainer->world->device->vtable->host_memory ? WEFT_OK : wefti_alloc(from->n * sizeof *from->far, "saving", &from->far);
}

static void close_sources(sources *from) {
    wefti_free(from->gathered, from->n * sizeof *from->gathered);
    wefti_free(from->far, from->n * sizeof *from->far);
}

static weft_status add_variable(weft_trainer *trainer, weft_checkpoint_writer *writer, sources *from, int32_t i) {
    const wefti_listed       *it = &from->gatherer->listing.list[i];
    const weft_variable_info *info = &it->info;
    if (!wefti_listed_is_here(trainer, it)) {
        from->gathered[i] = (wefti_gathered){from->gatherer, i};
        return weft_checkpoint_add_fetched(writer, info->name, info->dtype, info->shape, wefti_parts_fetch, &from->gathered[i]);
    }
    void *memory = wefti_variables_memory(trainer->variables, it->here);
    WEFTI_TRY(wefti_variables_whole(trainer->variables, it->here));
    if (!from->far) return weft_checkpoint_add(writer, info->name, info->dtype, info->shape, memory);
    from->far[i] = (far_variable){trainer->world->device, memory};
    return weft_checkpoint_add_fetched(writer, info->name, info->dtype, info->shape, fetch_piece, &from->far[i]);
}

static weft_status add_variables(weft_trainer *trainer, weft_checkpoint_writer *writer, sources *from) {
    for (int32_t i = 0; i < from->gatherer->listing.n; i++)
        if (!wefti_is_compress_error(from->gatherer->listing.list[i].info.name)) /* each rank has its own */
            WEFTI_TRY(add_variable(trainer, writer, from, i));
    return WEFT_OK;
}

weft_status wefti_save_numbers(weft_trainer *trainer, const wefti_saved *saved, weft_checkpoint_writer *writer) {
    if (trainer->lbfgs) {
        wefti_lbfgs_state state = wefti_lbfgs_state_of(trainer->lbfgs);
        WEFTI_TRY(weft_checkpoint_add(writer, "weft.solver.lbfgs", WEFT_F64, weft_shape(state.n_values), state.values));
        WEFTI_TRY(weft_checkpoint_add_i64(writer, "weft.lbfgs_used", *state.used));
        WEFTI_TRY(weft_checkpoint_add_i64(writer, "weft.lbfgs_next", *state.next));
    }
    WEFTI_TRY(wefti_compress_states_add(trainer, saved->states, writer));
    WEFTI_TRY(wefti_served_states_add(trainer, saved->served, writer));
    WEFTI_TRY(weft_checkpoint_add_i64(writer, "weft.step", trainer->steps));
    WEFTI_TRY(weft_checkpoint_add_u64(writer, "weft.seed", trainer->graph->seed));
    if (trainer->program.strategy.precision == WEFT_F16) {
        WEFTI_TRY(weft_checkpoint_add_i64(writer, "weft.loss_scale", trainer->scale.exponent));
        WEFTI_TRY(weft_checkpoint_add_i64(writer, "weft.loss_scale_good", trainer->scale.good));
    }
    return saved->loader ? weft_loader_save_to(saved->loader, "train", writer) : WEFT_OK;
}

static weft_status write_file(wefti_gatherer *gatherer, const char *path, const wefti_saved *saved) {
    weft_trainer           *trainer = gatherer->trainer;
    weft_checkpoint_writer *writer = NULL;
    sources                 from = {.n = 0};
    weft_status             status;
    WEFTI_TRY_GOTO(open_sources(gatherer, &from), done);
    WEFTI_TRY_GOTO(weft_checkpoint_create(path, &writer), done);
    WEFTI_TRY_GOTO(add_variables(trainer, writer, &from), done);
    WEFTI_TRY_GOTO(wefti_save_numbers(trainer, saved, writer), done);
    status = weft_checkpoint_commit(writer);
done:
    weft_checkpoint_writer_release(writer);
    close_sources(&from);
    return first_of(status, wefti_parts_end(trainer)); /* the others wait for it, whatever happened here */
}

static weft_status save(weft_trainer *trainer, const char *path, const wefti_saved *saved, int32_t lead) {
    wefti_gatherer gatherer;
    weft_status    status = wefti_parts_open(trainer, false, &gatherer);
    if (wefti_in_parts(trainer)) status = wefti_agree(trainer->world, status, "making ready to save the run");
    if (status == WEFT_OK && trainer->world->rank == lead) status = write_file(&gatherer, path, saved);
    else if (status == WEFT_OK && wefti_in_parts(trainer)) status = wefti_parts_serve(&gatherer);
    wefti_parts_close(&gatherer);
    return wefti_agree_with(trainer, lead, status, "saving the run");
}

weft_status weft_trainer_save(weft_trainer *trainer, const char *path, const weft_loader *loader) {
    if (!trainer || !path) return wefti_fail(WEFT_E_INVALID, "weft_trainer_save: the %s is NULL", trainer ? "path" : "trainer");
    wefti_compress_states states;
    wefti_served_states   served = {0};
    int32_t               lead = 0;
    WEFTI_TRY(wefti_served_refresh(trainer));
    WEFTI_TRY(wefti_lead(trainer, &lead));
    weft_status status = wefti_compress_states_gather(trainer, &states);
    if (trainer->served && trainer->world->rank == lead && status == WEFT_OK) status = wefti_served_states_gather(trainer, &served);
    if (trainer->served) status = wefti_agree_with(trainer, lead, status, "fetching the solver's states from the server");
    const wefti_saved saved = {loader, &states, &served};
    if (status == WEFT_OK) status = wefti_shards_is_index(path) ? wefti_save_shards(trainer, path, &saved) : save(trainer, path, &saved, lead);
    wefti_served_states_release(&served);
    wefti_compress_states_release(&states);
    return status;
}

/* --- loading --- */

/* What a file holds, read aside. */
typedef struct contents {
    wefti_snapshot        run;
    wefti_dealer          dealer; /* in the place of the run's variables, where ranks have parts of them */
    wefti_compress_states states; /* what each rank keeps by itself; rank 0 alone */
    wefti_served_states   served; /* what servers keep; rank 0 alone */
} contents;

bool wefti_snapshot_holds(const weft_trainer *trainer, bool bases, int32_t i, weft_variable_info *info_out) {
    if (weft_variables_info(trainer->variables, i, info_out) != WEFT_OK) return false;
    info_out->bytes = wefti_variables_part_bytes(trainer->variables, i);
    return !wefti_contribution_to(info_out->name) && !wefti_is_compress_error(info_out->name) && (bases || !wefti_is_compress_basis(info_out->name));
}

size_t wefti_snapshot_size(const weft_trainer *trainer, bool bases) {
    size_t  total = 0;
    int32_t n = weft_variables_count(trainer->variables);
    for (int32_t i = 0; i < n; i++) {
        weft_variable_info info;
        if (wefti_snapshot_holds(trainer, bases, i, &info)) total = wefti_snapshot_next(total, info.bytes);
    }
    if (trainer->lbfgs) total = wefti_snapshot_next(total, wefti_lbfgs_state_of(trainer->lbfgs).n_values * (int64_t)sizeof(double));
    return total;
}

weft_status wefti_snapshot_open(const weft_trainer *trainer, bool bases, wefti_snapshot *s) {
    *s = (wefti_snapshot){.bases = bases};
    size_t total = wefti_snapshot_size(trainer, bases);
    WEFTI_TRY(wefti_alloc(total, "a run's contents", &s->bytes));
    s->size_bytes = total;
    return WEFT_OK;
}

void wefti_snapshot_close(wefti_snapshot *s) {
    wefti_free(s->bytes, s->size_bytes);
    *s = (wefti_snapshot){0};
}

/* Where the file's loader stood. The loader itself moves only once everything has been read. */
static weft_status read_loader(const weft_checkpoint *file, weft_loader *loader, weft_loader_state *state_out) {
    weft_loader_state before;
    weft_loader_save(loader, &before);
    WEFTI_TRY(weft_loader_restore_from(loader, "train", file));
    weft_loader_save(loader, state_out);
    return weft_loader_restore(loader, &before);
}

/* Dropout draws from the graph's seed, which a graph has from its birth: with another one a run would not go on to the same bits. Files
 * that do not say are let pass. */
static weft_status check_seed(const weft_trainer *trainer, const weft_checkpoint *file) {
    uint64_t seed = trainer->graph->seed;
    if (trainer->graph->n_random == 0) return WEFT_OK;
    weft_status status = weft_checkpoint_read_u64(file, "weft.seed", &seed);
    if (status != WEFT_OK && status != WEFT_E_NOT_FOUND) return status;
    if (seed == trainer->graph->seed) return WEFT_OK;
    return wefti_fail(WEFT_E_MISMATCH, "the run was saved with seed %llu and this graph has seed %llu, so its random numbers would be others: "
                      "create the graph with the saved seed", (unsigned long long)seed, (unsigned long long)trainer->graph->seed);
}

/* A run may go on in another precision than the one that saved it: then there is no scale, or one that nobody needs. */
static weft_status read_scale(const weft_trainer *trainer, const weft_checkpoint *file, wefti_loss_scale *scale_out) {
    *scale_out = trainer->scale;
    weft_status status = weft_checkpoint_read_i64(file, "weft.loss_scale", &scale_out->exponent);
    if (status == WEFT_E_NOT_FOUND) return WEFT_OK;
    WEFTI_TRY(status);
    WEFTI_TRY(weft_checkpoint_read_i64(file, "weft.loss_scale_good", &scale_out->good));
    if (scale_out->exponent >= WEFTI_LOSS_SCALE_LEAST && scale_out->exponent <= WEFTI_LOSS_SCALE_MOST && scale_out->good >= 0) return WEFT_OK;
    return wefti_fail(WEFT_E_CORRUPT, "the scale of the loss is 2^%lld, after %lld good steps; it is between 2^%d and 2^%d",
                      (long long)scale_out->exponent, (long long)scale_out->good, WEFTI_LOSS_SCALE_LEAST, WEFTI_LOSS_SCALE_MOST);
}

static weft_status read_variables(const weft_trainer *trainer, weft_checkpoint *file, contents *c) {
    wefti_snapshot *s = &c->run;
    size_t          at = 0;
    if (wefti_in_parts(trainer)) return wefti_deal_read(&c->dealer, file);
    for (int32_t i = 0; i < weft_variables_count(trainer->variables); i++) {
        weft_variable_info info;
        if (!wefti_snapshot_holds(trainer, s->bases, i, &info)) continue;
        WEFTI_TRY(wefti_is_compress_basis(info.name) ? wefti_compress_basis_read(trainer, file, &info, s->bytes + at)
                                                     : weft_checkpoint_read(file, info.name, info.dtype, info.shape, s->bytes + at));
        at = wefti_snapshot_next(at, info.bytes);
    }
    if (!trainer->lbfgs) return WEFT_OK;
    wefti_lbfgs_state state = wefti_lbfgs_state_of(trainer->lbfgs);
    WEFTI_TRY(weft_checkpoint_read(file, "weft.solver.lbfgs", WEFT_F64, weft_shape(state.n_values), s->bytes + at));
    WEFTI_TRY(weft_checkpoint_read_i64(file, "weft.lbfgs_used", &s->numbers.lbfgs_used));
    WEFTI_TRY(weft_checkpoint_read_i64(file, "weft.lbfgs_next", &s->numbers.lbfgs_next));
    if (s->numbers.lbfgs_used >= 0 && s->numbers.lbfgs_used <= state.history && s->numbers.lbfgs_next >= 0 && s->numbers.lbfgs_next < state.history)
        return WEFT_OK;
    return wefti_fail(WEFT_E_CORRUPT, "the history of L-BFGS has %lld pairs, the next at %lld; it holds %d", (long long)s->numbers.lbfgs_used,
                      (long long)s->numbers.lbfgs_next, state.history);
}

static weft_status read_contents(weft_trainer *trainer, weft_checkpoint *file, weft_loader *loader, contents *c) {
    wefti_snapshot *s = &c->run;
    WEFTI_TRY(read_variables(trainer, file, c));
    WEFTI_TRY(wefti_compress_states_read(trainer, file, &c->states));
    WEFTI_TRY(wefti_served_states_read(trainer, file, &c->served));
    WEFTI_TRY(check_seed(trainer, file));
    WEFTI_TRY(read_scale(trainer, file, &s->numbers.scale));
    WEFTI_TRY(weft_checkpoint_read_i64(file, "weft.step", &s->numbers.step));
    if (loader) WEFTI_TRY(read_loader(file, loader, &s->numbers.loader));
    return weft_checkpoint_expect_all_read(file, NULL);
}

static weft_status read_file(weft_trainer *trainer, const char *path, weft_loader *loader, contents *s) {
    weft_checkpoint *file = s->dealer.file; /* the one that all have compared: another may take the path's place meanwhile */
    weft_status      status = file ? WEFT_OK : weft_checkpoint_open(path, &file);
    if (status == WEFT_OK) status = read_contents(trainer, file, loader, s);
    if (file != s->dealer.file) weft_checkpoint_release(file);
    if (wefti_in_parts(trainer)) status = first_of(status, wefti_deal_end(&s->dealer)); /* the others follow until then */
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "loading '%s'", path);
}

static weft_status send_from(weft_world *world, int32_t from, void *bytes, size_t size_bytes) {
    if (world->size == 1) return WEFT_OK;
    wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .root = from, .send = bytes, .receive = bytes, .count = size_bytes};
    return wefti_collective_run(world->group, &call);
}

weft_status wefti_snapshot_send(weft_world *world, int32_t from, wefti_snapshot *s) {
    WEFTI_TRY(send_from(world, from, s->bytes, s->size_bytes));
    return send_from(world, from, &s->numbers, sizeof s->numbers);
}

void wefti_snapshot_take_numbers(weft_trainer *trainer, const wefti_snapshot *s) {
    trainer->steps = s->numbers.step;
    trainer->scale = s->numbers.scale;
    trainer->sums = s->numbers.sums;
}

weft_status wefti_snapshot_take_over(weft_trainer *trainer, weft_loader *loader, const wefti_snapshot *s) {
    if (loader) WEFTI_TRY(weft_loader_restore(loader, &s->numbers.loader));
    size_t  at = 0;
    int32_t n = weft_variables_count(trainer->variables);
    for (int32_t i = 0; i < n; i++) {
        weft_variable_info info;
        if (!wefti_snapshot_holds(trainer, s->bases, i, &info)) continue;
        WEFTI_TRY(wefti_variables_put(trainer->variables, i, s->bytes + at));
        at = wefti_snapshot_next(at, info.bytes);
    }
    if (trainer->lbfgs) {
        wefti_lbfgs_state state = wefti_lbfgs_state_of(trainer->lbfgs);
        memcpy(state.values, s->bytes + at, (size_t)state.n_values * sizeof(double));
        *state.used = (int32_t)s->numbers.lbfgs_used;
        *state.next = (int32_t)s->numbers.lbfgs_next;
    }
    wefti_snapshot_take_numbers(trainer, s);
    return WEFT_OK;
}

/* What no server has, by the lead's copy; parameters follow from the servers. */
static weft_status take_over_rest(weft_trainer *trainer, weft_loader *loader, const wefti_snapshot *s) {
    size_t at = 0;
    if (loader) WEFTI_TRY(weft_loader_restore(loader, &s->numbers.loader));
    for (int32_t i = 0; i < weft_variables_count(trainer->variables); i++) {
        weft_variable_info info;
        if (!wefti_snapshot_holds(trainer, s->bases, i, &info)) continue;
        if (!wefti_served_has(trainer, info.name)) WEFTI_TRY(wefti_variables_put(trainer->variables, i, s->bytes + at));
        at = wefti_snapshot_next(at, info.bytes);
    }
    wefti_snapshot_take_numbers(trainer, s);
    return WEFT_OK;
}

static weft_status send_rest(weft_trainer *trainer, wefti_snapshot *s, int32_t lead) {
    size_t      at = 0;
    weft_status status = wefti_lead_sends(trainer, lead, &s->numbers, sizeof s->numbers);
    for (int32_t i = 0; i < weft_variables_count(trainer->variables) && status == WEFT_OK; i++) {
        weft_variable_info info;
        if (!wefti_snapshot_holds(trainer, s->bases, i, &info)) continue;
        if (!wefti_served_has(trainer, info.name)) status = wefti_lead_sends(trainer, lead, s->bytes + at, info.bytes);
        at = wefti_snapshot_next(at, info.bytes);
    }
    return wefti_agree_with(trainer, lead, status, "sending the run");
}

weft_status wefti_snapshot_share_rest(weft_trainer *trainer, weft_loader *loader, wefti_snapshot *s, int32_t lead) {
    WEFTI_TRY(send_rest(trainer, s, lead));
    return wefti_agree_with(trainer, lead, take_over_rest(trainer, loader, s), "taking over the run");
}

static weft_status take_over_served(weft_trainer *trainer, weft_loader *loader, wefti_snapshot *s, int32_t lead) {
    if (trainer->world->rank != lead) return wefti_snapshot_share_rest(trainer, loader, s, lead);
    WEFTI_TRY(send_rest(trainer, s, lead));
    return wefti_agree_with(trainer, lead, wefti_snapshot_take_over(trainer, loader, s), "taking over the run"); /* for the servers */
}

/* What was read becomes every rank's, in the loader first, which may refuse. */
static weft_status take_over(weft_trainer *trainer, weft_loader *loader, contents *c, int32_t lead) {
    if (trainer->served && !wefti_in_parts(trainer)) return take_over_served(trainer, loader, &c->run, lead);
    if (!wefti_in_parts(trainer)) {
        WEFTI_TRY(wefti_snapshot_send(trainer->world, 0, &c->run));
        return wefti_agree(trainer->world, wefti_snapshot_take_over(trainer, loader, &c->run), "taking over the run");
    }
    WEFTI_TRY(send_from(trainer->world, 0, &c->run.numbers, sizeof c->run.numbers));
    weft_status status = loader ? weft_loader_restore(loader, &c->run.numbers.loader) : WEFT_OK;
    if (status == WEFT_OK) status = wefti_deal_take_over(&c->dealer);
    if (status == WEFT_OK) wefti_snapshot_take_numbers(trainer, &c->run);
    return wefti_agree(trainer->world, status, "taking over the run");
}

static weft_status share(wefti_dealer *dealer, const char *path) {
    weft_status status = wefti_deal_share(dealer);
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "loading '%s'", path);
}

weft_status weft_trainer_load(weft_trainer *trainer, const char *path, weft_loader *loader) {
    if (!trainer || !path) return wefti_fail(WEFT_E_INVALID, "weft_trainer_load: the %s is NULL", trainer ? "path" : "trainer");
    contents c = {0};
    bool     parts = wefti_in_parts(trainer);
    int32_t  lead = 0;
    WEFTI_TRY(wefti_lead(trainer, &lead));
    weft_status status = parts ? wefti_deal_open(trainer, &c.dealer) : wefti_snapshot_open(trainer, true, &c.run);
    if (parts) status = wefti_agree(trainer->world, status, "making ready to load the run");
    if (parts && status == WEFT_OK) status = wefti_deal_meet(&c.dealer, path);
    if (status == WEFT_OK && trainer->world->rank == lead) status = read_file(trainer, path, loader, &c);
    else if (status == WEFT_OK && parts) status = wefti_deal_follow(&c.dealer);
    status = wefti_agree_with(trainer, lead, status, "loading the run");
    if (status == WEFT_OK && c.dealer.file) status = wefti_agree(trainer->world, share(&c.dealer, path), "reading its part of the run");
    if (status == WEFT_OK) status = take_over(trainer, loader, &c, lead);
    if (status == WEFT_OK) status = wefti_compress_states_deal(trainer, &c.states);
    if (status == WEFT_OK && trainer->served) status = wefti_served_restore(trainer, &c.served, lead);
    wefti_served_states_release(&c.served);
    wefti_compress_states_release(&c.states);
    wefti_snapshot_close(&c.run);
    wefti_deal_close(&c.dealer);
    return status;
}
