/* A recommender whose two halves are trained in two ways at once: the rows of users and items, of which a batch touches few, are sparse tables of a
 * parameter server; the network above them is dense and is trained by allreduce, or as --mesh says. Ratings are those of a file ("user item rating" in each
 * line, as MovieLens has them), or are made up. Run it alone, or with weftrun -n 4 hybrid --mesh data=2,tensor=2 */
#include <math.h>
#include <stdio.h>

#include "cli.h"
#include "random.h"
#include "weft.h"

static const char   *data, *log_path;
static int64_t       users = 2000, items = 500, ratings = 60000, width = 16, batch_size = 500, epochs = 8, seed = 1, staleness;
static double        rate = 3e-3, table_rate = 0.1;
static weft_strategy strategy;
static bool          quiet;

enum { USER, ITEM, SIDES };
static const char *const names[SIDES] = {"user", "item"}, *const row_names[SIDES] = {"user_row", "item_row"};

typedef struct ratings_data {
    int64_t *key[SIDES]; /* [count] */
    float   *rating;     /* [count] */
    int64_t  count, capacity;
    double   mean;
} ratings_data;

/* One side of a batch: its rows in the batch's order, and what the server sent and is sent, a row a key. */
typedef struct side {
    weft_table     *table;
    weft_keys      *keys;
    const uint64_t *list;  /* [n] ascending; of keys */
    int64_t         n;
    float          *rows, *gradients; /* [batch, width] */
    float          *values;           /* [n, width], room for the whole batch */
} side;

typedef struct hybrid {
    weft_world     *world;
    weft_graph     *graph;
    weft_server    *server;
    weft_trainer   *trainer;
    weft_evaluator *evaluator;
    weft_metrics   *metrics;
    side            sides[SIDES];
    uint64_t       *scratch;      /* [batch] */
    double          share;        /* of a row's gradient that this rank pushes: ranks along other axes than data have the same rows */
} hybrid;

/* --- ratings --- */

static weft_status add_rating(ratings_data *d, int64_t user, int64_t item, double value) {
    if (d->count == d->capacity) {
        d->capacity = d->capacity ? 2 * d->capacity : 65536;
        d->key[USER] = realloc(d->key[USER], sizeof(int64_t) * (size_t)d->capacity);
        d->key[ITEM] = realloc(d->key[ITEM], sizeof(int64_t) * (size_t)d->capacity);
        d->rating = realloc(d->rating, sizeof(float) * (size_t)d->capacity);
        if (!d->key[USER] || !d->key[ITEM] || !d->rating) return WEFT_E_NO_MEMORY;
    }
    d->key[USER][d->count] = user;
    d->key[ITEM][d->count] = item;
    d->rating[d->count++] = (float)value;
    d->mean += (value - d->mean) / (double)d->count;
    return WEFT_OK;
}

/* Tastes of four kinds: what a user likes of an item is not a sum of what both have, so no table alone finds it. */
static weft_status make_ratings(ratings_data *d) {
    uint64_t random = 7;
    for (int64_t i = 0; i < ratings; i++) {
        int64_t user = (int64_t)(next_uniform(&random) * (double)users), item = (int64_t)(next_uniform(&random) * (double)items);
        double  angle = 2.39996 * (double)user - 1.61803 * (double)item;
        double  noise = next_uniform(&random) + next_uniform(&random) - 1;
        weft_status status = add_rating(d, user, item, 3 + 1.2 * cos(angle) + 0.6 * sin((double)user) + 0.2 * noise);
        if (status != WEFT_OK) return status;
    }
    return WEFT_OK;
}

static weft_status read_ratings(ratings_data *d) {
    char      line[512];
    long long user, item;
    double    value;
    FILE     *file = fopen(data, "r");
    if (!file) fprintf(stderr, "hybrid: cannot read %s: %s\n", data, strerror(errno));
    if (!file) return WEFT_E_NOT_FOUND;
    weft_status status = WEFT_OK;
    while (status == WEFT_OK && fgets(line, sizeof line, file)) {
        if (sscanf(line, "%lld %lld %lf", &user, &item, &value) != 3 || user < 0 || item < 0 || !isfinite(value)) {
            fprintf(stderr, "hybrid: %s, line %lld is no \"user item rating\": %s", data, (long long)d->count + 1, line);
            status = WEFT_E_CORRUPT;
        } else {
            status = add_rating(d, user, item, value);
        }
    }
    fclose(file);
    return status;
}

/* Every tenth rating is for the test; those before `count` are ratings in the order of the file. */
static weft_status open_loader(const ratings_data *all, bool test, ratings_data *part, weft_loader **loader_out) {
    weft_status status = WEFT_OK;
    for (int64_t i = 0; i < all->count && status == WEFT_OK; i++)
        if ((i % 10 == 9) == test) status = add_rating(part, all->key[USER][i], all->key[ITEM][i], all->rating[i]);
    if (status != WEFT_OK) return status;
    const weft_batch_field fields[] = {{"user", WEFT_I64, weft_shape(part->count), part->key[USER]},
                                       {"item", WEFT_I64, weft_shape(part->count), part->key[ITEM]},
                                       {"rating", WEFT_F32, weft_shape(part->count), part->rating}};
    return weft_loader_open_arrays(fields, 3, &(weft_loader_options){.batch = batch_size, .seed = (uint64_t)seed, .epochs = test ? 1 : epochs,
                                                                     .in_order = test, .drop_last = true}, loader_out);
}

static void free_ratings(ratings_data *d) {
    for (int s = 0; s < SIDES; s++) free(d->key[s]);
    free(d->rating);
}

/* --- the model --- */

/* Guesses of ratings [B] from rows of both tables [B, width]. */
static weft_tensor *network(weft_tensor *const rows[SIDES], double mean) {
    weft_tensor *parts[] = {rows[USER], rows[ITEM], weft_mul(rows[USER], rows[ITEM])};
    weft_tensor *h = weft_relu(weft_linear(weft_concat(parts, 3, 1), "hidden1", .out = 64));
    h = weft_relu(weft_linear(h, "hidden2", .out = 32));
    return weft_add_scalar(weft_reshape(weft_linear(h, "guess", .out = 1), weft_shape(batch_size)), mean);
}

static weft_status build(hybrid *h, double mean) {
    weft_tensor *rows[SIDES], *rating = weft_input(h->graph, "rating", WEFT_F32, weft_shape(batch_size));
    for (int s = 0; s < SIDES; s++) rows[s] = weft_input(h->graph, row_names[s], WEFT_F32, weft_shape(batch_size, width));
    weft_tensor *wrong = weft_square(weft_sub(network(rows, mean), rating));
    weft_program program = {.loss = weft_mean(wrong), .solver = weft_adam(rate), .strategy = strategy, .wanted = rows, .n_wanted = SIDES};
    weft_status  status = weft_trainer_create(h->world, &program, &h->trainer);
    weft_tensor *sum = weft_sum(wrong);
    if (status == WEFT_OK) status = weft_evaluator_create(h->trainer, &sum, 1, &h->evaluator);
    int32_t rank, shares;
    if (status == WEFT_OK) {
        weft_trainer_share(h->trainer, &rank, &shares);
        h->share = (double)shares / weft_world_size(h->world);
    }
    return status;
}

static weft_status open_tables(hybrid *h) {
    weft_status status = weft_server_create(h->world, NULL, &h->server);
    for (int s = 0; s < SIDES && status == WEFT_OK; s++) {
        weft_table_options what = {.name = names[s], .sparse = true, .width = width, .staleness = (int32_t)staleness, .start = WEFT_START_NORMAL, .high = 0.1,
                                   .seed = (uint64_t)(seed + s), .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_adagrad(table_rate)}};
        side  *one = &h->sides[s];
        size_t bytes = sizeof(float) * (size_t)(batch_size * width);
        one->rows = aligned_alloc(64, (bytes + 63) / 64 * 64);
        one->gradients = malloc(bytes);
        one->values = malloc(bytes);
        status = one->rows && one->gradients && one->values ? weft_table_create(h->server, &what, &one->table) : WEFT_E_NO_MEMORY;
    }
    h->scratch = malloc(sizeof(uint64_t) * (size_t)batch_size);
    return status == WEFT_OK && !h->scratch ? WEFT_E_NO_MEMORY : status;
}

/* --- a step --- */

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Where the row of the batch's i-th sample lies among what the server sent. */
static int64_t place_of(const side *s, const weft_batch_field *keys, int64_t i) {
    uint64_t key = (uint64_t)((const int64_t *)keys->data)[i];
    return (const uint64_t *)bsearch(&key, s->list, (size_t)s->n, sizeof key, ascending) - s->list;
}

static weft_status pull(hybrid *h, side *s, const weft_batch_field *keys, int64_t count) {
    for (int64_t i = 0; i < count; i++) h->scratch[i] = (uint64_t)((const int64_t *)keys->data)[i];
    weft_status status = weft_keys_create(s->table, h->scratch, count, &s->keys);
    if (status != WEFT_OK) return status;
    s->list = weft_keys_list(s->keys, &s->n);
    if ((status = weft_table_pull(s->table, s->keys, s->values)) != WEFT_OK) return status;
    for (int64_t i = 0; i < count; i++) memcpy(s->rows + i * width, s->values + place_of(s, keys, i) * width, sizeof(float) * (size_t)width);
    return WEFT_OK;
}

/* Both tables' rows of a batch, as inputs of the network; `fed` has them and the ratings. */
static weft_status pull_both(hybrid *h, const weft_batch *batch, weft_batch *fed) {
    weft_status status = WEFT_OK;
    *fed = *batch;
    fed->field_count = 1 + SIDES;
    fed->field[SIDES] = *weft_batch_find(batch, "rating");
    for (int s = 0; s < SIDES && status == WEFT_OK; s++) {
        fed->field[s] = (weft_batch_field){row_names[s], WEFT_F32, weft_shape(batch->local_rows, width), h->sides[s].rows};
        status = pull(h, &h->sides[s], weft_batch_find(batch, names[s]), batch->local_rows);
    }
    return status;
}

static void drop_keys(hybrid *h) {
    for (int s = 0; s < SIDES; s++) {
        weft_keys_release(h->sides[s].keys);
        h->sides[s].keys = NULL;
    }
}

/* Gradients of a row that several samples touched are added up here, those of several ranks on the server. */
static weft_status push(hybrid *h, int which, const weft_batch *batch) {
    side                   *s = &h->sides[which];
    const weft_batch_field *keys = weft_batch_find(batch, names[which]);
    weft_status status = weft_trainer_gradient_fetch(h->trainer, which, s->gradients, sizeof(float) * (size_t)(batch->local_rows * width));
    if (status != WEFT_OK) return status;
    memset(s->values, 0, sizeof(float) * (size_t)(s->n * width));
    for (int64_t i = 0; i < batch->local_rows; i++) {
        float *to = s->values + place_of(s, keys, i) * width;
        for (int64_t k = 0; k < width; k++) to[k] += (float)h->share * s->gradients[i * width + k];
    }
    if ((status = weft_table_push(s->table, s->keys, s->values)) != WEFT_OK) return status;
    return weft_table_clock(s->table);
}

static weft_status step(hybrid *h, const weft_batch *batch, double *loss_out) {
    weft_batch  fed;
    weft_report report;
    weft_status status = pull_both(h, batch, &fed);
    if (status == WEFT_OK) status = weft_trainer_step(h->trainer, &fed, &report);
    for (int s = 0; s < SIDES && status == WEFT_OK; s++) status = push(h, s, batch);
    if (status == WEFT_OK) *loss_out = report.loss;
    drop_keys(h);
    return status;
}

/* The root mean square of errors over the test set. */
static weft_status test(hybrid *h, weft_loader *loader, double *error_out) {
    double      sum = 0, rows = 0;
    float       value;
    weft_batch  batch, fed;
    weft_status status = weft_loader_rewind(loader);
    while (status == WEFT_OK && (status = weft_loader_next(loader, &batch)) == WEFT_OK) {
        if ((status = pull_both(h, &batch, &fed)) == WEFT_OK && (status = weft_evaluator_run(h->evaluator, &fed)) == WEFT_OK &&
            (status = weft_evaluator_fetch(h->evaluator, 0, &value, sizeof value)) == WEFT_OK) sum += value;
        rows += (double)batch.global_rows;
        drop_keys(h);
    }
    *error_out = sqrt(sum / rows);
    return status == WEFT_END ? WEFT_OK : status;
}

static weft_status train(hybrid *h, weft_loader *loader, weft_loader *check) {
    weft_batch  batch;
    weft_status status;
    double      loss = 0, sum = 0, error = 0;
    bool        first = weft_world_rank(h->world) == 0;
    while ((status = weft_loader_next(loader, &batch)) == WEFT_OK) {
        if ((status = step(h, &batch, &loss)) != WEFT_OK) return status;
        sum = batch.index == 0 ? loss : sum + loss;
        if (batch.index + 1 < batch.count) continue;
        if ((status = test(h, check, &error)) != WEFT_OK) return status;
        sum = sqrt(sum / (double)batch.count);
        if (first && !quiet) printf("epoch %lld: error %.5f, of the test %.5f\n", (long long)batch.epoch + 1, sum, error);
        if (!h->metrics) continue;
        weft_metrics_i64(h->metrics, "epoch", batch.epoch + 1);
        weft_metrics_f64(h->metrics, "train_error", sum);
        weft_metrics_f64(h->metrics, "test_error", error);
        if ((status = weft_metrics_end_line(h->metrics)) != WEFT_OK) return status;
    }
    return status == WEFT_END ? WEFT_OK : status;
}

static weft_status run(hybrid *h) {
    ratings_data all = {.mean = 0}, parts[2] = {{.mean = 0}, {.mean = 0}};
    weft_loader *loaders[2] = {NULL, NULL};
    int32_t      rank, shares;
    weft_status  status = data ? read_ratings(&all) : make_ratings(&all);
    for (int t = 0; t < 2 && status == WEFT_OK; t++) status = open_loader(&all, t == 1, &parts[t], &loaders[t]);
    if (status == WEFT_OK) status = build(h, parts[0].mean);
    if (status == WEFT_OK) status = open_tables(h);
    if (status == WEFT_OK && log_path && weft_world_rank(h->world) == 0) status = weft_metrics_open(log_path, false, &h->metrics);
    if (status == WEFT_OK) weft_trainer_share(h->trainer, &rank, &shares);
    for (int t = 0; t < 2 && status == WEFT_OK; t++) status = weft_loader_share(loaders[t], rank, shares);
    if (status == WEFT_OK) status = train(h, loaders[0], loaders[1]);
    for (int t = 0; t < 2; t++) weft_loader_release(loaders[t]);
    for (int t = 0; t < 2; t++) free_ratings(&parts[t]);
    free_ratings(&all);
    return status;
}

static void close_all(hybrid *h) {
    for (int s = 0; s < SIDES; s++) {
        weft_table_release(h->sides[s].table);
        free(h->sides[s].rows);
        free(h->sides[s].gradients);
        free(h->sides[s].values);
    }
    free(h->scratch);
    weft_metrics_release(h->metrics);
    weft_server_release(h->server);
    weft_evaluator_release(h->evaluator);
    weft_trainer_release(h->trainer);
    weft_graph_release(h->graph);
    weft_world_release(h->world);
}

int main(int argc, char **argv) {
    const cli_option options[] = {
        {"data", CLI_TEXT, &data, "file of ratings, \"user item rating\" in each line; none: made up"},
        {"users", CLI_INTEGER, &users, "that are made up"},
        {"items", CLI_INTEGER, &items, "that are made up"},
        {"ratings", CLI_INTEGER, &ratings, "that are made up; each tenth is for the test"},
        {"width", CLI_INTEGER, &width, "of a user's and an item's row"},
        {"batch", CLI_INTEGER, &batch_size, "ratings of a batch, over all ranks"},
        {"epochs", CLI_INTEGER, &epochs, "passes over the ratings"},
        {"rate", CLI_REAL, &rate, "learning rate of the network, by Adam"},
        {"table-rate", CLI_REAL, &table_rate, "of the rows, by Adagrad on the servers"},
        {"staleness", CLI_INTEGER, &staleness, "of the tables, in clocks: 0 has the results of one rank; -1: nobody waits"},
        CLI_SPLIT(&strategy),
        {"seed", CLI_INTEGER, &seed, "of parameters and of shuffling"},
        {"log", CLI_TEXT, &log_path, "metrics as JSON lines"},
        {"quiet", CLI_FLAG, &quiet, "no progress"},
    };
    int end = cli_parse(argc, argv, "Trains a recommender: tables of users and items on a parameter server, the network above them by allreduce.", options,
                        sizeof options / sizeof *options);
    if (end >= 0) return end;
    if (users < 1 || items < 1 || ratings < 1 || width < 1 || batch_size < 1) {
        fprintf(stderr, "hybrid: users, items, ratings, width and batch must be at least 1\n");
        return 2;
    }
    hybrid      h = {.share = 1};
    weft_status status = weft_world_create(NULL, &h.world);
    if (status == WEFT_OK) status = weft_graph_create(&(weft_graph_options){.seed = (uint64_t)seed}, &h.graph);
    if (status == WEFT_OK) status = run(&h);
    if (status != WEFT_OK) fprintf(stderr, "hybrid: %s\n", weft_error_message());
    close_all(&h);
    return status == WEFT_OK ? 0 : 1;
}
