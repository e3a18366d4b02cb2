/* Sparse logistic regression on a parameter server: FTRL-proximal with an L1 penalty (McMahan et al., "Ad click prediction: a view from the
 * trenches", 2013), from libsvm files of any size. Each rank streams the file, takes every n-th batch, pulls the weights of the features in it,
 * and pushes their gradient; the rule runs on the servers, which keep three numbers a feature that ever came. Run it alone, or with
 * weftrun -n 4 train_clicks --data a9a --test a9a.t */
#include <math.h>
#include <stdio.h>
#include <time.h>

#include "cli.h"
#include "weft.h"

static const char *data, *test, *log_path, *model_path, *staleness = "async";
static int64_t     epochs = 1, batch = 200, servers;
static double      alpha = 0.1, beta = 1, l1 = 1, l2;
static bool        zero_based, quiet;

/* What one rank works with. */
typedef struct clicks {
    weft_world  *world;
    weft_group  *all;
    weft_server *server;
    weft_table  *weights; /* key 0: the constant; else the column, plus 1 */
    weft_metrics *metrics;
    uint64_t    *keys;    /* of a batch, as they come */
    float       *values, *gradient;
    int64_t      room;
    int64_t      columns; /* that were seen */
    int32_t      rank, ranks;
} clicks;

/* Sums over rows. */
typedef struct totals {
    double loss, right, rows, clicks;
} totals;

static weft_status make_room(clicks *c, int64_t count) {
    if (count <= c->room) return WEFT_OK;
    int64_t   room = count + count / 2;
    uint64_t *keys = realloc(c->keys, (size_t)room * sizeof *keys);
    if (keys) c->keys = keys;
    float *values = realloc(c->values, (size_t)room * sizeof *values);
    if (values) c->values = values;
    float *gradient = realloc(c->gradient, (size_t)room * sizeof *gradient);
    if (gradient) c->gradient = gradient;
    if (!keys || !values || !gradient) return WEFT_E_NO_MEMORY;
    c->room = room;
    return WEFT_OK;
}

/* The features of a batch, as a key set. */
static weft_status name_features(clicks *c, const weft_libsvm_rows *rows, weft_keys **keys_out) {
    int64_t entries = rows->row_start[rows->rows], count = 1;
    if (make_room(c, entries + 1) != WEFT_OK) return WEFT_E_NO_MEMORY;
    c->keys[0] = 0;
    for (int64_t i = 0; i < entries; i++) c->keys[count++] = (uint64_t)rows->column[i] + 1;
    if (rows->columns > c->columns) c->columns = rows->columns;
    return weft_keys_create(c->weights, c->keys, count, keys_out);
}

static int64_t place_of(const uint64_t *keys, int64_t count, uint64_t key) {
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (keys[middle] < key) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Loss of the rows and, where `gradient` is not NULL, its derivative by the weights. */
static totals compute(const weft_libsvm_rows *rows, const uint64_t *keys, int64_t count, const float *weights, float *gradient) {
    totals sum = {0, 0, (double)rows->rows, 0};
    for (int64_t row = 0; row < rows->rows; row++) {
        bool   clicked = rows->label[row] > 0;
        double margin = weights[0];
        for (int64_t i = rows->row_start[row]; i < rows->row_start[row + 1]; i++)
            margin += (double)weights[place_of(keys, count, (uint64_t)rows->column[i] + 1)] * rows->value[i];
        double signed_margin = clicked ? margin : -margin;
        sum.loss += signed_margin > 0 ? log1p(exp(-signed_margin)) : log1p(exp(signed_margin)) - signed_margin;
        sum.right += (margin > 0) == clicked;
        sum.clicks += clicked;
        if (!gradient) continue;
        float slope = (float)(1 / (1 + exp(-margin)) - clicked);
        gradient[0] += slope;
        for (int64_t i = rows->row_start[row]; i < rows->row_start[row + 1]; i++)
            gradient[place_of(keys, count, (uint64_t)rows->column[i] + 1)] += slope * rows->value[i];
    }
    return sum;
}

static weft_status one_batch(clicks *c, const weft_libsvm_rows *rows, bool train, totals *sum) {
    weft_keys *keys = NULL;
    int64_t    count = 0;
    weft_status status = name_features(c, rows, &keys);
    if (status == WEFT_OK) status = weft_table_pull(c->weights, keys, c->values);
    if (status == WEFT_OK) {
        const uint64_t *list = weft_keys_list(keys, &count);
        if (train) memset(c->gradient, 0, (size_t)count * sizeof *c->gradient);
        totals more = compute(rows, list, count, c->values, train ? c->gradient : NULL);
        *sum = (totals){sum->loss + more.loss, sum->right + more.right, sum->rows + more.rows, sum->clicks + more.clicks};
        if (train) status = weft_table_push(c->weights, keys, c->gradient);
    }
    weft_keys_release(keys);
    return status;
}

/* Goes through a file; every rank ends its clock once for each round of batches, whether it had one of it or not. */
static weft_status pass(clicks *c, const char *path, bool train, totals *sum) {
    weft_libsvm *file = NULL;
    weft_libsvm_rows rows;
    int64_t     number = 0;
    bool        bounded = train && strcmp(staleness, "async") != 0;
    *sum = (totals){0, 0, 0, 0};
    weft_status status = weft_libsvm_open(path, &(weft_libsvm_options){.zero_based = zero_based}, &file);
    for (; status == WEFT_OK; number++) {
        if ((status = weft_libsvm_read(file, batch, &rows)) != WEFT_OK) break;
        if (number % c->ranks == c->rank) status = one_batch(c, &rows, train, sum);
        if (status == WEFT_OK && bounded && number % c->ranks == c->ranks - 1) status = weft_table_clock(c->weights);
    }
    if (status == WEFT_END) status = bounded && number % c->ranks != 0 ? weft_table_clock(c->weights) : WEFT_OK;
    weft_libsvm_release(file);
    /* Whoever gets here has waited for its pushes: afterwards all have come. */
    if (status == WEFT_OK) status = weft_group_allreduce(c->all, sum, sum, 4, WEFT_F64, WEFT_COMBINE_SUM);
    return status;
}

/* The weights that are not zero: how many, and into a file of "column weight" lines, the constant as column -1. */
static weft_status write_model(clicks *c, int64_t *nonzero_out) {
    enum { CHUNK = 4096 };
    uint64_t keys[CHUNK];
    float    values[CHUNK];
    FILE    *file = NULL;
    *nonzero_out = 0;
    weft_status status = weft_group_allreduce(c->all, &c->columns, &c->columns, 1, WEFT_I64, WEFT_COMBINE_MAX);
    if (status != WEFT_OK || c->rank != 0) return status;
    if (model_path && !(file = fopen(model_path, "w"))) {
        fprintf(stderr, "train_clicks: cannot write %s\n", model_path);
        return WEFT_E_IO;
    }
    for (int64_t first = 0; first <= c->columns && status == WEFT_OK; first += CHUNK) {
        int64_t count = c->columns + 1 - first < CHUNK ? c->columns + 1 - first : CHUNK;
        for (int64_t i = 0; i < count; i++) keys[i] = (uint64_t)(first + i);
        status = weft_table_call_rows(c->weights, WEFT_PULL, keys, count, NULL, values);
        for (int64_t i = 0; i < count && status == WEFT_OK; i++) {
            if (values[i] == 0) continue;
            ++*nonzero_out;
            if (file) fprintf(file, "%lld %.9g\n", (long long)(first + i - (zero_based ? 1 : 0)), (double)values[i]);
        }
    }
    if (file && fclose(file) != 0) status = WEFT_E_IO;
    return status;
}

static weft_status report(clicks *c, const char *event, int64_t epoch, const totals *train, const totals *tested, int64_t nonzero, double seconds) {
    weft_memory_counts memory;
    weft_server_counts moved;
    weft_memory_read(&memory);
    weft_server_count(c->server, &moved);
    if (c->rank != 0) return WEFT_OK;
    if (!quiet) {
        printf("%s %lld: loss %.5f, %.2f %% right", event, (long long)epoch, train->loss / train->rows, 100 * train->right / train->rows);
        if (tested->rows > 0) printf("; test loss %.5f, %.2f %% right", tested->loss / tested->rows, 100 * tested->right / tested->rows);
        printf("; %lld weights are not zero\n", (long long)nonzero);
        fflush(stdout);
    }
    if (!c->metrics) return WEFT_OK;
    weft_metrics_text(c->metrics, "event", event);
    weft_metrics_i64(c->metrics, "epoch", epoch);
    weft_metrics_f64(c->metrics, "train_loss", train->loss / train->rows);
    weft_metrics_f64(c->metrics, "train_accuracy", train->right / train->rows);
    if (tested->rows > 0) weft_metrics_f64(c->metrics, "test_loss", tested->loss / tested->rows);
    if (tested->rows > 0) weft_metrics_f64(c->metrics, "test_accuracy", tested->right / tested->rows);
    weft_metrics_i64(c->metrics, "nonzero", nonzero);
    weft_metrics_f64(c->metrics, "samples_per_second", train->rows / seconds);
    weft_metrics_i64(c->metrics, "peak_bytes", (int64_t)memory.peak_bytes);
    weft_metrics_i64(c->metrics, "sent_bytes", (int64_t)moved.sent_bytes);
    weft_metrics_i64(c->metrics, "ranks", c->ranks);
    return weft_metrics_end_line(c->metrics);
}

static weft_status train(clicks *c) {
    totals      learnt = {0, 0, 0, 0}, tested = {0, 0, 0, 0};
    int64_t     nonzero = 0;
    weft_status status = WEFT_OK;
    for (int64_t epoch = 1; epoch <= epochs && status == WEFT_OK; epoch++) {
        struct timespec begin, now;
        timespec_get(&begin, TIME_UTC);
        status = pass(c, data, true, &learnt);
        timespec_get(&now, TIME_UTC);
        double seconds = (double)(now.tv_sec - begin.tv_sec) + 1e-9 * (double)(now.tv_nsec - begin.tv_nsec);
        if (status == WEFT_OK && learnt.rows == 0) {
            fprintf(stderr, "train_clicks: %s has no rows\n", data);
            status = WEFT_E_CORRUPT;
        }
        if (status == WEFT_OK && test) status = pass(c, test, false, &tested);
        if (status == WEFT_OK) status = write_model(c, &nonzero);
        if (status == WEFT_OK) status = report(c, epoch == epochs ? "end" : "epoch", epoch, &learnt, &tested, nonzero, seconds);
    }
    return status;
}

static weft_status start(clicks *c) {
    char       *end = NULL;
    weft_status status = weft_world_create(NULL, &c->world);
    if (status != WEFT_OK) return status;
    c->rank = weft_world_rank(c->world);
    c->ranks = weft_world_size(c->world);
    weft_table_options table = {.name = "weights", .sparse = true, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS,
                                .rule = {.kind = WEFT_TABLE_FTRL, .alpha = alpha, .beta = beta, .l1 = l1, .l2 = l2}};
    if (strcmp(staleness, "async") != 0) table.staleness = (int32_t)strtol(staleness, &end, 10);
    if (end && (end == staleness || *end)) {
        fprintf(stderr, "train_clicks: --staleness %s: it is 0, 1, ... or async\n", staleness);
        return WEFT_E_INVALID;
    }
    if ((status = weft_group_create(c->world, NULL, &c->all)) != WEFT_OK) return status;
    if ((status = weft_server_create(c->world, &(weft_server_options){.servers = (int32_t)servers}, &c->server)) != WEFT_OK) return status;
    if ((status = weft_table_create(c->server, &table, &c->weights)) != WEFT_OK) return status;
    return log_path && c->rank == 0 ? weft_metrics_open(log_path, false, &c->metrics) : WEFT_OK;
}

int main(int argc, char **argv) {
    const cli_option options[] = {
        {"data", CLI_TEXT, &data, "libsvm file to learn from, plain or gzip; labels above 0 are clicks"},
        {"test", CLI_TEXT, &test, "libsvm file to be tested on after each epoch"},
        {"epochs", CLI_INTEGER, &epochs, "passes over the file"},
        {"batch", CLI_INTEGER, &batch, "rows of a rank's push"},
        {"alpha", CLI_REAL, &alpha, "FTRL's learning rate"},
        {"beta", CLI_REAL, &beta, "and what slows it at the beginning"},
        {"l1", CLI_REAL, &l1, "weight of the L1 penalty on the sum of losses"},
        {"l2", CLI_REAL, &l2, "weight of the L2 penalty"},
        {"staleness", CLI_TEXT, &staleness, "rounds that ranks may be apart: 0, 1, ..., async"},
        {"servers", CLI_INTEGER, &servers, "ranks that keep the weights; 0: all"},
        {"zero-based", CLI_FLAG, &zero_based, "the file's first column is 0"},
        {"log", CLI_TEXT, &log_path, "metrics as JSON lines"},
        {"model", CLI_TEXT, &model_path, "text file of the weights that are not zero"},
        {"quiet", CLI_FLAG, &quiet, "no progress"},
    };
    int end = cli_parse(argc, argv, "Trains a sparse logistic regression with FTRL on a parameter server.", options, sizeof options / sizeof *options);
    if (end >= 0) return end;
    if (!data || epochs < 1 || batch < 1) {
        fprintf(stderr, "train_clicks: --data names a file; --epochs and --batch are at least 1\n");
        return 2;
    }
    clicks      c = {.rank = 0};
    weft_status status = start(&c);
    if (status == WEFT_OK) status = train(&c);
    if (status != WEFT_OK) fprintf(stderr, "train_clicks: %s: %s\n", weft_status_name(status), weft_error_message());
    weft_metrics_release(c.metrics);
    weft_table_release(c.weights);
    weft_server_release(c.server);
    weft_group_release(c.all);
    weft_world_release(c.world);
    free(c.keys);
    free(c.values);
    free(c.gradient);
    return status == WEFT_OK ? 0 : 1;
}
