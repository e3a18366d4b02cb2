/* Replicas that are split, by a parameter server: each rank gives and gets its part of the parameters, for the sum over replicas. Real processes train a small transformer
 * and others on meshes. Without staleness they are one process, to rounding; with it replicas go each at its pace, and those who have the same parameter in one are
 * alike to the bit. Runs go on from checkpoints under any other mesh, by a server or not; a rank that dies ends all. */
#include "train/split_runs.h"

Test(served_split, without_staleness_is_one_process) {
    setenv("RUN_PENALTY", "1", 1); /* what all ranks have alike of a gradient, whole or beside a sum over ranks, counts once */
    splits_agree("gpt", "f64", 10, 1e-11, (split[]){{4, "data=2,tensor=2,sync=server"}, {4, "data=2,tensor=2,tensor-rows=1,sync=server,servers=1"},
                                                    {4, "data=2,pipeline=2,accumulate=2,sync=server"}, {4, "data=2,sequence=2,sync=server"},
                                                    {8, "data=2,tensor=2,pipeline=2,accumulate=2,schedule=1f1b,zero=1,sync=server"}}, 5);
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

/* --- memory --- */

/* Of a rank: bytes of its parameters, of its other variables, and of rows with their states that it serves. */
static void held_by(const char *text, int rank, long held[3]) {
    char key[32];
    snprintf(key, sizeof key, "rank %d holds ", rank);
    const char *at = strstr(text, key);
    cr_assert(at && sscanf(at + strlen(key), "%ld %ld %ld", &held[0], &held[1], &held[2]) == 3, "'%s' lacks '%s'", text, key);
}

/* Under zero = 1 nobody has solver states but the servers, and these have them in parts: rows of one of Adam's parameters are three numbers an element, and how often they
 * were updated. What else a rank has is its parameters and, as large, what it gives of gradients. */
Test(served_split, zero_1_is_what_servers_do) {
    static const split splits[] = {{2, "data=2,zero=1,sync=server"}, {4, "data=2,tensor=2,zero=1,sync=server:3,servers=2"}, {8, "data=2,tensor=2,pipeline=2,zero=1,sync=server"}};
    long               one[3], held[3];
    setenv("RUN_HELD", "1", 1);
    setenv("RUN_DESCRIBE", "1", 1);
    char *text = train_split("gpt", "f32", (split){1, NULL}, 1, temporary_path("held"));
    held_by(text, 0, one);
    cr_assert(one[1] == 2 * one[0] && one[2] == 0, "one process has %ld bytes of states for %ld of parameters", one[1], one[0]);
    free(text);
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
        const split s = splits[i];
        const int   servers = i == 1 ? 2 : s.ranks;
        long        all = 0;
        char        said[128];
        text = train_split("gpt", "f32", s, 1, temporary_path("held"));
        for (int rank = 0; rank < s.ranks; rank++) {
            held_by(text, rank, held);
            cr_expect(held[1] == (i == 0 ? 0 : held[0]), "%s: rank %d keeps %ld bytes beside %ld of parameters", s.strategy, rank, held[1], held[0]);
            cr_expect((double)held[2] <= 1.15 * 3 * (double)one[0] / servers, "%s: rank %d serves %ld bytes, of parameters of %ld", s.strategy, rank, held[2], one[0]);
            all += held[2];
        }
        cr_expect(all >= 3 * one[0], "%s: servers have %ld bytes, of parameters of %ld", s.strategy, all, one[0]);
        snprintf(said, sizeof said, "zero 1: solver states are on the parameter server, in parts on %d of %d ranks", servers, s.ranks);
        cr_expect(strstr(text, said), "%s: '%s' lacks '%s'", s.strategy, text, said);
        free(text);
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
                                   {8, "data=2,tensor=2,pipeline=2,accumulate=2,schedule=1f1b,zero=1,sync=server:3"}};
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
    split_fails("gpt", two, "RUN_ZERO", "2", "WEFT_E_UNSUPPORTED", "zero = 2 does not go with sync = WEFT_SERVER, by which solver states are in parts on the servers");
    split_fails("gpt", two, "RUN_ZERO", "3", "WEFT_E_UNSUPPORTED", "a whole gradient and all parameters until servers have it: use zero = 1");
    split_fails("gpt", two, "RUN_WITH", "keep", "WEFT_E_UNSUPPORTED", "go on");
    split_fails("gpt", two, "RUN_WITH", "renew", "WEFT_E_UNSUPPORTED", "nobody takes a lost rank's place in its replica");
    split_fails("moe", (split){2, "expert=2,sync=server"}, "RUN_WITH", "", "WEFT_E_UNSUPPORTED", "expert = 2 does not go with sync = WEFT_SERVER");
    split_fails("gpt", (split){2, "pipeline=2,sync=server"}, "RUN_WITH", "compress", "WEFT_E_UNSUPPORTED", "sync = WEFT_SERVER and compress");
}
