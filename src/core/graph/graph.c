/* The graph object: its memory, its first error, its names and scopes.
 *
 * Everything that a graph points at is cut from blocks that live as long as the graph, so nodes are never freed one by
 * one and addresses never change; only the arrays of pointers grow. The first error wins and stays: what comes after it
 * is poisoned and adds nothing. Cost: about 500 bytes a node. */
#include "core/graph/graph.h"

#include <stdio.h>
#include <string.h>

#include "core/graph/internal.h"

enum { BLOCK_BYTES = 64 * 1024 };

typedef struct wefti_block {
    struct wefti_block *next;
    size_t              size_bytes, used_bytes; /* this header included */
} block;

weft_tensor wefti_orphan;

weft_status weft_graph_create(const weft_graph_options *options, weft_graph **graph_out) {
    *graph_out = NULL;
    weft_graph *graph;
    WEFTI_TRY(wefti_alloc(sizeof *graph, "graph", &graph));
    graph->seed = options ? options->seed : 0;
    graph->bf16_parameters = options && options->bf16_parameters;
    graph->poison.graph = graph;
    atomic_init(&graph->references, 1);
    graph->name = wefti_graph_text(graph, options && options->name ? options->name : "graph");
    if (graph->status != WEFT_OK) {
        weft_graph_release(graph);
        return wefti_fail(WEFT_E_NO_MEMORY, "graph: no memory for its name");
    }
    *graph_out = graph;
    return WEFT_OK;
}

weft_graph *weft_graph_retain(weft_graph *graph) {
    if (graph) atomic_fetch_add_explicit(&graph->references, 1, memory_order_relaxed);
    return graph;
}

void weft_graph_release(weft_graph *graph) {
    if (!graph || atomic_fetch_sub_explicit(&graph->references, 1, memory_order_acq_rel) != 1) return;
    wefti_graph_drop_constants(graph);
    for (block *b = graph->blocks; b;) {
        block *next = b->next;
        wefti_free(b, b->size_bytes);
        b = next;
    }
    wefti_free(graph->nodes, (size_t)graph->capacity * sizeof *graph->nodes);
    wefti_free(graph->leaves, (size_t)graph->leaves_capacity * sizeof *graph->leaves);
    wefti_free(graph->effects, (size_t)graph->effects_capacity * sizeof *graph->effects);
    wefti_free(graph, sizeof *graph);
}

void *wefti_graph_memory(weft_graph *graph, size_t size_bytes) {
    size_t header = wefti_align_up(sizeof(block), 16), wanted = wefti_align_up(size_bytes ? size_bytes : 1, 16);
    block *head = graph->blocks;
    if (!head || head->size_bytes - head->used_bytes < wanted) {
        size_t room =
            wanted > BLOCK_BYTES / 4 ? header + wanted : BLOCK_BYTES; /* large things get blocks of their own */
        block *fresh;
        if (wanted < size_bytes || room < wanted || wefti_alloc(room, "graph nodes", &fresh) != WEFT_OK) {
            wefti_graph_fail(graph, WEFT_E_NO_MEMORY, "graph '%s': no memory for %zu more bytes of nodes",
                             graph->name ? graph->name : "", size_bytes);
            return NULL;
        }
        fresh->size_bytes = room;
        fresh->used_bytes = header;
        fresh->next = head;
        graph->blocks = head = fresh;
    }
    void *memory = (char *)head + head->used_bytes;
    head->used_bytes += wanted;
    return memory;
}

const char *wefti_graph_text(weft_graph *graph, const char *text) {
    size_t bytes = strlen(text) + 1;
    char  *copy = wefti_graph_memory(graph, bytes);
    return copy ? memcpy(copy, text, bytes) : "";
}

const char *wefti_graph_join(weft_graph *graph, const char *name, const char *suffix) {
    if (!graph || !name) return suffix;
    size_t bytes = strlen(name) + strlen(suffix) + 2;
    char  *joined = wefti_graph_memory(graph, bytes);
    if (!joined) return "";
    snprintf(joined, bytes, "%s.%s", name, suffix);
    return joined;
}

/* ---- errors ---- */

weft_tensor *wefti_graph_fail(weft_graph *graph, weft_status status, const char *format, ...) {
    char    text[WEFTI_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    (void)!wefti_fail(status, "%s", text);
    return wefti_graph_latch(graph, status);
}

weft_tensor *wefti_graph_latch(weft_graph *graph, weft_status status) {
    if (!graph) return &wefti_orphan;
    if (graph->status == WEFT_OK) {
        graph->status = status;
        snprintf(graph->message, sizeof graph->message, "%s", weft_error_message());
    }
    return &graph->poison;
}

weft_status wefti_graph_status(weft_graph *graph) {
    if (!graph) return wefti_fail(WEFT_E_INVALID, "the graph is NULL");
    return graph->status == WEFT_OK ? WEFT_OK : wefti_fail(graph->status, "%s", graph->message);
}

weft_status weft_graph_check(weft_graph *graph) { return wefti_graph_status(graph); }

const char *weft_graph_message(const weft_graph *graph) { return graph ? graph->message : ""; }

/* ---- names, scopes, keys ---- */

weft_tensor *weft_graph_find(weft_graph *graph, const char *name) {
    if (!graph || !name) return NULL;
    for (int32_t i = 0; i < graph->n_leaves; i++)
        if (strcmp(graph->leaves[i]->name, name) == 0) return &graph->leaves[i]->outputs[0];
    return NULL;
}

int32_t weft_graph_parameter_count(const weft_graph *graph) {
    int32_t count = 0;
    for (int32_t i = 0; graph && i < graph->n_leaves; i++) count += graph->leaves[i]->op == WEFT_OP_PARAMETER;
    return count;
}

weft_tensor *weft_graph_parameter(weft_graph *graph, int32_t index) {
    for (int32_t i = 0; graph && i < graph->n_leaves; i++)
        if (graph->leaves[i]->op == WEFT_OP_PARAMETER && index-- == 0) return &graph->leaves[i]->outputs[0];
    return NULL;
}

void weft_scope_push(weft_graph *graph, const char *name) {
    if (!graph || graph->status != WEFT_OK) return;
    size_t used = strlen(graph->scope);
    if (!name || !*name) {
        wefti_graph_fail(graph, WEFT_E_INVALID, "scope: a name is needed");
    } else if (graph->scope_depth == WEFTI_SCOPE_DEPTH || used + strlen(name) + 2 > WEFTI_SCOPE_BYTES) {
        wefti_graph_fail(graph, WEFT_E_INVALID, "scope '%s' within '%s': scopes nest up to %d deep and %d characters",
                         name, graph->scope, WEFTI_SCOPE_DEPTH, WEFTI_SCOPE_BYTES - 1);
    } else {
        graph->scope_begin[graph->scope_depth++] = (int32_t)used;
        snprintf(graph->scope + used, sizeof graph->scope - used, "%s.", name);
    }
}

void weft_scope_pop(weft_graph *graph) {
    if (!graph || graph->status != WEFT_OK) return;
    if (graph->scope_depth == 0) {
        wefti_graph_fail(graph, WEFT_E_STATE, "scope: a pop without a push");
        return;
    }
    graph->scope[graph->scope_begin[--graph->scope_depth]] = '\0';
}

void weft_recompute_begin(weft_graph *graph) {
    if (!graph || graph->status != WEFT_OK) return;
    if (graph->segment) {
        wefti_graph_fail(graph, WEFT_E_STATE, "recompute: segments do not nest: end the open one first");
        return;
    }
    graph->segment = ++graph->n_segments;
}

void weft_recompute_end(weft_graph *graph) {
    if (!graph || graph->status != WEFT_OK) return;
    if (!graph->segment) {
        wefti_graph_fail(graph, WEFT_E_STATE, "recompute: an end without a begin");
        return;
    }
    graph->segment = 0;
}

static uint64_t mix(uint64_t x) { /* the finaliser of splitmix64 (Steele, Lea & Flood 2014) */
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint64_t hash_text(uint64_t hash, const char *text) { return wefti_hash(hash, text, strlen(text)); }

uint64_t wefti_graph_key(weft_graph *graph, const char *name, bool leaf) {
    if (!graph) return 0;
    uint64_t hash = hash_text(hash_text(WEFTI_HASH_BEGIN, graph->scope), name ? name : "");
    uint64_t key = mix(mix(graph->seed) ^ hash);
    return leaf ? key : mix(key + (uint64_t)++graph->n_random);
}

/* ---- tensors ---- */

bool        weft_tensor_ok(const weft_tensor *tensor) { return tensor && tensor->node; }
weft_dtype  weft_tensor_dtype(const weft_tensor *tensor) { return tensor ? tensor->dtype : WEFT_F32; }
weft_shape  weft_tensor_shape(const weft_tensor *tensor) { return tensor ? tensor->shape : weft_shape_scalar(); }
const char *weft_tensor_name(const weft_tensor *tensor) { return weft_tensor_ok(tensor) ? tensor->node->name : ""; }
weft_graph *weft_tensor_graph(const weft_tensor *tensor) { return tensor ? tensor->graph : NULL; }

weft_tensor *weft_named(weft_tensor *tensor, const char *name) {
    if (!tensor) return wefti_graph_fail(NULL, WEFT_E_INVALID, "named: the tensor is NULL");
    if (wefti_poisoned(tensor)) return tensor;
    weft_graph *graph = tensor->graph;
    if (!name || !*name) return wefti_graph_fail(graph, WEFT_E_INVALID, "named: '%s' needs a name", tensor->node->name);
    if (tensor->node->leaf)
        return wefti_graph_fail(graph, WEFT_E_INVALID, "named: %s '%s' is a leaf and keeps its name",
                                wefti_ops[tensor->node->op].name, tensor->node->name);
    const char *full = wefti_graph_scoped(graph, name);
    if (graph->status != WEFT_OK) return &graph->poison;
    tensor->node->name = full;
    return tensor;
}
