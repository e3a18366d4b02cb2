/* Recomputation by strategy: each run of operations in one scope of the program ("block3") becomes a segment, as between weft_recompute_begin and _end, if
 * there are two of such scopes at least and the program has no segments of its own. */
#include <string.h>

#include "train/trainer.h"

/* The first part of a name with several, in bytes; 0: it has one. */
static size_t scope_bytes(const wefti_node *node) {
    const char *dot = strchr(node->name, '.');
    return dot ? (size_t)(dot - node->name) : 0;
}

/* Calls nothing where `mark` is false. Gives how many segments there are, or would be. */
static int32_t walk(weft_graph *graph, bool mark) {
    const wefti_node *before = NULL;
    int32_t           segments = 0;
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        wefti_node *node = graph->nodes[id];
        if (wefti_ops[node->op].family == WEFTI_LEAF) continue;
        size_t bytes = scope_bytes(node);
        bool   same = before && bytes == scope_bytes(before) && memcmp(before->name, node->name, bytes) == 0;
        if (bytes > 0 && !same) segments++;
        if (bytes > 0 && mark) node->segment = segments;
        before = node;
    }
    return segments;
}

int32_t wefti_recompute_scopes(weft_graph *graph) {
    if (graph->n_segments > 0) return 0;
    int32_t segments = walk(graph, false);
    return segments >= 2 ? segments : 0;
}

void wefti_recompute_mark(weft_graph *graph) {
    if (wefti_recompute_scopes(graph) > 0) graph->n_segments = walk(graph, true);
}
