/* A loader's position in a checkpoint: a handful of values, the same on every rank, so rank 0's do for all. */
#include <stdio.h>

#include "core/base/base.h"
#include "weft/loader.h"

enum { key_bytes = 128 };

static weft_status name_key(char key[key_bytes], const char *name, const char *part) {
    int length = snprintf(key, key_bytes, "loader.%s.%s", name ? name : "", part);
    if (!name || !*name || length < 0 || length >= key_bytes)
        return wefti_fail(WEFT_E_INVALID, "a loader cannot be saved under the name '%.60s'", name ? name : "");
    return WEFT_OK;
}

static weft_status put(weft_checkpoint_writer *writer, const char *name, const char *part, int64_t value) {
    char key[key_bytes];
    WEFTI_TRY(name_key(key, name, part));
    return weft_checkpoint_add_i64(writer, key, value);
}

static weft_status get(const weft_checkpoint *checkpoint, const char *name, const char *part, int64_t *value_out) {
    char key[key_bytes];
    WEFTI_TRY(name_key(key, name, part));
    return weft_checkpoint_read_i64(checkpoint, key, value_out);
}

weft_status weft_loader_save_to(const weft_loader *loader, const char *name, weft_checkpoint_writer *writer) {
    weft_loader_state state;
    char              key[key_bytes];
    if (!loader || !writer) return wefti_fail(WEFT_E_INVALID, "weft_loader_save_to: needs a loader and a checkpoint");
    weft_loader_save(loader, &state);
    WEFTI_TRY(name_key(key, name, "seed"));
    WEFTI_TRY(weft_checkpoint_add_u64(writer, key, state.seed));
    WEFTI_TRY(put(writer, name, "epoch", state.epoch));
    WEFTI_TRY(put(writer, name, "batch", state.batch));
    WEFTI_TRY(put(writer, name, "rows", state.rows));
    WEFTI_TRY(put(writer, name, "batch_rows", state.batch_rows));
    WEFTI_TRY(put(writer, name, "in_order", state.in_order));
    return put(writer, name, "drop_last", state.drop_last);
}

weft_status weft_loader_state_read(const weft_checkpoint *checkpoint, const char *name, weft_loader_state *state_out) {
    weft_loader_state state = {0};
    int64_t           in_order = 0, drop_last = 0;
    char              key[key_bytes];
    if (!checkpoint || !state_out)
        return wefti_fail(WEFT_E_INVALID, "weft_loader_state_read: needs a checkpoint and a place for the state");
    WEFTI_TRY(name_key(key, name, "seed"));
    WEFTI_TRY(weft_checkpoint_read_u64(checkpoint, key, &state.seed));
    WEFTI_TRY(get(checkpoint, name, "epoch", &state.epoch));
    WEFTI_TRY(get(checkpoint, name, "batch", &state.batch));
    WEFTI_TRY(get(checkpoint, name, "rows", &state.rows));
    WEFTI_TRY(get(checkpoint, name, "batch_rows", &state.batch_rows));
    WEFTI_TRY(get(checkpoint, name, "in_order", &in_order));
    WEFTI_TRY(get(checkpoint, name, "drop_last", &drop_last));
    state.in_order = in_order != 0;
    state.drop_last = drop_last != 0;
    *state_out = state;
    return WEFT_OK;
}

weft_status weft_loader_restore_from(weft_loader *loader, const char *name, const weft_checkpoint *checkpoint) {
    weft_loader_state state;
    if (!loader || !checkpoint)
        return wefti_fail(WEFT_E_INVALID, "weft_loader_restore_from: needs a loader and a checkpoint");
    WEFTI_TRY(weft_loader_state_read(checkpoint, name, &state));
    return weft_loader_restore(loader, &state);
}
