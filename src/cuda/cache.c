/* The cache of measurements on disk (cache.h): a file is the key, then the value. */
#include "cuda/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, ENTRY_BYTES = 1024 };

/* Makes the folder and those above it. */
static bool make_folders(char *path) {
    for (char *slash = strchr(path + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash) *slash = 0;
        bool there = mkdir(path, 0777) == 0 || errno == EEXIST;
        if (!slash) return there;
        *slash = '/';
        if (!there) return false;
    }
}

static bool folder_of(char path[PATH_BYTES]) {
    const char *own = getenv("WEFT_CUDA_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int         n   = 0;
    if (own && own[0]) {
        if (strcmp(own, "0") == 0) return false;
        n = snprintf(path, PATH_BYTES, "%s", own);
    } else if (xdg && xdg[0] == '/') {
        n = snprintf(path, PATH_BYTES, "%s/weft/cuda", xdg);
    } else if (home && home[0] == '/') {
        n = snprintf(path, PATH_BYTES, "%s/.cache/weft/cuda", home);
    }
    return n > 0 && n < PATH_BYTES;
}

/* Keys are compared whole; this only names the file. */
uint64_t wefti_cuda_cache_hash(const void *bytes, size_t n) { return wefti_hash(WEFTI_HASH_BEGIN, bytes, n); }

static bool file_of(const char *kind, const void *key, size_t key_bytes, bool make, char path[PATH_BYTES]) {
    char folder[PATH_BYTES];
    if (!folder_of(folder) || (make && !make_folders(folder))) return false;
    int n = snprintf(path, PATH_BYTES, "%s/%s-%016llx", folder, kind, (unsigned long long)wefti_cuda_cache_hash(key, key_bytes));
    return n > 0 && n < PATH_BYTES;
}

static bool read_whole(const char *path, void *bytes, size_t n) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    size_t  done = 0;
    ssize_t got  = 0;
    while (done < n && ((got = read(file, (char *)bytes + done, n - done)) > 0 || (got < 0 && errno == EINTR)))
        if (got > 0) done += (size_t)got;
    char more;
    bool whole = done == n && read(file, &more, 1) == 0;
    close(file);
    return whole;
}

bool wefti_cuda_cache_read(const char *kind, const void *key, size_t key_bytes, void *value_out, size_t value_bytes) {
    char          path[PATH_BYTES];
    unsigned char bytes[ENTRY_BYTES];
    if (key_bytes + value_bytes > sizeof bytes || !file_of(kind, key, key_bytes, false, path)) return false;
    if (!read_whole(path, bytes, key_bytes + value_bytes) || memcmp(bytes, key, key_bytes) != 0) return false;
    memcpy(value_out, bytes + key_bytes, value_bytes);
    return true;
}

bool wefti_cuda_cache_read_large(const char *kind, const void *key, size_t key_bytes, void **value_out, size_t *value_bytes_out) {
    char        path[PATH_BYTES];
    struct stat about;
    if (!file_of(kind, key, key_bytes, false, path) || stat(path, &about) != 0 || about.st_size <= (off_t)key_bytes) return false;
    size_t bytes = (size_t)about.st_size, value_bytes = bytes - key_bytes;
    char  *whole = NULL, *value = NULL;
    if (wefti_alloc(bytes, "what the cache holds", &whole) != WEFT_OK) return false;
    bool good = read_whole(path, whole, bytes) && memcmp(whole, key, key_bytes) == 0 &&
                wefti_alloc(value_bytes, "what the cache holds", &value) == WEFT_OK;
    if (good) memcpy(value, whole + key_bytes, value_bytes);
    wefti_free(whole, bytes);
    *value_out = value;
    *value_bytes_out = value_bytes;
    return good;
}

static bool write_whole(int file, const void *bytes, size_t n) {
    for (size_t done = 0; done < n;) {
        ssize_t put = write(file, (const char *)bytes + done, n - done);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return false;
        done += (size_t)put;
    }
    return true;
}

void wefti_cuda_cache_write(const char *kind, const void *key, size_t key_bytes, const void *value, size_t value_bytes) {
    char path[PATH_BYTES], fresh[PATH_BYTES + 8];
    if (!file_of(kind, key, key_bytes, true, path)) return;
    snprintf(fresh, sizeof fresh, "%s.XXXXXX", path);
    int  file = mkstemp(fresh); /* a name of its own, then renamed: readers see whole files */
    bool kept = file >= 0 && write_whole(file, key, key_bytes) && write_whole(file, value, value_bytes);
    if (file >= 0 && close(file) != 0) kept = false;
    if (kept && rename(fresh, path) == 0) return;
    wefti_log(WEFT_LOG_INFO, "cuda: %s: a measurement was not kept: %s", path, strerror(errno));
    if (file >= 0) unlink(fresh);
}
