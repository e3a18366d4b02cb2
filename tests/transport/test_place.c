/* What launchers' environments are taken to mean. Each test runs in a process of its own, so it may set what it likes. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/transport.h"

extern char **environ;

typedef struct pair { const char *name, *value; } pair;

/* Exactly these variables, and nothing that the test itself was started under. */
static weft_status read_under(const pair *pairs, size_t count, wefti_place *place) {
    clearenv();
    for (size_t i = 0; i < count; i++) setenv(pairs[i].name, pairs[i].value, 1);
    return wefti_place_read(place);
}
#define READ(place, ...) read_under((const pair[]){__VA_ARGS__}, WEFTI_COUNT(((const pair[]){__VA_ARGS__})), place)

static void expect(const wefti_place *place, const char *launcher, int32_t rank, int32_t size, const char *store) {
    cr_expect_str_eq(place->launcher, launcher);
    cr_expect_eq(place->rank, rank);
    cr_expect_eq(place->size, size);
    cr_expect(strstr(place->store, store), "store '%s', not '%s'", place->store, store);
}

Test(place, one_rank_where_nothing_is_said) {
    wefti_place place;
    cr_assert_eq(READ(&place, {"HOME", "/"}), WEFT_OK);
    expect(&place, "none", 0, 1, "");
    cr_expect_eq(place.secret_bytes, 0);
    cr_expect_eq(place.store_descriptor, -1);
    /* Words that others use alone mean nothing. */
    cr_assert_eq(READ(&place, {"RANK", "3"}, {"SLURM_NTASKS", "4"}), WEFT_OK);
    expect(&place, "none", 0, 1, "");
}

Test(place, reads_its_own_variables) {
    wefti_place place;
    cr_assert_eq(READ(&place, {"WEFT_RANK", "0"}, {"WEFT_WORLD_SIZE", "4"}, {"WEFT_LOCAL_RANK", "0"}, {"WEFT_LOCAL_SIZE", "2"},
                      {"WEFT_STORE", "127.0.0.1:4711"}, {"WEFT_STORE_FD", "9"}, {"WEFT_JOB", "abc"},
                      {"WEFT_INTERFACE", "10.0.0.1"}, {"WEFT_SECRET", "0123456789abcdef"}),
                 WEFT_OK, "%s", weft_error_message());
    expect(&place, "weftrun", 0, 4, "127.0.0.1:4711");
    cr_expect_eq(place.local_size, 2);
    cr_expect_eq(place.store_ports, 1);
    cr_expect_eq(place.store_descriptor, 9);
    cr_expect_str_eq(place.job, "abc");
    cr_expect_str_eq(place.interface, "10.0.0.1");
    cr_expect_eq(place.secret_bytes, 16);
    /* They overrule the launcher's. */
    cr_assert_eq(READ(&place, {"WEFT_RANK", "1"}, {"WEFT_WORLD_SIZE", "2"}, {"RANK", "5"}, {"WORLD_SIZE", "6"},
                      {"WEFT_STORE", "h:1"}, {"WEFT_STORE_FD", "9"}), WEFT_OK);
    expect(&place, "weftrun", 1, 2, "h:1");
    cr_expect_eq(place.store_descriptor, -1, "only rank 0 listens");
}

Test(place, reads_torchrun) {
    wefti_place place;
    cr_assert_eq(READ(&place, {"RANK", "3"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"},
                      {"MASTER_ADDR", "node7"}, {"MASTER_PORT", "29500"}, {"TORCHELASTIC_RUN_ID", "run"}), WEFT_OK);
    expect(&place, "torchrun", 3, 8, "node7:29501");
    cr_expect_eq(place.local_rank, 1);
    cr_expect_eq(place.local_size, 2);
    cr_expect_gt(place.store_ports, 1);
    cr_expect(strstr(place.job, "run"));
    /* All on one machine: its address may be a name that is not of loopback, where they would need a secret. */
    cr_assert_eq(READ(&place, {"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"},
                      {"MASTER_ADDR", "node7"}, {"MASTER_PORT", "29500"}), WEFT_OK);
    expect(&place, "torchrun", 1, 2, "127.0.0.1:29501");
}

Test(place, reads_open_mpi) {
    wefti_place place, other;
    cr_assert_eq(READ(&place, {"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"PMIX_NAMESPACE", "1234"}), WEFT_OK);
    expect(&place, "Open MPI", 1, 2, "127.0.0.1:");
    cr_assert_eq(READ(&other, {"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"PMIX_NAMESPACE", "1234"}), WEFT_OK);
    cr_expect_str_eq(place.store, other.store, "the ranks of a job meet at one place");
    cr_expect_str_eq(place.job, other.job);
    cr_assert_eq(READ(&other, {"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"PMIX_NAMESPACE", "1235"}), WEFT_OK);
    cr_expect_str_neq(place.job, other.job);
}

/* Names of hosts and pods make long ones, which differ at their ends. */
Test(place, keeps_jobs_with_long_names_apart) {
    static const char *const names[] = {"prterun-training-cluster-node-with-a-long-name-0017-31415@1",
                                        "prterun-training-cluster-node-with-a-long-name-0017-31416@1",
                                        "prterun-training-cluster-node-with-a-long-name-0017-31415@2"};
    wefti_place place[3], own[2];
    for (size_t i = 0; i < 3; i++) {
        cr_assert_eq(READ(&place[i], {"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "2"},
                          {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"PMIX_NAMESPACE", names[i]}), WEFT_OK);
        for (size_t k = 0; k < i; k++) {
            cr_expect_str_neq(place[i].job, place[k].job);
            cr_expect_str_neq(place[i].store, place[k].store);
        }
    }
    char name[200];
    for (size_t i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%0150d", (int)i);
        cr_assert_eq(READ(&own[i], {"WEFT_RANK", "0"}, {"WEFT_WORLD_SIZE", "2"}, {"WEFT_JOB", name}), WEFT_OK);
    }
    cr_expect_str_neq(own[0].job, own[1].job);
}

Test(place, reads_slurm) {
    static const struct { const char *nodes, *host; } lists[] = {
        {"node[3-7,9],other", "node3:"}, {"alone,b", "alone:"}, {"rack1-n[01-04]", "rack1-n01:"}, {"a", "a:"}};
    for (size_t i = 0; i < WEFTI_COUNT(lists); i++) {
        wefti_place place;
        cr_assert_eq(READ(&place, {"SLURM_PROCID", "2"}, {"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_LOCALID", "0"}, {"SLURM_JOB_ID", "77"},
                          {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NODELIST", lists[i].nodes}, {"SLURM_STEP_NUM_NODES", "2"}),
                     WEFT_OK);
        expect(&place, "Slurm", 2, 4, lists[i].host);
    }
    wefti_place place;
    cr_assert_eq(READ(&place, {"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_JOB_ID", "77"},
                      {"SLURM_STEP_NODELIST", "node3"}, {"SLURM_STEP_NUM_NODES", "1"}), WEFT_OK);
    expect(&place, "Slurm", 1, 2, "127.0.0.1:");
    /* srun with PMI says both. */
    cr_assert_eq(READ(&place, {"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_JOB_ID", "77"}, {"PMI_RANK", "1"},
                      {"PMI_SIZE", "2"}, {"SLURM_STEP_NODELIST", "n[1-2]"}, {"SLURM_STEP_NUM_NODES", "2"}), WEFT_OK);
    expect(&place, "Slurm", 1, 2, "n1:");
    /* mpirun within one of Slurm's steps, which starts one proxy a node, is none of Slurm's. */
    cr_assert_eq(READ(&place, {"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_JOB_ID", "77"}, {"PMI_RANK", "3"},
                      {"PMI_SIZE", "4"}), WEFT_OK);
    expect(&place, "PMI", 3, 4, "");
}

/* A program alone in a batch script is one rank, whatever the job asked for. */
Test(place, takes_a_batch_script_of_slurm_for_no_launcher) {
    wefti_place place;
    cr_assert_eq(READ(&place, {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}, {"SLURM_NPROCS", "4"}, {"SLURM_LOCALID", "0"},
                      {"SLURM_JOB_ID", "77"}, {"SLURM_NODELIST", "node[1-4]"}, {"SLURM_NNODES", "4"}), WEFT_OK);
    expect(&place, "none", 0, 1, "");
    cr_expect_str_empty(place.store);
}

Test(place, names_what_is_wrong) {
    wefti_place place;
    static const struct { pair pairs[4]; const char *words; } bad[] = {
        {{{"WEFT_RANK", "1"}}, "WEFT_WORLD_SIZE"},
        {{{"WEFT_WORLD_SIZE", "2"}}, "WEFT_RANK"},
        {{{"WEFT_RANK", "2"}, {"WEFT_WORLD_SIZE", "2"}}, "WEFT_RANK=2"},
        {{{"WEFT_RANK", "one"}, {"WEFT_WORLD_SIZE", "2"}}, "WEFT_RANK=one"},
        {{{"WEFT_RANK", "-1"}, {"WEFT_WORLD_SIZE", "2"}}, "WEFT_RANK=-1"},
        {{{"WEFT_RANK", "0"}, {"WEFT_WORLD_SIZE", "0"}}, "WEFT_WORLD_SIZE=0"},
        {{{"WEFT_RANK", "0"}, {"WEFT_WORLD_SIZE", "99999999999"}}, "WEFT_WORLD_SIZE"},
        {{{"WEFT_RANK", "0"}, {"WEFT_WORLD_SIZE", "2"}, {"WEFT_STORE_FD", "x"}}, "WEFT_STORE_FD=x"},
        {{{"WEFT_SECRET", "short"}}, "WEFT_SECRET"},
        {{{"RANK", "x"}, {"WORLD_SIZE", "2"}}, "RANK=x"},
        {{{"WEFT_RANK", "2"}, {"WEFT_WORLD_SIZE", "4"}, {"WEFT_LOCAL_RANK", "2"}, {"WEFT_LOCAL_SIZE", "2"}}, "WEFT_LOCAL_RANK=2 and WEFT_LOCAL_SIZE=2"},
    };
    for (size_t i = 0; i < WEFTI_COUNT(bad); i++) {
        size_t count = 0;
        while (count < 4 && bad[i].pairs[count].name) count++;
        cr_expect_eq(read_under(bad[i].pairs, count, &place), WEFT_E_INVALID, "case %zu", i);
        cr_expect(strstr(weft_error_message(), bad[i].words), "case %zu: %s", i, weft_error_message());
    }
}

static void write_secret(const char *path, const char *text, mode_t mode) {
    FILE *file = fopen(path, "w");
    cr_assert_not_null(file);
    fputs(text, file);
    fclose(file);
    cr_assert_eq(chmod(path, mode), 0);
}

Test(place, reads_a_secret_only_from_a_closed_file) {
    wefti_place place;
    char        path[64];
    snprintf(path, sizeof path, "/tmp/weft-secret-%d", (int)getpid());
    write_secret(path, "0123456789abcdef0123456789abcdef\n", 0600);
    cr_expect_eq(READ(&place, {"WEFT_SECRET_FILE", path}), WEFT_OK, "%s", weft_error_message());
    cr_expect_eq(place.secret_bytes, 32, "%zu", place.secret_bytes);
    chmod(path, 0400);
    cr_expect_eq(READ(&place, {"WEFT_SECRET_FILE", path}), WEFT_OK);
    static const mode_t open_modes[] = {0644, 0640, 0604, 0660, 0601};
    for (size_t i = 0; i < WEFTI_COUNT(open_modes); i++) {
        chmod(path, open_modes[i]);
        cr_expect_eq(READ(&place, {"WEFT_SECRET_FILE", path}), WEFT_E_AUTH, "mode %o", (unsigned)open_modes[i]);
        cr_expect(strstr(weft_error_message(), "chmod 600") && strstr(weft_error_message(), path), "%s", weft_error_message());
    }
    write_secret(path, "short\n", 0600);
    cr_expect_eq(READ(&place, {"WEFT_SECRET_FILE", path}), WEFT_E_INVALID);
    unlink(path);
    cr_expect_eq(READ(&place, {"WEFT_SECRET_FILE", path}), WEFT_E_NOT_FOUND);
    cr_expect_eq(READ(&place, {"WEFT_SECRET_FILE", "/tmp"}), WEFT_E_INVALID);
    cr_expect_neq(READ(&place, {"WEFT_SECRET_FILE", "/dev/null"}), WEFT_OK);
}
