/* CSV and libsvm: forms that occur, errors by line and column, real files. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/files.h"
#include "weft/memory.h"
#include "weft/table.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s", weft_error_message())

static uint64_t held(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return counts.held_bytes;
}

static const char *made(const char *text) {
    const char *path = scratch("table");
    write_file(path, text, strlen(text));
    return path;
}

/* Reads a CSV of at most 16 values, two rows at a time. */
static weft_status read_csv(const char *text, const weft_csv_options *options, double *out, int64_t *rows_out) {
    weft_csv   *csv = NULL;
    int64_t     got = 0;
    weft_status status = weft_csv_open(made(text), options, &csv);
    *rows_out = 0;
    while (status == WEFT_OK) {
        status = weft_csv_read(csv, 2, WEFT_F64, out + *rows_out * weft_csv_columns(csv), &got);
        *rows_out += got;
    }
    weft_csv_release(csv);
    cr_assert_eq(held(), 0);
    return status == WEFT_END ? WEFT_OK : status;
}

Test(csv, reads_the_forms_that_occur) {
    const struct {
        const char      *text;
        weft_csv_options options;
        int64_t          rows, columns;
        double           values[9];
    } cases[] = {
        {"1,2\n3,4\n5,6\n", {0}, 3, 2, {1, 2, 3, 4, 5, 6}},
        {"1,2\r\n3,4", {0}, 2, 2, {1, 2, 3, 4}},
        {"a,b\n1,2\n", {.header = true}, 1, 2, {1, 2}},
        {"1\t2\t3\n4\t\t6\n", {0}, 2, 3, {1, 2, 3, 4, NAN, 6}},
        {"1;2\n\n3;-4e-2\n", {0}, 2, 2, {1, 2, 3, -0.04}},
        {"  1   2 \n3\t4\n", {.separator = ' '}, 2, 2, {1, 2, 3, 4}},
        {"1 2\n 3  4\n", {0}, 2, 2, {1, 2, 3, 4}},
        {" 1 , 2 \n3 ,4\n", {0}, 2, 2, {1, 2, 3, 4}},
        {"\"1\",\"2\"\n\"3\" , \"4\"\n", {0}, 2, 2, {1, 2, 3, 4}},
        {"NA,?\nnan,\nN/A,null\n", {0}, 3, 2, {NAN, NAN, NAN, NAN, NAN, NAN}},
        {"# c\n1,2\n#3,4\n5,6\n", {.comment = '#'}, 2, 2, {1, 2, 5, 6}},
        {"7\n8\n", {0}, 2, 1, {7, 8}},
        {",\n1,\n", {0}, 2, 2, {NAN, NAN, 1, NAN}},
        {"1e400,-inf\n", {0}, 1, 2, {INFINITY, -INFINITY}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double  values[16];
        int64_t rows;
        cr_assert_eq(read_csv(cases[i].text, &cases[i].options, values, &rows), WEFT_OK, "case %zu: %s", i, weft_error_message());
        cr_assert_eq(rows, cases[i].rows, "case %zu has %lld rows", i, (long long)rows);
        for (int64_t k = 0; k < rows * cases[i].columns; k++)
            cr_assert(values[k] == cases[i].values[k] || (isnan(values[k]) && isnan(cases[i].values[k])), "case %zu value %lld: %g",
                      i, (long long)k, values[k]);
    }
}

Test(csv, names_columns) {
    weft_csv        *csv = NULL;
    weft_csv_options options = {.header = true, .columns = 3};
    float            value[3];
    int64_t          got;
    OK(weft_csv_open(made("id, \"a \"\"b\"\", c\",x\n1,2,3\n"), &options, &csv));
    cr_assert_eq(weft_csv_columns(csv), 3);
    cr_assert_str_eq(weft_csv_column_name(csv, 0), "id");
    cr_assert_str_eq(weft_csv_column_name(csv, 1), "a \"b\", c");
    cr_assert_null(weft_csv_column_name(csv, 3));
    OK(weft_csv_read(csv, 5, WEFT_F32, value, &got));
    cr_assert(got == 1 && value[2] == 3);
    cr_assert_eq(weft_csv_read(csv, 5, WEFT_F32, value, &got), WEFT_END);
    weft_csv_release(csv);
    weft_csv_release(NULL);
}

Test(csv, says_where_the_fault_is) {
    const struct {
        const char      *text;
        weft_csv_options options;
        weft_status      status;
        const char      *word;
    } bad[] = {
        {"", {0}, WEFT_E_CORRUPT, "no rows"},
        {"\n\n", {0}, WEFT_E_CORRUPT, "no rows"},
        {"1,2\n3,x\n", {0}, WEFT_E_CORRUPT, "line 2, column 2: \"x\""},
        {"a,b\n\n3,x\n", {.header = true}, WEFT_E_CORRUPT, "line 3, column 2 ('b'): \"x\""},
        {"1,2\n3\n", {0}, WEFT_E_CORRUPT, "line 2 has fewer"},
        {"1,2\n3,4,5\n", {0}, WEFT_E_CORRUPT, "line 2 has more"},
        {"1,2\n3,4,\n", {0}, WEFT_E_CORRUPT, "line 2 has more"},
        {"1,2\n", {.columns = 3}, WEFT_E_SHAPE, "has 2 columns, expected 3"},
        {"1,\"2\n", {0}, WEFT_E_CORRUPT, "quotes"},
        {"1,2\n1,\"2\"3\n", {0}, WEFT_E_CORRUPT, "line 2, column 2: quotes"},
        {"1,2\n1,0x\n", {0}, WEFT_E_CORRUPT, "\"0x\""},
        {"1,2\n", {.separator = '.'}, WEFT_E_INVALID, "separate"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        double  values[16];
        int64_t rows;
        cr_assert_eq(read_csv(bad[i].text, &bad[i].options, values, &rows), bad[i].status, "case %zu", i);
        cr_assert(message_has(bad[i].word), "case %zu: %s", i, weft_error_message());
    }
    weft_csv *csv = NULL;
    int64_t   got;
    double    value[2];
    write_file(scratch("nul"), "1\n2\0\n", 5);
    OK(weft_csv_open(scratch("nul"), NULL, &csv));
    cr_assert_eq(weft_csv_read(csv, 2, WEFT_F64, value, &got), WEFT_E_CORRUPT);
    cr_assert(got == 1 && message_has("NUL"));
    cr_assert_eq(weft_csv_read(csv, 2, WEFT_I32, value, &got), WEFT_E_DTYPE);
    cr_assert_eq(weft_csv_read(csv, -1, WEFT_F64, value, &got), WEFT_E_INVALID);
    weft_csv_release(csv);
    cr_assert_eq(weft_csv_open(scratch("none"), NULL, &csv), WEFT_E_NOT_FOUND);
    cr_assert_eq(held(), 0);
}

Test(csv, streams_long_files_in_little_memory) {
    const char *path = scratch("long");
    FILE       *file = fopen(path, "w");
    for (int i = 0; i < 200000; i++) fprintf(file, "%d,%d.5\n", i, -i);
    fclose(file);
    weft_csv          *csv = NULL;
    weft_memory_counts counts;
    float              rows[2 * 100];
    int64_t            got, total = 0;
    OK(weft_csv_open(path, NULL, &csv));
    while (weft_csv_read(csv, 100, WEFT_F32, rows, &got) == WEFT_OK)
        for (int64_t i = 0; i < got; i++, total++)
            cr_assert(rows[2 * i] == (float)total && rows[2 * i + 1] == (float)(total ? -total - 0.5 : 0.5), "row %lld", (long long)total);
    cr_assert_eq(total, 200000);
    weft_memory_read(&counts);
    cr_assert_lt(counts.peak_bytes, 400u << 10);
    weft_csv_release(csv);
}

Test(libsvm, reads_rows_in_compressed_form) {
    weft_libsvm     *libsvm = NULL;
    weft_libsvm_rows rows;
    OK(weft_libsvm_open(made("# a comment\n1 1:0.5 3:-2e1 # 5:5\n\n-1\n0.5 qid:7 2:1\r\n+3 4:1 5:2 100:3\n"), NULL, &libsvm));
    OK(weft_libsvm_read(libsvm, 3, &rows));
    cr_assert_eq(rows.rows, 3);
    cr_assert_eq(rows.columns, 3);
    cr_assert(rows.label[0] == 1 && rows.label[1] == -1 && rows.label[2] == 0.5f);
    cr_assert(rows.query[0] == -1 && rows.query[2] == 7);
    cr_assert(rows.row_start[0] == 0 && rows.row_start[1] == 2 && rows.row_start[2] == 2 && rows.row_start[3] == 3);
    cr_assert(rows.column[0] == 0 && rows.column[1] == 2 && rows.column[2] == 1);
    cr_assert(rows.value[0] == 0.5f && rows.value[1] == -20 && rows.value[2] == 1);
    OK(weft_libsvm_read(libsvm, 3, &rows));
    cr_assert(rows.rows == 1 && rows.row_start[1] == 3 && rows.columns == 100 && rows.column[2] == 99);
    cr_assert_eq(weft_libsvm_read(libsvm, 3, &rows), WEFT_END);
    cr_assert_eq(rows.rows, 0);
    OK(weft_libsvm_rewind(libsvm));
    OK(weft_libsvm_read(libsvm, 100, &rows));
    cr_assert_eq(rows.rows, 4);
    weft_libsvm_release(libsvm);
    weft_libsvm_release(NULL);
    cr_assert_eq(held(), 0);
}

Test(libsvm, says_where_the_fault_is) {
    const struct {
        const char         *text;
        weft_libsvm_options options;
        const char         *word;
    } bad[] = {
        {"x 1:1\n", {0}, "\"x\" is not a number for a label"},
        {"1,2 1:1\n", {0}, "label"},
        {"1 1\n", {0}, "is not index:value"},
        {"1 1:\n", {0}, "no number"},
        {"1 :1\n", {0}, "is not index:value"},
        {"1 1:2:3\n", {0}, "no number"},
        {"1 -1:2\n", {0}, "is not index:value"},
        {"1 0:2\n", {0}, "index 0"},
        {"1 2:1 2:1\n", {0}, "ascend"},
        {"1 2:1 1:1\n", {0}, "ascend"},
        {"1 qid:x 1:1\n", {0}, "query"},
        {"1 1:1 qid:3\n", {0}, "index:value"},
        {"0 1:1\n1 5:1\n", {.columns = 4}, "line 2: \"5:1\" is beyond the 4 columns"},
        {"1 2147483648:1\n", {0}, "beyond"},
        {"1 99999999999999999999:1\n", {0}, "index:value"},
        {"1 4:1\n", {.columns = 4, .zero_based = true}, "beyond"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        weft_libsvm     *libsvm = NULL;
        weft_libsvm_rows rows;
        OK(weft_libsvm_open(made(bad[i].text), &bad[i].options, &libsvm));
        cr_assert_eq(weft_libsvm_read(libsvm, 10, &rows), WEFT_E_CORRUPT, "case %zu", i);
        cr_assert(message_has(bad[i].word), "case %zu: %s", i, weft_error_message());
        cr_assert_eq(rows.rows, 0);
        cr_assert_eq(weft_libsvm_read(libsvm, 0, &rows), WEFT_E_INVALID);
        weft_libsvm_release(libsvm);
    }
    weft_libsvm *libsvm = NULL;
    cr_assert_eq(weft_libsvm_open(scratch("none"), NULL, &libsvm), WEFT_E_NOT_FOUND);
    cr_assert_eq(held(), 0);
}

Test(libsvm, reads_files_from_0) {
    weft_libsvm        *libsvm = NULL;
    weft_libsvm_options options = {.zero_based = true};
    weft_libsvm_rows    rows;
    OK(weft_libsvm_open(made("1 0:1 2147483646:2\n"), &options, &libsvm));
    OK(weft_libsvm_read(libsvm, 10, &rows));
    cr_assert(rows.column[0] == 0 && rows.columns == 2147483647);
    weft_libsvm_release(libsvm);
}

/* Rows, columns and entries of a file; skips where the shared data is not there. */
static void count_libsvm(const char *name, int64_t rows_expected, int64_t columns_expected) {
    char             path[1024];
    weft_libsvm     *libsvm = NULL;
    weft_libsvm_rows rows;
    weft_status      status;
    int64_t          count = 0, columns = 0;
    snprintf(path, sizeof path, "%s/../shared/data/%s", WEFT_SOURCE_DIR, name);
    if (!exists(path)) cr_skip_test("%s is not there", path);
    OK(weft_libsvm_open(path, NULL, &libsvm));
    while ((status = weft_libsvm_read(libsvm, 1000, &rows)) == WEFT_OK) {
        count += rows.rows;
        if (rows.columns > columns) columns = rows.columns;
        for (int64_t i = 0; i < rows.rows; i++) cr_assert(rows.label[i] == 0 || rows.label[i] == 1);
    }
    cr_assert_eq(status, WEFT_END, "%s", weft_error_message());
    cr_assert(count == rows_expected && columns == columns_expected, "%lld rows, %lld columns", (long long)count, (long long)columns);
    weft_libsvm_release(libsvm);
}

Test(libsvm, reads_a9a) { count_libsvm("a9a/a9a", 32560, 122); }
Test(libsvm, reads_agaricus) { count_libsvm("agaricus/agaricus.txt.train", 6513, 126); }

Test(csv, reads_higgs) {
    const char *path = WEFT_SOURCE_DIR "/../shared/data/higgs/binary.train";
    weft_csv   *csv = NULL;
    float      *values = malloc(8000 * 29 * sizeof *values);
    int64_t     got = 0;
    if (!exists(path)) {
        free(values);
        cr_skip_test("%s is not there", path);
    }
    OK(weft_csv_open(path, NULL, &csv));
    cr_assert_eq(weft_csv_columns(csv), 29);
    OK(weft_csv_read(csv, 8000, WEFT_F32, values, &got));
    cr_assert_eq(got, 7000);
    cr_assert(values[0] == 1 && values[1] == 0.869f && values[28] == 0.877f, "%g %g %g", (double)values[0], (double)values[1], (double)values[28]);
    weft_csv_release(csv);
    free(values);
}
