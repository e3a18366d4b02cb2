/* All rows of the table of combinations, on more models. */
#include "train/mesh_table.h"

Test(mesh, combinations_agree) { all_agree("gpt", 100, 1e-4, true); }
Test(mesh, perceptrons_agree) { all_agree("mlp", 100, 1e-4, true); }
Test(mesh, combinations_of_experts_agree) { all_agree("moe", 100, 1e-4, true); }
Test(mesh, files) {
    files_are_those_of_one_process("gpt", true);
    files_are_those_of_one_process("mlp", true);
    files_are_those_of_one_process("moe", true);
}
Test(mesh, a_rank_that_dies_ends_all) { deaths_end_all(true); }
