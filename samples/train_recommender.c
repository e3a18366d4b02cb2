/* Trains a DeepFM (Guo et al. 2017), which tells who clicks on what: a factorisation machine and a perceptron over one table of vectors, where
 * nearly all parameters are. Clicks are rows of libsvm files, or made here from hidden vectors that it then has to find. Alone, or on several
 * ranks: weftrun -n 2 train_recommender. On a GPU: WEFT_DEVICE=cuda train_recommender --vocabulary 1000000 --batch 8192 --precision bf16 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "random.h"
#include "weft.h"

static const char *data, *test_data, *log_path, *plot_path, *checkpoint_path;
static int64_t     rows = 40000, fields = 8, vocabulary = 1000, size = 16, hidden = 64, batch_size = 256, epochs = 3, max_steps, seed = 1, checkpoint_every;
static double      rate = 2e-3, decay = 1e-6, skew = 1.1;
static weft_strategy strategy;
static bool        resume, quiet, describe, profile, stop_on_nan = true;

/* Rows in memory: for each field an id of the table (-1: none, a vector of zeros), its value, and whether it was clicked. */
typedef struct clicks {
    int64_t  rows;
    int32_t *id;    /* [rows, fields] */
    float   *value; /* [rows, fields] */
    float   *label; /* [rows] */
} clicks;

static void clicks_release(clicks *c) {
    free(c->id);
    free(c->value);
    free(c->label);
    *c = (clicks){0};
}

static bool clicks_reserve(clicks *c, int64_t room) {
    int32_t *id = realloc(c->id, (size_t)(room * fields) * sizeof *id);
    if (id) c->id = id;
    float *value = realloc(c->value, (size_t)(room * fields) * sizeof *value);
    if (value) c->value = value;
    float *label = realloc(c->label, (size_t)room * sizeof *label);
    if (label) c->label = label;
    return id && value && label;
}

/* --- made clicks --- */

enum { TRUTH = 4 }; /* numbers of a hidden vector */

/* The hidden vector of an id: normal numbers (Box & Muller 1958) from its name. */
static void truth_of(int64_t id, double *vector) {
    uint64_t state = random_stream(17, id, 0);
    for (int k = 0; k < TRUTH; k += 2) {
        double length = sqrt(-2 * log(1 - next_uniform(&state))), turn = 6.283185307179586 * next_uniform(&state);
        vector[k] = length * cos(turn);
        vector[k + 1] = length * sin(turn);
    }
}

/* A rank of Zipf's law, approximately: few ids are in most rows. */
static int64_t popular(uint64_t *state) {
    double u = next_uniform(state), n = (double)vocabulary, a = 1 - skew;
    double x = fabs(a) < 1e-9 ? pow(n, u) : pow(u * (pow(n, a) - 1) + 1, 1 / a);
    int64_t at = (int64_t)x - 1;
    return at < 0 ? 0 : at >= vocabulary ? vocabulary - 1 : at;
}

/* Clicks with the probability that the products of the hidden vectors say; gives the loss of who knows them. */
static bool make_clicks(clicks *c, int64_t n, int64_t stream, double *least_out) {
    double sum = 0;
    if (!clicks_reserve(c, n)) return false;
    c->rows = n;
    for (int64_t i = 0; i < n; i++) {
        uint64_t state = random_stream(seed, stream, i);
        double   all[TRUTH] = {0}, squares = 0, margin = 0;
        for (int64_t f = 0; f < fields; f++) {
            double vector[TRUTH];
            c->id[i * fields + f] = (int32_t)(f * vocabulary + popular(&state));
            c->value[i * fields + f] = 1;
            truth_of(c->id[i * fields + f], vector);
            for (int k = 0; k < TRUTH; k++) all[k] += vector[k], squares += vector[k] * vector[k];
        }
        for (int k = 0; k < TRUTH; k++) margin += all[k] * all[k];
        double p = 1 / (1 + exp(-(margin - squares) / (double)fields));
        c->label[i] = next_uniform(&state) < p;
        sum -= c->label[i] != 0 ? log(p) : log1p(-p);
    }
    *least_out = sum / (double)n;
    return true;
}

/* --- clicks of a file --- */

/* The first `fields` columns of each row; columns beyond the table come to its rows by their remainder. */
static weft_status read_clicks(const char *path, clicks *c) {
    enum { AT_ONCE = 4096 };
    weft_libsvm     *file = NULL;
    weft_libsvm_rows read;
    int64_t          table = fields * vocabulary;
    weft_status      status = weft_libsvm_open(path, NULL, &file);
    while (status == WEFT_OK && (status = weft_libsvm_read(file, AT_ONCE, &read)) == WEFT_OK) {
        if (!clicks_reserve(c, c->rows + read.rows)) status = WEFT_E_NO_MEMORY;
        for (int64_t r = 0; r < read.rows && status == WEFT_OK; r++, c->rows++) {
            int64_t first = read.row_start[r], n = read.row_start[r + 1] - first;
            c->label[c->rows] = read.label[r] > 0;
            for (int64_t f = 0; f < fields; f++) {
                c->id[c->rows * fields + f] = f < n ? (int32_t)(read.column[first + f] % table) : -1;
                c->value[c->rows * fields + f] = f < n ? read.value[first + f] : 0;
            }
        }
    }
    weft_libsvm_release(file);
    return status == WEFT_END ? WEFT_OK : status;
}

/* --- the model --- */

/* ids [B, F], values [B, F] -> logits [B] */
static weft_tensor *deepfm(weft_tensor *id, weft_tensor *value) {
    int64_t      table = fields * vocabulary;
    weft_tensor *scale = weft_unsqueeze(value, -1); /* [B, F, 1] */
    weft_tensor *vector = weft_mul(weft_embedding(id, "vectors", .count = table, .size = size, .init = weft_init_normal(0, 0.05)), scale); /* [B, F, K] */
    weft_tensor *weight = weft_mul(weft_embedding(id, "weights", .count = table, .size = 1, .init = weft_init_zeros()), scale);
    /* All pairs of vectors: half of the square of the sum less the sum of the squares (Rendle 2010). */
    weft_tensor *sum = weft_sum(vector, .axes = weft_axes(1)), *squares = weft_sum(weft_square(vector), .axes = weft_axes(1));
    weft_tensor *pairs = weft_mul_scalar(weft_sum(weft_sub(weft_square(sum), squares), .axes = weft_axes(1)), 0.5);
    weft_tensor *h = weft_relu(weft_linear(weft_flatten(vector), "hidden1", .out = hidden));
    h = weft_relu(weft_linear(h, "hidden2", .out = hidden));
    weft_tensor *deep = weft_squeeze(weft_linear(h, "head", .out = 1), 1);
    weft_tensor *wide = weft_sum(weight, .axes = weft_axes(1, 2));
    return weft_add(weft_add(pairs, wide), deep);
}

static weft_status train(weft_world *world, weft_graph *graph, weft_loader *loader, weft_loader *test, double least) {
    weft_tensor *id = weft_input(graph, "id", WEFT_I32, weft_shape(batch_size, fields));
    weft_tensor *value = weft_input(graph, "value", WEFT_F32, weft_shape(batch_size, fields));
    weft_tensor *label = weft_input(graph, "label", WEFT_F32, weft_shape(batch_size));
    weft_tensor *logits = deepfm(id, value);
    weft_tensor *loss = weft_bce_with_logits(logits, label);
    weft_tensor *right = weft_eq(weft_gt_scalar(logits, 0), weft_gt_scalar(label, 0.5)), *correct = weft_sum(weft_cast(right, WEFT_I64));
    weft_program program = {.loss = loss, .regulariser = weft_l2(decay), .solver = weft_adam(rate), .strategy = strategy, .ignore_nan = !stop_on_nan,
                            .profile = profile};
    weft_trainer   *trainer = NULL;
    weft_fit_result result;
    const char     *words = NULL;
    bool            first = weft_world_rank(world) == 0;
    weft_status     status = weft_trainer_create(world, &program, &trainer);
    if (status == WEFT_OK && describe && first && (status = weft_plan_describe(weft_trainer_plan(trainer), &words)) == WEFT_OK) puts(words);
    if (status == WEFT_OK)
        status = weft_fit(trainer, loader,
                          &(weft_fit_options){.test = test, .test_loss = loss, .test_correct = correct, .log_path = log_path, .plot_path = plot_path,
                                              .checkpoint_path = checkpoint_path, .checkpoint_every = checkpoint_every, .resume = resume,
                                              .epochs = epochs, .max_steps = max_steps, .progress = quiet ? NULL : stdout},
                          &result);
    if (status == WEFT_OK && first && !quiet) {
        printf("%.2f M vectors of %lld, %.0f samples/s", 1e-6 * (double)(fields * vocabulary), (long long)size, result.units_per_second);
        if (least > 0) printf("; who knows the hidden vectors has a test loss of %.4f", least);
        putchar('\n');
    }
    if (status == WEFT_OK && first && profile && (status = weft_plan_profile(weft_trainer_plan(trainer), &words)) == WEFT_OK) puts(words);
    weft_trainer_release(trainer);
    return status;
}

static weft_status open_clicks(const clicks *c, bool in_order, weft_loader **loader_out) {
    weft_batch_field    arrays[] = {{"id", WEFT_I32, weft_shape(c->rows, fields), c->id},
                                    {"value", WEFT_F32, weft_shape(c->rows, fields), c->value},
                                    {"label", WEFT_F32, weft_shape(c->rows), c->label}};
    weft_loader_options how = {.batch = batch_size, .seed = (uint64_t)seed, .epochs = in_order ? 1 : epochs, .in_order = in_order};
    return weft_loader_open_arrays(arrays, 3, &how, loader_out);
}

int main(int argc, char **argv) {
    const cli_option options[] = {
        {"data", CLI_TEXT, &data, "libsvm file of clicks (a label above 0); none: they are made"},
        {"test", CLI_TEXT, &test_data, "libsvm file to test on"},
        {"rows", CLI_INTEGER, &rows, "made clicks; a tenth as many to test on"},
        {"fields", CLI_INTEGER, &fields, "ids of a row; of a file's rows the first ones"},
        {"vocabulary", CLI_INTEGER, &vocabulary, "ids of a field: the table has fields times as many vectors"},
        {"skew", CLI_REAL, &skew, "of made clicks: Zipf's exponent of the ids"},
        {"size", CLI_INTEGER, &size, "numbers of a vector"},
        {"hidden", CLI_INTEGER, &hidden, "width of the two hidden layers"},
        {"epochs", CLI_INTEGER, &epochs, "passes over the clicks"},
        {"batch", CLI_INTEGER, &batch_size, "clicks of a batch, over all ranks"},
        {"rate", CLI_REAL, &rate, "learning rate of Adam"},
        {"l2", CLI_REAL, &decay, "weight of the L2 regulariser"},
        CLI_SPLIT(&strategy),
        {"seed", CLI_INTEGER, &seed, "of parameters, shuffling and made clicks"},
        {"log", CLI_TEXT, &log_path, "metrics as JSON lines"},
        {"plot", CLI_TEXT, &plot_path, "SVG of the loss"},
        {"checkpoint", CLI_TEXT, &checkpoint_path, "safetensors file, written after each epoch"},
        {"checkpoint-every", CLI_INTEGER, &checkpoint_every, "also every so many steps"},
        {"resume", CLI_FLAG, &resume, "go on from the checkpoint where there is one"},
        {"max-steps", CLI_INTEGER, &max_steps, "end after so many steps; 0: after the epochs"},
        {"stop-on-nan", CLI_FLAG, &stop_on_nan, "end where the loss is not finite, instead of skipping that step"},
        {"describe", CLI_FLAG, &describe, "print the plan: operations, bytes and FLOPs"},
        {"profile", CLI_FLAG, &profile, "measure every operation"},
        {"quiet", CLI_FLAG, &quiet, "no progress"},
    };
    int end = cli_parse(argc, argv, "Trains a DeepFM on clicks.", options, sizeof options / sizeof *options);
    if (end >= 0) return end;
    if (fields < 2 || vocabulary < 1 || size < 1 || hidden < 1 || rows < 10 || fields > INT32_MAX / vocabulary) {
        fprintf(stderr, "train_recommender: --fields at least 2, --vocabulary, --size and --hidden at least 1, --rows at least 10, and %d ids in all at most\n", INT32_MAX);
        return 2;
    }
    weft_world  *world = NULL;
    weft_graph  *graph = NULL;
    weft_loader *loader = NULL, *test = NULL;
    clicks       seen = {0}, unseen = {0};
    double       least = 0;
    weft_status  status;
    if ((status = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    if ((status = weft_world_dump_on(world, SIGUSR1)) != WEFT_OK) goto done; /* kill -USR1 says what the ranks wait for */
    if ((status = weft_graph_create(&(weft_graph_options){.seed = (uint64_t)seed}, &graph)) != WEFT_OK) goto done;
    if (data && (status = read_clicks(data, &seen)) != WEFT_OK) goto done;
    if (test_data && (status = read_clicks(test_data, &unseen)) != WEFT_OK) goto done;
    if (!data && (!make_clicks(&seen, rows, 1, &least) || !make_clicks(&unseen, rows / 10, 2, &least))) status = WEFT_E_NO_MEMORY;
    if (status != WEFT_OK) goto done;
    if ((status = open_clicks(&seen, false, &loader)) != WEFT_OK) goto done;
    if (unseen.rows && (status = open_clicks(&unseen, true, &test)) != WEFT_OK) goto done;
    status = train(world, graph, loader, test, least);
done:
    if (status == WEFT_E_NO_MEMORY && !loader) fprintf(stderr, "train_recommender: no memory for the clicks\n");
    else if (status != WEFT_OK) fprintf(stderr, "train_recommender: %s\n", weft_error_message());
    weft_loader_release(test);
    weft_loader_release(loader);
    clicks_release(&unseen);
    clicks_release(&seen);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}
