/* The DLPack exchange format as the structures that its binary interface prescribes (DLPack 1.0, unversioned tensors,
 * the form that Python's __dlpack__ capsules named "dltensor" carry). The layouts are those of <dlpack/dlpack.h>, under
 * names of their own, so that a program may include both and cast a pointer from one to the other. */
#ifndef WEFT_DLPACK_H
#define WEFT_DLPACK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Device types that matter here. */
enum { WEFT_DL_CPU = 1, WEFT_DL_CUDA = 2, WEFT_DL_CUDA_HOST = 3, WEFT_DL_CUDA_MANAGED = 13 };
/* Codes of element types. */
enum { WEFT_DL_INT = 0, WEFT_DL_UINT = 1, WEFT_DL_FLOAT = 2, WEFT_DL_BFLOAT = 4, WEFT_DL_BOOL = 6 };

typedef struct weft_dl_device {
    int32_t type;
    int32_t index;
} weft_dl_device;

typedef struct weft_dl_dtype {
    uint8_t  code;
    uint8_t  bits;
    uint16_t lanes; /* 1 but for vector types */
} weft_dl_dtype;

typedef struct weft_dl_tensor {
    void          *data;
    weft_dl_device device;
    int32_t        rank;
    weft_dl_dtype  dtype;
    int64_t       *shape;       /* [rank] */
    int64_t       *strides;     /* [rank] in elements; NULL: row-major */
    uint64_t       byte_offset; /* of element 0 from `data` */
} weft_dl_tensor;

/* A tensor with its owner. Whoever consumes it calls deleter(self) once, where there is one. */
typedef struct weft_dl_managed {
    weft_dl_tensor tensor;
    void          *context;
    void (*deleter)(struct weft_dl_managed *self);
} weft_dl_managed;

#ifdef __cplusplus
}
#endif
#endif
