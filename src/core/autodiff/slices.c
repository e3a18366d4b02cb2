/* Gradients of slices. Alone, each would be padded with zeros to the size of the whole, and the padded ones added up.
 * Slices mostly cut a tensor into parts (queries, keys and values; gates), so their gradients are laid side by side
 * instead: one write of the whole. Parts that overlap go into further layers, which are added. */
#include "core/autodiff/autodiff.h"

bool wefti_slice_is_piece(const wefti_node *slice, int32_t *axis_out) {
    weft_shape x = slice->inputs[0]->shape;
    int32_t    cut = 0;
    *axis_out = 0;
    for (int32_t axis = 0; axis < x.rank; axis++) {
        if (slice->attrs.slice.size[axis] == x.dim[axis]) continue;
        if (slice->attrs.slice.step[axis] != 1 && slice->attrs.slice.size[axis] > 1) return false;
        *axis_out = axis;
        cut++;
    }
    return x.rank > 0 && cut <= 1;
}

static int64_t end_of(const wefti_piece *piece) { return piece->start + piece->gradient->shape.dim[piece->axis]; }

/* Puts a piece into a list by its start, unless it overlaps one that is there. */
static bool insert(wefti_piece **layer, wefti_piece *piece) {
    wefti_piece **place = layer;
    while (*place && (*place)->start < piece->start) {
        if (end_of(*place) > piece->start) return false;
        place = &(*place)->next;
    }
    if (*place && end_of(piece) > (*place)->start) return false;
    piece->next = *place;
    *place = piece;
    return true;
}

static weft_tensor *zeros(const weft_tensor *x, int32_t axis, int64_t size) {
    weft_shape shape = x->shape;
    shape.dim[axis] = size;
    return wefti_expanded(weft_scalar(x->graph, x->dtype, 0), shape);
}

/* The pieces of one layer, with zeros between them. */
static weft_tensor *laid_out(const weft_tensor *x, wefti_piece *layer) {
    int32_t axis = layer->axis, count = 1;
    int64_t size = x->shape.dim[axis], at = 0;
    if (!layer->next && layer->start == 0 && end_of(layer) == size) return layer->gradient;
    if (!layer->next) {
        wefti_attrs attrs = wefti_no_attrs();
        attrs.pad.low[axis] = layer->start;
        attrs.pad.high[axis] = size - end_of(layer);
        return wefti_node1(WEFT_OP_PAD, &attrs, layer->gradient);
    }
    for (wefti_piece *piece = layer; piece; piece = piece->next) count += 2;
    weft_tensor **parts = wefti_graph_memory(x->graph, sizeof *parts * (size_t)count);
    if (!parts) return &x->graph->poison;
    count = 0;
    for (wefti_piece *piece = layer; piece; at = end_of(piece), piece = piece->next) {
        if (piece->start > at) parts[count++] = zeros(x, axis, piece->start - at);
        parts[count++] = piece->gradient;
    }
    if (at < size) parts[count++] = zeros(x, axis, size - at);
    return weft_concat(parts, count, axis);
}

weft_tensor *wefti_joined(const weft_tensor *x, wefti_piece *pieces) {
    weft_tensor *sum = NULL;
    while (pieces && x->graph->status == WEFT_OK) {
        int32_t      axis = pieces->axis;
        wefti_piece *layer = NULL, *rest = NULL;
        for (wefti_piece *piece = pieces, *next; piece; piece = next) {
            next = piece->next;
            if (piece->axis == axis && insert(&layer, piece)) continue;
            piece->next = rest;
            rest = piece;
        }
        weft_tensor *whole = laid_out(x, layer);
        sum = sum ? wefti_plus(sum, whole) : whole;
        pieces = rest;
    }
    return sum ? sum : &x->graph->poison;
}
