/* What a profiler gives to NVTX (NVTX_INJECTION64_PATH): it keeps the ranges of all domains as text, "[name" where one begins and "]" where it ends. */
#include <cstring>
#include <nvtx3/nvToolsExt.h>
#include <string>

static std::string seen;

static nvtxDomainHandle_t NVTX_API create(const char *name) {
    seen += std::string("domain ") + name + "\n";
    return reinterpret_cast<nvtxDomainHandle_t>(&seen);
}
static int NVTX_API push(nvtxDomainHandle_t, const nvtxEventAttributes_t *range) {
    seen += std::string("[") + range->message.ascii;
    return 0;
}
static int NVTX_API pop(nvtxDomainHandle_t) {
    seen += "]\n";
    return 0;
}

template <typename F> static void put(NvtxFunctionTable table, unsigned size, unsigned id, F function) {
    if (id < size && table[id]) *table[id] = reinterpret_cast<NvtxFunctionPointer>(function);
}

extern "C" __attribute__((visibility("default"))) int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t tables) {
    auto              callbacks = static_cast<const NvtxExportTableCallbacks *>(tables(NVTX_ETID_CALLBACKS));
    NvtxFunctionTable table = nullptr;
    unsigned          size = 0;
    if (!callbacks || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size)) return 0;
    put(table, size, NVTX_CBID_CORE2_DomainCreateA, create);
    put(table, size, NVTX_CBID_CORE2_DomainRangePushEx, push);
    put(table, size, NVTX_CBID_CORE2_DomainRangePop, pop);
    return 1;
}
extern "C" __attribute__((visibility("default"))) const char *weft_test_ranges(void) { return seen.c_str(); }
