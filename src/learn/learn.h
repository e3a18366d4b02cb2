/* What algorithms of this room share: agreement of ranks on how a run begins, and whose turn it is. */
#ifndef WEFTI_LEARN_H
#define WEFTI_LEARN_H

#include "core/base/base.h"
#include "weft/collective.h"

/* Every rank gives the status of what it did by itself (with its message set where that is not WEFT_OK); all get WEFT_OK, or the first failing rank's status: on
 * ranks that failed so too with their own message, elsewhere naming it. Collective; blocks. */
WEFT_MUST_CHECK weft_status wefti_learn_agree(weft_group *group, weft_status mine, const char *what);
/* WEFT_E_MISMATCH on all where the hashes differ. Collective; blocks. */
WEFT_MUST_CHECK weft_status wefti_learn_compare(weft_group *group, uint64_t hash, const char *what);

#endif
