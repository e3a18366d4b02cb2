/* Agreement: a rank that fails alone must not leave the others in a collective. One message each. */
#include "learn/learn.h"

weft_status wefti_learn_agree(weft_group *group, weft_status mine, const char *what) {
    /* Lowest failing rank first, then its status: one minimum tells both. */
    int64_t word = mine == WEFT_OK ? INT64_MAX : (int64_t)weft_group_index(group) << 32 | (uint32_t)mine, least = word;
    WEFTI_TRY(weft_group_allreduce(group, &word, &least, 1, WEFT_I64, WEFT_COMBINE_MIN));
    if (least == INT64_MAX) return WEFT_OK;
    weft_status theirs = (weft_status)(uint32_t)least;
    if (mine == theirs) return mine;
    return wefti_fail(theirs, "%s: rank %d failed: %s", what, (int)(least >> 32), weft_status_text(theirs));
}

weft_status wefti_learn_compare(weft_group *group, uint64_t hash, const char *what) {
    int64_t value = (int64_t)(hash >> 1), ends[2] = {value, -value};
    WEFTI_TRY(weft_group_allreduce(group, ends, ends, 2, WEFT_I64, WEFT_COMBINE_MAX));
    if (ends[0] == -ends[1]) return WEFT_OK;
    return wefti_fail(WEFT_E_MISMATCH, "%s differ between ranks: give every rank the same", what);
}
