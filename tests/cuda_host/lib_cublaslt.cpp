/* libcublasLt.so.13, as far as Weft calls it: the product that the descriptors describe, computed plainly, and refused where they do not fit
 * each other, the pointers, the alignment that was promised or the workspace.
 *
 * Two algorithms: one adds in one go, the other in halves whose sums it keeps in the workspace, so that algorithms differ in rounding and in
 * what they need. */
#include <cublasLt.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <vector>

#include "core/tensor/fp8.h"
#include "core/tensor/half.h"
#include "cuda_host/stand_in.h"

#define FP8(x) wefti_fp8_host_##x
#define FP8_FUNCTION static inline __attribute__((unused))
#include "core/tensor/fp8_code.h"

namespace {

enum : uint64_t { MAGIC = UINT64_C(0x77656674626c6173) };

struct operation {
    cublasComputeType_t compute;
    cudaDataType_t      scale;
    cublasOperation_t   a = CUBLAS_OP_N, b = CUBLAS_OP_N;
    cublasLtEpilogue_t  epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const float        *a_scale = nullptr, *b_scale = nullptr; /* in device memory, read by the product */
    void               *vector = nullptr, *side = nullptr; /* bias or sums; what stands before an activation */
    int64_t             side_ld = 0;
};
/* What an epilogue does, of the library's list. */
struct steps {
    bool bias, relu, gelu, dgelu, stores, sums, sums_a, sums_b;
};
bool steps_of(cublasLtEpilogue_t kind, steps *out) {
    *out = {};
    switch (kind) {
    case CUBLASLT_EPILOGUE_DEFAULT: break;
    case CUBLASLT_EPILOGUE_BIAS: out->bias = true; break;
    case CUBLASLT_EPILOGUE_RELU: out->relu = true; break;
    case CUBLASLT_EPILOGUE_RELU_BIAS: out->relu = out->bias = true; break;
    case CUBLASLT_EPILOGUE_GELU: out->gelu = true; break;
    case CUBLASLT_EPILOGUE_GELU_BIAS: out->gelu = out->bias = true; break;
    case CUBLASLT_EPILOGUE_GELU_AUX: out->gelu = out->stores = true; break;
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS: out->gelu = out->stores = out->bias = true; break;
    case CUBLASLT_EPILOGUE_DGELU: out->dgelu = true; break;
    case CUBLASLT_EPILOGUE_DGELU_BGRAD: out->dgelu = out->sums = true; break;
    case CUBLASLT_EPILOGUE_BGRADA: out->sums_a = true; break;
    case CUBLASLT_EPILOGUE_BGRADB: out->sums_b = true; break;
    default: return false;
    }
    return true;
}
struct layout {
    cudaDataType_t type;
    uint64_t       rows, columns;
    int64_t        ld;
    int32_t        batch = 1;
    int64_t        stride = 0;
};
struct preference {
    uint64_t workspace = 0;
    uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_MASK, alignment[4] = {256, 256, 256, 256};
};
/* In the 64 bytes of cublasLtMatmulAlgo_t. */
struct algorithm {
    uint64_t magic;
    uint32_t id, alignment[4];
    uint64_t workspace, m, n;
};
static_assert(sizeof(algorithm) <= sizeof(cublasLtMatmulAlgo_t), "an algorithm fits");

cublasStatus_t refuse(cublasStatus_t status, const char *why) {
    if (getenv("WEFT_CUDA_HOST_VERBOSE")) fprintf(stderr, "cublasLt: %s\n", why);
    (void)wefti_stand_in_refuse(cudaErrorInvalidValue, why);
    return status;
}

bool is_fp8(cudaDataType_t type) { return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2; }
size_t bytes_of(cudaDataType_t type) { return is_fp8(type) ? 1 : type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }

double load(const void *at, int64_t i, cudaDataType_t type) {
    switch (type) {
    case CUDA_R_64F: return static_cast<const double *>(at)[i];
    case CUDA_R_32F: return static_cast<const float *>(at)[i];
    case CUDA_R_16F: return wefti_f16_to_f32(static_cast<const uint16_t *>(at)[i]);
    case CUDA_R_8F_E4M3: return wefti_fp8_host_decode(static_cast<const uint8_t *>(at)[i], WEFTI_FP8_E4M3);
    case CUDA_R_8F_E5M2: return wefti_fp8_host_decode(static_cast<const uint8_t *>(at)[i], WEFTI_FP8_E5M2);
    default: return wefti_bf16_to_f32(static_cast<const uint16_t *>(at)[i]);
    }
}
void store(void *at, int64_t i, cudaDataType_t type, double value) {
    switch (type) {
    case CUDA_R_64F: static_cast<double *>(at)[i] = value; break;
    case CUDA_R_32F: static_cast<float *>(at)[i] = (float)value; break;
    case CUDA_R_16F: static_cast<uint16_t *>(at)[i] = wefti_f32_to_f16((float)value); break;
    default: static_cast<uint16_t *>(at)[i] = wefti_f32_to_bf16((float)value);
    }
}
/* To the 10 bits of tf32, to nearest, ties away from zero as the hardware's conversion does. */
double to_tf32(double x) {
    float    f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits >> 23 & 255u) != 255u) bits = (bits + 0x1000u) & ~0x1fffu;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Bytes from the first element to behind the last. */
size_t extent(const layout &of) {
    if (of.rows == 0 || of.columns == 0) return 0;
    int64_t last = (int64_t)of.rows - 1 + ((int64_t)of.columns - 1) * of.ld + (of.batch - 1) * of.stride;
    return (size_t)(last + 1) * bytes_of(of.type);
}

cublasStatus_t check_layout(const layout &of) {
    if (of.rows == 0 || of.columns == 0 || of.batch < 1) return refuse(CUBLAS_STATUS_INVALID_VALUE, "an empty matrix");
    if (of.ld < (int64_t)of.rows) return refuse(CUBLAS_STATUS_INVALID_VALUE, "a leading dimension below the rows");
    if (of.batch > 1 && of.stride < 0) return refuse(CUBLAS_STATUS_INVALID_VALUE, "a negative stride of the batch");
    if (of.type != CUDA_R_64F && of.type != CUDA_R_32F && of.type != CUDA_R_16F && of.type != CUDA_R_16BF && !is_fp8(of.type))
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "a type that is no float");
    return CUBLAS_STATUS_SUCCESS;
}

struct product {
    operation op;
    layout    a, b, c, d;
    uint64_t  m, n, k;
};

cublasStatus_t check_epilogue(const product &p) {
    steps what;
    if (!steps_of(p.op.epilogue, &what)) return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "an epilogue that the stand-in does not have");
    if (p.op.epilogue == CUBLASLT_EPILOGUE_DEFAULT) return CUBLAS_STATUS_SUCCESS;
    if (getenv("WEFT_CUDA_HOST_NO_EPILOGUE")) return CUBLAS_STATUS_NOT_SUPPORTED; /* as the library says of what it has no kernel for */
    if (p.a.type == CUDA_R_64F || p.d.batch != 1) return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "no epilogue of f64 or batches");
    bool vector = what.bias || what.sums || what.sums_a || what.sums_b, side = what.stores || what.dgelu;
    if (vector && (!p.op.vector || (uintptr_t)p.op.vector % bytes_of(p.d.type))) return refuse(CUBLAS_STATUS_INVALID_VALUE, "no bias, or one that is not aligned");
    if (side && (!p.op.side || (uintptr_t)p.op.side % 16)) return refuse(CUBLAS_STATUS_INVALID_VALUE, "no auxiliary matrix, or one that is not aligned to 16 bytes");
    if (side && (p.op.side_ld % 8 || p.op.side_ld < (int64_t)p.m)) return refuse(CUBLAS_STATUS_INVALID_VALUE, "an auxiliary matrix with a bad leading dimension");
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t describe(cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                        product *out) {
    if (!op || !a || !b || !c || !d) return refuse(CUBLAS_STATUS_INVALID_VALUE, "a descriptor is missing");
    *out = {*reinterpret_cast<operation *>(op), *reinterpret_cast<layout *>(a), *reinterpret_cast<layout *>(b), *reinterpret_cast<layout *>(c),
            *reinterpret_cast<layout *>(d), 0, 0, 0};
    for (const layout *one : {&out->a, &out->b, &out->c, &out->d}) {
        cublasStatus_t status = check_layout(*one);
        if (status != CUBLAS_STATUS_SUCCESS) return status;
    }
    bool ta = out->op.a != CUBLAS_OP_N, tb = out->op.b != CUBLAS_OP_N;
    out->m = ta ? out->a.columns : out->a.rows;
    out->k = ta ? out->a.rows : out->a.columns;
    out->n = tb ? out->b.rows : out->b.columns;
    if ((tb ? out->b.columns : out->b.rows) != out->k || out->d.rows != out->m || out->d.columns != out->n || out->c.rows != out->m ||
        out->c.columns != out->n)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the matrices do not fit each other");
    if (out->a.batch != out->d.batch || out->b.batch != out->d.batch || out->c.batch != out->d.batch)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the batches differ");
    if (is_fp8(out->a.type)) { /* cuBLAS 12 and 13, "cublasLtMatmul": the only layout, sizes and result types on Hopper that Weft asks for */
        if (!is_fp8(out->b.type) || (out->a.type == CUDA_R_8F_E5M2 && out->b.type == CUDA_R_8F_E5M2) || out->d.type != CUDA_R_16BF)
            return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "types that do not go together with 8-bit floats");
        if (!ta || tb || out->m % 16 || out->n % 16 || out->k % 16 || out->d.batch != 1)
            return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "8-bit floats are multiplied as A' B, in sizes that divide by 16");
        if (!out->op.a_scale || !out->op.b_scale) return refuse(CUBLAS_STATUS_INVALID_VALUE, "8-bit floats without scales");
    } else if (out->op.a_scale || out->op.b_scale) return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "scales of what is not 8-bit");
    if ((out->a.type != out->b.type && !is_fp8(out->a.type)) || out->c.type != out->d.type) return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "types that do not go together");
    bool is64 = out->a.type == CUDA_R_64F, fast = out->op.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    if (is64 != (out->op.compute == CUBLAS_COMPUTE_64F) || is64 != (out->op.scale == CUDA_R_64F) || is64 != (out->d.type == CUDA_R_64F) ||
        (!is64 && out->op.compute != CUBLAS_COMPUTE_32F && !fast) || (fast && out->a.type != CUDA_R_32F))
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "no such combination of types and computation");
    cublasStatus_t status = check_epilogue(*out);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (out->d.batch > 1 && out->d.stride < (int64_t)out->n * out->d.ld) return refuse(CUBLAS_STATUS_INVALID_VALUE, "results of the batch overlap");
    return CUBLAS_STATUS_SUCCESS;
}

/* One element of op(A) op(B) of one of the batch, over k in [from, to). */
template <typename W> W sum(const product &p, const void *a, const void *b, int64_t batch, uint64_t i, uint64_t j, uint64_t from, uint64_t to) {
    bool    tf32 = p.op.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    int64_t a_row = p.op.a == CUBLAS_OP_N ? 1 : p.a.ld, a_k = p.op.a == CUBLAS_OP_N ? p.a.ld : 1;
    int64_t b_column = p.op.b == CUBLAS_OP_N ? p.b.ld : 1, b_k = p.op.b == CUBLAS_OP_N ? 1 : p.b.ld;
    W       total = 0;
    for (uint64_t l = from; l < to; l++) {
        double x = load(a, batch * p.a.stride + (int64_t)i * a_row + (int64_t)l * a_k, p.a.type);
        double y = load(b, batch * p.b.stride + (int64_t)j * b_column + (int64_t)l * b_k, p.b.type);
        if (tf32) x = to_tf32(x), y = to_tf32(y);
        total = (W)fma(x, y, (double)total);
    }
    return total;
}

const double GELU_SCALE = 0.7978845608028654; /* sqrt(2 / pi) */
double gelu(double x) { return 0.5 * x * (1 + tanh(GELU_SCALE * (x + 0.044715 * x * x * x))); }
double gelu_slope(double x) {
    double t = tanh(GELU_SCALE * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GELU_SCALE * (1 + 3 * 0.044715 * x * x);
}

/* The element on its way to memory. */
template <typename W> W finish(const product &p, const steps &what, W x, uint64_t i, uint64_t j) {
    int64_t beside = (int64_t)(j * (uint64_t)p.op.side_ld + i);
    if (what.bias) x += (W)load(p.op.vector, (int64_t)i, p.d.type);
    if (what.stores) store(p.op.side, beside, p.d.type, (double)x);
    if (what.relu) x = x > 0 ? x : 0;
    if (what.gelu) x = (W)gelu((double)x);
    if (what.dgelu) x *= (W)gelu_slope(load(p.op.side, beside, p.d.type));
    return x;
}

/* Sums over the inner index: of op(A)'s rows, or of op(B)'s columns. */
void add_up_operand(const product &p, const void *of, bool a) {
    const layout &l = a ? p.a : p.b;
    bool          turned = (a ? p.op.a : p.op.b) != CUBLAS_OP_N, inner_is_row = turned == a;
    for (uint64_t i = 0; i < (a ? p.m : p.n); i++) {
        double total = 0;
        for (uint64_t k = 0; k < p.k; k++)
            total += load(of, inner_is_row ? (int64_t)k + (int64_t)i * l.ld : (int64_t)i + (int64_t)k * l.ld, l.type);
        store(p.op.vector, (int64_t)i, p.d.type, total);
    }
}

template <typename W> void multiply(const product &p, uint32_t id, W alpha, W beta, const void *a, const void *b, const void *c, void *d, void *workspace) {
    W                  *halves = static_cast<W *>(workspace);
    steps               what;
    std::vector<double> sums(p.m, 0.0);
    steps_of(p.op.epilogue, &what);
    for (int64_t batch = 0; batch < p.d.batch; batch++)
        for (uint64_t j = 0; j < p.n; j++)
            for (uint64_t i = 0; i < p.m; i++) {
                W total;
                if (id == 1) { /* through the workspace, as split sums go */
                    W *mine = halves + 2 * (j * p.m + i);
                    mine[0] = sum<W>(p, a, b, batch, i, j, 0, p.k / 2);
                    mine[1] = sum<W>(p, a, b, batch, i, j, p.k / 2, p.k);
                    total = mine[0] + mine[1];
                } else total = sum<W>(p, a, b, batch, i, j, 0, p.k);
                total *= alpha;
                if (beta != 0) total += beta * (W)load(c, batch * p.c.stride + (int64_t)(j * (uint64_t)p.c.ld + i), p.c.type);
                total = finish(p, what, total, i, j);
                sums[i] += (double)total;
                store(d, batch * p.d.stride + (int64_t)(j * (uint64_t)p.d.ld + i), p.d.type, (double)total);
            }
    for (uint64_t i = 0; what.sums && i < p.m; i++) store(p.op.vector, (int64_t)i, p.d.type, sums[i]);
    if (what.sums_a || what.sums_b) add_up_operand(p, what.sums_a ? a : b, what.sums_a);
}

/* Whether what the epilogue reads and writes lies in device memory. */
cublasStatus_t may_use_beside(const product &p) {
    steps what;
    steps_of(p.op.epilogue, &what);
    uint64_t vector = what.sums_b ? p.n : what.bias || what.sums || what.sums_a ? p.m : 0;
    uint64_t side = what.stores || what.dgelu ? (p.n - 1) * (uint64_t)p.op.side_ld + p.m : 0;
    if ((vector && !wefti_stand_in_may_use(p.op.vector, vector * bytes_of(p.d.type))) || (side && !wefti_stand_in_may_use(p.op.side, side * bytes_of(p.d.type))))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the bias or the auxiliary matrix reaches out of device memory");
    return CUBLAS_STATUS_SUCCESS;
}

algorithm *inside(cublasLtMatmulAlgo_t *algo) { return reinterpret_cast<algorithm *>(algo); }

} // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle_out) {
    if (getenv("WEFT_CUDA_HOST_NO_BLAS")) return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle_out = reinterpret_cast<cublasLtHandle_t>(new uint64_t(MAGIC));
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete reinterpret_cast<uint64_t *>(handle);
    return CUBLAS_STATUS_SUCCESS;
}
size_t      cublasLtGetVersion(void) { return CUBLAS_VERSION; }
const char *cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "another status";
    }
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale) {
    auto *made = new operation;
    made->compute = compute;
    made->scale = scale;
    *out = reinterpret_cast<cublasLtMatmulDesc_t>(made);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t one) {
    delete reinterpret_cast<operation *>(one);
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t take(void *to, size_t wanted, const void *from, size_t bytes) {
    if (bytes < wanted || !from) return refuse(CUBLAS_STATUS_INVALID_VALUE, "an attribute of the wrong size");
    memcpy(to, from, wanted);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t one, cublasLtMatmulDescAttributes_t attribute, const void *value, size_t bytes) {
    auto *self = reinterpret_cast<operation *>(one);
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return take(&self->a, sizeof self->a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return take(&self->b, sizeof self->b, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER: return take(&self->a_scale, sizeof self->a_scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER: return take(&self->b_scale, sizeof self->b_scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return take(&self->epilogue, sizeof self->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return take(&self->vector, sizeof self->vector, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return take(&self->side, sizeof self->side, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return take(&self->side_ld, sizeof self->side_ld, value, bytes);
    default: return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "an attribute of products that the stand-in does not have");
    }
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows, uint64_t columns, int64_t ld) {
    *out = reinterpret_cast<cublasLtMatrixLayout_t>(new layout{type, rows, columns, ld, 1, 0});
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t one) {
    delete reinterpret_cast<layout *>(one);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t one, cublasLtMatrixLayoutAttribute_t attribute, const void *value, size_t bytes) {
    auto *self = reinterpret_cast<layout *>(one);
    switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: return take(&self->batch, sizeof self->batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: return take(&self->stride, sizeof self->stride, value, bytes);
    default: return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "an attribute of matrices that the stand-in does not have");
    }
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out) {
    *out = reinterpret_cast<cublasLtMatmulPreference_t>(new preference);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t one) {
    delete reinterpret_cast<preference *>(one);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t one, cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t bytes) {
    auto *self = reinterpret_cast<preference *>(one);
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return take(&self->workspace, sizeof self->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return take(&self->reduction, sizeof self->reduction, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return take(&self->alignment[0], sizeof(uint32_t), value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return take(&self->alignment[1], sizeof(uint32_t), value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return take(&self->alignment[2], sizeof(uint32_t), value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return take(&self->alignment[3], sizeof(uint32_t), value, bytes);
    default: return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "a preference that the stand-in does not have");
    }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t wishes, int most,
                                              cublasLtMatmulHeuristicResult_t results[], int *count_out) {
    product           p;
    const preference &wish = *reinterpret_cast<preference *>(wishes);
    *count_out = 0;
    if (!handle || most < 1) return refuse(CUBLAS_STATUS_INVALID_VALUE, "no handle, or no room for results");
    cublasStatus_t status = describe(op, a, b, c, d, &p);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    /* The splitting one first, as the library often has it. */
    for (uint32_t id = 2; id-- > 0 && *count_out < most;) {
        uint64_t workspace = id ? 2 * p.m * p.n * (p.a.type == CUDA_R_64F ? 8 : 4) : 0;
        if (workspace > wish.workspace || (id && !(wish.reduction & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE))) continue;
        cublasLtMatmulHeuristicResult_t *one = &results[(*count_out)++];
        memset(one, 0, sizeof *one);
        algorithm chosen = {MAGIC, id, {wish.alignment[0], wish.alignment[1], wish.alignment[2], wish.alignment[3]}, workspace, p.m, p.n};
        memcpy(&one->algo, &chosen, sizeof chosen);
        one->workspaceSize = workspace;
        one->state = CUBLAS_STATUS_SUCCESS;
        one->wavesCount = 1;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result) {
    product   p;
    algorithm chosen;
    memcpy(&chosen, algo, sizeof chosen);
    cublasStatus_t status = handle ? describe(op, a, b, c, d, &p) : CUBLAS_STATUS_INVALID_VALUE;
    if (status == CUBLAS_STATUS_SUCCESS && (chosen.magic != MAGIC || chosen.id > 1 || chosen.m != p.m || chosen.n != p.n))
        status = refuse(CUBLAS_STATUS_INVALID_VALUE, "an algorithm of another product");
    result->state = status;
    result->algo = *algo;
    result->workspaceSize = chosen.workspace;
    return status;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t op, const void *alpha, const void *a, cublasLtMatrixLayout_t a_layout,
                              const void *b, cublasLtMatrixLayout_t b_layout, const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
    product p;
    if (!handle || *reinterpret_cast<uint64_t *>(handle) != MAGIC) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle");
    cublasStatus_t status = describe(op, a_layout, b_layout, c_layout, d_layout, &p);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    cublasLtMatmulAlgo_t kept = *algo;
    algorithm            chosen = *inside(&kept);
    if (chosen.magic != MAGIC || chosen.m != p.m || chosen.n != p.n) return refuse(CUBLAS_STATUS_INVALID_VALUE, "an algorithm of another product");
    const void   *at[] = {a, b, c, d};
    const layout *of[] = {&p.a, &p.b, &p.c, &p.d};
    for (int i = 0; i < 4; i++) {
        if (!wefti_stand_in_may_use(at[i], extent(*of[i]))) return refuse(CUBLAS_STATUS_INVALID_VALUE, "a matrix reaches out of device memory");
        if ((uintptr_t)at[i] % chosen.alignment[i]) return refuse(CUBLAS_STATUS_INVALID_VALUE, "a pointer is less aligned than was promised");
    }
    status = may_use_beside(p);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (chosen.workspace > workspace_bytes || (chosen.workspace > 0 && (!wefti_stand_in_may_use(workspace, workspace_bytes) || (uintptr_t)workspace % 256)))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the workspace is too small, not the device's or not aligned");
    if (c == d && (p.c.ld != p.d.ld || p.c.batch != p.d.batch || p.c.stride != p.d.stride))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "in place, with another layout");
    bool scaled = is_fp8(p.a.type);
    if (scaled && (!wefti_stand_in_may_use(p.op.a_scale, sizeof(float)) || !wefti_stand_in_may_use(p.op.b_scale, sizeof(float))))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "a scale is not in device memory");
    double one, zero;
    if (p.op.scale == CUDA_R_64F) one = *static_cast<const double *>(alpha), zero = *static_cast<const double *>(beta);
    else one = *static_cast<const float *>(alpha), zero = *static_cast<const float *>(beta);
    cudaError_t error = wefti_stand_in_issue(stream, "cublasLtMatmul", [=] {
        if (p.a.type == CUDA_R_64F) multiply<double>(p, chosen.id, one, zero, a, b, c, d, workspace);
        else multiply<float>(p, chosen.id, (float)one * (scaled ? *p.op.a_scale * *p.op.b_scale : 1), (float)zero, a, b, c, d, workspace);
        return cudaSuccess;
    });
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

} /* extern "C" */
