/* A text as numbers of words, most frequent first. */
#ifndef SAMPLES_VOCABULARY_H
#define SAMPLES_VOCABULARY_H

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weft/status.h"

enum { SENTENCE_END = -1, WORD_BYTES = 64 };

typedef struct vocabulary_word {
    char    *text;
    int64_t  count;
    int32_t  number; /* in the order of the text, while it is read */
} vocabulary_word;

typedef struct vocabulary {
    vocabulary_word *words;  /* [count] by falling count, then by name */
    int64_t          count, room;
    int32_t         *index;  /* [slots] open hash of number + 1 */
    int64_t          slots;
    int32_t         *text;   /* [length] numbers of words, and SENTENCE_END */
    int64_t          length, text_room;
    int64_t          total;  /* words in it */
} vocabulary;

static inline uint64_t vocabulary_hash(const char *text, size_t length) { /* FNV-1a */
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < length; i++) hash = (hash ^ (uint8_t)text[i]) * UINT64_C(1099511628211);
    return hash;
}

/* Its slot, or the one where it would be. */
static inline int64_t vocabulary_slot(const vocabulary *v, const char *text, size_t length) {
    int64_t slot = (int64_t)(vocabulary_hash(text, length) & (uint64_t)(v->slots - 1));
    for (; v->index[slot]; slot = (slot + 1) & (v->slots - 1)) {
        const char *there = v->words[v->index[slot] - 1].text;
        if (strncmp(there, text, length) == 0 && !there[length]) break;
    }
    return slot;
}

/* -1: it is not there. */
static inline int32_t vocabulary_find(const vocabulary *v, const char *text, size_t length) {
    return v->slots ? v->index[vocabulary_slot(v, text, length)] - 1 : -1;
}

static inline bool vocabulary_index(vocabulary *v, int64_t slots) {
    int32_t *index = calloc((size_t)slots, sizeof *index);
    if (!index) return false;
    free(v->index);
    v->index = index;
    v->slots = slots;
    for (int64_t i = 0; i < v->count; i++) index[vocabulary_slot(v, v->words[i].text, strlen(v->words[i].text))] = (int32_t)i + 1;
    return true;
}

static inline bool vocabulary_say(vocabulary *v, int32_t number) {
    if (number == SENTENCE_END && (v->length == 0 || v->text[v->length - 1] == SENTENCE_END)) return true;
    if (v->length == v->text_room) {
        int64_t  room = v->text_room ? 2 * v->text_room : 4096;
        int32_t *text = realloc(v->text, (size_t)room * sizeof *text);
        if (!text) return false;
        v->text = text;
        v->text_room = room;
    }
    v->text[v->length++] = number;
    return true;
}

static inline bool vocabulary_add(vocabulary *v, const char *text, size_t length) {
    if (2 * v->count >= v->slots && !vocabulary_index(v, v->slots ? 2 * v->slots : 1024)) return false;
    int64_t slot = vocabulary_slot(v, text, length);
    if (!v->index[slot]) {
        if (v->count == v->room) {
            int64_t          room = v->room ? 2 * v->room : 1024;
            vocabulary_word *words = realloc(v->words, (size_t)room * sizeof *words);
            if (!words) return false;
            v->words = words;
            v->room = room;
        }
        char *copy = malloc(length + 1);
        if (!copy) return false;
        memcpy(copy, text, length);
        copy[length] = 0;
        v->words[v->count] = (vocabulary_word){copy, 0, (int32_t)v->count};
        v->index[slot] = (int32_t)++v->count;
    }
    v->words[v->index[slot] - 1].count++;
    return vocabulary_say(v, v->index[slot] - 1);
}

static inline int vocabulary_order(const void *a, const void *b) {
    const vocabulary_word *x = a, *y = b;
    return x->count != y->count ? (x->count > y->count ? -1 : 1) : strcmp(x->text, y->text);
}

/* Orders the words, and leaves out rare ones. */
static inline bool vocabulary_finish(vocabulary *v, int64_t least_count) {
    int64_t  kept = 0, length = 0;
    int32_t *now = malloc((size_t)(v->count + 1) * sizeof *now);
    if (!now) return false;
    if (v->count) qsort(v->words, (size_t)v->count, sizeof *v->words, vocabulary_order);
    for (int64_t i = 0; i < v->count; i++) {
        bool keeps = v->words[i].count >= least_count;
        now[v->words[i].number] = keeps ? (int32_t)i : -2;
        if (keeps) kept++;
        else free(v->words[i].text);
    }
    v->count = kept;
    for (int64_t i = 0; i < v->length; i++) {
        int32_t number = v->text[i] < 0 ? v->text[i] : now[v->text[i]];
        if (number >= -1) v->text[length++] = number;
        v->total += number >= 0;
    }
    v->length = length;
    free(now);
    return vocabulary_index(v, v->slots ? v->slots : 1024);
}

static inline void vocabulary_release(vocabulary *v) {
    for (int64_t i = 0; i < v->count; i++) free(v->words[i].text);
    free(v->words);
    free(v->index);
    free(v->text);
    *v = (vocabulary){0};
}

/* Words are runs of letters, digits, apostrophes and bytes beyond ASCII, in small letters; longer ones than WORD_BYTES are cut. Sentences end with . ! ?
 * and with empty lines. Errors are printed: WEFT_E_NOT_FOUND, WEFT_E_IO, WEFT_E_CORRUPT (no two words that are frequent enough), WEFT_E_NO_MEMORY. */
static inline weft_status vocabulary_read(const char *path, int64_t least_count, vocabulary *v) {
    char   word[WORD_BYTES];
    size_t length = 0;
    bool   good = true;
    FILE  *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "cannot read %s\n", path);
        return WEFT_E_NOT_FOUND;
    }
    for (int c = 0, before = 0; good && c != EOF; before = c) {
        c = getc(file);
        if (c != EOF && (isalnum(c) || c == '\'' || c >= 128)) {
            if (length < sizeof word) word[length++] = (char)(c < 128 ? tolower(c) : c);
            continue;
        }
        if (length) good = vocabulary_add(v, word, length);
        length = 0;
        if (good && (c == '.' || c == '!' || c == '?' || (c == '\n' && before == '\n'))) good = vocabulary_say(v, SENTENCE_END);
    }
    bool bad = ferror(file) != 0;
    fclose(file);
    if (bad) fprintf(stderr, "cannot read %s to its end\n", path);
    if (bad) return WEFT_E_IO;
    if (!good || !vocabulary_finish(v, least_count)) return WEFT_E_NO_MEMORY;
    if (v->count >= 2) return WEFT_OK;
    fprintf(stderr, "%s has %lld words that are there at least %lld times; it takes two\n", path, (long long)v->count, (long long)least_count);
    return WEFT_E_CORRUPT;
}

#endif
