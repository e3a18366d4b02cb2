/* Compiling at run time (nvrtc.h).
 *
 * A text is looked for in memory, then on disk, then compiled for exactly this GPU with the rounding of the library's own kernels (nothing
 * contracted, subnormals kept). What comes of it is a few tens of KiB of machine code. Cost: some tens of milliseconds a new text. */
#include "cuda/nvrtc.h"

#include <nvrtc.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "cuda/cache.h"
#include "cuda/library.h"

#define FUNCTIONS(X)                                                                                                                  \
    X(nvrtcVersion) X(nvrtcCreateProgram) X(nvrtcCompileProgram) X(nvrtcDestroyProgram) X(nvrtcGetProgramLogSize)                    \
    X(nvrtcGetProgramLog) X(nvrtcGetCUBINSize) X(nvrtcGetCUBIN) X(nvrtcGetErrorString)
typedef struct functions { FUNCTIONS(WEFTI_CUDA_FUNCTION) } functions;

static struct {
    functions f;
    bool      there;
    int       major, minor;
    char      why[256];
} library;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void) {
    static const char *const names[] = {FUNCTIONS(WEFTI_CUDA_FUNCTION_NAME)};
    if (wefti_cuda_library_load("libnvrtc.so.13", names, WEFTI_COUNT(names), &library.f) == WEFT_OK) {
        library.there = library.f.nvrtcVersion(&library.major, &library.minor) == NVRTC_SUCCESS;
        if (library.there) return;
        snprintf(library.why, sizeof library.why, "libnvrtc.so.13 does not say its version");
    } else {
        snprintf(library.why, sizeof library.why, "%s", weft_error_message());
    }
    wefti_log(WEFT_LOG_WARNING, "cuda: fused programs are interpreted, which is slower: %s", library.why);
}

bool wefti_cuda_nvrtc_is_there(const wefti_cuda *cuda, const char **why_out) {
    if (why_out) *why_out = NULL;
    if (!cuda->nvrtc) {
        if (why_out) *why_out = "switched off by WEFT_CUDA_NVRTC=0 or the device's options";
        return false;
    }
    pthread_once(&once, load);
    if (!library.there && why_out) *why_out = library.why;
    return library.there;
}

/* --- what every text includes --- */

#define WEFTI_SCALAR(...) #__VA_ARGS__ "\n",
static const char *const scalars[] = {
#include "cuda/scalars.def"
};
#undef WEFTI_SCALAR

/* The numbers of ops and dtypes, the types, and the conversions, each one instruction of the GPU. */
static const char *const preamble[] = {
    "typedef signed char int8_t; typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef int int32_t;\n"
    "typedef unsigned int uint32_t; typedef long long int64_t; typedef unsigned long long uint64_t;\n"
    "#define SCALAR static __device__ __forceinline__\n"
    "enum {",
#define WEFTI_OP(NAME, name, family, in_min, in_max, outs, shape, gradient, shard, flops) "WEFT_OP_" #NAME ",",
#include "weft/ops.def"
#undef WEFTI_OP
    "};\nenum {",
#define DTYPE_TEXT(NAME, text, bytes, is_float, is_signed) "WEFT_" #NAME ",",
    WEFTI_DTYPES(DTYPE_TEXT)
#undef DTYPE_TEXT
    "};\n"
    "SCALAR float s_of_f16(uint16_t x) { float y; asm(\"cvt.f32.f16 %0, %1;\" : \"=f\"(y) : \"h\"(x)); return y; }\n"
    "SCALAR uint16_t s_to_f16(float x) { uint16_t y; asm(\"cvt.rn.f16.f32 %0, %1;\" : \"=h\"(y) : \"f\"(x)); return y; }\n"
    "SCALAR float s_of_bf16(uint16_t x) { return __uint_as_float((uint32_t)x << 16); }\n"
    "SCALAR uint16_t s_to_bf16(float x) { uint16_t y; asm(\"cvt.rn.bf16.f32 %0, %1;\" : \"=h\"(y) : \"f\"(x)); return y; }\n"
    "SCALAR float s_reciprocal(float x) { float y; asm(\"rcp.approx.ftz.f32 %0, %1;\" : \"=f\"(y) : \"f\"(x)); return y; }\n"
    "SCALAR float s_power_of_two(float x) { float y; asm(\"ex2.approx.ftz.f32 %0, %1;\" : \"=f\"(y) : \"f\"(x)); return y; }\n"
    "SCALAR double s_double(uint64_t bits) { return __longlong_as_double((long long)bits); }\n",
};

/* --- kernels that are there --- */

typedef struct compiled {
    struct compiled *next;
    cudaLibrary_t    library;
    cudaKernel_t     kernel;
    size_t           size_bytes; /* of this struct with the text */
    char             source[];
} compiled;

struct wefti_cuda_nvrtc {
    compiled *first;
    char     *header; /* weft_scalars.h */
    uint64_t  header_hash;
};

static weft_status open_compiler(wefti_cuda *cuda) {
    wefti_text text = {0};
    if (cuda->compiler) return WEFT_OK;
    for (size_t i = 0; i < WEFTI_COUNT(preamble); i++) wefti_text_add(&text, "%s", preamble[i]);
    for (size_t i = 0; i < WEFTI_COUNT(scalars); i++) wefti_text_add(&text, "%s", scalars[i]);
    weft_status status = text.failed ? wefti_fail(WEFT_E_NO_MEMORY, "cuda: no memory for the compiler's header") : WEFT_OK;
    if (status == WEFT_OK) status = wefti_alloc(sizeof *cuda->compiler, "the fusion compiler", &cuda->compiler);
    if (status == WEFT_OK && (status = wefti_copy_string(text.bytes, &cuda->compiler->header)) != WEFT_OK) {
        wefti_free(cuda->compiler, sizeof *cuda->compiler);
        cuda->compiler = NULL;
    }
    if (status == WEFT_OK) cuda->compiler->header_hash = wefti_cuda_cache_hash(text.bytes, text.length);
    wefti_text_release(&text);
    return status;
}

void wefti_cuda_nvrtc_close(wefti_cuda *cuda) {
    if (!cuda->compiler) return;
    for (compiled *one = cuda->compiler->first; one;) {
        compiled *next = one->next;
        (void)cudaLibraryUnload(one->library);
        wefti_free(one, one->size_bytes);
        one = next;
    }
    wefti_free_string(cuda->compiler->header);
    wefti_free(cuda->compiler, sizeof *cuda->compiler);
    cuda->compiler = NULL;
}

/* --- compiling --- */

static weft_status refuse(nvrtcResult result, nvrtcProgram program, const char *what) {
    char   log[512] = "";
    size_t bytes = 0;
    if (program && library.f.nvrtcGetProgramLogSize(program, &bytes) == NVRTC_SUCCESS && bytes > 1) {
        char *whole = NULL;
        if (wefti_alloc(bytes, "a compiler's log", &whole) == WEFT_OK) {
            if (library.f.nvrtcGetProgramLog(program, whole) == NVRTC_SUCCESS) snprintf(log, sizeof log, ": %s", whole);
            wefti_free(whole, bytes);
        }
    }
    return wefti_fail(WEFT_E_INTERNAL, "cuda: NVRTC %d.%d, %s: %s%s", library.major, library.minor, what, library.f.nvrtcGetErrorString(result), log);
}

/* Machine code of the text; *code_out is to be freed with its bytes. */
static weft_status compile(wefti_cuda *cuda, const char *source, void **code_out, size_t *bytes_out) {
    static const char *const include = "weft_scalars.h";
    const char  *header = cuda->compiler->header;
    char         architecture[48];
    nvrtcProgram program = NULL;
    weft_status  status = WEFT_OK;
    void        *code = NULL;
    size_t       bytes = 0;
    snprintf(architecture, sizeof architecture, "--gpu-architecture=sm_%d%d", (int)cuda->major, (int)cuda->minor);
    const char *const options[] = {architecture, "--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"};
    nvrtcResult       result = library.f.nvrtcCreateProgram(&program, source, "fused.cu", 1, &header, &include);
    if (result != NVRTC_SUCCESS) return refuse(result, NULL, "making a program");
    result = library.f.nvrtcCompileProgram(program, (int)WEFTI_COUNT(options), options);
    if (result != NVRTC_SUCCESS) status = refuse(result, program, "compiling a fused program");
    if (status == WEFT_OK && (result = library.f.nvrtcGetCUBINSize(program, &bytes)) != NVRTC_SUCCESS) status = refuse(result, NULL, "its code's size");
    if (status == WEFT_OK) status = wefti_alloc(bytes, "compiled code", &code);
    if (status == WEFT_OK && (result = library.f.nvrtcGetCUBIN(program, code)) != NVRTC_SUCCESS) {
        status = refuse(result, NULL, "its code");
        wefti_free(code, bytes);
    }
    (void)library.f.nvrtcDestroyProgram(&program);
    if (status != WEFT_OK) return status;
    *code_out = code;
    *bytes_out = bytes;
    return WEFT_OK;
}

/* What names a kernel on disk: all that its code follows from. */
static weft_status key_of(const wefti_cuda *cuda, const char *source, wefti_text *key) {
    wefti_text_add(key, "1 sm_%d%d nvrtc %d.%d header %016llx\n%s", (int)cuda->major, (int)cuda->minor, library.major, library.minor,
                   (unsigned long long)cuda->compiler->header_hash, source);
    return key->failed ? wefti_fail(WEFT_E_NO_MEMORY, "cuda: no memory for a fused program's text") : WEFT_OK;
}

static weft_status load_code(wefti_cuda *cuda, const void *code, const char *name, compiled *one) {
    WEFTI_TRY(wefti_cuda_check(cuda, cudaLibraryLoadData(&one->library, code, NULL, NULL, 0, NULL, NULL, 0), "loading a fused program"));
    weft_status status = wefti_cuda_check(cuda, cudaLibraryGetKernel(&one->kernel, one->library, name), "finding a fused program's kernel");
    if (status != WEFT_OK) (void)cudaLibraryUnload(one->library);
    return status;
}

/* From disk, or compiled and kept there. */
static weft_status find_code(wefti_cuda *cuda, const char *source, const char *name, compiled *one) {
    wefti_text  key = {0};
    void       *code = NULL;
    size_t      bytes = 0;
    weft_status status = key_of(cuda, source, &key);
    if (status == WEFT_OK && wefti_cuda_cache_read_large("fused", key.bytes, key.length, &code, &bytes)) {
        bool loads = load_code(cuda, code, name, one) == WEFT_OK; /* else the file is broken */
        wefti_free(code, bytes);
        if (loads) {
            wefti_text_release(&key);
            return WEFT_OK;
        }
    }
    if (status == WEFT_OK) status = compile(cuda, source, &code, &bytes);
    if (status == WEFT_OK) {
        status = load_code(cuda, code, name, one);
        if (status == WEFT_OK) wefti_cuda_cache_write("fused", key.bytes, key.length, code, bytes);
        wefti_free(code, bytes);
    }
    wefti_text_release(&key);
    return status;
}

weft_status wefti_cuda_nvrtc_kernel(wefti_cuda *cuda, const char *source, const char *name, const void **kernel_out) {
    const char *why;
    size_t      length = strlen(source);
    compiled   *one = NULL;
    if (!wefti_cuda_nvrtc_is_there(cuda, &why)) return wefti_fail(WEFT_E_UNSUPPORTED, "cuda: fused programs are not compiled: %s", why);
    WEFTI_TRY(open_compiler(cuda));
    for (one = cuda->compiler->first; one; one = one->next)
        if (strcmp(one->source, source) == 0) break;
    if (!one) {
        size_t size_bytes = sizeof *one + length + 1;
        WEFTI_TRY(wefti_alloc(size_bytes, "a fused program", &one));
        one->size_bytes = size_bytes;
        memcpy(one->source, source, length + 1);
        weft_status status = find_code(cuda, source, name, one);
        if (status != WEFT_OK) {
            wefti_free(one, size_bytes);
            return status;
        }
        one->next = cuda->compiler->first;
        cuda->compiler->first = one;
    }
    *kernel_out = (const void *)one->kernel;
    return WEFT_OK;
}
