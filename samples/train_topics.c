/* Topics of documents: latent Dirichlet allocation (Blei et al. 2003) as LightLDA does it (Yuan et al. 2015), for models that are larger than memory. The
 * counts of words by topics are a hybrid table of a parameter server, with a row a word and one of sums. Each rank has every n-th document; an
 * iteration goes through blocks of them, and pulls the rows of a block's words slice by slice, under a budget of bytes, the next one while words of this one
 * get new topics (topics.h). What changes is added up by threads and pushed, a slice at a time. Run it alone, or with
 *
 *     train_topics --make corpus --documents 2000 --topics 20
 *     weftrun -n 4 train_topics --data corpus --topics 20 --model topics.txt */
#include <time.h>

#include "cli.h"
#include "topics.h"

static const char    *data_path, *names_path, *model_path, *log_path, *make_path, *staleness = "async", *sampler = "mh";
static int64_t        iterations = 100, budget, every = 1, save_every, servers, top = 10, documents = 1000, vocabulary = 1000, length = 100;
static topics_options how = {.topics = 20, .blocks = 1, .threads = 1, .held_out = 10, .seed = 1, .alpha = 0.1, .beta = 0.01};
static bool           docword, one_based, resume, quiet;

/* What the checkpoint says of itself, as a row of a table. */
enum { ITERATION, WORDS, DOCUMENTS, MARK, HELD_OUT, ABOUT };

/* What an iteration, or a measurement, did. */
enum { SUM_VISITED, SUM_LEARNT, SUM_LEARNT_WORDS, SUM_HELD, SUM_HELD_WORDS, SUM_PULLED, SUM_PUSHED, SUM_WAIT, SUM_TOTAL, SUMS };
enum { MOST_SECONDS, MOST_PEAK, MOST_ROWS, MOST_SLICES, MOST_STALE, MOST_HELD, MOSTS };

typedef struct run {
    weft_world   *world;
    weft_group   *all;
    weft_server  *server;
    weft_table   *counts; /* [words + 1, topics]; the last row is the sum of the others */
    weft_table   *pieces; /* [pieces of documents, PIECE] topics of their words, when they are saved */
    weft_table   *about;  /* [1, ABOUT] */
    weft_metrics *metrics;
    corpus        corpus;
    topics        topics;
    char         *counts_path; /* of the checkpoint */
    int32_t       rank, ranks, stale;
    int64_t       done;   /* iterations */
    double        sums[SUMS], mosts[MOSTS];
    /* the words that each topic has most of, on rank 0 */
    int32_t      *best, *best_count; /* [topics, top]; -1: none */
    int64_t      *column;            /* [topics] sums over the words */
} run;

static double seconds_since(const struct timespec *begin) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)(now.tv_sec - begin->tv_sec) + 1e-9 * (double)(now.tv_nsec - begin->tv_nsec);
}

/* --- an iteration --- */

static weft_status pull_totals(run *r) {
    uint64_t    last = (uint64_t)r->topics.vocabulary;
    weft_status status = weft_table_call_rows(r->counts, WEFT_PULL, &last, 1, NULL, r->topics.total);
    r->sums[SUM_PULLED] += (double)how.topics * sizeof(int32_t);
    return status;
}

/* What became of the sums of topics, and all that changed of the slice's rows. */
static weft_status push_changes(run *r) {
    topics *t = &r->topics;
    for (int64_t k = 0; k < how.topics; k++) {
        int32_t     more = t->total[k] - t->before[k];
        weft_status status = more ? weft_updates_add_entry(t->updates, (uint64_t)t->vocabulary, k, &more) : WEFT_OK;
        if (status != WEFT_OK) return status;
    }
    return weft_updates_flush(t->updates);
}

/* Sums of topics are as old as the block's rows may be without staleness, and as new as can be with it. What is drawn from is made of them
 * once for each time: so what a slice learns does not depend on where the last one ended. */
static weft_status visit(void *context, const weft_block_slice *slice) {
    run        *r = context;
    topics     *t = &r->topics;
    bool        asks = slice->slice == 0 || (r->stale != 0 && !t->measuring);
    weft_status status = asks ? pull_totals(r) : WEFT_OK;
    if (status != WEFT_OK) return status;
    if (asks || how.gibbs) topics_share_out(t); /* plain Gibbs sampling has no proposals, and takes the sums as they are */
    status = topics_visit(t, t->measuring ? &t->measured : &t->blocks[slice->block], slice);
    return status == WEFT_OK && !t->measuring ? push_changes(r) : status;
}

/* Goes through blocks of documents, with a clock after each where they are sampled. */
static weft_status pass(run *r, bool measuring) {
    topics             *t = &r->topics;
    weft_sliced_table   counts = {.table = r->counts, .read_only = true}; /* what is pushed, `visit` pushes */
    weft_slices_options options = {.tables = &counts, .table_count = 1, .budget_bytes = (size_t)budget, .pipeline = true, .no_clock = measuring};
    weft_slices_report  did = {0};
    weft_server_counts  before, after;
    int64_t             count = measuring ? 1 : how.blocks;
    struct timespec     begin;
    weft_block         *blocks = calloc((size_t)count, sizeof *blocks);
    if (!blocks) return WEFT_E_NO_MEMORY;
    for (int64_t i = 0; i < count; i++) {
        const topics_block *block = measuring ? &t->measured : &t->blocks[i];
        blocks[i] = (weft_block){.rows = block->rows, .row_count = block->row_count};
    }
    for (int64_t i = 0; i < how.threads; i++) memset(t->hands[i].sums, 0, sizeof t->hands[i].sums);
    t->measuring = measuring;
    timespec_get(&begin, TIME_UTC);
    weft_server_count(r->server, &before);
    weft_status status = weft_slices_run(&options, blocks, count, visit, r, &did);
    weft_server_count(r->server, &after);
    free(blocks);
    r->sums[SUM_PULLED] += (double)did.pulled_bytes;
    if (measuring) {
        for (int64_t i = 0; i < how.threads; i++)
            for (int k = 0; k < 4; k++) r->sums[SUM_LEARNT + k] += t->hands[i].sums[k];
        return status;
    }
    r->sums[SUM_VISITED] = (double)t->words;
    r->sums[SUM_PUSHED] = (double)(after.moved_value_bytes - before.moved_value_bytes) - r->sums[SUM_PULLED];
    r->sums[SUM_WAIT] = (double)did.wait_ns;
    r->sums[SUM_TOTAL] = (double)did.total_ns;
    r->mosts[MOST_SECONDS] = seconds_since(&begin);
    r->mosts[MOST_PEAK] = (double)did.peak_bytes;
    r->mosts[MOST_ROWS] = (double)did.slice_rows;
    r->mosts[MOST_SLICES] = (double)did.slices;
    r->mosts[MOST_STALE] = did.staleness_added;
    r->mosts[MOST_HELD] = (double)after.held_bytes;
    return status;
}

static weft_status report(run *r, bool measured, bool last) {
    weft_memory_counts memory;
    weft_memory_read(&memory);
    weft_status status = weft_group_allreduce(r->all, r->sums, r->sums, SUMS, WEFT_F64, WEFT_COMBINE_SUM);
    if (status == WEFT_OK) status = weft_group_allreduce(r->all, r->mosts, r->mosts, MOSTS, WEFT_F64, WEFT_COMBINE_MAX);
    if (status != WEFT_OK || r->rank != 0) return status;
    const double *s = r->sums, *m = r->mosts;
    double        likelihood = s[SUM_LEARNT] / s[SUM_LEARNT_WORDS], perplexity = exp(-s[SUM_HELD] / s[SUM_HELD_WORDS]); /* NaN: of no words */
    double        speed = s[SUM_VISITED] / m[MOST_SECONDS], waits = s[SUM_WAIT] / s[SUM_TOTAL];
    if (!quiet) {
        printf("iteration %lld: ", (long long)r->done);
        if (measured && s[SUM_LEARNT_WORDS] > 0) printf("log likelihood %.5f a word, ", likelihood);
        if (measured && s[SUM_HELD_WORDS] > 0) printf("held-out perplexity %.2f, ", perplexity);
        printf("%.0f words/s, pulled %.2f MB, pushed %.2f MB, slices of %.2f MB, waits %.1f %%, staleness + %d\n", speed, s[SUM_PULLED] / 1e6,
               s[SUM_PUSHED] / 1e6, m[MOST_PEAK] / 1e6, 100 * waits, (int)m[MOST_STALE]);
        fflush(stdout);
    }
    if (!r->metrics) return WEFT_OK;
    weft_metrics_text(r->metrics, "event", last ? "end" : "iteration");
    weft_metrics_i64(r->metrics, "iteration", r->done);
    if (measured) weft_metrics_f64(r->metrics, "log_likelihood", likelihood);
    if (measured) weft_metrics_f64(r->metrics, "perplexity", perplexity);
    weft_metrics_i64(r->metrics, "words", (int64_t)s[SUM_VISITED]);
    weft_metrics_f64(r->metrics, "words_per_second", speed);
    weft_metrics_i64(r->metrics, "pulled_bytes", (int64_t)s[SUM_PULLED]);
    weft_metrics_i64(r->metrics, "pushed_bytes", (int64_t)s[SUM_PUSHED]);
    weft_metrics_i64(r->metrics, "slices", (int64_t)m[MOST_SLICES]);
    weft_metrics_i64(r->metrics, "slice_rows", (int64_t)m[MOST_ROWS]);
    weft_metrics_i64(r->metrics, "slice_bytes", (int64_t)m[MOST_PEAK]);
    weft_metrics_i64(r->metrics, "staleness_added", (int64_t)m[MOST_STALE]);
    weft_metrics_f64(r->metrics, "waiting", waits);
    weft_metrics_i64(r->metrics, "held_bytes", (int64_t)m[MOST_HELD]);
    weft_metrics_i64(r->metrics, "peak_bytes", (int64_t)memory.peak_bytes);
    weft_metrics_i64(r->metrics, "ranks", r->ranks);
    return weft_metrics_end_line(r->metrics);
}

/* --- saving, and going on --- */

/* The topics of this rank's words, a row for each piece of a document. */
static weft_status move_pieces(run *r, weft_request_kind kind) {
    enum { CHUNK = 1024 };
    topics     *t = &r->topics;
    uint64_t    rows[CHUNK];
    int32_t    *values = malloc(sizeof(int32_t[CHUNK][PIECE])), *places[CHUNK], lengths[CHUNK];
    int64_t     count = 0;
    weft_status status = values ? WEFT_OK : WEFT_E_NO_MEMORY;
    for (int64_t i = 0; i <= t->document_count && status == WEFT_OK; i++) {
        int64_t words = i < t->document_count ? t->documents[i].words : 0;
        for (int64_t at = 0; (at < words || (i == t->document_count && at == 0)) && status == WEFT_OK; at += PIECE) {
            if (count == CHUNK || (i == t->document_count && count)) { /* what is full, and what is left, travels */
                for (int64_t k = 0; k < count && kind == WEFT_SET; k++) {
                    memset(values + k * PIECE, 0, PIECE * sizeof *values);
                    memcpy(values + k * PIECE, places[k], (size_t)lengths[k] * sizeof *values);
                }
                status = weft_table_call_rows(r->pieces, kind, rows, count, kind == WEFT_SET ? values : NULL, kind == WEFT_SET ? NULL : values);
                for (int64_t k = 0; k < count && kind == WEFT_PULL && status == WEFT_OK; k++)
                    memcpy(places[k], values + k * PIECE, (size_t)lengths[k] * sizeof *values);
                count = 0;
            }
            if (i == t->document_count) break;
            rows[count] = (uint64_t)(r->corpus.own[i].piece + at / PIECE);
            lengths[count] = (int32_t)(words - at < PIECE ? words - at : PIECE);
            places[count++] = t->topic + t->documents[i].first + at;
        }
    }
    free(values);
    return status;
}

static weft_status save(run *r) {
    int64_t     about[ABOUT] = {r->done, r->corpus.words, r->corpus.documents, (int64_t)r->corpus.mark, how.held_out};
    weft_status status = move_pieces(r, WEFT_SET);
    if (status == WEFT_OK && r->rank == 0) status = weft_table_call_rows(r->about, WEFT_SET, (uint64_t[]){0}, 1, about, NULL);
    return status == WEFT_OK ? weft_server_save(r->server, r->counts_path) : status;
}

/* Of the words' topics, as they are in hand: counts of documents, and of topics where they are valid. */
static weft_status check_topics(const run *r) {
    for (int64_t i = 0; i < r->topics.document_count; i++) {
        const topics_document *d = &r->topics.documents[i];
        for (uint32_t k = 0; k < d->words; k++) {
            int32_t topic = r->topics.topic[d->first + k];
            if (k < d->counted ? topic >= 0 && topic < how.topics : topic == -1) continue;
            fprintf(stderr, "train_topics: %s has topic %d for word %u of document %lld\n", r->counts_path, (int)topic, (unsigned)k,
                    (long long)r->corpus.own[i].number);
            return WEFT_E_CORRUPT;
        }
    }
    return WEFT_OK;
}

static weft_status load(run *r) {
    int64_t     about[ABOUT] = {0}, mine[ABOUT] = {0, r->corpus.words, r->corpus.documents, (int64_t)r->corpus.mark, how.held_out};
    weft_status status = r->rank == 0 ? weft_server_load(r->server, r->counts_path) : WEFT_OK, worst = WEFT_OK;
    double      bad = status != WEFT_OK;
    worst = weft_group_allreduce(r->all, &bad, &bad, 1, WEFT_F64, WEFT_COMBINE_SUM);
    if (status != WEFT_OK || worst != WEFT_OK) return status != WEFT_OK ? status : worst;
    if (bad > 0) return WEFT_E_ABORTED; /* rank 0 says what was wrong */
    status = weft_table_call_rows(r->about, WEFT_PULL, (uint64_t[]){0}, 1, NULL, about);
    for (int i = WORDS; i < ABOUT && status == WEFT_OK; i++) {
        static const char *const names[] = {"", "words", "documents", "the mark of the corpus", "--held-out"};
        if (about[i] == mine[i]) continue;
        fprintf(stderr, "train_topics: %s is of another run: %s %lld there, %lld here\n", r->counts_path, names[i], (long long)about[i],
                (long long)mine[i]);
        return WEFT_E_MISMATCH;
    }
    if (status == WEFT_OK) status = move_pieces(r, WEFT_PULL);
    if (status == WEFT_OK) status = check_topics(r);
    r->done = about[ITERATION];
    return status;
}

/* --- what has been learnt --- */

/* Keeps each topic's most frequent words, the most frequent first. */
static weft_status look_at_rows(void *context, const weft_block_slice *slice) {
    run *r = context;
    for (int64_t i = 0; i < slice->row_count; i++) {
        const int32_t *row = (const int32_t *)slice->values[0] + i * how.topics;
        for (int64_t k = 0; k < how.topics; k++) {
            int32_t *best = r->best + k * top, *count = r->best_count + k * top;
            int64_t  at = top;
            r->column[k] += row[k];
            while (at > 0 && row[k] > 0 && (best[at - 1] < 0 || count[at - 1] < row[k])) at--;
            if (at == top || row[k] <= 0) continue;
            memmove(best + at + 1, best + at, (size_t)(top - at - 1) * sizeof *best);
            memmove(count + at + 1, count + at, (size_t)(top - at - 1) * sizeof *count);
            best[at] = (int32_t)slice->rows[i];
            count[at] = row[k];
        }
    }
    return WEFT_OK;
}

/* A line a topic: its number, its words, and "word:count" of those it has most of. */
static weft_status write_model(const run *r) {
    FILE *file = fopen(model_path, "w");
    if (!file) {
        fprintf(stderr, "train_topics: cannot write %s\n", model_path);
        return WEFT_E_IO;
    }
    for (int64_t k = 0; k < how.topics; k++) {
        fprintf(file, "%lld %lld", (long long)k, (long long)r->column[k]);
        for (int64_t i = k * top; i < (k + 1) * top && r->best[i] >= 0; i++) {
            if (r->corpus.names) fprintf(file, " %s:%d", r->corpus.names[r->best[i]], (int)r->best_count[i]);
            else fprintf(file, " %lld:%d", (long long)r->best[i] + one_based, (int)r->best_count[i]);
        }
        fputc('\n', file);
    }
    bool bad = ferror(file) != 0;
    return fclose(file) != 0 || bad ? WEFT_E_IO : WEFT_OK;
}

/* Rank 0 goes through the table, also looking whether it adds up. */
static weft_status show(run *r) {
    topics             *t = &r->topics;
    weft_sliced_table   counts = {.table = r->counts, .read_only = true};
    weft_slices_options options = {.tables = &counts, .table_count = 1, .budget_bytes = (size_t)budget, .pipeline = true, .no_clock = true};
    double              words = (double)t->words, sum = 0;
    weft_status         status = weft_group_allreduce(r->all, &words, &words, 1, WEFT_F64, WEFT_COMBINE_SUM);
    if (status != WEFT_OK || r->rank != 0) return status;
    size_t    most = (size_t)(how.topics * top);
    uint64_t *rows = malloc((size_t)t->vocabulary * sizeof *rows);
    r->best = malloc(most * sizeof *r->best);
    r->best_count = calloc(most, sizeof *r->best_count);
    r->column = calloc((size_t)how.topics, sizeof *r->column);
    if (!rows || !r->best || !r->best_count || !r->column) status = WEFT_E_NO_MEMORY;
    for (size_t i = 0; status == WEFT_OK && i < most; i++) r->best[i] = -1;
    for (int64_t i = 0; status == WEFT_OK && i < t->vocabulary; i++) rows[i] = (uint64_t)i;
    weft_block block = {.rows = rows, .row_count = t->vocabulary};
    if (status == WEFT_OK) status = weft_slices_run(&options, &block, 1, look_at_rows, r, NULL);
    if (status == WEFT_OK) status = pull_totals(r);
    for (int64_t k = 0; status == WEFT_OK && k < how.topics; k++) {
        sum += (double)r->column[k];
        if (r->column[k] == t->total[k]) continue;
        fprintf(stderr, "train_topics: topic %lld has %d words, and %lld by word\n", (long long)k, (int)t->total[k], (long long)r->column[k]);
        status = WEFT_E_INTERNAL;
    }
    if (status == WEFT_OK && sum != words) {
        fprintf(stderr, "train_topics: %.0f words have topics, of %.0f\n", sum, words);
        status = WEFT_E_INTERNAL;
    }
    if (status == WEFT_OK && model_path) status = write_model(r);
    free(rows);
    return status;
}

/* --- all of it --- */

static weft_status train(run *r) {
    weft_status status = WEFT_OK;
    for (bool first = true; r->done < iterations && status == WEFT_OK; first = false) {
        bool last = ++r->done == iterations, measures = last || first || (every && r->done % every == 0);
        memset(r->sums, 0, sizeof r->sums);
        memset(r->mosts, 0, sizeof r->mosts);
        r->topics.iteration = r->done;
        status = pass(r, false);
        /* Whoever gets here has waited for its pushes: afterwards all have come. */
        if (status == WEFT_OK) status = weft_group_barrier(r->all);
        if (status == WEFT_OK && measures) status = pass(r, true);
        if (status == WEFT_OK) status = report(r, measures, last);
        if (status == WEFT_OK && model_path && (last || (save_every && r->done % save_every == 0))) status = save(r);
    }
    return status == WEFT_OK ? show(r) : status;
}

/* The first topics: rows of a block's words are pushed once for each of its threads' documents. */
static weft_status push_first(run *r) {
    enum { FLUSH = 1 << 16 };
    topics     *t = &r->topics;
    weft_status status = WEFT_OK;
    int64_t     waiting = 0;
    int32_t    *count = t->hands[0].now;
    memset(t->total, 0, (size_t)how.topics * sizeof *t->total);
    for (int64_t b = 0; b < how.blocks * how.threads && status == WEFT_OK; b++) {
        const topics_block *block = &t->blocks[b / how.threads];
        const topics_list  *list = &block->lists[b % how.threads];
        for (int64_t row = 0; row < block->row_count && status == WEFT_OK; row++) {
            memset(count, 0, (size_t)how.topics * sizeof *count);
            for (uint32_t i = list->start[row]; i < list->start[row + 1]; i++)
                if (!t->documents[list->tokens[i].document].held) count[t->topic[list->tokens[i].place]]++;
            for (int64_t k = 0; k < how.topics && status == WEFT_OK; k++) {
                if (!count[k]) continue;
                status = weft_updates_add_entry(t->updates, block->rows[row], k, &count[k]);
                t->total[k] += count[k];
                waiting++;
            }
            if (status == WEFT_OK && waiting >= FLUSH) status = weft_updates_flush(t->updates), waiting = 0;
        }
    }
    memset(t->before, 0, (size_t)how.topics * sizeof *t->before);
    if (status == WEFT_OK) status = push_changes(r);
    return status == WEFT_OK && r->stale >= 0 ? weft_table_clock(r->counts) : status;
}

static bool is_there(const char *path) {
    FILE *file = fopen(path, "r");
    if (file) fclose(file);
    return file != NULL;
}

static weft_status begin(run *r) {
    topics     *t = &r->topics;
    double      there = r->rank == 0 && resume && is_there(r->counts_path);
    weft_status status = weft_updates_create(r->counts, &t->updates);
    if (status == WEFT_OK) status = weft_group_allreduce(r->all, &there, &there, 1, WEFT_F64, WEFT_COMBINE_MAX);
    if (status != WEFT_OK) return status;
    status = there > 0 ? load(r) : push_first(r);
    if (status != WEFT_OK) return status;
    topics_count_documents(t);
    if (r->rank == 0 && !quiet)
        printf("%lld words in %lld documents, %lld of them different, %lld topics, on %d ranks%s\n", (long long)r->corpus.words,
               (long long)r->corpus.documents, (long long)r->corpus.vocabulary, (long long)how.topics, (int)r->ranks, there > 0 ? "; going on" : "");
    return weft_group_barrier(r->all);
}

static weft_status open_tables(run *r) {
    weft_table_options counts = {.name = "counts", .sparse = true, .rows = r->corpus.vocabulary + 1, .width = how.topics, .dtype = WEFT_I32, .staleness = r->stale,
                                 .hybrid = true}; /* dealt out by a hash: all ranks go through words in one order, and would all be at one range */
    weft_table_options pieces = {.name = "topics", .rows = r->corpus.pieces, .width = PIECE, .dtype = WEFT_I32, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    weft_table_options about = {.name = "about", .rows = 1, .width = ABOUT, .dtype = WEFT_I64, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    weft_status        status = weft_table_create(r->server, &counts, &r->counts);
    if (status == WEFT_OK && model_path) status = weft_table_create(r->server, &pieces, &r->pieces);
    if (status == WEFT_OK && model_path) status = weft_table_create(r->server, &about, &r->about);
    return status;
}

/* Whether the model can be written is better known before the work than after it. */
static weft_status try_model(void) {
    FILE *file = fopen(model_path, "a");
    if (!file) fprintf(stderr, "train_topics: cannot write %s\n", model_path);
    return file && fclose(file) == 0 ? WEFT_OK : WEFT_E_IO;
}

static weft_status start(run *r) {
    char         *end = NULL;
    corpus_source source = {.path = data_path, .names = names_path, .docword = docword, .one_based = one_based};
    weft_status   status = weft_world_create(NULL, &r->world);
    if (status != WEFT_OK) return status;
    source.rank = r->rank = weft_world_rank(r->world);
    source.ranks = r->ranks = weft_world_size(r->world);
    r->stale = WEFT_TABLE_ASYNCHRONOUS;
    if (strcmp(staleness, "async") != 0) r->stale = (int32_t)strtol(staleness, &end, 10);
    if (end && (end == staleness || *end || r->stale < 0)) {
        fprintf(stderr, "train_topics: --staleness %s: it is 0, 1, ... or async\n", staleness);
        return WEFT_E_INVALID;
    }
    if ((status = corpus_read(&source, &r->corpus)) != WEFT_OK) return status;
    if (model_path) {
        size_t bytes = strlen(model_path) + sizeof ".counts";
        if (!(r->counts_path = malloc(bytes))) return WEFT_E_NO_MEMORY;
        snprintf(r->counts_path, bytes, "%s.counts", model_path);
    }
    if (!topics_create(&how, &r->corpus, &r->topics)) return WEFT_E_NO_MEMORY;
    if ((status = weft_group_create(r->world, NULL, &r->all)) != WEFT_OK) return status;
    if ((status = weft_server_create(r->world, &(weft_server_options){.servers = (int32_t)servers}, &r->server)) != WEFT_OK) return status;
    if ((status = open_tables(r)) != WEFT_OK) return status;
    if (model_path && r->rank == 0 && (status = try_model()) != WEFT_OK) return status;
    if (log_path && r->rank == 0 && (status = weft_metrics_open(log_path, resume, &r->metrics)) != WEFT_OK) return status;
    return begin(r);
}

static void stop(run *r) {
    weft_metrics_release(r->metrics);
    weft_updates_release(r->topics.updates);
    weft_table_release(r->counts);
    weft_table_release(r->pieces);
    weft_table_release(r->about);
    weft_server_release(r->server);
    weft_group_release(r->all);
    weft_world_release(r->world);
    topics_release(&r->topics);
    corpus_release(&r->corpus);
    free(r->counts_path);
    free(r->best);
    free(r->best_count);
    free(r->column);
}

/* A corpus at --make, and the topics that it was drawn from beside it. */
static int make(void) {
    corpus_model model = {documents, vocabulary, how.topics, length, how.alpha, how.beta, how.seed};
    char         truth_path[4096];
    if (snprintf(truth_path, sizeof truth_path, "%s.truth", make_path) >= (int)sizeof truth_path) return 1;
    FILE *file = fopen(make_path, "w"), *truth = file ? fopen(truth_path, "w") : NULL;
    bool  good = file && truth && corpus_write(&model, file, truth);
    if (file) good = !ferror(file) && fclose(file) == 0 && good;
    if (truth) good = !ferror(truth) && fclose(truth) == 0 && good;
    if (!good) fprintf(stderr, "train_topics: cannot write %s and %s, or there is no memory\n", make_path, truth_path);
    return good ? 0 : 1;
}

static bool check_options(void) {
    const struct {
        bool        good;
        const char *what;
    } rules[] = {{data_path || make_path, "--data names a file to learn from, or --make one to be made"},
                 {how.topics >= 2 && how.topics <= 1 << 24, "--topics: there are at least 2, and at most 2^24"},
                 {how.alpha > 0 && how.beta > 0 && isfinite(how.alpha) && isfinite(how.beta), "--alpha and --beta are above 0"},
                 {strcmp(sampler, "mh") == 0 || strcmp(sampler, "cycles") == 0 || strcmp(sampler, "gibbs") == 0, "--sampler is mh, cycles or gibbs"},
                 {iterations >= 1 && how.blocks >= 1 && top >= 1, "--iterations, --blocks and --top are at least 1"},
                 {how.threads >= 1 && how.threads <= 1024 && how.blocks <= 1 << 20, "--threads are 1 to 1024, --blocks to 2^20"},
                 {budget >= 0 && every >= 0 && save_every >= 0 && how.held_out >= 0 && how.steps >= 0, "--budget, --every, --save-every, --held-out and --steps are not below 0"},
                 {!resume || model_path, "--resume goes on from the checkpoint beside --model"},
                 {documents >= 1 && vocabulary >= 2 && length >= 1 && vocabulary <= INT32_MAX, "--documents and --length are at least 1, --words 2"}};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if (rules[i].good) continue;
        fprintf(stderr, "train_topics: %s\n", rules[i].what);
        return false;
    }
    how.gibbs = strcmp(sampler, "gibbs") == 0;
    how.cycles = strcmp(sampler, "cycles") == 0;
    return true;
}

int main(int argc, char **argv) {
    const cli_option options[] = {
        {"data", CLI_TEXT, &data_path, "documents, one a line: word:count ..., words being numbers from 0"},
        {"one-based", CLI_FLAG, &one_based, "the first word is 1"},
        {"docword", CLI_FLAG, &docword, "the file is a docword file of the UCI repository"},
        {"vocabulary", CLI_TEXT, &names_path, "names of the words, one a line"},
        {"topics", CLI_INTEGER, &how.topics, "topics"},
        {"alpha", CLI_REAL, &how.alpha, "of the Dirichlet prior of topics in a document"},
        {"beta", CLI_REAL, &how.beta, "of the Dirichlet prior of words in a topic"},
        {"iterations", CLI_INTEGER, &iterations, "passes over all words"},
        {"steps", CLI_INTEGER, &how.steps, "proposals each time a word is visited (0: one); of cycles so many by the word and by the document each (0: two)"},
        {"sampler", CLI_TEXT, &sampler, "mh (in the time of a document's topics; of documents of thousands of words as cycles), cycles (LightLDA's; in constant time), or gibbs (plain; in the time of all topics)"},
        {"budget", CLI_INTEGER, &budget, "bytes that a rank has for rows of words; 0: no bound"},
        {"blocks", CLI_INTEGER, &how.blocks, "parts of a rank's documents, after each of which its clock ends"},
        {"threads", CLI_INTEGER, &how.threads, "threads of a rank"},
        {"staleness", CLI_TEXT, &staleness, "blocks that ranks may be apart: 0, 1, ..., async"},
        {"servers", CLI_INTEGER, &servers, "ranks that keep the counts; 0: all"},
        {"held-out", CLI_INTEGER, &how.held_out, "of so many documents one is held out; 0: none"},
        {"every", CLI_INTEGER, &every, "iterations between measurements; 0: only the first and the last"},
        {"seed", CLI_INTEGER, &how.seed, "of topics, and of what is made"},
        {"model", CLI_TEXT, &model_path, "text file of each topic's words; FILE.counts is a checkpoint"},
        {"top", CLI_INTEGER, &top, "words of each topic in it"},
        {"save-every", CLI_INTEGER, &save_every, "iterations between checkpoints; 0: only at the end"},
        {"resume", CLI_FLAG, &resume, "go on from the checkpoint, where there is one"},
        {"log", CLI_TEXT, &log_path, "metrics as JSON lines"},
        {"quiet", CLI_FLAG, &quiet, "no progress"},
        {"make", CLI_TEXT, &make_path, "only make a corpus, by drawing from a model; FILE.truth has its topics"},
        {"documents", CLI_INTEGER, &documents, "documents that are made"},
        {"words", CLI_INTEGER, &vocabulary, "different words of what is made"},
        {"length", CLI_INTEGER, &length, "words of a document that is made, on average"},
    };
    int end = cli_parse(argc, argv, "Finds the topics of documents (latent Dirichlet allocation) on a parameter server.", options,
                        sizeof options / sizeof *options);
    if (end >= 0) return end;
    if (!check_options()) return 2;
    if (make_path) return make();
    run         r = {.rank = 0};
    weft_status status = start(&r);
    if (status == WEFT_OK) status = train(&r);
    if (status != WEFT_OK) fprintf(stderr, "train_topics: %s: %s\n", weft_status_name(status), weft_error_message());
    stop(&r);
    return status == WEFT_OK ? 0 : 1;
}
