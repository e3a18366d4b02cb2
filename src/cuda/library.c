/* Loading libraries at run time (library.h). */
#include "cuda/library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *open_library(const char *file) {
    const char *folder = getenv("WEFT_CUDA_LIBRARIES");
    char        path[4096];
    if (folder && strcmp(folder, "none") == 0) return NULL;
    if (folder && folder[0] && snprintf(path, sizeof path, "%s/%s", folder, file) < (int)sizeof path) {
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (library) return library;
    }
    return dlopen(file, RTLD_NOW | RTLD_LOCAL);
}

weft_status wefti_cuda_library_wanted(const char *file, const char *variable) {
    const char *wish = getenv(variable);
    if (!wish || strcmp(wish, "0") != 0) return WEFT_OK;
    return wefti_fail(WEFT_E_UNSUPPORTED, "%s is switched off by %s=0", file, variable);
}

weft_status wefti_cuda_library_load(const char *file, const char *const *names, size_t count, void *table_out) {
    char *table   = table_out;
    void *library = open_library(file);
    memset(table, 0, count * sizeof(void *));
    if (!library) {
        const char *why = dlerror(); /* none where it was not looked for */
        return wefti_fail(WEFT_E_UNSUPPORTED, "%s cannot be loaded (%s); put its folder into WEFT_CUDA_LIBRARIES or LD_LIBRARY_PATH", file,
                          why ? why : "WEFT_CUDA_LIBRARIES is none");
    }
    for (size_t i = 0; i < count; i++) {
        void *function = dlsym(library, names[i]);
        if (!function) {
            memset(table, 0, count * sizeof(void *));
            dlclose(library);
            return wefti_fail(WEFT_E_UNSUPPORTED, "%s has no function %s: it is older than this program", file, names[i]);
        }
        memcpy(table + i * sizeof function, &function, sizeof function);
    }
    return WEFT_OK;
}
