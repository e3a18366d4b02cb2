/* Compressed gradients between real processes, over shared memory and TCP: the same bits on every rank and over every wire, as many bytes on
 * the wire as weft/compression.h says, and runs that are interrupted go on to the same bits, with what was left out. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/run.h"
#include "weft.h"

enum { HIDDEN = 64 * 96 }; /* elements of the one parameter that is large enough */

static const char *const codecs[] = {"bf16", "fp8", "fp8-e5m2", "topk", "powersgd"};
enum { CODECS = sizeof codecs / sizeof *codecs };

/* Runs it, and gives what it printed; free with free. */
static char *run(int ranks, const char *wire, const char *codec, int steps, const char *out, const char *checkpoint) {
    char        arguments[1024];
    const char *output = temporary_path("output");
    snprintf(arguments, sizeof arguments, "%s %d %s %s", codec, steps, out, checkpoint ? checkpoint : "");
    int   status = run_ranks(ranks, wire, "train_program_compress", arguments, output);
    char *text = read_text(output);
    cr_assert_eq(status, 0, "%s on %d ranks over %s: exit status %d: %s", codec, ranks, wire ? wire : "-", status, text);
    return text;
}

static double *parameters(const char *out, int rank, size_t *n_out) {
    char path[1024];
    snprintf(path, sizeof path, "%s.%d", out, rank);
    return read_doubles(path, n_out);
}

static bool same(const double *a, const double *b, size_t n) { return memcmp(a, b, n * sizeof *a) == 0; }

/* The parameters after some steps, of all ranks the same. */
static double *train(int ranks, const char *wire, const char *codec, int steps, size_t *n_out) {
    const char *out = temporary_path("parameters");
    free(run(ranks, wire, codec, steps, out, NULL));
    double *first = parameters(out, 0, n_out);
    for (int rank = 1; rank < ranks; rank++) {
        size_t  n;
        double *other = parameters(out, rank, &n);
        cr_assert(n == *n_out && same(first, other, n), "%s over %s: rank %d has other bits than rank 0", codec, wire, rank);
        free(other);
    }
    return first;
}

static void agrees_everywhere(const char *codec) {
    for (int ranks = 2; ranks <= 3; ranks++) {
        size_t  n;
        double *shm = train(ranks, "shm", codec, 20, &n), *tcp = train(ranks, "tcp", codec, 20, &n), *none = train(ranks, "shm", "none", 20, &n);
        cr_assert(same(shm, tcp, n), "%s on %d ranks: other bits over TCP", codec, ranks);
        cr_assert(!same(shm, none, n), "%s on %d ranks does nothing", codec, ranks);
        double off = 0, size = 0;
        for (size_t i = 0; i < n; i++) {
            off += (shm[i] - none[i]) * (shm[i] - none[i]);
            size += none[i] * none[i];
        }
        cr_assert(isfinite(off) && off < 0.1 * size, "%s on %d ranks: off by %.3g of %.3g", codec, ranks, sqrt(off), sqrt(size));
        free(shm);
        free(tcp);
        free(none);
    }
}

Test(compress, bf16_has_the_same_bits_everywhere) { agrees_everywhere("bf16"); }
Test(compress, fp8_has_the_same_bits_everywhere) { agrees_everywhere("fp8"); }
Test(compress, fp8_e5m2_has_the_same_bits_everywhere) { agrees_everywhere("fp8-e5m2"); }
Test(compress, top_k_has_the_same_bits_everywhere) { agrees_everywhere("topk:0.2"); }
Test(compress, power_sgd_has_the_same_bits_everywhere) { agrees_everywhere("powersgd"); }

/* Where nothing is compressed, the bits are those of a program that does not compress: one rank, the warmup, no parameter that is large. */
Test(compress, leaves_the_program_alone_where_it_does_not_apply) {
    size_t  n;
    double *one = train(1, "shm", "none", 12, &n), *two = train(2, "shm", "none", 12, &n);
    for (int c = 0; c < CODECS; c++) {
        double *got = train(1, "shm", codecs[c], 12, &n);
        cr_assert(same(one, got, n), "%s on one rank", codecs[c]);
        free(got);
        setenv("COMPRESS_WARMUP", "12", 1);
        got = train(2, "shm", codecs[c], 12, &n);
        cr_assert(same(two, got, n), "%s in its warmup", codecs[c]);
        free(got);
        setenv("COMPRESS_WARMUP", "11", 1);
        got = train(2, "shm", codecs[c], 12, &n);
        cr_assert(!same(two, got, n), "%s begins too late", codecs[c]);
        free(got);
        unsetenv("COMPRESS_WARMUP");
        setenv("COMPRESS_LEAST", "6145", 1);
        got = train(2, "shm", codecs[c], 12, &n);
        cr_assert(same(two, got, n), "%s takes what is too small", codecs[c]);
        free(got);
        unsetenv("COMPRESS_LEAST");
    }
    free(one);
    free(two);
}

/* Micro-batches are added up before they are sent, so their number changes rounding alone, and no message. */
Test(compress, sends_the_sum_of_micro_batches) {
    for (int c = 0; c < CODECS; c++) {
        const char *out = temporary_path("micro");
        char       *plain = run(2, "shm", codecs[c], 2, out, NULL);
        setenv("COMPRESS_MICRO", "3", 1);
        char *micro = run(2, "shm", codecs[c], 2, out, NULL);
        unsetenv("COMPRESS_MICRO");
        const char *a = strstr(plain, "planned "), *b = strstr(micro, "planned ");
        cr_assert(a && b && atoll(a + 8) == atoll(b + 8), "%s: %s %s", codecs[c], plain, micro);
        free(plain);
        free(micro);
    }
}

/* Gradients of a scaled loss, in half precision, and of activations in bf16. */
Test(compress, goes_with_mixed_precision) {
    static const char *const precisions[] = {"f16", "bf16"};
    for (int c = 0; c < CODECS; c++)
        for (int p = 0; p < 2; p++) {
            size_t  n;
            double *plain, *mixed;
            setenv("COMPRESS_FEEDBACK", "1", 1);
            plain = train(2, "shm", codecs[c], 20, &n);
            setenv("COMPRESS_PRECISION", precisions[p], 1);
            mixed = train(2, "shm", codecs[c], 20, &n);
            unsetenv("COMPRESS_PRECISION");
            double off = 0, size = 0;
            for (size_t i = 0; i < n; i++) {
                off += (mixed[i] - plain[i]) * (mixed[i] - plain[i]);
                size += plain[i] * plain[i];
            }
            cr_assert(sqrt(off / size) < 0.05, "%s in %s: off by %.3g", codecs[c], precisions[p], sqrt(off / size));
            free(plain);
            free(mixed);
        }
}

/* --- bytes --- */

static double figure(const char *text, const char *name) {
    const char *at = strstr(text, name);
    cr_assert_not_null(at, "'%s' is missing in: %s", name, text);
    return atof(at + strlen(name));
}

/* The formulas of compression.h, for the parameter that is compressed; NULL of them is what is sent uncompressed. */
static double formula(const char *codec, double n, double ranks) {
    double share = (ranks - 1) / ranks;
    if (strcmp(codec, "none") == 0) return 8 * n * share;
    if (strcmp(codec, "bf16") == 0) return 4 * n * share;
    if (strncmp(codec, "fp8", 3) == 0) return 2 * n * share * 33 / 32;
    if (strcmp(codec, "topk") == 0) return 8 * ceil(0.01 * n) * (ranks - 1);
    return 8 * 4 * (64 + 96) * share;
}

/* A collective's messages carry one opening of 64 bytes a rank; no byte is sent twice by rings, or between two ranks. Who waits long for another asks it by
 * 32 bytes more: on a machine so busy it is tried again. */
static void sends_by_formula(const char *codec, int ranks, double uncompressed) {
    double counted = 0, due = 1;
    char  *text = NULL;
    for (int turn = 0; turn < 5 && counted != due; turn++) {
        free(text);
        counted = 0;
        text = run(ranks, "tcp", codec, 3, temporary_path("counted"), NULL);
        for (const char *at = text; (at = strstr(at, "counted ")); at += 8) counted += atof(at + 8);
        due = figure(text, "due ") + 64 * ranks * figure(text, "collectives ");
        if (counted < due || fmod(counted - due, 32) != 0) break;
    }
    double planned = figure(text, "planned ");
    cr_assert_eq(counted, due, "%s on %d ranks: %.0f bytes were counted on the wires, it should be %.0f", codec, ranks, counted, due);
    double said = uncompressed - formula("none", HIDDEN, ranks) + formula(codec, HIDDEN, ranks);
    cr_assert(fabs(planned - said) <= 2, "%s on %d ranks: the plan has %.0f bytes, by the formula it is %.1f", codec, ranks, planned, said); /* thirds are cut */
    free(text);
}

Test(compress, sends_as_many_bytes_as_is_said) {
    setenv("COMPRESS_COUNT", "1", 1);
    setenv("WEFT_ALGORITHM", "ring", 1);
    for (int ranks = 2; ranks <= 3; ranks++) {
        char  *text = run(ranks, "tcp", "none", 3, temporary_path("none"), NULL);
        double uncompressed = figure(text, "planned ");
        free(text);
        for (int c = 0; c < CODECS; c++) sends_by_formula(codecs[c], ranks, uncompressed);
    }
}

/* --- checkpoints --- */

static void same_files(const char *a, const char *b, const char *what) {
    char command[1024];
    snprintf(command, sizeof command, "cmp %s %s", a, b);
    cr_assert_eq(system(command), 0, "%s: the checkpoints differ", what);
}

static void resumes(const char *codec, int ranks, const char *wire) {
    const char *whole = temporary_path("whole"), *parts = temporary_path("parts"), *out = temporary_path("out");
    unlink(whole);
    unlink(parts);
    free(run(ranks, wire, codec, 24, out, whole));
    free(run(ranks, wire, codec, 5, out, parts));
    free(run(ranks, wire, codec, 11, out, parts));
    free(run(ranks, wire, codec, 24, out, parts));
    same_files(whole, parts, codec);
}

Test(compress_resume, bf16_with_feedback) {
    setenv("COMPRESS_FEEDBACK", "1", 1);
    resumes("bf16", 2, "shm");
}
Test(compress_resume, fp8_with_feedback) {
    setenv("COMPRESS_FEEDBACK", "1", 1);
    resumes("fp8", 2, "tcp");
}
Test(compress_resume, top_k) { resumes("topk:0.02", 3, "shm"); }
Test(compress_resume, power_sgd) { resumes("powersgd:2", 2, "tcp"); }
Test(compress_resume, across_the_end_of_the_warmup) {
    setenv("COMPRESS_WARMUP", "8", 1);
    resumes("topk", 2, "shm");
}
Test(compress_resume, from_memory_of_the_devices_own) {
    setenv("RUN_FAR", "2", 1);
    resumes("topk", 2, "shm");
    resumes("powersgd", 2, "shm");
}

/* What pushes to servers left out is in the file, too. */
Test(compress_resume, by_a_server) {
    setenv("COMPRESS_SERVER", "1", 1);
    resumes("topk:0.02", 3, "shm");
    setenv("COMPRESS_FEEDBACK", "1", 1);
    resumes("bf16", 2, "tcp");
}

/* Random rounding goes on where it was, by the number of pushes: those of the warmup do not count. */
Test(compress_resume, by_a_server_that_gets_what_was_rounded_at_random) {
    setenv("COMPRESS_SERVER", "1", 1);
    setenv("COMPRESS_WARMUP", "3", 1);
    resumes("fixed8", 3, "shm");
    setenv("COMPRESS_FEEDBACK", "1", 1);
    resumes("fixed16", 2, "tcp");
}

/* What all ranks keep of the hidden layer, element by element; NULL where the file has nothing. */
static double *kept_in(const char *path, int64_t *rows_out) {
    weft_checkpoint *file = NULL;
    weft_dtype       dtype;
    weft_shape       shape;
    double          *sum = NULL;
    cr_assert_eq(weft_checkpoint_open(path, &file), WEFT_OK, "%s", weft_error_message());
    if (weft_checkpoint_find(file, "weft.compress.error/hidden.weight", &dtype, &shape)) {
        cr_assert(dtype == WEFT_F32 && shape.rank == 2 && shape.dim[1] == HIDDEN);
        float *rows = malloc((size_t)weft_shape_elements(shape) * sizeof *rows);
        cr_assert_eq(weft_checkpoint_read(file, "weft.compress.error/hidden.weight", dtype, shape, rows), WEFT_OK, "%s", weft_error_message());
        sum = calloc(HIDDEN, sizeof *sum);
        for (int64_t i = 0; i < weft_shape_elements(shape); i++) sum[i % HIDDEN] += (double)rows[i];
        *rows_out = shape.dim[0];
        free(rows);
    }
    weft_checkpoint_release(file);
    return sum;
}

/* Saves with `ranks`, goes on with `others` for no step, saves: the sum of what is kept is the same. */
static void deals_out(int ranks, int others) {
    const char *path = temporary_path("dealt"), *out = temporary_path("out");
    int64_t     rows = 0;
    unlink(path);
    free(run(ranks, "shm", "topk:0.02", 9, out, path));
    double *before = kept_in(path, &rows), most = 0;
    cr_assert(before && rows == ranks);
    for (int i = 0; i < HIDDEN; i++) most = fmax(most, fabs(before[i]));
    cr_assert_gt(most, 0, "nothing is kept");
    free(run(others, "shm", "topk:0.02", 9, out, path));
    double *after = kept_in(path, &rows);
    cr_assert(after && rows == others, "%lld rows", (long long)rows);
    for (int i = 0; i < HIDDEN; i++) cr_assert_float_eq(after[i], before[i], 1e-6 * most, "element %d: %g was %g", i, after[i], before[i]);
    free(run(others, "shm", "topk:0.02", 12, out, path)); /* and goes on */
    free(before);
    free(after);
}

Test(compress_resume, another_number_of_ranks_keeps_the_sum) {
    deals_out(2, 3);
    deals_out(4, 2);
    setenv("COMPRESS_SERVER", "0", 1);
    deals_out(3, 2);
}

/* To another codec, or none, and back: what has no use is dropped, what is missing begins anew. */
Test(compress_resume, another_codec) {
    const char *path = temporary_path("other"), *out = temporary_path("out");
    int64_t     rows;
    unlink(path);
    free(run(2, "shm", "none", 3, out, path));
    cr_assert_null(kept_in(path, &rows));
    free(run(2, "shm", "powersgd:4", 6, out, path));
    free(run(2, "shm", "powersgd:2", 9, out, path)); /* a basis of another size begins anew */
    free(run(2, "shm", "topk", 12, out, path));
    double *kept = kept_in(path, &rows);
    cr_assert_not_null(kept);
    free(kept);
    free(run(2, "shm", "bf16", 15, out, path));
    cr_assert_null(kept_in(path, &rows));
}

/* --- what is refused --- */

Test(compress_refusals, ranks_that_compress_otherwise) {
    char        arguments[1024];
    const char *output = temporary_path("output");
    setenv("COMPRESS_OTHER", "1", 1);
    snprintf(arguments, sizeof arguments, "fp8 3 %s", temporary_path("out"));
    cr_assert_eq(run_ranks(2, "shm", "train_program_compress", arguments, output), 1);
    char *text = read_text(output);
    cr_assert(strstr(text, "WEFT_E_MISMATCH") && strstr(text, "the program differs between ranks"), "%s", text);
    free(text);
}

static void trainer_refuses(weft_compression compress, weft_solver solver, weft_status due, const char *word) {
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1}, &world), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_graph_create(NULL, &graph), WEFT_OK);
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(4, 8));
    weft_program program = {.loss = weft_mean(weft_square(weft_linear(x, "l", .out = 3))), .solver = solver, .strategy = {.compress = compress}};
    weft_status  status = weft_trainer_create(world, &program, &trainer);
    cr_assert_eq(status, due, "%s: %s", weft_status_name(status), weft_error_message());
    cr_assert(strstr(weft_error_message(), word), "'%s' does not say '%s'", weft_error_message(), word);
    cr_assert_null(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
}

Test(compress_refusals, settings_that_make_no_sense) {
    trainer_refuses((weft_compression){.codec = (weft_codec)42}, weft_sgd(0.1), WEFT_E_INVALID, "compress.codec is 42; there are none, bf16");
    trainer_refuses((weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = 3}, weft_sgd(0.1), WEFT_E_INVALID, "compress.ratio is 3");
    trainer_refuses((weft_compression){.codec = WEFT_COMPRESS_POWER_SGD, .rank = 100}, weft_sgd(0.1), WEFT_E_INVALID, "compress.rank is 100");
    trainer_refuses((weft_compression){.codec = WEFT_COMPRESS_BF16, .warmup = -3}, weft_sgd(0.1), WEFT_E_INVALID, "compress.warmup is -3");
    trainer_refuses((weft_compression){.codec = WEFT_COMPRESS_BF16, .least = -3}, weft_sgd(0.1), WEFT_E_INVALID, "compress.least -3");
    trainer_refuses((weft_compression){.codec = WEFT_COMPRESS_BF16}, weft_lbfgs(1), WEFT_E_UNSUPPORTED, "L-BFGS needs gradients as they are");
}
