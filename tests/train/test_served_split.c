/* Replicas that are split, by a parameter server: each rank gives and gets its part of the parameters, for the sum over replicas. Real processes train a small transformer
 * and others on meshes. Without staleness they are one process, to rounding; with it replicas go each at its pace, and those who have the same parameter in one are
 * alike to the bit. Runs go on from checkpoints under any other mesh, by a server or not; a rank that dies ends all. */
#include "train/split_runs.h"

Test(served_split, without_staleness_is_one_process) {
    setenv("RUN_PENALTY", "1", 1); /* what all ranks have alike of a gradient, whole or beside a sum over ranks, counts once */
    splits_agree("gpt", "f64", 10, 1e-11, (split[]){{4, "data=2,tensor=2,sync=server"}, {4, "data=2,tensor=2,tensor-rows=1,sync=server,servers=1"},
                                                    {4, "data=2,pipeline=2,accumulate=2,sync=server"}, {4, "data=2,sequence=2,sync=server"},
                                                    {8, "data=2,tensor=2,pipeline=2,accumulate=2,schedule=1f1b,sync=server"}}, 5);
    setenv("RUN_ROWS", "59", 1); /* a last batch of 11, of which ranks along data have 6 and 5 rows */
    splits_agree("gpt", "f64", 10, 1e-11, (split[]){{4, "data=2,tensor=2,sync=server"}}, 1);
}
Test(served_split, learns_in_f32_as_one_process) { splits_agree("gpt", "f32", 40, 1e-4, (split[]){{4, "data=2,tensor=2,sync=server"}}, 1); }
Test(served_split, running_statistics_are_those_of_one_process) {
    splits_agree("cnn", "f64", 10, 1e-11, (split[]){{4, "data=2,tensor=2,sync=server"}, {4, "data=2,pipeline=2,sync=server"}}, 2);
}
Test(served_split, solvers_that_keep_states) {
    static const char *const solvers[] = {"momentum", "nesterov", "adagrad", "rmsprop"};
    for (size_t i = 0; i < sizeof solvers / sizeof *solvers; i++) {
        setenv("RUN_SOLVER", solvers[i], 1);
        splits_agree("gpt", "f64", 8, 1e-11, (split[]){{4, "data=2,tensor=2,sync=server"}}, 1);
    }
}

/* --- checkpoints --- */

Test(served_split, runs_go_on_under_another_mesh) {
    split_goes_on("gpt", 3, (split){4, "data=2,tensor=2,sync=server"}, (split){1, NULL});
    split_goes_on("gpt", 3, (split){2, "tensor=2"}, (split){4, "data=2,tensor=2,sync=server"});
    split_goes_on("gpt", 3, (split){4, "data=2,tensor=2,sync=server"}, (split){4, "data=2,pipeline=2,accumulate=2,sync=server"});
    split_goes_on("gpt", 3, (split){2, "data=2,sync=server"}, (split){4, "data=2,sequence=2,sync=server"});
}

/* --- with staleness --- */

/* What a rank says its parameters have come to; to be freed. */
static char *said_by(const char *text, int rank) {
    char key[32];
    snprintf(key, sizeof key, "rank %d has ", rank);
    const char *at = strstr(text, key);
    cr_assert_not_null(at, "'%s' lacks '%s'", text, key);
    at += strlen(key);
    return strndup(at, strcspn(at, "\n"));
}

/* Ranks 0 and 1, 2 and 3, … of a mesh are of one replica and, where it has one, of one stage. */
static void stays_alike(split s) {
    const char *path = temporary_path("stale");
    size_t      n;
    setenv("RUN_ALIKE", "1", 1);
    setenv("RUN_PENALTY", "1", 1);
    char   *text = train_split("gpt", "f64", s, 24, path);
    double *losses = read_doubles(path, &n);
    cr_assert_eq(n, 2 * 24 + 2);
    cr_expect(losses[n - 2] < losses[0], "%s: %g after %g", s.strategy, losses[n - 2], losses[0]);
    for (int rank = 0; rank < s.ranks; rank += 2) {
        char *one = said_by(text, rank), *other = said_by(text, rank + 1);
        cr_expect_str_eq(one, other, "%s: rank %d has %s, rank %d %s", s.strategy, rank, one, rank + 1, other);
        free(one);
        free(other);
    }
    free(losses);
    free(text);
}

Test(served_split, members_of_a_replica_stay_alike) {
    static const split splits[] = {{4, "data=2,tensor=2,sync=server:2"},           {4, "data=2,tensor=2,sync=server:async"},
                                   {4, "data=2,sequence=2,sync=server:async"},     {4, "data=2,tensor=2,sync=server:3,push=2,fetch=3,warm-start=4"},
                                   {4, "data=2,tensor=2,sync=server:1,overlap=1"}, {4, "sequence=2,tensor=2,sync=server:1"},
                                   {8, "data=2,tensor=2,pipeline=2,accumulate=2,schedule=1f1b,sync=server:3"}};
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) stays_alike(splits[i]);
}

/* One replica waits for nobody and has what it pushed: steps are those of one process, whatever the staleness. */
Test(served_split, one_replica_is_one_process) {
    splits_agree("gpt", "f64", 8, 1e-11, (split[]){{2, "tensor=2,sync=server:async"}, {2, "pipeline=2,accumulate=2,sync=server:2"}}, 2);
}

Test(served_split, stale_runs_go_on) {
    split       stale = {4, "data=2,tensor=2,sync=server:async"};
    const char *file = saved_by("gpt", stale, 6, temporary_path("none"));
    setenv("RUN_LOAD", file, 1);
    free(train_split("gpt", "f64", stale, 3, temporary_path("none")));
    free(train_split("gpt", "f64", (split){4, "data=2,pipeline=2,accumulate=2,sync=server:2"}, 3, temporary_path("none")));
    free(train_split("gpt", "f64", (split){1, NULL}, 3, temporary_path("none")));
}

/* --- what goes wrong --- */

Test(served_split, a_rank_that_dies_ends_all) {
    static const char *const syncs[] = {"data=2,tensor=2,sync=server", "data=2,tensor=2,sync=server:2", "data=2,pipeline=2,accumulate=2,sync=server:async"};
    for (size_t i = 0; i < sizeof syncs / sizeof *syncs; i++)
        split_fails("gpt", (split){4, syncs[i]}, "RUN_DIE", "3", "WEFT_E_PEER", "rank 3");
}

Test(served_split, what_is_not_there_is_refused) {
    split two = {2, "tensor=2,sync=server"};
    split_fails("gpt", two, "RUN_WITH", "compress", "WEFT_E_UNSUPPORTED", "tensor = 2 does not go with");
    split_fails("gpt", two, "RUN_WITH", "lbfgs", "WEFT_E_UNSUPPORTED", "tensor = 2 does not go with L-BFGS");
    split_fails("gpt", two, "RUN_WITH", "replicas", "WEFT_E_UNSUPPORTED", "tensor = 2 does not go with sync = WEFT_SERVER and replicas");
    split_fails("gpt", two, "RUN_OMEGA", "group", "WEFT_E_UNSUPPORTED", "tensor = 2 does not go with sync = WEFT_SERVER and a group regulariser");
    split_fails("gpt", two, "RUN_CLIP", "1", "WEFT_E_UNSUPPORTED", "use clip_value");
    split_fails("gpt", two, "RUN_ZERO", "1", "WEFT_E_UNSUPPORTED", "zero = 1 does not go with sync = WEFT_SERVER");
    split_fails("gpt", two, "RUN_WITH", "keep", "WEFT_E_UNSUPPORTED", "go on");
    split_fails("gpt", two, "RUN_WITH", "renew", "WEFT_E_UNSUPPORTED", "nobody takes a lost rank's place in its replica");
    split_fails("moe", (split){2, "expert=2,sync=server"}, "RUN_WITH", "", "WEFT_E_UNSUPPORTED", "expert = 2 does not go with sync = WEFT_SERVER");
    split_fails("gpt", (split){2, "pipeline=2,sync=server"}, "RUN_WITH", "compress", "WEFT_E_UNSUPPORTED", "sync = WEFT_SERVER and compress");
}
