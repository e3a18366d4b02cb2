/* The innermost matrix product, by tiles that fill the register file.
 *
 * Idea: as BLIS has it (Van Zee & van de Geijn 2015), a tile of C stays in registers while panels of A and B stream by from the
 * nearer caches. The tile's height varies, so that 64 rows are five tiles of 13 or 12 and none is mostly padding.
 * Cost: two operations per element of the tile and step of k; operands are packed once by their users. */
#include "core/cpu/kernels/gemm.h"

#define TILE_ROWS WEFTI_GEMM_ROWS

#define T float
#define V vf
#define VL VF
#define V_LOAD vf_load
#define V_STORE vf_store
#define V_STREAM vf_stream
#define V_SET vf_set
#define V_FMA vf_fma
#define INTEGER int32_t
#define GEMM(name) wefti_gemm_f32_##name
#include "core/cpu/kernels/gemm_template.h"
#undef T
#undef V
#undef VL
#undef V_LOAD
#undef V_STORE
#undef V_STREAM
#undef V_SET
#undef V_FMA
#undef INTEGER
#undef GEMM

#define T double
#define V vd
#define VL VD
#define V_LOAD vd_load
#define V_STORE vd_store
#define V_STREAM vd_stream
#define V_SET vd_set
#define V_FMA vd_fma
#define INTEGER int64_t
#define GEMM(name) wefti_gemm_f64_##name
#include "core/cpu/kernels/gemm_template.h"
