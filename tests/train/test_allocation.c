/* A training step in steady state allocates nothing, on no thread and no rank: loader, trainer, line search, wires and all. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "train/run.h"

static void allocates_nothing(int ranks, const char *wire, const char *arguments) {
    const char *output = temporary_path("output");
    int         status = run_ranks(ranks, wire, "train_program_allocation", arguments, output);
    char       *text = read_text(output);
    cr_assert_eq(status, 0, "%d ranks over %s, %s: exit status %d: %s", ranks, wire ? wire : "-", arguments, status, text);
    cr_assert_not_null(strstr(text, "allocations 0"), "%s", text);
    free(text);
}

Test(allocation, none_on_one_rank) { allocates_nothing(0, NULL, "adamw 2"); }
Test(allocation, none_with_lbfgs) { allocates_nothing(0, NULL, "lbfgs 1"); }
Test(allocation, none_on_two_ranks_over_shared_memory) { allocates_nothing(2, "shm", "adamw 1"); }
Test(allocation, none_on_two_ranks_over_tcp) { allocates_nothing(2, "tcp", "adamw 1"); }
Test(allocation, none_with_compressed_gradients) {
    allocates_nothing(2, "shm", "adamw 1 bf16");
    allocates_nothing(2, "shm", "adamw 2 fp8");
    allocates_nothing(2, "shm", "adamw 2 topk");
    allocates_nothing(2, "tcp", "adamw 1 powersgd:1");
}
