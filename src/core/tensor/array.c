/* Arrays: views (dtype, shape, strides, origin) of reference-counted storage.
 *
 * Idea: storage knows only how it is freed; everything about elements is in the view, so that a reshape or a slice is a
 * new view and no copy. Invariants: a view holds one reference of its storage; strides are not negative, and every
 * element that they reach lies in the storage. Cost: one small allocation a view, one more a storage. */
#include <stdatomic.h>
#include <string.h>

#include "core/tensor/operand.h"
#include "weft/array.h"

typedef struct storage {
    _Atomic int64_t references;
    void           *data;
    size_t          size_bytes; /* where allocated */
    bool            allocated;  /* by wefti_alloc */
    void (*deleter)(void *context, void *data);
    void *context;
} storage;

struct weft_array {
    _Atomic int64_t references;
    storage        *storage;
    char           *data; /* of element 0 */
    weft_dtype      dtype;
    weft_shape      shape;
    int64_t         stride[WEFT_MAX_RANK];
};

static void release_storage(storage *self) {
    if (atomic_fetch_sub_explicit(&self->references, 1, memory_order_acq_rel) != 1) return;
    if (self->deleter) self->deleter(self->context, self->data);
    else if (self->allocated) wefti_free(self->data, self->size_bytes);
    wefti_free(self, sizeof *self);
}

/* Elements and bytes of a type, checked. */
static weft_status measure(const char *what, weft_dtype dtype, weft_shape shape, size_t *bytes_out) {
    size_t element_bytes = weft_dtype_bytes(dtype);
    if (!element_bytes) return wefti_fail(WEFT_E_DTYPE, "%s: %d is no dtype", what, (int)dtype);
    if (shape.rank < 0 || shape.rank > WEFT_MAX_RANK)
        return wefti_fail(WEFT_E_SHAPE, "%s: a shape may have up to %d dimensions", what, WEFT_MAX_RANK);
    for (int32_t axis = 0; axis < shape.rank; axis++)
        if (shape.dim[axis] < 0)
            return wefti_fail(WEFT_E_SHAPE, "%s: %s has a negative dimension", what, weft_shape_text(shape).text);
    int64_t elements = weft_shape_elements(shape);
    if (elements < 0 || !wefti_mul_size((size_t)elements, element_bytes, bytes_out) || *bytes_out > PTRDIFF_MAX)
        return wefti_fail(WEFT_E_OVERFLOW, "%s: the bytes of %s of %s overflow", what, weft_shape_text(shape).text,
                          weft_dtype_name(dtype));
    return WEFT_OK;
}

/* A view of the storage; takes over one of its references on success. */
static weft_status view_of(storage *from, void *data, weft_dtype dtype, weft_shape shape, weft_array **array_out) {
    weft_array *array = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *array, "an array", &array));
    atomic_init(&array->references, 1);
    array->storage = from;
    array->data = data;
    array->dtype = dtype;
    for (int32_t axis = shape.rank; axis < WEFT_MAX_RANK; axis++) shape.dim[axis] = 0;
    array->shape = shape;
    wefti_contiguous_strides(shape, array->stride);
    *array_out = array;
    return WEFT_OK;
}

static weft_status storage_of(void *data, size_t size_bytes, void (*deleter)(void *, void *), void *context,
                              storage **storage_out) {
    storage *self = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *self, "an array's storage", &self));
    atomic_init(&self->references, 1);
    self->data = data;
    self->size_bytes = size_bytes;
    self->deleter = deleter;
    self->context = context;
    *storage_out = self;
    return WEFT_OK;
}

static weft_status create(const char *what, weft_dtype dtype, weft_shape shape, const void *values,
                          weft_array **array_out) {
    size_t   size_bytes = 0;
    void    *data = NULL;
    storage *own = NULL;
    *array_out = NULL;
    WEFTI_TRY(measure(what, dtype, shape, &size_bytes));
    if (values) WEFTI_TRY(wefti_alloc_raw(size_bytes, WEFTI_CACHE_LINE, "an array", &data));
    else WEFTI_TRY(wefti_alloc(size_bytes, "an array", &data));
    weft_status status = storage_of(data, size_bytes, NULL, NULL, &own);
    if (status == WEFT_OK && (status = view_of(own, data, dtype, shape, array_out)) == WEFT_OK) {
        own->allocated = true;
        if (values && size_bytes) memcpy(data, values, size_bytes);
        return WEFT_OK;
    }
    wefti_free(data, size_bytes);
    wefti_free(own, sizeof *own);
    return status;
}

weft_status weft_array_create(weft_dtype dtype, weft_shape shape, weft_array **array_out) {
    return create("weft_array_create", dtype, shape, NULL, array_out);
}

weft_status weft_array_create_from(weft_dtype dtype, weft_shape shape, const void *data, weft_array **array_out) {
    if (!data && weft_shape_elements(shape) > 0) {
        *array_out = NULL;
        return wefti_fail(WEFT_E_INVALID, "weft_array_create_from: data is NULL for %s", weft_shape_text(shape).text);
    }
    return create("weft_array_create_from", dtype, shape, data, array_out);
}

static weft_status adopt(const char *what, weft_dtype dtype, weft_shape shape, void *data,
                         void (*deleter)(void *context, void *data), void *context, weft_array **array_out) {
    size_t   size_bytes = 0;
    storage *own = NULL;
    *array_out = NULL;
    WEFTI_TRY(measure(what, dtype, shape, &size_bytes));
    if (!data && size_bytes)
        return wefti_fail(WEFT_E_INVALID, "%s: data is NULL for %s", what, weft_shape_text(shape).text);
    if ((uintptr_t)data % weft_dtype_bytes(dtype))
        return wefti_fail(WEFT_E_INVALID, "%s: data is not aligned to the %zu bytes of %s", what,
                          weft_dtype_bytes(dtype), weft_dtype_name(dtype));
    WEFTI_TRY(storage_of(data, 0, deleter, context, &own));
    weft_status status = view_of(own, data, dtype, shape, array_out);
    if (status != WEFT_OK) wefti_free(own, sizeof *own);
    return status;
}

weft_status weft_array_borrow(weft_dtype dtype, weft_shape shape, void *data, weft_array **array_out) {
    return adopt("weft_array_borrow", dtype, shape, data, NULL, NULL, array_out);
}

weft_status weft_array_take(weft_dtype dtype, weft_shape shape, void *data, void (*deleter)(void *context, void *data),
                            void *context, weft_array **array_out) {
    if (!deleter) {
        *array_out = NULL;
        return wefti_fail(WEFT_E_INVALID,
                          "weft_array_take: a deleter must be given; use weft_array_borrow without one");
    }
    return adopt("weft_array_take", dtype, shape, data, deleter, context, array_out);
}

weft_array *weft_array_retain(weft_array *array) {
    if (array) atomic_fetch_add_explicit(&array->references, 1, memory_order_relaxed);
    return array;
}

void weft_array_release(weft_array *array) {
    if (!array || atomic_fetch_sub_explicit(&array->references, 1, memory_order_acq_rel) != 1) return;
    release_storage(array->storage);
    wefti_free(array, sizeof *array);
}

void      *weft_array_data(const weft_array *array) { return array->data; }
weft_dtype weft_array_dtype(const weft_array *array) { return array->dtype; }
weft_shape weft_array_shape(const weft_array *array) { return array->shape; }
int64_t    weft_array_elements(const weft_array *array) { return weft_shape_elements(array->shape); }
size_t     weft_array_bytes(const weft_array *array) {
    return (size_t)weft_shape_elements(array->shape) * weft_dtype_bytes(array->dtype);
}
int64_t weft_array_stride(const weft_array *array, int32_t axis) {
    return axis >= 0 && axis < array->shape.rank ? array->stride[axis] : 0;
}

static wefti_operand operand_of(const weft_array *array) {
    wefti_operand operand = {.dtype = array->dtype, .shape = array->shape};
    memcpy(operand.stride, array->stride, sizeof operand.stride);
    return operand;
}

bool weft_array_is_contiguous(const weft_array *array) {
    wefti_operand operand = operand_of(array);
    return wefti_operand_is_contiguous(&operand);
}

/* Replaces the one -1 of a shape by what the element count leaves for it. */
static weft_status infer_dimension(int64_t elements, weft_shape *shape) {
    int32_t unknown = -1;
    int64_t known = 1;
    for (int32_t axis = 0; axis < shape->rank; axis++) {
        if (shape->dim[axis] == -1 && unknown < 0) unknown = axis;
        else if (shape->dim[axis] < 0 || !wefti_mul_i64(known, shape->dim[axis], &known))
            return wefti_fail(WEFT_E_SHAPE, "weft_array_reshape: %s is no shape", weft_shape_text(*shape).text);
    }
    if (unknown < 0) return WEFT_OK;
    if (known == 0 || elements % known)
        return wefti_fail(WEFT_E_SHAPE, "weft_array_reshape: %lld elements do not divide into %s", (long long)elements,
                          weft_shape_text(*shape).text);
    shape->dim[unknown] = elements / known;
    return WEFT_OK;
}

weft_status weft_array_reshape(weft_array *array, weft_shape shape, weft_array **view_out) {
    int64_t elements = weft_array_elements(array);
    size_t  size_bytes = 0;
    *view_out = NULL;
    WEFTI_TRY(infer_dimension(elements, &shape));
    WEFTI_TRY(measure("weft_array_reshape", array->dtype, shape, &size_bytes));
    if (weft_shape_elements(shape) != elements)
        return wefti_fail(WEFT_E_SHAPE, "weft_array_reshape: %s has %lld elements, %s has %lld",
                          weft_shape_text(array->shape).text, (long long)elements, weft_shape_text(shape).text,
                          (long long)weft_shape_elements(shape));
    if (!weft_array_is_contiguous(array))
        return wefti_fail(WEFT_E_INVALID, "weft_array_reshape: the array %s is not contiguous; copy it first",
                          weft_shape_text(array->shape).text);
    WEFTI_TRY(view_of(array->storage, array->data, array->dtype, shape, view_out));
    atomic_fetch_add_explicit(&array->storage->references, 1, memory_order_relaxed);
    return WEFT_OK;
}

weft_status weft_array_slice(weft_array *array, int32_t axis, int64_t begin, int64_t end, weft_array **view_out) {
    *view_out = NULL;
    if (axis < 0 || axis >= array->shape.rank)
        return wefti_fail(WEFT_E_SHAPE, "weft_array_slice: %s has no axis %d", weft_shape_text(array->shape).text,
                          (int)axis);
    if (begin < 0 || end < begin || end > array->shape.dim[axis])
        return wefti_fail(WEFT_E_SHAPE, "weft_array_slice: axis %d of %s has no elements [%lld, %lld)", (int)axis,
                          weft_shape_text(array->shape).text, (long long)begin, (long long)end);
    weft_shape shape = array->shape;
    shape.dim[axis] = end - begin;
    /* An empty slice at the end keeps the origin, which is a valid address. */
    int64_t origin = end > begin ? begin * array->stride[axis] : 0;
    WEFTI_TRY(view_of(array->storage, array->data, array->dtype, shape, view_out));
    atomic_fetch_add_explicit(&array->storage->references, 1, memory_order_relaxed);
    if (origin) (*view_out)->data += origin * (int64_t)weft_dtype_bytes(array->dtype);
    memcpy((*view_out)->stride, array->stride, sizeof array->stride);
    return WEFT_OK;
}

/* Copies elements of one strided view into another of the same dtype and shape. */
static void copy_values(const weft_array *to, const weft_array *from) {
    size_t  element_bytes = weft_dtype_bytes(to->dtype);
    int64_t left = weft_array_elements(to);
    if (left == 0) return;
    if (weft_array_is_contiguous(to) && weft_array_is_contiguous(from)) {
        memcpy(to->data, from->data, (size_t)left * element_bytes);
        return;
    }
    wefti_walk a, b;
    wefti_walk_start(&a, to->shape, to->stride, 0);
    wefti_walk_start(&b, from->shape, from->stride, 0);
    for (; left > 0; left--) {
        memcpy(to->data + a.offset * (int64_t)element_bytes, from->data + b.offset * (int64_t)element_bytes,
               element_bytes);
        wefti_walk_advance(&a, 1);
        wefti_walk_advance(&b, 1);
    }
}

weft_status weft_array_copy(const weft_array *array, weft_array **copy_out) {
    WEFTI_TRY(create("weft_array_copy", array->dtype, array->shape, NULL, copy_out));
    copy_values(*copy_out, array);
    return WEFT_OK;
}

weft_status weft_array_assign(weft_array *array, const weft_array *values) {
    if (array->dtype != values->dtype)
        return wefti_fail(WEFT_E_DTYPE, "weft_array_assign: values of %s for an array of %s",
                          weft_dtype_name(values->dtype), weft_dtype_name(array->dtype));
    if (!weft_shape_equal(array->shape, values->shape))
        return wefti_fail(WEFT_E_SHAPE, "weft_array_assign: values of shape %s for an array of shape %s",
                          weft_shape_text(values->shape).text, weft_shape_text(array->shape).text);
    copy_values(array, values);
    return WEFT_OK;
}

/* --- DLPack --- */

static const weft_dl_dtype dl_dtypes[WEFT_DTYPE_COUNT] = {
    [WEFT_F32] = {WEFT_DL_FLOAT, 32, 1},   [WEFT_F64] = {WEFT_DL_FLOAT, 64, 1}, [WEFT_BF16] = {WEFT_DL_BFLOAT, 16, 1},
    [WEFT_F16] = {WEFT_DL_FLOAT, 16, 1},   [WEFT_I64] = {WEFT_DL_INT, 64, 1},   [WEFT_I32] = {WEFT_DL_INT, 32, 1},
    [WEFT_U8] = {WEFT_DL_UINT, 8, 1},      [WEFT_BOOL] = {WEFT_DL_BOOL, 8, 1},
};

/* An array given out: the tensor points into this, which holds a reference of the array. */
typedef struct export {
    weft_dl_managed managed;
    weft_array     *array;
    int64_t         shape[WEFT_MAX_RANK], strides[WEFT_MAX_RANK];
} export;

static void delete_export(weft_dl_managed *managed) {
    export *self = managed->context;
    weft_array_release(self->array);
    wefti_free(self, sizeof *self);
}

weft_status weft_array_to_dlpack(weft_array *array, weft_dl_managed **managed_out) {
    export *self = NULL;
    *managed_out = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *self, "a DLPack tensor", &self));
    memcpy(self->shape, array->shape.dim, sizeof self->shape);
    memcpy(self->strides, array->stride, sizeof self->strides);
    self->array = weft_array_retain(array);
    self->managed = (weft_dl_managed){
        .tensor = {.data = array->data, .device = {WEFT_DL_CPU, 0}, .rank = array->shape.rank,
                   .dtype = dl_dtypes[array->dtype], .shape = self->shape, .strides = self->strides},
        .context = self,
        .deleter = delete_export,
    };
    *managed_out = &self->managed;
    return WEFT_OK;
}

static weft_status dtype_from_dl(weft_dl_dtype dtype, weft_dtype *dtype_out) {
    for (int i = 0; i < WEFT_DTYPE_COUNT; i++)
        if (dl_dtypes[i].code == dtype.code && dl_dtypes[i].bits == dtype.bits && dtype.lanes == 1) {
            *dtype_out = (weft_dtype)i;
            return WEFT_OK;
        }
    return wefti_fail(WEFT_E_UNSUPPORTED, "weft_array_from_dlpack: no dtype for code %d, %d bits, %d lanes", dtype.code,
                      dtype.bits, dtype.lanes);
}

static void delete_import(void *context, void *data) {
    weft_dl_managed *managed = context;
    (void)data;
    if (managed->deleter) managed->deleter(managed);
}

/* Copies and checks strides; they may be anything that stays within addressable memory. */
static weft_status strides_from_dl(const weft_dl_tensor *tensor, weft_dtype dtype, weft_shape shape,
                                   int64_t stride_out[WEFT_MAX_RANK]) {
    int64_t reach = 0;
    for (int32_t axis = 0; tensor->strides && axis < shape.rank; axis++) {
        int64_t stride = tensor->strides[axis], span = 0;
        if (stride < 0 && shape.dim[axis] > 1)
            return wefti_fail(WEFT_E_UNSUPPORTED, "weft_array_from_dlpack: axis %d has the negative stride %lld",
                              (int)axis, (long long)stride);
        if (shape.dim[axis] > 1 &&
            (!wefti_mul_i64(stride, shape.dim[axis] - 1, &span) || !wefti_add_i64(reach, span, &reach)))
            return wefti_fail(WEFT_E_OVERFLOW, "weft_array_from_dlpack: strides reach beyond memory");
        stride_out[axis] = shape.dim[axis] > 1 ? stride : 0;
    }
    if (reach > PTRDIFF_MAX / (int64_t)weft_dtype_bytes(dtype) - 1)
        return wefti_fail(WEFT_E_OVERFLOW, "weft_array_from_dlpack: strides reach beyond memory");
    return WEFT_OK;
}

weft_status weft_array_from_dlpack(weft_dl_managed *managed, weft_array **array_out) {
    *array_out = NULL;
    if (!managed) return wefti_fail(WEFT_E_INVALID, "weft_array_from_dlpack: the tensor is NULL");
    const weft_dl_tensor *tensor = &managed->tensor;
    if (tensor->device.type != WEFT_DL_CPU && tensor->device.type != WEFT_DL_CUDA_HOST)
        return wefti_fail(WEFT_E_UNSUPPORTED,
                          "weft_array_from_dlpack: memory of device type %d; copy it to the host first",
                          (int)tensor->device.type);
    if (tensor->rank < 0 || tensor->rank > WEFT_MAX_RANK || (tensor->rank > 0 && !tensor->shape))
        return wefti_fail(WEFT_E_SHAPE, "weft_array_from_dlpack: %d dimensions, expected 0 to %d", (int)tensor->rank,
                          WEFT_MAX_RANK);
    weft_dtype dtype = WEFT_F32;
    WEFTI_TRY(dtype_from_dl(tensor->dtype, &dtype));
    weft_shape shape = weft_shape_of(tensor->rank, tensor->shape);
    size_t     size_bytes = 0;
    WEFTI_TRY(measure("weft_array_from_dlpack", dtype, shape, &size_bytes));
    int64_t stride[WEFT_MAX_RANK];
    wefti_contiguous_strides(shape, stride);
    WEFTI_TRY(strides_from_dl(tensor, dtype, shape, stride));
    void *data = (void *)((uintptr_t)tensor->data + (uintptr_t)tensor->byte_offset);
    if ((uintptr_t)data % weft_dtype_bytes(dtype))
        return wefti_fail(WEFT_E_UNSUPPORTED, "weft_array_from_dlpack: data is not aligned to its elements; copy it");
    WEFTI_TRY(adopt("weft_array_from_dlpack", dtype, shape, data, delete_import, managed, array_out));
    memcpy((*array_out)->stride, stride, (size_t)shape.rank * sizeof *stride);
    return WEFT_OK;
}
