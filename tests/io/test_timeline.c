/* Timelines and TensorBoard events: exact bytes, threads, errors. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/files.h"
#include "io/hash.h"
#include "io/json.h"
#include "weft/memory.h"
#include "weft/tensorboard.h"
#include "weft/timeline.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s", weft_error_message())

Test(timeline, writes_what_viewers_read) {
    const char            *path = scratch("t.json");
    weft_timeline         *timeline = NULL;
    weft_timeline_argument arguments[] = {{.key = "bytes", .number = 4096}, {.key = "algo\"", .text = "ring"}, {.key = "nan", .number = NAN}};
    OK(weft_timeline_open(path, &timeline));
    weft_timeline_name_process(timeline, 1, "rank 1");
    weft_timeline_name_thread(timeline, 1, 2, "wire");
    weft_timeline_add(timeline, &(weft_timeline_span){.name = "allreduce", .category = "comm", .process = 1, .thread = 2,
                                                      .begin_ns = 1234567, .duration_ns = 1001, .arguments = arguments, .argument_count = 3});
    weft_timeline_add(timeline, &(weft_timeline_span){.name = "x", .begin_ns = -5, .duration_ns = -1});
    weft_timeline_counter(timeline, 1, "bytes", 2000, 0.5);
    OK(weft_timeline_close(timeline));
    char *text = (char *)read_file(path, NULL);
    cr_assert_str_eq(text,
                     "[\n{\"ph\":\"M\",\"pid\":1,\"name\":\"process_name\",\"tid\":0,\"args\":{\"name\":\"rank 1\"}},\n"
                     "{\"ph\":\"M\",\"pid\":1,\"name\":\"thread_name\",\"tid\":2,\"args\":{\"name\":\"wire\"}},\n"
                     "{\"ph\":\"M\",\"pid\":1,\"name\":\"thread_sort_index\",\"tid\":2,\"args\":{\"sort_index\":2}},\n"
                     "{\"ph\":\"X\",\"pid\":1,\"name\":\"allreduce\",\"cat\":\"comm\",\"tid\":2,\"ts\":1234.567,\"dur\":1.001,"
                     "\"args\":{\"bytes\":4096,\"algo\\\"\":\"ring\",\"nan\":null}},\n"
                     "{\"ph\":\"X\",\"pid\":0,\"name\":\"x\",\"cat\":\"weft\",\"tid\":0,\"ts\":-0.005,\"dur\":0.000},\n"
                     "{\"ph\":\"C\",\"pid\":1,\"name\":\"bytes\",\"ts\":2.000,\"args\":{\"value\":0.5}}\n]\n");
    free(text);
    OK(weft_timeline_close(NULL));
}

static void *add_many(void *timeline) {
    for (int i = 0; i < 2000; i++) weft_timeline_add(timeline, &(weft_timeline_span){.name = "span", .begin_ns = i, .duration_ns = 1});
    return NULL;
}

Test(timeline, takes_spans_from_many_threads) {
    const char    *path = scratch("t.json");
    weft_timeline *timeline = NULL;
    pthread_t      thread[4];
    OK(weft_timeline_open(path, &timeline));
    for (int i = 0; i < 4; i++) cr_assert_eq(pthread_create(&thread[i], NULL, add_many, timeline), 0);
    for (int i = 0; i < 4; i++) pthread_join(thread[i], NULL);
    OK(weft_timeline_close(timeline));
    char *text = (char *)read_file(path, NULL);
    int   whole = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        whole += strncmp(line, "{\"ph\":\"X\",\"pid\":0,\"name\":\"span\",", 32) == 0 && strchr(line, '}') != NULL;
    cr_assert_eq(whole, 8000);
    free(text);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_eq(counts.held_bytes, 0u);
}

Test(timeline, keeps_the_first_error_for_close) {
    weft_timeline *timeline = NULL;
    cr_assert_eq(weft_timeline_open("/nonexistent/t", &timeline), WEFT_E_NOT_FOUND);
    cr_assert_eq(weft_timeline_open("", &timeline), WEFT_E_INVALID);
    OK(weft_timeline_open("/dev/full", &timeline));
    add_many(timeline);
    cr_assert_eq(weft_timeline_close(timeline), WEFT_E_NO_SPACE);
    cr_assert(message_has("/dev/full"), "%s", weft_error_message());
}

/* The one event file of a folder. */
static uint8_t *read_events(const char *folder, size_t *count_out) {
    char path[700] = "";
    DIR *open = opendir(folder);
    for (struct dirent *entry; (entry = readdir(open));)
        if (strstr(entry->d_name, "tfevents")) snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
    closedir(open);
    uint8_t *bytes = read_file(path, count_out);
    remove(path);
    return bytes;
}

static uint32_t masked(const void *bytes, size_t count) {
    uint32_t crc = wefti_crc32c(bytes, count);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

Test(tensorboard, writes_checksummed_records) {
    const char       *folder = scratch("board");
    weft_tensorboard *writer = NULL;
    OK(weft_tensorboard_open(folder, &writer));
    OK(weft_tensorboard_scalar(writer, "loss/train", 300, 1.5));
    OK(weft_tensorboard_scalar(writer, "x", -1, NAN));
    cr_assert_eq(weft_tensorboard_scalar(writer, "", 1, 1), WEFT_E_INVALID);
    char tag[1002];
    memset(tag, 't', sizeof tag);
    tag[1001] = 0;
    cr_assert_eq(weft_tensorboard_scalar(writer, tag, 1, 1), WEFT_E_INVALID);
    tag[1000] = 0;
    OK(weft_tensorboard_scalar(writer, tag, INT64_MAX, 1e300));
    weft_tensorboard_release(writer);
    weft_tensorboard_release(NULL);
    size_t   count, at = 0;
    uint8_t *bytes = read_events(folder, &count);
    int      records = 0;
    for (; at < count; records++) {
        uint64_t length;
        uint32_t crc;
        memcpy(&length, bytes + at, 8);
        memcpy(&crc, bytes + at + 8, 4);
        cr_assert_eq(crc, masked(bytes + at, 8));
        cr_assert_leq(at + 16 + length, count);
        memcpy(&crc, bytes + at + 12 + length, 4);
        cr_assert_eq(crc, masked(bytes + at + 12, length));
        const uint8_t *event = bytes + at + 12;
        cr_assert_eq(event[0], 0x09, "the time comes first");
        if (records == 0) cr_assert_arr_eq(event + 9, "\x10\x00\x1a\x0d" "brain.Event:2", 17);
        if (records == 1)
            cr_assert_arr_eq(event + 9, "\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0aloss/train\x15\x00\x00\xc0\x3f", 24);
        at += 16 + length;
    }
    cr_assert_eq(at, count);
    cr_assert_eq(records, 4);
    free(bytes);
    cr_assert_eq(weft_tensorboard_open("/nonexistent/board", &writer), WEFT_E_NOT_FOUND);
    cr_assert_null(writer);
}
