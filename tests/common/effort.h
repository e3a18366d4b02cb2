/* How hard suites of many cases try. Sanitizers slow programs ten times and more, and look for what does not hang on every dtype and
 * every size; so there a choice of the cases does. */
#ifndef TESTS_EFFORT_H
#define TESTS_EFFORT_H

#if defined __SANITIZE_THREAD__
enum { UNDER_ADDRESS_SANITIZER = 0, UNDER_THREAD_SANITIZER = 1 };
#elif defined __SANITIZE_ADDRESS__
enum { UNDER_ADDRESS_SANITIZER = 1, UNDER_THREAD_SANITIZER = 0 };
#else
enum { UNDER_ADDRESS_SANITIZER = 0, UNDER_THREAD_SANITIZER = 0 };
#endif

#endif
