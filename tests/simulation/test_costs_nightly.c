/* The same as test_costs.c with all sizes. */
#include <criterion/criterion.h>

#include "costs.h"

Test(costs_nightly, choose_well_among_single_ranks) { costs_run(64, 1, 8, 16 << 20, 2); }
Test(costs_nightly, choose_well_among_eights) { costs_run(64, 8, 8, 16 << 20, 2); }
