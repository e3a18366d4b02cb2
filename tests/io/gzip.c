/* Writing gzip files, for damaging them. */
#include <stdlib.h>

#include "gzip.h"

#ifdef WEFT_TEST_ZLIB
#include <zlib.h>
bool gzip_file(const char *path, const void *bytes, size_t count) {
    gzFile file = gzopen(path, "wb9");
    if (!file || gzwrite(file, bytes, (unsigned)count) != (int)count || gzclose(file) != Z_OK) abort();
    return true;
}
#else
bool gzip_file(const char *path, const void *bytes, size_t count) {
    (void)path;
    (void)bytes;
    (void)count;
    return false;
}
#endif
