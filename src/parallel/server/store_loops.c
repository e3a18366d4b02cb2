/* Loops of the store, for the baseline and for AVX2. They go through memory once and are bound by it where the compiler makes vectors of them, which
 * it does not at the level of the rest of the library. */
#include "parallel/server/store_loops.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#define WIDE_FILE "parallel/server/store_loops_body.h"
#define WIDE_OPTIMIZE "O3", "no-trapping-math"
#include "core/base/wide.h"

const wefti_loops *wefti_loops_choose(void) { return WIDE_PICK(loops); }
