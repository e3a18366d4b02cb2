/* Compression as graph operations.
 *
 * CAST and SCATTER are an all-to-all of encoded parts, a sum of what came in f32, and an all-gather of the encoded sums: every
 * element is rounded twice, however many ranks there are, where a ring that sums in the small type would round at each hop. GATHER
 * is an all-gather of what each rank chose, and a sum of that. FACTOR is compress_factor.c.
 *
 * Error feedback adds last step's rest to this rank's own sum, before anything else. Bytes and memory: weft/compression.h; for the
 * length of a step, encoded messages and, with feedback, one decoded copy of the gradient. */
#include <stdio.h>
#include <string.h>

#include "parallel/compress.h"

static const wefti_codec *codec_of(const wefti_compressed *one) { return wefti_codec_of(one->compress->how->codec); }

bool wefti_compress_feeds_back(const weft_compression *how) {
    return how->codec != WEFT_COMPRESS_NONE && (how->error_feedback || wefti_codec_of(how->codec)->feedback);
}

bool wefti_compress_takes(const weft_compression *how, weft_dtype dtype, weft_shape shape) {
    int64_t elements = weft_shape_elements(shape), least = how->least > 0 ? how->least : 1024;
    if (how->codec == WEFT_COMPRESS_NONE || dtype != WEFT_F32 || elements < least || elements > UINT32_MAX) return false;
    return wefti_codec_of(how->codec)->exchange != WEFTI_CODEC_FACTOR || wefti_compress_rank_of(how, shape) > 0;
}

/* --- emission --- */

weft_tensor *wefti_compress_communicate(const wefti_compress *compress, weft_op op, weft_tensor *x, weft_shape result) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.comm.group = compress->group;
    attrs.comm.reduce = WEFTI_REDUCE_SUM;
    attrs.comm.global = result;
    return wefti_apply(op, &attrs, &x, 1, NULL);
}

const char *wefti_compress_name(const wefti_compress *compress, const char *prefix, const char *parameter) {
    size_t size = strlen(prefix) + strlen(parameter) + 1;
    char  *name = wefti_graph_memory(compress->graph, size);
    if (!name) return "";
    snprintf(name, size, "%s%s", prefix, parameter);
    return name;
}

weft_tensor *wefti_compress_state(const wefti_compress *compress, const char *prefix, const char *parameter, weft_shape shape,
                                  wefti_init_kind init) {
    const char *name = wefti_compress_name(compress, prefix, parameter);
    wefti_leaf  leaf = {.init = init, .b = init == WEFTI_INIT_NORMAL, .batch_axis = -1};
    leaf.key = wefti_graph_key(compress->graph, name, true);
    return wefti_emit_leaf(compress->graph, WEFT_OP_STATE, NULL, WEFT_F32, shape, &leaf, name);
}

static weft_tensor *flat(weft_tensor *x) {
    return wefti_poisoned(x) ? x : weft_reshape(x, weft_shape(weft_shape_elements(x->shape)));
}

/* Elements of each rank's part. */
static int64_t part_of(const wefti_compressed *one) {
    int64_t elements = weft_shape_elements(one->sum->shape), ranks = one->compress->ranks;
    int64_t grain = codec_of(one)->functions->grain, each = (elements + ranks - 1) / ranks;
    return (each + grain - 1) / grain * grain;
}

static weft_tensor *apply_codec(const wefti_compressed *one, weft_op op, weft_tensor *x, int64_t part, int64_t count, bool sum) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.codec.codec = (int32_t)one->compress->how->codec;
    attrs.codec.part = part;
    attrs.codec.count = count;
    attrs.codec.sum = sum;
    if (codec_of(one)->exchange == WEFTI_CODEC_GATHER) attrs.codec.kept = wefti_codec_kept(one->compress->how, part);
    return wefti_apply(op, &attrs, &x, 1, NULL);
}

/* --- CAST: bf16 --- */

/* The cast writes what is sent, with nothing to copy. */
static void cast_begin(wefti_compressed *one) {
    int64_t      part = part_of(one), ranks = one->compress->ranks, elements = weft_shape_elements(one->sum->shape);
    weft_shape   parts = weft_shape(ranks, part);
    weft_tensor *whole = flat(one->sum);
    if (part * ranks > elements) whole = weft_pad(whole, .high = {part * ranks - elements});
    weft_tensor *small = weft_cast(weft_reshape(whole, parts), WEFT_BF16);
    if (wefti_compress_feeds_back(one->compress->how)) one->own = weft_slice(flat(weft_cast(small, WEFT_F32)), 0, 0, elements);
    one->sent = wefti_compress_communicate(one->compress, WEFT_OP_ALL_TO_ALL, small, parts);
}

/* Added up one rank after the other, which fuses into one loop; a reduction over so few rows would be slow. */
static void cast_end(wefti_compressed *one) {
    int64_t      part = part_of(one), ranks = one->compress->ranks, elements = weft_shape_elements(one->sum->shape);
    weft_tensor *sum = weft_cast(weft_slice(one->sent, 0, 0, 1), WEFT_F32);
    for (int64_t r = 1; r < ranks; r++) sum = weft_add(sum, weft_cast(weft_slice(one->sent, 0, r, r + 1), WEFT_F32));
    weft_tensor *all = wefti_compress_communicate(one->compress, WEFT_OP_ALL_GATHER, weft_cast(sum, WEFT_BF16), weft_shape(ranks, part));
    one->result = weft_cast(weft_slice(flat(all), 0, 0, elements), WEFT_F32);
}

/* --- SCATTER: fp8 --- */

static void scatter_begin(wefti_compressed *one) {
    int64_t      part = part_of(one), ranks = one->compress->ranks, elements = weft_shape_elements(one->sum->shape);
    weft_tensor *bytes = apply_codec(one, WEFT_OP_ENCODE, one->sum, part, ranks, false);
    if (wefti_compress_feeds_back(one->compress->how)) one->own = apply_codec(one, WEFT_OP_DECODE, bytes, part, elements, false);
    one->sent = wefti_compress_communicate(one->compress, WEFT_OP_ALL_TO_ALL, bytes, bytes->shape);
}

static void scatter_end(wefti_compressed *one) {
    int64_t      part = part_of(one), ranks = one->compress->ranks, elements = weft_shape_elements(one->sum->shape);
    weft_tensor *sum = apply_codec(one, WEFT_OP_DECODE, one->sent, part, part, true);
    weft_tensor *bytes = apply_codec(one, WEFT_OP_ENCODE, sum, part, 1, false);
    weft_shape   rows = bytes->shape;
    rows.dim[0] = ranks;
    weft_tensor *all = wefti_compress_communicate(one->compress, WEFT_OP_ALL_GATHER, bytes, rows);
    one->result = apply_codec(one, WEFT_OP_DECODE, all, part, elements, false);
}

/* --- GATHER: top-k --- */

static void gather_begin(wefti_compressed *one) {
    int64_t      elements = weft_shape_elements(one->sum->shape);
    weft_tensor *bytes = apply_codec(one, WEFT_OP_ENCODE, one->sum, elements, 1, false);
    weft_shape   rows = bytes->shape;
    rows.dim[0] = one->compress->ranks;
    if (wefti_compress_feeds_back(one->compress->how)) one->own = apply_codec(one, WEFT_OP_DECODE, bytes, elements, elements, false);
    one->sent = wefti_compress_communicate(one->compress, WEFT_OP_ALL_GATHER, bytes, rows);
}

static void gather_end(wefti_compressed *one) {
    int64_t elements = weft_shape_elements(one->sum->shape);
    one->result = apply_codec(one, WEFT_OP_DECODE, one->sent, elements, elements, true);
}

/* --- all of them --- */

typedef struct exchange {
    void (*begin)(wefti_compressed *one);
    void (*end)(wefti_compressed *one);
} exchange;

static const exchange exchanges[] = {
    [WEFTI_CODEC_CAST] = {cast_begin, cast_end},
    [WEFTI_CODEC_SCATTER] = {scatter_begin, scatter_end},
    [WEFTI_CODEC_GATHER] = {gather_begin, gather_end},
    [WEFTI_CODEC_FACTOR] = {wefti_factor_begin, wefti_factor_end},
};

/* What is kept is of the unscaled gradient, for the scale changes from step to step. */
static weft_tensor *feed_back(wefti_compressed *one, weft_tensor *sum) {
    const wefti_compress *compress = one->compress;
    one->error = wefti_compress_state(compress, WEFTI_COMPRESS_ERROR, one->parameter, sum->shape, WEFTI_INIT_ZEROS);
    weft_tensor *error = one->error;
    if (compress->loss_scale) error = weft_mul(error, compress->loss_scale);
    return weft_add(sum, error);
}

wefti_compressed *wefti_compress_begin(const wefti_compress *compress, weft_tensor *sum, const char *parameter) {
    wefti_compressed *one = wefti_graph_memory(compress->graph, sizeof *one);
    if (!one) return NULL;
    *one = (wefti_compressed){.compress = compress, .parameter = parameter, .sum = sum};
    if (wefti_poisoned(sum)) {
        one->result = sum;
        return one;
    }
    if (wefti_compress_feeds_back(compress->how)) one->sum = feed_back(one, sum);
    if (wefti_poisoned(one->sum)) one->result = one->sum;
    else exchanges[codec_of(one)->exchange].begin(one);
    return one;
}

weft_tensor *wefti_compress_end(wefti_compressed *one) {
    if (one->result) return one->result;
    exchanges[codec_of(one)->exchange].end(one);
    if (!wefti_poisoned(one->result)) one->result = weft_reshape(one->result, one->sum->shape);
    return one->result;
}

static void assign(weft_tensor *state, weft_tensor *value, weft_tensor *skip) {
    weft_tensor *inputs[2] = {state, weft_where(skip, state, value)};
    wefti_graph_effect(wefti_apply(WEFT_OP_ASSIGN, NULL, inputs, 2, NULL));
}

void wefti_compress_keep(wefti_compressed *one, weft_tensor *skip) {
    const wefti_compress *compress = one->compress;
    if (wefti_poisoned(one->result)) return;
    if (one->error) {
        weft_tensor *rest = weft_sub(one->sum, weft_reshape(one->own, one->sum->shape));
        if (compress->loss_scale) rest = weft_div(rest, compress->loss_scale);
        assign(one->error, rest, skip);
    }
    if (one->basis) assign(one->basis, one->next_basis, skip);
}
