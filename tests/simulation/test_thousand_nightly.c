/* As test_thousand.c with 1,024, which takes 2.2 GB and a minute. */
#include <criterion/criterion.h>

#include "thousand.h"

Test(thousand_nightly, communicate_lose_two_and_go_on) { thousand_run(1024); }
