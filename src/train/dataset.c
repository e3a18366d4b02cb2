/* The three data sets: image files, token files, arrays in memory.
 *
 * Idea: each knows how to copy single rows to a place; order, sharding and threads are the loader's.
 * Invariants: row numbers handed to `fill` are below `rows`; `fill` allocates nothing. Cost: one row of scratch. */
#include <string.h>

#include "io/rows.h"
#include "train/dataset.h"

/* ---- images ---- */

typedef struct image_set {
    wefti_dataset base; /* first: release and fill get it */
    wefti_rows    images, labels;
    bool          labelled;
    int32_t       classes; /* 0: any label */
    int64_t       first_row;
    double        mean, scale;
    uint8_t      *scratch;
    size_t        scratch_bytes;
} image_set;

static void images_release(wefti_dataset *dataset) {
    image_set *set = (image_set *)dataset;
    wefti_rows_close(&set->images);
    wefti_rows_close(&set->labels);
    if (set->scratch) wefti_free(set->scratch, set->scratch_bytes);
    wefti_free(set, sizeof *set);
}

/* In blocks of fixed length, which compilers turn into SIMD without being told. */
static void convert_bytes(const uint8_t *restrict from, float *restrict out, size_t count, float scale, float shift) {
    enum { block = 16 };
    size_t i = 0;
    for (; i + block <= count; i += block)
        for (size_t k = 0; k < block; k++) out[i + k] = (float)from[i + k] * scale + shift;
    for (; i < count; i++) out[i] = (float)from[i] * scale + shift;
}

static void convert_pixels(const image_set *set, const void *row, float *out) {
    size_t count = set->base.row_bytes[0] / sizeof(float);
    switch (set->images.info.dtype) {
    case WEFT_U8:
        convert_bytes(row, out, count, (float)(set->scale / 255.0), (float)(-set->mean * set->scale));
        break;
    case WEFT_I32:
        for (size_t i = 0; i < count; i++) out[i] = (float)((((const int32_t *)row)[i] - set->mean) * set->scale);
        break;
    case WEFT_F32:
        for (size_t i = 0; i < count; i++) out[i] = (float)(((double)((const float *)row)[i] - set->mean) * set->scale);
        break;
    default:
        for (size_t i = 0; i < count; i++) out[i] = (float)((((const double *)row)[i] - set->mean) * set->scale);
    }
}

/* The label of a row of the file, which must be of a class that there is. */
static weft_status read_label(const image_set *set, int64_t row, int32_t *label_out) {
    const void *from = NULL;
    int32_t     label = 0;
    WEFTI_TRY(wefti_rows_get(&set->labels, row, set->scratch, &from));
    if (set->labels.info.dtype == WEFT_U8) label = *(const uint8_t *)from;
    else memcpy(&label, from, sizeof label);
    if (set->classes > 0 && (label < 0 || label >= set->classes))
        return wefti_fail(WEFT_E_INVALID, "label %d of row %lld of '%s' is none of %d classes (0 to %d)", label, (long long)row,
                          set->labels.path, set->classes, set->classes - 1);
    *label_out = label;
    return WEFT_OK;
}

static weft_status images_fill(wefti_dataset *dataset, const int64_t *row, int64_t count, void *const *data_out) {
    image_set *set = (image_set *)dataset;
    for (int64_t i = 0; i < count; i++) {
        const void *from = NULL;
        if (i + 1 < count) wefti_rows_expect(&set->images, set->first_row + row[i + 1]);
        WEFTI_TRY(wefti_rows_get(&set->images, set->first_row + row[i], set->scratch, &from));
        convert_pixels(set, from, (float *)((uint8_t *)data_out[0] + (size_t)i * dataset->row_bytes[0]));
        if (!set->labelled) continue;
        WEFTI_TRY(read_label(set, set->first_row + row[i], (int32_t *)data_out[1] + i));
    }
    return WEFT_OK;
}

/* Rows to use of `all`; the same words for images and tokens. */
static weft_status check_part(const char *path, const char *what, int64_t first, int64_t asked, int64_t all,
                              int64_t *count_out) {
    if (first < 0 || asked < 0 || first > all || asked > all - first)
        return wefti_fail(WEFT_E_INVALID, "'%s' has %lld %s; the part of %lld from %lld on is not in it", path,
                          (long long)all, what, (long long)asked, (long long)first);
    *count_out = asked ? asked : all - first;
    return WEFT_OK;
}

static weft_status open_labels(image_set *set, const weft_image_source *source, int64_t memory_bytes) {
    WEFTI_TRY(wefti_rows_open(source->labels, memory_bytes, &set->labels));
    const weft_idx_info *info = &set->labels.info;
    if (info->shape.rank != 1)
        return wefti_fail(WEFT_E_SHAPE, "labels '%s' have shape %s; expected one dimension", source->labels,
                          weft_shape_text(info->shape).text);
    if (info->dtype != WEFT_U8 && info->dtype != WEFT_I32)
        return wefti_fail(WEFT_E_DTYPE, "labels '%s' are %s; expected whole numbers", source->labels, info->stored);
    if (info->shape.dim[0] != set->images.info.shape.dim[0])
        return wefti_fail(WEFT_E_SHAPE, "'%s' has %lld images and '%s' has %lld labels", source->images,
                          (long long)set->images.info.shape.dim[0], source->labels, (long long)info->shape.dim[0]);
    set->labelled = true;
    return WEFT_OK;
}

/* Where the labels are in memory a bad one is found before training, not in some epoch. */
static weft_status check_labels(const image_set *set) {
    int32_t label;
    for (int64_t row = 0; row < set->base.rows && set->labels.memory && set->classes > 0; row++)
        WEFTI_TRY(read_label(set, set->first_row + row, &label));
    return WEFT_OK;
}

static weft_status describe_images(image_set *set, const weft_image_source *source) {
    weft_shape shape = set->images.info.shape, row = {.rank = 1, .dim = {1}};
    if (shape.rank == 3) row.dim[row.rank++] = 1;
    for (int32_t axis = 1; axis < shape.rank; axis++) row.dim[row.rank++] = shape.dim[axis];
    int64_t elements = weft_shape_elements(row);
    size_t  bytes = 0;
    if (elements <= 0 || !wefti_mul_size((size_t)elements, sizeof(float), &bytes))
        return wefti_fail(WEFT_E_SHAPE, "'%s' has rows of %s; an image needs at least one value", source->images,
                          weft_shape_text(row).text);
    set->base.field[0] = (weft_batch_field){.name = "image", .dtype = WEFT_F32, .shape = row};
    set->base.row_bytes[0] = bytes;
    set->base.field[1] = (weft_batch_field){.name = "label", .dtype = WEFT_I32, .shape = {.rank = 1, .dim = {1}}};
    set->base.row_bytes[1] = sizeof(int32_t);
    set->base.field_count = set->labelled ? 2 : 1;
    set->scratch_bytes = (size_t)wefti_max_i64(set->images.info.row_bytes, sizeof(int32_t));
    return wefti_alloc(set->scratch_bytes, "a row of an image file", &set->scratch);
}

weft_status wefti_dataset_images(const weft_image_source *source, wefti_dataset **dataset_out) {
    image_set *set = NULL;
    *dataset_out = NULL;
    if (source->deviation < 0)
        return wefti_fail(WEFT_E_INVALID, "the deviation of the pixels is %g; expected a positive number",
                          source->deviation);
    if (source->classes < 0)
        return wefti_fail(WEFT_E_INVALID, "images of %d classes; expected a positive number, or 0 for any label", source->classes);
    WEFTI_TRY(wefti_alloc(sizeof *set, "an image data set", &set));
    set->base.fill = images_fill;
    set->base.release = images_release;
    set->images.descriptor = set->labels.descriptor = -1;
    set->first_row = source->first_row;
    set->classes = source->classes;
    set->mean = source->mean;
    set->scale = source->deviation > 0 ? 1.0 / source->deviation : 1.0;
    int64_t     memory_bytes = source->memory_bytes > 0 ? source->memory_bytes : INT64_C(1) << 30;
    weft_status status;
    WEFTI_TRY_GOTO(wefti_rows_open(source->images, memory_bytes, &set->images), fail);
    if (source->labels) WEFTI_TRY_GOTO(open_labels(set, source, memory_bytes), fail);
    WEFTI_TRY_GOTO(describe_images(set, source), fail);
    WEFTI_TRY_GOTO(check_part(source->images, "images", source->first_row, source->rows, set->images.info.shape.dim[0],
                              &set->base.rows), fail);
    if (set->labelled) WEFTI_TRY_GOTO(check_labels(set), fail);
    *dataset_out = &set->base;
    return WEFT_OK;
fail:
    images_release(&set->base);
    return status;
}

/* ---- text ---- */

typedef struct text_set {
    wefti_dataset  base;
    weft_tokens   *tokens;
    char          *path;
    int64_t        first_token, length, stride;
    bool           mapped;
    weft_alphabet  alphabet;
    int32_t       *window; /* length + 1 ids */
} text_set;

static void text_release(wefti_dataset *dataset) {
    text_set *set = (text_set *)dataset;
    weft_tokens_release(set->tokens);
    if (set->window) wefti_free(set->window, (size_t)(set->length + 1) * sizeof *set->window);
    wefti_free_string(set->path);
    wefti_free(set, sizeof *set);
}

static weft_status text_fill(wefti_dataset *dataset, const int64_t *row, int64_t count, void *const *data_out) {
    text_set *set = (text_set *)dataset;
    for (int64_t i = 0; i < count; i++) {
        int64_t at = set->first_token + row[i] * set->stride;
        WEFTI_TRY(weft_tokens_read(set->tokens, at, set->length + 1, set->window));
        for (int64_t k = 0; set->mapped && k <= set->length; k++) {
            int32_t id = set->alphabet.id_of[set->window[k] & 255];
            if (id < 0)
                return wefti_fail(WEFT_E_INVALID, "byte 0x%02x at offset %lld of '%s' is not in the alphabet",
                                  (unsigned)set->window[k], (long long)(at + k), set->path);
            set->window[k] = id;
        }
        memcpy((int32_t *)data_out[0] + i * set->length, set->window, dataset->row_bytes[0]);
        memcpy((int32_t *)data_out[1] + i * set->length, set->window + 1, dataset->row_bytes[1]);
    }
    return WEFT_OK;
}

static weft_status describe_text(text_set *set, const weft_text_source *source) {
    int64_t count = 0;
    WEFTI_TRY(check_part(source->path, "tokens", source->first_token, source->tokens, weft_tokens_count(set->tokens), &count));
    if (count < set->length + 1)
        return wefti_fail(WEFT_E_INVALID, "'%s' gives %lld tokens; a window of %lld and its targets take %lld",
                          source->path, (long long)count, (long long)set->length, (long long)set->length + 1);
    set->base.rows = (count - set->length - 1) / set->stride + 1;
    set->base.field_count = 2;
    for (int32_t field = 0; field < 2; field++) {
        set->base.field[field] = (weft_batch_field){.name = field == 0 ? "tokens" : "targets", .dtype = WEFT_I32,
                                                    .shape = {.rank = 2, .dim = {1, set->length}}};
        set->base.row_bytes[field] = (size_t)set->length * sizeof(int32_t);
    }
    return wefti_alloc((size_t)(set->length + 1) * sizeof *set->window, "a window of tokens", &set->window);
}

weft_status wefti_dataset_text(const weft_text_source *source, wefti_dataset **dataset_out) {
    text_set   *set = NULL;
    weft_status status;
    *dataset_out = NULL;
    if (source->length < 1 || source->length > INT32_MAX || source->stride < 0)
        return wefti_fail(WEFT_E_INVALID, "windows of %lld tokens with stride %lld; expected 1 to 2^31-1, and a stride "
                          "of at least 0", (long long)source->length, (long long)source->stride);
    if (source->alphabet && source->id_bytes == 2)
        return wefti_fail(WEFT_E_INVALID, "an alphabet maps bytes; it cannot go with 16-bit ids");
    WEFTI_TRY(wefti_alloc(sizeof *set, "a text data set", &set));
    set->base.fill = text_fill;
    set->base.release = text_release;
    set->length = source->length;
    set->stride = source->stride ? source->stride : source->length;
    set->first_token = source->first_token;
    set->mapped = source->alphabet != NULL;
    if (source->alphabet) set->alphabet = *source->alphabet;
    WEFTI_TRY_GOTO(weft_tokens_open(source->path, source->id_bytes ? source->id_bytes : 1, &set->tokens), fail);
    WEFTI_TRY_GOTO(wefti_copy_string(source->path, &set->path), fail);
    WEFTI_TRY_GOTO(describe_text(set, source), fail);
    *dataset_out = &set->base;
    return WEFT_OK;
fail:
    text_release(&set->base);
    return status;
}

/* ---- arrays ---- */

typedef struct array_set {
    wefti_dataset base;
    const void   *data[WEFT_BATCH_MAX_FIELDS];
    char         *name[WEFT_BATCH_MAX_FIELDS];
} array_set;

static void arrays_release(wefti_dataset *dataset) {
    array_set *set = (array_set *)dataset;
    for (int32_t field = 0; field < WEFT_BATCH_MAX_FIELDS; field++) wefti_free_string(set->name[field]);
    wefti_free(set, sizeof *set);
}

static weft_status arrays_fill(wefti_dataset *dataset, const int64_t *row, int64_t count, void *const *data_out) {
    array_set *set = (array_set *)dataset;
    for (int32_t field = 0; field < dataset->field_count; field++) {
        size_t bytes = dataset->row_bytes[field];
        for (int64_t i = 0; i < count && bytes > 0; i++)
            memcpy((uint8_t *)data_out[field] + (size_t)i * bytes,
                   (const uint8_t *)set->data[field] + (size_t)row[i] * bytes, bytes);
    }
    return WEFT_OK;
}

static weft_status describe_array(array_set *set, int32_t index, const weft_batch_field *from) {
    int64_t elements = weft_shape_elements(from->shape);
    size_t  bytes = 0, element_bytes = weft_dtype_bytes(from->dtype);
    if (!from->name || !*from->name) return wefti_fail(WEFT_E_INVALID, "field %d of a loader has no name", index);
    for (int32_t other = 0; other < index; other++)
        if (strcmp(set->name[other], from->name) == 0)
            return wefti_fail(WEFT_E_EXISTS, "two fields of a loader are called '%s'", from->name);
    if (element_bytes == 0) return wefti_fail(WEFT_E_DTYPE, "field '%s' of a loader has no known dtype", from->name);
    if (from->shape.rank < 1 || elements < 0 || !wefti_mul_size((size_t)elements, element_bytes, &bytes))
        return wefti_fail(WEFT_E_SHAPE, "field '%s' of a loader has shape %s; expected rows first, and a size that fits",
                          from->name, weft_shape_text(from->shape).text);
    if (index > 0 && from->shape.dim[0] != set->base.rows)
        return wefti_fail(WEFT_E_SHAPE, "field '%s' of a loader has %lld rows, '%s' has %lld", from->name,
                          (long long)from->shape.dim[0], set->name[0], (long long)set->base.rows);
    if (bytes > 0 && !from->data) return wefti_fail(WEFT_E_INVALID, "field '%s' of a loader has no data", from->name);
    WEFTI_TRY(wefti_copy_string(from->name, &set->name[index]));
    set->base.rows = from->shape.dim[0];
    set->data[index] = from->data;
    set->base.field[index] = (weft_batch_field){.name = set->name[index], .dtype = from->dtype, .shape = from->shape};
    set->base.field[index].shape.dim[0] = 1;
    set->base.row_bytes[index] = from->shape.dim[0] ? bytes / (size_t)from->shape.dim[0] : 0;
    set->base.field_count = index + 1;
    return WEFT_OK;
}

weft_status wefti_dataset_arrays(const weft_batch_field *fields, int32_t count, wefti_dataset **dataset_out) {
    array_set *set = NULL;
    *dataset_out = NULL;
    if (!fields || count < 1 || count > WEFT_BATCH_MAX_FIELDS)
        return wefti_fail(WEFT_E_INVALID, "a loader takes 1 to %d fields, not %d", WEFT_BATCH_MAX_FIELDS, count);
    WEFTI_TRY(wefti_alloc(sizeof *set, "a data set of arrays", &set));
    set->base.fill = arrays_fill;
    set->base.release = arrays_release;
    for (int32_t field = 0; field < count; field++) {
        weft_status status = describe_array(set, field, &fields[field]);
        if (status == WEFT_OK) continue;
        arrays_release(&set->base);
        return status;
    }
    *dataset_out = &set->base;
    return WEFT_OK;
}
