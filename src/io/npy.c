/* NumPy files: six bytes of magic, two of version, the header's length, a Python dictionary of three keys, the data.
 *
 * Idea: the dictionary is parsed by hand for exactly what numpy.save writes; nothing else is a header. Data passes through
 * a small buffer where it has to be turned, widened or transposed, and goes straight to the caller otherwise.
 * Cost: the source's buffer and 8 KiB on the stack. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "io/bytes.h"
#include "io/sink.h"
#include "io/source.h"
#include "weft/npy.h"

enum { most_header_bytes = 1 << 16 };

typedef struct npy_type {
    char       kind;
    uint8_t    bytes;
    weft_dtype dtype;
} npy_type;

static const npy_type types[] = {{'f', 4, WEFT_F32}, {'f', 8, WEFT_F64}, {'f', 2, WEFT_F16}, {'i', 8, WEFT_I64},
                                 {'i', 4, WEFT_I32}, {'u', 1, WEFT_U8},  {'b', 1, WEFT_BOOL}, {'i', 1, WEFT_I32},
                                 {'i', 2, WEFT_I32}, {'u', 2, WEFT_I32}, {'u', 4, WEFT_I64}};

struct weft_npy {
    wefti_source *source;
    weft_npy_info info;
    npy_type      type;
    char          stored[8];
    bool          swapped, finished;
};

/* ---- header ---- */

typedef struct cursor {
    const char *path, *at, *end;
    const char *begin;
    uint64_t    base; /* offset of `begin` in the file */
} cursor;

static weft_status unexpected(const cursor *in, const char *wanted) {
    return wefti_fail(WEFT_E_CORRUPT, "'%s': at offset %llu of the npy header expected %s", in->path,
                      (unsigned long long)(in->base + (uint64_t)(in->at - in->begin)), wanted);
}

static void skip_blanks(cursor *in) {
    while (in->at < in->end && (*in->at == ' ' || *in->at == '\n' || *in->at == '\t')) in->at++;
}

static bool try_word(cursor *in, const char *word) {
    size_t length = strlen(word);
    skip_blanks(in);
    if ((size_t)(in->end - in->at) < length || memcmp(in->at, word, length) != 0) return false;
    in->at += length;
    return true;
}

static weft_status take_word(cursor *in, const char *word) { return try_word(in, word) ? WEFT_OK : unexpected(in, word); }

/* A quoted text without escapes. */
static weft_status take_text(cursor *in, char *out, size_t room) {
    skip_blanks(in);
    if (in->at == in->end || (*in->at != '\'' && *in->at != '"')) return unexpected(in, "a quoted text");
    char        quote = *in->at++;
    const char *close = memchr(in->at, quote, (size_t)(in->end - in->at));
    if (!close || (size_t)(close - in->at) >= room || memchr(in->at, '\\', (size_t)(close - in->at)))
        return unexpected(in, "a short quoted text");
    memcpy(out, in->at, (size_t)(close - in->at));
    out[close - in->at] = '\0';
    in->at = close + 1;
    return WEFT_OK;
}

static weft_status take_shape(cursor *in, weft_shape *shape_out) {
    *shape_out = (weft_shape){0};
    WEFTI_TRY(take_word(in, "("));
    while (!try_word(in, ")")) {
        int64_t     dim = 0;
        const char *first = in->at;
        for (; in->at < in->end && *in->at >= '0' && *in->at <= '9'; in->at++)
            if (!wefti_mul_i64(dim, 10, &dim) || !wefti_add_i64(dim, *in->at - '0', &dim))
                return unexpected(in, "a dimension below 2^63");
        if (in->at == first) return unexpected(in, "a dimension or ')'");
        if (shape_out->rank == WEFT_MAX_RANK)
            return wefti_fail(WEFT_E_UNSUPPORTED, "'%s' has more than %d dimensions", in->path, WEFT_MAX_RANK);
        shape_out->dim[shape_out->rank++] = dim;
        if (try_word(in, ",")) {
            skip_blanks(in);
            continue;
        }
        return take_word(in, ")");
    }
    return WEFT_OK;
}

static weft_status set_type(weft_npy *npy, const cursor *in, const char *descr) {
    unsigned bytes = 0;
    char     order = descr[0], kind = descr[0] ? descr[1] : 0;
    if (strlen(descr) == 3 && descr[2] >= '1' && descr[2] <= '8') bytes = (unsigned)(descr[2] - '0');
    for (size_t i = 0; i < WEFTI_COUNT(types) && strchr("<>|=", order); i++) {
        if (types[i].kind != kind || types[i].bytes != bytes) continue;
        npy->type = types[i];
        npy->swapped = order == '>';
        npy->info.dtype = types[i].dtype;
        snprintf(npy->stored, sizeof npy->stored, "%s", descr);
        npy->info.stored = npy->stored;
        return WEFT_OK;
    }
    return wefti_fail(WEFT_E_UNSUPPORTED, "'%s' holds values of type '%s', which Weft has not", in->path, descr);
}

static weft_status parse_header(weft_npy *npy, cursor *in) {
    bool has_type = false, has_order = false, has_shape = false;
    WEFTI_TRY(take_word(in, "{"));
    while (!try_word(in, "}")) {
        char  key[24], descr[16];
        bool *has = NULL;
        WEFTI_TRY(take_text(in, key, sizeof key));
        WEFTI_TRY(take_word(in, ":"));
        if (strcmp(key, "descr") == 0) {
            has = &has_type;
            skip_blanks(in);
            if (in->at < in->end && *in->at == '[')
                return wefti_fail(WEFT_E_UNSUPPORTED, "'%s' holds records, which Weft has not", in->path);
            WEFTI_TRY(take_text(in, descr, sizeof descr));
            WEFTI_TRY(set_type(npy, in, descr));
        } else if (strcmp(key, "fortran_order") == 0) {
            has = &has_order;
            npy->info.column_major = try_word(in, "True");
            if (!npy->info.column_major) WEFTI_TRY(take_word(in, "False"));
        } else if (strcmp(key, "shape") == 0) {
            has = &has_shape;
            WEFTI_TRY(take_shape(in, &npy->info.shape));
        }
        if (!has || *has) return unexpected(in, "each of descr, fortran_order and shape once");
        *has = true;
        if (try_word(in, ",")) continue;
        WEFTI_TRY(take_word(in, "}"));
        break;
    }
    skip_blanks(in);
    if (in->at != in->end) return unexpected(in, "nothing more");
    return has_type && has_order && has_shape ? WEFT_OK : unexpected(in, "each of descr, fortran_order and shape");
}

static weft_status read_exactly(weft_npy *npy, void *out, size_t bytes, const char *what) {
    size_t got = 0;
    WEFTI_TRY(wefti_source_read(npy->source, out, bytes, &got));
    if (got == bytes) return WEFT_OK;
    return wefti_fail(WEFT_E_CORRUPT, "'%s' ends at offset %llu inside %s", wefti_source_path(npy->source),
                      (unsigned long long)wefti_source_offset(npy->source), what);
}

static weft_status read_header(weft_npy *npy, const char *path) {
    uint8_t  start[12];
    uint32_t length = 0;
    WEFTI_TRY(read_exactly(npy, start, 10, "the npy magic"));
    if (memcmp(start, "\x93NUMPY", 6) != 0) return wefti_fail(WEFT_E_CORRUPT, "'%s' is not an npy file: wrong magic", path);
    if (start[6] < 1 || start[6] > 3 || start[7] != 0)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' has npy version %u.%u; expected 1.0, 2.0 or 3.0", path, start[6], start[7]);
    if (start[6] > 1) WEFTI_TRY(read_exactly(npy, start + 10, 2, "the npy header's length"));
    memcpy(&length, start + 8, start[6] > 1 ? 4 : 2);
    if (length > most_header_bytes)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' has an npy header of %u bytes; expected at most %d", path, length,
                          most_header_bytes);
    char *header = NULL;
    WEFTI_TRY(wefti_alloc_raw(length, WEFTI_CACHE_LINE, "an npy header", &header));
    weft_status status = read_exactly(npy, header, length, "the npy header");
    cursor      in = {path, header, header + length, header, start[6] > 1 ? 12 : 10};
    if (status == WEFT_OK) status = parse_header(npy, &in);
    wefti_free(header, length);
    return status;
}

static weft_status check_length(const weft_npy *npy, const char *path) {
    int64_t elements = weft_shape_elements(npy->info.shape), stored = 0, out = 0;
    if (elements < 0 || !wefti_mul_i64(elements, npy->type.bytes, &stored) ||
        !wefti_mul_i64(elements, (int64_t)weft_dtype_bytes(npy->info.dtype), &out))
        return wefti_fail(WEFT_E_OVERFLOW, "'%s': the size of %s %s overflows", path, npy->stored,
                          weft_shape_text(npy->info.shape).text);
    uint64_t have = wefti_source_most_bytes(npy->source) - wefti_source_offset(npy->source);
    bool     exact = !wefti_source_compressed(npy->source);
    if ((uint64_t)stored > have || (exact && (uint64_t)stored != have))
        return wefti_fail(WEFT_E_CORRUPT, "'%s' has %llu bytes after its header; %s %s takes %lld", path,
                          (unsigned long long)have, npy->stored, weft_shape_text(npy->info.shape).text, (long long)stored);
    return WEFT_OK;
}

weft_status weft_npy_open(const char *path, weft_npy **npy_out) {
    if (!npy_out) return wefti_fail(WEFT_E_INVALID, "weft_npy_open: npy_out is NULL");
    *npy_out = NULL;
    weft_npy   *npy = NULL;
    weft_status status;
    WEFTI_TRY(wefti_alloc(sizeof *npy, "an npy reader", &npy));
    WEFTI_TRY_GOTO(wefti_source_open(path, &npy->source), fail);
    WEFTI_TRY_GOTO(read_header(npy, path), fail);
    WEFTI_TRY_GOTO(check_length(npy, path), fail);
    *npy_out = npy;
    return WEFT_OK;
fail:
    weft_npy_release(npy);
    return status;
}

const weft_npy_info *weft_npy_describe(const weft_npy *npy) { return &npy->info; }

/* ---- data ---- */

/* One element in the host's order to the dtype handed out. */
static void put_element(const weft_npy *npy, const uint8_t *from, uint8_t *to) {
    int8_t   i1;
    int16_t  i2;
    uint16_t u2;
    uint32_t u4;
    int32_t  narrow;
    int64_t  wide;
    if (npy->type.bytes == weft_dtype_bytes(npy->info.dtype)) {
        memcpy(to, from, npy->type.bytes);
    } else if (npy->type.bytes == 4) {
        memcpy(&u4, from, 4);
        wide = u4;
        memcpy(to, &wide, 8);
    } else {
        memcpy(&i1, from, 1);
        memcpy(&i2, from, npy->type.bytes == 2 ? 2 : 1);
        memcpy(&u2, from, npy->type.bytes == 2 ? 2 : 1);
        narrow = npy->type.bytes == 1 ? i1 : npy->type.kind == 'i' ? i2 : u2;
        memcpy(to, &narrow, 4);
    }
}

/* Row-major place of the element after the one at `index`, in column-major order. */
static void advance(weft_shape shape, int64_t index[WEFT_MAX_RANK], const int64_t stride[WEFT_MAX_RANK], int64_t *place) {
    for (int32_t axis = 0; axis < shape.rank; axis++) {
        *place += stride[axis];
        if (++index[axis] < shape.dim[axis]) return;
        *place -= stride[axis] * shape.dim[axis];
        index[axis] = 0;
    }
}

static weft_status read_elementwise(weft_npy *npy, uint8_t *out, int64_t elements) {
    uint8_t    part[8192];
    weft_shape shape = npy->info.shape;
    int64_t    index[WEFT_MAX_RANK] = {0}, stride[WEFT_MAX_RANK] = {0}, place = 0;
    size_t     out_bytes = weft_dtype_bytes(npy->info.dtype);
    int64_t    step = 1;
    for (int32_t axis = shape.rank - 1; axis >= 0; axis--) {
        stride[axis] = step;
        step *= shape.dim[axis];
    }
    for (int64_t done = 0; done < elements;) {
        int64_t now = wefti_min_i64(elements - done, (int64_t)sizeof part / npy->type.bytes);
        WEFTI_TRY(read_exactly(npy, part, (size_t)now * npy->type.bytes, "the data"));
        if (npy->swapped) wefti_swap_bytes(part, (size_t)now, npy->type.bytes);
        for (int64_t i = 0; i < now; i++) {
            put_element(npy, part + i * npy->type.bytes, out + (size_t)place * out_bytes);
            if (npy->info.column_major) advance(shape, index, stride, &place);
            else place++;
        }
        done += now;
    }
    return WEFT_OK;
}

static weft_status check_tail(weft_npy *npy, const uint8_t *out, int64_t elements) {
    uint8_t extra;
    size_t  got = 0;
    WEFTI_TRY(wefti_source_read(npy->source, &extra, 1, &got));
    if (got != 0)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' goes on after offset %llu, where its data ends",
                          wefti_source_path(npy->source), (unsigned long long)wefti_source_offset(npy->source) - 1);
    for (int64_t i = 0; npy->info.dtype == WEFT_BOOL && i < elements; i++)
        if (out[i] > 1)
            return wefti_fail(WEFT_E_CORRUPT, "'%s' has a bool of value %u (element %lld)", wefti_source_path(npy->source),
                              out[i], (long long)i);
    return WEFT_OK;
}

weft_status weft_npy_read(weft_npy *npy, void *data_out) {
    int64_t elements = npy ? weft_shape_elements(npy->info.shape) : 0;
    if (!npy || (!data_out && elements > 0))
        return wefti_fail(WEFT_E_INVALID, "weft_npy_read: needs a reader and where to write");
    if (npy->finished)
        return wefti_fail(WEFT_E_STATE, "'%s' has been read already; open it again", wefti_source_path(npy->source));
    npy->finished = true;
    bool plain = !npy->info.column_major && npy->type.bytes == weft_dtype_bytes(npy->info.dtype);
    if (plain) {
        WEFTI_TRY(read_exactly(npy, data_out, (size_t)elements * npy->type.bytes, "the data"));
        if (npy->swapped) wefti_swap_bytes(data_out, (size_t)elements, npy->type.bytes);
    } else {
        WEFTI_TRY(read_elementwise(npy, data_out, elements));
    }
    return check_tail(npy, data_out, elements);
}

void weft_npy_release(weft_npy *npy) {
    if (!npy) return;
    wefti_source_release(npy->source);
    wefti_free(npy, sizeof *npy);
}

/* ---- writing ---- */

/* Magic, version 1.0, length and dictionary, padded so that the data begins at a multiple of 64. */
static void make_header(wefti_text *text, const char *descr, weft_shape shape) {
    wefti_text_add(text, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
    for (int32_t axis = 0; axis < shape.rank; axis++)
        wefti_text_add(text, "%" PRId64 "%s", shape.dim[axis], shape.rank == 1 ? "," : axis + 1 < shape.rank ? ", " : "");
    wefti_text_add(text, "), }");
    while (!text->failed && (text->length + 11) % 64 != 0) wefti_text_add(text, " ");
    wefti_text_add(text, "\n");
}

static weft_status write_all(wefti_sink *sink, const wefti_text *header, const void *data, size_t bytes) {
    uint8_t start[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (uint8_t)header->length, (uint8_t)(header->length >> 8)};
    WEFTI_TRY(wefti_sink_append(sink, start, sizeof start));
    WEFTI_TRY(wefti_sink_append(sink, header->bytes, header->length));
    WEFTI_TRY(wefti_sink_append(sink, data, bytes));
    return wefti_sink_commit(sink);
}

weft_status weft_npy_save(const char *path, weft_dtype dtype, weft_shape shape, const void *data) {
    const npy_type *type = NULL;
    for (size_t i = 0; i < WEFTI_COUNT(types); i++)
        if (types[i].dtype == dtype && types[i].bytes == weft_dtype_bytes(dtype)) type = &types[i];
    if (!type)
        return wefti_fail(WEFT_E_UNSUPPORTED, "'%s': npy files cannot hold %s; cast it", path ? path : "",
                          weft_dtype_name(dtype));
    int64_t elements = weft_shape_elements(shape), bytes = 0;
    if (elements < 0 || !wefti_mul_i64(elements, type->bytes, &bytes))
        return wefti_fail(WEFT_E_OVERFLOW, "'%s': the size of shape %s overflows", path ? path : "",
                          weft_shape_text(shape).text);
    if (bytes > 0 && !data) return wefti_fail(WEFT_E_INVALID, "'%s': no data was given", path ? path : "");
    char        descr[8];
    wefti_text  header = {0};
    wefti_sink *sink = NULL;
    snprintf(descr, sizeof descr, "%c%c%u", type->bytes == 1 ? '|' : '<', type->kind, type->bytes);
    WEFTI_TRY(wefti_sink_create(path, &sink));
    make_header(&header, descr, shape);
    weft_status status = header.failed ? wefti_fail(WEFT_E_NO_MEMORY, "out of memory for the header of '%s'", path)
                                       : write_all(sink, &header, data, (size_t)bytes);
    wefti_text_release(&header);
    wefti_sink_release(sink);
    return status;
}
