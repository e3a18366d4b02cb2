/* The calls about code that is loaded at run time: it is the path of a shared object (lib_nvrtc.cpp), which is used up by loading it. */
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

#include <string>

extern "C" {

cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, cudaJitOption *, void **, unsigned, cudaLibraryOption *, void **, unsigned) {
    std::string path = static_cast<const char *>(code);
    if (path[0] != '/') return cudaErrorInvalidKernelImage; /* code for a GPU */
    void *object = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    unlink(path.c_str());
    if (path.find_last_of('/') != 0) rmdir(path.substr(0, path.find_last_of('/')).c_str());
    *library = reinterpret_cast<cudaLibrary_t>(object);
    return object ? cudaSuccess : cudaErrorInvalidKernelImage;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name) {
    typedef const void *entry();
    void  *found = strcmp(name, "weft_fused") == 0 ? dlsym(reinterpret_cast<void *>(library), "weft_entry") : nullptr;
    if (!found) return cudaErrorSymbolNotFound;
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void *>(reinterpret_cast<entry *>(found)()));
    return cudaSuccess;
}

/* The object stays: launches that wait may still be of its kernels. */
cudaError_t cudaLibraryUnload(cudaLibrary_t) { return cudaSuccess; }
}
