/* The same as test_costs.c with all sizes. */
#include <criterion/criterion.h>

#include "costs.h"

Test(costs_nightly, choose_well_among_single_ranks) { costs_run(64, 1, 8, 64 << 20, 2); }
Test(costs_nightly, choose_well_among_eights) { costs_run(64, 8, 8, 64 << 20, 2); }
Test(costs_nightly, choose_well_among_fours) { costs_run(64, 4, 8, 64 << 20, 2); }
Test(costs_nightly, choose_well_among_sixty) { costs_run(60, 1, 8, 64 << 20, 2); }
Test(costs_nightly, choose_well_among_sixty_three) { costs_run(63, 1, 8, 64 << 20, 2); }
