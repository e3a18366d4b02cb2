/* Ranges by NVTX (marks.h), whose headers are all there is of it: they load what NVTX_INJECTION64_PATH names, which profilers set. */
#include "cuda/marks.h"

#include <pthread.h>
#include <stdio.h>

/* NVTX gives its functions to the whole program as weak symbols. Here they stay in this file, so that a static library brings its users no names
 * but its own. */
#define __NVTX_LINKONCE_H__
#define NVTX_LINKONCE_DEFINE_GLOBAL static
#define NVTX_LINKONCE_FWDDECL_GLOBAL static
#define NVTX_LINKONCE_DEFINE_FUNCTION static
#define NVTX_LINKONCE_FWDDECL_FUNCTION static
#define InitializeInjectionNvtx2_fnptr wefti_cuda_injection

#if defined __has_include && __has_include(<nvtx3/nvToolsExt.h>)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <nvtx3/nvToolsExt.h>
#pragma GCC diagnostic pop

static nvtxDomainHandle_t domain; /* NULL: nobody looks on */
static pthread_once_t     once = PTHREAD_ONCE_INIT;
static void open_domain(void) { domain = nvtxDomainCreateA("weft"); }

void wefti_cuda_mark_begin(const char *kind, const char *name) {
    char text[192];
    pthread_once(&once, open_domain);
    if (!domain) return;
    snprintf(text, sizeof text, "%s%s%s", kind, name && *name ? " " : "", name ? name : "");
    nvtxEventAttributes_t range = {.version = NVTX_VERSION, .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE, .messageType = NVTX_MESSAGE_TYPE_ASCII,
                                   .message.ascii = text};
    nvtxDomainRangePushEx(domain, &range);
}

void wefti_cuda_mark_end(void) {
    if (domain) nvtxDomainRangePop(domain);
}
#else
void wefti_cuda_mark_begin(const char *kind, const char *name) { (void)kind, (void)name; }
void wefti_cuda_mark_end(void) {}
#endif
