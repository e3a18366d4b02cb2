/* Some hundred ranks. */
#include <criterion/criterion.h>

#include "common/effort.h"
#include "thousand.h"

Test(thousand, communicate_lose_two_and_go_on) { thousand_run(UNDER_ADDRESS_SANITIZER ? 64 : 256); }
