/* libsvm rows, in compressed form. The buffers grow to the largest request and are kept, so that reading a file in equal
 * pieces allocates only at first. Cost: the longest line, and the rows and entries of one call.
 * Format: C.-C. Chang, C.-J. Lin, "LIBSVM", README, and SVMlight's "qid:". */
#include <string.h>

#include "io/number.h"
#include "io/source.h"
#include "weft/table.h"

enum { longest_line_bytes = 64 << 20 };

typedef struct buffer {
    void  *data;
    size_t capacity; /* elements */
} buffer;

struct weft_libsvm {
    wefti_lines         lines;
    char               *path;
    weft_libsvm_options options;
    buffer              label, query, row_start, column, value;
};

static weft_status reserve(buffer *in, size_t count, size_t element_bytes) {
    size_t bytes;
    if (count <= in->capacity) return WEFT_OK;
    size_t capacity = in->capacity ? in->capacity : 256;
    while (capacity < count && capacity < SIZE_MAX / 2) capacity *= 2;
    if (!wefti_mul_size(capacity, element_bytes, &bytes))
        return wefti_fail(WEFT_E_OVERFLOW, "the size of libsvm rows overflows");
    WEFTI_TRY(wefti_grow(&in->data, in->capacity * element_bytes, bytes, "libsvm rows"));
    in->capacity = capacity;
    return WEFT_OK;
}

weft_status weft_libsvm_open(const char *path, const weft_libsvm_options *options, weft_libsvm **libsvm_out) {
    if (!libsvm_out) return wefti_fail(WEFT_E_INVALID, "weft_libsvm_open: libsvm_out is NULL");
    *libsvm_out = NULL;
    weft_libsvm *libsvm = NULL;
    weft_status  status;
    WEFTI_TRY(wefti_alloc(sizeof *libsvm, "a libsvm reader", &libsvm));
    if (options) libsvm->options = *options;
    if (libsvm->options.columns <= 0 || libsvm->options.columns > INT32_MAX) libsvm->options.columns = INT32_MAX;
    WEFTI_TRY_GOTO(wefti_lines_open(path, longest_line_bytes, &libsvm->lines), fail);
    WEFTI_TRY_GOTO(wefti_copy_string(path, &libsvm->path), fail);
    *libsvm_out = libsvm;
    return WEFT_OK;
fail:
    weft_libsvm_release(libsvm);
    return status;
}

static weft_status fail_row(const weft_libsvm *libsvm, const char *what, const char *word) {
    return wefti_fail(WEFT_E_CORRUPT, "'%s' line %lld: \"%.40s\" %s", libsvm->path, (long long)libsvm->lines.number, word,
                      what);
}

/* Cuts the next word off *rest; NULL where there is none. */
static char *cut_word(char **rest) {
    char *word = *rest + strspn(*rest, " \t");
    if (!*word) return NULL;
    char *end = word + strcspn(word, " \t");
    *rest = *end ? end + 1 : end;
    *end = '\0';
    return word;
}

/* Digits only, up to `most`. */
static bool parse_whole(const char *text, size_t length, int64_t most, int64_t *number_out) {
    int64_t number = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9' || !wefti_mul_i64(number, 10, &number) ||
            !wefti_add_i64(number, text[i] - '0', &number))
            return false;
    }
    *number_out = number;
    return length > 0 && number <= most;
}

static weft_status parse_entry(weft_libsvm *libsvm, const char *word, int64_t row_begin, int64_t *entries,
                               weft_libsvm_rows *rows) {
    const char *colon = strchr(word, ':');
    int64_t     column = 0;
    double      value = 0;
    if (!colon || !parse_whole(word, (size_t)(colon - word), INT64_MAX, &column))
        return fail_row(libsvm, "is not index:value", word);
    column -= libsvm->options.zero_based ? 0 : 1;
    if (column < 0) return fail_row(libsvm, "has index 0 in a file that counts from 1 (zero_based is not set)", word);
    if (column >= libsvm->options.columns)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' line %lld: \"%.40s\" is beyond the %lld columns", libsvm->path,
                          (long long)libsvm->lines.number, word, (long long)libsvm->options.columns);
    if (!wefti_number_from_text(colon + 1, strlen(colon + 1), &value)) return fail_row(libsvm, "has no number for a value", word);
    WEFTI_TRY(reserve(&libsvm->column, (size_t)*entries + 1, sizeof(int32_t)));
    WEFTI_TRY(reserve(&libsvm->value, (size_t)*entries + 1, sizeof(float)));
    int32_t *columns = libsvm->column.data;
    if (*entries > row_begin && column <= columns[*entries - 1])
        return fail_row(libsvm, "does not ascend", word);
    columns[*entries] = (int32_t)column;
    ((float *)libsvm->value.data)[*entries] = (float)value;
    ++*entries;
    rows->columns = wefti_max_i64(rows->columns, column + 1);
    return WEFT_OK;
}

static weft_status parse_row(weft_libsvm *libsvm, char *line, int64_t row, int64_t *entries, weft_libsvm_rows *rows) {
    double  label = 0;
    int64_t query = -1, begin = *entries;
    char   *rest = line, *word = cut_word(&rest);
    if (!word || !wefti_number_from_text(word, strlen(word), &label))
        return fail_row(libsvm, "is not a number for a label", word ? word : "");
    for (bool first = true; (word = cut_word(&rest)); first = false) {
        if (first && strncmp(word, "qid:", 4) == 0) {
            if (!parse_whole(word + 4, strlen(word + 4), INT64_MAX, &query))
                return fail_row(libsvm, "is not a query's number", word);
            continue;
        }
        WEFTI_TRY(parse_entry(libsvm, word, begin, entries, rows));
    }
    WEFTI_TRY(reserve(&libsvm->label, (size_t)row + 1, sizeof(float)));
    WEFTI_TRY(reserve(&libsvm->query, (size_t)row + 1, sizeof(int64_t)));
    WEFTI_TRY(reserve(&libsvm->row_start, (size_t)row + 2, sizeof(int64_t)));
    ((float *)libsvm->label.data)[row] = (float)label;
    ((int64_t *)libsvm->query.data)[row] = query;
    ((int64_t *)libsvm->row_start.data)[row] = begin;
    ((int64_t *)libsvm->row_start.data)[row + 1] = *entries;
    return WEFT_OK;
}

static weft_status read_rows(weft_libsvm *libsvm, int64_t max_rows, weft_libsvm_rows *rows) {
    int64_t entries = 0;
    while (rows->rows < max_rows) {
        char       *line = NULL;
        size_t      length = 0;
        weft_status status = wefti_lines_next(&libsvm->lines, &line, &length);
        if (status == WEFT_END && rows->rows > 0) break;
        WEFTI_TRY(status);
        line[strcspn(line, "#")] = '\0';
        if (!line[strspn(line, " \t")]) continue;
        WEFTI_TRY(parse_row(libsvm, line, rows->rows, &entries, rows));
        rows->rows++;
    }
    return WEFT_OK;
}

weft_status weft_libsvm_read(weft_libsvm *libsvm, int64_t max_rows, weft_libsvm_rows *rows_out) {
    if (!libsvm || !rows_out || max_rows < 1)
        return wefti_fail(WEFT_E_INVALID, "weft_libsvm_read: needs a reader, max_rows >= 1 (is %lld), and where to write",
                          (long long)max_rows);
    weft_libsvm_rows rows = {0};
    *rows_out = rows;
    WEFTI_TRY(read_rows(libsvm, max_rows, &rows));
    rows.label = libsvm->label.data;
    rows.query = libsvm->query.data;
    rows.row_start = libsvm->row_start.data;
    rows.column = libsvm->column.data;
    rows.value = libsvm->value.data;
    *rows_out = rows;
    return WEFT_OK;
}

weft_status weft_libsvm_rewind(weft_libsvm *libsvm) {
    wefti_lines fresh;
    WEFTI_TRY(wefti_lines_open(libsvm->path, longest_line_bytes, &fresh));
    wefti_lines_close(&libsvm->lines);
    libsvm->lines = fresh;
    return WEFT_OK;
}

void weft_libsvm_release(weft_libsvm *libsvm) {
    if (!libsvm) return;
    wefti_lines_close(&libsvm->lines);
    wefti_free(libsvm->label.data, libsvm->label.capacity * sizeof(float));
    wefti_free(libsvm->query.data, libsvm->query.capacity * sizeof(int64_t));
    wefti_free(libsvm->row_start.data, libsvm->row_start.capacity * sizeof(int64_t));
    wefti_free(libsvm->column.data, libsvm->column.capacity * sizeof(int32_t));
    wefti_free(libsvm->value.data, libsvm->value.capacity * sizeof(float));
    wefti_free_string(libsvm->path);
    wefti_free(libsvm, sizeof *libsvm);
}
