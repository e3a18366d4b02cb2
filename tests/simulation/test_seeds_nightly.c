/* As test_seeds.c, through the night. */
#include <criterion/criterion.h>

#include "seeds.h"

Test(seeds_nightly, end_well_or_with_one_verdict) { seeds_run(100000, 10000, 0); }
