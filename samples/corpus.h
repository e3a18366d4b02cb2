/* Documents as bags of words: reading those that are a rank's, and making some from a model that is known. */
#ifndef SAMPLES_CORPUS_H
#define SAMPLES_CORPUS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "alias.h"
#include "random.h"
#include "weft/status.h"

enum { PIECE = 32 }; /* words of a row in which something of each word of a document may be kept */

typedef struct corpus_document {
    int64_t number;       /* in the file, from 0 */
    int64_t start, words; /* in `word` */
    int64_t global;       /* words of all documents before it */
    int64_t piece;        /* rows of PIECE of all documents before it */
} corpus_document;

typedef struct corpus {
    int64_t          documents, words, pieces; /* of all ranks */
    int64_t          vocabulary; /* different words that there may be */
    uint64_t         mark;       /* of what is in it: other corpora have other ones */
    corpus_document *own;        /* [own_count] of this rank: every ranks-th */
    int64_t          own_count, own_room;
    int32_t         *word;       /* [own_words] in the order of the file */
    int64_t          own_words, word_room;
    char           **names;      /* [vocabulary]; NULL: words are numbers */
} corpus;

static inline void corpus_release(corpus *c) {
    for (int64_t i = 0; c->names && i < c->vocabulary; i++) free(c->names[i]);
    free(c->names);
    free(c->own);
    free(c->word);
    *c = (corpus){0};
}

/* --- reading --- */

typedef struct corpus_reader {
    corpus     *corpus;
    FILE       *file;
    const char *path;
    int64_t     line;
    int         c;            /* what comes next */
    int64_t     limit;        /* words are below this; 0: any */
    int32_t     rank, ranks;
    bool        one_based;
    uint64_t    hash;         /* of the document in hand */
    int64_t     length;
} corpus_reader;

static inline weft_status corpus_error(const corpus_reader *r, const char *what) {
    fprintf(stderr, "%s, line %lld: %s\n", r->path, (long long)r->line, what);
    return WEFT_E_CORRUPT;
}

static inline void corpus_next(corpus_reader *r) {
    if (r->c == '\n') r->line++;
    r->c = getc(r->file);
}
static inline void corpus_skip_blanks(corpus_reader *r) {
    while (r->c == ' ' || r->c == '\t' || r->c == '\r') corpus_next(r);
}

/* -1: there is none, or one that is too large. */
static inline int64_t corpus_number(corpus_reader *r) {
    int64_t number = -1;
    for (; r->c >= '0' && r->c <= '9'; corpus_next(r)) {
        number = (number < 0 ? 0 : number) * 10 + (r->c - '0');
        if (number > INT32_MAX) return -1;
    }
    return number;
}

static inline bool corpus_room(void **memory, int64_t *room, int64_t wanted, size_t bytes) {
    if (wanted <= *room) return true;
    int64_t now = 2 * *room > wanted ? 2 * *room : wanted + 1024;
    void   *moved = realloc(*memory, (size_t)now * bytes);
    if (!moved) return false;
    *memory = moved;
    *room = now;
    return true;
}

/* Words go to the document in hand, which is kept where it is this rank's. */
static inline weft_status corpus_add(corpus_reader *r, int64_t word, int64_t count) {
    corpus *c = r->corpus;
    if (r->one_based) word--;
    if (word < 0) return corpus_error(r, "there is no word 0 where the first is 1");
    if (r->limit && word >= r->limit) {
        fprintf(stderr, "%s, line %lld: word %lld is beyond the vocabulary, of %lld words\n", r->path, (long long)r->line,
                (long long)(word + r->one_based), (long long)r->limit);
        return WEFT_E_CORRUPT;
    }
    if (c->words + r->length + count > INT32_MAX) return corpus_error(r, "more than 2^31 words, which counts do not hold");
    if (word >= c->vocabulary) c->vocabulary = word + 1;
    uint64_t state = r->hash ^ ((uint64_t)word << 32 | (uint64_t)count);
    r->hash = next_random(&state);
    r->length += count;
    if (c->documents % r->ranks != r->rank) return WEFT_OK;
    if (!corpus_room((void **)&c->word, &c->word_room, c->own_words + count, sizeof *c->word)) return WEFT_E_NO_MEMORY;
    while (count-- > 0) c->word[c->own_words++] = (int32_t)word;
    return WEFT_OK;
}

static inline weft_status corpus_end_document(corpus_reader *r) {
    corpus *c = r->corpus;
    if (c->documents % r->ranks == r->rank) {
        if (!corpus_room((void **)&c->own, &c->own_room, c->own_count + 1, sizeof *c->own)) return WEFT_E_NO_MEMORY;
        c->own[c->own_count++] = (corpus_document){c->documents, c->own_words - r->length, r->length, c->words, c->pieces};
    }
    c->documents++;
    c->words += r->length;
    c->pieces += (r->length + PIECE - 1) / PIECE;
    c->mark = c->mark * 31 + r->hash;
    r->hash = 0;
    r->length = 0;
    return WEFT_OK;
}

static inline bool corpus_field_ends(const corpus_reader *r) { return r->c == EOF || (r->c && strchr(" \t\r\n", r->c)); }

/* "word:count"; the first field of a line may also be a number or a name without a colon, which is passed over. */
static inline weft_status corpus_read_field(corpus_reader *r, bool first) {
    int64_t word = corpus_number(r);
    if (r->c == ':') {
        corpus_next(r);
        int64_t count = corpus_number(r);
        bool good = word >= 0 && count >= 0 && corpus_field_ends(r);
        return good ? corpus_add(r, word, count) : corpus_error(r, "that is not \"word:count\", with whole numbers");
    }
    while (first && !corpus_field_ends(r) && r->c != ':') corpus_next(r);
    return first && r->c != ':' ? WEFT_OK : corpus_error(r, "that is not \"word:count\", with whole numbers");
}

/* A document a line. */
static inline weft_status corpus_read_lines(corpus_reader *r) {
    weft_status status = WEFT_OK;
    while (r->c != EOF && status == WEFT_OK) {
        corpus_skip_blanks(r);
        for (bool first = true; status == WEFT_OK && r->c != '\n' && r->c != EOF && r->c != '#'; first = false) {
            status = corpus_read_field(r, first);
            corpus_skip_blanks(r);
        }
        while (status == WEFT_OK && r->c != '\n' && r->c != EOF) corpus_next(r); /* a comment */
        if (status == WEFT_OK) status = corpus_end_document(r);
        corpus_next(r);
    }
    return status;
}

/* As the bags of words of the UCI repository: the numbers of documents, words and lines, and then "document word count", ascending, from 1. */
static inline weft_status corpus_read_docword(corpus_reader *r) {
    int64_t     head[3], last = 1;
    weft_status status = WEFT_OK;
    for (int i = 0; i < 3; i++) {
        corpus_skip_blanks(r);
        if ((head[i] = corpus_number(r)) < 0 || r->c != '\n') return corpus_error(r, "a docword file begins with three lines of a number each");
        corpus_next(r);
    }
    if (!r->limit) r->limit = head[1];
    for (int64_t i = 0; i < head[2] && status == WEFT_OK; i++) {
        int64_t entry[3];
        for (int k = 0; k < 3; k++) {
            corpus_skip_blanks(r);
            if ((entry[k] = corpus_number(r)) < 0) return corpus_error(r, r->c == EOF ? "the file ends before its last line" : "that is no number");
        }
        if (entry[0] < last || entry[0] > head[0]) return corpus_error(r, "documents ascend from 1, and are no more than the first line says");
        for (; last < entry[0] && status == WEFT_OK; last++) status = corpus_end_document(r);
        if (status == WEFT_OK) status = corpus_add(r, entry[1], entry[2]);
        corpus_skip_blanks(r);
        if (status == WEFT_OK && r->c != '\n' && r->c != EOF) status = corpus_error(r, "that is not \"document word count\"");
        corpus_next(r);
    }
    for (; last <= head[0] && status == WEFT_OK; last++) status = corpus_end_document(r);
    return status;
}

/* One word a line; the first is the least number. */
static inline weft_status corpus_read_names(const char *path, corpus *c) {
    char    line[256];
    int64_t room = 0, count = 0;
    FILE   *file = fopen(path, "r");
    if (!file) {
        fprintf(stderr, "cannot read %s\n", path);
        return WEFT_E_NOT_FOUND;
    }
    bool good = true;
    while (good && fgets(line, sizeof line, file)) {
        size_t length = strcspn(line, "\r\n");
        char  *name = malloc(length + 1);
        good = name && corpus_room((void **)&c->names, &room, count + 1, sizeof *c->names);
        if (!good) {
            free(name);
            break;
        }
        memcpy(name, line, length);
        name[length] = 0;
        c->names[count++] = name;
        c->vocabulary = count;
        for (int ch = line[length] ? '\n' : 0; ch != '\n' && ch != EOF;) ch = getc(file); /* what is left of a long line */
    }
    bool bad = ferror(file) != 0;
    fclose(file);
    if (!good) return WEFT_E_NO_MEMORY;
    if (!bad && count) return WEFT_OK;
    fprintf(stderr, "%s: %s\n", path, bad ? "it cannot be read to its end" : "there is no word in it");
    return bad ? WEFT_E_IO : WEFT_E_CORRUPT;
}

typedef struct corpus_source {
    const char *path, *names; /* names: a word a line; NULL: none */
    bool        docword, one_based;
    int32_t     rank, ranks;
} corpus_source;

/* Errors are printed: WEFT_E_NOT_FOUND, WEFT_E_IO, WEFT_E_CORRUPT with the line, WEFT_E_NO_MEMORY. */
static inline weft_status corpus_read(const corpus_source *source, corpus *c) {
    corpus_reader r = {.corpus = c, .path = source->path, .line = 1, .rank = source->rank, .ranks = source->ranks,
                       .one_based = source->one_based || source->docword};
    weft_status   status = source->names ? corpus_read_names(source->names, c) : WEFT_OK;
    r.limit = c->vocabulary;
    if (status != WEFT_OK) return status;
    if (!(r.file = fopen(r.path, "r"))) {
        fprintf(stderr, "cannot read %s\n", r.path);
        return WEFT_E_NOT_FOUND;
    }
    corpus_next(&r);
    status = source->docword ? corpus_read_docword(&r) : corpus_read_lines(&r);
    bool bad = ferror(r.file) != 0;
    fclose(r.file);
    if (status == WEFT_OK && bad) fprintf(stderr, "%s: it cannot be read to its end\n", r.path);
    if (status == WEFT_OK && bad) return WEFT_E_IO;
    if (status == WEFT_OK && c->words == 0) {
        fprintf(stderr, "%s: there is no word in it\n", r.path);
        return WEFT_E_CORRUPT;
    }
    return status;
}

/* --- making --- */

typedef struct corpus_model {
    int64_t documents, vocabulary, topics, length; /* length: words of a document, on average */
    double  alpha, beta;                           /* of the Dirichlet distributions of topics in documents and of words in topics */
    int64_t seed;
} corpus_model;

static inline double corpus_normal(uint64_t *state) { /* Box and Muller 1958 */
    double far = sqrt(-2 * log(1 - next_uniform(state)));
    return far * cos(6.283185307179586 * next_uniform(state));
}

/* The logarithm of a gamma-distributed number: small shapes have numbers that are too small for others (Marsaglia and Tsang 2000). */
static inline double corpus_log_gamma(double shape, uint64_t *state) {
    double more = shape < 1 ? log(1 - next_uniform(state)) / shape : 0, d = (shape < 1 ? shape + 1 : shape) - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = corpus_normal(state), v = 1 + c * x, u = 1 - next_uniform(state);
        v = v * v * v;
        if (v > 0 && log(u) < 0.5 * x * x + d - d * v + d * log(v)) return log(d * v) + more;
    }
}

/* out [count]: a distribution from the symmetric Dirichlet distribution. */
static inline void corpus_dirichlet(double shape, int64_t count, double *out, uint64_t *state) {
    double highest = -INFINITY, sum = 0;
    for (int64_t i = 0; i < count; i++) highest = fmax(highest, out[i] = corpus_log_gamma(shape, state));
    for (int64_t i = 0; i < count; i++) sum += out[i] = exp(out[i] - highest);
    for (int64_t i = 0; i < count; i++) out[i] /= sum;
}

static inline void corpus_write_topic(FILE *file, const double *topic, int64_t count) {
    for (int64_t i = 0, any = 0; i < count; i++)
        if (topic[i] >= 1e-6) fprintf(file, "%s%lld:%.6g", any++ ? " " : "", (long long)i, topic[i]);
    fputc('\n', file);
}

/* Documents into `file`, and the topics that they are drawn from into `truth`, as "word:chance" lines of those that are at least 1e-6. */
static inline bool corpus_write(const corpus_model *m, FILE *file, FILE *truth) {
    size_t   most = (size_t)(m->topics > m->vocabulary ? m->topics : m->vocabulary);
    double  *chance = malloc(most * sizeof *chance);
    int64_t *count = calloc((size_t)m->vocabulary, sizeof *count);
    alias   *topics = calloc((size_t)m->topics, sizeof *topics), mixture = {0};
    uint64_t state = random_stream(m->seed, -1, 0);
    bool     good = chance && count && topics && alias_reserve(&mixture, m->topics);
    for (int64_t k = 0; good && k < m->topics; k++) {
        if (!(good = alias_reserve(&topics[k], m->vocabulary))) break;
        corpus_dirichlet(m->beta, m->vocabulary, chance, &state);
        corpus_write_topic(truth, chance, m->vocabulary);
        alias_fill(&topics[k], chance, m->vocabulary, 1);
    }
    for (int64_t i = 0; good && i < m->documents; i++) {
        int64_t length = 1 + m->length / 2 + (int64_t)(next_uniform(&state) * (double)m->length);
        corpus_dirichlet(m->alpha, m->topics, chance, &state);
        alias_fill(&mixture, chance, m->topics, 1);
        memset(count, 0, (size_t)m->vocabulary * sizeof *count);
        for (int64_t k = 0; k < length; k++) {
            int32_t topic = alias_draw(&mixture, next_random(&state));
            count[alias_draw(&topics[topic], next_random(&state))]++;
        }
        for (int64_t k = 0, any = 0; k < m->vocabulary; k++)
            if (count[k]) fprintf(file, "%s%lld:%lld", any++ ? " " : "", (long long)k, (long long)count[k]);
        fputc('\n', file);
    }
    for (int64_t k = 0; topics && k < m->topics; k++) alias_release(&topics[k]);
    alias_release(&mixture);
    free(topics);
    free(chance);
    free(count);
    return good;
}

#endif
