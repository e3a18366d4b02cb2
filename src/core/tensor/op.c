/* The table of operations, generated from ops.def: names, families and arities. */
#include "core/iface/op.h"

#define ANY WEFTI_ANY
const wefti_op_info wefti_ops[WEFT_OP_COUNT] = {
#define WEFTI_OP(NAME, name, family, in_min, in_max, outs, shape, gradient, shard, flops) \
    [WEFT_OP_##NAME] = {#name, WEFTI_##family, in_min, in_max, outs},
#include "weft/ops.def"
#undef WEFTI_OP
};
