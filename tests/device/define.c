/* Which definition belongs to which op. */
#include "device/conformance.h"

void define(const test_case *self, const tensor *inputs, tensor *outputs) {
    switch (self->op) {
    case WEFT_OP_MEAN_BACKWARD: define_reduction(self, inputs, outputs); return;
    case WEFT_OP_UPDATE: define_update(self, inputs, outputs); return;
    case WEFT_OP_FP8_CAST:
    case WEFT_OP_FP8_MATMUL: define_fp8(self, inputs, outputs); return;
    case WEFT_OP_ASSIGN: define_move(self, inputs, outputs); return;
    default: break;
    }
    switch (wefti_ops[self->op].family) {
    case WEFTI_UNARY:
    case WEFTI_BINARY:
    case WEFTI_TERNARY: define_elementwise(self, inputs, outputs); return;
    case WEFTI_REDUCE: define_reduction(self, inputs, outputs); return;
    case WEFTI_MATMUL:
    case WEFTI_CONV:
    case WEFTI_POOL: define_product(self, inputs, outputs); return;
    case WEFTI_ROWS:
    case WEFTI_LOSS:
    case WEFTI_ATTENTION: define_rows(self, inputs, outputs); return;
    default: define_move(self, inputs, outputs); return;
    }
}
