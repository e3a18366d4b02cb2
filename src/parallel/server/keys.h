/* Making key sets, for whoever has a list of rows. */
#ifndef WEFTI_SERVER_KEYS_H
#define WEFTI_SERVER_KEYS_H

#include <stdio.h>

#include "parallel/server/inside.h"

/* Without a number, and unknown to the table; free it by wefti_keys_free. `ascending`: it must be, strictly. */
WEFT_MUST_CHECK weft_status wefti_keys_make(weft_table *table, const uint64_t *list, int64_t count, bool ascending, weft_keys **keys_out);
void wefti_keys_free(weft_keys *keys);

#endif
