/* Variables: one block of memory for each call that added some, and a table by name.
 *
 * Blocks never move, so plans may keep addresses. Where the world's wire maps peers' memory they lie in exported regions (variables_shared.c). Initial values are drawn on the host's cores by counter (core/tensor/philox.h) and written
 * to the device, so any device starts with the same bits. Looking up a name is a hash; creation is linear in elements. */
#include <stdio.h>
#include <string.h>

#include "core/base/spread.h"
#include "core/iface/world.h"
#include "core/plan/object.h"
#include "core/plan/variables.h"
#include "core/tensor/operand.h"
#include "core/tensor/philox.h"

/* --- initial values --- */

static double initial_value(const wefti_leaf *leaf, weft_dtype dtype, int64_t i) {
    switch ((wefti_init_kind)leaf->init) {
    case WEFTI_INIT_ONES: return 1;
    case WEFTI_INIT_VALUE: return leaf->a;
    case WEFTI_INIT_UNIFORM: return leaf->a + (leaf->b - leaf->a) * wefti_random_uniform(leaf->key, 0, i, dtype);
    case WEFTI_INIT_NORMAL: return leaf->a + leaf->b * wefti_random_normal(leaf->key, 0, i, dtype);
    default: return 0;
    }
}

#define CHUNK (1 << 18) /* elements that a thread draws at a time */

/* Of the part that the window is on; drawn by the global index, so that any split starts alike. */
typedef struct filling {
    const wefti_leaf      *leaf;
    weft_dtype             dtype;
    weft_shape             global;
    const wefti_window_of *window;
    int64_t                elements;
    void                  *values;
} filling;

/* Elements 4 * quad to 4 * quad + 3 of wefti_random_normal, at two fifths of the work; not of f64. */
static void normal_quad(uint64_t key, uint64_t quad, double quad_out[4]) {
    wefti_philox block = wefti_philox_block(key, 0, quad);
    for (int i = 0; i < 4; i += 2) {
        double radius = sqrt(-2 * log((block.word[i] + 1.0) * 0x1p-32)), angle = 6.283185307179586476925 * (block.word[i + 1] * 0x1p-32);
        quad_out[i] = radius * cos(angle);
        quad_out[i + 1] = radius * sin(angle);
    }
}

static void fill_whole(const filling *f, int64_t begin, int64_t end) {
    double quad[4];
    if (f->leaf->init == WEFTI_INIT_NORMAL && f->dtype != WEFT_F64)
        for (; begin + 4 <= end; begin += 4) {
            normal_quad(f->leaf->key, (uint64_t)begin / 4, quad);
            for (int64_t i = 0; i < 4; i++) wefti_store_f64(f->values, begin + i, f->dtype, f->leaf->a + f->leaf->b * quad[i]);
        }
    for (int64_t i = begin; i < end; i++) wefti_store_f64(f->values, i, f->dtype, initial_value(f->leaf, f->dtype, i));
}

static void fill_chunk(void *context, int64_t chunk) {
    const filling *f = context;
    int64_t        begin = chunk * CHUNK, end = wefti_min_i64(begin + CHUNK, f->elements);
    if (wefti_window_is_whole(f->window)) {
        fill_whole(f, begin, end);
        return;
    }
    for (int64_t i = begin; i < end; i++) {
        int64_t index = wefti_window_index(f->window, f->global, i);
        wefti_store_f64(f->values, i, f->dtype, index < 0 ? 0 : initial_value(f->leaf, f->dtype, index));
    }
}

static void fill_initial(const wefti_leaf *leaf, weft_dtype dtype, weft_shape global, const wefti_window_of *window, int32_t threads, void *values_out) {
    filling f = {leaf, dtype, global, window, weft_shape_elements(wefti_window_shape(window, global)), values_out};
    if (leaf->init == WEFTI_INIT_ZEROS) memset(values_out, 0, (size_t)f.elements * weft_dtype_bytes(dtype));
    else wefti_spread((f.elements + CHUNK - 1) / CHUNK, threads, fill_chunk, &f);
}

weft_status wefti_leaf_initial(const weft_tensor *leaf, void *values_out) {
    if (!leaf->node || !leaf->node->leaf || (leaf->node->op != WEFT_OP_PARAMETER && leaf->node->op != WEFT_OP_STATE))
        return wefti_fail(WEFT_E_INVALID, "'%s' is no parameter or state and has no initial value", weft_tensor_name(leaf));
    fill_initial(leaf->node->leaf, leaf->dtype, leaf->shape, &(wefti_window_of){.ranks = 1}, 1, values_out);
    return WEFT_OK;
}

static weft_status initialise(weft_variables *v, const wefti_variable *it) {
    int32_t threads = v->device->vtable->host_memory ? v->device->vtable->threads(v->device) : wefti_cores();
    if (v->device->vtable->host_memory) {
        fill_initial(&it->leaf, it->dtype, it->shape, &it->window, threads, it->memory);
        return WEFT_OK;
    }
    void *values = NULL;
    WEFTI_TRY(wefti_alloc((size_t)it->bytes, "initial values", &values));
    fill_initial(&it->leaf, it->dtype, it->shape, &it->window, threads, values);
    weft_status status = v->device->vtable->write(v->device, it->memory, values, (size_t)it->bytes);
    wefti_free(values, (size_t)it->bytes);
    return status;
}

/* --- names --- */

static uint32_t hash_name(const char *name) { return (uint32_t)wefti_hash(WEFTI_HASH_BEGIN, name, strlen(name)); }

static void enter(weft_variables *v, int32_t index) {
    uint32_t mask = (uint32_t)v->table_size - 1, at = hash_name(v->list[index].name) & mask;
    while (v->table[at] >= 0) at = (at + 1) & mask;
    v->table[at] = index;
}

int32_t weft_variables_find(const weft_variables *v, const char *name) {
    if (!v || !name || v->table_size == 0) return -1;
    uint32_t mask = (uint32_t)v->table_size - 1;
    for (uint32_t at = hash_name(name) & mask; v->table[at] >= 0; at = (at + 1) & mask)
        if (strcmp(v->list[v->table[at]].name, name) == 0) return v->table[at];
    return -1;
}

static weft_status make_room(weft_variables *v, int32_t more) {
    while (v->capacity < v->count + more)
        WEFTI_TRY(wefti_ir_room(&v->list, v->capacity, &v->capacity, sizeof *v->list));
    if (v->table_size >= 2 * v->capacity) return WEFT_OK;
    int32_t *table = NULL, size = 128;
    while (size < 2 * v->capacity) size *= 2;
    WEFTI_TRY(wefti_alloc((size_t)size * sizeof *table, "variables", &table));
    wefti_free(v->table, (size_t)v->table_size * sizeof *table);
    memset(table, 0xff, (size_t)size * sizeof *table);
    v->table = table;
    v->table_size = size;
    for (int32_t i = 0; i < v->count; i++) enter(v, i);
    return WEFT_OK;
}

/* --- adding --- */

static bool is_variable(const wefti_node *node) { return node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE; }

static weft_variable_kind kind_of(const wefti_node *node) {
    return node->op == WEFT_OP_PARAMETER ? WEFT_VARIABLE_PARAMETER : WEFT_VARIABLE_STATE;
}

static weft_status match(const wefti_variable *it, weft_shape shape, const weft_tensor *leaf) {
    if (it->dtype == leaf->dtype && weft_shape_equal(shape, leaf->shape) && it->kind == kind_of(leaf->node)) return WEFT_OK;
    return wefti_fail(WEFT_E_MISMATCH, "variable '%s' is a %s %s %s%s, the graph has a %s %s %s of that name", it->name,
                      it->kind == WEFT_VARIABLE_PARAMETER ? "parameter" : "state", weft_dtype_name(it->dtype),
                      weft_shape_text(shape).text, wefti_window_is_whole(&it->window) ? "" : " (this rank's part)", wefti_ops[leaf->node->op].name,
                      weft_dtype_name(leaf->dtype), weft_shape_text(leaf->shape).text);
}

weft_status wefti_variables_match(const weft_variables *v, int32_t index, const weft_tensor *leaf) {
    const wefti_variable *it = &v->list[index];
    return match(it, wefti_window_shape(&it->window, it->shape), leaf);
}

static wefti_window_of window_of(const wefti_windows *windows, const char *name) {
    for (int32_t i = 0; i < windows->n; i++)
        if (strcmp(windows->list[i].name, name) == 0) return windows->list[i].window;
    return (wefti_window_of){.ranks = 1};
}

/* What it takes in its block. */
static size_t room_of(const weft_variables *v, const wefti_window_of *window, int64_t bytes) {
    return wefti_variable_room(v->wire, v->ranks, (size_t)wefti_max_i64(bytes, window->room_bytes));
}

static int64_t bytes_of(const weft_tensor *leaf, const wefti_window_of *window) {
    return weft_shape_elements(wefti_window_shape(window, leaf->shape)) * (int64_t)weft_dtype_bytes(leaf->dtype);
}

/* How many leaves are new, and the bytes that they take. */
static weft_status measure(const weft_variables *v, weft_graph *graph, const wefti_windows *windows, int32_t *count_out, size_t *bytes_out) {
    *count_out = 0;
    *bytes_out = 0;
    for (int32_t i = 0; i < graph->n_leaves; i++) {
        const wefti_node *node = graph->leaves[i];
        if (!is_variable(node)) continue;
        int32_t known = weft_variables_find(v, node->name);
        if (known >= 0) {
            WEFTI_TRY(match(&v->list[known], v->list[known].shape, &node->outputs[0]));
            continue;
        }
        wefti_window_of window = window_of(windows, node->name);
        if (!wefti_add_size(*bytes_out, room_of(v, &window, bytes_of(&node->outputs[0], &window)), bytes_out))
            return wefti_fail(WEFT_E_OVERFLOW, "the variables of graph '%s' have more bytes than can be counted", graph->name);
        (*count_out)++;
    }
    return WEFT_OK;
}

static weft_status add_variable(weft_variables *v, const wefti_node *node, const wefti_windows *windows, char *memory) {
    wefti_variable *it = &v->list[v->count];
    *it = (wefti_variable){.kind = kind_of(node), .dtype = node->outputs[0].dtype, .shape = node->outputs[0].shape,
                     .window = window_of(windows, node->name), .leaf = *node->leaf, .memory = memory};
    it->leaf.value = NULL;
    it->bytes = bytes_of(&node->outputs[0], &it->window);
    WEFTI_TRY(wefti_copy_string(node->name, &it->name));
    weft_status status = initialise(v, it);
    if (status != WEFT_OK) {
        wefti_free_string(it->name);
        return wefti_while(status, "initialising variable '%s'", node->name);
    }
    enter(v, v->count++);
    return WEFT_OK;
}

static void drop_block(weft_variables *v) {
    wefti_variable_block *block = v->blocks;
    v->blocks = block->next;
    v->bytes -= (int64_t)block->size_bytes;
    if (block->region) wefti_variables_withdraw(v, block);
    else v->device->vtable->deallocate(v->device, block->memory, block->size_bytes);
    wefti_free(block, sizeof *block);
}

static weft_status add_block(weft_variables *v, size_t size_bytes) {
    wefti_variable_block *block = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *block, "variables", &block));
    weft_status status = v->wire ? wefti_variables_export(v, size_bytes, block)
                                 : v->device->vtable->allocate(v->device, size_bytes, "variables", &block->memory);
    if (status != WEFT_OK) {
        wefti_free(block, sizeof *block);
        return status;
    }
    block->size_bytes = size_bytes;
    block->next = v->blocks;
    v->blocks = block;
    v->bytes += (int64_t)size_bytes;
    return WEFT_OK;
}

/* Back to `count` variables. */
static void forget_from(weft_variables *v, int32_t count) {
    while (v->count > count) wefti_free_string(v->list[--v->count].name);
    memset(v->table, 0xff, (size_t)v->table_size * sizeof *v->table);
    for (int32_t i = 0; i < v->count; i++) enter(v, i);
}

static weft_status extend(weft_variables *v, weft_graph *graph, const wefti_windows *windows) {
    int32_t more, before;
    size_t  bytes;
    if (!v || !graph) return wefti_fail(WEFT_E_INVALID, "weft_variables_extend: %s is NULL", v ? "the graph" : "variables");
    WEFTI_TRY(wefti_graph_status(graph));
    WEFTI_TRY(measure(v, graph, windows, &more, &bytes));
    if (more == 0) return WEFT_OK;
    WEFTI_TRY(make_room(v, more));
    WEFTI_TRY(add_block(v, bytes));
    char *memory = v->blocks->memory;
    before = v->count;
    for (int32_t i = 0; i < graph->n_leaves; i++) {
        const wefti_node *node = graph->leaves[i];
        if (!is_variable(node) || weft_variables_find(v, node->name) >= 0) continue;
        weft_status status = add_variable(v, node, windows, memory);
        if (status != WEFT_OK) {
            forget_from(v, before);
            drop_block(v);
            return status;
        }
        memory += room_of(v, &v->list[v->count - 1].window, v->list[v->count - 1].bytes);
    }
    return WEFT_OK;
}

weft_status weft_variables_extend(weft_variables *v, weft_graph *graph) { return extend(v, graph, &(wefti_windows){0}); }

weft_status weft_variables_create(weft_world *world, weft_graph *graph, weft_variables **variables_out) {
    return wefti_variables_create(world, graph, &(wefti_windows){0}, variables_out);
}

weft_status wefti_variables_create(weft_world *world, weft_graph *graph, const wefti_windows *windows, weft_variables **variables_out) {
    *variables_out = NULL;
    if (!world || !graph)
        return wefti_fail(WEFT_E_INVALID, "weft_variables_create: the %s is NULL", world ? "graph" : "world");
    weft_variables *v = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *v, "variables", &v));
    atomic_init(&v->references, 1);
    v->device = world->device;
    v->rank = world->rank;
    v->ranks = world->size;
    v->wire = wefti_mapping_wire(world);
    weft_status status = extend(v, graph, windows);
    if (status != WEFT_OK) {
        weft_variables_release(v);
        return status;
    }
    *variables_out = v;
    return WEFT_OK;
}

weft_variables *weft_variables_retain(weft_variables *v) {
    if (v) atomic_fetch_add_explicit(&v->references, 1, memory_order_relaxed);
    return v;
}

void weft_variables_release(weft_variables *v) {
    if (!v || atomic_fetch_sub_explicit(&v->references, 1, memory_order_acq_rel) != 1) return;
    for (int32_t i = 0; i < v->count; i++) wefti_free_string(v->list[i].name);
    while (v->blocks) drop_block(v);
    wefti_variables_part(v);
    wefti_free(v->list, (size_t)v->capacity * sizeof *v->list);
    wefti_free(v->table, (size_t)v->table_size * sizeof *v->table);
    wefti_free(v, sizeof *v);
}

/* --- questions --- */

int32_t weft_variables_count(const weft_variables *v) { return v ? v->count : 0; }
int64_t weft_variables_bytes(const weft_variables *v) { return v ? v->bytes : 0; }
void   *wefti_variables_memory(const weft_variables *v, int32_t index) { return v->list[index].memory; }
const wefti_window_of *wefti_variables_window(const weft_variables *v, int32_t index) { return &v->list[index].window; }

static int64_t global_bytes(const wefti_variable *it) { return weft_shape_elements(it->shape) * (int64_t)weft_dtype_bytes(it->dtype); }

weft_status weft_variables_info(const weft_variables *v, int32_t index, weft_variable_info *info_out) {
    if (!v || index < 0 || index >= v->count)
        return wefti_fail(WEFT_E_INVALID, "there is no variable %d: there are %d", index, weft_variables_count(v));
    const wefti_variable *it = &v->list[index];
    *info_out = (weft_variable_info){it->name,  it->kind,        it->dtype, it->shape, global_bytes(it), it->leaf.frozen,
                                     it->leaf.unregularised};
    return WEFT_OK;
}

/* --- values --- */

/* A variable whose name has the same last part, for the message. */
static const char *like(const weft_variables *v, const char *name) {
    const char *last = strrchr(name, '.');
    last = last ? last + 1 : name;
    for (int32_t i = 0; i < v->count; i++)
        if (*last && strstr(v->list[i].name, last)) return v->list[i].name;
    return NULL;
}

weft_status wefti_variables_missing(const weft_variables *v, const char *name) {
    const char *other = like(v, name);
    return wefti_fail(WEFT_E_NOT_FOUND, "there is no variable '%s' among %d%s%s%s", name, v->count,
                      other ? " (there is '" : "", other ? other : "", other ? "')" : "");
}

static weft_status look_up(const weft_variables *v, const char *name, const void *values, const wefti_variable **variable_out) {
    if (!v || !name) return wefti_fail(WEFT_E_INVALID, "variables: the %s is NULL", v ? "name" : "set");
    int32_t index = weft_variables_find(v, name);
    if (index < 0) return wefti_variables_missing(v, name);
    *variable_out = &v->list[index];
    if (!values && v->list[index].bytes > 0) return wefti_fail(WEFT_E_INVALID, "variable '%s': the memory is NULL", name);
    return WEFT_OK;
}

/* Whether this rank has all of it. */
static weft_status check_whole(const weft_variables *v, const wefti_variable *it) {
    const wefti_window_of *w = &it->window;
    if (wefti_window_is_whole(w)) return WEFT_OK;
    if (w->parts > 1)
        return wefti_fail(WEFT_E_STATE, "rank %d: variable '%s' %s is dealt out over %d ranks by the strategy (zero), and this rank has part %d, %lld elements, "
                          "alone: weft_trainer_save and weft_trainer_load have all of it", v->rank, it->name, weft_shape_text(it->shape).text, w->parts,
                          w->part, (long long)w->each);
    bool blocks = w->ranks <= 1;
    return wefti_fail(WEFT_E_STATE, "rank %d: variable '%s' %s is split along axis %d over %d ranks by the strategy, and this rank has part %d, %s, "
                      "alone: weft_trainer_save and weft_trainer_load have all of it", v->rank, it->name, weft_shape_text(it->shape).text, blocks ? 0 : w->axis,
                      blocks ? w->blocks : w->ranks, blocks ? w->block : w->rank, weft_shape_text(wefti_window_shape(w, it->shape)).text);
}

weft_status weft_variables_get(const weft_variables *v, const char *name, void *values_out, size_t bytes) {
    const wefti_variable *it = NULL;
    WEFTI_TRY(look_up(v, name, values_out, &it));
    if (bytes != (size_t)global_bytes(it))
        return wefti_fail(WEFT_E_MISMATCH, "variable '%s' is %s %s, %lld bytes; there is room for %zu", name,
                          weft_dtype_name(it->dtype), weft_shape_text(it->shape).text, (long long)global_bytes(it), bytes);
    WEFTI_TRY(check_whole(v, it));
    WEFTI_TRY(wefti_variables_whole(v, (int32_t)(it - v->list)));
    return v->device->vtable->read(v->device, values_out, it->memory, bytes);
}

weft_status weft_variables_set(weft_variables *v, const char *name, weft_dtype dtype, weft_shape shape, const void *values) {
    const wefti_variable *it = NULL;
    WEFTI_TRY(look_up(v, name, values, &it));
    if (dtype != it->dtype)
        return wefti_fail(WEFT_E_DTYPE, "variable '%s' is %s, not %s", name, weft_dtype_name(it->dtype), weft_dtype_name(dtype));
    if (!weft_shape_equal(shape, it->shape))
        return wefti_fail(WEFT_E_SHAPE, "variable '%s' has shape %s, not %s", name, weft_shape_text(it->shape).text,
                          weft_shape_text(shape).text);
    WEFTI_TRY(check_whole(v, it));
    wefti_variables_overwrite(v, (int32_t)(it - v->list));
    return v->device->vtable->write(v->device, it->memory, values, (size_t)it->bytes);
}

int64_t wefti_variables_part_bytes(const weft_variables *v, int32_t index) { return v->list[index].bytes; }

weft_status wefti_variables_take(const weft_variables *v, int32_t index, void *part_out) {
    WEFTI_TRY(wefti_variables_whole(v, index));
    return v->device->vtable->read(v->device, part_out, v->list[index].memory, (size_t)v->list[index].bytes);
}

weft_status wefti_variables_put(weft_variables *v, int32_t index, const void *part) {
    wefti_variables_overwrite(v, index);
    return v->device->vtable->write(v->device, v->list[index].memory, part, (size_t)v->list[index].bytes);
}

weft_status weft_variables_reset(weft_variables *v) {
    if (!v) return wefti_fail(WEFT_E_INVALID, "weft_variables_reset: variables is NULL");
    for (int32_t i = 0; i < v->count; i++) {
        wefti_variables_overwrite(v, i);
        WEFTI_TRY(initialise(v, &v->list[i]));
    }
    return WEFT_OK;
}
