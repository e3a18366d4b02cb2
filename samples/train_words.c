/* Vectors of words: skip-gram with negative sampling (Mikolov et al., "Distributed representations of words and phrases and their compositionality",
 * 2013) on a parameter server. Two tables have a row a word, for it as the middle of a window and as its neighbour. Each rank takes every n-th batch of the
 * text, pulls the rows that its windows and their negative samples touch, goes through them by stochastic gradient descent, and pushes what changed. Run
 * it alone, or with weftrun -n 4 train_words --text corpus.txt --vectors vectors.txt --near king,queen */
#include <math.h>
#include <stdio.h>
#include <time.h>

#include "alias.h"
#include "cli.h"
#include "random.h"
#include "vocabulary.h"
#include "weft.h"

static const char *text_path, *vectors_path, *near, *log_path, *checkpoint_path, *staleness = "async";
static int64_t     epochs = 5, width = 100, window = 5, negatives = 5, least_count = 5, batch = 500, servers, seed = 1, top = 8;
static double      rate = 0.025, sample = 1e-3;
static bool        quiet, resume;

enum { INPUT, OUTPUT, TABLES };
/* What a checkpoint says of itself, as a row of a table: the epochs that are done, and what makes their vectors others. */
enum { DONE, WORDS, LENGTH, SEED, BATCH, ABOUT };

/* The rows of one table that a batch touches. */
typedef struct touched {
    weft_table   *table;
    weft_keys    *keys;
    weft_request *request;
    int32_t      *place;  /* [words] of a row among these; -1: not touched */
    uint64_t     *list;   /* [count], with room for all words */
    int64_t       count;
    float        *before, *now; /* [count, width] as they were pulled; as they are trained. The server's memory */
} touched;

/* A word in the middle of a window, one beside it, and words that are not. */
typedef struct pair {
    int32_t middle, beside;
} pair;

typedef struct words {
    weft_world   *world;
    weft_group   *all;
    weft_server  *server;
    weft_metrics *metrics;
    vocabulary    vocabulary;
    alias         noise;      /* of negative samples */
    touched       rows[TABLES];
    weft_table   *about;      /* with a checkpoint */
    int64_t       done;       /* epochs */
    pair         *pairs;      /* of a batch */
    int32_t      *others;     /* [pairs, negatives] */
    int64_t       pair_count;
    int32_t       rank, ranks;
} words;

/* --- a batch --- */

/* Frequent words are left out at random: what is kept of a word with the share f is sqrt(sample/f) + sample/f. */
static int64_t thin_out(const words *w, int64_t first, int64_t end, uint64_t *random, int32_t *kept) {
    const vocabulary *v = &w->vocabulary;
    int64_t           count = 0;
    for (int64_t i = first; i < end; i++) {
        int32_t word = v->text[i];
        if (word >= 0 && sample > 0) {
            double share = (double)v->words[word].count / (double)v->total, ratio = sample / share;
            if (next_uniform(random) > sqrt(ratio) + ratio) continue;
        }
        kept[count++] = word;
    }
    return count;
}

/* Pairs of the words from `first` on, with windows of random width that end with a sentence, and their negative samples. */
static void make_pairs(words *w, int64_t first, int64_t end, uint64_t random, int32_t *kept) {
    int64_t count = thin_out(w, first, end, &random, kept);
    w->pair_count = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t reach = 1 + (int64_t)(next_uniform(&random) * (double)window);
        for (int side = -1; side <= 1 && kept[i] >= 0; side += 2)
            for (int64_t far = 1, at = i + side; far <= reach && at >= 0 && at < count && kept[at] >= 0; far++, at += side) {
                int32_t *others = w->others + w->pair_count * negatives;
                w->pairs[w->pair_count++] = (pair){kept[i], kept[at]};
                for (int64_t k = 0; k < negatives; k++) others[k] = alias_draw(&w->noise, next_random(&random));
            }
    }
}

static weft_status name_rows(words *w) {
    for (int t = 0; t < TABLES; t++)
        for (int64_t i = 0; i < w->vocabulary.count; i++) w->rows[t].place[i] = -1;
    for (int64_t i = 0; i < w->pair_count; i++) {
        w->rows[INPUT].place[w->pairs[i].middle] = 0;
        w->rows[OUTPUT].place[w->pairs[i].beside] = 0;
        for (int64_t k = 0; k < negatives; k++) w->rows[OUTPUT].place[w->others[i * negatives + k]] = 0;
    }
    for (int t = 0; t < TABLES; t++) {
        touched *rows = &w->rows[t];
        rows->count = 0;
        for (int64_t i = 0; i < w->vocabulary.count; i++)
            if (rows->place[i] >= 0) {
                rows->list[rows->count] = (uint64_t)i;
                rows->place[i] = (int32_t)rows->count++;
            }
        weft_status status = weft_keys_create(rows->table, rows->list, rows->count, &rows->keys);
        if (status != WEFT_OK) return status;
    }
    return WEFT_OK;
}

/* The same request for both tables at once. */
static weft_status move(words *w, weft_request_kind kind) {
    weft_status status = WEFT_OK;
    for (int t = 0; t < TABLES && status == WEFT_OK; t++) {
        touched *rows = &w->rows[t];
        status = weft_table_start_call(rows->table, &(weft_table_call){.kind = kind, .keys = rows->keys, .send = rows->now, .receive = rows->before},
                                       &rows->request);
    }
    for (int t = 0; t < TABLES; t++) {
        if (!w->rows[t].request) continue;
        weft_status ended = weft_request_wait(w->rows[t].request, 0);
        w->rows[t].request = NULL;
        if (status == WEFT_OK) status = ended;
    }
    return status;
}

/* One step along the gradient of log sigmoid(+- in*out). Gives the loss; the middle word's part is kept until all of its pair's steps are known. */
static double step(const float *in, float *out, float *change, bool beside, float length) {
    float   lane[8] = {0}; /* what a compiler may compute at once */
    int64_t i = 0;
    for (; i + 8 <= width; i += 8)
        for (int k = 0; k < 8; k++) lane[k] += in[i + k] * out[i + k];
    for (; i < width; i++) lane[i % 8] += in[i] * out[i];
    double product = (double)(((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7])));
    double margin = beside ? product : -product;
    double chance = 1 / (1 + exp(-margin));
    float  slope = length * (float)(beside ? 1 - chance : chance - 1);
    for (i = 0; i < width; i++) {
        change[i] += slope * out[i];
        out[i] += slope * in[i];
    }
    return margin > 0 ? log1p(exp(-margin)) : log1p(exp(margin)) - margin;
}

static double train_pairs(words *w, float length, float *change) {
    touched *in = &w->rows[INPUT], *out = &w->rows[OUTPUT];
    double   loss = 0;
    for (int64_t i = 0; i < w->pair_count; i++) {
        const pair    *p = &w->pairs[i];
        const int32_t *others = w->others + i * negatives;
        float         *middle = in->now + in->place[p->middle] * width;
        memset(change, 0, (size_t)width * sizeof *change);
        loss += step(middle, out->now + out->place[p->beside] * width, change, true, length);
        for (int64_t k = 0; k < negatives; k++)
            if (others[k] != p->beside) loss += step(middle, out->now + out->place[others[k]] * width, change, false, length);
        for (int64_t k = 0; k < width; k++) middle[k] += change[k];
    }
    return loss;
}

/* Pulls, trains, and pushes the difference. */
static weft_status one_batch(words *w, int64_t epoch, int64_t number, int64_t batches, float *change, int32_t *kept, double sum[3]) {
    int64_t first = number * batch, end = first + batch < w->vocabulary.length ? first + batch : w->vocabulary.length;
    double  progress = ((double)epoch * (double)batches + (double)number) / ((double)epochs * (double)batches);
    double  length = rate * fmax(1 - progress, 1e-4);
    make_pairs(w, first, end, random_stream(seed, epoch, number), kept);
    sum[2] += (double)(end - first);
    if (w->pair_count == 0) return WEFT_OK;
    weft_status status = name_rows(w);
    if (status == WEFT_OK) status = move(w, WEFT_PULL);
    if (status == WEFT_OK) {
        for (int t = 0; t < TABLES; t++) memcpy(w->rows[t].now, w->rows[t].before, (size_t)(w->rows[t].count * width) * sizeof(float));
        sum[0] += train_pairs(w, (float)length, change);
        sum[1] += (double)w->pair_count;
        for (int t = 0; t < TABLES; t++)
            for (int64_t i = 0; i < w->rows[t].count * width; i++) w->rows[t].now[i] -= w->rows[t].before[i];
        status = move(w, WEFT_PUSH);
    }
    for (int t = 0; t < TABLES; t++) {
        weft_keys_release(w->rows[t].keys);
        w->rows[t].keys = NULL;
    }
    return status;
}

/* Goes through the text; every rank ends its clocks once for each round of batches, whether it had one of it or not. sum: loss, pairs, words. */
static weft_status pass(words *w, int64_t epoch, double sum[3]) {
    int64_t     batches = (w->vocabulary.length + batch - 1) / batch, rounds = (batches + w->ranks - 1) / w->ranks;
    bool        bounded = strcmp(staleness, "async") != 0;
    float      *change = malloc((size_t)width * sizeof *change);
    int32_t    *kept = malloc((size_t)batch * sizeof *kept);
    weft_status status = change && kept ? WEFT_OK : WEFT_E_NO_MEMORY;
    sum[0] = sum[1] = sum[2] = 0;
    for (int64_t round = 0; round < rounds && status == WEFT_OK; round++) {
        int64_t number = round * w->ranks + w->rank;
        if (number < batches) status = one_batch(w, epoch, number, batches, change, kept, sum);
        for (int t = 0; t < TABLES && bounded && status == WEFT_OK; t++) status = weft_table_clock(w->rows[t].table);
    }
    free(change);
    free(kept);
    /* Whoever gets here has waited for its pushes: afterwards all have come. */
    if (status == WEFT_OK) status = weft_group_allreduce(w->all, sum, sum, 3, WEFT_F64, WEFT_COMBINE_SUM);
    return status;
}

/* --- what has been learnt --- */

static weft_status write_vectors(const words *w, const float *vectors) {
    const vocabulary *v = &w->vocabulary;
    FILE             *file = fopen(vectors_path, "w");
    if (!file) {
        fprintf(stderr, "train_words: cannot write %s\n", vectors_path);
        return WEFT_E_IO;
    }
    fprintf(file, "%lld %lld\n", (long long)v->count, (long long)width);
    for (int64_t i = 0; i < v->count; i++) {
        fputs(v->words[i].text, file);
        for (int64_t k = 0; k < width; k++) fprintf(file, " %.9g", (double)vectors[i * width + k]);
        fputc('\n', file);
    }
    bool bad = ferror(file) != 0;
    return fclose(file) != 0 || bad ? WEFT_E_IO : WEFT_OK;
}

static double cosine(const float *a, const float *b) {
    double ab = 0, aa = 0, bb = 0;
    for (int64_t i = 0; i < width; i++) {
        ab += (double)a[i] * b[i];
        aa += (double)a[i] * a[i];
        bb += (double)b[i] * b[i];
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 0;
}

typedef struct neighbour {
    double  cosine;
    int64_t word;
} neighbour;

static int nearest_first(const void *a, const void *b) {
    const neighbour *x = a, *y = b;
    return x->cosine != y->cosine ? (x->cosine > y->cosine ? -1 : 1) : x->word < y->word ? -1 : 1;
}

static void print_neighbours(const vocabulary *v, const float *vectors, int64_t word, neighbour *all) {
    int64_t count = 0;
    for (int64_t i = 0; i < v->count; i++)
        if (i != word) all[count++] = (neighbour){cosine(vectors + word * width, vectors + i * width), i};
    qsort(all, (size_t)count, sizeof *all, nearest_first);
    printf("near %s:", v->words[word].text);
    for (int64_t i = 0; i < count && i < top; i++) printf("%s %s %.3f", i ? "," : "", v->words[all[i].word].text, all[i].cosine);
    printf("\n");
}

/* The words whose vectors point most nearly the same way, of each of a list "king,queen". */
static weft_status print_near(const words *w, const float *vectors) {
    neighbour *all = malloc((size_t)w->vocabulary.count * sizeof *all);
    if (!all) return WEFT_E_NO_MEMORY;
    for (const char *at = near; *at;) {
        size_t  length = strcspn(at, ",");
        int32_t word = vocabulary_find(&w->vocabulary, at, length);
        if (word >= 0) print_neighbours(&w->vocabulary, vectors, word, all);
        else printf("near %.*s: the text does not have it often enough\n", (int)length, at);
        at += length + (at[length] == ',');
    }
    fflush(stdout);
    free(all);
    return WEFT_OK;
}

static weft_status show(words *w) {
    const vocabulary *v = &w->vocabulary;
    if (w->rank != 0 || (!vectors_path && !near)) return WEFT_OK;
    float      *vectors = malloc((size_t)(v->count * width) * sizeof *vectors);
    weft_status status = vectors ? weft_table_pull(w->rows[INPUT].table, NULL, vectors) : WEFT_E_NO_MEMORY;
    if (status == WEFT_OK && vectors_path) status = write_vectors(w, vectors);
    if (status == WEFT_OK && near) status = print_near(w, vectors);
    free(vectors);
    return status;
}

static weft_status report(words *w, const char *event, int64_t epoch, const double sum[3], double seconds) {
    weft_memory_counts memory;
    weft_server_counts moved;
    weft_memory_read(&memory);
    weft_server_count(w->server, &moved);
    if (w->rank != 0) return WEFT_OK;
    if (!quiet) {
        printf("%s %lld: loss %.5f of %.0f pairs, %.0f words/s\n", event, (long long)epoch, sum[0] / fmax(sum[1], 1), sum[1], sum[2] / seconds);
        fflush(stdout);
    }
    if (!w->metrics) return WEFT_OK;
    weft_metrics_text(w->metrics, "event", event);
    weft_metrics_i64(w->metrics, "epoch", epoch);
    weft_metrics_f64(w->metrics, "train_loss", sum[0] / fmax(sum[1], 1));
    weft_metrics_f64(w->metrics, "pairs", sum[1]);
    weft_metrics_f64(w->metrics, "words_per_second", sum[2] / seconds);
    weft_metrics_i64(w->metrics, "words", w->vocabulary.count);
    weft_metrics_i64(w->metrics, "peak_bytes", (int64_t)memory.peak_bytes);
    weft_metrics_i64(w->metrics, "sent_bytes", (int64_t)moved.sent_bytes);
    weft_metrics_i64(w->metrics, "ranks", w->ranks);
    return weft_metrics_end_line(w->metrics);
}

/* --- checkpoints --- */

static void describe(const words *w, int64_t about[ABOUT]) {
    about[DONE] = w->done;
    about[WORDS] = w->vocabulary.count;
    about[LENGTH] = w->vocabulary.length;
    about[SEED] = seed;
    about[BATCH] = batch;
}

/* Between epochs, when all pushes have come. */
static weft_status save(words *w) {
    int64_t     about[ABOUT];
    weft_status status = WEFT_OK;
    if (!checkpoint_path) return WEFT_OK;
    describe(w, about);
    if (w->rank == 0) status = weft_table_call_rows(w->about, WEFT_SET, (uint64_t[]){0}, 1, about, NULL);
    return status == WEFT_OK ? weft_server_save(w->server, checkpoint_path) : status;
}

static bool is_there(const char *path) {
    FILE *file = fopen(path, "r");
    if (file) fclose(file);
    return file != NULL;
}

static weft_status load(words *w) {
    int64_t     saved[ABOUT] = {0}, here[ABOUT];
    weft_status status = weft_server_load(w->server, checkpoint_path);
    if (status == WEFT_OK) status = weft_table_pull(w->about, NULL, saved);
    if (status != WEFT_OK) return status;
    describe(w, here);
    w->done = here[DONE] = saved[DONE];
    if (memcmp(saved, here, sizeof here) == 0) return WEFT_OK;
    fprintf(stderr, "train_words: %s is of another text, --min-count, --seed or --batch\n", checkpoint_path);
    return WEFT_E_MISMATCH;
}

/* Rank 0 loads for all, and tells them how far it is. */
static weft_status go_on(words *w) {
    weft_status status = w->rank == 0 && resume && is_there(checkpoint_path) ? load(w) : WEFT_OK;
    double      word[2] = {(double)w->done, status != WEFT_OK};
    weft_status told = weft_group_allreduce(w->all, word, word, 2, WEFT_F64, WEFT_COMBINE_MAX);
    w->done = (int64_t)word[0];
    if (status != WEFT_OK) return status;
    return told == WEFT_OK && word[1] > 0 ? WEFT_E_PEER : told;
}

static weft_status train(words *w) {
    weft_status status = go_on(w);
    for (int64_t epoch = w->done; epoch < epochs && status == WEFT_OK; epoch++) {
        struct timespec begin, now;
        double          sum[3];
        timespec_get(&begin, TIME_UTC);
        status = pass(w, epoch, sum);
        timespec_get(&now, TIME_UTC);
        double seconds = (double)(now.tv_sec - begin.tv_sec) + 1e-9 * (double)(now.tv_nsec - begin.tv_nsec);
        w->done = epoch + 1;
        if (status == WEFT_OK) status = report(w, epoch + 1 == epochs ? "end" : "epoch", epoch + 1, sum, seconds);
        if (status == WEFT_OK) status = save(w);
    }
    return status == WEFT_OK ? show(w) : status;
}

/* --- starting --- */

/* Negative samples are drawn in proportion to count^0.75. */
static bool fill_noise(words *w) {
    int64_t count = w->vocabulary.count;
    double *weights = malloc((size_t)count * sizeof *weights), sum = 0;
    bool    good = weights && alias_reserve(&w->noise, count);
    for (int64_t i = 0; good && i < count; i++) sum += weights[i] = pow((double)w->vocabulary.words[i].count, 0.75);
    if (good) alias_fill(&w->noise, weights, count, sum);
    free(weights);
    return good;
}

static weft_status open_table(words *w, int t, int32_t stale) {
    touched           *rows = &w->rows[t];
    int64_t            most = t == INPUT ? batch : batch * 2 * window * (1 + negatives); /* rows of a batch */
    size_t             count = (size_t)w->vocabulary.count, room = (size_t)(most < w->vocabulary.count ? most : w->vocabulary.count);
    void              *memory[2] = {NULL, NULL};
    weft_table_options options = {.name = t == INPUT ? "input" : "output", .rows = w->vocabulary.count, .width = width, .staleness = stale,
                                  .seed = (uint64_t)seed};
    if (t == INPUT) {
        options.start = WEFT_START_UNIFORM;
        options.low = -0.5 / (double)width;
        options.high = 0.5 / (double)width;
    }
    weft_status status = weft_table_create(w->server, &options, &rows->table);
    for (int i = 0; i < 2 && status == WEFT_OK; i++) status = weft_server_alloc(w->server, room * (size_t)width * sizeof(float), &memory[i]);
    rows->before = memory[0];
    rows->now = memory[1];
    rows->place = malloc(count * sizeof *rows->place);
    rows->list = malloc(count * sizeof *rows->list);
    return status == WEFT_OK && (!rows->place || !rows->list) ? WEFT_E_NO_MEMORY : status;
}

static weft_status start(words *w) {
    int64_t     most = batch * 2 * window;
    char       *end = NULL;
    int32_t     stale = WEFT_TABLE_ASYNCHRONOUS;
    weft_status status = weft_world_create(NULL, &w->world);
    if (status != WEFT_OK) return status;
    w->rank = weft_world_rank(w->world);
    w->ranks = weft_world_size(w->world);
    if (strcmp(staleness, "async") != 0) stale = (int32_t)strtol(staleness, &end, 10);
    if (end && (end == staleness || *end || stale < 0)) {
        fprintf(stderr, "train_words: --staleness %s: it is 0, 1, ... or async\n", staleness);
        return WEFT_E_INVALID;
    }
    if ((status = vocabulary_read(text_path, least_count, &w->vocabulary)) != WEFT_OK) return status;
    w->pairs = malloc((size_t)most * sizeof *w->pairs);
    w->others = malloc((size_t)(most * negatives + 1) * sizeof *w->others);
    if (!w->pairs || !w->others || !fill_noise(w)) return WEFT_E_NO_MEMORY;
    if ((status = weft_group_create(w->world, NULL, &w->all)) != WEFT_OK) return status;
    if ((status = weft_server_create(w->world, &(weft_server_options){.servers = (int32_t)servers}, &w->server)) != WEFT_OK) return status;
    for (int t = 0; t < TABLES; t++)
        if ((status = open_table(w, t, stale)) != WEFT_OK) return status;
    if (checkpoint_path) {
        weft_table_options about = {.name = "about", .rows = 1, .width = ABOUT, .dtype = WEFT_I64, .staleness = WEFT_TABLE_ASYNCHRONOUS};
        if ((status = weft_table_create(w->server, &about, &w->about)) != WEFT_OK) return status;
    }
    if (w->rank == 0 && !quiet)
        printf("%lld words, %lld of them different and at least %lld times there, on %d ranks\n", (long long)w->vocabulary.total,
               (long long)w->vocabulary.count, (long long)least_count, (int)w->ranks);
    return log_path && w->rank == 0 ? weft_metrics_open(log_path, resume, &w->metrics) : WEFT_OK;
}

static void stop(words *w) {
    weft_metrics_release(w->metrics);
    for (int t = 0; t < TABLES; t++) {
        weft_table_release(w->rows[t].table);
        free(w->rows[t].place);
        free(w->rows[t].list);
    }
    weft_table_release(w->about);
    weft_server_release(w->server);
    weft_group_release(w->all);
    weft_world_release(w->world);
    vocabulary_release(&w->vocabulary);
    alias_release(&w->noise);
    free(w->pairs);
    free(w->others);
}

int main(int argc, char **argv) {
    const cli_option options[] = {
        {"text", CLI_TEXT, &text_path, "file to learn from; words are runs of letters, digits and apostrophes"},
        {"epochs", CLI_INTEGER, &epochs, "passes over the text"},
        {"width", CLI_INTEGER, &width, "elements of a vector"},
        {"window", CLI_INTEGER, &window, "words on either side, at most"},
        {"negatives", CLI_INTEGER, &negatives, "words that are not there, for each that is"},
        {"rate", CLI_REAL, &rate, "learning rate, which falls to none"},
        {"sample", CLI_REAL, &sample, "share beyond which words are left out at random; 0: none are"},
        {"min-count", CLI_INTEGER, &least_count, "words that are rarer are left out"},
        {"batch", CLI_INTEGER, &batch, "words of text of a rank's push"},
        {"staleness", CLI_TEXT, &staleness, "rounds that ranks may be apart: 0, 1, ..., async"},
        {"servers", CLI_INTEGER, &servers, "ranks that keep the vectors; 0: all"},
        {"seed", CLI_INTEGER, &seed, "of vectors and samples"},
        {"vectors", CLI_TEXT, &vectors_path, "text file of the vectors, as word2vec writes it"},
        {"near", CLI_TEXT, &near, "words whose neighbours are printed, as king,queen"},
        {"top", CLI_INTEGER, &top, "neighbours of each"},
        {"checkpoint", CLI_TEXT, &checkpoint_path, "file of what has been learnt, after each pass; may be read by another number of ranks"},
        {"resume", CLI_FLAG, &resume, "go on from the checkpoint, where there is one"},
        {"log", CLI_TEXT, &log_path, "metrics as JSON lines"},
        {"quiet", CLI_FLAG, &quiet, "no progress"},
    };
    int end = cli_parse(argc, argv, "Trains vectors of words (skip-gram with negative sampling) on a parameter server.", options,
                        sizeof options / sizeof *options);
    if (end >= 0) return end;
    if (!text_path || epochs < 1 || batch < 1 || width < 1 || window < 1 || negatives < 0 || least_count < 1 || batch > 1000000 || window > 100 ||
        negatives > 1000) {
        fprintf(stderr, "train_words: --text names a file; --epochs, --width, --window (to 100), --batch (to 1000000) and --min-count are at least 1, "
                        "--negatives (to 1000) at least 0\n");
        return 2;
    }
    if (resume && !checkpoint_path) {
        fprintf(stderr, "train_words: --resume goes on from a --checkpoint\n");
        return 2;
    }
    words       w = {.rank = 0};
    weft_status status = start(&w);
    if (status == WEFT_OK) status = train(&w);
    if (status != WEFT_OK) fprintf(stderr, "train_words: %s: %s\n", weft_status_name(status), weft_error_message());
    stop(&w);
    return status == WEFT_OK ? 0 : 1;
}
