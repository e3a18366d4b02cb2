/* Of 60 to 64 simulated ranks, what is chosen by cost takes at most 1.3 times as long as what would have been the quickest. */
#include <criterion/criterion.h>

#include "common/effort.h"
#include "costs.h"

enum { MOST = UNDER_ADDRESS_SANITIZER ? 64 << 10 : 1 << 20 };

Test(costs, choose_well_among_single_ranks) { costs_run(64, 1, 8, MOST, 8); }
Test(costs, choose_well_among_eights) { costs_run(64, 8, 8, MOST, 8); }
Test(costs, choose_well_among_fours) { costs_run(64, 4, 8, MOST, 8); }
Test(costs, choose_well_among_sixty) { costs_run(60, 1, 8, MOST, 8); }
Test(costs, choose_well_among_sixty_three) { costs_run(63, 1, 8, MOST, 8); }
