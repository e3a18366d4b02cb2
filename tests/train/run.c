#include "common/files.h"
#include "train/run.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Where the programs are: beside the tests, wherever those were copied to. */
static const char *bin_dir(void) {
    const char *folder = getenv("WEFT_TEST_BIN");
    return folder && *folder ? folder : WEFT_BIN_DIR;
}

int run_ranks(int ranks, const char *wire, const char *program, const char *arguments, const char *output_path) {
    char command[4096], launcher[512] = "";
    if (ranks > 0) snprintf(launcher, sizeof launcher, "%s/weftrun -n %d%s%s", bin_dir(), ranks, wire ? " --wire " : "", wire ? wire : "");
    snprintf(command, sizeof command, "WEFT_THREADS=1 %s %s/%s %s >%s 2>&1 </dev/null", launcher, bin_dir(), program, arguments,
             output_path ? output_path : "/dev/null");
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static char folder[64];
static int  opened;

static void remove_folder(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command) != 0) fprintf(stderr, "could not remove %s\n", folder);
}

const char *temporary_path(const char *name) {
    if (!opened) {
        snprintf(folder, sizeof folder, "%s/weft-train-XXXXXX", temporary_root());
        cr_assert_not_null(mkdtemp(folder));
        opened = 1;
        atexit(remove_folder);
    }
    /* Live as long as the process, and are reachable till then. */
    static struct given { struct given *before; char path[]; } *last;
    struct given *path = malloc(sizeof *path + strlen(folder) + strlen(name) + 2);
    cr_assert_not_null(path);
    path->before = last;
    sprintf(path->path, "%s/%s", folder, name);
    last = path;
    return path->path;
}

double *read_doubles(const char *path, size_t *count_out) {
    FILE *file = fopen(path, "rb");
    cr_assert_not_null(file, "'%s' is missing", path);
    cr_assert_eq(fseek(file, 0, SEEK_END), 0);
    size_t count = (size_t)ftell(file) / sizeof(double);
    rewind(file);
    double *values = malloc(count * sizeof(double) + 1);
    cr_assert(count > 0 && fread(values, sizeof(double), count, file) == count, "'%s' has no numbers", path);
    fclose(file);
    *count_out = count;
    return values;
}

char *read_text(const char *path) {
    FILE  *file = fopen(path, "rb");
    size_t size = 0, capacity = 1 << 16;
    char  *text = calloc(1, capacity);
    for (size_t got; file && (got = fread(text + size, 1, capacity - size - 1, file)) > 0;) {
        size += got;
        if (capacity - size < 4096) text = realloc(text, capacity *= 2);
    }
    text[size] = '\0';
    if (file) fclose(file);
    return text;
}
