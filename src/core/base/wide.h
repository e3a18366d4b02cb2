/* Compiles the loops of one file twice, for the baseline of the build's machine and, on x86-64, for AVX2, for what stands outside of the device's
 * kernels and is the same bytes either way. The file that wants it says
 *
 *     #define WIDE_FILE "its/loops.h"          functions TARGET … NAME(x), and a table NAME(table)
 *     #define WIDE_OPTIMIZE "O3"               GCC's options for them
 *     #include "core/base/wide.h"
 *     … WIDE_PICK(table) …                     the best copy that this machine runs */
#ifdef WIDE_FILE

#if defined(__GNUC__) && !defined(__clang__)
#define WIDE_ATTRIBUTES optimize(WIDE_OPTIMIZE)
#define TARGET __attribute__((WIDE_ATTRIBUTES))
#else
#define TARGET
#endif
#define NAME(x) x##_base
#include WIDE_FILE
#undef NAME
#undef TARGET

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#define TARGET __attribute__((target("avx2")))
#else
#define TARGET __attribute__((WIDE_ATTRIBUTES, target("avx2")))
#endif
#define NAME(x) x##_avx2
#include WIDE_FILE
#undef NAME
#undef TARGET
#define WIDE_PICK(table) (__builtin_cpu_supports("avx2") ? &table##_avx2 : &table##_base)
#else
#define WIDE_PICK(table) (&table##_base)
#endif

#endif
