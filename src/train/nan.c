/* Whose fault a loss is that is not finite. A batch that brings such values comes first, for they spread to every rank's share
 * of the loss (by batch statistics); then the first rank with a share that is not finite. One small message, after the fact. */
#include <math.h>

#include "core/iface/collective.h"
#include "train/trainer.h"

static bool all_finite(const weft_batch_field *field) {
    int64_t count = weft_shape_elements(field->shape);
    for (int64_t i = 0; i < count; i++)
        if (field->dtype == WEFT_F32 ? !isfinite(((const float *)field->data)[i])
                                     : field->dtype == WEFT_F64 && !isfinite(((const double *)field->data)[i]))
            return false;
    return true;
}

/* The field of the batch that brings such a value; -1 where none does. */
static int32_t bad_field(const weft_batch *batch) {
    for (int32_t i = 0; i < batch->field_count && i < WEFT_BATCH_MAX_FIELDS; i++)
        if (!all_finite(&batch->field[i])) return i;
    return -1;
}

weft_status wefti_trainer_nan(weft_trainer *trainer, const weft_batch *batch, double loss, double norm, double own_loss) {
    weft_world *world = wefti_trainer_meets(trainer);
    int32_t     field = bad_field(batch);
    bool        bad = !isfinite(own_loss), bad_loss = !isfinite(loss);
    const char *what = bad_loss ? "the loss" : "the gradient's norm";
    if (isnan(loss)) loss = NAN; /* no "-nan" */
    if (isnan(norm)) norm = NAN;
    /* The least of: rank and field with bad data; rank with a bad share; rank with a good share. */
    int64_t first[3] = {field >= 0 ? (int64_t)world->rank * WEFT_BATCH_MAX_FIELDS + field : INT64_MAX, bad ? world->rank : INT64_MAX,
                        bad ? INT64_MAX : world->rank};
    if (world->size > 1) {
        wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I64, .op = WEFTI_REDUCE_MIN, .send = first,
                                      .receive = first, .count = 3};
        WEFTI_TRY(wefti_collective_run(world->group, &call));
    }
    long long step = (long long)trainer->steps + 1;
    if (first[0] != INT64_MAX)
        return wefti_fail(WEFT_E_NAN, "step %lld: %s is %g: '%s' of the batch on rank %lld has values that are not finite; nothing "
                          "was changed", step, what, bad_loss ? loss : norm, batch->field[first[0] % WEFT_BATCH_MAX_FIELDS].name,
                          (long long)(first[0] / WEFT_BATCH_MAX_FIELDS));
    if (!bad_loss)
        return wefti_fail(WEFT_E_NAN, "step %lld: the gradient's norm is %g, though the loss is %g; nothing was changed. Look for "
                          "functions whose slope is infinite, as that of sqrt at 0, or lower the learning rate", step, norm, loss);
    if (first[1] == INT64_MAX)
        return wefti_fail(WEFT_E_NAN, "step %lld: the loss is %g, though every rank's own share is finite; nothing was changed. Lower "
                          "the learning rate or clip the gradient", step, loss);
    if (first[2] == INT64_MAX && world->size > 1)
        return wefti_fail(WEFT_E_NAN, "step %lld: the loss is %g, on every rank; nothing was changed. Lower the learning rate or clip the "
                          "gradient", step, loss);
    return wefti_fail(WEFT_E_NAN, "step %lld: the loss is %g, first on rank %lld; nothing was changed. Look at that rank's data, lower "
                      "the learning rate or clip the gradient", step, loss, (long long)first[1]);
}
