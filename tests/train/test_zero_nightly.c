/* Sharded data parallelism on more meshes, up to eight processes: see test_zero.c. */
#include "train/zero_runs.h"

Test(zero_nightly, agrees_in_an_interleaved_pipeline) { agrees_in_stages("interleaved", (mesh){2, 1}); }
Test(zero_nightly, agrees_where_backward_passes_are_cut) { agrees_in_stages("zero-bubble", (mesh){2, 1}); }
Test(zero_nightly, agrees_where_all_forward_passes_come_first) { agrees_in_stages("gpipe", (mesh){3, 1}); }
Test(zero_nightly, agrees_in_a_pipeline_beside_tensor) { agrees_in_stages("1f1b", (mesh){2, 2}); }
Test(zero_nightly, agrees_on_eight_ranks) { agrees("cnn", "f64", (mesh){8, 1}, "tcp", 1e-12, "eight ranks"); }
