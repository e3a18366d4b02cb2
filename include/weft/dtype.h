/* Element types. */
#ifndef WEFT_DTYPE_H
#define WEFT_DTYPE_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* WEFTI_DTYPE(name, text, bytes, is_float, is_signed) */
#define WEFTI_DTYPES(X)              \
    X(F32, "f32", 4, true, true)     \
    X(F64, "f64", 8, true, true)     \
    X(BF16, "bf16", 2, true, true)   \
    X(F16, "f16", 2, true, true)     \
    X(I64, "i64", 8, false, true)    \
    X(I32, "i32", 4, false, true)    \
    X(U8, "u8", 1, false, false)     \
    X(BOOL, "bool", 1, false, false)

/* F16 is IEEE binary16, BF16 the upper half of binary32, BOOL one byte that is 0 or 1. Zero means F32. */
typedef enum weft_dtype {
#define WEFTI_DTYPE_ENUM(name, text, bytes, is_float, is_signed) WEFT_##name,
    WEFTI_DTYPES(WEFTI_DTYPE_ENUM)
#undef WEFTI_DTYPE_ENUM
    WEFT_DTYPE_COUNT
} weft_dtype;

/* Bytes of one element; 0 for a value that is no dtype. */
static inline size_t weft_dtype_bytes(weft_dtype dtype) {
    switch (dtype) {
#define WEFTI_DTYPE_CASE(name, text, bytes, is_float, is_signed) \
    case WEFT_##name: return bytes;
        WEFTI_DTYPES(WEFTI_DTYPE_CASE)
#undef WEFTI_DTYPE_CASE
    default: return 0;
    }
}

/* "f32", "bf16", …; "?" for a value that is no dtype. Static storage. */
static inline const char *weft_dtype_name(weft_dtype dtype) {
    switch (dtype) {
#define WEFTI_DTYPE_CASE(name, text, bytes, is_float, is_signed) \
    case WEFT_##name: return text;
        WEFTI_DTYPES(WEFTI_DTYPE_CASE)
#undef WEFTI_DTYPE_CASE
    default: return "?";
    }
}

/* The dtype of a name: WEFT_BF16 for "bf16"; WEFT_DTYPE_COUNT, which every function that takes a dtype refuses, for one that is none. */
static inline weft_dtype weft_dtype_of(const char *name) {
    for (int dtype = 0; name && dtype < WEFT_DTYPE_COUNT; dtype++) {
        const char *text = weft_dtype_name((weft_dtype)dtype);
        size_t      i = 0;
        while (text[i] && text[i] == name[i]) i++;
        if (text[i] == name[i]) return (weft_dtype)dtype;
    }
    return WEFT_DTYPE_COUNT;
}

/* True for F32, F64, BF16 and F16, the types that carry gradients. */
static inline bool weft_dtype_is_float(weft_dtype dtype) {
    return dtype == WEFT_F32 || dtype == WEFT_F64 || dtype == WEFT_BF16 || dtype == WEFT_F16;
}

#ifdef __cplusplus
}
#endif
#endif
