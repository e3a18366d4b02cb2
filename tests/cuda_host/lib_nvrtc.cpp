/* A stand-in for libnvrtc.so.13: the text is compiled by the host's compiler, as kernels are for these tests, into a shared object; what comes
 * out as machine code is its path, which the runtime's stand-in loads (library.cpp). The header that the caller gives is left out for
 * the sources that it was made of. A second or so a text. */
#include <nvrtc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>

struct _nvrtcProgram {
    std::string source, log, object;
};

static const char header[] = "#include \"cuda/scalars.cuh\"\n#include <string.h>\n"
                             "SCALAR double s_double(uint64_t bits) { double x; memcpy(&x, &bits, sizeof x); return x; }\n";
static const char entry[] = "\nextern \"C\" const void *weft_entry() { return wefti_shim_know_kernel(\"weft_fused\", weft_fused); }\n";

static bool put(const std::string &path, const std::string &text) {
    FILE *file = fopen(path.c_str(), "w");
    bool  good = file && fwrite(text.data(), 1, text.size(), file) == text.size();
    return file && fclose(file) == 0 && good;
}

extern "C" {

nvrtcResult nvrtcVersion(int *major, int *minor) {
    *major = 13;
    *minor = 0;
    return NVRTC_SUCCESS;
}
const char *nvrtcGetErrorString(nvrtcResult result) { return result == NVRTC_SUCCESS ? "NVRTC_SUCCESS" : "NVRTC_ERROR"; }

nvrtcResult nvrtcCreateProgram(nvrtcProgram *program, const char *source, const char *, int headers, const char *const *texts, const char *const *names) {
    if (headers != 1 || strcmp(names[0], "weft_scalars.h") != 0 || !strstr(texts[0], "s_philox")) return NVRTC_ERROR_INVALID_INPUT;
    *program = new _nvrtcProgram;
    (*program)->source = source;
    return NVRTC_SUCCESS;
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram *program) {
    delete *program;
    *program = nullptr;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int count, const char *const *options) {
    char folder[] = "/tmp/weft-nvrtc-XXXXXX", line[256];
    bool rounds = false;
    for (int i = 0; i < count; i++) rounds = rounds || strcmp(options[i], "--fmad=false") == 0;
    if (!rounds || !mkdtemp(folder)) return NVRTC_ERROR_INVALID_OPTION;
    std::string at = folder, log = at + "/log";
    if (!put(at + "/weft_scalars.h", header) || !put(at + "/fused.cpp", program->source + entry)) return NVRTC_ERROR_OUT_OF_MEMORY;
    std::string command = std::string(WEFT_HOST_COMPILER) + " -std=c++17 -O0 -w -shared -fPIC -ffp-contract=off -fno-strict-aliasing -fno-exceptions -D_GNU_SOURCE" +
                          " -include " WEFT_SOURCE_DIR "/tests/cuda_host/shim.h -I" + at + " -I" WEFT_SOURCE_DIR "/include -I" WEFT_SOURCE_DIR
                          "/src -I" WEFT_SOURCE_DIR "/tests -isystem " WEFT_HOST_CUDA " -o " + at + "/fused.so " + at + "/fused.cpp > " + log + " 2>&1";
    int result = system(command.c_str());
    if (FILE *file = fopen(log.c_str(), "r")) {
        while (fgets(line, sizeof line, file)) program->log += line;
        fclose(file);
    }
    unlink(log.c_str());
    unlink((at + "/fused.cpp").c_str());
    unlink((at + "/weft_scalars.h").c_str());
    program->object = at + "/fused.so";
    return result == 0 ? NVRTC_SUCCESS : NVRTC_ERROR_COMPILATION;
}

nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t *bytes) {
    *bytes = program->log.size() + 1;
    return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char *log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t *bytes) {
    *bytes = program->object.size() + 1;
    return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char *code) {
    memcpy(code, program->object.c_str(), program->object.size() + 1);
    return NVRTC_SUCCESS;
}
}
