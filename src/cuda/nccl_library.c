/* Loading NCCL (nccl_library.h). */
#include "cuda/nccl_library.h"

#include <pthread.h>
#include <stdio.h>

#include "cuda/nccl_engine.h"

/* What is needed of it, non-blocking communicators that can be finalised and aborted, works from 2.18 on. */
enum { OLDEST = NCCL_VERSION(2, 18, 0) };

static struct {
    wefti_cuda_nccl_functions functions;
    int32_t                   version;
    weft_status               status;
    char                      why[400];
} library;
static pthread_once_t once = PTHREAD_ONCE_INIT;

const char *wefti_cuda_nccl_version_text(int32_t version, char text[24]) {
    if (version < 10000) snprintf(text, 24, "%d.%d.%d", (int)version / 1000, (int)version / 100 % 10, (int)version % 100); /* up to 2.8 */
    else snprintf(text, 24, "%d.%d.%d", (int)version / 10000, (int)version / 100 % 100, (int)version % 100);
    return text;
}

static weft_status load_functions(void) {
    static const char *const names[] = {WEFTI_CUDA_NCCL_FUNCTIONS(WEFTI_CUDA_FUNCTION_NAME)};
    static const char *const oldest[] = {"ncclGetVersion"};
    __typeof__(&ncclGetVersion) get_version;
    char                        found[24], built[24], needed[24];
    int                         version = 0;
    /* The version first: an old library lacks functions, and its number says more. */
    WEFTI_TRY(wefti_cuda_library_load("libnccl.so.2", oldest, 1, &get_version));
    if (get_version(&version) != ncclSuccess) version = 0;
    if (version < OLDEST)
        return wefti_fail(WEFT_E_UNSUPPORTED, "libnccl.so.2 is NCCL %s, too old: this build was made for %s and needs %s at least",
                          wefti_cuda_nccl_version_text(version, found), wefti_cuda_nccl_version_text(NCCL_VERSION_CODE, built),
                          wefti_cuda_nccl_version_text(OLDEST, needed));
    library.version = version;
    return wefti_cuda_library_load("libnccl.so.2", names, WEFTI_COUNT(names), &library.functions);
}

static void load(void) {
    library.status = load_functions();
    if (library.status != WEFT_OK) snprintf(library.why, sizeof library.why, "%s", weft_error_message());
}

weft_status wefti_cuda_nccl_load(const wefti_cuda_nccl_functions **functions_out, int32_t *version_out) {
    pthread_once(&once, load);
    *functions_out = NULL;
    if (version_out) *version_out = 0;
    if (library.status != WEFT_OK) return wefti_fail(library.status, "%s", library.why);
    *functions_out = &library.functions;
    if (version_out) *version_out = library.version;
    return WEFT_OK;
}

weft_status wefti_cuda_nccl_version(int32_t *version_out) {
    const wefti_cuda_nccl_functions *functions;
    return wefti_cuda_nccl_load(&functions, version_out);
}
