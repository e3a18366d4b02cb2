/* CSV of numbers.
 *
 * Idea: the line is cut in place, field by field, quotes taken off where they stand. A quoted field ends on its line:
 * numbers have no line breaks. The first line is kept when it is a row, because opening has to count its columns.
 * Cost: the longest line twice, and the names of the columns. Format: RFC 4180. */
#include <math.h>
#include <string.h>

#include "io/number.h"
#include "io/source.h"
#include "weft/table.h"

enum { longest_line_bytes = 64 << 20 };

struct weft_csv {
    wefti_lines lines;
    char       *path;
    char        separator, comment;
    int64_t     columns;
    char      **name;  /* [columns] with a header */
    char       *first; /* the first line, where it is a row that has not been read yet */
    size_t      first_bytes;
    int64_t     first_number;
};

static bool is_blank(char byte) { return byte == ' ' || byte == '\t'; }

/* The next line that is neither empty nor a comment. */
static weft_status next_line(weft_csv *csv, char **line_out) {
    size_t length = 0;
    do WEFTI_TRY(wefti_lines_next(&csv->lines, line_out, &length));
    while (strspn(*line_out, " ") == length || (csv->comment && **line_out == csv->comment));
    return WEFT_OK;
}

/* Fields between runs of blanks. */
static char *cut_blank(char **rest) {
    char *field = *rest + strspn(*rest, " \t"), *end = field + strcspn(field, " \t");
    char *next = end + strspn(end, " \t");
    *rest = *next ? next : NULL;
    *end = '\0';
    return field;
}

/* What stands between quotes; NULL where the quotes do not end. *end_out is behind them. */
static char *unquote(char *at, char **end_out) {
    char *field = at, *to = at;
    for (; *at && (*at != '"' || at[1] == '"'); at++) {
        if (*at == '"') at++;
        *to++ = *at;
    }
    if (!*at) return NULL;
    *end_out = at + 1;
    *to = '\0';
    return field;
}

/* Cuts the next field off *rest, which becomes NULL behind the last; NULL for a field with quotes astray. */
static char *cut_field(const weft_csv *csv, char **rest) {
    if (csv->separator == ' ') return cut_blank(rest);
    char *at = *rest, *end, *field;
    while (is_blank(*at) && *at != csv->separator) at++;
    if (*at == '"') {
        field = unquote(at + 1, &end);
        if (!field) return NULL;
        while (is_blank(*end) && *end != csv->separator) end++;
        if (*end && *end != csv->separator) return NULL;
    } else {
        field = at;
        end = at + strcspn(at, (char[]){csv->separator, 0});
        char *last = end;
        while (last > field && is_blank(last[-1])) last--;
        if (last < end) *last = '\0';
    }
    *rest = *end ? end + 1 : NULL;
    *end = '\0';
    return field;
}

static weft_status fail_field(const weft_csv *csv, int64_t line, int64_t column, const char *field) {
    const char *name = weft_csv_column_name(csv, column);
    return wefti_fail(WEFT_E_CORRUPT, "'%s' line %lld, column %lld%s%s%s: \"%.40s\" is not a number", csv->path,
                      (long long)line, (long long)column + 1, name ? " ('" : "", name ? name : "", name ? "')" : "", field);
}

static weft_status fail_quotes(const weft_csv *csv, int64_t line, int64_t column) {
    return wefti_fail(WEFT_E_CORRUPT, "'%s' line %lld, column %lld: quotes do not match", csv->path, (long long)line,
                      (long long)column + 1);
}

/* ---- opening ---- */

static weft_status count_columns(weft_csv *csv, const char *line) {
    size_t bytes = strlen(line) + 1;
    char  *copy = NULL;
    WEFTI_TRY(wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "a line of CSV", &copy));
    memcpy(copy, line, bytes);
    weft_status status = WEFT_OK;
    for (char *rest = copy; rest && status == WEFT_OK; csv->columns++)
        if (!cut_field(csv, &rest)) status = fail_quotes(csv, csv->lines.number, csv->columns);
    wefti_free(copy, bytes);
    return status;
}

static weft_status take_names(weft_csv *csv, char *line) {
    WEFTI_TRY(wefti_alloc((size_t)csv->columns * sizeof *csv->name, "the names of columns", &csv->name));
    char *rest = line;
    for (int64_t column = 0; column < csv->columns; column++)
        WEFTI_TRY(wefti_copy_string(cut_field(csv, &rest), &csv->name[column]));
    return WEFT_OK;
}

static weft_status keep_first(weft_csv *csv, const char *line) {
    csv->first_bytes = strlen(line) + 1;
    csv->first_number = csv->lines.number;
    WEFTI_TRY(wefti_alloc_raw(csv->first_bytes, WEFTI_CACHE_LINE, "a line of CSV", &csv->first));
    memcpy(csv->first, line, csv->first_bytes);
    return WEFT_OK;
}

static weft_status read_first(weft_csv *csv, const weft_csv_options *options) {
    char       *line = NULL;
    weft_status status = next_line(csv, &line);
    if (status == WEFT_END) return wefti_fail(WEFT_E_CORRUPT, "'%s' has no rows", csv->path);
    WEFTI_TRY(status);
    if (!csv->separator) csv->separator = strchr(line, '\t') ? '\t' : strchr(line, ',') ? ',' : strchr(line, ';') ? ';' : ' ';
    WEFTI_TRY(count_columns(csv, line));
    if (options->columns > 0 && csv->columns != options->columns)
        return wefti_fail(WEFT_E_SHAPE, "'%s' line %lld has %lld columns, expected %lld", csv->path,
                          (long long)csv->lines.number, (long long)csv->columns, (long long)options->columns);
    return options->header ? take_names(csv, line) : keep_first(csv, line);
}

weft_status weft_csv_open(const char *path, const weft_csv_options *options, weft_csv **csv_out) {
    static const weft_csv_options defaults;
    if (!csv_out) return wefti_fail(WEFT_E_INVALID, "weft_csv_open: csv_out is NULL");
    *csv_out = NULL;
    if (!options) options = &defaults;
    if (options->separator && strchr("\"\r\n.+-0123456789eE", options->separator))
        return wefti_fail(WEFT_E_INVALID, "weft_csv_open: '%c' cannot separate numbers", options->separator);
    weft_csv   *csv = NULL;
    weft_status status;
    WEFTI_TRY(wefti_alloc(sizeof *csv, "a CSV reader", &csv));
    csv->separator = options->separator;
    csv->comment = options->comment;
    WEFTI_TRY_GOTO(wefti_lines_open(path, longest_line_bytes, &csv->lines), fail);
    WEFTI_TRY_GOTO(wefti_copy_string(path, &csv->path), fail);
    WEFTI_TRY_GOTO(read_first(csv, options), fail);
    *csv_out = csv;
    return WEFT_OK;
fail:
    weft_csv_release(csv);
    return status;
}

int64_t weft_csv_columns(const weft_csv *csv) { return csv->columns; }

const char *weft_csv_column_name(const weft_csv *csv, int64_t column) {
    return csv->name && column >= 0 && column < csv->columns ? csv->name[column] : NULL;
}

/* ---- reading ---- */

static bool parse_value(const char *field, double *value_out) {
    static const char *const missing[] = {"", "NA", "N/A", "na", "null", "NULL", "?", "NaN", "nan"};
    for (size_t i = 0; i < WEFTI_COUNT(missing); i++)
        if (strcmp(field, missing[i]) == 0) {
            *value_out = NAN;
            return true;
        }
    return wefti_number_from_text(field, strlen(field), value_out);
}

static weft_status parse_row(const weft_csv *csv, char *line, int64_t number, weft_dtype dtype, void *out) {
    char   *rest = line;
    int64_t column = 0;
    for (; rest && column < csv->columns; column++) {
        double value = 0;
        char  *field = cut_field(csv, &rest);
        if (!field) return fail_quotes(csv, number, column);
        if (!parse_value(field, &value)) return fail_field(csv, number, column, field);
        if (dtype == WEFT_F64) ((double *)out)[column] = value;
        else ((float *)out)[column] = (float)value;
    }
    if (rest || column < csv->columns)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' line %lld has %s than the %lld columns of the first line", csv->path,
                          (long long)number, rest ? "more" : "fewer", (long long)csv->columns);
    return WEFT_OK;
}

static weft_status read_row(weft_csv *csv, weft_dtype dtype, void *out) {
    char *line = NULL;
    if (csv->first) {
        weft_status status = parse_row(csv, csv->first, csv->first_number, dtype, out);
        wefti_free(csv->first, csv->first_bytes);
        csv->first = NULL;
        return status;
    }
    WEFTI_TRY(next_line(csv, &line));
    return parse_row(csv, line, csv->lines.number, dtype, out);
}

weft_status weft_csv_read(weft_csv *csv, int64_t max_rows, weft_dtype dtype, void *values_out, int64_t *rows_read_out) {
    if (!csv || max_rows < 0 || (max_rows > 0 && !values_out) || !rows_read_out)
        return wefti_fail(WEFT_E_INVALID, "weft_csv_read: needs a reader, max_rows >= 0 (is %lld), and where to write",
                          (long long)max_rows);
    *rows_read_out = 0;
    if (dtype != WEFT_F32 && dtype != WEFT_F64)
        return wefti_fail(WEFT_E_DTYPE, "weft_csv_read: gives f32 or f64, not %s", weft_dtype_name(dtype));
    size_t row_bytes = (size_t)csv->columns * weft_dtype_bytes(dtype);
    while (*rows_read_out < max_rows) {
        weft_status status = read_row(csv, dtype, (uint8_t *)values_out + (size_t)*rows_read_out * row_bytes);
        if (status == WEFT_END && *rows_read_out > 0) return WEFT_OK;
        WEFTI_TRY(status);
        ++*rows_read_out;
    }
    return WEFT_OK;
}

void weft_csv_release(weft_csv *csv) {
    if (!csv) return;
    for (int64_t column = 0; csv->name && column < csv->columns; column++) wefti_free_string(csv->name[column]);
    if (csv->name) wefti_free(csv->name, (size_t)csv->columns * sizeof *csv->name);
    if (csv->first) wefti_free(csv->first, csv->first_bytes);
    wefti_lines_close(&csv->lines);
    wefti_free_string(csv->path);
    wefti_free(csv, sizeof *csv);
}
