/* Sharded data parallelism by the strategy alone: real processes over real wires come to what plain data parallelism comes to, to the bit where sums
 * are taken in the same order, for every solver, regulariser and precision; ranks hold and send what the formulas say; files are those of one process
 * and load under any stage on any mesh; what does not go together is refused; a rank that dies ends all. More meshes: test_zero_nightly.c. */
#include "train/zero_runs.h"

/* Variables, solver states and losses of all stages are those of plain data parallelism. */
static void keeps_the_bits(const char *model, const char *dtype, int ranks, const char *wire, const char *solver) {
    setenv("RUN_SOLVER", solver, 1);
    const char *plain = dealt(0, model, dtype, (mesh){ranks, 1}, wire, 6, curve_of(0));
    for (int zero = 1; zero <= 3; zero++) {
        same_files(plain, dealt(zero, model, dtype, (mesh){ranks, 1}, wire, 6, curve_of(zero)), solver);
        same_files(curve_of(0), curve_of(zero), solver);
    }
}

Test(zero, sgd_has_the_bits) { keeps_the_bits("mlp", "f32", 2, "tcp", "sgd"); }
Test(zero, momentum_has_the_bits) { keeps_the_bits("mlp", "f32", 3, "shm", "momentum"); }
Test(zero, nesterov_has_the_bits) { keeps_the_bits("mlp", "f64", 2, "tcp", "nesterov"); }
Test(zero, adagrad_with_batch_norm_has_the_bits) { keeps_the_bits("cnn", "f32", 4, "shm", "adagrad"); }
Test(zero, rmsprop_with_l1_has_the_bits) {
    setenv("RUN_OMEGA", "l1", 1);
    keeps_the_bits("cnn", "f64", 2, "tcp", "rmsprop");
}
/* Rows shrink together, so parts are of whole rows, which do not fill cache lines. */
Test(zero, rows_that_shrink_have_the_bits) {
    setenv("RUN_OMEGA", "group", 1);
    keeps_the_bits("mlp", "f32", 3, "shm", "momentum");
    keeps_the_bits("mlp", "f32", 2, "tcp", "adamw");
}
Test(zero, a_tied_table_has_the_bits) { keeps_the_bits("gpt", "f32", 2, "shm", "adamw"); }
Test(zero, bf16_has_the_bits) {
    setenv("RUN_PRECISION", "bf16", 1);
    keeps_the_bits("mlp", "f32", 2, "shm", "adamw");
}

/* Another device's memory: everything goes by copies. */
Test(zero, memory_that_is_not_the_hosts) {
    setenv("RUN_FAR", "0", 1);
    const char *plain = dealt(0, "mlp", "f32", (mesh){2, 1}, "tcp", 4, curve_of(0));
    same_files(plain, dealt(3, "mlp", "f32", (mesh){2, 1}, "tcp", 4, curve_of(3)), "far memory");
}

/* Where sums are taken in another order: of the norm, over three ranks by messages, of micro-batches. */
Test(zero, agrees_where_the_norm_clips) {
    setenv("RUN_CLIP", "0.5", 1);
    agrees("mlp", "f32", (mesh){2, 1}, "shm", 1e-6, "clipped");
    agrees("gpt", "f64", (mesh){4, 1}, "tcp", 1e-12, "clipped");
}
Test(zero, agrees_in_f16) {
    setenv("RUN_PRECISION", "f16", 1);
    agrees("mlp", "f32", (mesh){2, 1}, "tcp", 1e-6, "f16");
}
Test(zero, agrees_over_micro_batches) {
    setenv("RUN_MICRO", "3", 1);
    setenv("RUN_BUCKET", "2048", 1);
    agrees("gpt", "f64", (mesh){2, 1}, "tcp", 1e-12, "micro-batches");
    agrees("cnn", "f64", (mesh){3, 1}, "shm", 1e-12, "micro-batches");
}
Test(zero, agrees_beside_tensor) {
    setenv("RUN_CLIP", "1", 1);
    agrees("gpt", "f64", (mesh){2, 2}, "shm", 1e-12, "beside tensor");
    setenv("RUN_MICRO", "2", 1);
    agrees("mlp", "f64", (mesh){2, 2}, "tcp", 1e-12, "beside tensor, with micro-batches");
}

Test(zero, agrees_in_a_pipeline) { agrees_in_stages("1f1b", (mesh){2, 1}); }

/* Also one process, with uneven last batches, ignored labels, dropout and batch statistics. */
Test(zero, agrees_with_one_process) {
    size_t  n, n_many;
    double *one = curve("cnn", "f64", (mesh){1, 1}, 8, &n);
    setenv("RUN_ZERO", "3", 1);
    setenv("RUN_LEAST", "1", 1);
    double *many = curve("cnn", "f64", (mesh){4, 1}, 8, &n_many);
    agree(one, n, many, n_many, "four ranks", 1e-11);
    free(one);
    free(many);
}

/* --- what it costs --- */

typedef struct figures { long variables, sent, values, peak; } figures;

static figures figures_of(int zero, const char *model, int ranks, const char *least) {
    char stage[8];
    snprintf(stage, sizeof stage, "%d", zero);
    setenv("RUN_ZERO", stage, 1);
    setenv("RUN_LEAST", zero > 0 ? least : "0", 1);
    setenv("WEFT_WIRE", "tcp", 1);
    char       *text = train(model, "f32", (mesh){ranks, 1}, 2, temporary_path("costs"));
    figures     f;
    int         found = sscanf(strstr(text, "variables ") ? strstr(text, "variables ") : "", "variables %ld collectives %*d sent %ld values %ld peak %ld", &f.variables, &f.sent,
                               &f.values, &f.peak);
    cr_assert_eq(found, 4, "%s", text);
    free(text);
    return f;
}

enum { W = 32, PIXELS = 128, CLASSES = 8, MLP_PARAMETERS = 12 };
static const long mlp_elements[MLP_PARAMETERS] = {2 * W * PIXELS, 2 * W, 2 * W * W, W, W, W, 2 * W * W, 2 * W, 2 * W * W, W, CLASSES * W, CLASSES};

static long lines(long bytes) { return (bytes + 63) / 64 * 64; }

/* Bytes of parameters and two states: the part of each is a multiple of a cache line, and what is gathered in place has room for all parts. */
static long expected_variables(int zero, long ranks, long least) {
    long sum = 0;
    for (int i = 0; i < MLP_PARAMETERS; i++) {
        long whole = lines(4 * mlp_elements[i]), part = lines((4 * mlp_elements[i] + ranks - 1) / ranks);
        bool deals = zero > 0 && ranks > 1 && 4 * mlp_elements[i] >= least;
        sum += !deals ? 3 * whole : zero < 3 ? ranks * part + 2 * part : 3 * part;
    }
    return sum;
}

Test(zero, variables_are_what_the_formula_says) {
    for (int zero = 0; zero <= 3; zero++)
        for (int ranks = 1; ranks <= 4; ranks *= 2) {
            cr_expect_eq(figures_of(zero, "mlp", ranks, "1").variables, expected_variables(zero, ranks, 1), "zero %d on %d ranks", zero, ranks);
            cr_expect_eq(figures_of(zero, "mlp", ranks, "0").variables, expected_variables(zero, ranks, 16 << 10), "zero %d on %d ranks", zero, ranks);
        }
}

/* A scatter and a gather are as much as a sum; gathering parameters twice as much again as half of it. Parts are padded to cache lines. */
Test(zero, bytes_sent_are_what_the_formula_says) {
    for (int ranks = 2; ranks <= 4; ranks *= 2) {
        long slack = MLP_PARAMETERS * 64L * ranks * 3, bytes = 0, plain = figures_of(0, "mlp", ranks, "1").sent;
        for (int i = 0; i < MLP_PARAMETERS; i++) bytes += 4 * mlp_elements[i] * (ranks - 1) / ranks;
        cr_expect(plain >= 2 * bytes && plain <= 2 * bytes + 64, "%ld bytes are sent, %ld are gradients", plain, 2 * bytes);
        for (int zero = 1; zero <= 2; zero++) {
            long sent = figures_of(zero, "mlp", ranks, "1").sent;
            cr_expect(sent >= plain && sent <= plain + slack, "zero %d on %d ranks: %ld bytes, not %ld", zero, ranks, sent, plain);
        }
        long sent = figures_of(3, "mlp", ranks, "1").sent;
        cr_expect(sent > plain && sent <= 3 * bytes + slack, "zero 3 on %d ranks: %ld bytes, not %ld", ranks, sent, 3 * bytes);
    }
}

/* Gradients, and then parameters, are held in parts: but for two of the largest on the way, or near enough to be kept. */
Test(zero, values_are_what_the_formula_says) {
    enum { LETTERS = 48, CONTEXT = 16, LARGEST = 4 * W * 4 * W, KEPT = 4 };
    long block = 12 * W * W + 13 * W, all = 4 * (2 * block + LETTERS * W + CONTEXT * W + 2 * W);
    setenv("RUN_MICRO", "4", 1);
    setenv("RUN_BUCKET", "1024", 1);
    figures plain = figures_of(0, "gpt", 4, "1"), one = figures_of(1, "gpt", 4, "1"), two = figures_of(2, "gpt", 4, "1"), three = figures_of(3, "gpt", 4, "1");
    cr_expect_leq(one.peak, plain.peak + 28 * 4 * 64);
    cr_expect_leq(two.peak, one.peak - 3 * all / 4 + KEPT * LARGEST, "gradients: %ld bytes, %ld whole", two.peak, one.peak);
    cr_expect_leq(three.peak, two.peak + KEPT * LARGEST);
    cr_expect_leq(three.variables + three.peak, plain.variables + plain.peak - 3 * 4 * all / 4 + 2 * KEPT * LARGEST, "all: %ld and %ld bytes, %ld and %ld whole",
                  three.variables, three.peak, plain.variables, plain.peak);
}

/* What is gathered in bf16 is cast for each gather, and is in memory no longer than that: neither all casts, as in stage 2, nor a part of each. */
Test(zero, casts_are_held_for_a_gather) {
    enum { LETTERS = 48, CONTEXT = 16, LARGEST = 4 * W * W * 2 };
    long all = 2 * (2 * (12 * W * W + 13 * W) + LETTERS * W + CONTEXT * W + 2 * W);
    setenv("RUN_PRECISION", "bf16", 1);
    setenv("RUN_MICRO", "4", 1);
    setenv("RUN_BUCKET", "1024", 1);
    figures two = figures_of(2, "gpt", 4, "1"), three = figures_of(3, "gpt", 4, "1");
    cr_expect_leq(three.peak, two.peak - all + LARGEST, "%ld bytes, %ld of stage 2 with %ld of casts", three.peak, two.peak, all);
}

Test(zero, plans_say_what_is_dealt_out) {
    setenv("RUN_DESCRIBE", "1", 1);
    setenv("RUN_ZERO", "2", 1);
    char *text = train("mlp", "f32", (mesh){2, 1}, 2, temporary_path("described"));
    cr_expect_not_null(strstr(text, "zero 2: solver states and gradients in parts over 2 ranks"), "%s", text);
    cr_expect_not_null(strstr(text, "11 of 12 parameters are below 16384 bytes and stay whole"), "%s", text);
    cr_expect_not_null(strstr(text, "'one.weight' [64, 128]: 4096 elements a rank"), "%s", text);
    cr_expect_not_null(strstr(text, "reduce_scatter"), "%s", text);
    free(text);
}

/* --- checkpoints --- */

/* What one mesh and stage saves, another goes on from. */
static void goes_over(int zero, mesh before, int then, mesh after) {
    size_t n;
    setenv("RUN_CLIP", "1", 1);
    (void)dealt(0, "gpt", "f64", (mesh){1, 1}, NULL, 6, curve_of(9));
    const char *path = temporary_path("both"), *file = dealt(zero, "gpt", "f64", before, "tcp", 3, path);
    double     *expected = read_doubles(curve_of(9), &n);
    setenv("RUN_LOAD", file, 1);
    setenv("RUN_APPEND", "1", 1);
    (void)dealt(then, "gpt", "f64", after, "shm", 3, path);
    unsetenv("RUN_LOAD");
    unsetenv("RUN_APPEND");
    size_t  n_both;
    double *both = read_doubles(path, &n_both);
    agree(expected, n, both, n_both, "saved and loaded", 1e-11);
    free(expected);
    free(both);
}

Test(zero, four_ranks_save_what_one_loads) { goes_over(3, (mesh){4, 1}, 0, (mesh){1, 1}); }
Test(zero, four_ranks_save_what_two_load) { goes_over(3, (mesh){4, 1}, 2, (mesh){2, 1}); }
Test(zero, one_saves_what_four_load) { goes_over(0, (mesh){1, 1}, 3, (mesh){4, 1}); }
Test(zero, loads_beside_tensor) { goes_over(1, (mesh){3, 1}, 3, (mesh){2, 2}); }
Test(zero, saves_beside_tensor) { goes_over(3, (mesh){2, 2}, 1, (mesh){3, 1}); }

Test(zero, saves_from_stages) {
    size_t n, n_both;
    (void)dealt(0, "gpt", "f64", (mesh){1, 1}, NULL, 6, curve_of(9));
    const char *path = temporary_path("both");
    more = ",pipeline=2,accumulate=2";
    more_ranks = 2;
    const char *file = dealt(3, "gpt", "f64", (mesh){2, 1}, "tcp", 3, path);
    more = "";
    more_ranks = 1;
    setenv("RUN_LOAD", file, 1);
    setenv("RUN_APPEND", "1", 1);
    (void)dealt(2, "gpt", "f64", (mesh){2, 1}, "tcp", 3, path);
    double *expected = read_doubles(curve_of(9), &n), *both = read_doubles(path, &n_both);
    agree(expected, n, both, n_both, "from stages", 1e-11);
    free(expected);
    free(both);
}

/* Files are those of one process to the byte before the first step, and runs that were cut in two those that were not. */
Test(zero, files_and_resumed_runs_have_the_bits) {
    same_files(dealt(0, "gpt", "f32", (mesh){1, 1}, NULL, 0, curve_of(0)), dealt(3, "gpt", "f32", (mesh){2, 2}, "tcp", 0, curve_of(3)), "initial values");
    const char *whole = dealt(3, "mlp", "f32", (mesh){2, 1}, "tcp", 8, curve_of(3));
    char        kept[512];
    snprintf(kept, sizeof kept, "%s-kept", whole);
    cr_assert_eq(rename(whole, kept), 0);
    for (int then = 0; then <= 3; then++) {
        const char *half = dealt(1 + then % 3, "mlp", "f32", (mesh){2, 1}, "tcp", 4, curve_of(1));
        setenv("RUN_LOAD", half, 1);
        same_files(kept, dealt(then, "mlp", "f32", (mesh){2, 1}, "tcp", 4, curve_of(2)), "a run in two halves");
        unsetenv("RUN_LOAD");
    }
}

/* --- what goes wrong --- */

static void fails(mesh m, const char *zero, const char *variable, const char *value, const char *word, const char *hint) {
    char *text;
    setenv("RUN_ZERO", zero, 1);
    setenv(variable, value, 1);
    int status = run("mlp", "f32", m, 10, temporary_path("failed"), &text);
    unsetenv(variable);
    cr_expect_neq(status, 0, "%s=%s: %s", variable, value, text);
    cr_expect_not_null(strstr(text, word), "%s=%s: '%s' lacks '%s'", variable, value, text, word);
    cr_expect_not_null(strstr(text, hint), "%s=%s: '%s' lacks '%s'", variable, value, text, hint);
    free(text);
}

Test(zero, what_is_not_there_is_refused) {
    fails((mesh){2, 1}, "2", "RUN_WITH", "server", "WEFT_E_UNSUPPORTED", "zero = 2 does not go with sync = WEFT_SERVER");
    fails((mesh){2, 1}, "1", "RUN_WITH", "compress", "WEFT_E_UNSUPPORTED", "zero = 1 does not go with compress");
    fails((mesh){2, 1}, "1", "RUN_WITH", "lbfgs", "WEFT_E_UNSUPPORTED", "zero = 1 does not go with L-BFGS");
    fails((mesh){2, 1}, "1", "RUN_WITH", "keep", "WEFT_E_UNSUPPORTED", "go on from a checkpoint");
    fails((mesh){2, 1}, "3", "RUN_WITH", "get", "WEFT_E_STATE", "'one.weight' [64, 128] is dealt out over 2 ranks");
    fails((mesh){2, 1}, "3", "RUN_WITH", "never", "WEFT_E_INVALID", "divide_bytes, which is -1");
    fails((mesh){2, 1}, "1", "RUN_WITH", "four", "WEFT_E_INVALID", "zero is 4");
    fails((mesh){2, 1}, "1", "RUN_FAR", "0", "WEFT_E_UNSUPPORTED", "use zero = 3");
}

/* Before there is memory: by variables, whose largest is named, and by the plan. With parts the same variables fit. */
Test(zero, what_does_not_fit_is_refused) {
    fails((mesh){2, 1}, "0", "RUN_ROOM", "100000", "WEFT_E_NO_MEMORY", "'one.weight' [64, 128], 32768 of them");
    fails((mesh){2, 1}, "3", "RUN_ROOM", "200000", "WEFT_E_NO_MEMORY", "a step takes");
    setenv("RUN_ROOM", "400000", 1);
    setenv("RUN_ZERO", "3", 1);
    free(train("mlp", "f32", (mesh){2, 1}, 2, temporary_path("fits")));
}

Test(zero, files_that_cannot_be) {
    fails((mesh){2, 1}, "3", "RUN_SAVE", "/nowhere/to/be/found", "failed on rank 0", "/nowhere/to/be");
    fails((mesh){2, 1}, "3", "RUN_LOAD", "/nowhere/to/be/found", "failed on rank 0", "/nowhere/to/be");
}

Test(zero, a_rank_that_dies_ends_all) {
    for (int zero = 1; zero <= 3; zero++) fails((mesh){4, 1}, zero == 1 ? "1" : zero == 2 ? "2" : "3", "RUN_DIE", "3", "WEFT_E_PEER", "rank 3 failed");
}
