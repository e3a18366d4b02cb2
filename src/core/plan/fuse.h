/* What fusion is made of. */
#ifndef WEFTI_PLAN_FUSE_H
#define WEFTI_PLAN_FUSE_H

#include "core/plan/ir.h"

/* Copies cheap elementwise items into each of their readers where that saves storing them; clone.c. */
WEFT_MUST_CHECK weft_status wefti_clone_cheap(wefti_ir *ir);

/* Whether the op takes an instruction or two, so that its results may be computed again instead of being kept; clone.c. */
bool wefti_op_is_cheap(weft_op op);

#endif
