/* Strategies as text: what is read, that what is written is read again, and every refusal. */
#include <criterion/criterion.h>
#include <string.h>

#include "weft.h"

static weft_strategy read(const char *text) {
    weft_strategy found = {0};
    cr_assert_eq(weft_strategy_parse(text, &found), WEFT_OK, "%s", weft_error_message());
    return found;
}

static void writes(const weft_strategy *strategy, const char *text) {
    cr_expect_str_eq(weft_strategy_text(strategy).text, text);
    weft_strategy again = read(text);
    cr_expect_str_eq(weft_strategy_text(&again).text, text);
}

Test(strategy_text, reads_a_mesh) {
    weft_strategy s = read("data=2,tensor=3,pipeline=4");
    cr_expect(s.data == 2 && s.tensor == 3 && s.pipeline == 4 && s.sync == WEFT_ALLREDUCE && s.schedule == WEFT_1F1B);
    writes(&s, "data=2,tensor=3,pipeline=4");
}

Test(strategy_text, reads_every_setting) {
    const char *all = "data=4,tensor=2,pipeline=8,sequence=5,expert=3,tensor-rows=-1,schedule=interleaved,chunks=3,zero=3,sync=server:3,servers=2,replicas=1,push=5,fetch=7,warm-start=90,overlap=1,accumulate=16,precision=bf16,"
                      "compress=topk:0.25,compress-warmup=100,bucket-bytes=1048576,divide-bytes=-1,loss-chunk-rows=512";
    weft_strategy s = read(all);
    cr_expect(s.tensor_rows == -1 && s.sequence == 5 && s.expert == 3 && s.schedule == WEFT_INTERLEAVED && s.chunks == 3 && s.zero == 3 && s.sync == WEFT_SERVER && s.staleness == 3 && s.servers == 2 && s.replicas == 1);
    cr_expect(s.push == 5 && s.fetch == 7 && s.warm_start == 90 && s.overlap && s.accumulate == 16 && s.precision == WEFT_BF16);
    cr_expect(s.compress.codec == WEFT_COMPRESS_TOP_K && s.compress.ratio == 0.25 && s.compress.warmup == 100);
    cr_expect(s.bucket_bytes == 1048576 && s.divide_bytes == -1 && s.loss_chunk_rows == 512);
    writes(&s, all);
}

Test(strategy_text, knows_8_bits_as_a_precision) {
    weft_strategy s = read("precision=fp8");
    cr_expect(s.precision == WEFT_BF16 && s.fp8);
    writes(&s, "precision=fp8");
    cr_assert_eq(weft_strategy_parse("precision=bf16", &s), WEFT_OK);
    cr_expect(s.precision == WEFT_BF16 && !s.fp8);
}

Test(strategy_text, leaves_alone_what_it_does_not_name) {
    weft_strategy s = {.data = 3, .compress = {.warmup = 9}};
    cr_assert_eq(weft_strategy_parse(" schedule=gpipe\tcompress=bf16 ,, zero=1\n", &s), WEFT_OK, "%s", weft_error_message());
    cr_expect(s.data == 3 && s.schedule == WEFT_GPIPE && s.zero == 1 && s.compress.codec == WEFT_COMPRESS_BF16 && s.compress.warmup == 9);
    cr_assert_eq(weft_strategy_parse("sync=allreduce schedule=1f1b zero=0 compress=none", &s), WEFT_OK);
    writes(&s, "data=3,compress-warmup=9");
    cr_assert_eq(weft_strategy_parse("", &s), WEFT_OK);
    cr_expect(s.data == 3);
}

Test(strategy_text, knows_all_orders) {
    const char *texts[] = {[WEFT_GPIPE] = "schedule=gpipe", [WEFT_INTERLEAVED] = "schedule=interleaved", [WEFT_ZERO_BUBBLE] = "schedule=zero-bubble"};
    for (int i = WEFT_GPIPE; i <= WEFT_ZERO_BUBBLE; i++) {
        weft_strategy s = read(texts[i]);
        cr_expect_eq((int)s.schedule, i, "%s", texts[i]);
        writes(&s, texts[i]);
    }
}

Test(strategy_text, knows_servers_by_their_staleness) {
    weft_strategy plain = read("sync=server"), async = read("sync=server:async"), bounded = read("sync=server:12");
    cr_expect(plain.sync == WEFT_SERVER && plain.staleness == 0);
    cr_expect(async.sync == WEFT_SERVER && async.staleness == WEFT_TABLE_ASYNCHRONOUS);
    cr_expect(bounded.staleness == 12);
    writes(&plain, "sync=server");
    writes(&async, "sync=server:async");
    writes(&bounded, "sync=server:12");
    cr_assert_eq(weft_strategy_parse("sync=allreduce", &bounded), WEFT_OK);
    writes(&bounded, "data=0");
    writes(&(weft_strategy){0}, "data=0");
}

Test(strategy_text, knows_that_it_is_to_be_chosen) {
    weft_strategy s = read("auto memory-bytes=1000000,recompute=1");
    cr_expect(s.automatic && s.recompute && s.memory_bytes == 1000000);
    writes(&s, "recompute=1,automatic=1,memory-bytes=1000000");
    cr_expect(read("auto").automatic && WEFT_AUTO.automatic);
}

/* With each word of the message, separated by bars. */
static void refuses(const char *text, const char *words) {
    char          copy[256], *rest = NULL;
    weft_strategy before = {.data = 7, .zero = 2}, s = before;
    cr_expect_eq(weft_strategy_parse(text, &s), WEFT_E_INVALID, "'%s' is read", text ? text : "NULL");
    cr_expect(memcmp(&s, &before, sizeof s) == 0, "'%s' changes the strategy", text ? text : "NULL");
    snprintf(copy, sizeof copy, "%s", words);
    for (char *word = strtok_r(copy, "|", &rest); word; word = strtok_r(NULL, "|", &rest))
        cr_expect(strstr(weft_error_message(), word), "of '%s': '%s' does not say '%s'", text ? text : "NULL", weft_error_message(), word);
}

Test(strategy_text, says_what_is_wrong_and_what_there_is) {
    refuses("tensors=2", "no setting 'tensors'|there are data, tensor, pipeline|divide-bytes");
    refuses("data=1,schedule=2f2b", "schedule = '2f2b'|1f1b, gpipe, interleaved or zero-bubble");
    refuses("zero=4", "zero = '4'|3 (parameters too)");
    refuses("data=-1", "data = '-1'|a number of ranks");
    refuses("data=two", "data = 'two'");
    refuses("data=2x", "data = '2x'");
    refuses("data= 2", "'data=' is no NAME=VALUE");
    refuses("data=99999999999999999999", "data = '99999999999999999999'");
    refuses("data=1048577", "data = '1048577'");
    refuses("tensor", "'tensor' is no NAME=VALUE|data=2,tensor=2,pipeline=2");
    refuses("=2", "'=2' is no NAME=VALUE");
    refuses("data=2,tensor=1,data=3", "data is set twice");
    refuses("auto,automatic=0", "automatic is set twice");
    refuses("automatically", "'automatically' is no NAME=VALUE");
    refuses("sync=servers", "sync = 'servers'|allreduce, server, server:STALENESS or server:async");
    refuses("sync=server:-1", "sync = 'server:-1'");
    refuses("sync=server:", "sync = 'server:'");
    refuses("precision=i32", "precision = 'i32'|f32, bf16, f16 or fp8");
    refuses("precision=bf17", "precision = 'bf17'");
    refuses("compress=zip", "no compression 'zip'|bf16");
    refuses("compress=topk:2", "compress.ratio is 2");
    refuses("compress-warmup=-1", "compress-warmup = '-1'");
    refuses("overlap=2", "overlap = '2'|0 or 1");
    refuses("divide-bytes=-2", "divide-bytes = '-2'");
    refuses(NULL, "text is NULL");
    cr_expect_eq(weft_strategy_parse("data=1", NULL), WEFT_E_INVALID);
}

Test(strategy_text, bounds_what_it_reads) {
    char text[600];
    memset(text, 'a', sizeof text);
    text[599] = '\0';
    refuses(text, "599 bytes, at most 512");
    snprintf(text, sizeof text, "data=%0100d", 1);
    refuses(text, "the value of data has 100 bytes, at most 64");
    cr_expect_str_eq(weft_strategy_text(NULL).text, "data=0");
}
