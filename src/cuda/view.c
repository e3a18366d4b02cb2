/* Operands as kernels take them: strided views over one space, with as few axes as describe them all. Host code, a few dozen operations. */
#include "cuda/cuda.h"

#include "core/tensor/operand.h"

/* Whether axis `outer` goes on where the axis below it (dim, stride) ends, in every operand. */
static bool is_one_piece(const wefti_cuda_view_of *view, int32_t n, int32_t outer, int32_t inner) {
    for (int32_t i = 0; i < n; i++)
        if (view[i].stride[outer] != view[i].stride[inner] * view[i].dim[inner]) return false;
    return true;
}

void wefti_cuda_views(weft_shape space, const wefti_operand *const *operands, int32_t n, wefti_cuda_view_of *view_out) {
    int64_t stride[WEFT_MAX_RANK];
    for (int32_t i = 0; i < n; i++) {
        int32_t rank = 0;
        wefti_operand_expand(operands[i], space, stride);
        for (int32_t axis = 0; axis < space.rank; axis++) {
            if (space.dim[axis] == 1) continue;
            view_out[i].dim[rank] = space.dim[axis];
            view_out[i].stride[rank++] = stride[axis];
        }
        view_out[i].rank = rank;
        for (; rank < WEFT_MAX_RANK; rank++) view_out[i].dim[rank] = 1, view_out[i].stride[rank] = 0;
    }
    /* All views have the same axes: merge from the last one on, keeping the merged axis at `last`. */
    int32_t last = n > 0 ? view_out[0].rank - 1 : -1;
    for (int32_t axis = last - 1; axis >= 0; axis--) {
        bool merges = is_one_piece(view_out, n, axis, axis + 1);
        for (int32_t i = 0; i < n && merges; i++) {
            view_out[i].dim[axis] *= view_out[i].dim[axis + 1];
            view_out[i].stride[axis] = view_out[i].stride[axis + 1];
            for (int32_t next = axis + 1; next < last; next++) {
                view_out[i].dim[next] = view_out[i].dim[next + 1];
                view_out[i].stride[next] = view_out[i].stride[next + 1];
            }
            view_out[i].dim[last] = 1;
            view_out[i].stride[last] = 0;
        }
        if (merges) last--;
    }
    for (int32_t i = 0; i < n; i++) view_out[i].rank = last >= 0 ? last + 1 : 1;
}
