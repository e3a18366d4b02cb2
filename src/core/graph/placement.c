/* Where the program wants its nodes: texts, read once when they are given, and kept with the nodes. What becomes of them is for whoever
 * plans (src/parallel/place.c). Memory: a record for each text. */
#include "weft/placement.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph/internal.h"

/* --- reading --- */

typedef struct reader {
    weft_graph *graph;
    const char *text, *at;
    wefti_wish  wish;
} reader;

static bool refuse(reader *r, const char *why) {
    wefti_graph_fail(r->graph, WEFT_E_INVALID, "place '%s': %s; there is: rank N, stage N, cpu, cuda, cuda:N, with NAME", r->text, why);
    return false;
}

/* The next word, of less than `size` characters; false at the end. */
static bool next_word(reader *r, char *word, size_t size) {
    size_t n = 0;
    while (*r->at == ' ' || *r->at == ',') r->at++;
    for (; *r->at && *r->at != ' ' && *r->at != ','; r->at++)
        if (n + 1 < size) word[n++] = *r->at;
    word[n] = '\0';
    return n > 0;
}

static bool read_number(const char *word, int32_t *number_out) {
    char *end = NULL;
    long  number = *word >= '0' && *word <= '9' ? strtol(word, &end, 10) : -1;
    *number_out = number > INT32_MAX - 1 ? INT32_MAX - 1 : (int32_t)number;
    return end && !*end;
}

static bool set_number(reader *r, uint32_t said, int32_t *field, const char *what) {
    char word[32], why[96];
    int32_t number = 0;
    if (!next_word(r, word, sizeof word) || !read_number(word, &number)) {
        snprintf(why, sizeof why, "%s wants a number", what);
        return refuse(r, why);
    }
    if ((r->wish.said & said) && *field != number) {
        snprintf(why, sizeof why, "%s %d contradicts %s %d", what, (int)number, what, (int)*field);
        return refuse(r, why);
    }
    r->wish.said |= said;
    *field = number;
    return true;
}

static bool set_device(reader *r, const char *word) {
    bool    cuda = strncmp(word, "cuda", 4) == 0;
    int32_t ordinal = -1;
    if (cuda && word[4] && (word[4] != ':' || !read_number(word + 5, &ordinal))) return refuse(r, "there is no such device");
    if ((r->wish.said & WEFTI_WISH_DEVICE) && (r->wish.cuda != cuda || (ordinal >= 0 && r->wish.ordinal >= 0 && r->wish.ordinal != ordinal)))
        return refuse(r, "two devices contradict each other");
    r->wish.said |= WEFTI_WISH_DEVICE;
    r->wish.cuda = cuda;
    if (ordinal >= 0 || !cuda) r->wish.ordinal = ordinal;
    return true;
}

static bool set_with(reader *r) {
    char name[WEFTI_SCOPE_BYTES];
    if (!next_word(r, name, sizeof name)) return refuse(r, "with wants the name of a parameter or state");
    if (r->wish.with && strcmp(r->wish.with, name) != 0) return refuse(r, "two names contradict each other");
    const weft_tensor *other = weft_graph_find(r->graph, name);
    if (!other || (other->node->op != WEFT_OP_PARAMETER && other->node->op != WEFT_OP_STATE)) {
        wefti_graph_fail(r->graph, WEFT_E_NOT_FOUND, "place '%s': there is no parameter or state '%s' yet", r->text, name);
        return false;
    }
    r->wish.said |= WEFTI_WISH_WITH;
    r->wish.with = wefti_graph_text(r->graph, name);
    return true;
}

static bool read_words(reader *r) {
    char word[32], why[96];
    while (next_word(r, word, sizeof word)) {
        bool good;
        if (strcmp(word, "rank") == 0) good = set_number(r, WEFTI_WISH_RANK, &r->wish.rank, "rank");
        else if (strcmp(word, "stage") == 0) good = set_number(r, WEFTI_WISH_STAGE, &r->wish.stage, "stage");
        else if (strcmp(word, "with") == 0) good = set_with(r);
        else if (strcmp(word, "cpu") == 0 || strncmp(word, "cuda", 4) == 0) good = set_device(r, word);
        else {
            snprintf(why, sizeof why, "there is no device '%s'", word);
            good = refuse(r, why);
        }
        if (!good) return false;
    }
    return r->wish.said != 0 || refuse(r, "it says nothing");
}

/* --- joining --- */

/* `inner`, with what it leaves open from `outer`, which may be NULL; in graph memory. */
static const wefti_wish *joined(weft_graph *graph, const wefti_wish *inner, const wefti_wish *outer) {
    wefti_wish *wish = wefti_graph_memory(graph, sizeof *wish);
    if (!wish) return outer;
    *wish = *inner;
    if (!outer) return wish;
    uint32_t open = outer->said & ~inner->said;
    if (open & WEFTI_WISH_RANK) wish->rank = outer->rank;
    if (open & WEFTI_WISH_STAGE) wish->stage = outer->stage;
    if (open & WEFTI_WISH_WITH) wish->with = outer->with;
    if (open & WEFTI_WISH_DEVICE) {
        wish->cuda = outer->cuda;
        wish->ordinal = outer->ordinal;
    }
    wish->said |= open;
    return wish;
}

static bool read_wish(weft_graph *graph, const char *place, wefti_wish *wish_out) {
    reader r = {.graph = graph, .text = wefti_graph_text(graph, place ? place : ""), .wish = {.ordinal = -1}};
    r.at = r.text;
    r.wish.text = r.text;
    if (!read_words(&r) || graph->status != WEFT_OK) return false;
    *wish_out = r.wish;
    return true;
}

static bool contradict(const wefti_wish *a, const wefti_wish *b) {
    uint32_t both = a->own & b->said;
    return ((both & WEFTI_WISH_RANK) && a->rank != b->rank) || ((both & WEFTI_WISH_STAGE) && a->stage != b->stage) ||
           ((both & WEFTI_WISH_DEVICE) && (a->cuda != b->cuda || a->ordinal != b->ordinal)) ||
           ((both & WEFTI_WISH_WITH) && strcmp(a->with, b->with) != 0);
}

weft_tensor *weft_place(weft_tensor *tensor, const char *place) {
    wefti_wish wish;
    if (!tensor) return wefti_graph_fail(NULL, WEFT_E_INVALID, "place: the tensor is NULL");
    if (wefti_poisoned(tensor)) return tensor;
    weft_graph *graph = tensor->graph;
    wefti_node *node = tensor->node;
    if (!read_wish(graph, place, &wish)) return &graph->poison;
    if (node->wish && contradict(node->wish, &wish))
        return wefti_graph_fail(graph, WEFT_E_INVALID, "'%s' is placed at '%s', which contradicts '%s', said before", node->name, wish.text, node->wish->text);
    wish.own = wish.said | (node->wish ? node->wish->own : 0);
    node->wish = joined(graph, &wish, node->wish);
    graph->placed = true;
    return tensor;
}

void weft_place_begin(weft_graph *graph, const char *place) {
    wefti_wish wish;
    if (!graph || graph->status != WEFT_OK || !read_wish(graph, place, &wish)) return;
    if (graph->wish_depth == WEFTI_SCOPE_DEPTH) {
        wefti_graph_fail(graph, WEFT_E_INVALID, "place '%s': scopes nest up to %d deep", place, WEFTI_SCOPE_DEPTH);
        return;
    }
    graph->outer_wishes[graph->wish_depth++] = graph->wish;
    graph->wish = joined(graph, &wish, graph->wish);
    graph->placed = true;
}

void weft_place_end(weft_graph *graph) {
    if (!graph || graph->status != WEFT_OK) return;
    if (graph->wish_depth == 0) {
        wefti_graph_fail(graph, WEFT_E_STATE, "place: an end without a begin");
        return;
    }
    graph->wish = graph->outer_wishes[--graph->wish_depth];
}
