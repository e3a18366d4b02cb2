/* Latent Dirichlet allocation by sampling the topic of each word, by Metropolis-Hastings steps with tables to draw from: proposals of the document and the word
 * at once, in the time of the topics that the document has (after Li et al., "Reducing the sampling complexity of topic models", 2014); or, for documents of
 * thousands of words, in cycles by the word and by the document, in constant time (Yuan et al., "LightLDA: big topic models on modest compute clusters", 2015).
 * The reference is plain Gibbs sampling, in the time of all topics.
 *
 * Words are visited in the order of their numbers, through all documents: so what a word needs (its row of counts, a table to draw from) is there once, and
 * rows may come slice by slice. Threads have documents of their own, and see each other's changes, as those of other ranks, from the next slice on.
 *
 * Held-out documents show every second of their words: these get topics too, by the counts of all others, which they do not change. The rest is
 * what perplexity is measured on ("document completion"). */
#ifndef SAMPLES_TOPICS_H
#define SAMPLES_TOPICS_H

#include <pthread.h>

#include "corpus.h"
#include "weft.h"

enum { LANES = 8, LIST_MOST = 1024 }; /* numbers that are worked on at once; topics in a list, at most */
enum { MEASURED = 10 }; /* of the documents that are learnt from, the likelihood is measured on every 10th */

typedef struct topics_options {
    int64_t topics, steps /* 0: the usual number */, blocks, threads, held_out, seed;
    double  alpha, beta;
    bool    gibbs, cycles;
} topics_options;

typedef struct topics_document {
    uint64_t slots;   /* its counts, in `counts` */
    int64_t  global;  /* words of all documents before it */
    uint32_t first;   /* its words, in `topic` */
    uint32_t counted; /* so many of them, the first ones, have a topic */
    uint32_t words;
    uint32_t mask;    /* of an open hash from topics to counts; 0: none */
    uint32_t room;    /* of a list of topics in order, and of their counts, behind their number; 0: none. Neither: a count for each topic */
    bool     held, measured;
} topics_document;

/* A place where a word stands. */
typedef struct topics_token {
    uint32_t document, place; /* place: in `topic` */
} topics_token;

typedef struct topics_list {
    uint32_t     *start;  /* [rows + 1]: row i has the tokens from start[i] to start[i + 1] */
    topics_token *tokens;
} topics_list;

/* Documents whose words are visited together. */
typedef struct topics_block {
    uint64_t    *rows;  /* [row_count] numbers of words, ascending */
    int64_t      row_count;
    topics_list *lists; /* [threads] */
} topics_block;

typedef struct topics topics;

/* What a thread has. */
typedef struct topics_hand {
    topics      *of;
    pthread_t    thread;
    weft_status  status;
    char         message[512];
    int32_t     *total;     /* [topics] words of each, as this thread sees it */
    int32_t     *now;       /* [topics] of the word in hand, as this thread sees it */
    const int32_t *row;     /* [topics] as it was pulled */
    double      *weights;   /* [topics] */
    double      *inverse;   /* [topics] 1/(total + vocabulary beta) */
    float       *fresh;     /* [topics] (now + beta) inverse: the word in hand in each topic */
    float        sums_to[LIST_MOST]; /* of what is drawn from by the document */
    int32_t     *nonzero;   /* [topics] which of `row` are not zero, in the order of `by_word` */
    alias        by_word;
    double       word_mass; /* sum of row share */
    int32_t     *changed;   /* topics of which `now` may differ from `row` */
    int64_t      changed_count;
    double       sums[4];   /* what is measured: log likelihood and words of documents that are learnt from, and that are held out */
} topics_hand;

struct topics {
    topics_options   how;
    int64_t          vocabulary, document_count, words; /* words: that have a topic and are counted */
    double           vocabulary_beta; /* their product */
    topics_document *documents;
    int32_t         *word, *topic; /* [all words here]; topic -1: none */
    uint32_t        *counts;       /* of all documents: of each topic, or pairs of a topic + 1 and its count */
    uint64_t         slots;
    topics_block    *blocks, measured; /* [how.blocks] */
    topics_hand     *hands;            /* [how.threads] */
    weft_updates    *updates;
    /* of a slice */
    int64_t          iteration;
    int32_t         *total, *before;   /* [topics] */
    double          *share;            /* [topics] 1/(total + vocabulary beta) when sums were last asked for */
    double           smooth_mass;      /* sum of beta share */
    alias            smooth;
    const topics_block     *block;
    const weft_block_slice *slice;
    bool             measuring;
};

/* --- counts of a document --- */

static inline uint32_t topics_scatter(uint32_t topic) {
    topic *= UINT32_C(0x9e3779b1);
    return topic ^ topic >> 15;
}

/* Where a list has the topic, or would: in steps that need no decision each. Behind its end it has what no topic is. */
static inline uint32_t topics_in_list(const uint32_t *counts, int32_t topic) {
    const uint32_t *list = counts + LANES;
    uint32_t        at = 0, less = LANES;
    for (; at < counts[0] && less == LANES; at += less) {
        less = 0;
        for (int i = 0; i < LANES; i++) less += list[at + (uint32_t)i] < (uint32_t)topic;
    }
    return at;
}

static inline int32_t topics_count(const topics *t, const topics_document *d, int32_t topic) {
    const uint32_t *counts = t->counts + d->slots;
    if (d->room) {
        uint32_t at = topics_in_list(counts, topic);
        return at < counts[0] && counts[LANES + at] == (uint32_t)topic ? (int32_t)counts[LANES + d->room + at] : 0;
    }
    if (!d->mask) return (int32_t)counts[topic];
    for (uint32_t at = topics_scatter((uint32_t)topic) & d->mask;; at = (at + 1) & d->mask) {
        if (counts[2 * at] == (uint32_t)topic + 1) return (int32_t)counts[2 * at + 1];
        if (!counts[2 * at]) return 0;
    }
}

static inline void topics_increase(topics *t, const topics_document *d, int32_t topic) {
    uint32_t *counts = t->counts + d->slots, at = topics_scatter((uint32_t)topic) & d->mask;
    if (d->room) {
        uint32_t *list = counts + LANES, *of = list + d->room;
        at = topics_in_list(counts, topic);
        if (at == counts[0] || list[at] != (uint32_t)topic) {
            memmove(list + at + 1, list + at, (counts[0] - at) * sizeof *list);
            memmove(of + at + 1, of + at, (counts[0]++ - at) * sizeof *of);
            list[at] = (uint32_t)topic;
            of[at] = 0;
        }
        of[at]++;
        return;
    }
    if (!d->mask) {
        counts[topic]++;
        return;
    }
    while (counts[2 * at] && counts[2 * at] != (uint32_t)topic + 1) at = (at + 1) & d->mask;
    counts[2 * at] = (uint32_t)topic + 1;
    counts[2 * at + 1]++;
}

/* Its last one leaves the hash, and those behind it move up, so that no gap parts them from where they are looked for. */
static inline void topics_decrease(topics *t, const topics_document *d, int32_t topic) {
    uint32_t *counts = t->counts + d->slots, at = topics_scatter((uint32_t)topic) & d->mask;
    if (d->room) {
        uint32_t *list = counts + LANES, *of = list + d->room;
        at = topics_in_list(counts, topic);
        if (--of[at]) return;
        memmove(list + at, list + at + 1, (--counts[0] - at) * sizeof *list);
        memmove(of + at, of + at + 1, (counts[0] - at) * sizeof *of);
        list[counts[0]] = UINT32_MAX;
        return;
    }
    if (!d->mask) {
        counts[topic]--;
        return;
    }
    while (counts[2 * at] != (uint32_t)topic + 1) at = (at + 1) & d->mask;
    if (--counts[2 * at + 1]) return;
    for (uint32_t next = (at + 1) & d->mask; counts[2 * next]; next = (next + 1) & d->mask) {
        uint32_t home = topics_scatter(counts[2 * next] - 1) & d->mask;
        if (((next - home) & d->mask) < ((next - at) & d->mask)) continue;
        counts[2 * at] = counts[2 * next];
        counts[2 * at + 1] = counts[2 * next + 1];
        at = next;
    }
    counts[2 * at] = counts[2 * at + 1] = 0;
}

/* --- sampling --- */

/* The chance of a topic for a word that has the topic `old`, but for a factor: what the word itself counts is left out. */
static inline double topics_chance(const topics_hand *h, const topics_document *d, int32_t topic, int32_t old, int32_t in_document) {
    const topics *t = h->of;
    int32_t       own = topic == old;
    double        here = own && !d->held ? (h->now[topic] - 1 + t->how.beta) / (h->total[topic] - 1 + t->vocabulary_beta) : (double)h->fresh[topic];
    return (in_document - own + t->how.alpha) * here;
}

/* By the word: in proportion to (row + beta) share, as these were when the slice, or without staleness its block, began. */
static inline int32_t topics_draw_by_word(const topics_hand *h, uint64_t *random) {
    bool smooth = next_uniform(random) * (h->word_mass + h->of->smooth_mass) >= h->word_mass;
    if (smooth) return alias_draw(&h->of->smooth, next_random(random));
    return h->nonzero[alias_draw(&h->by_word, next_random(random))];
}
static inline double topics_guess(const topics_hand *h, int32_t topic) { return (h->row[topic] + h->of->how.beta) * h->of->share[topic]; }

/* By the document: in proportion to its count + alpha, by taking the topic of one of its words. */
static inline int32_t topics_draw_by_document(const topics *t, const topics_document *d, uint64_t *random) {
    double at = next_uniform(random) * (d->counted + (double)t->how.topics * t->how.alpha);
    if (at < d->counted) return t->topic[d->first + (uint32_t)at];
    int64_t topic = (int64_t)((at - d->counted) / t->how.alpha);
    return (int32_t)(topic < t->how.topics ? topic : t->how.topics - 1);
}

static inline int32_t topics_step(const topics_hand *h, const topics_document *d, int32_t old, uint64_t *random) {
    const topics *t = h->of;
    int32_t       at = old, at_count = topics_count(t, d, old);
    double        at_chance = topics_chance(h, d, old, old, at_count);
    for (int64_t step = 0; step < 2 * (t->how.steps ? t->how.steps : 2); step++) {
        bool    by_word = step % 2 == 1; /* last: 7 to 9 % less perplexity than in the other order, after 40 iterations */
        int32_t topic = by_word ? topics_draw_by_word(h, random) : topics_draw_by_document(t, d, random);
        if (topic == at) continue;
        int32_t count = topics_count(t, d, topic);
        double  chance = topics_chance(h, d, topic, old, count);
        double  there = by_word ? topics_guess(h, topic) : count + t->how.alpha, here = by_word ? topics_guess(h, at) : at_count + t->how.alpha;
        if (next_uniform(random) * at_chance * there >= chance * here) continue;
        at = topic;
        at_count = count;
        at_chance = chance;
    }
    return at;
}

/* --- of the document and the word at once --- */

/* Weights of the document's topics for the word in hand, added up; what is to be searched in them is left in the hand. */
static inline float topics_weigh(topics_hand *h, const topics_document *d, int64_t *count_out) {
    const uint32_t *counts = h->of->counts + d->slots;
    int64_t         all = h->of->how.topics, count = 0;
    float           sum = 0;
    if (!d->room) {
        float lane[LANES] = {0};
        int64_t k = 0;
        for (; k + LANES <= all; k += LANES)
            for (int64_t i = 0; i < LANES; i++) lane[i] += (float)(int32_t)counts[k + i] * h->fresh[k + i];
        for (int64_t i = 0; k + i < all; i++) lane[i] += (float)(int32_t)counts[k + i] * h->fresh[k + i];
        for (; count < LANES; count++) h->sums_to[count] = sum += lane[count];
    } else {
        const uint32_t *list = counts + LANES, *of = list + d->room;
        for (; count < counts[0]; count++) h->sums_to[count] = sum += (float)(int32_t)of[count] * h->fresh[list[count]];
    }
    *count_out = count;
    return sum;
}
static inline int32_t topics_search(const topics_hand *h, const topics_document *d, int64_t count, float at) {
    const uint32_t *counts = h->of->counts + d->slots;
    int64_t         i = 0, last = 0;
    while (i < count - 1 && at >= h->sums_to[i]) i++;
    if (d->room) return (int32_t)counts[LANES + i];
    if (i) at -= h->sums_to[i - 1];
    for (int64_t k = i; k < h->of->how.topics; k += LANES) {
        if (!counts[k]) continue;
        last = k;
        if ((at -= (float)(int32_t)counts[k] * h->fresh[k]) < 0) break;
    }
    return (int32_t)last;
}

/* Proposals from the document's counts times what the word's are now, plus alpha times what its table to draw from has: all but what is old in that table is
 * what is to be drawn, so nearly all are taken (as AliasLDA, Li et al. 2014, with what is fresh and what is old the other way round). In the time
 * of the document's topics, which are few and lie together. */
static inline int32_t topics_leap(topics_hand *h, const topics_document *d, int32_t old, uint64_t *random) {
    topics  *t = h->of;
    uint32_t *counts = t->counts + d->slots, place = (uint32_t)old;
    if (d->room) place = LANES + d->room + topics_in_list(counts, old);
    const float kept = h->fresh[old], alpha = (float)t->how.alpha;
    int64_t     count;
    counts[place]--; /* the word itself is left out */
    if (!d->held) h->fresh[old] = (float)((h->now[old] - 1 + t->how.beta) / (h->total[old] - 1 + t->vocabulary_beta));
    const float mass = topics_weigh(h, d, &count), all = mass + alpha * (float)(h->word_mass + t->smooth_mass);
    int32_t     at = old;
    float       in_document = (float)(int32_t)counts[place], at_chance = (in_document + alpha) * h->fresh[old],
                at_guess = in_document * h->fresh[old] + alpha * (float)topics_guess(h, old);
    for (int64_t step = 0; step < (t->how.steps ? t->how.steps : 1); step++) {
        const float   draw = (float)next_uniform(random) * all;
        const int32_t topic = draw < mass ? topics_search(h, d, count, draw) : topics_draw_by_word(h, random);
        if (topic == at) continue;
        in_document = (float)topics_count(t, d, topic);
        const float chance = (in_document + alpha) * h->fresh[topic], guess = in_document * h->fresh[topic] + alpha * (float)topics_guess(h, topic);
        if ((float)next_uniform(random) * at_chance * guess >= chance * at_guess) continue;
        at = topic;
        at_chance = chance;
        at_guess = guess;
    }
    counts[place]++;
    h->fresh[old] = kept;
    return at;
}

/* The reference: the chance of every topic. */
static inline int32_t topics_gibbs(const topics_hand *h, const topics_document *d, int32_t old, uint64_t *random) {
    const topics *t = h->of;
    double        sum = 0;
    for (int32_t k = 0; k < t->how.topics; k++) {
        int32_t own = k == old, counted = own && !d->held;
        double  inverse = counted ? 1 / (h->total[k] - 1 + t->vocabulary_beta) : h->inverse[k];
        sum += h->weights[k] = (topics_count(t, d, k) - own + t->how.alpha) * (h->now[k] - counted + t->how.beta) * inverse;
    }
    double  at = next_uniform(random) * sum;
    int32_t topic = 0;
    while (topic < t->how.topics - 1 && (at -= h->weights[topic]) >= 0) topic++;
    return topic;
}

static inline void topics_move(topics_hand *h, const topics_document *d, uint32_t place, int32_t old, int32_t topic) {
    topics *t = h->of;
    t->topic[place] = topic;
    topics_decrease(t, d, old);
    topics_increase(t, d, topic);
    if (d->held) return;
    h->now[old]--;
    h->now[topic]++;
    h->total[old]--;
    h->total[topic]++;
    h->changed[h->changed_count++] = old;
    h->changed[h->changed_count++] = topic;
    h->inverse[old] = 1 / (h->total[old] + t->vocabulary_beta);
    h->inverse[topic] = 1 / (h->total[topic] + t->vocabulary_beta);
    h->fresh[old] = (float)((h->now[old] + t->how.beta) * h->inverse[old]);
    h->fresh[topic] = (float)((h->now[topic] + t->how.beta) * h->inverse[topic]);
}

/* --- a word --- */

static inline void topics_begin_word(topics_hand *h, const int32_t *row) {
    const topics *t = h->of;
    int64_t       count = 0;
    double        sum = 0;
    h->row = row;
    h->changed_count = 0;
    for (int32_t k = 0; k < t->how.topics; k++) {
        if (!row[k]) continue;
        h->nonzero[count] = k;
        sum += h->weights[count++] = row[k] * t->share[k];
    }
    h->word_mass = sum;
    if (t->measuring) return;
    memcpy(h->now, row, (size_t)t->how.topics * sizeof *row);
    for (int64_t k = 0; k < t->how.topics; k++) h->fresh[k] = (float)((row[k] + t->how.beta) * h->inverse[k]);
    if (count && !t->how.gibbs) alias_fill(&h->by_word, h->weights, count, sum);
}

static inline void topics_sample_word(topics_hand *h, const topics_token *token, const topics_token *end) {
    enum { FAR = 16, NEAR = 8 }; /* tokens ahead whose document, and whose counts and topic, are asked for: memory is far */
    topics *t = h->of;
    for (; token < end; token++) {
        if (token + FAR < end) __builtin_prefetch(&t->documents[token[FAR].document]);
        if (token + NEAR < end) {
            const topics_document *d = &t->documents[token[NEAR].document];
            __builtin_prefetch(&t->topic[token[NEAR].place], 1);
            __builtin_prefetch(&t->counts[d->slots]);
            __builtin_prefetch(&t->counts[d->slots + 16]);
        }
        const topics_document *d = &t->documents[token->document];
        int32_t                old = t->topic[token->place];
        uint64_t               random = random_stream(t->how.seed, t->iteration, d->global + (token->place - d->first));
        bool                   leaps = !t->how.cycles && !d->mask;
        int32_t                topic = t->how.gibbs ? topics_gibbs(h, d, old, &random) : leaps ? topics_leap(h, d, old, &random) : topics_step(h, d, old, &random);
        if (topic != old) topics_move(h, d, token->place, old, topic);
    }
}

/* What changed of the word's row, once an element. */
static inline weft_status topics_end_word(topics_hand *h, uint64_t word) {
    for (int64_t i = 0; i < h->changed_count; i++) {
        int32_t topic = h->changed[i], more = h->now[topic] - h->row[topic];
        h->now[topic] = h->row[topic];
        weft_status status = more ? weft_updates_add_entry(h->of->updates, word, topic, &more) : WEFT_OK;
        if (status != WEFT_OK) return status;
    }
    return WEFT_OK;
}

/* The chance of the word in each of these documents. */
static inline void topics_measure_word(topics_hand *h, const topics_token *token, const topics_token *end) {
    const topics *t = h->of;
    double        alpha = t->how.alpha, all = alpha * (h->word_mass + t->smooth_mass);
    for (; token < end; token++) {
        const topics_document *d = &t->documents[token->document];
        const uint32_t        *counts = t->counts + d->slots;
        double                 sum = all;
        for (uint32_t i = 0; i <= d->mask && d->mask; i++)
            if (counts[2 * i]) sum += counts[2 * i + 1] * topics_guess(h, (int32_t)counts[2 * i] - 1);
        for (uint32_t i = 0; d->room && i < counts[0]; i++) sum += counts[LANES + d->room + i] * topics_guess(h, (int32_t)counts[LANES + i]);
        for (int32_t k = 0; k < t->how.topics && !d->mask && !d->room; k++) sum += counts[k] * topics_guess(h, k);
        h->sums[d->held ? 2 : 0] += log(sum / (d->counted + (double)t->how.topics * alpha));
        h->sums[d->held ? 3 : 1]++;
    }
}

/* --- a slice --- */

static inline void *topics_hand_work(void *argument) {
    topics_hand       *h = argument;
    const topics      *t = h->of;
    const topics_list *list = &t->block->lists[h - t->hands];
    h->status = WEFT_OK;
    memcpy(h->total, t->total, (size_t)t->how.topics * sizeof *h->total);
    for (int64_t k = 0; k < t->how.topics; k++) h->inverse[k] = 1 / (h->total[k] + t->vocabulary_beta);
    for (int64_t i = 0; i < t->slice->row_count && h->status == WEFT_OK; i++) {
        const uint32_t *start = list->start + t->slice->first + i;
        if (start[0] == start[1]) continue;
        topics_begin_word(h, (const int32_t *)t->slice->values[0] + i * t->how.topics);
        if (t->measuring) topics_measure_word(h, list->tokens + start[0], list->tokens + start[1]);
        else topics_sample_word(h, list->tokens + start[0], list->tokens + start[1]);
        if (!t->measuring) h->status = topics_end_word(h, t->slice->rows[i]);
    }
    if (h->status != WEFT_OK) snprintf(h->message, sizeof h->message, "%s", weft_error_message()); /* it is this thread's */
    return NULL;
}

/* total: words of each topic as they are now. */
static inline void topics_share_out(topics *t) {
    t->smooth_mass = 0;
    for (int64_t k = 0; k < t->how.topics; k++) {
        t->share[k] = 1 / (t->total[k] + t->vocabulary_beta);
        t->smooth_mass += t->hands[0].weights[k] = t->how.beta * t->share[k];
    }
    alias_fill(&t->smooth, t->hands[0].weights, t->how.topics, t->smooth_mass);
}

/* Samples or measures the words of a slice; `total` becomes what this rank made of it. Errors are printed. */
static inline weft_status topics_visit(topics *t, const topics_block *block, const weft_block_slice *slice) {
    weft_status status = WEFT_OK;
    int64_t     started = 1;
    t->block = block;
    t->slice = slice;
    memcpy(t->before, t->total, (size_t)t->how.topics * sizeof *t->before);
    while (started < t->how.threads && pthread_create(&t->hands[started].thread, NULL, topics_hand_work, &t->hands[started]) == 0) started++;
    topics_hand_work(&t->hands[0]);
    for (int64_t i = 1; i < t->how.threads; i++) {
        if (i < started) pthread_join(t->hands[i].thread, NULL);
        else topics_hand_work(&t->hands[i]); /* there was no thread for it */
    }
    for (int64_t i = 0; i < t->how.threads; i++) {
        topics_hand *h = &t->hands[i];
        if (status == WEFT_OK && h->status != WEFT_OK) fprintf(stderr, "%s\n", h->message);
        if (status == WEFT_OK) status = h->status;
        for (int64_t k = 0; k < t->how.topics; k++) t->total[k] += h->total[k] - t->before[k];
    }
    return status;
}

/* --- making one --- */

/* The first document of a part of all, of about as many words as the others. */
static inline int64_t topics_part(const corpus *c, int64_t part, int64_t parts) {
    int64_t low = 0, high = c->own_count;
    if (part == parts) return high;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (c->own[middle].start < c->own_words / parts * part + c->own_words % parts * part / parts) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Every second word of a document that is held out stands behind those that have a topic. */
static inline bool topics_split(topics *t, const corpus *c) {
    int64_t  room = 0;
    int32_t *hidden = NULL;
    for (int64_t i = 0; i < t->document_count; i++) {
        topics_document *d = &t->documents[i];
        if (!corpus_room((void **)&hidden, &room, (d->words + 1) / 2, sizeof *hidden)) return false;
        uint64_t random = random_stream(0, 0, c->own[i].number);
        int32_t *word = t->word + d->first;
        uint32_t seen = 0, unseen = 0;
        d->held = t->how.held_out && random % (uint64_t)t->how.held_out == 0;
        d->measured = d->held || (random >> 32) % MEASURED == 0;
        for (uint32_t k = 0; k < d->words; k++) {
            if (d->held && k % 2) hidden[unseen++] = word[k];
            else word[seen++] = word[k];
        }
        d->counted = seen;
        if (!d->held) t->words += seen;
        if (unseen) memcpy(word + seen, hidden, unseen * sizeof *word);
    }
    free(hidden);
    return true;
}

static inline void topics_place_counts(topics *t) {
    for (int64_t i = 0; i < t->document_count; i++) {
        topics_document *d = &t->documents[i];
        uint64_t         room = 4;
        while (room * 3 < (uint64_t)d->counted * 4 + 3) room *= 2;
        uint64_t list = (d->counted + LANES) / LANES * LANES; /* with room for the end */
        bool     dense = (uint64_t)t->how.topics <= 2 * list, listed = !dense && list <= LIST_MOST;
        d->mask = dense || listed ? 0 : (uint32_t)room - 1;
        d->room = listed ? (uint32_t)list : 0;
        d->slots = t->slots;
        t->slots += dense ? (uint64_t)t->how.topics : listed ? LANES + 2 * list : 2 * room;
    }
}

/* Counts of documents from the topics of their words. */
static inline void topics_count_documents(topics *t) {
    memset(t->counts, 0, t->slots * sizeof *t->counts);
    for (int64_t i = 0; i < t->document_count; i++)
        if (t->documents[i].room) memset(t->counts + t->documents[i].slots + LANES, 0xff, t->documents[i].room * sizeof *t->counts);
    for (int64_t i = 0; i < t->document_count; i++)
        for (uint32_t k = 0; k < t->documents[i].counted; k++) topics_increase(t, &t->documents[i], t->topic[t->documents[i].first + k]);
}

/* The words of a document that are visited: [begin, end) of it. */
static inline void topics_span(const topics_document *d, bool measured, uint32_t *begin, uint32_t *end) {
    *begin = measured && d->held ? d->counted : 0;
    *end = measured && d->held ? d->words : measured && !d->measured ? 0 : d->counted;
}

static inline bool topics_fill_list(const topics *t, int64_t first, int64_t end, bool measured, const int32_t *place, int64_t rows, topics_list *list) {
    uint32_t sum = 0, from, to;
    if (!(list->start = calloc((size_t)rows + 2, sizeof *list->start))) return false;
    uint32_t *next = list->start + 1; /* first counts, then where the next one goes; in the end the starts themselves */
    for (int64_t i = first; i < end; i++) {
        const topics_document *d = &t->documents[i];
        topics_span(d, measured, &from, &to);
        for (uint32_t k = from; k < to; k++) next[place[t->word[d->first + k]]]++;
    }
    for (int64_t row = 0; row <= rows; row++) {
        uint32_t count = next[row];
        next[row] = sum;
        sum += count;
    }
    if (!(list->tokens = malloc((size_t)(sum + 1) * sizeof *list->tokens))) return false;
    for (int64_t i = first; i < end; i++) {
        const topics_document *d = &t->documents[i];
        topics_span(d, measured, &from, &to);
        for (uint32_t k = from; k < to; k++) list->tokens[next[place[t->word[d->first + k]]]++] = (topics_token){(uint32_t)i, d->first + k};
    }
    return true;
}

/* place: [vocabulary] for use here. parts: of all documents, of which these are [first, first + threads). */
static inline bool topics_fill_block(const topics *t, const corpus *c, int64_t first, int64_t parts, bool measured, int32_t *place, topics_block *block) {
    uint32_t from, to;
    for (int64_t i = 0; i < t->vocabulary; i++) place[i] = -1;
    for (int64_t i = topics_part(c, first, parts); i < topics_part(c, first + t->how.threads, parts); i++) {
        const topics_document *d = &t->documents[i];
        topics_span(d, measured, &from, &to);
        for (uint32_t k = from; k < to; k++) {
            block->row_count += place[t->word[d->first + k]] < 0;
            place[t->word[d->first + k]] = 0;
        }
    }
    block->rows = malloc((size_t)(block->row_count + 1) * sizeof *block->rows);
    block->lists = calloc((size_t)t->how.threads, sizeof *block->lists);
    if (!block->rows || !block->lists) return false;
    for (int64_t i = 0, row = 0; i < t->vocabulary; i++)
        if (place[i] == 0) {
            block->rows[row] = (uint64_t)i;
            place[i] = (int32_t)row++;
        }
    for (int64_t i = 0; i < t->how.threads; i++)
        if (!topics_fill_list(t, topics_part(c, first + i, parts), topics_part(c, first + i + 1, parts), measured, place, block->row_count,
                              &block->lists[i]))
            return false;
    return true;
}

static inline bool topics_make_hand(topics *t, topics_hand *h) {
    size_t  count = (size_t)t->how.topics;
    int64_t most = 0;
    for (int64_t b = 0; b < t->how.blocks; b++)
        for (int64_t row = 0; row < t->blocks[b].row_count; row++) {
            const uint32_t *start = t->blocks[b].lists[h - t->hands].start + row;
            if (start[1] - start[0] > most) most = start[1] - start[0];
        }
    h->of = t;
    h->total = malloc(count * sizeof *h->total);
    h->now = calloc(count, sizeof *h->now);
    h->weights = malloc(count * sizeof *h->weights);
    h->inverse = malloc(count * sizeof *h->inverse);
    h->nonzero = malloc(count * sizeof *h->nonzero);
    h->fresh = malloc(count * sizeof *h->fresh);
    h->changed = malloc((size_t)(2 * most + 1) * sizeof *h->changed);
    return h->total && h->now && h->weights && h->inverse && h->nonzero && h->changed && h->fresh && alias_reserve(&h->by_word, t->how.topics);
}

static inline bool topics_take_documents(topics *t, const corpus *c) {
    t->vocabulary = c->vocabulary;
    t->vocabulary_beta = (double)c->vocabulary * t->how.beta;
    t->document_count = c->own_count;
    t->documents = calloc((size_t)c->own_count + 1, sizeof *t->documents);
    t->topic = malloc((size_t)(c->own_words + 1) * sizeof *t->topic);
    if (!t->documents || !t->topic) return false;
    for (int64_t i = 0; i < c->own_count; i++)
        t->documents[i] = (topics_document){.global = c->own[i].global, .first = (uint32_t)c->own[i].start, .words = (uint32_t)c->own[i].words};
    if (!topics_split(t, c)) return false;
    topics_place_counts(t);
    return (t->counts = calloc(t->slots + 1, sizeof *t->counts)) != NULL;
}

/* Over the documents of a corpus, whose words it takes and puts into another order; each gets a topic at random. False without memory. */
static inline bool topics_create(const topics_options *how, corpus *c, topics *t) {
    *t = (topics){.how = *how, .word = c->word};
    c->word = NULL;
    size_t   count = (size_t)how->topics;
    int64_t  parts = how->blocks * how->threads;
    int32_t *place = malloc((size_t)c->vocabulary * sizeof *place);
    t->blocks = calloc((size_t)how->blocks, sizeof *t->blocks);
    t->hands = calloc((size_t)how->threads, sizeof *t->hands);
    t->total = malloc(count * sizeof *t->total);
    t->before = malloc(count * sizeof *t->before);
    t->share = malloc(count * sizeof *t->share);
    bool good = place && t->blocks && t->hands && t->total && t->before && t->share && alias_reserve(&t->smooth, how->topics) && topics_take_documents(t, c);
    for (int64_t i = 0; good && i < how->blocks; i++) good = topics_fill_block(t, c, i * how->threads, parts, false, place, &t->blocks[i]);
    if (good) good = topics_fill_block(t, c, 0, how->threads, true, place, &t->measured);
    for (int64_t i = 0; good && i < how->threads; i++) good = topics_make_hand(t, &t->hands[i]);
    for (int64_t i = 0; good && i < t->document_count; i++)
        for (uint32_t k = 0; k < t->documents[i].words; k++) {
            uint64_t random = random_stream(how->seed, -1, t->documents[i].global + k);
            t->topic[t->documents[i].first + k] = k < t->documents[i].counted ? (int32_t)(random % (uint64_t)how->topics) : -1;
        }
    free(place);
    return good;
}

static inline void topics_release_block(const topics *t, topics_block *block) {
    for (int64_t i = 0; block->lists && i < t->how.threads; i++) {
        free(block->lists[i].start);
        free(block->lists[i].tokens);
    }
    free(block->lists);
    free(block->rows);
}

static inline void topics_release(topics *t) {
    for (int64_t i = 0; t->blocks && i < t->how.blocks; i++) topics_release_block(t, &t->blocks[i]);
    topics_release_block(t, &t->measured);
    for (int64_t i = 0; t->hands && i < t->how.threads; i++) {
        topics_hand *h = &t->hands[i];
        void        *all[] = {h->total, h->now, h->weights, h->inverse, h->nonzero, h->changed, h->fresh};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) free(all[k]);
        alias_release(&h->by_word);
    }
    void *all[] = {t->blocks, t->hands, t->documents, t->word, t->topic, t->counts, t->total, t->before, t->share};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) free(all[k]);
    alias_release(&t->smooth);
}

#endif
