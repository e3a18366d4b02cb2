/* Libraries that are loaded at run time, each into one table of functions typed by the library's own header.
 *
 *     #define FUNCTIONS(X) X(ncclSend) X(ncclRecv)
 *     typedef struct functions { FUNCTIONS(WEFTI_CUDA_FUNCTION) } functions;
 *     static const char *const names[] = {FUNCTIONS(WEFTI_CUDA_FUNCTION_NAME)};
 *
 * A program thus starts anywhere, and says what it found. */
#ifndef WEFTI_CUDA_LIBRARY_H
#define WEFTI_CUDA_LIBRARY_H

#include "core/base/base.h"

#define WEFTI_CUDA_FUNCTION(name) __typeof__(&name) name;
#define WEFTI_CUDA_FUNCTION_NAME(name) #name,

/* Loads `file` ("libcublasLt.so.13") from the folder in WEFT_CUDA_LIBRARIES where that is set and has it, else as the system finds it ("none":
 * nowhere), and fills the table: `count` pointers, in the order of the names. It stays loaded. WEFT_E_UNSUPPORTED, saying what is missing, where
 * the file or one of the functions is not there; the table is then all zeros. */
WEFT_MUST_CHECK weft_status wefti_cuda_library_load(const char *file, const char *const *names, size_t count, void *table_out);
/* WEFT_E_UNSUPPORTED where the environment variable says 0: for comparing a library with kernels of our own. */
WEFT_MUST_CHECK weft_status wefti_cuda_library_wanted(const char *file, const char *variable);

#endif
