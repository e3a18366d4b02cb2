/* The part of Criterion's interface that the tests use, for builds with ThreadSanitizer only: Criterion 2.4 keeps its
 * state at addresses that ThreadSanitizer reserves, so that its programs do not start there. Each test runs in a child
 * process of its own, one after the other. */
#ifndef TESTS_TSAN_CRITERION_H
#define TESTS_TSAN_CRITERION_H

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct tsan_test {
    const char       *suite, *name;
    void            (*run)(void);
    void            (*init)(void);
    void            (*fini)(void);
    int               signal, exit_code; /* that end a test which is meant to end so */
    bool              disabled;
    struct tsan_test *next;
} tsan_test;

typedef struct tsan_suite {
    const char        *name;
    void             (*init)(void); /* before and after each test of it */
    void             (*fini)(void);
    struct tsan_suite *next;
} tsan_suite;

void tsan_register(tsan_test *test);
void tsan_register_suite(tsan_suite *suite);
void tsan_check(bool holds, const char *what, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
_Noreturn void tsan_skip(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define Test(suite_, name_, ...)                                                                                 \
    static void suite_##_##name_##_impl(void);                                                                   \
    __attribute__((constructor)) static void suite_##_##name_##_register(void) {                                 \
        static tsan_test test = {.suite = #suite_, .name = #name_, .run = suite_##_##name_##_impl, __VA_ARGS__}; \
        tsan_register(&test);                                                                                    \
    }                                                                                                            \
    static void suite_##_##name_##_impl(void)

#define TestSuite(name_, ...)                                          \
    __attribute__((constructor)) static void suite_##name_##_register(void) { \
        static tsan_suite suite = {.name = #name_, __VA_ARGS__};              \
        tsan_register_suite(&suite);                                          \
    }                                                                         \
    struct tsan_suite

#define TSAN_CHECK(holds, what, ...) tsan_check((holds), what, __FILE__, __LINE__, " " __VA_ARGS__)
#define cr_assert(holds, ...) TSAN_CHECK((bool)(holds), #holds, __VA_ARGS__)
#define cr_assert_not(holds, ...) TSAN_CHECK(!(holds), "not " #holds, __VA_ARGS__)
#define cr_assert_eq(a, b, ...) TSAN_CHECK((a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...) TSAN_CHECK((a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...) TSAN_CHECK((a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...) TSAN_CHECK((a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...) TSAN_CHECK((a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...) TSAN_CHECK((a) >= (b), #a " >= " #b, __VA_ARGS__)
#define cr_assert_null(a, ...) TSAN_CHECK((a) == NULL, #a " is NULL", __VA_ARGS__)
#define cr_assert_not_null(a, ...) TSAN_CHECK((a) != NULL, #a " is not NULL", __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) TSAN_CHECK(strcmp((a), (b)) == 0, #a " is the text " #b, __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...) TSAN_CHECK(strcmp((a), (b)) != 0, #a " is not the text " #b, __VA_ARGS__)
#define cr_assert_arr_eq(a, b, bytes, ...) \
    TSAN_CHECK(memcmp((a), (b), (bytes)) == 0, #a " has the bytes of " #b, __VA_ARGS__)
#define cr_assert_arr_neq(a, b, bytes, ...) \
    TSAN_CHECK(memcmp((a), (b), (bytes)) != 0, #a " has other bytes than " #b, __VA_ARGS__)
#define cr_assert_float_eq(a, b, room, ...) \
    TSAN_CHECK(fabs((double)(a) - (double)(b)) <= (double)(room), #a " is close to " #b, __VA_ARGS__)
#define cr_assert_float_neq(a, b, room, ...) \
    TSAN_CHECK(fabs((double)(a) - (double)(b)) > (double)(room), #a " is not close to " #b, __VA_ARGS__)
#define cr_assert_fail(...) TSAN_CHECK(false, "reached", __VA_ARGS__)
/* Here an expectation that fails ends the test as an assertion does. */
#define cr_expect cr_assert
#define cr_expect_not cr_assert_not
#define cr_expect_eq cr_assert_eq
#define cr_expect_neq cr_assert_neq
#define cr_expect_lt cr_assert_lt
#define cr_expect_leq cr_assert_leq
#define cr_expect_gt cr_assert_gt
#define cr_expect_geq cr_assert_geq
#define cr_expect_null cr_assert_null
#define cr_expect_not_null cr_assert_not_null
#define cr_expect_str_eq cr_assert_str_eq
#define cr_expect_str_empty(a, ...) TSAN_CHECK((a)[0] == 0, #a " is empty", __VA_ARGS__)
#define cr_expect_str_neq cr_assert_str_neq
#define cr_skip_test(...) tsan_skip(" " __VA_ARGS__)
#define cr_log_info(...) ((void)0)

#endif
