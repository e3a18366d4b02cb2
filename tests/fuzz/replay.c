/* replay FOLDER COUNT: runs a fuzz target on every file of a folder, and on COUNT changed copies of each, made the same way
 * every time. For compilers without libFuzzer, and so that what was once found stays fixed. */
#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

enum { most_bytes = 1 << 20 };

static uint64_t state = 1;

/* Knuth's MMIX generator; quality does not matter here. */
static uint32_t draw(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

/* One to four of: a flipped bit, another byte, a cut, a doubled piece, a number made extreme. */
static size_t change(uint8_t *bytes, size_t size) {
    for (uint32_t edits = 1 + draw(4); edits > 0 && size > 0; edits--) {
        uint32_t at = draw((uint32_t)size), length = 1 + draw((uint32_t)size - at);
        switch (draw(5)) {
        case 0: bytes[at] ^= (uint8_t)(1 << draw(8)); break;
        case 1: bytes[at] = (uint8_t)draw(256); break;
        case 2: size = draw(2) ? at : size - 1; break;
        case 3:
            if (size + length > most_bytes) break;
            memmove(bytes + at + length, bytes + at, size - at);
            size += length;
            break;
        default: memset(bytes + at, draw(2) ? 0xff : 0, length < 8 ? length : 8);
        }
    }
    return size;
}

/* A copy of exactly the size, so that a sanitizer sees every read beyond it. */
static void run(const uint8_t *bytes, size_t size) {
    uint8_t *copy = malloc(size + !size);
    if (!copy) abort();
    memcpy(copy, bytes, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static int run_file(const char *path, long count) {
    static uint8_t original[most_bytes], changed[most_bytes];
    FILE          *file = fopen(path, "rb");
    if (!file) return 0;
    size_t size = fread(original, 1, sizeof original, file);
    fclose(file);
    run(original, size);
    for (long i = 0; i < count; i++) {
        memcpy(changed, original, size);
        run(changed, change(changed, size));
    }
    return 1;
}

int main(int argc, char **argv) {
    DIR *folder = argc == 3 ? opendir(argv[1]) : NULL;
    int  files = 0;
    if (!folder) {
        fprintf(stderr, "usage: %s FOLDER COUNT\n", argv[0]);
        return 2;
    }
    for (struct dirent *entry; (entry = readdir(folder));) {
        char        path[4096];
        struct stat facts;
        snprintf(path, sizeof path, "%s/%s", argv[1], entry->d_name);
        if (stat(path, &facts) == 0 && S_ISREG(facts.st_mode)) files += run_file(path, atol(argv[2]));
    }
    closedir(folder);
    printf("%d files, %ld changed copies of each\n", files, atol(argv[2]));
    return files > 0 ? 0 : 1;
}
